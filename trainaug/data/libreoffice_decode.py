"""Decoder of LibreOffice's help: its English and German pages become arrays of sentence pairs.

Paragraphs and headings have the same ``id`` in both languages. `trainaug.data.parallel_text`
gives the result to experiments.

Reference: The Document Foundation, LibreOffice 7.4 help; the rules for pairing sentences are ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from trainaug.data.arrays import Arrays, CorruptDataError

__all__ = ["decode", "page_paragraphs", "sentence_pairs", "text_arrays", "texts_of"]

PARAGRAPHS = frozenset({"p", "h1", "h2", "h3", "h4", "h5", "h6"})
LEFT_OUT = "code"  # class of elements without sentences
WORDS = (3, 40)  # fewest and most words in a sentence of either language
RATIO = (0.4, 2.0)  # least and greatest number of German words divided by English words
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_OPENED = "\0"  # marks where an inline element begins
_RUN_TOGETHER = re.compile(rf"(?<=[\w…]){_OPENED}+(?=\w)")


def decode(files: Mapping[str, bytes]) -> Arrays:
    """Pair the sentences of the pages that both languages have.

    Args:
        files: Contents by ``"en/<page>.html"`` and ``"de/<page>.html"``.

    Returns:
        Arrays ``source_bytes`` and ``source_offsets`` (English), ``target_bytes`` and
        ``target_offsets`` (German), ``page_bytes`` and ``page_offsets`` (names of the pages), in
        the format of `text_arrays`, and ``pages``, int64 ``(N,)``, the number of each pair's page.
        Pages are sorted by name, pairs are in the order of the English page, and repeated pairs
        are kept.

    Raises:
        CorruptDataError: If a page is not UTF-8 or there is no pair.
    """
    shared = sorted(
        name.removeprefix("en/").removesuffix(".html")
        for name in files
        if re.fullmatch(r"en/.*\.html", name) and f"de/{name.removeprefix('en/')}" in files
    )
    pairs: list[tuple[str, str]] = []
    page_numbers: list[int] = []
    names: list[str] = []
    for page in shared:
        english, german = (_paragraphs(files, f"{code}/{page}.html") for code in ("en", "de"))
        segments = [
            pair
            for key, text in english.items()
            if key in german
            for pair in sentence_pairs(text, german[key])
        ]
        if segments:
            page_numbers += [len(names)] * len(segments)
            names.append(page)
            pairs += segments
    if not pairs:
        raise CorruptDataError("no sentence pair in pages of both languages")
    return {
        **text_arrays("source", (source for source, _ in pairs)),
        **text_arrays("target", (target for _, target in pairs)),
        **text_arrays("page", names),
        "pages": np.array(page_numbers, dtype=np.int64),
    }


def _paragraphs(files: Mapping[str, bytes], name: str) -> dict[str, str]:
    """Return the paragraphs of a page by ``id``; a CorruptDataError names a page not in UTF-8."""
    try:
        return page_paragraphs(files[name].decode())
    except UnicodeDecodeError as error:
        raise CorruptDataError(f"{name}: not UTF-8: {error}") from error


def page_paragraphs(html: str) -> dict[str, str]:
    """Read the paragraphs and headings of a page that have an ``id``.

    Args:
        html: The page.

    Returns:
        Text by ``id``, with runs of white space as one space. If an ``id`` is repeated, the first
        text counts. Elements of class ``code`` and empty ones are left out.

    Notes:
        Menu paths have one text for each system or program without a space between them
        (``<span>Command</span><span>Ctrl</span>``). So a space is inserted where an inline element
        begins between two words, and at each ``<br>``. None is inserted where an element only ends,
        since ``<span>Sub</span>routine`` is one word.
    """
    reader = _PageReader()
    reader.feed(html)
    reader.close()
    return {key: text for key, text in reader.paragraphs.items() if text}


class _PageReader(HTMLParser):
    """Collects the text of paragraphs and headings by ``id``; one begins where another ends."""

    def __init__(self) -> None:
        super().__init__()
        self.paragraphs: dict[str, str] = {}
        self._key: str | None = None
        self._parts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in PARAGRAPHS:
            self._finish()
            attributes = dict(attrs)
            if LEFT_OUT not in (attributes.get("class") or "").split():
                self._key = attributes.get("id")
        else:
            self._parts.append(" " if tag == "br" else _OPENED)

    def handle_endtag(self, tag: str) -> None:
        if tag in PARAGRAPHS:
            self._finish()

    def handle_data(self, data: str) -> None:
        self._parts.append(data)

    def close(self) -> None:
        super().close()
        self._finish()

    def _finish(self) -> None:
        """Store the present paragraph, if it has an ``id``, and begin afresh."""
        if self._key:
            text = _RUN_TOGETHER.sub(" ", "".join(self._parts)).replace(_OPENED, "")
            self.paragraphs.setdefault(self._key, " ".join(text.split()))
        self._key = None
        self._parts = []


def sentence_pairs(source: str, target: str) -> Iterator[tuple[str, str]]:
    """Split a paragraph and its translation into pairs of sentences.

    Sentences end with ``.``, ``!`` or ``?`` before white space. If the paragraphs are equal or
    their numbers of sentences differ, there are no pairs. A pair is dropped if both sentences are
    equal, if either has fewer than 3 or more than 40 words, or if the number of German words
    divided by that of English words is outside 0.4 to 2.

    Args:
        source: The English paragraph.
        target: The German paragraph.

    Yields:
        Pairs of an English and a German sentence.

    Example:
        >>> list(sentence_pairs("Click the icon. Go on!", "Klicken Sie das Symbol an. Weiter!"))
        [('Click the icon.', 'Klicken Sie das Symbol an.')]
    """
    sources = _SENTENCE_END.split(source)
    targets = _SENTENCE_END.split(target)
    if source == target or len(sources) != len(targets):
        return
    for pair in zip(sources, targets, strict=True):
        counts = [len(side.split()) for side in pair]
        in_range = all(WORDS[0] <= count <= WORDS[1] for count in counts)
        if pair[0] != pair[1] and in_range and RATIO[0] <= counts[1] / counts[0] <= RATIO[1]:
            yield pair


def text_arrays(name: str, texts: Iterable[str]) -> Arrays:
    """Put texts into two arrays that need no unpickling.

    Args:
        name: Prefix of the arrays' names.
        texts: N texts.

    Returns:
        ``<name>_bytes``, uint8, all texts in UTF-8 concatenated, and ``<name>_offsets``, int64
        ``(N + 1,)``, the start of each text and the end of the last.
    """
    encoded = [text.encode() for text in texts]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return {
        f"{name}_bytes": np.frombuffer(b"".join(encoded), np.uint8).copy(),
        f"{name}_offsets": offsets,
    }


def texts_of(arrays: Mapping[str, NDArray[np.generic]], name: str) -> tuple[str, ...]:
    """Return the texts that `text_arrays` stored in two arrays.

    Args:
        arrays: Arrays by name, including the two that begin with ``name``.
        name: Prefix of the arrays' names.

    Returns:
        The texts, in order.

    Example:
        >>> texts_of(text_arrays("page", ["über", "", "x"]), "page")
        ('über', '', 'x')
    """
    blob = arrays[f"{name}_bytes"].tobytes()
    offsets = arrays[f"{name}_offsets"].tolist()
    return tuple(blob[start:end].decode() for start, end in pairwise(offsets))
