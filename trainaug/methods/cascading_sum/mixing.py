"""Batch transforms that mix K samples, used like torchvision's ``MixUp``.

Chapter: notebooks/05_cascading_sum.ipynb
Reference: Simionescu, "Deep Learning Training Procedure Augmentations", 2022, arXiv 2211.14395, and
the public code of Cascading Sum Augmentation (2019); Zhang et al., "mixup: Beyond Empirical Risk
Minimization", ICLR 2018, for two samples with random weights.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import get_spawning_popen
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import get_worker_info

from trainaug.checks import class_labels, finite, source_of_randomness, widened
from trainaug.methods.cascading_sum.functional import (
    equalise_variance,
    mix_classes,
    mix_inputs,
    mix_labels,
    weight_type,
)
from trainaug.methods.cascading_sum.shared import SharedCount
from trainaug.randomness import default_generator
from trainaug.structures import StateDict

__all__ = ["PixelMix", "SingleLabelMix", "SumMix"]

Mode = Literal["groups", "pairing"]
Remainder = Literal["drop", "wrap", "error"]
_SMALLEST_ALPHA = 0.01
_LABEL_KEYS = ("labels", "label", "targets", "target", "y")
_GEOMETRY = ("BoundingBoxes", "KeyPoints", "Mask")  # torchvision's kinds that cannot be summed


class SumMix(nn.Module):
    r"""Batch transform: mixes of K samples and of their labels, as torchvision's ``MixUp`` is used.

    Call it after the loader as ``mix(x, y)``, on a whole batch such as ``(x, y, index)`` or a
    dict, or in ``collate_fn=lambda rows: mix(*default_collate(rows))``. Labels go straight into
    ``nn.CrossEntropyLoss``: cross-entropy is linear in the target, so with equal weights that
    is the mean of the K cross-entropies of the source. It works in ``v2.Compose``, and an ``Image``
    or ``Video`` of ``torchvision.tv_tensors``, like every kind of tensor, stays what it is.

    Args:
        num_groups: Number of samples in a mix, K. It may be changed between batches, in the main
            process for a loader's workers, too. At 1 inputs are returned unchanged without a draw.
        num_classes: Number of classes C; not needed for soft labels, ``(B, C)``.
        generator: Source of randomness. In a loader's worker it is seeded once from its own seed
            and the worker's, else all workers would draw the same. By default one is made at the
            first draw by `trainaug.randomness.default_generator`: it follows
            ``torch.manual_seed``, and so is the same on all ranks that were seeded alike.
        alpha: ``None`` for equal weights, else weights from Dirichlet(alpha), one draw per batch,
            at least 0.01: with K = 2 they are those of mixup, with a large alpha equal ones.
        mode: ``"groups"`` as in the source: the shuffled batch is cut into K groups of B / K, and
            each sample is in one mix. ``"pairing"`` as in mixup: the batch and K - 1 permutations
            of it give B mixes, and each sample is in K.
        remainder: What ``"groups"`` does with a batch that K does not divide: ``"drop"`` the last
            samples, ``"wrap"`` around to the first ones (as often as it takes, where the batch is
            smaller than K), or ``"error"``. ``"pairing"`` takes batches of any size.
        rescale: Undo the loss of contrast by `equalise_variance`.
        mean: Mean input, for ``rescale``, broadcast against the inputs; 0 for normalised inputs.
        labels_getter: ``"default"`` takes the second of a sequence, or the entry called labels,
            label, targets, target or y of a dict; else a function of the batch that returns them.

    Attributes:
        generator: The source of randomness; None until the first draw where none was given.

    Raises:
        ValueError: If an option or a batch is out of range: among others an empty batch, one
            smaller than K with ``remainder="drop"``, labels with NaN, class numbers without
            ``num_classes``, tensors inside of sequences or dicts inside of the batch, or bounding
            boxes, key points or masks of torchvision in it, which no sum of pictures has.
        TypeError: If ``generator`` is something else, such as a seed.

    Example:
        >>> mix = SumMix(2, num_classes=3, generator=torch.Generator().manual_seed(0))
        >>> x, y = mix(torch.eye(4), torch.tensor([0, 1, 2, 2]))
        >>> x.shape, y.sum(1)
        (torch.Size([2, 4]), tensor([1., 1.]))
        >>> mix
        SumMix(num_groups=2, num_classes=3, alpha=None, mode='groups', remainder='drop',
               rescale=False, mean=0.0, labels_getter='default')

    Notes:
        Further tensors with a row per example, like an index, keep the row of a mix's first sample,
        and so do lists of that length and tuples of strings. Mix after augmentation and
        normalisation, as the source does. NaN in an input goes on to its mixes.

        Batches that workers have prepared ahead were mixed with the K of that moment. Change K
        between epochs, before the loader is iterated over, where that matters, or mix after the
        loader. The state holds the main process's generator only: workers are seeded anew by every
        iteration over a loader without ``persistent_workers``.
    """

    def __init__(
        self,
        num_groups: int = 2,
        *,
        num_classes: int | None = None,
        generator: torch.Generator | None = None,
        alpha: float | None = None,
        mode: Mode = "groups",
        remainder: Remainder = "drop",
        rescale: bool = False,
        mean: Tensor | float = 0.0,
        labels_getter: Literal["default"] | Callable[[Any], Tensor] = "default",
    ) -> None:
        super().__init__()
        if alpha is not None and not _SMALLEST_ALPHA <= alpha < math.inf:
            raise ValueError(
                f"alpha must be finite, at least {_SMALLEST_ALPHA}, or None, got {alpha}"
            )
        for name, value, known in (("mode", mode, Mode), ("remainder", remainder, Remainder)):
            if value not in get_args(known):
                raise ValueError(f"{name} must be one of {get_args(known)}, got {value!r}")
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        if isinstance(mean, Tensor):
            finite("mean", mean)
        elif not math.isfinite(mean):
            raise ValueError(f"mean must be finite, got {mean}")
        self._count = SharedCount(_whole(num_groups))
        if generator is not None:
            source_of_randomness("generator", generator)
        self.num_classes, self.generator = num_classes, generator
        self.alpha, self.mode, self.remainder = alpha, mode, remainder
        self.rescale, self.mean, self.labels_getter = rescale, mean, labels_getter
        self._worker_seed: int | None = None

    def extra_repr(self) -> str:
        """Return the settings, and the weights where they were set."""
        k, weights = self._count.read()
        settings: dict[str, object] = {"num_groups": k, "num_classes": self.num_classes}
        names = ("alpha", "mode", "remainder", "rescale", "mean", "labels_getter")
        settings |= {name: getattr(self, name) for name in names}
        if isinstance(self.mean, Tensor):
            settings["mean"] = self.mean.tolist() if self.mean.numel() < 10 else self.mean.shape
        if weights is not None:
            settings["weights"] = weights.tolist()
        return ", ".join(f"{name}={value!r}" for name, value in settings.items())

    @property
    def num_groups(self) -> int:
        """Number of samples in a mix, K."""
        return self._count.read()[0]

    @num_groups.setter
    def num_groups(self, k: int) -> None:
        self._count.write(_whole(k), self.weights)

    @property
    def weights(self) -> Tensor | None:
        """Weights ``(K,)`` that were set, float64, or None."""
        return self._count.read()[1]

    def set_weights(self, weights: Tensor | None) -> None:
        """Mix with these weights from now on, as a smooth cascade asks, without drawing any.

        Args:
            weights: Shape ``(K,)``, at most 256 of them, at least 0 with sum 1; ``None`` to go
                back to those of ``alpha`` with the K of now.

        Raises:
            ValueError: If the weights are not such numbers.
        """
        if weights is None:
            self._count.write(self.num_groups, None)
            return
        total = float(weights.double().sum()) if weights.ndim == 1 else math.nan
        if not (abs(total - 1) <= 1e-6 and float(weights.min()) >= 0):
            raise ValueError(
                "weights must be (K,), at least 0 with sum 1 (to 1e-6, so not in half precision), "
                f"got {weights.tolist()}"
            )
        self._count.write(len(weights), weights)

    def forward(self, *inputs: Any) -> Any:
        """Return the mixed batch, in the structure of the inputs.

        Args:
            inputs: ``x, labels, ...``, or one sequence or dict of them: ``x`` floating, shape
                ``(B, ...)``, and labels ``(B,)`` of an integer type or soft ones ``(B, C)``.

        Returns:
            Mixes ``(B / K, ...)``, in mode ``"pairing"`` ``(B, ...)``, of the inputs' type, and
            soft labels; those of class numbers have the default type.

        Raises:
            ValueError: If the batch is out of range, see the class.
        """
        batch: Any = inputs[0] if len(inputs) == 1 else inputs
        is_mapping = isinstance(batch, Mapping)
        if not (is_mapping or isinstance(batch, Sequence)):
            raise ValueError(f"expected mix(x, labels), a sequence or a dict, got {type(batch)}")
        items = list(batch.values()) if is_mapping else list(batch)
        labels = self._labels_of(batch, is_mapping)
        x = self._inputs_of(items, labels)
        n = len(x)
        checked_labels = self._checked_labels(labels, n)
        k, weights = self._count.read()
        self._check_count(n, k, weights)
        groups: Tensor | None = None
        if k > 1:
            groups = self._draw_groups(n, k).to(x.device)
            mixed, soft = self._mix(x, checked_labels, groups, weights)
            mixed = _as_subclass_of(x, mixed)
        else:
            mixed, soft = x, self._soft(checked_labels)

        def changed(item: Any) -> Any:
            """Return what takes the place of an item of the batch."""
            if item is x or item is labels:
                return mixed if item is x else soft
            return item if groups is None else _rows_of(item, groups[0], n)

        if is_mapping:
            return {name: changed(item) for name, item in batch.items()}
        changed_items = [changed(item) for item in items]
        if hasattr(batch, "_fields"):  # a named tuple
            return type(batch)(*changed_items)
        return changed_items if isinstance(batch, list) else tuple(changed_items)

    def _mix(
        self, x: Tensor, labels: Tensor, groups: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Mix inputs, and labels as `_checked_labels` returns them."""
        if weights is None and self.alpha is not None:
            weights = _dirichlet((len(groups),), self.alpha, self._seeded_generator())
        members = groups.T.reshape(-1)  # (B K,)
        soft = self._mix_labels(labels, groups, members, weights)
        return self._mix_inputs(x, members, len(groups), weights), soft

    def _mix_inputs(self, x: Tensor, members: Tensor, k: int, weights: Tensor | None) -> Tensor:
        """Return the mixed inputs ``(B, ...)``, with their contrast restored if ``rescale``."""
        mixed = mix_inputs(x, members, k, weights)
        if self.rescale:
            wide = widened(x)
            weights = wide.new_full((k,), 1 / k) if weights is None else weights
            mean = self.mean.to(wide) if isinstance(self.mean, Tensor) else self.mean
            mixed = equalise_variance(mixed, weights.to(wide), mean)
        return mixed

    def _mix_labels(
        self, labels: Tensor, groups: Tensor, members: Tensor, weights: Tensor | None
    ) -> Tensor:
        """Return soft labels of the mixes, ``(B, C)``."""
        if weights is None and self.num_classes is not None and labels.ndim == 1:
            return mix_classes(labels, members, len(groups), self.num_classes)
        return mix_labels(self._soft(labels), groups, weights)

    def _draw_groups(self, n: int, k: int) -> Tensor:
        """Draw which of n rows each mix consists of, ``(K, B)``, on the generator's device."""
        g = self._seeded_generator()
        if self.mode == "pairing":
            orders = [torch.randperm(n, generator=g, device=g.device) for _ in range(k - 1)]
            return torch.cat([torch.arange(n, device=g.device), *orders]).view(k, n)  # (K, B)
        order = torch.randperm(n, generator=g, device=g.device)
        left_over = n % k
        if left_over and self.remainder == "error":
            raise ValueError(
                f"a batch of {n} cannot be cut into {k} groups: remainder='wrap' repeats samples, "
                "'drop' leaves the last ones out"
            )
        if left_over and self.remainder == "wrap":
            rounds = -(-k // n)  # more than one where the batch is smaller than K
            order = torch.cat([order, order.repeat(rounds)[: k - left_over]])
        return order[: len(order) // k * k].view(k, -1)  # (K, B)

    def _seeded_generator(self) -> torch.Generator:
        """Return the generator, in a loader's worker seeded from both seeds."""
        worker = get_worker_info()
        if self.generator is None:  # inside a worker the default follows the worker's seed already
            self.generator = default_generator(None)
            self._worker_seed = None if worker is None else worker.seed
        if worker is not None and self._worker_seed != worker.seed:
            # An odd constant spreads the generator's seed over all bits; the seeds of workers are
            # consecutive numbers.
            spread = self.generator.initial_seed() * 0x9E3779B97F4A7C15
            self.generator.manual_seed((spread + worker.seed) % 2**63)
            self._worker_seed = worker.seed
        return self.generator

    def _labels_of(self, batch: Any, is_mapping: bool) -> Tensor:
        """Return the labels of a batch as ``labels_getter`` says."""
        labels: Any = None
        if self.labels_getter != "default":
            labels = self.labels_getter(batch)
        elif is_mapping:
            labels = next((batch[key] for key in _LABEL_KEYS if key in batch), None)
        elif len(batch) > 1:
            labels = batch[1]
        if not isinstance(labels, Tensor):
            raise ValueError(f"found no tensor of labels, got {labels!r}: give a labels_getter")
        return labels

    def _inputs_of(self, items: list[Any], labels: Tensor) -> Tensor:
        """Return the inputs, the first tensor but for the labels; refuse what cannot be mixed."""
        for item in items:
            if type(item) is Tensor:
                continue
            kind = type(item).__name__
            if _is_nested(item):
                raise ValueError(f"a batch must be flat, with tensors for arrays, got {kind} in it")
            if _is_geometry(item):
                raise ValueError(f"a mix of pictures has no {kind}: take them out of the batch")
        others = [item for item in items if isinstance(item, Tensor) and item is not labels]
        if not others:
            raise ValueError("found no inputs beside the labels")
        if all(item is not labels for item in items):
            raise ValueError(f"labels_getter must give an entry of the batch, got {labels}")
        x = others[0]
        if not x.is_floating_point():
            raise ValueError(f"inputs must be floating (convert pixels first), got {x.dtype}")
        if x.ndim == 0:
            raise ValueError("inputs must have a row an example, got a number")
        if x.is_meta or x.device != labels.device:
            raise ValueError(
                f"need inputs and labels with values on one device, got {x.device} and "
                f"{labels.device}"
            )
        return x

    def _checked_labels(self, labels: Tensor, n: int) -> Tensor:
        """Return labels after a check: class numbers ``(N,)`` as int64, or soft ones ``(N, C)``."""
        if labels.ndim == 0 or len(labels) != n:
            raise ValueError(f"{n} inputs have {len(labels) if labels.ndim else 0} labels")
        if labels.is_floating_point():
            if labels.ndim != 2 or self.num_classes not in (None, labels.shape[1]):
                c = "C" if self.num_classes is None else self.num_classes
                raise ValueError(f"expected soft labels ({n}, {c}), got {tuple(labels.shape)}")
            finite("labels", labels)
            return labels
        if labels.ndim != 1 or labels.dtype == torch.bool:
            raise ValueError(f"expected labels ({n},), got {labels.dtype} {tuple(labels.shape)}")
        if self.num_classes is None:
            raise ValueError(f"num_classes must be set for class numbers, got {labels.dtype}")
        return class_labels(labels, self.num_classes)

    def _soft(self, labels: Tensor) -> Tensor:
        """Return labels of `_checked_labels` as soft ones ``(N, C)``."""
        if labels.ndim == 2 or self.num_classes is None:
            return labels
        return F.one_hot(labels, self.num_classes).to(torch.get_default_dtype())

    def _check_count(self, n: int, k: int, weights: Tensor | None) -> None:
        """Raise a ValueError if n samples give no mix of k, or there are not k weights."""
        if weights is not None and len(weights) != k:
            raise ValueError(f"num_groups is {k}, but set_weights gave {len(weights)} weights")
        if k > 1 and n == 0:
            raise ValueError(f"an empty batch has no mix of {k}")
        if self.mode == "groups" and self.remainder == "drop" and 0 < n < k:
            raise ValueError(
                f"a batch of {n} has no mix of {k}: remainder='wrap' repeats samples, "
                "a loader's drop_last=True leaves the last batch out"
            )

    def get_extra_state(self) -> StateDict:
        """Return K, fixed weights and the generator's state, for ``state_dict``."""
        k, weights = self._count.read()
        drawing = self._seeded_generator().get_state()
        return {"num_groups": k, "weights": weights, "generator": drawing}

    def set_extra_state(self, state: StateDict) -> None:
        """Continue from ``state``."""
        self._count.write(_whole(state["num_groups"]), state["weights"])
        self._seeded_generator().set_state(state["generator"].cpu())

    def __getstate__(self) -> StateDict:
        """Return the attributes; for a process that is being spawned, the generator as numbers.

        A generator is pickled as a tensor of its state, which for such a process goes into shared
        memory and would be gone before it is opened.
        """
        state = dict(super().__getstate__())  # type: ignore[no-untyped-call]
        g = self.generator
        if get_spawning_popen() is not None and g is not None:
            state["generator"] = str(g.device), bytes(g.get_state().tolist())
        return state

    def __setstate__(self, state: StateDict) -> None:
        """Take the attributes, with the generator as `__getstate__` gives it."""
        if isinstance(state["generator"], tuple):
            device, numbers = state["generator"]
            state = state | {"generator": torch.Generator(device)}
            state["generator"].set_state(
                torch.tensor(list(numbers), dtype=torch.uint8, device="cpu")
            )
        super().__setstate__(state)  # type: ignore[no-untyped-call]


class SingleLabelMix(SumMix):
    """`SumMix` whose mixes keep only their first sample's label (the source's ``single_label``).

    Inoue's SamplePairing (2018) is this with K = 2. Arguments, shapes and errors are those of
    `SumMix`.
    """

    def _mix_labels(
        self, labels: Tensor, groups: Tensor, members: Tensor, weights: Tensor | None
    ) -> Tensor:
        return self._soft(labels)[groups[0]]


class PixelMix(SumMix):
    """`SumMix` with independent weights for every pixel and equally averaged labels.

    These are the source's ``uniform-random`` (K = 2, ``alpha=1``) and ``beta-random``
    (``alpha=0.4``) arms. It is not mixup, which has one weight for inputs and labels. Arguments,
    shapes and errors are those of `SumMix`, except that ``alpha`` is needed and neither ``rescale``
    nor `set_weights` is allowed, which a ValueError says at the first mix.
    """

    def _mix(
        self, x: Tensor, labels: Tensor, groups: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if self.alpha is None or self.rescale or weights is not None:
            raise ValueError(
                "needs alpha, no rescale and no set weights, "
                f"got {self.alpha=}, {self.rescale=}, {weights=}"
            )
        shape = (groups.shape[1], *x.shape[1:], len(groups))
        drawn = _dirichlet(shape, self.alpha, self._seeded_generator()).to(x.device)  # (B, ..., K)
        mixed = (x[groups].movedim(0, -1) * drawn).sum(-1)  # half precision is summed in single
        return mixed.to(x.dtype), self._mix_labels(labels, groups, groups.T.reshape(-1), None)


def _whole(k: int) -> int:
    if type(k) is not int or k < 1:
        raise ValueError(f"num_groups must be a whole number from 1, got {k}")
    return k


def _dirichlet(shape: tuple[int, ...], alpha: float, generator: torch.Generator) -> Tensor:
    """Draw weights of this shape, with sum 1 over the last dimension."""
    # In float32 the shares of a small alpha all underflow now and then, and come out equal.
    dtype = torch.float64 if alpha < 0.1 else weight_type()
    concentration = torch.full(shape, float(alpha), dtype=dtype, device=generator.device)
    # torch.distributions.Dirichlet calls this, too, but takes no generator
    return torch._sample_dirichlet(concentration, generator=generator).to(weight_type())


def _as_subclass_of(like: Tensor, result: Tensor) -> Tensor:
    """Give a result the subclass of what it was computed from, where the computation lost it.

    A ``tv_tensor`` loses its class in every operation, by design; other subclasses keep it. The
    result of parameters is an ordinary tensor.
    """
    kind = type(like)
    if kind is type(result) or kind is nn.Parameter:
        return result
    return result.as_subclass(kind)


def _is_geometry(item: Any) -> bool:
    """Whether an item is of one of torchvision's kinds that belong to one picture only."""
    kinds = sys.modules.get("torchvision.tv_tensors")  # loaded where there is such an item
    return isinstance(
        item, tuple(getattr(kinds, name) for name in _GEOMETRY if hasattr(kinds, name))
    )


def _is_nested(item: Any) -> bool:
    """Whether an item of a batch holds further items, or is an array that is not a tensor."""
    if isinstance(item, Tensor):
        return False
    if isinstance(item, Mapping):
        return True
    if isinstance(item, list | tuple):
        return any(isinstance(leaf, Tensor | Mapping | list | tuple) for leaf in item)
    return hasattr(item, "__array__") and getattr(item, "ndim", 0) > 0


def _rows_of(item: Any, first: Tensor, n: int) -> Any:
    """Return the rows of the mixes' first samples, if the item has n rows; else the item itself."""
    if isinstance(item, Tensor):
        has_rows = item.ndim > 0 and len(item) == n
        return _as_subclass_of(item, item[first.to(item.device)]) if has_rows else item
    is_strings = isinstance(item, tuple) and all(isinstance(leaf, str) for leaf in item)
    if (isinstance(item, list) or is_strings) and len(item) == n:
        return type(item)(item[i] for i in first.tolist())
    return item
