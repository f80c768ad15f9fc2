"""Chapter 4: all orders of an epoch against plain training in order."""

from __future__ import annotations

import copy
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion.chapters.ordering import orders, problems
from companion.chapters.ordering.orders import Orders
from companion.evidence.store import canonical_json
from companion.lab.results import Result
from trainaug.methods.ordering import train_in_order
from trainaug.methods.ordering.scores import Score
from trainaug.training.models import evaluate
from trainaug.training.randomness import stream

pytestmark = pytest.mark.usefixtures("untouched_randomness")

SCORES = get_args(Score)


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> None:
    """Import scikit-learn before the random states are watched: that draws from Python's."""
    problems.problem("digits", 0)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


Call = tuple[nn.Module, torch.optim.SGD, list[tuple[Tensor, Tensor]], Tensor, Tensor]


@pytest.fixture
def replays(monkeypatch) -> list[Call]:
    """Watch the exhaustive studies: state at the start, batches, orders and their measures."""
    calls: list[Call] = []
    original = orders.exhaustive_orders

    def spy(model: nn.Module, optimizer: Any, losses: Any, batches: Any, *rest: Any) -> Any:
        state = copy.deepcopy((model, optimizer))
        actual = original(model, optimizer, losses, batches, *rest)
        calls.append((*state, batches, *actual))
        return actual

    monkeypatch.setattr(orders, "exhaustive_orders", spy)
    return calls


def study(model: str = "mlp", lr: float = 0.1, momentum: float = 0.9, epochs: int = 1) -> Result:
    return orders.run_orders(Orders(model=model, lr=lr, momentum=momentum, epochs=epochs), 4)


@pytest.mark.parametrize(("model", "momentum"), [("mlp", 0.9), ("mlp", 0.0), ("cnn_bn", 0.9)])
def test_orders_end_where_training_in_order_ends(replays, model, momentum):
    actual = study(model, momentum=momentum)
    ((*_, listed, values),) = replays
    assert actual.counters == {"orders": 720}
    data = problems.pair_problem(4)
    index = torch.randperm(48, generator=stream(4, "order")).split(8)
    for position in (0, 131, 719):
        net = problems.make_model(model, data, 4)
        optimizer = problems.source_sgd(net, 0.1, momentum)
        for number in listed[position].tolist():
            batch = [(data.train.x[index[number]], data.train.y[index[number]])]
            train_in_order(net, optimizer, problems.losses_of, batch, [0])
        expected = []
        for part in (data.val, data.test):
            scores = evaluate(net, part, "")
            expected += [scores["/loss"], 100 * scores["/accuracy"]]
        got = values[position].tolist()
        assert got[::2] == pytest.approx(expected[::2], rel=1e-3)  # six steps in float32
        assert got[1::2] == pytest.approx(expected[1::2], abs=0.8)  # one picture


def test_metrics_of_the_first_epoch_follow_from_all_orders(replays):
    actual = study()
    ((*_, batches, listed, values),) = replays
    metrics, v = actual.metrics, values.double().numpy()
    for index, name in enumerate(orders.MEASURES):
        for what in ("min", "mean", "max"):
            assert metrics[f"{name}/{what}"] == pytest.approx(getattr(v[:, index], what)())
    for name, column in (("accuracy", v[:, 1]), ("loss", v[:, 0])):
        for position in range(6):
            groups = [column[listed[:, position].numpy() == b] for b in range(6)]
            between = sum((g.mean() - column.mean()) ** 2 for g in groups) / 6
            share = metrics[f"share/{name}/{position + 1}"]
            assert share == pytest.approx(between / column.var(), rel=1e-4)
        assert 0 <= metrics[f"share/{name}/permuted"] < 0.05  # six groups of 120 by chance: 0.007
        assert metrics[f"share/{name}/last_balance"] <= metrics[f"share/{name}/6"] + 1e-9
    for b in range(6):
        assert metrics[f"last/{b}/balance"] == float(batches[b][1].float().mean())
        ends = v[listed[:, -1].numpy() == b, 1]
        assert metrics[f"last/{b}/accuracy"] == pytest.approx(ends.mean())
    # chosen on one half, reported on the other
    assert metrics["best_on_val/test_accuracy"] == pytest.approx(v[v[:, 1].argmax(), 3])
    curves = actual.curves
    ordered = sorted(v[:, 1])
    assert "persistence" not in curves
    assert "repeat" not in metrics
    assert len(curves["sorted"]) == 60
    assert curves["sorted"] == sorted(curves["sorted"])
    assert [curves["sorted"][0], curves["sorted"][-1]] == pytest.approx(ordered[:: len(v) - 1])
    for name, value in (
        ("best", v[:, 1].max()),
        ("worst", v[:, 1].min()),
        ("mean", v[:, 1].mean()),
    ):
        assert curves[name] == pytest.approx([value], rel=1e-5)
    assert curves["range"] == pytest.approx([v[:, 1].max() - v[:, 1].min()], rel=1e-5)


