"""Chapter 5: rows, settings, runs of few steps, and how learning rates are chosen."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from dataclasses import asdict, replace

import pytest

from companion.chapters.cascading_sum import arms, canary, problems, studies
from companion.chapters.cascading_sum import train as training
from companion.chapters.cascading_sum.measures import measure_model
from companion.evidence.store import canonical_json
from companion.lab.arms import Arm
from companion.lab.chapters import load_chapter
from companion.lab.tune import Trial, read_trials
from trainaug.training.loop import NonFiniteLossError

CHAPTER = load_chapter("05")


def tiny(name: str) -> training.Training:
    settings = CHAPTER.arm(name).complete(CHAPTER.chosen).tiny()
    assert isinstance(settings, training.Training)
    return settings


# --- rows and settings ----------------------------------------------------------------------------


def test_rows_that_share_a_learning_rate_share_data_and_steps():
    rows = {row.name: row for row in arms.trained_arms(arms.Profile())}
    for row in rows.values():
        for source in row.tuned.values():
            assert rows[source].tuned["lr"] == source
            for name in ("data", "per_class", "steps"):
                owner = rows[source].settings
                assert getattr(owner, name) == getattr(row.settings, name), row.name


@pytest.mark.parametrize("arm", ["digits_10_radii", "fashion_100_radii", "digits_10_objective"])
def test_settings_survive_a_record(arm):
    settings = CHAPTER.arm(arm).complete(CHAPTER.chosen)
    written = json.loads(canonical_json(asdict(settings)))
    assert type(settings).from_config(written) == settings


def test_models_under_attack_are_those_of_their_rows():
    for name in ("digits_10", "fashion_100"):
        settings = CHAPTER.arm(f"{name}_radii").complete(CHAPTER.chosen)
        assert isinstance(settings, studies.Radii)
        for model, trained in settings.models.items():
            assert trained == CHAPTER.arm(f"{name}_{model}").complete(CHAPTER.chosen)
        assert {model.steps for model in settings.shortened(0.5).models.values()} == {300}
        assert set(settings.mixed) <= set(settings.models)


def test_row_without_a_tuned_value_is_refused():
    with pytest.raises(ValueError, match="digits_10_erm: lr"):
        CHAPTER.arm("digits_10_radii").complete({})


def test_shortened_training_keeps_a_step_for_every_stage():
    row = CHAPTER.arm("digits_10_csa8").settings
    assert [row.shortened(share).steps for share in (1.0, 0.5, 0.001)] == [600, 300, 60]
    plateaus = CHAPTER.arm("digits_10_source4").settings
    assert plateaus.shortened(1.0) == plateaus
    assert plateaus.shortened(0.5).max_steps == 4000


# --- runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["digits_10_csa4", "digits_10_csa4_restart"])
def test_run_keeps_what_was_trained_and_measured(arm):
    settings = tiny(arm)
    result = studies.run_training(settings, 0)
    data, model, trained = studies.train_arm(settings, 0)
    expected = measure_model(model, data, settings, 0) | {"val/accuracy": trained.accuracy[-1]}
    assert result.metrics == pytest.approx(expected, rel=1e-8)
    assert result.curves["accuracy"] == pytest.approx(trained.accuracy, rel=1e-5)
    assert list(result.curves["step"]) == trained.step
    assert list(result.curves.get("switches", [])) == pytest.approx(trained.switches, rel=1e-5)
    assert len(trained.switches) == (3 if settings.restart else 0)
    assert result.counters == {"examples": 60 * 20, "forward_examples": 60 * 20}


def test_radii_measure_every_model_and_some_with_mixing():
    settings = tiny("digits_10_radii")
    assert isinstance(settings, studies.Radii)
    few = {name: settings.models[name] for name in ("erm", "csa4")}
    result = studies.run_radii(replace(settings, models=few, shares=(1.0,)), 0)
    kinds = ("clean/bare", "clean/mixed", "pgd/bare", "pgd/unaware", "pgd/adaptive")
    assert set(result.metrics) == {f"erm/{kind}" for kind in kinds}
    assert set(result.curves) == {f"{m}/{c}" for m in few for c in ("eps", "fgsm", "pgd")}
    assert result.metrics["erm/clean/bare"] == pytest.approx(result.curves["erm/pgd"][0])
    assert result.metrics["erm/pgd/bare"] == pytest.approx(result.curves["erm/pgd"][1])


def test_objectives_are_compared_at_every_snapshot():
    result = studies.run_objective(tiny("digits_10_objective"), 0)
    names = ["k1", *(f"k{k}{end}" for k in (2, 4, 8) for end in ("", "_rescaled"))]
    keys = ("loss", "curvature", "lipschitz")
    assert set(result.curves) == {f"{key}/{name}" for key in keys for name in names}
    assert {len(curve) for curve in result.curves.values()} == {4}
    for key, name in itertools.product(keys[1:], ("k4", "k4_rescaled")):
        pairs = zip(result.curves[f"{key}/{name}"], result.curves[f"{key}/k1"], strict=True)
        mean = sum(math.log(abs(a / b)) for a, b in pairs) / 4
        assert result.metrics[f"{key}/{name}"] == pytest.approx(mean, rel=1e-8)


@pytest.mark.parametrize(
    "arm", ["emoji_100_csa4_restart", "resnet8_mixup_clean", "cifar100_500_csa4"]
)
def test_other_data_and_networks_run_too(arm):
    settings = replace(tiny(arm), steps=6)
    with canary.tiny_data(asdict(settings)):
        result = studies.run_training(settings, 0)
    assert 0 <= result.metrics["test/accuracy"] < 1
    assert result.counters == {"examples": 120, "forward_examples": 120}


# --- tuning ---------------------------------------------------------------------------------------


def test_committed_choices_follow_from_the_committed_trials():
    trials = read_trials("05")
    assert arms.choose_strengths(trials) == CHAPTER.chosen
    tried = Counter((t.arm, t.value, t.seed) for t in trials)
    assert tried == Counter(
        (search.arm, value, seed)
        for search in arms.searches({})
        for value in search.values
        for seed in search.seeds
    )


GRID = (0.1, 1.0, 10.0, 100.0)
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


def test_value_counts_with_its_neighbours_and_the_best_strength_is_kept():
    trials = [
        Trial(name, "lr", lr, seed, score + (1 if seed else -1))
        for name, scores in SCORES.items()
        for lr, score in zip(GRID, scores, strict=True)
        for seed in (0, 1)
    ]
    for name, expected in BY_HAND.items():
        curve = arms.neighbour_mean([trial for trial in trials if trial.arm == name])
        assert list(curve) == list(GRID)
        assert list(curve.values()) == pytest.approx(expected)
    # of equals the first
    first = {"a": {"lr": 10.0, "alpha": 0.4}, "b": {"lr": 100.0}}
    assert arms.choose_strengths(trials) == first
    last = {"a": {"lr": 0.1, "alpha": 1.0}, "b": {"lr": 100.0}}
    assert arms.choose_strengths(trials[::-1]) == last


def test_trial_is_scored_by_validation_and_a_diverging_one_is_worst(monkeypatch):
    settings = replace(tiny("digits_10_mixup"), steps=6)
    score = arms.score_training(settings, 2)
    data = settings.problem(2)
    model = problems.make_model("conv", data, 2)
    parts = model, data.train, data.val, settings, data.num_classes, 2
    assert score == training.train_classifier(*parts, curve=False).accuracy[-1]

    def diverge(*args: object, **options: object) -> Arm:
        raise NonFiniteLossError(3, math.nan)

    monkeypatch.setattr(studies, "train_classifier", diverge)
    assert arms.score_training(settings, 2) == 0.0
