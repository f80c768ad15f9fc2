"""Chapter 5: how learning rates and the strength of mixup are chosen, on pilot seeds."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from companion.chapters.cascading_sum import arms, problems, tuning
from companion.lab import trials
from trainaug.training.loop import NonFiniteLossError

TUNED = arms.HEADLINE | arms.EXTENDED


def test_committed_choices_follow_from_the_committed_trials():
    rows = tuning.read_trials()
    chosen = tuning.choose_strengths(rows, trials.choose(rows, tuning.neighbour_mean))
    text = arms.TUNED.read_text(encoding="utf-8")
    assert text == yaml.safe_dump(chosen, sort_keys=False)
    owners = {owner for _, _, owner in TUNED.values()}
    assert set(tuning.tuned_arms()) == owners == set(chosen)
    names = [name for arm in tuning.tuned_arms() for name, _ in tuning._variants(arm)]
    assert len(names) == len(owners) + 2 * 5  # three strengths where mixup has one to choose
    tried = Counter((row["arm"], row["value"], row["seed"]) for row in rows)
    seeds = {name: tuning.SEEDS[name.partition("_")[0]] for name in names}
    assert tried == Counter((n, lr, s) for n in names for lr in tuning.GRID for s in seeds[n])
    assert max(map(max, seeds.values())) < 100
    assert list(tuning.GRID) == sorted(set(tuning.GRID))
    for arm in owners:  # the grid ends where training no longer works
        assert arms.tuned(arm) < max(tuning.GRID)


GRID = [0.1, 1.0, 10.0, 100.0]
SCORES = {
    "a@0.2": (9.0, 0.0, 0.0, 3.0),
    "a@0.4": (0.0, 6.0, 6.0, 6.0),
    "a@1": (6.0, 6.0, 0.0, 0.0),
    "b": (0.0, 0.0, 5.0, 0.0),
}
BY_HAND = {
    "a@0.2": (4.5, 3.0, 1.0, 1.5),
    "a@0.4": (3.0, 4.0, 6.0, 6.0),
    "a@1": (6.0, 4.0, 2.0, 0.0),
    "b": (0.0, 5 / 3, 5 / 3, 2.5),
}


def test_a_value_counts_with_its_neighbours_and_the_best_strength_is_kept():
    rows = [
        trials.trial(name, lr, seed, score + (1 if seed else -1))
        for name, of_name in SCORES.items()
        for lr, score in zip(GRID, of_name, strict=True)
        for seed in (0, 1)
    ]
    for name, expected in BY_HAND.items():
        found = tuning.neighbour_mean(rows, name)
        assert list(found) == GRID
        assert list(found.values()) == pytest.approx(expected)
    for given, first in (
        (rows, {"value": 10.0, "alpha": 0.4}),  # of equals the first
        (rows[::-1], {"value": 0.1, "alpha": 1.0}),
    ):
        best = tuning.choose_strengths(given, trials.choose(given, tuning.neighbour_mean))
        assert best["a"] == {"lr": first | {"grid": GRID}}
        assert best["b"] == {"lr": {"value": 100.0, "grid": GRID}}


@pytest.fixture
def own_folder(tmp_path, monkeypatch) -> Iterator[Any]:
    """Tune for few steps, few arms and few values, into a folder of the test."""
    few = [f"digits_10_{name}" for name in ("erm", "mixup_clean", "csa4_restart")]
    monkeypatch.setattr(tuning, "tuned_arms", lambda: few)
    monkeypatch.setattr(tuning, "GRID", (0.001, 0.01, 0.1))
    monkeypatch.setattr(tuning, "SEEDS", {"digits": range(2)})
    monkeypatch.setitem(arms.BASE, "steps", 6)
    monkeypatch.setattr(trials, "reference_folder", lambda *_: tmp_path)
    for module in (arms, tuning):
        monkeypatch.setattr(module, "TUNED", tmp_path / "tuned.yaml")
    arms._choices.cache_clear()
    yield tmp_path
    arms._choices.cache_clear()


def test_tuning_tries_everything_and_writes_what_the_arms_read(own_folder):
    said: list[str] = []
    tuning.tune(1, said.append)
    assert said == ["trials 30/30"]
    rows = tuning.read_trials()
    names = ["erm", *(f"mixup_clean@{a}" for a in ("0.2", "0.4", "1")), "csa4_restart"]
    names = [f"digits_10_{name}" for name in names]
    tried = [(row["arm"], row["value"], row["seed"]) for row in rows]
    assert tried == list(itertools.product(names, (0.001, 0.01, 0.1), (0, 1)))
    assert all(0 <= row["score"] <= 1 and row["setting"] == "lr" for row in rows)
    for arm in ("erm", "csa4_restart"):
        curve = tuning.neighbour_mean(rows, f"digits_10_{arm}")
        assert arms.tuned(f"digits_10_{arm}") == max(curve, key=curve.__getitem__)
    curves = {a: tuning.neighbour_mean(rows, f"digits_10_mixup_clean@{a:g}") for a in arms.ALPHAS}
    best = max(curves, key=lambda a: max(curves[a].values()))
    assert arms.best_alpha("digits_10_mixup_clean") == best
    assert max(curves[best].values()) == curves[best][arms.tuned("digits_10_mixup_clean")]
    lines = tuning.tuning_table().splitlines()
    assert [line.split()[0] for line in lines[1:]] == names


def test_a_trial_sees_no_test_part_and_a_diverging_one_is_worst(monkeypatch):
    def fake(model: Any, *parts: Any, curve: bool) -> Any:
        data = problems.problem("digits", 10, 2)
        for given, part in zip(parts, (data.train, data.val), strict=False):
            assert given.x.equal(part.x)
        expected = arms.settings_of("digits_10_mixup")[0] | {"alpha": 0.4, "lr": 0.3}
        assert (parts[2:], curve) == ((expected, 10, 2), False)
        if len(calls) == 1:
            raise NonFiniteLossError(3, math.nan)
        return SimpleNamespace(accuracy=[0.1, 0.75])

    calls: list[int] = []
    monkeypatch.setattr(tuning, "train_classifier", fake)
    for score in (0.75, 0.0):
        row = tuning._score_one(("digits_10_mixup@0.4", "digits_10_mixup", 0.4, 0.3, 2))
        calls.append(1)
        assert row == trials.trial("digits_10_mixup@0.4", 0.3, 2, score)
