"""What the pages of the book say about a chapter, readable without importing its experiments."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["About"]


@dataclass(frozen=True, kw_only=True)
class About:
    """A chapter's description of itself; the package of each chapter states it as ``ABOUT``.

    Attributes:
        number: Two digits, as in the names of notebook, ledger and results.
        title: The notebook's name without its number.
        prefix: Beginning of the ids of its claims, such as ``csa``.
        method: Name of the method, for the front page.
        authors: Authors of the work.
        front_claim: Id of the claim whose effect stands for the method on the front page; without
            one the chapter does not appear there.
        key_figure: Name of the picture that ``figures.key_figure`` draws, without the number and
            ending of its file; empty for none.
        alt: What can be seen in that picture, in words.
    """

    number: str
    title: str
    prefix: str
    method: str = ""
    authors: str = ""
    front_claim: str = ""
    key_figure: str = ""
    alt: str = ""
