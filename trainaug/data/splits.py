"""Which examples a run is given: parts, so many of each class, exact copies, and wrong labels.

All functions draw from the generator that they are given, and nothing else, so equal generators
give equal results. What is drawn, and in which order, is part of their behaviour: the same seed
must always give the same parts. The draws are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainaug.checks import class_labels
from trainaug.data.arrays import Arrays

__all__ = [
    "add_label_noise",
    "cut_parts",
    "draw_copies",
    "draw_of_each_class",
    "draw_parts",
    "join_pictures",
    "take_of_each_class",
]


def join_pictures(arrays: Arrays) -> tuple[Tensor, Tensor, int]:
    """Put the official training and test pictures of a data set in one row, training first.

    Args:
        arrays: ``train_x``, ``train_y``, ``test_x`` and ``test_y``, the last two of length 0 where
            there is no official test set. Pictures are ``(N, C, H, W)``, grey ones also
            ``(N, H, W)``, grey squares also ``(N, D)``.

    Returns:
        Pictures as stored, ``(N, C, H, W)``; classes, int64 ``(N,)``; how many, from the first,
        may be trained on.

    Raises:
        ValueError: If flat pictures are no squares.
    """
    x, y = (np.concatenate([arrays[f"train_{k}"], arrays[f"test_{k}"]]) for k in "xy")
    if x.ndim == 2:
        side = isqrt(x.shape[1])
        if side**2 != x.shape[1]:
            raise ValueError(f"pictures of {x.shape[1]} pixels are no squares")
        x = x.reshape(len(x), side, side)
    pictures = torch.from_numpy(x[:, None] if x.ndim == 3 else x)
    return pictures, torch.from_numpy(y.astype(np.int64)), len(arrays["train_y"])


def cut_parts(order: Tensor, sizes: Mapping[str, int | None]) -> dict[str, Tensor]:
    """Cut an order of examples into named parts, one after the other.

    Args:
        order: Row numbers, ``(N,)``.
        sizes: Size of each part, in the order of the cuts. None, for at most one part, stands for
            all rows that the others leave; without it the last rows may be in no part.

    Returns:
        Rows of each part, by name, in the order of ``sizes``.

    Raises:
        ValueError: If a size is negative, or there are too few rows.

    Example:
        >>> cut_parts(torch.tensor([3, 0, 4, 1, 2]), {"val": 1, "train": None, "test": 2})
        {'val': tensor([3]), 'train': tensor([0, 4]), 'test': tensor([1, 2])}
    """
    known = [size for size in sizes.values() if size is not None]
    left = len(order) - sum(known)
    if left < 0 or min(known, default=0) < 0 or len(sizes) > len(known) + 1:
        raise ValueError(f"cannot cut {len(order)} examples into parts of {dict(sizes)}")
    counts = [left if size is None else size for size in sizes.values()]
    parts = torch.split(order[: sum(counts)], counts)
    return dict(zip(sizes, parts, strict=True))


def draw_parts(
    sizes: Mapping[str, int | None],
    num_examples: int,
    generator: torch.Generator,
    *,
    num_official_test: int = 0,
) -> dict[str, Tensor]:
    """Draw disjoint parts of a data set at random.

    A permutation of the examples is cut by `cut_parts`. If there is an official test set, the part
    ``test`` is cut from a second permutation, of that set alone.

    Args:
        sizes: Sizes of the parts, as in `cut_parts`.
        num_examples: Number of examples, N, without an official test set.
        generator: Draws the permutations.
        num_official_test: Number of examples of the official test set, M, which follow the others.

    Returns:
        Rows of each part, by name, int64 on the CPU: 0 to N - 1, of the official test set N to
        N + M - 1.

    Raises:
        ValueError: If a size is negative, or there are too few examples.
    """
    g = generator
    order = torch.randperm(num_examples, generator=g, device=g.device).cpu()
    if num_official_test == 0:
        return cut_parts(order, sizes)
    official = num_examples + torch.randperm(num_official_test, generator=g, device=g.device).cpu()
    parts = cut_parts(order, {name: size for name, size in sizes.items() if name != "test"})
    parts |= cut_parts(official, {name: size for name, size in sizes.items() if name == "test"})
    return {name: parts[name] for name in sizes}


def take_of_each_class(y: Tensor, count: int, num_classes: int) -> Tensor:
    """Return the first ``count`` examples of each class, in increasing order.

    Args:
        y: Classes from 0, ``(N,)``.
        count: Examples of each class.
        num_classes: Number of classes, C.

    Returns:
        Positions in ``y``, int64 ``(count * C,)``.

    Raises:
        ValueError: If a class has too few examples.

    Example:
        >>> take_of_each_class(torch.tensor([1, 1, 0, 1, 0]), 1, 2)
        tensor([0, 2])
    """
    kept = torch.zeros(len(y), dtype=torch.bool)
    for c in range(num_classes):
        first = (y == c).nonzero().squeeze(1)[:count]
        if len(first) < count:
            raise ValueError(f"class {c} has {len(first)} examples, {count} are asked for")
        kept[first] = True
    return kept.nonzero().squeeze(1)


def draw_of_each_class(
    y: NDArray[np.integer], counts: Mapping[int, int], generator: np.random.Generator
) -> NDArray[np.int64]:
    """Draw so many examples of some classes; a smaller draw of equal seed is part of a larger one.

    Args:
        y: Classes, ``(N,)``.
        counts: How many of which class, in the order in which the classes are permuted.
        generator: Draws a permutation of each class.

    Returns:
        Positions in ``y``, sorted.

    Raises:
        ValueError: If a class has too few examples.
    """
    drawn = []
    for c, count in counts.items():
        members = np.flatnonzero(y == c)
        if not 0 <= count <= len(members):
            raise ValueError(f"class {c} has {len(members)} examples, {count} are asked for")
        drawn.append(generator.permutation(members)[:count])
    return np.sort(np.concatenate(drawn))


def draw_copies(
    num_examples: int, num_distinct: int, num_copied: int, generator: torch.Generator
) -> Tensor:
    """Draw an order of distinct examples and exact copies of a few of them.

    Args:
        num_examples: Number of examples with their copies, N.
        num_distinct: Number of distinct examples, K; each occurs at least once.
        num_copied: How many of them, the first ones, also have copies: equally many each, or one
            more.
        generator: Draws the order.

    Returns:
        Number of the distinct example that each is, 0 to K - 1, int64 ``(N,)`` on the CPU.

    Raises:
        ValueError: Unless ``1 <= num_copied <= num_distinct <= num_examples``.
    """
    if not 1 <= num_copied <= num_distinct <= num_examples:
        raise ValueError(
            f"need 1 <= num_copied <= num_distinct <= num_examples, got {num_copied}, "
            f"{num_distinct}, {num_examples}"
        )
    g = generator
    copies = torch.arange(num_examples - num_distinct, device="cpu") % num_copied
    numbers = torch.cat([torch.arange(num_distinct, device="cpu"), copies])
    return numbers[torch.randperm(num_examples, generator=g, device=g.device).cpu()]


def add_label_noise(
    y: Tensor,
    share: float,
    num_classes: int,
    generator: torch.Generator,
    *,
    classes_first: bool = False,
) -> tuple[Tensor, Tensor]:
    """Replace labels by another class, each with the same probability and independently.

    All other classes are equally likely. For every label one number decides whether it is replaced,
    another by which class, so what the generator draws later does not depend on ``share``.

    Args:
        y: Labels from 0, ``(N,)``, on the CPU.
        share: Probability that a label is replaced, in [0, 1].
        num_classes: Number of classes, at least 2.
        generator: Source of the draws.
        classes_first: Draw all other classes before it is decided which labels are replaced, as
            chapter 4 does; the others draw them afterwards.

    Returns:
        The labels, int64 ``(N,)``, and which of them are wrong, bool ``(N,)``.

    Raises:
        ValueError: If the share or a label is out of range, or there is only one class.
    """
    if not 0 <= share <= 1 or num_classes < 2:
        raise ValueError(f"need 0 <= share <= 1 and two classes, got {share=}, {num_classes=}")
    y, g = class_labels(y, num_classes), generator

    def draw_shifts() -> Tensor:
        return torch.randint(1, num_classes, y.shape, generator=g, device=g.device).cpu()

    def draw_wrong() -> Tensor:
        return torch.rand(y.shape, generator=g, device=g.device).cpu() < share

    if classes_first:
        shifts, wrong = draw_shifts(), draw_wrong()
    else:
        wrong, shifts = draw_wrong(), draw_shifts()
    return torch.where(wrong, (y + shifts) % num_classes, y), wrong
