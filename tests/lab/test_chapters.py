"""Chapters: numbers, profiles, knobs, and plans within their budgets."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from companion.evidence.store import Run
from companion.lab import chapters as c

BUILT = [number for number in c.TITLES if c.load_chapter(number) is not None]


def loaded(number: str = "06") -> c.Chapter:
    chapter = c.load_chapter(number)
    assert chapter is not None
    return chapter


def check_budget(runs: list[Run], profile: str) -> None:
    """Refuse a plan that predicts more core-seconds than its profile allows."""
    seconds = sum(run.predicted_seconds for run in runs)
    budget = c.BUDGET_SECONDS[profile]
    assert seconds <= budget, f"{profile}: {seconds:.0f} core-seconds planned, {budget:.0f} allowed"


def check_distinct(runs: list[Run]) -> None:
    """Refuse a plan with two runs of one key."""
    keys = [run.key for run in runs]
    assert len(set(keys)) == len(keys), "two runs share an identity"


@pytest.fixture
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own folder of profiles, empty at first."""
    monkeypatch.setattr(c, "PROFILES", tmp_path)
    return tmp_path


def test_chapter_6_is_built():
    assert "06" in BUILT


@pytest.mark.parametrize("name", ["6", "06", " 6 ", 6])
def test_chapter_number_reads_what_people_write(name):
    assert c.chapter_number(name) == "06"


@pytest.mark.parametrize("name", ["9", "0", "00", "08", "abc", "", "6.0", "-6", "006"])
def test_chapter_number_refuses_what_is_no_chapter(name):
    with pytest.raises(ValueError, match=f"unknown chapter {name!r}"):
        c.chapter_number(name)


def test_a_chapter_that_is_not_built_is_none(monkeypatch):
    assert c.load_chapter("99") is None


@pytest.mark.parametrize("number", BUILT)
def test_a_built_chapter_has_what_the_runner_needs(number):
    chapter = loaded(number)
    assert chapter.number == number
    assert callable(chapter.execute)
    assert all(map(callable, chapter.functions.values()))
    assert len(chapter.code_digest) == 64
    assert c.notebook_path(number).name == f"{number}_{c.TITLES[number]}.ipynb"


def test_a_missing_notebook_is_named():
    with pytest.raises(FileNotFoundError, match="99_"):
        c.notebook_path("99")


# --- profiles and knobs ---------------------------------------------------------------------------


@pytest.mark.parametrize("number", BUILT)
@pytest.mark.parametrize("profile", c.PROFILE_NAMES)
def test_every_profile_resolves(number, profile):
    chapter = loaded(number)
    config = c.resolve_config(chapter, profile)
    path = c.PROFILES / f"{profile}.yaml"
    section = yaml.safe_load(path.read_text())[number] if path.is_file() else {}
    plain = config.model_dump(mode="json")
    defaults = chapter.config_class().model_dump(mode="json")
    assert plain == defaults | section
    assert {name: plain[name] for name in section} == section


def test_profiles_of_chapter_6_say_what_they_should():
    config = {name: c.resolve_config(loaded(), name) for name in c.PROFILE_NAMES}
    assert (config["quick"].seeds, config["quick"].sizes) == (2, (3, 10, 25, 50, 100))
    assert config["standard"] == loaded().config_class()
    assert (config["standard"].seeds, config["standard"].first_seed) == (10, 1000)
    assert [config[name].extended_seeds for name in ("quick", "standard", "full")] == [1, 5, 10]
    assert config["full"].gaussian_steps == 60_000
    assert config["paper"].gaussian_steps == 10_000


def test_standard_without_a_file_means_the_defaults(profiles):
    assert c.resolve_config(loaded(), "standard") == loaded().config_class()
    (profiles / "standard.yaml").write_text('"06": {seeds: 7}\n')
    assert c.resolve_config(loaded(), "standard").seeds == 7


@pytest.mark.parametrize("text", ["", "# nothing\n", '"05": {seeds: 3}\n', '"06":\n'])
def test_a_profile_without_a_section_means_the_defaults(profiles, text):
    (profiles / "quick.yaml").write_text(text)
    assert c.resolve_config(loaded(), "quick") == loaded().config_class()


def test_a_profile_without_its_file_is_named(profiles):
    with pytest.raises(ValueError, match=r"full\.yaml"):
        c.resolve_config(loaded(), "full")


@pytest.mark.parametrize("name", ["fast", "", "Standard", "../quick"])
def test_unknown_profile_is_named(name):
    with pytest.raises(ValueError, match=f"unknown profile {name!r}"):
        c.resolve_config(loaded(), name)


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"stepz": 3}, ["stepz", "3", "06", "quick"]),
        ({"seeds": 0}, ["seeds", "0"]),
        ({"seeds": "many"}, ["seeds", "'many'"]),
        ({"first_seed": -1}, ["first_seed", "-1"]),
        ({"gaussian_steps": 99, "sizes": "x"}, ["gaussian_steps", "99", "sizes", "'x'"]),
        ({"sizes": [3, "a"]}, ["sizes.1", "'a'"]),
    ],
)
def test_unknown_knobs_and_values_are_named(knobs, words):
    with pytest.raises(ValueError) as caught:
        c.resolve_config(loaded(), "quick", knobs)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("section", ["{stepz: 3}", "{seeds: 0}"])
def test_a_wrong_profile_file_names_the_setting(profiles, section):
    (profiles / "quick.yaml").write_text(f'"06": {section}\n')
    with pytest.raises(ValueError, match=r"profile quick: (stepz|seeds) = "):
        c.resolve_config(loaded(), "quick")


