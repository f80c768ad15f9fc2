"""The tiny run of an arm: its own settings made small, on data that every machine has.

Every phase of an arm stays, with at least two evaluations in each, so that a boundary that moves
by one step, or a choice between the best and the last weights, moves the trace. How small is said
by the settings themselves (`Settings.tiny`); a chapter whose data cannot be had everywhere has a
module ``canary`` that makes tiny files for the time of the run.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from companion.evidence.store import Run
from companion.lab.arms import defaults_of
from companion.lab.chapters import load_chapter, package_of

__all__ = ["default_settings", "tiny_config", "tiny_data"]


def tiny_config(run: Run) -> dict[str, Any]:
    """Return the settings of a run's canary."""
    settings = type(load_chapter(run.chapter).arm(run.arm).settings).from_config(run.config)
    return asdict(settings.tiny())


def default_settings(chapter: str) -> dict[str, Any]:
    """Defaults of a chapter's settings by class and name, as JSON has them.

    A record leaves out what stands at its default, and most canaries replace it, so neither sees
    a default that moves. They are committed beside the canaries and compared as well.
    """
    kinds = {type(arm.settings) for arm in load_chapter(chapter).arms.values()}
    values = {kind.__name__: defaults_of(kind) for kind in kinds}
    plain: dict[str, Any] = json.loads(json.dumps(values, sort_keys=True))
    return plain


def tiny_data(run: Run) -> AbstractContextManager[None]:
    """Data for a canary where the real ones cannot be had everywhere, as its chapter makes them."""
    name = f"{package_of(run.chapter)}.canary"
    if find_spec(name) is None:
        return nullcontext()
    data: AbstractContextManager[None] = import_module(name).tiny_data(run.config)
    return data
