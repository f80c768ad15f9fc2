"""Cluster centres in gradient space, of rank one in each layer, and the distances to them.

Chapter: notebooks/02_gradient_clustering.ipynb
Reference: Faghri, Duvenaud, Fleet, Ba, "A Study of Gradient Variance in Deep Learning",
arXiv 2007.04532, 2020; the counted costs follow the authors' code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from trainaug.methods.gradient_clustering.factors import Factors
from trainaug.structures import StateDict, full_precision

__all__ = ["CenterKind", "GradientCenters", "Route", "choose_route", "route_costs"]

CenterKind = Literal["means", "svd", "full"]
Route = Literal["factored", "mixed", "materialised"]


BLOCK = 1 << 20  # at most so many gradient entries are in memory at a time
MOVE = 32  # cost of copying one number while unfolding, in multiply-adds
ROUNDING = 8  # a distance below so many units in the last place of its terms is set to zero
LARGE = 0.5  # cost of a multiply-add in a single large product; in many small products it is 1


def route_costs(b: int, k: int, i: int, o: int, t: int) -> dict[Route, float]:
    """Count the multiply-adds that the distances of one layer cost on each of three routes.

    A distance needs the gradient's length and its product with the centre. *factored* computes
    both from the factors, *materialised* both from the gradient itself, and *mixed* only the
    length from the gradient. Products with the centres are single large products or convolutions;
    their multiply-adds count half.

    Args:
        b: Number of examples in the batch.
        k: Number of centres.
        i: Length of the (unfolded) input at one position.
        o: Length of the output gradient at one position.
        t: Number of output positions.

    Returns:
        Multiply-adds by route. Forming one gradient counts as ``i * o * (t + 1)``.
    """
    products = k * b * t * (i + o + 1) * LARGE
    lengths = b * (i + o) if t == 1 else b * t * t * (i + o + 1) + MOVE * b * i * t
    make = b * i * o * (t + 1)
    return {
        "factored": products + lengths,
        "mixed": products + make,
        "materialised": make + k * b * i * o * LARGE,
    }


def choose_route(b: int, k: int, i: int, o: int, t: int) -> Route:
    """Return the cheapest route by `route_costs`; if several are equally cheap, the first.

    Args:
        b, k, i, o, t: Sizes of the layer, as in `route_costs`.
    """
    costs = route_costs(b, k, i, o, t)
    return min(costs, key=lambda route: costs[route])


class GradientCenters:
    r"""K centres $C_k=d_kc_k^\top$ for each layer, and the sums that give the next centres.

    Args:
        num_clusters: K, at least 1.
        kind: ``means``: $c_k$ and $d_k$ are the means of the factors, as in the paper; their
            product is neither the mean gradient nor its best rank-one approximation. ``svd``:
            that best approximation. ``full``: the mean gradient itself. The last two keep
            ``K * I * O`` numbers per layer.

    Raises:
        ValueError: If a setting is out of range.
    """

    def __init__(self, num_clusters: int, kind: CenterKind = "means") -> None:
        if num_clusters < 1:
            raise ValueError(f"num_clusters must be >= 1, got {num_clusters}")
        if kind not in get_args(CenterKind):
            raise ValueError(f"kind must be one of {get_args(CenterKind)}, got {kind!r}")
        self.num_clusters, self.kind = num_clusters, kind
        # By layer: c (K, I) and d (K, O), or for full centres the gradients (K, O, I).
        self.centers: dict[str, tuple[Tensor, ...]] = {}
        # By layer, sums over the examples that `add` has taken. Slots 2k and 2k + 1 belong to the
        # two halves of cluster k, so that a cluster can be split without another pass.
        self._sums: dict[str, tuple[Tensor, ...]] = {}
        self._counts = torch.zeros(2 * num_clusters, dtype=torch.int64, device="cpu")

    # --- distances --------------------------------------------------------------------------------

    def sq_distances(self, factors: Mapping[str, Factors]) -> Tensor:
        r"""Return $\lVert C_k-g_i\rVert^2$ summed over the layers, ``(B, K)``, at least 0.

        Each layer takes its cheapest route (``choose_route``). The terms are added in float64
        (float32 on MPS, which has no float64), because they cancel near a centre. A remainder that
        small is rounding and is set to zero: multiplied by the growing counts it would spread
        identical examples over identical centres.

        Args:
            factors: Factors of B examples, by layer.

        Raises:
            ValueError: If the layers are not those of the centres, or there are no centres yet.
        """
        if factors.keys() != self.centers.keys():
            raise ValueError(f"centres of {[*self.centers]}, gradients of {[*factors]}")
        with full_precision(next(iter(factors.values())).x.device):
            parts = [self._layer_distances(layer, self.centers[n]) for n, layer in factors.items()]
        total, scale = (torch.stack(p).sum(0) for p in zip(*parts, strict=True))
        precision = torch.finfo(next(iter(self.centers.values()))[0].dtype).eps
        return total.masked_fill_(total < ROUNDING * precision * scale, 0.0)

    def _layer_distances(self, layer: Factors, center: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Return squared distances ``(B, K)`` and the size ``(B, K)`` of the terms that cancel."""
        center_lengths = _wide(center[0].flatten(1).square().sum(1))  # (K,) squared
        if self.kind != "full":  # the squared length of d c^T is that of c times that of d
            center_lengths = center_lengths * _wide(center[1].square().sum(1))
        route: Route = "materialised"
        if self.kind != "full":
            b, i, o, t = layer.sizes
            route = choose_route(b, self.num_clusters, i, o, t)
        if route == "factored":
            lengths, products = layer.sq_norms(), layer.products(*center)
        elif route == "mixed":
            lengths, _ = self._materialised(layer, None)
            products = layer.products(*center)
        else:
            lengths, products = self._materialised(layer, center)
        scale = _wide(lengths)[:, None] + center_lengths  # (B, K)
        return scale - 2 * _wide(products), scale

    def _materialised(
        self, layer: Factors, center: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, Tensor]:
        """Form the gradients; return their squared lengths ``(B,)`` and products with the centres.

        The products have shape ``(B, K)``. Without ``center`` the lengths stand in their place.
        """
        b, i, o, _ = layer.sizes
        step = max(1, BLOCK // (i * o))  # small enough for the cache
        lengths, products = [], []
        for start in range(0, b, step):
            gradient = layer.rows(slice(start, start + step)).gradient()
            if center is not None and self.kind == "full":
                products.append(gradient.flatten(1) @ center[0].flatten(1).T)
            elif center is not None:
                c, d = center
                products.append(((gradient @ c.T) * d.T).sum(1))
            lengths.append(gradient.square_().sum((1, 2)))  # in place: not used again
        return torch.cat(lengths), torch.cat(products or lengths)

    # --- updates ----------------------------------------------------------------------------------

    def append(self, factors: Mapping[str, Factors]) -> None:
        """Append one initial centre for each example of a batch, on the gradient of that example.

        Args:
            factors: Factors of these examples, by layer. The calls must add up to K examples.
        """
        for name, layer in factors.items():
            new = self._centers_on(layer)
            if name in self.centers:
                pairs = zip(self.centers[name], new, strict=True)
                new = tuple(torch.cat(pair) for pair in pairs)
            self.centers[name] = new

    def _centers_on(self, layer: Factors) -> tuple[Tensor, ...]:
        """Return one centre for each example, on its gradient, in the form of ``self.centers``."""
        if self.kind == "means":
            return layer.averages()
        return self._from_means((layer.gradient(),))

    def add(self, factors: Mapping[str, Factors], assign: Tensor, half: Tensor) -> None:
        """Add a batch to the sums from which `update` computes the next centres.

        Args:
            factors: Factors of the batch, by layer.
            assign: Cluster of each example, ``(B,)``.
            half: Which half of its cluster an example is in, 0 or 1, ``(B,)``. With it, `update`
                can split a cluster without another pass.
        """
        slots = 2 * assign + half.to(assign.device)
        self._counts += torch.bincount(slots, minlength=2 * self.num_clusters).cpu()
        for name, layer in factors.items():
            parts = layer.averages() if self.kind == "means" else (layer.gradient(),)
            if name not in self._sums:
                self._sums[name] = tuple(
                    v.new_zeros(2 * self.num_clusters, *v.shape[1:]) for v in parts
                )
            for total, values in zip(self._sums[name], parts, strict=True):
                total.index_add_(0, slots, values)

    def update(self, split: tuple[int, int] | None = None) -> Tensor:
        """Move each centre to the mean of the examples added to its cluster, and clear the sums.

        The centre of a cluster without examples does not move.

        Args:
            split: A small cluster and another one, ``(small, other)``: the small one also takes
                the second half of the other.

        Returns:
            Cluster sizes, ``(K,)`` int64 on the CPU.
        """
        k = self.num_clusters
        cluster_of_slot = torch.arange(k, device="cpu").repeat_interleave(2)
        if split is not None:
            small, other = split
            cluster_of_slot[2 * other + 1] = small
        sizes = self._counts.new_zeros(k).index_add_(0, cluster_of_slot, self._counts)
        for name, sums in self._sums.items():
            filled = (sizes > 0).nonzero().squeeze(1).to(sums[0].device)
            means = []
            for total in sums:
                merged = total.new_zeros(k, *total.shape[1:])
                merged.index_add_(0, cluster_of_slot.to(total.device), total)
                count = sizes.to(total).view(-1, *[1] * (total.ndim - 1))
                means.append((merged / count.clamp_min(1))[filled])
            moved = tuple(means) if self.kind == "means" else self._from_means(tuple(means))
            for old, new in zip(self.centers[name], moved, strict=True):
                old[filled] = new
        self.discard()
        return sizes

    def discard(self) -> None:
        """Clear the sums of ``add``: a pass that failed must not count in the next one."""
        self._sums, self._counts = {}, torch.zeros_like(self._counts)

    def _from_means(self, means: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return ``full`` or ``svd`` centres with the given mean gradients."""
        (mean,) = means  # (K, O, I)
        if self.kind == "full":
            return (mean.clone(),)
        u, s, vh = torch.linalg.svd(mean, full_matrices=False)
        return vh[:, 0], s[:, :1] * u[:, :, 0]

    def blend(
        self, factors: Mapping[str, Factors], assign: Tensor, sizes: Tensor, decay: float
    ) -> Tensor:
        r"""Move the centres by one batch, as moving averages (the on-line mode).

        $s_k^{new}=\beta s_k+(1-\beta)n_k$, with $n_k$ the examples of the batch in cluster $k$, and
        $c_k\leftarrow(\beta s_kc_k+(1-\beta)\sum_{a_i=k}A_i)/s_k^{new}$, the same for $d_k$. Only
        ``means`` can be averaged so.

        Args:
            factors: Factors of the batch, by layer.
            assign: Cluster of each example, ``(B,)``.
            sizes: Averaged sizes $s_k$, ``(K,)`` floating.
            decay: $\beta$, in [0, 1).

        Returns:
            The new sizes $s_k^{new}$, ``(K,)``; ``sizes`` is not changed.

        Raises:
            ValueError: If the centres are not ``means``.
        """
        if self.kind != "means":
            raise ValueError(f"on-line centres are means, got kind={self.kind!r}")
        counts = torch.bincount(assign, minlength=self.num_clusters).to(sizes)
        new_sizes = decay * sizes + (1 - decay) * counts
        safe = torch.where(new_sizes > 0, new_sizes, torch.ones_like(new_sizes))
        for name, layer in factors.items():
            for center, values in zip(self.centers[name], layer.averages(), strict=True):
                total = torch.zeros_like(center).index_add_(0, assign, values)
                moved = decay * sizes.to(center)[:, None] * center + (1 - decay) * total
                moved /= safe.to(center)[:, None]
                center.copy_(torch.where((new_sizes > 0)[:, None].to(center.device), moved, center))
        return new_sizes

    def move_to(self, factors: Mapping[str, Factors], cluster: int, row: int) -> None:
        """Put a centre on the gradient of one example of a batch.

        Args:
            factors: Factors of the batch, by layer.
            cluster: Number of the centre, in [0, K).
            row: Row of the example, in [0, B).
        """
        for name, layer in factors.items():
            one = layer.rows(slice(row, row + 1))
            for center, values in zip(self.centers[name], self._centers_on(one), strict=True):
                center[cluster] = values[0]

    def copy_center(self, source: int, target: int) -> None:
        """Move one centre onto another.

        Args:
            source: Number of the centre that stays, in [0, K).
            target: Number of the centre that moves onto it.
        """
        for center in self.centers.values():
            for values in center:
                values[target] = values[source]

    def state_dict(self) -> StateDict:
        """Return the centres; the sums of an unfinished pass are not state."""
        return {name: tuple(v.clone() for v in c) for name, c in self.centers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take centres; if their number or kind differs, raise ValueError and change nothing."""
        parts = 1 if self.kind == "full" else 2
        for name, center in state.items():
            if len(center) != parts or len(center[0]) != self.num_clusters:
                raise ValueError(
                    f"need {self.num_clusters} centres of kind {self.kind!r}, got {len(center)} "
                    f"tensors for {len(center[0])} of layer {name!r}"
                )
        self.centers = {name: tuple(v.clone() for v in c) for name, c in state.items()}


def _wide(values: Tensor) -> Tensor:
    """Return float64, or the values as they are on MPS, which has no float64."""
    return values if values.device.type == "mps" else values.double()
