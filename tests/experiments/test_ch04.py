"""Chapter 4: parts, arms, costs, orders, estimands and the committed step lengths."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
import yaml

from trainaug.evidence.ledger import load_ledger
from trainaug.experiments import chapters, trials
from trainaug.experiments.ch04 import arms, orders, problems, runs, training, tuning
from trainaug.experiments.ch04 import estimands as e
from trainaug.experiments.ch04.config import Config
from trainaug.methods.ordering import train_in_order
from trainaug.paths import CLAIMS
from trainaug.training.randomness import stream

ALL = arms.HEADLINE | arms.EXTENDED
SHORT = {"steps": 20, "lr": 0.1}


# --- parts and models -----------------------------------------------------------------------------


@pytest.mark.oracle("ord.P14")
@pytest.mark.parametrize("seed", [0, 1000, 1001])
def test_no_row_is_in_two_parts(seed):
    drawn = {name: problems.problem(name, seed) for name in problems.PARTS}
    for name, sizes in problems.PARTS.items():
        rows = drawn[name].rows
        assert {part: len(index) for part, index in rows.items()} == sizes
        assert len(torch.cat(list(rows.values())).unique()) == sum(sizes.values())
    fashion = drawn["fashion_mnist"].rows
    assert int(fashion.pop("test").min()) >= 60_000 > max(int(r.max()) for r in fashion.values())
    pair = problems.pair_problem(seed).rows
    assert len(torch.cat(list(pair.values())).unique()) == sum(problems.PAIR.values())


def test_pictures_and_labels_are_those_of_the_rows():
    data, again = (problems.problem("digits", 3) for _ in range(2))
    assert torch.equal(data.train.x, again.train.x)
    assert data.train.x.shape == (1024, 1, 8, 8)
    assert 0 <= float(data.train.x.min()) < float(data.train.x.max()) <= 1
    pair = problems.pair_problem(3)
    assert set(pair.train.y.tolist()) == {0, 1}
    with pytest.raises(ValueError, match="'letters'"):
        problems.problem("letters", 0)


def test_noise_moves_its_share_of_labels_to_other_classes():
    clean, noisy = (
        problems.problem("fashion_mnist", 5),
        problems.problem("fashion_mnist", 5, noise=0.4),
    )
    assert torch.equal(clean.train.x, noisy.train.x)
    assert torch.equal(clean.val.y, noisy.val.y)
    moved = (clean.train.y != noisy.train.y).float().mean()
    assert abs(float(moved) - 0.4) < 4 * math.sqrt(0.24 / 2048)


@pytest.mark.parametrize("name", problems.MODELS)
def test_models_give_ten_logits_from_the_same_weights(name):
    data = problems.problem("digits", 0)
    one, other = (problems.make_model(name, data, 7) for _ in range(2))
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    assert one(data.train.x[:5]).shape == (5, 10)
    with pytest.raises(ValueError, match="'transformer'"):
        problems.make_model("transformer", data, 0)


# --- arms, plan, step lengths ---------------------------------------------------------------------


@pytest.mark.parametrize("arm", ALL)
def test_an_arm_has_the_settings_of_base_and_a_tuned_owner(arm):
    settings, seconds, owner = arms.settings_of(arm)
    assert set(settings) == set(arms.BASE)
    assert seconds > 0
    assert arms.settings_of(owner)[2] == owner
    assert arms.tuned(owner) in tuning.GRID
    for name in ("data", "model", "steps", "noise"):
        assert arms.settings_of(owner)[0][name] == settings[name]
    with pytest.raises(ValueError, match="unknown arm"):
        arms.settings_of(arm + "_")


@pytest.mark.parametrize("profile", ["quick", "standard", "full"])
def test_plan_stays_within_its_budget(profile):
    plan = chapters.load_chapter("04").plan(profile)
    assert sum(run.predicted_seconds for run in plan) <= chapters.BUDGET_SECONDS[profile]
    assert len({(run.arm, run.seed) for run in plan}) == len(plan)
    assert {run.arm for run in plan if not run.deterministic} == {
        f"timing_{name}" for name in arms.PROBLEMS
    }


def test_committed_step_lengths_follow_from_the_committed_trials():
    rows = tuning.read_trials()
    assert yaml.safe_load(arms.TUNED.read_text(encoding="utf-8")) == trials.choose(rows)
    wanted = set(itertools.product(tuning.tuned_arms(), tuning.GRID, tuning.SEEDS))
    assert {(row["arm"], row["value"], row["seed"]) for row in rows} == wanted
    assert max(tuning.SEEDS) < 100
    for arm in tuning.tuned_arms():
        assert min(tuning.GRID) < arms.tuned(arm) < max(tuning.GRID)
    assert len(tuning.tuning_table().splitlines()) == 1 + len(tuning.tuned_arms())


def test_claims_name_estimands_and_arms_that_exist():
    planned = {run.arm for run in chapters.load_chapter("04").plan("full")}
    for claim in load_ledger(CLAIMS / "04.yaml"):
        rules = [*claim.all_of, *(claim.beside.all_of if claim.beside else ())]
        assert {rule.estimand for rule in rules} <= set(e.ESTIMANDS)
        assert set(claim.arms or ()) <= planned


# --- training -------------------------------------------------------------------------------------


def settings_of(arm: str, **changes):
    return arms.settings_of(arm)[0] | SHORT | changes


def test_training_is_reproducible_bit_by_bit():
    one, other = (training.train_arm(settings_of("digits_delta_abs"), 1) for _ in range(2))
    assert one.accuracy == other.accuracy
    assert all(map(torch.equal, one.model.state_dict().values(), other.model.state_dict().values()))


def test_forward_equivalents_are_those_of_the_cost_model():
    batches = [16 - number for number in range(16)]  # left before each step of the first epoch
    scored = [min(8, left) if left > 1 else 0 for left in batches]
    found = {
        order: training.train_arm(settings_of(f"digits_{order}", steps=16), 0).forwards
        for order in ("random", "min_loss", "delta_abs", "delta_target")
    }
    assert found["random"][-1] == 3 * 16
    assert found["min_loss"][-1] == 3 * 16 + sum(scored)
    assert found["delta_abs"][-1] == 3 * 16 + 4 * sum(scored)
    tau = 2  # 128 target examples, batches of 64
    extra = sum((3 + tau) * n + tau for n in scored if n)
    assert found["delta_target"][-1] == 3 * 16 + extra


def test_training_stops_where_it_is_told():
    early = training.train_arm(settings_of("digits_random", steps=320, lr=0.35), 0, early=True)
    reached = early.reached(training.TARGETS["digits"])
    assert reached == len(early.accuracy) < 320
    timed = training.train_arm(settings_of("digits_random"), 0, steps=5)
    assert timed.accuracy == []
    assert timed.seconds > 0
    with pytest.raises(ValueError, match="unknown order 'sideways'"):
        training.train_arm(settings_of("digits_random", order="sideways"), 0)


def test_the_control_trains_on_the_target_part_too():
    data = problems.problem("digits", 0)
    found = training.train_arm(settings_of("digits_random_more"), 0).data
    assert torch.equal(found.train.x, torch.cat([data.train.x, data.target.x]))
    assert torch.equal(found.val.x, data.val.x)


@pytest.mark.parametrize("order", ["fixed", "grab"])
def test_fixed_batches_are_visited_once_an_epoch(order):
    data = problems.problem("digits", 0)
    units = training._Units(data, 3, order == "grab", 0)
    for _ in range(2):
        visited = []
        for batch in units:
            visited += batch
            if units.grab is not None:
                units.grab.record(units.now, torch.randn(3, generator=stream(units.now, "g")))
        assert sorted(visited) == list(range(len(data.train)))


def test_a_curriculum_needs_its_teacher():
    with pytest.raises(AssertionError):
        training.train_arm(settings_of("paced_short_ascending", data="digits"), 0)


# --- all orders -----------------------------------------------------------------------------------


def test_orders_end_where_training_in_order_ends():
    settings = {"model": "mlp", "lr": 0.1, "momentum": 0.9, "epochs": 1}
    found = orders.run_orders(settings, 4)
    assert "persistence" not in found["curves"]
    assert len(found["curves"]["sorted"]) <= 60
    data = problems.pair_problem(4)
    evaluate, held_out = orders._evaluator(data)
    index = torch.split(torch.randperm(48, generator=stream(4, "order")), orders.BATCH)
    batches = [(data.train.x[i], data.train.y[i]) for i in index]
    low, high = (found["metrics"][f"val_loss/{k}"] for k in ("min", "max"))
    for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4]):
        model = problems.make_model("mlp", data, 4)
        train_in_order(model, problems.source_sgd(model, 0.1), problems.losses_of, batches, order)
        assert low - 1e-5 <= float(evaluate(model(held_out).detach())[0]) <= high + 1e-5
    for name, value in found["metrics"].items():
        if name.startswith(("rank/", "share/")):
            assert 0 <= value <= 100


def test_later_epochs_start_from_the_ends_of_the_one_before():
    settings = {"model": "mlp", "lr": 0.1, "momentum": 0.9, "epochs": 2}
    found = orders.run_orders(settings, 4)
    assert len(found["curves"]["persistence"]) == 1
    assert -1 <= found["metrics"]["repeat"] <= 1
    assert len(found["curves"]["range"]) == 2


# --- runs and estimands ---------------------------------------------------------------------------


def test_runs_keep_what_the_estimands_read():
    plan = {run.arm: run for run in runs.plan(Config(seeds=1, timing_blocks=1, order_seeds=1))}
    records = []
    for arm in ("digits_random", "digits_min_loss", "selection", "timing_digits"):
        run = plan[arm]
        result = runs.execute(replace(run, config=dict(run.config)))
        assert all(len(curve) <= 60 for curve in result["curves"].values())
        records.append(run.head | result)
    assert e.cost_ratio("digits_min_loss", "digits_random")(records) < 1
    assert math.isfinite(e.seconds_ratio("digits", "delta_abs")(records))
    assert abs(e.accuracy_gain("digits_min_loss", "digits_random")(records)) < 10
    for name, value in records[2]["metrics"].items():
        assert -1 <= value <= 1, name
    with pytest.raises(KeyError, match="no record of digits_delta_abs"):
        e.cost_ratio("digits_delta_abs", "digits_random")(records)
    with pytest.raises(ValueError, match="unknown arm"):
        runs.execute(replace(plan["digits_random"], arm="digits_sideways"))


def test_rank_correlation_by_hand():
    a = torch.tensor([0.1, 5.0, 3.0, 4.0])
    assert runs._rank_correlation(a, a**3) == pytest.approx(1)
    assert runs._rank_correlation(a, -a) == pytest.approx(-1)


def test_estimands_by_hand():
    def record(arm, **metrics):
        return {"arm": arm, "metrics": metrics, "curves": {}}

    steps = {"digits_random": 32.0, "digits_delta_abs": 8.0}
    steps |= {"digits_delta_abs_2": 16.0, "digits_delta_abs_4": 8.0, "digits_delta_abs_16": 2.0}
    records = [record(arm, steps_to_target=value) for arm, value in steps.items()]
    # log2 of the steps: 5, 4, 3, 3, 1 at 0, 1, 2, 3, 4
    assert e.attempts_slope("delta_abs")(records) == pytest.approx(-0.9 * math.log(2))
    assert e.ESTIMANDS["digits_delta_abs_steps"](records) == pytest.approx(math.log(0.25))
    shares = {f"share/accuracy/{p}": 0.1 * p for p in range(1, 7)}
    orders_record = record("orders_cnn_bn", **shares, **{"val_accuracy/min": 40.0})
    orders_record["metrics"]["val_accuracy/max"] = 90.0
    assert e.spread([orders_record]) == 50
    assert e.last_lead("orders_cnn_bn")([orders_record]) == pytest.approx(math.log(6 / 5))
    later = record("epochs_cnn_bn") | {"curves": {"range": [40.0, 10.0], "persistence": [0.2, 0.6]}}
    assert e.range_decay([later]) == pytest.approx(math.log(0.25))
    assert e.persistence([later]) == pytest.approx(0.4)
