"""Per-example gradients of a layer as products of what goes in and what comes back.

Chapter: notebooks/02_gradient_clustering.ipynb
Reference: Faghri, Duvenaud, Fleet, Ba, "A Study of Gradient Variance in Deep Learning",
arXiv 2007.04532, 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

__all__ = ["Factors", "LayerFactors", "flat_gradients", "gram_matrix", "layer_factors"]

Criterion = Callable[[Any, Any], Tensor]
SUPPORTED = (nn.Linear, nn.Conv2d)
COUPLING = (nn.modules.batchnorm._BatchNorm,)


@dataclass(frozen=True)
class Factors:
    r"""Gradients of one layer for a batch: $\nabla_W\ell_i=\sum_t D_{i,t}A_{i,t}^\top$.

    Attributes:
        x: Inputs of the layer, ``(B, I)`` or ``(B, T, I)``, or ``(B, C, H, W)`` of a convolution.
        z_grad: $\partial\ell_i/\partial z_i$ of the summed loss, in the shape of the output:
            ``(B, O)``, ``(B, T, O)`` or ``(B, O, H, W)``.
        bias: Whether the layer's bias counts, as if a one stood below every $A_{i,t}$.
        convolution: The layer, if it is one.
    """

    x: Tensor
    z_grad: Tensor
    bias: bool
    convolution: nn.Conv2d | None = None

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """B, I (with the one of the bias), O and T."""
        layer, b = self.convolution, len(self.x)
        if layer is None:
            i, o, t = self.x.shape[-1], self.z_grad.shape[-1], self.x[0].numel() // self.x.shape[-1]
        else:
            i, o, t = layer.weight[0].numel(), layer.out_channels, self.z_grad[0, 0].numel()
        return b, i + self.bias, o, t

    def inputs(self) -> Tensor:
        """Return $A$ by output position, ``(B, I, T)``; a convolution's are unfolded."""
        layer = self.convolution
        if layer is None:
            return _by_position(self.x)
        x, padding = _padded(layer, self.x)
        return F.unfold(x, layer.kernel_size, layer.dilation, padding, layer.stride)

    def grads(self) -> Tensor:
        """Return $D$ by output position, ``(B, O, T)``."""
        return _by_position(self.z_grad) if self.convolution is None else self.z_grad.flatten(2)

    def gradient(self) -> Tensor:
        """Return the gradients themselves, ``(B, O, I)``; the bias is the last column."""
        if self.convolution is None:
            weight = torch.bmm(self.grads(), self.inputs().transpose(1, 2))
        else:
            weight = _correlate(self.convolution, self.x, self.z_grad)
        if not self.bias:
            return weight
        return torch.cat([weight, self.grads().sum(2, keepdim=True)], 2)

    def averages(self) -> tuple[Tensor, Tensor]:
        """Return mean inputs ``(B, I)`` and summed gradients ``(B, O)`` over the positions."""
        if self.convolution is None:
            a = self.inputs().mean(2)
        else:
            a = _window_sums(self.convolution, self.x) / self.sizes[3]
        return (F.pad(a, (0, 1), value=1.0) if self.bias else a), self.grads().sum(2)

    def sq_norms(self) -> Tensor:
        """Return squared lengths ``(B,)`` without the gradients: cheaper if T is small."""
        inputs = self.inputs()
        if inputs.shape[2] == 1:
            a = inputs.square().sum((1, 2)) + float(self.bias)
            return a * self.grads().square().sum((1, 2))
        pairs = inputs.transpose(1, 2) @ inputs + float(self.bias)  # (B, T, T)
        grads = self.grads()
        return (pairs * (grads.transpose(1, 2) @ grads)).sum((1, 2))

    def products(self, c: Tensor, d: Tensor) -> Tensor:
        """Return inner products with $d_kc_k^\\top$, ``(B, K)``, without the gradients.

        Args:
            c: ``(K, I)``, with the one of the bias.
            d: ``(K, O)``.
        """
        layer, ones = self.convolution, c[:, -1] if self.bias else None
        c = c[:, :-1] if self.bias else c
        if layer is None:
            terms = F.linear(self.x, c, ones) * F.linear(self.z_grad, d)  # (B, ..., K)
            return terms if terms.ndim == 2 else terms.flatten(1, -2).sum(1)
        x, padding = _padded(layer, self.x)  # the products with A are a convolution with K filters
        filters = c.reshape(len(c), -1, *layer.kernel_size)
        p = F.conv2d(x, filters, ones, layer.stride, padding, layer.dilation)  # (B, K, H, W)
        return (p * F.conv2d(self.z_grad, d[:, :, None, None])).sum((2, 3))

    def rows(self, where: Tensor | slice) -> Factors:
        """Return the factors of some examples of the batch."""
        return Factors(self.x[where], self.z_grad[where], self.bias, self.convolution)


