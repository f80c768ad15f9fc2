"""Under which conditions a run is computed: canonical or native, and on which device."""

from __future__ import annotations

import os

from companion.evidence import canonical
from companion.evidence.store import Conditions, Run

__all__ = ["conditions_of", "device_of_run", "is_canonical_run"]

# The setting, and its value, by which a chapter chooses a GPU where there is one.
_GPU_SETTING = {"02": ("data", "cifar10"), "05": ("model", "wrn28_10")}


def device_of_run(run: Run) -> str:
    """Name of the device a run is computed on: ``cpu``, or what there is for a GPU's arms.

    ``TRAINAUG_DEVICE`` gives another name.
    """
    if name := os.environ.get("TRAINAUG_DEVICE"):
        return name
    setting, value = _GPU_SETTING.get(run.chapter, ("", ""))
    if not setting or run.config.get(setting) != value:
        return "cpu"
    # not at the top: whoever asks for a CPU's run need not wait for torch
    from trainaug.training.devices import pick_device

    return str(pick_device())


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
