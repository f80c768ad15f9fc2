"""The batch sampler of AutoAssist: random order, and an Assistant that lets through."""

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
    r"""Batches of the examples that pass; an iteration scans all N once, in a fresh random order.

    The synchronous form: decisions for a batch use what ``utility_of`` knows when the batch is
    asked for, so with an ``update`` of the Assistant after every step they are never stale, and
    runs repeat exactly. The order comes from ``generator`` and the decisions from
    ``keep_generator``, drawn once a pass: with ``base=1`` the batches are those of a plain random
    sampler with the same generator.

    A loader with workers asks some batches earlier, so that its decisions are older. Batches that
    were decided and not trained on are in the `state_dict`, and come as they are after a resume.
    How many batches a pass will have is not known before it, so there is no ``len()``.

    Args:
        num_examples: N.
        batch_size: B, of each rank; a pass ends with a smaller batch unless ``drop_last``.
        utility_of: Gives r in ``[0, 1]``, ``(b,)``, of examples ``(b,)``, int64 on the CPU, say
            ``AssistantTrainer.predict``; constant r is random skipping.
        generator: Source of the order, with equal seeds on all ranks.
        keep_generator: Source of the decisions; another one than ``generator``, likewise.
        base: Base pass rate $\gamma_0$, in ``[0, 1]``.
        confidence: Returns $\kappa$; then $\max(\gamma_0,1-\kappa)$ is the rate, and so all pass
            until the Assistant has proved itself.
        on_pass: Called at the start of every pass but the first, say
            ``AssistantTrainer.end_epoch``.
        shuffle: Scan in random order; without, in file order as the authors' code does.
        drop_last: Leave out the smaller batch at the end of a pass.
        max_scans: Examples scanned for one batch before giving up; N by default.
        num_replicas: Processes that train together. All must decide alike: where
            `torch.distributed` is initialised with so many processes, r and the rate are the means
            of what the ranks' Assistants say; elsewhere give every Assistant the losses of all.
            So that no rank is left without a batch at the end, ``num_replicas`` examples of the
            next batch are decided with each; with ``batch_size=1`` fewer at the end are left out.
        rank: This process.

    Attributes:
        scanned: Examples scanned so far, ahead of the training behind a loader with workers.
        kept: Of them those that passed.
        keep_rates: Share kept in each finished pass, for the random control.

    Raises:
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
        self._together = batch_size * num_replicas
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
        self._draws = torch.empty(0, device="cpu")
        self._place, self._kept_before = 0, 0
        self._held: list[int] = []  # passed already, for the next batch

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
        """Return ``keep_rates`` and, if a pass has been begun, the share of what it scanned."""
        if not 0 < self._place < self.num_examples:
            return list(self.keep_rates)
        return [*self.keep_rates, (self.kept - self._kept_before) / self._place]

    def _begin(self) -> None:
        if self.epoch > 0 and self.on_pass is not None:
            self.on_pass()
        n, g, k = self.num_examples, self.generator, self.keep_generator
        self._order = torch.arange(n, device="cpu")
        if self.shuffle:
            self._order = torch.randperm(n, generator=g, device=g.device).cpu()
        self._draws = torch.rand(n, generator=k, device=k.device).cpu()
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
        """Hold examples for the next batch; share both evenly if they are too few for the ranks."""
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
        kept = self.kept - self._kept_before
        self.keep_rates.append(kept / self.num_examples)
        if kept < (self._together if self.drop_last else self.num_replicas):
            raise RuntimeError(
                f"a pass over {self.num_examples} examples kept {kept}, too few for a batch: raise"
                f" the base pass rate ({self.base}) or see why the Assistant lets nothing through"
            )

    def _scan(self, missing: int) -> list[int]:
        """Go on in the order until so many pass, the pass is over, or it was too long."""
        base = self.base
        if self.confidence is not None:
            base = guarded_base(base, self.confidence())
        batch: list[Tensor] = []
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
            passing = keep(*self._of_all_ranks(r, base), self._draws[self._place : end])
            places = passing.nonzero().squeeze(1)[:missing]  # of those that are taken
            used = int(places[-1]) + 1 if len(places) == missing else len(candidates)
            batch.append(candidates[places])
            self._place += used
            self.scanned += used
            self.kept += len(places)
            missing -= len(places)
        if started < self._place == self.num_examples:
            self._end_pass()
        return torch.cat(batch).tolist() if batch else []

    def _of_all_ranks(self, r: Tensor, base: float) -> tuple[Tensor, float]:
        """Means over the ranks, the same on all, of what each has learnt from its own losses."""
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
            "order": self._order,  # neither is ever changed in place
            "draws": self._draws,
            "generators": states,
        }

    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        self.scanned, self.kept = state["scanned"], state["kept"]
        self.keep_rates = list(state["keep_rates"])
        self._order, self._draws = state["order"], state["draws"]
        self.generator.set_state(state["generators"]["order"])
        self.keep_generator.set_state(state["generators"]["keep"])
