r"""Balls of perturbations: projection, steepest step, length and random draws.

Chapter: notebooks/06_linear_robustness.ipynb
Reference: Faghri et al., "Bridging the Gap Between Adversarial Robustness and Optimization Bias",
2021, arXiv 2102.08868, the Fourier attack.

A ball holds the perturbations $\delta$ of one example with norm at most $\varepsilon$. ``"linf"``,
``"l2"`` and ``"l1"`` measure the whole example. The Fourier norms measure each channel alone, by
its unitary transform over the dimensions after the channel (for inputs ``(B, D)``: over ``D``).
``"fourier_linf"`` bounds every modulus, $|\hat\delta_{c,k}|\le\varepsilon r_k$, with factors $r_k$
that are 1, or a band; ``"fourier_l1"`` bounds their sum, $\sum_k|\hat\delta_{c,k}|\le\varepsilon$.

A `FourierNorm` whose shape is that of the dimensions after the channel means the same as the
string. For flattened inputs ``(B, D)`` it may have any shape with product ``D``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from trainaug.checks import finite, widened
from trainaug.methods.attacks.bands import check_band
from trainaug.norms import (
    FourierNorm,
    Norm,
    PlainNorm,
    check_norm,
    dual,
    dual_vector,
    norm,
    project,
    shaped_norm,
)

__all__ = ["AttackNorm", "project_ball", "steepest_step"]

#: Any norm of the library; each bounds an attack.
AttackNorm = Norm
_TOLERANCE = 1e-5  # share of the largest radius by which clipping to the box may leave a band
_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class _Ball:
    """A ball and its geometry.

    ``sides`` is the shape of one signal, which fills the last ``dims`` dimensions of the inputs:
    one dimension if signals come flattened. ``factors`` is the band on the half spectrum, the part
    that ``rfftn`` gives; it is all ones without a band.
    """

    norm: PlainNorm | FourierNorm
    eps: float
    sides: tuple[int, ...]
    dims: int
    factors: Tensor

    @property
    def axes(self) -> tuple[int, ...]:
        return tuple(range(-len(self.sides), 0))

    @property
    def is_fourier(self) -> bool:
        return isinstance(self.norm, FourierNorm)

    @property
    def is_product(self) -> bool:
        """Whether the ball is a product of discs, one for each frequency."""
        return isinstance(self.norm, FourierNorm) and self.norm.order == "linf"

    def transform(self, x: Tensor) -> Tensor:
        """Return the half spectrum of each signal."""
        if self.dims != len(self.sides):
            x = x.reshape(*x.shape[:-1], *self.sides)
        z: Tensor = torch.fft.rfftn(x, dim=self.axes, norm="ortho")  # (B, C, H, W // 2 + 1)
        return z

    def invert(self, z: Tensor) -> Tensor:
        """Return the real signals of half spectra, in the shape of the inputs."""
        x: Tensor = torch.fft.irfftn(z, s=self.sides, dim=self.axes, norm="ortho")
        return x if self.dims == len(self.sides) else x.flatten(-len(self.sides))

    def vectors(self, x: Tensor) -> Tensor:
        """Flatten what the norm measures: examples to ``(B, D)``, signals to ``(B, C, N)``."""
        return x.flatten(-self.dims) if self.is_fourier else x.flatten(1)

    def spread(self, values: Tensor, x: Tensor) -> Tensor:
        """Append dimensions of size 1 to one value per vector, to broadcast it over the inputs."""
        return values.view(*values.shape, *[1] * (x.ndim - values.ndim))

    def project(self, delta: Tensor) -> Tensor:
        if not self.is_product:
            return project(self.vectors(delta), self.norm, self.eps).view(delta.shape)
        z = self.transform(delta)
        moduli, radii = z.abs(), self.eps * self.factors
        shrink = torch.where(moduli > radii, radii / moduli, 1.0)
        # what is inside is returned as it is, without the rounding of two transforms
        outside = self.spread(shrink.amin(self.axes) < 1, delta)  # (B, C, 1, 1)
        return torch.where(outside, self.invert(z * shrink), delta)

    def direction(self, gradient: Tensor) -> Tensor:
        """Return the steepest steps of length one, as `steepest_step` describes them."""
        flat = gradient.flatten(1)
        scale = flat.abs().amax(1, keepdim=True)  # (B, 1); else squares of small values underflow
        flat = torch.where(scale > 0, flat / scale, 0.0)
        if not self.is_fourier:
            return dual_vector(flat, dual(self.norm)).view(gradient.shape)
        scaled = flat.view(gradient.shape)
        if not self.is_product:
            return dual_vector(self.vectors(scaled), dual(self.norm)).view(gradient.shape)
        z = self.transform(scaled)
        moduli = z.abs()
        # a modulus below the rounding error of the largest has a random phase: it counts as zero
        rounding = torch.finfo(moduli.dtype).eps * moduli.amax(self.axes, keepdim=True)
        return self.invert(torch.where(moduli > rounding, self.factors * z / moduli, 0.0))

    def gauge(self, delta: Tensor) -> Tensor:
        """Return norm over radius, at most 1 in the ball; a factor of 0 counts as the tolerance."""
        if not self.is_product:
            return self.spread(norm(self.vectors(delta), self.norm) / self.eps, delta)
        radii = self.eps * self.factors.clamp(min=_TOLERANCE * float(self.factors.max()))
        return self.spread((self.transform(delta).abs() / radii).amax(self.axes), delta)

    def farthest(self, gradient: Tensor, room: Tensor) -> Tensor:
        """Return the point of the l1 ball and the box at which a linear loss is largest.

        That is a fractional knapsack: the coordinates are filled by decreasing modulus of the
        gradient, each up to its ``room``, the distance to the box in the gradient's direction.
        """
        flat = gradient.flatten(1)
        order = flat.abs().argsort(dim=1, descending=True, stable=True)
        room = torch.where(flat == 0, 0.0, room.flatten(1).clamp(0, self.eps)).gather(1, order)
        filled = (self.eps - (room.cumsum(1) - room)).clamp(min=0).minimum(room)
        return (flat.sign() * torch.zeros_like(flat).scatter(1, order, filled)).view(gradient.shape)

    def narrowed(
        self, x: Tensor, target: Tensor, bounds: tuple[float | Tensor, float | Tensor] | None = None
    ) -> Tensor:
        """Round ``target`` to the type of ``x``; towards ``x`` where it would leave ball or box.

        Towards ``x`` the coordinates of the perturbation get shorter, so it stays in the box and in
        any ball but those of Fourier moduli.
        """
        if target.dtype == x.dtype:
            return target
        nearest, wide = target.to(x.dtype), widened(x)
        rounded = widened(nearest)
        is_longer = (rounded - wide).abs() > (target - wide).abs()
        is_out = torch.zeros_like(is_longer)
        if bounds is not None:
            is_out = (rounded < bounds[0]) | (rounded > bounds[1])
        if not self.is_fourier and self.eps > 0:
            is_out = is_out | (self.gauge(rounded - wide) > 1)
        return torch.where(is_longer & is_out, torch.nextafter(nearest, x), nearest)

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a start for each example: uniform in a linf ball, else projected white noise."""
        noise = torch.empty(x.shape, dtype=x.dtype, device=generator.device)
        if self.norm == "linf":
            return noise.uniform_(-self.eps, self.eps, generator=generator).to(x.device)
        noise = noise.normal_(0, self.eps, generator=generator).to(x.device)
        if self.is_product:
            noise = self.invert(self.factors * self.transform(noise))
        return self.project(noise)


