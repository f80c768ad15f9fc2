"""Chapter 3 without training: what its arms share, and how their learning rates were chosen."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from companion.chapters.autoassist import arms
from companion.chapters.autoassist.images import Trained, Training, run_with_control
from companion.chapters.autoassist.stations import Translation
from companion.chapters.autoassist.translation import run_translation_with_control
from companion.evidence.ledger import load_ledger
from companion.lab import tune
from companion.lab.arms import Settings
from companion.lab.chapters import load_chapter
from companion.lab.tune import Search
from companion.paths import CHAPTERS, CLAIMS, RESULTS
from trainaug.training.loop import NonFiniteLossError

CHAPTER = load_chapter("03")
TRIALS = tune.read_trials("03")


def searches() -> dict[str, Search[Any]]:
    listed = [search for stage in arms.SEARCHES for search in stage({})]
    return {search.arm: search for search in listed}


# --- arms -----------------------------------------------------------------------------------------


def test_a_learning_rate_is_tuned_for_the_model_that_has_it():
    for row in CHAPTER.arms.values():
        if row.tuned:
            owner = CHAPTER.arms[row.tuned["lr"]].settings
            for name in ("model", "noise", "rotated"):
                assert getattr(row.settings, name, None) == getattr(owner, name, None), row.name


def test_an_assistant_s_arm_with_a_control_takes_the_rate_tuned_for_the_control():
    for row in CHAPTER.arms.values():
        has_control = row.run in (run_with_control, run_translation_with_control)
        assert has_control == ("control_lr" in row.tuned)
        if has_control:
            source = row.tuned["control_lr"]
            complete = row.complete(CHAPTER.chosen)
            assert isinstance(complete, Training | Translation)
            control = complete.control()
            assert control.sampler == "random"
            assert control.lr == CHAPTER.chosen[source]["control_lr"]


def test_a_smaller_budget_shortens_what_is_trained_alone():
    knobs = {"seeds": 1, "image_seeds": 1, "extended_seeds": 1, "large_seeds": 1, "deep_seeds": 1}
    whole = CHAPTER.plan("paper", knobs)
    tenth = CHAPTER.plan("paper", knobs | {"budget": 0.1})
    least = CHAPTER.plan("paper", knobs | {"budget": 1e-7})
    for one, other, shortest in zip(whole, tenth, least, strict=True):
        if not one.deterministic:
            assert one.config == other.config == shortest.config
            continue
        [name] = {key for key in one.config if one.config[key] != other.config[key]}
        assert name in ("passes", "steps", "tokens")
        assert other.config[name] == max(round(one.config[name] / 10), shortest.config[name])
        assert shortest.config[name] > 0
        assert other.predicted_seconds < one.predicted_seconds


@pytest.mark.parametrize("claim", load_ledger(CLAIMS / "03.yaml"), ids=lambda claim: claim.id)
def test_a_claim_has_its_arms_and_its_seeds_in_the_full_profile(claim):
    planned = Counter(run.arm for run in CHAPTER.plan("full"))
    assert min(planned[arm] for arm in claim.arms) >= claim.seeds.count


# --- learning rates -------------------------------------------------------------------------------


def test_committed_rates_follow_from_the_committed_trials(tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "reference_folder", lambda profile, chapter: tmp_path)
    tune.write_choice("03", TRIALS, tmp_path / "tuned.toml", arms.CHOICE(TRIALS))
    table = RESULTS / "standard" / "03" / "tuning.csv"
    for path in (table, CHAPTERS / "autoassist" / "tuned.toml"):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_every_rate_was_searched_on_pilot_seeds_and_lies_inside_its_grid():
    wanted = {source for row in CHAPTER.arms.values() for source in row.tuned.values()}
    listed = searches()
    assert set(listed) == set(CHAPTER.chosen) == wanted
    tried = Counter((trial.arm, trial.value, trial.seed) for trial in TRIALS)
    assert tried == Counter(
        task
        for search in listed.values()
        for task in itertools.product([search.arm], search.values, search.seeds)
    )
    for name, search in listed.items():
        [rate] = CHAPTER.chosen[name].values()
        assert min(search.values) < rate < max(search.values)
        assert max(search.seeds) < 100


def test_arms_of_a_problem_have_as_many_trials_on_the_same_grid():
    grids: dict[type[Settings], set[Any]] = {}
    for search in searches().values():
        grids.setdefault(type(search.settings), set()).add((search.values, search.seeds))
    assert all(len(each) == 1 for each in grids.values())


def test_the_target_is_reached_with_the_chosen_rate():
    for name, search in searches().items():
        settings = search.settings
        if isinstance(settings, Training):
            [rate] = CHAPTER.chosen[name].values()
            best = tune.mean_curve(TRIALS, name)[rate]
            assert best > -math.log(0.95 * settings.steps * settings.batch)  # not only at the end


@pytest.mark.parametrize(
    ("arm", "spent"),
    [
        ("images_0_assist", 120),  # 0.82, then 0.9: above 0.86
        ("images_rotated_random", 100),  # above 0.73
        ("images_large_uniform", 120),  # above 0.89
    ],
)
def test_a_score_counts_the_examples_until_the_target(monkeypatch, arm, spent):
    search = searches()[arm]
    settings = replace(search.settings, lr=0.03)

    def train(given: Training, seed: int, *, keep_rates: Sequence[float]) -> Trained:
        assert (given, seed) == (settings, 1)
        assert (given.sampler == "random") == bool(keep_rates)
        return Trained([0.5, *[0.9] * 6], [20.0 * (k + 1) for k in range(7)])

    monkeypatch.setattr(arms, "train_images", train)
    assert search.score(settings, 1) == pytest.approx(-math.log(spent))
    monkeypatch.setattr(arms, "train_images", lambda *_, **__: Trained([0.5] * 7, [140.0] * 7))
    assert search.score(settings, 1) == pytest.approx(-math.log(140))  # never: all of it


def test_a_run_that_breaks_down_spent_all_it_had(monkeypatch):
    def fail(*given: Any, **more: Any) -> Trained:
        raise NonFiniteLossError(3, math.nan)

    monkeypatch.setattr(arms, "train_images", fail)
    search = searches()["images_resnet8_assist"]
    assert search.score(search.settings, 0) == -math.log(64 * 600)


def test_translation_is_scored_by_its_validation_loss(monkeypatch):
    search = searches()["translation_random"]

    def fit(given: object, seed: int, *, keep_rates: Sequence[float]) -> SimpleNamespace:
        assert keep_rates
        assert given == search.settings
        return SimpleNamespace(metrics={"val/loss": 3.25})

    monkeypatch.setattr(arms, "fit_translation", fit)
    assert search.score(search.settings, 0) == -3.25
