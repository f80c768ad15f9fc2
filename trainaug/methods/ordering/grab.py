"""GraB: order the next epoch by balancing gradients, with a proof that it converges faster.

Chapter: notebooks/04_curriculum.ipynb
Reference: Lu, Guo, De Sa, "GraB: Finding provably better data permutations than random
reshuffling", NeurIPS 2022, arXiv 2205.10733.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from trainaug.batches import _asking_loader, check_ranks
from trainaug.checks import finite
from trainaug.structures import StateDict

__all__ = ["GraBSampler"]


class GraBSampler(Sampler[int]):
    r"""Order of units (examples or fixed batches), balanced from one epoch to the next.

    The gradient $g$ of a visited unit is centred by the mean gradient of the previous epoch,
    $c = g - \bar g$, and gets the sign $+$ if $\|S + c\| \le \|S - c\|$ for the signed sum $S$ so
    far. In the next epoch units of sign $+$ come first, in order, and units of sign $-$ last, in
    reverse order. The memory needed is three vectors of the gradient's size and one number per
    unit.

    An iteration gives the units of the running epoch whose gradients are not recorded yet. A unit
    counts as trained on when its gradient is recorded, however many units a loader has fetched. The
    next epoch begins only after all are recorded.

    Args:
        num_units: Number of units, at least 1.
        dim: Length of a gradient, at least 1.
        generator: Source of the first order, with equal seeds on all ranks.
        device: Device of the sums.
        num_replicas: Number of processes that train together. Each visits every
            ``num_replicas``-th unit of the order, and records the gathered gradients of all, in
            the order of the epoch.
        rank: Number of this process.

    Raises:
        ValueError: If a size is below 1, or the ranks cannot get equally many units.
        RuntimeError: While iterating, if an epoch was visited to its end but not all its gradients
            were recorded, or those of some rank are missing.
    """

    def __init__(
        self,
        num_units: int,
        dim: int,
        generator: torch.Generator,
        *,
        device: torch.device | str = "cpu",
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        if min(num_units, dim) < 1:
            raise ValueError(f"need at least 1, got {num_units=} and {dim=}")
        check_ranks(num_replicas, rank)
        if num_units % num_replicas:
            raise ValueError(f"{num_units} units cannot be shared by {num_replicas} ranks equally")
        self.num_units, self.num_replicas, self.rank = num_units, num_replicas, rank
        g = generator
        self.order: list[int] = torch.randperm(num_units, generator=g, device=g.device).tolist()
        zeros = torch.zeros(dim, device=device)
        self._signed, self._sum, self._mean = zeros, zeros.clone(), zeros.clone()
        self._front: list[int] = []  # units of sign + in this epoch
        self._back: list[int] = []  # units of sign -
        self.epoch = 0  # the running one; epochs before it are completely recorded
        self._loader: Mapping[str, Any] | None = None
        self._given_to_the_end = -1  # the last epoch of which all units were given

    def __len__(self) -> int:
        return self.num_units // self.num_replicas

    @property
    def _recorded(self) -> int:
        return len(self._front) + len(self._back)

    def __iter__(self) -> Iterator[int]:
        self._check_recorded()
        self._loader, epoch = _asking_loader(sys._getframe(1)), self.epoch
        yield from self.order[self._recorded + self.rank :: self.num_replicas]
        self._given_to_the_end = epoch

    def _check_recorded(self) -> None:
        """Raise a RuntimeError if the loop has finished the epoch, but not all is recorded."""
        loader = self._loader or {}
        # If the loop was left early, batches that workers fetched were never visited. Persistent
        # workers do not show whether it was.
        is_left = bool(loader.get("_task_info")) or loader.get("_persistent_workers", False)
        if self._given_to_the_end == self.epoch and not is_left:
            raise RuntimeError(
                f"{self.num_units - self._recorded} of {self.num_units} units of the last epoch "
                "were visited but not recorded: call update(unit, gradient) for every unit, in "
                "the order of the epoch, before the next one"
            )
        if self._recorded % self.num_replicas:
            raise RuntimeError(
                f"{self._recorded} units are recorded, which is no multiple of "
                f"{self.num_replicas} ranks: record the gathered gradients of all"
            )

    def set_epoch(self, epoch: int) -> None:
        """Check that ``epoch`` is the running one: an order depends on all gradients before it.

        Raises:
            RuntimeError: If it is not, for example because gradients were not recorded, or a
                `state_dict` was not loaded.
        """
        if epoch != self.epoch:
            raise RuntimeError(
                f"epoch {epoch} cannot be entered: {self._recorded} of {self.num_units} gradients "
                f"of epoch {self.epoch} are recorded; record all, or load the state_dict of the "
                "interrupted run"
            )

    @torch.no_grad()
    def update(self, indices: int | Tensor, values: Tensor) -> None:
        """Record gradients of units, in the order of the epoch.

        Half-precision gradients are summed in float32. With several ranks every rank records all
        units, so that all get the same next order.

        Args:
            indices: One unit, or several ``(B,)`` of the same epoch.
            values: The gradient of the unit ``(dim,)``, or of each ``(B, dim)``, finite.

        Raises:
            ValueError: If a gradient has another shape, is NaN or infinite (as that of a step that
                a `GradScaler` skips), or its unit is out of order. Units before it are recorded.
        """
        if not isinstance(indices, Tensor) or indices.ndim == 0:
            self._record(int(indices), values)
            return
        if values.ndim != 2 or indices.shape != values.shape[:1]:
            shapes = tuple(indices.shape), tuple(values.shape)
            raise ValueError(f"need units (B,) and gradients (B, dim), got {shapes}")
        for unit, gradient in zip(indices.tolist(), values, strict=True):
            self._record(unit, gradient)

    def _record(self, unit: int, gradient: Tensor) -> None:
        """Record one gradient, and begin the next epoch after the last one."""
        position = self._recorded
        if gradient.shape != self._sum.shape or self.order[position] != unit:
            raise ValueError(
                f"expected the gradient {tuple(self._sum.shape)} of unit {self.order[position]}, "
                f"got {tuple(gradient.shape)} of unit {unit}"
            )
        gradient = gradient.to(self._sum.device)
        dtype = torch.promote_types(self._sum.dtype, gradient.dtype)
        signed, total, mean = (v.to(dtype) for v in (self._signed, self._sum, self._mean))
        centred = gradient - mean
        product = float(signed @ centred)
        if not math.isfinite(product):
            finite(f"gradient of unit {unit}", gradient)
        if math.isnan(product):
            raise ValueError(f"the sums overflow with the gradient of unit {unit}: scale it down")
        self._signed, self._sum, self._mean = signed, total, mean
        self._sum += gradient
        # |S + c| <= |S - c| is the same as <S, c> <= 0.
        if product <= 0:
            self._signed += centred
            self._front.append(unit)
        else:
            self._signed -= centred
            self._back.append(unit)
        if position + 1 == self.num_units:
            self.order = self._front + self._back[::-1]
            self._mean = self._sum / self.num_units
            self._front, self._back = [], []
            self._sum, self._signed = torch.zeros_like(self._sum), torch.zeros_like(self._sum)
            self.epoch += 1

    def state_dict(self) -> StateDict:
        """Return the order, the sums, and what the running epoch has recorded."""
        vectors = {"signed": self._signed, "sum": self._sum, "mean": self._mean}
        units = {"order": self.order, "front": self._front, "back": self._back}
        state = {k: v.clone() for k, v in vectors.items()} | {k: list(v) for k, v in units.items()}
        return state | {"epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``.

        Raises:
            ValueError: If the state has other sizes.
        """
        sizes = len(state["order"]), len(state["sum"])
        if sizes != (self.num_units, len(self._sum)):
            raise ValueError(
                f"state of {sizes[0]} units with gradients of {sizes[1]}, need {self.num_units} "
                f"and {len(self._sum)}"
            )
        device = self._sum.device
        vectors = (state[name].to(device, copy=True) for name in ("signed", "sum", "mean"))
        self._signed, self._sum, self._mean = vectors
        self.order, self.epoch = list(state["order"]), state["epoch"]
        self._front, self._back = list(state["front"]), list(state["back"])
        self._loader, self._given_to_the_end = None, -1

    def __getstate__(self) -> StateDict:
        # A loader's iterator can be neither copied nor sent to another process.
        return vars(self) | {"_loader": None}
