"""Batch transforms that mix K samples, used like torchvision's ``MixUp``.

Chapter: notebooks/05_cascading_sum.ipynb
Reference: Simionescu, "Deep Learning Training Procedure Augmentations", 2022, arXiv 2211.14395, and
the public code of Cascading Sum Augmentation (2019); Zhang et al., "mixup: Beyond Empirical Risk
Minimization", ICLR 2018, for two samples with random weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import get_worker_info

from trainaug.methods.cascading_sum.functional import equalise_variance, sum_mix

__all__ = ["PixelMix", "SingleLabelMix", "SumMix"]

Mode = Literal["groups", "pairing"]
Remainder = Literal["drop", "wrap", "error"]
_LABEL_KEYS = ("labels", "label", "targets", "target", "y")


class SumMix(nn.Module):
    r"""Batch transform: mixes of K samples and of their labels, as torchvision's ``MixUp`` is used.

    Call it after the loader as ``mix(x, y)``, on a whole batch such as ``(x, y, index)`` or a
    dict, or in ``collate_fn=lambda rows: mix(*default_collate(rows))``. Labels go straight into
    ``nn.CrossEntropyLoss``: cross-entropy is linear in the target, so with equal weights that
    is the mean of the K cross-entropies of the source.

    Args:
        num_groups: K, samples in a mix; may be changed between batches. At 1 the inputs are
            returned as they are, and nothing is drawn.
        num_classes: C, for integer labels.
        generator: Source of randomness. In a loader's worker it is seeded once with the worker's
            own seed, else all workers would draw the same.
        alpha: ``None`` for equal weights, else weights from Dirichlet(alpha), one draw a
            batch: with K = 2 they are those of mixup, with a large alpha equal ones.
        mode: ``"groups"`` as in the source: the shuffled batch is cut into K groups of B / K, each
            sample is in one mix. ``"pairing"`` as in mixup: the batch and K - 1 permutations of
            it, B mixes, each sample is in K.
        remainder: What ``"groups"`` does with a batch that K does not divide: ``"drop"`` the last
            samples, ``"wrap"`` around to the first ones, or ``"error"``.
        rescale: Undo the loss of contrast by `equalise_variance`.
        mean: Mean input, for ``rescale``; 0 for normalised inputs.
        labels_getter: ``"default"`` takes the second of a sequence, or the entry called labels,
            label, targets, target or y of a dict; else a function of the batch that returns them.

    Raises:
        ValueError: If an option or a batch is out of range.

    Example:
        >>> mix = SumMix(2, num_classes=3, generator=torch.Generator().manual_seed(0))
        >>> x, y = mix(torch.eye(4), torch.tensor([0, 1, 2, 2]))
        >>> x.shape, y.sum(1)
        (torch.Size([2, 4]), tensor([1., 1.]))

    Notes:
        Further tensors with a row an example, like an index, keep the row of a mix's first sample.
        Mix after augmentation and normalisation, as the source does.
    """

    def __init__(
        self,
        num_groups: int = 2,
        *,
        num_classes: int,
        generator: torch.Generator,
        alpha: float | None = None,
        mode: Mode = "groups",
        remainder: Remainder = "drop",
        rescale: bool = False,
        mean: Tensor | float = 0.0,
        labels_getter: Literal["default"] | Callable[[Any], Tensor] = "default",
    ) -> None:
        super().__init__()
        if alpha is not None and not 0 < alpha < math.inf:
            raise ValueError(f"alpha must be above 0, finite or None, got {alpha}")
        for name, value, known in (("mode", mode, Mode), ("remainder", remainder, Remainder)):
            if value not in get_args(known):
                raise ValueError(f"{name} must be one of {get_args(known)}, got {value!r}")
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.num_groups, self.num_classes, self.generator = num_groups, num_classes, generator
        self.alpha, self.mode, self.remainder = alpha, mode, remainder
        self.rescale, self.mean, self.labels_getter = rescale, mean, labels_getter
        self.weights: Tensor | None = None
        self._worker_seed: int | None = None

    def set_weights(self, weights: Tensor) -> None:
        """Mix with these weights ``(K,)`` from now on, as a smooth cascade asks; draws none."""
        total = float(weights.sum()) if weights.ndim == 1 else math.nan
        if not (abs(total - 1) <= 1e-6 and float(weights.min()) >= 0):
            raise ValueError(f"weights must be (K,), at least 0 with sum 1, got {weights.tolist()}")
        self.weights, self.num_groups = weights, len(weights)

    def forward(self, *inputs: Any) -> Any:
        """Return the mixed batch, in the structure of the inputs."""
        batch = inputs[0] if len(inputs) == 1 else inputs
        if not isinstance(batch, Mapping | Sequence):
            raise ValueError(f"expected mix(x, labels), a sequence or a dict, got {type(batch)}")
        labels = self._labels_of(batch)
        items = list(batch.values()) if isinstance(batch, Mapping) else list(batch)
        others = [item for item in items if isinstance(item, Tensor) and item is not labels]
        if not others:
            raise ValueError("found no inputs beside the labels")
        if all(item is not labels for item in items):
            raise ValueError(f"labels_getter must give an entry of the batch, got {labels}")
        x = others[0]
        soft = self._soft(labels, len(x))
        k = self._checked_count(len(x))
        if k == 1:
            mixed, first = (x, soft), None
        else:
            groups = self._draw_groups(len(x), k).to(x.device)
            mixed, first = self._mix(x, soft, groups), groups[0]

        def changed(item: Any) -> Any:
            if item is x or item is labels:
                return mixed[item is labels]
            is_row = isinstance(item, Tensor) and item.ndim > 0 and len(item) == len(x)
            return item[first.to(item.device)] if is_row and first is not None else item

        if isinstance(batch, Mapping):
            return {name: changed(item) for name, item in batch.items()}
        changed_items = [changed(item) for item in items]
        return changed_items if isinstance(batch, list) else tuple(changed_items)

    def _mix(self, x: Tensor, soft: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
        weights = self._draw_weights(len(groups))
        mixed, labels = sum_mix(x, soft, groups, weights)
        if self.rescale:
            k = len(groups)
            weights = x.new_full((k,), 1 / k) if weights is None else weights
            mean = self.mean.to(x) if isinstance(self.mean, Tensor) else self.mean
            mixed = equalise_variance(mixed, weights.to(x), mean)
        return mixed, labels

    def _draw_weights(self, k: int) -> Tensor | None:
        if self.weights is not None or self.alpha is None:
            return self.weights
        concentration = torch.full((k,), float(self.alpha), device=self.generator.device)
        # what torch.distributions.Dirichlet calls, which takes no generator
        return torch._sample_dirichlet(concentration, generator=self.generator)

    def _draw_groups(self, n: int, k: int) -> Tensor:
        g = self._seeded_generator()
        if self.mode == "pairing":
            orders = [torch.randperm(n, generator=g, device=g.device) for _ in range(k - 1)]
            return torch.stack([torch.arange(n, device=g.device), *orders])  # (K, B)
        order = torch.randperm(n, generator=g, device=g.device)
        left = n % k
        if left and self.remainder == "error":
            raise ValueError(f"a batch of {n} cannot be cut into {k} groups")
        if left and self.remainder == "wrap":
            order = torch.cat([order, order[: k - left]])
        return order[: len(order) // k * k].view(k, -1)  # (K, B)

    def _seeded_generator(self) -> torch.Generator:
        worker = get_worker_info()
        if worker is not None and self._worker_seed != worker.seed:
            self.generator.manual_seed(worker.seed)
            self._worker_seed = worker.seed
        return self.generator

    def _labels_of(self, batch: Any) -> Tensor:
        found: Any = None
        if self.labels_getter != "default":
            found = self.labels_getter(batch)
        elif isinstance(batch, Mapping):
            found = next((batch[key] for key in _LABEL_KEYS if key in batch), None)
        elif len(batch) > 1:
            found = batch[1]
        if not isinstance(found, Tensor):
            raise ValueError(f"found no tensor of labels, got {found!r}: give a labels_getter")
        return found

    def _soft(self, labels: Tensor, n: int) -> Tensor:
        if len(labels) != n:
            raise ValueError(f"{n} inputs have {len(labels)} labels")
        if labels.is_floating_point():
            if labels.ndim != 2 or labels.shape[1] != self.num_classes:
                raise ValueError(
                    f"expected soft labels ({n}, {self.num_classes}), got {tuple(labels.shape)}"
                )
            return labels
        if labels.ndim != 1 or labels.dtype == torch.bool:
            raise ValueError(f"expected labels ({n},), got {labels.dtype} {tuple(labels.shape)}")
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            wrong = labels[(labels < 0) | (labels >= self.num_classes)][0]
            raise ValueError(f"label {int(wrong)} is outside 0 to {self.num_classes - 1}")
        return F.one_hot(labels.long(), self.num_classes).to(torch.get_default_dtype())

    def _checked_count(self, n: int) -> int:
        k = self.num_groups
        if self.weights is not None and len(self.weights) != k:
            raise ValueError(f"num_groups is {k}, but set_weights gave {len(self.weights)} weights")
        if type(k) is not int or not 1 <= k <= max(n, 1):
            raise ValueError(
                f"num_groups must be a whole number from 1 to the batch's {n}, got {k}"
            )
        return k

    def get_extra_state(self) -> dict[str, Any]:
        """Return K, fixed weights and the generator's state, for ``state_dict``."""
        state = self.generator.get_state()
        return {"num_groups": self.num_groups, "weights": self.weights, "generator": state}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue from ``state``."""
        self.num_groups, self.weights = state["num_groups"], state["weights"]
        self.generator.set_state(state["generator"])


class SingleLabelMix(SumMix):
    """`SumMix` whose mixes keep the label of their first sample alone (source's ``single_label``).

    Inoue's SamplePairing (2018) is this with K = 2.
    """

    def _mix(self, x: Tensor, soft: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
        return super()._mix(x, soft, groups)[0], soft[groups[0]]


class PixelMix(SumMix):
    """`SumMix` with independent weights for every pixel and equally averaged labels.

    The source's ``uniform-random`` (K = 2, ``alpha=1``) and ``beta-random`` (``alpha=0.4``)
    arms. It is not mixup, whose one weight is also that of the labels. Needs ``alpha``; pixels
    cannot be rescaled.
    """

    def _mix(self, x: Tensor, soft: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
        if self.alpha is None or self.rescale:
            raise ValueError(f"needs alpha and no rescale, got {self.alpha=}, {self.rescale=}")
        rows, g = groups.shape[1], self.generator
        shape = (rows, *x.shape[1:], len(groups))
        concentration = torch.full(shape, float(self.alpha), device=g.device)
        weights = torch._sample_dirichlet(concentration, generator=g).to(x.device)  # (B, ..., K)
        mixed = (x[groups].movedim(0, -1) * weights).sum(-1)  # half precision is summed in single
        return mixed.to(x.dtype), sum_mix(x, soft, groups)[1]
