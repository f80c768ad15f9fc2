"""Timings of the ordering methods: scored steps, stacked trial steps, exhaustive orders."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from companion.chapters.ordering.problems import losses_of, make_model, pair_problem, problem
from companion.chapters.ordering.problems import source_sgd as sgd
from trainaug.methods.ordering import (
    BatchScorer,
    exhaustive_orders,
    train_in_order,
    trial_losses,
)
from trainaug.methods.ordering.scores import Score

BATCH, CANDIDATES = 64, 8


def _paired(
    first: Callable[[], object], second: Callable[[], object], pairs: int
) -> dict[str, Any]:
    """Median of the ratios first / second of ``pairs`` alternate timings, after two to warm up."""
    torch.set_num_threads(1)
    ratios, seconds = [], []
    for number in range(pairs + 2):
        spent = {}
        for call in (first, second) if number % 2 else (second, first):
            start = time.perf_counter()
            call()
            spent[call] = time.perf_counter() - start
        if number >= 2:
            ratios.append(spent[first] / spent[second])
            seconds.append([spent[first], spent[second]])
    return {"ratio": statistics.median(ratios), "ratios": ratios, "seconds": seconds}


def _setting(data: str, name: str) -> Any:
    """Return model, optimiser, candidate batches ``(8, 64, ...)`` with labels, and one batch."""
    parts = problem(data, 0)
    model = make_model(name, parts, 0)
    optimizer = sgd(model, 1e-3)
    one = parts.train.x[:BATCH], parts.train.y[:BATCH]
    train_in_order(model, optimizer, losses_of, [one], [0])  # fills the optimiser's state
    count = BATCH * CANDIDATES
    x = parts.train.x[:count].unflatten(0, (CANDIDATES, BATCH))
    y = parts.train.y[:count].view(CANDIDATES, BATCH)
    return model, optimizer, x, y, one


def scored_step(data: str, name: str) -> dict[str, Any]:
    """Time a step that first scores eight batches by ``min_loss`` against a plain step."""
    model, optimizer, x, y, one = _setting(data, name)
    score: Score = "min_loss"
    scorer = BatchScorer(score, model, losses_of, independent=True)

    def plain() -> None:
        train_in_order(model, optimizer, losses_of, [one], [0])

    def scored() -> None:
        best = int(scorer(x, y).argmax())
        train_in_order(model, optimizer, losses_of, [(x[best], y[best])], [0])

    return _paired(scored, plain, 60)


def trial_steps(data: str, name: str) -> dict[str, Any]:
    """Time eight trial steps one after another against the same steps in one batched call."""
    model, optimizer, x, y, _ = _setting(data, name)

    def trials(together: bool) -> torch.Tensor:
        return trial_losses(model, optimizer, losses_of, x, y, together=together)[1]

    torch.testing.assert_close(trials(True), trials(False), rtol=1e-5, atol=1e-6)
    return _paired(lambda: trials(False), lambda: trials(True), 30)


def all_orders_at_once(name: str) -> dict[str, Any]:
    """Time the 720 orders of six batches one by one against all together.

    Together, orders with the same beginning share its steps, and all copies are trained at once.
    """
    parts = pair_problem(0)
    model = make_model(name, parts, 0)
    optimizer = sgd(model, 0.1)
    batches = [(parts.train.x[i : i + 8], parts.train.y[i : i + 8]) for i in range(0, 48, 8)]
    y = parts.val.y

    def evaluate(logits: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits, y).unsqueeze(0)

    def replay(together: bool) -> torch.Tensor:
        call = (model, optimizer, losses_of, batches, evaluate, parts.val.x)
        return exhaustive_orders(*call, together=together)[1]

    torch.testing.assert_close(replay(True), replay(False), rtol=1e-4, atol=1e-5)
    return _paired(lambda: replay(False), lambda: replay(True), 3)
