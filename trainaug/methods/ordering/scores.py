r"""How good each candidate batch is as the next one: losses, trial steps and gradients.

With plain gradient descent of rate $\eta$ and batch gradients $h_b$, to first order
``delta_abs`` is $\eta\|h_b\|^2$, ``delta_rel`` that over the loss, ``delta_target``
$\eta\langle h_T, h_b\rangle$: the first two look for large gradients, only the last one looks at
other data than the batch itself.

Chapter: notebooks/04_curriculum.ipynb
Reference: Simionescu, "Deep Learning Training Procedure Augmentations", arXiv 2211.14395.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from trainaug.methods.ordering.copies import Copies, Criterion, masked_means
from trainaug.methods.ordering.fingerprint import fingerprint
from trainaug.methods.ordering.state import preserve_state

__all__ = ["BatchScorer", "Score", "batch_losses", "target_alignments", "trial_losses"]

Score = Literal["min_loss", "max_loss", "delta_abs", "delta_rel", "delta_target", "grad_align"]
_LOSS = ("min_loss", "max_loss")
_TRIAL = ("delta_abs", "delta_rel", "delta_target")
_TARGET = ("delta_target", "grad_align")


def batch_losses(
    model: nn.Module, criterion: Criterion, x: Tensor, y: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Mean loss of each candidate in one forward pass, without gradients.

    Args:
        model: Used in the mode it is in; ``BatchScorer`` puts it in eval mode.
        criterion: Returns per-example losses ``(B,)``.
        x: Candidates, ``(N, B, ...)``.
        y: Targets, ``(N, B, ...)``.
        mask: Which examples count, bool ``(N, B)``, for candidates of unequal size.

    Returns:
        Losses, ``(N,)``.
    """
    with torch.no_grad():
        losses = criterion(model(x.flatten(0, 1)), y.flatten(0, 1))  # (N * B,)
    return masked_means(losses.view(y.shape[:2]), mask)


def trial_losses(
    model: nn.Module,
    optimizer: Optimizer,
    criterion: Criterion,
    x: Tensor,
    y: Tensor,
    mask: Tensor | None = None,
    *,
    target: tuple[Tensor, Tensor] | None = None,
    together: bool = True,
) -> tuple[Tensor, Tensor]:
    """Losses before and after one trial step on each candidate, all from the present state.

    Args:
        model: Left as it was.
        optimizer: Left as it was; the trial steps are its own.
        criterion: Returns per-example losses ``(B,)``.
        x: Candidates, ``(N, B, ...)``.
        y: Targets, ``(N, B, ...)``.
        mask: Which examples count, bool ``(N, B)``.
        target: Inputs and targets on which the loss is taken instead of the candidate itself.
        together: Step copies of the model side by side; otherwise one after another, for any
            optimiser that steps without a closure.

    Returns:
        Losses before and after, each ``(N,)``.

    Raises:
        TypeError: If ``together`` and the optimiser is not elementwise.
    """
    held = None
    if target is not None:
        with preserve_state(model), torch.no_grad():
            held = criterion(model(target[0]), target[1]).mean()
    if not together:
        return _one_by_one(model, optimizer, criterion, x, y, mask, target, held)
    copies = Copies(model, optimizer, criterion, len(x))
    before = copies.step(x, y, mask)
    with torch.no_grad():
        if target is None or held is None:
            return before, masked_means(copies.losses(x, y), mask)
        return held.expand(len(x)), copies.losses(*target, shared=True).mean(-1)


