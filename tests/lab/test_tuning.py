"""Chapter 6: how step lengths are chosen, and that the committed ones were chosen so."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml

from companion.chapters.linear_robustness import bias, pictures
from companion.chapters.linear_robustness import tuning as t
from companion.chapters.linear_robustness.config import Config
from companion.chapters.linear_robustness.runs import plan

GROUP = {
    **{f"convolutional-{depth}": "networks" for depth in bias.DEPTHS},
    "dense-2": "networks",
    **{f"adversarial-{fraction:g}": "adversarial" for fraction in bias.FRACTIONS},
    **dict.fromkeys(pictures.MODELS, "pictures"),
}


def trials(scores: dict[float, float], problem: str = "p", seed: Any = 0, arm: str = "a") -> list:
    names = ("arm", "setting", "value", "seed", "problem", "score")
    return [
        dict(zip(names, (arm, "lr", value, seed, problem, score), strict=True))
        for value, score in scores.items()
    ]


@pytest.fixture(scope="module")
def committed() -> list[dict[str, Any]]:
    return t.read_trials()


# --- by hand --------------------------------------------------------------------------------------


def test_curve_is_the_mean_log_share_of_the_best():
    rows = trials({0.1: 2.0, 1.0: 4.0, 10.0: 1.0}) + trials({0.1: 30.0, 1.0: 15.0, 10.0: 15.0}, "q")
    # shares 1/2, 1, 1/4 and 1, 1/2, 1/2
    curve = t.tuning_curve(rows)
    assert list(curve) == [0.1, 1.0, 10.0]
    assert list(curve.values()) == pytest.approx([-math.log(2) / 2] * 2 + [-math.log(8) / 2])
    # seeds are cases of their own
    one = trials({0.1: 1.0, 1.0: 2.0}, seed=0) + trials({0.1: 9.0, 1.0: 3.0}, seed=1)
    assert t.tuning_curve(one) == pytest.approx({0.1: -math.log(2) / 2, 1.0: -math.log(3) / 2})
    assert t.tuning_curve(one[::-1]) == t.tuning_curve(one)


def test_a_score_that_is_not_positive_counts_as_the_worst_share():
    curve = t.tuning_curve(trials({0.1: -5.0, 1.0: 0.0, 3.0: 1e-9, 10.0: 2.0}))
    worst = math.log(t.WORST_SHARE)
    assert curve == pytest.approx({0.1: worst, 1.0: worst, 3.0: worst, 10.0: 0.0})


def test_where_every_score_is_negative_relative_differences_count():
    curve = t.tuning_curve(trials({0.1: -2.0, 1.0: -3.0, 10.0: -1e9}))
    assert curve == pytest.approx({0.1: 0.0, 1.0: -0.5, 10.0: math.log(t.WORST_SHARE)})
    # a best score of zero has no size
    curve = t.tuning_curve(trials({0.1: 0.0, 1.0: -3.0}))
    assert curve == pytest.approx({0.1: 0.0, 1.0: -3.0})


def test_choice_is_the_best_mean_of_each_arm():
    rows = trials({0.1: 2.0, 1.0: 4.0, 10.0: 1.0}) + trials(
        {10.0: 1.0, 0.1: 3.0, 1.0: 2.0}, arm="b"
    )
    grid = [0.1, 1.0, 10.0]
    assert t.choose(rows) == {
        "a": {"lr": {"value": 1.0, "grid": grid}},
        "b": {"lr": {"value": 0.1, "grid": grid}},
    }
    # one problem with large scores does not decide alone: shares 1/2, 1 against 1, 1/10
    rows = trials({0.1: 500.0, 1.0: 1000.0}) + trials({0.1: 1.0, 1.0: 0.1}, "q")
    assert t.choose(rows)["a"]["lr"]["value"] == 0.1
    # of equals the smaller step
    assert t.choose(trials({1.0: 2.0, 0.1: 2.0}))["a"]["lr"]["value"] == 0.1


# --- what is committed ----------------------------------------------------------------------------


def test_committed_values_are_those_of_the_committed_trials(committed):
    text = bias.TUNED.read_text(encoding="utf-8")
    assert yaml.safe_load(text) == t.choose(committed)
    assert text == yaml.safe_dump(t.choose(committed), sort_keys=False)


@pytest.mark.parametrize("arm", GROUP)
def test_committed_value_lies_inside_its_grid(committed, arm):
    setting = t.choose(committed)[arm]["lr"]
    assert setting["grid"] == list(t.GRIDS[GROUP[arm]])
    assert setting["grid"][0] < setting["value"] < setting["grid"][-1]
    assert setting["value"] in setting["grid"]
    assert bias.tuned(arm) == setting["value"]


def test_every_arm_of_a_group_had_the_same_trials(committed):
    assert {row["arm"] for row in committed} == set(GROUP)
    for group in t.GRIDS:
        tried = {
            arm: sorted((r["problem"], r["seed"], r["value"]) for r in committed if r["arm"] == arm)
            for arm in GROUP
            if GROUP[arm] == group
        }
        first, *others = tried.values()
        assert all(other == first for other in others), group
        assert len(set(first)) == len(first)
        problems, seeds, values = (set(column) for column in zip(*first, strict=True))
        assert values == set(t.GRIDS[group])
        assert len(first) == len(problems) * len(seeds) * len(values)
    # a grid value in the same seed is one trial, whatever the number of problems: equally many
    # but for the length of the grids
    assert {row["seed"] for row in committed} == set(t.SEEDS)


def test_trials_are_on_pilot_seeds_and_finite(committed):
    assert max(t.SEEDS) < 100
    assert max(int(row["seed"]) for row in committed) < 100
    assert {row["setting"] for row in committed} == {"lr"}
    assert all(math.isfinite(row["score"]) for row in committed)


def test_runs_of_the_plan_use_the_tuned_values():
    used: dict[str, float] = {}
    for run in plan(Config()):
        lr = run.config.get("lr")
        if run.arm.endswith("_convolutional"):
            names = [f"convolutional-{depth}" for depth in run.config["depths"]]
            used |= dict(zip(names, lr, strict=True))
        elif run.arm.endswith("_adversarial"):
            names = [f"adversarial-{fraction:g}" for fraction in run.config["fractions"]]
            used |= dict(zip(names, lr, strict=True))
        elif run.arm.endswith("_dense"):
            used["dense-2"] = lr
        elif lr is not None:
            used[run.arm.removeprefix("fashion_")] = lr
    assert set(used) == set(GROUP)
    assert used == {arm: bias.tuned(arm) for arm in GROUP}
    with pytest.raises(KeyError, match="dense-3"):
        bias.tuned("dense-3")


def test_table_has_a_line_for_every_arm():
    lines = t.tuning_table().splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(dict.fromkeys(GROUP))
    chosen = {line.split()[0]: float(line.split()[1]) for line in lines[1:]}
    assert chosen == {arm: bias.tuned(arm) for arm in GROUP}


def test_table_is_in_percent_of_the_best(monkeypatch):
    rows = trials({0.1: 2.0, 1.0: 4.0}, arm="a") + trials({0.1: -2.0, 1.0: -3.0}, arm="b")
    monkeypatch.setattr(t.trials, "read_trials", lambda chapter: rows)
    assert [line.split()[1:] for line in t.tuning_table().splitlines()[1:]] == [
        ["1", "0.1:", "-50.0", "1:", "0.0"],
        ["0.1", "0.1:", "0.0", "1:", "-50.0"],
    ]
