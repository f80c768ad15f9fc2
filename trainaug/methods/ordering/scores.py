r"""How good each candidate batch is as the next one: losses, trial steps and gradients.

With plain gradient descent, learning rate $\eta$ and batch gradients $h_b$, to first order
``delta_abs`` is $\eta\|h_b\|^2$, ``delta_rel`` is the same divided by the loss, and
``delta_target`` is $\eta\langle h_T, h_b\rangle$. The first two prefer large gradients; only the
last one uses other data than the batch itself.

Chapter: notebooks/04_curriculum.ipynb
Reference: Simionescu, "Deep Learning Training Procedure Augmentations", arXiv 2211.14395.
"""

from __future__ import annotations

import weakref
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainaug.checks import widened
from trainaug.methods.ordering.copies import Copies, Criterion, GradientCount, masked_means
from trainaug.methods.ordering.nested import eager, leaves, per_example
from trainaug.structures import StateDict, map_tensors, model_losses, unwrapped
from trainaug.undisturbed import undisturbed

__all__ = ["BatchScorer", "Score", "batch_losses", "target_alignments", "trial_losses"]

Score = Literal["min_loss", "max_loss", "delta_abs", "delta_rel", "delta_target", "grad_align"]
Target = tuple[Any, Any]  # inputs and targets
_LOSS = ("min_loss", "max_loss")
_TRIAL = ("delta_abs", "delta_rel", "delta_target")  # need an optimiser
_TARGET = ("delta_target", "grad_align")  # need a target


def batch_losses(
    model: nn.Module,
    criterion: Criterion,
    x: Any,
    y: Any,
    mask: Tensor | None = None,
    *,
    independent: bool = False,
) -> Tensor:
    """Return the mean loss of each candidate, without gradients.

    Args:
        model: Used in its present mode; ``BatchScorer`` puts it in eval mode.
        criterion: Returns per-example losses ``(B,)``.
        x: Candidates, ``(N, B, ...)``, or tuples, lists and dicts of such tensors.
        y: Targets, ``(N, B, ...)``, likewise.
        mask: Which examples count, bool ``(N, B)``, for candidates of unequal size.
        independent: Promise that no example's loss depends on the others of its batch. This holds
            in classification without batch normalisation in train mode, but not if the other
            examples are negatives. All candidates then share one forward pass.

    Returns:
        Losses, ``(N,)``; for half-precision losses in float32.

    Raises:
        ValueError: If there is no candidate or an empty one, or shapes do not fit.
    """
    model = unwrapped(model)
    shape = _check_candidates(x, y, mask)
    with torch.no_grad():
        if not independent:
            parts = _candidates(x, y, mask)
            return torch.stack([_mean_loss(model, criterion, *part) for part in parts])
        losses = model_losses(model, criterion, _flat(x), _flat(y))  # (N * B,)
        losses = per_example(losses, shape[0] * shape[1])
    return masked_means(losses.view(shape), mask)


