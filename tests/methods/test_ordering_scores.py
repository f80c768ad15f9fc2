"""Scores of candidate batches: closed forms, autograd, refusals, costs."""

from __future__ import annotations

import itertools
import math
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trainaug.methods.ordering import (
    BatchScorer,
    PerfectOrderingSampler,
    batch_losses,
    target_alignments,
    trial_losses,
)
from trainaug.methods.ordering.copies import masked_means
from trainaug.methods.ordering.scores import Score
from trainaug.training.models import MLP
from trainaug.training.randomness import initialise, stream

SCORES = get_args(Score)
LABELS = torch.tensor([[0, 1, 2, 0], [1, 1, 0, 2], [2, 0, 2, 2], [0, 0, 1, 2], [1, 2, 0, 1]])
RAGGED = torch.arange(4) < torch.tensor([[4], [2], [3], [1], [4]])
SHAPES = {"mlp": (4,), "conv": (1, 6, 6), "norm": (1, 6, 6), "dropout": (1, 6, 6)}


def losses_of(outputs, y):
    return F.cross_entropy(outputs, y, reduction="none")


def model_of(kind, dtype=torch.float64):
    """Build a small network: two layers, or two convolutions without and with extras."""
    g = stream(0, "init")
    if kind == "mlp":
        return MLP(4, 6, 3, g).to(dtype)
    with torch.device("meta"):
        extra = {"norm": [nn.BatchNorm2d(3)], "dropout": [nn.Dropout(0.5)]}.get(kind, [])
        first, second = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 4, 3)
        head = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
        model = nn.Sequential(first, *extra, nn.ReLU(), second, *head)
    initialise(model, g)
    for p in model.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=g, device="cpu")
    return model.to(dtype)


