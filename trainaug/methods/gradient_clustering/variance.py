r"""Exact variance of gradient estimates, from the gradients of all examples.

With one uniform draw from each stratum, weighted by its size, the mean gradient is estimated
without bias and with variance (the trace of the covariance) $L/N^2$, where $L=\sum_kN_kS_k$ and
$S_k=\sum_{a_i=k}\lVert g_i-C_k\rVert^2$ about the true mean $C_k$ of the stratum.

$L$ is the sum of $\lVert g_i-g_j\rVert^2$ over the pairs that share a stratum. So example $i$ adds
$\sum_{a_j=k}\lVert g_i-g_j\rVert^2=S_k+N_k\lVert g_i-C_k\rVert^2$ to it in stratum $k$, whether or
not $S_k$, $N_k$ and $C_k$ include the example itself. The published assignment leaves out $S_k$.

Chapter: notebooks/02_gradient_clustering.ipynb
Reference: Faghri, Duvenaud, Fleet, Ba, "A Study of Gradient Variance in Deep Learning",
arXiv 2007.04532, 2020, proposition 3.1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trainaug.checks import widened

__all__ = ["best_partition", "enumerate_estimates", "exact_moves", "move_deltas"]
__all__ += ["sampling_variance", "stratified_variance", "svrg_variance", "total_distortion"]

BLOCK = 1 << 20  # at most so many numbers are converted to float64 at a time
LARGEST_SEARCH = 10  # examples
MOST_ESTIMATES = 1 << 16
SLACK = 1e-12  # a gain below this share of its terms counts as rounding


def total_distortion(grads: Tensor, assign: Tensor) -> Tensor:
    r"""Return $L=\sum_kN_kS_k$ with the true means of the strata, scalar float64.

    Sums are in float64 (float32 on MPS). They go through ``grads`` a block of columns at a time,
    so that it is not copied as a whole.

    Args:
        grads: Per-example gradients, floating, ``(N, d)``.
        assign: Stratum of each example, ``(N,)`` integer; any labels, in any order.

    Raises:
        ValueError: If the shapes do not fit, there is no example, or labels are not integers.
        FloatingPointError: If the result is not finite.

    Example:
        >>> total_distortion(torch.tensor([[0.0], [2.0], [5.0]]), torch.tensor([7, 7, 3]))
        tensor(4., dtype=torch.float64)
    """
    return _distortion(grads, assign, None)


def _distortion(grads: Tensor, assign: Tensor, minus: Tensor | None) -> Tensor:
    """Return $L$ of the gradients, or of their differences to ``minus``, scalar."""
    if grads.ndim != 2 or len(grads) == 0 or not grads.is_floating_point():
        raise ValueError(f"grads must be floating (N, d), got {grads.dtype} {tuple(grads.shape)}")
    if assign.shape != grads.shape[:1] or assign.is_floating_point():
        shape = tuple(assign.shape)
        raise ValueError(f"need {len(grads)} integer labels, got {assign.dtype} {shape}")
    if minus is not None and minus.shape != grads.shape:
        shapes = tuple(grads.shape), tuple(minus.shape)
        raise ValueError(f"need as many gradients at the snapshot, got {shapes[0]}, {shapes[1]}")
    wide = torch.float32 if grads.device.type == "mps" else torch.float64
    _, labels, sizes = torch.unique(
        assign.to(grads.device), return_inverse=True, return_counts=True
    )
    sizes = sizes.to(wide)
    total = grads.new_zeros((), dtype=wide)
    step = max(1, BLOCK // len(grads))
    for start in range(0, grads.shape[1], step):
        block = grads[:, start : start + step].to(wide)  # (N, step)
        if minus is not None:
            block = block - minus[:, start : start + step].to(wide)
        sums = block.new_zeros(len(sizes), block.shape[1]).index_add_(0, labels, block)
        block = block - (sums / sizes[:, None])[labels]
        total += sizes[labels] @ block.square().sum(1)
    if not total.isfinite():
        raise FloatingPointError("gradients are not finite, or their squares overflow")
    return total


def stratified_variance(grads: Tensor, assign: Tensor, draws: int = 1) -> Tensor:
    """Return the variance of the stratified estimate, ``L / (N**2 * draws)``, scalar float64.

    The estimate has ``draws`` independent draws, with replacement, from every stratum; proposition
    3.1 of the paper is the case of one draw.

    Args:
        grads: Per-example gradients, floating, ``(N, d)``.
        assign: Stratum of each example, ``(N,)`` integer; any labels, in any order.
        draws: Draws from each stratum, at least 1.

    Raises:
        ValueError: If ``draws`` is below 1, or as in `total_distortion`.
        FloatingPointError: If the result is not finite.
    """
    if draws < 1:
        raise ValueError(f"draws must be >= 1, got {draws}")
    return total_distortion(grads, assign) / (len(grads) ** 2 * draws)


def sampling_variance(grads: Tensor, batch_size: int, replacement: bool = True) -> Tensor:
    r"""Return the variance of the mean of ``batch_size`` uniform draws (SG-B), scalar float64.

    It is $\frac1{NB}\sum_i\lVert g_i-\bar g\rVert^2$; without replacement, this is multiplied by
    $(N-B)/(N-1)$.

    Args:
        grads: Per-example gradients, floating, ``(N, d)``.
        batch_size: B, at least 1, and at most N without replacement.
        replacement: Whether the draws are independent.

    Raises:
        ValueError: If there is no such batch, no example, or the shape or type is wrong.
        FloatingPointError: If the result is not finite.
    """
    return _sampling(grads, None, batch_size, replacement)


def svrg_variance(
    grads: Tensor, snapshot_grads: Tensor, batch_size: int, replacement: bool = True
) -> Tensor:
    r"""Return the variance of SVRG's estimate with the exact mean at the snapshot, scalar float64.

    It is the variance of SG-B for the differences $g_i(\theta)-g_i(\tilde\theta)$. An estimate
    takes two backward passes per example.

    Args:
        grads: Per-example gradients $g_i(\theta)$, floating, ``(N, d)``.
        snapshot_grads: $g_i(\tilde\theta)$ of the same examples, ``(N, d)``.
        batch_size: B, as in `sampling_variance`.
        replacement: As in `sampling_variance`.

    Raises:
        ValueError: As in `sampling_variance`, and if the two shapes differ.
        FloatingPointError: If the result is not finite.
    """
    return _sampling(grads, snapshot_grads, batch_size, replacement)


def _sampling(grads: Tensor, minus: Tensor | None, batch_size: int, replacement: bool) -> Tensor:
    """Return the variance of SG-B for the gradients, or for their differences to ``minus``."""
    n = len(grads)
    if batch_size < 1 or (not replacement and batch_size > n):
        raise ValueError(f"no batch of {batch_size} among {n} examples, {replacement=}")
    one_stratum = torch.zeros(n, dtype=torch.int64, device=grads.device)
    factor = 1.0 if replacement else (n - batch_size) / max(n - 1, 1)
    return _distortion(grads, one_stratum, minus) * factor / (n**2 * batch_size)


def _state(gram: Tensor, assign: Tensor, num_clusters: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return each stratum's size, sum of squared lengths, and products of its sum with each g_i.

    The shapes are ``(K,)``, ``(K,)`` and ``(K, N)``.
    """
    n = len(gram)
    if gram.shape != (n, n) or n == 0 or gram.dtype != torch.float64:
        raise ValueError(f"gram must be float64 (N, N), got {gram.dtype} {tuple(gram.shape)}")
    if assign.shape != (n,) or assign.is_floating_point():
        raise ValueError(f"need {n} integer labels, got {assign.dtype} {tuple(assign.shape)}")
    assign = assign.long()  # a uint8 tensor would index as a mask
    if int(assign.min()) < 0 or int(assign.max()) >= num_clusters:
        span = f"{int(assign.min())} to {int(assign.max())}"
        raise ValueError(f"labels must be in [0, {num_clusters}), got {span}")
    sizes = torch.bincount(assign, minlength=num_clusters).double()
    squares = gram.new_zeros(num_clusters).index_add_(0, assign, gram.diagonal())
    products = gram.new_zeros(num_clusters, n).index_add_(0, assign, gram)
    if not products.isfinite().all():
        raise FloatingPointError("inner products of gradients are not finite")
    return sizes, squares, products


