"""Chapter 3: how learning rates are chosen, on pilot seeds and validation parts."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from companion.chapters.autoassist import arms, tuning
from companion.chapters.autoassist.images import Trained
from companion.lab import trials
from trainaug.training.loop import NonFiniteLossError

LARGEST = -math.log(64)  # of a score: one update

# --- the committed files --------------------------------------------------------------------------


def test_committed_choices_follow_from_the_committed_trials():
    rows = tuning.read_trials()
    chosen = trials.choose(rows)
    assert arms.TUNED.read_text(encoding="utf-8") == yaml.safe_dump(chosen, sort_keys=False)
    assert list(chosen) == tuning.tuned_arms()
    tried = Counter((row["arm"], row["value"], row["seed"]) for row in rows)
    assert tried == Counter(
        (arm, lr, seed)
        for arm in tuning.tuned_arms()
        for lr, seed in itertools.product(tuning.grid_of(arm), tuning.seeds_of(arm))
    )
    for arm, entry in chosen.items():
        curve = trials.mean_curve(rows, arm)
        assert curve[entry["lr"]["value"]] == max(curve.values())
        assert min(curve) < entry["lr"]["value"] < max(curve)
    assert max(row["seed"] for row in rows) < 100
    for row in rows:
        if row["arm"].startswith("images"):
            steps = 600 if "resnet8" in row["arm"] else 1200
            steps = 2400 if "large" in row["arm"] else steps
            assert -math.log(64 * steps) - 1e-4 < row["score"] < LARGEST
        else:
            assert -math.log(2000) < row["score"] < 0  # of 2000 sub-words


def test_arms_of_a_problem_have_as_many_trials_on_the_same_grid():
    found: dict[str, set[Any]] = {}
    for arm in tuning.tuned_arms():
        rows = [row for row in tuning.read_trials() if row["arm"] == arm]
        values, seeds = (tuple(sorted({row[k] for row in rows})) for k in ("value", "seed"))
        assert len(rows) == len(values) * len(seeds)
        problem = "_".join(arm.split("_")[:2]) if arm.startswith("images") else "translation"
        found.setdefault(problem, set()).add((values, seeds))
    assert all(len(of) == 1 for of in found.values())
    assert {p: len(next(iter(of))[1]) for p, of in found.items()} == {
        "images_0": 3,
        "images_noise": 2,
        "images_rotated": 2,
        "images_large": 2,
        "images_resnet8": 1,
        "translation": 1,
    }


def test_the_target_is_reached_with_the_chosen_rate():
    for arm, entry in trials.choose(tuning.read_trials()).items():
        if arm.startswith("images"):
            best = trials.mean_curve(tuning.read_trials(), arm)[entry["lr"]["value"]]
            steps = 600 if "resnet8" in arm else 1200
            steps = 2400 if "large" in arm else steps
            assert best > -math.log(0.95 * steps * 64)  # and not only at the end


def test_every_arm_has_a_rate_and_the_controls_are_tuned():
    names = tuning.tuned_arms()
    assert len(set(names)) == len(names)
    problems = ("0", "noise", "rotated", "large", "resnet8")
    controls = [f"images_{problem}_random" for problem in problems] + ["translation_random"]
    assert names[-6:] == controls
    assert not any("random" in name for name in names[:-6])
    for arm in [*arms.HEADLINE, *arms.EXTENDED, *arms.LARGE, *arms.PAPER]:
        assert arms.tuned_arm(arm) in names
        if arm.endswith("_assist"):
            assert arms.tuned_arm(arms.control_of(arm)) in names
    for arm in [*arms.TRANSLATION_ARMS, *arms.TRANSLATION_PAPER]:
        assert arms.tuned_arm(arm) in names


# --- tuning ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arm", "accuracy", "spent"),
    [
        ("images_0_assist", [0.5, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9], 120),  # 0.82, 0.9: above 0.86
        ("images_rotated_random", [0.5, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9], 100),  # above 0.73
        ("images_0_uniform", [0.5] * 7, 140),  # never: all of it
    ],
)
def test_a_score_is_of_the_examples_until_the_target(arm, accuracy, spent):
    examples = [20.0 * (k + 1) for k in range(7)]
    assert tuning.score(arm, Trained(accuracy, examples)) == pytest.approx(-math.log(spent))


@pytest.fixture
def calls(monkeypatch) -> SimpleNamespace:
    """Note what is trained; nothing is."""
    seen = SimpleNamespace(given=[], fails=False)

    def train(settings: dict[str, Any], seed: int, **rest: Any) -> Trained:
        seen.given.append((settings, seed, rest))
        if seen.fails:
            raise NonFiniteLossError(3, math.nan)
        return Trained([1.0] * 5, [100.0] * 5, metrics={"test/accuracy": 0.123})

    def fit(settings: dict[str, Any], seed: int, **rest: Any) -> SimpleNamespace:
        seen.given.append((settings, seed, rest))
        return SimpleNamespace(metrics={"val/loss": 3.25})

    monkeypatch.setattr(tuning, "train_images", train)
    monkeypatch.setattr(tuning, "fit_translation", fit)
    return seen


def test_an_arm_is_trained_as_in_the_plan_but_for_its_rate(calls):
    row = tuning._score_one("images_noise_assist", 0.03, 1)
    assert row == trials.trial("images_noise_assist", 0.03, 1, -math.log(100))
    settings = arms.settings_of("images_noise_assist")[0] | {"lr": 0.03}
    assert calls.given == [(settings, 1, {"keep_rates": None})]
    tuning._score_one("images_noise_random", 0.03, 1)
    control = settings | {"sampler": "random"}
    assert calls.given[1] == (control, 1, {"keep_rates": [tuning.CONTROL_RATE]})
    row = tuning._score_one("translation_assist", 0.004, 0)
    assert row == trials.trial("translation_assist", 0.004, 0, -3.25)
    settings = arms.translation_settings("translation_assist") | {"lr": 0.004}
    settings |= {"tokens": tuning.TRANSLATION_TOKENS}
    assert calls.given[2] == (settings, 0, {"keep_rates": None})
    tuning._score_one("translation_random", 0.004, 0)
    control = settings | {"sampler": "random"}
    assert calls.given[3] == (control, 0, {"keep_rates": [tuning.CONTROL_RATE]})


def test_a_run_that_breaks_down_spent_all_it_had(calls):
    calls.fails = True
    for arm, steps in (("images_0_uniform", 1200), ("images_resnet8_assist", 600)):
        row = tuning._score_one(arm, 0.16, 0)
        assert row == trials.trial(arm, 0.16, 0, -math.log(64 * steps))


def test_all_trials_are_made_and_written(tmp_path, monkeypatch):
    few = ["images_0_uniform", "images_0_random", "translation_assist"]
    best = {"images_0_uniform": 0.02, "images_0_random": 0.08, "translation_assist": 0.008}
    tasks: list[Any] = []

    def fake(arm: str, lr: float, seed: int) -> dict[str, Any]:
        tasks.append((arm, lr, seed))
        return trials.trial(arm, lr, seed, -abs(math.log(lr / best[arm])) - 0.1 * seed)

    monkeypatch.setattr(tuning, "tuned_arms", lambda: few)
    monkeypatch.setattr(tuning, "_score_one", fake)
    monkeypatch.setattr(tuning, "TUNED", tmp_path / "tuned.yaml")
    monkeypatch.setattr(trials, "reference_folder", lambda *_: tmp_path)
    said: list[str] = []
    tuning.tune(1, said.append)
    expected = [(a, lr, s) for a in few[:2] for lr in tuning.GRID for s in (0, 1, 2)]
    expected += [("translation_assist", lr, 0) for lr in tuning.TRANSLATION_GRID]
    assert tasks == expected
    assert [(r["arm"], r["value"], r["seed"]) for r in tuning.read_trials()] == expected
    chosen = yaml.safe_load((tmp_path / "tuned.yaml").read_text(encoding="utf-8"))
    assert {arm: entry["lr"]["value"] for arm, entry in chosen.items()} == best
    assert said == ["trials 20/39", "trials 39/39"]
    lines = tuning.tuning_table().splitlines()
    assert [line.split()[0] for line in lines[1:]] == few
