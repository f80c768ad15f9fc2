r"""Attacks on the inputs of any classifier, in balls of pixels or of Fourier moduli.

Chapter: notebooks/06_linear_robustness.ipynb
Reference: Faghri et al., "Bridging the Gap Between Adversarial Robustness and Optimization Bias",
2021, arXiv 2102.08868, the Fourier attack; Madry et al., "Towards Deep Learning Models Resistant to
Adversarial Attacks", ICLR 2018, projected gradient steps.

A ball holds the perturbations $\delta$ of one example with norm at most $\varepsilon$: ``"linf"``,
``"l2"`` and ``"l1"`` over the whole example, ``"fourier_linf"`` channel by channel,
$|\hat\delta_{c,k}|\le\varepsilon r_k$ at every frequency $k$ of the unitary transform over the
dimensions after the channel (of inputs ``(B, D)``: over ``D``). The factors $r_k$ are 1, or a band.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from trainaug.methods.linear_robustness.norms import dual, dual_vector, norm, project

__all__ = [
    "AttackNorm",
    "equal_bands",
    "fgsm",
    "pgd",
    "project_ball",
    "radial_band",
    "steepest_step",
]

AttackNorm = Literal["linf", "l2", "l1", "fourier_linf"]
Bounds = tuple[float, float]
Criterion = Callable[[Tensor, Tensor], Tensor]
Model = Callable[[Tensor], Tensor]
_TOLERANCE = 1e-5  # of the largest radius: how far clipping may leave a band
_STEP_SWEEPS = 2  # projections on ball and box after each step
_LAST_SWEEPS = 10  # at the end of a restart, before the result is scaled down
_MEET_SWEEPS = 200  # at most, where a band has frequencies of factor 0


def _mirror(spectrum: Tensor) -> Tensor:
    """Return the tensor of a full spectrum with the entry of ``-k`` at place ``k``."""
    axes = tuple(range(spectrum.ndim))
    return spectrum.flip(axes).roll([1] * spectrum.ndim, axes)


@dataclass(frozen=True)
class _Ball:
    """A ball and its geometry; ``factors`` are the band on the half spectrum, ones without."""

    norm: AttackNorm
    eps: float
    sides: tuple[int, ...]
    factors: Tensor

    @property
    def axes(self) -> tuple[int, ...]:
        return tuple(range(-len(self.sides), 0))

    def transform(self, x: Tensor) -> Tensor:
        z: Tensor = torch.fft.rfftn(x, dim=self.axes, norm="ortho")  # (B, C, H, W // 2 + 1)
        return z

    def invert(self, z: Tensor) -> Tensor:
        x: Tensor = torch.fft.irfftn(z, s=self.sides, dim=self.axes, norm="ortho")
        return x

    def project(self, delta: Tensor) -> Tensor:
        if self.norm != "fourier_linf":
            return project(delta.flatten(1), self.norm, self.eps).view(delta.shape)
        z = self.transform(delta)
        moduli, radii = z.abs(), self.eps * self.factors
        shrink = torch.where(moduli > radii, radii / moduli, 1.0)
        outside = shrink.amin(self.axes, keepdim=True) < 1  # (B, C, 1, 1)
        return torch.where(outside, self.invert(z * shrink), delta)

    def direction(self, gradient: Tensor) -> Tensor:
        flat = gradient.flatten(1)
        scale = flat.abs().amax(1, keepdim=True)  # (B, 1), else squares of small values are lost
        flat = torch.where(scale > 0, flat / scale, 0.0)
        if self.norm != "fourier_linf":
            return dual_vector(flat, dual(self.norm)).view(gradient.shape)
        z = self.transform(flat.view(gradient.shape))
        moduli = z.abs()
        noise = torch.finfo(moduli.dtype).eps * moduli.amax(self.axes, keepdim=True)
        return self.invert(torch.where(moduli > noise, self.factors * z / moduli, 0.0))

    def gauge(self, delta: Tensor) -> Tensor:
        """Return length over radius, at most 1 in the ball; in a band up to the tolerance."""
        if self.norm != "fourier_linf":
            length = norm(delta.flatten(1), self.norm) / self.eps
            return length.view(-1, *[1] * (delta.ndim - 1))  # (B, 1, 1, 1)
        radii = self.eps * self.factors.clamp(min=_TOLERANCE * float(self.factors.max()))
        return (self.transform(delta).abs() / radii).amax(self.axes, keepdim=True)  # (B, C, 1, 1)

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.empty(x.shape, dtype=x.dtype, device=generator.device)
        if self.norm == "linf":
            return noise.uniform_(-self.eps, self.eps, generator=generator).to(x.device)
        noise = noise.normal_(0, self.eps, generator=generator).to(x.device)
        if self.norm == "fourier_linf":
            noise = self.invert(self.factors * self.transform(noise))
        return self.project(noise)


def _ball(x: Tensor, kind: AttackNorm, eps: float, band: Tensor | None) -> _Ball:
    if kind not in get_args(AttackNorm):
        known = ", ".join(get_args(AttackNorm))
        raise ValueError(f"unknown norm {kind!r}, expected one of {known}")
    if not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"eps must be finite and at least 0, got {eps}")
    if x.ndim < 2 or 0 in x.shape[1:] or not x.is_floating_point():
        raise ValueError(f"need floats (B, D) or (B, C, ...), got {x.dtype} {tuple(x.shape)}")
    sides = tuple(x.shape[min(2, x.ndim - 1) :])
    half = (*sides[:-1], sides[-1] // 2 + 1)
    if band is None:
        return _Ball(kind, eps, sides, torch.ones(half, dtype=x.dtype, device=x.device))
    if kind != "fourier_linf":
        raise ValueError(f"only fourier_linf takes a band, got {kind!r}")
    if band.shape != sides or band.is_complex():
        raise ValueError(f"need a real band of {sides}, got {band.dtype} {tuple(band.shape)}")
    factors = band.detach().to(x.device, x.dtype)
    if not bool((factors.isfinite() & (factors >= 0)).all()):
        raise ValueError(f"factors of a band are finite and at least 0, got {factors.min()}")
    if not bool(factors.any()):
        raise ValueError(f"the band is empty: none of {factors.numel()} frequencies")
    odd = (factors != _mirror(factors)).nonzero()
    if len(odd):
        raise ValueError(f"the band differs between k and -k, first at k = {odd[0].tolist()}")
    return _Ball(kind, eps, sides, factors[..., : half[-1]])


def project_ball(delta: Tensor, norm: AttackNorm, eps: float, band: Tensor | None = None) -> Tensor:
    r"""Project perturbations on the ball in Euclidean distance, exactly.

    In the Fourier ball $\hat\delta_k\leftarrow\hat\delta_k\min(1,\varepsilon r_k/|\hat\delta_k|)$:
    the transform is unitary and the ball a product of discs.

    Args:
        delta: Perturbations, shape ``(B, D)`` or ``(B, C, ...)``.
        norm: Norm of the ball.
        eps: Radius, at least 0.
        band: Symmetric mask, or factors $r_k\ge0$, over the full spectrum ``(H, W)`` or ``(D,)``;
            ``"fourier_linf"`` only.

    Returns:
        Projected perturbations, same shape; those inside the ball are returned unchanged.

    Raises:
        ValueError: If the norm is unknown, ``eps`` negative or not finite, or the band is not
            symmetric, empty, of the wrong shape or with another norm.

    Example:
        >>> project_ball(torch.tensor([[3.0, 1.0]]), "l1", 2.0)
        tensor([[2., 0.]])
    """
    return _ball(delta, norm, eps, band).project(delta)


def steepest_step(gradient: Tensor, norm: AttackNorm, band: Tensor | None = None) -> Tensor:
    r"""Return the perturbation of length one that raises a linear loss most (Lemma 1).

    $\mathrm{sign}(g)$ for ``"linf"``, $g/\|g\|_2$ for ``"l2"``, the first coordinate of largest
    modulus of each example for ``"l1"``, $\mathcal F^{-1}[r\,\hat g/|\hat g|]$ for
    ``"fourier_linf"``. Where the gradient is zero so is the step; a frequency below the rounding
    error of the channel's largest one counts as zero, its phase is noise.

    Args:
        gradient: Gradients of the loss, shape ``(B, D)`` or ``(B, C, ...)``.
        norm: Norm in which the step has length one.
        band: As for `project_ball`.

    Returns:
        Steps, same shape.

    Raises:
        ValueError: As for `project_ball`.

    Example:
        >>> steepest_step(torch.tensor([[3.0, -4.0]]), "l1")
        tensor([[ 0., -1.]])
    """
    return _ball(gradient, norm, 1.0, band).direction(gradient)


def _radii(shape: tuple[int, ...], device: torch.device | str) -> Tensor:
    if not shape or min(shape) < 1:
        raise ValueError(f"the shape of a spectrum needs sides of at least 1, got {shape}")
    axes = [torch.fft.fftfreq(n, dtype=torch.float64, device=device) for n in shape]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    return grid.square().sum(0).sqrt()


def radial_band(
    shape: tuple[int, ...], low: float, high: float, *, device: torch.device | str = "cpu"
) -> Tensor:
    r"""Mask the frequencies with $\text{low}\le r(k)<\text{high}$, $r(k)=\sqrt{f_x^2+f_y^2}$.

    Args:
        shape: Sides of the signal, ``(H, W)`` or ``(D,)``.
        low: Lower edge in cycles a pixel; radii of pictures run from 0 to 0.7071.
        high: Upper edge, not in the band.
        device: Where the mask is made.

    Returns:
        Mask in the layout of ``torch.fft.fft2``, boolean, shape ``shape``; symmetric under
        $k\to-k$. It may be empty, which the attacks refuse.

    Raises:
        ValueError: If not ``low < high``, or a side is below 1.

    Example:
        >>> radial_band((4,), 0.25, 0.5)
        tensor([False,  True, False,  True])
    """
    if not low < high:
        raise ValueError(f"a band needs low < high, got {low} and {high}")
    radii = _radii(shape, device)
    return (radii >= low) & (radii < high)


def equal_bands(
    shape: tuple[int, ...], count: int, *, device: torch.device | str = "cpu"
) -> Tensor:
    r"""Split all frequencies by radius into bands of equally many.

    Frequencies are sorted by radius, then by their place in the spectrum; a cut that would part
    $k$ from $-k$ moves up by one. So sizes differ by at most two.

    Args:
        shape: Sides of the signal, ``(H, W)`` or ``(D,)``.
        count: Number of bands.
        device: Where the masks are made.

    Returns:
        Disjoint symmetric masks from low to high radius, boolean, shape ``(count, *shape)``.

    Raises:
        ValueError: If ``count`` is below 1 or leaves a band empty, or a side is below 1.

    Example:
        >>> equal_bands((5,), 2).int()
        tensor([[1, 1, 0, 0, 1],
                [0, 0, 1, 1, 0]], dtype=torch.int32)
    """
    radii = _radii(shape, device)
    index = torch.arange(radii.numel(), device=device).view(shape)
    pair = torch.minimum(index, _mirror(index)).flatten()  # the same number for k and -k
    order = pair.argsort(stable=True)
    order = order[radii.flatten()[order].argsort(stable=True)]
    ranks = pair[order].tolist()
    cuts = [round(i * len(ranks) / count) for i in range(count + 1)] if count >= 1 else [0, 0]
    cuts = [c + (0 < c < len(ranks) and ranks[c - 1] == ranks[c]) for c in cuts]
    if any(a >= b for a, b in pairwise(cuts)):
        raise ValueError(f"cannot split {len(ranks)} frequencies into {count} bands")
    bands = torch.zeros(count, len(ranks), dtype=torch.bool, device=device)
    for band, (low, high) in zip(bands, pairwise(cuts), strict=True):
        band[order[low:high]] = True
    return bands.view(count, *shape)


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

    Without a box this is the worst perturbation of a linear model (Lemma 1).

    Args:
        model: As for `pgd`, like all arguments.
        x: Inputs in the box.
        y: Targets.
        norm: Norm of the ball.
        eps: Radius of the ball; at 0 the result is ``x`` itself.
        band: Frequencies of ``"fourier_linf"``.
        bounds: Box of the inputs.
        criterion: Losses to raise.

    Returns:
        Adversarial inputs in box and ball, made valid as by `pgd`, shape of ``x``.

    Raises:
        ValueError: As for `pgd`.
        FloatingPointError: If a loss or a gradient is not finite.

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
