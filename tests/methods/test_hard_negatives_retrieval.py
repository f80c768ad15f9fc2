"""Scores against loops; ranks and recalls against a sort, scipy, sklearn, the authors' script."""

from __future__ import annotations

import math
import statistics
from dataclasses import astuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata
from sklearn.metrics import top_k_accuracy_score

from trainaug.methods.hard_negatives import (
    RetrievalMetrics,
    cosine_scores,
    folded_metrics,
    order_scores,
    retrieval_metrics,
    retrieval_ranks,
    rsum,
)

TIES = {"pessimistic": "max", "expected": "average", "optimistic": "min"}  # in scipy's words


# --- scores


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 3), (4, 9)])
def test_scores_match_loops(rows, columns, dtype, randn):
    x, y = randn(1, rows, 6, dtype=dtype), randn(2, columns, 6, dtype=dtype)
    cosine = [
        [sum(map(float.__mul__, a, b)) / math.hypot(*a) / math.hypot(*b) for b in y.tolist()]
        for a in x.tolist()
    ]
    order = [
        [
            -math.dist([max(0.0, q - p) for p, q in zip(a, b, strict=True)], [0.0] * 6)
            for b in y.tolist()
        ]
        for a in x.tolist()
    ]
    exact = {"rtol": 0, "atol": 1e-6 if dtype == torch.float32 else 1e-14}
    torch.testing.assert_close(cosine_scores(x, y), torch.tensor(cosine, dtype=dtype), **exact)
    for chunk_size in (1, 2, 64):
        got = order_scores(x, y, chunk_size=chunk_size)
        torch.testing.assert_close(got, torch.tensor(order, dtype=dtype), **exact)
    torch.testing.assert_close(cosine_scores(3 * x, y / 7), cosine_scores(x, y), **exact)


@pytest.mark.oracle("vse.11")
@pytest.mark.parametrize("scored", [cosine_scores, order_scores])
def test_scores_of_zero_vectors_have_a_finite_gradient(scored, randn):
    x, y = randn(3, 3, 4), randn(4, 3, 4)
    x[1], y[2] = 0, 0
    leaves = x.clone().requires_grad_(), y.clone().requires_grad_()
    scores = scored(*leaves)
    for slope in torch.autograd.grad(scores.sum(), leaves):
        assert bool(slope.isfinite().all())
    if scored is cosine_scores:
        assert scores[1].tolist() == scores[:, 2].tolist() == [0.0] * 3
        x[0, 0] = math.nan
        assert scored(x, y).isnan().tolist() == [[True] * 3, [False] * 3, [False] * 3]
    inside = (x[2:].abs() + 1).requires_grad_()  # above the caption: no violation, at the kink
    (slope,) = torch.autograd.grad(order_scores(inside, torch.zeros(1, 4).double()).sum(), inside)
    assert slope.tolist() == [[0.0] * 4]


SCORES = [cosine_scores, order_scores]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scored", SCORES)
def test_half_embeddings_are_scored_in_single(scored, dtype, randn):
    x, y = (randn(seed, 6, 40).to(dtype) for seed in (1, 2))
    x[1], y[2] = 0, 0
    if scored is cosine_scores:
        x[3] *= 6e4 / x[3].abs().max()  # longer than the largest float16
    leaves = x.clone().requires_grad_(), y.clone().requires_grad_()
    scores = scored(*leaves)
    assert scores.dtype == dtype
    rounding = {"rtol": torch.finfo(dtype).eps, "atol": 1e-6}
    torch.testing.assert_close(scores.double(), scored(x.double(), y.double()), **rounding)
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(scores.sum(), leaves))
    if scored is cosine_scores:
        assert scores[1].tolist() == scores[:, 2].tolist() == [0.0] * 6
    wide = scored(x.float(), y)  # two types: the wider one
    assert wide.dtype == torch.float32
    assert torch.equal(wide.to(dtype), scores)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(scored(x.float(), y.float()), wide)


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-13, 1e13, 1e25, 1e37])
def test_cosines_do_not_depend_on_length(scale, randn):
    x, y = (randn(seed, 3, 5, dtype=torch.float32) for seed in (1, 2))
    leaf = (scale * x).requires_grad_()
    scores = cosine_scores(leaf, y)
    rounding = 1e-3 if scale < 1e-38 else 1e-6  # few digits are left of such numbers
    torch.testing.assert_close(scores, cosine_scores(x, y), rtol=0, atol=rounding)
    (slope,) = torch.autograd.grad(scores.sum(), leaf)
    unscaled = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(cosine_scores(unscaled, y).sum(), unscaled)
    if scale > 1e-38:
        torch.testing.assert_close(slope * scale, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scored", SCORES)
def test_scores_pass_function_transforms(scored, randn):
    x, y = randn(1, 2, 3, 5), randn(2, 2, 4, 5)
    expected = torch.stack([scored(*pair) for pair in zip(x, y, strict=True)])
    torch.testing.assert_close(torch.vmap(scored)(x, y), expected, rtol=1e-13, atol=1e-13)
    compiled = torch.compile(scored, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x[0], y[0]), expected[0])
    assert scored(x[0].to("meta"), y[0].to("meta")).shape == (3, 4)
    assert scored(x[0, :0], y[0]).shape == (0, 4)