def trial_losses(
    model: nn.Module,
    optimizer: Optimizer,
    criterion: Criterion,
    x: Any,
    y: Any,
    mask: Tensor | None = None,
    *,
    target: Target | None = None,
    together: bool = True,
    independent: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the losses before and after one trial step on each candidate, from the present state.

    Args:
        model: Its state is restored.
        optimizer: Takes the trial steps; its state is restored.
        criterion: Returns per-example losses ``(B,)``.
        x: Candidates, ``(N, B, ...)``, or tuples, lists and dicts of such tensors.
        y: Targets, ``(N, B, ...)``, likewise.
        mask: Which examples count, bool ``(N, B)``.
        target: Inputs and targets on which the losses are computed; by default the candidate's.
        together: Step copies of the model at the same time; otherwise one after another, which
            works for any model, and any optimiser that steps without a closure.
        independent: As in ``batch_losses``. Without it, candidates of unequal size are stepped one
            after another, because the model must not see the padding.

    Returns:
        Losses before and after, each ``(N,)``; for half-precision losses in float32.

    Raises:
        TypeError: If ``together`` and ``Copies`` cannot stack the optimiser's steps.
        ValueError: If there is no candidate or an empty one, or shapes do not fit.
        RuntimeError: If ``together`` and model or criterion cannot run under ``torch.vmap``.
    """
    model = unwrapped(model)
    shape = _check_candidates(x, y, mask)
    ragged = mask is not None and not independent and not bool(mask.all())
    copies = Copies(model, optimizer, criterion, shape[0]) if together and not ragged else None
    target_loss = None
    if target is not None:
        with undisturbed(model), torch.no_grad():
            target_loss = _mean_loss(model, criterion, *target)
    if copies is None:
        candidates = _candidates(x, y, mask)
        return _one_by_one(model, optimizer, criterion, candidates, target, target_loss)
    before = copies.step(x, y, mask)
    with torch.no_grad():
        if target is None or target_loss is None:
            return before, masked_means(copies.losses(x, y), mask)
        after = masked_means(copies.losses(*target, shared=True), None)
        return target_loss.expand(shape[0]), after


def _one_by_one(
    model: nn.Module,
    optimizer: Optimizer,
    criterion: Criterion,
    candidates: list[Target],
    target: Target | None,
    target_loss: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return losses before and after one step on each candidate; restore the state after each."""
    groups = [group["params"] for group in optimizer.param_groups]
    parameters = dict.fromkeys(p for params in (model.parameters(), *groups) for p in params)
    trained = [p for p in parameters if p.requires_grad]
    if not trained:
        raise ValueError("the model has no parameter that requires gradients")
    losses = []
    for batch in candidates:
        evaluated = batch if target is None else target
        with undisturbed(model, optimizer), torch.enable_grad():
            optimizer.zero_grad()
            batch_loss = _mean_loss(model, criterion, *batch)
            batch_loss.backward(inputs=trained)  # type: ignore[no-untyped-call]
            with torch.no_grad():
                before = batch_loss.detach() if target_loss is None else target_loss
                optimizer.step()
                losses.append(torch.stack([before, _mean_loss(model, criterion, *evaluated)]))
    before, after = torch.stack(losses).unbind(1)
    return before, after


def target_alignments(
    model: nn.Module,
    criterion: Criterion,
    x: Any,
    y: Any,
    mask: Tensor | None = None,
    *,
    target: Target,
    independent: bool = False,
) -> Tensor:
    r"""Return the inner product $\langle\nabla\ell(T), \nabla\ell(b)\rangle$ for each candidate b.

    Multiplied by the learning rate of plain gradient descent it is ``delta_target`` to first order.

    One forward-mode pass gives all products: each is the derivative of the candidate's loss along
    the target's gradient, so no candidate's gradient is ever formed. If PyTorch has no forward mode
    for an operation, such as fused attention, each candidate takes a backward pass instead.
    Gradients have the precision of the parameters.

    Args:
        model: Used in its present mode, which with batch normalisation must be eval mode; it is
            not changed.
        criterion: Returns per-example losses ``(B,)``.
        x: Candidates, ``(N, B, ...)``, or tuples, lists and dicts of such tensors.
        y: Targets, ``(N, B, ...)``, likewise.
        mask: Which examples count, bool ``(N, B)``, for candidates of unequal size.
        target: Inputs and targets of T, ``(M, ...)`` each, or nested likewise.
        independent: As in ``batch_losses``.

    Returns:
        Inner products, ``(N,)``; for half-precision losses in float32.

    Raises:
        ValueError: If there is no candidate or an empty one, shapes do not fit, the criterion does
            not give per-example losses, or no parameter requires gradients.
    """
    with eager():
        products, _ = _alignments(
            model, criterion, x, y, mask, target, independent, forward_mode=True
        )
    return products


def _alignments(
    model: nn.Module,
    criterion: Criterion,
    x: Any,
    y: Any,
    mask: Tensor | None,
    target: Target,
    independent: bool,
    forward_mode: bool,
) -> tuple[Tensor, bool]:
    """Return the inner products of `target_alignments`, and whether forward mode gave them."""
    model = unwrapped(model)
    shape = _check_candidates(x, y, mask)
    named = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    if not named:
        raise ValueError("the model has no parameter that requires gradients")

    def losses_at(parameters: dict[str, Tensor], x: Any, y: Any) -> Tensor:
        losses = model_losses(model, criterion, x, y, parameters)
        return widened(per_example(losses, len(leaves(x)[0])))  # (B,)

    def means(parameters: dict[str, Tensor]) -> Tensor:
        parts = _candidates(x, y, mask)
        return torch.stack([losses_at(parameters, *part).mean() for part in parts])

    if forward_mode:
        try:
            direction = torch.func.grad(lambda p: losses_at(p, *target).mean())(named)
            if not independent:
                return torch.func.jvp(means, (named,), (direction,))[1], True
            flat = _flat(x), _flat(y)
            derivative = torch.func.jvp(lambda p: losses_at(p, *flat), (named,), (direction,))
            return masked_means(derivative[1].view(shape), mask), True
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # no forward mode; an error of the model itself is raised again below
            pass
    leaf_parameters = {name: p.detach().requires_grad_() for name, p in named.items()}

    def gradient(x: Any, y: Any) -> list[Tensor | None]:
        # Copies, so that each gradient is computed with the same buffers.
        buffers = {name: b.clone() for name, b in model.named_buffers()}
        with torch.enable_grad():
            loss = losses_at(leaf_parameters | buffers, x, y).mean()
        inputs = list(leaf_parameters.values())
        return list(torch.autograd.grad(loss, inputs, allow_unused=True))

    target_gradient = gradient(*target)
    products = []
    for part in _candidates(x, y, mask):
        pairs = zip(target_gradient, gradient(*part), strict=True)
        both = [(a, b) for a, b in pairs if a is not None and b is not None]
        product = sum((widened(a) * widened(b)).sum() for a, b in both)
        products.append(torch.as_tensor(product, device=next(iter(named.values())).device))
    return torch.stack(products), False


def _flat(value: Any) -> Any:
    """Merge the first two dimensions of each tensor, ``(N, B, ...) -> (N * B, ...)``."""
    return map_tensors(lambda t: t.flatten(0, 1), value)


def _candidates(x: Any, y: Any, mask: Tensor | None) -> list[Target]:
    """Return each candidate's inputs and targets, without the padding."""

    def part(value: Any, number: int) -> Any:
        rows = slice(None) if mask is None else mask[number]
        return map_tensors(lambda t: t[number][rows], value)

    return [(part(x, number), part(y, number)) for number in range(len(leaves(x)[0]))]


def _mean_loss(model: nn.Module, criterion: Criterion, x: Any, y: Any) -> Tensor:
    losses = per_example(model_losses(model, criterion, x, y), len(leaves(x)[0]))
    return masked_means(losses, None)


def _check_candidates(x: Any, y: Any, mask: Tensor | None) -> tuple[int, int]:
    """Return N and B; raise a ValueError unless x, y and mask fit ``(N, B)``, none of it empty."""
    shapes = [tuple(t.shape) for t in leaves((x, y))]
    first = leaves(x)[0].shape[:2] if leaves(x) else ()
    if len(first) < 2 or min(first) < 1 or any(shape[:2] != first for shape in shapes):
        raise ValueError(f"need candidates (N, B, ...) with N, B >= 1, got the shapes {shapes}")
    if mask is not None:
        if mask.dtype != torch.bool or mask.shape != first:
            raise ValueError(f"mask must be bool {tuple(first)}, got {mask.dtype} {mask.shape}")
        if not bool(mask.any(1).all()):
            raise ValueError(f"candidate {int((~mask.any(1)).nonzero()[0])} has no example")
    return first[0], first[1]


class BatchScorer:
    """Score candidate batches with the present model; larger is better.

    Scores are computed in eval mode, so dropout is off and batch normalisation uses its running
    statistics. Model, optimiser, gradients and random states are then restored. If the model is
    compiled or data-parallel, the module inside is run, uncompiled and without communication.

    Inputs, targets and the model's outputs may be tensors, or tuples, lists and dicts of them; a
    model gets all its inputs as one argument. Half-precision losses give scores in float32.

    Args:
        score: ``min_loss`` (the easiest batch), ``max_loss`` (the hardest), ``delta_abs`` (by how
            much a trial step lowers the batch's own loss), ``delta_rel`` (the same divided by the
            loss; 0 if the loss is 0), ``delta_target`` (by how much it lowers the target's loss)
            or ``grad_align`` (inner product with the target's gradient).
        model: Any module that maps ``(B, ...)`` to what ``criterion`` takes.
        criterion: Returns per-example losses ``(B,)``.
        optimizer: Needed for the scores with trial steps.
        target: Inputs and targets held out of the training data; never test data.
        together: Take the trial steps at the same time; give ``False`` for optimisers that are not
            elementwise, and models that ``torch.vmap`` cannot run.
        independent: Promise that no example's loss depends on the others of its batch, see
            ``batch_losses``; scoring is then faster.

    Attributes:
        forward_rows: Examples passed forward so far.
        backward_rows: Examples passed backward so far; one costs about two passed forward.

    Raises:
        ValueError: If the score is unknown, optimiser or target are missing, or the target has no
            example. While scoring, if the model has no parameters, or they are on the meta device.
    """

    def __init__(
        self,
        score: Score,
        model: nn.Module,
        criterion: Criterion,
        *,
        optimizer: Optimizer | None = None,
        target: Target | None = None,
        together: bool = True,
        independent: bool = False,
    ) -> None:
        if score not in get_args(Score):
            raise ValueError(f"score must be one of {', '.join(get_args(Score))}, got {score!r}")
        if (score in _TRIAL and optimizer is None) or (score in _TARGET and target is None):
            needed = "an optimizer" if optimizer is None and score in _TRIAL else "a target"
            raise ValueError(f"{score} needs {needed}")
        self.score, self.model, self.criterion = score, model, criterion
        self.optimizer, self.together, self.independent = optimizer, together, independent
        self.target = target if score in _TARGET else None
        if self.target is not None and _rows(self.target) == 0:
            raise ValueError("the target has no example")
        self.forward_rows = self.backward_rows = 0
        self._forward_mode = True  # until it fails once
        self._watch = _Watch()

    @property
    def device(self) -> torch.device:
        """Device of the model's first parameter; candidates are moved there.

        Raises:
            ValueError: If there is no parameter, or the first is on the meta device.
        """
        parameter = next(self.model.parameters(), None)
        if parameter is None or parameter.is_meta:
            state = "no parameters" if parameter is None else "parameters on the meta device"
            raise ValueError(f"{type(self.model).__name__} has {state}: nothing to score with")
        return parameter.device

    def version(self) -> tuple[int, int]:
        """Return two counts, of which at least one grows whenever the model is trained.

        The first grows when any parameter has other bytes than at the last call, however they were
        written. The second is the number of gradients that parameters have received since the
        first call, without those of scoring. It grows even if batches are trained on without an
        update, as in gradient accumulation or when ``torch.amp.GradScaler`` skips a step. So equal
        versions mean that no batch was trained on in between. A call costs a pass over the
        parameters, a copy of them if they changed, and one synchronisation per device.

        Returns:
            The number of changes and the number of gradients.

        Raises:
            ValueError: If there is no parameter, or the first is on the meta device.
        """
        _ = self.device  # raises if there is nothing to score with
        return self._watch.version(list(self.model.parameters()))

    @torch.inference_mode(False)
    def __call__(self, x: Any, y: Any, mask: Tensor | None = None) -> Tensor:
        """Return the scores ``(N,)`` of N candidates, larger is better; NaN if a loss is NaN.

        Args:
            x: Candidates, ``(N, B, ...)``, or tuples, lists and dicts of such tensors, on any
                device.
            y: Targets, ``(N, B, ...)``, likewise.
            mask: Which examples count, bool ``(N, B)``, for candidates of unequal size.

        Raises:
            ValueError: If there is no candidate or an empty one, shapes do not fit, or the model
                has no parameter to score with.
            TypeError: If ``together`` and the optimiser's steps cannot be stacked.
            RuntimeError: If ``together`` and ``torch.vmap`` cannot run model or criterion.
        """
        x, y, mask = (map_tensors(self._placed, value) for value in (x, y, mask))
        model = unwrapped(self.model)
        gradients = self._watch.gradients.count
        with undisturbed(model), eager():
            model.eval()
            scores = self._measure(model, x, y, mask)
        self._watch.gradients.count = gradients  # gradients of scoring are not training
        return scores

    def _placed(self, t: Tensor) -> Tensor:
        """Move a tensor to the model's device; copy it if autograd could not use it otherwise."""
        t = t.to(self.device)
        return t.clone() if t.is_inference() else t

    def _measure(self, model: nn.Module, x: Any, y: Any, mask: Tensor | None) -> Tensor:
        """Return the scores, and count the examples passed forward and backward."""
        shape = _check_candidates(x, y, mask)
        # Whether the padding of candidates of unequal size is passed through the model, too.
        is_padded = self.independent and (self.together or self.score not in _TRIAL)
        rows = shape[0] * shape[1] if mask is None or is_padded else int(mask.sum())
        target = map_tensors(self._placed, self.target)
        target_rows = 0 if target is None else _rows(target)
        batches = (model, self.criterion, x, y, mask)
        if self.score in _LOSS:
            self.forward_rows += rows
            losses = batch_losses(*batches, independent=self.independent)
            return losses if self.score == "max_loss" else -losses
        if self.score == "grad_align":
            alignments, self._forward_mode = _alignments(
                *batches, target, self.independent, self._forward_mode
            )
            # Forward mode computes the value and the derivative: twice a forward pass.
            self.forward_rows += (2 * rows if self._forward_mode else rows) + target_rows
            self.backward_rows += target_rows if self._forward_mode else rows + target_rows
            return alignments
        assert self.optimizer is not None
        # Losses are evaluated before and after; the target's once before, and after each step.
        self.forward_rows += rows + (rows if target is None else target_rows * (shape[0] + 1))
        self.backward_rows += rows
        before, after = trial_losses(
            model,
            self.optimizer,
            *batches[1:],
            target=target,
            together=self.together,
            independent=self.independent,
        )
        drop = before - after
        if self.score == "delta_rel":
            return torch.where(before == 0, 0.0, drop / before)
        return drop

    def __getstate__(self) -> StateDict:
        # The hooks belong to the parameters of this very model; a copy registers its own.
        return vars(self) | {"_watch": _Watch()}


class _Watch:
    """Counts how often the parameters of a model changed, and how many gradients they received."""

    def __init__(self) -> None:
        self.gradients = GradientCount()
        self.changes = 0
        self.kept: list[Tensor] = []  # copies of the parameters at the last change
        self.handles: dict[Tensor, Any] = {}  # of the hook on each parameter
        weakref.finalize(self, _remove, self.handles).atexit = False  # hooks end with this object

    def version(self, parameters: list[Tensor]) -> tuple[int, int]:
        """Return both counts, after comparing the parameters with those of the last call."""
        for p in parameters:
            if p.requires_grad and p not in self.handles:
                self.handles[p] = p.register_hook(self.gradients)  # type: ignore[no-untyped-call]
        if _differ(parameters, self.kept):
            self.changes += 1
            self.kept = [p.detach().clone() for p in parameters]
        return self.changes, self.gradients.count


def _remove(handles: dict[Tensor, Any]) -> None:
    for handle in handles.values():
        handle.remove()


@torch.no_grad()
def _differ(parameters: list[Tensor], copies: list[Tensor]) -> bool:
    """Tell whether any byte differs, with one synchronisation per device."""
    if len(parameters) != len(copies):
        return True
    by_device: dict[torch.device, list[Tensor]] = {}
    for p, q in zip(parameters, copies, strict=True):
        if p.dtype != q.dtype or p.device != q.device or p.shape != q.shape:
            return True
        by_device.setdefault(p.device, []).append((_bits(p) != _bits(q)).any())
    return any(bool(torch.stack(flags).any()) for flags in by_device.values())


def _bits(t: Tensor) -> Tensor:
    """Return the bytes of a tensor as integers, so that NaN equals itself."""
    t = torch.view_as_real(t.detach()) if t.is_complex() else t.detach()
    size = t.element_size()
    return t.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size])


def _rows(target: Target) -> int:
    """Return the number of the target's examples."""
    tensors = leaves(target[0])
    return len(tensors[0]) if tensors else 0
