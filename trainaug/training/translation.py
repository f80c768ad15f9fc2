"""A small Transformer that translates, its loss of a sentence, and greedy decoding.

Sentences are token numbers int64 ``(B, T)``; after the last token stand zeros, which are padding.

Reference: Vaswani et al., "Attention Is All You Need", NeurIPS 2017; decoding is ours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainaug.checks import class_labels, finite, widened
from trainaug.training.models import undisturbed
from trainaug.training.randomness import initialise

__all__ = ["END", "PAD", "START", "TranslationModel", "greedy_decode", "translation_losses"]

#: Number of the token that fills rows up.
PAD = 0
#: Number of the token that a target starts from.
START = 1
#: Number of the token that ends a sentence.
END = 2
Pair = tuple[Tensor, Tensor]


class TranslationModel(nn.Module):
    r"""Encoder and decoder with the norms before each part, and one table of embeddings for all.

    Weights are drawn with ``generator`` alone: matrices uniform as in Glorot and Bengio, embeddings
    normal with standard deviation $D^{-1/2}$, biases 0. Positions are sines and cosines. The same
    table serves source, target and, transposed, the output. Vaswani et al., "Attention Is All You
    Need", NeurIPS 2017, sections 3.1 to 3.5; the norms stand as in Xiong et al., ICML 2020.

    Args:
        vocabulary: V, tokens of both languages together, padding (0) included.
        generator: Source of the initial weights.
        layers: Of the encoder, and of the decoder.
        dim: D, even.
        heads: Of attention; must divide D.
        dropout: Rate in training, drawn from PyTorch's global generator; 0 leaves that untouched.
        longest: Longest sentence in tokens.

    Raises:
        ValueError: If a size is wrong.
    """

    positions: Tensor

    def __init__(
        self,
        vocabulary: int,
        generator: torch.Generator,
        *,
        layers: int = 2,
        dim: int = 128,
        heads: int = 4,
        dropout: float = 0.0,
        longest: int = 256,
    ) -> None:
        super().__init__()
        if min(vocabulary - END, layers, heads, longest) < 1 or dim % heads or dim % 2 or dim < 2:
            raise ValueError(
                f"out of range: {vocabulary=} (3 up), {layers=}, {dim=} (even, a multiple of"
                f" {heads=}), {longest=}"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        sizes = dim, heads, 4 * dim, dropout
        with torch.device("meta"):
            embedding = nn.Embedding(vocabulary, dim, padding_idx=PAD)
            encoding = nn.TransformerEncoderLayer(*sizes, batch_first=True, norm_first=True)
            decoding = nn.TransformerDecoderLayer(*sizes, batch_first=True, norm_first=True)
            encoder = nn.TransformerEncoder(
                encoding, layers, nn.LayerNorm(dim), enable_nested_tensor=False
            )
            decoder = nn.TransformerDecoder(decoding, layers, nn.LayerNorm(dim))
        self.embedding = embedding
        initialise(self.embedding, generator)
        self.encoder = encoder.to_empty(device=generator.device)
        self.decoder = decoder.to_empty(device=generator.device)
        self.register_buffer("positions", _waves(longest, dim, generator.device), persistent=False)
        with torch.no_grad():
            self.embedding.weight.mul_(dim**-0.5)
            for part in (self.encoder, self.decoder):
                for name, p in part.named_parameters():
                    if p.ndim > 1:
                        nn.init.xavier_uniform_(p, generator=generator)
                    else:
                        p.fill_(1.0 if name.endswith("weight") else 0.0)  # norms have one of each

    def _embed(self, tokens: Tensor) -> Tensor:
        if tokens.shape[1] > len(self.positions):
            raise ValueError(
                f"a sentence has {tokens.shape[1]} tokens, more than {len(self.positions)}"
            )
        scale = self.embedding.embedding_dim**0.5
        return self.embedding(tokens) * scale + self.positions[: tokens.shape[1]]  # type: ignore[no-any-return]

    def encode(self, source: Tensor) -> Tensor:
        """Return the source ``(B, S)`` as the decoder sees it, ``(B, S, D)``.

        Args:
            source: Token numbers, int64, ``(B, S)``.

        Raises:
            ValueError: If a sentence is longer than ``longest``.
        """
        return self.encoder(self._embed(source), src_key_padding_mask=source == PAD)  # type: ignore[no-any-return]

    def decode(self, memory: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Return the decoder's states ``(B, T, D)``; `score` makes logits of them.

        Args:
            memory: What `encode` gave, ``(B, S, D)``.
            source: ``(B, S)``, for its padding.
            target: Tokens so far, from `START`, ``(B, T)``.
        """
        n = target.shape[1]
        later = torch.ones(n, n, dtype=torch.bool, device=target.device).triu(1)
        return self.decoder(  # type: ignore[no-any-return]
            self._embed(target),
            memory,
            tgt_mask=later,
            memory_key_padding_mask=source == PAD,
            tgt_is_causal=True,
        )  # padding stands last, so that no token before it can look at it

    def score(self, states: Tensor) -> Tensor:
        """Return logits ``(..., V)`` of the next token from states ``(..., D)``.

        Args:
            states: Of the decoder, ``(..., D)``.
        """
        return states @ self.embedding.weight.T

    def forward(self, x: Pair) -> Tensor:
        """Return logits ``(B, T, V)`` for source ``(B, S)`` and target ``(B, T)`` from `START`.

        Args:
            x: Source ``(B, S)`` and target ``(B, T)``, token numbers, int64.
        """
        source, target = x
        return self.score(self.decode(self.encode(source), source, target))


