r"""Sum Augmentation: each new example is the average of K examples, and so are its labels.

Chapter: notebooks/05_cascading_sum.ipynb
Reference: Simionescu, "Deep Learning Training Procedure Augmentations", 2022, arXiv 2211.14395, and
the public code of Cascading Sum Augmentation (2019).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trainaug.checks import widened
from trainaug.roots import sqrt

__all__ = ["equalise_variance", "sum_mix", "weight_type"]


def weight_type() -> torch.dtype:
    """Return the type of weights: the default one, but float32 where that is half precision."""
    return torch.promote_types(torch.get_default_dtype(), torch.float32)


def sum_mix(
    x: Tensor, labels: Tensor, groups: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Return weighted sums of K rows of a batch and of their labels; draws nothing.

    $\tilde x_j=\sum_g w_g\,x_{i_{gj}}$ and $\tilde y_j=\sum_g w_g\,y_{i_{gj}}$: row $i_{gj}$ is the
    sample that group $g$ gives to mix $j$.

    Args:
        x: Floating inputs, shape ``(N, ...)``; never changed.
        labels: One-hot or soft labels, shape ``(N, C)``.
        groups: Rows of ``x``, shape ``(K, B)``, dtype int64.
        weights: Shape ``(K,)``, or ``(K, B)`` for different weights in each mix, at least 0 with
            sum 1 over the K (not checked); ``None`` for equal weights 1/K.

    Returns:
        Inputs ``(B, ...)`` in the dtype of ``x``, and labels ``(B, C)`` in that of ``labels``.
        With equal weights labels are exact: the nearest float to a multiple of 1/K.

    Raises:
        ValueError: If shapes or devices do not fit, inputs or labels are not floating, or
            ``groups`` not int64.

    Example:
        >>> x, labels = torch.tensor([[0.0], [1.0], [4.0]]), torch.eye(3)
        >>> sum_mix(x, labels, torch.tensor([[0, 1], [1, 2]]))
        (tensor([[0.5000],
                [2.5000]]), tensor([[0.5000, 0.5000, 0.0000],
                [0.0000, 0.5000, 0.5000]]))

    Notes:
        Half-precision inputs and labels are summed in float32. Products and sums may be fused, so
        the result can be one rounding away from ``w * x + (1 - w) * z`` written out. NaN and
        infinity go on to the mixes that they are in.
    """
    if not x.is_floating_point():
        raise ValueError(f"inputs must be floating (convert pixels first), got {x.dtype}")
    if x.ndim == 0:
        raise ValueError("inputs must have a row an example, got a number")
    if labels.ndim != 2 or len(labels) != len(x):
        raise ValueError(f"expected labels ({len(x)}, C), got {tuple(labels.shape)}")
    if not labels.is_floating_point():
        raise ValueError(f"labels must be floating, one-hot or soft, got {labels.dtype}")
    if groups.ndim != 2 or groups.numel() == 0:
        raise ValueError(f"expected groups (K, B), got {tuple(groups.shape)}")
    if groups.dtype != torch.int64:
        raise ValueError(f"groups must be int64, got {groups.dtype}")
    if not x.device == labels.device == groups.device:
        raise ValueError(
            "need inputs, labels and groups on one device, "
            f"got {x.device}, {labels.device} and {groups.device}"
        )
    k, num_mixes = groups.shape
    if weights is not None and weights.shape not in ((k,), (k, num_mixes)):
        expected = f"({k},) or ({k}, {num_mixes})"
        raise ValueError(f"expected weights {expected}, got {tuple(weights.shape)}")
    members = groups.T.reshape(-1)
    return mix_inputs(x, members, k, weights), mix_labels(labels, groups, weights)


def mix_inputs(x: Tensor, members: Tensor, k: int, weights: Tensor | None) -> Tensor:
    """Return the inputs ``(B, ...)`` of `sum_mix`, unchecked.

    Args:
        x: Inputs, ``(N, ...)``.
        members: The K rows of the first mix, then those of the second and so on, ``(B K,)``.
        k: Number of rows in a mix, K.
        weights: As in `sum_mix`.
    """
    num_mixes = len(members) // k
    wide = widened(x)
    if weights is None:
        weights = wide.new_full((num_mixes * k,), 1 / k)
    else:
        weights = weights.to(wide).view(k, -1).expand(k, num_mixes).T.reshape(-1)  # (B K,)
    # One fused gather and sum writes each mix once, however many rows it has. The cost of a small
    # batch is the number of calls to torch, so there are few of them here.
    mixed = F.embedding_bag(
        members,
        wide.reshape(len(x), -1),  # (N, D)
        torch.arange(0, num_mixes * k, k, device=members.device),  # where each mix begins
        mode="sum",
        per_sample_weights=weights,
    )
    mixed = mixed.view(num_mixes, *x.shape[1:])
    return mixed if wide is x else mixed.to(x.dtype)


def mix_labels(labels: Tensor, groups: Tensor, weights: Tensor | None) -> Tensor:
    """Return the labels ``(B, C)`` of `sum_mix`, unchecked."""
    k = len(groups)
    chosen = widened(labels)[groups]  # (K, B, C)
    if weights is None:
        mixed = chosen.sum(0) / k
    else:
        mixed = (chosen * weights.to(chosen).view(k, -1, 1)).sum(0)
    return mixed.to(labels.dtype)


def mix_classes(y: Tensor, members: Tensor, k: int, num_classes: int) -> Tensor:
    """Return what `mix_labels` gives for one-hot labels of classes ``(N,)`` and equal weights."""
    num_mixes = len(members) // k
    counts = torch.zeros(num_mixes, num_classes, dtype=weight_type(), device=y.device)
    counts.scatter_add_(1, y.take(members).view(num_mixes, k), counts.new_ones(num_mixes, k))
    return counts.div_(k).to(torch.get_default_dtype())


def equalise_variance(x: Tensor, weights: Tensor, mean: Tensor | float = 0.0) -> Tensor:
    r"""Give mixes the pixel variance of single samples.

    $\mu+(\tilde x-\mu)/\sqrt{\sum_g w_g^2}$: mixes of independent samples of mean $\mu$ and
    variance $\sigma^2$ have variance $\sigma^2\sum_g w_g^2$. Values may leave the pixels' range.

    Args:
        x: Mixes, floating, shape ``(B, ...)``; half precision is computed in float32.
        weights: Weights $w_g$ that made the mixes, floating, shape ``(K,)``.
        mean: Mean input $\mu$, broadcast against ``x``.

    Returns:
        The mixes with their new contrast, ``(B, ...)``, in the dtype of ``x``; a float64
        ``mean`` of at least one dimension makes float32 mixes float64.

    Raises:
        ValueError: If the mixes or the weights are not floating.

    Example:
        >>> equalise_variance(torch.tensor([0.5]), torch.tensor([0.5, 0.5]))
        tensor([0.7071])
    """
    if not (x.is_floating_point() and weights.is_floating_point()):
        raise ValueError(f"mixes and weights must be floating, got {x.dtype} and {weights.dtype}")
    wide = widened(x)
    if isinstance(mean, Tensor):
        mean = widened(mean)
    result = mean + (wide - mean) / sqrt(widened(weights).square().sum())
    return result if wide is x else result.to(x.dtype)
