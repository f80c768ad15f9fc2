"""What the pages of the book say of a chapter, before any of its code is imported."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["About"]


@dataclass(frozen=True, kw_only=True)
class About:
    """Stated by the package of each chapter as ``ABOUT``.

    Attributes:
        number: Two digits, as in the names of notebook, ledger and results.
        title: The notebook's name without its number.
        prefix: Of the ids of its claims.
        method: Name of the method, for the front page.
        authors: Of the work.
        front_claim: The claim whose effect stands for the method on the front page; without one
            the chapter is not there.
        key_figure: Name of the file of the picture that ``figures.key_figure`` draws; empty for
            none.
        alt: What can be seen in it, in words.
    """

    number: str
    title: str
    prefix: str
    method: str = ""
    authors: str = ""
    front_claim: str = ""
    key_figure: str = ""
    alt: str = ""
