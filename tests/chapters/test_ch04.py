"""Chapter 4: parts of the data sets, models, and the runs."""

from __future__ import annotations

import copy
import math
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

from companion.chapters.ordering import arms, problems, runs, training
from companion.chapters.ordering.config import Config
from companion.evidence.store import Run, canonical_json
from trainaug.data import registry
from trainaug.training.models import evaluate
from trainaug.training.randomness import stream

pytestmark = pytest.mark.usefixtures("untouched_randomness")


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> None:
    """Import scikit-learn before the random states are watched: that draws from Python's."""
    problems.problem("digits", 0)


def settings_for(order: str = "random", **changes: Any) -> dict[str, Any]:
    return arms.BASE | {"order": order, "steps": 20, "lr": 0.1} | changes


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


# --- parts ----------------------------------------------------------------------------------------


@pytest.mark.oracle("ord.P14")
@pytest.mark.parametrize("seed", [0, 17, 1000, 1001])
def test_no_row_is_in_two_parts(seed):
    for name, sizes in problems.PARTS.items():
        data = problems.problem(name, seed)
        assert {part: len(rows) for part, rows in data.rows.items()} == sizes
        assert {part: len(getattr(data, part)) for part in sizes} == sizes
        sets = {part: set(rows.tolist()) for part, rows in data.rows.items()}
        assert {"target", "val", "test", "train"} <= set(sets)
        assert len(set().union(*sets.values())) == sum(sizes.values())
    # of Fashion-MNIST the official test set is where the test part, and it alone, comes from
    test = sets.pop("test")
    assert min(test) >= 60_000 > max(set().union(*sets.values()))
    pair = problems.pair_problem(seed)
    assert {part: len(rows) for part, rows in pair.rows.items()} == problems.PAIR
    assert len(torch.cat(list(pair.rows.values())).unique()) == sum(problems.PAIR.values())


@pytest.mark.parametrize("name", problems.PARTS)
def test_a_part_holds_the_pictures_and_classes_of_its_rows(name):
    data, arrays = problems.problem(name, 3), registry.load(name)
    largest = {"digits": 16, "fashion_mnist": 255}[name]
    for part, rows in data.rows.items():
        held = getattr(data, part)
        assert held.x.shape[1:] == (1, *problems.SHAPES[name])
        assert held.x.dtype == torch.float32
        assert 0 == float(held.x.min()) < float(held.x.max()) == 1
        for place in (0, 7, len(rows) - 1):
            row, known = int(rows[place]), len(arrays["train_y"])
            of, row = ("train", row) if row < known else ("test", row - known)
            picture = torch.tensor(arrays[f"{of}_x"][row].astype(float) / largest)
            torch.testing.assert_close(held.x[place].flatten(), picture.flatten().float())
            assert held.y[place] == arrays[f"{of}_y"][row]
    assert data.num_classes == len(data.train.y.unique()) == 10


@pytest.mark.parametrize("draw", [partial(problems.problem, name) for name in problems.PARTS])
def test_the_seed_draws_the_parts(draw):
    one, again, other = draw(5), draw(5), draw(6)
    for part, rows in one.rows.items():
        assert torch.equal(rows, again.rows[part])
        assert torch.equal(getattr(one, part).x, getattr(again, part).x)
        assert not torch.equal(rows, other.rows[part])


def test_noise_moves_its_share_of_training_labels_to_other_classes():
    clean, noisy, wrong = (problems.problem("fashion_mnist", 5, noise=n) for n in (0.0, 0.4, 1.0))
    for part, rows in clean.rows.items():
        assert torch.equal(rows, noisy.rows[part])
        assert torch.equal(getattr(clean, part).x, getattr(noisy, part).x)
        assert torch.equal(getattr(clean, part).y, getattr(noisy, part).y) == (part != "train")
    moved = float((clean.train.y != noisy.train.y).float().mean())
    assert moved == pytest.approx(0.4, abs=4 * math.sqrt(0.24 / 2048))
    assert not bool((clean.train.y == wrong.train.y).any())  # never the same class
    assert set(wrong.train.y.tolist()) == set(range(10))
    # every other class about equally often: 205 draws each of 2048 / 9
    shifts = torch.bincount((wrong.train.y - clean.train.y) % 10, minlength=10)
    assert shifts[0] == 0
    assert float((shifts[1:] - 2048 / 9).abs().max()) < 4.5 * math.sqrt(2048 / 9)


