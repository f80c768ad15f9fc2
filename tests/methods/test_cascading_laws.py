"""Laws of the mixes: torchvision's MixUp, Dirichlet weights, contrast, and their own randomness."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import pickle
import threading
from functools import cache
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from scipy import stats
from test_cascading_mixing import KINDS, MODES, mixer
from torch.utils.data import DataLoader, TensorDataset, default_collate
from torchvision.transforms import v2

from trainaug.data import registry
from trainaug.methods.cascading_sum import (
    CascadeSchedule,
    PlateauCascade,
    equalise_variance,
    sum_mix,
)
from trainaug.methods.cascading_sum.shared import SharedCount
from trainaug.training.randomness import stream

# --- mixup


@pytest.mark.oracle("csa.Q4")
@pytest.mark.parametrize("alpha", [0.2, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_two_samples_and_a_beta_weight_are_torchvisions_mixup(seed, alpha, randn):
    x = randn(seed, 8, 3, 4, 4, dtype=torch.float32)
    y = torch.arange(8) % 5
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        mixed, soft = v2.MixUp(alpha=alpha, num_classes=5)(x, y)
        torch.manual_seed(seed)
        concentration = torch.tensor([alpha])
        lam = float(torch.distributions.Beta(concentration, concentration).sample(()))
    assert torch.equal(mixed, x.mul(lam) + x.roll(1, 0).mul(1 - lam))  # bit for bit
    rows = torch.arange(8)
    groups, weights = torch.stack([rows, (rows - 1) % 8]), torch.tensor([lam, 1 - lam])
    ours, labels = sum_mix(x, torch.eye(5)[y], groups, weights)
    # embedding_bag fuses product and sum, which saves one rounding of a product
    rounding = torch.finfo(torch.float32).eps * torch.maximum(x.abs(), x.roll(1, 0).abs())
    assert bool(((ours - mixed).abs() <= rounding).all())
    torch.testing.assert_close(labels, soft, rtol=0, atol=1.2e-7)


# --- weights


@cache
def drawn_weights(k, alpha, count):
    """Weights of many single mixes, ``(count, K)``, the first sample's first."""
    mix = mixer(k, classes=k, alpha=alpha)
    batch = torch.eye(k), torch.arange(k), torch.arange(k)
    actual = []
    for _ in range(count):
        (row,), (label,), (first,) = mix(*batch)
        assert torch.equal(row, label)
        actual.append(torch.cat([row[first : first + 1], row[:first], row[first + 1 :]]))
    return torch.stack(actual).double()


@pytest.mark.oracle("csa.Q5")
@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
@pytest.mark.parametrize("k", [2, 3])
def test_weights_are_those_of_torchs_dirichlet(k, alpha):
    for seed in range(5):
        mixed, _, first = mixer(k, classes=k, alpha=alpha, seed=seed)(
            torch.eye(k), torch.arange(k), torch.arange(k)
        )
        with torch.random.fork_rng():
            torch.manual_seed(stream(seed, "mix").initial_seed())
            order = torch.randperm(k)
            expected = torch.distributions.Dirichlet(torch.full((k,), alpha)).sample()
        assert torch.equal(mixed[0, order], expected)
        assert first.tolist() == order[:1].tolist()


