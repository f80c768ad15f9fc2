"""The ``<seg>`` elements of the XML files of IWSLT and WMT, paired by their numbers.

Reference: NIST, "mteval" format: sets of ``<doc docid>`` elements that contain ``<seg id>``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NoReturn
from xml.parsers import expat

from trainaug.data.files import FilePath, as_path, read_text

__all__ = ["joined_segments", "read_segments"]

#: Document and segment, by ``docid`` and ``id``.
_Key = tuple[str, str]
_DECLARED = re.compile(r"\s*<\?xml[^>]*?encoding\s*=\s*[\"']([^\"']+)")
UTF8 = ("utf-8", "utf8", "us-ascii", "ascii")


def read_segments(file: FilePath) -> dict[_Key, str]:
    """Read the texts of the segments of a file.

    Args:
        file: Well-formed XML in UTF-8; tag names in either case. Comments are left out, CDATA is
            text, and elements inside a segment contribute their text.

    Returns:
        Text by ``docid`` and ``id``, in the file's order. A document without ``docid`` is numbered
        by its position, ``#1`` for the first, and so are the segments of a file without ids.

    Raises:
        ValueError: If the file is missing, is not such XML, declares entities, has no segment, an
            empty or repeated id, or ids for only some segments.
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
    if not reader.texts:
        raise ValueError(f"{file}: no <seg> element")
    return reader.texts


class _Reader:
    """A parser that collects the segments; it loads nothing from outside and refuses entities."""

    def __init__(self) -> None:
        self.texts: dict[_Key, str] = {}
        self._documents = 0  # number of documents begun
        self._document = ""
        self._segment: str | None = None  # None outside a segment
        self._parts: list[str] = []
        self._numbered: bool | None = None  # whether segments have ids; None before the first
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._parts.append
        self.parser.EntityDeclHandler = _refuse_entity
        self.parser.SkippedEntityHandler = _refuse_skipped

    def _start(self, tag: str, attributes: Mapping[str, str]) -> None:
        """Begin a document or a segment; a ``br`` inside a segment is a space."""
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
            self._segment = values.get("id", f"#{len(self.texts) + 1}")
            if not self._segment:
                raise ValueError("a segment has an empty id")
            self._parts.clear()
        elif name == "br":
            self._parts.append(" ")

    def _end(self, tag: str) -> None:
        if _local(tag) == "seg" and self._segment is not None:
            key = self._document, self._segment
            if key in self.texts:
                raise ValueError(f"{_named(key)} occurs twice")
            self.texts[key] = "".join(self._parts)
            self._segment = None


def _local(name: str) -> str:
    """Return a name of XML in lower case without its namespace prefix."""
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
        source: A file as `read_segments` takes it.
        target: The file of the translations.

    Returns:
        Pairs of a text and its translation.

    Raises:
        ValueError: As `read_segments`, and if a segment is in one file only.
    """
    left = read_segments(source)
    right = read_segments(target)
    lacking = [(target, key) for key in left if key not in right]
    lacking += [(source, key) for key in right if key not in left]
    if lacking:
        file, key = lacking[0]
        raise ValueError(
            f"{source} has {len(left)} sentences, {as_path(target).name} has {len(right)};"
            f" {as_path(file).name} has no {_named(key)}"
        )
    return [(text, right[key]) for key, text in left.items()]
