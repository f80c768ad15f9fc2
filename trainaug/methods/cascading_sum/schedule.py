r"""Cascades: the number of mixed samples falls to 1, on a schedule or when validation stalls.

Chapter: notebooks/05_cascading_sum.ipynb
Reference: Simionescu, "Deep Learning Training Procedure Augmentations", 2022, arXiv 2211.14395, and
the public code of Cascading Sum Augmentation: geometric with plateaus (2019), gradual (2020).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import accumulate
from numbers import Integral
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainaug.methods.cascading_sum.functional import weight_type
from trainaug.structures import StateDict

__all__ = ["CascadeSchedule", "PlateauCascade", "begin_stage", "stage_boundaries"]

Event = Literal["improved", "continue", "reduce_lr", "next_stage", "finished"]


def stage_boundaries(shares: Sequence[float], total_steps: int) -> tuple[int, ...]:
    """Return the end of each stage: one past its last step.

    Args:
        shares: Share of the steps for each stage, above 0, with sum 1.
        total_steps: Steps of the whole run, enough for every stage to have one.

    Returns:
        The ends, of which the last is ``total_steps``; each is rounded to the nearest step.

    Raises:
        ValueError: If shares are not above 0 or do not add up to 1 (up to 1e-9), the number of
            steps is not whole, or a stage is left without a step.

    Example:
        >>> stage_boundaries([1 / 3, 1 / 3, 1 / 3], 100)
        (33, 67, 100)
    """
    if not shares or min(shares) <= 0 or not math.isclose(sum(shares), 1, abs_tol=1e-9):
        raise ValueError(f"shares must be above 0 and add up to 1, got {list(shares)}")
    if not isinstance(total_steps, Integral) or isinstance(total_steps, bool):
        raise ValueError(f"total_steps must be a whole number, got {total_steps}")
    ends = tuple(round(total_steps * done) for done in accumulate(shares))
    if min(b - a for a, b in zip((0, *ends[:-1]), ends, strict=True)) < 1:
        raise ValueError(f"{total_steps} steps leave a stage of {list(shares)} without a step")
    return ends


class CascadeSchedule:
    r"""Number of samples in a mix, and their weights, as pure functions of the step.

    In ``"step"`` mode the $K_s$ samples of stage $s$ have equal weights. In ``"smooth"`` mode their
    weights move on a line to those of the next stage. With $u\in[0,1)$ the share of the stage that
    is done they are $w=(1-u)\,\mathbf 1_{K_s}/K_s+u\,\mathbf 1_{K_{s+1}}/K_{s+1}$, continuous in
    $u$. With stages $n, n-1, \dots, 1$ that is what the source's gradual cascade means to do.

    Args:
        stages: Pairs of K and share of the steps. K never rises and ends at 1; shares add up to 1.
        total_steps: Steps of the whole run.
        mode: ``"step"`` or ``"smooth"``.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> schedule = CascadeSchedule([(4, 0.5), (2, 0.25), (1, 0.25)], total_steps=100)
        >>> [schedule.k(step) for step in (0, 49, 50, 74, 75, 99)]
        [4, 4, 2, 2, 1, 1]
        >>> CascadeSchedule([(2, 0.5), (1, 0.5)], 8, mode="smooth").weights(1)
        tensor([0.6250, 0.3750])
    """

    def __init__(
        self,
        stages: Sequence[tuple[int, float]],
        total_steps: int,
        *,
        mode: Literal["step", "smooth"] = "step",
    ) -> None:
        counts = [k for k, _ in stages]
        if not counts or any(type(k) is not int or k < 1 for k in counts):
            raise ValueError(f"K must be whole numbers from 1, got {counts}")
        if counts != sorted(counts, reverse=True) or counts[-1] != 1:
            raise ValueError(f"K must never rise and end at 1, got {counts}")
        if mode not in ("step", "smooth"):
            raise ValueError(f"mode must be step or smooth, got {mode!r}")
        self.counts, self.mode, self.total_steps = tuple(counts), mode, total_steps
        self.boundaries = stage_boundaries([share for _, share in stages], total_steps)

    def stage(self, step: int) -> int:
        """Return the number of the stage of a step, from 0.

        Args:
            step: Step of the run, from 0 to ``total_steps`` - 1.

        Raises:
            ValueError: If the step is below 0, or after the last one.
        """
        if not 0 <= step < self.total_steps:
            raise ValueError(f"step must be from 0 to {self.total_steps - 1}, got {step}")
        return sum(step >= end for end in self.boundaries)

    def k(self, step: int) -> int:
        """Return K, the number of samples in a mix at a step.

        Args:
            step: Step of the run, from 0 to ``total_steps`` - 1.

        Raises:
            ValueError: If the step is below 0, or after the last one.
        """
        return self.counts[self.stage(step)]

    def weights(self, step: int) -> Tensor:
        """Return the weights of these samples, ``(K,)``, at least 0 with sum 1, on the CPU.

        They have the default type, but float32 where that is half precision.

        Args:
            step: Step of the run, from 0 to ``total_steps`` - 1.

        Raises:
            ValueError: If the step is below 0, or after the last one.
        """
        stage = self.stage(step)
        k = self.counts[stage]
        w = torch.full((k,), 1 / k, dtype=torch.float64, device="cpu")
        if self.mode == "smooth" and stage + 1 < len(self.counts):
            start = 0 if stage == 0 else self.boundaries[stage - 1]
            u = (step - start) / (self.boundaries[stage] - start)
            following = self.counts[stage + 1]
            w *= 1 - u
            w[:following] += u / following
        return w.to(weight_type())


class PlateauCascade:
    r"""The source's first cascade: K falls by a factor when validation stops improving.

    Feed it one validation score an epoch (larger is better, never of the test set) and do what it
    answers: after ``"improved"`` keep a copy of the model; after ``"reduce_lr"`` halve the learning
    rate; after ``"next_stage"`` go on from the best copy with the new ``k``; after ``"finished"``
    stop. ``"continue"`` asks for nothing.

    Args:
        k0: First K, at least 1.
        factor: K is divided by it, rounded down, but not below 1.
        patience: Epochs without improvement before the learning rate is reduced, at K = 1. At a
            larger K there are K times as many, since a mixed epoch has 1/K of the steps.
        stop_patience: The same for the end of a stage; the source uses 3 to 4 times ``patience``.
        min_delta: Smallest improvement that counts, relative to the best score.

    Attributes:
        k: Samples in a mix now.

    Raises:
        ValueError: If an option or a score is out of range, or the cascade has finished.

    Example:
        >>> cascade = PlateauCascade(k0=2, patience=1, stop_patience=1)
        >>> [cascade.step(score) for score in (0.5, 0.5, 0.4)], cascade.k
        (['improved', 'continue', 'next_stage'], 1)
    """

    def __init__(
        self,
        k0: int = 8,
        *,
        factor: int = 2,
        patience: int = 2,
        stop_patience: int = 6,
        min_delta: float = 1e-3,
    ) -> None:
        is_whole = all(type(n) is int for n in (k0, factor, patience, stop_patience))
        is_wide = min(k0, patience, stop_patience) >= 1 and factor >= 2
        if not (is_whole and is_wide and 0 <= min_delta < math.inf):
            raise ValueError(
                "need whole k0, patience >= 1 and factor >= 2, min_delta >= 0, "
                f"got {k0=}, {patience=}, {stop_patience=}, {factor=}, {min_delta=}"
            )
        self.factor, self.min_delta = factor, min_delta
        self.patience, self.stop_patience = patience, stop_patience
        self.k, self.best = k0, -math.inf
        self.stalled = self.stalled_since_reduction = 0
        self.has_finished = False

    def step(self, score: float) -> Event:
        """Take the validation score of an epoch and say what to do.

        Args:
            score: A finite number of any kind, or a tensor of one; larger is better.

        Returns:
            ``"improved"``, ``"continue"``, ``"reduce_lr"``, ``"next_stage"`` or ``"finished"``, see
            the class.

        Raises:
            ValueError: If the score is not finite, or the cascade has finished.
        """
        if self.has_finished:
            raise ValueError("the cascade has finished")
        score = float(score)  # a tensor might change later, and does not belong in a state
        if not math.isfinite(score):
            raise ValueError(f"the score must be finite, got {score}")
        if self.best == -math.inf or score > self.best + self.min_delta * abs(self.best):
            self.best = score
            self.stalled = self.stalled_since_reduction = 0
            return "improved"
        self.stalled += 1
        self.stalled_since_reduction += 1
        if self.stalled >= self.stop_patience * self.k:
            self.has_finished = self.k == 1
            if self.has_finished:
                return "finished"
            self.k, self.best = max(1, self.k // self.factor), -math.inf
            self.stalled = self.stalled_since_reduction = 0
            return "next_stage"
        if self.stalled_since_reduction >= self.patience * self.k:
            self.stalled_since_reduction = 0
            return "reduce_lr"
        return "continue"

    def state_dict(self) -> StateDict:
        """Return what a resumed cascade needs."""
        return dict(vars(self))

    def load_state_dict(self, state: StateDict) -> None:
        """Continue from ``state``.

        Raises:
            ValueError: If it is not the state of such a cascade.
        """
        if state.keys() != vars(self).keys():
            raise ValueError(f"need the state {sorted(vars(self))}, got {sorted(state)}")
        vars(self).update(state)


def begin_stage(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    lr: float,
    weights: dict[str, Tensor] | None = None,
    reset_optimizer: bool = False,
) -> None:
    """Switch a model and its optimiser to the next stage of a cascade, in place.

    Args:
        model: Any module.
        optimizer: Its optimiser.
        lr: Learning rate that the stage starts with, finite and at least 0, in every group.
        weights: ``state_dict`` to go on from, say the best of the stage; ``None`` for the present.
        reset_optimizer: Forget momentum and every other state, as the source does.

    Raises:
        ValueError: If ``lr`` is negative or not finite; nothing is changed then.
    """
    lr = float(lr)
    if not (math.isfinite(lr) and lr >= 0):
        raise ValueError(f"lr must be finite and at least 0, got {lr}")
    if weights is not None:
        model.load_state_dict(copy.deepcopy(weights))
    if reset_optimizer:
        optimizer.state.clear()
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # a captured graph reads this very tensor
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
        if "initial_lr" in group:  # a scheduler that is made from now on starts with it
            group["initial_lr"] = lr
