"""One steepest step and projected steepest steps, in a ball and a box at once.

Chapter: notebooks/06_linear_robustness.ipynb
Reference: Faghri et al., "Bridging the Gap Between Adversarial Robustness and Optimization Bias",
2021, arXiv 2102.08868, the Fourier attack; Madry et al., "Towards Deep Learning Models Resistant to
Adversarial Attacks", ICLR 2018, projected gradient steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainaug.methods.attacks.balls import _TOLERANCE, AttackNorm, _Ball, _ball

__all__ = ["fgsm", "pgd"]

Bounds = tuple[float, float]
Criterion = Callable[[Tensor, Tensor], Tensor]
Model = Callable[[Tensor], Tensor]
_STEP_SWEEPS = 2  # projections on ball and box after each step
_LAST_SWEEPS = 10  # at the end of a restart, before the result is scaled down
_MEET_SWEEPS = 200  # at most, where a band has frequencies of factor 0


@contextmanager
def _in_eval_mode(model: Model) -> Iterator[None]:
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [(module, module.training) for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _check_finite(name: str, values: Tensor) -> None:
    bad = values[~values.isfinite()]
    if len(bad):
        raise FloatingPointError(f"the {name} has {len(bad)} entries like {float(bad[0])}")


@dataclass(frozen=True)
class _Attack:
    """What stays the same over the steps; ``losses`` of a point, its gradient, a valid point."""

    model: Model
    x: Tensor
    y: Tensor
    ball: _Ball
    bounds: Bounds | None
    criterion: Criterion | None

    def __post_init__(self) -> None:
        if len(self.y) != len(self.x):
            raise ValueError(f"x has {len(self.x)} examples, y {len(self.y)}")
        low, high = (-math.inf, math.inf) if self.bounds is None else self.bounds
        if not low < high:
            raise ValueError(f"bounds need low < high, got {self.bounds}")
        bad = self.x[~(self.x.isfinite() & (self.x >= low) & (self.x <= high))]
        if len(bad):
            raise ValueError(f"x must be finite and in {self.bounds}, got {float(bad[0])}")

    def losses(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return whether each example is misclassified, and its loss, both ``(B,)``."""
        logits = self.model(x)
        if logits.ndim not in (1, 2) or (logits.ndim == 1 and self.criterion is None):
            raise ValueError(
                "a model gives logits (B, C), or (B,) with a criterion like "
                f"lambda z, y: -y * z, got {tuple(logits.shape)}"
            )
        if self.criterion is None:
            losses = nn.functional.cross_entropy(logits, self.y, reduction="none")
        else:
            losses = self.criterion(logits, self.y)
        if losses.shape != (len(x),):
            raise ValueError(f"a criterion gives losses ({len(x)},), got {tuple(losses.shape)}")
        _check_finite("loss", losses)
        is_wrong = self.y * logits <= 0 if logits.ndim == 1 else logits.argmax(1) != self.y
        return is_wrong, losses

    def step(self, delta: Tensor, length: float) -> Tensor:
        """Return the point after one steepest step from a point."""
        with torch.enable_grad():
            x = (self.x + delta).requires_grad_()
            (gradient,) = torch.autograd.grad(self.losses(x)[1].sum(), x)
        _check_finite("gradient", gradient)
        if self.ball.norm == "l1" and self.bounds is not None:
            room = torch.where(gradient > 0, self.bounds[1] - x, x - self.bounds[0])
            gradient = torch.where(room > _TOLERANCE * length, gradient, 0.0)
        return delta + length * self.ball.direction(gradient)

    def clip(self, delta: Tensor) -> Tensor:
        return delta if self.bounds is None else (self.x + delta).clamp(*self.bounds) - self.x

    def sweep(self, delta: Tensor, sweeps: int) -> Tensor:
        """Project on the ball and on the box in turn; the box holds in the end."""
        for _ in range(1 if self.bounds is None or self.ball.norm == "linf" else sweeps):
            delta = self.clip(self.ball.project(delta))
        return delta

    def meet(self, delta: Tensor) -> Tensor:
        """Look for a point near by in box and band at once, by Douglas-Rachford steps."""
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
        """Return valid inputs: what still leaves the ball is scaled towards 0 in the end."""
        is_flat = self.bounds is not None and not bool(self.ball.factors.all())
        delta = self.meet(delta) if is_flat else self.sweep(delta, _LAST_SWEEPS)
        x = self.x + delta / self.ball.gauge(delta).clamp(min=1)
        return x if self.bounds is None else x.clamp(*self.bounds)


