"""Chapter 4 without training: what its arms share, and how their step lengths were chosen."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from companion.chapters.ordering import arms
from companion.chapters.ordering.train import Training
from companion.lab import tune
from companion.lab.chapters import load_chapter
from companion.paths import CHAPTERS, RESULTS

CHAPTER = load_chapter("04")
SEARCHES = {search.arm: search for search in arms.searches({})}
TRIALS = tune.read_trials("04")


# --- arms -----------------------------------------------------------------------------------------


def test_arms_of_one_step_length_train_the_same_model_on_the_same_problem():
    for arm in CHAPTER.arms.values():
        if isinstance(arm.settings, Training):
            owner = CHAPTER.arms[arm.tuned["lr"]].settings
            assert isinstance(owner, Training)
            for name in ("data", "model", "noise"):
                assert getattr(arm.settings, name) == getattr(owner, name), arm.name


def test_a_smaller_budget_shortens_the_trained_arms_alone():
    whole = CHAPTER.plan("full")
    tenth = CHAPTER.plan("full", {"budget": 0.1})
    for one, other in zip(whole, tenth, strict=True):
        if "steps" in one.config and one.arm != "selection":
            assert other.config["steps"] == round(one.config["steps"] / 10) > 0
            assert other.predicted_seconds < one.predicted_seconds
        else:
            assert other.config == one.config
    shortest = CHAPTER.plan("full", {"budget": 1e-6})
    assert min(run.config["steps"] for run in shortest if "steps" in run.config) == 1


def test_more_epochs_of_orders_cost_more():
    few, many = (
        {run.arm: run for run in CHAPTER.plan("full", {"order_epochs": count})} for count in (2, 3)
    )
    later = "epochs_cnn_bn"
    assert few[later].config["epochs"] < many[later].config["epochs"]
    assert few[later].predicted_seconds < many[later].predicted_seconds
    assert few["orders_cnn_bn"] == many["orders_cnn_bn"]


# --- step lengths ---------------------------------------------------------------------------------


def test_committed_step_lengths_follow_from_the_committed_trials(tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "reference_folder", lambda profile, chapter: tmp_path)
    tune.write_choice("04", TRIALS, tmp_path / "tuned.toml", tune.choose(TRIALS))
    for path in (RESULTS / "standard" / "04" / "tuning.csv", CHAPTERS / "ordering" / "tuned.toml"):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_every_step_length_had_the_same_trials_on_pilot_seeds():
    assert set(SEARCHES) == set(CHAPTER.chosen) == {arm.tuned["lr"] for arm in trained()}
    tried = Counter((trial.arm, trial.value, trial.seed) for trial in TRIALS)
    assert tried == Counter(itertools.product(SEARCHES, arms.STEP_LENGTHS, tune.PILOT_SEEDS))
    assert all(math.isfinite(trial.score) and trial.setting == "lr" for trial in TRIALS)
    for values in CHAPTER.chosen.values():
        assert min(arms.STEP_LENGTHS) < values["lr"] < max(arms.STEP_LENGTHS)


def trained() -> list[arms.Arm]:
    return [arm for arm in CHAPTER.arms.values() if "lr" in arm.tuned]


@pytest.mark.parametrize(
    ("arm", "reached", "score"),
    [
        ("digits_random", 16, -math.log(16)),
        ("fashion_mnist_delta_abs_tuned", None, -math.log(320)),  # the whole budget
        ("paced_short_random", 16, 0.8),
        ("paced_noisy_random", 16, 0.8),
        ("units_grab", 16, -math.log(0.25)),
    ],
)
def test_a_trial_is_scored_by_what_its_arm_was_made_for(monkeypatch, arm, reached, score):
    settings = replace(SEARCHES[arm].settings, lr=0.3)

    def fake(given: Training, seed: int) -> Any:
        assert (given, seed) == (settings, 2)
        lists = {"accuracy": [0.1, 0.8], "train_loss": [2.0, 0.25]}
        return SimpleNamespace(**lists, reached=lambda target: reached)

    monkeypatch.setattr(arms, "train_arm", fake)
    assert SEARCHES[arm].score(settings, 2) == pytest.approx(score)
