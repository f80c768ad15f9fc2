"""Chapter 4 without training: arms, plan and step lengths."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from companion.chapters.ordering import arms, runs, tuning
from companion.chapters.ordering.config import Config
from companion.evidence.store import Run
from companion.lab import chapters, trials
from trainaug.data.registry import content_hash

ALL = arms.HEADLINE | arms.EXTENDED
SCORES, DATA = ("min_loss", "delta_abs", "delta_target"), ("digits", "fashion_mnist")
STUDIES = ("orders_cnn_bn", "orders_mlp_lr005", "orders_mlp_lr010", "orders_mlp_lr020")


# --- arms and plan --------------------------------------------------------------------------------


def test_headline_is_random_and_three_scores_at_its_step_length_and_at_their_own():
    expected = set()
    for data in DATA:
        expected |= {(f"{data}_random", data, "random", f"{data}_random")}
        for score in SCORES:
            own = f"{data}_{score}_tuned"
            expected |= {
                (f"{data}_{score}", data, score, f"{data}_random"),
                (own, data, score, own),
            }
    found = {
        (arm, arms.settings_of(arm)[0]["data"], arms.settings_of(arm)[0]["order"], owner)
        for arm, (*_, owner) in arms.HEADLINE.items()
    }
    assert found == expected
    changed = {name for changes, *_ in arms.HEADLINE.values() for name in changes}
    assert changed == {"data", "order"}


def test_extended_arms_by_hand():
    assert not set(arms.HEADLINE) & set(arms.EXTENDED)
    # other scores, candidates, one pool, the control, models, curricula, fixed batches
    assert len(arms.EXTENDED) == 3 + 3 * 3 + 1 + 2 + 3 * 4 + 2 * 4 + 2
    for arm, wanted in {
        "digits_grad_align": {"order": "grad_align"},
        "digits_delta_abs_16": {"order": "delta_abs", "candidates": 16},
        "digits_min_loss_resampled": {"order": "min_loss", "pool": "resampled"},
        "fashion_mnist_random_more": {"order": "random_more", "data": "fashion_mnist"},
        "digits_cnn_bn_delta_target": {"order": "delta_target", "model": "cnn_bn"},
        "paced_short_descending": {"order": "descending", "data": "fashion_mnist", "steps": 32},
        "paced_noisy_random_list": {"order": "random_list", "data": "fashion_mnist", "noise": 0.4},
        "units_grab": {"order": "grab", "model": "linear", "steps": 640},
    }.items():
        assert arms.settings_of(arm)[0] == arms.BASE | wanted


@pytest.mark.parametrize("arm", ALL)
def test_an_arm_has_the_settings_of_base_and_a_tuned_owner(arm):
    settings, seconds, owner = arms.settings_of(arm)
    assert set(settings) == set(arms.BASE)
    assert seconds > 0
    assert arms.settings_of(owner)[2] == owner
    assert owner in tuning.tuned_arms()
    assert arms.tuned(owner) in tuning.GRID
    for name in ("data", "model", "steps", "noise"):  # what shares a step length shares these
        assert arms.settings_of(owner)[0][name] == settings[name]


def test_settings_are_new_each_time_and_unknown_arms_are_refused():
    settings, *_ = arms.settings_of("digits_random")
    settings["steps"] = 1
    assert arms.settings_of("digits_random")[0]["steps"] == arms.BASE["steps"] == 320
    for arm in ("digits", "digits_random_", "orders_cnn_bn", "timing_digits", ""):
        with pytest.raises(ValueError, match=f"unknown arm '{arm}'"):
            arms.settings_of(arm)
    with pytest.raises(KeyError, match="digits_min_loss"):
        arms.tuned("digits_min_loss")  # has that of its owner


@pytest.mark.parametrize("profile", ["quick", "standard", "full"])
def test_plan_stays_within_its_budget(profile):
    plan = chapters.load_chapter("04").plan(profile)
    assert sum(run.predicted_seconds for run in plan) <= chapters.BUDGET_SECONDS[profile]
    assert all(run.seed >= 1000 and run.predicted_seconds > 0 for run in plan)
    assert {run.chapter for run in plan} == {"04"}
    assert len({run.key for run in plan}) == len({(r.arm, r.seed) for r in plan}) == len(plan)
    timed = {run.arm for run in plan if not run.deterministic}
    assert timed == {f"timing_{name}" for name in DATA}


def plan_of(**counts: Any) -> list[Run]:
    few = {"seeds": 3, "order_seeds": 2, "later_seeds": 1, "extended_seeds": 4, "timing_blocks": 5}
    return runs.plan(Config(**few | counts))


def test_plan_by_hand():
    plan = plan_of()
    expected = dict.fromkeys(arms.HEADLINE, 3) | dict.fromkeys(arms.EXTENDED, 4)
    expected |= dict.fromkeys(STUDIES, 2) | {"epochs_cnn_bn": 1, "selection": 3}
    expected |= {f"orders_mlp_plain_{lr}": 2 for lr in ("lr005", "lr010", "lr020")}
    expected |= {f"timing_{data}": 5 for data in DATA}
    assert Counter(run.arm for run in plan) == expected
    for run in plan:
        assert run.seed in range(1000, 1000 + expected[run.arm])
        assert run.deterministic == (not run.arm.startswith("timing"))
        assert run.data == content_hash(run.config.get("data", "digits"))
        if run.arm in ALL:
            settings, seconds, owner = arms.settings_of(run.arm)
            assert dict(run.config) == settings | {"lr": arms.tuned(owner)}
            assert run.predicted_seconds == pytest.approx(seconds)
    configs = {run.arm: dict(run.config) for run in plan}
    network = {"model": "cnn_bn", "lr": 0.1, "momentum": 0.9}
    assert configs["orders_cnn_bn"] == network | {"epochs": 1}
    assert configs["epochs_cnn_bn"] == network | {"epochs": 8}
    mlp = {"model": "mlp", "lr": 0.2, "epochs": 1}
    assert configs["orders_mlp_lr020"] == mlp | {"momentum": 0.9}
    assert configs["orders_mlp_plain_lr020"] == mlp | {"momentum": 0.0}
    for data in DATA:
        assert configs[f"timing_{data}"] == {"data": data, "lr": arms.tuned(f"{data}_random")}
    assert configs["selection"] == {"lr": arms.tuned("digits_random")}


def test_settings_move_the_plan():
    assert {run.seed for run in plan_of(first_seed=7)} == set(range(7, 12))
    no_more = {run.arm for run in plan_of(extended_seeds=0, later_seeds=0)}
    assert not no_more & {*arms.EXTENDED, "epochs_cnn_bn"}
    assert {run.arm for run in runs.plan(Config())} == no_more  # the standard profile
    lrs = {run.arm for run in plan_of(order_lrs=(0.1,)) if run.arm.startswith("orders_mlp")}
    assert lrs == {"orders_mlp_lr010", "orders_mlp_plain_lr010"}
    with pytest.raises(ValueError, match=r"no arm has the step length 0\.3, .* 0\.05, 0\.1, 0\.2"):
        plan_of(order_lrs=(0.1, 0.3))
    whole, tenth = plan_of(), plan_of(budget=0.1)
    for one, other in zip(whole, tenth, strict=True):
        if one.arm in ALL:
            assert other.config["steps"] == round(one.config["steps"] / 10) > 0
            assert other.predicted_seconds < one.predicted_seconds
        else:
            assert other == one
    tiny = plan_of(budget=0.001)
    assert {run.config["steps"] for run in tiny if run.arm in ALL} == {1}
    more = {run.arm: run.predicted_seconds for run in plan_of(order_epochs=3)}
    less = {run.arm: run.predicted_seconds for run in plan_of(order_epochs=2)}
    assert more["epochs_cnn_bn"] > less["epochs_cnn_bn"] > less["orders_cnn_bn"]


@pytest.mark.parametrize(
    "wrong", [{"seeds": 0}, {"budget": 0}, {"budget": 1.1}, {"order_epochs": 1}, {"seedz": 3}]
)
def test_wrong_settings_are_named(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Config(**wrong)


# --- step lengths ---------------------------------------------------------------------------------


def test_committed_step_lengths_follow_from_the_committed_trials():
    rows = tuning.read_trials()
    text = arms.TUNED.read_text(encoding="utf-8")
    assert text == yaml.safe_dump(trials.choose(rows), sort_keys=False)
    for arm, settings in yaml.safe_load(text).items():
        curve = trials.mean_curve(rows, arm)
        assert arms.tuned(arm) == settings["lr"]["value"] == max(curve, key=curve.__getitem__)
        assert settings["lr"]["grid"] == list(tuning.GRID)
        assert min(tuning.GRID) < arms.tuned(arm) < max(tuning.GRID)


def test_every_arm_had_the_same_trials_on_pilot_seeds():
    rows = tuning.read_trials()
    owners = {owner for _, _, owner in ALL.values()}
    assert set(tuning.tuned_arms()) == owners == set(arms._tuned_values())
    tried = Counter((row["arm"], row["value"], row["seed"]) for row in rows)
    assert tried == Counter(itertools.product(owners, tuning.GRID, tuning.SEEDS))
    assert list(tuning.GRID) == sorted(set(tuning.GRID))
    assert max(tuning.SEEDS) < 100
    assert all(math.isfinite(row["score"]) and row["setting"] == "lr" for row in rows)


def test_curve_and_choice_by_hand():
    rows = [
        trials.trial("a", lr, seed, score)
        for lr, seed, score in (
            (1.0, 0, 5.0),
            (0.1, 0, 1.0),
            (0.1, 1, 4.0),
            (1.0, 1, 0.0),
            (10.0, 0, 2.0),
        )
    ]
    rows += [trials.trial("b", 0.1, 0, -3.0), trials.trial("b", 1.0, 0, -2.0)]
    assert trials.mean_curve(rows, "a") == {0.1: 2.5, 1.0: 2.5, 10.0: 2.0}
    assert list(trials.mean_curve(rows, "a")) == [0.1, 1.0, 10.0]
    # of equals the smaller step length
    assert trials.choose(rows) == {
        "a": {"lr": {"value": 0.1, "grid": [0.1, 1.0, 10.0]}},
        "b": {"lr": {"value": 1.0, "grid": [0.1, 1.0]}},
    }


@pytest.mark.parametrize(
    ("arm", "reached", "score"),
    [
        ("digits_random", 16, -math.log(16)),
        ("fashion_mnist_delta_abs_tuned", None, -math.log(320)),  # the whole budget
        ("paced_short_random", 16, 0.8),
        ("units_grab", 16, -math.log(0.25)),
    ],
)
def test_a_trial_is_scored_by_what_its_arm_was_made_for(monkeypatch, arm, reached, score):
    def fake(settings: dict[str, Any], seed: int) -> Any:
        assert (settings, seed) == (arms.settings_of(arm)[0] | {"lr": 0.3}, 2)
        lists = {"accuracy": [0.1, 0.8], "train_loss": [2.0, 0.25]}
        return SimpleNamespace(**lists, reached=lambda target: reached)

    monkeypatch.setattr(tuning, "train_arm", fake)
    monkeypatch.setattr(tuning.torch, "set_num_threads", lambda _: None)
    expected = {"arm": arm, "setting": "lr", "value": 0.3, "seed": 2}
    assert tuning._score_one((arm, 0.3, 2)) == expected | {"score": pytest.approx(score, rel=1e-5)}


def test_tuning_tries_everything_and_writes_the_choice(monkeypatch):
    written, said = [], []
    monkeypatch.setattr(tuning, "_score_one", lambda task: trials.trial(*task, -task[1]))
    monkeypatch.setattr(trials, "write_choice", lambda *given: written.append(given))
    tuning.tune(1, said.append)
    ((chapter, rows, path),) = written
    assert (chapter, path) == ("04", arms.TUNED)
    tried = [(row["arm"], row["value"], row["seed"]) for row in rows]
    assert tried == list(itertools.product(tuning.tuned_arms(), tuning.GRID, tuning.SEEDS))
    assert said[-1] == f"trials {len(rows)}/{len(rows)}"


def test_table_has_a_line_for_every_arm():
    lines = tuning.tuning_table().splitlines()
    assert [line.split()[0] for line in lines[1:]] == tuning.tuned_arms()
    for line in lines[1:]:
        arm, chosen, *_ = line.split()
        assert float(chosen) == arms.tuned(arm)
        assert line.count(":") == len(tuning.GRID)
