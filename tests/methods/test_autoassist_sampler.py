"""The sampler with an Assistant: a loop over single candidates, limits, resuming, training."""

from __future__ import annotations

import io
import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from trainaug.data.indexed import IndexedDataset
from trainaug.methods.autoassist import AssistantTrainer, AssistedSampler, ImageAssistant
from trainaug.training.loop import train
from trainaug.training.networks import MLP
from trainaug.training.randomness import RandomBatchSampler, stream


def assisted(n, size, predict, *, seed=0, **options):
    return AssistedSampler(n, size, predict, stream(seed, "order"), stream(seed, "keep"), **options)


def constant(r):
    return lambda index: torch.full((len(index),), r, device=index.device)


class Changing:
    """Predictions and confidence change with every batch that was used."""

    def __init__(self, n, seed):
        self.table = torch.rand(64, n, generator=stream(seed, "measure"))
        self.used = 0

    def predict(self, index):
        return self.table[self.used % 64, index]

    def confidence(self):
        return float(self.table[self.used % 64, 0])


def naive(n, size, world, order_g, keep_g, *, base, guard, shuffle, drop_last):
    """One candidate at a time, in double precision; yields (batch, scanned, kept, rates)."""
    scanned, kept, rates = 0, 0, []
    while True:
        order = torch.randperm(n, generator=order_g).tolist() if shuffle else list(range(n))
        draws = torch.rand(n, generator=keep_g).tolist()
        before, position = kept, 0
        while position < n:
            chance = max(base, 1 - world.confidence()) if guard else base
            batch = []
            while position < n and len(batch) < size:
                r = float(world.table[world.used % 64, order[position]])
                p = chance + (1 - chance) * r
                assume(abs(draws[position] - p) > 1e-6)  # single precision cannot tell
                if draws[position] < p:
                    batch.append(order[position])
                position += 1
            scanned, kept = position + n * len(rates), kept + len(batch)
            closed = [*rates, (kept - before) / n] if position == n else list(rates)
            if len(batch) == size or (batch and not drop_last):
                yield batch, scanned, kept, closed
        rates.append((kept - before) / n)
        if kept - before < (size if drop_last else 1):
            yield "too few"
            return


@pytest.mark.oracle("aa.1")
@given(
    n=st.integers(1, 30),
    size=st.integers(1, 8),
    base=st.sampled_from([0.0, 0.1, 0.3, 0.7, 1.0]),
    guard=st.booleans(),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    seed=st.integers(0, 9999),
)
@settings(max_examples=150, deadline=None)
def test_batches_and_counts_equal_those_of_the_loop_over_candidates(
    n, size, base, guard, shuffle, drop_last, seed
):
    """Predictions change with every batch and are used at once, whatever was scanned ahead."""
    assume(not drop_last or size <= n)
    ours, theirs = Changing(n, seed), Changing(n, seed)
    options = {"base": base, "shuffle": shuffle, "drop_last": drop_last}
    confidence = ours.confidence if guard else None
    sampler = assisted(n, size, ours.predict, seed=seed, confidence=confidence, **options)
    expected = naive(
        n, size, theirs, stream(seed, "order"), stream(seed, "keep"), guard=guard, **options
    )
    batches = itertools.chain.from_iterable(itertools.repeat(sampler))
    for want in itertools.islice(expected, 20):
        if want == "too few":
            with pytest.raises(RuntimeError, match=rf"a pass over {n} examples kept \d+, too few"):
                next(batches)
            return
        actual = next(batches), sampler.scanned, sampler.kept, list(sampler.keep_rates)
        assert actual == want
        begun, before = sampler.scanned - n * len(want[3]), sum(want[3]) * n
        share = [] if begun == 0 else [(sampler.kept - before) / begun]
        assert sampler.rates_so_far() == pytest.approx([*want[3], *share])
        ours.used += 1
        theirs.used += 1


@pytest.mark.oracle("aa.1")
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(("n", "size"), [(23, 4), (5, 5), (6, 1), (1, 1), (24, 8)])
def test_with_base_one_the_batches_are_those_of_the_plain_sampler(n, size, drop_last):
    for r in (0.0, 1.0):
        plain = RandomBatchSampler(n, size, stream(0, "order"), drop_last)
        sampler = assisted(n, size, constant(r), base=1.0, drop_last=drop_last)
        for epoch in range(4):
            assert list(sampler) == list(plain)
            assert sampler.max_batches == len(plain)
            assert (sampler.scanned, sampler.kept) == (n * (epoch + 1),) * 2
        assert sampler.keep_rates == [1.0] * 4


