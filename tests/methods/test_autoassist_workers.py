"""The asynchronous AutoAssist, with real processes: same batches, failures, ends, restarts, trace.

Every wait is bounded; the factories below are imported by the workers, hence at top level.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainaug.methods.autoassist import (
    AssistantTrainer,
    AssistedSampler,
    AsyncBatches,
    ImageAssistant,
    WorkerError,
)
from trainaug.methods.autoassist.channels import Formed, Slots
from trainaug.methods.autoassist.loop import Gone, Loop, Maker

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")

N, B = 203, 8  # the last batch of a full pass has 3


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def data() -> tuple[Tensor, Tensor]:
    y = torch.arange(N) % 2
    return torch.randn(N, 4, generator=seeded(1)), y


# --- what the worker builds -----------------------------------------------------------------------


def ones(index: Tensor) -> Tensor:
    return torch.ones(len(index))


def plain(attempt: int, drop_last: bool = False) -> tuple[AssistedSampler, None]:
    g, k = seeded(7 + attempt), seeded(8)
    return AssistedSampler(N, B, ones, g, k, base=1.0, drop_last=drop_last), None


def assisted(
    assistant: ImageAssistant, x: Tensor, y: Tensor, attempt: int
) -> tuple[AssistedSampler, AssistantTrainer]:
    trainer = AssistantTrainer(assistant, lambda i: (x[i], y[i]), lr=0.5)
    g, k = seeded(20 + attempt), seeded(30 + attempt)
    sampler = AssistedSampler(
        N, B, trainer.predict, g, k, base=0.3, confidence=lambda: trainer.confidence
    )
    return sampler, trainer


def base_of(base: float, attempt: int) -> tuple[AssistedSampler, None]:
    zeros = lambda index: torch.zeros(len(index))  # noqa: E731
    return AssistedSampler(N, B, zeros, seeded(1), seeded(2), base=base), None


def breaks(after: int, attempt: int) -> tuple[AssistedSampler, None]:
    calls = iter(range(after))

    def predict(index: Tensor) -> Tensor:
        if next(calls, None) is None:
            raise EOFError("no more predictions")
        return torch.ones(len(index))

    return AssistedSampler(N, B, predict, seeded(1), seeded(2), base=1.0), None


def sleeps(attempt: int) -> tuple[AssistedSampler, None]:
    time.sleep(600)
    return plain(attempt)


def leaves(attempt: int) -> tuple[AssistedSampler, None]:
    sys.exit(3)


# --- help -----------------------------------------------------------------------------------------

Make = Callable[..., AsyncBatches]


@pytest.fixture
def make() -> Iterator[Make]:
    """Make `AsyncBatches` and see that closing them leaves no process and no open file."""
    made: list[AsyncBatches] = []
    multiprocessing.resource_tracker.ensure_running()
    files = psutil.Process().num_fds()

    def start(build: Any, args: tuple[Any, ...] = (), **options: Any) -> AsyncBatches:
        options = {"num_examples": N, "batch_size": B, "timeout": 90.0} | options
        made.append(AsyncBatches(build, args, **options))
        return made[-1]

    yield start
    for batches in made:
        batches.close()
        batches.close()
        assert batches.worker_pid is None
        batches._slots = None  # type: ignore[assignment]
    made.clear()
    assert multiprocessing.active_children() == []
    assert psutil.Process().num_fds() <= files + 4  # what a test itself may still share


def is_gone(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def class_losses(y: Tensor, index: Tensor) -> Tensor:
    return 0.1 + 1.9 * (y[index] == 1)  # class 1 is hard


def shared_assistant() -> ImageAssistant:
    return ImageAssistant(4, 2, seeded(3)).share_memory()


def drive(batches: AsyncBatches, y: Tensor, until: Callable[[], bool]) -> int:
    """Be a Boss of 1 ms a step until a condition; every batch must be well-formed."""
    end = time.monotonic() + 120
    steps = 0
    while True:
        for indices in batches:
            assert 0 < len(set(indices)) == len(indices) <= B
            time.sleep(0.001)
            batches.feedback(torch.tensor(indices), class_losses(y, torch.tensor(indices)))
            steps += 1
            if until():
                return steps
            assert time.monotonic() < end, "it did not happen"


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
        ours = run(batches, feedback=batches.feedback)
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
                batches.feedback(torch.tensor(indices), class_losses(y, torch.tensor(indices)))
            for indices in sampler:
                want.append(indices)
                trainer.feedback(torch.tensor(indices), class_losses(y, torch.tensor(indices)))
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
            batches.feedback(index, class_losses(y, index))
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


# --- failures of the worker -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "args", "message"),
    [
        (base_of, (1.5,), r"ValueError: the base pass rate must be in \[0, 1\], got 1.5"),
        (base_of, (-0.1,), r"ValueError: the base pass rate must be in \[0, 1\], got -0.1"),
        (base_of, (0.0,), "RuntimeError: (.|\n)*examples scanned|kept 0, too few for a batch"),
        (leaves, (), "exit code 3"),
    ],
)
def test_what_the_worker_raises_comes_back(make, build, args, message):
    batches = make(build, args)
    pid = batches.worker_pid
    for _ in range(2):
        with pytest.raises(WorkerError, match=message):
            next(iter(batches))
    assert is_gone(pid)


def test_batches_made_before_an_error_are_given(make):
    batches = make(breaks, (12,), queue_size=5, warm_up=5)
    got = iter(batches)
    assert len([next(got) for _ in range(12)]) == 12
    for left in (got, iter(batches)):
        with pytest.raises(WorkerError, match="EOFError: no more predictions"):
            next(left)


@pytest.mark.oracle("aa.10")
def test_a_killed_worker_is_named_and_a_new_one_goes_on(make):
    x, y = data()
    assistant = shared_assistant()
    batches = make(assisted, (assistant, x, y))
    drive(batches, y, lambda: batches.counters.get("num_steps", 0) >= 30)
    first = batches.worker_pid
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: is_gone(first))
    with pytest.raises(WorkerError, match=r"exit code -9: restart\(\)"):
        drive(batches, y, lambda: False)
    assert batches.worker_pid is None
    batches.feedback(torch.tensor([0]), torch.tensor([1.0]))  # harmless
    learnt, steps = assistant.class_bias.detach().clone(), batches.counters["num_steps"]
    assert float(learnt[1] - learnt[0]) > 0.1
    batches.restart()
    assert batches.attempt == 1
    assert batches.worker_pid != first
    again = next(iter(batches))
    assert again != next(iter(assisted(shared_assistant(), x, y, 0)[0])), "the same order again"
    # one step of the old worker may have come after the last message: its weights count
    torch.testing.assert_close(assistant.class_bias.detach(), learnt, rtol=0, atol=0)
    drive(batches, y, lambda: batches.counters["num_steps"] != steps)
    assert batches.counters["num_steps"] > steps, "the counters began anew"
    assert not torch.equal(assistant.class_bias.detach(), learnt)


@pytest.mark.oracle("aa.10")
def test_a_stopped_worker_never_blocks_feedback_and_times_out(make):
    x, y = data()
    batches = make(assisted, (shared_assistant(), x, y), feedback_slots=4)
    index = torch.arange(B)
    next(iter(batches))
    wait_for(lambda: batches._slots.depths()[0] == 20)
    os.kill(batches.worker_pid, signal.SIGSTOP)
    start = time.perf_counter()
    for _ in range(50):
        batches.feedback(index, class_losses(y, index))
        assert time.perf_counter() - start < 1.0
    assert batches.dropped_feedback == 46
    batches.timeout = 0.3
    got = iter(batches)
    for _ in range(20):
        next(got)
    start = time.perf_counter()
    with pytest.raises(TimeoutError, match=r"0 of 1 batches within 0.3 s.*raise timeout"):
        next(got)
    assert 0.25 < time.perf_counter() - start < 3.0
    os.kill(batches.worker_pid, signal.SIGCONT)
    batches.timeout = 90.0
    next(iter(batches))
    drive(batches, y, lambda: batches.counters.get("num_steps", 0) >= 6)
    os.kill(batches.worker_pid, signal.SIGSTOP)  # closing kills it all the same


def test_feedback_is_taken_while_the_queue_is_full(make):
    x, y = data()
    with make(assisted, (shared_assistant(), x, y), feedback_slots=2) as batches:
        index = torch.tensor(next(iter(batches)))
        wait_for(lambda: batches._slots.depths()[0] == 20)
        for _ in range(12):  # no batch is taken
            batches.feedback(index, class_losses(y, index))
            wait_for(lambda: batches._slots.depths() == (20, 0))
        assert batches.dropped_feedback == 0


def test_closing_does_not_wait_for_a_busy_worker(make):
    batches = make(sleeps, timeout=0.5)
    with pytest.raises(TimeoutError, match="0 of 10 batches"):
        next(iter(batches))
    pid = batches.worker_pid
    start = time.perf_counter()
    batches.close()
    assert time.perf_counter() - start < 10
    assert is_gone(pid)
    with pytest.raises(WorkerError, match="closed"):
        next(iter(batches))
    batches.feedback(torch.tensor([0]), torch.tensor([1.0]))
    assert batches.dropped_feedback == 1


# --- the ends of the Boss -------------------------------------------------------------------------

SCRIPT = """
import sys, time
sys.path.insert(0, {folder!r})
import torch
import test_autoassist_workers as t
from trainaug.methods.autoassist import AsyncBatches

