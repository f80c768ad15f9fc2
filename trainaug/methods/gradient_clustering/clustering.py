"""Cluster a model's per-example gradients, in passes over the data or on-line, batch by batch.

Chapter: notebooks/02_gradient_clustering.ipynb
Reference: Faghri, Duvenaud, Fleet, Ba, "A Study of Gradient Variance in Deep Learning",
arXiv 2007.04532, 2020, section 3; what the paper leaves open follows the authors' code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from trainaug.checks import indices
from trainaug.methods.gradient_clustering.centers import CenterKind, GradientCenters
from trainaug.methods.gradient_clustering.factors import (
    Criterion,
    Factors,
    gram_matrix,
    layer_factors,
)
from trainaug.methods.gradient_clustering.variance import exact_moves
from trainaug.structures import StateDict, map_tensors, num_rows, take_rows

__all__ = ["Batches", "Clustering", "GradientClustering", "Rule"]

Rule = Literal["running", "frozen", "plain", "exact"]
LARGEST_GRAM = 20_000  # examples whose inner products are kept at once: 3.2 GB
LARGEST_INDEX = 1 << 62  # N is known only after a pass, so a batch alone cannot be checked further


class Batches(Sized, Protocol):
    """A sized iterable: each iteration gives the batches ``(x, y, index)`` of a pass over the data.

    For example a list of batches, or a ``DataLoader`` over a data set that returns the index. ``x``
    and ``y`` are tensors, or tuples, lists and mappings of tensors, as the model and the criterion
    take them.
    """

    def __iter__(self) -> Any: ...


@dataclass(frozen=True)
class Clustering:
    """A partition of the examples.

    It does not depend on the model: a sampler that draws from it stays unbiased when the model
    has moved on; only the gain shrinks as the partition ages.

    Attributes:
        assign: Cluster of each example, ``(N,)`` int64 on the CPU.
        sizes: Examples in each cluster, ``(K,)`` int64; clusters may be empty.
        distortions: For each pass the published objective, the sum over examples of the cluster's
            size times the squared distance to its centre. The variance follows from the true
            means instead, see ``total_distortion``.
    """

    assign: Tensor
    sizes: Tensor
    distortions: tuple[float, ...]


class GradientClustering:
    r"""Weighted k-means of per-example gradients, $\min\sum_iN_{a_i}\lVert C_{a_i}-g_i\rVert^2$.

    A pass runs every batch forward and backward once, without gradients of parameters: it assigns
    examples to the present centres and collects the sums that give the next ones. The model is not
    changed. The first batch of a pass is compared with autograd, see ``LayerFactors.factors``. On
    request `fit` keeps what the first pass has computed.

    Args:
        model: Made of ``nn.Linear`` and ``nn.Conv2d`` layers (see ``LayerFactors``). The caller
            chooses its mode: with dropout on, the gradients are those of one draw of the masks.
        criterion: ``criterion(model(x), y)`` gives per-example losses ``(B,)``. A sum or a mean is
            refused: under a mean the factors would change with the size of the batch.
        num_clusters: K, at most the number of examples.
        generator: Source of the first centres and of the halves of a split.
        rule: What multiplies the distance to a centre. ``running``: one plus the number of
            examples that the cluster has received so far in this pass, as in the authors' code.
            ``frozen``: the cluster's size in the previous pass, as published. This need not lower
            the objective: assignments oscillate, and clusters become empty. ``plain``: one, which
            is k-means. ``exact``: as ``running``, and after the last pass single examples move by
            the exact change of the variance, which needs ``(N, N)`` numbers.
        centers: Kind of the centres, see ``GradientCenters``.
        min_size: Least size of a cluster. After a pass, the smallest cluster below it takes a
            random half of the cluster with the largest distortion. With 0 this never happens.
        layers: See ``LayerFactors``.
        bias: See ``LayerFactors``.

    Raises:
        ValueError: If a setting is out of range, there are fewer examples than clusters, or the
            indices of a pass are not 0 to N - 1, each once.
        TypeError: If a layer has no factors, or a batch has another form.
        FloatingPointError: If a gradient is not finite, naming an example.
        RuntimeError: If a parameter changes during a pass, in whatever way.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion,
        num_clusters: int,
        *,
        generator: torch.Generator,
        rule: Rule = "running",
        centers: CenterKind = "means",
        min_size: int = 1,
        layers: Sequence[str] | None = None,
        bias: bool = True,
    ) -> None:
        if rule not in get_args(Rule):
            raise ValueError(f"rule must be one of {get_args(Rule)}, got {rule!r}")
        if min_size < 0:
            raise ValueError(f"min_size must be >= 0, got {min_size}")
        self.model, self.criterion, self.generator = model, criterion, generator
        self.rule, self.min_size = rule, min_size
        self.centers = GradientCenters(num_clusters, centers)
        self._layers, self._bias = layers, bias
        self._sizes: Tensor | None = None  # of the last pass; on-line, moving averages
        self._is_verified = self._is_passing = False

    @property
    def num_clusters(self) -> int:
        """The number of clusters, K."""
        return self.centers.num_clusters

    def _factors(self, x: Any, y: Any, index: Tensor) -> dict[str, Factors]:
        """Return the factors of a batch by layer; verify them once per pass; refuse NaN."""
        device = next(self.model.parameters()).device
        x, y = (map_tensors(lambda t: t.to(device), v) for v in (x, y))
        verify = not self._is_verified
        factors = layer_factors(
            self.model, self.criterion, x, y, verify=verify, layers=self._layers, bias=self._bias
        )
        self._is_verified = self._is_verified or len(index) > 1  # one example alone shows nothing
        for layer in factors.values():  # a NaN in a centre would spread to all distances
            finite = [v.flatten(1).isfinite().all(1) for v in (layer.x, layer.z_grad)]
            _check_finite(finite[0] & finite[1], index, "the gradient of example {} is not finite")
        return factors

    def _draw(self, high: int, count: int) -> Tensor:
        """Return ``count`` integers in [0, high), on the CPU."""
        g = self.generator
        return torch.randint(high, (count,), generator=g, device=g.device).cpu()

    # --- passes over the data ---------------------------------------------------------------------

    def fit(self, batches: Batches, num_iterations: int = 10, *, keep_bytes: int = 0) -> Clustering:
        """Assign and update alternately; another call continues from the centres of the last one.

        Args:
            batches: Sized, with the same examples each time it is iterated. Their order matters
                for the first centres, and for rules whose counts grow during the pass.
            num_iterations: Passes, at least 1; the authors use 10, and 3 for ImageNet.
            keep_bytes: Most memory, in bytes, for factors that are kept until the last pass, with
                copies of their batches; by default none are kept. A batch runs through the model
                only once if its factors are kept. It runs in every pass, as by default, if they do
                not fit, if its inputs or targets are not single tensors or have changed, if the
                model drew from torch's generators (dropout), and on devices other than CPU and
                CUDA. Set it only if model, criterion and hooks do the same in every pass.

        Returns:
            The partition of the last pass, after its split and, with ``exact``, after the moves;
            and the distortion of every pass, measured before either.

        Raises:
            ValueError: If ``num_iterations`` is below 1 or ``keep_bytes`` below 0, there are no
                batches or fewer examples than clusters, the indices of a pass are not 0 to N - 1,
                each once, or there are more than 20 000 examples for ``exact``.
            TypeError: If a layer has no factors, or a batch has another form.
            FloatingPointError: If a gradient or a squared distance is not finite.
            RuntimeError: If a parameter changes during a pass.
        """
        if num_iterations < 1:
            raise ValueError(f"num_iterations must be >= 1, got {num_iterations}")
        if keep_bytes < 0:
            raise ValueError(f"keep_bytes must be >= 0, got {keep_bytes}")
        if not self.centers.centers:
            self._begin(batches)
        distortions = []
        kept = _KeptFactors(keep_bytes if num_iterations > 1 else 0)
        for _ in range(num_iterations):
            clustering = self._pass(batches, learn=True, kept=kept)
            distortions.append(clustering.distortions[0])
        if self.rule == "exact":
            clustering = self._polish(batches, clustering)
        return Clustering(clustering.assign, clustering.sizes, tuple(distortions))

    def assign(self, batches: Batches) -> Clustering:
        """Assign every example to the present centres, in one pass; on-line, this is the refresh.

        Args:
            batches: As in `fit`.

        Returns:
            The partition and the distortion of this pass. No cluster is split, and with ``exact``
            no example is moved afterwards.

        Raises:
            ValueError: If there are no centres yet, no batches, or the indices are not 0 to N - 1,
                each once.
            TypeError: If a layer has no factors, or a batch has another form.
            FloatingPointError: If a gradient or a squared distance is not finite.
            RuntimeError: If a parameter changes during the pass.
        """
        if not self.centers.centers:
            raise ValueError("there are no centres yet: call fit or observe first")
        return self._pass(batches, learn=False, kept=_KeptFactors(0))

    def _begin(self, batches: Batches) -> None:
        """Put the centres on K examples, spread evenly over the batches and random within them."""
        k, taken = self.num_clusters, 0
        centers = type(self.centers)(k, self.centers.kind)
        orders: list[Tensor] = []  # for each batch, the rows not taken yet, in random order
        for sweep in range(2):  # the second is needed only if the last batches were too small
            for number, batch in enumerate(batches):
                x, y, index = _parts(batch)
                if sweep == 0:
                    g = self.generator
                    orders.append(torch.randperm(len(index), generator=g, device=g.device))
                # So many centres are due after this batch, rounded up; the second sweep takes all.
                due = min(k, -(-k * (number + 1) // len(batches))) if sweep == 0 else k
                count = min(len(orders[number]), due - taken)
                rows, orders[number] = orders[number][:count], orders[number][count:]
                taken += count
                if count > 0:
                    x, y = take_rows(x, rows), take_rows(y, rows)
                    centers.append(self._factors(x, y, index[rows.to(index.device)]))
            if not orders:
                raise ValueError("no batches: nothing to cluster")
            if taken == k:
                break
        else:
            raise ValueError(
                f"num_clusters must be at most the number of examples, got {k} clusters and "
                f"{taken} examples"
            )
        self.centers = centers

    def _pass(self, batches: Batches, learn: bool, kept: _KeptFactors) -> Clustering:
        """Run `_one_pass` with the flags that verify its first batch and refuse `state_dict`."""
        self._is_passing, self._is_verified = True, False
        try:
            return self._one_pass(batches, learn, kept)
        finally:
            self._is_passing = False

    def _one_pass(self, batches: Batches, learn: bool, kept: _KeptFactors) -> Clustering:
        """Assign every example; if ``learn``, also split a small cluster and move the centres."""
        self.centers.discard()
        before = [p.detach().clone() for p in self.model.parameters()]
        kept.begin_pass(before)
        counts = torch.zeros(self.num_clusters, dtype=torch.float64, device="cpu")
        seen: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for number, batch in enumerate(batches):
            x, y, index = _parts(batch)
            factors = kept.recall(number, x, y)
            if factors is None:
                states = _random_states(before) if kept.limit else []
                factors = self._factors(x, y, index)
                if kept.limit and _are_equal(states, _random_states(before)):
                    kept.keep(number, x, y, factors)
            if not _are_equal(before, [*self.model.parameters()]):
                raise RuntimeError("the model changed during a pass: cluster between two updates")
            distances = self._distances(factors, index)
            assign = (distances * self._multiplier(counts).to(distances)).argmin(1)
            half = self._draw(2, len(assign))  # drawn in every pass, used if its cluster is split
            if learn:
                self.centers.add(factors, assign, half)
            least = distances.gather(1, assign[:, None]).squeeze(1)
            seen.append((index.cpu(), assign.cpu(), half, least.cpu()))
            counts += torch.bincount(seen[-1][1], minlength=self.num_clusters)
        index, assign, half, least = _in_order(seen)
        sizes = counts.long()
        per_cluster = least.new_zeros(self.num_clusters).index_add_(0, assign, least)
        distortion = float((sizes * per_cluster).sum())
        if learn:
            split = self._splitting(sizes, sizes * per_cluster)
            if split is not None:
                small, other = split
                assign = torch.where((assign == other) & (half == 1), small, assign)
            sizes = self.centers.update(split)
        self._sizes = sizes.double()
        return Clustering(assign, sizes, (distortion,))

    def _multiplier(self, counts: Tensor) -> Tensor:
        """Return what multiplies the distances to the K centres, given the counts of this pass."""
        if self.rule == "plain":
            return torch.ones_like(counts)
        if self.rule == "frozen" and self._sizes is not None:
            return self._sizes.clamp_min(1.0)
        return counts + 1  # also for the first pass of `frozen`, which has no earlier sizes

    def _splitting(self, sizes: Tensor, distortions: Tensor) -> tuple[int, int] | None:
        """Return the cluster that is too small and the one to split for it, if there are such."""
        smallest, other = int(sizes.argmin()), int(distortions.argmax())
        if sizes[smallest] >= self.min_size or sizes[other] < 2 or smallest == other:
            return None
        return smallest, other

    def _distances(self, factors: dict[str, Factors], index: Tensor) -> Tensor:
        distances = self.centers.sq_distances(factors)
        overflow = "the squared gradient of example {} or of a centre is not finite"
        _check_finite(distances.isfinite().all(1), index, overflow)
        return distances

    def _polish(self, batches: Batches, clustering: Clustering) -> Clustering:
        """Move single examples while that lowers the exact variance (`exact_moves`)."""
        if len(clustering.assign) > LARGEST_GRAM:
            raise ValueError(
                f"rule='exact' takes {LARGEST_GRAM} examples at most, got {len(clustering.assign)}"
            )
        parts = [_parts(batch) for batch in batches]
        computed = [(index, self._factors(x, y, index)) for x, y, index in parts]
        n = len(clustering.assign)
        gram = torch.zeros(n, n, dtype=torch.float64, device="cpu")
        for rows, first in computed:
            for columns, second in computed:
                gram[rows[:, None], columns] = gram_matrix(first, second).cpu()
        assign = exact_moves(gram, clustering.assign, self.num_clusters)
        for index, factors in computed:
            chosen = assign[index].to(next(iter(factors.values())).x.device)
            # Nothing is split here, so the halves do not matter.
            self.centers.add(factors, chosen, torch.zeros_like(assign[index]))
        sizes = self.centers.update()
        self._sizes = sizes.double()
        return Clustering(assign, sizes, clustering.distortions)

    # --- on-line ----------------------------------------------------------------------------------

    def observe(
        self,
        x: Any,
        y: Any,
        *,
        decay: float = 0.999,
        dead_share: float = 0.0,
        reseed: Literal["largest", "data"] = "largest",
    ) -> Tensor:
        r"""Move the centres by one batch; the averaged sizes $s_k+1$ multiply the distances.

        Draw the batch uniformly: batches of the stratified sampler would bias the sizes towards
        small clusters. To get the clusters of all examples, call ``assign``, which runs one pass.

        Args:
            x: Inputs, ``(B, ...)``, or nested; the first batch has at least K examples.
            y: Targets, ``(B, ...)``, or nested.
            decay: $\beta$ of the moving averages, in [0, 1).
            dead_share: A cluster with less than this share of the mean size is dead. At most one
                dead cluster per call starts anew.
            reseed: Where it starts. ``largest``: as a copy of the cluster with the largest
                distortion in the batch, each with half the size. ``data``: on a random example
                of the batch, with the mean size.

        Returns:
            Clusters of the batch, ``(B,)`` int64, on the device of the model.

        Raises:
            ValueError: If an option is out of range, the first batch has fewer examples than there
                are clusters, the centres are not ``means``, or the losses are reduced.
            TypeError: If a layer has no factors, or a batch has another form.
            FloatingPointError: If a gradient or a squared distance is not finite.
        """
        if not 0 <= decay < 1 or not 0 <= dead_share < 1:
            raise ValueError(f"need 0 <= decay, dead_share < 1, got {decay}, {dead_share}")
        if reseed not in ("largest", "data"):
            raise ValueError(f"reseed must be largest or data, got {reseed!r}")
        rows = torch.arange(num_rows(x), device="cpu")
        if not self.centers.centers:
            self._begin([(x, y, rows)])
        factors = self._factors(x, y, rows)
        distances = self._distances(factors, rows)
        if self._sizes is None:
            share = len(distances) / self.num_clusters
            self._sizes = torch.full((self.num_clusters,), share, dtype=torch.float64, device="cpu")
        assign = (distances * (self._sizes + 1).to(distances)).argmin(1)
        self._sizes = self.centers.blend(factors, assign, self._sizes, decay)
        smallest = int(self._sizes.argmin())
        if self._sizes[smallest] < dead_share * self._sizes.mean():
            if reseed == "data":
                row = int(self._draw(len(distances), 1))
                self.centers.move_to(factors, smallest, row)
                self._sizes[smallest] = self._sizes.mean()
            else:
                least = distances.gather(1, assign[:, None]).squeeze(1)
                spread = torch.zeros_like(distances[0]).index_add_(0, assign, least).cpu()
                largest = int((spread * self._sizes.to(spread)).argmax())
                if largest != smallest:
                    self.centers.copy_center(largest, smallest)
                    self._sizes[[largest, smallest]] = self._sizes[largest] / 2
        return assign

    # --- state ------------------------------------------------------------------------------------

    def state_dict(self) -> StateDict:
        """Return centres, sizes and generator state; raise RuntimeError in the middle of a pass."""
        if self._is_passing:
            raise RuntimeError("half a pass has no state: take it before or after fit or assign")
        sizes = None if self._sizes is None else self._sizes.clone()
        generator = self.generator.get_state()
        return {"centers": self.centers.state_dict(), "sizes": sizes, "generator": generator}

    def load_state_dict(self, state: StateDict) -> None:
        """Continue from ``state``; if the number or kind of its centres differs, raise ValueError.

        Nothing is changed in that case.
        """
        sizes = state["sizes"]
        if sizes is not None and len(sizes) != self.num_clusters:
            raise ValueError(f"state of {len(sizes)} clusters, need {self.num_clusters}")
        device = next(self.model.parameters()).device
        self.centers.load_state_dict(map_tensors(lambda t: t.to(device), state["centers"]))
        self._sizes = None if sizes is None else sizes.cpu().clone()
        self.generator.set_state(state["generator"].cpu())


class _KeptFactors:
    """Factors of batches that are kept from one pass to the next.

    Args:
        limit: Most bytes of the factors and of the copies of their batches.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._left = limit
        self._parameters: list[Tensor] = []
        # By number in the pass: inputs, targets, factors. The first two are copies, because a batch
        # may be changed in place.
        self._batches: dict[int, tuple[Tensor, Tensor, dict[str, Factors]]] = {}

    def begin_pass(self, parameters: list[Tensor]) -> None:
        """Forget all factors if the parameters are not those of the last pass."""
        if not _are_equal(self._parameters, parameters):
            self._batches, self._left = {}, self.limit
        self._parameters = parameters

    def recall(self, number: int, x: Any, y: Any) -> dict[str, Factors] | None:
        """Return the kept factors of a batch; ``None`` if there are none or the batch changed."""
        if number not in self._batches:
            return None
        old_x, old_y, factors = self._batches[number]
        return factors if _is_same(old_x, x) and _is_same(old_y, y) else None

    def keep(self, number: int, x: Any, y: Any, factors: dict[str, Factors]) -> None:
        """Keep the factors of a batch, if they fit; those of a batch that changes are not kept."""
        if number in self._batches or not isinstance(x, Tensor) or not isinstance(y, Tensor):
            return
        parts = [tensor for layer in factors.values() for tensor in (layer.x, layer.z_grad)]
        size = sum(t.numel() * t.element_size() for t in [x, y, *parts])
        # of other devices `_random_states` does not know the generators
        if size <= self._left and all(t.device.type in ("cpu", "cuda") for t in parts):
            self._batches[number] = (x.clone(), y.clone(), factors)
            self._left -= size


def _is_same(old: Tensor, new: Any) -> bool:
    """Tell whether ``new`` is a tensor like ``old`` with equal values."""
    if not isinstance(new, Tensor) or (old.dtype, old.device) != (new.dtype, new.device):
        return False
    return torch.equal(old, new)


def _random_states(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return the states of torch's own generators, from which a model on CPU or CUDA may draw."""
    devices = {p.device for p in parameters if p.device.type == "cuda"}
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]


def _parts(batch: Any) -> tuple[Any, Any, Tensor]:
    """Check a batch and return x, y and the index, the latter as int64 on the CPU."""
    if isinstance(batch, Mapping) or not isinstance(batch, Sequence) or len(batch) != 3:
        kind = f"{type(batch).__name__} of {[*batch]}" if isinstance(batch, Mapping) else ""
        raise TypeError(f"a batch must be (x, y, index), got {kind or type(batch).__name__}")
    x, y, index = batch
    given = index if isinstance(index, Tensor) else torch.as_tensor(index, device="cpu")
    checked = indices(given, LARGEST_INDEX)
    if num_rows(x) != len(checked) or len(checked) == 0:
        raise ValueError(f"a batch needs as many indices as inputs, got {index} for {num_rows(x)}")
    return x, y, checked


def _are_equal(before: Sequence[Tensor], now: Sequence[Tensor]) -> bool:
    """Tell whether all values are equal; NaN counts as equal to NaN.

    Versions of the tensors would not do: an optimiser that writes to ``p.data`` leaves them alone.
    """
    if [p.shape for p in before] != [p.shape for p in now]:
        return False
    for old, new in zip(before, now, strict=True):
        if not torch.equal(old, new):
            is_same = (old == new) | (old.isnan() & new.isnan())
            if not bool(is_same.all()):
                return False
    return True


def _check_finite(finite: Tensor, index: Tensor, message: str) -> None:
    """Raise ``message``, filled in with the first example whose entry in ``finite`` is False."""
    if not finite.all():
        first = int(index.to(finite.device)[~finite][0])
        raise FloatingPointError(message.format(first))


def _in_order(seen: list[tuple[Tensor, Tensor, Tensor, Tensor]]) -> tuple[Tensor, ...]:
    """Join the columns of all batches and sort them by the index, which is the first column."""
    if not seen:
        raise ValueError("no batches: nothing to cluster")
    index, *values = (torch.cat(parts) for parts in zip(*seen, strict=True))
    order = index.argsort()
    expected = torch.arange(len(index), device=index.device)
    if not torch.equal(index[order], expected):
        raise ValueError(
            f"a pass must give every index 0 to {len(index) - 1} once, got "
            f"{len(torch.unique(index))} different ones from "
            f"{int(index.min())} to {int(index.max())}"
        )
    return expected, *(v[order] for v in values)