def move_deltas(gram: Tensor, assign: Tensor, num_clusters: int) -> Tensor:
    r"""Return by how much $L$ changes if example i alone moves to stratum k, ``(N, K)``.

    The entry of the example's present stratum is zero.

    Args:
        gram: Inner products of the gradients, symmetric, ``(N, N)`` float64.
        assign: Stratum of each example, ``(N,)`` integer in [0, K).
        num_clusters: K.

    Raises:
        ValueError: If a shape or type does not fit, or a label is out of range.
        FloatingPointError: If an inner product is not finite.
    """
    assign = assign.to(gram.device)
    sizes, squares, products = _state(gram, assign, num_clusters)
    costs = squares + gram.diagonal()[:, None] * sizes - 2 * products.T  # (N, K)
    return costs - costs.gather(1, assign.long()[:, None])


def exact_moves(
    gram: Tensor, assign: Tensor, num_clusters: int, *, max_sweeps: int = 100
) -> Tensor:
    r"""Move single examples to the stratum where $L$ falls most, until no move lowers it.

    A sweep lists the examples whose move would lower $L$ at its start. It visits them in order,
    computes the change again, and moves the example if $L$ still falls. No stratum becomes empty:
    an example that is alone adds nothing to $L$ where it is. A stratum that is empty at the start
    takes the first example for which being alone lowers $L$.

    Args:
        gram: Inner products of the gradients, symmetric, ``(N, N)`` float64; it is not copied.
        assign: Stratum of each example, ``(N,)`` integer in [0, K).
        num_clusters: K.
        max_sweeps: Largest number of sweeps, at least 0.

    Returns:
        The new strata, ``(N,)`` int64, on the device of ``assign``: a local optimum, unless
        ``max_sweeps`` was reached first.

    Raises:
        ValueError: If shapes, types, labels or ``max_sweeps`` do not fit.
        FloatingPointError: If an inner product is not finite.
    """
    if max_sweeps < 0:
        raise ValueError(f"max_sweeps must be >= 0, got {max_sweeps}")
    labels = assign.to(gram.device).long().clone() if not assign.is_floating_point() else assign
    sizes, squares, products = _state(gram, labels, num_clusters)
    norms = gram.diagonal()
    for _ in range(max_sweeps):
        terms = squares[:, None] + sizes[:, None] * norms  # (K, N)
        present_cost = (terms - 2 * products).gather(0, labels[None])  # (1, N)
        slack = SLACK * (terms + terms.gather(0, labels[None]))
        gains = (present_cost - terms + 2 * products > slack).any(0)
        gaining = gains.nonzero().squeeze(1).tolist()
        moved = False
        for i in gaining:
            term = squares + sizes * norms[i]  # (K,)
            cost = term - 2 * products[:, i]
            old, new = int(labels[i]), int(cost.argmin())
            if sizes[old] == 1 or not cost[old] - cost[new] > SLACK * (term[old] + term[new]):
                continue
            for k, sign in ((old, -1), (new, 1)):
                sizes[k] += sign
                squares[k] += sign * norms[i]
                products[k] += sign * gram[i]
            labels[i] = new
            moved = True
        if not moved:
            break
    return labels.to(assign.device)


