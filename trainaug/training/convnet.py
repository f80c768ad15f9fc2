"""Two cheap convolutional networks of our own: one without BatchNorm by default, one with strides.

Without BatchNorm the examples of a batch do not depend on each other.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainaug.training.randomness import initialise

__all__ = ["StridedConvNet", "TwoConvNet"]


class TwoConvNet(nn.Module):
    """Two 3x3 convolutions (8, 16 channels) with max pooling between, mean pooling, linear layer.

    It maps ``(B, in_channels, H, W)``, sides of at least 2, to logits ``(B, C)`` and has 1 898
    parameters for grey pictures and 10 classes. The design is ours, the smallest that gains from
    convolutions.

    Args:
        num_classes: C, at least 1.
        generator: Draws the weights (`initialise`); they live on its device.
        in_channels: Channels of a picture, at least 1.
        batch_norm: Whether BatchNorm follows each convolution; if so, the examples of a batch
            depend on each other in train mode.

    Raises:
        ValueError: If a size is below 1.
    """

    def __init__(
        self,
        num_classes: int,
        generator: torch.Generator,
        *,
        in_channels: int = 1,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        if min(num_classes, in_channels) < 1:
            raise ValueError(f"need sizes >= 1, got {num_classes=}, {in_channels=}")
        with torch.device("meta"):
            self.first = nn.Conv2d(in_channels, 8, 3, padding=1)
            self.second = nn.Conv2d(8, 16, 3, padding=1)
            self.norms = nn.ModuleList(
                nn.BatchNorm2d(width) if batch_norm else nn.Identity() for width in (8, 16)
            )
            self.head = nn.Linear(16 * 4, num_classes)
        initialise(self, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(B, C)`` of pictures ``(B, in_channels, H, W)``.

        Args:
            x: Pictures, ``(B, in_channels, H, W)``.
        """
        x = F.max_pool2d(F.relu(self.norms[0](self.first(x))), 2)  # (B, 8, H/2, W/2)
        x = F.relu(self.norms[1](self.second(x)))  # (B, 16, H/2, W/2)
        return self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))  # type: ignore[no-any-return]


class StridedConvNet(nn.Module):
    """Three 3x3 convolutions of stride 2 (16, 32, 64 channels), BatchNorm, ReLU, linear layer.

    It maps ``(B, in_channels, image_size, image_size)`` to logits ``(B, C)`` and has 33 642
    parameters for 28x28 grey pictures and 10 classes. The design is ours; with strides in place of
    pooling it costs a third of `SmallCNN`. Its memory layout is channels-last.

    Args:
        num_classes: C, at least 1.
        generator: Draws the weights (`initialise`); they live on its device.
        in_channels: Channels of a picture, at least 1.
        image_size: Side of a picture in pixels, at least 1.

    Raises:
        ValueError: If a size is below 1.
    """

    def __init__(
        self,
        num_classes: int,
        generator: torch.Generator,
        *,
        in_channels: int = 1,
        image_size: int = 28,
    ) -> None:
        super().__init__()
        if min(num_classes, in_channels, image_size) < 1:
            raise ValueError(f"need sizes >= 1, got {num_classes=}, {in_channels=}, {image_size=}")
        self.features = nn.Sequential()
        with torch.device("meta"):
            for inputs, width in [(in_channels, 16), (16, 32), (32, 64)]:
                convolution = nn.Conv2d(inputs, width, 3, 2, padding=1, bias=False)
                self.features.extend([convolution, nn.BatchNorm2d(width), nn.ReLU()])
                image_size = (image_size + 1) // 2
            self.head = nn.Linear(64 * image_size**2, num_classes)
        initialise(self, generator)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(B, C)`` of pictures ``(B, in_channels, H, W)``.

        Args:
            x: Pictures, ``(B, in_channels, H, W)``.
        """
        x = self.features(x.contiguous(memory_format=torch.channels_last))  # (B, 64, H/8, W/8)
        return self.head(x.flatten(1))  # type: ignore[no-any-return]
