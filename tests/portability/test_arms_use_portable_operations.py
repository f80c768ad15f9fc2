"""Every operation that an arm calls is on the list of those shown to be portable."""

from __future__ import annotations

import json

import pytest
import torch

from companion.evidence.operations import OperationRecorder, not_shown_portable
from companion.lab.kernels import REPLACED
from companion.paths import RESULTS

RECORDED = RESULTS / "canaries" / "operations.json"


def outside(recorded: dict[str, dict[str, list[str]]]) -> dict[str, list[str]]:
    """Operation that is not on the list -> arms that call it, each with its chapter."""
    # whose kernel in the processes of runs is NumPy's, for both types
    replaced = {f"aten.{name} {kind}" for name in REPLACED for kind in ("float32", "float64")}
    actual: dict[str, list[str]] = {}
    for chapter, callers in recorded.items():
        for operation in set(not_shown_portable(callers)) - replaced:
            actual.setdefault(operation, []).extend(
                f"{chapter} {arm}" for arm in callers[operation]
            )
    return actual


def test_no_arm_calls_an_operation_outside_the_list() -> None:
    assert outside(json.loads(RECORDED.read_text("utf-8"))) == {}


@pytest.mark.parametrize(
    "operation",
    [
        "aten.log2 float64",
        "aten.sqrt_ float32",
        "aten._foreach_sqrt other",
        "aten.exp bfloat16",
        "aten.an_operation_of_next_year float32",
    ],
)
def test_an_arm_outside_the_list_is_named(operation: str) -> None:
    recorded = {"04": {"aten.view float32": ["digits_delta"], operation: ["digits_random"]}}
    assert outside(recorded) == {operation: ["04 digits_random"]}


def test_a_power_of_a_half_counts_as_a_square_root() -> None:
    with OperationRecorder() as recorder:
        _ = torch.ones(3) ** 0.5, torch.ones(3).pow_(2.5)
    assert {"aten.sqrt float32", "aten.pow float32"} <= recorder.operations
    assert not_shown_portable(recorder.operations) == ["aten.sqrt float32"]


def test_operations_on_lists_carry_the_type_of_their_tensors() -> None:
    with OperationRecorder() as recorder:
        torch._foreach_add_([torch.ones(3, dtype=torch.float64)], 1)
    assert "aten._foreach_add float64" in recorder.operations
