"""Perfect Ordering Approximation: the present model decides which batch comes next.

Chapter: notebooks/04_curriculum.ipynb
Reference: Simionescu, "Deep Learning Training Procedure Augmentations", arXiv 2211.14395; the
algorithm is our reading of the author group's public code.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.utils.data import Sampler

__all__ = ["PerfectOrderingSampler", "SampleLossSampler", "epoch_seed"]

Scorer = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Indexed(Protocol):
    """A data set that a list of indices turns into a batch ``(x, y, index)``."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Any, /) -> tuple[Any, Any, Tensor]: ...


def epoch_seed(seed: int, epoch: int) -> int:
    """Seed of an epoch: different for every pair, and any epoch can be entered directly."""
    return (seed + 0x9E3779B97F4A7C15 * epoch) % 2**63


class _EpochSampler(Sampler[list[int]]):
    """Order of an epoch, resuming, and the refusal to run ahead of the training."""

    def __init__(
        self, dataset: Indexed, batch_size: int, scorer: object, generator: torch.Generator
    ) -> None:
        if batch_size < 1 or len(dataset) == 0:
            raise ValueError(f"no batch: {len(dataset)} examples, {batch_size=}")
        self.dataset, self.batch_size, self.scorer = dataset, batch_size, scorer
        self.generators = {"order": generator}
        self._seeds = {"order": generator.initial_seed()}
        self._resuming = False
        self._scored_at: int | None = None
        self.emitted = 0
        self.seconds = 0.0

    def set_epoch(self, epoch: int) -> None:
        """Make the next epoch's draws depend on the generators' first seeds and ``epoch`` alone."""
        if not self._resuming:
            for name, generator in self.generators.items():
                generator.manual_seed(epoch_seed(self._seeds[name], epoch))

    def _shuffled(self) -> list[int]:
        g = self.generators["order"]
        found: list[int] = torch.randperm(len(self.dataset), generator=g, device=g.device).tolist()
        return found

    def _refuse_to_run_ahead(self) -> None:
        version = getattr(self.scorer, "version", None)
        if version is not None and self._scored_at == version():
            raise RuntimeError(
                "asked for a batch before the model was updated with the one before, so its score "
                "would be stale: use num_workers=0 and update the model after every batch"
            )

    def _remember_version(self) -> None:
        version = getattr(self.scorer, "version", None)
        self._scored_at = None if version is None else version()

    def _generator_states(self) -> dict[str, Tensor]:
        return {name: generator.get_state() for name, generator in self.generators.items()}

    def _load_generators(self, states: dict[str, Tensor], seeds: dict[str, int]) -> None:
        for name, generator in self.generators.items():
            generator.set_state(states[name])
        self._seeds = dict(seeds)
        self._scored_at = None


