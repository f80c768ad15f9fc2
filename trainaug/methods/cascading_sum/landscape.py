r"""How curved an objective is, and how sharp a minimum.

Chapter: notebooks/05_cascading_sum.ipynb
Reference: Li et al., "Visualizing the Loss Landscape of Neural Nets", NeurIPS 2018, filter
normalisation; Keskar et al., "On Large-Batch Training", ICLR 2017, worst loss in a ball.

All three functions study the mean of ``criterion(model(x), y)`` over one fixed batch, in eval mode,
and leave the model as it is. ``x`` and ``y`` may be tuples, lists and mappings of tensors.
Parameters in half precision are refused, since differences of their gradients would be rounding
errors. A loss or gradient that is not finite raises a FloatingPointError.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from trainaug.checks import widened
from trainaug.structures import eagerly, full_precision, num_rows, unwrapped
from trainaug.undisturbed import in_eval_mode

__all__ = ["gradient_lipschitz", "hessian_top_eigenvalue", "sharpness"]

Criterion = Callable[[Any, Any], Tensor]
Parameters = dict[str, Tensor]
Stopping = Literal["residual", "change"]
MOST_VECTORS = 8  # of a basis; it is then restarted
KEPT = 3  # vectors that a restart keeps
ROUNDING = 100  # units in the last place: no residual falls below so many


class _Objective:
    """Loss and gradient of a batch as functions of the trained parameters."""

    def __init__(self, model: nn.Module, criterion: Criterion, x: Any, y: Any) -> None:
        if num_rows(x) == 0 or num_rows(x) != num_rows(y):
            raise ValueError(f"need as many inputs as targets, got {num_rows(x)} and {num_rows(y)}")
        if isinstance(model, torch.jit.ScriptModule):
            raise TypeError(f"{type(model).__name__} of torch.jit: give the model it was made from")
        self.model, self.criterion, self.x, self.y = unwrapped(model), criterion, x, y
        named = self.model.named_parameters()
        self.start: Parameters = {name: p.detach() for name, p in named if p.requires_grad}
        if not self.start:
            raise ValueError("the model has no trained parameter")
        for name, p in self.start.items():
            if widened(p) is not p:
                raise TypeError(f"{name} is {p.dtype}, too coarse for curvature: model.float()")

    def loss(self, at: Parameters) -> Tensor:
        """Return the mean loss at these parameters, in eval mode; modes are put back."""
        with in_eval_mode(self.model), eagerly():
            return self.criterion(functional_call(self.model, at, (self.x,)), self.y).mean()

    def gradient(self, at: Parameters) -> Parameters:
        _, gradient = self.loss_and_gradient(at)
        return gradient

    def loss_and_gradient(self, at: Parameters) -> tuple[float, Parameters]:
        """Return loss and gradient at these parameters; refuse what is not finite."""
        leaves = {name: p.detach().requires_grad_() for name, p in at.items()}
        with torch.enable_grad(), self.precisely():
            loss = self.loss(leaves)
            slopes = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        if not loss.isfinite() or not all(bool(v.isfinite().all()) for v in slopes):
            raise FloatingPointError(f"the loss, {loss.item()}, or its gradient is not finite")
        return loss.item(), dict(zip(leaves, slopes, strict=True))

    def precisely(self) -> AbstractContextManager[Any]:
        """Switch off autocast on the model's device."""
        return full_precision(next(iter(self.start.values())).device)

    def draw(self, generator: torch.Generator) -> Parameters:
        """Draw a standard normal number for each parameter."""
        return {name: _normal_like(p, generator) for name, p in self.start.items()}


