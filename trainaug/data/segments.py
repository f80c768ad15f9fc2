"""The ``<seg>`` elements of the XML files of IWSLT and WMT, joined by their numbers.

Reference: NIST, "mteval" format: sets of ``<doc docid>`` that hold ``<seg id>``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NoReturn
from xml.parsers import expat

from trainaug.data.files import FilePath, as_path, read_text

__all__ = ["joined_segments", "read_segments"]

#: Document and segment.
_Key = tuple[str, str]
_DECLARED = re.compile(r"\s*<\?xml[^>]*?encoding\s*=\s*[\"']([^\"']+)")
UTF8 = ("utf-8", "utf8", "us-ascii", "ascii")


def read_segments(file: FilePath) -> dict[_Key, str]:
    """Read the texts of the segments of a file.

    Args:
        file: Well-formed XML in UTF-8; tag names in either case. Comments are left out, CDATA is
            text, and of elements inside a segment the text is taken.

    Returns:
        Text by ``docid`` and ``id``, in the file's order. A document without ``docid`` counts by
        its place, ``#1`` for the first, and so do the segments of a file that numbers none.

    Raises:
        ValueError: If the file is missing, no such XML, declares entities, has no segment, an
            empty or repeated number, or numbers only some segments.
    """
    file = as_path(file)
    text = read_text(file)
    declared = _DECLARED.match(text)
    if declared and declared[1].lower() not in UTF8:
        raise ValueError(f"{file}: declared as {declared[1]}, save it as UTF-8")
    reader = _Reader()
    try:
        reader.parser.Parse(text, True)
    except expat.ExpatError as error:
        raise ValueError(f"{file}: not well-formed XML: {error}") from error
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    if not reader.found:
        raise ValueError(f"{file}: no <seg> element")
    return reader.found


class _Reader:
    """Handlers of the parser; it loads nothing from outside, and entities are refused."""

    def __init__(self) -> None:
        self.found: dict[_Key, str] = {}
        self._documents = 0
        self._document = ""
        self._segment: str | None = None
        self._parts: list[str] = []
        self._numbered: bool | None = None
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._parts.append
        self.parser.EntityDeclHandler = _refuse_entity
        self.parser.SkippedEntityHandler = _refuse_skipped

    def _start(self, tag: str, attributes: Mapping[str, str]) -> None:
        name = _local(tag)
        values = {_local(key): value.strip() for key, value in attributes.items()}
        if name == "doc":
            self._documents += 1
            self._document = values.get("docid") or f"#{self._documents}"
        elif name == "seg":
            if self._segment is not None:
                raise ValueError(f"segment {self._segment!r} has a <seg> inside")
            if self._numbered not in (None, "id" in values):
                raise ValueError("some segments have an id, others have none")
            self._numbered = "id" in values
            self._segment = values.get("id", f"#{len(self.found) + 1}")
            if not self._segment:
                raise ValueError("a segment has an empty id")
            self._parts.clear()
        elif name == "br":
            self._parts.append(" ")

    def _end(self, tag: str) -> None:
        if _local(tag) == "seg" and self._segment is not None:
            key = self._document, self._segment
            if key in self.found:
                raise ValueError(f"{_named(key)} occurs twice")
            self.found[key] = "".join(self._parts)
            self._segment = None


def _local(name: str) -> str:
    return name.rpartition(":")[2].lower()


def _named(key: _Key) -> str:
    return f"segment {key[1]!r}" + (f" of document {key[0]!r}" if key[0] else "")


def _refuse_entity(name: str, *_: object) -> NoReturn:
    raise ValueError(f"declares the entity {name!r}; declared entities are not read")


def _refuse_skipped(name: str, *_: object) -> NoReturn:
    raise ValueError(f"has the undeclared entity {name!r}")


def joined_segments(source: FilePath, target: FilePath) -> list[tuple[str, str]]:
    """Pair the segments of two files by document and number, in the order of the first.

    Args:
        source: As for `read_segments`.
        target: The translations.

    Returns:
        Pairs of a text and its translation.

    Raises:
        ValueError: As `read_segments`, and if a segment is in one file only.
    """
    left, right = read_segments(source), read_segments(target)
    lacking = [(target, key) for key in left if key not in right]
    lacking += [(source, key) for key in right if key not in left]
    if lacking:
        file, key = lacking[0]
        raise ValueError(
            f"{source} has {len(left)} sentences, {as_path(target).name} has {len(right)};"
            f" {as_path(file).name} has no {_named(key)}"
        )
    return [(text, right[key]) for key, text in left.items()]