@pytest.mark.oracle("csa.Q5")
@pytest.mark.parametrize("alpha", [0.4, 1.0])
def test_two_weights_have_the_law_of_a_beta(alpha):
    weights = drawn_weights(2, alpha, 10_000)[:, 0].numpy()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reference = torch.distributions.Beta(alpha, alpha).sample((10_000,)).double().numpy()
    # a right law fails one of these four with probability 0.004
    assert stats.ks_2samp(weights, reference).pvalue > 1e-3
    assert stats.kstest(weights, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


@pytest.mark.oracle("csa.Q6")
def test_mixup_weights_of_alpha_1_are_uniform():
    assert stats.kstest(drawn_weights(2, 1.0, 10_000)[:, 0].numpy(), "uniform").pvalue > 1e-3


@pytest.mark.oracle("csa.Q6")
@pytest.mark.parametrize("alpha", [0.4, 1.0, 5.0])
@pytest.mark.parametrize("k", [2, 4])
def test_weights_have_mean_and_variance_of_a_dirichlet(k, alpha):
    weights = drawn_weights(k, alpha, 10_000 if (k, alpha) in ((2, 0.4), (2, 1.0)) else 2500)
    variance = (k - 1) / (k**2 * (k * alpha + 1))
    deviations = (weights - 1 / k).square()
    # four standard errors, from the draws
    for values, expected in ((weights, 1 / k), (deviations, variance)):
        error = 4 * values.std(0) / len(values) ** 0.5
        assert bool(((values.mean(0) - expected).abs() <= error).all())
    torch.testing.assert_close(deviations.mean().item(), variance, rtol=0.06, atol=0)


@pytest.mark.parametrize("alpha", [0.01, 0.05])
def test_a_small_alpha_gives_one_sample_and_not_equal_weights(alpha):
    weights = drawn_weights(2, alpha, 2000)
    between = float(((weights > 0.01) & (weights < 0.99)).any(1).double().mean())
    # the share of Beta(alpha, alpha) between, and four standard errors of a share of 2000
    share = stats.beta(alpha, alpha).cdf(0.99) - stats.beta(alpha, alpha).cdf(0.01)
    assert abs(between - share) < 4 * math.sqrt(share / 2000)


@pytest.mark.oracle("csa.Q6")
def test_a_large_alpha_gives_equal_weights():
    weights = drawn_weights(4, 1e8, 50)
    # a standard deviation is 1/4 sqrt(3 / 4e8) = 2e-5
    torch.testing.assert_close(weights, torch.full_like(weights, 0.25), rtol=0, atol=1e-4)


@pytest.mark.parametrize("alpha", [0.4, 1.0])
def test_pixels_have_independent_weights_and_labels_equal_ones(alpha):
    x = torch.tensor([0.0, 1.0]).view(2, 1, 1).expand(2, 50, 50)
    mix = mixer(kind="pixel", alpha=alpha)
    (mixed,), labels = mix(x, torch.tensor([0, 1]))
    assert stats.kstest(mixed.flatten().numpy(), stats.beta(alpha, alpha).cdf).pvalue > 1e-3
    assert labels.tolist() == [[0.5, 0.5, 0.0]]
    shares = mixed - 0.5
    for other in (shares.roll(1, 0), shares.roll(1, 1)):
        correlation = (shares * other).mean() / shares.square().mean()
        assert abs(float(correlation)) < 4 / 50  # four standard errors of 2500 pixels


@pytest.mark.parametrize("alpha", [None, 1.0])
def test_given_weights_are_those_of_images_and_labels(alpha, randn):
    schedule = CascadeSchedule([(3, 0.5), (1, 0.5)], 8, mode="smooth")
    mix, plain = mixer(2, classes=6, alpha=alpha), mixer(3, classes=6)
    for step in range(4):
        weights = schedule.weights(step)
        mix.set_weights(weights)
        mixed, labels, first = mix(torch.eye(6), torch.arange(6), torch.arange(6))
        assert torch.equal(mixed, labels)
        shares = mixed.gather(1, first.unsqueeze(1)).flatten()
        assert torch.equal(shares, weights[0].expand(2))
        expected = torch.tensor([0.0] * 3 + sorted(weights.tolist()))
        assert torch.equal(mixed.sort(1).values, expected.expand(2, 6))
        plain(torch.eye(6), torch.arange(6))  # equal weights: nothing is drawn for either
        assert torch.equal(mix.generator.get_state(), plain.generator.get_state())


# --- contrast


def test_equal_variance_divides_by_the_length_of_the_weights(randn):
    x, mean = randn(0, 4, 3), randn(1, 3)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    expected = mean + (x - mean) / math.sqrt(0.25 + 0.09 + 0.04)
    actual = equalise_variance(x, weights, mean)
    torch.testing.assert_close(actual, expected, rtol=1e-14, atol=0)
    assert torch.equal(equalise_variance(x, torch.ones(1)), x)
    y = torch.arange(4) % 3
    half, _ = mixer(4, rescale=True)(x.half(), y)  # about 0: doubles the contrast
    torch.testing.assert_close(half, 2 * mixer(4)(x.half(), y)[0], rtol=2e-3, atol=0)


@pytest.fixture(scope="module")
def digits():
    arrays = registry.load("digits")
    return torch.tensor(np.asarray(arrays["train_x"]), dtype=torch.float32).flatten(1) / 16


@pytest.mark.oracle("csa.Q14")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("k", [2, 4, 8])
def test_mixes_lose_contrast_and_rescaling_restores_it(k, mode, digits):
    mean = digits.mean(0)
    y = torch.zeros(len(digits), dtype=torch.int64)
    clean = (digits - mean).square().mean()

    def contrast(**options):
        mix, mixes = mixer(k, mode=mode, **options), []
        while sum(map(len, mixes)) < 4000:
            mixes.append(mix(digits, y)[0])
        return float((torch.cat(mixes) - mean).square().mean() / clean)

    assert contrast() == pytest.approx(1 / k, rel=0.05)
    assert contrast(rescale=True, mean=mean) == pytest.approx(1, rel=0.05)
    assert contrast(rescale=True, mean=mean, alpha=1.0) == pytest.approx(1, rel=0.05)
    # one draw of weights a batch: shorter vectors only tell that it lies between
    assert 1 / k < contrast(alpha=1.0) < 1


# --- randomness


def mixes_of(kind, count, seed=0):
    mix, x = mixer(3, kind=kind, alpha=1.0, seed=seed), torch.eye(7)
    for _ in range(count):
        yield mix(x, torch.arange(7) % 3)


@pytest.mark.oracle("csa.Q11")
@pytest.mark.parametrize("kind", KINDS)
def test_other_draws_do_not_matter(kind):
    expected = list(mixes_of(kind, 4))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        before, actual = torch.get_rng_state(), []
        for mixed in mixes_of(kind, 4):
            actual.append(mixed)
            assert torch.equal(torch.get_rng_state(), before)
            torch.rand(3)
            before = torch.get_rng_state()
    for a, b in zip(itertools.chain(*actual), itertools.chain(*expected), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(expected[0][0], expected[1][0])
    assert not torch.equal(next(mixes_of(kind, 1, seed=1))[0], expected[0][0])


def collate(mix, rows):
    return mix(*default_collate(rows))


def loader_of(mix, seed=0, *, rows=12, **options):
    """Four batches of ``rows`` in which every example has a class of its own."""
    data = TensorDataset(torch.eye(rows).repeat(4, 1), torch.arange(rows).repeat(4))
    options = {"num_workers": 2, "timeout": 120, "multiprocessing_context": "fork"} | options
    together, generator = functools.partial(collate, mix), stream(seed, "loader")
    return DataLoader(data, rows, collate_fn=together, generator=generator, **options)


@pytest.mark.oracle("csa.Q11")
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_workers_of_a_loader_do_not_share_draws(kind, persistent):
    mix = mixer(2, kind=kind, classes=12, alpha=1.0)

    def epochs(mix, seed):
        loader = loader_of(mix, seed, persistent_workers=persistent)
        return [x for _ in range(2) for x, _ in loader]

    untouched = mix.generator.get_state()
    actual = epochs(
        mix, 0
    )  # batches 0 and 2 of an epoch come from one worker, 1 and 3 from another
    assert torch.equal(mix.generator.get_state(), untouched)
    assert len(actual) == 8
    for a, b in itertools.combinations(actual, 2):
        assert not torch.equal(a, b)
        assert a[0].max() != b[0].max()  # nor the weights
    if kind == "sum":
        assert all(map(torch.equal, epochs(mix, 0), actual))
        assert not any(map(torch.equal, epochs(mix, 1), actual))
        other = mixer(2, classes=12, alpha=1.0, seed=1)  # as on another rank
        assert not any(map(torch.equal, epochs(other, 0), actual))


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_workers_follow_the_cascade(kind, persistent):
    mix = mixer(4, kind=kind, classes=12, alpha=None if kind == "sum" else 1.0)
    loader = loader_of(mix, num_workers=1, persistent_workers=persistent)
    cascade = PlateauCascade(4, patience=1, stop_patience=1)
    for k in (4, 2, 1):
        assert cascade.k == k
        mix.num_groups = cascade.k
        assert {len(x) for x, _ in loader} == {12 // k}
        while k > 1 and cascade.step(0.5) != "next_stage":
            pass
    if kind == "sum":
        schedule = CascadeSchedule([(3, 0.5), (1, 0.5)], 8, mode="smooth")
        for step in (1, 3, 5):
            mix.set_weights(schedule.weights(step))
            for _, labels in loader:
                shares = labels.sort(1, descending=True).values[:, : mix.num_groups]
                assert torch.equal(shares, schedule.weights(step).expand_as(shares))


def test_a_spawned_process_shares_the_count_and_a_copy_does_not(monkeypatch):
    mix = mixer(3, alpha=1.0)
    copies = [copy.deepcopy(mix), pickle.loads(pickle.dumps(mix))]  # noqa: S301
    with monkeypatch.context() as patch:  # as while a process is being spawned
        patch.setattr("trainaug.methods.cascading_sum.mixing.get_spawning_popen", lambda: True)
        sent = bytes(ForkingPickler.dumps(mix))
    spawned = pickle.loads(sent)  # noqa: S301
    mix.num_groups = 2
    assert [twin.num_groups for twin in (*copies, spawned)] == [3, 3, 2]
    mix.num_groups = 3
    batch = torch.eye(6), torch.arange(6) % 3
    expected = mix(*batch)
    for twin in (*copies, spawned):
        assert all(map(torch.equal, twin(*batch), expected))


def test_counts_and_weights_are_read_together():
    """A reader in another thread never sees the K of one write with the weights of another."""
    count, torn, done = SharedCount(2), [], threading.Event()

    def read():
        while not done.is_set():
            k, weights = count.read()
            if weights is not None and weights.tolist() != [k] * k:
                torn.append((k, weights))

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(3000):
        k = 2 + turn % 200
        count.write(k, torch.full((k,), float(k)))
    done.set()
    reader.join()
    assert not torn