@torch.no_grad()
def fgsm(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    norm: AttackNorm,
    eps: float,
    band: Tensor | None = None,
    bounds: Bounds | None = (0.0, 1.0),
    criterion: Criterion | None = None,
) -> Tensor:
    r"""Move every input by one steepest step of full length $\varepsilon$.

    Without a box this is the worst perturbation of a linear model (Lemma 1). Arguments, result and
    errors as in `pgd`.

    Example:
        >>> x, y = torch.tensor([[0.5, 0.5]]), torch.tensor([1.0])
        >>> line = lambda x: x @ torch.tensor([3.0, -4.0])
        >>> fgsm(line, x, y, norm="linf", eps=0.25, criterion=lambda z, y: -y * z)
        tensor([[0.2500, 0.7500]])
    """
    attack = _Attack(model, x.detach(), y, _ball(x, norm, eps, band), bounds, criterion)
    if eps == 0:
        return x
    with _in_eval_mode(model):
        return attack.finish(attack.step(torch.zeros_like(attack.x), eps))


@torch.no_grad()
def pgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    norm: AttackNorm,
    eps: float,
    steps: int,
    step_size: float,
    generator: torch.Generator,
    restarts: int = 1,
    random_start: bool = True,
    band: Tensor | None = None,
    bounds: Bounds | None = (0.0, 1.0),
    criterion: Criterion | None = None,
) -> Tensor:
    r"""Search box and ball by steepest steps, each followed by projections on ball and box.

    Candidates of an example are ``x`` itself and the *last* point of each restart, once valid. The
    worst is kept: misclassified beats correct, then the larger loss, then the earlier candidate.

    Args:
        model: Maps ``x`` to logits ``(B, C)``, or to ``(B,)`` with the decision in the sign. A
            module runs in eval mode; modes, parameters, gradients and buffers stay as they were.
        x: Inputs in the box, shape ``(B, D)`` or ``(B, C, ...)``.
        y: Class numbers, shape ``(B,)``, or labels -1 and 1 for outputs ``(B,)``.
        norm: Norm of the ball.
        eps: Radius of the ball, at least 0; at 0 the result is ``x`` itself.
        steps: Steps of a restart, at least 1.
        step_size: Length of a step in ``norm``.
        generator: Source of the random starts, one draw for the batch a restart.
        restarts: Number of starts, at least 1.
        random_start: Start from a draw: uniform in the ``"linf"`` ball, else white noise of
            standard deviation ``eps`` (times the band) projected on the ball. Otherwise from ``x``.
        band: Symmetric mask, or factors of ``eps`` at least 0, over the full spectrum ``(H, W)``
            or ``(D,)``; ``"fourier_linf"`` only.
        bounds: Lowest and highest input, ``None`` for no box.
        criterion: Maps outputs and ``y`` to losses ``(B,)``; cross-entropy by default.

    Returns:
        Adversarial inputs, shape of ``x``, exactly in the box and in the ball up to the rounding of
        ``x + delta``. Frequencies of factor 0 hold at most 1e-5 of the largest radius.

    Raises:
        ValueError: If an option is out of range, the band is refused by `project_ball`, an input is
            outside the box, or lengths and shapes do not fit.
        FloatingPointError: If a loss or a gradient is not finite.

    Example:
        >>> x, y = torch.tensor([[0.5, 0.5]]), torch.tensor([1.0])
        >>> line, g = lambda x: x @ torch.tensor([3.0, -4.0]), torch.Generator()
        >>> options = {"steps": 5, "step_size": 0.1, "criterion": lambda z, y: -y * z}
        >>> pgd(line, x, y, norm="linf", eps=0.25, generator=g, **options)
        tensor([[0.2500, 0.7500]])

    Notes:
        Clipping to the box leaves a Fourier ball. So a restart ends with 10 sweeps over both, or,
        where factors are 0, with up to 200 Douglas-Rachford steps; a channel still outside the ball
        is scaled towards 0, which keeps the box. The result is always valid but can be weak: of
        a picture whose background lies on the edge of the box, a band without the mean, of sum
        zero, can change almost nothing. Compare bands with ``bounds=None``. An ``"l1"`` step takes
        the largest coordinate that the box lets move, else it would stall. Cross-entropy has
        gradient zero where a float32 probability rounds to 1.
    """
    attack = _Attack(model, x.detach(), y, _ball(x, norm, eps, band), bounds, criterion)
    if steps < 1 or restarts < 1:
        raise ValueError(f"need at least one step and one restart, got {steps=}, {restarts=}")
    if not (math.isfinite(step_size) and step_size > 0):
        raise ValueError(f"step_size must be finite and above 0, got {step_size}")
    if eps == 0:
        return x
    with _in_eval_mode(model):
        worst = attack.x
        is_wrong, losses = attack.losses(worst)
        for _ in range(restarts):
            delta = torch.zeros_like(attack.x)
            if random_start:
                delta = attack.sweep(attack.ball.draw(attack.x, generator), _STEP_SWEEPS)
            for _ in range(steps):
                delta = attack.sweep(attack.step(delta, step_size), _STEP_SWEEPS)
            found = attack.finish(delta)
            found_wrong, found_losses = attack.losses(found)
            is_worse = torch.where(is_wrong == found_wrong, found_losses > losses, found_wrong)
            worst = torch.where(is_worse.view(-1, *[1] * (x.ndim - 1)), found, worst)
            is_wrong, losses = is_wrong | found_wrong, torch.where(is_worse, found_losses, losses)
    return worst