def _ball(x: Tensor, norm: Norm, eps: float, band: Tensor | None) -> _Ball:
    """Check what `project_ball` takes, with ``x`` for ``delta``, and return the ball."""
    check_norm(norm)
    if isinstance(eps, Tensor) and eps.numel() != 1:
        raise ValueError(f"eps must be one number for all examples, got {tuple(eps.shape)}")
    eps = float(eps)
    if not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"eps must be finite and at least 0, got {eps}")
    if not isinstance(x, Tensor):
        raise TypeError(f"need a tensor (B, D) or (B, C, ...), got {type(x).__name__}")
    if x.ndim < 2 or 0 in x.shape[1:] or x.dtype not in _TYPES:
        advice = "" if x.dtype in _TYPES else "; convert pictures of bytes with .float() / 255"
        raise ValueError(
            f"need floats (B, D) or (B, C, ...), got {x.dtype} {tuple(x.shape)}{advice}"
        )
    if x.is_meta:
        raise ValueError("need values, got a tensor on the meta device")
    x = widened(x)
    sides = tuple(x.shape[min(2, x.ndim - 1) :])  # those after the channel, or D
    dims = len(sides)
    shaped = shaped_norm(norm, sides)
    if isinstance(shaped, FourierNorm) and shaped.shape != sides:
        if x.ndim > 2 or math.prod(shaped.shape) != x.shape[1]:
            raise ValueError(
                f"a Fourier norm of signals {shaped.shape} does not fit inputs {tuple(x.shape)}: "
                f"the signals are {sides}, and only inputs (B, D) unfold to other shapes"
            )
        sides = shaped.shape
    half_shape = (*sides[:-1], sides[-1] // 2 + 1)  # of the half spectrum
    if band is None:
        factors = torch.ones(half_shape, dtype=x.dtype, device=x.device)
    elif str(shaped) != "fourier_linf":
        raise ValueError(f"only fourier_linf takes a band, got {norm!r}")
    else:
        factors = check_band(band, x, sides)[..., : half_shape[-1]]
    return _Ball(shaped, eps, sides, dims, factors)


def project_ball(delta: Tensor, norm: Norm, eps: float, band: Tensor | None = None) -> Tensor:
    r"""Project perturbations on the ball in Euclidean distance, exactly.

    The transform is unitary, so Fourier balls are projected in the moduli. ``"fourier_linf"`` is a
    product of discs, $\hat\delta_k\leftarrow\hat\delta_k\min(1,\varepsilon r_k/|\hat\delta_k|)$;
    for ``"l1"`` and ``"fourier_l1"`` the moduli are soft-thresholded (Duchi et al. 2008).

    Args:
        delta: Perturbations, floating point, shape ``(B, D)`` or ``(B, C, ...)``.
        norm: Norm of the ball: ``"linf"``, ``"l2"``, ``"l1"``, ``"fourier_linf"``,
            ``"fourier_l1"``, or a `FourierNorm` that fits ``delta``.
        eps: Radius, at least 0, in the norm.
        band: Symmetric mask, or factors $r_k\ge0$, over the full spectrum ``(H, W)`` or ``(D,)``;
            ``"fourier_linf"`` only.

    Returns:
        Projected perturbations, same shape and type; those inside the ball are returned unchanged.
        Half precision is projected in float32 and rounded inwards, so that it stays in the ball; a
        Fourier modulus may exceed its radius by the rounding error of the result.

    Raises:
        TypeError: If ``delta`` is not a tensor.
        ValueError: If the norm is unknown or its signals do not fit; if ``eps`` is negative or not
            finite; if ``delta`` is not finite, not of a floating type or without values; or if the
            band is not symmetric, empty, of the wrong shape or given with another norm.

    Example:
        >>> project_ball(torch.tensor([[3.0, 1.0]]), "l1", 2.0)
        tensor([[2., 0.]])
    """
    ball = _ball(delta, norm, eps, band)
    finite("delta", delta)
    if len(delta) == 0:
        return delta.clone()
    wide = widened(delta)
    result = ball.project(wide)
    if wide is delta:
        return result
    if not ball.is_fourier and ball.eps > 0:  # rounding of long vectors leaves the ball
        result = result / ball.gauge(result).clamp(min=1)
    return ball.narrowed(torch.zeros_like(delta), result)


def steepest_step(gradient: Tensor, norm: Norm, band: Tensor | None = None) -> Tensor:
    r"""Return the perturbation of length one that raises a linear loss most (Lemma 1).

    For ``"linf"`` it is $\mathrm{sign}(g)$, for ``"l2"`` $g/\|g\|_2$. For ``"l1"`` it lies on the
    first coordinate of largest modulus of each example. For ``"fourier_linf"`` it is
    $\mathcal F^{-1}[r\,\hat g/|\hat g|]$; for ``"fourier_l1"`` it lies on the first frequency of
    largest modulus of each channel and on its mirror (Lemma 4). Where the gradient is zero, so is
    the step. With ``"fourier_linf"`` a frequency below the rounding error of the channel's largest
    one counts as zero, since its phase is noise.

    Args:
        gradient: Gradients of the loss, floating point, shape ``(B, D)`` or ``(B, C, ...)``.
        norm: Norm in which the step has length one, any as for `project_ball`.
        band: As for `project_ball`.

    Returns:
        Steps, same shape and type.

    Raises:
        TypeError: If ``gradient`` is not a tensor.
        ValueError: If the norm is unknown or its signals do not fit; if ``gradient`` is not finite,
            not of a floating type or without values; or if `project_ball` would refuse the band.

    Example:
        >>> steepest_step(torch.tensor([[3.0, -4.0]]), "l1")
        tensor([[ 0., -1.]])
    """
    ball = _ball(gradient, norm, 1.0, band)
    finite("gradient", gradient)
    if len(gradient) == 0:
        return gradient.clone()
    return ball.direction(widened(gradient)).to(gradient.dtype)
