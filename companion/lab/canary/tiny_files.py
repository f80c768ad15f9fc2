"""Tiny data in the official formats, for canaries of data that cannot be shipped."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np

from trainaug.data.cifar import LAYOUTS
from trainaug.data.parallel_text import ParallelText

__all__ = ["sentence_pairs", "write_cifar", "write_iwslt14", "write_wmt14"]

WORDS = (
    ("red", "rot"), ("green", "gruen"), ("house", "haus"), ("tree", "baum"), ("old", "alt"),
    ("small", "klein"), ("opens", "oeffnet"), ("the", "der"), ("menu", "menue"), ("cell", "zelle"),
    ("row", "zeile"), ("text", "text"), ("choose", "waehlen"), ("and", "und"), ("page", "seite"),
)  # fmt: skip
TAGS = "<url>http://example.org</url>\n<title>A talk</title>\n"


def write_cifar(folder: Path, num_classes: int, pictures: int) -> None:
    """Write an archive in the official layout with few pictures of random pixels.

    Args:
        folder: Where the archive goes, under its official name.
        num_classes: 10 or 100.
        pictures: Number of pictures in each file; the classes take turns.
    """
    layout = LAYOUTS[num_classes]
    generator = np.random.Generator(np.random.PCG64(num_classes))
    with tarfile.open(folder / layout.archive, "w:gz") as archive:
        for name in layout.pictures:
            fine = np.arange(pictures) % num_classes
            labels = [fine % values for values in layout.labels[:-1]] + [fine]
            # each class has its own colour, so that something can be learnt
            base = (np.outer(fine, (7, 11, 13)) * 5 % 200)[:, :, None]
            noise = generator.integers(0, 56, (pictures, 3, 1024))
            pixels = (base + noise).reshape(pictures, -1)
            rows = np.column_stack([*labels, pixels]).astype(np.uint8)
            member = tarfile.TarInfo(f"cifar/{name}")
            member.size = rows.nbytes
            archive.addfile(member, io.BytesIO(rows.tobytes()))


def sentence_pairs(count: int, first: int = 0) -> ParallelText:
    """Make sentences of three to nine words and their word-by-word translations.

    The words are not random: a sentence follows from its number, which counts up from ``first``.
    """
    sides: tuple[list[str], list[str]] = ([], [])
    for number in range(first, first + count):
        words = [WORDS[(number * 7 + position * position * (number % 5 + 1)) % len(WORDS)]
                 for position in range(3 + number % 7)]  # fmt: skip
        for side, texts in enumerate(sides):
            texts.append(" ".join(word[side] for word in words))
    return ParallelText(tuple(sides[0]), tuple(sides[1]))


def write_iwslt14(folder: Path, counts: dict[str, int]) -> None:
    """Write the layout that `iwslt_pairs` reads, German to English; ``counts`` is pairs by part."""
    folder.mkdir(parents=True)
    first = 0
    for part, count in counts.items():
        pairs = sentence_pairs(count, first)
        first += count
        for code, side in (("en", pairs.source), ("de", pairs.target)):
            if part == "train":
                text = TAGS + "\n".join(side) + "\n"
                (folder / f"train.tags.de-en.{code}").write_text(text, encoding="utf-8")
                continue
            rows = "".join(f'<seg id="{i}"> {line} </seg>\n' for i, line in enumerate(side, 1))
            text = f'<?xml version="1.0" encoding="UTF-8"?>\n<mteval>\n{rows}</mteval>\n'
            (folder / f"IWSLT14.TED.{part}.de-en.{code}.xml").write_text(text, encoding="utf-8")


def write_wmt14(folder: Path, counts: dict[str, int]) -> None:
    """Write each part as plain lines, English to German; ``counts`` is sentence pairs by part."""
    folder.mkdir(parents=True)
    first = 0
    for part, count in counts.items():
        pairs = sentence_pairs(count, first)
        first += count
        for code, side in (("en", pairs.source), ("de", pairs.target)):
            (folder / f"{part}.{code}").write_text("\n".join(side) + "\n", encoding="utf-8")