def test_the_pair_is_two_digits_with_classes_zero_and_one():
    data, y = problems.pair_problem(3), problems._arrays("digits")[1]
    assert data.num_classes == 2
    for part, rows in data.rows.items():
        assert set(y[rows].tolist()) == {3, 8}
        assert torch.equal(getattr(data, part).y, (y[rows] == 8).long())
    assert torch.equal(data.train.x, problems.pair_problem(3).train.x)
    other = problems.pair_problem(3, (1, 7))
    assert set(y[torch.cat(list(other.rows.values()))].tolist()) == {1, 7}


def test_unknown_names_raise_and_are_named():
    data = problems.problem("digits", 0)
    with pytest.raises(ValueError, match="digits, fashion_mnist, got 'letters'"):
        problems.problem("letters", 0)
    with pytest.raises(ValueError, match="linear, mlp, cnn, cnn_bn, got 'transformer'"):
        problems.make_model("transformer", data, 0)


# --- models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", problems.PARTS)
@pytest.mark.parametrize("name", problems.MODELS)
def test_models_have_their_sizes_and_the_weights_of_their_seed(name, data):
    drawn, pixels = problems.problem(data, 0), math.prod(problems.SHAPES[data])
    model, again, other = (problems.make_model(name, drawn, seed) for seed in (7, 7, 8))
    sizes = {"linear": 10 * (pixels + 1), "mlp": 64 * (pixels + 1) + 650}
    sizes |= {"cnn": 1898, "cnn_bn": 1898 + 48}
    assert sum(p.numel() for p in model.parameters()) == sizes[name]
    assert same_weights(model, again)
    assert not same_weights(model, other)
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == (name == "cnn_bn")
    x = drawn.train.x[:6]
    logits = model(x)
    assert logits.shape == (6, 10)
    gap = float((logits[:2] - model(x[:2])).detach().abs().max())
    assert (gap < 1e-5) == (name != "cnn_bn")  # independent examples, in training mode


def test_two_classes_give_two_logits():
    data = problems.pair_problem(0)
    for name in problems.MODELS:
        assert problems.make_model(name, data, 0)(data.train.x[:3]).shape == (3, 2)


def test_optimiser_and_losses_are_those_of_the_source():
    data = problems.problem("digits", 0)
    model = problems.make_model("linear", data, 0)
    for momentum in (0.9, 0.0):
        (group,) = problems.source_sgd(model, 0.3, momentum).param_groups
        assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.3, momentum, 1e-4)
        assert group["nesterov"] == (momentum > 0)
    (group,) = problems.source_sgd(model, 0.3).param_groups
    assert group["momentum"] == 0.9
    logits, y = model(data.train.x[:5]), data.train.y[:5]
    expected = -logits.log_softmax(1)[torch.arange(5), y]
    torch.testing.assert_close(problems.losses_of(logits, y), expected, rtol=1e-6, atol=0)


# --- runs -----------------------------------------------------------------------------------------


def run_of(arm: str, **settings: Any) -> Run:
    return Run("04", arm, settings, 0, "", 1.0)


def check_result(result: dict[str, Any]) -> None:
    assert set(result) == {"metrics", "curves", "counters"}
    assert canonical_json(result)  # refuses NaN
    assert result["metrics"]
    assert all(1 <= len(curve) <= 60 for curve in result["curves"].values())


