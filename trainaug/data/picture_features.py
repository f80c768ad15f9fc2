"""Fixed hand-made features of small colour pictures, and random crops of pictures.

Chapter: notebooks/01_vse_hard_negatives.ipynb
Reference: the gradient histograms follow Dalal, Triggs, "Histograms of oriented gradients for
human detection", CVPR 2005, with one normalisation of the whole picture.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from trainaug.checks import finite, widened
from trainaug.roots import sqrt

__all__ = ["FEATURES", "picture_features", "random_crops"]

CELLS, ORIENTATIONS, LEVELS = 8, 8, 4
#: Number of features of a picture: cell colours, gradient energies, colour histogram.
FEATURES = 3 * CELLS**2 + ORIENTATIONS * CELLS**2 + LEVELS**3  # 192 + 512 + 64


def picture_features(pictures: Tensor) -> Tensor:
    """Describe pictures by colours and gradient directions in a grid, and a colour histogram.

    Args:
        pictures: RGB in [0, 1], shape ``(B, 3, H, W)``, sides multiples of 8.

    Returns:
        Shape ``(B, 768)``, same dtype and device: mean colours of 8x8 cells; square roots of the
        gradient energy of the grey picture in 8 directions in each cell, as shares of the whole
        picture's energy; square roots of the shares of 4x4x4 colours. Half precision is computed in
        float32.

    Raises:
        ValueError: If the shape is wrong, or the values are integers, NaN or infinite.
    """
    if pictures.ndim != 4 or pictures.shape[1] != 3 or any(s % CELLS for s in pictures.shape[2:]):
        raise ValueError(f"need (B, 3, H, W), sides multiples of 8, got {tuple(pictures.shape)}")
    _check_floating(pictures)
    finite("pictures", pictures)
    if not len(pictures):
        return pictures.new_zeros(0, FEATURES)
    dtype, pictures = pictures.dtype, widened(pictures)
    grid = F.adaptive_avg_pool2d(pictures, CELLS)  # (B, 3, 8, 8)
    grey = F.pad(pictures.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    right = (grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2]) / 2  # (B, 1, H, W)
    down = (grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1]) / 2
    # Bins are numbered in floats, which is exact and faster than in integers.
    sector = (torch.atan2(down, right) * (ORIENTATIONS / (2 * math.pi))).round().squeeze(1)
    sector = torch.where(sector < 0, sector + ORIENTATIONS, sector)  # (B, H, W)
    sector = torch.where(sector == ORIENTATIONS, 0.0, sector)  # an angle just below zero
    rows, columns = (
        torch.arange(side, device=pictures.device).mul(CELLS).div(side).floor()
        for side in pictures.shape[2:]
    )
    cell = rows.unsqueeze(1) * CELLS + columns  # (H, W)
    bin_index = (sector * CELLS**2 + cell).long()  # (B, H, W)
    energy = torch.zeros(
        len(pictures), ORIENTATIONS * CELLS**2, dtype=pictures.dtype, device=pictures.device
    )
    energy.scatter_add_(1, bin_index.flatten(1), (right.square() + down.square()).flatten(1))
    cells = sqrt(energy)  # (B, 512)
    cells = cells / cells.norm(dim=1, keepdim=True).clamp_min(1e-6)
    level = (pictures * LEVELS).floor().clamp(0, LEVELS - 1)  # (B, 3, H, W)
    colour = ((level[:, 0] * LEVELS + level[:, 1]) * LEVELS + level[:, 2]).long()  # (B, H, W)
    shares = torch.zeros(len(pictures), LEVELS**3, dtype=pictures.dtype, device=pictures.device)
    one = torch.ones((), dtype=pictures.dtype, device=pictures.device)
    shares.scatter_add_(1, colour.flatten(1), one.expand(colour.flatten(1).shape))
    shares = sqrt(shares / colour[0].numel())  # (B, 64)
    return torch.cat([grid.flatten(1), cells, shares], 1).to(dtype)


def _check_floating(pictures: Tensor) -> None:
    """Raise a ValueError if pictures are of integers."""
    if not pictures.is_floating_point():
        raise ValueError(f"pictures must be floating point in [0, 1], got {pictures.dtype}")


def random_crops(pictures: Tensor, *, smallest: float = 0.75, generator: torch.Generator) -> Tensor:
    """Cut a random window out of each picture, resize it back, and change its colours slightly.

    Args:
        pictures: RGB in [0, 1], shape ``(B, 3, H, W)``.
        smallest: Smallest side of a window as a share of the picture's side, in ``(0, 1]``.
        generator: Source of the windows, and of a factor from 0.8 to 1.2 for each colour channel.

    Returns:
        Pictures of the same shape, dtype and device, values in [0, 1]. Half precision is computed
        in float32.

    Raises:
        ValueError: If ``smallest`` is not in ``(0, 1]`` or the pictures are not floating point.
    """
    if not 0 < smallest <= 1:
        raise ValueError(f"smallest must be in (0, 1], got {smallest}")
    _check_floating(pictures)
    if not len(pictures):
        return pictures.clone()
    dtype, pictures = pictures.dtype, widened(pictures)
    draws = torch.rand(len(pictures), 6, generator=generator, device=generator.device).to(pictures)
    side = smallest + (1 - smallest) * draws[:, 0]  # (B,)
    shift = (1 - side)[:, None] * (2 * draws[:, 1:3] - 1)  # (B, 2), in [-1, 1] coordinates
    theta = torch.zeros(len(pictures), 2, 3, dtype=pictures.dtype, device=pictures.device)
    theta[:, 0, 0] = theta[:, 1, 1] = side
    theta[:, :, 2] = shift
    grid = F.affine_grid(theta, list(pictures.shape), align_corners=False)
    crops = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    gain = 0.8 + 0.4 * draws[:, 3:, None, None]  # (B, 3, 1, 1)
    return (crops * gain).clamp(0, 1).to(dtype)
