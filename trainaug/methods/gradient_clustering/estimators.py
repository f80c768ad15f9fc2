r"""Estimates of the mean gradient: uniform batches, strata and SVRG; and per-example gradients.

An estimate is a flat vector, in the order of the trainable parameters; it estimates the gradient of
the mean loss over the data. The model is not touched: neither ``.grad`` nor its mode or parameters.

Chapter: notebooks/02_gradient_clustering.ipynb
Reference: Faghri, Duvenaud, Fleet, Ba, "A Study of Gradient Variance in Deep Learning",
arXiv 2007.04532, 2020; Johnson and Zhang, NeurIPS 2013, for SVRG.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sized
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from trainaug.checks import widened
from trainaug.structures import (
    StateDict,
    eagerly,
    full_precision,
    map_tensors,
    model_losses,
    num_rows,
    take_rows,
    unwrapped,
)

__all__ = ["Data", "GradientEstimator", "SGEstimator", "SVRGEstimator"]
__all__ += ["StratifiedEstimator", "per_example_gradients"]

Criterion = Callable[[Any, Any], Tensor]
Values = dict[str, Tensor]
MOST_PARTS = 64  # at most so many gradients of chunks are kept before they are summed


class Data(Sized, Protocol):
    """Data that give ``(x, y, index)`` for a tensor of indices; ``x`` and ``y`` may be nested."""

    def __getitem__(self, index: Tensor, /) -> tuple[Any, Any, Tensor]: ...


class GradientEstimator(Protocol):
    """An unbiased estimate of the mean gradient, with counters of its cost.

    Attributes:
        backward_examples: Examples backpropagated so far to draw samples.
        refresh_examples: Examples backpropagated so far to prepare the estimate.
    """

    backward_examples: int
    refresh_examples: int

    def refresh(self, model: nn.Module) -> None:
        """Renew what the estimate stores about the model, such as SVRG's snapshot.

        Args:
            model: The model at its present parameters.
        """

    def sample(self, model: nn.Module, generator: torch.Generator) -> Tensor:
        """Return one independent estimate, ``(d,)``, d the number of trainable parameters.

        Args:
            model: The model whose gradient is estimated.
            generator: Source of the draws.
        """


def _trainable(model: nn.Module) -> Values:
    """Return the trainable parameters by name; raise if single examples have no gradients."""
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"{type(model).__name__} of torch.jit: give the model it was made from")
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (
            module.training or module.running_mean is None
        ):
            kind = f"{name or 'the model'} ({type(module).__name__})"
            raise ValueError(f"{kind} uses statistics of the batch: call model.eval()")
    named: Values = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not named:
        raise ValueError("the model has no trainable parameter")
    return named


def _check_losses(losses: Tensor, b: int) -> Tensor:
    """Return the losses; raise a ValueError unless they are unreduced, ``(b,)``."""
    if losses.shape != (b,):
        raise ValueError(f"need losses of shape {(b,)}, unreduced, got {tuple(losses.shape)}")
    return losses


def per_example_gradients(
    model: nn.Module, criterion: Criterion, x: Any, y: Any, chunk_size: int | None = None
) -> Tensor:
    """Return the gradient of every example's loss, d being the number of trainable parameters.

    Uses ``torch.func.vmap``; if an operation of the model does not support it, one example is
    backpropagated at a time.

    Args:
        model: May have any layers; compiled parts run uncompiled.
        criterion: ``criterion(model(x), y)`` gives per-example losses ``(B,)``.
        x: Inputs, ``(B, ...)``, or tuples, lists and mappings of such.
        y: Targets, in the same way.
        chunk_size: Examples processed at a time, to bound the memory; by default all.

    Returns:
        Shape ``(B, d)``, in the order of the trainable parameters.

    Raises:
        ValueError: If losses are reduced, or a BatchNorm uses statistics of the batch.
        TypeError: If the model is one of ``torch.jit``, or a batch has another form.
        RuntimeError: If the model draws random numbers, as dropout does.
        FloatingPointError: If a gradient is not finite, naming an example.
    """
    b = num_rows(x)
    if b == 0 or b != num_rows(y):
        raise ValueError(f"need as many inputs as targets, got {b} and {num_rows(y)}")
    model = unwrapped(model)
    parameters = {name: p.detach() for name, p in _trainable(model).items()}
    device = next(iter(parameters.values())).device
    x, y = (map_tensors(lambda t: t.to(device), v) for v in (x, y))
    with torch.random.fork_rng([device] if device.type == "cuda" else []), eagerly():
        state = _random_state(device)
        try:
            flat = _by_vmap(model, criterion, parameters, x, y, chunk_size)
        except RuntimeError as error:
            if "random" in str(error):  # vmap's own refusal of random operations
                raise
            flat = _one_by_one(model, criterion, x, y)
        if not torch.equal(_random_state(device), state):
            raise RuntimeError("the model draws random numbers: call model.eval()")
    finite = flat.isfinite().all(1)
    if not finite.all():
        raise FloatingPointError(f"gradient of example {int((~finite).nonzero()[0])} is not finite")
    return flat


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _by_vmap(
    model: nn.Module,
    criterion: Criterion,
    parameters: Values,
    x: Any,
    y: Any,
    chunk_size: int | None,
) -> Tensor:
    """Return per-example gradients ``(B, d)`` at the given parameters, by ``vmap``."""
    tensors: list[Tensor] = []

    def collect(t: Tensor) -> Tensor:
        tensors.append(t)
        return t

    map_tensors(collect, (x, y))  # vmap takes a flat list of tensors, so x and y are taken apart

    def loss(parameters: Values, *parts: Tensor) -> Tensor:
        rows = iter(parts)
        x_row, y_row = map_tensors(lambda _: next(rows)[None], (x, y))  # ... and rebuilt here
        return _check_losses(model_losses(model, criterion, x_row, y_row, parameters), 1)[0]

    in_dims = (None, *[0] * len(tensors))
    gradients = vmap(grad(loss), in_dims, chunk_size=chunk_size)(parameters, *tensors)
    return torch.cat([gradients[name].flatten(1) for name in parameters], 1)  # (B, d)


def _one_by_one(model: nn.Module, criterion: Criterion, x: Any, y: Any) -> Tensor:
    """Return per-example gradients ``(B, d)`` by one backward pass for each example."""
    parameters = list(_trainable(model).values())
    rows = []
    for i in torch.split(torch.arange(num_rows(x), device="cpu"), 1):
        with torch.enable_grad():
            losses = model_losses(model, criterion, take_rows(x, i), take_rows(y, i))
            losses = _check_losses(losses, 1)
        with full_precision(losses.device):
            parts = torch.autograd.grad(losses.sum(), parameters, materialize_grads=True)
        rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows)


class _Estimator(ABC):
    """Base of the estimators: the data, the counters, and the gradient of given draws."""

    _kept: tuple[str, ...] = ("backward_examples", "refresh_examples")  # the state's attributes

    def __init__(self, criterion: Criterion, dataset: Data) -> None:
        self.criterion, self.dataset = criterion, dataset
        self.backward_examples = self.refresh_examples = 0

    def refresh(self, model: nn.Module) -> None:  # noqa: B027
        """Do nothing: this estimate stores nothing about the model.

        Args:
            model: Not used.
        """

    @abstractmethod
    def draw(self, generator: torch.Generator) -> Tensor:
        """Return the indices of one sample's examples, int64 on the CPU.

        Args:
            generator: Source of the draws.
        """

    def weights(self) -> Tensor | None:
        """Return the weight of each draw, or ``None`` if the estimate is their mean."""
        return None

    def estimate(self, model: nn.Module, indices: Tensor) -> Tensor:
        """Return the estimate from given draws, ``(d,)``.

        Args:
            model: The model whose gradient is estimated; its mode is the caller's.
            indices: What `draw` returned, integers on the CPU.

        Raises:
            ValueError: If losses are reduced, a BatchNorm uses statistics of the batch, or no
                parameter is trainable.
            TypeError: If the model is one of ``torch.jit``, or the data have another form.
            FloatingPointError: If the gradient is not finite.
        """
        self.backward_examples += len(indices)
        return self._gradient(model, indices, self.weights())

    def sample(self, model: nn.Module, generator: torch.Generator) -> Tensor:
        """Return one independent estimate, ``(d,)``.

        Args:
            model: As in `estimate`, which may raise its errors.
            generator: Source of the draws.
        """
        return self.estimate(model, self.draw(generator))

    def _gradient(
        self, model: nn.Module, indices: Tensor, weights: Tensor | None = None, *, at: Any = None
    ) -> Tensor:
        """Return the gradient of the weighted sum of some examples' losses, or of their mean.

        With ``at``, parameters and buffers by name, the model runs with these in place of its own.
        """
        model = unwrapped(model)
        values = _trainable(model)
        if at is not None:
            values = {name: at[name].detach().requires_grad_() for name in values}
        inputs = list(values.values())
        batch = self.dataset[indices]
        if isinstance(batch, Mapping):
            raise TypeError(f"data must give (x, y, index), got a mapping of {[*batch]}")
        x, y, _ = batch
        device = inputs[0].device
        x, y = (map_tensors(lambda t: t.to(device), v) for v in (x, y))
        with torch.enable_grad(), eagerly():
            tensors = None if at is None else {**at, **values}
            losses = model_losses(model, self.criterion, x, y, tensors)
            losses = widened(_check_losses(losses, len(indices)))
            with full_precision(losses.device):
                loss = losses.mean() if weights is None else losses @ weights.to(losses)
                parts = torch.autograd.grad(loss, inputs, materialize_grads=True)
        flat = torch.cat([part.flatten() for part in parts])
        if not flat.isfinite().all():
            raise FloatingPointError(f"gradient is not finite; examples {indices.tolist()[:20]}")
        return flat

    def state_dict(self) -> StateDict:
        """Return the counters and what the estimate stores."""
        return {name: copy.deepcopy(getattr(self, name)) for name in self._kept}

    def load_state_dict(self, state: StateDict) -> None:
        """Continue from ``state``."""
        for name in self._kept:
            setattr(self, name, copy.deepcopy(state[name]))


class SGEstimator(_Estimator):
    """The mean over B uniform draws, called SG-B; for SG-2B double the batch size.

    Args:
        criterion: ``criterion(model(x), y)`` gives per-example losses ``(B,)``.
        dataset: ``dataset[indices]`` gives ``(x, y, index)``.
        batch_size: B, at least 1, and at most N without replacement.
        replacement: Whether the draws of a batch are independent.

    Raises:
        ValueError: If there is no such batch. For errors while sampling see `estimate`.
    """

    def __init__(
        self, criterion: Criterion, dataset: Data, batch_size: int, *, replacement: bool = True
    ) -> None:
        super().__init__(criterion, dataset)
        n = len(dataset)
        if batch_size < 1 or n == 0 or (not replacement and batch_size > n):
            raise ValueError(f"no batch of {batch_size} among {n} examples, {replacement=}")
        self.batch_size, self.replacement = batch_size, replacement

    def draw(self, generator: torch.Generator) -> Tensor:
        """Return the indices of a batch, ``(B,)`` int64 in [0, N), on the CPU.

        Args:
            generator: Source of the draws.
        """
        n, g = len(self.dataset), generator
        if self.replacement:
            return torch.randint(n, (self.batch_size,), generator=g, device=g.device).cpu()
        return torch.randperm(n, generator=g, device=g.device)[: self.batch_size].cpu()


class SVRGEstimator(SGEstimator):
    r"""$\mu-\nabla\ell_{\mathcal B}(\tilde\theta)+\nabla\ell_{\mathcal B}(\theta)$ (SVRG).

    ``refresh`` stores the snapshot $\tilde\theta$ with the buffers, and the full mean gradient
    $\mu$ there. Both gradients of a sample use the same draws and dropout masks, and both count in
    ``backward_examples``. Otherwise it is as ``SGEstimator``.

    Args:
        criterion, dataset, batch_size, replacement: As for ``SGEstimator``, with its errors.

    Raises:
        RuntimeError: While sampling, before the first ``refresh``.
    """

    _kept = (*_Estimator._kept, "_snapshot", "_mean")
    _snapshot: Values | None = None
    _mean: Tensor | None = None
    chunk_size = 1000

    def refresh(self, model: nn.Module) -> None:
        r"""Store the parameters, the buffers and the full mean gradient; backpropagate N examples.

        Args:
            model: The model at $\tilde\theta$.

        Raises:
            ValueError: If losses are reduced, a BatchNorm uses statistics of the batch, or no
                parameter is trainable.
            TypeError: If the model is one of ``torch.jit``, or the data have another form.
            FloatingPointError: If a gradient is not finite.
        """
        n = len(self.dataset)
        parts: list[Tensor] = []
        for chunk in torch.split(torch.arange(n, device="cpu"), self.chunk_size):
            if len(parts) == MOST_PARTS:
                parts = [torch.stack(parts).sum(0)]
            parts.append(self._gradient(model, chunk) * (len(chunk) / n))
        self._mean = torch.stack(parts).sum(0)
        model = unwrapped(model)
        tensors = [*model.named_parameters(), *model.named_buffers()]
        self._snapshot = {name: t.detach().clone() for name, t in tensors}
        self.refresh_examples += n

    def estimate(self, model: nn.Module, indices: Tensor) -> Tensor:
        r"""Return the estimate from given draws, ``(d,)``.

        Args:
            model: The model at $\theta$.
            indices: Examples of the batch $\mathcal B$, ``(B,)``, integers on the CPU.

        Raises:
            RuntimeError: If ``refresh`` has not been called.
            ValueError: If losses are reduced, a BatchNorm uses statistics of the batch, or no
                parameter is trainable.
            TypeError: If the model is one of ``torch.jit``, or the data have another form.
            FloatingPointError: If one of the two gradients is not finite.
        """
        if self._snapshot is None or self._mean is None:
            raise RuntimeError("no snapshot: call refresh(model) first")
        self.backward_examples += len(indices)
        cuda = [p.device for p in model.parameters() if p.is_cuda][:1]
        with torch.random.fork_rng(cuda):  # the second pass draws the same masks
            before = self._gradient(model, indices, at=self._snapshot)
        return self._mean - before + super().estimate(model, indices)


class StratifiedEstimator(_Estimator):
    r"""Uniform draws from every stratum, weighted by its size: $\frac1N\sum_kN_kg_{j_k}$.

    $N_k$ is the size of stratum k, and $j_k$ the example drawn from it.

    Args:
        criterion, dataset: As in ``SGEstimator``, with its errors.
        assign: Stratum of each example, ``(N,)`` integer; labels need not be consecutive.
        draws: Independent draws from each of the M strata, at least 1. A sample has ``draws * M``
            examples.

    Raises:
        ValueError: If ``draws`` is below 1, there are no data, or ``assign`` is not one integer
            for each of them. For errors while sampling see `estimate`.
    """

    _kept = (*_Estimator._kept, "_order", "_sizes")

    def __init__(
        self, criterion: Criterion, dataset: Data, assign: Tensor, *, draws: int = 1
    ) -> None:
        super().__init__(criterion, dataset)
        if draws < 1:
            raise ValueError(f"draws must be >= 1, got {draws}")
        self.draws = draws
        self.set_clusters(assign)

    def set_clusters(self, assign: Tensor, *, examples: int = 0) -> None:
        """Replace the strata.

        Args:
            assign: Stratum of each example, ``(N,)`` integer; labels need not be consecutive.
            examples: How many examples were backpropagated to find these strata; they are added to
                ``refresh_examples``.

        Raises:
            ValueError: If there are no data, or ``assign`` is not one integer for each of them.
        """
        n = len(self.dataset)
        if n == 0 or assign.shape != (n,) or assign.is_floating_point():
            raise ValueError(f"need {n} integer labels, got {assign.dtype} {tuple(assign.shape)}")
        self._order = assign.cpu().argsort(stable=True)  # (N,) examples, stratum by stratum
        self._sizes = torch.unique(assign.cpu(), return_counts=True)[1]  # (M,)
        self.refresh_examples += examples

    def draw(self, generator: torch.Generator) -> Tensor:
        """Return the indices of a sample, one draw from each stratum in turn, with replacement.

        They are ``(draws * M,)`` int64 on the CPU.

        Args:
            generator: Source of the draws.
        """
        g = generator
        shape = (self.draws, len(self._sizes))
        # With numbers this large, the remainder is uniform but for a bias below N / 2^62.
        numbers = torch.randint(1 << 62, shape, generator=g, device=g.device).cpu()
        starts = self._sizes.cumsum(0) - self._sizes  # (M,)
        positions: Tensor = starts + numbers % self._sizes  # (draws, M)
        return self._order[positions.flatten()]

    def weights(self) -> Tensor:
        """Return the weight of each draw, ``(draws * M,)`` float64; they sum to one."""
        return torch.cat([self._sizes.double() / (len(self._order) * self.draws)] * self.draws)
