"""Thresholds of the samplers that let examples sleep, against NumPy; and bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainaug.methods.gradient_clustering.snooze import (
    RandomSnoozeSampler,
    SnoozeSampler,
    snooze_threshold,
)
from trainaug.training.randomness import stream

TINY = math.exp(-20)
TAUS = {
    "absolute": [0.0, 0.01, math.inf],
    "mean": [0.0, 0.5, 1.0, 2.0],
    "median": [0.0, 0.5, 1.0],
    "percentile": [0.0, 12.5, 50.0, 90.0, 100.0],
    "sigma": [-1.0, 0.0, 0.5, 2.0],
    "log_sigma": [-1.0, 0.0, 0.5, 2.0],
    "cumulative": [0.0, 0.1, 0.5, 1.0],
}
CASES = [(rule, tau) for rule, taus in TAUS.items() for tau in taus]


def by_numpy(alpha, rule, tau):
    a = np.array(alpha, dtype=np.float64)
    if rule == "absolute":
        return tau
    if rule == "mean":
        return tau * np.mean(a)
    if rule == "median":
        return tau * sorted(alpha)[len(alpha) // 2]
    if rule == "percentile":
        return np.percentile(a, tau)
    if rule == "cumulative":
        best, total, threshold = math.inf, 0.0, 0.0
        for value in sorted(alpha):
            total += value
            if abs(total - tau * sum(sorted(alpha))) < best:
                best, threshold = abs(total - tau * sum(sorted(alpha))), value
        return threshold
    kept = a[a >= TINY]
    if rule == "sigma":
        return np.mean(kept) - tau * np.std(kept)
    return np.exp(np.mean(np.log(kept)) - tau * np.std(np.log(kept)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rule", "tau"), CASES)
def test_thresholds_equal_numpy(rule, tau, dtype, randn):
    for n in (1, 2, 3, 10, 101):
        alpha = (2 * randn(n, n)).exp().to(dtype)
        expected = by_numpy(alpha.double().tolist(), rule, tau)
        # float64 sums of 101 numbers, and a difference of two of them for the sigmas
        got = snooze_threshold(alpha, rule, tau)
        assert got == pytest.approx(expected, rel=1e-11, abs=1e-11)
        assert isinstance(got, float)


@given(st.permutations(list(range(9))), st.sampled_from(CASES))
@settings(max_examples=60, deadline=None)
def test_thresholds_do_not_depend_on_the_order(order, case):
    alpha = torch.tensor([0.1, 3.0, 0.2, 0.2, 1e-12, 7.0, 0.5, 0.4, 2.0])
    assert snooze_threshold(alpha[order], *case) == snooze_threshold(alpha, *case)


@given(st.sampled_from([0.25, 1.0, 3.0, 16.0]), st.sampled_from(CASES))
@settings(max_examples=60, deadline=None)
def test_relative_thresholds_scale_with_the_losses(factor, case):
    rule, tau = case
    if rule == "absolute":
        return
    alpha = torch.tensor([0.1, 3.0, 0.2, 0.2, 7.0, 0.5, 0.4, 2.0], dtype=torch.float64)
    # rounding of a dozen operations
    scaled = factor * snooze_threshold(alpha, rule, tau)
    assert snooze_threshold(factor * alpha, rule, tau) == pytest.approx(scaled, rel=1e-13)


def test_thresholds_by_hand():
    alpha = torch.tensor([8.0, 1.0, 2.0, 4.0])
    expected = {
        ("absolute", 0.1): 0.1,
        ("mean", 2.0): 7.5,
        ("median", 1.0): 4.0,  # the upper one
        ("percentile", 50.0): 3.0,
        ("percentile", 90.0): 4 + 0.7 * 4,
        ("sigma", 2.0): 3.75 - 2 * (7.1875**0.5),  # 85/4 - 3.75^2
        ("log_sigma", 2.0): 2 ** (1.5 - 2 * 1.25**0.5),
        ("cumulative", 0.2): 2.0,  # sums 1 3 7 15 of 15, and 3 is the share
        ("cumulative", 1 / 3): 2.0,  # 5 is as near to 3 as to 7
        ("cumulative", 0.34): 4.0,
        ("cumulative", 1.0): 8.0,
        ("cumulative", 0.0): 1.0,
    }
    for (rule, tau), value in expected.items():
        assert snooze_threshold(alpha, rule, tau) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(("rule", "tau"), [c for c in CASES if c[0] in ("sigma", "log_sigma")])
def test_tiny_losses_are_left_out_of_the_sigmas(rule, tau):
    alpha = torch.tensor([0.3, 1.0, 0.01], dtype=torch.float64)
    tiny = torch.tensor([0.0, 1e-9, 2e-9], dtype=torch.float64)  # e^-20 is 2.06e-9
    assert snooze_threshold(torch.cat([tiny, alpha]), rule, tau) == snooze_threshold(
        alpha, rule, tau
    )
    assert snooze_threshold(tiny, rule, tau) == TINY > float(tiny.max())  # all sleep
    above = torch.tensor([2.1e-9], dtype=torch.float64)
    assert snooze_threshold(above, rule, tau) == pytest.approx(2.1e-9, rel=1e-13)


def test_equal_losses_all_stay_awake():
    """Where the threshold is their common value; ``log`` and ``exp`` may miss it by rounding."""
    alpha = torch.full((1000,), 0.1)
    for rule, tau in [("mean", 1), ("median", 1), ("percentile", 37), ("sigma", 2)]:
        assert snooze_threshold(alpha, rule, tau) == float(alpha[0])
    assert snooze_threshold(alpha, "cumulative", 0.5) == float(alpha[0])
    assert snooze_threshold(alpha, "log_sigma", 2) == pytest.approx(0.1, rel=1e-6)


def test_thresholds_leave_their_argument_and_its_graph_alone():
    alpha = torch.tensor([3.0, 1.0, 2.0], requires_grad=True)
    for case in CASES:
        snooze_threshold(alpha, *case)
    assert alpha.tolist() == [3.0, 1.0, 2.0]


def all_rules(alpha):
    return [snooze_threshold(alpha, *case) for case in CASES]


def test_inside_a_meta_context_thresholds_are_the_same(same_inside_meta, randn):
    same_inside_meta(all_rules, randn(0, 20).exp())


@pytest.mark.gpu
def test_on_cuda_thresholds_are_the_same(same_on_cuda, randn):
    same_on_cuda(all_rules, randn(0, 20).exp())


# --- bad input


@pytest.mark.parametrize(
    ("rule", "tau"),
    [
        ("mean", -0.1),
        ("mean", math.inf),
        ("median", -1.0),
        ("percentile", 100.5),
        ("percentile", -1.0),
        ("cumulative", 1.5),
        ("sigma", math.inf),
        ("log_sigma", -math.inf),
        ("absolute", math.nan),
        ("mean", math.nan),
    ],
)
def test_tau_out_of_range_raises_with_rule_and_value(rule, tau):
    with pytest.raises(ValueError, match=f"tau of the rule {rule} must be in .*, got {tau}"):
        snooze_threshold(torch.ones(3), rule, tau)
    with pytest.raises(ValueError, match=f"tau of the rule {rule} must be in .*, got {tau}"):
        SnoozeSampler(4, 2, stream(0, "order"), rule=rule, tau=tau)


@pytest.mark.parametrize("alpha", [[], [[1.0]], [1.0, math.nan], [math.inf]])
def test_alpha_of_another_kind_raises(alpha):
    with pytest.raises(ValueError, match="alpha must be finite of shape"):
        snooze_threshold(torch.tensor(alpha), "mean", 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "mode"}, "rule must be one of absolute.*'mode'"),
        ({"kind": "cubic"}, "kind exponential or linear, got 'cubic'"),
        ({"min_batches": 0}, "min_batches >= 1, got 0"),
        ({"warmup_epochs": -1}, "warmup_epochs >= 0, got -1"),
        ({"beta": 1.0}, r"beta in \[0, 1\), got 1.0"),
        ({"beta": -0.1}, r"beta in \[0, 1\), got -0.1"),
        ({"beta": math.nan}, r"beta in \[0, 1\), got nan"),
        ({"drop_fraction": (0.5, 1.1)}, r"drop_fraction in \[0, 1\], got \(0.5, 1.1\)"),
        ({"delays": (0, 5)}, r"delays\[1\], got \(0, 5\)"),
        ({"delays": (5, 2)}, r"delays\[1\], got \(5, 2\)"),
        ({"kind": "linear"}, "num_epochs >= 1 if linear, got None"),
        ({"kind": "linear", "num_epochs": 0}, "num_epochs >= 1 if linear, got 0"),
    ],
)
def test_settings_out_of_range_raise_with_the_value(options, message):
    with pytest.raises(ValueError, match=message):
        SnoozeSampler(4, 2, stream(0, "order"), **options)


@pytest.mark.parametrize(("n", "b", "drop"), [(0, 4, False), (4, 0, False), (4, 5, True)])
def test_samplers_without_a_batch_raise_with_the_sizes(n, b, drop):
    for make in (SnoozeSampler, lambda *a, **k: RandomSnoozeSampler(*a, counts=[1], **k)):
        with pytest.raises(ValueError, match=f"num_examples={n}, batch_size={b}"):
            make(n, b, stream(0, "order"), drop_last=drop)


@pytest.mark.parametrize("counts", [[], [3, 0], [3, 5], [-1]])
def test_counts_out_of_range_raise(counts):
    wrong = [count for count in counts if count != 3]
    with pytest.raises(ValueError, match=r"need counts from 1 to 4, got \[") as error:
        RandomSnoozeSampler(4, 2, stream(0, "order"), counts=counts)
    assert str(wrong) in str(error.value)
    with pytest.raises(ValueError, match="need counts from 2 to 4"):
        RandomSnoozeSampler(4, 2, stream(0, "order"), counts=[1], drop_last=True)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_raises_with_the_example_and_changes_nothing(value):
    sampler = SnoozeSampler(9, 4, stream(0, "order"))
    with pytest.raises(FloatingPointError, match=f"the loss of example 7 is {value}"):
        sampler.update(torch.tensor([2, 7, 1]), torch.tensor([1.0, value, 2.0]))
    assert bool(sampler.alpha.isnan().all())


@pytest.mark.parametrize("index", [[0, 9], [-1, 3]])
def test_an_index_out_of_range_raises_with_the_value(index):
    sampler = SnoozeSampler(9, 4, stream(0, "order"))
    wrong = [i for i in index if not 0 <= i < 9]
    with pytest.raises(ValueError, match=r"index must be from 0 to 8, got \[") as error:
        sampler.update(torch.tensor(index), torch.ones(2))
    assert str(wrong) in str(error.value)
    with pytest.raises(ValueError, match="index must be from 0 to 8"):
        sampler.weights(torch.tensor(index))


def test_other_shapes_kinds_and_repeated_examples_raise():
    sampler = SnoozeSampler(9, 4, stream(0, "order"))
    for losses in (torch.ones(3), torch.ones(()), torch.ones(2, 1)):
        with pytest.raises(ValueError, match=r"losses must have shape \(2,\), got \("):
            sampler.update(torch.tensor([0, 1]), losses)
    with pytest.raises(ValueError, match=r"an example comes twice in \[3, 4, 3\]"):
        sampler.update(torch.tensor([3, 4, 3]), torch.ones(3))
    for index in (torch.tensor([[1]]), torch.tensor([1.0]), torch.tensor([True])):
        with pytest.raises(ValueError, match="index must be of integers"):
            sampler.weights(index)


def test_an_epoch_that_nobody_fed_back_is_refused():
    sampler = SnoozeSampler(9, 4, stream(0, "order"))
    list(sampler)
    with pytest.raises(RuntimeError, match=r"pass sampler\.update"):
        list(sampler)


def test_a_state_of_another_size_is_refused():
    state = SnoozeSampler(9, 4, stream(0, "order")).state_dict()
    with pytest.raises(ValueError, match="state of 9 examples, need 8"):
        SnoozeSampler(8, 4, stream(0, "order")).load_state_dict(state)
