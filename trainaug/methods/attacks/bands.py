r"""Bands of frequencies: masks of the full spectrum by radius, and the check of a ball's band.

Chapter: notebooks/06_linear_robustness.ipynb
Reference: Faghri et al., "Bridging the Gap Between Adversarial Robustness and Optimization Bias",
2021, arXiv 2102.08868, the Fourier-$\ell_\infty$ attack that a band restricts. The authors' code
has no bands: these cuts are ours.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from trainaug.roots import sqrt

__all__ = ["equal_bands", "radial_band"]


def _mirror(spectrum: Tensor) -> Tensor:
    """Return a full spectrum with the entry of frequency ``-k`` at ``k``."""
    axes = tuple(range(spectrum.ndim))
    return spectrum.flip(axes).roll([1] * spectrum.ndim, axes)


def check_band(band: Tensor, x: Tensor, sides: tuple[int, ...]) -> Tensor:
    """Return the factors of a band, in type and on device of ``x``; ValueError if it is not one."""
    if band.shape != sides or band.is_complex():
        raise ValueError(f"need a real band of {sides}, got {band.dtype} {tuple(band.shape)}")
    if band.is_meta:
        raise ValueError("need the values of a band, got a tensor on the meta device")
    factors = band.detach().to(x.device, x.dtype)
    if not bool((factors.isfinite() & (factors >= 0)).all()):
        raise ValueError(f"factors of a band are finite and at least 0, got {factors.min()}")
    if not bool(factors.any()):
        raise ValueError(f"the band is empty: none of {factors.numel()} frequencies")
    unequal = (factors != _mirror(factors)).nonzero()
    if len(unequal):
        raise ValueError(f"the band differs between k and -k, first at k = {unequal[0].tolist()}")
    return factors


def _radii(shape: tuple[int, ...]) -> Tensor:
    """Return the radius of each frequency in cycles per pixel, float64, of the given shape."""
    if not shape or min(shape) < 1:
        raise ValueError(f"the shape of a spectrum needs sides of at least 1, got {shape}")
    axes = [torch.fft.fftfreq(n, dtype=torch.float64, device="cpu") for n in shape]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    return sqrt(grid.square().sum(0))


def radial_band(shape: tuple[int, ...], low: float, high: float) -> Tensor:
    r"""Mask the frequencies with $\text{low}\le r(k)<\text{high}$, $r(k)=\sqrt{f_x^2+f_y^2}$.

    Args:
        shape: Sides of the signal, ``(H, W)`` or ``(D,)``.
        low: Lower edge in cycles per pixel; radii of pictures run from 0 to 0.7071.
        high: Upper edge, not in the band.

    Returns:
        Mask in the layout of ``torch.fft.fft2``, boolean, shape ``shape``, on the CPU; symmetric
        under $k\to-k$. It may be empty, which the attacks refuse.

    Raises:
        ValueError: If not ``low < high``, or a side is below 1.

    Example:
        >>> radial_band((4,), 0.25, 0.5)
        tensor([False,  True, False,  True])
    """
    if not low < high:
        raise ValueError(f"a band needs low < high, got {low} and {high}")
    radii = _radii(shape)
    return (radii >= low) & (radii < high)


def equal_bands(shape: tuple[int, ...], count: int) -> Tensor:
    r"""Split all N frequencies by radius into bands with about equal numbers of frequencies.

    Frequencies are sorted by radius, then by position in the spectrum. A cut that would part $k$
    from $-k$ moves up by one. Each size is within two of N / ``count``.

    Args:
        shape: Sides of the signal, ``(H, W)`` or ``(D,)``.
        count: Number of bands.

    Returns:
        Disjoint symmetric masks from low to high radius, boolean, shape ``(count, *shape)``,
        on the CPU.

    Raises:
        ValueError: If ``count`` is below 1 or leaves a band empty, or a side is below 1.

    Example:
        >>> equal_bands((5,), 2).int()
        tensor([[1, 1, 0, 0, 1],
                [0, 0, 1, 1, 0]], dtype=torch.int32)
    """
    radii = _radii(shape)
    index = torch.arange(radii.numel(), device=radii.device).view(shape)
    pair_ids = torch.minimum(index, _mirror(index)).flatten()  # the same number for k and -k
    # The second sort is stable, so k and -k, which have one radius, stay next to each other.
    order = pair_ids.argsort(stable=True)
    order = order[radii.flatten()[order].argsort(stable=True)]
    sorted_ids = pair_ids[order].tolist()
    size = len(sorted_ids)
    # a count below 1 gives an empty band, which is refused below
    cuts = [round(i * size / count) for i in range(count + 1)] if count >= 1 else [0, 0]
    # True counts as 1: such a cut moves up by one
    cuts = [c + (0 < c < size and sorted_ids[c - 1] == sorted_ids[c]) for c in cuts]
    if any(a >= b for a, b in pairwise(cuts)):
        raise ValueError(f"cannot split {size} frequencies into {count} bands")
    bands = torch.zeros(count, size, dtype=torch.bool, device=radii.device)
    for band, (low, high) in zip(bands, pairwise(cuts), strict=True):
        band[order[low:high]] = True
    return bands.view(count, *shape)