if __name__ == "__main__":
    options = dict(num_examples=t.N, batch_size=t.B, timeout=90.0)
    {first}
    print(batches.worker_pid, flush=True)
    {then}
"""
LOOP = """with batches:
        while True:
            for indices in batches:
                time.sleep(0.002)
                print("step", flush=True)"""


@pytest.fixture
def run_script(tmp_path: Path) -> Iterator[Callable[[str, str], subprocess.Popen[str]]]:
    """Start a Boss in a session of its own; what is left of it is killed after the test."""
    started: list[subprocess.Popen[str]] = []

    def run(first: str, then: str) -> subprocess.Popen[str]:
        path = tmp_path / "boss.py"
        folder = str(Path(__file__).parent)
        path.write_text(SCRIPT.format(folder=folder, first=first, then=then), encoding="utf-8")
        boss = subprocess.Popen(
            [sys.executable, str(path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # a shell starts background jobs with SIGINT ignored; a terminal does not
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        started.append(boss)
        return boss

    yield run
    for boss in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(boss.pid, signal.SIGKILL)
        boss.communicate(timeout=10)


@pytest.mark.oracle("aa.10")
@pytest.mark.parametrize("build", ["plain", "sleeps"])
def test_a_worker_does_not_outlive_a_killed_boss(run_script, build):
    then = LOOP if build == "plain" else "time.sleep(600)"
    boss = run_script(f"batches = AsyncBatches(t.{build}, **options)", then)
    pid = int(boss.stdout.readline())
    if build == "plain":
        assert boss.stdout.readline() == "step\n"
    else:
        wait_for(lambda: psutil.Process(pid).num_threads() > 1)  # it watches its parent
    boss.kill()
    wait_for(lambda: is_gone(pid), 30.0)  # 1 s on an idle machine


@pytest.mark.oracle("aa.10")
@pytest.mark.parametrize("early", [True, False])
def test_ctrl_c_ends_both_at_once(run_script, early):
    boss = run_script("batches = AsyncBatches(t.plain, **options)", LOOP)
    pid = int(boss.stdout.readline())
    if early:  # the worker still imports torch
        wait_for(lambda: psutil.Process(pid).cpu_times().user > 0.3)
    else:
        for _ in range(3):
            assert boss.stdout.readline() == "step\n"
    start = time.monotonic()
    os.killpg(boss.pid, signal.SIGINT)
    _, errors = boss.communicate(timeout=90)
    assert time.monotonic() - start < 30  # 3 s on an idle machine
    assert boss.returncode != 0
    assert errors.count("KeyboardInterrupt") == 1, errors
    assert errors.count("Traceback") == 1, errors
    assert "resource_tracker" not in errors
    wait_for(lambda: is_gone(pid), 30.0)  # 1 s on an idle machine


def test_a_boss_that_forgets_to_close_ends_in_silence(run_script):
    boss = run_script("batches = AsyncBatches(t.plain, **options)", "print(len(list(batches)))")
    pid = int(boss.stdout.readline())
    out, errors = boss.communicate(timeout=90)
    assert (out, errors, boss.returncode) == ("26\n", "", 0)
    assert is_gone(pid)


# --- bad input ------------------------------------------------------------------------------------


BAD_FEEDBACK = [
    ([3, 5], [1.0, float("nan")], FloatingPointError, "the loss of example 5 is nan"),
    ([3, 5], [float("inf"), 1.0], FloatingPointError, "the loss of example 3 is inf"),
    ([3, N], [1.0, 1.0], IndexError, f"no example {N} among {N}"),
    ([-1, 3], [1.0, 1.0], IndexError, "no example -1"),
    ([3, 5], [1.0], ValueError, r"losses must have shape \(2,\)"),
    ([[3, 5]], [[1.0, 1.0]], ValueError, "losses must have shape"),
    ([], [], TypeError, "indices must be integers"),
    (list(range(B + 1)), [1.0] * (B + 1), ValueError, f"need 1 to {B} losses, got {B + 1}"),
    ([0.5], [1.0], TypeError, "indices must be integers, got torch.float32"),
]


@pytest.mark.parametrize("synchronous", [True, False])
def test_bad_feedback_raises_in_the_boss_and_is_not_sent(make, synchronous):
    batches = make(plain, synchronous=synchronous)
    for index, losses, error, message in BAD_FEEDBACK:
        with pytest.raises(error, match=message):
            batches.feedback(torch.tensor(index), torch.tensor(losses))
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
