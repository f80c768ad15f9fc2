"""Tiny data for the canaries: short runs that must give the same numbers everywhere.

The real sentences and pictures are not available on every machine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from unittest import mock

from companion.chapters.autoassist import corpora, problems
from companion.lab.canary.tiny_files import (
    sentence_pairs,
    write_cifar,
    write_iwslt14,
    write_wmt14,
)
from trainaug.data.cifar import load_cifar
from trainaug.data.parallel_text import ParallelText

__all__ = ["tiny_data"]


def few_sentences(max_words: int | None = None) -> dict[str, ParallelText]:
    """Return other sentences in the form of `libreoffice_help`."""
    return {
        "train": sentence_pairs(90),
        "val": sentence_pairs(24, 90),
        "test": sentence_pairs(24, 114),
    }


@cache
def _files() -> tempfile.TemporaryDirectory[str]:
    """Write small data sets in the official formats, once per process; its end deletes them."""
    temporary = tempfile.TemporaryDirectory()
    folder = Path(temporary.name)
    write_cifar(folder, 10, 80)
    write_iwslt14(folder / "iwslt14", {"train": 90, "dev2010": 24, "tst2012": 24})
    write_wmt14(folder / "wmt14", {"train": 90, "valid": 24, "test": 24})
    return temporary


def _forget_loaded_data() -> None:
    # the caches do not know which files their entries came from
    problems._arrays.cache_clear()
    corpora.load_corpus.cache_clear()


@contextmanager
def tiny_data(config: Mapping[str, object]) -> Iterator[None]:
    """Point the chapter at tiny data while the canary of a configuration runs."""
    data = config["data"]
    if data not in ("libreoffice", "cifar10", *corpora.FOLDERS):
        yield
        return
    _forget_loaded_data()
    with ExitStack() as stack:
        if data == "libreoffice":
            stack.enter_context(mock.patch.object(corpora, "libreoffice_help", few_sentences))
        else:
            folder = Path(_files().name)
            part_of_cifar = partial(load_cifar, complete=False)
            stack.enter_context(mock.patch.object(corpora, "DATA_CACHE", folder))
            stack.enter_context(mock.patch.object(problems, "DATA_CACHE", folder))
            stack.enter_context(mock.patch.object(problems, "load_cifar", part_of_cifar))
        yield
    _forget_loaded_data()