def test_scores_refuse_bad_input():
    x = torch.zeros(3, 2)
    for scored in SCORES:
        for kind in (torch.int64, torch.bool, torch.complex64):
            for pair in ((x, x.to(kind)), (x.to(kind), x)):
                with pytest.raises(ValueError, match=f"must be floating, got .*{kind}"):
                    scored(*pair)
        with pytest.raises(ValueError, match="one device, got cpu and meta"):
            scored(x, x.to("meta"))
    for scored in (cosine_scores, order_scores):
        for bad in (torch.zeros(2), torch.zeros(3, 4), torch.zeros(3, 2, 1)):
            for pair in ((x, bad), (bad, x)):
                with pytest.raises(ValueError, match=r"need \(B, D\) and \(M, D\), got"):
                    scored(*pair)
    with pytest.raises(ValueError, match=r"chunk_size.*0"):
        order_scores(x, x, chunk_size=0)


# --- ranks


def sorted_rank(row, query, ids):
    """Sort the gallery, negatives before positives of equal score: where is the first positive?"""
    gallery = sorted(zip(row, ids, strict=True), key=lambda item: (-item[0], item[1] == query))
    return [owner == query for _, owner in gallery].index(True)


@st.composite
def galleries(draw):
    """Scores in quarters, any number of positives for each query, and all ids in disorder."""
    kinds = draw(st.integers(1, 4))
    ids = st.lists(st.integers(0, kinds - 1), max_size=8)
    gallery = draw(ids.flatmap(lambda extra: st.permutations([*range(kinds), *extra])))
    queries = draw(st.lists(st.integers(0, kinds - 1), min_size=1, max_size=7))
    size = len(queries) * len(gallery)
    quarters = draw(st.lists(st.integers(-4, 4), min_size=size, max_size=size))
    scores = torch.tensor(quarters, dtype=torch.float64).reshape(len(queries), -1) / 4
    return scores, torch.tensor(queries), torch.tensor(gallery)


@pytest.mark.oracle("vse.9")
@given(galleries())
@settings(max_examples=150, deadline=None)
def test_ranks_equal_those_of_a_sort_and_of_scipy(problem):
    scores, queries, gallery = problem
    ranks = {ties: retrieval_ranks(*problem, ties=ties) for ties in TIES}
    naive = [
        sorted_rank(row, query, gallery.tolist())
        for row, query in zip(scores.tolist(), queries.tolist(), strict=True)
    ]
    assert ranks["pessimistic"].tolist() == naive
    assert torch.equal(retrieval_ranks(*problem), ranks["pessimistic"])
    for ties, method in TIES.items():
        for row, query, rank in zip(scores, queries, ranks[ties], strict=True):
            best = row[gallery == query].max()
            field = torch.cat([-row[gallery != query], -best[None]])
            assert rankdata(field, method)[-1] - 1 == rank
    assert all(r.dtype == torch.float64 and r.shape == (len(queries),) for r in ranks.values())


@given(galleries(), st.randoms(use_true_random=False), st.sampled_from(sorted(TIES)))
@settings(max_examples=100, deadline=None)
def test_ranks_do_not_depend_on_order_or_scale(problem, random, ties):
    scores, queries, gallery = problem
    expected = retrieval_ranks(*problem, ties=ties)
    rows, columns = list(range(len(queries))), list(range(len(gallery)))
    random.shuffle(rows)
    random.shuffle(columns)
    moved = scores[rows][:, columns], queries[rows], gallery[columns]
    assert torch.equal(retrieval_ranks(*moved, ties=ties), expected[rows])
    assert torch.equal(retrieval_ranks(scores.exp(), queries, gallery, ties), expected)
    assert torch.equal(retrieval_ranks(scores.float(), queries, gallery, ties), expected)


