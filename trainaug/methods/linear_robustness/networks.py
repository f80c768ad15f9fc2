r"""Linear networks: other parameters for the same functions, and so another implicit bias.

Chapter: notebooks/06_linear_robustness.ipynb
Reference: Gunasekar, Lee, Soudry, Srebro, "Implicit Bias of Gradient Descent on Linear
Convolutional Networks", 2018; used by Faghri et al. 2021, arXiv 2102.08868.

Every network computes $f(x) = \langle\beta, x\rangle$; ``linearize`` returns $\beta$.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainaug.methods.linear_robustness.robustness import check_rows, full_precision
from trainaug.norms import FourierNorm
from trainaug.roots import sqrt

__all__ = [
    "CircularConvLinear",
    "DeepLinear",
    "LinearClassifier",
    "NetworkPath",
    "convolutional_paths",
    "dense_paths",
]


class LinearClassifier(nn.Module):
    """$f(x) = w^\\top x$, without bias, from $w = 0$.

    Args:
        in_features: ``D``, at least 1.

    Raises:
        ValueError: If ``in_features`` is below 1.
    """

    def __init__(self, in_features: int) -> None:
        super().__init__()
        _check_sizes(in_features, 1)
        self.weight = nn.Parameter(torch.zeros(in_features))

    def linearize(self) -> Tensor:
        """Return the weights, shape ``(D,)``."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs to scores, whose sign is the decision.

        Args:
            x: Inputs, shape ``(B, D)``, in the type of the weights.

        Returns:
            Scores, shape ``(B,)``.
        """
        return x @ self.weight


class DeepLinear(nn.Module):
    r"""Fully connected linear network $f(x) = w_L^\top W_{L-1}\cdots W_1 x$, all of width ``D``.

    The last layer starts at zero, the others with random columns of length one, as in the
    authors' code; depth 1 is `LinearClassifier`. With *all* layers at zero the gradient vanishes
    for $L \ge 2$, so that start is not offered.

    Args:
        in_features: ``D``, at least 1.
        depth: Number of layers $L$, at least 1.
        generator: Source of the initial weights.

    Raises:
        ValueError: If a size is below 1.
    """

    def __init__(self, in_features: int, depth: int, generator: torch.Generator) -> None:
        super().__init__()
        _check_sizes(in_features, depth)
        shape = (depth - 1, in_features, in_features)
        self.hidden = nn.Parameter(_unit_columns(shape, generator))  # (L - 1, D, D)
        self.last = nn.Parameter(torch.zeros(in_features, device=self.hidden.device))

    def linearize(self) -> Tensor:
        r"""Return $\beta = W_1^\top\cdots W_{L-1}^\top w_L$, shape ``(D,)``."""
        beta: Tensor = self.last
        for weight in reversed(self.hidden.unbind()):
            beta = beta @ weight
        return beta

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs to scores, layer by layer.

        Args:
            x: Inputs, shape ``(B, D)``, in the type of the weights.

        Returns:
            Scores, shape ``(B,)``, whose sign is the decision.
        """
        for weight in self.hidden:
            x = x @ weight.T
        return x @ self.last