@pytest.mark.oracle("aa.1")
@pytest.mark.parametrize(("base", "r"), [(0.3, 0.0), (0.3, 0.5), (0.0, 0.02), (0.5, 0.9)])
def test_the_keep_rate_of_a_pass_is_within_four_standard_deviations(base, r):
    n = 100_000
    sampler = assisted(n, 500, constant(r), base=base)
    seen = list(itertools.chain(*sampler))
    p = base + (1 - base) * r
    assert len(set(seen)) == len(seen) == sampler.kept
    assert sampler.keep_rates == [len(seen) / n]
    assert abs(len(seen) / n - p) < 4 * math.sqrt(p * (1 - p) / n)
    # and no place of the order is favoured
    assert sum(seen) / len(seen) == pytest.approx(n / 2, abs=5 * n / math.sqrt(12 * len(seen)))


@pytest.mark.oracle("aa.1")
@pytest.mark.parametrize("drop_last", [False, True])
def test_nobody_passing_is_an_error_and_no_endless_loop(drop_last):
    calls = []

    def predict(index):
        assert len(index) > 0  # else it would go on for ever
        calls.append(len(index))
        return torch.zeros(len(index))

    sampler = assisted(1000, 10, predict, base=0.0, drop_last=drop_last)
    with pytest.raises(
        RuntimeError, match=r"1000 examples kept 0, too few .*base pass rate \(0\.0"
    ):
        next(iter(sampler))
    assert sum(calls) == sampler.scanned == 1000
    limited = assisted(1000, 10, predict, base=0.0, drop_last=drop_last, max_scans=37)
    with pytest.raises(
        RuntimeError, match=r"37 examples scanned .* batch of 10: raise .* \(0\.0\)"
    ):
        next(iter(limited))
    assert limited.scanned == 37


def test_max_scans_counts_from_the_start_of_a_batch():
    """Every third passes: 3 B scans fill a batch, and one fewer does not."""
    table = torch.tensor([0.0, 0.0, 1.0]).repeat(10)

    def predict(index):
        assert len(index) > 0
        return table[index]

    options = {"base": 0.0, "shuffle": False}
    sampler = assisted(30, 2, predict, max_scans=6, **options)
    assert list(sampler) == [[2, 5], [8, 11], [14, 17], [20, 23], [26, 29]]
    batches = iter(assisted(30, 2, predict, max_scans=5, **options))
    with pytest.raises(RuntimeError, match="5 examples scanned"):
        next(batches)
    table = torch.tensor([1.0] * 4 + [0.0] * 5)  # the end of a pass is no failure
    sampler = assisted(9, 2, predict, max_scans=5, **options)
    assert list(sampler) == [[0, 1], [2, 3]]


def test_a_pass_begins_with_on_pass_before_any_prediction():
    log = []

    def predict(index):
        log.append("predict")
        return torch.ones(len(index))

    sampler = assisted(4, 2, predict, base=0.0, on_pass=lambda: log.append("pass"))
    for _ in range(3):
        list(sampler)
    pair = ["predict"] * 2
    assert log == [*pair, "pass", *pair, "pass", *pair]
    next(iter(sampler))  # a pass that is cut short, then another
    assert log[8:] == ["pass", "predict"]
    assert len(list(sampler)) == 2
    assert log[10:] == ["pass", *pair]
    assert sampler.keep_rates == [1.0] * 4


# --- resuming


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("shuffle", [False, True])
def test_resumes_at_every_batch_of_a_pass(shuffle):
    def make(seed, world, log):
        options = {"confidence": world.confidence, "on_pass": lambda: log.append(world.used)}
        return assisted(17, 3, world.predict, seed=seed, base=0.3, shuffle=shuffle, **options)

    def steps(sampler, world):
        while True:
            for batch in sampler:
                world.used += 1
                yield batch, sampler.scanned, sampler.kept, list(sampler.keep_rates)

    world, log = Changing(17, 2), []
    whole = list(itertools.islice(steps(make(0, world, log), world), 24))
    assert len(whole[-1][3]) >= 3
    for stop in range(24):
        world, first_log, more_log = Changing(17, 2), [], []
        first = make(0, world, first_log)
        list(itertools.islice(steps(first, world), stop))
        state = first.state_dict()
        kept = through_a_file(state)
        list(itertools.islice(steps(first, world), 9))  # later deeds are not in the state
        again = Changing(17, 2)
        again.used = stop
        resumed = make(9, again, more_log)
        list(itertools.islice(resumed, 1))
        resumed.load_state_dict(through_a_file(state))
        assert resumed.state_dict().keys() == kept.keys()
        assert list(itertools.islice(steps(resumed, again), 24 - stop)) == whole[stop:]
        assert [at for at in log if at < stop] + more_log == log
        assert torch.equal(state["order"], kept["order"])
        assert state["keep_rates"] == kept["keep_rates"]


