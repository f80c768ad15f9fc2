"""Wide residual networks, which the work behind chapter 5 uses on CIFAR."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainaug.training.randomness import initialise

__all__ = ["WideResNet"]


class _Block(nn.Module):
    """Two 3x3 convolutions, each after BatchNorm and ReLU, plus a shortcut.

    If the number of channels changes, the shortcut is a 1x1 convolution of the first activations;
    otherwise it is the input itself.
    """

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(inputs), nn.BatchNorm2d(width)])
        self.first = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut = None
        if inputs != width:
            self.shortcut = nn.Conv2d(inputs, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's features."""
        y = F.relu(self.norms[0](x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        y = self.second(F.relu(self.norms[1](self.first(y))))
        return y + shortcut  # type: ignore[no-any-return]


class WideResNet(nn.Module):
    """WRN-depth-width without dropout: three stages of 16, 32 and 64 channels times ``width``.

    It maps ``(B, in_channels, H, W)`` to logits ``(B, C)``; WRN-28-10 has 36 479 194 parameters for
    three channels and 10 classes. Zagoruyko and Komodakis, Wide Residual Networks, BMVC 2016.

    Args:
        depth: Number of convolutions, three shortcuts included: 6 n + 4 with n blocks per stage.
        width: Factor by which the channels are multiplied.
        num_classes: Number of classes, C.
        generator: Draws the weights. Departure from the authors: they are uniform, as `initialise`
            draws them, not He's normal ones.
        in_channels: Channels of a picture.

    Raises:
        ValueError: If a size is impossible.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        num_classes: int,
        generator: torch.Generator,
        *,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"depth must be 6 n + 4 with n >= 1, as 10, 16, 28 or 40, got {depth}")
        if min(width, num_classes, in_channels) < 1:
            raise ValueError(f"need sizes >= 1, got {width=}, {num_classes=}, {in_channels=}")
        channels = 16
        with torch.device("meta"):
            self.stem = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
            self.stages = nn.Sequential()
            for stage in range(3):
                for block in range((depth - 4) // 6):
                    stride = 2 if stage and not block else 1
                    self.stages.append(_Block(channels, 16 * 2**stage * width, stride))
                    channels = 16 * 2**stage * width
            self.norm = nn.BatchNorm2d(channels)
            self.head = nn.Linear(channels, num_classes)
        initialise(self, generator)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(B, C)`` of pictures ``(B, in_channels, H, W)``.

        Args:
            x: Pictures, ``(B, in_channels, H, W)``.
        """
        x = self.stages(self.stem(x.contiguous(memory_format=torch.channels_last)))
        x = F.relu(self.norm(x))  # (B, 64 width, H/4, W/4)
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]
