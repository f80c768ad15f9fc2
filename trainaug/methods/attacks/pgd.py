"""Attacks by one steepest step or by projected steepest steps, in a ball and a box at once.

Chapter: notebooks/06_linear_robustness.ipynb
Reference: Faghri et al., "Bridging the Gap Between Adversarial Robustness and Optimization Bias",
2021, arXiv 2102.08868, the Fourier attack; Madry et al., "Towards Deep Learning Models Resistant to
Adversarial Attacks", ICLR 2018, projected gradient steps.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from trainaug.checks import class_labels, finite, sign_labels, widened
from trainaug.methods.attacks.balls import _TOLERANCE, _Ball, _ball
from trainaug.methods.attacks.eval_mode import eval_mode
from trainaug.norms import Norm
from trainaug.randomness import default_generator

__all__ = ["fgsm", "pgd"]

Bounds = tuple[float | Tensor, float | Tensor]
Criterion = Callable[[Any, Tensor], Tensor]
Keep = Literal["worst", "last"]
Model = Callable[[Tensor], Any]
_STEP_SWEEPS = 2  # projections on ball and box after each step
_LAST_SWEEPS = 10  # the same at the end of a restart, before the result is scaled down
_MEET_SWEEPS = 200  # most Douglas-Rachford steps, for bands with frequencies of factor 0


@contextmanager
def _attacking(model: Model) -> Iterator[None]:
    """Keep the model in eval mode and gradients off; `_Attack.step` enables them for itself."""
    is_inference = torch.is_inference_mode_enabled()  # in which no gradient could be enabled
    mode = torch.inference_mode(False) if is_inference else nullcontext()
    with mode, torch.no_grad(), eval_mode(model):
        yield


def _ordinary(x: Tensor) -> Tensor:
    """Return a detached tensor that autograd may save, unlike one made in inference mode."""
    return x.detach().clone() if x.is_inference() else x.detach()


def _check_finite(name: str, values: Tensor, when: str) -> None:
    """Raise a FloatingPointError that names the first example with NaN or infinity."""
    good = values.isfinite().flatten(1).all(1) if values.ndim > 1 else values.isfinite()
    if not bool(good.all()):
        row = int((~good).nonzero()[0])
        bad = values[row][~values[row].isfinite()].flatten()[0]
        raise FloatingPointError(
            f"the {name} has {int((~good).sum())} examples of {len(values)} that are not finite, "
            f"example {row} holds {float(bad.detach())} {when}"
        )


def _logits(output: Any, count: int) -> Tensor | None:
    """Return the logits in a model's output for ``count`` examples, or None if it has none."""
    logits = output
    if isinstance(output, Mapping):
        logits = output.get("logits")
    elif not isinstance(output, Tensor):
        logits = getattr(output, "logits", None)
    if logits is None:
        return None
    if not isinstance(logits, Tensor):
        raise TypeError(f"the logits of an output must be a tensor, got {type(logits).__name__}")
    if logits.ndim not in (1, 2) or len(logits) != count or not logits.is_floating_point():
        raise ValueError(
            f"a model gives logits ({count}, C), or ({count},) with a criterion like "
            f"lambda z, y: -y * z, got {logits.dtype} {tuple(logits.shape)}"
        )
    return logits


def _box(bounds: Bounds | None, x: Tensor) -> Bounds | None:
    """Return bounds as numbers or as tensors like ``x``; ValueError if they are not a box."""
    if bounds is None:
        return None
    if len(bounds) != 2:
        raise ValueError(f"bounds are a lowest and a highest input, got {bounds}")
    low, high = bounds
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        low, high = (torch.as_tensor(b, dtype=x.dtype, device=x.device).detach() for b in bounds)
        for bound in (low, high):
            sides = zip(reversed(bound.shape), reversed(x.shape), strict=False)
            if bound.ndim > x.ndim or any(side not in (1, full) for side, full in sides):
                raise ValueError(
                    f"bounds must fit {tuple(x.shape[1:])}, got {tuple(bound.shape)}; "
                    "one number a channel has shape (C, 1, 1)"
                )
        fits = bool((low < high).all())
    else:
        fits = low < high
    if not fits:
        raise ValueError(f"bounds need low < high, got {bounds}")
    return low, high


