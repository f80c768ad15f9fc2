"""Chapter 4: what the scores follow, and the timing of the orders."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

from companion.chapters.ordering import problems, scores
from companion.chapters.ordering.scores import Selection, Timing, run_selection, run_timing
from companion.chapters.ordering.train import Training, run_training
from trainaug.training.randomness import stream

pytestmark = pytest.mark.usefixtures("untouched_randomness")

SCORES = ("delta_abs", "delta_rel", "delta_target", "grad_align")


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> None:
    """Import scikit-learn before the random states are watched: that draws from Python's."""
    problems.problem("digits", 0)


def test_selection_correlates_scores_with_what_they_are_said_to_follow():
    steps = (0, 17)  # also in the second pass
    result = run_selection(Selection(lr=0.35, snapshots=steps), 0)
    metrics = result.metrics
    pairs = [f"{score}/{what}" for score in SCORES for what in ("loss", "norm", "align")]
    assert set(metrics) == {f"{pair}/{step}" for pair in [*pairs, "loss/norm"] for step in steps}
    assert all(-1 <= value <= 1 for value in metrics.values())
    assert all(metrics[f"grad_align/align/{step}"] == 1 for step in steps)
    assert result.counters == {"steps": 18}
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


def test_rank_correlation_is_spearmans():
    a = torch.tensor([0.1, 5.0, 3.0, 4.0])
    assert scores._rank_correlation(a, a**3) == pytest.approx(1)
    assert scores._rank_correlation(a, -a) == pytest.approx(-1)
    x, y = torch.randn(2, 50, generator=stream(0, "x"))
    assert scores._rank_correlation(x, y + x) == pytest.approx(spearmanr(x, x + y).statistic)


def test_gradient_norms_by_hand():
    with torch.device("meta"):
        model = nn.Linear(2, 2, bias=False).to_empty(device="cpu")
    nn.init.zeros_(model.weight)
    x = torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]])  # probabilities 1/2: gradient (1/2, -1/2) x
    norms = scores._gradient_norms(model, x, torch.zeros(2, 1, dtype=torch.long))
    assert norms.tolist() == pytest.approx([5 / math.sqrt(2), 0])


def test_timing_takes_the_steps_that_training_needs_to_its_target():
    metrics = run_timing(Timing(lr=0.35), 0).metrics
    assert all(value > 0 for name, value in metrics.items() if name.startswith("seconds/"))
    trained = run_training(Training(lr=0.35), 0)
    assert metrics["steps/random"] == trained.metrics["steps_to_target"]


@pytest.mark.parametrize("seed", [1000, 1001])
def test_timing_takes_turns_and_trains_each_order_to_its_own_target(monkeypatch, seed):
    calls: list[tuple[str, dict[str, Any]]] = []
    needed = {"random": 20, "min_loss": 30, "delta_abs": None, "delta_target": 10}

    def fake(settings: Training, at: int, **options: Any) -> Any:
        assert (at, settings.lr, settings.data) == (seed, 0.2, "fashion_mnist")
        calls.append((settings.order, options))
        return SimpleNamespace(seconds=1.5, reached=lambda target: needed[settings.order])

    monkeypatch.setattr(scores, "train_arm", fake)
    metrics = run_timing(Timing(data="fashion_mnist", lr=0.2), seed).metrics
    assert calls[:4] == [(order, {"early": True}) for order in needed]
    counts = {order: steps or 320 for order, steps in needed.items()}  # the whole budget
    turns = list(needed) if seed % 2 else list(needed)[::-1]
    assert calls[4:] == [(order, {"steps": counts[order]}) for order in turns]
    assert {order: metrics[f"steps/{order}"] for order in needed} == counts
    assert {metrics[f"seconds/{order}"] for order in needed} == {1.5}
