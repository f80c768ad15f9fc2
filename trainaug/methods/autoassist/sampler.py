"""The batch sampler of AutoAssist: a random order, of which an Assistant keeps some examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from trainaug.batches import EpochBatchSampler, from_all_ranks
from trainaug.checks import source_of_randomness, whole_number
from trainaug.methods.autoassist.assistant import guarded_base
from trainaug.methods.autoassist.shrinking import check_base, keep
from trainaug.structures import StateDict

__all__ = ["AssistedSampler"]


class AssistedSampler(EpochBatchSampler):
    r"""Batches of the examples that are kept; an iteration is a pass over all N, in random order.

    This is the synchronous form. Decisions for a batch use what ``utility_of`` knows when the batch
    is asked for, so with an ``update`` of the Assistant after every step they are never stale, and
    runs repeat exactly. Each pass draws its order from ``generator`` and its decisions from
    ``keep_generator``: with ``base=1`` the batches are those of a plain random sampler with the
    same generator.

    A loader with workers asks for batches some steps ahead, so that decisions are older. Batches
    that were decided and not trained on are in the `state_dict`, and come unchanged after a resume.
    How many batches a pass will have is not known before it, so there is no ``len()``.

    Args:
        num_examples: Number of examples N.
        batch_size: Batch size B of each rank; a pass ends with a smaller batch unless
            ``drop_last``.
        utility_of: Maps indices ``(b,)``, int64 on the CPU, to utilities r in ``[0, 1]``, ``(b,)``,
            say ``AssistantTrainer.predict``; with constant r examples are skipped at random.
        generator: Source of the order, with equal seeds on all ranks.
        keep_generator: Source of the decisions, another generator, with equal seeds likewise.
        base: Base pass rate $\gamma_0$, in ``[0, 1]``.
        confidence: Returns the Assistant's accuracy $\kappa$. The pass rate is then
            $\max(\gamma_0,1-\kappa)$, so that all are kept until the Assistant has proved itself.
        on_pass: Called at the start of every pass but the first, say
            ``AssistantTrainer.end_epoch``.
        shuffle: Scan in random order; if false, in file order as the authors' code does.
        drop_last: Leave out the smaller batch at the end of a pass.
        max_scans: Examples scanned for one batch before giving up; N by default.
        num_replicas: Processes that train together. All must decide alike: where
            `torch.distributed` is initialised with so many processes, r and the rate are the means
            over the ranks' Assistants; elsewhere give every Assistant the losses of all ranks.
            So that no rank is left without a batch at the end, ``num_replicas`` examples of the
            next batch are decided together with each batch; with ``batch_size=1`` fewer than that
            at the end of a pass are left out.
        rank: Number of this process, from 0.

    Attributes:
        scanned: Examples scanned so far; with a loader's workers, ahead of the training.
        kept: How many of them were kept.
        keep_rates: Share kept in each finished pass, for the random control.

    Raises:
        TypeError: If ``num_examples`` or ``batch_size`` is not a whole number, or ``generator`` or
            ``keep_generator`` not a generator.
        ValueError: If a setting, or a prediction, is out of range.
        RuntimeError: While iterating, if ``max_scans`` examples or a pass did not fill a batch;
            by ``set_epoch``, if it is not the next in turn.
    """

    _fixed = ("num_examples", "batch_size", "drop_last", "num_replicas")

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        utility_of: Callable[[Tensor], Tensor],
        generator: torch.Generator,
        keep_generator: torch.Generator,
        *,
        base: float = 0.3,
        confidence: Callable[[], float] | None = None,
        on_pass: Callable[[], object] | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        max_scans: int | None = None,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(num_replicas, rank)
        check_base(base)
        num_examples = whole_number("num_examples", num_examples)
        batch_size = whole_number("batch_size", batch_size)
        fewest = batch_size * num_replicas if drop_last else num_replicas
        if min(num_examples, batch_size) < 1 or fewest > num_examples:
            shown = f"{num_examples=}, {batch_size=}, {drop_last=}, {num_replicas=}"
            raise ValueError(f"no batch: {shown}")
        self._together = batch_size * num_replicas  # examples in a global batch
        if max_scans is not None and max_scans < self._together:
            each = "" if num_replicas == 1 else f" times {num_replicas=}"
            raise ValueError(f"max_scans must be at least {batch_size=}{each}, got {max_scans}")
        if generator is keep_generator:
            raise ValueError("order and decisions need two generators, got one")
        self.num_examples, self.batch_size, self.utility_of = num_examples, batch_size, utility_of
        self.generator = source_of_randomness("generator", generator)
        self.keep_generator = source_of_randomness("keep_generator", keep_generator)
        self.base, self.confidence, self.on_pass = base, confidence, on_pass
        self.shuffle, self.drop_last = shuffle, drop_last
        self.max_scans = num_examples if max_scans is None else max_scans
        self.scanned, self.kept = 0, 0
        self.keep_rates: list[float] = []
        self._order = torch.empty(0, dtype=torch.int64, device="cpu")
        self._draws = torch.empty(0, device="cpu")  # uniform numbers, in step with `_order`
        self._place = 0  # examples of `_order` that were scanned
        self._kept_before = 0  # `kept` when the pass began
        self._held: list[int] = []  # kept already, for the next batch

    def __len__(self) -> NoReturn:
        raise TypeError(
            "an AssistedSampler has no len(): how many batches a pass will have is not known "
            "before it; max_batches is the most it can have"
        )

    @property
    def max_batches(self) -> int:
        """Most batches of a pass on this rank."""
        rounding = 0 if self.drop_last else self._together - 1
        return (self.num_examples + rounding) // self._together

    def rates_so_far(self) -> list[float]:
        """Return ``keep_rates`` and, for a pass that has begun, the share kept of those scanned."""
        if not 0 < self._place < self.num_examples:
            return list(self.keep_rates)
        return [*self.keep_rates, (self.kept - self._kept_before) / self._place]

    def _begin(self) -> None:
        if self.epoch > 0 and self.on_pass is not None:
            self.on_pass()
        n, g, keep_g = self.num_examples, self.generator, self.keep_generator
        self._order = torch.arange(n, device="cpu")
        if self.shuffle:
            self._order = torch.randperm(n, generator=g, device=g.device).cpu()
        self._draws = torch.rand(n, generator=keep_g, device=keep_g.device).cpu()
        self._place, self._kept_before, self._held = 0, self.kept, []

    def _has_no_more(self) -> bool:
        return self._place == self.num_examples and not self._held

    def _next(self) -> list[int]:
        while not self._has_no_more():
            batch = self._held + self._scan(self._together - len(self._held))
            self._held = []
            if len(batch) == self._together:
                return self._shared_with_next(batch)
            if batch and not self.drop_last:
                return batch
        return []

    def _shared_with_next(self, batch: list[int]) -> list[int]:
        """Return ``batch`` after holding examples for the next, so that no rank goes without.

        If too few are left for all ranks, both batches share their examples evenly.
        """
        if self.num_replicas == 1:
            return batch
        self._held = self._scan(self.num_replicas)
        if len(self._held) < self.num_replicas:  # the pass is over
            both, self._held = batch + self._held, []
            if self.drop_last or len(both) // 2 < self.num_replicas:
                return batch
            if len(both) > len(batch):
                half = (len(both) + 1) // 2
                batch, self._held = both[:half], both[half:]
        return batch

    def _end_pass(self) -> None:
        """Record the share that the pass kept; raise if that was too little for a batch."""
        kept = self.kept - self._kept_before
        self.keep_rates.append(kept / self.num_examples)
        if kept < (self._together if self.drop_last else self.num_replicas):
            raise RuntimeError(
                f"a pass over {self.num_examples} examples kept {kept}, too few for a batch: raise"
                f" the base pass rate ({self.base}) or see why the Assistant lets nothing through"
            )

    def _scan(self, missing: int) -> list[int]:
        """Scan on until ``missing`` examples are kept or the pass is over; return those kept."""
        base = self.base
        if self.confidence is not None:
            base = guarded_base(base, self.confidence())
        parts: list[Tensor] = []
        started = self._place
        while missing > 0 and self._place < self.num_examples:
            if self._place - started >= self.max_scans:
                raise RuntimeError(
                    f"{self.max_scans} examples scanned without filling a batch of"
                    f" {self._together}: raise the base pass rate ({self.base}) or max_scans"
                )
            end = min(self._place + 2 * missing, started + self.max_scans, self.num_examples)
            candidates = self._order[self._place : end]
            r = self.utility_of(candidates).detach().cpu()
            if r.shape != candidates.shape:
                raise ValueError(
                    f"utility_of must give {tuple(candidates.shape)}, got {tuple(r.shape)}"
                )
            passing = keep(*self._mean_over_ranks(r, base), self._draws[self._place : end])
            positions = passing.nonzero().squeeze(1)[:missing]  # of those that are taken
            # what comes after the last one taken is scanned again, for the next batch
            used = int(positions[-1]) + 1 if len(positions) == missing else len(candidates)
            parts.append(candidates[positions])
            self._place += used
            self.scanned += used
            self.kept += len(positions)
            missing -= len(positions)
        if started < self._place == self.num_examples:
            self._end_pass()
        return torch.cat(parts).tolist() if parts else []

    def _mean_over_ranks(self, r: Tensor, base: float) -> tuple[Tensor, float]:
        """Return the means of utilities and rate over the ranks, where these can communicate."""
        gathered = None if self.num_replicas == 1 else from_all_ranks((r, base), self.num_replicas)
        if gathered is None:
            return r, base
        mean = torch.stack([r.double() for r, _ in gathered]).mean(0)
        return mean.to(r.dtype), sum(base for _, base in gathered) / self.num_replicas

    def _position(self) -> Any:
        state = {"place": self._place, "kept_before": self._kept_before}
        return state | {"held": list(self._held)}

    def _return_to(self, position: Any) -> None:
        self._place, self._kept_before = position["place"], position["kept_before"]
        self._held = list(position["held"])

    def _own_state(self) -> StateDict:
        states = {"order": self.generator.get_state(), "keep": self.keep_generator.get_state()}
        return {
            "scanned": self.scanned,
            "kept": self.kept,
            "keep_rates": list(self.keep_rates),
            "order": self._order,  # neither this nor `_draws` is ever changed in place
            "draws": self._draws,
            "generators": states,
        }

    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        self.scanned, self.kept = state["scanned"], state["kept"]
        self.keep_rates = list(state["keep_rates"])
        self._order, self._draws = state["order"], state["draws"]
        self.generator.set_state(state["generators"]["order"])
        self.keep_generator.set_state(state["generators"]["keep"])