@pytest.mark.parametrize("drop_last", [False, True])
def test_resuming_where_the_rest_of_a_pass_has_no_batch_goes_on_to_the_next(drop_last):
    """As the plain sampler does: an iteration that yields nothing stops a training."""
    table = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0 if drop_last else 0.0])
    options = {"base": 0.0, "shuffle": False, "drop_last": drop_last}
    first = assisted(5, 2, lambda index: table[index], **options)
    assert list(itertools.islice(first, 2)) == [[0, 1], [2, 3]]
    again = assisted(5, 2, lambda index: table[index], **options)
    again.load_state_dict(first.state_dict())
    assert list(again) == [[0, 1], [2, 3]]


# --- training, devices, bad input


def trained(sampler, feedback=None):
    g = stream(5, "measure")
    x, y = torch.randn(20, 4, generator=g), torch.arange(20) % 3
    model = MLP(4, 5, 3, stream(0, "init"))
    args = model, IndexedDataset(x, y), sampler, torch.nn.CrossEntropyLoss(reduction="none")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    history = train(*args, optimizer, num_epochs=4, feedback=feedback)
    return history.losses, [p.detach() for p in model.parameters()]


def test_an_assistant_that_only_watches_does_not_change_training():
    x, y = torch.randn(20, 4, generator=stream(5, "measure")), torch.arange(20) % 3
    trainer = AssistantTrainer(
        ImageAssistant(4, 3, stream(0, "init")), lambda index: (x[index], y[index])
    )
    sampler = assisted(20, 6, trainer.predict, base=1.0, on_pass=trainer.end_epoch)
    losses, weights = trained(sampler, trainer.update)
    plain = trained(RandomBatchSampler(20, 6, stream(0, "order")))
    assert losses == plain[0]
    assert all(torch.equal(a, b) for a, b in zip(weights, plain[1], strict=True))
    assert trainer.num_steps == len(losses) == 16
    sampler = assisted(20, 6, trainer.predict, base=0.0, on_pass=trainer.end_epoch)
    trained(sampler, trainer.update)
    assert 0 < sampler.kept < sampler.scanned == 80


def everything(table):
    sampler = assisted(9, 3, lambda index: table[index.to(table.device)], confidence=lambda: 0.8)
    return [list(sampler), list(sampler), sampler.scanned, sampler.kept, sampler.keep_rates]


def test_inside_a_meta_context_values_are_the_same(same_inside_meta):
    same_inside_meta(everything, torch.arange(9) / 8)


@pytest.mark.gpu
def test_on_cuda_values_are_the_same(same_on_cuda):
    same_on_cuda(everything, torch.arange(9) / 8)


def test_bad_settings_are_refused():
    for n, size, drop_last in ((0, 2, False), (3, 0, False), (3, 4, True)):
        with pytest.raises(ValueError, match=f"num_examples={n}, batch_size={size}, drop_last="):
            assisted(n, size, constant(0.5), drop_last=drop_last)
    for base in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=f"base pass rate must be in .*, got {base}"):
            assisted(3, 2, constant(0.5), base=base)
    with pytest.raises(ValueError, match="at least batch_size=2, got 1"):
        assisted(3, 2, constant(0.5), max_scans=1)
    g = stream(0, "order")
    with pytest.raises(ValueError, match="two generators"):
        AssistedSampler(3, 2, constant(0.5), g, g)
    sampler = assisted(4, 2, constant(0.5))
    next(iter(sampler))
    with pytest.raises(ValueError, match="state of 4 examples, need 5"):
        assisted(5, 2, constant(0.5)).load_state_dict(sampler.state_dict())


@pytest.mark.parametrize("bad", [float("nan"), -0.5, 1.5])
def test_bad_predictions_are_refused(bad):
    for base in (0.3, 1.0):
        with pytest.raises(ValueError, match=rf"r must be in \[0, 1\].*{bad}"):
            list(assisted(5, 2, constant(bad), base=base))
    with pytest.raises(ValueError, match=r"utility_of must give \(4,\), got \(4, 1\)"):
        list(assisted(5, 2, lambda index: torch.ones(len(index), 1)))
    with pytest.raises(ValueError, match="base pass rate must be in"):
        list(assisted(5, 2, constant(0.5), confidence=lambda: float("nan")))
