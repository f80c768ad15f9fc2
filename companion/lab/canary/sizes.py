"""How the run of an arm is made tiny: fewer steps and examples, evaluations that come sooner.

Every phase of an arm stays, with at least two evaluations in each, so that a boundary that moves
by one step, or a choice between the best and the last weights, moves the trace. Constants that are
no settings yet are patched by name; a name that is gone is an error that says so.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

from companion.evidence.store import Run
from companion.lab.arms import defaults_of
from companion.lab.canary.tiny_files import (
    sentence_pairs,
    write_cifar,
    write_iwslt14,
    write_wmt14,
)
from companion.lab.chapters import load_chapter, package_of
from trainaug.data.parallel_text import ParallelText

__all__ = ["TinyFiles", "full_size_constants", "patched", "tiny_config"]

Config = dict[str, Any]
Patches = Mapping[str, Any]  # dotted name of a constant or function to its value in a canary

EXPERIMENTS = "companion.chapters"


# --- settings -------------------------------------------------------------------------------------


def _hard_negatives(arm: str, config: Config) -> Config:
    if arm == "family_ridge":
        return config
    # the sum before the maximum, the switch, and two evaluations after it
    epochs = max(4, config["warmup"] + 3)
    return config | {"max_epochs": epochs, "patience": 2, "batch_size": 32}


def _autoassist(arm: str, config: Config) -> Config:
    if arm == "theorem":
        return config | {"passes": 2}
    if "passes" in config:
        return config | {"passes": 4, "exact_steps": 20, "gap": 0.05}
    if "batch_tokens" in config:
        return config | {
            "tokens": 2400,
            "batch_tokens": 120,
            "pool": 32,
            "warm_up": 4,
            "vocabulary": 60,
            "pace_epochs": 1,
        }
    steps = 24 if config["model"] == "resnet8" else 60
    return config | {"num_train": 320, "batch": 16, "steps": steps, "ahead": config["ahead"] // 4}


def _cascading_sum(arm: str, config: Config) -> Config:
    if "models" in config:
        models = {name: _cascading_sum(name, of) for name, of in config["models"].items()}
        return config | {"models": models, "images": 8}
    tiny: Config = {"steps": 60, "images": 8}
    if config["model"] != "conv":
        tiny["steps"] = 24
    if config["data"].startswith("cifar"):
        tiny["per_class"] = 3 if config["per_class"] == 100 else 5
    return config | tiny


_SIZES: Mapping[str, Callable[[str, Config], Config]] = {
    "01": _hard_negatives,
    "03": _autoassist,
    "05": _cascading_sum,
}


def _is_old(number: str) -> bool:
    return find_spec(f"{package_of(number)}.config") is not None


def tiny_config(run: Run) -> Config:
    """Return the settings of a run's canary."""
    if not _is_old(run.chapter):
        settings = type(load_chapter(run.chapter).arm(run.arm).settings).from_config(run.config)
        return dataclasses.asdict(settings.tiny())
    return _SIZES[run.chapter](run.arm, dict(run.config))


# --- constants and data ---------------------------------------------------------------------------


