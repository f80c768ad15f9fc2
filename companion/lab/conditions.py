"""Under which conditions a run is computed: canonical or native, and on which device."""

from __future__ import annotations

import os

from companion.evidence import canonical
from companion.evidence.store import Conditions, Run

__all__ = ["conditions_of", "device_of_run", "is_canonical_run"]


def device_of_run(run: Run) -> str:
    """Name of the device a run is computed on, as its provenance states it.

    It is ``DEVICE``, else the arm's own: ``cpu`` but for arms that are made for a GPU.
    """
    asked = os.environ.get("DEVICE") or str(run.config.get("device", "cpu"))
    if asked == "cpu":
        return asked
    # not at the top: whoever asks for a CPU's run need not wait for torch
    from companion.lab.device import device_name, run_device

    return device_name(run_device(str(run.config.get("device", "cpu"))))


def is_canonical_run(run: Run) -> bool:
    """Whether a run must be computed in canonical mode: not where time counts, nor on a GPU."""
    return run.deterministic and device_of_run(run) == "cpu"


def conditions_of(run: Run, code: str, *, is_canonical: bool | None = None) -> Conditions:
    """Conditions of a run.

    Args:
        run: The run.
        code: Digest of the code behind it.
        is_canonical: Whether the process that computes it is canonical; as it must be by default.
    """
    if is_canonical is None:
        is_canonical = is_canonical_run(run)
    fingerprint = canonical.fingerprint(canonical=is_canonical)
    return Conditions(code, fingerprint, device_of_run(run), is_canonical)
