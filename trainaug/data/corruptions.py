"""Synthetic corruptions of real pictures: noise, blur and contrast at five severities.

They follow Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions", ICLR 2019, but are computed here, for pictures of any size; it is not their data set.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from trainaug.extras import extra

__all__ = ["CORRUPTIONS", "SEVERITIES", "Corruption", "corrupt"]

#: Kind of a corruption.
Corruption = Literal["noise", "blur", "contrast"]
#: The kinds of corruption, in the order of the tables.
CORRUPTIONS: tuple[Corruption, ...] = get_args(Corruption)
#: The severities, from mild to strong.
SEVERITIES = (1, 2, 3, 4, 5)
_NOISE = (0.05, 0.1, 0.15, 0.2, 0.3)  # standard deviation
_BLUR = (0.5, 0.75, 1.0, 1.5, 2.0)  # standard deviation in pixels of a picture of 28
_CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)  # factor on the distance from the picture's mean


def corrupt(
    x: Tensor, kind: Corruption, severity: int, *, generator: torch.Generator | None = None
) -> Tensor:
    """Return corrupted pictures in [0, 1].

    Args:
        x: Pictures in [0, 1], shape ``(B, 1 or 3, H, W)``; never changed.
        kind: ``"noise"`` (Gaussian, clipped), ``"blur"`` (Gaussian) or ``"contrast"``.
        severity: 1 to 5.
        generator: Source of the noise; the other kinds need none.

    Raises:
        ValueError: If an option is unknown, noise has no generator, or ``x`` is not floating point.
    """
    if kind not in CORRUPTIONS or severity not in SEVERITIES:
        raise ValueError(
            f"kind must be one of {', '.join(CORRUPTIONS)} and severity 1 to 5, "
            f"got {kind!r}, {severity!r}"
        )
    if not x.is_floating_point():
        raise ValueError(f"pictures must be floating point in [0, 1], got {x.dtype}")
    if kind == "noise":
        if generator is None:
            raise ValueError("noise needs a generator")
        noise = torch.randn(x.shape, dtype=x.dtype, generator=generator, device=generator.device)
        return (x + _NOISE[severity - 1] * noise.to(x.device)).clamp(0, 1)
    with extra("data"):
        from torchvision.transforms.v2 import functional

    if kind == "contrast":
        paler: Tensor = functional.adjust_contrast(x, _CONTRAST[severity - 1])
        return paler
    size = min(x.shape[-2:])
    kernel = min(11, 2 * ((size - 1) // 2) + 1)  # odd, and no larger than the picture
    sigma = _BLUR[severity - 1] * math.sqrt(size / 28)
    blurred: Tensor = functional.gaussian_blur(x, [kernel, kernel], [sigma, sigma])
    return blurred.clamp(0, 1)  # weights add up to 1 but for rounding
