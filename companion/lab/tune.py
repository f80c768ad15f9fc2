"""Search for settings on a grid, on pilot seeds, and keep every trial.

A trial trains one arm with one value of one setting and one pilot seed; of its scores, larger is
better. ``make reproduce TUNE=1`` runs a chapter's searches and writes all trials to ``tuning.csv``
in the chapter's results and the best values to its ``tuned.toml``. After an interruption it
continues from the trials in ``runs/tuning``.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic

from companion.evidence.store import reference_folder, write_atomic
from companion.lab.arms import S, Tuned
from companion.paths import RUNS

__all__ = [
    "Search",
    "Stage",
    "Trial",
    "choose",
    "mean_curve",
    "read_trials",
    "trials_table",
    "tune",
    "write_choice",
]

PILOT_SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Search(Generic[S]):
    """The grid of one arm's setting.

    Attributes:
        arm: Name of the arm, to which the value of a second setting may be added: ``arm@0.5``.
        settings: All other settings.
        setting: Name of the setting that is searched; in a tuple, all entries get the same value.
        values: The grid.
        score: Trains with settings and a pilot seed and returns a score, or one for each problem by
            name; larger is better. It must not use test data.
        seeds: The pilot seeds.
    """

    arm: str
    settings: S
    setting: str
    values: tuple[float, ...]
    score: Callable[[S, int], float | Mapping[str, float]]
    seeds: tuple[int, ...] = PILOT_SEEDS


@dataclass(frozen=True)
class Trial:
    """One trial and its score; a line of ``tuning.csv``."""

    arm: str
    setting: str
    value: float
    seed: int
    score: float
    problem: str = ""


#: Makes searches from the values that earlier stages have chosen.
Stage = Callable[[Tuned], Sequence[Search[Any]]]
#: Gives the mean score at each value from all trials of one arm.
Curve = Callable[[Sequence[Trial]], dict[float, float]]


def mean_curve(trials: Sequence[Trial], arm: str = "") -> dict[float, float]:
    """Mean score at each value, in order of values, over all trials or those of one arm."""
    scores: dict[float, list[float]] = {}
    for trial in trials:
        if arm in ("", trial.arm):
            scores.setdefault(trial.value, []).append(trial.score)
    return {value: math.fsum(values) / len(values) for value, values in sorted(scores.items())}


def choose(trials: Sequence[Trial], curve_of: Curve = mean_curve) -> dict[str, dict[str, float]]:
    """Return the best value on every arm's curve, by arm and then by setting."""
    chosen: dict[str, dict[str, float]] = {}
    for arm in dict.fromkeys(trial.arm for trial in trials):
        trials_of_arm = [trial for trial in trials if trial.arm == arm]
        curve = curve_of(trials_of_arm)
        chosen[arm] = {trials_of_arm[0].setting: max(curve, key=lambda value: curve[value])}
    return chosen


def tune(
    chapter: str,
    stages: Sequence[Stage],
    tuned: Path,
    *,
    workers: int,
    say: Callable[[str], None],
    choice: Callable[[Sequence[Trial]], dict[str, dict[str, float]]] = choose,
) -> None:
    """Run the searches of a chapter and write its trials and the values chosen.

    Args:
        chapter: Two digits.
        stages: Each makes searches from the values that earlier stages have chosen.
        tuned: File of the chosen values.
        workers: Trials at the same time.
        say: Called with lines of progress.
        choice: Returns the chosen values, by arm and setting, that follow from the trials.
    """
    kept = RUNS / "tuning" / f"{chapter}.jsonl"
    trials: list[Trial] = []
    for stage in stages:
        searches = stage(choice(trials) if trials else {})
        trials += _trials(searches, kept, workers, say)
    write_choice(chapter, trials, tuned, choice(trials))


