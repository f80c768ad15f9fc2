"""Chapters: numbers, profiles, knobs, and plans within their budgets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from companion.evidence.store import Run, canonical_json
from companion.lab import chapters as c
from companion.lab.arms import Profile
from companion.lab.results import Result

NUMBERS = c.chapter_numbers()


@dataclass(frozen=True, kw_only=True)
class Toy(Profile):
    """A setting of each kind."""

    seeds: int = 10
    rate: float = 0.5
    sizes: tuple[int, ...] = (3, 10)
    fast: bool = False
    data: str = "digits"


TOY = c.Chapter("98", "toy", "companion.chapters.toy", Toy, lambda profile: [], {})


def check_budget(runs: list[Run], profile: str) -> None:
    """Refuse a plan that predicts more core-seconds than its profile allows."""
    seconds = sum(run.predicted_seconds for run in runs)
    budget = c.BUDGET_SECONDS[profile]
    assert seconds <= budget, f"{profile}: {seconds:.0f} core-seconds planned, {budget:.0f} allowed"


@cache
def plan(number: str, profile: str) -> tuple[Run, ...]:
    return tuple(c.load_chapter(number).plan(profile))


@pytest.fixture
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of profiles, empty at first."""
    monkeypatch.setattr(c, "PROFILES", tmp_path)
    return tmp_path


# --- chapters and arms ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["6", "06", " 6 ", 6])
def test_chapter_number_reads_what_people_write(name):
    assert c.chapter_number(name) == "06"


@pytest.mark.parametrize("name", ["9", "0", "00", "07", "08", "abc", "", "6.0", "-6", "006"])
def test_what_is_no_chapter_is_refused(name):
    for read in (c.chapter_number, c.package_of, c.about, c.load_chapter):
        with pytest.raises(ValueError, match=f"unknown chapter {name!r}"):
            read(name)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_chapter_has_what_the_runner_needs(number):
    chapter = c.load_chapter(number)
    assert chapter.number == number
    assert all(map(callable, chapter.functions.values()))
    assert len(chapter.code_digest) == 64
    assert c.notebook_path(number).name == f"{number}_{c.about(number).title}.ipynb"


def test_a_missing_notebook_is_named():
    with pytest.raises(FileNotFoundError, match="99_"):
        c.notebook_path("99")


def test_an_arm_is_known_by_its_chapter_and_by_its_name():
    chapter = c.load_chapter("04")
    assert c.chapter_of_arm("digits_random") is chapter
    assert chapter.arm("digits_random").name == "digits_random"
    assert c.arm_version("04", "digits_random") == chapter.arm("digits_random").version
    assert c.arm_version("04", "an_arm_of_old") == 1


def test_an_unknown_arm_is_named_with_those_that_are_alike():
    with pytest.raises(c.NoSuchArmError, match="chapter 04 has no arm 'digits_randon'"):
        c.load_chapter("04").arm("digits_randon")
    with pytest.raises(c.NoSuchArmError, match=r"'digits_randon'.*digits_random"):
        c.chapter_of_arm("digits_randon")
    # a name under which something was tuned is no arm, so it is not meant either
    with pytest.raises(c.NoSuchArmError) as caught:
        c.chapter_of_arm("translation_random")
    assert "translation_random" not in str(caught.value).partition("did you mean")[2]


def test_a_run_is_executed_by_its_row_with_its_settings(monkeypatch):
    chapter = c.load_chapter("04")
    run = next(run for run in chapter.plan("quick") if run.arm == "selection")
    given = []

    def spy(settings: Any, seed: int) -> Any:
        given.append((settings, seed))
        raise InterruptedError

    row = replace(chapter.arm("selection"), run=spy)
    monkeypatch.setitem(chapter.arms, "selection", row)
    through_a_file = replace(run, config=json.loads(json.dumps(dict(run.config))))
    with pytest.raises(InterruptedError):
        c.execute(through_a_file)
    assert given == [(row.complete(chapter.chosen), 1000)]


def test_seeds_are_computed_together_only_with_equal_settings_and_by_an_arm_that_can(monkeypatch):
    chapter = c.load_chapter("04")
    arm = chapter.arm("selection")
    run = next(run for run in chapter.plan("quick") if run.arm == "selection")
    runs = [run, replace(run, seed=1001)]
    with pytest.raises(ValueError, match="selection does not compute several seeds together"):
        c.execute_together(runs)

    def results(settings: Any, seeds: Sequence[int]) -> list[Result]:
        assert settings == arm.complete(chapter.chosen)
        return [Result({"seed": float(seed)}) for seed in seeds if seed < 1002]

    monkeypatch.setitem(chapter.arms, "selection", replace(arm, together=results))
    seeds = [record["metrics"]["seed"] for record in c.execute_together(runs)]
    assert seeds == [1000, 1001]
    with pytest.raises(ValueError, match="selection: 2 results for 3 seeds"):
        c.execute_together([*runs, replace(run, seed=1002)])
    with pytest.raises(ValueError, match="selection: the runs differ in more than their seeds"):
        c.execute_together([run, replace(run, config={**run.config, "other": 1})])


