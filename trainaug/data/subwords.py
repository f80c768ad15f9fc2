"""Sub-word units shared by two languages, and bags of them weighted by tf-idf.

Chapter: notebooks/03_autoassist.ipynb
Reference: Sennrich, Haddow, Birch, "Neural machine translation of rare words with subword units",
ACL 2016.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainaug.checks import class_labels
from trainaug.extras import extra
from trainaug.roots import log

with extra("data"):
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        trainers,
    )

__all__ = [
    "END",
    "PAD",
    "START",
    "UNKNOWN",
    "DocumentCounts",
    "Subwords",
    "document_counts",
    "tfidf_bags",
    "train_subwords",
]

#: Number of the unit that fills rows up.
PAD = 0
#: Number of the unit that a decoder starts from.
START = 1
#: Number of the unit that ends a text.
END = 2
#: Number of the unit that replaces characters that did not occur in training.
UNKNOWN = 3
SPECIAL = ["<pad>", "<start>", "<end>", "<unknown>"]  # by number


class Subwords:
    """Byte-pair encoding of texts: characters are merged into units frequent in training texts.

    Runs of white space count as one space. Units do not cross the borders between words or
    punctuation marks.

    Args:
        model: JSON text that `to_json` returned.

    Raises:
        ValueError: If it is not such a text, or its first units are not the four special ones.
    """

    def __init__(self, model: str) -> None:
        """See the class."""
        try:
            self._tokenizer = Tokenizer.from_str(model.removeprefix("\ufeff"))
        except Exception as error:  # the library's errors have no common base
            raise ValueError(f"not the JSON text of sub-word units: {error}") from error
        first = [self._tokenizer.id_to_token(number) for number in range(len(SPECIAL))]
        if first != SPECIAL:
            raise ValueError(f"the first sub-word units must be {SPECIAL}, got {first}")
        self._tokenizer.encode_special_tokens = True  # "<end>" in a text is text

    def __len__(self) -> int:
        """Return the number of units, including the four special ones."""
        return int(self._tokenizer.get_vocab_size())

    def to_json(self) -> str:
        """Return the whole model as JSON text."""
        return str(self._tokenizer.to_str())

    def encode(self, texts: Sequence[str], max_length: int) -> Tensor:
        """Turn texts into rows of unit numbers.

        Args:
            texts: N texts.
            max_length: Largest number of units in a row, including `END`; longer texts are cut.

        Returns:
            int64 ``(N, T)`` with ``T <= max_length``: the units of a text, `END`, then `PAD`;
            without `START`. Characters that did not occur in training are `UNKNOWN`.

        Raises:
            ValueError: If ``max_length`` is below 1.
        """
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {max_length}")
        rows = [
            [*encoding.ids[: max_length - 1], END]
            for encoding in self._tokenizer.encode_batch(list(texts))
        ]
        ids = torch.full((len(rows), max(map(len, rows), default=0)), PAD)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        return ids

    def decode(self, ids: Tensor) -> list[str]:
        """Turn rows of unit numbers into texts.

        Args:
            ids: int64 ``(N, T)``; a row ends before its first `END`; `PAD` and `START` are skipped.

        Returns:
            N texts; `UNKNOWN` becomes ``<unknown>``.
        """
        rows = []
        for row in ids.tolist():
            before_end = row[: row.index(END)] if END in row else row
            rows.append([number for number in before_end if number not in (PAD, START)])
        return [str(t) for t in self._tokenizer.decode_batch(rows, skip_special_tokens=False)]


def train_subwords(texts: Iterable[str], size: int) -> Subwords:
    """Learn sub-word units, from the training texts of both languages and no others.

    Args:
        texts: The texts, in any order.
        size: Largest number of units, including the four special ones and all characters; there are
            fewer if nothing is left to merge.

    Returns:
        The encoder; equal texts give equal encoders.

    Raises:
        ValueError: If the special units and the texts' characters alone exceed ``size``.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL[UNKNOWN]))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation("isolated")]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    needed = tokenizer.get_vocab_size()
    if needed > size:
        raise ValueError(f"size must be at least {needed}, the texts' characters, got {size}")
    return Subwords(tokenizer.to_str())


@dataclass(frozen=True)
class DocumentCounts:
    """How many texts contain each unit.

    Attributes:
        total: Number of texts.
        counts: Number of texts that contain each unit, int64 ``(V,)``; 0 for `PAD`, `START`, `END`.
    """

    total: int
    counts: Tensor


def document_counts(ids: Tensor, vocabulary_size: int) -> DocumentCounts:
    """Count the texts that contain each unit.

    Args:
        ids: int64 ``(N, T)``, rows of unit numbers, padded.
        vocabulary_size: Number of units, V.

    Returns:
        The counts, on the device of ``ids``.

    Raises:
        ValueError: If a number is outside ``0 .. V - 1``.
    """
    _, units, _ = _distinct(ids, vocabulary_size)
    return DocumentCounts(len(ids), torch.bincount(units, minlength=vocabulary_size))


def tfidf_bags(
    ids: Tensor, vocabulary_size: int, counts: DocumentCounts | None = None
) -> tuple[Tensor, Tensor]:
    """Turn rows of unit numbers into bags: distinct units with tf-idf weights.

    Args:
        ids: int64 ``(N, T)``, rows of unit numbers, padded.
        vocabulary_size: Number of units, V.
        counts: Counts over the training texts; by default they are made from ``ids``.

    Returns:
        Units, int64 ``(N, L)``: each unit of a row once, in ascending order, without `START` and
        `END`, padded with `PAD`. Weights, float32 ``(N, L)``: occurrences times
        ``log((1 + M) / (1 + df)) + 1``, scikit-learn's smooth idf, with df of ``M`` texts having
        the unit; rows are scaled to unit length, and padding has the weight 0.

    Raises:
        ValueError: If a number is outside ``0 .. V - 1`` or the counts are not of V units.
    """
    counts = document_counts(ids, vocabulary_size) if counts is None else counts
    if counts.counts.shape != (vocabulary_size,):
        raise ValueError(
            f"counts are of {tuple(counts.counts.shape)} units, expected {vocabulary_size}"
        )
    ids = class_labels(ids)
    idf = log((1 + counts.total) / (1 + counts.counts.double())) + 1  # (V,)
    rows, units, occurrences = _distinct(ids, vocabulary_size)  # (M,) each
    sizes = torch.bincount(rows, minlength=len(ids))  # (N,)
    # The entries are sorted by row, so an entry's column is its distance from the row's first.
    columns = torch.arange(len(rows), device=ids.device) - (sizes.cumsum(0) - sizes)[rows]
    shape = (len(ids), int(sizes.max()) if len(rows) else 0)
    bags = ids.new_full(shape, PAD)  # (N, L)
    bags[rows, columns] = units
    weights = idf.new_zeros(shape)  # (N, L)
    weights[rows, columns] = occurrences * idf[units]
    return bags, torch.nn.functional.normalize(weights, dim=1).float()


def _distinct(ids: Tensor, vocabulary_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return row, unit and occurrences of each distinct unit of each row, sorted by row and unit.

    `PAD`, `START` and `END`, the units up to `END`, do not count.
    """
    ids = class_labels(ids)
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary_size:
        raise ValueError(f"unit numbers must be in 0 .. {vocabulary_size - 1}")
    counted = ids > END  # (N, T)
    row, _ = torch.where(counted)
    # One number for each pair of row and unit, so that pairs can be counted and sorted at once.
    keys, occurrences = torch.unique(row * vocabulary_size + ids[counted], return_counts=True)
    return keys // vocabulary_size, keys % vocabulary_size, occurrences
