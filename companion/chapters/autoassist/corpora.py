"""Sentence pairs of chapter 3's translation as numbers of sub-words, and sample translations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from companion.paths import DATA_CACHE
from trainaug.data.parallel_text import ParallelText, iwslt_pairs, libreoffice_help, plain_pairs
from trainaug.data.subwords import Subwords, train_subwords
from trainaug.training.devices import device_of
from trainaug.training.translation import PAD, START, TranslationModel, greedy_decode

__all__ = [
    "FOLDERS",
    "Corpus",
    "Pairs",
    "load_corpus",
    "make_corpus",
    "pack_text",
    "sample_translations",
    "unpack_text",
]

FOLDERS = ("iwslt14", "wmt14")  # in the data cache, in the official layouts


class Pairs:
    """Sentence pairs as a data set: ``((source, target from START), target to END, index)``.

    Args:
        source: ``(N, S)``, padded.
        target: ``(N, T)``, with `END`, padded.
    """

    def __init__(self, source: Tensor, target: Tensor) -> None:
        self.source, self.target = source, target
        self.source_lengths, self.lengths = (source != PAD).sum(1), (target != PAD).sum(1)

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(
        self, indices: Sequence[int], /
    ) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
        index = torch.as_tensor(indices, device="cpu")
        source = self.source[index, : int(self.source_lengths[index].max())]
        target = self.target[index, : int(self.lengths[index].max())]
        before = torch.cat([torch.full_like(target[:, :1], START), target[:, :-1]], 1)
        return (source, before), target, index


@dataclass(frozen=True)
class Corpus:
    """Texts of the parts ``train``, ``val``, ``test``, and the same as numbers of sub-words."""

    subwords: Subwords
    texts: Mapping[str, ParallelText]
    pairs: Mapping[str, Pairs]


def make_corpus(
    texts: Mapping[str, ParallelText], vocabulary: int, *, held_out: int = 500, longest: int = 64
) -> Corpus:
    """Learn sub-words from the training part and write all parts as their numbers.

    Args:
        texts: Parts ``train``, ``val``, ``test``.
        vocabulary: Number of sub-words.
        held_out: Sentences of validation and of test that are kept, the first ones.
        longest: Sub-words after which a sentence is cut; 64 cut 1 in 1000 of those of 12 words.
    """
    learnt_from = texts["train"]
    subwords = train_subwords([*learnt_from.source, *learnt_from.target], vocabulary)
    kept_of_held_out = {
        part: ParallelText(text.source[:held_out], text.target[:held_out])
        for part, text in texts.items()
        if part != "train"
    }
    kept = {"train": learnt_from} | kept_of_held_out
    return Corpus(
        subwords,
        kept,
        {
            part: Pairs(*(subwords.encode(side, longest) for side in (text.source, text.target)))
            for part, text in kept.items()
        },
    )


@lru_cache(maxsize=2)
def load_corpus(
    data: str, max_words: int, vocabulary: int, *, held_out: int = 500, longest: int = 64
) -> Corpus:
    """Load ``libreoffice`` (English to German), or a folder of the data cache.

    ``iwslt14`` (German to English; dev2010 and tst2012 are held out) and ``wmt14`` (English to
    German; files ``train``, ``valid`` and ``test`` with the endings of the languages) are not
    filtered by ``max_words``.

    Raises:
        ValueError: If the data are unknown or a file is missing.
    """
    folder = DATA_CACHE / data
    if data == "libreoffice":
        texts = libreoffice_help(max_words)
    elif data == "iwslt14":
        names = {"train": "train", "val": "dev2010", "test": "tst2012"}
        texts = {part: iwslt_pairs(folder, name) for part, name in names.items()}
    elif data == "wmt14":
        names = {"train": "train", "val": "valid", "test": "test"}
        texts = {
            part: plain_pairs(folder / f"{name}.en", folder / f"{name}.de")
            for part, name in names.items()
        }
    else:
        raise ValueError(f"data must be libreoffice, {' or '.join(FOLDERS)}, got {data!r}")
    return make_corpus(texts, vocabulary, held_out=held_out, longest=longest)


def sample_translations(
    model: TranslationModel, corpus: Corpus, count: int = 6
) -> list[tuple[str, str, str]]:
    """Return source, reference and greedy translation of test sentences, evenly spaced."""
    text, pairs = corpus.texts["test"], corpus.pairs["test"]
    if not 1 <= count <= len(pairs):
        raise ValueError(f"count must be in 1 .. {len(pairs)}, got {count}")
    rows = [i * len(pairs) // count for i in range(count)]
    source = pairs.source[rows].to(device_of(model))
    translated = corpus.subwords.decode(greedy_decode(model, source).cpu())
    return [(text.source[i], text.target[i], t) for i, t in zip(rows, translated, strict=True)]


def pack_text(text: str) -> list[float]:
    """Write the first 118 bytes of a text as numbers of two bytes: a curve of at most 60 points."""
    data = text.encode()[:118]
    data += b" " * (len(data) % 2)
    return [float(int.from_bytes(data[i : i + 2], "big")) for i in range(0, len(data), 2)]


def unpack_text(numbers: Sequence[float]) -> str:
    """Read what `pack_text` wrote."""
    data = b"".join(int(number).to_bytes(2, "big") for number in numbers)
    return data.decode(errors="ignore").rstrip()
