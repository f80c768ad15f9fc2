"""Every order of six batches: spread, recency, persistence, and where greedy orders rank."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from companion.chapters.ordering.problems import (
    Problem,
    losses_of,
    make_model,
    pair_problem,
    source_sgd,
)
from companion.lab.arms import Settings
from companion.lab.device import run_device
from companion.lab.results import Result, make_result
from trainaug.data.registry import content_hash
from trainaug.methods.ordering import (
    BatchScorer,
    PerfectOrderingSampler,
    exhaustive_orders,
    position_shares,
    train_in_order,
)
from trainaug.methods.ordering.scores import Score
from trainaug.training.randomness import stream

__all__ = ["MEASURES", "Orders", "run_orders"]

MEASURES = ("val_loss", "val_accuracy", "test_loss", "test_accuracy")
State = tuple[nn.Module, SGD]
Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Orders(Settings):
    """Every order of the batches of an epoch, from the same state.

    Attributes:
        model: ``mlp`` or ``cnn_bn``.
        lr: Learning rate.
        momentum: Nesterov momentum.
        weight_decay: Weight decay, of all weights.
        epochs: Epochs that are replayed, each in every order.
        batch: Examples in a batch; there are 48 training examples.
        states: Start states of an epoch, from the best to the worst end of the one before.
        quantiles: Points that a record keeps of the sorted accuracies.
    """

    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda", "mps")

    model: str = "mlp"
    lr: float = 0.35
    momentum: float = 0.9
    weight_decay: float = 1e-4
    epochs: int = 1
    batch: int = 8
    states: int = 4
    quantiles: int = 60

    @property
    def data_hash(self) -> str:
        return content_hash("digits")

    def tiny(self) -> Self:
        # four batches: 24 orders in place of 720
        return replace(self, epochs=min(self.epochs, 3), batch=12)

    def optimizer(self, model: nn.Module) -> SGD:
        """Return the optimiser of a model."""
        return source_sgd(model, self.lr, self.momentum, self.weight_decay)


def _evaluator(data: Problem) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Return the function that evaluates a model, and the held-out inputs of which it takes logits.

    It gives the numbers of `MEASURES`: loss, and accuracy in percent, of both held-out parts.
    """
    half, y = len(data.val), torch.cat([data.val.y, data.test.y])

    def evaluate(logits: Tensor) -> Tensor:
        measures = []
        for part in (slice(None, half), slice(half, None)):
            hits = logits[part].argmax(1) == y[part]
            measures += [F.cross_entropy(logits[part], y[part]), 100 * hits.float().mean()]
        return torch.stack(measures)

    return evaluate, torch.cat([data.val.x, data.test.x])


