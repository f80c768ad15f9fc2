r"""How curved an objective is, and how sharp a minimum.

Chapter: notebooks/05_cascading_sum.ipynb
Reference: Li et al., "Visualizing the Loss Landscape of Neural Nets", NeurIPS 2018, filter
normalisation; Keskar et al., "On Large-Batch Training", ICLR 2017, worst loss in a ball.

All three take the mean of ``criterion(model(x), y)`` over one fixed batch, in eval mode, and leave
the model as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["gradient_lipschitz", "hessian_top_eigenvalue", "sharpness"]

Criterion = Callable[[Tensor, Tensor], Tensor]
Parameters = dict[str, Tensor]


class _Objective:
    """Loss and gradient of a batch as functions of the trained parameters."""

    def __init__(self, model: nn.Module, criterion: Criterion, x: Tensor, y: Tensor) -> None:
        if len(x) == 0 or len(x) != len(y):
            raise ValueError(f"need as many inputs as targets, got {len(x)} and {len(y)}")
        self.model, self.criterion, self.x, self.y = model, criterion, x, y
        named = [(name, p.detach()) for name, p in model.named_parameters() if p.requires_grad]
        if not named:
            raise ValueError("the model has no trained parameter")
        self.start: Parameters = dict(named)

    def loss(self, at: Parameters) -> Tensor:
        modes = [(module, module.training) for module in self.model.modules()]
        try:
            self.model.eval()
            return self.criterion(functional_call(self.model, at, (self.x,)), self.y).mean()
        finally:
            for module, mode in modes:
                module.training = mode

    def gradient(self, at: Parameters) -> Parameters:
        _, found = self.loss_and_gradient(at)
        return found

    def loss_and_gradient(self, at: Parameters) -> tuple[float, Parameters]:
        leaves = {name: p.detach().requires_grad_() for name, p in at.items()}
        with torch.enable_grad():
            loss = self.loss(leaves)
            found = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        return loss.item(), dict(zip(leaves, found, strict=True))

    def draw(self, generator: torch.Generator) -> Parameters:
        return {name: _normal_like(p, generator) for name, p in self.start.items()}


def _normal_like(p: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(p.shape, dtype=p.dtype, generator=generator, device=generator.device)
    return noise.to(p.device)


def _length(vector: Parameters) -> float:
    return math.sqrt(sum(float(v.double().square().sum()) for v in vector.values()))


def _add(a: Parameters, b: Parameters, factor: float = 1.0) -> Parameters:
    return {name: a[name] + factor * b[name] for name in a}


def hessian_top_eigenvalue(
    model: nn.Module,
    criterion: Criterion,
    x: Tensor,
    y: Tensor,
    *,
    generator: torch.Generator,
    iterations: int = 50,
    tolerance: float = 1e-4,
) -> float:
    r"""Eigenvalue of the Hessian that is largest in modulus, by power iteration.

    $v\leftarrow Hv/\lVert Hv\rVert$ with Hessian-vector products by double backward; the result is
    $\langle v, Hv\rangle$. Sign included: negative where the strongest curvature is downward.

    Args:
        model: Any module.
        criterion: Returns per-example losses ``(B,)``.
        x: Inputs, shape ``(B, ...)``.
        y: Targets.
        generator: Source of the first vector.
        iterations: At most so many products, at least 1.
        tolerance: Stop when the value changes by less than this share.

    Raises:
        ValueError: If an option is out of range.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    objective = _Objective(model, criterion, x, y)
    leaves = {name: p.clone().requires_grad_() for name, p in objective.start.items()}
    with torch.enable_grad():
        loss = objective.loss(leaves)
        slope = torch.autograd.grad(
            loss, list(leaves.values()), create_graph=True, materialize_grads=True
        )
    curved = {n: s for n, s in zip(leaves, slope, strict=True) if s.requires_grad}
    if not curved:
        return 0.0
    vector = objective.draw(generator)
    value = 0.0
    for _ in range(iterations):
        length = _length(vector)
        if length == 0:
            return 0.0
        vector = {name: v / length for name, v in vector.items()}
        product = torch.autograd.grad(
            list(curved.values()),
            list(leaves.values()),
            [vector[n] for n in curved],
            retain_graph=True,
            materialize_grads=True,
        )
        pairs = zip(product, vector.values(), strict=True)
        found = sum(float((h * v).double().sum()) for h, v in pairs)
        has_settled = abs(found - value) <= tolerance * abs(found)
        value, vector = found, dict(zip(leaves, product, strict=True))
        if has_settled:
            break
    return value


