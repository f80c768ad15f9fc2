"""Every operation that an arm calls is on the list of those shown to be portable."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from trainaug.evidence.operations import OperationRecorder, not_shown_portable
from trainaug.paths import RESULTS

RECORDED = RESULTS / "canaries" / "operations.json"


def outside(recorded: dict[str, dict[str, list[str]]]) -> dict[str, list[str]]:
    """Name of an arm with its chapter -> operations that are not on the list."""
    return {
        f"{chapter} {arm}": missing
        for chapter, arms in recorded.items()
        for arm, operations in arms.items()
        if (missing := not_shown_portable(operations))
    }


def test_no_arm_calls_an_operation_outside_the_list() -> None:
    assert outside(json.loads(RECORDED.read_text("utf-8"))) == {}


@pytest.mark.parametrize(
    "operation",
    [
        "aten.sqrt float64",
        "aten.sqrt_ float32",
        "aten._foreach_sqrt other",
        "aten.exp bfloat16",
        "aten.an_operation_of_next_year float32",
    ],
)
def test_an_arm_outside_the_list_is_named(operation: str) -> None:
    recorded: dict[str, Any] = {"04": {"digits_random": ["aten.view float32", operation]}}
    assert outside(recorded) == {"04 digits_random": [operation]}


def test_a_power_of_a_half_counts_as_a_square_root() -> None:
    with OperationRecorder() as recorder:
        _ = torch.ones(3) ** 0.5, torch.ones(3).pow_(2.5)
    assert {"aten.sqrt float32", "aten.pow float32"} <= recorder.operations
    assert not_shown_portable(recorder.operations) == ["aten.sqrt float32"]


def test_operations_on_lists_carry_the_type_of_their_tensors() -> None:
    with OperationRecorder() as recorder:
        torch._foreach_add_([torch.ones(3, dtype=torch.float64)], 1)
    assert "aten._foreach_add float64" in recorder.operations