def run_orders(settings: Orders, seed: int) -> Result:
    """Train each epoch in every order of its batches, and record how the results spread.

    The first epoch starts from the initial weights. Each later one starts from several of the
    states in which the epoch before ended, spread from the best to the worst.
    """
    data = pair_problem(seed).to(run_device())
    evaluate, held_out = _evaluator(data)
    generator = stream(seed, "order")
    model = make_model(settings.model, data, seed)
    states: list[State] = [(model, settings.optimizer(model))]
    metrics: dict[str, float] = {}
    curves: dict[str, list[float]] = {name: [] for name in ("range", "best", "mean", "worst")}
    start_losses: Tensor | None = None  # validation loss of each start state
    for epoch in range(1, settings.epochs + 1):
        indices = torch.split(torch.randperm(len(data.train), generator=generator), settings.batch)
        batches = [(data.train.x[i], data.train.y[i]) for i in indices]

        def replay(state: State, batches: Batches = batches) -> tuple[Tensor, Tensor]:
            orders, measures = exhaustive_orders(*state, losses_of, batches, evaluate, held_out)
            return orders, measures.cpu()

        orders, first = replay(states[0])  # (K, M) batch numbers, (K, 4) measures
        values = torch.stack([first, *(replay(state)[1] for state in states[1:])])  # (S, K, 4)
        accuracy, loss = values[..., 1], values[..., 0]  # (S, K)
        curves["range"].append(float((accuracy.amax(1) - accuracy.amin(1)).mean()))
        for name, reduce in (
            ("best", accuracy.amax),
            ("mean", accuracy.mean),
            ("worst", accuracy.amin),
        ):
            curves[name].append(float(reduce(1).mean()))
        if epoch == 1:
            metrics |= _first_epoch(data, seed, settings, batches, orders, first)
            ascending = accuracy[0].sort().values
            kept = torch.linspace(0, len(ascending) - 1, settings.quantiles).long()
            curves["sorted"] = ascending[kept].tolist()
        if start_losses is not None:
            pairs = torch.stack([start_losses, loss.mean(1)])
            curves.setdefault("persistence", []).append(float(torch.corrcoef(pairs)[0, 1]))
        if epoch < settings.epochs:
            ranked = loss.flatten().argsort(stable=True)
            chosen = ranked[torch.linspace(0, len(ranked) - 1, settings.states).long()].tolist()
            start_losses = loss.flatten()[chosen]
            ends = [divmod(position, len(orders)) for position in chosen]  # state, order
            states = [_trained(states[s], settings, batches, orders[o].tolist()) for s, o in ends]
            if epoch == 1:  # the same batches once more: do the same orders win again?
                repeated = replay(states[settings.states // 2])[1]
                pairs = torch.stack([loss[0], repeated[:, 0]])
                metrics["repeat"] = float(torch.corrcoef(pairs)[0, 1])
    # where all orders end alike there is no variance, and its shares are NaN
    defined = {name: value for name, value in metrics.items() if not math.isnan(value)}
    return make_result(defined, curves, {"orders": len(orders)})


def _trained(state: State, settings: Orders, batches: Batches, order: list[int]) -> State:
    """Return copies of a model and its optimiser after training on the batches in an order."""
    model = copy.deepcopy(state[0])
    optimizer = settings.optimizer(model)
    # without the copy both optimisers would share the momentum
    optimizer.load_state_dict(copy.deepcopy(state[1].state_dict()))
    train_in_order(model, optimizer, losses_of, batches, order)
    return model, optimizer


def _first_epoch(
    data: Problem,
    seed: int,
    settings: Orders,
    batches: Batches,
    orders: Tensor,
    values: Tensor,
) -> dict[str, float]:
    """Spread, shares of variance by position, their controls, and ranks of greedy orders.

    ``orders`` has every order as a row of batch numbers, ``(K, M)``; ``values`` has the `MEASURES`
    after each, ``(K, 4)``.
    """
    metrics: dict[str, float] = {}
    for name, column in zip(MEASURES, values.unbind(1), strict=True):
        metrics[f"{name}/min"] = float(column.min())
        metrics[f"{name}/mean"] = float(column.mean())
        metrics[f"{name}/max"] = float(column.max())
    # (M,) share of the second class
    balance = torch.stack([y.float().mean() for _, y in batches]).cpu()
    permutations = torch.rand(orders.shape, generator=stream(seed, "control")).argsort(1)
    last = orders[:, -1]
    for name, column in (("accuracy", values[:, 1]), ("loss", values[:, 0])):
        for position, share in enumerate(position_shares(orders, column).tolist(), 1):
            metrics[f"share/{name}/{position}"] = share
        control = position_shares(orders.gather(1, permutations), column)
        metrics[f"share/{name}/permuted"] = float(control.mean())
        by_balance = position_shares(balance[last].unsqueeze(1), column)
        metrics[f"share/{name}/last_balance"] = float(by_balance)
    for batch, share in enumerate(balance.tolist()):
        metrics[f"last/{batch}/balance"] = share
        metrics[f"last/{batch}/accuracy"] = float(values[last == batch, 1].mean())
    best = int(values[:, 1].argmax())
    metrics["best_on_val/test_accuracy"] = float(values[best, 3])
    for score in get_args(Score):
        greedy = torch.tensor(_greedy(score, data, seed, settings, batches))
        for ending, order in (("", greedy), ("/reversed", greedy.flip(0))):
            row = int((orders == order).all(1).nonzero())
            for name, column in (("loss", values[:, 0]), ("accuracy", -values[:, 1])):
                better, equal = column < column[row], column == column[row]
                rank = 100 * float((better + equal / 2).float().mean())
                metrics[f"rank/{score}/{name}{ending}"] = rank
    return metrics


def _greedy(
    score: Score,
    data: Problem,
    seed: int,
    settings: Orders,
    batches: Batches,
) -> list[int]:
    """Order, as batch numbers, in which the greedy sampler takes the batches of the first epoch.

    It may choose among all remaining batches.
    """
    model = make_model(settings.model, data, seed)
    optimizer = settings.optimizer(model)
    target = data.target.x, data.target.y
    scorer = BatchScorer(
        score, model, losses_of, optimizer=optimizer, target=target, independent=True
    )
    sampler = PerfectOrderingSampler(
        data.train,
        settings.batch,
        scorer=scorer,
        num_candidates=len(batches),
        generator=stream(seed, "order"),  # the same permutation as the exhaustive study
        candidate_generator=stream(seed, "candidates"),
    )
    order = []
    for indices in sampler:
        x = data.train[indices][0]
        # the sampler gives examples: look up the number of their batch
        number = next(i for i, (inputs, _) in enumerate(batches) if torch.equal(inputs, x))
        train_in_order(model, optimizer, losses_of, batches, [number])
        order.append(number)
    return order
