"""Perfect Ordering Approximation: the present model decides which batch comes next.

Chapter: notebooks/04_curriculum.ipynb
Reference: Simionescu, "Deep Learning Training Procedure Augmentations", arXiv 2211.14395; the
algorithm is our reading of the public code of the author's group.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from trainaug.batches import EpochBatchSampler, batch_sizes, from_all_ranks
from trainaug.checks import source_of_randomness
from trainaug.structures import StateDict

__all__ = ["PerfectOrderingSampler", "SampleLossSampler", "epoch_seed"]

T = TypeVar("T")
Scorer = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Indexed(Protocol):
    """A data set that returns a batch ``(x, y, index)`` for a list of indices."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Any, /) -> tuple[Any, Any, Tensor]: ...


def epoch_seed(seed: int, epoch: int) -> int:
    """Return the seed of an epoch, so that any epoch can be entered without those before it.

    The odd multiplier (2^64 over the golden ratio) gives different epochs different seeds.
    """
    return (seed + 0x9E3779B97F4A7C15 * epoch) % 2**63


class _ModelSampler(EpochBatchSampler):
    """Base of samplers that ask the model being trained: seeds, batch sizes, and its versions.

    If the scorer has a method ``version()``, a batch is refused while it says that the model was
    not trained on the batch before.
    """

    _fixed = ("num_examples", "batch_size", "drop_last", "num_replicas")

    def __init__(
        self,
        dataset: Indexed,
        batch_size: int,
        scorer: object,
        generators: dict[str, torch.Generator],
        drop_last: bool,
        num_replicas: int,
        rank: int,
    ) -> None:
        super().__init__(num_replicas, rank)
        if batch_size < 1 or len(dataset) == 0 or (drop_last and batch_size > len(dataset)):
            raise ValueError(f"no batch: {len(dataset)} examples, {drop_last=}, {batch_size=}")
        sizes = batch_sizes(len(dataset), batch_size, num_replicas, drop_last=drop_last)
        self._ends = list(itertools.accumulate(sizes))
        self.num_examples = len(dataset)
        self.dataset, self.batch_size, self.scorer = dataset, batch_size, scorer
        self.drop_last, self.generators = drop_last, generators
        self._seeds = {name: g.initial_seed() for name, g in generators.items()}
        self._numbered = False  # whether `set_epoch` was called: then each epoch is seeded anew
        self._number = 0  # number of batches given in this epoch
        self._scored_at: object = None  # version of the model at the last scoring
        self.emitted = 0
        self.seconds = 0.0

    def __len__(self) -> int:
        return len(self._ends)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration is; an interrupted one that was loaded continues.

        From the first call on, the draws of an epoch depend only on the generators' initial seeds
        and the number of the epoch.

        Raises:
            ValueError: If ``epoch`` is negative.
        """
        super().set_epoch(epoch)
        self._numbered = True

    def _enter(self, epoch: int) -> None:
        self.epoch = epoch - 1

    def _permutation(self) -> Tensor:
        """Return the random order in which an epoch begins, of the examples in its batches."""
        if self._numbered:
            for name, generator in self.generators.items():
                generator.manual_seed(epoch_seed(self._seeds[name], self.epoch))
        self._number, self._scored_at = 0, None  # what was given before belongs to another epoch
        g = self.generators["order"]
        order = torch.randperm(len(self.dataset), generator=g, device=g.device).cpu()
        return order[: self._ends[-1]]

    def _bounds(self, number: int) -> tuple[int, int]:
        """Return where a batch begins and ends in the order of the epoch."""
        return self._ends[number - 1] if number else 0, self._ends[number]

    def _refuse_to_run_ahead(self) -> None:
        """Raise a RuntimeError if the model was not trained since the last scoring."""
        version = getattr(self.scorer, "version", None)
        if version is None:
            return
        workers = self._loader is not None and self._loader.get("_num_workers", 0) > 0
        if workers or (self._scored_at is not None and self._scored_at == version()):
            raise RuntimeError(
                "asked for a batch before the model was updated with the one before, so its score "
                "would be stale: use num_workers=0, no other loader that fetches ahead (such as "
                "Accelerate's), and train on every batch before the next"
            )

    def _remember_version(self) -> None:
        version = getattr(self.scorer, "version", None)
        if version is not None:
            self._scored_at = version()

    def _has_no_more(self) -> bool:
        return self._number == len(self)

    def _own_state(self) -> StateDict:
        return {
            "seeds": dict(self._seeds),
            "numbered": self._numbered,
            "generators": {name: g.get_state() for name, g in self.generators.items()},
            "emitted": self.emitted,
        }

    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        for name, generator in self.generators.items():
            generator.set_state(state["generators"][name])
        self._seeds, self._numbered = dict(state["seeds"]), state["numbered"]
        self.emitted, self._scored_at = state["emitted"], None


class PerfectOrderingSampler(_ModelSampler):
    """Greedy order of batches: the candidate with the best score under the model comes next.

    Every epoch cuts a fresh random permutation into batches. For each step, ``num_candidates`` of
    the remaining batches are drawn and scored with the present model, and the best one is given;
    among equals, the one drawn first. Every example is visited once. With one candidate the order
    is that of random reshuffling, and nothing is scored.

    Args:
        dataset: ``dataset[indices]`` is ``(x, y, index)``. It is read for scoring and again for
            training. Both must see the same view, so augment after the loader, not in it.
        batch_size: Examples in a batch of each rank.
        generator: Source of the permutations.
        scorer: A ``BatchScorer`` or a function that maps ``x`` ``(N, B, ...)``, ``y``
            ``(N, B, ...)`` and a mask ``(N, B)`` or ``None`` to scores ``(N,)``, larger is better.
            If it has a method ``version()``, whose result changes only when a batch is trained on,
            the sampler refuses to score before it has changed. Without it nothing is checked.
        num_candidates: Largest number scored for each batch, at least 1.
        candidates: ``partition``: the epoch's fixed batches. ``resampled``: random subsets of the
            remaining examples, which may overlap, as in the author's code for ``min_loss``.
        drop_last: Leave out an incomplete last batch.
        candidate_generator: Source of the candidates. It is separate, so that the permutations are
            the same for every number of candidates.
        num_replicas: Number of processes that train together, with equal seeds. Each scores the
            whole global candidates with its own copy of the model. If `torch.distributed` is
            initialised, all take the choice of rank 0.
        rank: Number of this process.

    Attributes:
        emitted: Number of batches given so far.
        seconds: Seconds spent on scoring so far.
        last_scores: Scores of the last candidates, ``(N,)``, or ``None`` if none were scored.

    Raises:
        ValueError: If there is no batch, a setting is out of range or the generators are the same.
        TypeError: If a generator is not a ``torch.Generator``.
        RuntimeError: While iterating, if the last batch was not trained on, or the loader has
            workers, which fetch ahead.
        FloatingPointError: While iterating, if a score is NaN or infinite, naming the batch.
    """

    def __init__(
        self,
        dataset: Indexed,
        batch_size: int,
        generator: torch.Generator,
        *,
        scorer: Scorer,
        num_candidates: int = 8,
        candidates: Literal["partition", "resampled"] = "partition",
        drop_last: bool = False,
        candidate_generator: torch.Generator,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        generators = {
            "order": source_of_randomness("generator", generator),
            "candidates": source_of_randomness("candidate_generator", candidate_generator),
        }
        super().__init__(dataset, batch_size, scorer, generators, drop_last, num_replicas, rank)
        if num_candidates < 1:
            raise ValueError(f"no batch: {num_candidates=}, {batch_size=}")
        if candidates not in ("partition", "resampled"):
            raise ValueError(f"candidates must be partition or resampled, got {candidates!r}")
        if generator is candidate_generator:
            raise ValueError("generator and candidate_generator must be two generators")
        self.score_batches: Scorer = scorer
        self.num_candidates, self.candidates = num_candidates, candidates
        empty = torch.empty(0, dtype=torch.int64, device="cpu")
        self._order = self._left = empty  # examples of the epoch; numbers of the batches left
        self._pool = empty  # examples left, for ``resampled``
        self.last_scores: Tensor | None = None

    def _begin(self) -> None:
        self._order = self._pool = self._permutation()
        self._left = torch.arange(len(self), device="cpu")

    def _next(self) -> list[int]:
        self.last_scores = None
        if self._has_no_more():
            return []
        batch = self._take_batch() if self.candidates == "partition" else self._take_subset()
        self._number += 1
        self.emitted += 1
        return batch

    def _is_alone(self) -> bool:
        """Tell whether there is only one candidate, so that nothing needs to be scored."""
        return self.num_candidates == 1 or self._number == len(self) - 1

    def _drawn(self, count: int, size: int) -> Tensor:
        """Draw ``size`` different numbers below ``count``, or all of them if there are fewer."""
        g = self.generators["candidates"]
        return torch.randperm(count, generator=g, device=g.device)[:size].cpu()

    def _take_batch(self) -> list[int]:
        """Remove the best of the drawn batches from those left, and return its examples."""
        position = 0
        if not self._is_alone():
            positions = self._drawn(len(self._left), self.num_candidates)
            offers = [self._batch(number) for number in self._left[positions].tolist()]
            position = int(positions[self._best(offers)])
        batch = self._batch(int(self._left[position]))
        self._left = torch.cat([self._left[:position], self._left[position + 1 :]])
        return batch

    def _batch(self, number: int) -> list[int]:
        start, end = self._bounds(number)
        batch: list[int] = self._order[start:end].tolist()
        return batch

    def _take_subset(self) -> list[int]:
        """Remove the best of the drawn subsets from the pool, and return its examples."""
        start, end = self._bounds(self._number)
        draws = [torch.arange(end - start, device="cpu")]
        best = 0
        if not self._is_alone():
            count = range(self.num_candidates)
            draws = [self._drawn(len(self._pool), end - start) for _ in count]
            best = self._best([self._pool[draw].tolist() for draw in draws])
        batch: list[int] = self._pool[draws[best]].tolist()
        is_left = torch.ones(len(self._pool), dtype=torch.bool, device="cpu")
        is_left[draws[best]] = False
        self._pool = self._pool[is_left]
        return batch

    def _best(self, offers: Sequence[list[int]]) -> int:
        """Score the candidates, given by their examples, and return the number of the best."""
        self._refuse_to_run_ahead()
        start = time.perf_counter()
        longest = max(map(len, offers))
        # A shorter candidate is filled up with its first example, which the mask leaves out.
        filled = [offer + offer[:1] * (longest - len(offer)) for offer in offers]
        mask = None
        if any(len(offer) < longest for offer in offers):
            columns = torch.arange(longest, device="cpu")
            sizes = torch.tensor([len(offer) for offer in offers], device="cpu")
            mask = columns < sizes.unsqueeze(1)  # (N, B)
        x, y, _ = self.dataset[[index for offer in filled for index in offer]]
        shape = (len(offers), longest)
        scores = self.score_batches(x.unflatten(0, shape), y.unflatten(0, shape), mask)
        if scores.shape != shape[:1]:
            raise ValueError(f"need one score a candidate, {shape[:1]}, got {scores.shape}")
        _check_finite(scores, "score of the batch", offers)
        self.last_scores = scores.detach()
        self._remember_version()
        best = _of_rank_0(int(scores.cpu().argmax()), self.num_replicas)
        self.seconds += time.perf_counter() - start
        return best

    def _position(self) -> Any:  # needs no copies: no tensor is ever changed in place
        return {"number": self._number, "left": self._left, "pool": self._pool}

    def _return_to(self, position: Any) -> None:
        self._number = position["number"]
        self._left = position["left"]
        self._pool = position["pool"]

    def _own_state(self) -> StateDict:
        return super()._own_state() | {"order": self._order}

    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        super()._load_own_state(state)
        self._order = state["order"]


class SampleLossSampler(_ModelSampler):
    """The score ``sample_loss``: the remaining examples are sorted by loss and cut into batches.

    Args:
        dataset: As for ``PerfectOrderingSampler``.
        batch_size: Examples in a batch of each rank.
        generator: Source of the permutation that breaks ties.
        losses_of: Maps numbers of examples, int64 ``(n,)`` on the CPU, to their present losses
            ``(n,)``; it should leave the model unchanged. A method ``version()`` is used as that
            of a scorer of ``PerfectOrderingSampler``.
        descending: Whether the hardest examples come first.
        refresh_every: The remaining examples are sorted anew after so many batches, at least 1.
        num_replicas: Number of processes that train together. If `torch.distributed` is
            initialised, all take the sorted order of rank 0.
        rank: Number of this process.

    Raises:
        ValueError: If there is no batch, ``refresh_every`` is below 1, or the losses have another
            shape.
        TypeError: If the generator is not a ``torch.Generator``.
        RuntimeError: While iterating, as for ``PerfectOrderingSampler``.
        FloatingPointError: While iterating, if a loss is NaN or infinite, naming the example.
    """

    def __init__(
        self,
        dataset: Indexed,
        batch_size: int,
        generator: torch.Generator,
        *,
        losses_of: Callable[[Tensor], Tensor],
        descending: bool = False,
        refresh_every: int = 10,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        generators = {"order": source_of_randomness("generator", generator)}
        super().__init__(
            dataset,
            batch_size,
            losses_of,
            generators,
            drop_last=False,
            num_replicas=num_replicas,
            rank=rank,
        )
        if refresh_every < 1:
            raise ValueError(f"refresh_every must be at least 1, got {refresh_every}")
        self.losses_of, self.descending = losses_of, descending
        self.refresh_every = refresh_every
        self._left = torch.empty(0, dtype=torch.int64, device="cpu")
        self._until_refresh = 0

    def _begin(self) -> None:
        self._left, self._until_refresh = self._permutation(), 0

    def _next(self) -> list[int]:
        if self._has_no_more():
            return []
        if self._until_refresh == 0:
            self._sort()
        start, end = self._bounds(self._number)
        batch, self._left = self._left.tensor_split([end - start])
        self._until_refresh -= 1
        self._number += 1
        self.emitted += 1
        indices: list[int] = batch.tolist()
        return indices

    def _sort(self) -> None:
        """Sort the remaining examples by their present losses."""
        self._refuse_to_run_ahead()
        start = time.perf_counter()
        losses = self.losses_of(self._left)
        if losses.shape != self._left.shape:
            shapes = tuple(self._left.shape), tuple(losses.shape)
            raise ValueError(f"losses must have shape {shapes[0]}, got {shapes[1]}")
        _check_finite(losses, "loss of the example", self._left)
        order = losses.detach().argsort(descending=self.descending, stable=True).cpu()
        self._left = self._left[_of_rank_0(order, self.num_replicas)]
        self._until_refresh = self.refresh_every
        self._remember_version()
        self.seconds += time.perf_counter() - start

    def _position(self) -> Any:
        left = self._left.clone()  # saving a view would save the whole tensor behind it
        return {"number": self._number, "until_refresh": self._until_refresh, "left": left}

    def _return_to(self, position: Any) -> None:
        self._number, self._left = position["number"], position["left"]
        self._until_refresh = position["until_refresh"]


def _of_rank_0(value: T, num_replicas: int) -> T:
    """Return the choice of rank 0, or this rank's choice without torch.distributed.

    The ranks could choose differently, because their scores may differ in the last bit.
    """
    gathered = None if num_replicas == 1 else from_all_ranks(value, num_replicas)
    return value if gathered is None else gathered[0]


def _check_finite(values: Tensor, what: str, names: Sequence[object] | Tensor) -> None:
    """Raise a FloatingPointError that names the first value that is NaN or infinite.

    ``names`` says what each value belongs to: an example, or the examples of a batch.
    """
    wrong = ~values.detach().isfinite()
    if bool(wrong.any()):
        first = int(wrong.nonzero()[0])
        value = float(values[first])
        shown = "NaN" if value != value else f"{value}"
        name = int(names[first]) if isinstance(names, Tensor) else names[first]
        raise FloatingPointError(f"the {what} {name} is {shown}")
