"""The training loop: a fixed sequence of parts, each a standard PyTorch object or a function."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from trainaug.checks import widened
from trainaug.training.devices import device_of, to_device
from trainaug.training.models import IndexedData, Precision, run_model
from trainaug.undisturbed import undisturbed

__all__ = ["Batch", "History", "NonFiniteLossError", "train"]

#: Inputs, targets and indices of a batch.
Batch = tuple[Any, Any, Tensor]


class NonFiniteLossError(FloatingPointError):
    """The loss at ``step`` is NaN or infinite; the model was not updated with it.

    However, an optimiser with a closure may have moved the parameters before calling it again.

    Attributes:
        step: Number of updates made before.
        value: The loss.
    """

    def __init__(self, step: int, value: float) -> None:
        super().__init__(f"the loss at step {step} is {value}")
        self.step, self.value = step, value


@dataclass
class History:
    """What happened in a run: plain numbers, equal for equal runs.

    Attributes:
        precision: Precision of the run.
        losses: Mean loss of each step before its update, weighted if there are weights.
        evaluations: Results of ``evaluate``, with ``step``, ``epoch`` and ``examples`` so far.
        steps: Number of updates made.
        examples: Number of examples drawn from the data set.
        forward_examples: Rows passed through the model, counted after the batch transform.
        backward_examples: Rows for which gradients were computed.
    """

    precision: Precision
    losses: list[float] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0
    examples: int = 0
    forward_examples: int = 0
    backward_examples: int = 0


def train(
    model: nn.Module,
    dataset: IndexedData,
    batch_sampler: Iterable[Sequence[int]],
    criterion: Callable[[Any, Any], Tensor],
    optimizer: Optimizer,
    *,
    num_epochs: int | None = None,
    max_steps: int | None = None,
    scheduler: LRScheduler | None = None,
    batch_transform: Callable[[Batch], Batch] | None = None,
    weights: Callable[[Tensor], Tensor] | None = None,
    observers: Sequence[Callable[[nn.Module, int, Tensor, Tensor], object]] = (),
    feedback: Callable[[Tensor, Tensor], object] | None = None,
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    evaluate_every: int | None = None,
    precision: Precision = "fp32",
    first_epoch: int | None = None,
) -> History:
    """Train a model in place, on the device of its parameters.

    Steps count the updates made before: loss, observers and errors at step 0 belong to the initial
    weights. A batch is requested only when the previous step is complete, so that the sampler has
    already received its feedback. The order of a step is: data set, ``batch_transform``, model,
    ``criterion``, ``weights``, backward pass, ``observers``, update, ``scheduler``, ``feedback``.

    Args:
        model: Put in train mode; ``criterion`` takes the output of ``model(x)``.
        dataset: ``dataset[indices]`` is a batch ``(x, y, index)``; it is moved to the model.
        batch_sampler: Gives lists of indices. It is iterated anew in each epoch ``k``, counted
            from 0, after a call of its ``set_epoch(first_epoch + k)`` if it has that method.
        criterion: Returns per-example losses ``(B,)``, as with ``reduction="none"``; losses in
            half precision are converted to float32.
        optimizer: If its attribute ``requires_closure`` is true, ``step`` is called with a closure
            that computes loss and gradients of the batch, and the first call of it is observed.
        num_epochs: Length of the run in passes over ``batch_sampler``, at least 1. Give either
            this or ``max_steps``.
        max_steps: Length of the run in updates, at least 1.
        scheduler: Stepped after every update.
        batch_transform: May mix the examples of a batch; the index it returns has one entry for
            each loss.
        weights: Maps the index to weights ``(B,)`` of the losses; the weighted losses are averaged
            over B.
        observers: Called after the backward pass with model, step, index and losses; what they do
            to the model is undone (`undisturbed`).
        feedback: Called after the update with index and losses, on the model's device.
        evaluate: Called with the model in eval mode, at the end and after each epoch, or after each
            ``evaluate_every`` steps; returns numbers by name. What it does to the model is undone.
        evaluate_every: Steps between two evaluations, at least 1.
        precision: ``"bf16"`` runs the model, not the criterion, under autocast.
        first_epoch: First number given to ``set_epoch``. By default it is the sampler's
            ``next_epoch`` if it has one, so that a loaded state or a second call continues the
            count, and 0 otherwise.

    Returns:
        The losses, evaluations and counts of the run.

    Raises:
        ValueError: If an option or a shape is wrong, a batch is empty or not a list of indices,
            or an epoch has no batch.
        NonFiniteLossError: If the loss is NaN or infinite.
    """
    if (num_epochs is None) == (max_steps is None):
        raise ValueError(f"give one of num_epochs and max_steps, got {num_epochs}, {max_steps}")
    if min(n for n in (num_epochs, max_steps, evaluate_every) if n is not None) < 1:
        raise ValueError(f"need >= 1, got {num_epochs=}, {max_steps=}, {evaluate_every=}")
    if precision not in ("fp32", "bf16") or len(dataset) == 0:
        raise ValueError(f"need fp32 or bf16 and examples, got {precision!r}, {len(dataset)}")
    device = device_of(model)
    history = History(precision)
    takes_closure = getattr(optimizer, "requires_closure", False)

    def take_step(indices: Sequence[int]) -> None:
        """Train on one batch and count it in the history."""
        if not hasattr(indices, "__len__") or len(indices) == 0:
            raise ValueError(
                f"batch_sampler must give lists of indices, got {indices!r} at step {history.steps}"
            )
        batch = to_device(dataset[indices], device)
        x, y, index = batch if batch_transform is None else batch_transform(batch)
        rows = index.shape[0]
        seen: list[Tensor] = []  # the losses of the first call of the closure below

        def compute_gradients() -> Tensor:
            """Compute the loss and its gradients; the first call is recorded and observed."""
            optimizer.zero_grad()
            losses = criterion(run_model(model, x, precision, device), y)  # (B,)
            if losses.shape != (rows,):
                raise _wrong_shape("losses (give the criterion reduction='none')", losses, rows)
            losses = weighted = widened(losses)
            history.forward_examples += rows
            if weights is not None:  # a product with ones would cost a tenth of a small step
                w = weights(index).to(losses)
                if w.shape != (rows,):
                    raise _wrong_shape("weights", w, rows)
                weighted = w * losses
            loss = weighted.mean()
            value = loss.item()
            if not math.isfinite(value):
                raise NonFiniteLossError(history.steps, value)
            loss.backward()  # type: ignore[no-untyped-call]
            history.backward_examples += rows
            if not seen:
                seen.append(losses.detach())
                history.losses.append(value)
                for observe in observers:
                    with undisturbed(model):
                        observe(model, history.steps, index.clone(), seen[0].clone())
            return loss

        if takes_closure:
            optimizer.step(torch.enable_grad()(compute_gradients))  # type: ignore[arg-type]
        else:
            if torch.is_grad_enabled():
                compute_gradients()
            else:  # the caller has switched gradients off
                torch.enable_grad()(compute_gradients)()
            optimizer.step()
        if scheduler is not None:
            scheduler.step()
        history.steps += 1
        history.examples += len(indices)
        if feedback is not None:
            feedback(index, seen[0])

    def measure(epoch: int) -> None:
        """Evaluate the model, undo what that does to it, and record the numbers."""
        if evaluate is not None:
            with undisturbed(model):
                metrics = {name: float(value) for name, value in evaluate(model.eval()).items()}
            now = {"step": history.steps, "epoch": epoch, "examples": history.examples}
            history.evaluations.append(metrics | now)

    first = getattr(batch_sampler, "next_epoch", 0) if first_epoch is None else first_epoch
    model.train()
    for epoch in itertools.count() if num_epochs is None else range(num_epochs):
        steps_before = history.steps
        if hasattr(batch_sampler, "set_epoch"):
            batch_sampler.set_epoch(first + epoch)
        for indices in batch_sampler:
            take_step(indices)
            if evaluate_every is not None and history.steps % evaluate_every == 0:
                measure(epoch)
            if history.steps == max_steps:
                break
        if history.steps == steps_before:
            raise ValueError(f"batch_sampler gave no batch in epoch {epoch}")
        finished = history.steps == max_steps or epoch + 1 == num_epochs
        if evaluate_every is None or (finished and history.steps % evaluate_every != 0):
            measure(epoch)
        if finished:
            break
    return history


def _wrong_shape(what: str, values: Tensor, rows: int) -> ValueError:
    """Return the error for values that are not one per row."""
    return ValueError(f"{what} must have shape ({rows},), got {tuple(values.shape)}")
