"""Chapter 3 without training: arms, plan, profiles, settings and whose learning rate an arm has."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from companion.chapters.autoassist import arms, problems, runs
from companion.chapters.autoassist.config import Config
from companion.evidence.ledger import load_ledger
from companion.evidence.store import Run, canonical_json
from companion.lab import chapters
from companion.paths import CLAIMS
from trainaug.data.registry import content_hash

STANDARD = {*arms.SVM_SETS, "theorem", "timing", *arms.HEADLINE}
FULL = STANDARD | {*arms.EXTENDED, *arms.LARGE, *arms.TRANSLATION_ARMS, "translation_timing"}
PAPER = STANDARD | {*arms.PAPER, *arms.TRANSLATION_PAPER}
IMAGES = arms.HEADLINE | arms.EXTENDED | arms.LARGE | arms.PAPER
TRANSLATION = arms.TRANSLATION_ARMS | arms.TRANSLATION_PAPER
DEEP = {"translation_timing", *arms.TRANSLATION_ARMS}
TIMED = {"timing", "translation_timing"}

# --- arms -----------------------------------------------------------------------------------------


def test_arms_by_hand():
    clean = {"uniform", "assist", "selfpaced", "screener", "selective", "pruned"}
    expected = {f"images_0_{name}": {"sampler": name} for name in clean}
    for problem, changes in (
        ("noise", {"noise": 0.2}),
        ("rotated", {"rotated": True}),
        ("large", {"num_train": 50_000, "steps": 2400}),
        ("resnet8", {"model": "resnet8", "steps": 600}),
        (
            "cifar10",
            {"data": "cifar10", "model": "resnet8", "num_train": 45_000, "steps": 30_000},
        ),
    ):
        for name in ("uniform", "assist"):
            expected[f"images_{problem}_{name}"] = changes | {"sampler": name}
    expected["images_0_unshuffled"] = {"sampler": "assist", "shuffle": False}
    expected["images_0_ahead"] = {"sampler": "assist", "ahead": 20}
    expected |= {f"images_0_base{b}": {"sampler": "assist", "base": b / 100} for b in (0, 60)}
    assert set(IMAGES) == set(expected)
    groups = (arms.HEADLINE, arms.EXTENDED, arms.LARGE, arms.PAPER)
    assert len(IMAGES) == sum(map(len, groups))
    for arm, changes in expected.items():
        settings, seconds = arms.settings_of(arm)
        assert settings == arms.IMAGES | changes
        assert seconds > 0
        assert 0 < arms.TARGETS[arm.split("_")[1]] < 1
    assert set(arms.HEADLINE) == {"images_0_uniform", "images_0_assist"}


def test_settings_are_new_each_time_and_unknown_arms_are_refused():
    settings, _ = arms.settings_of("images_0_assist")
    settings["steps"] = 1
    assert arms.settings_of("images_0_assist")[0]["steps"] == 1200
    arms.translation_settings("translation_assist")["tokens"] = 1
    assert arms.translation_settings("translation_assist")["tokens"] == 600_000
    assert arms.translation_settings("translation_assist70")["tokens"] == 0.7 * 600_000
    for arm in ("images_0", "images_0_random", "translation_uniform", ""):
        with pytest.raises(ValueError, match=re.escape(f"unknown arm {arm!r}")):
            arms.settings_of(arm)
    for arm in ("translation_random", "images_0_assist"):
        with pytest.raises(ValueError, match=f"unknown arm '{arm}'"):
            arms.translation_settings(arm)
    for arm in ("images_noise_selective", "sideways"):
        with pytest.raises(ValueError, match=f"unknown arm '{arm}'"):
            runs.execute(Run("03", arm, {}, 0, "", 1.0))


@pytest.mark.parametrize(
    ("arm", "own", "control"),
    [
        ("images_0_uniform", "images_0_uniform", None),
        ("images_0_pruned", "images_0_pruned", None),
        ("images_0_assist", "images_0_assist", "images_0_random"),
        ("images_noise_assist", "images_noise_assist", "images_noise_random"),
        ("images_0_unshuffled", "images_0_assist", None),
        ("images_0_ahead", "images_0_assist", None),
        ("images_0_base0", "images_0_assist", None),
        ("images_0_base60", "images_0_assist", None),
        ("images_large_uniform", "images_large_uniform", None),
        ("images_large_assist", "images_large_assist", "images_large_random"),
        ("images_resnet8_assist", "images_resnet8_assist", "images_resnet8_random"),
        ("images_cifar10_assist", "images_resnet8_assist", "images_resnet8_random"),
        ("translation_uniform", "translation_uniform", None),
        ("translation_assist", "translation_assist", "translation_random"),
        ("translation_assist70", "translation_assist", None),
        ("translation_wmt14_assist", "translation_assist", None),
        ("translation_iwslt14_uniform", "translation_uniform", None),
    ],
)
def test_whose_learning_rate_an_arm_and_its_control_have(arm, own, control):
    choices = yaml.safe_load(arms.TUNED.read_text(encoding="utf-8"))
    assert arms.tuned_arm(arm) == own
    assert arms.tuned(arm) == choices[own]["lr"]["value"]
    if control is not None:
        assert arms.tuned(arms.control_of(arm)) == choices[control]["lr"]["value"]


def test_tuned_values_are_inside_their_grids():
    choices = yaml.safe_load(arms.TUNED.read_text(encoding="utf-8"))
    for arm in [*IMAGES, *TRANSLATION, *(arms.control_of(a) for a in IMAGES if "assist" in a)]:
        entry = choices[arms.tuned_arm(arm)]["lr"]
        assert entry["grid"] == sorted(set(entry["grid"]))
        assert entry["value"] in entry["grid"][1:-1]


# --- plan -----------------------------------------------------------------------------------------


def plan_of(**changes: Any) -> list[Run]:
    few = {"seeds": 3, "image_seeds": 4, "extended_seeds": 2, "deep_seeds": 6, "paper_seeds": 1}
    return runs.plan(Config(**few | {"timing_blocks": 5, "large_seeds": 7} | changes))


def test_plan_by_hand():
    plan = plan_of()
    expected = dict.fromkeys([*arms.SVM_SETS, "theorem"], 3) | dict.fromkeys(arms.HEADLINE, 4)
    expected |= dict.fromkeys(arms.EXTENDED, 2) | dict.fromkeys(DEEP, 6) | {"timing": 5}
    expected |= dict.fromkeys(arms.LARGE, 7)
    expected |= dict.fromkeys([*arms.PAPER, *arms.TRANSLATION_PAPER], 1)
    assert Counter(run.arm for run in plan) == expected
    unhashed = {"cifar10": problems.CIFAR, "iwslt14": "iwslt14", "wmt14": "wmt14"}
    named = problems.CONTENT | {"libreoffice": "libreoffice_help"}
    for run in plan:
        assert (run.chapter, run.seed in range(1000, 1000 + expected[run.arm])) == ("03", True)
        assert run.deterministic == (run.arm not in TIMED)
        assert canonical_json(dict(run.config))
        data = run.config["data"]
        assert run.data == (unhashed.get(data) or content_hash(named[data]))
        config = dict(run.config)
        if run.arm in IMAGES or run.arm in TRANSLATION:
            assert config.pop("lr") == arms.tuned(run.arm)
            control = config.pop("control_lr", None)
            has_one = run.arm.endswith("_assist") and run.arm not in arms.TRANSLATION_PAPER
            assert control == (arms.tuned(arms.control_of(run.arm)) if has_one else None)
        if run.arm in IMAGES:
            assert (config, run.predicted_seconds) == arms.settings_of(run.arm)
        elif run.arm in TRANSLATION:
            expected_config = arms.translation_settings(run.arm)
            del expected_config["lr"]
            assert config == expected_config
        elif run.arm in arms.SVM_SETS:
            assert config == arms.SVM | arms.SVM_SETS[run.arm][0]
        elif run.arm == "theorem":
            assert config == {"data": arms.SVM["data"], "lam": arms.SVM["lam"], "passes": 10}
        elif run.arm == "timing":
            assert config == arms.IMAGES | {"lr": arms.tuned("images_0_uniform")}
        else:
            assert config == arms.translation_settings("translation_uniform") | {
                "lr": arms.tuned("translation_uniform")
            }


@pytest.mark.parametrize("profile", chapters.PROFILE_NAMES)
def test_profiles_resolve_to_runs_with_keys_of_their_own(profile):
    chapter = chapters.load_chapter("03")
    config, plan = chapters.resolve_config(chapter, profile), chapter.plan(profile)
    assert len({run.key for run in plan}) == len({(r.arm, r.seed) for r in plan}) == len(plan)
    assert min(run.seed for run in plan) == config.first_seed >= 1000
    assert all(run.predicted_seconds > 0 for run in plan)
    spent = sum(run.predicted_seconds for run in plan)
    assert spent <= chapters.BUDGET_SECONDS.get(profile, math.inf)
    found = {run.arm for run in plan}
    assert found == {"full": FULL, "paper": PAPER}.get(profile, STANDARD)
    if profile != "quick":
        assert config.budget == 1


@pytest.mark.parametrize("claim", load_ledger(CLAIMS / "03.yaml"), ids=lambda claim: claim.id)
def test_a_claim_has_its_arms_and_its_seeds_in_the_full_profile(claim):
    planned = Counter(run.arm for run in chapters.load_chapter("03").plan("full"))
    assert {arm for formula in claim.all_formulas() for arm in formula.arms} <= set(planned)
    assert min(planned[arm] for arm in claim.arms) >= claim.seeds.count


def test_settings_move_the_plan():
    assert {run.arm for run in runs.plan(Config())} == STANDARD
    assert {run.seed for run in plan_of(first_seed=7)} == set(range(7, 14))
    for name, group in {"extended": arms.EXTENDED, "large": arms.LARGE, "deep": DEEP}.items():
        left = {run.arm for run in plan_of(**{f"{name}_seeds": 0})}
        assert left == {run.arm for run in plan_of()} - set(group)
    whole, tenth, tiny = (plan_of(budget=share) for share in (1.0, 0.1, 1e-3))
    for one, other, least in zip(whole, tenth, tiny, strict=True):
        if one.arm in TIMED:
            assert one == other == least
            continue
        name, low = "steps", 60
        if one.arm in TRANSLATION:
            name, low = "tokens", 0
        elif one.arm not in IMAGES:
            name, low = "passes", 1 if one.arm == "theorem" else 2
        for run, share in ((other, 0.1), (least, 1e-3)):
            assert run.config[name] == max(low, round(share * one.config[name]))
            assert {**one.config, name: 0} == {**run.config, name: 0}
        assert least.predicted_seconds < other.predicted_seconds < one.predicted_seconds


@pytest.mark.parametrize(
    "wrong",
    [
        {"seeds": 0},
        {"image_seeds": 0},
        {"extended_seeds": -1},
        {"large_seeds": -1},
        {"deep_seeds": -1},
        {"paper_seeds": -1},
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