def best_partition(grads: Tensor, num_clusters: int) -> tuple[Tensor, float]:
    """Search all partitions into K non-empty strata for the smallest total distortion.

    New labels appear in the order 0, 1, ..., so that each partition is visited once. A branch is
    abandoned when it already costs as much as the best partition so far.

    Args:
        grads: Per-example gradients, ``(N, d)``, N at most 10.
        num_clusters: K, from 1 to N.

    Returns:
        Labels ``(N,)`` int64 on the CPU, the first optimum in lexicographic order, and its L.

    Raises:
        ValueError: If there are more than 10 examples, or K is not from 1 to N.
        FloatingPointError: If a squared distance is not finite.
    """
    n = len(grads)
    if n > LARGEST_SEARCH or not 1 <= num_clusters <= n:
        raise ValueError(f"cannot search partitions of {n} examples into {num_clusters} strata")
    values = grads.detach().cpu().double()
    distances = (values[:, None] - values).square().sum(-1)  # (N, N)
    if not distances.isfinite().all():
        raise FloatingPointError("gradients are not finite, or their squares overflow")
    pairs = distances.tolist()
    best = math.inf
    best_labels = [0] * n
    labels = [0] * n

    def assign_from(i: int, used: int, cost: float) -> None:
        """Try all labels of the examples from ``i`` on; the ones before have ``used`` labels."""
        nonlocal best, best_labels
        if cost >= best or used + n - i < num_clusters:  # too few examples left for K strata
            return
        if i == n:
            best, best_labels = cost, list(labels)
            return
        for k in range(min(used + 1, num_clusters)):
            labels[i] = k
            rise = sum(pairs[i][j] for j in range(i) if labels[j] == k)
            assign_from(i + 1, max(used, k + 1), cost + rise)

    assign_from(0, 0, 0.0)
    return torch.tensor(best_labels, device="cpu"), best


def enumerate_estimates(grads: Tensor, assign: Tensor) -> Tensor:
    r"""Return $\frac1N\sum_kN_kg_{j_k}$ for every combination of draws, all equally likely.

    $j_k$ is the example drawn from stratum k. The result has the type of ``grads`` and the shape
    ``(M, d)``, with M the product of the strata's sizes, at most 65 536. The draw from the stratum
    with the highest label varies fastest.

    Args:
        grads: Per-example gradients, floating, ``(N, d)``.
        assign: Stratum of each example, ``(N,)``; any labels, in any order.

    Raises:
        ValueError: If there are not N labels, or more than 65 536 combinations.
    """
    if assign.shape != grads.shape[:1]:
        raise ValueError(f"{len(grads)} gradients and labels of shape {tuple(assign.shape)}")
    strata, counts = torch.unique(assign, return_counts=True)
    if math.prod(counts.tolist()) > MOST_ESTIMATES:
        raise ValueError(f"too many combinations of draws from strata of {counts.tolist()}")
    values = widened(grads)
    estimates = values.new_zeros(1, grads.shape[1])
    for label in strata:
        members = values[assign == label]
        share = members * (len(members) / len(grads))
        estimates = (estimates[:, None] + share).flatten(0, 1)
    return estimates.to(grads.dtype) if grads.is_floating_point() else estimates