@pytest.mark.oracle("vse.5")
@pytest.mark.parametrize("size", [2, 12, 100])
def test_constant_scores_are_worth_nothing_unless_ties_help(size):
    ids, flat = torch.arange(size), torch.full((size, size), 0.3)
    pessimistic = RetrievalMetrics(*(100.0 * (size <= k) for k in (1, 5, 10)), size, size)
    assert retrieval_metrics(flat, ids, ids) == pessimistic
    trap = retrieval_metrics(flat, ids, ids, ties="optimistic")
    assert trap == RetrievalMetrics(100.0, 100.0, 100.0, 1.0, 1.0)
    expected = retrieval_metrics(flat, ids, ids, ties="expected")
    assert expected.mean_r == (size + 1) / 2  # as of a random order
    assert expected.med_r == math.floor((size - 1) / 2) + 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_ranks_of_half_scores_are_those_of_their_values(dtype, randn):
    scores, ids = randn(3, 30, 60).to(dtype).requires_grad_(), torch.arange(60) % 30
    for ties in TIES:
        got = retrieval_ranks(scores, ids[:30], ids.to(torch.uint8), ties)
        assert torch.equal(got, retrieval_ranks(scores.double(), ids[:30], ids, ties))
    folded = folded_metrics(scores, ids[:30], ids, 3)
    assert folded == folded_metrics(scores.double(), ids[:30], ids, 3)


# --- metrics


def scores_of_ranks(ranks, size=40):
    """Scores for which query q, whose positive is item q, has the rank asked for."""
    scores = torch.zeros(len(ranks), size)
    for query, rank in enumerate(ranks):
        others = [item for item in range(size) if item != query]
        scores[query, others[:rank]] = 1.0
        scores[query, query] = 0.5
    return scores, torch.arange(len(ranks)), torch.arange(size)


@pytest.mark.oracle("vse.10")
@pytest.mark.parametrize(
    ("ranks", "median", "from_one"),
    [
        ([0], 1, 1),
        ([3], 4, 4),
        ([9, 0, 4], 5, 5),
        ([0, 1], 1, 1.5),  # the floor is taken before 1 is added
        ([30, 0], 16, 16),
        ([0, 1, 2, 3], 2, 2.5),
        ([9, 2, 3, 1], 3, 3.5),
        ([0, 3, 3, 4], 4, 4),
        ([0, 0, 1, 30], 1, 1.5),
        ([5, 5, 6, 7, 8], 7, 7),
    ],
)
def test_median_and_mean_rank_conventions(ranks, median, from_one):
    got = retrieval_metrics(*scores_of_ranks(ranks))
    assert got.med_r == median
    assert median == np.floor(np.median(ranks)) + 1
    assert from_one == statistics.median(rank + 1 for rank in ranks)
    assert got.mean_r == pytest.approx(statistics.mean(ranks) + 1, rel=1e-15)


def test_recalls_count_ranks_below_k():
    got = retrieval_metrics(*scores_of_ranks([0, 1, 4, 5, 9, 10, 0, 30]))
    assert astuple(got) == (25.0, 50.0, 75.0, 5.0, 59 / 8 + 1)
    assert rsum(got, got) == 300.0
    assert rsum(got) == 150.0
    best = retrieval_metrics(*scores_of_ranks([0, 0]))
    assert rsum(best, best) == 600.0