class PerfectOrderingSampler(_EpochSampler):
    """Greedy order of batches: of a few candidates left, the one with the best score comes next.

    Every epoch cuts a fresh random permutation into batches; of the remaining ones
    ``num_candidates`` are drawn and scored with the model as it is, and the best is emitted, the
    first drawn among equals. Every example is visited once. With one candidate the order is that
    of random reshuffling, and nothing is scored.

    Args:
        dataset: ``dataset[indices]`` is ``(x, y, index)``. It is read for scoring and again for
            training: both must see the same view, so augment after the loader, not in it.
        batch_size: Examples in a batch.
        scorer: Maps ``x`` ``(N, B, ...)``, ``y`` ``(N, B, ...)`` and a mask ``(N, B)`` or ``None``
            to scores ``(N,)``, larger is better: a ``BatchScorer`` or a function. If it has a
            method ``version()`` the sampler refuses to emit before that number has moved.
        num_candidates: Largest number scored for each batch, at least 1.
        candidates: ``partition``: the epoch's fixed batches. ``resampled``: random subsets of the
            remaining examples, which may overlap; so the author's code for ``min_loss``.
        drop_last: Leave out an incomplete last batch.
        generator: Source of the permutations.
        candidate_generator: Source of the candidates, another one, so that the permutations are
            the same for every number of candidates.

    Attributes:
        emitted: Batches emitted so far.
        seconds: Spent on scoring so far.
        last_scores: Scores of the last candidates, ``(N,)``, or ``None``.

    Raises:
        ValueError: If there is no batch, a setting is out of range or the generators are the same.
        RuntimeError: While iterating, if the model was not updated since the last batch.
        FloatingPointError: While iterating, if a score is NaN, naming the batch.
    """

    def __init__(
        self,
        dataset: Indexed,
        batch_size: int,
        *,
        scorer: Scorer,
        num_candidates: int = 8,
        candidates: Literal["partition", "resampled"] = "partition",
        drop_last: bool = False,
        generator: torch.Generator,
        candidate_generator: torch.Generator,
    ) -> None:
        super().__init__(dataset, batch_size, scorer, generator)
        if num_candidates < 1 or (drop_last and batch_size > len(dataset)):
            raise ValueError(f"no batch: {num_candidates=}, {drop_last=}, {batch_size=}")
        if candidates not in ("partition", "resampled"):
            raise ValueError(f"candidates must be partition or resampled, got {candidates!r}")
        if generator is candidate_generator:
            raise ValueError("generator and candidate_generator must be two generators")
        self.score_batches: Scorer = scorer
        self.num_candidates, self.candidates = num_candidates, candidates
        self.drop_last = drop_last
        self.generators["candidates"] = candidate_generator
        self._seeds["candidates"] = candidate_generator.initial_seed()
        self._remaining: list[list[int]] = []
        self.last_scores: Tensor | None = None

    def __len__(self) -> int:
        rounding = 0 if self.drop_last else self.batch_size - 1
        return (len(self.dataset) + rounding) // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        if not self._resuming:
            order = self._shuffled()[: len(self) * self.batch_size]
            size = self.batch_size
            self._remaining = [order[start : start + size] for start in range(0, len(order), size)]
        self._resuming = False
        while self._remaining:
            batch = self._take()
            self.emitted += 1
            yield batch

    def _draw(self, count: int, size: int) -> list[int]:
        g = self.generators["candidates"]
        drawn: list[int] = torch.randperm(count, generator=g, device=g.device)[:size].tolist()
        return drawn

    def _take(self) -> list[int]:
        self.last_scores = None
        if len(self._remaining) == 1 or self.num_candidates == 1:
            return self._remaining.pop(0)
        if self.candidates == "partition":
            places = self._draw(len(self._remaining), self.num_candidates)
            best = self._best([self._remaining[place] for place in places])
            return self._remaining.pop(places[best])
        pool = [index for batch in self._remaining for index in batch]
        count = range(self.num_candidates)
        offers = [[pool[p] for p in self._draw(len(pool), self.batch_size)] for _ in count]
        batch = offers[self._best(offers)]
        taken = set(batch)
        left = [index for index in pool if index not in taken]
        size = self.batch_size
        self._remaining = [left[start : start + size] for start in range(0, len(left), size)]
        return batch

    def _best(self, offers: Sequence[list[int]]) -> int:
        self._refuse_to_run_ahead()
        start = time.perf_counter()
        longest = max(map(len, offers))
        filled = [offer + offer[:1] * (longest - len(offer)) for offer in offers]
        mask = None
        if any(len(offer) < longest for offer in offers):
            places = torch.arange(longest, device="cpu")
            sizes = torch.tensor([len(offer) for offer in offers], device="cpu")
            mask = places < sizes.unsqueeze(1)  # (N, B)
        x, y, _ = self.dataset[[index for offer in filled for index in offer]]
        shape = (len(offers), longest)
        scores = self.score_batches(x.unflatten(0, shape), y.unflatten(0, shape), mask)
        if scores.shape != shape[:1]:
            raise ValueError(f"need one score a candidate, {shape[:1]}, got {scores.shape}")
        if bool(scores.isnan().any()):
            lost = offers[int(scores.isnan().nonzero()[0])]
            raise FloatingPointError(f"the score of the batch {lost} is NaN")
        self.last_scores = scores.detach()
        self._remember_version()
        self.seconds += time.perf_counter() - start
        return int(scores.cpu().argmax())

    def state_dict(self) -> dict[str, Any]:
        """Return the generators' states, what is left of the epoch, and the count emitted."""
        return {
            "generators": self._generator_states(),
            "seeds": dict(self._seeds),
            "remaining": [list(batch) for batch in self._remaining],
            "emitted": self.emitted,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``: the next iteration first finishes the interrupted epoch."""
        self._remaining = [list(batch) for batch in state["remaining"]]
        self.emitted = state["emitted"]
        self._resuming = bool(self._remaining)
        self._load_generators(state["generators"], state["seeds"])


class SampleLossSampler(_EpochSampler):
    """The score ``sample_loss``: remaining examples sorted by their own loss, cut into batches.

    Args:
        dataset: As for ``PerfectOrderingSampler``.
        batch_size: Examples in a batch.
        losses_of: Maps indices to present losses ``(len(indices),)``; should leave the model
            undisturbed.
        descending: Hardest first.
        refresh_every: Batches between two sortings of what remains, at least 1.
        generator: Source of the permutation that settles ties.

    Raises:
        ValueError: If there is no batch or ``refresh_every`` is below 1.
    """

    def __init__(
        self,
        dataset: Indexed,
        batch_size: int,
        *,
        losses_of: Callable[[list[int]], Tensor],
        descending: bool = False,
        refresh_every: int = 10,
        generator: torch.Generator,
    ) -> None:
        super().__init__(dataset, batch_size, losses_of, generator)
        if refresh_every < 1:
            raise ValueError(f"refresh_every must be at least 1, got {refresh_every}")
        self.losses_of, self.descending = losses_of, descending
        self.refresh_every = refresh_every
        self._remaining: list[int] = []
        self._until_refresh = 0

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        if not self._resuming:
            self._remaining, self._until_refresh = self._shuffled(), 0
        self._resuming = False
        while self._remaining:
            if self._until_refresh == 0:
                self._sort()
            batch = self._remaining[: self.batch_size]
            self._remaining = self._remaining[self.batch_size :]
            self._until_refresh -= 1
            self.emitted += 1
            yield batch

    def _sort(self) -> None:
        self._refuse_to_run_ahead()
        start = time.perf_counter()
        losses = self.losses_of(self._remaining)
        order = losses.argsort(descending=self.descending, stable=True).tolist()
        self._remaining = [self._remaining[place] for place in order]
        self._until_refresh = self.refresh_every
        self._remember_version()
        self.seconds += time.perf_counter() - start

    def state_dict(self) -> dict[str, Any]:
        """Return the generator's state, what is left of the epoch, and the count emitted."""
        return {
            "generators": self._generator_states(),
            "seeds": dict(self._seeds),
            "remaining": list(self._remaining),
            "until_refresh": self._until_refresh,
            "emitted": self.emitted,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``: the next iteration first finishes the interrupted epoch."""
        self._remaining = list(state["remaining"])
        self._until_refresh, self.emitted = state["until_refresh"], state["emitted"]
        self._resuming = bool(self._remaining)
        self._load_generators(state["generators"], state["seeds"])
