"""The samplers that let examples sleep: who is awake when, weights, resuming, training."""

from __future__ import annotations

import io
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from trainaug.methods.gradient_clustering.snooze import RandomSnoozeSampler, SnoozeSampler
from trainaug.training.loop import train
from trainaug.training.networks import MLP
from trainaug.training.randomness import RandomBatchSampler, stream


def snooze(n, size, *, seed=0, **options):
    return SnoozeSampler(n, size, stream(seed, "order"), **options)


def run_epoch(sampler, losses):
    """Iterate an epoch, feeding back ``losses`` ``(N,)``; return its batches."""
    batches, length = [], len(sampler)
    for batch in sampler:
        index = torch.tensor(batch)
        sampler.update(index, losses[index])
        batches.append(batch)
        assert len(sampler) == length
    assert len(batches) == length
    return batches


def random_losses(n, seed, epochs):
    """Skewed, all different."""
    g = torch.Generator().manual_seed(seed)
    return torch.rand(epochs, n, generator=g, dtype=torch.float64) ** 3


def shuffled(examples, generator, size, drop_last):
    order = torch.randperm(len(examples), generator=generator).tolist()
    batches = [[examples[i] for i in order[at : at + size]] for at in range(0, len(order), size)]
    return [b for b in batches if len(b) == size or not drop_last]


def naive_exponential(losses, size, generator, tau_of, *, min_batches, warmup, beta, drop_last):
    """Exponential snoozing by loops, one example and one epoch at a time."""
    n = losses.shape[1]
    average, visits = [0.0] * n, [0] * n
    alpha, delta, v, active = [None] * n, [0] * n, [0] * n, [True] * n
    skipped, actual = 0, []
    for epoch in range(len(losses)):
        batches = shuffled([i for i in range(n) if active[i]], generator, size, drop_last)
        actual.append((batches, sum(active), skipped, list(delta), list(v)))
        for i in itertools.chain(*batches):
            average[i] = beta * average[i] + (1 - beta) * float(losses[epoch, i])
            visits[i] += 1
            alpha[i] = average[i] / (1 - beta ** visits[i])
        if epoch < warmup:
            continue
        tau = tau_of([a for a in alpha if a is not None])
        for i in range(n):
            if active[i]:
                delta[i] = 0 if alpha[i] is None or alpha[i] >= tau else delta[i] + 1
        active = [False] * n
        skipped -= 1
        while sum(active) < min(min_batches * size, n):
            skipped += 1
            for i in range(n):
                if not active[i]:
                    v[i] += 1
            active = [v[i] == 2 ** delta[i] for i in range(n)]
        v = [0 if active[i] else v[i] for i in range(n)]
    return actual


def naive_linear(losses, size, generator, *, min_batches, drop, delays, num_epochs):
    """The authors' counting, one example at a time: 0 is awake, 1 is due."""
    n = losses.shape[1]
    alpha, count, skipped, actual = [0.0] * n, [0] * n, 0, []
    for epoch in range(len(losses)):
        batches = shuffled([i for i in range(n) if count[i] == 0], generator, size, False)
        actual.append((batches, count.count(0), skipped))
        for i in itertools.chain(*batches):
            alpha[i] = float(losses[epoch, i])
        u = min(1.0, (epoch + 1) / num_epochs)
        lost = int(n * (drop[0] + u * (drop[1] - drop[0])))
        ties = torch.randperm(n, generator=generator).tolist()
        ranked = sorted(ties, key=lambda i: math.inf if count[i] == 1 else alpha[i])
        before = list(count)
        for rank, i in enumerate(ranked):
            if rank >= lost:
                count[i] = 0
            elif before[i] == 0:
                span = u * (delays[1] - delays[0])
                count[i] = math.ceil(delays[0] + span * ((lost - rank) / lost))
            elif before[i] > 1:
                count[i] -= 1
        while count.count(0) < min(min_batches * size, n):
            count = [max(0, c - 1) for c in count]
            skipped += 1
    return actual


# --- who is awake