def test_ranks_are_those_of_the_greedy_order_by_hand(replays):
    actual = study()
    ((model, _, batches, listed, values),) = replays
    target = problems.pair_problem(4).target

    def loss(at: nn.Module, x: Tensor, y: Tensor) -> float:
        with torch.no_grad():
            return float(F.cross_entropy(at(x), y))

    def score(name: str, at: nn.Module, by: torch.optim.SGD, number: int) -> float:
        x, y = batches[number]
        if name.endswith("_loss"):
            return loss(at, x, y) * (-1 if name == "min_loss" else 1)
        trial, steps = copy.deepcopy((at, by))
        where = (target.x, target.y) if name == "delta_target" else (x, y)
        before = loss(trial, *where)
        train_in_order(trial, steps, problems.losses_of, batches, [number])
        return before - loss(trial, *where)

    for name in ("min_loss", "max_loss", "delta_abs", "delta_target"):
        at = copy.deepcopy(model)
        by = problems.source_sgd(at, 0.1)
        taken: list[int] = []
        while len(taken) < 6:
            left = [number for number in range(6) if number not in taken]
            taken.append(max(left, key=lambda number: score(name, at, by, number)))
            train_in_order(at, by, problems.losses_of, batches, taken[-1:])
        for ending, order in (("", taken), ("/reversed", taken[::-1])):
            position = listed.tolist().index(order)
            for what, column in (("loss", values[:, 0]), ("accuracy", -values[:, 1])):
                before = sum(c < column[position] for c in column)
                beside = sum(c == column[position] for c in column)
                rank = 100 * float(before + beside / 2) / 720
                assert actual.metrics[f"rank/{name}/{what}{ending}"] == pytest.approx(rank)
    ranks = {k: r for k, r in actual.metrics.items() if k.startswith("rank/")}
    assert len(ranks) == len(SCORES) * 4
    assert all(0 <= rank <= 100 for rank in ranks.values())


def test_later_epochs_start_where_chosen_orders_ended(replays):
    epochs = 3
    actual = study(epochs=epochs)
    first, again, *later = replays
    assert len(later) == (epochs - 1) * Orders().states
    data, curves = problems.pair_problem(4), actual.curves
    generator = stream(4, "order")
    batches = []
    for _ in range(epochs):
        index = torch.randperm(48, generator=generator).split(8)
        batches.append([(data.train.x[i], data.train.y[i]) for i in index])
    calls: list[list[Call]] = [[first], later[:4], later[4:]]
    for batches_of_epoch, epoch in zip(batches, calls, strict=True):
        assert all(
            torch.equal(a, x)
            for c in epoch
            for (a, _), (x, _) in zip(c[2], batches_of_epoch, strict=True)
        )
    assert torch.equal(again[2][0][0], batches[0][0][0])
    assert same_weights(again[0], later[Orders().states // 2][0])

    def trained(path: list[list[int]]) -> tuple[nn.Module, torch.optim.SGD]:
        model = problems.make_model("mlp", data, 4)
        optimizer = problems.source_sgd(model, 0.1)
        for epoch, order in zip(batches, path, strict=False):
            train_in_order(model, optimizer, problems.losses_of, epoch, order)
        return model, optimizer

    paths: list[list[list[int]]] = [[]]
    for number in range(epochs - 1):
        losses = torch.stack([values[:, 0] for *_, values in calls[number]])
        ranked = losses.flatten().argsort(stable=True)
        chosen = [int(ranked[int(i * (len(ranked) - 1) / 3)]) for i in range(4)]
        started = losses.flatten()[chosen]
        assert started.tolist() == sorted(started.tolist())  # from the best to the worst end
        paths = [[*paths[k // 720], first[3][k % 720].tolist()] for k in chosen]
        for path, (model, optimizer, *_) in zip(paths, calls[number + 1], strict=True):
            expected, by = trained(path)
            assert same_weights(model, expected)
            for p, q in zip(model.parameters(), expected.parameters(), strict=True):
                kept, wanted = optimizer.state[p], by.state[q]
                assert torch.equal(kept["momentum_buffer"], wanted["momentum_buffer"])
        after = torch.stack([values[:, 0].mean() for *_, values in calls[number + 1]])
        pair = float(torch.corrcoef(torch.stack([started, after]))[0, 1])
        assert curves["persistence"][number] == pytest.approx(pair, abs=1e-5)
    assert len(curves["persistence"]) == epochs - 1
    for position, epoch in enumerate(calls):
        spans = [float(values[:, 1].max() - values[:, 1].min()) for *_, values in epoch]
        assert curves["range"][position] == pytest.approx(sum(spans) / len(spans), rel=1e-5)
    same = torch.stack([first[4][:, 0], again[4][:, 0]])
    assert actual.metrics["repeat"] == pytest.approx(float(torch.corrcoef(same)[0, 1]), abs=1e-6)


def test_where_all_orders_end_alike_there_are_no_shares():
    actual = study(lr=0.0)
    assert not [name for name in actual.metrics if name.startswith("share/")]
    assert {actual.metrics[f"rank/{score}/loss"] for score in SCORES} == {50.0}
    canonical_json(actual.as_record())  # no NaN
