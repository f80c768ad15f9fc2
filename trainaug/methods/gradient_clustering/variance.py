r"""Exact variance of gradient estimates, from the gradients of all examples.

With one uniform draw from each stratum, weighted by its size, the mean gradient is estimated
without bias and with variance (the trace of the covariance) $L/N^2$, where $L=\sum_kN_kS_k$ and
$S_k=\sum_{a_i=k}\lVert g_i-C_k\rVert^2$ about the true mean $C_k$ of the stratum.

$L$ is the sum of $\lVert g_i-g_j\rVert^2$ over the pairs that share a stratum. So example $i$ costs
$\sum_{a_j=k}\lVert g_i-g_j\rVert^2=S_k+N_k\lVert g_i-C_k\rVert^2$ in stratum $k$, whether or not it
is counted in $S_k$, $N_k$ and $C_k$; the published assignment leaves out $S_k$.

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

BLOCK = 1 << 20  # numbers made float64 at once
LARGEST_SEARCH = 10  # examples
MOST_ESTIMATES = 1 << 16
SLACK = 1e-12  # a gain below this share of the terms it comes from is rounding


def total_distortion(grads: Tensor, assign: Tensor) -> Tensor:
    r"""Return $L=\sum_kN_kS_k$ with the true means of the strata, scalar float64.

    Sums are float64 (float32 on MPS), a block of columns at a time: no copy of ``grads`` is made.

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
    """Return the variance of the stratified estimate, L over the squared N, scalar float64.

    With ``draws`` independent draws (with replacement) from every stratum, over their number;
    proposition 3.1 of the paper is that of one draw.

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

    $\frac1{NB}\sum_i\lVert g_i-\bar g\rVert^2$; without replacement times $(N-B)/(N-1)$.

    Args:
        grads: Per-example gradients, floating, ``(N, d)``.
        batch_size: B, at least 1, and at most N without replacement.
        replacement: Whether the draws are independent.

    Raises:
        ValueError: If there is no such batch, no example, or the shape or type is another.
        FloatingPointError: If the result is not finite.
    """
    return _sampling(grads, None, batch_size, replacement)


def svrg_variance(
    grads: Tensor, snapshot_grads: Tensor, batch_size: int, replacement: bool = True
) -> Tensor:
    r"""Return the variance of SVRG's estimate with the exact mean at the snapshot, scalar float64.

    That of SG-B for $g_i(\theta)-g_i(\tilde\theta)$; it takes two backward passes for an example.

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
    n = len(grads)
    if batch_size < 1 or (not replacement and batch_size > n):
        raise ValueError(f"no batch of {batch_size} among {n} examples, {replacement=}")
    one = torch.zeros(n, dtype=torch.int64, device=grads.device)
    factor = 1.0 if replacement else (n - batch_size) / max(n - 1, 1)
    return _distortion(grads, one, minus) * factor / (n**2 * batch_size)


def _state(gram: Tensor, assign: Tensor, num_clusters: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sizes ``(K,)``, summed squares ``(K,)`` and products with the sums ``(K, N)``."""
    n = len(gram)
    if gram.shape != (n, n) or n == 0 or gram.dtype != torch.float64:
        raise ValueError(f"gram must be float64 (N, N), got {gram.dtype} {tuple(gram.shape)}")
    if assign.shape != (n,) or assign.is_floating_point():
        raise ValueError(f"need {n} integer labels, got {assign.dtype} {tuple(assign.shape)}")
    assign = assign.long()  # bytes index as a mask
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
    r"""Return by how much $L$ changes if one example moves, ``(N, K)``, zero where it is.

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
    r"""Move single examples to where $L$ falls most, until no move lowers it.

    A sweep takes, in order, the examples that gain at its start, looks at each again, and moves it
    if it still gains; $L$ falls with every move. No stratum is emptied: an example alone costs
    nothing where it is. An absent label takes the first example that gains by being alone.

    Args:
        gram: Inner products of the gradients, symmetric, ``(N, N)`` float64. Not copied.
        assign: Labels in [0, K), ``(N,)``.
        num_clusters: K.
        max_sweeps: At most so many sweeps, at least 0.

    Returns:
        Labels, ``(N,)`` int64, on the device of ``assign``: a local optimum, unless the sweeps ran
        out.

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
        to_own_center = (terms - 2 * products).gather(0, labels[None])  # (1, N)
        slack = SLACK * (terms + terms.gather(0, labels[None]))
        gains = (to_own_center - terms + 2 * products > slack).any(0)
        gaining = gains.nonzero().squeeze(1).tolist()
        moved = False
        for i in gaining:
            term = squares + sizes * norms[i]  # (K,)
            cost = term - 2 * products[:, i]
            a, b = int(labels[i]), int(cost.argmin())
            if sizes[a] == 1 or not cost[a] - cost[b] > SLACK * (term[a] + term[b]):
                continue
            for k, sign in ((a, -1), (b, 1)):
                sizes[k] += sign
                squares[k] += sign * norms[i]
                products[k] += sign * gram[i]
            labels[i], moved = b, True
        if not moved:
            break
    return labels.to(assign.device)


def best_partition(grads: Tensor, num_clusters: int) -> tuple[Tensor, float]:
    """Search all partitions into K non-empty strata for the smallest total distortion.

    Labels appear in order 0, 1, ... (restricted growth); a branch that already costs as much as
    the best one found is left.

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
    best, best_labels, labels = math.inf, [0] * n, [0] * n

    def assign_from(i: int, used: int, cost: float) -> None:
        nonlocal best, best_labels
        if cost >= best or used + n - i < num_clusters:
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

    Shape ``(M, d)`` with M the product of the sizes, at most 65 536; the last label's draw varies
    fastest. In the type of ``grads``.

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
