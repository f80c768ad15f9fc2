"""Packages beyond torch and NumPy, and the extra of `trainaug` that brings each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["extra"]


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Turn a failed import inside the ``with`` block into advice on what to install.

    Args:
        name: One of the extras in ``pyproject.toml``: ``"proofs"`` or ``"data"``.

    Raises:
        ModuleNotFoundError: If a package is missing; the message names the extra that brings it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"this needs {error.name}, which comes with the extra {name!r}: "
            f"pip install 'trainaug[{name}]'",
            name=error.name,
        ) from error
