"""What the Assistant costs in time, compared with plain batches: on pictures and in translation.

The *Assistant* decides which examples the *Boss*, the network that is wanted, trains on. It can do
so between the Boss's updates, or asynchronously in a worker process with a queue of batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from statistics import median
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor
from torch.optim import SGD

from companion.chapters.autoassist.images import Training, assisted
from companion.chapters.autoassist.problems import losses_of, make_model
from companion.chapters.autoassist.stations import Translation
from companion.chapters.autoassist.translation import fit_translation
from companion.lab.results import Result, make_result
from trainaug.methods.autoassist import (
    AssistantTrainer,
    AssistedSampler,
    AsyncBatches,
    ImageAssistant,
)
from trainaug.training.loop import train
from trainaug.training.randomness import RandomBatchSampler, stream

__all__ = ["Timing", "TranslationTiming", "run_timing", "run_translation_timing"]


@dataclass(frozen=True, kw_only=True)
class Timing(Training):
    """Seconds of an update with each way to make batches.

    Attributes:
        rounds: Rounds; each times every way once.
        round_steps: Timed updates of a way in a round.
        warm_up: Updates before the clock starts.
        queue: Updates before the clock starts with the worker: more batches than its queue holds.
        idle: Seconds that the worker has to fill its queue before the next way is timed.
        traced: Number of batches in the timeline.
        lag: Number of batches before the last at which the timeline ends, since the worker's events
            arrive late, with a batch.
    """

    # the Assistant's process shares tensors of the CPU with the Boss's
    devices: ClassVar[tuple[str, ...]] = ("cpu",)

    rounds: int = 4
    round_steps: int = 20
    warm_up: int = 5
    queue: int = 25
    idle: float = 0.1
    traced: int = 16
    lag: int = 25

    def shortened(self, share: float) -> Self:
        return self

    def tiny(self) -> Self:
        return replace(
            self,
            num_train=200,
            num_val=50,
            num_test=50,
            batch=8,
            rounds=2,
            round_steps=24,
            warm_up=3,
            queue=12,
            idle=0.05,
            traced=6,
            lag=10,
        )


@dataclass(frozen=True, kw_only=True)
class TranslationTiming(Translation):
    """Seconds of an update of a translation.

    Attributes:
        timed_tokens: Target tokens of a short training.
    """

    timed_tokens: int = 16_000

    def shortened(self, share: float) -> Self:
        return self

    def training(self, sampler: Literal["uniform", "assist"]) -> Translation:
        """Return the settings of a training that is timed."""
        return replace(self, sampler=sampler, tokens=self.timed_tokens, evaluations=1)


# at the top of the module: the worker's process imports it
def build_sampler(
    assistant: ImageAssistant,
    x: Tensor,
    y: Tensor,
    settings: Training,
    seed: int,
    *,
    attempt: int,
) -> tuple[AssistedSampler, AssistantTrainer]:
    """Build the sampler and its Assistant in the worker process.

    Args:
        assistant: With its initial weights.
        x: Features that it sees, ``(N, D)``.
        y: Labels, ``(N,)``.
        settings: Those of the arm.
        seed: Seed of order and decisions.
        attempt: Restarts of the worker so far; a restarted one draws from streams of its own.
    """
    trainer = AssistantTrainer(
        assistant,
        lambda index: (x.index_select(0, index), y.index_select(0, index)),
        lr=settings.assistant_lr,
        weight_decay=settings.assistant_decay,
    )
    order, keep_draws = (stream(seed, f"{name}/{attempt}") for name in ("order", "keep"))
    sampler = AssistedSampler(
        len(y), settings.batch, trainer.predict, order, keep_draws, base=settings.base
    )
    return sampler, trainer


def run_timing(settings: Timing, seed: int) -> Result:
    """Time equally many updates with each way to make batches; the order rotates with the seed.

    Metrics are ``seconds/<way>``, of an update, for ``uniform``, ``assist`` and ``async``;
    ``waiting``, the share of the time in which the Boss waited for a batch; and ``dropped``, the
    feedbacks that the worker never got. Curves are the events of a few batches in milliseconds,
    with the depths of the queues, and ``staleness``: batches by the number of feedbacks that their
    decisions did not know.
    """
    data = settings.draw(seed)
    model = make_model(settings.model, data, seed)
    optimizer = SGD(model.parameters(), settings.lr, momentum=settings.momentum)
    n, batch, steps = len(data.train), settings.batch, settings.round_steps
    flat = data.train.x.flatten(1)
    assistant = ImageAssistant(flat.shape[1], 10, stream(seed, "assistant"))
    worker_args = (assistant, (flat - flat.mean()) / flat.std(), data.train.y, settings, seed)

    def update(
        sampler: Iterable[Sequence[int]],
        feedback: Callable[[Tensor, Tensor], object] | None,
        steps: int,
    ) -> float:
        start = time.perf_counter()
        train(model, data.train, sampler, losses_of, optimizer, max_steps=steps, feedback=feedback)
        return (time.perf_counter() - start) / steps

    with AsyncBatches(
        build_sampler, worker_args, num_examples=n, batch_size=batch, trace=True
    ) as batches:
        sampler, trainer = assisted(data, settings, seed)
        ways = {
            "uniform": partial(update, RandomBatchSampler(n, batch, stream(seed, "order")), None),
            "assist": partial(update, sampler, trainer.update),
            "async": partial(update, batches, batches.update),
        }
        names = list(ways)
        first = seed % len(names)
        metrics = dict.fromkeys((f"seconds/{name}" for name in names), 0.0)
        waited = 0.0
        staleness: list[int] = []
        for name in settings.rounds * (names[first:] + names[:first]):
            time.sleep(settings.idle)
            ways[name](settings.queue if name == "async" else settings.warm_up)
            waited_before, count_before = batches.waited_seconds, len(batches.staleness)
            metrics[f"seconds/{name}"] += ways[name](steps) / settings.rounds
            if name == "async":
                waited += batches.waited_seconds - waited_before
                staleness += batches.staleness[count_before : count_before + steps]
        metrics["waiting"] = waited / (settings.rounds * steps * metrics["seconds/async"])
        metrics["dropped"] = float(batches.dropped_feedback)
        curves = _timeline(batches, settings)
    counts = torch.bincount(torch.tensor(staleness))
    return make_result(metrics, curves | {"staleness": [float(count) for count in counts]})


def run_translation_timing(settings: TranslationTiming, seed: int) -> Result:
    """Time the updates of short trainings, two with each sampler in turn.

    Metrics ``seconds/uniform`` and ``seconds/assist`` are medians over all updates, whose batches
    have about equally many tokens.
    """

    def updates(sampler: Literal["uniform", "assist"]) -> list[float]:
        stamps: list[float] = []
        training = settings.training(sampler)
        fit_translation(training, seed, watch=lambda: stamps.append(time.perf_counter()))
        return [later - before for before, later in pairwise(stamps)]

    samplers: list[Literal["uniform", "assist"]] = ["uniform", "assist"]
    if seed % 2 == 0:
        samplers.reverse()
    seconds: dict[str, list[float]] = {sampler: [] for sampler in samplers}
    for sampler in 2 * samplers:
        seconds[sampler] += updates(sampler)
    return make_result({f"seconds/{name}": median(values) for name, values in seconds.items()})


def _timeline(batches: AsyncBatches, settings: Timing) -> dict[str, list[float]]:
    """Milliseconds of the last events of each kind, and the queues' depths at their ends."""
    waits = [e.start for e in batches.events if e.who == "boss" and e.what == "wait"]
    since, until = waits[-settings.traced - settings.lag], waits[-settings.lag]
    curves: dict[str, list[float]] = {}
    for event in batches.events:
        if not since <= event.start < until or event.what == "warm_up":
            continue
        name = f"{event.who}/{event.what}"
        values = {"start": 1000 * (event.start - since), "end": 1000 * (event.end - since)}
        values |= {"batches": event.batches, "feedbacks": event.feedbacks}
        for key, value in values.items():
            curves.setdefault(f"{name}/{key}", []).append(float(value))
    return {name: values[: settings.curve_points] for name, values in curves.items()}
