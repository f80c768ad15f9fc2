"""Scores of candidate batches: closed forms, autograd, refusals, costs."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trainaug.methods.ordering import (
    BatchScorer,
    PerfectOrderingSampler,
    batch_losses,
    preserve_state,
    target_alignments,
    trial_losses,
)
from trainaug.methods.ordering.copies import masked_means
from trainaug.methods.ordering.scores import Score
from trainaug.training.networks import MLP
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
    gradients, along = (
        [gradient(model, x[i], LABELS[i]) for i in range(5)],
        gradient(model, *target),
    )
    norms = torch.stack([h.square().sum() for h in gradients])
    expected = {
        "delta_target": torch.stack([h @ along for h in gradients]),
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
    actual = scorer(x, LABELS)
    assert torch.equal(scorer(x, LABELS), actual)  # nothing is drawn
    model.eval()
    assert torch.equal(scorer(x, LABELS), actual)
    assert scorer(x[:, :1], LABELS[:, :1]).isfinite().all()  # a batch of one
    if score == "max_loss" and kind == "norm":  # another number than the training will see
        train = losses_of(model.train()(x.flatten(0, 1)), LABELS.flatten()).view(5, 4).mean(1)
        assert float((train - actual).detach().abs().min()) > 1e-3


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
            actual = (scorer.forward_rows, scorer.backward_rows)
            assert actual == tuple(times * count for count in counts)


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
    actual = []
    for score, together in itertools.product(SCORES, [True, False]):
        scorer = BatchScorer(score, model, losses_of, together=together, **options)
        actual += [scorer(x, y), scorer(x, y, mask)]
    return actual


def test_inside_a_meta_context_values_are_the_same(same_inside_meta, randn):
    same_inside_meta(everything, randn(1, 5, 4, 1, 6, 6))


@pytest.mark.gpu
def test_on_cuda_values_are_the_same(same_on_cuda, randn):
    same_on_cuda(everything, randn(1, 5, 4, 1, 6, 6))


# --- in other people's loops


class Signs(torch.optim.Optimizer):
    """Sign steps written through ``.data``, which no version counter sees."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data.add_(p.grad.sign(), alpha=-group["lr"])


def by_hand(model, make, criterion, x, y):
    """Drop of each candidate's own loss after a step of a copy of the model, in eval mode."""
    drops = []
    for inputs, targets in zip(x, y, strict=True):
        twin = copy.deepcopy(model).eval()
        optimizer = make(twin.parameters())
        before = criterion(twin(inputs), targets).mean()
        before.backward()
        optimizer.step()
        drops.append((before - criterion(twin(inputs), targets).mean()).item())
    return torch.tensor(drops, dtype=torch.float64)


def test_the_version_moves_with_every_sign_of_training_and_no_other(randn):
    model, x = model_of("mlp"), randn(1, 5, 4, 4)
    optimizer = Signs(model.parameters(), 0.01)
    scorer = BatchScorer("delta_abs", model, losses_of, optimizer=optimizer, together=False)

    def moved(act):
        before = scorer.version()
        assert scorer.version() == before
        act()
        return scorer.version() != before

    def train():
        losses_of(model(x[0]), LABELS[0]).mean().backward()

    assert not moved(lambda: scorer(x, LABELS))  # its trial steps, too
    with preserve_state(model):
        assert moved(model.float)
    assert not moved(lambda: model(x[0]))
    assert moved(train)  # accumulation, or a step that a scaler skips
    assert moved(optimizer.step)
    assert moved(lambda: model[1].weight.data.neg_())
    first = model[1].weight.data[0]
    assert moved(lambda: model[1].weight.data[0].copy_(first.flip(0)))
    assert moved(lambda: model[1].bias.data.fill_(math.nan))
    assert not moved(lambda: model[1].bias.data.fill_(math.nan))


def test_an_epoch_of_steps_that_a_scaler_skips_and_of_accumulated_ones(randn):
    model = model_of("mlp")
    pairs = torch.utils.data.TensorDataset(randn(1, 12, 4), LABELS.flatten()[:12])

    class Data(list):
        def __getitem__(self, index):
            return *pairs[index], torch.tensor(index)

    for update in (False, True):  # never, and after every second batch
        g = {"generator": stream(0, "order"), "candidate_generator": stream(0, "candidates")}
        scorer = BatchScorer("min_loss", model, losses_of)
        seen = []
        for index in PerfectOrderingSampler(Data(range(12)), 2, scorer=scorer, **g):
            x, y = pairs[index]
            losses_of(model(x), y).mean().backward()
            seen += index
            if update and len(seen) % 4 == 0:
                torch.optim.SGD(model.parameters(), 0.1).step()
            model.zero_grad()
        assert sorted(seen) == list(range(12))


