"""Chapter 2: its plan, and how learning rates and thresholds are chosen on pilot seeds."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from companion.chapters.gradient_clustering import arms
from companion.chapters.gradient_clustering.arms import CHOICE, Profile
from companion.chapters.gradient_clustering.speed import MostlyCopies, Sampling, Trained
from companion.chapters.gradient_clustering.trajectory import Trajectory
from companion.evidence.ledger import load_ledger
from companion.lab.chapters import load_chapter
from companion.lab.tune import Trial, mean_curve, read_trials
from companion.paths import CLAIMS
from trainaug.training.loop import NonFiniteLossError

CHAPTER = load_chapter("02")

# --- plan -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("claim", load_ledger(CLAIMS / "02.yaml"), ids=lambda claim: claim.id)
def test_the_profile_of_a_claim_plans_its_arms_and_seeds(claim):
    profile = "standard" if claim.tier == "headline" else "full"
    assert {name for f in claim.all_formulas() for name in f.arms} <= {
        run.arm for run in CHAPTER.plan(profile)
    }
    planned = Counter(run.arm for run in CHAPTER.plan("full"))
    for part in (*claim.parts, *claim.beside):
        for setting, formula in zip(part.settings, part.formulas, strict=True):
            least = min(planned[arm] for arm in formula.arms)
            assert least >= (setting.seeds or claim.seeds.count)


def test_shortened_trainings_still_measure_something():
    for row in CHAPTER.arms.values():
        settings, least = row.settings, row.settings.shortened(1e-4)
        assert settings.shortened(1.0) == settings
        if isinstance(settings, Trajectory):
            assert least.steps == 2 * settings.refresh
        elif type(settings) is Sampling:
            assert least.steps // least.evaluate_every >= least.window


# --- the committed files --------------------------------------------------------------------------


def test_committed_choices_follow_from_the_committed_trials():
    assert CHAPTER.chosen == CHOICE(read_trials("02"))


def test_committed_trials_are_those_of_the_searches():
    searches = [s for stage in arms.SEARCHES for s in stage(CHAPTER.chosen)]
    wanted = [(s.arm, s.setting, v, seed) for s in searches for v in s.values for seed in s.seeds]
    assert [(t.arm, t.setting, t.value, t.seed) for t in read_trials("02")] == wanted


def test_every_arm_reaches_its_target_with_the_chosen_rate():
    trials = read_trials("02")
    for name, values in CHAPTER.chosen.items():
        tried = f"{name}@{values['tau']:g}" if "tau" in values else name
        best = max(mean_curve(trials, tried).values())
        assert best > -math.log(0.9 * 2400 * 64)  # and not only at the end


# --- choosing -------------------------------------------------------------------------------------


def test_of_the_thresholds_the_one_with_the_best_mean_is_kept():
    scores = {
        "a@0.25": (1.0, 6.0, 2.0),
        "a@0.5": (0.0, 3.0, 7.0),
        "a@1": (7.0, 0.0, 0.0),  # as good, but later
        "b": (0.0, 5.0, 4.0),
    }
    trials = [
        Trial(name, "lr", lr, seed, score + spread)
        for name, row in scores.items()
        for lr, score in zip((0.1, 1.0, 10.0), row, strict=True)
        for seed, spread in ((0, 9.0), (1, -9.0))
    ]
    assert CHOICE(trials) == {"a": {"lr": 10.0, "tau": 0.5}, "b": {"lr": 1.0}}
    assert CHOICE(trials[::-1]) == {"b": {"lr": 1.0}, "a": {"lr": 0.1, "tau": 1.0}}


def test_controls_are_tuned_with_the_values_of_their_snooze():
    chosen = {name: {"lr": 0.02, "tau": 0.25} for name in CHAPTER.arms}
    chosen["speed_90_snooze"] = {"lr": 0.16, "tau": 1.0}
    searches = {search.arm: search for search in arms.control_searches(chosen)}
    search = searches["speed_90_random"]
    assert isinstance(search.settings, MostlyCopies)
    assert (search.settings.lr, search.settings.tau) == (0.16, 1.0)
    assert search.setting == "control_lr"
    assert {s.settings.tau for name, s in searches.items() if name != search.arm} == {0.25}


# --- scores ---------------------------------------------------------------------------------------

LOOKS = [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]  # a mean of 0.8 at the fifth, of 1 at the sixth
EXAMPLES = [20.0, 40.0, 60.0, 80.0, 100.0, 120.0, 140.0]


@pytest.mark.parametrize(
    ("kind", "looks", "spent"),
    [(Sampling, LOOKS, 120), (MostlyCopies, LOOKS, 100), (Sampling, [0.0] * 7, 140)],
)
def test_a_score_is_of_the_examples_to_the_target(monkeypatch, kind, looks, spent):
    monkeypatch.setattr(arms, "train_sampler", lambda *_, **__: Trained(looks, EXAMPLES))
    assert arms.score_sampler(kind.usual(), 0) == -math.log(spent)


def test_a_training_that_diverges_costs_all_it_might(monkeypatch):
    def fail(*_: object, **__: object) -> Trained:
        raise NonFiniteLossError(3, math.nan)

    monkeypatch.setattr(arms, "train_sampler", fail)
    assert arms.score_sampler(Sampling.usual(), 0) == -math.log(2400 * 64)


def test_a_control_trains_at_its_own_rate_with_the_counts_of_the_snooze(monkeypatch):
    rows = {row.name: row for row in arms.arms(Profile())}
    snooze = rows["speed_noise_snooze"].complete(CHAPTER.chosen)
    trained: list[tuple[object, object]] = []

    def note(settings: Sampling, seed: int, *, counts: list[int] | None) -> Trained:
        trained.append((settings, counts))
        return Trained(LOOKS, EXAMPLES)

    monkeypatch.setattr(arms, "counts_of_snooze", lambda settings, seed: [7, seed])
    monkeypatch.setattr(arms, "train_sampler", note)
    arms.score_control(snooze, 1)
    assert trained == [(snooze.control(), [7, 1])]
    assert snooze.control().lr == CHAPTER.chosen["speed_noise_random"]["control_lr"]
