"""Mixing K samples: naive loops, who is in a mix, labels, kinds of input, refusals."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from trainaug.methods.cascading_sum import PixelMix, SingleLabelMix, SumMix, sum_mix
from trainaug.training.randomness import RandomBatchSampler, stream

KINDS = {"sum": SumMix, "single": SingleLabelMix, "pixel": PixelMix}
MODES = ["groups", "pairing"]
# Sums of up to 8 products of standard normals, in another order or fused.
CLOSE = {torch.float32: {"rtol": 0, "atol": 2e-6}, torch.float64: {"rtol": 0, "atol": 4e-15}}


def mixer(k=2, *, classes=3, kind="sum", seed=0, **options):
    return KINDS[kind](k, num_classes=classes, generator=stream(seed, "mix"), **options)


def members(n, k, **options):
    """Count how often each sample is in each mix, ``(B, N)``, and return the first ones."""
    batch = torch.eye(n), torch.arange(n), torch.arange(n)
    mixed, labels, first = mixer(k, classes=n, **options)(*batch)
    torch.testing.assert_close(mixed, labels, rtol=0, atol=1e-6)  # who, told by both
    counts = (mixed * k).round()
    torch.testing.assert_close(mixed * k, counts, rtol=0, atol=1e-6)  # 1/K is rounded
    return counts.long(), first


# --- naive loops


def add_up(rows, groups, weights):
    """Add up rows one by one, in double precision; ``weights[g][j]`` are numbers or tensors."""
    mixed = torch.zeros(len(groups[0]), *rows.shape[1:], dtype=torch.float64)
    for g, group in enumerate(groups):
        for j, i in enumerate(group):
            mixed[j] += weights[g][j] * rows[i].double()
    return mixed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("drawn", [None, "shared", "own"])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4)], ids=str)
@pytest.mark.parametrize(("k", "rows"), [(1, 1), (1, 4), (2, 2), (3, 5), (8, 3)])
def test_sum_mix_matches_naive_loop(k, rows, shape, drawn, dtype, randn):
    x, labels = randn(0, 6, *shape, dtype=dtype), randn(1, 6, 3, dtype=dtype).softmax(1)
    groups = torch.randint(6, (k, rows), generator=stream(0, "groups"))  # repeats too
    weights = {"shared": randn(2, k), "own": randn(2, k, rows)}.get(drawn)
    plain = torch.full((k, rows), 1 / k, dtype=torch.float64)
    if weights is not None:
        weights = weights.softmax(0).to(dtype)
        plain = weights.double().view(k, -1).expand(k, rows)
    mixed, soft = sum_mix(x, labels, groups, weights)
    assert mixed.dtype == soft.dtype == dtype
    expected = add_up(x, groups.tolist(), plain)
    torch.testing.assert_close(mixed.double(), expected, **CLOSE[dtype])
    expected = add_up(labels, groups.tolist(), plain)
    torch.testing.assert_close(soft.double(), expected, **CLOSE[dtype])


def replayed_groups(n, k, mode, remainder, g):
    """Draw what a mixer draws for its groups, as lists."""
    if mode == "pairing":
        others = [torch.randperm(n, generator=g).tolist() for _ in range(k - 1)]
        return [list(range(n)), *others]
    order = torch.randperm(n, generator=g).tolist()
    if remainder == "wrap":
        order += order[: -n % k]
    rows = len(order) // k
    return [order[i * rows : (i + 1) * rows] for i in range(k)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("alpha", [None, 0.4])
@pytest.mark.parametrize("mode", ["drop", "wrap", "pairing"])
@pytest.mark.parametrize("kind", KINDS)
def test_mixers_match_a_naive_loop(kind, mode, alpha, dtype, randn):
    mode, remainder = ("pairing", "drop") if mode == "pairing" else ("groups", mode)
    for n, k in ((7, 3), (6, 2), (2, 2), (9, 4)):
        if kind == "pixel" and alpha is None:
            continue
        x, y = randn(n, n, 2, 3, dtype=dtype), torch.arange(n) % 3
        mix = mixer(k, kind=kind, seed=n, mode=mode, remainder=remainder, alpha=alpha)
        mixed, labels, index = mix(x, y, torch.arange(n))
        g = stream(n, "mix")
        groups = replayed_groups(n, k, mode, remainder, g)
        rows = len(groups[0])
        weights = torch.full((k, rows), 1 / k, dtype=torch.float64)
        label_weights = weights
        if kind == "pixel":
            drawn = torch._sample_dirichlet(torch.full((rows, 2, 3, k), alpha), generator=g)
            weights = drawn.movedim(-1, 0).double()  # (K, B, 2, 3)
        elif alpha is not None:
            drawn = torch._sample_dirichlet(torch.full((k,), alpha), generator=g)
            weights = label_weights = drawn.double().unsqueeze(1).expand(k, rows)
        if kind == "single":
            groups_of_labels, label_weights = groups[:1], [[1.0] * rows]
        else:
            groups_of_labels = groups
        torch.testing.assert_close(mixed.double(), add_up(x, groups, weights), **CLOSE[dtype])
        expected = add_up(F.one_hot(y, 3), groups_of_labels, label_weights)
        torch.testing.assert_close(labels.double(), expected, **CLOSE[torch.float32])
        assert index.tolist() == groups[0]
        assert torch.equal(mix.generator.get_state(), g.get_state())  # and draws no more


@pytest.mark.oracle("csa.Q1")
@pytest.mark.parametrize("alpha", [None, 1.0])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_one_sample_is_no_mix_and_draws_nothing(kind, mode, alpha, randn):
    x, y = randn(0, 5, 2, dtype=torch.float32), torch.tensor([0, 2, 1, 1, 0])
    index = torch.arange(5)
    mix = mixer(1, kind=kind, mode=mode, alpha=alpha, rescale=kind != "pixel")
    before = mix.generator.get_state()
    mixed, labels, kept = mix(x, y, index)
    assert torch.equal(mixed, x)
    assert torch.equal(labels, F.one_hot(y, 3).float())
    assert torch.equal(kept, index)
    assert torch.equal(mix.generator.get_state(), before)
    alone, label = mixer(1, mode=mode)(x[:1], y[:1])  # the smallest batch
    assert torch.equal(alone, x[:1])
    assert label.tolist() == [[1.0, 0.0, 0.0]]


# --- labels and convexity

BATCHES = st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))
SEEDS = st.integers(0, 10**6)
EVERY = settings(max_examples=80, deadline=None)


@pytest.mark.oracle("csa.Q2")
@given(BATCHES, SEEDS, st.sampled_from(MODES), st.sampled_from([None, 0.3, 5.0]))
@EVERY
def test_labels_are_distributions_and_shares_of_k(sizes, seed, mode, alpha):
    n, k = sizes
    y = torch.randint(4, (n,), generator=stream(seed, "y"))
    options = {"mode": mode, "alpha": alpha, "seed": seed, "classes": 4}
    _, soft = mixer(k, **options)(torch.zeros(n, 1), y)
    torch.testing.assert_close(soft.sum(1), torch.ones(len(soft)), rtol=0, atol=1e-6)
    assert bool((soft >= 0).all())
    _, same = mixer(k, **options)(torch.zeros(n, 1), torch.full((n,), 2))
    expected = torch.tensor([0.0, 0.0, 1.0, 0.0]).expand_as(same)
    if alpha is None:
        assert torch.equal(soft, (soft * k).round() / k)  # the float nearest to m / K
        assert torch.equal(same, expected)
    else:
        torch.testing.assert_close(same, expected, rtol=0, atol=1e-6)


@pytest.mark.oracle("csa.Q3")
@given(BATCHES, SEEDS, st.sampled_from(MODES), st.sampled_from([None, 0.3, 5.0]))
@EVERY
def test_mixes_lie_between_their_samples(sizes, seed, mode, alpha):
    n, k = sizes
    g = stream(seed, "x")
    x, y = torch.rand(n, 3, generator=g), torch.zeros(n, dtype=torch.int64)
    for kind in ["sum", "single"] if alpha is None else KINDS:
        mix = mixer(k, kind=kind, mode=mode, alpha=alpha, seed=seed)
        mixed, _ = mix(x, y)
        groups = torch.arange(n).unsqueeze(0)
        if k > 1:
            groups = torch.tensor(replayed_groups(n, k, mode, "drop", stream(seed, "mix")))
        lowest, highest = x[groups].amin(0), x[groups].amax(0)
        assert bool(((lowest - 1e-6 <= mixed) & (mixed <= highest + 1e-6)).all())
        constant, _ = mix(x[:1].expand(n, 3), y)
        torch.testing.assert_close(constant, x[:1].expand(len(mixed), 3), rtol=0, atol=1e-6)


@pytest.mark.oracle("csa.Q7")
@pytest.mark.parametrize("k", [1, 2, 3, 8])
def test_soft_loss_is_the_mean_of_hard_losses(k, randn):
    logits, y = randn(0, 24, 5), torch.arange(24) % 5
    counts, _ = members(24, k)
    rows = torch.arange(len(counts))
    # column g holds the g-th member of each mix
    chosen = torch.tensor([[i for i, c in enumerate(row) for _ in range(c)] for row in counts])
    _, soft = mixer(k, classes=5)(torch.zeros(24, 1), y)
    z = logits[rows].requires_grad_()
    hard = torch.stack([F.cross_entropy(z, y[chosen[:, g]]) for g in range(k)]).mean()
    mixed = F.cross_entropy(z, soft.double())
    assert mixed.item() == pytest.approx(hard.item(), abs=1e-6)
    written_out = -(soft.double() * z.log_softmax(1)).sum(1).mean()
    assert mixed.item() == pytest.approx(written_out.item(), abs=1e-12)
    slopes = [torch.autograd.grad(loss, z, retain_graph=True)[0] for loss in (hard, mixed)]
    torch.testing.assert_close(*slopes, rtol=0, atol=1e-6)


# --- who is in a mix


@pytest.mark.oracle("csa.Q8")
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_groups_use_every_sample_once(k):
    for n in range(k, 4 * k + 1):  # all residues
        left = n % k
        counts, first = members(n, k, remainder="drop")
        assert counts.shape == (n // k, n)
        assert counts.sum(1).tolist() == [k] * (n // k)
        assert sorted(counts.sum(0).tolist()) == [0] * left + [1] * (n - left)
        assert bool((counts[torch.arange(len(first)), first] == 1).all())
        counts, first = members(n, k, remainder="wrap")
        rows = math.ceil(n / k)
        assert counts.shape == (rows, n)
        assert counts.sum(1).tolist() == [k] * rows
        again = k * rows - n
        assert sorted(counts.sum(0).tolist()) == [1] * (n - again) + [2] * again
        assert len(set(first.tolist())) == rows
        if left:
            with pytest.raises(ValueError, match=f"a batch of {n} cannot be cut into {k} groups"):
                members(n, k, remainder="error")
        else:
            counts, _ = members(n, k, remainder="error")
            assert counts.sum(0).tolist() == [1] * n


@pytest.mark.oracle("csa.Q8")
@pytest.mark.parametrize("remainder", ["drop", "wrap", "error"])
@given(BATCHES, SEEDS)
@EVERY
def test_pairing_uses_every_sample_k_times(remainder, sizes, seed):
    n, k = sizes
    counts, first = members(n, k, mode="pairing", remainder=remainder, seed=seed)
    assert counts.sum(0).tolist() == counts.sum(1).tolist() == [k] * n
    assert first.tolist() == list(range(n))
    assert bool((counts.diagonal() >= 1).all())


@pytest.mark.oracle("csa.Q8")
@pytest.mark.oracle("csa.Q9")
@pytest.mark.parametrize(("n", "rows"), [(64, 4), (70, 4), (31, 2)])
def test_an_epoch_has_whole_mixed_batches_and_each_index_once(n, rows):
    mix = mixer(8, classes=n)
    for k in (8, 4, 2, 1):
        mix.num_groups = k
        order = RandomBatchSampler(n, rows * k, stream(k, "order"), drop_last=True)
        used, batches = torch.zeros(n), 0
        for indices in order:
            mixed, labels = mix(torch.eye(n)[indices], torch.tensor(indices))
            assert len(mixed) == len(labels) == rows
            used, batches = used + mixed.sum(0) * k, batches + 1
        assert batches == n // (rows * k)
        assert sorted(used.round().tolist()) == [0] * (n % (rows * k)) + [1] * (batches * rows * k)