@pytest.mark.parametrize("arm", ["digits_random", "digits_delta_target", "units_grab"])
def test_a_run_keeps_what_the_estimands_read(arm):
    settings = arms.settings_of(arm)[0] | {"lr": 0.1, "steps": 70}
    given = copy.deepcopy(settings)
    result = runs.execute(run_of(arm, **settings))
    check_result(result)
    assert settings == given
    assert canonical_json(result) == canonical_json(runs.execute(run_of(arm, **settings)))
    metrics, curves = result["metrics"], result["curves"]
    assert result["counters"] == {"steps": 70}
    found = training.train_arm(settings, 0)
    expected = evaluate(found.model, found.data.test, "test")
    expected |= evaluate(found.model, found.data.train, "train")
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-8)
    assert metrics["forwards"] == found.forwards[-1]
    assert (curves["step"][0], curves["step"][-1]) == (1, 70)
    assert curves["step"] == sorted(set(curves["step"]))
    for step, accuracy in zip(curves["step"], curves["accuracy"], strict=True):
        assert accuracy == pytest.approx(found.accuracy[int(step) - 1], rel=1e-5)
    assert ("train_loss" in curves) == (arm == "units_grab")


@pytest.mark.parametrize(("passing", "first"), [(30, 30), (1, 1), (100, 100), (None, 100)])
def test_summary_by_hand(passing, first):
    data = problems.problem("digits", 0)
    steps = range(1, 101)
    found = training.Trained(
        data,
        problems.make_model("linear", data, 0),
        accuracy=[0.95 if passing is not None and s >= passing else 0.5 for s in steps],
        forwards=[3.0 * s + 7 for s in steps],
        entropy=[2.0] * 30 + [1.0] * 70,
    )
    result = runs._summary({"data": "digits"}, found)
    check_result(result)
    wanted = {"steps_to_target": first, "forwards_to_target": 3 * first + 7, "forwards": 307}
    wanted |= {"reached": float(passing is not None), "entropy": (30 * 2 + 10) / 40}
    wanted["val/accuracy"] = found.accuracy[-1]
    assert {name: result["metrics"][name] for name in wanted} == pytest.approx(wanted)
    assert result["curves"]["step"][:6] == [1, 2, 3, 4, 5, 6]  # dense where the target is reached


def test_unknown_arms_are_refused():
    for arm in ("digits_sideways", "random", ""):
        with pytest.raises(ValueError, match=f"unknown arm '{arm}'"):
            runs.execute(run_of(arm, **settings_for()))


@pytest.mark.parametrize("arm", ["orders_mlp_lr010", "orders_cnn_bn", "epochs_cnn_bn"])
def test_runs_of_orders_are_those_of_the_study(monkeypatch, arm):
    monkeypatch.setattr(runs, "run_orders", lambda settings, seed: {"given": (settings, seed)})
    assert runs.execute(run_of(arm, model="mlp")) == {"given": ({"model": "mlp"}, 0)}


def test_selection_correlates_scores_with_what_they_are_said_to_follow():
    result = runs.execute(run_of("selection", lr=0.35))
    check_result(result)
    metrics = result["metrics"]
    scores = ("delta_abs", "delta_rel", "delta_target", "grad_align")
    assert set(metrics) == {
        *(
            f"{s}/{w}/{t}"
            for s in scores
            for w in ("loss", "norm", "align")
            for t in runs.SNAPSHOTS
        ),
        *(f"loss/norm/{t}" for t in runs.SNAPSHOTS),
    }
    assert all(-1 <= value <= 1 for value in metrics.values())
    assert all(metrics[f"grad_align/align/{t}"] == 1 for t in runs.SNAPSHOTS)
    # at the start by hand: a second permutation, scored with the initial weights
    data, g = problems.problem("digits", 0), stream(0, "order")
    _, second = (torch.randperm(1024, generator=g).split(64) for _ in range(2))
    model = problems.make_model("mlp", data, 0)

    def gradient(x: Tensor, y: Tensor) -> tuple[float, Tensor]:
        loss = F.cross_entropy(model(x), y)
        grads = torch.autograd.grad(loss, [*model.parameters()])
        return loss.item(), torch.cat([part.flatten() for part in grads])

    held = gradient(data.target.x, data.target.y)[1]
    loss, grads = zip(*(gradient(*data.train[b][:2]) for b in second), strict=True)
    norm, align = [float(v.norm()) for v in grads], [float(v @ held) for v in grads]
    for name, a, b in (
        ("loss/norm", loss, norm),
        ("grad_align/loss", align, loss),
        ("grad_align/norm", align, norm),
    ):
        assert metrics[f"{name}/0"] == pytest.approx(spearmanr(a, b).statistic)


