"""The tiny run of an arm: its own settings made small, on data that every machine has.

Every phase of an arm stays, with at least two evaluations in each, so that a boundary that moves
by one step, or a choice between the best and the last weights, moves the trace. The settings
themselves say how small they become (`Settings.tiny`). A chapter whose data cannot be had
everywhere has a module ``canary`` that makes tiny files for the duration of the run.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec

from companion.evidence.store import Run
from companion.lab.arms import defaults_of
from companion.lab.chapters import load_chapter, package_of

__all__ = ["Constants", "default_settings", "tiny_config", "tiny_data"]

#: Default values by name of the settings class and then by setting, as JSON has them.
Constants = dict[str, dict[str, object]]


def tiny_config(run: Run) -> dict[str, object]:
    """Return the settings of a run's canary."""
    settings = type(load_chapter(run.chapter).arm(run.arm).settings).from_config(run.config)
    return asdict(settings.tiny())


def default_settings(chapter: str) -> Constants:
    """Defaults of a chapter's settings by class and name, as JSON has them.

    A record leaves out settings at their defaults, and most canaries replace these settings, so
    neither notices a changed default. Defaults are therefore committed and compared as well.
    """
    kinds = {type(arm.settings) for arm in load_chapter(chapter).arms.values()}
    values = {kind.__name__: defaults_of(kind) for kind in kinds}
    plain: Constants = json.loads(json.dumps(values, sort_keys=True))
    return plain


def tiny_data(run: Run) -> AbstractContextManager[None]:
    """Context in which a canary finds tiny data, if its chapter makes any; else it does nothing."""
    name = f"{package_of(run.chapter)}.canary"
    if find_spec(name) is None:
        return nullcontext()
    data: AbstractContextManager[None] = import_module(name).tiny_data(run.config)
    return data
