r"""How good each candidate batch is as the next one: losses, trial steps and gradients.

With plain gradient descent of rate $\eta$ and batch gradients $h_b$, to first order
``delta_abs`` is $\eta\|h_b\|^2$, ``delta_rel`` that over the loss, ``delta_target``
$\eta\langle h_T, h_b\rangle$: the first two look for large gradients, only the last one looks at
other data than the batch itself.

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
from trainaug.methods.ordering.copies import Copies, Criterion, masked_means
from trainaug.methods.ordering.nested import eager, leaves, per_example
from trainaug.methods.ordering.state import GradientCount, preserve_state
from trainaug.structures import StateDict, map_tensors, model_losses, unwrapped

__all__ = ["BatchScorer", "Score", "batch_losses", "target_alignments", "trial_losses"]

Score = Literal["min_loss", "max_loss", "delta_abs", "delta_rel", "delta_target", "grad_align"]
Target = tuple[Any, Any]  # inputs and targets
_LOSS = ("min_loss", "max_loss")
_TRIAL = ("delta_abs", "delta_rel", "delta_target")
_TARGET = ("delta_target", "grad_align")


def batch_losses(
    model: nn.Module,
    criterion: Criterion,
    x: Any,
    y: Any,
    mask: Tensor | None = None,
    *,
    independent: bool = False,
) -> Tensor:
    """Mean loss of each candidate, without gradients.

    Args:
        model: Used in the mode it is in; ``BatchScorer`` puts it in eval mode.
        criterion: Returns per-example losses ``(B,)``.
        x: Candidates, ``(N, B, ...)``, or tuples, lists and dicts of such tensors.
        y: Targets, ``(N, B, ...)``, likewise.
        mask: Which examples count, bool ``(N, B)``, for candidates of unequal size.
        independent: Promise that no example's loss depends on the others of its batch, as in
            classification without batch normalisation in train mode, but not with negatives in
            the batch. All candidates then share one forward pass.

    Returns:
        Losses, ``(N,)``; of half-precision ones in float32.

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
    """Losses before and after one trial step on each candidate, all from the present state.

    Args:
        model: Left as it was.
        optimizer: Left as it was; the trial steps are its own.
        criterion: Returns per-example losses ``(B,)``.
        x: Candidates, ``(N, B, ...)``, or tuples, lists and dicts of such tensors.
        y: Targets, ``(N, B, ...)``, likewise.
        mask: Which examples count, bool ``(N, B)``.
        target: Inputs and targets on which the loss is taken instead of the candidate itself.
        together: Step copies of the model side by side; otherwise one after another, for any
            optimiser that steps without a closure, and any model.
        independent: As in ``batch_losses``. Without it candidates of unequal size are stepped one
            after another, for what fills them up must not be seen.

    Returns:
        Losses before and after, each ``(N,)``; of half-precision ones in float32.

    Raises:
        TypeError: If ``together`` and ``Copies`` cannot stack the optimiser's steps.
        ValueError: If there is no candidate or an empty one, or shapes do not fit.
        RuntimeError: If ``together`` and model or criterion cannot run under ``torch.vmap``.
    """
    model = unwrapped(model)
    shape = _check_candidates(x, y, mask)
    ragged = mask is not None and not independent and not bool(mask.all())
    copies = Copies(model, optimizer, criterion, shape[0]) if together and not ragged else None
    held = None
    if target is not None:
        with preserve_state(model), torch.no_grad():
            held = _mean_loss(model, criterion, *target)
    if copies is None:
        return _one_by_one(model, optimizer, criterion, _candidates(x, y, mask), target, held)
    before = copies.step(x, y, mask)
    with torch.no_grad():
        if target is None or held is None:
            return before, masked_means(copies.losses(x, y), mask)
        after = masked_means(copies.losses(*target, shared=True), None)
        return held.expand(shape[0]), after


