"""The works that can be cited: the keys of ``references.bib``."""

from __future__ import annotations

import re
from collections.abc import Iterable

from companion.evidence.names import did_you_mean
from companion.paths import BIBLIOGRAPHY

__all__ = ["check_works", "cited_works", "known_works"]

# [key] and [key; key] in notebooks, {cite:t}`key, key` on the pages
_BRACKETS = re.compile(r"\[([a-z]+\d{4}[a-z]+(?:; [a-z]+\d{4}[a-z]+)*)\]")
_ROLE = re.compile(r"\{cite(?::\w+)?\}`([^`]*)`")


def known_works() -> set[str]:
    """Keys of the bibliography."""
    return set(re.findall(r"^@\w+\{([^,\s]+),", BIBLIOGRAPHY.read_text(encoding="utf-8"), re.M))


def cited_works(text: str) -> list[str]:
    """Keys that a page or a notebook's text cites, each once, in order.

    Example:
        >>> cited_works("as in [faghri2018vsepp; kumar2010selfpaced]; see {cite:t}`lu2022grab`")
        ['faghri2018vsepp', 'kumar2010selfpaced', 'lu2022grab']
    """
    groups = [match[1] for pattern in (_BRACKETS, _ROLE) for match in pattern.finditer(text)]
    return list(dict.fromkeys(key.strip() for group in groups for key in re.split("[;,]", group)))


def check_works(keys: Iterable[str], where: str) -> None:
    """Refuse keys that the bibliography does not have.

    Args:
        keys: What is cited; without any the bibliography is not read.
        where: What cites it, for the message.

    Raises:
        ValueError: If a key is unknown; the message suggests similar keys.
    """
    asked = list(keys)
    known = known_works() if asked else set()
    for key in asked:
        if key not in known:
            hint = did_you_mean(key, known)
            raise ValueError(f"{where}: {BIBLIOGRAPHY.name} has no work {key!r}{hint}")