def gradient_lipschitz(
    model: nn.Module,
    criterion: Criterion,
    x: Tensor,
    y: Tensor,
    *,
    radius: float,
    generator: torch.Generator,
    draws: int = 10,
) -> float:
    r"""Lower estimate of the gradient's Lipschitz constant around the weights.

    $\max_i\lVert\nabla L(\theta+\delta_i)-\nabla L(\theta)\rVert/\lVert\delta_i\rVert$ over random
    $\delta_i$ of length ``radius``. Arguments as of `hessian_top_eigenvalue`.
    """
    if not radius > 0 or draws < 1:
        raise ValueError(f"need radius > 0 and draws >= 1, got {radius=}, {draws=}")
    objective = _Objective(model, criterion, x, y)
    here = objective.gradient(objective.start)
    largest = 0.0
    for _ in range(draws):
        direction = objective.draw(generator)
        factor = radius / _length(direction)
        there = objective.gradient(_add(objective.start, direction, factor))
        largest = max(largest, _length(_add(there, here, -1.0)) / radius)
    return largest


def sharpness(
    model: nn.Module,
    criterion: Criterion,
    x: Tensor,
    y: Tensor,
    *,
    rho: float,
    generator: torch.Generator,
    steps: int = 10,
    restarts: int = 2,
) -> float:
    r"""Largest rise of the loss found in a filter-normalised ball.

    $\max L(\theta+\delta)-L(\theta)$ with $\lVert\delta_f\rVert\le\rho\lVert\theta_f\rVert$ for
    every filter $f$, a row of a weight matrix or convolution: rescaling a filter, which a
    following normalisation undoes, does not change it. Biases and parameters of normalisation
    layers stay. Projected ascent with steps of $\rho/2$ from random starts; at least 0.

    Args:
        model: Any module with at least one weight of two or more dimensions.
        criterion: Returns per-example losses ``(B,)``.
        x: Inputs, shape ``(B, ...)``.
        y: Targets.
        rho: Relative radius, above 0.
        generator: Source of the starts.
        steps: Steps of a start.
        restarts: Number of starts.

    Raises:
        ValueError: If an option is out of range.
    """
    if not rho > 0 or min(steps, restarts) < 1:
        raise ValueError(f"need rho > 0, steps, restarts >= 1, got {rho=}, {steps=}, {restarts=}")
    objective = _Objective(model, criterion, x, y)
    radii = {n: rho * _filter_norms(p) for n, p in objective.start.items() if p.ndim > 1}
    if not radii:
        raise ValueError("the model has no filters")

    def scaled(direction: Parameters, share: float) -> Parameters:
        tiny = torch.finfo(torch.float32).tiny
        return {
            n: share * r * direction[n] / _filter_norms(direction[n]).clamp(min=tiny)
            for n, r in radii.items()
        }

    def moved(delta: Parameters) -> Parameters:
        return {n: p + delta[n] if n in delta else p for n, p in objective.start.items()}

    before, _ = objective.loss_and_gradient(objective.start)
    largest = 0.0
    for _ in range(restarts):
        delta = scaled(objective.draw(generator), 1.0)
        for _ in range(steps):
            loss, gradient = objective.loss_and_gradient(moved(delta))
            largest = max(largest, loss - before)
            ahead = _add(delta, scaled(gradient, 0.5))
            shrink = {n: _filter_norms(d).div(radii[n]).clamp(min=1.0) for n, d in ahead.items()}
            delta = {n: torch.where(radii[n] > 0, d / shrink[n], 0.0) for n, d in ahead.items()}
        loss, _ = objective.loss_and_gradient(moved(delta))
        largest = max(largest, loss - before)
    return largest


def _filter_norms(p: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(p.flatten(1), dim=1)
    return norms.view(-1, *[1] * (p.ndim - 1))