@pytest.mark.oracle("gc.15")
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(("n", "size"), [(23, 4), (5, 5), (6, 1), (1, 1), (24, 8)])
def test_with_threshold_zero_the_batches_are_those_of_the_plain_sampler(n, size, drop_last):
    plain = RandomBatchSampler(n, size, stream(0, "order"), drop_last)
    sampler = snooze(n, size, rule="absolute", tau=0.0, drop_last=drop_last, reweight=True)
    losses = random_losses(n, 1, 5)
    losses[:, 0] = 0.0  # at the threshold
    for epoch in range(5):
        assert run_epoch(sampler, losses[epoch]) == list(plain)
        assert sampler.epoch == epoch
        if not drop_last:
            assert sampler.weights(torch.arange(n)).tolist() == [1.0] * n
    assert sampler.active_counts == [n] * 5
    assert sampler.skipped_epochs == 0


@pytest.mark.oracle("gc.16")
def test_by_hand_a_lone_example_below_the_threshold_comes_after_2_4_8_epochs():
    """Awake in epochs 0, 2, 6, 14, 30; the epochs between are idle, so they are skipped."""
    sampler = snooze(1, 1, rule="absolute", tau=math.inf)
    times, levels = [], []
    for _ in range(5):
        assert run_epoch(sampler, torch.tensor([0.5])) == [[0]]
        times.append(sampler.epoch + sampler.skipped_epochs)
        levels.append(int(sampler.levels))
    assert times == [0, 2, 6, 14, 30]
    assert levels == [0, 1, 2, 3, 4]
    assert sampler.active_counts == [1] * 5


@pytest.mark.oracle("gc.16")
def test_by_hand_one_of_three_examples_sleeps_and_wakes():
    """Two stay above; the level of example 0 goes 1, 2, 3 while it is low, and falls to 0."""
    sampler = snooze(3, 1, rule="absolute", tau=1.0, reweight=True)
    seen, weights, waits = [], [], []
    for epoch in range(20):
        low = epoch < 14 or epoch >= 15
        batches = run_epoch(sampler, torch.tensor([0.5 if low else 1.0, 1.0, 7.0]))
        waits.append(int(sampler.waits[0]))
        assert {1, 2} <= {i for (i,) in batches}
        if [0] in batches:
            seen.append(epoch)
            weights.append(sampler.weights(torch.tensor([0, 1])).tolist())
    # gaps 2, 4, 8, then 1 after the loss reached the threshold at 14, then 2 and 4 (to 21) again
    assert seen == [0, 2, 6, 14, 15, 17]
    assert weights == [[1, 1], [2, 1], [4, 1], [8, 1], [1, 1], [2, 1]]
    assert waits == [0, 1, 0, 3, 2, 1, 0, 7, 6, 5, 4, 3, 2, 1, 0, 0, 1, 0, 3, 2]
    assert sampler.skipped_epochs == 0


def test_by_hand_idle_epochs_are_skipped_and_early_risers_wait():
    """At the end of epoch 1 nobody is high: 0 and 1 are due after 2, 2 and 3 after 4."""
    sampler = snooze(4, 3, rule="absolute", tau=1.0)
    run_epoch(sampler, torch.tensor([1.0, 1.0, 0.0, 0.0]))  # levels 0 0 1 1, so in 1 1 2 2
    run_epoch(sampler, torch.tensor([0.0, 0.0, 0.0, 0.0]))  # too few for 3: all wake in 2
    assert sampler.active.all()
    assert sampler.skipped_epochs == 1
    run_epoch(sampler, torch.tensor([1.0, 1.0, 1.0, 1.0]))
    assert sampler.levels.tolist() == [1, 1, 2, 2]
    assert sampler.skipped_epochs == 4  # 3 more: 0 and 1 are due after 2 epochs, 2 and 3 after 4
    assert sampler.active_counts == [4, 4, 4]


@pytest.mark.oracle("gc.17")
@given(
    n=st.integers(1, 14),
    size=st.integers(1, 5),
    min_batches=st.integers(1, 4),
    warmup=st.integers(0, 3),
    beta=st.sampled_from([0.0, 0.9]),
    tau=st.sampled_from([0.05, 0.3, 1.5, None]),
    drop_last=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None)
