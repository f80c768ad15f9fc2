"""Chapter 2 without training: arms, plan, profiles and settings."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from companion.chapters.gradient_clustering import arms, problems, runs, tuning
from companion.chapters.gradient_clustering.config import Config
from companion.chapters.gradient_clustering.speed import TARGETS
from companion.evidence.ledger import load_ledger
from companion.evidence.store import Run, canonical_json
from companion.lab import chapters
from companion.paths import CLAIMS, PROFILES
from trainaug.data.registry import content_hash

TRAJECTORIES = arms.HEADLINE | arms.EXTENDED | arms.PAPER
SPEED = arms.SPEED_HEADLINE | arms.SPEED_EXTENDED
TIMED = {"timing_mlp", "timing_resnet8", "timing_samplers"}
STANDARD = {*arms.HEADLINE, *arms.SPEED_HEADLINE, "features_rates", "features_copies"}
STANDARD |= {"enumeration", *TIMED}
FULL = STANDARD | {*arms.EXTENDED, *arms.SPEED_EXTENDED, "features_grid", "departures"}

# --- arms -----------------------------------------------------------------------------------------


def test_headline_by_hand():
    data = {"digits": (1000, 2000, 125), "fashion": (2000, 1500, 250)}
    assert set(arms.HEADLINE) == {f"{name}_mlp_{c}" for name in data for c in ("0", "90")}
    for arm in arms.HEADLINE:
        name, _, copies = arm.split("_")
        num_train, steps, refresh = data[name]
        assert arms.settings_of(arm)[0] == arms.BASE | {
            "data": name,
            "num_train": num_train,
            "steps": steps,
            "refresh": refresh,
            "copies": int(copies) / 100,
        }
    samplers = {"uniform", "snooze", "stratified"}
    assert set(arms.SPEED_HEADLINE) == {f"speed_{c}_{s}" for c in (0, 90) for s in samplers}


@pytest.mark.parametrize(
    ("arm", "changes"),
    [
        ("fashion_cnn_0", {"data": "fashion", "model": "cnn", "num_train": 1000}),
        ("digits_mlp_50", {"copies": 0.5}),
        ("digits_mlp_drop", {"drop": 0.1}),
        ("digits_mlp_noise", {"noise": 0.1}),
        ("digits_mlp_variants", {"variants": True}),
        (
            "fashion_cnn_augment",
            {"data": "fashion", "model": "cnn", "num_train": 1000, "augment": True},
        ),
        (
            "fashion_mlp_90_augment",
            {"data": "fashion", "num_train": 2000, "augment": True, "copies": 0.9},
        ),
        (
            "cifar10_resnet8_noise",
            {"data": "cifar10", "model": "resnet8", "num_train": 45_000, "noise": 0.2, "lr": 0.01}
            | {"momentum": 0.9, "batch": 128, "clusters": 128, "drop": 0.1, "measured": 5000},
        ),
    ],
)
def test_further_arms_by_hand(arm, changes):
    expected = arms.BASE | changes
    if arm.startswith("fashion"):
        expected |= {"refresh": 250, "steps": 1500}
    if arm.startswith("cifar10"):
        expected |= {"refresh": 20_000, "steps": 80_000}
    if changes.get("augment"):
        expected["measured"] = 500
    assert arms.settings_of(arm)[0] == expected


def test_samplers_differ_in_the_sampler_alone():
    expected = set()
    for problem, changes in (
        ("0", {"copies": 0.0}),
        ("50", {"copies": 0.5}),
        ("90", {"copies": 0.9}),
        ("noise", {"noise": 0.1}),
    ):
        names = ("uniform", "snooze") if problem == "noise" else tuple(arms.SAMPLERS)
        for sampler in names:
            arm = f"speed_{problem}_{sampler}"
            expected.add(arm)
            assert arms.settings_of(arm)[0] == arms.SPEED | {"sampler": sampler} | changes
        assert problem in TARGETS
    assert set(SPEED) == expected
    assert not set(arms.SPEED_HEADLINE) & set(arms.SPEED_EXTENDED)
    assert not set(arms.HEADLINE) & set(arms.EXTENDED)
    assert set(tuning.tuned_arms()) == expected | {
        f"speed_{p}_random" for p in ("0", "50", "90", "noise")
    }


def test_settings_are_new_each_time_and_unknown_arms_are_refused():
    for arm, of_all in (("digits_mlp_0", arms.BASE), ("speed_0_uniform", arms.SPEED)):
        settings, seconds = arms.settings_of(arm)
        assert set(settings) == set(of_all)
        assert seconds > 0
        settings["steps"] = 1
        assert arms.settings_of(arm)[0]["steps"] == of_all["steps"] > 1
    for arm in ("digits_mlp", "speed_0_random", "features_grid", ""):
        with pytest.raises(ValueError, match=re.escape(f"unknown arm '{arm}'")):
            arms.settings_of(arm)
    for arm in ("speed_noise_stratified", "sideways"):
        with pytest.raises(ValueError, match=f"unknown arm '{arm}'"):
            runs.execute(Run("02", arm, {}, 0, "", 1.0))


# --- plan -----------------------------------------------------------------------------------------


def plan_of(**changes: Any) -> list[Run]:
    few = {"seeds": 3, "speed_seeds": 4, "extended_seeds": 2, "cifar_seeds": 1, "timing_blocks": 5}
    return runs.plan(Config(**few | changes))


def test_plan_by_hand():
    plan = plan_of()
    expected = dict.fromkeys(arms.HEADLINE, 3) | dict.fromkeys(arms.SPEED_HEADLINE, 4)
    expected |= dict.fromkeys({*arms.EXTENDED, *arms.SPEED_EXTENDED}, 2)
    expected |= {"features_rates": 3, "features_copies": 3, "features_grid": 2, "enumeration": 3}
    expected |= {"departures": 2} | dict.fromkeys(TIMED, 5) | dict.fromkeys(arms.PAPER, 1)
    assert Counter(run.arm for run in plan) == expected
    choices = yaml.safe_load(arms.TUNED.read_text(encoding="utf-8"))
    for run in plan:
        assert (run.chapter, run.seed in range(1000, 1000 + expected[run.arm])) == ("02", True)
        assert run.deterministic == (run.arm not in TIMED)
        assert canonical_json(dict(run.config))
        data = run.config.get("data")
        hashed = {None: "drawn from the seed", "cifar10": problems.CIFAR}
        assert run.data == (hashed.get(data) or content_hash(problems.CONTENT[data]))
        if run.arm in TRAJECTORIES:
            settings, seconds = arms.settings_of(run.arm)
            assert dict(run.config) == settings
            assert run.predicted_seconds == pytest.approx(seconds)
        elif run.arm in SPEED:
            chosen = choices[run.arm]["lr"]
            expected_config = arms.settings_of(run.arm)[0] | {"lr": chosen["value"]}
            if run.arm.endswith(("_snooze", "_reweighted")):
                expected_config["tau"] = chosen["tau"]
            if run.arm.endswith("_snooze"):
                control = choices[run.arm.removesuffix("snooze") + "random"]
                expected_config["control_lr"] = control["lr"]["value"]
            assert dict(run.config) == expected_config
    configs = {run.arm: dict(run.config) for run in plan}
    for arm, (settings, *_) in arms.GRIDS.items():
        assert configs[arm] == settings
    assert configs["enumeration"] == {"data": "digits", "num_train": 1000}
    assert configs["timing_mlp"] == {"model": "mlp"}
    assert configs["timing_resnet8"] == {"model": "resnet8"}
    assert configs["timing_samplers"] == arms.SPEED | {
        "lr": choices["speed_0_uniform"]["lr"]["value"]
    }
    names = ("data", "num_train", "lr", "momentum", "decay", "batch", "clusters", "iterations")
    assert configs["departures"] == {name: arms.BASE[name] for name in (*names, "steps")}


def test_features_grid_by_hand():
    settings = arms.GRIDS["features_grid"][0]
    assert settings["taus"] == [0.1, 0.5, 1, 1.5, 2, 2.5, 3, 5, 10]
    assert settings["lrs"] == [0.1, 0.01, 0.001]
    assert len(settings["taus"]) * len(settings["lrs"]) * len(settings["teachers"]) == 54
    assert [arm for arm, (*_, standard) in arms.GRIDS.items() if standard] == [
        "features_rates",
        "features_copies",
    ]
    assert arms.GRIDS["features_rates"][0]["curves"]  # the slope at equal loss reads them


@pytest.mark.parametrize("profile", chapters.PROFILE_NAMES)
def test_profiles_resolve_to_runs_with_keys_of_their_own(profile):
    chapter = chapters.load_chapter("02")
    config, plan = chapters.resolve_config(chapter, profile), chapter.plan(profile)
    assert len({run.key for run in plan}) == len({(r.arm, r.seed) for r in plan}) == len(plan)
    assert config.first_seed >= 1000
    assert min(run.seed for run in plan) == config.first_seed
    assert all(run.predicted_seconds > 0 for run in plan)
    spent = sum(run.predicted_seconds for run in plan)
    assert spent <= {"quick": 35, "standard": 820, "full": 4300}.get(profile, 1e6)
    found = {run.arm for run in plan}
    assert found == {"full": FULL, "paper": STANDARD | set(arms.PAPER)}.get(profile, STANDARD)
    if (PROFILES / f"{profile}.yaml").is_file():
        changes = yaml.safe_load((PROFILES / f"{profile}.yaml").read_text(encoding="utf-8"))["02"]
        assert config.model_dump() == Config(**changes).model_dump()
    if profile != "quick":
        assert config.budget == 1


@pytest.mark.parametrize("claim", load_ledger(CLAIMS / "02.yaml"), ids=lambda claim: claim.id)
def test_the_full_profile_plans_the_seeds_of_every_claim(claim):
    planned = Counter(run.arm for run in chapters.load_chapter("02").plan("full"))
    for part in (*claim.parts, *claim.beside):
        for setting, formula in zip(part.settings, part.formulas, strict=True):
            least = min(planned[arm] for arm in formula.arms)
            assert least >= (setting.seeds or claim.seeds.count)


def test_settings_move_the_plan():
    assert {run.arm for run in runs.plan(Config())} == STANDARD
    assert {run.seed for run in plan_of(first_seed=7)} == set(range(7, 12))
    whole, tenth, tiny = (plan_of(budget=share) for share in (1.0, 0.1, 1e-4))
    for one, other, least in zip(whole, tenth, tiny, strict=True):
        if "steps" not in one.config or one.arm in TIMED:
            assert one == other == least
            continue
        steps, low = one.config["steps"], 0
        if one.arm in TRAJECTORIES:
            low = 2 * one.config["refresh"]  # so that something is measured
        elif one.arm in SPEED:
            low = 100
        elif one.arm in arms.GRIDS:
            low = 50
        assert other.config["steps"] == max(low, round(steps / 10))
        assert least.config["steps"] == max(low, round(steps / 10_000))
        assert {**one.config, "steps": 0} == {**other.config, "steps": 0}
        if one.arm != "departures":
            assert least.predicted_seconds < other.predicted_seconds < one.predicted_seconds


@pytest.mark.parametrize(
    "wrong",
    [
        {"seeds": 0},
        {"speed_seeds": 0},
        {"extended_seeds": -1},
        {"cifar_seeds": -1},
        {"timing_blocks": 0},
        {"budget": 0},
        {"budget": 1.1},
        {"first_seed": -1},
        {"seedz": 3},
    ],
)
def test_wrong_settings_are_named(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Config(**wrong)