def _by_position(values: Tensor) -> Tensor:
    """Lay out ``(B, F)`` or ``(B, ..., F)`` as ``(B, F, T)``."""
    return (values[:, None] if values.ndim == 2 else values.flatten(1, -2)).transpose(1, 2)


def _padded(layer: nn.Conv2d, x: Tensor) -> tuple[Tensor, Any]:
    """Pad an input where a layer's padding is not plain zeros, and say what is left to pad."""
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        return F.pad(x, layer._reversed_padding_repeated_twice, mode=mode), (0, 0)
    return x, layer.padding


def _output_size(layer: nn.Conv2d, x: Tensor, padding: tuple[int, int]) -> tuple[int, int]:
    sizes = zip(x.shape[2:], padding, layer.dilation, layer.kernel_size, layer.stride, strict=True)
    height, width = ((n + 2 * p - g * (k - 1) - 1) // s + 1 for n, p, g, k, s in sizes)
    return height, width


def _correlate(layer: nn.Conv2d, x: Tensor, grads: Tensor) -> Tensor:
    """Weight gradients ``(B, O, I)`` of every example: one convolution with a group for each."""
    x, padding = _padded(layer, x)
    (b, channels, height, width), o = x.shape, grads.shape[1]
    found: Tensor = conv2d_weight(  # type: ignore[no-untyped-call]
        x.reshape(1, b * channels, height, width),
        (b * o, channels, *layer.kernel_size),
        grads.reshape(1, b * o, *grads.shape[2:]),
        layer.stride,
        padding,
        layer.dilation,
        groups=b,
    )
    return found.reshape(b, o, -1)


def _window_sums(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Unfolded inputs summed over the positions, ``(B, I)``: rows first, then columns."""
    x, padding = _padded(layer, x)
    out = _output_size(layer, x, padding)
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    kernel, step, gap = layer.kernel_size, layer.stride, layer.dilation
    for axis in range(2):  # (B, C, H, W) to (B, C, W, kh) to (B, C, kh, kw)
        starts = range(0, gap[axis] * kernel[axis], gap[axis])
        reach = step[axis] * (out[axis] - 1) + 1
        sums = [x[:, :, s : s + reach : step[axis]].sum(2) for s in starts]
        x = torch.stack(sums, -1)
    return x.flatten(1)


class LayerFactors:
    """Hooks that keep the inputs of linear and convolution layers while a model runs.

    Usable as a context manager; the hooks go when it ends. Neither parameters nor their ``.grad``
    are touched, and no gradient of a parameter is computed.

    Args:
        model: Every module with trainable parameters must be ``nn.Linear`` or ``nn.Conv2d``, or
        layers: names the modules that count (as in ``named_modules``), say without the
            normalisation layers. A trainable parameter outside is left out of all distances.
        bias: Let the biases count; the authors' code leaves them out.

    Raises:
        TypeError: If a layer cannot be factored, by name.
        ValueError: If layers share a weight, a name is unknown, there is no layer, or a BatchNorm
            uses statistics of the batch, where no example has a gradient of its own.

    Example:
        >>> model = nn.Linear(3, 2)
        >>> with LayerFactors(model) as layers:
        ...     losses = model(torch.ones(4, 3)).sum(1)
        ...     factors = layers.factors(losses)
        >>> factors[""].gradient().shape
        torch.Size([4, 2, 4])
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[str] | None = None, *, bias: bool = True
    ) -> None:
        modules = dict(model.named_modules())
        for name, module in modules.items():
            if isinstance(module, COUPLING) and (module.training or module.running_mean is None):
                why = "is in train mode: call model.eval()"
                why = why if module.training else "has no running statistics"
                raise ValueError(
                    "the examples of a batch have no gradients of their own, because "
                    f"{name or 'the model'} ({type(module).__name__}) {why}"
                )
        if layers is None:
            chosen = [name for name, module in modules.items() if _own_trainable(module)]
        else:
            chosen = list(layers)
        if unknown := [name for name in chosen if name not in modules]:
            raise ValueError(f"the model has no layers {unknown}")
        if not chosen:
            raise ValueError("the model has no layer with trainable parameters")
        for name in chosen:
            _check_layer(name, modules[name])
        owners: dict[int, str] = {}
        for name in [*chosen, *modules]:
            for p in modules[name].parameters(recurse=False):
                owner = owners.setdefault(id(p), name)
                if owner != name and owner in chosen:
                    raise ValueError(f"layers {owner!r} and {name!r} share a parameter")
        self.layers = {name: modules[name] for name in chosen}
        self.bias = bias
        self._seen: dict[str, tuple[Tensor, int, Any]] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> LayerFactors:
        self._seen = {}
        for name, module in self.layers.items():
            self._hooks.append(module.register_forward_hook(self._keep(name), with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._seen = [], {}

    def _keep(self, name: str) -> Callable[..., None]:
        def hook(
            module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Tensor
        ) -> None:
            if name in self._seen:
                raise RuntimeError(f"layer {name!r} ran twice in one pass: shared weights")
            if not output.requires_grad:
                raise RuntimeError(f"layer {name!r} ran without gradients: leave no_grad()")
            edge = torch.autograd.graph.get_gradient_edge(output)  # before in-place functions
            x = (inputs[0] if inputs else named["input"]).detach()
            self._seen[name] = (x, x._version, edge)

        return hook

    def factors(self, losses: Tensor) -> dict[str, Factors]:
        """Return the factors of every layer for the batch that has just run.

        Args:
            losses: Of each example, shape ``(B,)``, unreduced.

        Raises:
            ValueError: If the losses are reduced.
            RuntimeError: If a layer did not run or does not count, or its input was overwritten.
        """
        if losses.ndim != 1:
            raise ValueError(
                f"need a loss for each example, shape (B,), got {tuple(losses.shape)}: "
                "reduction='none'"
            )
        if missing := [name for name in self.layers if name not in self._seen]:
            raise RuntimeError(f"layers {missing} did not run: name others, or freeze them")
        edges = [self._seen[name][2] for name in self.layers]
        grads = torch.autograd.grad(losses.sum(), edges, allow_unused=True)
        found = {}
        for (name, module), grad in zip(self.layers.items(), grads, strict=True):
            x, version, _ = self._seen[name]
            if grad is None:
                raise RuntimeError(f"the losses do not depend on layer {name!r}: name others")
            if x._version != version:
                raise RuntimeError(f"the input of layer {name!r} was changed in place after it ran")
            if len(x) != len(losses):
                raise ValueError(f"layer {name!r} saw {len(x)} rows for {len(losses)} losses")
            bias = self.bias and module.bias is not None and bool(module.bias.requires_grad)
            convolution = module if isinstance(module, nn.Conv2d) else None
            found[name] = Factors(x, grad, bias, convolution)
        return found


def _own_trainable(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters(recurse=False))


def _check_layer(name: str, module: nn.Module) -> None:
    kind = type(module).__name__
    if not isinstance(module, SUPPORTED):
        raise TypeError(
            f"layer {name!r} ({kind}) has no factors, only Linear and Conv2d have: pass "
            "layers=[...] to leave it out of the clustering"
        )
    if isinstance(module, nn.Conv2d) and module.groups != 1:
        raise TypeError(f"layer {name!r} ({kind}) has groups={module.groups}, only 1 is supported")
    if not module.weight.requires_grad:
        raise ValueError(f"the weight of layer {name!r} is frozen")


def layer_factors(
    model: nn.Module,
    criterion: Criterion,
    x: Any,
    y: Any,
    *,
    layers: Sequence[str] | None = None,
    bias: bool = True,
) -> dict[str, Factors]:
    """Run a batch forward and back, and return its factors.

    Args:
        model: On the device of ``x``; its mode is the caller's.
        criterion: Returns per-example losses ``(B,)``.
        x: Inputs, ``(B, ...)``.
        y: Targets, ``(B, ...)``.
        layers: See ``LayerFactors``.
        bias: See ``LayerFactors``.
    """
    with LayerFactors(model, layers, bias=bias) as hooks, torch.enable_grad():
        return hooks.factors(criterion(model(x), y))


def flat_gradients(factors: Mapping[str, Factors]) -> Tensor:
    """Return per-example gradients ``(B, d)``: layer by layer, the weight and then the bias."""
    parts = []
    for layer in factors.values():
        gradient = layer.gradient()  # (B, O, I)
        if layer.bias:
            parts += [gradient[:, :, :-1].flatten(1), gradient[:, :, -1]]
        else:
            parts.append(gradient.flatten(1))
    return torch.cat(parts, 1)


def gram_matrix(first: Mapping[str, Factors], second: Mapping[str, Factors]) -> Tensor:
    """Return the inner products of the gradients of two batches, ``(B1, B2)``, in float64.

    Where a layer has one position no gradient is made: $(A A^\\top+1)\\circ(D D^\\top)$.
    """
    total: Tensor | None = None
    for name, one in first.items():
        other = second[name]
        if one.x.ndim == 2:
            a = one.x @ other.x.T + float(one.bias)
            part = a * (one.z_grad @ other.z_grad.T)
        else:
            part = one.gradient().flatten(1) @ other.gradient().flatten(1).T
        total = part.double() if total is None else total + part
    if total is None:
        raise ValueError("no layers")
    return total
