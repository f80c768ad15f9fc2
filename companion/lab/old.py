"""Chapters that still have ``config.py`` and ``runs.py``; goes with the last of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import yaml

from companion.evidence.digest import code_digest
from companion.evidence.formulas import Function
from companion.evidence.store import Run
from companion.lab.defaults import completed
from companion.paths import PROFILES


@dataclass(frozen=True)
class OldArm:
    name: str
    version: int
    deterministic: bool


@dataclass(frozen=True)
class OldChapter:
    number: str
    title: str
    package: str
    config_class: Any
    plan_runs: Callable[[Any], list[Run]]
    execute: Callable[[Run], dict[str, Any]]
    functions: Mapping[str, Function]

    @cached_property
    def arms(self) -> dict[str, OldArm]:
        runs = [r for p in ("full", "standard", "paper") for r in self.plan(p)]
        return {r.arm: OldArm(r.arm, r.version, r.deterministic) for r in runs}

    chosen: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def code_digest(self) -> str:
        return code_digest(f"{self.package}.runs")

    def plan(self, profile: str, knobs: Mapping[str, Any] | None = None) -> list[Run]:
        path = PROFILES / f"{profile}.yaml"
        sections = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
        settings = dict((sections or {}).get(self.number) or {})
        defaults = self.config_class().model_dump(mode="json")
        settings |= {
            name: value
            for name, value in (knobs or {}).items()
            if name not in defaults
            or (list(value) if isinstance(value, tuple) else value) != defaults[name]
        }
        return [completed(run) for run in self.plan_runs(self.config_class(**settings))]