class Point(nn.Module):
    """One weight ``w``; the loss of example ``a`` is half the squared distance."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([w], dtype=torch.float64))

    def forward(self, x):
        return self.w - x.flatten()


def half_square(outputs, y):
    return 0.5 * outputs**2


def points(score, w, values, lr, **options):
    """Score singleton batches of the one-dimensional quadratic."""
    model = Point(w)
    optimizer = torch.optim.SGD(model.parameters(), lr)
    scorer = BatchScorer(score, model, half_square, optimizer=optimizer, **options)
    x = torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1)
    return scorer(x, torch.zeros(x.shape[:2]))


# --- closed forms


@pytest.mark.oracle("ord.P6")
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("lr", [0.01, 0.5, 1.0, 1.7])
def test_scores_of_a_quadratic(lr, together):
    w, values = 0.3, [-1.0, 0.25, 2.0, 1.0]
    half = 0.5 * (w - torch.tensor(values, dtype=torch.float64)) ** 2
    share = 1 - (1 - lr) ** 2
    target = (torch.tensor([[1.5]], dtype=torch.float64), torch.zeros(1))

    def scores(name):
        return points(name, w, values, lr, target=target, together=together)

    close = {"rtol": 1e-12, "atol": 1e-15}
    torch.testing.assert_close(scores("min_loss"), -half, **close)
    torch.testing.assert_close(scores("max_loss"), half, **close)
    torch.testing.assert_close(scores("delta_abs"), half * share, **close)
    relative = torch.full_like(half, share)
    torch.testing.assert_close(scores("delta_rel"), relative, rtol=1e-12, atol=1e-12)
    assert int(scores("min_loss").argmax()) == 1  # the nearest
    assert int(scores("max_loss").argmax()) == int(scores("delta_abs").argmax()) == 2
    moved = w - lr * (w - torch.tensor(values, dtype=torch.float64))
    expected = 0.5 * (w - 1.5) ** 2 - 0.5 * (moved - 1.5) ** 2
    torch.testing.assert_close(scores("delta_target"), expected, rtol=1e-12, atol=1e-12)
    slopes = (w - 1.5) * (w - torch.tensor(values, dtype=torch.float64))
    torch.testing.assert_close(scores("grad_align"), slopes, **close)


@pytest.mark.oracle("ord.P8")
@pytest.mark.parametrize("together", [True, False])
def test_relative_drop_of_no_loss_is_zero(together):
    scores = points("delta_rel", 0.25, [0.25, 1.0, 0.25], 0.5, together=together)
    assert scores.tolist() == pytest.approx([0.0, 0.75, 0.0], abs=1e-15)
    lost = points("delta_rel", 0.25, [math.nan, 1.0], 0.5, together=together)
    assert lost.isnan().tolist() == [True, False]


@pytest.mark.oracle("ord.P9")
@pytest.mark.parametrize("together", [True, False])
def test_a_step_too_far_scores_below_zero_and_one_is_taken_still(together):
    values = torch.tensor([-1.0, 0.25, 2.0], dtype=torch.float64)
    scores = points("delta_abs", 0.0, values.tolist(), 3.0, together=together)
    torch.testing.assert_close(scores, -1.5 * values**2, rtol=1e-12, atol=0)

    class Values(list):
        def __getitem__(self, indices):
            return values[indices].unsqueeze(1), torch.zeros(len(indices)), indices

    def score(x, y, mask):
        return points("delta_abs", 0.0, x.flatten().tolist(), 3.0, together=together)

    generators = {"generator": stream(0, "order"), "candidate_generator": stream(0, "candidates")}
    sampler = PerfectOrderingSampler(Values("abc"), 1, scorer=score, **generators)
    assert list(sampler) == [[1], [0], [2]]  # the smallest harm first


# --- autograd


def gradient(model, x, y):
    loss = losses_of(model(x), y).mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


@pytest.mark.parametrize("mask", [None, RAGGED], ids=["full", "ragged"])
@pytest.mark.parametrize("kind", SHAPES)
def test_losses_and_alignments_match_one_batch_at_a_time(kind, mask, randn):
    model = model_of(kind).eval()
    x, target = randn(1, 5, 4, *SHAPES[kind]), (randn(2, 6, *SHAPES[kind]), LABELS.flatten()[:6])
    kept = [slice(None)] * 5 if mask is None else list(mask)
    parts = [(x[i][kept[i]], LABELS[i][kept[i]]) for i in range(5)]
    expected = torch.stack([losses_of(model(a), b).mean() for a, b in parts]).detach()
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(batch_losses(model, losses_of, x, LABELS, mask), expected, **close)
    along = gradient(model, *target)
    expected = torch.stack([gradient(model, a, b) @ along for a, b in parts])
    got = target_alignments(model, losses_of, x, LABELS, mask, target=target)
    torch.testing.assert_close(got, expected, **close)
    assert not got.requires_grad


def test_parameters_without_gradient_take_no_part(randn):
    model = model_of("mlp")
    model[1].weight.requires_grad_(False)
    x, target = randn(1, 5, 4, 4), (randn(2, 6, 4), LABELS.flatten()[:6])
    got = target_alignments(model, losses_of, x, LABELS, target=target)
    model[1].weight.requires_grad_(True)
    along = gradient(model, *target)
    along[:24] = 0.0  # that weight comes first
    expected = torch.stack([gradient(model, x[i], LABELS[i]) @ along for i in range(5)])
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.oracle("ord.P7")
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("kind", ["mlp", "conv", "norm"])
def test_short_steps_measure_inner_products_of_gradients(kind, together, randn):
    model = model_of(kind)
    x, target = randn(1, 5, 4, *SHAPES[kind]), (randn(2, 6, *SHAPES[kind]), LABELS.flatten()[:6])
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)

    def score(name):
        options = {"optimizer": optimizer, "target": target, "together": together}
        return BatchScorer(name, model, losses_of, **options)(x, LABELS)

    model.eval()
    own, along = [gradient(model, x[i], LABELS[i]) for i in range(5)], gradient(model, *target)
    norms = torch.stack([h.square().sum() for h in own])
    expected = {
        "delta_target": torch.stack([h @ along for h in own]),
        "delta_abs": norms,
        "delta_rel": norms / score("max_loss"),
    }
    for name, slopes in expected.items():
        error = (score(name) / 1e-4 - slopes).norm() / slopes.norm()
        assert float(error) < 1e-2


# --- modes


@pytest.mark.oracle("ord.P12")
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("kind", ["dropout", "norm"])
def test_scores_are_those_of_eval_mode(kind, score, together, randn):
    model = model_of(kind).train()
    x, target = randn(1, 5, 4, *SHAPES[kind]), (randn(2, 6, *SHAPES[kind]), LABELS.flatten()[:6])
    options = {"optimizer": torch.optim.SGD(model.parameters(), 0.1), "target": target}
    scorer = BatchScorer(score, model, losses_of, together=together, **options)
    found = scorer(x, LABELS)
    assert torch.equal(scorer(x, LABELS), found)  # nothing is drawn
    model.eval()
    assert torch.equal(scorer(x, LABELS), found)
    assert scorer(x[:, :1], LABELS[:, :1]).isfinite().all()  # a batch of one
    if score == "max_loss" and kind == "norm":  # another number than the training will see
        train = losses_of(model.train()(x.flatten(0, 1)), LABELS.flatten()).view(5, 4).mean(1)
        assert float((train - found).detach().abs().min()) > 1e-3


# --- costs, and bad input


@pytest.mark.parametrize("mask", [None, RAGGED], ids=["full", "ragged"])
def test_rows_are_counted(mask, randn):
    model, rows, held = model_of("mlp"), 20, 6
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    target = randn(2, held, 4), LABELS.flatten()[:held]
    expected = dict.fromkeys(("min_loss", "max_loss"), (rows, 0))
    expected |= dict.fromkeys(("delta_abs", "delta_rel"), (2 * rows, rows))
    expected |= {"delta_target": (rows + 6 * held, rows), "grad_align": (2 * rows + held, held)}
    assert sorted(expected) == sorted(SCORES)
    for (score, counts), together in itertools.product(expected.items(), [True, False]):
        options = {"target": target, "together": together, "independent": True}
        scorer = BatchScorer(score, model, losses_of, optimizer=optimizer, **options)
        if mask is not None and not together and score.startswith("delta"):
            counts = (counts[0] - (12 if counts[0] == 40 else 6), counts[1] - 6)  # none is filled
        for times in (1, 2):
            scorer(randn(1, 5, 4, 4), LABELS, mask)
            found = (scorer.forward_rows, scorer.backward_rows)
            assert found == tuple(times * count for count in counts)


@pytest.mark.parametrize("score", ["min_loss", "delta_abs", "delta_target"])
def test_rows_counted_are_those_that_pass(score, randn):
    model, passed = model_of("mlp"), []
    model.register_forward_hook(lambda module, args, out: passed.append(len(args[0])))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    options = {"optimizer": optimizer, "target": (randn(2, 6, 4), LABELS.flatten()[:6])}
    scorer = BatchScorer(score, model, losses_of, together=False, **options)
    scorer(randn(1, 5, 4, 4), LABELS)
    assert sum(passed) == scorer.forward_rows


def test_masked_means_leave_out_what_is_masked(randn):
    losses = randn(1, 5, 4)
    expected = [losses[i][RAGGED[i]].mean().item() for i in range(5)]
    assert masked_means(losses, RAGGED).tolist() == pytest.approx(expected, rel=1e-12)
    assert torch.equal(masked_means(losses, None), losses.mean(1))


def test_bad_input_is_refused(randn):
    model = model_of("mlp")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    target = randn(2, 6, 4), LABELS.flatten()[:6]
    with pytest.raises(ValueError, match=r"score must be one of min_loss.*got 'loss'"):
        BatchScorer("loss", model, losses_of)
    for score in ("delta_abs", "delta_rel", "delta_target"):
        with pytest.raises(ValueError, match=f"{score} needs an optimizer"):
            BatchScorer(score, model, losses_of, target=target)
    for score in ("delta_target", "grad_align"):
        with pytest.raises(ValueError, match=f"{score} needs a target"):
            BatchScorer(score, model, losses_of, optimizer=optimizer)
    other = torch.optim.LBFGS(model.parameters())
    for scorer in (
        BatchScorer("delta_abs", model, losses_of, optimizer=other),
        lambda x, y: trial_losses(model, other, losses_of, x, y),
    ):
        with pytest.raises(TypeError, match="LBFGS is not elementwise"):
            scorer(randn(1, 5, 4, 4), LABELS)


# --- devices


def everything(x):
    model, y = model_of("norm").to(x.device), LABELS.to(x.device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    options = {"optimizer": optimizer, "target": (x[0], y[0])}
    mask = RAGGED.to(x.device)
    found = []
    for score, together in itertools.product(SCORES, [True, False]):
        scorer = BatchScorer(score, model, losses_of, together=together, **options)
        found += [scorer(x, y), scorer(x, y, mask)]
    return found


def test_inside_a_meta_context_values_are_the_same(same_inside_meta, randn):
    same_inside_meta(everything, randn(1, 5, 4, 1, 6, 6))


@pytest.mark.gpu
def test_on_cuda_values_are_the_same(same_on_cuda, randn):
    same_on_cuda(everything, randn(1, 5, 4, 1, 6, 6))