def test_the_exponential_kind_equals_the_naive_loop(
    n, size, min_batches, warmup, beta, tau, drop_last, seed
):
    if drop_last and size > n:
        return
    losses = random_losses(n, seed, 12)
    rule = ("mean", 0.8) if tau is None else ("absolute", tau)
    shared = {"min_batches": min_batches, "beta": beta, "drop_last": drop_last}
    sampler = snooze(n, size, rule=rule[0], tau=rule[1], warmup_epochs=warmup, **shared)

    def tau_of(alpha):
        return 0.8 * float(np.mean(sorted(alpha))) if tau is None else tau

    expected = naive_exponential(losses, size, stream(0, "order"), tau_of, warmup=warmup, **shared)
    for epoch, (batches, count, skipped, levels, v) in enumerate(expected):
        assert run_epoch(sampler, losses[epoch]) == batches
        assert sampler.active_counts[-1] == count >= min(min_batches * size, n)
        assert sampler.skipped_epochs == skipped
        assert sampler.levels.tolist() == levels
        asleep = [0 if sampler.active[i] else 2 ** levels[i] - v[i] for i in range(n)]
        assert sampler.waits.tolist() == asleep


@pytest.mark.oracle("gc.17")
@given(
    n=st.integers(1, 25),
    size=st.integers(1, 5),
    min_batches=st.integers(1, 3),
    drop=st.tuples(st.sampled_from([0.0, 0.2, 0.5]), st.sampled_from([0.5, 0.9, 1.0])),
    delays=st.sampled_from([(1, 1), (2, 7), (2, 200)]),
    num_epochs=st.integers(1, 14),
    seed=st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None)
def test_the_linear_kind_equals_the_naive_loop(
    n, size, min_batches, drop, delays, num_epochs, seed
):
    losses = random_losses(n, seed, 12)
    shared = {"min_batches": min_batches, "delays": delays, "num_epochs": num_epochs}
    sampler = snooze(n, size, kind="linear", drop_fraction=drop, **shared)
    expected = naive_linear(losses, size, stream(0, "order"), drop=drop, **shared)
    for epoch, (batches, count, skipped) in enumerate(expected):
        assert run_epoch(sampler, losses[epoch]) == batches
        assert sampler.active_counts[-1] == count >= min(min_batches * size, n)
        assert sampler.skipped_epochs == skipped


def test_by_hand_the_linear_kind_drops_the_lowest_for_longest():
    """Half of 4 always, at the end of training: of 2 places the lowest sleeps 5, the other 4."""
    options = {"drop_fraction": (0.5, 0.5), "delays": (3, 5), "num_epochs": 1}
    sampler = snooze(4, 1, kind="linear", **options)
    awake = []
    for _ in range(7):
        run_epoch(sampler, torch.tensor([0.0, 1.0, 2.0, 3.0]))
        awake.append(sampler.active.nonzero().flatten().tolist())
    # asleep from epoch 1: example 1 for 4 epochs, 0 for 5. A due one drives out the lowest, here 2.
    assert awake == [[0, 1, 2, 3], [2, 3], [2, 3], [2, 3], [2, 3], [1, 3], [0, 3]]


def test_beyond_the_warm_up_come_as_many_complete_epochs_and_one():
    for warmup in (0, 1, 3):
        sampler = snooze(6, 2, rule="absolute", tau=1.0, warmup_epochs=warmup)
        for _ in range(warmup + 2):
            run_epoch(sampler, torch.tensor([0.0, 0.0, 0.0, 2.0, 2.0, 2.0]))
        assert sampler.active_counts == [6] * (warmup + 1) + [3]


def test_an_average_of_equal_losses_is_that_loss_from_the_start():
    sampler = snooze(3, 2, rule="absolute", tau=0.0, beta=0.9)
    assert bool(sampler.alpha.isnan().all())
    for _ in range(4):
        run_epoch(sampler, torch.tensor([0.25, 1.0, 3.0]))
        # three roundings of numbers near 1
        expected = torch.tensor([0.25, 1.0, 3.0], dtype=torch.float64)
        torch.testing.assert_close(sampler.alpha, expected, rtol=1e-14, atol=0)
    run_epoch(sampler, torch.tensor([0.25, 2.0, 3.0]))
    weight = 0.1 / (1 - 0.9**5)
    assert float(sampler.alpha[1]) == pytest.approx(1 + weight, rel=1e-13)


