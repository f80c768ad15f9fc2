"""How the book is run, judged and rendered: lab, chapters, evidence, pages. Not in the wheel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from companion.pages.context import start

__all__ = ["start"]


def __getattr__(name: str) -> Any:
    """Import `start` only when it is used, because its module makes the whole process canonical."""
    if name == "start":
        from companion.pages.context import start

        return start
    raise AttributeError(f"module 'companion' has no attribute {name!r}")
