"""A small Transformer for translation, its loss per sentence, and greedy decoding.

Sentences are rows of token numbers, int64 ``(B, T)``, padded with zeros after the last token.

Reference: Vaswani et al., "Attention Is All You Need", NeurIPS 2017; decoding is ours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainaug.checks import class_labels, finite, widened
from trainaug.training.randomness import initialise
from trainaug.undisturbed import undisturbed

__all__ = ["END", "PAD", "START", "TranslationModel", "greedy_decode", "translation_losses"]

#: Number of the token that fills rows up.
PAD = 0
#: Number of the token that a target starts from.
START = 1
#: Number of the token that ends a sentence.
END = 2
Pair = tuple[Tensor, Tensor]


class TranslationModel(nn.Module):
    r"""Transformer with layer norms before each sublayer, and one shared table of embeddings.

    Weights are drawn with ``generator`` alone: matrices uniform as in Glorot and Bengio, embeddings
    normal with standard deviation $D^{-1/2}$, biases 0. Positions are encoded by sines and cosines.
    The same table embeds source and target and, transposed, gives the logits. Vaswani et al.,
    "Attention Is All You Need", NeurIPS 2017, sections 3.1 to 3.5; the norms are placed as in Xiong
    et al., ICML 2020.

    Args:
        vocabulary: V, the number of tokens of both languages together, padding (0) included.
        generator: Source of the initial weights.
        layers: Number of layers of the encoder, and of the decoder.
        dim: D, size of an embedding, even.
        heads: Number of attention heads; it must divide D.
        dropout: Dropout rate in training. It draws from PyTorch's global generator, unless it is 0.
        longest: Length of the longest sentence in tokens.

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
                    else:  # the weight of a norm, or a bias
                        p.fill_(1.0 if name.endswith("weight") else 0.0)

    def _embed(self, tokens: Tensor) -> Tensor:
        """Return embeddings with positions added, ``(B, T, D)``, of tokens ``(B, T)``."""
        if tokens.shape[1] > len(self.positions):
            raise ValueError(
                f"a sentence has {tokens.shape[1]} tokens, more than {len(self.positions)}"
            )
        scale = self.embedding.embedding_dim**0.5
        return self.embedding(tokens) * scale + self.positions[: tokens.shape[1]]  # type: ignore[no-any-return]

    def encode(self, source: Tensor) -> Tensor:
        """Return the source ``(B, S)`` encoded for the decoder, ``(B, S, D)``.

        Args:
            source: Token numbers, int64, ``(B, S)``.

        Raises:
            ValueError: If a sentence is longer than ``longest``.
        """
        return self.encoder(self._embed(source), src_key_padding_mask=source == PAD)  # type: ignore[no-any-return]

    def decode(self, memory: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Return the decoder's states ``(B, T, D)``; `score` turns them into logits.

        Args:
            memory: Result of `encode`, ``(B, S, D)``.
            source: Source ``(B, S)``, from which the padding is read.
            target: Tokens so far, beginning with `START`, ``(B, T)``.
        """
        n = target.shape[1]
        # True where attention is forbidden: at later tokens. Padding of the target comes last, so
        # this also keeps it from the tokens before it.
        later = torch.ones(n, n, dtype=torch.bool, device=target.device).triu(1)
        return self.decoder(  # type: ignore[no-any-return]
            self._embed(target),
            memory,
            tgt_mask=later,
            memory_key_padding_mask=source == PAD,
            tgt_is_causal=True,
        )

    def score(self, states: Tensor) -> Tensor:
        """Return logits ``(..., V)`` of the next token from states ``(..., D)``.

        Args:
            states: States of the decoder, ``(..., D)``.
        """
        return states @ self.embedding.weight.T

    def forward(self, x: Pair) -> Tensor:
        """Return the logits ``(B, T, V)`` of the token that follows each token of the target.

        Args:
            x: Source ``(B, S)`` and target ``(B, T)``, which begins with `START`; token numbers,
                int64.
        """
        source, target = x
        return self.score(self.decode(self.encode(source), source, target))


def translation_losses(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean cross-entropy per token of each sentence, ``(B,)``, in nats.

    It is a mean over tokens, so that long sentences do not appear harder than short ones. For
    logits in half precision it is in float32.

    Args:
        logits: Logits of the next token, ``(B, T, V)``.
        target: The next tokens, ``(B, T)``; padding does not count.

    Raises:
        ValueError: If shapes do not fit, a sentence has no token, or a token is not in 0 ... V-1.
            Inside `torch.compile`, which cannot read values, only shapes are checked.
    """
    if logits.ndim != 3 or logits.shape[:2] != target.shape:
        raise ValueError(
            f"need logits (B, T, V), target (B, T): {tuple(logits.shape)}, {tuple(target.shape)}"
        )
    logits = widened(logits)
    is_compiled = torch.compiler.is_compiling()
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
    """Translate sentences by taking the likeliest next token each time.

    Args:
        model: Used in eval mode, then restored.
        source: Sentences ``(N, S)``, on the model's device.
        batch_size: Number of sentences, of about equal length, to translate at a time.
        most: A translation has at most ``most * length + 5`` tokens; there it ends without `END`.

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
                following = logits.argmax(1)  # (b,)
                unfinished = (following != END) & (limits[rows] > step)
                translations[rows[unfinished], step] = following[unfinished]
                rows, part, memory = rows[unfinished], part[unfinished], memory[unfinished]
                tokens = torch.cat([tokens, following[:, None]], 1)[unfinished]
                if len(rows) == 0:
                    break
    return translations


def _waves(longest: int, dim: int, device: torch.device) -> Tensor:
    """Return the position encoding, sines and cosines of falling frequency, ``(longest, dim)``."""
    position = torch.arange(longest, dtype=torch.float64, device=device)[:, None]
    rate = 10000 ** -(torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim)
    return torch.cat([(position * rate).sin(), (position * rate).cos()], 1).float()
