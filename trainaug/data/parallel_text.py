"""Sentences and their translations: LibreOffice's help, and the files of WMT14 and IWSLT14.

The last two serve the ``paper`` profile: readers supply the files themselves, nothing is fetched.

Chapter: notebooks/03_autoassist.ipynb
Reference: Bojar et al., "Findings of the 2014 workshop on statistical machine translation", WMT
2014; Cettolo et al., "Report on the 11th IWSLT evaluation campaign", IWSLT 2014.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainaug.data import registry
from trainaug.data.files import FilePath, as_path, has_text, read_lines, stripped
from trainaug.data.libreoffice_decode import texts_of
from trainaug.data.segments import joined_segments

__all__ = ["PARTS", "ParallelText", "iwslt_pairs", "libreoffice_help", "plain_pairs"]

#: Parts of `libreoffice_help`.
PARTS = ("train", "val", "test")
SHARES = (90, 95)  # of hash values 0 to 99: training below the first, validation below the second


@dataclass(frozen=True)
class ParallelText:
    """Pairs of sentences; entry ``i`` of one side translates entry ``i`` of the other.

    Attributes:
        source: N texts to translate.
        target: Their N translations.

    Raises:
        ValueError: If there are more texts on one side than on the other.
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


def _page_part(page: str) -> str:
    """Return a page's part of the split, by the hash of its name: about 90, 5 and 5 % of the pages.

    Args:
        page: Path of the page below ``text/``, without ending.

    Returns:
        ``"train"``, ``"val"`` or ``"test"``; it does not depend on the other pages.

    Example:
        >>> _page_part("scalc/guide/auto_off"), _page_part("swriter/01/06100000")
        ('train', 'train')
    """
    number = int(hashlib.sha256(page.encode()).hexdigest(), 16) % 100
    return PARTS[sum(number >= share for share in SHARES)]


def libreoffice_help(max_words: int | None = None) -> dict[str, ParallelText]:
    """Load English and German sentences of LibreOffice's help, split by page.

    Each pair occurs once in its part. A pair of validation or test is dropped if its English
    sentence also occurs in the training part (of all lengths), up to case and digits.

    Args:
        max_words: Keep only pairs with at most this many words on both sides; None keeps all. The
            parts are then subsets of the parts of all sentences.

    Returns:
        The parts ``train``, ``val``, ``test``, each in the order of the pages' names.

    Raises:
        ValueError: If ``max_words`` is below 3, the fewest words of any sentence.
        DataUnavailableError: If the set is not in the cache; the message gives the command to run.

    Notes:
        There are 32 750 / 1 438 / 1 615 pairs, and 18 173 / 774 / 753 with ``max_words=12``. A
        first survey, whose code was not kept, had 33 756 / 1 581 / 1 665 and 18 984 / 998: it
        joined words at inline elements and split the pairs in another way. The space inserted there
        now changes which sentences are long enough: 45 440 pairs become 45 652.
    """
    if max_words is not None and max_words < 3:
        raise ValueError(f"max_words must be at least 3, got {max_words}")
    data = registry.load("libreoffice_help")
    part_of = [_page_part(name) for name in texts_of(data, "page")]
    pairs = zip(texts_of(data, "source"), texts_of(data, "target"), strict=True)
    sentences: dict[str, dict[tuple[str, str], None]] = {part: {} for part in PARTS}
    for page, pair in zip(data["pages"].tolist(), pairs, strict=True):
        sentences[part_of[page]][pair] = None
    known = {_levelled(source) for source, _ in sentences["train"]}
    return {
        part: _parallel(
            (source, target)
            for source, target in members
            if (part == "train" or _levelled(source) not in known)
            and (max_words is None or max(len(s.split()) for s in (source, target)) <= max_words)
        )
        for part, members in sentences.items()
    }


def _parallel(pairs: Iterable[tuple[str, str]]) -> ParallelText:
    pair_list = list(pairs)
    return ParallelText(tuple(s for s, _ in pair_list), tuple(t for _, t in pair_list))


def _levelled(text: str) -> str:
    """Return a text without case and with every number as 0, to recognise near-copies."""
    return re.sub(r"\d+", "0", text.casefold())


def plain_pairs(source_file: FilePath, target_file: FilePath) -> ParallelText:
    """Read two files with corresponding lines, such as ``train.en`` and ``train.de`` of WMT14.

    Args:
        source_file: UTF-8 text, one sentence per line; only a line feed ends a line.
        target_file: The translations, with as many lines.

    Returns:
        The pairs in the files' order, without white space and byte order marks at the ends. Pairs
        with a side that has no visible character are left out.

    Raises:
        ValueError: If a file is missing, is not UTF-8 text or is markup, the numbers of lines
            differ, or no pair is left.
    """
    files = (as_path(source_file), as_path(target_file))
    sides = [read_lines(file) for file in files]
    for file, lines in zip(files, sides, strict=True):
        _refuse_markup(file, lines)
    return _aligned(files, sides)


