"""Tuning on a toy: every trial kept, the best mean chosen, nothing tried twice."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from companion.lab import tune as module
from companion.lab.arms import Settings, Tuned
from companion.lab.tune import Search, Trial, choose, mean_curve, read_trials, trials_table, tune


@dataclass(frozen=True, kw_only=True)
class Hill(Settings):
    """A hill whose top is where it is said to be."""

    top: float = 1.0
    lr: float = 0.5
    momentum: float = 0.0

    @property
    def data_hash(self) -> str:
        return "none"


TRIED: list[tuple[float, float, int]] = []


def height(settings: Hill, seed: int) -> float:
    TRIED.append((settings.lr, settings.momentum, seed))
    return -((settings.lr - settings.top) ** 2) + seed / 3


GRID = (0.25, 1.0, 4.0)
HILL = Search("hill", Hill(), "lr", GRID, height, seeds=(0, 1))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs and results of their own; a trial sets the number of threads, so it is put back."""
    TRIED.clear()
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(module, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(module, "reference_folder", lambda profile, number: tmp_path / "results")
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def tuned(folder: Path, *searches: Search[Hill]) -> dict[str, dict[str, float]]:
    path = folder / "tuned.toml"
    tune("99", [lambda chosen: searches], path, workers=1, say=lambda line: None)
    return tomllib.loads(path.read_text(encoding="utf-8"))


def test_every_value_is_tried_with_every_pilot_and_the_best_mean_is_written(folder):
    other = replace(HILL, arm="plain", settings=Hill(top=4.5))
    assert tuned(folder, HILL, other) == {"hill": {"lr": 1.0}, "plain": {"lr": 4.0}}
    trials = read_trials("99")
    tried = [(trial.arm, trial.value, trial.seed) for trial in trials]
    assert tried == [(a, v, s) for a in ("hill", "plain") for v in GRID for s in (0, 1)]
    assert trials[1] == Trial("hill", "lr", 0.25, 1, float(f"{-(0.75**2) + 1 / 3:.6g}"))


def test_a_search_that_was_stopped_goes_on_from_the_trials_that_are_kept(folder, monkeypatch):
    def stopped(settings: Hill, seed: int) -> float:
        if settings.lr == 4.0:
            raise KeyboardInterrupt
        return height(settings, seed)

    with pytest.raises(KeyboardInterrupt):
        tuned(folder, replace(HILL, score=stopped))
    assert not (folder / "tuned.toml").exists()
    kept = len((folder / "runs" / "tuning" / "99.jsonl").read_text().splitlines())
    assert 0 < kept <= len(TRIED) == 4
    TRIED.clear()
    first = tuned(folder, HILL)
    assert len(TRIED) == 6 - kept
    TRIED.clear()
    assert tuned(folder, HILL) == first
    assert TRIED == []


def test_a_search_with_other_settings_starts_anew(folder):
    tuned(folder, HILL)
    TRIED.clear()
    tuned(folder, replace(HILL, settings=Hill(momentum=0.9)))
    assert len(TRIED) == 6


def test_a_later_stage_gets_what_was_chosen_before(folder):
    def second(chosen: Tuned) -> Sequence[Search[Hill]]:
        return [replace(HILL, arm="next", settings=Hill(top=4 * chosen["hill"]["lr"]))]

    path = folder / "tuned.toml"
    tune("99", [lambda chosen: [HILL], second], path, workers=1, say=lambda line: None)
    assert tomllib.loads(path.read_text()) == {"hill": {"lr": 1.0}, "next": {"lr": 4.0}}


def test_progress_is_said_at_the_end(folder):
    said: list[str] = []
    tune("99", [lambda chosen: [HILL]], folder / "t.toml", workers=1, say=said.append)
    assert said == ["trials 6/6"]


def test_scores_of_several_problems_are_trials_of_their_own(folder):
    def both(settings: Hill, seed: int) -> dict[str, float]:
        return {"low": settings.lr, "high": 2 * settings.lr}

    assert tuned(folder, replace(HILL, score=both)) == {"hill": {"lr": 4.0}}
    trials = read_trials("99")
    assert len(trials) == 12
    assert {trial.problem for trial in trials} == {"low", "high"}
    assert mean_curve(trials, "hill") == {value: 1.5 * value for value in GRID}


def test_a_setting_that_is_a_tuple_gets_the_value_everywhere(folder):
    @dataclass(frozen=True, kw_only=True)
    class Hills(Hill):
        lrs: tuple[float, ...] = (0.0, 0.0)

    def lowest(settings: Hills, seed: int) -> float:
        assert len(settings.lrs) == 2
        return -min(settings.lrs)

    search = Search("hills", Hills(), "lrs", GRID, lowest, seeds=(0,))
    assert tuned(folder, search) == {"hills": {"lrs": 0.25}}


def test_of_equal_means_the_smaller_value_is_chosen():
    trials = [Trial("a", "lr", value, 0, score) for value, score in ((4.0, 1), (1.0, 1), (0.1, 0))]
    assert mean_curve(trials) == {0.1: 0, 1.0: 1, 4.0: 1}
    assert choose(trials) == {"a": {"lr": 1.0}}
    assert choose(
        trials, lambda trials_of_arm: {trial.value: -trial.value for trial in trials_of_arm}
    ) == {"a": {"lr": 0.1}}


def test_the_table_shows_the_choice_beside_the_mean_of_every_value(folder):
    tuned(folder, HILL)
    head, line = trials_table("99", "mean height", 2).splitlines()
    assert head.split() == ["arm", "chosen", "mean", "height"]
    assert line.split() == ["hill", "1", "0.25:", "-0.40", "1:", "0.17", "4:", "-8.83"]
