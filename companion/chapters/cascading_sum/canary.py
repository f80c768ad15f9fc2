"""Tiny archives of CIFAR for the canaries: short runs that must give the same numbers everywhere.

The real archives are not available on every machine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

from companion.chapters.cascading_sum import problems
from companion.lab.canary.tiny_files import write_cifar
from trainaug.data.cifar import load_cifar

__all__ = ["tiny_data"]


@contextmanager
def tiny_data(config: Mapping[str, object]) -> Iterator[None]:
    """Read CIFAR from an archive with few pictures while the canary of an arm runs."""
    if config["data"] not in problems.CIFAR:
        yield
        return
    num_classes = problems.CIFAR[str(config["data"])][1]
    with tempfile.TemporaryDirectory() as folder:
        write_cifar(Path(folder), num_classes, 80 if num_classes == 10 else 1000)
        load_tiny_cifar = partial(load_cifar, complete=False)
        # the cache does not know which files its pictures came from
        problems._pictures.cache_clear()
        with (
            mock.patch.object(problems, "DATA_CACHE", Path(folder)),
            mock.patch.object(problems, "load_cifar", load_tiny_cifar),
        ):
            yield
        problems._pictures.cache_clear()