def test_rank_correlation_by_hand():
    a = torch.tensor([0.1, 5.0, 3.0, 4.0])
    assert runs._rank_correlation(a, a**3) == pytest.approx(1)
    assert runs._rank_correlation(a, -a) == pytest.approx(-1)
    # ranks 0 3 1 2 and 3 2 0 1: differences -3 1 1 1, 1 - 6 * 12 / (4 * 15)
    b = torch.tensor([9.0, 2.0, -1.0, 0.0])
    assert runs._rank_correlation(a, b) == pytest.approx(-0.2)
    x, y = torch.randn(2, 50, generator=stream(0, "x"))
    assert runs._rank_correlation(x, y + x) == pytest.approx(spearmanr(x, x + y).statistic)


def test_gradient_norms_by_hand():
    with torch.device("meta"):
        model = nn.Linear(2, 2, bias=False).to_empty(device="cpu")
    nn.init.zeros_(model.weight)
    x = torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]])  # probabilities 1/2: gradient (1/2, -1/2) x
    norms = runs._gradient_norms(model, x, torch.zeros(2, 1, dtype=torch.long))
    assert norms.tolist() == pytest.approx([5 / math.sqrt(2), 0])


def test_timing_gives_positive_seconds():
    result = runs.execute(run_of("timing_digits", data="digits", lr=0.35))
    check_result(result)
    metrics = result["metrics"]
    names = ("random", *arms.SCORES)
    assert set(metrics) == {f"{what}/{name}" for what in ("seconds", "steps") for name in names}
    assert all(metrics[f"seconds/{name}"] > 0 for name in names)
    assert all(1 <= metrics[f"steps/{name}"] == int(metrics[f"steps/{name}"]) for name in names)
    whole = runs.execute(run_of("digits_random", **settings_for(steps=320, lr=0.35)))
    assert metrics["steps/random"] == whole["metrics"]["steps_to_target"]


@pytest.mark.parametrize("seed", [1000, 1001])
def test_timing_takes_turns_and_trains_each_order_to_its_own_target(monkeypatch, seed):
    calls: list[tuple[str, dict[str, Any]]] = []
    needed = {"random": 20, "min_loss": 30, "delta_abs": None, "delta_target": 10}

    def fake(settings: dict[str, Any], at: int, **options: Any) -> Any:
        assert (at, settings["lr"], settings["data"]) == (seed, 0.2, "digits")
        calls.append((settings["order"], options))
        return SimpleNamespace(seconds=1.5, reached=lambda _: needed[settings["order"]])

    monkeypatch.setattr(runs, "train_arm", fake)
    found = runs._timing({"data": "digits", "lr": 0.2}, seed)["metrics"]
    assert calls[:4] == [(order, {"early": True}) for order in needed]
    counts = {order: steps or 320 for order, steps in needed.items()}  # the whole budget
    turns = list(needed) if seed % 2 else list(needed)[::-1]
    assert calls[4:] == [(order, {"steps": counts[order]}) for order in turns]
    assert {order: found[f"steps/{order}"] for order in needed} == counts
    assert {found[f"seconds/{order}"] for order in needed} == {1.5}


def test_plans_run_as_they_are_listed():
    """A run of the plan at a small budget, from its arm and settings alone."""
    config = Config(seeds=1, order_seeds=1, timing_blocks=1, budget=0.02)
    (run,) = (r for r in runs.plan(config) if r.arm == "digits_min_loss")
    check_result(runs.execute(run))
    assert run.config["steps"] == 6