class TinyFiles:
    """Folder with data sets in their official formats, written once a process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_cifar(folder, 10, 80)
        write_cifar(folder, 100, 1000)
        parts = {"train": 90, "dev2010": 24, "tst2012": 24}
        write_iwslt14(folder / "iwslt14", parts)
        write_wmt14(folder / "wmt14", {"train": 90, "valid": 24, "test": 24})


def _small_galleries(load_pairs: Callable[..., Any], *args: Any) -> Any:
    """A split with a part of its training items, validation and test concepts."""
    pairs = load_pairs(*args)
    galleries = {
        part: tuple(dataclasses.replace(g, concepts=g.concepts[:48]) for g in getattr(pairs, part))
        for part in ("val", "test")
    }
    return replace(pairs, train=pairs.train[:: len(pairs.train) // 160], **galleries)


def _few_sentences(max_words: int | None = None) -> dict[str, ParallelText]:
    """What `libreoffice_help` returns: the real help cannot be had on every machine."""
    return {
        "train": sentence_pairs(90),
        "val": sentence_pairs(24, 90),
        "test": sentence_pairs(24, 114),
    }


def _ch01() -> Patches:
    runs = import_module(f"{EXPERIMENTS}.hard_negatives.runs")
    return {"hard_negatives.runs.load_pairs": partial(_small_galleries, runs.load_pairs)}


def _ch03() -> Patches:
    low = {"0": 0.5, "noise": 0.4, "rotated": 0.2, "large": 0.5, "resnet8": 0.2, "cifar10": 0.2}
    fashion = {"fashion": (200, 200)}
    return {
        "autoassist.images.EVERY": 3,
        "autoassist.images.PROBE": 60,
        "autoassist.images.PROBE_EVERY": 12,
        "autoassist.runs.TARGETS": low,
        "autoassist.problems.HELD_OUT": fashion,
        "autoassist.problems.NUM_PAIR": 160,
        "autoassist.linear.REPEATS": 2,
        "autoassist.linear.MOST_PASSES": 20,
        "autoassist.corpora.libreoffice_help": _few_sentences,
        "autoassist.corpora.HELD_OUT": 12,
        "autoassist.corpora.LONGEST": 16,
        "autoassist.translation.HELD_OUT": 30,
        "autoassist.translation.PROBE_LOOKS": 4,
    }


def _ch05() -> Patches:
    held_out = {"digits": (100, 100), "fashion": (100, 100)}
    return {
        "cascading_sum.training.MEASURE_EVERY": 5,
        "cascading_sum.training.BATCH": 20,
        "cascading_sum.plateau.BATCH": 20,
        "cascading_sum.plateau.PATIENCE": {"patience": 1, "stop_patience": 2},
        "cascading_sum.plateau.MAX_STEPS": 1200,
        "cascading_sum.problems.HELD_OUT": held_out,
        "cascading_sum.measures.PGD": {"steps": 4, "restarts": 2},
        "cascading_sum.measures.PARTNERS": 3,
        "cascading_sum.runs.SNAPSHOTS": (0, 10, 30, 59),
    }


_PATCHES: Mapping[str, Callable[[], Patches]] = {
    "01": _ch01, "03": _ch03, "05": _ch05,
}  # fmt: skip


def full_size_constants(chapter: str) -> dict[str, Any]:
    """Values of the constants that canaries replace, by module and name, as JSON has them.

    No canary sees these values, so they are committed beside the canaries and compared as well.
    """
    if not _is_old(chapter):
        kinds = {type(arm.settings) for arm in load_chapter(chapter).arms.values()}
        values = {kind.__name__: defaults_of(kind) for kind in kinds}
        settled: dict[str, Any] = json.loads(json.dumps(values, sort_keys=True))
        return settled
    places = [place for place, tiny in _PATCHES[chapter]().items() if not callable(tiny)]
    found = {}
    for place in (*places, f"{package_of(chapter).rpartition('.')[2]}.problems.HELD_OUT"):
        module, name = place.rsplit(".", 1)
        value = getattr(import_module(f"{EXPERIMENTS}.{module}"), name, None)
        if value is not None:
            found[place.partition(".")[2]] = value
    plain: dict[str, Any] = json.loads(json.dumps(found, sort_keys=True))
    return plain


def _tiny_data(chapter: str, folder: Path) -> Patches:
    """Read data of the *paper* arms from ``folder``, with fewer pictures held out, on the CPU."""
    name = package_of(chapter).rpartition(".")[2]
    problems = import_module(f"{EXPERIMENTS}.{name}.problems")
    patches: dict[str, Any] = {
        f"{name}.problems.DATA_CACHE": folder,
        f"{name}.problems.load_cifar": partial(problems.load_cifar, complete=False),
        f"{name}.problems.HELD_OUT": {"cifar10": (40, 40), "cifar100": (100, 100)},
    }
    if chapter == "03":
        patches["autoassist.corpora.DATA_CACHE"] = folder
    if chapter == "05":  # 36 million weights become a few thousand
        patches["cascading_sum.problems.WideResNet"] = _small_wide_resnet(problems.WideResNet)
        patches["cascading_sum.runs.pick_device"] = _cpu
    return patches


def _small_wide_resnet(network: Callable[..., Any]) -> Callable[..., Any]:
    def build(depth: int, width: int, *args: Any, **options: Any) -> Any:
        return network(10, 1, *args, **options)

    return build


def _cpu(*_: Any, **__: Any) -> Any:
    import torch

    return torch.device("cpu")


_files: list[tuple[tempfile.TemporaryDirectory[str], TinyFiles]] = []


def _folder() -> Path:
    """Folder of the tiny files; written when first asked for, removed when the process ends."""
    if not _files:
        temporary = tempfile.TemporaryDirectory()
        _files.append((temporary, TinyFiles(Path(temporary.name))))
    return _files[0][1].folder


def _forget_loaded_data(chapter: str) -> None:
    """Empty the caches of a chapter's data: they do not know which files they came from."""
    for name in ("problems", "corpora"):
        try:
            module = import_module(f"{package_of(chapter)}.{name}")
        except ModuleNotFoundError:
            continue
        for value in vars(module).values():
            if (
                hasattr(value, "cache_clear")
                and getattr(value, "__module__", "") == module.__name__
            ):
                value.cache_clear()


def _tiny_world(run: Run) -> AbstractContextManager[None]:
    """Data for a canary where the real ones cannot be had everywhere, as a chapter makes them."""
    name = f"{package_of(run.chapter)}.canary"
    if find_spec(name) is None:
        return nullcontext()
    world: AbstractContextManager[None] = import_module(name).tiny_data(run.config)
    return world


@contextmanager
def patched(run: Run) -> Iterator[None]:
    """Shrink what is no setting while a canary runs."""
    if not _is_old(run.chapter):
        with _tiny_world(run):
            yield
        return
    patches = dict(_PATCHES[run.chapter]())
    data = run.config.get("data", "")
    unshippable = data.startswith("cifar") or data in ("iwslt14", "wmt14")
    if unshippable:
        patches |= _tiny_data(run.chapter, _folder())
        _forget_loaded_data(run.chapter)
    with ExitStack() as stack:
        for place, value in patches.items():
            module, name = place.rsplit(".", 1)
            target = import_module(f"{EXPERIMENTS}.{module}")
            if not hasattr(target, name):
                raise LookupError(f"canaries patch {target.__name__}.{name}, which is gone")
            stack.enter_context(mock.patch.object(target, name, value))
        yield
    if unshippable:
        _forget_loaded_data(run.chapter)
