"""Tiny data for the canaries on CIFAR-10: short runs that must give the same numbers everywhere.

The real archive is not available on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

from companion.chapters.gradient_clustering import problems
from companion.lab.canary.tiny_files import write_cifar
from trainaug.data.cifar import load_cifar

__all__ = ["tiny_data"]


@contextmanager
def tiny_data(config: Mapping[str, object]) -> Iterator[None]:
    """Point a run that reads CIFAR-10 at a small archive of random pictures."""
    if config.get("data") != "cifar10":
        yield
        return
    load_tiny_cifar = partial(load_cifar, complete=False)
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_cifar(folder, 10, 80)
        problems.pictures.cache_clear()  # it does not know which files its pictures came from
        with (
            mock.patch.object(problems, "DATA_CACHE", folder),
            mock.patch.object(problems, "load_cifar", load_tiny_cifar),
        ):
            yield
        problems.pictures.cache_clear()
