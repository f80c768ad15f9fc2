"""Chunked losses against those of the whole matrix, and both against pytorch-metric-learning."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.reducers import SumReducer
from torch.utils._python_dispatch import TorchDispatchMode

from trainaug.methods.hard_negatives import (
    MaxOfHinges,
    SumOfHinges,
    chunked_max_of_hinges,
    chunked_sum_of_hinges,
    cosine_scores,
    group_mask,
)

TWINS = [(chunked_sum_of_hinges, SumOfHinges), (chunked_max_of_hinges, MaxOfHinges)]
GROUPS = torch.tensor([0, 1, 0, 2, 3, 3, 4, 0, 5, 6, 5])
ROUNDING = {torch.float32: 2e-5, torch.float64: 1e-13}  # a few dozen terms of order one


def with_gradients(call, *tensors):
    leaves = [t.clone().requires_grad_() for t in tensors]
    value = call(*leaves)
    return value.detach(), *torch.autograd.grad(value.sum(), leaves)


@pytest.mark.oracle("vse.1")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("margin", [0.0, 0.2, 2.0])
@pytest.mark.parametrize("chunk_size", [1, 3, 4, 11, 1024])
@pytest.mark.parametrize(("chunked", "loss"), TWINS)
def test_chunked_losses_equal_those_of_the_matrix(
    chunked, loss, chunk_size, margin, grouped, dtype, randn
):
    pairs = 0.4 * randn(3, 11, 5, dtype=dtype), 0.4 * randn(4, 11, 5, dtype=dtype)
    groups, mask = (GROUPS, group_mask(GROUPS)) if grouped else (None, None)
    expected = with_gradients(lambda x, y: loss(margin, "none")(x @ y.T, mask), *pairs)
    options = {"margin": margin, "chunk_size": chunk_size}
    got = with_gradients(lambda x, y: chunked(x, y, groups, **options), *pairs)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=ROUNDING[dtype], atol=ROUNDING[dtype])


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
@pytest.mark.parametrize(("chunked", "loss"), TWINS)
def test_reductions_are_those_of_the_matrix(chunked, loss, reduction, randn):
    pairs = randn(3, 11, 5), randn(4, 11, 5)
    expected = with_gradients(lambda x, y: loss(0.2, reduction)(x @ y.T), *pairs)
    got = with_gradients(lambda x, y: chunked(x, y, chunk_size=4, reduction=reduction), *pairs)
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("chunk_size", [1, 2, 5])
@pytest.mark.parametrize(("chunked", "loss"), TWINS)
def test_corners_with_few_or_equal_negatives(chunked, loss, chunk_size, randn):
    x, y = randn(5, 5, 4), randn(6, 5, 4)
    for groups in (torch.full((5,), 7), torch.tensor([1, 1, 1, 1, 0])):
        mask = group_mask(groups)
        expected = with_gradients(lambda x, y, m=mask: loss(0.2, "none")(x @ y.T, m), x, y)
        got = with_gradients(lambda x, y, g=groups: chunked(x, y, g, chunk_size=chunk_size), x, y)
        torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-13)
    for part in with_gradients(lambda x, y: chunked(x, y, chunk_size=chunk_size), x[:1], y[:1]):
        assert torch.equal(part, torch.zeros_like(part))  # a batch of one, with a graph
    same = F.normalize(x[:1], dim=1).expand(5, -1)
    plateau = chunked(same, same, chunk_size=chunk_size)
    torch.testing.assert_close(plateau, loss(0.2, "none")(same @ same.T))


@pytest.mark.oracle("vse.8")
@pytest.mark.parametrize("chunk_size", [1, 2, 4])
def test_of_equal_negatives_one_takes_the_gradient(chunk_size):
    pictures, captions = torch.eye(4).double(), torch.eye(4).double()
    got = with_gradients(
        lambda x, y: chunked_max_of_hinges(x, y, margin=1.5, chunk_size=chunk_size),
        pictures,
        captions,
    )
    expected = with_gradients(lambda x, y: MaxOfHinges(1.5, "none")(x @ y.T), pictures, captions)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))  # the first one, too


@pytest.mark.oracle("vse.11")
@pytest.mark.parametrize(("chunked", "loss"), TWINS)
def test_gradients_pass_gradcheck_away_from_kinks(chunked, loss, randn):
    x, y, groups = randn(8, 5, 3), randn(9, 5, 3), torch.tensor([0, 0, 1, 2, 3])
    scores, off = x @ y.T, ~torch.eye(5, dtype=torch.bool)
    for s in (scores, scores.T):  # steps are 1e-6
        assert float((0.2 - s.diagonal() + s)[off].abs().min()) > 1e-3
        assert float(s.sort(0).values.diff(dim=0).min()) > 1e-3
    assert torch.autograd.gradcheck(
        lambda x, y: chunked(x, y, groups, chunk_size=2), (x.requires_grad_(), y.requires_grad_())
    )


class Largest(TorchDispatchMode):
    """Remember the number of entries of the largest tensor made."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for t in made if isinstance(made, (tuple, list)) else [made]:
            self.entries = max(self.entries, t.numel() if isinstance(t, torch.Tensor) else 0)
        return made


