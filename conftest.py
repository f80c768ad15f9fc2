"""Settings of all tests: one thread, and what nbval shall not compare."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Keep every test process to one thread."""
    import torch

    torch.set_num_threads(1)


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Standard error is no output of a notebook: warnings and progress come and go."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr",)
