"""Canaries: a tiny run of every arm, hashed, that tells whether the arm's numbers still hold.

A canary is the arm's own run with fewer steps (`sizes`) and seed 0, in canonical mode. Two hashes
are kept: of the raw *trace* (`recorder`) and of the *record*, the result as the store would write
it. Equal canaries mean that today's code computes the committed evidence, however the code may have
changed. A canary that moved shows a bug, or its arm needs a new ``version``.
"""

from companion.lab.canary.check import (
    CANARIES,
    Canary,
    CanaryFailedError,
    CanaryResult,
    CommittedCanaries,
    CommittedCanary,
    Coverage,
    canary_runs,
    check_canaries,
    compare_coverage,
    compute_canaries,
    moved_constants,
    read_canaries,
    write_canaries,
    write_constants,
    write_coverage,
    write_operations,
)

__all__ = [
    "CANARIES",
    "Canary",
    "CanaryFailedError",
    "CanaryResult",
    "CommittedCanaries",
    "CommittedCanary",
    "Coverage",
    "canary_runs",
    "check_canaries",
    "compare_coverage",
    "compute_canaries",
    "moved_constants",
    "read_canaries",
    "write_canaries",
    "write_constants",
    "write_coverage",
    "write_operations",
]
