"""Exact variances: naive loops, enumerated draws, all partitions, and moves against recomputing."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainaug.methods.gradient_clustering import variance
from trainaug.methods.gradient_clustering.variance import (
    best_partition,
    enumerate_estimates,
    exact_moves,
    move_deltas,
    sampling_variance,
    stratified_variance,
    svrg_variance,
    total_distortion,
)

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def labels(n, k, seed=0):
    return torch.randint(k, (n,), generator=torch.Generator().manual_seed(seed))


def strata(assign):
    return [(assign == k).nonzero().squeeze(1).tolist() for k in sorted(set(assign.tolist()))]


def naive_scatter(grads, members):
    center = sum(grads[i] for i in members) / len(members)
    return float(sum(((grads[i] - center) ** 2).sum() for i in members))


def naive_distortion(grads, assign):
    grads = grads.double()
    return sum(len(m) * naive_scatter(grads, m) for m in strata(assign))


def spread(estimates):
    """Trace of the covariance of equally likely values."""
    return float((estimates - estimates.mean(0)).square().sum(1).mean())


def column(values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def gram_of(grads):
    return grads.double() @ grads.double().T


# --- total distortion and its variances


@pytest.mark.oracle("gc.3")
@DTYPES
@pytest.mark.parametrize(("n", "d", "k"), [(1, 1, 1), (7, 3, 2), (20, 50, 6), (30, 4, 30)])
def test_distortion_matches_naive_loop(randn, n, d, k, dtype):
    grads, assign = randn(n, n, d, dtype=dtype) + 3, labels(n, k)
    expected = pytest.approx(naive_distortion(grads, assign), rel=1e-10, abs=1e-20)
    assert float(total_distortion(grads, assign)) == expected
    assert total_distortion(grads, assign).dtype == torch.float64
    # labels are names only, and absent ones are no strata
    assert float(total_distortion(grads, 1000 - 7 * assign)) == expected
    assert float(total_distortion(grads, assign.to(torch.int32))) == expected


def test_distortion_does_not_depend_on_the_blocks(randn, monkeypatch):
    grads, assign = randn(0, 20, 37), labels(20, 4)
    expected = naive_distortion(grads, assign)
    for block in (1, 40, 20 * 37, 10**6):
        monkeypatch.setattr(variance, "BLOCK", block)
        assert float(total_distortion(grads, assign)) == pytest.approx(expected, rel=1e-12)


def test_float32_gradients_far_from_zero_keep_their_scatter(randn):
    grads = randn(0, 50, 3, dtype=torch.float32) + 1000
    assign = labels(50, 4)
    expected = naive_distortion(grads, assign)  # of the rounded values, in float64
    assert float(total_distortion(grads, assign)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.oracle("gc.3")
@pytest.mark.parametrize("k", [1, 2, 5, 12])
def test_scatter_splits_into_within_and_between_for_true_means_only(randn, k):
    grads, assign = randn(1, 12, 6), labels(12, k) if k < 12 else torch.arange(12)
    whole = torch.zeros(12, dtype=torch.int64)

    def sides(center_of):
        within = between = 0.0
        for m in strata(assign):
            center = center_of(grads[m])
            within += float((grads[m] - center).square().sum())
            between += len(m) * float((center - grads.mean(0)).square().sum())
        return within + between

    total = float(total_distortion(grads, whole)) / 12
    assert sides(lambda g: g.mean(0)) == pytest.approx(total, rel=1e-12)
    by_library = sum(
        float(total_distortion(grads[m], whole[: len(m)])) / len(m)
        + len(m) * float((grads[m].mean(0) - grads.mean(0)).square().sum())
        for m in strata(assign)
    )
    assert by_library == pytest.approx(total, rel=1e-12)

    def rank_one(g):  # outer product of mean factors of (2, 3) gradients
        u, s, v = torch.linalg.svd(g.mean(0).view(2, 3), full_matrices=False)
        return s[0] * torch.outer(u[:, 0], v[0]).flatten()

    assert abs(sides(rank_one) - total) > 1e-3 * total


@pytest.mark.oracle("gc.3")
@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(-5, 5), st.integers(0, 3)), min_size=1, max_size=10),
    st.integers(-1000, 1000),
    st.integers(1, 5),
)
def test_distortion_is_half_the_pairs_and_ignores_shifts(rows, shift, scale):
    grads, assign = column([float(g) for g, _ in rows]), torch.tensor([a for _, a in rows])
    pairs = sum((g - h) ** 2 for (g, a), (h, b) in itertools.combinations(rows, 2) if a == b)
    for values, factor in ((grads, 1), (grads + shift, 1), (scale * grads, scale**2)):
        actual = float(total_distortion(values, assign))
        assert actual == pytest.approx(factor * pairs, rel=1e-9, abs=1e-9)


@pytest.mark.oracle("gc.3")
@pytest.mark.oracle("gc.4")
@DTYPES
@pytest.mark.parametrize(
    "assign",
    [
        [0, 0, 0, 0, 0, 0],  # K = 1: one uniform draw
        [0, 1, 2, 3, 4, 5],  # K = N: the full gradient
        [0, 0, 0, 1, 2, 3],
        [4, 4, 9, 9, 9, 0],
        [1, 0, 1, 0, 1, 0],
    ],
    ids=str,
)
def test_enumerated_draws_are_unbiased_and_have_the_variance(randn, assign, dtype):
    grads, assign = randn(2, 6, 4, dtype=dtype), torch.tensor(assign)
    estimates = enumerate_estimates(grads, assign)
    combinations = itertools.product(*strata(assign))
    sizes = [len(m) for m in strata(assign)]
    naive = [sum(n * grads[j] for n, j in zip(sizes, js, strict=True)) / 6 for js in combinations]
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(estimates, torch.stack(naive), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(estimates.mean(0), grads.mean(0), rtol=tolerance, atol=tolerance)
    actual = float(stratified_variance(grads, assign))
    assert actual == pytest.approx(spread(estimates.double()), rel=10 * tolerance, abs=1e-14)
    if len(sizes) == 6:
        assert actual == 0.0
    if len(sizes) == 1:
        assert actual == pytest.approx(float(sampling_variance(grads, 1)), rel=1e-12)


@pytest.mark.oracle("gc.4")
def test_two_draws_from_each_stratum_halve_the_variance(randn):
    grads, assign = randn(3, 5, 3), torch.tensor([0, 0, 1, 1, 1])
    once = enumerate_estimates(grads, assign)
    twice = (once[:, None] + once).flatten(0, 1) / 2
    assert float(stratified_variance(grads, assign, 2)) == pytest.approx(spread(twice), rel=1e-12)


@pytest.mark.oracle("gc.5")
@DTYPES
def test_strata_of_duplicates_have_no_variance(randn, dtype):
    grads = randn(4, 4, 7, dtype=dtype) * 1000
    copies = torch.tensor([0, 1, 2, 3, 0, 1, 0, 0, 3])
    # (1000 eps)^2 for the rounding of the means
    zero = pytest.approx(0.0, abs=1e-24 * 1e6)
    assert float(stratified_variance(grads[copies], copies)) == zero
    assert float(sampling_variance(grads[copies], 4)) > 1
    # more copies in a stratum add nothing
    mixed, other = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([0, 1, 2, 2, 0])
    assert float(total_distortion(grads[mixed], other)) == pytest.approx(
        float(total_distortion(grads[:4], other[:4])), rel=1e-12
    )


@pytest.mark.oracle("gc.8")
@DTYPES
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_uniform_batches_have_the_enumerated_variance(randn, batch_size, dtype):
    grads = randn(5, 5, 3, dtype=dtype)
    draws = [list(i) for i in itertools.product(range(5), repeat=batch_size)]
    means = torch.stack([grads[i].double().mean(0) for i in draws])
    actual = float(sampling_variance(grads, batch_size))
    assert actual == pytest.approx(spread(means), rel=1e-12)
    subsets = [list(i) for i in itertools.combinations(range(5), batch_size)]
    means = torch.stack([grads[i].double().mean(0) for i in subsets])
    without = float(sampling_variance(grads, batch_size, replacement=False))
    assert without == pytest.approx(spread(means), rel=1e-12)
    assert without == pytest.approx(actual * (5 - batch_size) / 4, rel=1e-12)
    double = float(sampling_variance(grads, 2 * batch_size))
    assert double / actual == pytest.approx(0.5, rel=1e-15)  # SG-2B / SG-B
    assert float(sampling_variance(grads, 5, replacement=False)) == 0.0
    assert float(sampling_variance(grads[:1], 1, replacement=False)) == 0.0


@pytest.mark.oracle("gc.10")
@DTYPES
@pytest.mark.parametrize("replacement", [True, False])
def test_svrg_has_the_enumerated_variance_and_none_at_the_snapshot(randn, replacement, dtype):
    grads, snapshot = randn(6, 5, 3, dtype=dtype), randn(7, 5, 3, dtype=dtype)
    draws = [i for i in itertools.product(range(5), repeat=2) if replacement or i[0] != i[1]]
    now, then = grads.double(), snapshot.double()
    values = torch.stack(
        [now[list(i)].mean(0) - then[list(i)].mean(0) + then.mean(0) for i in draws]
    )
    torch.testing.assert_close(values.mean(0), now.mean(0), rtol=1e-12, atol=1e-12)
    actual = float(svrg_variance(grads, snapshot, 2, replacement=replacement))
    assert actual == pytest.approx(spread(values), rel=1e-12)
    assert float(svrg_variance(grads, grads, 2, replacement=replacement)) == 0.0
    assert float(svrg_variance(grads, grads - 3, 2)) == pytest.approx(0.0, abs=1e-13)
    # an old snapshot can be worse than none
    assert float(svrg_variance(grads, -grads, 2)) == pytest.approx(
        4 * float(sampling_variance(grads, 2)), rel=1e-12
    )


# --- when strata hurt


@pytest.mark.parametrize(
    ("groups", "ratio"),
    [
        ([[0, 2], [1]], Fraction(4, 3)),  # the smallest: three examples, two strata
        ([[0, 2], [1], [1], [1], [1], [1]], Fraction(12, 7)),  # six strata, five singletons
        ([[0, 2] * 50, [1], [1], [1], [1], [1]], Fraction(40, 7)),  # 5.71 times; the bound is 6
    ],
    ids=["three", "seven", "hundred"],
)
def test_strata_can_be_worse_than_uniform_draws(groups, ratio):
    grads = column([float(v) for group in groups for v in group])
    assign = torch.tensor([k for k, group in enumerate(groups) for _ in group])
    actual = stratified_variance(grads, assign) / sampling_variance(grads, len(groups))
    assert float(actual) == pytest.approx(float(ratio), rel=1e-12)


def test_equal_random_strata_are_uniform_draws_on_average(randn):
    grads = randn(8, 6, 3)
    halves = [[int(i in half) for i in range(6)] for half in itertools.combinations(range(6), 3)]
    exact = torch.stack([stratified_variance(grads, torch.tensor(a)) for a in halves])
    # two strata are as good as two draws without replacement: (N - K) / (N - 1) of SG-K
    uniform = float(sampling_variance(grads, 2, replacement=False))
    assert float(exact.mean()) == pytest.approx(uniform, rel=1e-12)


# --- moves


@pytest.mark.oracle("gc.6")
@pytest.mark.parametrize(("n", "d", "k"), [(2, 1, 2), (9, 3, 4), (15, 2, 3), (6, 2, 8)])
def test_deltas_are_recomputed_differences(randn, n, d, k):
    grads, assign = randn(n, n, d) + 2, labels(n, k, seed=1)
    actual = move_deltas(gram_of(grads), assign, k)
    before = naive_distortion(grads, assign)
    for i, target in itertools.product(range(n), range(k)):
        moved = assign.clone()
        moved[i] = target
        change = naive_distortion(grads, moved) - before
        assert float(actual[i, target]) == pytest.approx(change, rel=1e-9, abs=1e-9)


@pytest.mark.oracle("gc.6")
def test_costs_need_no_care_for_the_example_itself(randn):
    # S_k + N_k |g_i - C_k|^2 is the same with i counted in S_k, N_k, C_k and without
    grads = randn(9, 8, 3)
    for size in range(2, 9):
        members, i = list(range(size)), 0
        rest = members[1:]
        costs = [
            naive_scatter(grads, m) + len(m) * float((grads[i] - grads[m].mean(0)).square().sum())
            for m in (members, rest)
        ]
        pairs = float((grads[i] - grads[members]).square().sum())
        assert costs == pytest.approx([pairs, pairs], rel=1e-12)


@pytest.mark.oracle("gc.6")
@DTYPES
@pytest.mark.parametrize("seed", range(6))
def test_moves_are_monotone_and_end_where_no_move_helps(randn, seed, dtype):
    n, k = 24, 2 + seed
    grads = randn(seed, n, 4, dtype=dtype) + 5 * randn(seed + 50, 3, 4, dtype=dtype)[labels(n, 3)]
    start, gram = labels(n, k, seed), gram_of(grads)
    values, assign = [naive_distortion(grads, start)], start
    for sweeps in range(20):
        assign = exact_moves(gram, start, k, max_sweeps=sweeps)
        values.append(naive_distortion(grads, assign))
        assert set(assign.tolist()) >= set(start.tolist())  # nothing is emptied
    assert values[1] == values[0]  # no sweep, no move
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0]
    final = exact_moves(gram, start, k)
    assert torch.equal(final, assign)
    assert set(final.tolist()) == set(range(k))  # absent labels were filled
    assert float(move_deltas(gram, final, k).min()) >= -1e-9 * values[0]
    assert torch.equal(exact_moves(gram, final, k), final)
    assert final.dtype == torch.int64


@pytest.mark.oracle("gc.6")
@settings(deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=2, max_size=8), st.integers(1, 4), st.integers(0, 99))
def test_moves_never_raise_the_distortion_of_integers(values, k, seed):
    # with ties, duplicates and absent labels
    grads, start = column([float(v) for v in values]), labels(len(values), k, seed)
    previous = naive_distortion(grads, start)
    for sweeps in (1, 2, 100):
        assign = exact_moves(gram_of(grads), start, k, max_sweeps=sweeps)
        now = naive_distortion(grads, assign)
        assert now <= previous + 1e-12
        previous = now
    assert set(assign.tolist()) >= set(start.tolist())
    assert float(move_deltas(gram_of(grads), assign, k).min()) >= -1e-9


def test_the_state_kept_by_moves_is_the_recomputed_one(randn):
    # many moves in one call against one move at a time with everything computed anew
    grads, k = randn(11, 40, 3), 5
    gram, assign = gram_of(grads), labels(40, 5)
    expected = assign.clone()
    while True:
        gaining = (move_deltas(gram, expected, k) < -1e-9).any(1).nonzero().squeeze(1).tolist()
        if not gaining:
            break
        for i in gaining:
            delta = move_deltas(gram, expected, k)[i]
            if float(delta.min()) < -1e-9:
                expected[i] = delta.argmin()
    assert torch.equal(exact_moves(gram, assign, k), expected)


@pytest.mark.oracle("gc.6")
def test_moves_reach_the_best_partition_from_some_start(randn):
    for seed in range(3):
        grads = randn(seed, 8, 2)
        gram = gram_of(grads)
        _, best = best_partition(grads, 3)
        ends = {
            round(naive_distortion(grads, exact_moves(gram, labels(8, 3, s), 3)), 9)
            for s in range(20)
        }
        assert min(ends) == pytest.approx(best, abs=1e-8)


def test_a_common_part_of_the_gradients_does_not_stop_the_moves(randn):
    grads, start = randn(12, 30, 4), labels(30, 4)
    expected = exact_moves(gram_of(grads), start, 4)
    assert torch.equal(exact_moves(gram_of(grads + 1000), start, 4), expected)
    assert torch.equal(exact_moves(gram_of(grads * 1e-9), start, 4), expected)


# --- the published assignment


def frozen_assignment(values, groups):
    """Send each number to the least size times squared distance, exact; no ties allowed."""
    sizes = [len(g) for g in groups]
    centers = [Fraction(sum(g), len(g)) for g in groups]
    new = [[] for _ in groups]
    for v in values:
        costs = [n * (c - v) ** 2 for n, c in zip(sizes, centers, strict=True)]
        assert len(set(costs)) == len(costs), "a tie"
        new[costs.index(min(costs))].append(v)
    return new


def distortion_of(groups):
    grads = column([float(v) for g in groups for v in g])
    return float(
        total_distortion(grads, torch.tensor([k for k, g in enumerate(groups) for _ in g]))
    )


@pytest.mark.oracle("gc.6")
@pytest.mark.parametrize(
    ("groups", "after", "before_l", "after_l"),
    [
        ([[0, 3], [1]], [[], [0, 1, 3]], 9, 14),  # three examples: all end in one stratum
        ([[0, 2, 4], [1]], [[2], [0, 1, 4]], 24, 26),  # four, and both strata stay in use
        ([[0, 0, 0, 0, 2], [3, 6]], [[0, 0, 0, 0], [2, 3, 6]], 25, 26),  # leaves the optimum
    ],
    ids=["collapse", "rise", "optimum"],
)
def test_published_assignment_can_raise_the_distortion(groups, after, before_l, after_l):
    values = sorted(v for g in groups for v in g)
    actual = frozen_assignment(values, groups)
    assert [sorted(g) for g in actual] == after
    assert distortion_of(groups) == pytest.approx(before_l, rel=1e-12)
    assert distortion_of(actual) == pytest.approx(after_l, rel=1e-12)
    # with what the larger stratum costs its members, the best move never does
    grads = column([float(v) for g in groups for v in g])
    start = torch.tensor([k for k, g in enumerate(groups) for _ in g])
    end = exact_moves(gram_of(grads), start, 2)
    _, best = best_partition(grads, 2)
    assert float(total_distortion(grads, end)) == pytest.approx(best, rel=1e-12)


@pytest.mark.oracle("gc.6")
def test_published_iteration_can_oscillate_above_uniform_sampling():
    groups = [[0, 3, 5], [1]]
    seen = []
    for _ in range(6):
        seen.append(distortion_of(groups))
        groups = frozen_assignment([0, 1, 3, 5], groups)
    assert seen == pytest.approx([38, 42, 38, 42, 38, 42], rel=1e-12)
    grads = column([0.0, 1.0, 3.0, 5.0])
    _, best = best_partition(grads, 2)
    uniform = float(sampling_variance(grads, 2)) * 4**2
    assert (best, uniform) == (5.0, pytest.approx(29.5))


# --- the best partition


@pytest.mark.parametrize(("n", "k"), [(1, 1), (4, 2), (6, 3), (6, 6), (7, 1), (8, 4)])
def test_best_partition_is_the_least_of_all_labelings(randn, n, k):
    grads = randn(n * k, n, 3)
    actual, value = best_partition(grads, k)
    pairs = torch.cdist(grads, grads).square()
    least = min(
        sum(float(pairs[i, j]) for i, j in itertools.combinations(range(n), 2) if a[i] == a[j])
        for a in itertools.product(range(k), repeat=n)
        if len(set(a)) == k and a[0] == 0
    )
    assert value == pytest.approx(least, rel=1e-9, abs=1e-12)
    assert float(total_distortion(grads, actual)) == pytest.approx(value, rel=1e-9, abs=1e-12)
    assert set(actual.tolist()) == set(range(k))
    assert [a for i, a in enumerate(actual.tolist()) if a not in actual.tolist()[:i]] == [*range(k)]


@pytest.mark.oracle("gc.5")
def test_best_partition_finds_duplicates(randn):
    grads = randn(13, 3, 5)[[0, 1, 2, 1, 0, 1]]
    actual, value = best_partition(grads, 3)
    assert actual.tolist() == [0, 1, 2, 1, 0, 1]
    assert value == 0.0


# --- bad input, devices


def test_bad_input_is_named(randn):
    grads, assign = randn(0, 4, 2), torch.tensor([0, 1, 0, 1])
    gram = gram_of(grads)
    for message, call in {
        r"floating \(N, d\).*\(4,\)": lambda: total_distortion(grads[:, 0], assign),
        r"floating \(N, d\).*int64": lambda: total_distortion(grads.long(), assign),
        r"floating \(N, d\).*\(0, 2\)": lambda: total_distortion(grads[:0], assign[:0]),
        r"4 integer labels.*\(3,\)": lambda: total_distortion(grads, assign[:3]),
        "4 integer labels.*float64": lambda: total_distortion(grads, assign.double()),
        "draws.*got 0": lambda: stratified_variance(grads, assign, 0),
        "no batch of 0": lambda: sampling_variance(grads, 0),
        "no batch of 5 among 4": lambda: sampling_variance(grads, 5, replacement=False),
        r"\(4, 2\), \(3, 2\)": lambda: svrg_variance(grads, grads[:3], 1),
        "float64.*float32": lambda: exact_moves(gram.float(), assign, 2),
        r"\(4, 2\)": lambda: move_deltas(gram[:, :2], assign, 2),
        r"in \[0, 1\), got 0 to 1": lambda: exact_moves(gram, assign, 1),
        "got -1 to 1": lambda: move_deltas(gram, torch.tensor([0, 1, -1, 0]), 2),
        "4 integer.*float64": lambda: exact_moves(gram, assign.double(), 2),
        "max_sweeps.*got -1": lambda: exact_moves(gram, assign, 2, max_sweeps=-1),
        "11 examples": lambda: best_partition(randn(0, 11, 2), 2),
        "4 examples into 5": lambda: best_partition(grads, 5),
        "4 examples into 0": lambda: best_partition(grads, 0),
        "too many.*17, 17, 17, 17": lambda: enumerate_estimates(
            randn(0, 68, 1), torch.arange(68) % 4
        ),
        "4 gradients": lambda: enumerate_estimates(grads, assign[:3]),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
    for bad in (float("nan"), float("inf")):
        broken = grads.clone()
        broken[2, 1] = bad
        for call in (
            lambda g: total_distortion(g, assign),
            lambda g: svrg_variance(grads, g, 1),
            lambda g: exact_moves(gram_of(g), assign, 2),
            lambda g: best_partition(g, 2),
        ):
            with pytest.raises(FloatingPointError, match="not finite"):
                call(broken)


def test_arguments_are_left_alone(randn):
    grads, assign = randn(1, 9, 2), labels(9, 3)
    gram = gram_of(grads)
    copies = [t.clone() for t in (grads, assign, gram)]
    everything(grads, assign)
    exact_moves(gram, assign, 3)
    assert all(map(torch.equal, copies, (grads, assign, gram)))


def everything(grads, assign):
    gram = grads @ grads.T
    return (
        total_distortion(grads, assign),
        stratified_variance(grads, assign, 2),
        sampling_variance(grads, 2, replacement=False),
        svrg_variance(grads, grads * 2, 2),
        move_deltas(gram, assign, 4),
        exact_moves(gram, assign, 4),
        best_partition(grads, 2),
        enumerate_estimates(grads, assign),
    )


def test_inside_a_meta_context_values_are_the_same(same_inside_meta, randn):
    same_inside_meta(everything, randn(0, 9, 3), labels(9, 3))


@pytest.mark.gpu
def test_on_cuda_values_are_the_same(same_on_cuda, randn):
    same_on_cuda(lambda grads, assign: everything(grads, assign)[:5], randn(0, 9, 3), labels(9, 3))


# --- other types


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.bool])
def test_labels_of_any_integer_type_are_the_same(dtype):
    grads = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assign, gram = torch.tensor([1, 0, 1, 1, 0, 0]), grads @ grads.T
    for call in (
        lambda labels: total_distortion(grads, labels),
        lambda labels: stratified_variance(grads, labels),
        lambda labels: enumerate_estimates(grads, labels),
        lambda labels: move_deltas(gram, labels, 2),
        lambda labels: exact_moves(gram, labels, 2),
    ):
        assert torch.equal(call(assign.to(dtype)), call(assign))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_accumulated_in_a_wider_type(dtype):
    grads = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    assign = torch.arange(9) % 3
    wide = grads.double()
    assert total_distortion(grads, assign) == total_distortion(wide, assign)
    actual, expected = enumerate_estimates(grads, assign), enumerate_estimates(wide, assign)
    assert actual.dtype == dtype
    bound = 0.6 * torch.finfo(dtype).eps  # one rounding, at the end
    torch.testing.assert_close(actual.double(), expected, rtol=bound, atol=1e-6)
