"""Chapter 5 without evidence: arms, plan, and runs of few steps."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace

import pytest
from pydantic import ValidationError

from companion.chapters.cascading_sum import arms, measures, problems, runs, tuning
from companion.chapters.cascading_sum.config import Config
from companion.evidence.store import Run, canonical_json
from companion.lab import chapters
from trainaug.data.registry import content_hash

TUNED = arms.HEADLINE | arms.EXTENDED
DEEP = {f"resnet8_{name}" for name in ("erm", "csa4", "mixup_clean")}
PLACES = ("digits_10", "fashion_100")
FURTHER = {f"{place}_{kind}" for place in PLACES for kind in ("radii", "objective")}
THIRDS = [[4, 1 / 3], [2, 1 / 3], [1, 1 / 3]]

# --- arms and plan --------------------------------------------------------------------------------


def test_headline_is_the_cascade_and_its_controls_in_two_places():
    names = {
        "erm": {"stages": [[1, 1.0]]},
        "csa4": {"stages": THIRDS},
        "csa2": {"stages": [[2, 2 / 3], [1, 1 / 3]]},
        "mixup_clean": {"stages": [[2, 2 / 3], [1, 1 / 3]], "weights": "dirichlet"},
        "erm_restart": {"stages": [[1, 1 / 3]] * 3, "restart": True},
        "csa4_restart": {"stages": THIRDS, "restart": True},
    }
    assert set(arms.HEADLINE) == {f"{place}_{name}" for place in PLACES for name in names}
    for place, (name, changes) in itertools.product(PLACES, names.items()):
        data, per_class = place.split("_")
        alpha = "best" if name == "mixup_clean" else None
        expected = arms.BASE | {"data": data, "per_class": int(per_class), "alpha": alpha} | changes
        assert arms.settings_of(f"{place}_{name}")[0] == expected


@pytest.mark.parametrize("arm", TUNED)
def test_an_arm_has_the_settings_of_base_and_a_tuned_owner(arm):
    settings, seconds, owner = arms.settings_of(arm)
    assert set(settings) == {*arms.BASE, "data", "per_class"}
    assert seconds > 0
    assert sum(share for _, share in settings["stages"]) == pytest.approx(1)
    assert arms.settings_of(owner)[2] == owner in tuning.tuned_arms()
    assert arms.tuned(owner) in tuning.GRID
    for name in ("data", "per_class", "steps", "alpha"):  # what shares a learning rate shares these
        assert arms.settings_of(owner)[0][name] == settings[name]
    if settings["alpha"] == "best":
        assert arms.best_alpha(owner) in arms.ALPHAS == (0.2, 0.4, 1.0)


def test_settings_are_new_each_time_and_unknown_arms_are_refused():
    settings, *_ = arms.settings_of("digits_10_erm")
    settings["steps"] = 1
    assert arms.settings_of("digits_10_erm")[0]["steps"] == arms.BASE["steps"] == 600
    for arm in ("digits_10", "digits_11_erm", "radii", "digits_10_radii", ""):
        with pytest.raises(ValueError, match=f"unknown arm '{arm}'"):
            arms.settings_of(arm)
    with pytest.raises(ValueError, match="unknown arm 'sideways'"):
        runs.execute(Run("05", "sideways", {}, 0, "", 1.0))


def test_plan_by_hand():
    plan = runs.plan(Config(seeds=3, extended_seeds=2, deep_seeds=1))
    expected = dict.fromkeys(arms.HEADLINE, 3) | dict.fromkeys({*arms.EXTENDED, *FURTHER}, 2)
    assert Counter(run.arm for run in plan) == expected | dict.fromkeys(DEEP, 1)
    for run in plan:
        assert run.seed in range(1000, 1000 + (1 if run.arm in DEEP else expected[run.arm]))
        assert run.deterministic
        assert run.data == content_hash(problems.CONTENT[run.config["data"]])
        assert canonical_json(dict(run.config))
        if run.arm in TUNED:
            settings, seconds, owner = arms.settings_of(run.arm)
            if settings["alpha"] == "best":
                settings["alpha"] = arms.best_alpha(owner)
                assert isinstance(settings["alpha"], float)
            assert dict(run.config) == settings | {"lr": arms.tuned(owner), "images": 300}
            assert run.predicted_seconds == pytest.approx(seconds)
    configs = {run.arm: dict(run.config) for run in plan}
    for place in PLACES:
        radii = configs[f"{place}_radii"]
        assert (radii["data"], radii["images"]) == (place.split("_")[0], 100)
        assert list(radii["models"]) == ["erm", "csa2", "csa4", "constant2", "mixup"]
        assert all(radii["models"][name] == configs[f"{place}_{name}"] for name in radii["models"])
        assert configs[f"{place}_objective"] == configs[f"{place}_csa4"]


def test_profiles_run_the_arms_of_their_tier():
    ran = {name: chapters.load_chapter("05").plan(name) for name in ("quick", "standard", "full")}
    found = {name: {run.arm for run in plan} for name, plan in ran.items()}
    assert found["quick"] == found["standard"] == set(arms.HEADLINE)
    assert found["full"] == {*TUNED, *FURTHER}
    seeds = Counter(run.arm for run in ran["full"])
    assert min(seeds[arm] for arm in arms.HEADLINE) == Config().seeds == 24
    assert min(seeds[arm] for arm in arms.EXTENDED if arm not in DEEP) >= 10
    paper = chapters.load_chapter("05").plan("paper")
    assert {run.arm for run in paper if run.config["data"].startswith("cifar")} == set(arms.PAPER)
    assert {run.config["lr"] for run in paper if run.arm in arms.PAPER} == {0.05}


def test_settings_move_the_plan():
    assert {run.arm for run in runs.plan(Config())} == set(arms.HEADLINE)
    assert {run.seed for run in runs.plan(Config(seeds=2, first_seed=7))} == {7, 8}
    whole, tenth, tiny = (
        runs.plan(Config(seeds=1, extended_seeds=1, deep_seeds=1, budget=share))
        for share in (1.0, 0.1, 0.001)
    )
    for one, other, least in zip(whole, tenth, tiny, strict=True):
        if "steps" in one.config:
            assert other.config["steps"] == round(one.config["steps"] / 10)
            assert least.config["steps"] == 60
        if one.arm in TUNED:
            assert other.predicted_seconds < one.predicted_seconds
    assert {run.config["images"] for run in runs.plan(Config(images=5, extended_seeds=1))} == {5}


@pytest.mark.parametrize("wrong", [{"seeds": 0}, {"budget": 0}, {"images": 0}, {"seedz": 3}])
def test_wrong_settings_are_named(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Config(**wrong)


# --- runs -----------------------------------------------------------------------------------------


def few_steps(arm: str) -> Run:
    few: dict[str, int] = dict.fromkeys(("seeds", "extended_seeds", "deep_seeds"), 1)
    plan = runs.plan(Config(**few, images=20, budget=0.001, first_seed=0))
    return next(run for run in plan if run.arm == arm)


@pytest.mark.parametrize("arm", ["csa4", "csa4_restart", "radii", "objective"])
def test_a_run_keeps_what_estimands_and_figures_read(monkeypatch, arm):
    monkeypatch.setattr(runs, "SNAPSHOTS", (0, 59))
    monkeypatch.setattr(measures, "PGD", {"steps": 2, "restarts": 1})
    run = few_steps(f"digits_10_{arm}")
    given = canonical_json(dict(run.config))
    result = runs.execute(run)
    assert set(result) == {"metrics", "curves", "counters"}
    assert canonical_json(result) == canonical_json(runs.execute(run))  # refuses NaN
    assert canonical_json(dict(run.config)) == given
    metrics, curves = result["metrics"], result["curves"]
    if arm == "radii":
        assert set(curves) == {f"{m}/{c}" for m in runs.ROBUST for c in ("eps", "fgsm", "pgd")}
        kinds = ("clean/bare", "clean/mixed", "pgd/bare", "pgd/unaware", "pgd/adaptive")
        assert set(metrics) == {f"{m}/{k}" for m in runs.TEST_TIME for k in kinds}
        assert metrics["erm/clean/bare"] == pytest.approx(curves["erm/pgd"][0])
    elif arm == "objective":
        names = ["k1", *(f"k{k}{end}" for k in (2, 4, 8) for end in ("", "_rescaled"))]
        assert set(curves) == {
            f"{key}/{n}" for key in ("loss", "curvature", "lipschitz") for n in names
        }
        assert {len(curve) for curve in curves.values()} == {2}
        for key, name in itertools.product(("curvature", "lipschitz"), ("k4", "k4_rescaled")):
            pairs = zip(curves[f"{key}/{name}"], curves[f"{key}/k1"], strict=True)
            mean = sum(math.log(abs(a / b)) for a, b in pairs) / 2
            assert metrics[f"{key}/{name}"] == pytest.approx(mean, abs=1e-4)  # six digits kept
        assert len(metrics) == 4
    else:
        data, model, found = runs._train(dict(run.config), 0)
        expected = measures.measure_model(model, data, measures.EPS["digits"], 0, images=20)
        expected["val/accuracy"] = found.accuracy[-1]
        assert metrics == pytest.approx(expected, rel=1e-8)
        assert curves["accuracy"] == pytest.approx(found.accuracy, rel=1e-5)
        assert curves["step"] == ([30, 60] if arm == "csa4" else [20, 40, 60])
        assert curves.get("switches", []) == pytest.approx(found.switches, rel=1e-5)
        assert len(found.switches) == (0 if arm == "csa4" else 3)
        assert result["counters"] == {"examples": 3000, "forward_examples": 3000}


@pytest.mark.parametrize(
    "arm",
    ["emoji_100_csa4_restart", "resnet8_mixup_clean", "fashion_500_csa4", "digits_10_source4"],
)
def test_other_data_networks_and_recipes_run_too(arm):
    run = few_steps(arm)
    result = runs.execute(replace(run, config={**run.config, "steps": 6, "images": 4}))
    assert canonical_json(result)
    assert 0 < result["metrics"]["test/accuracy"] < 1
    counters = result["counters"]
    if arm == "digits_10_source4":
        assert counters["examples"] > counters["forward_examples"] >= 50
    else:
        assert counters == {"examples": 300, "forward_examples": 300}