class CircularConvLinear(nn.Module):
    r"""Linear convolutional network, $h_l = w_l \star h_{l-1}$ and $f = w_L^\top h_{L-1}$.

    Filters are as wide as the signal and
    $(w\star h)[i] = d^{-1/2}\sum_k w[k]\,h[(i+k) \bmod d]$ is a circular cross-correlation, so in
    the unitary transform $\hat h_l = \overline{\hat w_l}\odot\hat h_{l-1}$ and
    $\hat\beta = \hat w_1\odot\cdots\odot\hat w_L$. Start as in `DeepLinear`.

    Args:
        shape: Shape of the signal, ``(D,)`` or ``(H, W)``.
        depth: Number of layers $L$, at least 1.
        generator: Source of the initial weights.

    Raises:
        ValueError: If a size is below 1.
    """

    def __init__(self, shape: tuple[int, ...], depth: int, generator: torch.Generator) -> None:
        super().__init__()
        self.signal = FourierNorm("l1", tuple(shape))
        size = math.prod(shape)
        _check_sizes(size, depth)
        first = _unit_columns((depth - 1, size, 1), generator).squeeze(-1)
        last = torch.zeros(1, size, device=first.device)
        self.weight = nn.Parameter(torch.cat([first, last]))  # (L, D)

    def linearize(self) -> Tensor:
        r"""Return $\beta = \mathcal F^{-1}[\hat w_1\odot\cdots\odot\hat w_L]$, shape ``(D,)``."""
        beta = self.signal.invert(self.signal.transform(self.weight).prod(0))
        return beta.to(self.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map signals to scores, layer by layer.

        Args:
            x: Flattened signals, shape ``(B, D)``, in the type of the weights.

        Returns:
            Scores, shape ``(B,)``, whose sign is the decision.
        """
        for weight in self.weight[:-1]:
            product = self.signal.transform(weight).conj() * self.signal.transform(x)
            x = self.signal.invert(product).to(torch.promote_types(x.dtype, weight.dtype))
        return x @ self.weight[-1]


def _check_sizes(features: int, depth: int) -> None:
    """Raise a ValueError unless both are at least 1."""
    if features < 1 or depth < 1:
        raise ValueError(f"need at least one feature and one layer, got {features} and {depth}")


def _unit_columns(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw Gaussian matrices ``(..., rows, columns)`` and scale their columns to length one."""
    drawn = torch.randn(shape, generator=generator, device=generator.device)
    columns: Tensor = drawn / torch.linalg.vector_norm(drawn, dim=-2, keepdim=True)
    return columns


@dataclass(frozen=True)
class NetworkPath:
    r"""Linear networks of $M$ depths during training on $P$ problems, at $K$ recorded steps.

    Attributes:
        steps: The step numbers, shape ``(K,)``.
        beta: The networks' linearisations, shape ``(K, P, M, D)``.
        cost: $\sum_l\|w_l\|_2^2$ of the parameters, shape ``(K, P, M)``.
    """

    steps: Tensor
    beta: Tensor
    cost: Tensor


class _Convolutions:
    """Stacked convolutional networks as half spectra, which hold each pair of frequencies once.

    Takes the signed rows ``Z``, the signal's ``shape``, the ``depths``, and the initial weights
    ``start`` of all layers, ``(L, D)``.
    """

    def __init__(
        self, Z: Tensor, shape: tuple[int, ...], depths: Sequence[int], start: Tensor
    ) -> None:
        self.shape, self.axes = shape, tuple(range(-len(shape), 0))
        layers = torch.arange(max(depths), device=Z.device)
        depth = torch.tensor(list(depths), device=Z.device).unsqueeze(-1)  # (M, 1)
        weight = torch.zeros(len(depth), *start.shape, dtype=Z.dtype, device=Z.device)
        weight = torch.where((layers < depth - 1).unsqueeze(-1), start.to(Z), weight)  # (M, L, D)
        spectra = self._forward(weight)  # (M, L, *half)
        in_use = (layers < depth).reshape(*weight.shape[:2], *[1] * len(shape))
        # A layer that a network does not have is the identity and stays the identity.
        self.in_use = in_use.to(spectra.dtype)
        first = torch.where(in_use, spectra, 1.0)
        self.spectra = first.expand(len(Z), *first.shape).clone()  # (P, M, L, *half)
        last = torch.arange(spectra.shape[-1], device=Z.device)
        alone = (last == 0) | (2 * last == shape[-1])
        self.weights = torch.where(alone, 1.0, 2.0).to(Z)  # mirror pairs count twice

    def _forward(self, x: Tensor) -> Tensor:
        signal = x.reshape(*x.shape[:-1], *self.shape)
        spectra: Tensor = torch.fft.rfftn(signal, dim=self.axes, norm="ortho")
        return spectra

    def _square(self, z: Tensor) -> Tensor:
        """Return the squared length ``(P, M)`` of all layers from spectra ``(P, M, L, *half)``."""
        return (torch.view_as_real(z).square().sum(-1) * self.weights).flatten(2).sum(-1)

    def beta(self) -> Tensor:
        product = self.spectra.prod(2)
        beta: Tensor = torch.fft.irfftn(product, s=self.shape, dim=self.axes, norm="ortho")
        return beta.flatten(-len(self.shape))  # (P, M, D)

    def cost(self) -> Tensor:
        return self._square(self.spectra * self.in_use)

    def step(self, g: Tensor, lr: Tensor) -> None:
        """Move by ``lr`` along the normalised descent direction; ``g`` is minus d loss / d beta."""
        others = torch.stack(_products_of_the_others(self.spectra.unbind(2)), 2)
        direction = others.conj() * self._forward(g).unsqueeze(2) * self.in_use
        length = sqrt(self._square(direction))  # (P, M)
        scale = torch.where(length > 0, lr / length, 0.0)
        self.spectra += direction * scale.reshape(*scale.shape, *[1] * (1 + len(self.shape)))


def _products_of_the_others(layers: Sequence[Tensor]) -> list[Tensor]:
    """Return for each layer the product of all others, without division: a factor may be zero."""
    before = [torch.ones_like(layers[0])]
    after = [torch.ones_like(layers[0])]
    for layer in layers[:-1]:
        before.append(before[-1] * layer)
    for layer in layers[:0:-1]:
        after.append(after[-1] * layer)
    return [b * a for b, a in zip(before, reversed(after), strict=True)]


class _Dense:
    """Stacked fully connected networks of depth two: $\\beta = W^\\top a$."""

    def __init__(self, Z: Tensor, start: Tensor) -> None:
        self.hidden = start.to(Z).expand(len(Z), *start.shape).clone()  # (P, D, D)
        self.last = torch.zeros_like(Z[:, 0])  # (P, D)

    def beta(self) -> Tensor:
        return self.last.unsqueeze(1) @ self.hidden  # (P, 1, D)

    def cost(self) -> Tensor:
        squares = self.hidden.square().sum((-1, -2)) + self.last.square().sum(-1)
        return squares.unsqueeze(-1)  # (P, 1)

    def step(self, g: Tensor, lr: Tensor) -> None:
        """Move by ``lr`` along the normalised descent direction; ``g`` is minus d loss / d beta."""
        to_last = (self.hidden @ g.mT).squeeze(-1)  # (P, D)
        # The gradient of W is the outer product of a and g, so its length needs no matrix.
        square = to_last.square().sum(-1) + self.last.square().sum(-1) * g.square().sum((-1, -2))
        length = sqrt(square)
        scale = torch.where(length > 0, lr[0] / length, 0.0).unsqueeze(-1)  # (P, 1)
        self.hidden.baddbmm_((scale * self.last).unsqueeze(-1), g)
        self.last += scale * to_last


def convolutional_paths(
    Z: Tensor,
    shape: tuple[int, ...],
    depths: Sequence[int],
    *,
    lr: Sequence[float],
    record_at: Sequence[int],
    generator: torch.Generator,
    mask: Tensor | None = None,
) -> NetworkPath:
    r"""Train stacked `CircularConvLinear` networks of several depths on stacked problems.

    This is gradient descent on $\log\sum_i e^{-z_i^\top\beta}$ in all parameters at once. Every
    step has length ``lr``, as with `SteepestDescent` in $\ell_2$ and the step rule
    ``"normalized"``. As the parameters grow with the steps, their direction changes less and less.
    The unitary transform preserves gradients and lengths, so the work is done on half spectra.

    Args:
        Z: Signed rows $y_i x_i$, float32 or float64, shape ``(P, N, D)``; problems with fewer rows
            are padded.
        shape: Shape of the signal, with product ``D``.
        depths: The $M$ depths, each at least 1.
        lr: Step length for each depth, positive.
        record_at: Increasing step numbers to record; the last one ends the run.
        generator: Source of the initial weights, which are equal for all problems. Layers that two
            depths share also start equal, except the last layer, which starts at zero.
        mask: True at real rows, shape ``(P, N)``; all rows by default.

    Returns:
        The recorded networks.

    Raises:
        ValueError: If a shape, a depth, a step number or a step length is invalid.
        FloatingPointError: If the networks leave the range of their type.
    """
    mask = check_rows(Z, "(P, N, D)", mask)
    if not depths or min(depths) < 1 or math.prod(shape) != Z.shape[-1]:
        raise ValueError(f"need depths >= 1 and signals of {Z.shape[-1]}, got {depths}, {shape}")
    size = math.prod(shape)
    start = _unit_columns((max(depths), size, 1), generator).squeeze(-1)  # (L, D)
    return _train(Z, _Convolutions(Z, shape, depths, start), lr, len(depths), record_at, mask)


def dense_paths(
    Z: Tensor,
    *,
    lr: float,
    record_at: Sequence[int],
    generator: torch.Generator,
    mask: Tensor | None = None,
) -> NetworkPath:
    r"""Train one `DeepLinear` network of depth two on each of several problems, all at once.

    This is gradient descent as in `convolutional_paths`; each step moves both layers together by
    the length ``lr``.

    Args:
        Z: Signed rows $y_i x_i$, float32 or float64, shape ``(P, N, D)``; problems with fewer rows
            are padded.
        lr: Step length, positive.
        record_at: Increasing step numbers to record; the last one ends the run.
        generator: Source of the initial weights, which are equal for all problems; the last layer
            starts at zero.
        mask: True at real rows, shape ``(P, N)``; all rows by default.

    Returns:
        The recorded networks, with $M = 1$ depth.

    Raises:
        ValueError: If a shape, a step number or the step length is invalid.
        FloatingPointError: If the networks leave the range of their type.
    """
    mask = check_rows(Z, "(P, N, D)", mask)
    start = _unit_columns((Z.shape[-1], Z.shape[-1]), generator)
    return _train(Z, _Dense(Z, start), [lr], 1, record_at, mask)


@torch.no_grad()
def _train(
    Z: Tensor,
    networks: _Convolutions | _Dense,
    lr: Sequence[float],
    count: int,
    record_at: Sequence[int],
    mask: Tensor,
) -> NetworkPath:
    """Train stacked networks of ``count`` depths and record them at the given steps."""
    if len(lr) != count or not all(0 < value < math.inf for value in lr):
        raise ValueError(f"need {count} positive step lengths, got {list(lr)}")
    if list(record_at) != sorted(set(record_at)) or not record_at or record_at[0] < 0:
        raise ValueError(f"record_at must increase from at least 0, got {list(record_at)}")
    Z = torch.where(mask.unsqueeze(-1), Z, 0.0)
    padding = torch.zeros_like(Z[..., 0]).masked_fill(~mask, -torch.inf).unsqueeze(1)  # (P, 1, N)
    Zt = Z.mT.contiguous()  # (P, D, N)
    rates = torch.tensor(list(lr), dtype=Z.dtype, device=Z.device)
    recorded: list[tuple[Tensor, Tensor]] = []
    with full_precision(Z):
        for t in range(record_at[-1] + 1):
            beta = networks.beta()  # (P, M, D)
            if t in record_at:
                recorded.append((beta, networks.cost()))
            q = torch.softmax(padding - beta @ Zt, -1)  # (P, M, N)
            networks.step(_in_range(q @ Z), rates)
    betas, costs = zip(*recorded, strict=True)
    path = NetworkPath(
        torch.tensor(list(record_at), device=Z.device), torch.stack(betas), torch.stack(costs)
    )
    if not bool(path.beta.isfinite().all() & path.cost.isfinite().all()):
        raise FloatingPointError(f"the networks leave the range of {Z.dtype}: scale Z or lr")
    return path


def _in_range(g: Tensor) -> Tensor:
    """Rescale a gradient whose squares would vanish or overflow; only its direction is used."""
    largest = g.abs().amax(-1, keepdim=True)
    usual = (largest >= 2.0**-24) & (largest <= 2.0**24)
    return g * torch.where(
        usual | (largest == 0), 1.0, 1 / largest.clamp(min=torch.finfo(g.dtype).tiny)
    )
