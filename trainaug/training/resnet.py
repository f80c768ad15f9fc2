"""The smallest residual network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainaug.training.randomness import initialise

__all__ = ["ResNet8"]


class _Block(nn.Module):
    """Two 3x3 convolutions plus a shortcut, which is a 1x1 convolution if the shape changes."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(width), nn.BatchNorm2d(width)])
        self.shortcut = nn.Sequential()  # empty: the identity
        if stride != 1 or inputs != width:
            shrink = nn.Conv2d(inputs, width, 1, stride, bias=False)
            self.shortcut.extend([shrink, nn.BatchNorm2d(width)])

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's features."""
        y = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.norms[1](self.second(y)) + self.shortcut(x))


class ResNet8(nn.Module):
    """He et al.'s ResNet for CIFAR with one block per stage: 16, 32 and 64 channels.

    It maps ``(B, in_channels, H, W)`` to logits ``(B, C)`` and has 78 042 parameters for three
    channels and 10 classes. He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition",
    CVPR 2016, section 4.2, with n = 1 and 1x1 convolutions where shapes change. Its memory layout
    is channels-last.

    Args:
        num_classes: C, at least 1.
        generator: Draws the weights (`initialise`); they live on its device.
        in_channels: Channels of a picture, at least 1.

    Raises:
        ValueError: If a size is below 1.
    """

    def __init__(
        self, num_classes: int, generator: torch.Generator, *, in_channels: int = 3
    ) -> None:
        super().__init__()
        if min(num_classes, in_channels) < 1:
            raise ValueError(f"need sizes >= 1, got {num_classes=}, {in_channels=}")
        with torch.device("meta"):
            self.stem = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(16)
            self.stages = nn.Sequential(_Block(16, 16, 1), _Block(16, 32, 2), _Block(32, 64, 2))
            self.head = nn.Linear(64, num_classes)
        initialise(self, generator)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(B, C)`` of pictures ``(B, in_channels, H, W)``.

        Args:
            x: Pictures, ``(B, in_channels, H, W)``.
        """
        x = x.contiguous(memory_format=torch.channels_last)
        x = self.stages(F.relu(self.norm(self.stem(x))))  # (B, 64, H/4, W/4)
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]
