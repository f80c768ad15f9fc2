"""What gives a translation arm its batches: pools of sentences, cut by length; and who learns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from companion.chapters.autoassist.corpora import Corpus
from trainaug.data.subwords import document_counts, tfidf_bags
from trainaug.methods.autoassist import (
    AssistantTrainer,
    AssistedSampler,
    RandomSkip,
    SelfPacedWeights,
    TextAssistant,
)
from trainaug.training.randomness import RandomBatchSampler, stream
from trainaug.training.translation import PAD

__all__ = ["Station", "TokenBatches", "station"]


class TokenBatches:
    """Cut the pools that a sampler gives into batches of like length, until the budget is spent."""

    def __init__(
        self, sampler: Any, lengths: Tensor, most: int, budget: int, generator: torch.Generator
    ) -> None:
        self.sampler, self.lengths, self.most, self.budget = sampler, lengths, most, budget
        self.generator = generator
        self.tokens, self.sentences = 0, 0

    def cut(self, pool: Sequence[int]) -> list[list[int]]:
        """Shortest first; rows times the longest of a batch are at most ``most``, or it is one."""
        index = torch.as_tensor(pool, device="cpu")
        index = index[self.lengths[index].argsort(stable=True)]
        batches: list[list[int]] = [[]]
        for row, length in zip(index.tolist(), self.lengths[index].tolist(), strict=True):
            if batches[-1] and (len(batches[-1]) + 1) * length > self.most:
                batches.append([])
            batches[-1].append(row)
        return batches

    def __iter__(self) -> Iterator[list[int]]:
        while True:  # passes over the training part
            for pool in self.sampler:
                batches = self.cut(pool)
                order = torch.randperm(len(batches), generator=self.generator, device="cpu")
                for place in order.tolist():
                    self.tokens += int(self.lengths[batches[place]].sum())
                    self.sentences += len(batches[place])
                    yield batches[place]
                    if self.tokens >= self.budget:
                        return


@dataclass
class Station:
    """What gives an arm its batches and what learns; the Assistant's work in multiply-adds."""

    sampler: Any
    feedback: Callable[[Tensor, Tensor], object] | None = None
    weights: Callable[[Tensor], Tensor] | None = None
    work: Callable[[], float] = lambda: 0.0
    trainer: AssistantTrainer | None = None


def station(
    settings: Mapping[str, Any],
    corpus: Corpus,
    seed: int,
    keep_rates: Sequence[float] | None,
    pass_batches: Callable[[], int],
) -> Station:
    """Make the station of an arm by its ``sampler``; a ValueError if that is unknown."""
    n, pool, name = len(corpus.pairs["train"]), settings["pool"], settings["sampler"]
    order, draws = stream(seed, "order"), stream(seed, "keep")
    if name == "uniform":
        return Station(RandomBatchSampler(n, pool, order))
    if name == "assist":
        return _assist(settings, corpus, seed)
    if name == "random":
        if not keep_rates:
            raise ValueError(f"random skipping needs the keep rates of a run, got {keep_rates}")
        skip = RandomSkip(keep_rates)
        return Station(
            AssistedSampler(n, pool, skip.predict, order, draws, base=0.0, on_pass=skip.on_pass)
        )
    if name == "selfpaced":
        paced = SelfPacedWeights(n, pass_batches(), start=100.0, epochs=settings["pace_epochs"])
        return Station(RandomBatchSampler(n, pool, order), paced.update, paced.weights)
    raise ValueError(f"unknown sampler {name!r}")


def _assist(settings: Mapping[str, Any], corpus: Corpus, seed: int) -> Station:
    pairs, size = corpus.pairs["train"], len(corpus.subwords)
    bags = [
        part
        for side in (pairs.source, pairs.target)
        for part in tfidf_bags(side, size, document_counts(side, size))
    ]  # units and weights of the source, of the target
    assistant = TextAssistant(size, size, stream(seed, "assistant"))
    trainer = AssistantTrainer(
        assistant,
        lambda index: tuple(part[index] for part in bags),
        lr=settings["assistant_lr"],
        weight_decay=settings["assistant_decay"],
        mean=settings["mean"],
    )
    asked = learnt = 0

    def predict(index: Tensor) -> Tensor:
        nonlocal asked
        asked += len(index)
        return trainer.predict(index)

    def feedback(index: Tensor, losses: Tensor) -> None:
        nonlocal learnt
        learnt += len(index)
        trainer.update(index, losses)

    sampler = AssistedSampler(
        len(pairs),
        settings["pool"],
        predict,
        stream(seed, "order"),
        stream(seed, "keep"),
        base=settings["base"],
        confidence=lambda: trainer.confidence,
        on_pass=trainer.end_epoch,
    )
    units = sum(float((part != PAD).sum()) for part in bags[::2]) / len(pairs)
    numbers = sum(p.numel() for p in assistant.parameters())

    def work() -> float:  # two weights a unit; a step costs three guesses and is dense
        return 2 * units * (asked + 3 * learnt) + 2 * numbers * trainer.num_steps

    return Station(sampler, feedback, work=work, trainer=trainer)
