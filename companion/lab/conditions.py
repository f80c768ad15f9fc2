"""Under which conditions a run is computed: canonical or native, and on which device."""

from __future__ import annotations

import os

from companion.evidence import canonical
from companion.evidence.store import Conditions, Run

__all__ = ["conditions_of", "device_of_run", "is_canonical_run"]


def device_of_run(run: Run) -> str:
    """Name of the device on which a run is computed, as its provenance states it.

    The variable ``DEVICE`` decides, else the arm's setting ``device``; most arms have none and use
    the CPU.
    """
    asked = os.environ.get("DEVICE") or str(run.config.get("device", "cpu"))
    if asked == "cpu":
        return asked
    # not at the top of the module: runs on the CPU need not wait for torch
    from companion.lab.device import device_name, run_device

    return device_name(run_device(str(run.config.get("device", "cpu"))))


def is_canonical_run(run: Run) -> bool:
    """Whether a run must be computed in canonical mode: all but timings and runs on a GPU."""
    return run.deterministic and device_of_run(run) == "cpu"


def conditions_of(run: Run, code: str, *, is_canonical: bool | None = None) -> Conditions:
    """Conditions under which a run is computed.

    Args:
        run: The run.
        code: Digest of the code behind it.
        is_canonical: Whether the process that computes it is canonical; by default what the run
            requires (`is_canonical_run`).
    """
    if is_canonical is None:
        is_canonical = is_canonical_run(run)
    fingerprint = canonical.fingerprint(canonical=is_canonical)
    return Conditions(code, fingerprint, device_of_run(run), is_canonical)
