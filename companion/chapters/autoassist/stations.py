"""What gives a translation arm its batches, pools of sentences cut by length, and what learns.

The *Assistant* decides which sentences the *Boss*, the translation model, trains on. Sampler and
learner of an arm together are its *station*.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from companion.chapters.autoassist.corpora import FOLDERS, Corpus, load_corpus
from companion.lab.arms import Settings
from companion.lab.device import run_device
from trainaug.data.registry import content_hash
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

__all__ = ["Station", "TokenBatches", "Translation", "cut_by_length", "make_station"]


@dataclass(frozen=True, kw_only=True)
class Translation(Settings):
    """Training of a translation.

    Attributes:
        data: ``libreoffice``, ``iwslt14`` or ``wmt14``.
        sampler: How sentences are chosen; ``random`` is the control of an Assistant.
        max_words: Longest sentences of LibreOffice's help.
        vocabulary: Number of sub-words.
        held_out: Sentences of validation and of test.
        longest: Sub-words after which a sentence is cut.
        lr: Learning rate of the Boss.
        betas: Betas of the Boss's Adam.
        clip: Largest norm of the Boss's gradient.
        rate_fall: Share of the learning rate that is gone at the end.
        warm_up: Steps over which the learning rate rises.
        tokens: Target tokens that the Boss is trained on.
        batch_tokens: Padded target tokens of a batch.
        pool: Sentences decided on at once, then cut into batches of about equal length.
        base: Base pass rate of the Assistant.
        mean: What a loss is compared with: the ``running`` mean, or that of the ``epoch`` before.
        assistant_lr: Learning rate of the Assistant.
        assistant_decay: Weight decay of the Assistant.
        control_lr: Learning rate of the control, which skips as many at random; only where an arm
            trains one.
        pace_epochs: Passes until self-paced learning has all; the authors take 10 of 100.
        pace_start: Loss that self-paced learning assumes for a sentence not seen yet.
        evaluations: Evaluations of the validation part, after equally many target tokens each.
        probe: Training sentences that the Assistant's guesses are judged on.
        probe_every: Evaluations, about a pass, between two judgements.
        eval_batch: Sentences of a batch that is only evaluated.
        samples: Translations that a record keeps.
    """

    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")

    data: str  # no default, like the Assistant's two: records have always stated them
    sampler: Literal["uniform", "assist", "random", "selfpaced"] = "uniform"
    max_words: int = 12
    vocabulary: int = 2000
    held_out: int = 500
    longest: int = 64
    lr: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    rate_fall: float = 0.95
    warm_up: int = 200
    tokens: int = 600_000
    batch_tokens: int = 800
    pool: int = 512
    base: float = 0.3
    mean: Literal["running", "epoch"] = "running"
    assistant_lr: float
    assistant_decay: float
    control_lr: float = 0.04
    pace_epochs: int = 2
    pace_start: float = 100.0
    evaluations: int = 20
    probe: int = 500
    probe_every: int = 5
    eval_batch: int = 100
    samples: int = 6

    def __post_init__(self) -> None:
        for name in ("tokens", "batch_tokens", "warm_up"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def data_hash(self) -> str:
        return self.data if self.data in FOLDERS else content_hash("libreoffice_help")

    def shortened(self, share: float) -> Self:
        return replace(self, tokens=max(1, round(self.tokens * share)))

    def tiny(self) -> Self:
        return replace(
            self,
            tokens=2400,
            batch_tokens=120,
            pool=32,
            warm_up=4,
            vocabulary=60,
            pace_epochs=1,
            held_out=12,
            longest=16,
            probe=30,
            probe_every=4,
        )

    def control(self) -> Self:
        """Return the settings of its control."""
        return replace(self, sampler="random", lr=self.control_lr)

    def corpus(self) -> Corpus:
        """Load its sentences."""
        return load_corpus(
            self.data,
            self.max_words,
            self.vocabulary,
            held_out=self.held_out,
            longest=self.longest,
        )


def cut_by_length(pool: Sequence[int], lengths: Tensor, most: int) -> list[list[int]]:
    """Cut a pool of sentences into batches, the shortest first.

    The number of sentences times the length of the longest is at most ``most``, unless a batch is
    one sentence.

    Args:
        pool: Numbers of the sentences.
        lengths: Target tokens of every sentence, ``(N,)``.
        most: Padded target tokens of a batch.
    """
    index = torch.as_tensor(pool, device="cpu")
    index = index[lengths[index].argsort(stable=True)]
    batches: list[list[int]] = [[]]
    for sentence, length in zip(index.tolist(), lengths[index].tolist(), strict=True):
        if batches[-1] and (len(batches[-1]) + 1) * length > most:
            batches.append([])
        batches[-1].append(sentence)
    return batches


class TokenBatches:
    """Cut the pools that a sampler gives into batches of like length, until the budget is spent.

    Args:
        sampler: Gives pools, pass after pass.
        lengths: Target tokens of each sentence.
        most: Padded target tokens of a batch.
        budget: Target tokens after which there are no more batches.
        generator: Source of the order of a pool's batches.
    """

    def __init__(
        self,
        sampler: Iterable[Sequence[int]],
        lengths: Tensor,
        most: int,
        budget: int,
        generator: torch.Generator,
    ) -> None:
        self.sampler, self.lengths, self.most, self.budget = sampler, lengths, most, budget
        self.generator = generator
        self.tokens, self.sentences = 0, 0

    def __iter__(self) -> Iterator[list[int]]:
        while True:  # passes over the training part
            for pool in self.sampler:
                batches = cut_by_length(pool, self.lengths, self.most)
                order = torch.randperm(len(batches), generator=self.generator, device="cpu")
                for number in order.tolist():
                    self.tokens += int(self.lengths[batches[number]].sum())
                    self.sentences += len(batches[number])
                    yield batches[number]
                    if self.tokens >= self.budget:
                        return


@dataclass
class Station:
    """What gives an arm its batches, and what learns from the losses.

    Attributes:
        sampler: Gives pools of sentences.
        feedback: Is given the numbers and losses of each batch.
        weights: Gives the weights of a batch's losses.
        work: Gives the Assistant's work so far, in multiply-adds.
        trainer: That of the Assistant.
    """

    sampler: RandomBatchSampler | AssistedSampler
    feedback: Callable[[Tensor, Tensor], object] | None = None
    weights: Callable[[Tensor], Tensor] | None = None
    work: Callable[[], float] = lambda: 0.0
    trainer: AssistantTrainer | None = None


def make_station(
    settings: Translation, corpus: Corpus, seed: int, keep_rates: Sequence[float]
) -> Station:
    """Make the station of an arm.

    Args:
        settings: Those of the arm.
        corpus: Its sentences.
        seed: Draws order and decisions.
        keep_rates: Share kept in each pass, for ``sampler="random"``.

    Raises:
        ValueError: If the sampler is unknown, or random without rates.
    """
    pairs, pool, name = corpus.pairs["train"], settings.pool, settings.sampler
    n, order, draws = len(pairs), stream(seed, "order"), stream(seed, "keep")
    if name == "uniform":
        return Station(RandomBatchSampler(n, pool, order))
    if name == "assist":
        return _assisted_station(settings, corpus, seed)
    if name == "random":
        if not keep_rates:
            raise ValueError(f"random skipping needs the keep rates of a run, got {keep_rates}")
        skip = RandomSkip(keep_rates)
        return Station(
            AssistedSampler(n, pool, skip.predict, order, draws, base=0.0, on_pass=skip.on_pass)
        )
    if name == "selfpaced":
        num_batches = len(cut_by_length(range(n), pairs.lengths, settings.batch_tokens))
        paced = SelfPacedWeights(
            n, num_batches, start=settings.pace_start, epochs=settings.pace_epochs
        )
        return Station(RandomBatchSampler(n, pool, order), paced.update, paced.weights)
    raise ValueError(f"unknown sampler {name!r}")


def _assisted_station(settings: Translation, corpus: Corpus, seed: int) -> Station:
    """Make the station of an Assistant, which sees both sentences as bags of sub-words."""
    pairs, size = corpus.pairs["train"], len(corpus.subwords)
    device = run_device()
    bags = [
        part.to(device)
        for side in (pairs.source, pairs.target)
        for part in tfidf_bags(side, size, document_counts(side, size))
    ]  # units and weights of the source, of the target
    assistant = TextAssistant(size, size, stream(seed, "assistant")).to(device)
    trainer = AssistantTrainer(
        assistant,
        lambda index: tuple(part[index] for part in bags),
        lr=settings.assistant_lr,
        weight_decay=settings.assistant_decay,
        mean=settings.mean,
    )
    asked = learnt = 0  # sentences that the Assistant guessed on, and that it learnt from

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
        settings.pool,
        predict,
        stream(seed, "order"),
        stream(seed, "keep"),
        base=settings.base,
        confidence=lambda: trainer.confidence,
        on_pass=trainer.end_epoch,
    )
    units = sum(float((part != PAD).sum()) for part in bags[::2]) / len(pairs)  # of a sentence
    num_parameters = sum(p.numel() for p in assistant.parameters())

    def work() -> float:
        # two weights per unit; learning costs as much as three guesses, and a step is dense
        return 2 * units * (asked + 3 * learnt) + 2 * num_parameters * trainer.num_steps

    return Station(sampler, feedback, work=work, trainer=trainer)