def _trials(
    searches: Sequence[Search[S]], kept: Path, workers: int, say: Callable[[str], None]
) -> list[Trial]:
    """Return the trials of searches; those that the file ``kept`` lacks are computed and added."""
    import joblib  # not at the top: every command imports this module, and few tune

    lines = kept.read_text(encoding="utf-8").splitlines() if kept.is_file() else []
    known: dict[str, list[Trial]] = {}
    for line in lines:
        row = json.loads(line)
        known[row["task"]] = [Trial(**trial) for trial in row["trials"]]
    tasks = [(s, value, seed) for s in searches for value in s.values for seed in s.seeds]
    # the name contains all settings, so that a changed search does not use old trials
    names = [f"{s.arm}|{s.setting}|{value}|{seed}|{s.settings}" for s, value, seed in tasks]
    missing = [number for number, name in enumerate(names) if name not in known]
    parallel = joblib.Parallel(n_jobs=workers, return_as="generator")
    answers = parallel(joblib.delayed(_try)(*tasks[number]) for number in missing)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with kept.open("a", encoding="utf-8") as file:
        for done, (number, trials) in enumerate(zip(missing, answers, strict=True), 1):
            known[names[number]] = trials
            row = {"task": names[number], "trials": [vars(trial) for trial in trials]}
            file.write(json.dumps(row) + "\n")
            file.flush()
            if done % 20 == 0 or done == len(missing):
                say(f"trials {len(tasks) - len(missing) + done}/{len(tasks)}")
    return [trial for name in names for trial in known[name]]


def _try(search: Search[S], value: float, seed: int) -> list[Trial]:
    """Compute the score of one value with one pilot seed; one trial for each problem."""
    import torch

    torch.set_num_threads(1)
    default = getattr(search.settings, search.setting)
    tried = (value,) * len(default) if isinstance(default, tuple) else value
    settings = replace(search.settings, **{search.setting: tried})
    scores = search.score(settings, seed)
    by_problem = scores if isinstance(scores, Mapping) else {"": scores}
    return [
        Trial(search.arm, search.setting, value, seed, float(f"{score:.6g}"), problem)
        for problem, score in by_problem.items()
    ]


def write_choice(chapter: str, trials: Sequence[Trial], tuned: Path, chosen: Tuned) -> None:
    """Write ``tuning.csv`` of a chapter, and the chosen values to ``tuned``, one line per arm."""
    columns = ["arm", "setting", "value", "seed", "score"]
    if any(trial.problem for trial in trials):
        columns.append("problem")
    lines = [",".join(str(getattr(trial, name)) for name in columns) for trial in trials]
    text = "\n".join([",".join(columns), *lines]) + "\n"
    write_atomic(reference_folder("standard", chapter) / "tuning.csv", text)
    # the standard library reads TOML but does not write it
    rows = []
    for arm, values in chosen.items():
        pairs = ", ".join(f"{setting} = {value!r}" for setting, value in values.items())
        rows.append(f"{json.dumps(arm)} = {{ {pairs} }}")
    header = (
        f"# What tuning chose for the arms of chapter {int(chapter)}; `make reproduce TUNE=1`\n"
    )
    write_atomic(tuned, header + "\n".join(rows) + "\n")


def read_trials(chapter: str) -> list[Trial]:
    """Read the committed ``tuning.csv`` of a chapter."""
    path = reference_folder("standard", chapter) / "tuning.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Trial(
                row["arm"],
                row["setting"],
                float(row["value"]),
                int(row["seed"]),
                float(row["score"]),
                row.get("problem", ""),
            )
            for row in csv.DictReader(file)
        ]


def trials_table(chapter: str, head: str, digits: int, curve_of: Curve = mean_curve) -> str:
    """Text of a chapter's curves: arm, chosen value, mean score at every value tried.

    ``head`` stands above the scores, which have ``digits`` decimals.
    """
    trials = read_trials(chapter)
    chosen = choose(trials, curve_of)
    width = max(map(len, chosen))
    lines = [f"{'arm':{width}} chosen   {head}"]
    for arm, values in chosen.items():
        curve = curve_of([trial for trial in trials if trial.arm == arm])
        cells = " ".join(f"{value:g}: {score:.{digits}f}" for value, score in curve.items())
        best = next(iter(values.values()))
        lines.append(f"{arm:{width}} {best:>6g}   {cells}")
    return "\n".join(lines)