_TAGS = "url|speaker|talkid|title|description|keywords|reviewer|translator|doc|seekvideo|transcript"
_TAG_LINE = re.compile(rf"\s*</?({_TAGS})\b", re.IGNORECASE)
_MARKUP = re.compile(
    r"\s*(<[?!]|</?(seg|srcset|refset|tstset|mteval|tmx|tuv?|xliff|doc)\b|(<[^<>]+>\s*)+$)",
    re.IGNORECASE,
)
_WORDS_LIKE_TAGS = re.compile(r"\s*(</?(unk|s|pad|bos|eos|mask)>\s*)+$", re.IGNORECASE)


def _refuse_markup(file: Path, lines: Iterable[str]) -> None:
    """Raise a ValueError if the first line is markup; texts from the web may have tags later on."""
    first = next((stripped(line) for line in lines if has_text(line)), "")
    if _WORDS_LIKE_TAGS.match(first):
        return
    if _MARKUP.match(first) or _TAG_LINE.match(first):
        raise ValueError(
            f"{file}: not plain text: it begins with the tag {first[:60]!r}; give one sentence a"
            " line, or the files of IWSLT to iwslt_pairs"
        )


def iwslt_pairs(
    folder: FilePath, split: str, source: str = "de", target: str = "en"
) -> ParallelText:
    """Read one part of IWSLT14 in the official layout of a language pair.

    Args:
        folder: Contains ``train.tags.de-en.de``, ``train.tags.de-en.en`` and files such as
            ``IWSLT14.TED.tst2012.de-en.de.xml``, ``IWSLT14.TEDX.dev2012.de-en.en.xml``.
        split: ``train``, or the part named by an XML file, such as ``dev2010`` or ``tst2012``.
        source: Language to translate from.
        target: Language to translate to; the files may be named ``de-en`` or ``en-de``.

    Returns:
        The pairs in the order of the source file. In ``train``, lines with data on the talk
        (``<url>``, ``<title>`` and so on) are dropped; in the XML files, ``<seg>`` elements are
        paired by document and number. Pairs with a side that has no visible character are left out.

    Raises:
        ValueError: If there is no such folder or part; a file is missing, not UTF-8, not
            well-formed XML or has no segment; the numbers of sentences differ; or a segment is in
            one file only or twice in a file.

    Notes:
        Departure from fairseq's script: it keeps titles and descriptions as training sentences.
    """
    folder = as_path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: is not a folder")
    names = (f"{source}-{target}", f"{target}-{source}")
    if split == "train":
        stems = [f"train.tags.{name}." for name in names]
        ending = ""
    else:
        stems = [f"IWSLT14.{kind}.{split}.{name}." for name in names for kind in ("TED", "TEDX")]
        ending = ".xml"
    for stem in stems:
        files = [folder / f"{stem}{code}{ending}" for code in (source, target)]
        # a dangling link counts, so that the error names the file
        if any(file.exists() or file.is_symlink() for file in files):
            break
    else:
        known = sorted(path.name for path in folder.glob("*"))
        raise ValueError(f"{folder}: no split {split!r} of {source}-{target}; it has {known}")
    if ending:
        return _visible_pairs(files[0], joined_segments(*files))
    return _aligned(files, [_untagged(file) for file in files])


def _untagged(file: Path) -> list[str]:
    """Return the lines of a training file without those of data on the talks."""
    lines = [line for line in read_lines(file) if not _TAG_LINE.match(stripped(line))]
    _refuse_markup(file, lines)
    return lines


def _aligned(files: Sequence[Path], sides: Sequence[Sequence[str]]) -> ParallelText:
    """Pair the lines of two files, or raise a ValueError if their numbers differ."""
    counts = [len(side) for side in sides]
    if counts[0] != counts[1]:
        raise ValueError(
            f"{files[0]} has {counts[0]} sentences, {files[1].name} has {counts[1]}; they must"
            " be aligned line by line"
        )
    return _visible_pairs(files[0], zip(*sides, strict=True))


def _visible_pairs(file: Path, pairs: Iterable[tuple[str, str]]) -> ParallelText:
    """Strip the pairs, leave out those with an invisible side, and refuse an empty result."""
    visible = [(stripped(a), stripped(b)) for a, b in pairs if has_text(a) and has_text(b)]
    if not visible:
        raise ValueError(f"{file}: no pair of sentences")
    return _parallel(visible)
