"""Chapter 3: small timings, one with a real worker."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from companion.chapters.autoassist import timing
from companion.chapters.autoassist.stations import Translation
from companion.chapters.autoassist.timing import (
    Timing,
    TranslationTiming,
    run_timing,
    run_translation_timing,
)
from companion.lab.results import Result
from trainaug.methods.autoassist import AsyncBatches, ImageAssistant
from trainaug.training.randomness import stream

SETTINGS = Timing(data="fashion", lr=0.02).tiny()
WAYS = ("uniform", "assist", "async")
KINDS = ("boss/wait", "assistant/form", "assistant/learn", "assistant/wait")


@pytest.fixture(scope="module")
def timed() -> tuple[Result, AsyncBatches, list[str]]:
    made: list[Any] = []
    slept: list[float] = []
    order: list[str] = []

    class Watched(AsyncBatches):
        def __init__(self, *given: Any, **more: Any) -> None:
            super().__init__(*given, timeout=300.0, **more)  # on a busy machine
            made.append((self, self.worker_pid))

    real = timing.train

    def train(model: Any, data: Any, sampler: Any, *given: Any, **more: Any) -> Any:
        order.append(f"{type(sampler).__name__} {more['max_steps']}")
        return real(model, data, sampler, *given, **more)

    clock = SimpleNamespace(sleep=slept.append, perf_counter=time.perf_counter)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "AsyncBatches", Watched)
        patch.setattr(timing, "train", train)
        patch.setattr(timing, "time", clock)
        result = run_timing(SETTINGS, 1)
    assert slept == [SETTINGS.idle] * 3 * SETTINGS.rounds
    batches, pid = made[0]
    assert len(made) == 1
    assert batches.worker_pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)  # the worker is gone
    return result, batches, order


def test_seconds_are_of_every_way_after_warming_up(timed):
    result, _, order = timed
    assert set(result.metrics) == {*(f"seconds/{way}" for way in WAYS), "waiting", "dropped"}
    assert all(0 < result.metrics[f"seconds/{way}"] < 60 for way in WAYS)
    assert 0 <= result.metrics["waiting"] <= 1
    assert result.metrics["dropped"] >= 0
    kinds = ("AssistedSampler", "Watched", "RandomBatchSampler")  # seed 1 begins with the second
    warm_up = dict.fromkeys(kinds, SETTINGS.warm_up) | {"Watched": SETTINGS.queue}
    steps = SETTINGS.round_steps
    expected = [f"{kind} {count}" for kind in kinds for count in (warm_up[kind], steps)]
    assert order == SETTINGS.rounds * expected


def test_the_timeline_is_inside_its_window(timed):
    result, batches, _ = timed
    curves, traced, lag = result.curves, SETTINGS.traced, SETTINGS.lag
    waits = [e.start for e in batches.events if (e.who, e.what) == ("boss", "wait")]
    length = 1000 * (waits[-lag] - waits[-traced - lag])
    assert len(curves["boss/wait/start"]) == traced
    assert curves["boss/wait/start"][0] == 0
    for kind in KINDS:
        if f"{kind}/start" not in curves:  # a busy machine may leave no time to learn in it
            assert kind != "boss/wait"
            continue
        starts, ends = curves[f"{kind}/start"], curves[f"{kind}/end"]
        assert all(0 <= start < length for start in starts)
        assert all(start <= end for start, end in zip(starts, ends, strict=True))
        for queue, most in (("batches", 20), ("feedbacks", 21)):
            depths = curves[f"{kind}/{queue}"]
            assert len(depths) == len(starts)
            assert all(0 <= depth <= most for depth in depths)


def test_every_timed_batch_has_a_staleness(timed):
    result, batches, _ = timed
    steps, queue, rounds = SETTINGS.round_steps, SETTINGS.queue, SETTINGS.rounds
    counts = result.curves["staleness"]
    assert sum(counts) == rounds * steps
    assert len(counts) - 1 <= 41  # queues of 20 and the one at work
    starts = [queue + k * (queue + steps) for k in range(rounds)]
    ages = [age for start in starts for age in batches.staleness[start : start + steps]]
    assert counts == torch.bincount(torch.tensor(ages)).tolist()


def test_a_restarted_worker_draws_anew_and_learns_from_all_features():
    data = replace(SETTINGS, num_train=40).draw(0)
    x, y = data.train.x.flatten(1), data.train.y
    built = []
    for attempt in (0, 0, 1):
        assistant = ImageAssistant(784, 10, stream(0, "assistant"))
        built.append(timing.build_sampler(assistant, x, y, SETTINGS, 0, attempt=attempt))
    batches = [list(sampler) for sampler, _ in built]
    assert batches[0] == batches[1] != batches[2]
    trainer = built[0][1]
    before = trainer.predict(torch.arange(40))
    trainer.update(torch.arange(8), torch.arange(8.0))
    trainer.update(torch.arange(8), torch.arange(8.0) + 5)
    assert trainer.num_steps == 2
    assert not torch.equal(trainer.predict(torch.arange(40)), before)


# --- translation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
def test_an_update_has_the_median_seconds_without_what_comes_once(monkeypatch, seed):
    now = 0.0
    calls: list[str] = []

    def fit(settings: Translation, given: int, *, watch: Callable[[], object]) -> None:
        nonlocal now
        assert (given, settings.evaluations, settings.lr, settings.tokens) == (seed, 1, 0.5, 1000)
        now += 5000  # before the first update
        for step in range(12):
            now += 900 if step == 5 else {"uniform": 2.0, "assist": 3.0}[settings.sampler]
            watch()
        calls.append(settings.sampler)

    monkeypatch.setattr(timing, "fit_translation", fit)
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now))
    settings = TranslationTiming(
        data="libreoffice", lr=0.5, assistant_lr=0.5, assistant_decay=0.1, timed_tokens=1000
    )
    result = run_translation_timing(settings, seed)
    assert result.metrics == {"seconds/uniform": 2.0, "seconds/assist": 3.0}
    order = ["uniform", "assist"] if seed % 2 else ["assist", "uniform"]
    assert calls == 2 * order
