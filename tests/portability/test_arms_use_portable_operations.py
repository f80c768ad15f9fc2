"""Every operation that an arm calls is on the list of those shown to be portable."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trainaug.evidence.operations import not_shown_portable
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
    ["aten.sqrt float64", "aten.sqrt_ float32", "aten._foreach_sqrt other", "aten.multinomial other",
     "aten.exp bfloat16", "aten.an_operation_of_next_year float32"],
)  # fmt: skip
def test_an_arm_outside_the_list_is_named(operation: str) -> None:
    recorded: dict[str, Any] = {"04": {"digits_random": ["aten.view float32", operation]}}
    if operation == "aten.multinomial other":  # shown by a probe, not by being an integer
        assert outside(recorded) == {}
    else:
        assert outside(recorded) == {"04 digits_random": [operation]}