def translation_losses(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean cross-entropy of a token of each sentence, ``(B,)``.

    A mean over tokens, so that long sentences are not taken for hard ones. In nats; in float32 for
    logits in half precision.

    Args:
        logits: ``(B, T, V)``.
        target: Next tokens, ``(B, T)``; padding does not count.

    Raises:
        ValueError: If shapes do not fit, a sentence has no token, or a token is none of V. Inside
            of `torch.compile`, which can look at no value, only shapes are checked.
    """
    if logits.ndim != 3 or logits.shape[:2] != target.shape:
        raise ValueError(
            f"need logits (B, T, V), target (B, T): {tuple(logits.shape)}, {tuple(target.shape)}"
        )
    logits, is_compiled = widened(logits), torch.compiler.is_compiling()
    target = target.long() if is_compiled else class_labels(target, logits.shape[-1])
    counted = target != PAD
    if not is_compiled and not bool(counted.any(1).all()):
        raise ValueError(f"sentence {int((~counted.any(1)).nonzero()[0])} has no token")
    losses = F.cross_entropy(
        logits.flatten(0, 1), target.flatten(), ignore_index=PAD, reduction="none"
    ).view_as(target)  # (B, T)
    return losses.sum(1) / counted.sum(1)


def greedy_decode(
    model: TranslationModel, source: Tensor, *, batch_size: int = 128, most: float = 1.4
) -> Tensor:
    """Translate by taking the likeliest token each time.

    Args:
        model: Left undisturbed; asked in eval mode.
        source: ``(N, S)``, on the model's device.
        batch_size: Sentences of about equal length at a time.
        most: A translation ends after ``most * length + 5`` tokens, with or without `END`.

    Returns:
        Tokens without `START` and `END`, ``(N, T)``, padded.

    Raises:
        ValueError: If there is nothing to decode, a sentence has no token, or the model's logits
            are not finite.
    """
    if source.ndim != 2 or len(source) == 0 or batch_size < 1 or most <= 0:
        raise ValueError(f"nothing to decode: {tuple(source.shape)}, {batch_size=}, {most=}")
    lengths = (source != PAD).sum(1)  # (N,)
    if int(lengths.min()) == 0:
        raise ValueError(f"sentence {int(lengths.argmin())} has no token")
    limits = torch.clamp((most * lengths + 5).long(), max=len(model.positions))
    translations = source.new_zeros(len(source), int(limits.max()))
    with undisturbed(model), torch.no_grad():
        model.eval()
        for rows in torch.split(lengths.argsort(stable=True), batch_size):
            part = source[rows, : max(1, int(lengths[rows].max()))]
            memory = model.encode(part)
            tokens = torch.full_like(part[:, :1], START)  # (b, 1)
            for step in range(int(limits[rows].max())):
                states = model.decode(memory, part, tokens)[:, -1]  # (b, D)
                logits = model.score(states)
                finite("logits", logits)
                logits[:, [PAD, START]] = -torch.inf
                after = logits.argmax(1)
                going = (after != END) & (limits[rows] > step)
                translations[rows[going], step] = after[going]
                rows, part, memory = rows[going], part[going], memory[going]
                tokens = torch.cat([tokens, after[:, None]], 1)[going]
                if len(rows) == 0:
                    break
    return translations


def _waves(longest: int, dim: int, device: torch.device) -> Tensor:
    """Sines and cosines of falling frequency, ``(longest, dim)``."""
    position = torch.arange(longest, dtype=torch.float64, device=device)[:, None]
    rate = 10000 ** -(torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim)
    return torch.cat([(position * rate).sin(), (position * rate).cos()], 1).float()
