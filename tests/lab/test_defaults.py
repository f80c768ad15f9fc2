"""Defaults of the settings and versions of the arms: what an identity is made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from companion.evidence.store import Run, canonical_json
from companion.lab import defaults as d
from companion.lab.chapters import PROFILE_NAMES, TITLES, load_chapter

BUILT = [number for number in TITLES if load_chapter(number) is not None]


@cache
def plans(number: str) -> tuple[Run, ...]:
    """All runs of the four profiles."""
    chapter = load_chapter(number)
    assert chapter is not None
    return tuple(run for profile in PROFILE_NAMES for run in chapter.plan(profile))


def names_in(config: Mapping[str, Any]) -> set[str]:
    """Names of settings; the configurations of a set of models are settings too."""
    inside = config.get("models", {}).values()
    return set(config).union(*map(names_in, inside))


def restored(
    config: Mapping[str, Any], settings: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Fill in the keys of ``config`` from the settings, and the rest from the defaults."""
    return {
        name: restored(value, settings[name], defaults)
        if isinstance(value, Mapping) and name in settings
        else settings[name]
        if name in settings
        else defaults[name]
        for name, value in config.items()
    }


@pytest.mark.parametrize("number", BUILT)
def test_every_setting_of_every_plan_has_a_default(number):
    used = set().union(*(names_in(run.config) for run in plans(number)))
    assert used - d.DEFAULTS[number].keys() == set()
    assert d.DEFAULTS[number].keys() - used == set(), "a default that no run uses"


@pytest.mark.parametrize("number", BUILT)
def test_settings_and_defaults_give_back_the_configuration(number):
    for run in plans(number):
        assert run.defaults == d.DEFAULTS[number]
        if "models" not in run.config:
            assert run.config.items() <= d.config_of(run.head).items()
        config = restored(run.config, run.settings, run.defaults)
        assert canonical_json(config) == canonical_json(run.config)


@pytest.mark.parametrize("number", BUILT)
def test_a_new_setting_at_its_default_orphans_no_record(number):
    wider = {**d.DEFAULTS[number], "margin": 0.2}
    for run in plans(number):
        config = {**run.config, "margin": 0.2}
        if "models" in config:
            inside = config["models"].items()
            config["models"] = {name: {**model, "margin": 0.2} for name, model in inside}
        assert replace(run, config=config, defaults=wider).identity == run.identity


@pytest.mark.parametrize("number", BUILT)
def test_a_process_that_is_sent_a_run_computes_with_the_same_settings(number):
    for run in plans(number):
        assert json.loads(json.dumps(dict(run.config))) == dict(run.config)


# --- versions -------------------------------------------------------------------------------------


@pytest.fixture
def versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(d, "VERSIONS", tmp_path / "versions.yaml")
    return tmp_path / "versions.yaml"


def test_an_arm_that_is_not_listed_has_version_1(versions):
    versions.write_text('"06": {sign: 2}\n')
    assert d.arm_version("06", "sign") == 2
    assert d.arm_version("06", "gradient") == 1
    assert d.arm_version("05", "sign") == 1


def test_no_arm_listed_means_version_1(versions):
    versions.write_text("{}\n")
    assert d.arm_version("06", "sign") == 1


def test_a_new_version_changes_that_arms_identities_and_no_others(versions, monkeypatch):
    chapter = load_chapter("04")
    versions.write_text("{}\n")
    before = chapter.plan("quick")
    later = versions.with_name("later.yaml")
    later.write_text(f'"04": {{{before[0].arm}: 2}}\n')
    monkeypatch.setattr(d, "VERSIONS", later)
    after = chapter.plan("quick")
    moved = {a.arm for a, b in zip(before, after, strict=True) if a.identity != b.identity}
    assert moved == {before[0].arm}


@pytest.mark.parametrize("bad", ["0", "-1", "1.5", "two", "true"])
def test_a_wrong_version_is_named(versions, bad):
    versions.write_text(f'"06": {{sign: {bad}}}\n')
    with pytest.raises(ValueError, match="sign, chapter 06"):
        d.arm_version("06", "sign")


@pytest.mark.parametrize("number", BUILT)
def test_versions_are_given_to_arms_that_exist(number):
    listed = yaml.safe_load(d.VERSIONS.read_text()).get(number, {})
    assert set(listed) <= {run.arm for run in plans(number)}