def linear(features, outputs, seed=0):
    """A layer that takes nothing from the global generator."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Linear(features, outputs)


class Pairs(nn.Module):
    """Scores of all pairs of a batch, as a retrieval model gives them."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (linear(4, 3, seed).double() for seed in (0, 1))

    def forward(self, x):
        left, right = (x["left"], x["right"]) if isinstance(x, dict) else x
        return {"scores": self.first(left) @ self.second(right).T}


def hinges(outputs, y):
    scores = outputs["scores"]
    worst = (1 + scores - scores.diagonal().unsqueeze(1)).clamp(min=0)
    return (worst * (1 - torch.eye(len(scores)))).amax(1)


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("mask", [None, RAGGED], ids=["full", "ragged"])
def test_examples_that_look_at_their_batch_are_scored_in_it(score, together, mask, randn):
    model, x = Pairs(), (randn(1, 5, 4, 4), randn(2, 5, 4, 4))
    target = (x[0][0], x[1][1]), torch.zeros(4)

    def score_of(x, y, mask):
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        options = {"optimizer": optimizer, "target": target, "together": together}
        return BatchScorer(score, model, hinges, **options)(x, y, mask)

    expected = []
    for n in range(5):
        kept = slice(None) if mask is None else mask[n]
        part = tuple(t[n : n + 1, kept] for t in x)
        expected.append(score_of(part, torch.zeros(part[0].shape[:2]), None))
    got = score_of({"left": x[0], "right": x[1]}, torch.zeros(5, 4), mask)
    torch.testing.assert_close(got, torch.cat(expected), rtol=1e-9, atol=1e-12)


def weight_normed(model):
    nn.utils.parametrizations.weight_norm(model[1])
    return model


def tied(model):
    again = linear(6, 3).double()
    again.weight = model[3].weight
    return nn.Sequential(model, nn.Tanh(), nn.ConstantPad1d((0, 3), 0.0), again)


def frozen(model):
    model[1].weight.requires_grad_(False)
    return model


def compiled(model):
    model[1].compile(backend="eager")
    return torch.compile(model, backend="eager")


