"""Find a chapter's experiments and resolve its configuration.

A chapter is a folder ``chNN`` with ``config.py`` (``Config``: defaults are the *standard* profile),
``runs.py`` (``plan(config)`` and ``execute(run)``), ``figures.py`` and, where its ledger calls
functions, ``numbers.py``. Profiles are the differences that ``notebooks/profiles/<profile>.yaml``
lists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from companion.evidence.digest import code_digest
from companion.evidence.formulas import Function
from companion.evidence.store import Run
from companion.experiments.defaults import completed
from companion.paths import NOTEBOOKS, PROFILES

__all__ = [
    "BUDGET_SECONDS",
    "PROFILE_NAMES",
    "TITLES",
    "Chapter",
    "chapter_number",
    "functions_of",
    "load_chapter",
    "notebook_path",
    "resolve_config",
]

PROFILE_NAMES = ("quick", "standard", "full", "paper")
BUDGET_SECONDS = {"quick": 60.0, "standard": 900.0, "full": 7000.0}
TITLES = {
    "01": "vse_hard_negatives",
    "02": "gradient_clustering",
    "03": "autoassist",
    "04": "curriculum",
    "05": "cascading_sum",
    "06": "linear_robustness",
    "07": "together",
}


@dataclass(frozen=True)
class Chapter:
    """The experiments of one chapter.

    Attributes:
        number: Two digits.
        config_class: Pydantic model of its settings.
        plan_runs: Lists the runs of a configuration.
        execute: Computes one run; returns ``metrics``, ``curves`` and ``counters``.
        functions: What the formulas of the ledger may call, by name.
        runs_module: Dotted name of the module with ``execute``, for processes that compute runs.
    """

    number: str
    config_class: type[BaseModel]
    plan_runs: Callable[[Any], list[Run]]
    execute: Callable[[Run], dict[str, Any]]
    functions: Mapping[str, Function]
    runs_module: str

    @property
    def code_digest(self) -> str:
        """Digest of the code behind the runs."""
        return code_digest(self.runs_module)

    def plan(self, profile: str, knobs: Mapping[str, Any] | None = None) -> list[Run]:
        """List the runs of a profile, with ``knobs`` in place of its settings."""
        return [completed(run) for run in self.plan_runs(resolve_config(self, profile, knobs))]


def chapter_number(name: str) -> str:
    """Read a chapter as people write it: ``6``, ``06``.

    Raises:
        ValueError: If there is no such chapter.
    """
    number = str(name).strip().zfill(2)
    if number not in TITLES:
        raise ValueError(f"unknown chapter {name!r}, expected one of {', '.join(TITLES)}")
    return number


def functions_of(number: str) -> dict[str, Function]:
    """Functions that a chapter's formulas may call: what its ``numbers.py`` exports."""
    name = f"companion.experiments.ch{number}.numbers"
    if find_spec(name.rpartition(".")[0]) is None or find_spec(name) is None:
        return {}
    module = import_module(name)
    return {each: getattr(module, each) for each in module.__all__}


def load_chapter(number: str) -> Chapter | None:
    """Import a chapter's experiments; ``None`` if the chapter is not built yet."""
    package = f"companion.experiments.ch{number}"
    if find_spec(package) is None:
        return None
    runs = import_module(f"{package}.runs")
    return Chapter(
        number,
        import_module(f"{package}.config").Config,
        runs.plan,
        runs.execute,
        functions_of(number),
        runs.__name__,
    )


def notebook_path(name: str) -> Path:
    """Path of the notebook whose name starts with two digits, say ``"06"``.

    Raises:
        FileNotFoundError: If there is no such notebook.
    """
    found = sorted(NOTEBOOKS.glob(f"{name}_*.ipynb"))
    if len(found) != 1:
        raise FileNotFoundError(f"expected one notebook {name}_*.ipynb, found {len(found)}")
    return found[0]


def resolve_config(
    chapter: Chapter, profile: str, knobs: Mapping[str, Any] | None = None
) -> BaseModel:
    """Apply a profile's differences and then single knobs to the defaults.

    A knob that stands at its default leaves the choice to the profile.

    Raises:
        ValueError: If the profile, or a setting, is unknown or out of range.
    """
    if profile not in PROFILE_NAMES:
        raise ValueError(f"unknown profile {profile!r}, expected one of {', '.join(PROFILE_NAMES)}")
    settings: dict[str, Any] = {}
    path = PROFILES / f"{profile}.yaml"
    if path.is_file():
        sections = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        settings = dict(sections.get(chapter.number) or {})
    elif profile != "standard":
        raise ValueError(f"profile {profile!r} has no file {path.name}")
    defaults = chapter.config_class().model_dump(mode="json")
    settings |= {
        name: value
        for name, value in (knobs or {}).items()
        if name not in defaults
        or (list(value) if isinstance(value, tuple) else value) != defaults[name]
    }
    try:
        return chapter.config_class(**settings)
    except ValidationError as error:
        detail = "; ".join(
            f"{'.'.join(map(str, item['loc']))} = {item.get('input')!r}: {item['msg']}"
            for item in error.errors()
        )
        raise ValueError(f"chapter {chapter.number}, profile {profile}: {detail}") from error
