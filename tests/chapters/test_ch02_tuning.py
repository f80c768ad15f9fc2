"""Chapter 2: how learning rates and snoozing thresholds are chosen, on pilot seeds."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from companion.chapters.gradient_clustering import arms, tuning
from companion.chapters.gradient_clustering.speed import TARGETS, Trained
from companion.lab import trials
from trainaug.training.loop import NonFiniteLossError

SNOOZED = [f"speed_{problem}_snooze" for problem in ("0", "90", "50", "noise")]

# --- the committed files --------------------------------------------------------------------------


def test_committed_choices_follow_from_the_committed_trials():
    rows = tuning.read_trials()
    chosen = tuning.choose_thresholds(rows, trials.choose(rows))
    text = arms.TUNED.read_text(encoding="utf-8")
    assert text == yaml.safe_dump(chosen, sort_keys=False)
    assert list(chosen) == tuning.tuned_arms()
    names = [name for arm in tuning.tuned_arms() for name, _ in tuning._variants(arm)]
    tried = Counter((row["arm"], row["value"], row["seed"]) for row in rows)
    # the same values and seeds for every arm, and for every threshold of those that have one
    assert tried == Counter(itertools.product(names, tuning.GRID, tuning.SEEDS))
    assert list(tuning.GRID) == sorted(set(tuning.GRID))
    assert max(tuning.SEEDS) < 100
    most = 2 * 2400 * 64  # of the updates, and of the passes of clustering
    assert all(-math.log(most) < row["score"] < -math.log(64) for row in rows)
    for arm in chosen:
        assert min(tuning.GRID) < arms.tuned(arm) < max(tuning.GRID)
        assert ("tau" in chosen[arm]["lr"]) == arm.endswith(("_snooze", "_reweighted"))
        if "tau" in chosen[arm]["lr"]:
            assert arms.best_tau(arm) in tuning.TAUS


def test_every_arm_reaches_its_target_with_the_chosen_rate():
    rows = tuning.read_trials()
    chosen = tuning.choose_thresholds(rows, trials.choose(rows))
    for arm, entry in chosen.items():
        name = f"{arm}@{entry['lr']['tau']:g}" if "tau" in entry["lr"] else arm
        curve = trials.mean_curve(rows, name)
        best = curve[entry["lr"]["value"]]
        assert best == max(curve.values())
        assert best > -math.log(0.9 * 2400 * 64)  # and not only at the end


# --- choosing -------------------------------------------------------------------------------------


def test_of_the_thresholds_the_one_with_the_best_mean_is_kept():
    scores = {
        "a@0.25": (1.0, 6.0, 2.0),
        "a@0.5": (0.0, 3.0, 7.0),
        "a@1": (7.0, 0.0, 0.0),  # as good, but later
        "b": (0.0, 5.0, 4.0),
    }
    rows = [
        trials.trial(name, lr, seed, score + spread)
        for name, of_name in scores.items()
        for lr, score in zip((0.1, 1.0, 10.0), of_name, strict=True)
        for seed, spread in ((0, 9.0), (1, -9.0))
    ]
    grid = [0.1, 1.0, 10.0]
    for given, first in (
        (rows, {"value": 10.0, "grid": grid, "tau": 0.5}),
        (rows[::-1], {"value": 0.1, "grid": grid, "tau": 1.0}),
    ):
        best = tuning.choose_thresholds(given, trials.choose(given))
        assert best == {"a": {"lr": first}, "b": {"lr": {"value": 1.0, "grid": grid}}}


def test_thresholds_are_tried_where_there_are_any():
    names = tuning.tuned_arms()
    assert names[-4:] == [arm.replace("_snooze", "_random") for arm in SNOOZED]
    assert not any(arm.endswith("_random") for arm in names[:-4])
    taus = [(f"speed_0_snooze@{tau}", float(tau)) for tau in ("0.125", "0.25", "0.5", "1")]
    assert tuning._variants("speed_0_snooze") == taus
    assert len(tuning._variants("speed_90_reweighted")) == 4
    for arm in ("speed_0_uniform", "speed_50_stratified", "speed_noise_random"):
        assert tuning._variants(arm) == [(arm, 1.0)]


# --- tuning ---------------------------------------------------------------------------------------


def test_controls_are_tuned_last_with_the_counts_of_the_tuned_snooze(tmp_path, monkeypatch):
    best = {"speed_0_snooze@0.5": 0.02, "speed_noise_snooze@1": 0.04, "speed_0_random": 0.08}
    tasks: list[Any] = []

    def fake(task: tuple[Any, ...]) -> dict[str, Any]:
        tasks.append(task)
        name, _, _, lr, seed, _ = task
        score = 5.0 if best.get(name) == lr else -abs(math.log(lr / 0.01)) - 0.1 * seed
        return trials.trial(name, lr, seed, score)

    kept = [
        f"speed_{problem}_{name}" for problem in ("0", "noise") for name in ("uniform", "snooze")
    ]
    few = [*kept, "speed_0_stratified", "speed_0_random", "speed_noise_random"]
    monkeypatch.setattr(tuning, "tuned_arms", lambda: few)
    monkeypatch.setattr(tuning, "_score_one", fake)
    monkeypatch.setattr(trials, "reference_folder", lambda *_: tmp_path)
    for module in (arms, tuning):
        monkeypatch.setattr(module, "TUNED", tmp_path / "tuned.yaml")
    said: list[str] = []
    arms._choices.cache_clear()
    try:
        tuning.tune(1, said.append)
        assert arms.tuned("speed_0_random") == 0.08
        assert (arms.tuned("speed_0_snooze"), arms.best_tau("speed_0_snooze")) == (0.02, 0.5)
        assert arms.tuned("speed_0_uniform") == 0.01
    finally:
        arms._choices.cache_clear()
    first = len(tuning.GRID) * len(tuning.SEEDS) * (3 + 2 * len(tuning.TAUS))
    assert len(tasks) == first + 2 * len(tuning.GRID) * len(tuning.SEEDS)
    assert all(arm in few[:5] and snooze is None for _, arm, *_, snooze in tasks[:first])
    for _, arm, _, _, _, snooze in tasks[first:]:
        lr, tau = (0.02, 0.5) if arm == "speed_0_random" else (0.04, 1.0)
        assert snooze == {"lr": lr, "tau": tau, "sampler": "snooze"}
    names = [(name, arm, tau) for arm in few for name, tau in tuning._variants(arm)]
    expected = [(*n, *v) for n in names for v in itertools.product(tuning.GRID, tuning.SEEDS)]
    assert [task[:5] for task in tasks] == expected
    assert [(r["arm"], r["value"], r["seed"]) for r in tuning.read_trials()] == [
        (name, lr, seed) for name, _, _, lr, seed in expected
    ]
    assert (said[0], said[-1]) == ("trials 50/264", "trials 48/48")
    lines = tuning.tuning_table().splitlines()
    assert [line.split()[0] for line in lines[1:]] == [name for name, *_ in names]


LOOKS = [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]  # a mean of 0.8 at the fifth, of 1 at the sixth
EXAMPLES = [20.0, 40.0, 60.0, 80.0, 100.0, 120.0, 140.0]


@pytest.fixture
def calls(monkeypatch) -> SimpleNamespace:
    """Note what is trained; nothing is."""
    seen = SimpleNamespace(given=[], accuracy=LOOKS, fails=False)

    def fake(settings: dict[str, Any], seed: int, **rest: Any) -> Trained:
        seen.given.append((settings, seed, rest))
        if seen.fails and rest.get("measured", True):
            raise NonFiniteLossError(3, math.nan)
        return Trained(seen.accuracy, EXAMPLES, test=0.123, active_counts=[7, len(seen.given)])

    monkeypatch.setattr(tuning, "train_sampler", fake)
    return seen


@pytest.mark.parametrize(
    ("arm", "tau"),
    [("speed_90_uniform", 1.0), ("speed_0_snooze", 0.25), ("speed_50_stratified", 1.0)],
)
def test_a_score_is_of_the_examples_to_the_target_of_the_validation_part(calls, arm, tau):
    spent = 100 if arm == "speed_90_uniform" else 120  # its target is below 0.8
    assert TARGETS["90"] < 0.8 < min(TARGETS["0"], TARGETS["50"])
    row = tuning._score_one(("a name", arm, tau, 0.03, 2, None))
    assert row == trials.trial("a name", 0.03, 2, -math.log(spent))
    settings = arms.settings_of(arm)[0] | {"tau": tau, "lr": 0.03}
    assert calls.given == [(settings, 2, {"counts": None})]
    calls.accuracy = [0.0] * 7  # never: as much as was spent
    row = tuning._score_one((arm, arm, tau, 0.03, 2, None))
    assert row["score"] == trials.trial(arm, 0.03, 2, -math.log(140))["score"]
    calls.fails = True
    row = tuning._score_one((arm, arm, tau, 0.03, 2, None))
    assert row["score"] == trials.trial(arm, 0.03, 2, -math.log(2400 * 64))["score"]


def test_a_control_trains_at_its_own_rate_with_the_counts_of_the_snooze(calls):
    snooze = {"lr": 0.02, "tau": 0.125, "sampler": "snooze"}
    row = tuning._score_one(("speed_noise_random", "speed_noise_random", 1.0, 0.3, 1, snooze))
    assert row == trials.trial("speed_noise_random", 0.3, 1, -math.log(120))
    base = arms.settings_of("speed_noise_snooze")[0]
    assert base["noise"] > 0
    assert calls.given[0] == (base | snooze, 1, {"measured": False})
    settings, seed, rest = calls.given[1]
    assert settings == base | {"lr": 0.3, "sampler": "random", "tau": 1.0}
    assert (seed, rest) == (1, {"counts": [7, 1]})
    assert len(calls.given) == 2