def _one_by_one(
    model: nn.Module,
    optimizer: Optimizer,
    criterion: Criterion,
    x: Tensor,
    y: Tensor,
    mask: Tensor | None,
    target: tuple[Tensor, Tensor] | None,
    held: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Save, step and restore for each candidate."""
    found = []
    for number in range(len(x)):
        kept = slice(None) if mask is None else mask[number]
        batch = (x[number][kept], y[number][kept])
        where = batch if target is None else target

        def loss(at: tuple[Tensor, Tensor]) -> Tensor:
            return criterion(model(at[0]), at[1]).mean()

        with preserve_state(model, optimizer), torch.enable_grad():
            optimizer.zero_grad()
            own = loss(batch)
            own.backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                before = own.detach() if held is None else held
                optimizer.step()
                found.append(torch.stack([before, loss(where)]))
    before, after = torch.stack(found).unbind(1)
    return before, after


def target_alignments(
    model: nn.Module,
    criterion: Criterion,
    x: Tensor,
    y: Tensor,
    mask: Tensor | None = None,
    *,
    target: tuple[Tensor, Tensor],
) -> Tensor:
    r"""Inner products $\langle\nabla\ell(T), \nabla\ell(b)\rangle$ of each candidate, ``(N,)``.

    One forward-mode pass gives all of them: the product is the derivative of the candidate's loss
    along the target's gradient, so no candidate's gradient is ever formed. A model with batch
    normalisation must be in eval mode.
    """
    named = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def losses_at(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return criterion(functional_call(model, parameters, (x,)), y)  # (B,)

    direction = torch.func.grad(lambda p: losses_at(p, *target).mean())(named)
    flat = x.flatten(0, 1), y.flatten(0, 1)
    found = torch.func.jvp(lambda p: losses_at(p, *flat), (named,), (direction,))
    return masked_means(found[1].view(y.shape[:2]), mask)


class BatchScorer:
    """Score candidate batches with the model as it is now; larger is better.

    The model is scored in eval mode, so dropout is off and batch normalisation uses its running
    statistics, and is given back unchanged, with optimiser, gradients and random states.

    Args:
        score: ``min_loss`` (the easiest batch), ``max_loss`` (the hardest), ``delta_abs`` (by how
            much a trial step lowers the batch's own loss), ``delta_rel`` (that over the loss;
            0 where the loss is 0), ``delta_target`` (by how much it lowers the target's loss) or
            ``grad_align`` (inner product with the target's gradient).
        model: Any module that maps ``(B, ...)`` to what ``criterion`` takes.
        criterion: Returns per-example losses ``(B,)``.
        optimizer: Needed for trial steps.
        target: Inputs and targets held out of the training data; never test data.
        together: Make the trial steps side by side; ``False`` for optimisers that are not
            elementwise.

    Attributes:
        forward_rows: Examples passed forward so far.
        backward_rows: Examples passed backward so far; a backward pass is two forward ones.

    Raises:
        ValueError: If the score is unknown, or optimiser or target are missing.
    """

    def __init__(
        self,
        score: Score,
        model: nn.Module,
        criterion: Criterion,
        *,
        optimizer: Optimizer | None = None,
        target: tuple[Tensor, Tensor] | None = None,
        together: bool = True,
    ) -> None:
        if score not in get_args(Score):
            raise ValueError(f"score must be one of {', '.join(get_args(Score))}, got {score!r}")
        if (score in _TRIAL and optimizer is None) or (score in _TARGET and target is None):
            needed = "an optimizer" if optimizer is None and score in _TRIAL else "a target"
            raise ValueError(f"{score} needs {needed}")
        self.score, self.model, self.criterion = score, model, criterion
        self.optimizer, self.together = optimizer, together
        self.device = next(model.parameters()).device
        self.target = None
        if score in _TARGET and target is not None:
            self.target = target[0].to(self.device), target[1].to(self.device)
        self.forward_rows = self.backward_rows = 0

    def version(self) -> Hashable:
        """What is equal as long as no bit of a parameter changes."""
        return fingerprint(self.model)

    def __call__(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the scores ``(N,)`` of candidates ``x`` ``(N, B, ...)``; NaN where a loss is."""
        x, y = x.to(self.device), y.to(self.device)
        mask = None if mask is None else mask.to(self.device)
        with preserve_state(self.model):
            self.model.eval()
            return self._measure(x, y, mask)

    def _measure(self, x: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        rows = y.shape[0] * y.shape[1]
        held = 0 if self.target is None else len(self.target[1])
        batches = (self.model, self.criterion, x, y, mask)
        if self.score in _LOSS:
            self.forward_rows += rows
            losses = batch_losses(*batches)
            return losses if self.score == "max_loss" else -losses
        if self.score == "grad_align":
            assert self.target is not None
            self.forward_rows += 2 * rows + held  # forward mode: value and derivative
            self.backward_rows += held
            return target_alignments(*batches, target=self.target)
        assert self.optimizer is not None
        self.forward_rows += rows + (rows if self.target is None else held * (len(x) + 1))
        self.backward_rows += rows
        before, after = trial_losses(
            self.model,
            self.optimizer,
            *batches[1:],
            target=self.target,
            together=self.together,
        )
        drop = before - after
        if self.score == "delta_rel":
            return torch.where(before == 0, 0.0, drop / before)
        return drop