@pytest.mark.parametrize(("chunked", "loss"), TWINS)
def test_chunked_losses_never_hold_all_scores(chunked, loss, randn):
    size, chunk_size = 96, 8
    pairs = randn(5, size, 4), randn(6, size, 4)

    def footprint(call):
        """Entries of the largest tensor, and of all that the backward pass waits for."""
        kept = {}
        hooks = torch.autograd.graph.saved_tensors_hooks
        with Largest() as made, hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
            with_gradients(call, *pairs)
        return made.entries, sum(t.numel() for t in kept.values())

    largest, kept = footprint(lambda x, y: chunked(x, y, chunk_size=chunk_size))
    assert largest == size * chunk_size
    assert kept < size * size / 3
    largest, kept = footprint(lambda x, y: loss()(x @ y.T))  # the probe sees what there is
    assert largest == size * size
    assert kept >= size * size or loss is MaxOfHinges


@pytest.mark.parametrize("chunk_size", [1, 3, 11])
@pytest.mark.parametrize(("chunked", "loss"), TWINS)
def test_what_is_not_finite_shows_in_every_chunk(chunked, loss, chunk_size, randn):
    for bad in (math.nan, math.inf):
        for side in (0, 1):
            pair = randn(5, 2, 11, 4)
            pair[side, 7] = bad
            got = chunked(*pair, chunk_size=chunk_size)
            expected = loss(0.2, "none")(pair[0] @ pair[1].T)
            assert torch.equal(got.isfinite(), expected.isfinite())
            assert not got[7].isfinite()
            alone = chunked(*pair[:, 7:8], chunk_size=chunk_size)  # a pair without negatives
            assert not alone.isfinite().any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("chunked", "loss"), TWINS)
def test_half_embeddings_are_multiplied_in_single(chunked, loss, dtype, randn):
    x, y = (40 * randn(seed, 50, 30).to(dtype) for seed in (5, 6))  # products above 65504
    got = with_gradients(lambda x, y: chunked(x, y, margin=1e4, chunk_size=8), x, y)
    wide = with_gradients(lambda x, y: loss(1e4, "none")(x @ y.T), x.double(), y.double())
    assert got[0].dtype == torch.float32
    torch.testing.assert_close(got[0].double(), wide[0], rtol=1e-5, atol=1e-3)
    for a, b in zip(got[1:], wide[1:], strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, rtol=torch.finfo(dtype).eps, atol=1e-3)
    mixed = chunked(x.float(), y, margin=1e4, chunk_size=8)
    assert torch.equal(mixed, got[0])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(chunked(x.float(), y.float(), margin=1e4, chunk_size=8), got[0])


@pytest.mark.parametrize(("chunked", "loss"), TWINS)
def test_function_transforms_and_graphs_give_the_same_numbers(chunked, loss, randn):
    x, y = randn(5, 2, 6, 4), randn(6, 2, 6, 4)

    def call(x, y):
        return chunked(x, y, chunk_size=4)

    expected = [with_gradients(call, *pair) for pair in zip(x, y, strict=True)]
    values, slopes, _ = (torch.stack(parts) for parts in zip(*expected, strict=True))
    assert torch.equal(torch.vmap(call)(x, y), values)
    gradients = torch.vmap(torch.func.grad(lambda x, y: call(x, y).sum()))
    assert torch.equal(gradients(x, y), slopes)
    compiled = torch.compile(call, fullgraph=True, backend="eager")
    assert all(map(torch.equal, with_gradients(compiled, x[0], y[0]), expected[0]))
    assert call(x[0].to("meta"), y[0].to("meta")).is_meta