def authors_protocol(scores):
    """Evaluate as the source's script: five captions a picture in turn, ranks by argsort."""
    to_caption = np.array(
        [
            min(np.where(np.argsort(row)[::-1] == 5 * n + k)[0][0] for k in range(5))
            for n, row in enumerate(scores)
        ]
    )
    to_image = np.array(
        [
            np.where(np.argsort(column)[::-1] == caption // 5)[0][0]
            for caption, column in enumerate(scores.T)
        ]
    )
    return [
        (*(100.0 * np.mean(r < k) for k in (1, 5, 10)), np.floor(np.median(r)) + 1, r.mean() + 1)
        for r in (to_caption, to_image)
    ]


@pytest.mark.oracle("vse.9")
def test_metrics_match_the_authors_script_and_sklearn(randn):
    images, captions = torch.arange(40), torch.arange(40).repeat_interleave(5)
    scores = randn(1, 40, 200) + 1.5 * (images.unsqueeze(1) == captions)
    to_caption = retrieval_metrics(scores, images, captions)
    to_image = retrieval_metrics(scores.T, captions, images)
    for got, expected in zip((to_caption, to_image), authors_protocol(scores.numpy()), strict=True):
        assert astuple(got) == pytest.approx(expected, rel=1e-14)
    for k, recall in zip((1, 5, 10), astuple(to_image)[:3], strict=True):
        assert recall == pytest.approx(100 * top_k_accuracy_score(captions, scores.T, k=k))
    assert to_caption.r1 > to_image.r1  # the best of five


@pytest.mark.oracle("vse.9")
@pytest.mark.parametrize("num_folds", [1, 2, 3, 5])
def test_folds_are_cut_by_picture_and_averaged(num_folds, randn):
    g = torch.Generator().manual_seed(num_folds)
    images = torch.randperm(30, generator=g)[:17] * 11
    owner = torch.cat([torch.arange(17), torch.randint(17, (25,), generator=g)])
    captions = images[owner[torch.randperm(42, generator=g)]]
    scores = randn(2, 17, 42) + 1.2 * (images.unsqueeze(1) == captions)
    parts = []
    for rows in np.array_split(np.arange(17), num_folds):
        own_captions = [c for c in range(42) if captions[c] in images[rows]]
        part = scores[rows][:, own_captions]
        ids = images[rows], captions[own_captions]
        parts.append((retrieval_metrics(part, *ids), retrieval_metrics(part.T, *ids[::-1])))
    got = folded_metrics(scores, images, captions, num_folds)
    for direction in (0, 1):
        mean = np.mean([astuple(part[direction]) for part in parts], axis=0)
        assert astuple(got[direction]) == pytest.approx(mean, rel=1e-14)
    whole = retrieval_metrics(scores.T, captions, images)
    assert (got[1] == whole) == (num_folds == 1)
    assert got[1].mean_r <= whole.mean_r  # fewer pictures to confuse


# --- refusals


def test_bad_input_is_refused():
    scores, ids = torch.zeros(3, 4), torch.arange(4)
    for call in (retrieval_ranks, retrieval_metrics, lambda *args: folded_metrics(*args, 1)):
        for bad in (
            (ids, ids),
            (ids[:3], ids[:3]),
            (ids[:3, None], ids),
            (ids[:3], torch.tensor(1)),
        ):
            with pytest.raises(ValueError, match=r"scores \(3, 4\) need that many ids, got \("):
                call(scores, *bad)
        for bad in (scores[0], scores[:0], scores[None]):
            with pytest.raises(ValueError, match=r"scores must have shape \(Q, G\), Q >= 1, got"):
                call(bad, ids[:3], ids)
        for value in (math.nan, math.inf, -math.inf):
            broken = scores.index_fill(1, torch.tensor(2), value)
            with pytest.raises(ValueError, match=f"scores must be finite, row 0 holds {value}"):
                call(broken, ids[:3], ids % 3)
        with pytest.raises(ValueError, match=r"scores must be floating, got torch\.int64"):
            call(scores.long(), ids[:3], ids % 3)
        with pytest.raises(ValueError, match="ids of the columns are on meta, the scores on cpu"):
            call(scores, ids[:3], ids.to("meta"))
        with pytest.raises(ValueError, match="meta device have no values"):
            call(scores.to("meta"), ids[:3].to("meta"), ids.to("meta"))
        with pytest.raises(ValueError, match=r"ids of the rows .* got torch\.float16"):
            call(scores, ids[:3].half(), ids % 3)
        with pytest.raises(ValueError, match="ids of the columns must be finite"):
            call(scores, ids[:3], ids * math.nan)
    for call in (retrieval_ranks, retrieval_metrics):
        with pytest.raises(ValueError, match="query 1 has no positive"):
            call(scores, torch.tensor([0, 9, 3]), ids)
        with pytest.raises(ValueError, match="query 0 has no positive"):
            call(scores[:, :0], ids[:3], ids[:0])
        with pytest.raises(ValueError, match=r"ties.*'random'"):
            call(scores, ids[:3], ids, "random")
    for num_folds in (0, 4):
        with pytest.raises(ValueError, match=rf"num_folds must be in \[1, 3\], got {num_folds}"):
            folded_metrics(scores, ids[:3], ids % 3, num_folds)
    with pytest.raises(ValueError, match="image_ids repeat"):
        folded_metrics(scores, torch.tensor([0, 1, 0]), ids % 2, 1)
    with pytest.raises(ValueError, match="caption 3 belongs to none of the pictures"):
        folded_metrics(scores, ids[:3], ids, 1)
    with pytest.raises(ValueError, match="query 1 has no positive"):  # a picture without caption
        folded_metrics(scores, ids[:3], ids * 0 + 2 * (ids > 1), 1)


# --- devices


def everything(x, y, ids):
    scores = cosine_scores(x, y)
    results = [scores, order_scores(x, y, chunk_size=2), folded_metrics(scores, ids[:5], ids, 2)]
    results += [retrieval_ranks(scores.T, ids, ids[:5], ties) for ties in TIES]
    return [*results, retrieval_metrics(scores, ids[:5], ids)]


IDS = torch.tensor([4, 0, 3, 1, 2, 2, 0, 1, 4])


def test_inside_a_meta_context_values_are_the_same(same_inside_meta, randn):
    same_inside_meta(everything, randn(10, 5, 3), randn(11, 9, 3), IDS)


@pytest.mark.gpu
def test_on_cuda_values_are_the_same(same_on_cuda, randn):
    same_on_cuda(everything, randn(10, 5, 3), randn(11, 9, 3), IDS)
