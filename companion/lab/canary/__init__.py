"""Canaries: a tiny run of every arm, hashed, that tells whether the arm's numbers still hold.

A canary is the arm's own ``execute`` with fewer steps (`sizes`), seed 0, in canonical mode. Two
hashes are kept: of the raw *trace* (`recorder`) and of the *record*, the result as the store would
write it.
Equal canaries mean that the committed evidence is what today's code computes, whatever the code
looks like; one that moved is a bug, or needs a new ``version`` of its arm.
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
