"""Chapter 6: how step lengths are chosen, and that the committed ones were chosen so."""

from __future__ import annotations

import math
import tomllib
from collections import Counter
from collections.abc import Sequence

import pytest

from companion.chapters.linear_robustness import arms
from companion.chapters.linear_robustness.adversarial import Adversarial
from companion.chapters.linear_robustness.arms import percent_curve, share_curve
from companion.lab import tune
from companion.lab.chapters import load_chapter
from companion.lab.tune import Search, Trial

CHAPTER = load_chapter("06")
TRIALS = tune.read_trials("06")
SEARCHES = [search for stage in arms.SEARCHES for search in stage({})]


def trials(scores: dict[float, float], problem: str = "p", seed: int = 0) -> list[Trial]:
    return [Trial("a", "lr", value, seed, score, problem) for value, score in scores.items()]


# --- by hand --------------------------------------------------------------------------------------


def test_curve_is_the_mean_log_share_of_the_best():
    rows = trials({0.1: 2.0, 1.0: 4.0, 10.0: 1.0}) + trials({0.1: 30.0, 1.0: 15.0, 10.0: 15.0}, "q")
    # shares 1/2, 1, 1/4 and 1, 1/2, 1/2
    curve = share_curve(rows)
    assert list(curve) == [0.1, 1.0, 10.0]
    assert list(curve.values()) == pytest.approx([-math.log(2) / 2] * 2 + [-math.log(8) / 2])
    # seeds are cases of their own
    one = trials({0.1: 1.0, 1.0: 2.0}, seed=0) + trials({0.1: 9.0, 1.0: 3.0}, seed=1)
    assert share_curve(one) == pytest.approx({0.1: -math.log(2) / 2, 1.0: -math.log(3) / 2})
    assert share_curve(one[::-1]) == share_curve(one)


def test_a_score_that_is_not_positive_counts_as_the_worst_share():
    curve = share_curve(trials({0.1: -5.0, 1.0: 0.0, 3.0: 1e-9, 10.0: 2.0}))
    worst = math.log(arms.WORST_SHARE)
    assert curve == pytest.approx({0.1: worst, 1.0: worst, 3.0: worst, 10.0: 0.0})


def test_where_every_score_is_negative_relative_differences_count():
    curve = share_curve(trials({0.1: -2.0, 1.0: -3.0, 10.0: -1e9}))
    assert curve == pytest.approx({0.1: 0.0, 1.0: -0.5, 10.0: math.log(arms.WORST_SHARE)})
    # a best score of zero has no size
    assert share_curve(trials({0.1: 0.0, 1.0: -3.0})) == pytest.approx({0.1: 0.0, 1.0: -3.0})


def test_a_problem_with_large_scores_does_not_decide_alone():
    # shares 1/2, 1 against 1, 1/10
    rows = trials({0.1: 500.0, 1.0: 1000.0}) + trials({0.1: 1.0, 1.0: 0.1}, "q")
    assert arms.CHOICE(rows) == {"a": {"lr": 0.1}}
    # of equals the smaller step
    assert arms.CHOICE(trials({1.0: 2.0, 0.1: 2.0})) == {"a": {"lr": 0.1}}


def test_percent_is_short_of_the_best():
    assert percent_curve(trials({0.1: 2.0, 1.0: 4.0})) == pytest.approx({0.1: -50.0, 1.0: 0.0})
    assert percent_curve(trials({0.1: -2.0, 1.0: -3.0})) == pytest.approx({0.1: 0.0, 1.0: -50.0})


# --- trials ---------------------------------------------------------------------------------------


def problems_of(rows: Sequence[Trial]) -> set[str]:
    return {trial.problem for trial in rows}


@pytest.mark.parametrize(
    "search", SEARCHES, ids=[f"{search.arm}-{search.settings.data}" for search in SEARCHES]
)
def test_a_search_scores_the_problems_of_its_trials(search):
    scores = search.score(search.settings.tiny(), 0)
    assert all(map(math.isfinite, scores.values()))
    # the canary has fewer problems than the trials, and no others
    assert set(scores) <= problems_of([row for row in TRIALS if row.arm == search.arm])


def test_a_search_gives_every_part_of_a_tuple_its_value(tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "RUNS", tmp_path)
    monkeypatch.setattr(tune, "reference_folder", lambda profile, chapter: tmp_path)
    settings = Adversarial(steps=10, fractions=(0.5, 0.9), lr=(1.0, 1.0))

    def score(given: Adversarial, seed: int) -> dict[str, float]:
        assert given.lr[0] == given.lr[1]
        return {"p": 1 / given.lr[0], "q": 2 / given.lr[0]}

    search = Search("a", settings, "lr", (0.1, 1.0), score)
    chosen = tmp_path / "tuned.toml"
    stages = [lambda known: [search]]
    tune.tune("06", stages, chosen, workers=1, say=lambda line: None, choice=arms.CHOICE)
    assert tomllib.loads(chosen.read_text(encoding="utf-8")) == {"a": {"lr": 0.1}}
    assert problems_of(tune.read_trials("06")) == {"p", "q"}


def test_committed_values_are_those_of_the_committed_trials(tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "reference_folder", lambda profile, chapter: tmp_path)
    written = tmp_path / "tuned.toml"
    tune.write_choice("06", TRIALS, written, arms.CHOICE(TRIALS))
    assert tomllib.loads(written.read_text(encoding="utf-8")) == CHAPTER.chosen
    assert tune.read_trials("06") == TRIALS


def grids() -> dict[str, Search]:
    return {search.arm: search for search in SEARCHES}


def test_every_arm_was_tried_on_the_whole_grid_with_all_pilots():
    assert set(grids()) == set(CHAPTER.chosen) == {trial.arm for trial in TRIALS}
    for arm, search in grids().items():
        rows = [trial for trial in TRIALS if trial.arm == arm]
        tried = Counter((row.problem, row.value, row.seed) for row in rows)
        wanted = [
            (problem, value, seed)
            for problem in problems_of(rows)
            for value in search.values
            for seed in tune.PILOT_SEEDS
        ]
        assert tried == Counter(wanted)
        assert min(search.values) < CHAPTER.chosen[arm]["lr"] < max(search.values)


def test_a_depth_and_a_radius_take_their_own_step_lengths():
    complete = {name: arm.complete(CHAPTER.chosen) for name, arm in CHAPTER.arms.items()}
    depths = complete["digits_convolutional"]
    for depth, lr in zip(depths.depths, depths.lr, strict=True):
        assert lr == CHAPTER.chosen[f"convolutional-{depth}"]["lr"]
    radii = complete["gaussian_adversarial"]
    for fraction, lr in zip(radii.fractions, radii.lr, strict=True):
        assert lr == CHAPTER.chosen[f"adversarial-{fraction:g}"]["lr"]
    without = {arm: values for arm, values in CHAPTER.chosen.items() if arm != "convolutional-3"}
    with pytest.raises(ValueError, match="lr of convolutional-3 is not tuned"):
        CHAPTER.arms["digits_convolutional"].complete(without)