def _one_by_one(
    model: nn.Module,
    optimizer: Optimizer,
    criterion: Criterion,
    candidates: list[Target],
    target: Target | None,
    held: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Save, step and restore for each candidate."""
    groups = [group["params"] for group in optimizer.param_groups]
    everything = dict.fromkeys(p for params in (model.parameters(), *groups) for p in params)
    trained = [p for p in everything if p.requires_grad]
    if not trained:
        raise ValueError("the model has no parameter that requires gradients")
    losses = []
    for batch in candidates:
        where = batch if target is None else target
        with preserve_state(model, optimizer), torch.enable_grad():
            optimizer.zero_grad()
            own_loss = _mean_loss(model, criterion, *batch)
            own_loss.backward(inputs=trained)  # type: ignore[no-untyped-call]
            with torch.no_grad():
                before = own_loss.detach() if held is None else held
                optimizer.step()
                losses.append(torch.stack([before, _mean_loss(model, criterion, *where)]))
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
    r"""Inner products $\langle\nabla\ell(T), \nabla\ell(b)\rangle$ of each candidate.

    Times the learning rate of plain gradient descent they are ``delta_target`` to first order.

    One forward-mode pass gives all of them: the product is the derivative of the candidate's loss
    along the target's gradient, so no candidate's gradient is ever formed. Where PyTorch has no
    forward mode, say for fused attention, each candidate takes a backward pass instead. Gradients
    have the precision of the parameters.

    Args:
        model: Used in the mode it is in, which must be eval mode with batch normalisation; left
            as it was.
        criterion: Returns per-example losses ``(B,)``.
        x: Candidates, ``(N, B, ...)``, or tuples, lists and dicts of such tensors.
        y: Targets, ``(N, B, ...)``, likewise.
        mask: Which examples count, bool ``(N, B)``, for candidates of unequal size.
        target: Inputs and targets of T, ``(M, ...)`` each, or nested likewise.
        independent: As in ``batch_losses``.

    Returns:
        Inner products, ``(N,)``; of half-precision losses in float32.

    Raises:
        ValueError: If there is no candidate or an empty one, shapes do not fit, the criterion does
            not give per-example losses, or no parameter requires gradients.
    """
    with eager():
        return _alignments(model, criterion, x, y, mask, target, independent, True)[0]


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
    """Return alignments, and whether forward mode gave them."""
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
        except RuntimeError:  # not implemented; an error of the model's own comes again below
            pass
    free = {name: p.detach().requires_grad_() for name, p in named.items()}

    def gradient(x: Any, y: Any) -> list[Tensor | None]:
        buffers = {name: b.clone() for name, b in model.named_buffers()}  # each from the same
        with torch.enable_grad():
            loss = losses_at(free | buffers, x, y).mean()
        return list(torch.autograd.grad(loss, list(free.values()), allow_unused=True))

    along = gradient(*target)
    products = []
    for part in _candidates(x, y, mask):
        pairs = zip(along, gradient(*part), strict=True)
        both = [(a, b) for a, b in pairs if a is not None and b is not None]
        product = sum((widened(a) * widened(b)).sum() for a, b in both)
        products.append(torch.as_tensor(product, device=next(iter(named.values())).device))
    return torch.stack(products), False


def _flat(value: Any) -> Any:
    return map_tensors(lambda t: t.flatten(0, 1), value)


def _candidates(x: Any, y: Any, mask: Tensor | None) -> list[Target]:
    """Each candidate's inputs and targets, without what fills it up."""

    def part(value: Any, number: int) -> Any:
        kept = slice(None) if mask is None else mask[number]
        return map_tensors(lambda t: t[number][kept], value)

    return [(part(x, number), part(y, number)) for number in range(len(leaves(x)[0]))]


def _mean_loss(model: nn.Module, criterion: Criterion, x: Any, y: Any) -> Tensor:
    losses = per_example(model_losses(model, criterion, x, y), len(leaves(x)[0]))
    return masked_means(losses, None)


def _check_candidates(x: Any, y: Any, mask: Tensor | None) -> tuple[int, int]:
    """Return N and B."""
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
    """Score candidate batches with the model as it is now; larger is better.

    The model is scored in eval mode, so dropout is off and batch normalisation uses its running
    statistics, and is given back unchanged, with optimiser, gradients and random states. Of a
    compiled or data-parallel model, the module inside is run, eagerly, without communication.

    Inputs, targets and the model's outputs may be tensors, or tuples, lists and dicts of them; a
    model gets all its inputs as one argument. Half-precision losses give scores in float32.

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
            elementwise, and models that ``torch.vmap`` cannot run.
        independent: Promise that no example's loss depends on the others of its batch: see
            ``batch_losses``. Faster.

    Attributes:
        forward_rows: Examples passed forward so far.
        backward_rows: Examples passed backward so far; a backward pass is two forward ones.

    Raises:
        ValueError: If the score is unknown, optimiser or target are missing, or the target has no
            example; when it scores, if the model has no parameters, or none with memory.
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
        self._forward_mode = True
        self._watch = _Watch()

    @property
    def device(self) -> torch.device:
        """Where the model's first parameter is; candidates are moved there.

        Raises:
            ValueError: If there is no parameter, or on the meta device.
        """
        parameter = next(self.model.parameters(), None)
        if parameter is None or parameter.is_meta:
            where = "no parameters" if parameter is None else "parameters on the meta device"
            raise ValueError(f"{type(self.model).__name__} has {where}: nothing to score with")
        return parameter.device

    def version(self) -> tuple[int, int]:
        """Two counts of which one moves with every sign that the model is being trained.

        The first moves when any parameter has other bytes than at the last call, however they
        were written. The second is the number of gradients that parameters have got since the
        first call, those of scoring left out: it moves where batches are trained on without an
        update, as in gradient accumulation and where ``torch.amp.GradScaler`` skips a step.
        Equal versions thus mean that no batch was trained on in between. Takes a pass over the
        parameters and a copy of them, and synchronises once a device.

        Returns:
            The number of changes and the number of gradients.

        Raises:
            ValueError: If there is no parameter, or on the meta device.
        """
        _ = self.device
        return self._watch.version(list(self.model.parameters()))

    @torch.inference_mode(False)
    def __call__(self, x: Any, y: Any, mask: Tensor | None = None) -> Tensor:
        """Return the scores ``(N,)`` of N candidates, the larger the better; NaN where a loss is.

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
        model, gradients = unwrapped(self.model), self._watch.gradients.count
        with preserve_state(model), eager():
            model.eval()
            scores = self._measure(model, x, y, mask)
        self._watch.gradients.count = gradients
        return scores

    def _placed(self, t: Tensor) -> Tensor:
        t = t.to(self.device)
        return t.clone() if t.is_inference() else t  # which no gradient could be taken through

    def _measure(self, model: nn.Module, x: Any, y: Any, mask: Tensor | None) -> Tensor:
        shape = _check_candidates(x, y, mask)
        filled = self.independent and (self.together or self.score not in _TRIAL)
        rows = shape[0] * shape[1] if mask is None or filled else int(mask.sum())
        target = map_tensors(self._placed, self.target)
        held = 0 if target is None else _rows(target)
        batches = (model, self.criterion, x, y, mask)
        if self.score in _LOSS:
            self.forward_rows += rows
            losses = batch_losses(*batches, independent=self.independent)
            return losses if self.score == "max_loss" else -losses
        if self.score == "grad_align":
            alignments, self._forward_mode = _alignments(
                *batches, target, self.independent, self._forward_mode
            )
            # forward mode takes the value and the derivative
            self.forward_rows += (2 * rows if self._forward_mode else rows) + held
            self.backward_rows += held if self._forward_mode else rows + held
            return alignments
        assert self.optimizer is not None
        self.forward_rows += rows + (rows if target is None else held * (shape[0] + 1))
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
        # Hooks sit on the parameters of this very model; a copy hangs up its own.
        return vars(self) | {"_watch": _Watch()}


class _Watch:
    """What has happened to the parameters of a model: changes, and gradients."""

    def __init__(self) -> None:
        self.gradients = GradientCount()
        self.changes = 0
        self.kept: list[Tensor] = []  # copies of the parameters
        self.handles: dict[Tensor, Any] = {}
        weakref.finalize(self, _remove, self.handles).atexit = False

    def version(self, parameters: list[Tensor]) -> tuple[int, int]:
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
def _differ(parameters: list[Tensor], kept: list[Tensor]) -> bool:
    """Whether a byte differs, with one question to each device."""
    if len(parameters) != len(kept):
        return True
    by_device: dict[torch.device, list[Tensor]] = {}
    for p, q in zip(parameters, kept, strict=True):
        if p.dtype != q.dtype or p.device != q.device or p.shape != q.shape:
            return True
        by_device.setdefault(p.device, []).append((_bits(p) != _bits(q)).any())
    return any(bool(torch.stack(flags).any()) for flags in by_device.values())


def _bits(t: Tensor) -> Tensor:
    """The bytes of a tensor as integers, so that NaN equals itself."""
    t = torch.view_as_real(t.detach()) if t.is_complex() else t.detach()
    size = t.element_size()
    return t.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size])


def _rows(target: Target) -> int:
    tensors = leaves(target[0])
    return len(tensors[0]) if tensors else 0
