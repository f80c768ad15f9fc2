"""Small networks: classifiers of numbers and pictures, and encoders of pictures and captions.

All weights are drawn from a generator by `initialise`. A class that follows a paper names it; the
designs of the others are ours.

A batch of captions is a pair ``(tokens, weights)``: token numbers int64 ``(B, T)`` with 0 for
padding, and the weight of each token ``(B, T)``, 0 if the token is left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainaug.checks import widened
from trainaug.training.randomness import initialise

__all__ = [
    "MLP",
    "BagOfTokens",
    "CaptionGRU",
    "DualEncoder",
    "FeatureEncoder",
    "PictureCNN",
    "ResNet8",
    "SmallCNN",
    "StridedConvNet",
    "TwoConvNet",
    "WideResNet",
]

Caption = tuple[Tensor, Tensor]


def _check_sizes(**sizes: int) -> None:
    """Raise a ValueError that names all sizes if one is below 1."""
    if min(sizes.values()) < 1:
        given = ", ".join(f"{name}={size}" for name, size in sizes.items())
        raise ValueError(f"need sizes >= 1, got {given}")


def _dense(widths: Sequence[int], dropout: float = 0.0) -> list[nn.Module]:
    """Return linear layers from each width to the next, with ReLU and dropout between them.

    They are on the meta device, where no weight is drawn.
    """
    layers: list[nn.Module] = []
    *hidden, last = itertools.pairwise(widths)
    with torch.device("meta"):
        for inputs, outputs in hidden:
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
            layers += [nn.Dropout(dropout)] if dropout else []
        return [*layers, nn.Linear(*last)]


def _convolutions(widths: Sequence[int], stride: int = 1, *, pool: bool = False) -> nn.Sequential:
    """Return 3x3 convolutions from each number of channels to the next, with BatchNorm and ReLU.

    They are on the meta device; 2x2 max pooling follows each if ``pool``.
    """
    layers = nn.Sequential()
    with torch.device("meta"):
        for inputs, width in itertools.pairwise(widths):
            convolution = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
            layers.extend([convolution, nn.BatchNorm2d(width), nn.ReLU()])
            layers.extend([nn.MaxPool2d(2)] if pool else [])
    return layers


class MLP(nn.Sequential):
    """Flatten, hidden layers with ReLU, output layer; maps ``(B, ...)`` to logits ``(B, C)``.

    It has no normalisation, so examples stay independent.

    Args:
        in_features: How many numbers an example has, at least 1.
        hidden: Units of the hidden layer, at least 1, or of each of several; with an empty tuple
            the model is linear.
        num_classes: C, at least 1.
        generator: Draws the weights (`initialise`); they live on its device.
        dropout: Dropout rate of the hidden units in train mode. It draws from PyTorch's global
            generator, unless it is 0.

    Raises:
        ValueError: If a size is below 1.
    """

    def __init__(
        self,
        in_features: int,
        hidden: int | Sequence[int],
        num_classes: int,
        generator: torch.Generator,
        *,
        dropout: float = 0.0,
    ) -> None:
        widths = tuple(hidden) if isinstance(hidden, Sequence) else (hidden,)
        if min(in_features, *widths, num_classes) < 1:
            raise ValueError(f"need sizes >= 1, got {in_features=}, {hidden=}, {num_classes=}")
        super().__init__(nn.Flatten(), *_dense((in_features, *widths, num_classes), dropout))
        initialise(self, generator)


class SmallCNN(nn.Module):
    """Three 3x3 convolutions, each with BatchNorm, ReLU and 2x2 pooling, then 96 hidden units.

    It maps ``(B, in_channels, image_size, image_size)`` to logits ``(B, C)`` and has 79 770
    parameters for 28x28 grey pictures and 10 classes.

    Args:
        num_classes: C, at least 1.
        generator: Draws the weights (`initialise`); they live on its device.
        in_channels: Channels of a picture, at least 1.
        image_size: Side of a picture in pixels, at least 8.
        channels_last: Whether the memory layout is channels-last, about 1.5 times as fast on a CPU.

    Raises:
        ValueError: If a size is too small.
    """

    def __init__(
        self,
        num_classes: int,
        generator: torch.Generator,
        *,
        in_channels: int = 1,
        image_size: int = 28,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        if min(num_classes, in_channels, image_size // 8) < 1:
            raise ValueError(f"too small: {num_classes=}, {in_channels=}, {image_size=} (8 up)")
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.features = _convolutions((in_channels, 16, 32, 64), pool=True)
        dense = _dense((64 * (image_size // 8) ** 2, 96, num_classes))
        self.head = nn.Sequential(nn.Flatten(), *dense)
        initialise(self, generator)
        self.to(memory_format=self.memory_format)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(B, C)`` of pictures ``(B, in_channels, H, W)``.

        Args:
            x: Pictures, ``(B, in_channels, H, W)``.
        """
        x = self.features(x.contiguous(memory_format=self.memory_format))  # (B, 64, 3, 3)
        return self.head(x)  # type: ignore[no-any-return]