def _rises_with_the_label(criterion: Criterion, logits: Tensor, labels: Tensor) -> bool:
    """Whether a criterion grows with the score of its label, as no loss does.

    For most examples with a gradient it must do so with their labels and again with others, since a
    criterion that ignores labels can grow with the scores of one set by chance.
    """
    other_labels = -labels if logits.ndim == 1 else (labels + 1) % logits.shape[1]
    votes = []
    for tested in (labels, other_labels):
        with torch.enable_grad():
            leaf = logits.detach().clone().requires_grad_()
            losses = criterion(leaf, tested)
            if not losses.requires_grad:
                return False
            (slope,) = torch.autograd.grad(losses.sum(), leaf)
        if logits.ndim == 1:
            rise = slope * tested
            rest = torch.zeros_like(slope)
        else:
            rise = slope.gather(1, tested[:, None]).squeeze(1)
            rest = slope.scatter(1, tested[:, None], -math.inf).amax(1)
        counted = (slope != 0).view(len(slope), -1).any(1)
        if bool(counted.any()):
            votes.append(2 * int(((rise > 0) & (rise > rest)).sum()) > int(counted.sum()))
    return bool(votes) and all(votes)


class _Worst:
    """The worst candidate of each example so far, and which examples had a gradient of zero."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.hits = torch.zeros(len(x), dtype=torch.bool, device=x.device)  # attack succeeded
        self.losses: Tensor | None = None
        self.blind = torch.zeros_like(self.hits)  # gradient was exactly zero at a step

    def add(self, x: Tensor, hits: Tensor, losses: Tensor, is_valid: Tensor | None = None) -> None:
        """Keep candidates that are valid and worse: success before failure, then larger loss."""
        if self.losses is None:
            self.x, self.hits, self.losses = x, hits, losses
            return
        is_worse = torch.where(self.hits == hits, losses > self.losses, hits)
        if is_valid is not None:
            is_worse, hits = is_worse & is_valid, hits & is_valid
        self.x = torch.where(is_worse.view(-1, *[1] * (x.ndim - 1)), x, self.x)
        self.hits, self.losses = self.hits | hits, torch.where(is_worse, losses, self.losses)

    def warn(self, name: str, start: Tensor) -> None:
        """Warn of examples that resisted only for want of a gradient or of room to move."""
        blind, total = self.blind & ~self.hits, len(self.hits)
        if bool(blind.any()):
            warnings.warn(
                f"{name}: the gradient is exactly zero for {int(blind.sum())} of {total} examples "
                f"without success ({float(blind.double().mean()):.0%}), first example "
                f"{int(blind.nonzero()[0])}. They were not attacked, which says nothing about "
                "their robustness: a saturated softmax, rounding or a masked gradient. Use "
                "float64, a margin as criterion, or no random start",
                UserWarning,
                stacklevel=3,
            )
        still = (self.x == start).flatten(1).all(1) & ~self.hits & ~self.blind
        if widened(start) is not start and bool(still.any()):
            warnings.warn(
                f"{name}: {int(still.sum())} of {total} examples did not move, first example "
                f"{int(still.nonzero()[0])}: numbers of {start.dtype} may lie further apart than "
                "the radius. Attack in float32",
                UserWarning,
                stacklevel=3,
            )


class _Attack:
    """What all steps of an attack share: model, inputs, labels, ball and box."""

    def __init__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        ball: _Ball,
        bounds: Bounds | None,
        criterion: Criterion | None,
        targeted: bool = False,
        keep: Keep = "last",
    ) -> None:
        if not isinstance(y, Tensor):
            raise TypeError(f"y must be a tensor, got {type(y).__name__}")
        if y.ndim == 0 or len(y) != len(x):
            raise ValueError(f"x has {len(x)} examples, y {len(y) if y.ndim else 'no dimension'}")
        if keep not in get_args(Keep):
            raise ValueError(f"keep must be worst or last, got {keep!r}")
        self.model, self.y, self.ball = model, _ordinary(y), ball
        self.inputs = _ordinary(x)
        self.x = widened(self.inputs)
        self.bounds, self.criterion = _box(bounds, self.x), criterion
        self.targeted, self.keep = targeted, keep
        self.labels: Tensor | None = None
        self.is_checked = False
        # Inputs that were clipped to a bound hold it rounded to their type: compare in that type.
        low, high = (-math.inf, math.inf) if self.bounds is None else self.bounds
        if isinstance(low, Tensor) and isinstance(high, Tensor):
            low, high = low.to(x.dtype), high.to(x.dtype)
        bad = self.inputs[~(x.isfinite() & (x >= low) & (x <= high))]
        if len(bad):
            advice = "attack raw inputs and normalise inside the model, or pass other bounds"
            raise ValueError(
                f"x must be finite and within {bounds=}, got {float(bad[0])}: {advice}"
            )

    def read_labels(self, logits: Tensor | None) -> None:
        """Set ``labels``, which decide about success; if they stay None, the criterion decides."""
        y = self.y
        if logits is None:  # class numbers of any type of integer, for the criterion
            is_whole = not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
            self.y = y.long() if is_whole else y
            return
        if logits.ndim == 1 and self.criterion is None:
            raise ValueError(
                "logits (B,) need a criterion like lambda z, y: -y * z, "
                f"got logits {tuple(logits.shape)} and none"
            )
        if y.is_floating_point():
            finite("y", y)
        if logits.ndim == 2 and (self.criterion is None or not y.is_floating_point()):
            if self.criterion is None and y.ndim != 1:
                raise ValueError(f"y must be class numbers ({len(y)},), got {tuple(y.shape)}")
            if y.ndim == 1 and logits.shape[1] == 1:
                raise ValueError(
                    f"logits {tuple(logits.shape)} have one class; give them as "
                    f"({len(y)},), with labels -1 and 1 and a criterion like lambda z, y: -y * z"
                )
            self.labels = class_labels(y, logits.shape[1]) if y.ndim == 1 else None
        elif logits.ndim == 1 and y.ndim == 1:
            is_sign = not y.is_floating_point() or bool((y.abs() == 1).all())
            self.labels = sign_labels(y) if is_sign else None

    def judge(self, x: Tensor, when: str) -> tuple[Tensor, Tensor]:
        """Return where the attack succeeds and the values that it maximises, each ``(B,)``."""
        output = self.model(x)
        logits = _logits(output, len(x))
        if logits is not None:  # clamped, for minus infinity is allowed: it masks a class
            _check_finite("logits", logits.detach().clamp(min=0), when)
        elif self.criterion is None:
            raise TypeError(
                "a model gives logits, or an output with logits in it, got "
                f"{type(output).__name__} without: wrap it, as in lambda x: model(x)[0], or pass a "
                "criterion that reads it"
            )
        if not self.is_checked:
            self.read_labels(logits)
        labels = self.labels
        if self.criterion is None:
            scores, classes = widened(cast(Tensor, logits)), cast(Tensor, labels)
            losses = nn.functional.cross_entropy(scores, classes, reduction="none")
        else:
            scored = output if logits is None else logits
            losses = self.criterion(scored, self.y if labels is None else labels)
        if not isinstance(losses, Tensor) or losses.shape != (len(x),):
            shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise ValueError(
                f"a criterion gives losses ({len(x)},), one an example without reduction, "
                f"got {shape}"
            )
        losses = widened(losses)
        _check_finite("loss", losses, when)
        if not self.is_checked and logits is not None:
            self.check_direction(logits)
        self.is_checked = True
        if logits is None or labels is None:
            hits = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        elif logits.ndim == 1:
            hits = labels * logits > 0 if self.targeted else labels * logits <= 0
        else:
            hits = (logits.argmax(1) == labels) == self.targeted
        return hits, -losses if self.targeted else losses

    def check_direction(self, logits: Tensor) -> None:
        """Refuse a criterion that grows with the score of ``y``, so that it is no loss of ``y``."""
        criterion, labels = self.criterion, self.labels
        if criterion is None or labels is None:
            return
        if _rises_with_the_label(criterion, logits, labels):
            raise ValueError(
                "the criterion grows with the score of y, so y are targets: a criterion is a loss "
                "of y. Pass targeted=True and the loss to minimise, such as cross-entropy"
            )

    def point(self, delta: Tensor) -> Tensor:
        """Return the inputs moved by ``delta``, in the type of the given inputs."""
        x = self.x + delta
        if self.keep == "worst" or self.x is not self.inputs:
            x = self.boxed(x)
        return self.ball.narrowed(self.inputs, x, self.bounds)

    def step(
        self, delta: Tensor, length: float, worst: _Worst | None = None, when: str = ""
    ) -> Tensor:
        """Return the perturbation after one steepest step from ``delta``.

        The point before the step is a candidate for ``worst``; ``when`` names the step in errors.
        """
        x = self.point(delta)
        with torch.enable_grad():
            x.requires_grad_()
            hits, losses = self.judge(x, when)
            gradient = None
            if losses.requires_grad:
                (gradient,) = torch.autograd.grad(losses.sum(), x, allow_unused=True)
        if gradient is None:
            raise ValueError(
                "the loss has no gradient with respect to x: the model or the criterion cuts it "
                "off (detach, no_grad, numpy, argmax), and no attack by gradients can judge it"
            )
        _check_finite("gradient", gradient, when)
        gradient = widened(gradient)
        is_zero = (gradient == 0).flatten(1).all(1)
        if worst is not None:
            worst.blind |= is_zero
            if self.keep == "worst":
                worst.add(x.detach(), hits, losses.detach(), self.is_inside(delta))
        if self.ball.norm == "l1" and self.bounds is not None:
            return self.towards_farthest(delta, gradient, length)
        return delta + length * self.ball.direction(gradient)

    def is_inside(self, delta: Tensor) -> Tensor | None:
        """Tell which points are in the ball, ``(B,)``, or return None where all are."""
        # projecting and clipping in turn leaves no ball but those of Fourier moduli
        if not self.ball.is_fourier or self.bounds is None:
            return None
        # the rounding errors of a transform add up in the sum of moduli of fourier_l1
        count = 1 if self.ball.is_product else math.prod(self.ball.sides)
        limit = 1 + 4 * torch.finfo(delta.dtype).eps * math.sqrt(count)
        return (self.ball.gauge(delta) <= limit).flatten(1).all(1)

    def towards_farthest(self, delta: Tensor, gradient: Tensor, length: float) -> Tensor:
        """Step towards the point of l1 ball and box where the linear loss is largest."""
        assert self.bounds is not None
        low, high = self.bounds
        room = torch.where(gradient > 0, high - self.x, self.x - low)
        path = (self.ball.farthest(gradient, room) - delta).flatten(1)
        uphill = (gradient.flatten(1).sign() * path).clamp(min=0).sum(1, keepdim=True)
        # The length is that of a projected step: what it adds counts, what it removes does not.
        path_length = torch.maximum(uphill, path.abs().sum(1, keepdim=True) / 2)
        share = length / path_length.clamp(min=length)  # at most the whole path
        has_gradient = (gradient != 0).flatten(1).any(1, keepdim=True)
        return delta + torch.where(has_gradient, share * path, 0.0).view(delta.shape)

    def boxed(self, x: Tensor) -> Tensor:
        """Clip inputs to the box."""
        if self.bounds is None:
            return x
        return x.clamp(*cast("tuple[float, float]", self.bounds))  # or two tensors

    def clip(self, delta: Tensor) -> Tensor:
        """Shorten perturbations so that the moved inputs are in the box."""
        return delta if self.bounds is None else self.boxed(self.x + delta) - self.x

    def sweep(self, delta: Tensor, sweeps: int) -> Tensor:
        """Project on the ball and on the box in turn, on the box last."""
        # for linf once is exact: the ball is a box, too
        for _ in range(1 if self.bounds is None or self.ball.norm == "linf" else sweeps):
            delta = self.clip(self.ball.project(delta))
        return delta

    def meet(self, delta: Tensor) -> Tensor:
        """Search near ``delta`` for a point in both box and ball, by Douglas-Rachford steps."""
        point = self.sweep(delta, 1)
        is_met = self.ball.gauge(point) <= 1 + _TOLERANCE  # (B, C, 1, 1)
        for sweep in range(1, _MEET_SWEEPS + 1):
            inside = self.ball.project(delta)
            delta = delta + self.clip(2 * inside - delta) - inside
            if sweep % 10 == 0 and not bool(is_met.all()):
                point = torch.where(is_met, point, self.sweep(delta, 1))
                is_met = self.ball.gauge(point) <= 1 + _TOLERANCE
            elif sweep % 10 == 0:
                break
        return point

    def finish(self, delta: Tensor) -> Tensor:
        """Return inputs in ball and box; a perturbation still outside is scaled towards 0."""
        # with a factor of 0 the ball is flat: it has no interior
        is_flat = self.bounds is not None and not bool(self.ball.factors.all())
        delta = self.meet(delta) if is_flat else self.sweep(delta, _LAST_SWEEPS)
        x = self.boxed(self.x + delta / self.ball.gauge(delta).clamp(min=1))
        return self.ball.narrowed(self.inputs, x, self.bounds)


def fgsm(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    norm: Norm,
    eps: float,
    band: Tensor | None = None,
    bounds: Bounds | None = (0.0, 1.0),
    criterion: Criterion | None = None,
    targeted: bool = False,
) -> Tensor:
    r"""Move every input by one steepest step of full length $\varepsilon$.

    Without a box this is the worst perturbation of a linear model (Lemma 1); in an ``"l1"`` ball it
    is so with a box as well. Inputs move even where that does not raise the loss; only with
    ``targeted=True`` do they stay where ``x`` is nearer to the target. With ``"linf"`` it is the
    fast gradient sign method of Goodfellow et al., ICLR 2015, section 4.

    Args:
        model: As in `pgd`, with the same outputs.
        x: Inputs in the box, floating point, shape ``(B, D)`` or ``(B, C, ...)``.
        y: Labels as in `pgd`, shape ``(B,)``.
        norm: Norm of the ball, any as in `pgd`.
        eps: Radius of the ball, at least 0; at 0 the result is a copy of ``x``.
        band: Symmetric mask, or factors of ``eps`` at least 0, over the full spectrum ``(H, W)``
            or ``(D,)``; ``"fourier_linf"`` only.
        bounds: Lowest and highest input, numbers or tensors that broadcast to one input; ``None``
            for no box.
        criterion: Losses ``(B,)`` of outputs and ``y`` as in `pgd`; cross-entropy by default.
        targeted: ``y`` are targets: success is the prediction ``y``, and the loss is minimised.

    Returns:
        Moved inputs, shape and type of ``x``, in box and ball as those of `pgd`.

    Raises:
        TypeError: As in `pgd`.
        ValueError: As in `pgd`.
        FloatingPointError: As in `pgd`.

    Example:
        >>> x, y = torch.tensor([[0.5, 0.5]]), torch.tensor([1.0])
        >>> line = lambda x: x @ torch.tensor([3.0, -4.0])
        >>> fgsm(line, x, y, norm="linf", eps=0.25, criterion=lambda z, y: -y * z)
        tensor([[0.2500, 0.7500]])
    """
    with _attacking(model):
        ball = _ball(x, norm, eps, band)
        attack = _Attack(model, x, y, ball, bounds, criterion, targeted, "worst")
        if ball.eps == 0 or len(x) == 0:
            return attack.inputs.clone()
        worst = _Worst(attack.inputs)
        moved = attack.finish(attack.step(torch.zeros_like(attack.x), ball.eps, worst, "at x"))
        if targeted:
            worst.add(moved, *attack.judge(moved, "after the step"))
        else:
            worst.x = moved
        worst.warn("fgsm", attack.inputs)
    return worst.x


def pgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    norm: Norm,
    eps: float,
    steps: int = 20,
    step_size: float | None = None,
    generator: torch.Generator | None = None,
    restarts: int = 1,
    random_start: bool = True,
    band: Tensor | None = None,
    bounds: Bounds | None = (0.0, 1.0),
    criterion: Criterion | None = None,
    targeted: bool = False,
    keep: Keep = "worst",
) -> Tensor:
    r"""Search box and ball by steepest steps, each followed by projections on ball and box.

    Candidates for an example are ``x`` itself, the points on the way that lie in box and ball, and
    the last point of each restart, brought into both. The worst one is returned: success beats
    failure, then the larger loss, then the earlier candidate. Success is a prediction other than
    ``y``. The steps are those of Madry et al. 2018, section 2.1, the Fourier ball is that of Faghri
    et al. 2021.

    Args:
        model: Maps ``x`` to logits ``(B, C)``, or to ``(B,)`` with the decision in the sign. Of an
            output with an attribute or an entry ``logits``, as Hugging Face gives it, only the
            logits are used. Any other output that is not a tensor goes to the criterion unchanged,
            which alone then decides what is worst. Modules run in eval mode, also those inside
            functions, partials and bound methods; modes, parameters, gradients and buffers stay as
            they were.
        x: Inputs in the box, shape ``(B, D)`` or ``(B, C, ...)``. Half precision is attacked in
            float32; each point is rounded before the model sees it, and so is the result.
        y: Class numbers, shape ``(B,)``, of any type of integer, or labels -1 and 1 for outputs
            ``(B,)``. Anything else, such as soft labels, must be floating point and goes to the
            caller's criterion, whose value alone then decides what is worst.
        norm: Norm of the ball: ``"linf"``, ``"l2"`` or ``"l1"`` over the example;
            ``"fourier_linf"`` or ``"fourier_l1"`` over the dimensions after the channel, or a
            `FourierNorm` of their shape; of inputs ``(B, D)`` one of any shape with product ``D``.
        eps: Radius of the ball in ``norm``, at least 0; at 0 the result is a copy of ``x``.
        steps: Steps of a restart, at least 1.
        step_size: Length of a step in ``norm``, above 0; ``None`` for ``2.5 * eps / steps``, with
            which any start in the ball can reach its edge (after Madry et al. 2018).
        generator: Source of the random starts; a restart takes one draw for the whole batch.
            ``None`` for a new one in each call, seeded by ``torch.initial_seed()``: it leaves the
            global generator alone and draws the same starts in each call. Pass one to draw others.
        restarts: Number of starts, at least 1.
        random_start: Start from a draw: uniform in the ``"linf"`` ball, else white noise of
            standard deviation ``eps`` (times the band) projected on the ball. Otherwise from
            ``x``, and no generator is used.
        band: Symmetric mask, or factors of ``eps`` at least 0, over the full spectrum ``(H, W)``
            or ``(D,)``; ``"fourier_linf"`` only.
        bounds: Lowest and highest input, numbers or tensors that broadcast to one input; ``None``
            for no box.
        criterion: Maps logits, or an output without them, and ``y`` to losses ``(B,)``, larger the
            further the output is from ``y``; cross-entropy by default.
        targeted: ``y`` are targets: success is the prediction ``y``, and the loss is minimised.
        keep: ``"worst"``, or ``"last"`` to leave out the points on the way.

    Returns:
        Adversarial inputs, shape and type of ``x``, exactly in the box and in the ball up to the
        rounding of ``x + delta``; of half precision exactly in the ball too, but for that of
        Fourier moduli. Frequencies of factor 0 hold at most 1e-5 of the largest radius.

    Raises:
        TypeError: If ``x`` or ``y`` is not a tensor, or the model gives no logits and there is no
            criterion to read its output.
        ValueError: If an option is out of range, norm or band is refused by `project_ball`, an
            input is outside the box, lengths and shapes do not fit, labels are invalid, the
            criterion grows with the score of ``y``, or the loss has no gradient with respect to
            ``x``.
        FloatingPointError: If logits, a loss or a gradient are not finite, except for logits of
            minus infinity. The message names step and example.

    Example:
        >>> x, y = torch.tensor([[0.5, 0.5]]), torch.tensor([1.0])
        >>> line = lambda x: x @ torch.tensor([3.0, -4.0])
        >>> pgd(line, x, y, norm="linf", eps=0.25, criterion=lambda z, y: -y * z)
        tensor([[0.2500, 0.7500]])

    Notes:
        Clipping to the box leaves a Fourier ball. So a restart ends with 10 sweeps over both, or,
        where factors are 0, with up to 200 Douglas-Rachford steps; a channel still outside the ball
        is scaled towards 0, which keeps it in the box. The result is always valid but can be weak.
        A band without the mean has perturbations of sum zero, which can change almost nothing in a
        picture whose background lies on the edge of the box. In ``"fourier_l1"`` clipping undoes
        most of a step along one frequency. Compare both with ``bounds=None``. An ``"l1"`` step in a
        box goes towards the point of ball and box at which the linear loss is largest: coordinates
        by modulus of the gradient, each filled up to the box. Cross-entropy has gradient zero where
        a float32 probability rounds to 1; examples that stay correct with a gradient of exactly
        zero are counted in a ``UserWarning``.
    """
    with _attacking(model):
        ball = _ball(x, norm, eps, band)
        attack = _Attack(model, x, y, ball, bounds, criterion, targeted, keep)
        if steps < 1 or restarts < 1:
            raise ValueError(f"need at least one step and one restart, got {steps=}, {restarts=}")
        if step_size is None:
            step_size = 2.5 * ball.eps / steps
        elif not (math.isfinite(step_size) and step_size > 0):
            raise ValueError(f"step_size must be finite and above 0, got {step_size}")
        if ball.eps == 0 or len(x) == 0:
            return attack.inputs.clone()
        generator = default_generator(generator, attack.x.device) if random_start else None
        worst = _Worst(attack.inputs)
        worst.add(attack.inputs, *attack.judge(attack.inputs, "at x"))
        for restart in range(restarts):
            delta = torch.zeros_like(attack.x)
            if generator is not None:
                delta = attack.sweep(ball.draw(attack.x, generator), _STEP_SWEEPS)
            for step in range(steps):
                when = f"at step {step} of restart {restart}"
                delta = attack.sweep(attack.step(delta, step_size, worst, when), _STEP_SWEEPS)
            last = attack.finish(delta)
            worst.add(last, *attack.judge(last, f"at the end of restart {restart}"))
        worst.warn("pgd", attack.inputs)
    return worst.x
