"""Every arm of every plan has a name that is an identifier, and a seed runs it once."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from companion.experiments.chapters import PROFILE_NAMES, TITLES, load_chapter
from companion.paths import ROOT

BUILT = [number for number in TITLES if load_chapter(number) is not None]
RENAMED = json.loads((ROOT / "docs/migrations/arm_names.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("profile", PROFILE_NAMES)
@pytest.mark.parametrize("number", BUILT)
def test_arms_are_identifiers_and_a_seed_runs_each_once(number, profile):
    plan = load_chapter(number).plan(profile)
    assert [run.arm for run in plan if not run.arm.isidentifier()] == []
    counts = Counter((run.arm, run.seed) for run in plan)
    assert [key for key, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("number", sorted({row["chapter"] for row in RENAMED}))
def test_a_renamed_arm_has_the_settings_that_its_row_names(number):
    """The table takes an old record to one new arm, which runs the same settings."""
    rows = [row for row in RENAMED if row["chapter"] == number]
    settings = {run.arm: dict(run.config) for run in load_chapter(number).plan("full")}
    assert not {row["old"] for row in rows} & set(settings)
    for row in rows:
        taken = [
            other["new"]
            for other in rows
            if other["old"] == row["old"]
            and other["settings"].items() <= settings[row["new"]].items()
        ]
        assert taken == [row["new"]]