class TwoConvNet(nn.Module):
    """Two 3x3 convolutions (8, 16 channels) with max pooling between, mean pooling, linear layer.

    It maps ``(B, in_channels, H, W)``, sides of at least 2, to logits ``(B, C)`` and has 1 898
    parameters for grey pictures and 10 classes. It is the smallest network that gains from
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
        _check_sizes(num_classes=num_classes, in_channels=in_channels)
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
    parameters for 28x28 grey pictures and 10 classes. With strides in place of pooling it costs a
    third of `SmallCNN`. Its memory layout is channels-last.

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
        _check_sizes(num_classes=num_classes, in_channels=in_channels, image_size=image_size)
        self.features = _convolutions((in_channels, 16, 32, 64), stride=2)
        side = -(-image_size // 8)  # each stride halves it, rounded up
        with torch.device("meta"):
            self.head = nn.Linear(64 * side**2, num_classes)
        initialise(self, generator)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(B, C)`` of pictures ``(B, in_channels, H, W)``.

        Args:
            x: Pictures, ``(B, in_channels, H, W)``.
        """
        x = self.features(x.contiguous(memory_format=torch.channels_last))  # (B, 64, H/8, W/8)
        return self.head(x.flatten(1))  # type: ignore[no-any-return]


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions plus a shortcut, which is a 1x1 convolution if the shape changes."""

    def __init__(
        self, inputs: int, width: int, stride: int, norm: Callable[[int], nn.Module]
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([norm(width), norm(width)])
        self.shortcut = nn.Sequential()  # empty: the identity
        if stride != 1 or inputs != width:
            shrink = nn.Conv2d(inputs, width, 1, stride, bias=False)
            self.shortcut.extend([shrink, norm(width)])

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
        batch_norm: Whether there is BatchNorm; without it, as the work behind chapter 2 uses the
            network, the examples of a batch do not depend on each other.

    Raises:
        ValueError: If a size is below 1.
    """

    def __init__(
        self,
        num_classes: int,
        generator: torch.Generator,
        *,
        in_channels: int = 3,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        _check_sizes(num_classes=num_classes, in_channels=in_channels)
        with torch.device("meta"):
            self.stem = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
            norm = nn.BatchNorm2d if batch_norm else nn.Identity
            self.norm = norm(16)
            shapes = [(16, 16, 1), (16, 32, 2), (32, 64, 2)]
            self.stages = nn.Sequential(*(_ResidualBlock(*shape, norm) for shape in shapes))
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


class _PreActivationBlock(nn.Module):
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
        _check_sizes(width=width, num_classes=num_classes, in_channels=in_channels)
        channels = 16
        with torch.device("meta"):
            self.stem = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
            self.stages = nn.Sequential()
            for stage in range(3):
                for block in range((depth - 4) // 6):
                    stride = 2 if stage and not block else 1
                    self.stages.append(_PreActivationBlock(channels, 16 * 2**stage * width, stride))
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


class FeatureEncoder(nn.Sequential):
    """Encoder of fixed features: hidden layer, ReLU, output layer; maps ``(B, F)`` to ``(B, D)``.

    Args:
        features: Number of features, F.
        hidden: Units of the hidden layer.
        dim: D, size of an embedding.
        generator: Draws the weights (`initialise`); they live on its device.
    """

    def __init__(self, features: int, hidden: int, dim: int, generator: torch.Generator) -> None:
        super().__init__(*_dense((features, hidden, dim)))
        initialise(self, generator)


class PictureCNN(nn.Module):
    """Four 3x3 convolutions of stride 2 with BatchNorm and ReLU, mean pooling, linear layer.

    It maps ``(B, 3, H, W)`` to ``(B, D)`` and has 114 k parameters for ``dim`` 128. Its memory
    layout is channels-last.

    Args:
        dim: D, size of an embedding.
        generator: Draws the weights (`initialise`); they live on its device.
    """

    def __init__(self, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.features = _convolutions((3, 16, 32, 64, 128), stride=2)
        with torch.device("meta"):
            self.head = nn.Linear(128, dim)
        initialise(self, generator)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Return the embeddings ``(B, D)`` of pictures ``(B, 3, H, W)``.

        Args:
            x: Pictures, ``(B, 3, H, W)``.
        """
        x = self.features(x.contiguous(memory_format=torch.channels_last))  # (B, 128, h, w)
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class BagOfTokens(nn.Module):
    """Weighted sum of word embeddings, ``(B, D)``; initially they have length about one.

    Args:
        vocabulary: Number of words, V; tokens are numbers from 0, which is padding, to V.
        dim: D, size of an embedding.
        generator: Draws the weights (`initialise`); they live on its device.
    """

    def __init__(self, vocabulary: int, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        with torch.device("meta"):
            self.embedding = nn.EmbeddingBag(vocabulary + 1, dim, mode="sum", padding_idx=0)
        initialise(self, generator)
        with torch.no_grad():
            self.embedding.weight.mul_(dim**-0.5)

    def forward(self, caption: Caption) -> Tensor:
        """Return the embeddings ``(B, D)`` of captions: tokens ``(B, T)``, weights ``(B, T)``.

        Args:
            caption: Pair of token numbers and their weights, each ``(B, T)``.
        """
        tokens, weights = caption
        return self.embedding(tokens, per_sample_weights=weights)  # type: ignore[no-any-return]


class CaptionGRU(nn.Module):
    """Word embeddings of size 64 and a GRU, whose state after the last token is the output.

    It maps tokens ``(B, T)`` and weights ``(B, T)`` to ``(B, D)``. Tokens of weight 0 are removed;
    other weights have no effect. For a caption without tokens the output is the state after one
    padding token. The design is that of the caption encoder of VSE++ (Faghri et al., BMVC 2018),
    but smaller.

    Args:
        vocabulary: Number of words, V; tokens are numbers from 0, which is padding, to V.
        dim: D, size of the state and of an embedding.
        generator: Draws the weights; they live on its device.
    """

    def __init__(self, vocabulary: int, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        with torch.device("meta"):
            self.embedding = nn.Embedding(vocabulary + 1, 64, padding_idx=0)
        initialise(self, generator)
        # On the meta device, because nn.GRU would draw its weights from the global generator.
        with torch.device("meta"):
            gru = nn.GRU(64, dim, batch_first=True)
        self.gru = gru.to_empty(device=generator.device)
        with torch.no_grad():
            for p in self.gru.parameters():
                p.uniform_(-(dim**-0.5), dim**-0.5, generator=generator)

    def forward(self, caption: Caption) -> Tensor:
        """Return the embeddings ``(B, D)`` of captions: tokens ``(B, T)``, weights ``(B, T)``.

        Args:
            caption: Pair of token numbers and their weights, each ``(B, T)``.
        """
        tokens, weights = caption
        kept = (weights > 0) & (tokens > 0)
        order = kept.logical_not().to(torch.uint8).argsort(dim=1, stable=True)  # kept tokens first
        lengths = kept.sum(1).clamp_min(1).cpu()
        words = self.embedding(tokens.gather(1, order) * kept.gather(1, order))
        packed = nn.utils.rnn.pack_padded_sequence(
            words, lengths, batch_first=True, enforce_sorted=False
        )
        return self.gru(packed)[1][0]  # type: ignore[no-any-return]


class DualEncoder(nn.Module):
    """Encode a batch of pictures and captions and score all pairs.

    The architecture is that of VSE++ (Faghri et al., BMVC 2018).

    Args:
        pictures: Encoder that maps pictures to ``(B, D)``.
        captions: Encoder that maps captions to ``(B, D)``.
        score: Maps embeddings ``(B, D)`` and ``(M, D)`` to scores ``(B, M)``.
        normalise: Which embeddings are scaled to unit length first: ``both``, ``captions`` (the
            authors' released setting for the sum of hinges) or ``none``.

    Raises:
        ValueError: If ``normalise`` is something else.
    """

    def __init__(
        self,
        pictures: nn.Module,
        captions: nn.Module,
        score: Callable[[Tensor, Tensor], Tensor],
        normalise: str = "both",
    ) -> None:
        super().__init__()
        if normalise not in ("both", "captions", "none"):
            raise ValueError(f"normalise must be both, captions or none, got {normalise!r}")
        self.pictures, self.captions, self.score = pictures, captions, score
        self.normalise = normalise

    def embed_pictures(self, x: Tensor) -> Tensor:
        """Return the embeddings of pictures, ``(B, D)``.

        Args:
            x: Pictures as their encoder takes them, ``(B, ...)``.
        """
        embedded: Tensor = self.pictures(x)
        return _unit(embedded) if self.normalise == "both" else embedded

    def embed_captions(self, caption: Caption) -> Tensor:
        """Return the embeddings of captions, ``(B, D)``.

        Args:
            caption: Pair of token numbers and their weights, each ``(B, T)``.
        """
        embedded: Tensor = self.captions(caption)
        return embedded if self.normalise == "none" else _unit(embedded)

    def forward(self, x: tuple[Tensor, Caption]) -> Tensor:
        """Return the scores of all pairs of a batch, ``(B, B)``, one row per picture.

        Args:
            x: Pictures ``(B, ...)``, and their captions.
        """
        picture, caption = x
        return self.score(self.embed_pictures(picture), self.embed_captions(caption))


def _unit(embedded: Tensor) -> Tensor:
    """Scale rows to length one, in float32 if half: float16 cannot hold squares or the 1e-12."""
    return F.normalize(widened(embedded), dim=1).to(embedded.dtype)
