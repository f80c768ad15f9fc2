"""Short texts as bags of words: token numbers for embeddings, tf-idf for linear baselines.

Chapter: notebooks/01_vse_hard_negatives.ipynb
Reference: the weights are those of scikit-learn's ``TfidfTransformer`` with ``smooth_idf``; words
are split by a rule of ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from trainaug.checks import class_labels, indices
from trainaug.roots import log

__all__ = ["build_vocabulary", "split_words", "tf_idf", "token_matrix"]

_WORD = re.compile(r"[^\W_]+")


def split_words(text: str) -> list[str]:
    """Split a text into lower-case words of letters and digits.

    Args:
        text: Any text.

    Returns:
        Its words in order, repetitions kept.

    Example:
        >>> split_words("Kiss: man, man")
        ['kiss', 'man', 'man']
    """
    return _WORD.findall(text.lower())


def build_vocabulary(texts: Iterable[str]) -> dict[str, int]:
    """Number the words of some texts from 1 in alphabetical order; 0 is left for padding.

    Args:
        texts: The texts whose words make up the vocabulary, usually those of training.

    Returns:
        Number of each word, ``1 .. V``.
    """
    words = {word for text in texts for word in split_words(text)}
    return {word: number for number, word in enumerate(sorted(words), start=1)}


def token_matrix(texts: Sequence[str], vocabulary: Mapping[str, int]) -> Tensor:
    """Turn texts into rows of token numbers.

    Args:
        texts: N texts.
        vocabulary: Numbers of the known words, from 1.

    Returns:
        int64 ``(N, T)``: each known word of a text once, in order of appearance, then zeros;
        shape ``(0, 0)`` if there is no text.

    Raises:
        TypeError: If ``texts`` is one text, whose letters would count as texts.
    """
    if isinstance(texts, str):
        raise TypeError("texts must be a sequence of texts, got one text")
    rows = []
    for text in texts:
        known = dict.fromkeys(w for w in split_words(text) if w in vocabulary)
        rows.append(torch.tensor([vocabulary[w] for w in known], dtype=torch.long))
    if not rows:
        return torch.zeros(0, 0, dtype=torch.long)
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def tf_idf(tokens: Tensor, train: Tensor, size: int) -> Tensor:
    """Weight the words of texts by their rarity in the training texts.

    Args:
        tokens: int64 ``(N, T)`` from `token_matrix`.
        train: Rows of the training texts, int64 ``(M,)``.
        size: Words in the vocabulary.

    Returns:
        float32 ``(N, size)``, rows of unit length, or zero if no word is known. Before scaling, a
        word that is present has the weight ``log((1 + M) / (1 + df)) + 1``, scikit-learn's smooth
        idf, with df the number of training texts that have the word.

    Raises:
        TypeError: If ``train`` is not a tensor.
        ValueError: If a token is not in ``0 .. size``, or ``train`` does not hold row numbers.
    """
    tokens, train = class_labels(tokens, size + 1), indices(train, len(tokens))
    # Column 0 collects the padding and is dropped.
    counts = torch.zeros(len(tokens), size + 1, device=tokens.device).scatter_(1, tokens, 1.0)[
        :, 1:
    ]  # (N, size)
    frequency = counts[train].sum(0)
    idf = log((1 + len(train)) / (1 + frequency)) + 1
    return F.normalize(counts * idf, dim=1)