def test_a_device_on_which_an_arm_cannot_run_is_refused(monkeypatch):
    run = next(run for run in c.load_chapter("03").plan("quick") if run.arm == "timing")
    monkeypatch.setenv("DEVICE", "cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(ValueError, match="timing runs on cpu, not on cuda"):
        c.execute(run)


# --- profiles and knobs ---------------------------------------------------------------------------


def resolved(profile: str = "quick", knobs: Mapping[str, Any] | None = None) -> Toy:
    toy = c.resolve_profile(TOY, profile, knobs)
    assert isinstance(toy, Toy)
    return toy


@pytest.mark.parametrize("profile", c.PROFILE_NAMES)
def test_every_section_of_a_profile_is_of_a_chapter(profile):
    path = c.PROFILES / f"{profile}.yaml"
    sections = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    assert set(sections) <= set(NUMBERS)


def test_a_profile_is_its_differences_from_the_defaults(profiles):
    (profiles / "quick.yaml").write_text('"98": {seeds: 2, sizes: [3, 6]}\n"06": {seeds: 7}\n')
    assert resolved() == Toy(seeds=2, sizes=(3, 6))


def test_standard_without_a_file_means_the_defaults(profiles):
    assert resolved("standard") == Toy()
    (profiles / "standard.yaml").write_text('"98": {seeds: 7}\n')
    assert resolved("standard").seeds == 7


@pytest.mark.parametrize("text", ["", "# nothing\n", '"05": {seeds: 3}\n', '"98":\n'])
def test_a_profile_without_a_section_means_the_defaults(profiles, text):
    (profiles / "quick.yaml").write_text(text)
    assert resolved() == Toy()


def test_a_profile_without_its_file_is_named(profiles):
    with pytest.raises(ValueError, match=r"full\.yaml"):
        resolved("full")


@pytest.mark.parametrize("name", ["fast", "", "Standard", "../quick"])
def test_unknown_profile_is_named(name):
    with pytest.raises(ValueError, match=f"unknown profile {name!r}"):
        resolved(name)


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"stepz": 3}, ["stepz", "98", "quick"]),
        ({"seeds": -1}, ["seeds", "-1"]),
        ({"seeds": "many"}, ["seeds", "'many'"]),
        ({"seeds": True}, ["seeds", "True"]),
        ({"seeds": 1.5}, ["seeds", "1.5"]),
        ({"rate": "x"}, ["rate", "'x'"]),
        ({"sizes": 3}, ["sizes", "3"]),
        ({"fast": 1}, ["fast", "1"]),
        ({"data": 3}, ["data", "3"]),
        ({"budget": 0.0}, ["budget", "0.0"]),
    ],
)
def test_unknown_knobs_and_values_are_named(knobs, words):
    with pytest.raises(ValueError) as caught:
        resolved("quick", knobs)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("section", ["{stepz: 3}", "{seeds: many}", "{budget: 2.0}"])
def test_a_wrong_profile_file_names_the_setting(profiles, section):
    (profiles / "quick.yaml").write_text(f'"98": {section}\n')
    name = section[1:].partition(":")[0]
    with pytest.raises(ValueError, match=f"chapter 98, profile quick: .*{name}"):
        resolved()


def test_a_knob_at_its_default_leaves_the_choice_to_the_profile(profiles):
    (profiles / "quick.yaml").write_text('"98": {seeds: 2, sizes: [5]}\n')
    # a notebook writes lists, a profile holds tuples
    assert resolved("quick", {"seeds": 10, "sizes": [3, 10]}) == resolved()


def test_a_knob_beats_the_profile(profiles):
    (profiles / "quick.yaml").write_text('"98": {seeds: 2, rate: 0.25}\n')
    assert resolved("quick", {"seeds": 3, "rate": 1, "sizes": [3, 6]}) == Toy(
        seeds=3, rate=1, sizes=(3, 6)
    )


# --- plans ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("profile", c.BUDGET_SECONDS)
def test_plan_stays_within_its_budget(number, profile):
    check_budget(list(plan(number, profile)), profile)


def test_budget_check_refuses_a_plan_above_it():
    runs = c.load_chapter("04").plan("standard", {"seeds": 500})
    with pytest.raises(AssertionError, match="core-seconds planned"):
        check_budget(runs, "standard")


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("profile", c.PROFILE_NAMES)
def test_plan_lists_each_run_once_and_always_the_same(number, profile):
    runs, again = plan(number, profile), c.load_chapter(number).plan(profile)
    assert again == list(runs)
    assert [run.predicted_seconds for run in again] == [run.predicted_seconds for run in runs]
    assert len({run.key for run in runs}) == len(runs), "two runs share an identity"
    assert {run.chapter for run in runs} <= {number}
    assert all(run.predicted_seconds > 0 for run in runs)
    assert all(run.seed >= 1000 for run in runs), "seeds below 1000 are for pilots and tuning"


@pytest.mark.parametrize("number", NUMBERS)
def test_every_seed_has_the_same_runs_or_is_left_out_of_a_part(number):
    """Parts and timing blocks may have different numbers of seeds; each starts at the first."""
    by_seed: dict[int, set[str]] = {}
    for run in plan(number, "standard"):
        by_seed.setdefault(run.seed, set()).add(f"{run.arm} {dict(run.config)}")
    seeds = sorted(by_seed)
    assert seeds == list(range(seeds[0], seeds[0] + len(seeds)))
    assert all(by_seed[seed] <= by_seed[seed - 1] for seed in seeds[1:])
    assert len({frozenset(runs) for runs in by_seed.values()}) <= 3


def restored(
    config: Mapping[str, Any], settings: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Fill in the keys of ``config`` from what a record states, and the rest from the defaults."""
    filled = {}
    for name, value in config.items():
        stated = settings.get(name, defaults.get(name))
        is_nested = isinstance(value, Mapping) and name in settings
        filled[name] = restored(value, stated, defaults) if is_nested else stated
    return filled


@pytest.mark.parametrize("number", NUMBERS)
def test_what_a_record_states_and_the_defaults_give_back_all_settings(number):
    for run in (run for profile in c.PROFILE_NAMES for run in plan(number, profile)):
        config = restored(run.config, run.settings, run.defaults)
        assert canonical_json(config) == canonical_json(run.config), run.arm
