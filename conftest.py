"""Settings of all tests: canonical, one thread, no progress; and what nbval shall not compare."""

from __future__ import annotations

import os

import pytest

from companion.evidence import canonical

# Before anything imports NumPy or torch. Kernels of nbval and child processes inherit both.
canonical.enter()
os.environ["TRAINAUG_PROGRESS"] = "off"


def pytest_configure(config: pytest.Config) -> None:
    """Keep every test process to one thread."""
    import torch

    torch.set_num_threads(1)


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Standard error is no output of a notebook: warnings and progress come and go."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr",)