class Fixed(nn.Module):
    """Cannot be run by ``torch.vmap``: it asks for a number."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) if x.sum().item() > -1e9 else x


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("wrap", [weight_normed, tied, frozen], ids=lambda f: f.__name__)
def test_trial_steps_of_unusual_models_equal_those_by_hand(wrap, together, randn):
    model, x = wrap(model_of("mlp")), randn(1, 5, 4, 4)

    def make(parameters):
        return torch.optim.SGD(parameters, 0.1, weight_decay=0.1)

    optimizer = make(model.parameters())
    got = BatchScorer("delta_abs", model, losses_of, optimizer=optimizer, together=together)
    expected = by_hand(model, make, losses_of, x, LABELS)
    torch.testing.assert_close(got(x, LABELS), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("score", SCORES)
def test_half_precision_scores_are_near_those_in_double(score, dtype, randn):
    actual = []
    for each in (dtype, torch.float64):
        model = model_of("mlp", dtype).to(each)
        x, target = randn(1, 5, 4, 4).to(dtype), randn(2, 6, 4).to(dtype)
        options = {"optimizer": torch.optim.SGD(model.parameters(), 0.5), "together": False}
        options |= {"target": (target.to(each), LABELS.flatten()[:6])}
        actual.append(BatchScorer(score, model, losses_of, **options)(x.to(each), LABELS))
    assert actual[0].dtype == torch.float32
    torch.testing.assert_close(actual[0].double(), actual[1], rtol=0.1, atol=0.03)


def test_compiled_models_are_scored_by_the_module_inside(randn):
    model, x = model_of("mlp"), randn(1, 5, 4, 4)
    options = {"target": (randn(2, 6, 4), LABELS.flatten()[:6])}
    for score in SCORES:
        actual = []
        for each in (model, compiled(copy.deepcopy(model))):
            each(x[0])
            options["optimizer"] = torch.optim.SGD(each.parameters(), 0.1)
            actual.append(BatchScorer(score, each, losses_of, **options)(x, LABELS))
        torch.testing.assert_close(*actual)


@pytest.mark.parametrize("independent", [True, False])
@pytest.mark.parametrize("mask", [None, RAGGED], ids=["full", "ragged"])
def test_alignments_without_forward_mode_are_inner_products(mask, independent, randn):
    with torch.random.fork_rng([]):
        layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    model = nn.Sequential(layer, nn.Flatten(), linear(8, 3)).double().eval()
    x, target = randn(1, 5, 4, 2, 4), (randn(2, 6, 2, 4), LABELS.flatten()[:6])
    kept = [slice(None)] * 5 if mask is None else list(mask)
    along = gradient(model, *target)
    expected = [gradient(model, x[i][kept[i]], LABELS[i][kept[i]]) @ along for i in range(5)]
    scorer = BatchScorer("grad_align", model, losses_of, target=target, independent=independent)
    for _ in range(2):
        torch.testing.assert_close(scorer(x, LABELS, mask), torch.stack(expected))


def test_scoring_in_inference_mode_is_the_same(randn):
    model, x = model_of("mlp"), randn(1, 5, 4, 4)
    for score in SCORES:
        options = {"optimizer": torch.optim.SGD(model.parameters(), 0.1)}
        scorer = BatchScorer(score, model, losses_of, target=(x[0], LABELS[0]), **options)
        expected = scorer(x, LABELS)
        with torch.inference_mode():
            assert torch.equal(scorer(x.clone(), LABELS), expected)
        assert scorer.version() == scorer.version()


def test_what_copies_would_get_wrong_is_refused_by_name_and_done_one_by_one(randn):
    x = randn(1, 5, 4, 4)

    def scored(change, together, wrap=lambda model: model):
        model = wrap(model_of("mlp"))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        change(model, optimizer)
        scorer = BatchScorer("delta_abs", model, losses_of, optimizer=optimizer, together=together)
        return scorer(x, LABELS)

    extra = torch.zeros(1, requires_grad=True)
    for change, named in (
        (lambda m, o: o.register_step_pre_hook(lambda *_: None), "SGD has step hooks"),
        (lambda m, o: m[1].weight.register_hook(lambda g: 0 * g), "1.weight has gradient hooks"),
        (lambda m, o: o.add_param_group({"params": [extra]}), "1 parameters that are not the mod"),
    ):
        with pytest.raises(TypeError, match=rf"{named}.*together=False"):
            scored(change, True)
        assert scored(change, False).isfinite().all()
    with pytest.raises(RuntimeError, match=r"torch.vmap.*together=False"):
        scored(lambda m, o: None, True, Fixed)
    assert scored(lambda m, o: None, False, Fixed).isfinite().all()


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("score", SCORES)
def test_batches_and_losses_of_other_shapes_are_refused(score, together, randn):
    model, x = model_of("mlp"), randn(1, 5, 4, 4)
    options = {"optimizer": torch.optim.SGD(model.parameters(), 0.1), "together": together}
    options |= {"target": (x[0], LABELS[0])}
    scorer = BatchScorer(score, model, losses_of, **options)
    empty = torch.zeros(5, 4, dtype=torch.bool)
    for bad, named in (
        ((x[:0], LABELS[:0]), "N, B >= 1"),
        ((x[:, :0], LABELS[:, :0]), "N, B >= 1"),
        ((x, LABELS[:, :3]), "need candidates"),
        ((x, LABELS, empty), "candidate 0 has no example"),
        ((x, LABELS, empty.long()), "mask must be bool"),
    ):
        with pytest.raises(ValueError, match=named):
            scorer(*bad)
    for criterion in (F.cross_entropy, lambda o, y: losses_of(o, y).unsqueeze(1)):
        with pytest.raises((ValueError, RuntimeError), match="per-example losses"):
            BatchScorer(score, model, criterion, **options)(x, LABELS)


def test_models_without_memory_or_parameters_are_refused(randn):
    for model in (nn.ReLU(), nn.Linear(4, 3, device="meta")):
        scorer = BatchScorer("min_loss", model, losses_of)
        for ask in (scorer.version, lambda scorer=scorer: scorer(randn(1, 5, 4, 4), LABELS)):
            with pytest.raises(ValueError, match="nothing to score with"):
                ask()
    model = frozen(model_of("mlp"))
    for p in model.parameters():
        p.requires_grad_(False)
    options = {"optimizer": torch.optim.SGD(model.parameters(), 0.1)}
    for together in (True, False):
        with pytest.raises(ValueError, match="no parameter that requires gradients"):
            BatchScorer("delta_abs", model, losses_of, together=together, **options)(
                randn(1, 5, 4, 4), LABELS
            )


def test_scorers_and_their_models_can_be_copied(randn):
    model, x = model_of("mlp"), randn(1, 5, 4, 4)
    scorer = BatchScorer("min_loss", model, losses_of)
    scorer.version()
    twin = pickle.loads(pickle.dumps(copy.deepcopy(scorer)))  # noqa: S301 - our own bytes
    assert torch.equal(twin(x, LABELS), scorer(x, LABELS))
    before = twin.version()
    losses_of(model(x[0]), LABELS[0]).mean().backward()
    assert twin.version() == before
    assert not copy.deepcopy(model)[1].weight._backward_hooks