def test_a_knob_at_its_default_leaves_the_choice_to_the_profile():
    chapter = loaded()
    defaults = dict(chapter.config_class())
    quick = c.resolve_config(chapter, "quick")
    assert c.resolve_config(chapter, "quick", defaults) == quick
    # a notebook writes lists, a Config holds tuples
    assert c.resolve_config(chapter, "quick", {"sizes": list(defaults["sizes"])}) == quick


def test_a_knob_beats_the_profile():
    config = c.resolve_config(loaded(), "quick", {"seeds": 3, "sizes": [3, 6]})
    assert (config.seeds, config.sizes) == (3, (3, 6))
    assert config.gaussian_steps == c.resolve_config(loaded(), "quick").gaussian_steps


# --- plans ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", BUILT)
@pytest.mark.parametrize("profile", c.BUDGET_SECONDS)
def test_plan_stays_within_its_budget(number, profile):
    check_budget(loaded(number).plan(profile), profile)


def test_budgets_are_those_of_the_design():
    assert c.BUDGET_SECONDS == {"quick": 60.0, "standard": 900.0, "full": 7000.0}


@pytest.mark.parametrize(
    ("profile", "knobs"),
    [
        ("standard", {"gaussian_steps": 1_000_000}),
        ("standard", {"seeds": 40}),
        ("full", {"seeds": 100}),
        ("quick", {"fashion_steps": 1_000_000}),
    ],
)
def test_budget_check_refuses_a_plan_above_it(profile, knobs):
    runs = loaded().plan(profile, knobs)
    with pytest.raises(AssertionError, match="core-seconds planned"):
        check_budget(runs, profile)


@pytest.mark.parametrize("number", BUILT)
@pytest.mark.parametrize("profile", c.PROFILE_NAMES)
def test_plan_lists_each_run_once_and_always_the_same(number, profile):
    chapter = loaded(number)
    runs = chapter.plan(profile)
    check_distinct(runs)
    again = chapter.plan(profile)
    assert again == runs
    assert [run.predicted_seconds for run in again] == [run.predicted_seconds for run in runs]
    assert {run.chapter for run in runs} == {number}
    assert all(run.predicted_seconds > 0 for run in runs)
    assert all(run.seed >= 1000 for run in runs), "seeds below 1000 are for pilots and tuning"


def test_check_of_identities_refuses_a_repeated_run():
    runs = loaded().plan("quick")
    with pytest.raises(AssertionError, match="share an identity"):
        check_distinct([*runs, runs[3]])
    # a step size that repeats the run of the main comparison has no arm
    with pytest.raises(ValueError, match=r"chapter 06, profile quick: step_sizes .* size 1,"):
        loaded().plan("quick", {"step_sizes": [0.5, 1.0]})


@pytest.mark.parametrize("number", BUILT)
def test_every_seed_has_the_same_runs_or_is_left_out_of_a_part(number):
    """Parts and timing blocks may have different numbers of seeds; each starts at the first."""
    chapter = loaded(number)
    by_seed: dict[int, set[str]] = {}
    for run in chapter.plan("standard"):
        by_seed.setdefault(run.seed, set()).add(f"{run.arm} {dict(run.config)}")
    seeds = sorted(by_seed)
    assert seeds == list(range(seeds[0], seeds[0] + len(seeds)))
    assert all(by_seed[seed] <= by_seed[seed - 1] for seed in seeds[1:])
    assert len({frozenset(runs) for runs in by_seed.values()}) <= 3


def test_plan_of_chapter_6_by_hand():
    # a seed: 3 data sets x (exact + 3 optimisers), 3 step sizes on digits; 2 kinds of networks on
    # 2 data sets
    seed = 3 * 4 + 3 + 2 * 2
    # a seed of the extended part: 3 rates; paths and adversarial training on 2 data sets each;
    # 2 picture classifiers
    extended = 3 + 2 * 2 + 2
    runs = loaded().plan("quick")
    assert len(runs) == 2 * seed + extended
    assert len(loaded().plan("standard")) == 10 * seed + 5 * extended == 235
    assert len(loaded().plan("full")) == 10 * (seed + extended)
    assert sum(run.arm.endswith("_max_margin") for run in runs) == 6
    sizes = {r.config["step_size"] for r in runs if r.arm.startswith("digits_coordinate")}
    assert sizes == {0.25, 0.5, 1.0, 2.0}
    data = {run.config["data"]: run.data for run in runs}
    assert len(set(data.values())) == len(data) == 3


def test_parts_of_chapter_6_have_their_own_seeds():
    runs = loaded().plan("standard")
    seeds = {arm: {run.seed for run in runs if run.arm == arm} for arm in {r.arm for r in runs}}
    few = {"fashion_cnn", "fashion_mlp"}
    few |= {arm for arm in seeds if arm.endswith(("_regularised", "_adversarial", "_constant"))}
    assert len(few) == 2 + 2 + 2 + 3
    for arm, found in seeds.items():
        assert found == set(range(1000, 1005 if arm in few else 1010)), arm
    # more seeds of the extended part than of the headline part
    more = loaded().plan("quick", {"seeds": 1, "extended_seeds": 3})
    assert {run.seed for run in more if run.arm == "fashion_cnn"} == {1000, 1001, 1002}
    assert {run.seed for run in more if run.arm == "digits_max_margin"} == {1000}
