"""The batch sampler of AutoAssist: random order, and an Assistant that lets through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from trainaug.methods.autoassist.assistant import guarded_base
from trainaug.methods.autoassist.shrinking import check_base, keep

__all__ = ["AssistedSampler"]


class AssistedSampler(Sampler[list[int]]):
    r"""Batches of the examples that pass; an iteration scans all N once, in a fresh random order.

    The synchronous form: decisions for a batch use what ``predict`` knows when the batch is asked
    for, so with ``feedback`` after every update they are never stale, and runs repeat exactly. The
    order comes from ``generator`` and the decisions from ``keep_generator``, drawn once a pass:
    with ``base=1`` the batches are those of a plain random sampler with the same generator.

    Args:
        num_examples: N.
        batch_size: B; a pass ends with a smaller batch unless ``drop_last``.
        predict: Returns r in ``[0, 1]``, ``(b,)``, of examples ``(b,)``, say
            ``AssistantTrainer.predict``; constant r is random skipping.
        generator: Source of the order.
        keep_generator: Source of the decisions; another one than ``generator``.
        base: Base pass rate $\gamma_0$, in ``[0, 1]``.
        confidence: Returns $\kappa$; then $\max(\gamma_0,1-\kappa)$ is the rate, and so all pass
            until the Assistant has proved itself.
        on_pass: Called at the start of every pass but the first, say
            ``AssistantTrainer.end_epoch``.
        shuffle: Scan in random order; without, in file order as the authors' code does.
        drop_last: Leave out the smaller batch at the end of a pass.
        max_scans: Examples scanned for one batch before giving up; N by default.

    Attributes:
        scanned: Examples scanned so far.
        kept: Of them those that passed.
        keep_rates: Share kept in each finished pass, for the random control.

    Raises:
        ValueError: If a setting, or a prediction, is out of range.
        RuntimeError: While iterating, if ``max_scans`` examples or a pass did not fill a batch.
    """

    _state = ("scanned", "kept", "keep_rates", "_order", "_draws", "_place", "_kept_before")

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        predict: Callable[[Tensor], Tensor],
        generator: torch.Generator,
        keep_generator: torch.Generator,
        *,
        base: float = 0.3,
        confidence: Callable[[], float] | None = None,
        on_pass: Callable[[], object] | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        max_scans: int | None = None,
    ) -> None:
        check_base(base)
        if min(num_examples, batch_size) < 1 or (drop_last and batch_size > num_examples):
            raise ValueError(f"no batch: {num_examples=}, {batch_size=}, {drop_last=}")
        if max_scans is not None and max_scans < batch_size:
            raise ValueError(f"max_scans must be at least {batch_size=}, got {max_scans}")
        if generator is keep_generator:
            raise ValueError("order and decisions need two generators, got one")
        self.num_examples, self.batch_size, self.predict = num_examples, batch_size, predict
        self.generator, self.keep_generator = generator, keep_generator
        self.base, self.confidence, self.on_pass = base, confidence, on_pass
        self.shuffle, self.drop_last = shuffle, drop_last
        self.max_scans = num_examples if max_scans is None else max_scans
        self.scanned, self.kept = 0, 0
        self.keep_rates: list[float] = []
        self._order = torch.empty(0, dtype=torch.int64, device="cpu")
        self._draws = torch.empty(0, device="cpu")
        self._place, self._kept_before, self._resuming = 0, 0, False

    def __len__(self) -> int:
        """Most batches of a pass; how many it will be is not known before."""
        rounding = 0 if self.drop_last else self.batch_size - 1
        return (self.num_examples + rounding) // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        resumed, self._resuming, given = self._resuming, False, 0
        if not resumed:
            self._begin_pass()
        while self._place < self.num_examples:
            batch = self._scan()
            full = len(batch) == self.batch_size
            if self._place == self.num_examples:
                self._end_pass()
            if full or (batch and not self.drop_last):
                given += 1
                yield batch
        if resumed and not given:  # nothing was left of the interrupted pass
            yield from self

    def rates_so_far(self) -> list[float]:
        """Return ``keep_rates`` and, if a pass has been begun, the share of what it scanned."""
        if not 0 < self._place < self.num_examples:
            return list(self.keep_rates)
        return [*self.keep_rates, (self.kept - self._kept_before) / self._place]

    def _begin_pass(self) -> None:
        if self._order.numel() and self.on_pass is not None:
            self.on_pass()
        n, g, k = self.num_examples, self.generator, self.keep_generator
        self._order = torch.arange(n, device="cpu")
        if self.shuffle:
            self._order = torch.randperm(n, generator=g, device=g.device).cpu()
        self._draws = torch.rand(n, generator=k, device=k.device).cpu()
        self._place, self._kept_before = 0, self.kept

    def _end_pass(self) -> None:
        kept = self.kept - self._kept_before
        self.keep_rates.append(kept / self.num_examples)
        if kept < (self.batch_size if self.drop_last else 1):
            raise RuntimeError(
                f"a pass over {self.num_examples} examples kept {kept}, too few for a batch: raise"
                f" the base pass rate ({self.base}) or see why the Assistant lets nothing through"
            )

    def _scan(self) -> list[int]:
        """Go on in the order until a batch is full, the pass is over, or it was too long."""
        base = self.base
        if self.confidence is not None:
            base = guarded_base(base, self.confidence())
        batch: list[Tensor] = []
        missing, started = self.batch_size, self._place
        while missing > 0 and self._place < self.num_examples:
            if self._place - started >= self.max_scans:
                raise RuntimeError(
                    f"{self.max_scans} examples scanned without filling a batch of"
                    f" {self.batch_size}: raise the base pass rate ({self.base}) or max_scans"
                )
            end = min(self._place + 2 * missing, started + self.max_scans, self.num_examples)
            candidates = self._order[self._place : end]
            r = self.predict(candidates).detach().cpu()
            if r.shape != candidates.shape:
                raise ValueError(
                    f"predict must give {tuple(candidates.shape)}, got {tuple(r.shape)}"
                )
            passing = keep(r, base, self._draws[self._place : end])
            places = passing.nonzero().squeeze(1)[:missing]  # of those that are taken
            used = int(places[-1]) + 1 if len(places) == missing else len(candidates)
            batch.append(candidates[places])
            self._place += used
            self.scanned += used
            self.kept += len(places)
            missing -= len(places)
        return torch.cat(batch).tolist() if batch else []

    def state_dict(self) -> dict[str, Any]:
        """Return where the pass stands and the generators' states; the Assistant has its own."""
        own = {name: getattr(self, name) for name in self._state}
        own |= {"keep_rates": list(self.keep_rates)}
        states = {"order": self.generator.get_state(), "keep": self.keep_generator.get_state()}
        return own | {"generators": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``: the next iteration first finishes the interrupted pass.

        Raises:
            ValueError: If the state belongs to another number of examples.
        """
        if len(state["_order"]) not in (0, self.num_examples):
            raise ValueError(f"state of {len(state['_order'])} examples, need {self.num_examples}")
        vars(self).update({name: state[name] for name in self._state})
        self.keep_rates = list(state["keep_rates"])
        self.generator.set_state(state["generators"]["order"])
        self.keep_generator.set_state(state["generators"]["keep"])
        self._resuming = 0 < self._place < self.num_examples
