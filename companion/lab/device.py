"""The device on which runs are computed: ``DEVICE``, else the one that an arm prefers."""

from __future__ import annotations

import os

import torch

from trainaug.training.devices import pick_device

__all__ = ["asked_device", "device_name", "run_device", "wait_for"]


def asked_device(preferred: str = "cpu") -> str:
    """Value of ``DEVICE``, else what an arm prefers: ``cpu``, ``cuda``, ``mps`` or ``auto``."""
    return os.environ.get("DEVICE") or preferred


def run_device(preferred: str = "cpu") -> torch.device:
    """Return the device of the run that this process computes.

    Args:
        preferred: The device that the arm prefers, for the case that ``DEVICE`` is not set.

    Raises:
        ValueError: If ``DEVICE`` names no device.
        RuntimeError: If this machine does not have the device.
    """
    return pick_device(asked_device(preferred))


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has finished its work, so that a clock does not stop too early."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def device_name(device: torch.device) -> str:
    """Return the kind of a device, and for CUDA the name of the GPU, as results depend on it."""
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    return device.type
