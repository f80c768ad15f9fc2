"""Sentences and their translations: LibreOffice's help, and the files of WMT14 and IWSLT14.

The last two are for the ``paper`` profile: the files are the reader's own copies, nothing is
fetched.

Chapter: notebooks/03_autoassist.ipynb
Reference: Bojar et al., "Findings of the 2014 workshop on statistical machine translation", WMT
2014; Cettolo et al., "Report on the 11th IWSLT evaluation campaign", IWSLT 2014.
"""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainaug.data import registry
from trainaug.data.libreoffice_decode import texts_of

__all__ = ["PARTS", "ParallelText", "iwslt_pairs", "libreoffice_help", "page_part", "plain_pairs"]

PARTS = ("train", "val", "test")
SHARES = (90, 95)  # of 100 pages: training below the first, validation below the second


@dataclass(frozen=True)
class ParallelText:
    """Pairs of sentences; entry ``i`` of one side translates entry ``i`` of the other.

    Attributes:
        source: N texts to translate.
        target: Their N translations.
    """

    source: tuple[str, ...]
    target: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check that both sides are equally long."""
        if len(self.source) != len(self.target):
            raise ValueError(f"{len(self.source)} sources for {len(self.target)} targets")

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.source)


def page_part(page: str) -> str:
    """Give a page its part of the split by the hash of its name: 90, 5 and 5 % of the pages.

    Args:
        page: Path of the page below ``text/``, without ending.

    Returns:
        ``"train"``, ``"val"`` or ``"test"``, whatever other pages there are.

    Example:
        >>> page_part("scalc/guide/auto_off"), page_part("swriter/01/06100000")
        ('train', 'train')
    """
    number = int(hashlib.sha256(page.encode()).hexdigest(), 16) % 100
    return PARTS[sum(number >= share for share in SHARES)]


def libreoffice_help(max_words: int | None = None) -> dict[str, ParallelText]:
    """Load English and German sentences of LibreOffice's help, split by page.

    A pair stands once in its part. From validation and test goes whatever English sentence also
    stands in the whole training part once case and digits are levelled.

    Args:
        max_words: Keep the pairs with at most so many words on both sides; None keeps all. The
            parts then are subsets of the parts of all sentences.

    Returns:
        The parts ``train``, ``val``, ``test``, in the order of the pages' names.

    Raises:
        ValueError: If ``max_words`` is below 3, the fewest words of any sentence.
        DataUnavailableError: If the set is not in the cache; the message has the command to run.

    Notes:
        32 750 / 1 438 / 1 615 pairs, and with ``max_words=12`` 18 173 / 774 / 753. A first survey,
        whose code was not kept, had 33 756 / 1 581 / 1 665 and 18 984 / 998: it ran words
        together at inline elements and shared pairs out otherwise, so the numbers differ. The
        space put there changes which sentences are long enough: 45 440 pairs become 45 652.
    """
    if max_words is not None and max_words < 3:
        raise ValueError(f"max_words must be at least 3, got {max_words}")
    data = registry.load("libreoffice_help")
    part_of = [page_part(name) for name in texts_of(data, "page")]
    pairs = zip(texts_of(data, "source"), texts_of(data, "target"), strict=True)
    found: dict[str, dict[tuple[str, str], None]] = {part: {} for part in PARTS}
    for page, pair in zip(data["pages"].tolist(), pairs, strict=True):
        found[part_of[page]][pair] = None
    known = {_levelled(source) for source, _ in found["train"]}
    return {
        part: _parallel(
            (source, target)
            for source, target in members
            if (part == "train" or _levelled(source) not in known)
            and (max_words is None or max(len(s.split()) for s in (source, target)) <= max_words)
        )
        for part, members in found.items()
    }


def _parallel(pairs: Iterable[tuple[str, str]]) -> ParallelText:
    kept = list(pairs)
    return ParallelText(tuple(s for s, _ in kept), tuple(t for _, t in kept))


def _levelled(text: str) -> str:
    return re.sub(r"\d+", "0", text.casefold())


def plain_pairs(source_file: Path, target_file: Path) -> ParallelText:
    """Read two files whose lines belong together: ``train.en`` and ``train.de`` of WMT14.

    Args:
        source_file: UTF-8 text, one sentence a line.
        target_file: As many lines, the translations.

    Returns:
        The pairs in the files' order, white space at the ends removed; pairs with an empty side
        are left out.

    Raises:
        ValueError: If a file is missing or not UTF-8, the numbers of lines differ, or no pair is
            left.
    """
    return _aligned((source_file, target_file), [_lines(f) for f in (source_file, target_file)])


_TAGS = "url|speaker|talkid|title|description|keywords|reviewer|translator|doc|seekvideo|transcript"
_TAG_LINE = re.compile(rf"\s*</?({_TAGS})\b")
_SEGMENT = re.compile(r"<seg\b[^>]*>(.*?)</seg>", re.DOTALL)


def iwslt_pairs(folder: Path, split: str, source: str = "de", target: str = "en") -> ParallelText:
    """Read one part of IWSLT14 in the official layout of a language pair.

    Args:
        folder: Has ``train.tags.de-en.de``, ``train.tags.de-en.en`` and files such as
            ``IWSLT14.TED.tst2012.de-en.de.xml``, ``IWSLT14.TEDX.dev2012.de-en.en.xml``.
        split: ``train``, or the name in an XML file such as ``dev2010``, ``dev2012``, ``tst2012``.
        source: Language to translate from.
        target: Language to translate to; the files may be named ``de-en`` or ``en-de``.

    Returns:
        The pairs in the files' order. Of ``train``, lines of talk data (``<url>``, ``<title>`` and
        so on) are dropped; of the XML files the ``<seg>`` elements are taken, entities replaced.
        Pairs with an empty side are left out.

    Raises:
        ValueError: If there is no such part, a file is missing, not UTF-8 or has no segment, or
            the numbers of sentences differ.

    Notes:
        Departure from fairseq's script, which keeps titles and descriptions as training sentences.
    """
    names = (f"{source}-{target}", f"{target}-{source}")
    stems = (
        [f"train.tags.{name}." for name in names]
        if split == "train"
        else [f"IWSLT14.{kind}.{split}.{name}." for name in names for kind in ("TED", "TEDX")]
    )
    ending = "" if split == "train" else ".xml"
    for stem in stems:
        files = [folder / f"{stem}{code}{ending}" for code in (source, target)]
        if any(file.exists() for file in files):
            break
    else:
        known = sorted(path.name for path in folder.glob("*"))
        raise ValueError(f"{folder}: no split {split!r} of {source}-{target}; it has {known}")
    read = _segments if ending else _untagged
    return _aligned(files, [read(file) for file in files])


def _untagged(file: Path) -> list[str]:
    return [line for line in _lines(file) if not _TAG_LINE.match(line)]


def _segments(file: Path) -> list[str]:
    found = [html.unescape(text) for text in _SEGMENT.findall(_text(file))]
    if not found:
        raise ValueError(f"{file}: no <seg> element")
    return found


def _lines(file: Path) -> list[str]:
    text = _text(file).removesuffix("\n")
    return text.split("\n") if text else []  # not splitlines: it also splits at U+2028


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode()
    except FileNotFoundError as error:
        raise ValueError(f"{file}: no such file") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8: {error}") from error


def _aligned(files: Sequence[Path], sides: Sequence[Sequence[str]]) -> ParallelText:
    counts = [len(side) for side in sides]
    if counts[0] != counts[1]:
        raise ValueError(
            f"{files[0]} has {counts[0]} sentences, {files[1].name} has {counts[1]}; they must"
            " be aligned line by line"
        )
    stripped = [(a.strip(), b.strip()) for a, b in zip(*sides, strict=True)]
    pairs = [pair for pair in stripped if all(pair)]
    if not pairs:
        raise ValueError(f"{files[0]}: no pair of sentences")
    return _parallel(pairs)
