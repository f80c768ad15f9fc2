"""Small encoders of pictures and captions into one space, and a model that combines two of them.

A batch of captions is a pair ``(tokens, weights)``: token numbers int64 ``(B, T)`` with 0 for
padding, and the weight of each token ``(B, T)``, 0 if the token is left out. The architecture is
that of VSE++ (Faghri et al., BMVC 2018); the small encoders are ours.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainaug.checks import widened
from trainaug.training.randomness import initialise

__all__ = ["BagOfTokens", "CaptionGRU", "DualEncoder", "FeatureEncoder", "PictureCNN"]

Caption = tuple[Tensor, Tensor]


class FeatureEncoder(nn.Sequential):
    """Encoder of fixed features: hidden layer, ReLU, output layer; maps ``(B, F)`` to ``(B, D)``.

    Args:
        features: Number of features, F.
        hidden: Units of the hidden layer.
        dim: D, size of an embedding.
        generator: Draws the weights (`initialise`); they live on its device.
    """

    def __init__(self, features: int, hidden: int, dim: int, generator: torch.Generator) -> None:
        with torch.device("meta"):
            layers = nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, dim)
        super().__init__(*layers)
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
        self.features = nn.Sequential()
        with torch.device("meta"):
            for inputs, width in [(3, 16), (16, 32), (32, 64), (64, 128)]:
                convolution = nn.Conv2d(inputs, width, 3, stride=2, padding=1, bias=False)
                self.features.extend([convolution, nn.BatchNorm2d(width), nn.ReLU()])
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