def _normal_like(p: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(p.shape, dtype=p.dtype, generator=generator, device=generator.device)
    return noise.to(p.device)


def _length(vector: Parameters) -> float:
    """Return the Euclidean norm over all parameters."""
    return math.sqrt(sum(float(v.double().square().sum()) for v in vector.values()))


def _add(a: Parameters, b: Parameters, factor: float = 1.0) -> Parameters:
    """Return ``a + factor * b``."""
    return {name: a[name] + factor * b[name] for name in a}


class _Hessian:
    """Products of the Hessian with vectors, by double backward."""

    def __init__(self, objective: _Objective) -> None:
        leaves = {name: p.clone().requires_grad_() for name, p in objective.start.items()}
        with torch.enable_grad(), objective.precisely():
            loss = objective.loss(leaves)
            slopes = torch.autograd.grad(
                loss, list(leaves.values()), create_graph=True, materialize_grads=True
            )
        self.objective, self.leaves = objective, leaves
        # gradients that depend on the parameters; the others add nothing to the Hessian
        self.curved = {n: s for n, s in zip(leaves, slopes, strict=True) if s.requires_grad}

    def product(self, vector: Parameters) -> Parameters:
        """Return the Hessian times ``vector``."""
        with self.objective.precisely():
            product = torch.autograd.grad(
                list(self.curved.values()),
                list(self.leaves.values()),
                [vector[n] for n in self.curved],
                retain_graph=True,
                materialize_grads=True,
            )
        return dict(zip(self.leaves, product, strict=True))


def hessian_top_eigenvalue(
    model: nn.Module,
    criterion: Criterion,
    x: Any,
    y: Any,
    *,
    generator: torch.Generator,
    iterations: int = 50,
    tolerance: float = 1e-4,
    stopping: Stopping = "residual",
) -> float:
    r"""Eigenvalue of the Hessian that is largest in modulus, from Hessian-vector products.

    It comes with its sign: negative where the strongest curvature is downward. Of two eigenvalues
    that differ in sign alone it may be either. Products come from double backward.

    Args:
        model: Any module.
        criterion: Returns per-example losses ``(B,)``.
        x: Inputs, shape ``(B, ...)``.
        y: Targets.
        generator: Source of the first vector.
        iterations: Most products to make, at least 1.
        tolerance: Largest $\lVert Hv-\lambda v\rVert/|\lambda|$ for the unit vector $v$ that
            belongs to the result (but no less than 100 units in the last place); with ``change``,
            the largest relative change of the value in the last step.
        stopping: With ``residual``, $v$ is the best vector of a space that each product extends by
            its residual, up to 8 vectors, as in Lanczos' method. ``change`` is power iteration as
            in the chapter, $v\leftarrow Hv/\lVert Hv\rVert$ with the value $\langle v, Hv\rangle$.
            A value that changes slowly, or comes last, need not be an eigenvalue, and at a saddle
            it often is not.

    Returns:
        The eigenvalue, in units of the loss over squared units of the parameters; 0 if the
        gradient does not depend on them.

    Raises:
        ValueError: If an option is out of range, there are no inputs or not as many targets, or
            the model has no trained parameter.
        TypeError: If the model is one of ``torch.jit``, a parameter is in half precision, or the
            inputs or targets hold no tensor.
        ArithmeticError: If the value has not settled after so many products (``residual``).
        FloatingPointError: If a product is not finite (``residual``).
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be at least 0, got {tolerance}")
    if stopping not in get_args(Stopping):
        raise ValueError(f"stopping must be one of {get_args(Stopping)}, got {stopping!r}")
    objective = _Objective(model, criterion, x, y)
    hessian = _Hessian(objective)
    if not hessian.curved:
        return 0.0
    search = _by_power_iteration if stopping == "change" else _by_residuals
    return search(hessian, objective.draw(generator), iterations, tolerance)


def _by_power_iteration(
    hessian: _Hessian, vector: Parameters, iterations: int, tolerance: float
) -> float:
    """Multiply by the Hessian until the value changes by no more than the relative tolerance."""
    value = 0.0
    for _ in range(iterations):
        length = _length(vector)
        if length == 0:
            return 0.0
        vector = {name: v / length for name, v in vector.items()}
        product = hessian.product(vector)
        new_value = _dot(product, vector)
        has_settled = abs(new_value - value) <= tolerance * abs(new_value)
        value, vector = new_value, product
        if has_settled:
            break
    return value


def _by_residuals(
    hessian: _Hessian, vector: Parameters, iterations: int, tolerance: float
) -> float:
    """Search a growing space for the eigenvalue; the residual of the best vector extends it.

    The value is a Ritz value: an eigenvalue of the Hessian restricted to the space.
    """
    tolerance = max(tolerance, ROUNDING * max(torch.finfo(v.dtype).eps for v in vector.values()))
    basis: list[Parameters] = []
    images: list[Parameters] = []
    value = residual = math.nan
    for _ in range(iterations):
        if len(basis) == MOST_VECTORS:
            _, ritz_weights = _ritz(basis, images)
            kept = ritz_weights[:, :KEPT].T
            basis, images = (
                [_mix(vectors, weights) for weights in kept] for vectors in (basis, images)
            )
        vector = _orthogonal(vector, basis)
        basis.append(vector)
        images.append(hessian.product(vector))
        if not math.isfinite(_length(images[-1])):
            raise FloatingPointError("a product with the Hessian is not finite")
        values, weights = _ritz(basis, images)
        value = float(values[0])
        best, best_image = _mix(basis, weights[:, 0]), _mix(images, weights[:, 0])
        vector = _add(best_image, best, -value)
        residual = _length(vector)
        if residual <= tolerance * abs(value):
            return value
    raise ArithmeticError(
        f"no eigenvalue settled in {iterations} products: {value} has a residual of {residual}, "
        f"tolerance {tolerance}"
    )


def _dot(a: Parameters, b: Parameters) -> float:
    return sum(float((a[name] * b[name]).double().sum()) for name in a)


def _mix(vectors: Sequence[Parameters], weights: Tensor) -> Parameters:
    """Return the weighted sum of vectors."""
    pairs = list(zip(vectors, weights.tolist(), strict=True))
    total = {name: v * pairs[0][1] for name, v in pairs[0][0].items()}
    for vector, weight in pairs[1:]:
        total = _add(total, vector, weight)
    return total


def _orthogonal(vector: Parameters, basis: Sequence[Parameters]) -> Parameters:
    """Return the unit vector along the part of ``vector`` that is orthogonal to the basis."""
    for _ in range(2):  # the first time leaves rounding errors along the basis
        length = _length(vector)
        vector = {name: v / length for name, v in vector.items()}
        for other in basis:
            vector = _add(vector, other, -_dot(vector, other))
    length = _length(vector)
    return {name: v / length for name, v in vector.items()}


def _ritz(basis: Sequence[Parameters], images: Sequence[Parameters]) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues ``(M,)`` of the Hessian within the span of the basis, and the weights.

    Columns of the weights ``(M, M)`` make eigenvectors of the basis; the largest modulus is first.
    ``images`` are the Hessian's products with the basis.
    """
    entries = [[_dot(v, image) for image in images] for v in basis]
    matrix = torch.tensor(entries, dtype=torch.float64, device="cpu")
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    order = values.abs().argsort(descending=True, stable=True)
    return values[order], vectors[:, order]


def gradient_lipschitz(
    model: nn.Module,
    criterion: Criterion,
    x: Any,
    y: Any,
    *,
    radius: float,
    generator: torch.Generator,
    draws: int = 10,
) -> float:
    r"""Estimate the gradient's Lipschitz constant around the weights from below.

    $\max_i\lVert\nabla L(\theta+\delta_i)-\nabla L(\theta)\rVert/\lVert\delta_i\rVert$ over random
    $\delta_i$ of length ``radius``.

    Args:
        model: Any module.
        criterion: Returns per-example losses ``(B,)``.
        x: Inputs, shape ``(B, ...)``.
        y: Targets.
        radius: Length of each $\delta_i$ over all trained parameters, above 0.
        generator: Source of the directions, which are uniform.
        draws: Number of directions, at least 1.

    Returns:
        The largest ratio, at least 0, in units of the loss over squared units of the parameters.

    Raises:
        ValueError: If an option is out of range, there are no inputs or not as many targets, or
            the model has no trained parameter.
        TypeError: If the model is one of ``torch.jit``, a parameter is in half precision, or the
            inputs or targets hold no tensor.
        FloatingPointError: If the loss or its gradient is not finite at a point.
    """
    if not radius > 0 or draws < 1:
        raise ValueError(f"need radius > 0 and draws >= 1, got {radius=}, {draws=}")
    objective = _Objective(model, criterion, x, y)
    before = objective.gradient(objective.start)
    largest = 0.0
    for _ in range(draws):
        direction = objective.draw(generator)
        factor = radius / _length(direction)
        after = objective.gradient(_add(objective.start, direction, factor))
        largest = max(largest, _length(_add(after, before, -1.0)) / radius)
    return largest


def sharpness(
    model: nn.Module,
    criterion: Criterion,
    x: Any,
    y: Any,
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
        steps: Steps of a start, at least 1.
        restarts: Number of starts, at least 1.

    Returns:
        The rise, in units of the loss, at least 0.

    Raises:
        ValueError: If an option is out of range, there are no inputs or not as many targets, or
            the model has no trained parameter or no filter.
        TypeError: If the model is one of ``torch.jit``, a parameter is in half precision, or the
            inputs or targets hold no tensor.
        FloatingPointError: If the loss or its gradient is not finite at a point.
    """
    if not rho > 0 or min(steps, restarts) < 1:
        raise ValueError(f"need rho > 0, steps, restarts >= 1, got {rho=}, {steps=}, {restarts=}")
    objective = _Objective(model, criterion, x, y)
    radii = {n: rho * _filter_norms(p) for n, p in objective.start.items() if p.ndim > 1}
    if not radii:
        raise ValueError("the model has no filters")

    def scaled(direction: Parameters, share: float) -> Parameters:
        """Give each filter of a direction the length ``share`` times its radius."""
        tiny = torch.finfo(torch.float32).tiny  # a direction may be zero for a filter
        return {
            n: share * r * direction[n] / _filter_norms(direction[n]).clamp(min=tiny)
            for n, r in radii.items()
        }

    def moved(delta: Parameters) -> Parameters:
        """Return the parameters with ``delta`` added to the filters."""
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
            # where a radius is 0, shrink is 0 / 0
            delta = {n: torch.where(radii[n] > 0, d / shrink[n], 0.0) for n, d in ahead.items()}
        loss, _ = objective.loss_and_gradient(moved(delta))
        largest = max(largest, loss - before)
    return largest


def _filter_norms(p: Tensor) -> Tensor:
    """Return the norm of each filter, a row of ``p``, shaped to broadcast against ``p``."""
    norms: Tensor = torch.linalg.vector_norm(p.flatten(1), dim=1)
    return norms.view(-1, *[1] * (p.ndim - 1))
