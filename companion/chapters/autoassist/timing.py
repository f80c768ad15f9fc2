"""What the Assistant costs in time, beside a plain loader: on pictures and in translation."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD

from companion.chapters.autoassist.images import assisted
from companion.chapters.autoassist.problems import losses_of, make_model, pictures
from companion.chapters.autoassist.translation import fit_translation
from trainaug.methods.autoassist import (
    AssistantTrainer,
    AssistedSampler,
    AsyncBatches,
    ImageAssistant,
)
from trainaug.training.loop import train
from trainaug.training.randomness import RandomBatchSampler, stream

__all__ = ["time_translation", "time_updates"]

ROUNDS, STEPS = 4, 20  # a round has all ways in turn
WARM_UP, QUEUE = 5, 25  # updates before the clock starts; with a queue, more than it holds
IDLE = 0.1  # seconds for the worker to fill its queue before others are timed
TOKENS = 16_000  # target tokens of a short training
TRACED, LAG = 16, 25  # batches of the timeline; the worker's events come with a batch, so late


def build(
    assistant: ImageAssistant,
    x: Tensor,
    y: Tensor,
    settings: dict[str, Any],
    seed: int,
    *,
    attempt: int,
) -> tuple[AssistedSampler, AssistantTrainer]:
    """Build the sampler and its Assistant in the worker; ``x`` are its features ``(N, D)``."""
    trainer = AssistantTrainer(
        assistant,
        lambda index: (x.index_select(0, index), y.index_select(0, index)),
        lr=settings["assistant_lr"],
        weight_decay=settings["assistant_decay"],
    )
    order, draws = (stream(seed, f"{name}/{attempt}") for name in ("order", "keep"))
    sampler = AssistedSampler(
        len(y), settings["batch"], trainer.predict, order, draws, base=settings["base"]
    )
    return sampler, trainer


def time_updates(
    settings: Mapping[str, Any], seed: int
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Time as many updates with each way to make batches; the order rotates with the seed.

    Returns:
        ``seconds/<way>`` of an update for ``uniform``, ``assist`` and ``async``, the share of the
        time that the Boss waited, dropped feedbacks; and curves of the events of a few batches,
        in milliseconds, with depths of the queues, and counts of batches by staleness.
    """
    data = pictures(settings["data"], seed, settings["num_train"])
    model = make_model(settings["model"], data, seed)
    optimizer = SGD(model.parameters(), settings["lr"], momentum=settings["momentum"])
    n, batch = len(data.train), settings["batch"]
    flat = data.train.x.flatten(1)
    assistant = ImageAssistant(flat.shape[1], 10, stream(seed, "assistant"))
    args = (assistant, (flat - flat.mean()) / flat.std(), data.train.y, dict(settings), seed)

    def update(
        sampler: Any, feedback: Callable[[Tensor, Tensor], object] | None, steps: int
    ) -> float:
        start = time.perf_counter()
        train(model, data.train, sampler, losses_of, optimizer, max_steps=steps, feedback=feedback)
        return (time.perf_counter() - start) / steps

    with AsyncBatches(build, args, num_examples=n, batch_size=batch, trace=True) as batches:
        sampler, trainer = assisted(data, settings, seed)
        plain = RandomBatchSampler(n, batch, stream(seed, "order"))
        ways = {
            "uniform": partial(update, plain, None),
            "assist": partial(update, sampler, trainer.update),
            "async": partial(update, batches, batches.update),
        }
        names, waited, staleness = list(ways), 0.0, list[int]()
        seconds = dict.fromkeys((f"seconds/{name}" for name in names), 0.0)
        for name in ROUNDS * (names[seed % 3 :] + names[: seed % 3]):
            time.sleep(IDLE)
            ways[name](QUEUE if name == "async" else WARM_UP)
            waited_before, given = batches.waited_seconds, len(batches.staleness)
            seconds[f"seconds/{name}"] += ways[name](STEPS) / ROUNDS
            if name == "async":
                waited += batches.waited_seconds - waited_before
                staleness += batches.staleness[given : given + STEPS]
        waiting = waited / (ROUNDS * STEPS * seconds["seconds/async"])
        stale = torch.bincount(torch.tensor(staleness))
        curves = _timeline(batches) | {"staleness": [float(count) for count in stale]}
        dropped = float(batches.dropped_feedback)
    return seconds | {"waiting": waiting, "dropped": dropped}, curves


def time_translation(settings: Mapping[str, Any], seed: int) -> dict[str, float]:
    """Time updates of short trainings, in turn for the samplers; batches have about equal tokens.

    Returns:
        ``seconds/uniform`` and ``seconds/assist``, the median of all updates.
    """

    def updates(sampler: str) -> list[float]:
        stamps: list[float] = []
        short = {**settings, "sampler": sampler, "tokens": TOKENS}
        fit_translation(short, seed, looks=1, watch=lambda: stamps.append(time.perf_counter()))
        return [later - before for before, later in pairwise(stamps)]

    samplers = ("uniform", "assist") if seed % 2 else ("assist", "uniform")
    spent: dict[str, list[float]] = {sampler: [] for sampler in samplers}
    for sampler in 2 * samplers:
        spent[sampler] += updates(sampler)
    return {f"seconds/{sampler}": median(of) for sampler, of in spent.items()}


def _timeline(batches: AsyncBatches) -> dict[str, list[float]]:
    """Milliseconds of the last events of each kind, and the queues' depths at their ends."""
    waits = [e.start for e in batches.events if e.who == "boss" and e.what == "wait"]
    since, until = waits[-TRACED - LAG], waits[-LAG]
    curves: dict[str, list[float]] = {}
    for event in batches.events:
        if not since <= event.start < until or event.what == "warm_up":
            continue
        name = f"{event.who}/{event.what}"
        values = {"start": 1000 * (event.start - since), "end": 1000 * (event.end - since)}
        values |= {"batches": event.batches, "feedbacks": event.feedbacks}
        for key, value in values.items():
            curves.setdefault(f"{name}/{key}", []).append(float(value))
    return {name: values[:60] for name, values in curves.items()}
