"""The asynchronous AutoAssist, with real processes: batches, feedback, trace, bad input.

Every wait is bounded; how workers fail and end is in `test_autoassist_ends`.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from autoassist_processes import (
    B,
    Make,
    N,
    assisted,
    class_losses,
    data,
    drive,
    plain,
    seeded,
    shared_assistant,
    start_and_close,
    wait_for,
)
from torch import Tensor

from trainaug.methods.autoassist import AssistedSampler, AsyncBatches, ImageAssistant
from trainaug.methods.autoassist.channels import Formed, Slots
from trainaug.methods.autoassist.loop import Gone, Loop, Maker

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


@pytest.fixture
def make() -> Iterator[Make]:
    with start_and_close() as start:
        yield start


# --- the same batches -----------------------------------------------------------------------------


@pytest.mark.oracle("aa.1")
@pytest.mark.parametrize("synchronous", [True, False])
def test_base_one_gives_the_batches_of_the_plain_loader(make, synchronous):
    from trainaug.data.indexed import IndexedDataset
    from trainaug.training.randomness import RandomBatchSampler

    x, y = data()
    expected = RandomBatchSampler(N, B, seeded(7))
    dataset = IndexedDataset(x, y)
    with make(plain, x=x.clone(), y=y.clone(), synchronous=synchronous) as batches:
        for _ in range(3):
            assert list(batches) == list(expected)
        for _ in range(2):
            got, want = list(batches.tensors()), [dataset[indices] for indices in expected]
            assert len(got) == len(want) == 26
            for ours, theirs in zip(got, want, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        assert batches.steps == 5 * 26
        assert (batches.scanned, batches.kept) == (5 * N, 5 * N)
        assert batches.keep_rates == [1.0] * 5


@pytest.mark.oracle("aa.1")
def test_training_on_them_with_base_one_is_plain_training(make):
    from trainaug.data.indexed import IndexedDataset
    from trainaug.training.loop import train
    from trainaug.training.randomness import RandomBatchSampler

    x, y = data()

    def run(batches: Any, **options: Any) -> list[float]:
        model = torch.nn.Linear(4, 2, device="meta").to_empty(device="cpu")
        torch.nn.init.zeros_(model.weight)
        torch.nn.init.zeros_(model.bias)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        losses = lambda logits, y: F.cross_entropy(logits, y, reduction="none")  # noqa: E731
        dataset = IndexedDataset(x, y)
        return train(model, dataset, batches, losses, optimizer, max_steps=60, **options).losses

    with make(plain) as batches:
        ours = run(batches, feedback=batches.update)
        assert ours == run(RandomBatchSampler(N, B, seeded(7)))
        assert len(ours) == batches.steps == 60


@pytest.mark.parametrize("synchronous", [True, False])
def test_a_pass_left_early_goes_on(make, synchronous):
    sampler = plain(0)[0]
    expected = [list(sampler) for _ in range(3)]
    with make(plain, synchronous=synchronous) as batches:
        got = []
        for indices in batches:
            got.append(indices)
            if len(got) == 5:
                break
        assert got + list(batches) == expected[0]
        for indices in batches:
            if indices == expected[1][-1]:
                break  # after the last one of the pass: the next iteration is not empty
        assert list(batches) == expected[2]


def test_synchronous_is_sampler_and_trainer_by_hand(make):
    x, y = data()
    ours, theirs = ImageAssistant(4, 2, seeded(3)), ImageAssistant(4, 2, seeded(3))
    sampler, trainer = assisted(theirs, x, y, 0)
    with make(assisted, (ours, x, y), synchronous=True, trace=True) as batches:
        for _ in range(4):
            got, want = [], []
            for indices in batches:
                got.append(indices)
                batches.update(torch.tensor(indices), class_losses(y, torch.tensor(indices)))
            for indices in sampler:
                want.append(indices)
                trainer.update(torch.tensor(indices), class_losses(y, torch.tensor(indices)))
            assert got == want
        assert (batches.scanned, batches.kept) == (sampler.scanned, sampler.kept)
        assert batches.keep_rates == sampler.keep_rates
        assert batches.counters["num_steps"] == trainer.num_steps == batches.steps
        assert batches.counters["confidence"] == trainer.confidence
        assert set(batches.staleness) == {0}
        assert {event.what for event in batches.events} == {"form", "learn"}
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.class_bias, theirs.class_bias)


def test_synchronous_is_the_same_inside_meta(same_inside_meta):
    x, y = data()

    def run(x: Tensor, y: Tensor) -> list[Tensor]:
        sizes = {"num_examples": N, "batch_size": B}
        batches = AsyncBatches(plain_on_cpu, **sizes, x=x, y=y, synchronous=True)
        for _, _, index in batches.tensors():
            batches.update(index, class_losses(y, index))
        return [t for batch in batches.tensors() for t in batch]

    same_inside_meta(run, x, y)


def plain_on_cpu(attempt: int) -> tuple[AssistedSampler, None]:
    ones = lambda index: torch.ones(len(index), device="cpu")  # noqa: E731
    g, k = torch.Generator("cpu").manual_seed(1), torch.Generator("cpu").manual_seed(2)
    return AssistedSampler(N, B, ones, g, k, base=1.0), None


# --- the Assistant learns, and the trace ----------------------------------------------------------


@pytest.mark.oracle("aa.10")
def test_feedback_reaches_the_assistant_and_the_trace_adds_up(make):
    x, y = data()
    assistant = shared_assistant()
    before = assistant.class_bias.detach().clone()
    options = {"queue_size": 12, "warm_up": 6, "feedback_slots": 9, "train_when": 3}
    with make(assisted, (assistant, x, y), trace=True, **options) as batches:
        started = time.perf_counter()
        steps = drive(batches, y, lambda: batches.counters.get("num_steps", 0) >= 150)
        ended = time.perf_counter()
        with torch.no_grad():
            r = assistant(x, y).sigmoid()
        assert float(r[y == 1].mean()) > 0.6 > 0.4 > float(r[y == 0].mean())
        assert not torch.equal(assistant.class_bias, before)
        assert batches.counters["mean_loss"] > 0.5
        assert 0.3 < batches.keep_rates[-1] < 0.95
        assert batches.steps == len(batches.staleness) == steps
        assert min(batches.staleness) >= 0
        assert 0 < max(batches.staleness) <= 9 + 12 + 1
        events = batches.events
        assert [e.start for e in events] == sorted(e.start for e in events)
        for who in ("boss", "assistant"):
            mine = [e for e in events if e.who == who]
            assert all(a.end <= b.start for a, b in itertools.pairwise(mine))
            assert all(e.start <= e.end for e in mine)
        assert all(0 <= e.batches <= 12 and 0 <= e.feedbacks <= 9 for e in events)
        assert {e.who for e in events if e.what in ("form", "learn")} == {"assistant"}
        boss = [e for e in events if e.who == "boss"]
        assert [e.what for e in boss[:2]] == ["warm_up", "wait"]
        assert boss[0].batches >= 6
        waits = [e for e in boss if e.what == "wait"]
        assert sum(e.end - e.start for e in waits) == pytest.approx(
            batches.waited_seconds, rel=0.1, abs=0.01
        )
        assert batches.waited_seconds < ended - started - batches.warm_up_seconds
        learnt = [e for e in events if e.what == "learn"]
        assert 150 <= len(learnt) <= steps
        assert steps - batches.dropped_feedback >= len(learnt)


def test_the_worker_learns_once_enough_batches_are_ready():
    x, y = data()
    slots = Slots(5, 3, B, None, None)
    boss, theirs = multiprocessing.Pipe()
    index = torch.arange(B)
    for slot in range(2):
        slots.put_feedback(slot, index, class_losses(y, index))
        boss.send((slot, B))
    maker = Maker(assisted, (shared_assistant(), x, y), 0, (N, B), {})

    def work() -> None:
        with contextlib.suppress(Gone):
            Loop(theirs, slots, 3, False).run(maker)

    def receive() -> Any:
        assert boss.poll(10)
        return boss.recv()[0]

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    messages = [receive() for _ in range(7)]
    kinds = [type(message).__name__ for message in messages]
    assert kinds == ["Formed"] * 3 + ["Used"] * 2 + ["Formed"] * 2
    assert [m.used for m in messages if isinstance(m, Formed)] == [0, 0, 0, 2, 2]
    assert not boss.poll(0.05)  # full
    boss.send((2, B))
    assert receive().slot == 2  # learns all the same
    boss.send(3)
    assert receive().slot == 3
    boss.send(None)
    thread.join(10)
    assert not thread.is_alive()


def test_feedback_is_taken_while_the_queue_is_full(make):
    x, y = data()
    with make(assisted, (shared_assistant(), x, y), feedback_slots=2) as batches:
        index = torch.tensor(next(iter(batches)))
        wait_for(lambda: batches._slots.depths()[0] == 20)
        for _ in range(12):  # no batch is taken
            batches.update(index, class_losses(y, index))
            wait_for(lambda: batches._slots.depths() == (20, 0))
        assert batches.dropped_feedback == batches.waiting_feedback == 0


# --- bad input ------------------------------------------------------------------------------------


BAD_FEEDBACK = [
    ([3, 5], [1.0, float("nan")], FloatingPointError, "the loss of example 5 is nan"),
    ([3, 5], [float("inf"), 1.0], FloatingPointError, "the loss of example 3 is inf"),
    ([3, N], [1.0, 1.0], IndexError, f"no example {N} among {N}"),
    ([-1, 3], [1.0, 1.0], IndexError, "no example -1"),
    ([3, 5], [1.0], ValueError, r"losses must have shape \(2,\)"),
    ([[3, 5]], [[1.0, 1.0]], ValueError, r"index must be of integers with shape \(B,\)"),
    ([], [], TypeError, "indices must be integers"),
    (list(range(B + 1)), [1.0] * (B + 1), ValueError, f"need 1 to {B} losses, got {B + 1}"),
    ([0.5], [1.0], TypeError, "indices must be integers, got torch.float32"),
]


@pytest.mark.parametrize("synchronous", [True, False])
def test_bad_feedback_raises_in_the_boss_and_is_not_sent(make, synchronous):
    batches = make(plain, synchronous=synchronous)
    for index, losses, error, message in BAD_FEEDBACK:
        with pytest.raises(error, match=message):
            batches.update(torch.tensor(index), torch.tensor(losses))
    assert batches.dropped_feedback == batches._slots.depths()[1] == 0
    assert len(next(iter(batches))) == B


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queue_size": 8}, "warm_up, train_when <= queue_size"),
        ({"queue_size": 12, "train_when": 13}, "train_when <= queue_size and timeout > 0, got 10"),
        ({"warm_up": 0}, "warm_up=0"),
        ({"feedback_slots": 0}, "feedback_slots=0"),
        ({"train_when": 0}, "train_when=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"timeout": 0.0}, "timeout > 0"),
        ({"timeout": float("nan")}, "timeout > 0"),
        ({"x": torch.zeros(N)}, f"need x and y of {N} examples"),
        ({"x": torch.zeros(N), "y": torch.zeros(N - 1)}, f"need x and y of {N} examples"),
        ({"num_examples": N + 1}, rf"of the sampler are \({N}, {B}\), not \({N + 1}, {B}\)"),
    ],
)
def test_bad_settings_raise(options, message):
    with pytest.raises(ValueError, match=message):
        AsyncBatches(plain, **{"num_examples": N, "batch_size": B, "synchronous": True} | options)


def test_a_factory_that_cannot_be_imported_raises(make):
    with pytest.raises((AttributeError, TypeError, ValueError), match=r"pickle|local"):
        AsyncBatches(lambda attempt: plain(attempt), num_examples=N, batch_size=B)


def test_data_must_be_given_to_come_in_batches(make):
    with pytest.raises(ValueError, match="give x and y"):
        make(plain, synchronous=True).tensors()
