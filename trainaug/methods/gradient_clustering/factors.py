"""Per-example gradients of a layer as products of layer inputs and output gradients.

Chapter: notebooks/02_gradient_clustering.ipynb
Reference: Faghri, Duvenaud, Fleet, Ba, "A Study of Gradient Variance in Deep Learning",
arXiv 2007.04532, 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight
from torch.nn.utils import parametrize

from trainaug.checks import widened
from trainaug.structures import eagerly, full_precision, model_losses, unwrapped

__all__ = ["Factors", "LayerFactors", "UnsupportedLayerError"]
__all__ += ["flat_gradients", "gram_matrix", "layer_factors"]

Criterion = Callable[[Any, Any], Tensor]
# Layers, and the methods that a subclass must not replace
SUPPORTED = {nn.Linear: ("forward",), nn.Conv2d: ("forward", "_conv_forward")}
COUPLING = (nn.modules.batchnorm._BatchNorm,)  # one example's output depends on the others
GOLDEN = 0.5 * (5**0.5 - 1)  # its multiples spread evenly over the unit interval
# Relative differences from autograd's gradients up to these count as rounding: for half precision,
# elsewhere, and on the CPU by type.
ROUGH, DEFAULT, FINE = 0.06, 1e-2, {torch.float64: 1e-9, torch.float32: 1e-3}


class UnsupportedLayerError(TypeError, ValueError):
    """The per-example gradients of a layer do not follow from its inputs and output gradients."""


@dataclass(frozen=True)
class Factors:
    r"""Gradients of one layer for a batch: $\nabla_W\ell_i=\sum_t D_{i,t}A_{i,t}^\top$.

    $A_{i,t}$ is the input of length I, and $D_{i,t}$ the output gradient of length O, of example i
    at output position t of T. Values in half precision are widened to float32, and no product is
    computed under autocast.

    Attributes:
        x: Inputs of the layer, ``(B, I)`` or ``(B, T, I)``, or ``(B, C, H, W)`` of a convolution.
        z_grad: $\partial\ell_i/\partial z_i$, the gradient of the summed loss at the layer's
            output, in the shape of the output: ``(B, O)``, ``(B, T, O)`` or ``(B, O, H, W)``.
        bias: Whether the layer's bias counts, as if every $A_{i,t}$ ended in a 1.
        convolution: The layer, if it is a convolution.
    """

    x: Tensor
    z_grad: Tensor
    bias: bool
    convolution: nn.Conv2d | None = None

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """B, I (one more if the bias counts), O and T."""
        layer, b = self.convolution, len(self.x)
        if layer is None:
            i, o, t = self.x.shape[-1], self.z_grad.shape[-1], self.x[0].numel() // self.x.shape[-1]
        else:
            i, o, t = layer.weight[0].numel(), layer.out_channels, self.z_grad[0, 0].numel()
        return b, i + self.bias, o, t

    def inputs(self) -> Tensor:
        """Return $A$ by output position, ``(B, I, T)``; the input of a convolution is unfolded."""
        layer = self.convolution
        if layer is None:
            return _by_position(self.x)
        x, padding = _padded(layer, self.x)
        return F.unfold(x, layer.kernel_size, layer.dilation, padding, layer.stride)

    def grads(self) -> Tensor:
        """Return $D$ by output position, ``(B, O, T)``."""
        return _by_position(self.z_grad) if self.convolution is None else self.z_grad.flatten(2)

    def gradient(self) -> Tensor:
        """Return the per-example gradients, ``(B, O, I)``; the bias is the last column."""
        with full_precision(self.x.device):
            if self.convolution is None:
                weight = torch.bmm(self.grads(), self.inputs().transpose(1, 2))
            else:
                weight = _correlate(self.convolution, self.x, self.z_grad)
        if not self.bias:
            return weight
        return torch.cat([weight, self.grads().sum(2, keepdim=True)], 2)

    def total(self) -> tuple[Tensor, Tensor]:
        """Return the summed gradients of the batch: of the weight ``(O, I)``, the bias ``(O,)``."""
        layer = self.convolution
        with full_precision(self.x.device):
            if layer is None:
                grads = self.z_grad.flatten(0, -2)
                return grads.T @ self.x.flatten(0, -2), grads.sum(0)
            x, padding = _padded(layer, self.x)
            weight: Tensor = conv2d_weight(  # type: ignore[no-untyped-call]
                x, layer.weight.shape, self.z_grad, layer.stride, padding, layer.dilation
            )
            return weight.flatten(1), self.z_grad.sum((0, 2, 3))

    def averages(self) -> tuple[Tensor, Tensor]:
        """Return mean inputs ``(B, I)`` and summed gradients ``(B, O)`` over the positions."""
        if self.convolution is None:
            a = self.inputs().mean(2)
        else:
            a = _window_sums(self.convolution, self.x) / self.sizes[3]
        return (F.pad(a, (0, 1), value=1.0) if self.bias else a), self.grads().sum(2)

    def sq_norms(self) -> Tensor:
        """Return the gradients' squared lengths ``(B,)`` without forming them; cheap if T is small.

        The squared length is the sum over positions s, t of the products A_s.A_t times D_s.D_t.
        """
        inputs = self.inputs()
        if inputs.shape[2] == 1:
            a = inputs.square().sum((1, 2)) + float(self.bias)
            return a * self.grads().square().sum((1, 2))
        with full_precision(self.x.device):
            pairs = inputs.transpose(1, 2) @ inputs + float(self.bias)  # (B, T, T)
            grads = self.grads()
            return (pairs * (grads.transpose(1, 2) @ grads)).sum((1, 2))

    def products(self, c: Tensor, d: Tensor) -> Tensor:
        """Return the inner products of the gradients with $d_kc_k^\\top$, ``(B, K)``.

        The gradients are not formed.

        Args:
            c: Shape ``(K, I)``; if the bias counts, its column is the last.
            d: Shape ``(K, O)``.
        """
        with full_precision(self.x.device):
            return self._products(c, d)

    def _products(self, c: Tensor, d: Tensor) -> Tensor:
        """Return the sum over positions t of (A_t.c_k) (D_t.d_k), ``(B, K)``."""
        layer = self.convolution
        c_of_bias = c[:, -1] if self.bias else None
        c = c[:, :-1] if self.bias else c
        if layer is None:
            terms = F.linear(self.x, c, c_of_bias) * F.linear(self.z_grad, d)  # (B, ..., K)
            return terms if terms.ndim == 2 else terms.flatten(1, -2).sum(1)
        x, padding = _padded(layer, self.x)  # the products with A are a convolution with K filters
        filters = c.reshape(len(c), -1, *layer.kernel_size)
        p = F.conv2d(x, filters, c_of_bias, layer.stride, padding, layer.dilation)  # (B, K, H, W)
        return (p * F.conv2d(self.z_grad, d[:, :, None, None])).sum((2, 3))

    def rows(self, where: Tensor | slice) -> Factors:
        """Return the factors of some examples of the batch.

        Args:
            where: Which rows: a slice, integers ``(b,)``, or a mask ``(B,)``.
        """
        return Factors(self.x[where], self.z_grad[where], self.bias, self.convolution)


def _by_position(values: Tensor) -> Tensor:
    """Rearrange ``(B, F)`` or ``(B, ..., F)`` to ``(B, F, T)``."""
    return (values[:, None] if values.ndim == 2 else values.flatten(1, -2)).transpose(1, 2)


def _padded(layer: nn.Conv2d, x: Tensor) -> tuple[Tensor, Any]:
    """Return the input, and the zero padding that the convolution must still do.

    A padding by name or other than by zeros is done here, and then none is left.
    """
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        return F.pad(x, layer._reversed_padding_repeated_twice, mode=mode), (0, 0)
    return x, layer.padding


def _output_size(layer: nn.Conv2d, x: Tensor, padding: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width of a convolution's output."""
    sizes = zip(x.shape[2:], padding, layer.dilation, layer.kernel_size, layer.stride, strict=True)
    height, width = ((n + 2 * p - g * (k - 1) - 1) // s + 1 for n, p, g, k, s in sizes)
    return height, width


def _correlate(layer: nn.Conv2d, x: Tensor, grads: Tensor) -> Tensor:
    """Return every example's weight gradient, ``(B, O, I)``: one call, with a group per example."""
    x, padding = _padded(layer, x)
    (b, channels, height, width), o = x.shape, grads.shape[1]
    gradient: Tensor = conv2d_weight(  # type: ignore[no-untyped-call]
        x.reshape(1, b * channels, height, width),
        (b * o, channels, *layer.kernel_size),
        grads.reshape(1, b * o, *grads.shape[2:]),
        layer.stride,
        padding,
        layer.dilation,
        groups=b,
    )
    return gradient.reshape(b, o, -1)


def _window_sums(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Return the unfolded inputs summed over the positions, ``(B, I)``, without unfolding them.

    Sums over the rows come first, then sums over the columns.
    """
    x, padding = _padded(layer, x)
    output_size = _output_size(layer, x, padding)
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    kernel, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
    for axis in range(2):  # (B, C, H, W) to (B, C, W, kh) to (B, C, kh, kw)
        starts = range(0, dilation[axis] * kernel[axis], dilation[axis])
        reach = stride[axis] * (output_size[axis] - 1) + 1
        sums = [x[:, :, s : s + reach : stride[axis]].sum(2) for s in starts]
        x = torch.stack(sums, -1)
    return x.flatten(1)


class LayerFactors:
    """Hooks that store the inputs of linear and convolution layers while a model runs.

    Use it as a context manager: the hooks are removed at its end, and until then compiled parts run
    uncompiled. Neither parameters nor their ``.grad`` are touched.

    Args:
        model: Unless ``layers`` is given, every module with trainable parameters must be
            ``nn.Linear`` or ``nn.Conv2d``.
        layers: Names of the modules that count (as in ``named_modules``), for example all but the
            normalisation layers. Trainable parameters of other modules are left out of all
            distances. Names are those of the model inside ``DataParallel``, ``torch.compile`` and
            other wrappers.
        bias: Whether the biases count; the authors' code leaves them out.

    Raises:
        UnsupportedLayerError: Both a ``TypeError`` and a ``ValueError``, naming the layer: it
            cannot be factored (another type, a replaced forward, a weight computed from other
            parameters, shared or used twice), or a BatchNorm uses statistics of the batch, so that
            the loss of one example depends on the others.
        ValueError: If a name is unknown, there is no layer, or a weight is frozen.

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
        modules = dict(unwrapped(model).named_modules())
        for name, module in modules.items():
            if isinstance(module, COUPLING) and (module.training or module.running_mean is None):
                if module.training:
                    why = "is in train mode: call model.eval()"
                else:
                    why = "has no running statistics"
                raise UnsupportedLayerError(
                    "the examples of a batch have no gradients of their own, because "
                    f"{name or 'the model'} ({type(module).__name__}) {why}"
                )
        if layers is None:
            # A parametrised layer stands for the modules that compute its weight, once.
            candidates = (_owner(name, modules) for name, m in modules.items() if _own_trainable(m))
            chosen = list(dict.fromkeys(candidates))
        else:
            chosen = list(layers)
        if unknown := [name for name in chosen if name not in modules]:
            raise ValueError(f"the model has no layers {unknown}")
        if not chosen:
            raise ValueError("no layers were named, or none has trainable parameters")
        for name in chosen:
            _check_layer(name, modules)
        first_layer_of: dict[int, str] = {}  # by identity of the parameter
        for name in [*chosen, *modules]:  # chosen layers first, so that they are the first layers
            for p in modules[name].parameters(recurse=False):
                first = first_layer_of.setdefault(id(p), name)
                if first != name and first in chosen:
                    raise UnsupportedLayerError(f"layers {first!r} and {name!r} share a parameter")
        self.layers = {name: modules[name] for name in chosen}
        self.bias = bias
        # By layer: its input, the version of that tensor, and the gradient edge of the output.
        self._seen: dict[str, tuple[Tensor, int, Any]] = {}
        self._stack = ExitStack()
        self._is_listening = False

    def __enter__(self) -> LayerFactors:
        if torch._C._functorch.maybe_current_level() is not None:
            raise UnsupportedLayerError("no layer has factors inside a transform of torch.func")
        self._seen, self._is_listening = {}, True
        self._stack.enter_context(eagerly())
        for name, module in self.layers.items():
            hook = self._keep(name)
            # Runs before all other hooks: one of them may replace the output.
            handle = module.register_forward_hook(hook, prepend=True, with_kwargs=True)
            self._stack.callback(handle.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._seen = {}

    def _keep(self, name: str) -> Callable[..., None]:
        """Return a forward hook that stores the layer's input and where its gradient arrives."""

        def hook(
            module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Tensor
        ) -> None:
            if not self._is_listening:  # activation checkpoints run layers again when going back
                return
            if name in self._seen:
                raise UnsupportedLayerError(f"layer {name!r} ran twice in one pass: shared weights")
            if not output.requires_grad:
                raise RuntimeError(f"layer {name!r} ran without gradients: leave no_grad()")
            # The edge stays that of this output even if the output is changed in place later.
            edge = torch.autograd.graph.get_gradient_edge(output)
            x = (inputs[0] if inputs else named["input"]).detach()
            if x.ndim < 2 or (isinstance(module, nn.Conv2d) and x.ndim != 4):
                raise ValueError(f"the input of layer {name!r} is no batch: {tuple(x.shape)}")
            self._seen[name] = (x, x._version, edge)

        return hook

    def factors(self, losses: Tensor, *, verify: bool = True) -> dict[str, Factors]:
        """Return the factors of every layer for the batch that has just run.

        Args:
            losses: Loss of each example, shape ``(B,)``, unreduced.
            verify: Run a second backward pass, with a different weight on each loss. The examples'
                gradients must scale with these weights, and add up to autograd's gradients of the
                parameters. This detects weights that are also used elsewhere, and examples whose
                losses depend on each other.

        Raises:
            UnsupportedLayerError: If a layer did not run, or ``verify`` finds a difference.
            ValueError: If the losses are reduced.
            RuntimeError: If the losses do not depend on a layer, or its input was overwritten.
        """
        if losses.ndim != 1 or len(losses) == 0:
            raise ValueError(
                f"need a loss for each example, shape (B,), got {tuple(losses.shape)}: "
                "reduction='none'"
            )
        if missing := [name for name in self.layers if name not in self._seen]:
            raise UnsupportedLayerError(
                f"layers {missing} did not run: name others, or freeze them; "
                "a weight that is used without its layer has no factors"
            )
        self._is_listening = False
        edges = [self._seen[name][2] for name in self.layers]
        with full_precision(losses.device):
            grads = torch.autograd.grad(losses.sum(), edges, allow_unused=True, retain_graph=verify)
        factors = {}
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
            factors[name] = Factors(widened(x), widened(grad), bias, convolution)
        if verify:
            self._verify(losses, factors, edges)
        return factors

    def _verify(self, losses: Tensor, factors: Mapping[str, Factors], edges: list[Any]) -> None:
        """Compare the factors with autograd's gradients of weighted losses.

        The weights are powers of two, with which floating-point numbers scale exactly.
        """
        steps = torch.arange(len(losses), device=losses.device, dtype=torch.float32) * GOLDEN
        weights = 2 ** (4 * (steps % 1)).floor()  # (B,) 1, 2, 4 or 8
        layers = self.layers.values()
        layer_weights = [module.weight for module in layers]
        layer_biases = [m.bias for m, f in zip(layers, factors.values(), strict=True) if f.bias]
        with full_precision(losses.device):
            loss = (widened(losses) * weights).sum()
            sources = [*edges, *layer_weights, *layer_biases]
            grads = torch.autograd.grad(loss, sources, allow_unused=True)
        bias_grads = iter(grads[2 * len(edges) :])
        for number, (name, factor) in enumerate(factors.items()):
            weighted, weight_grad = grads[number], grads[len(edges) + number]
            bias_grad = next(bias_grads) if factor.bias else None
            _check_rows(name, factor, weighted, weights)
            _check_sums(name, self._seen[name][0], factor, weighted, (weight_grad, bias_grad))


def _check_rows(name: str, layer: Factors, weighted: Tensor, weights: Tensor) -> None:
    """Raise unless each example's loss has a gradient in its own row of the layer's output only.

    Then weighting the losses multiplies each row of the output gradient by the weight of its loss.
    """
    each = weights.to(layer.z_grad).view(-1, *[1] * (layer.z_grad.ndim - 1))
    expected = each * layer.z_grad
    size = expected.norm()
    smallest = torch.finfo(weighted.dtype).smallest_normal  # below it, scaling is not exact
    rounding = DEFAULT * size + smallest * expected.numel() ** 0.5
    if size.isfinite() and (widened(weighted) - expected).norm() > rounding:
        raise UnsupportedLayerError(
            "the examples of a batch have no gradients of their own: what comes back to layer "
            f"{name!r} in the row of one depends on the losses of others (statistics of the "
            "batch, losses of pairs, or rows that are not the examples)"
        )


def _check_sums(
    name: str, x: Tensor, layer: Factors, weighted: Tensor, grads: tuple[Tensor | None, ...]
) -> None:
    """Raise unless the weighted gradients of the examples add up to those of the parameters."""
    is_half = widened(x) is not x or widened(weighted) is not weighted
    if is_half:
        tolerance = ROUGH
    elif x.device.type == "cpu":
        tolerance = FINE.get(weighted.dtype, DEFAULT)
    else:
        tolerance = DEFAULT
    weighted_factors = Factors(layer.x, widened(weighted), layer.bias, layer.convolution)
    positions = weighted_factors.z_grad.numel() / weighted_factors.sizes[2]  # B * T
    # The usual length of a sum of B * T terms: where it nearly cancels, rounding is still as large.
    scale = layer.x.norm() * weighted_factors.z_grad.norm() / positions**0.5
    for kind, total, grad in zip(("weight", "bias"), weighted_factors.total(), grads, strict=True):
        if kind == "bias" and not layer.bias:
            continue
        expected = torch.zeros_like(total) if grad is None else widened(grad).reshape(total.shape)
        size = total.norm() + expected.norm() + (scale if kind == "weight" else 0.0)
        if size.isfinite() and (total - expected).norm() > tolerance * size:
            raise UnsupportedLayerError(
                f"the {kind} of layer {name!r} has other gradients than its inputs and outputs "
                "give: it is used elsewhere, too, or a hook changes them"
            )


def _own_trainable(module: nn.Module) -> bool:
    """Tell whether a module itself, leaving its children aside, has a trainable parameter."""
    return any(p.requires_grad for p in module.parameters(recurse=False))


def _owner(name: str, modules: Mapping[str, nn.Module]) -> str:
    """Return the layer whose weight a parametrisation computes; any other module as it is."""
    parts = name.split(".")
    for end in range(len(parts)):
        parent = ".".join(parts[:end])
        if parts[end] == "parametrizations" and parametrize.is_parametrized(modules[parent]):
            return parent
    return name


def _check_layer(name: str, modules: Mapping[str, nn.Module]) -> None:
    """Raise, with advice, if a module is not a layer whose gradients can be factored."""
    module = modules[name]
    if name:
        named = f"layer {name!r} ({type(module).__name__})"
    else:
        named = f"the model itself, layer '' ({type(module).__name__}),"
    if why := _why_unsupported(name, modules):
        advice = "pass layers=[...] to leave it out of the clustering"
        usable = [other for other in modules if _can_count(other, modules)]
        if usable:
            dots = ", ..." if usable[3:] else ""
            advice += f"; {len(usable)} layers can count: {usable[:3]}{dots}"
        raise UnsupportedLayerError(f"{named} {why}: {advice}")
    if not module.weight.requires_grad:
        raise ValueError(f"the weight of {named} is frozen")


def _can_count(name: str, modules: Mapping[str, nn.Module]) -> bool:
    """Tell whether ``layers`` may name a module, as far as that is known before it runs."""
    module = modules[name]
    is_supported = _own_trainable(module) and _why_unsupported(name, modules) is None
    return is_supported and bool(module.weight.requires_grad)


def _why_unsupported(name: str, modules: Mapping[str, nn.Module]) -> str | None:
    """Return why the gradients of a module cannot be factored, or None if they can."""
    module = modules[name]
    base = next((kind for kind in SUPPORTED if isinstance(module, kind)), None)
    parameters = dict(module.named_parameters(recurse=False))
    if base is None:
        names = ", ".join(parameters)
        return f"has no factors for {names or 'parameters'}, only Linear and Conv2d have"
    if isinstance(module, nn.Conv2d) and module.groups != 1:
        return f"has groups={module.groups}, only 1 is supported"
    for method in SUPPORTED[base]:
        is_replaced = getattr(type(module), method) is not getattr(base, method)
        if is_replaced or method in vars(module):  # by a subclass, or on this object
            return f"has no factors, because it replaces the method {method} of {base.__name__}"
    others = {"weight", "bias"} ^ {"weight", "bias", *parameters}  # parameters but these two
    if others or any(k not in module._parameters for k in ("weight", "bias")):
        return "has no factors, because its weight or bias is made from others" + (
            f": {', '.join(sorted(others))}" if others else ""
        )
    for key, p in parameters.items():
        if type(p) is not nn.Parameter or p.is_complex():
            return f"has no factors for a {key} of type {type(p).__name__}, {p.dtype}"
    parent = modules.get(name.rpartition(".")[0]) if name else None
    if isinstance(parent, nn.MultiheadAttention):
        return "has no factors, because MultiheadAttention uses its weight without running it"
    return None


def layer_factors(
    model: nn.Module,
    criterion: Criterion,
    x: Any,
    y: Any,
    *,
    layers: Sequence[str] | None = None,
    bias: bool = True,
    verify: bool = True,
) -> dict[str, Factors]:
    """Run a batch forward and backward, and return its factors.

    Args:
        model: On the device of ``x``; its mode is the caller's.
        criterion: Returns per-example losses ``(B,)``.
        x: Inputs, ``(B, ...)``, or what the model takes.
        y: Targets, ``(B, ...)``, or what the criterion takes.
        layers: See ``LayerFactors``, with its errors.
        bias: See ``LayerFactors``.
        verify: See ``LayerFactors.factors``; it costs a backward pass to the parameters.

    Returns:
        The ``Factors`` of the B examples by layer name, on the model's device.

    Raises:
        UnsupportedLayerError: As in ``LayerFactors`` and ``LayerFactors.factors``.
        ValueError: If a layer is unknown or frozen, or the losses are reduced.
        RuntimeError: As in ``LayerFactors.factors``.
    """
    with LayerFactors(model, layers, bias=bias) as hooks, torch.enable_grad():
        return hooks.factors(model_losses(unwrapped(model), criterion, x, y), verify=verify)


def flat_gradients(factors: Mapping[str, Factors]) -> Tensor:
    """Return per-example gradients ``(B, d)``: layer by layer, the weight and then the bias.

    Args:
        factors: Factors of one batch by layer, at least one layer, from ``layer_factors``. Their
            weights and the biases that count make up the d columns.
    """
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

    For a layer with one position no gradient is formed: the products are $(A_1A_2^\\top+1)\\circ
    (D_1D_2^\\top)$, where 1 is added only if the bias counts.

    Args:
        first: Factors of B1 examples, by layer.
        second: Factors of B2 examples, of the same layers.

    Raises:
        ValueError: If ``first`` has no layers.
        KeyError: If ``second`` lacks a layer of ``first``.
    """
    total: Tensor | None = None
    for name, one in first.items():
        other = second[name]
        if one.x.ndim == 2:
            with full_precision(one.x.device):
                a = one.x @ other.x.T + float(one.bias)
                part = a * (one.z_grad @ other.z_grad.T)
        else:
            with full_precision(one.x.device):
                part = one.gradient().flatten(1) @ other.gradient().flatten(1).T
        total = part.double() if total is None else total + part
    if total is None:
        raise ValueError("no layers")
    return total