def test_bad_input_is_refused():
    x = torch.zeros(3, 2)
    for chunked, _ in TWINS:
        with pytest.raises(ValueError, match=r"embeddings must be floating, got torch\.int64"):
            chunked(x.long(), x.long())
        with pytest.raises(ValueError, match="one device, got cpu and meta"):
            chunked(x, x.to("meta"))
        with pytest.raises(ValueError, match="groups are on meta, embeddings on cpu"):
            chunked(x, x, torch.arange(3, device="meta"))
        with pytest.raises(ValueError, match=r"integer type, got torch\.bfloat16"):
            chunked(x, x, torch.arange(3).bfloat16())
    for chunked, _ in TWINS:
        for bad in ((x, x[:2]), (x, x[:, :1]), (x[0], x[0]), (x[:0], x[:0])):
            with pytest.raises(ValueError, match=r"need embeddings \(B, D\) twice"):
                chunked(*bad)
        with pytest.raises(ValueError, match=r"groups must have shape \(3,\), got \(2,\)"):
            chunked(x, x, torch.arange(2))
        for name, wrong in (("margin", -1), ("chunk_size", 0), ("reduction", "max")):
            with pytest.raises(ValueError, match=f"{name} must be.*got '?{wrong}"):
                chunked(x, x, **{name: wrong})


# --- an independent library


def metric_learning(x, y, labels, ref_labels, hardest):
    """Sum over both directions of the library's triplet loss with cosine similarity."""
    criterion = TripletMarginLoss(margin=0.2, distance=CosineSimilarity(), reducer=SumReducer())
    miner = BatchHardMiner(distance=CosineSimilarity())
    total = 0.0
    for query, gallery in ((x, y), (y, x)):
        actual = miner(query, labels, gallery, ref_labels) if hardest else None
        total += criterion(query, labels, actual, ref_emb=gallery, ref_labels=ref_labels)
    return total


@pytest.mark.oracle("vse.13")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("chunked", "loss"), TWINS)
def test_metric_learning_library_agrees_if_labels_are_cloned(chunked, loss, dtype, randn):
    pairs, labels = (randn(7, 17, 5, dtype=dtype), randn(8, 17, 5, dtype=dtype)), torch.arange(17)
    hardest = loss is MaxOfHinges
    theirs = with_gradients(
        lambda x, y: metric_learning(x, y, labels, labels.clone(), hardest), *pairs
    )
    exact = {"rtol": 10 * ROUNDING[dtype], "atol": 10 * ROUNDING[dtype]}  # sums of 500 terms
    for ours in (
        lambda x, y: loss()(cosine_scores(x, y)),
        lambda x, y: chunked(F.normalize(x), F.normalize(y), chunk_size=5).sum(),
    ):
        torch.testing.assert_close(with_gradients(ours, *pairs), theirs, **exact)
    assert float(theirs[0]) > 10
    assert float(metric_learning(*pairs, labels, labels, hardest)) == 0.0  # drops the true pairs


@pytest.mark.oracle("vse.14")
@pytest.mark.parametrize("loss", [SumOfHinges, MaxOfHinges])
def test_metric_learning_library_differs_if_labels_repeat(loss, randn):
    x, y, labels = randn(7, 17, 5), randn(8, 17, 5), torch.arange(17) // 2
    theirs = metric_learning(x, y, labels, labels.clone(), loss is MaxOfHinges)
    ours = loss()(cosine_scores(x, y), group_mask(labels))
    assert float(theirs - ours) > 1  # it pairs every positive, or takes the hardest one


# --- devices


def everything(x, y):
    groups = GROUPS.to(x.device)
    options = {"chunk_size": 3}
    results = [chunked(x, y, g, **options) for chunked, _ in TWINS for g in (None, groups)]
    return [*results, *with_gradients(lambda x, y: chunked_sum_of_hinges(x, y, **options), x, y)]


def test_inside_a_meta_context_values_are_the_same(same_inside_meta, randn):
    same_inside_meta(everything, randn(10, 11, 5), randn(11, 11, 5))


@pytest.mark.gpu
def test_on_cuda_values_are_the_same(same_on_cuda, randn):
    same_on_cuda(everything, randn(10, 11, 5), randn(11, 11, 5))