def test_examples_that_no_loss_came_for_stay_awake():
    sampler = snooze(5, 5, rule="absolute", tau=math.inf)
    next(iter(sampler))  # cut short
    sampler.update(torch.tensor([0, 3]), torch.tensor([1.0, 1.0]))
    list(sampler)
    assert sampler.levels.tolist() == [1, 0, 0, 1, 0]


def test_losses_are_kept_without_their_graph():
    sampler = snooze(5, 5)
    sampler.update(torch.arange(5), torch.ones(5, requires_grad=True) * 2)
    assert sampler.alpha.tolist() == [2.0] * 5
    assert not sampler.alpha.requires_grad


def test_an_epoch_cut_short_is_judged_on_what_came():
    sampler = snooze(6, 1, rule="absolute", tau=math.inf)
    first = next(iter(sampler))
    sampler.update(torch.tensor(first), torch.ones(1))
    second = list(sampler)
    assert first not in second
    assert len(second) == 5


# --- termination


@pytest.mark.oracle("gc.17")
@pytest.mark.parametrize("kind", ["exponential", "linear"])
@given(data=st.data(), n=st.integers(1, 8), size=st.integers(1, 4), min_batches=st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_from_every_state_enough_wake_up(kind, data, n, size, min_batches):
    options = {"tau": math.inf, "drop_fraction": (1.0, 1.0)}
    sampler = snooze(
        n, size, rule="absolute", kind=kind, min_batches=min_batches, num_epochs=3, **options
    )
    run_epoch(sampler, torch.ones(n))
    levels = data.draw(st.lists(st.integers(0, 62), min_size=n, max_size=n))
    waits = [data.draw(st.integers(0, 2**level - 1)) for level in levels]
    state = sampler.state_dict()
    state["levels"], state["waits"] = torch.tensor(levels), torch.tensor(waits)
    state["active"] = state["waits"] == 0
    sampler.load_state_dict(state)
    for _ in range(3):
        before = sampler.epoch + sampler.skipped_epochs
        run_epoch(sampler, torch.ones(n))
        assert min(min_batches * size, n) <= sampler.active_counts[-1] <= n
        assert bool((sampler.waits >= 0).all())
        assert sampler.epoch + sampler.skipped_epochs > before


@pytest.mark.oracle("gc.17")
def test_sleeping_for_ever_does_not_overflow():
    sampler = snooze(3, 2, rule="absolute", tau=math.inf)
    for _ in range(80):
        run_epoch(sampler, torch.ones(3))
    assert sampler.levels.tolist() == [62] * 3
    assert sampler.active_counts == [3] * 80
    assert sampler.skipped_epochs == sum(2 ** min(k, 62) - 1 for k in range(1, 80))


@pytest.mark.oracle("gc.17")
def test_fewer_examples_than_the_batches_asked_for_are_all_awake():
    sampler = snooze(5, 4, rule="absolute", tau=math.inf, min_batches=3)
    for _ in range(6):
        assert sorted(itertools.chain(*run_epoch(sampler, torch.ones(5)))) == list(range(5))


# --- resuming


def through_a_file(state):
    """Save and load, with nothing but tensors and plain values."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


MAKERS = {
    "exponential": lambda seed: snooze(11, 2, tau=0.9, beta=0.5, reweight=True, seed=seed),
    "linear": lambda seed: snooze(11, 2, kind="linear", num_epochs=6, delays=(1, 3), seed=seed),
    "random": lambda seed: RandomSnoozeSampler(11, 2, stream(seed, "order"), counts=[11, 4, 7]),
}


@pytest.mark.oracle("gc.18")
@pytest.mark.parametrize("kind", MAKERS)
def test_resumes_at_every_batch_of_an_epoch(kind):
    losses = random_losses(11, 3, 400)

    def steps(sampler, at):
        while True:
            for batch in sampler:
                index = torch.tensor(batch)
                has_weights = hasattr(sampler, "weights")
                w = sampler.weights(index).tolist() if has_weights else None
                if has_weights:
                    sampler.update(index, losses[at, index])
                at += 1
                yield batch, w, sampler.epoch, list(sampler.active_counts), sampler.active.tolist()

    whole = list(itertools.islice(steps(MAKERS[kind](0), 0), 45))
    assert whole[25][3][-1] != 11  # some sleep
    for stop in range(1, 26):
        first = MAKERS[kind](0)
        list(itertools.islice(steps(first, 0), stop))
        state = through_a_file(first.state_dict())
        list(itertools.islice(steps(first, 30), 9))  # what it does later is not in the state
        again = MAKERS[kind](9)
        again.load_state_dict(state)
        assert list(itertools.islice(steps(again, stop), 45 - stop)) == whole[stop:]


@pytest.mark.oracle("gc.18")
@pytest.mark.parametrize("kind", MAKERS)
def test_a_state_is_a_copy_and_that_of_the_resumed_is_the_same(kind):
    def is_same(actual, state):
        assert actual.keys() == state.keys()
        return all(
            torch.equal(actual[name], value) if torch.is_tensor(value) else actual[name] == value
            for name, value in state.items()
        )

    def go_on(sampler):
        for batch in sampler:
            if kind != "random":
                sampler.update(torch.tensor(batch), torch.tensor(batch) / 3.0)

    first, again = MAKERS[kind](0), MAKERS[kind](1)
    go_on(first)
    go_on(first)
    state = first.state_dict()
    kept = through_a_file(state)
    again.load_state_dict(state)
    assert is_same(again.state_dict(), kept)
    for sampler in (first, again):
        go_on(sampler)
        assert not is_same(sampler.state_dict(), kept)
        assert is_same(state, kept)


@pytest.mark.oracle("gc.18")
@pytest.mark.parametrize("kind", MAKERS)
def test_after_the_interrupted_epoch_a_new_one_begins_even_if_cut_short(kind):
    sampler = MAKERS[kind](0)
    sampler.load_state_dict(sampler.state_dict())
    for begun in range(1, 4):
        batch = next(iter(sampler))
        assert len(sampler.active_counts) == begun
        if kind != "random":
            sampler.update(torch.tensor(batch), torch.ones(2))


# --- weights


@given(
    n=st.integers(2, 12),
    size=st.integers(1, 4),
    kind=st.sampled_from(["exponential", "linear"]),
    drop_last=st.booleans(),
    seed=st.integers(0, 100),
)
@settings(max_examples=80, deadline=None)
def test_weights_of_an_example_add_up_to_the_epochs_when_it_is_seen(n, size, kind, drop_last, seed):
    if drop_last and size > n:
        return
    losses = random_losses(n, seed, 25)
    options = {"kind": kind, "num_epochs": 25, "delays": (2, 9), "drop_last": drop_last}
    sampler = snooze(n, size, reweight=True, **options)
    total = torch.zeros(n)
    for epoch in range(25):
        seen = torch.tensor(list(itertools.chain(*run_epoch(sampler, losses[epoch]))))
        everyone = sampler.weights(torch.arange(n))
        total += everyone
        assert torch.equal(total[seen], torch.full((len(seen),), epoch + 1.0))
        assert int((everyone > 0).sum()) == len(seen)
        assert float(total.max()) <= epoch + 1


def test_the_mean_weight_over_time_is_one_for_sleepers_too():
    """Losses on fixed levels: after T epochs an example lags by less than its last gap."""
    sampler = snooze(40, 4, rule="median", tau=1.0, reweight=True)
    g = torch.Generator().manual_seed(0)
    total, epochs = torch.zeros(40), 400
    for _ in range(epochs):
        # the loss of each crosses the median now and then, so that gaps stay bounded
        run_epoch(sampler, torch.rand(40, generator=g))
        total += sampler.weights(torch.arange(40))
    # a gap of 2^5 has probability 2^-5 for each of about 10 judgements in between
    assert float((total / epochs - 1).abs().max()) < 0.2
    assert float(total.mean() / epochs) == pytest.approx(1.0, abs=0.03)
    assert min(sampler.active_counts) < 30


def test_the_mean_weight_of_one_that_never_rises_swings_between_a_half_and_one():
    sampler = snooze(3, 1, rule="absolute", tau=1.0, reweight=True)
    total, means = 0.0, []
    for epoch in range(63):
        run_epoch(sampler, torch.tensor([0.5, 1.0, 7.0]))
        total += float(sampler.weights(torch.tensor([0])))
        means.append(total / (epoch + 1))
    assert [means[e] for e in (0, 2, 6, 14, 30, 62)] == [1.0] * 6
    assert [means[e] for e in (1, 5, 13, 29, 61)] == [0.5] * 5
    assert min(means) == 0.5


def test_weights_are_ones_unless_asked_for():
    sampler = snooze(6, 2, rule="absolute", tau=1.0)
    for _ in range(3):
        run_epoch(sampler, torch.tensor([0.0, 0.0, 0.0, 2.0, 2.0, 2.0]))
    w = sampler.weights(torch.tensor([0, 5], dtype=torch.int32))
    assert w.dtype == torch.float32
    assert w.tolist() == [1.0, 1.0]


# --- the control


def test_the_control_has_the_same_counts_and_goes_on_with_the_last():
    source = snooze(30, 4, tau=1.0)
    losses = random_losses(30, 5, 8)
    lengths = [len(run_epoch(source, losses[e])) for e in range(8)]
    counts = source.active_counts
    control = RandomSnoozeSampler(30, 4, stream(0, "control"), counts=counts)
    for epoch in range(10):
        length, batches = len(control), list(control)
        flat = list(itertools.chain(*batches))
        count = counts[min(epoch, 7)]
        assert len(set(flat)) == len(flat) == count == control.active_counts[epoch]
        assert sorted(flat) == control.active.nonzero().flatten().tolist()
        assert len(batches) == length == lengths[min(epoch, 7)]
        assert control.epoch == epoch


def test_the_control_with_all_examples_is_the_plain_sampler():
    control = RandomSnoozeSampler(9, 4, stream(0, "order"), counts=[9], drop_last=True)
    plain = RandomBatchSampler(9, 4, stream(0, "order"), True)
    for _ in range(3):
        assert list(control) == list(plain)


def test_the_control_draws_every_pair_equally_often():
    control = RandomSnoozeSampler(5, 2, stream(0, "order"), counts=[2])
    epochs = 4000
    actual = [tuple(batch) for _ in range(epochs) for batch in control]
    pairs = list(itertools.permutations(range(5), 2))
    counts = np.array([actual.count(pair) for pair in pairs])
    assert counts.sum() == epochs
    # five standard deviations of a share of 1/20
    assert np.abs(counts / epochs - 1 / 20).max() < 5 * math.sqrt(19 / 400 / epochs)


# --- training


class Data:
    """Three features, three classes; counts the reads."""

    def __init__(self, n):
        g = torch.Generator().manual_seed(n)
        self.x, self.y = torch.randn(n, 3, generator=g), torch.arange(n) % 3
        self.reads = 0

    def __len__(self):
        return len(self.y)

    def __getitem__(self, indices):
        self.reads += len(indices)
        return self.x[indices], self.y[indices], torch.as_tensor(indices)


def fit(sampler, *, num_epochs=12, **options):
    data, model = Data(40), MLP(3, 8, 3, stream(0, "init"))
    rows = []
    handle = model.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    history = train(
        model,
        data,
        sampler,
        lambda logits, y: F.cross_entropy(logits, y, reduction="none"),
        torch.optim.SGD(model.parameters(), lr=0.3),
        num_epochs=num_epochs,
        **options,
    )
    handle.remove()
    assert sum(rows) == history.forward_examples == history.backward_examples == data.reads
    return history, model


@pytest.mark.oracle("gc.19")
@pytest.mark.parametrize("reweight", [False, True])
@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_in_training_nothing_is_computed_but_the_batches(kind, reweight):
    sampler = snooze(40, 4, kind=kind, num_epochs=12, delays=(2, 4), reweight=reweight)
    seen = {}

    def remember(index, losses):
        assert not losses.requires_grad
        seen.update(zip(index.tolist(), losses.tolist(), strict=True))
        sampler.update(index, losses)

    history, _ = fit(sampler, weights=sampler.weights, feedback=remember)
    assert history.forward_examples == history.examples == sum(sampler.active_counts)
    assert len(sampler.active_counts) == 12
    assert sum(sampler.active_counts) < 12 * 40 * 0.8
    assert sampler.alpha.tolist() == [seen[i] for i in range(40)]  # as last seen, not newer
    assert not sampler.alpha.requires_grad


@pytest.mark.oracle("gc.15")
def test_training_with_threshold_zero_is_plain_training_to_the_bit():
    sampler = snooze(40, 4, rule="absolute", tau=0.0, reweight=True)
    history, model = fit(sampler, weights=sampler.weights, feedback=sampler.update)
    plain, other = fit(RandomBatchSampler(40, 4, stream(0, "order")))
    assert history == plain
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )


def test_weights_reach_the_loss():
    losses = {}
    for reweight in (False, True):
        sampler = snooze(40, 20, rule="median", tau=1.0, reweight=reweight)
        losses[reweight] = fit(
            sampler, weights=sampler.weights, feedback=sampler.update, num_epochs=3
        )[0].losses
    assert losses[True][:3] == losses[False][:3]  # two batches, and the upper half: weight 1
    assert losses[True][3] > losses[False][3]  # sleepers are back, with weight 2


# --- devices


def everything(losses):
    """Batches, state and weights of a few epochs; the state is on the CPU."""
    actual = []
    for options in ({"tau": 0.7, "beta": 0.5}, {"kind": "linear", "num_epochs": 6}):
        sampler = snooze(len(losses), 3, reweight=True, delays=(1, 3), **options)
        for epoch in range(6):
            for batch in sampler:
                index = torch.tensor(batch, device=losses.device)
                sampler.update(index, (losses[index] * (epoch + 1)).sin() + 1)
                actual += [batch, sampler.weights(index)]
        assert not any(v.is_cuda for v in sampler.state_dict().values() if torch.is_tensor(v))
    return [*actual, list(RandomSnoozeSampler(9, 2, stream(0, "order"), counts=[5]))]


def test_inside_a_meta_context_values_are_the_same(same_inside_meta):
    same_inside_meta(everything, random_losses(17, 2, 1)[0])


@pytest.mark.gpu
def test_on_cuda_values_are_the_same(same_on_cuda):
    same_on_cuda(everything, random_losses(17, 2, 1)[0])


def snoozing() -> SnoozeSampler:
    return SnoozeSampler(256, 32, torch.Generator().manual_seed(0), tau=0.7)


def random_snoozing() -> RandomSnoozeSampler:
    generator = torch.Generator().manual_seed(0)
    return RandomSnoozeSampler(256, 32, generator, counts=[256, 100, 200, 50, 150, 256])


@pytest.mark.parametrize("make", [snoozing, random_snoozing])
@pytest.mark.parametrize("is_held", [False, True])
def test_an_iteration_left_open_after_its_last_batch_is_over(make, is_held):
    sampler = make()
    data = torch.utils.data.TensorDataset(torch.arange(256))
    loader = torch.utils.data.DataLoader(data, batch_sampler=sampler, generator=torch.Generator())
    lengths, held = [], None
    for epoch in range(6):
        lengths.append(len(loader))
        iteration = iter(loader)
        for _ in range(lengths[-1]):
            [indices] = next(iteration)
            if make is snoozing:
                sampler.update(indices, (indices * (epoch + 2.3)).sin() + 1)
        if not is_held:
            assert next(iteration, None) is None
        held = iteration  # as Lightning does, until the next one is there
    assert held is not None
    assert lengths == [-(-count // 32) for count in sampler.active_counts[: len(lengths)]]
    assert len(set(lengths)) > 1
