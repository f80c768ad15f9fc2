"""Run one arm with some settings changed, and compare its numbers with the evidence.

    python -m companion run ARM [-p SETTING=VALUE ...] [--seeds N] [--only TEXT]

This module imports what the arm needs but nothing for notebooks, proofs or ledgers, because a
machine with a GPU may lack those packages; there, ``python -m companion.lab.run`` is the command.
"""

from __future__ import annotations

import argparse
import ast
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from companion.evidence.store import Record, Run, Store, read_reference
from companion.lab.arms import Settings, data_hash_of, defaults_of
from companion.lab.chapters import (
    EXECUTE,
    Chapter,
    chapter_of_arm,
    check_device,
    check_setting_names,
)
from companion.lab.conditions import conditions_of
from companion.lab.progress import sweep_progress
from companion.lab.sweep import check_backend, run_sweep, worker_count
from companion.paths import CLAIMS

__all__ = ["Beside", "beside_evidence", "evidence_of", "main", "parse_changes", "run_arm"]

FIRST_SEED = 1000
MOST_SHOWN = 40


@dataclass(frozen=True)
class Beside:
    """One metric of runs that were computed here, and of the evidence's runs of the same seeds.

    Attributes:
        metric: Name of the metric.
        here: Mean over the runs computed here.
        evidence: Mean over the evidence's runs of the same seeds; NaN without any.
        difference: Mean of the differences seed by seed, here minus evidence; NaN without any.
        error: Standard error of that mean; NaN for fewer than two seeds.
    """

    metric: str
    here: float
    evidence: float
    difference: float
    error: float


def parse_changes(settings: Settings, changes: Mapping[str, object]) -> dict[str, object]:
    """Check changes against the types of settings; text is read as a value of the setting's type.

    Raises:
        ValueError: If a setting is unknown, or a value does not fit its type.
    """
    kinds = get_type_hints(type(settings))
    names = [each.name for each in fields(settings)]
    parsed: dict[str, object] = {}
    for name, value in changes.items():
        if name not in names:
            raise ValueError(f"unknown setting {name!r}, expected one of {', '.join(names)}")
        parsed[name] = _parsed(name, value, kinds[name])
    return parsed


def _parsed(name: str, value: object, kind: Any) -> Any:
    """Value of one setting, of the type that its annotation ``kind`` asks for."""
    if isinstance(value, str):
        with suppress(ValueError, SyntaxError):  # not a Python literal, so plain text
            value = ast.literal_eval(value)
    if not _fits(value, kind):
        raise ValueError(f"{name} must be of kind {_spelt(kind)}, got {value!r}")
    is_float = kind is float or (get_origin(kind) in (Union, UnionType) and float in get_args(kind))
    return float(value) if is_float and type(value) is int else value


def _fits(value: object, kind: Any) -> bool:
    """Whether a value has the type that an annotation asks for; an int may stand for a float."""
    origin = get_origin(kind)
    if origin is Literal:
        return any(_fits_literal(value, each) for each in get_args(kind))
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in get_args(kind))
    if origin is tuple:
        inner = get_args(kind)
        if not isinstance(value, tuple | list):
            return False
        if len(inner) == 2 and inner[1] is Ellipsis:
            return all(_fits(each, inner[0]) for each in value)
        return len(value) == len(inner) and all(map(_fits, value, inner))
    if kind is float:
        return type(value) in (int, float)
    if kind in (int, str, bool, NoneType):
        return type(value) is kind
    return False  # a setting that a command line cannot give


def _fits_literal(value: object, allowed: object) -> bool:
    # a Literal may contain other Literals
    return _fits(value, allowed) if get_origin(allowed) is Literal else value == allowed


def _spelt(kind: Any) -> str:
    """Name of a type as it is written in code."""
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")


def run_arm(
    name: str, changes: Mapping[str, object] | None = None, *, seeds: int = 3
) -> list[Record]:
    """Compute an arm with some settings changed, on the first seeds of the evidence.

    Finished runs are kept in the store *own* and are not computed again.

    Args:
        name: The arm.
        changes: Values by setting, or texts as a command line gives them.
        seeds: Number of seeds, at least 1.

    Returns:
        The records, seeds in order.

    Raises:
        LookupError: If there is no such arm.
        ValueError: If a setting is unknown, a value does not fit it, ``seeds`` is below 1, or the
            arm does not run on the device that ``DEVICE`` asks for.
        RuntimeError: If this machine does not have that device, the settings fail to name their
            data, or a run fails.
    """
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    chapter = chapter_of_arm(name)
    runs = _runs(chapter, name, changes or {}, seeds)
    store, digest = Store("own"), chapter.code_digest
    with sweep_progress(name, worker_count()) as show:
        run_sweep(runs, EXECUTE, store, digest, show)
    records = [store.read(run, conditions_of(run, digest)) for run in runs]
    return [record for record in records if record is not None]


def _runs(chapter: Chapter, name: str, changes: Mapping[str, object], seeds: int) -> list[Run]:
    """Runs of an arm with changed settings, on the first ``seeds`` seeds of the evidence."""
    arm = chapter.arm(name)
    complete = arm.complete(chapter.chosen)
    settings = replace(complete, **parse_changes(complete, changes))
    check_device(name, settings)
    data = data_hash_of(name, settings)
    return [
        Run(
            chapter.number,
            name,
            asdict(settings),
            FIRST_SEED + number,
            data,
            arm.seconds,
            deterministic=arm.deterministic,
            version=arm.version,
            defaults=defaults_of(type(settings)),
        )
        for number in range(seeds)
    ]


def evidence_of(record: Record) -> tuple[str, dict[int, Record]]:
    """Committed records with which a record can be compared: those of its arm, version and data.

    Returns:
        Folder of the record set, *standard* if it has such records, else *full*, and the records by
        seed; an empty text and no records if neither has any.
    """
    for profile in ("standard", "full"):
        reference = read_reference(profile, record["chapter"])
        known = {
            each["seed"]: each
            for each in (reference.records if reference else [])
            if all(each[name] == record[name] for name in ("arm", "version", "data"))
        }
        if known:
            return f"results/{profile}/{record['chapter']}", known
    return "", {}


def beside_evidence(
    records: Sequence[Record], known: Mapping[int, Record] | None = None
) -> list[Beside]:
    """Compare records of one arm with those of the evidence, metric by metric.

    Args:
        records: Records of one arm, one per seed.
        known: The evidence's records by seed; by default `evidence_of` the first record.
    """
    evidence = evidence_of(records[0])[1] if known is None else known
    return [_compared(metric, records, evidence) for metric in records[0]["metrics"]]


def _compared(metric: str, records: Sequence[Record], known: Mapping[int, Record]) -> Beside:
    """Compare one metric; differences are taken over the seeds that both sides have."""
    pairs = [
        (record["metrics"][metric], known[record["seed"]]["metrics"][metric])
        for record in records
        if record["seed"] in known and metric in known[record["seed"]]["metrics"]
    ]
    here = _mean(record["metrics"][metric] for record in records if metric in record["metrics"])
    differences = [mine - theirs for mine, theirs in pairs]
    mean = _mean(differences)
    error = math.nan
    if len(differences) > 1:
        spread = math.fsum((value - mean) ** 2 for value in differences) / (len(differences) - 1)
        error = math.sqrt(spread / len(differences))
    return Beside(metric, here, _mean(theirs for _, theirs in pairs), mean, error)


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return math.fsum(listed) / len(listed) if listed else math.nan


def _table(rows: Sequence[Beside]) -> str:
    """Plain text with names aligned to the left and numbers to the right."""
    cells = [["metric", "here", "evidence", "difference", "standard error"]]
    for row in rows:
        numbers = (row.here, row.evidence, row.difference, row.error)
        cells.append([row.metric, *("-" if math.isnan(n) else f"{n:.6g}" for n in numbers)])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            [
                line[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)),
            ]
        )
        for line in cells
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, compute the runs and print the comparison.

    Returns:
        Exit code: 0 if all runs were computed, 2 if an argument was wrong or a run failed.
    """
    parser = argparse.ArgumentParser(
        prog="python -m companion run", description=__doc__.split("\n")[0]
    )
    parser.add_argument("arm")
    parser.add_argument("-p", "--parameter", action="append", default=[], metavar="SETTING=VALUE")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 1000 on")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="metrics whose names contain this"
    )
    options = parser.parse_args(arguments)
    try:
        check_backend()
        changes = dict(_pair(entry) for entry in options.parameter)
        check_setting_names(options.arm, changes)
        records = run_arm(options.arm, changes, seeds=options.seeds)
    except (ValueError, LookupError, RuntimeError, OSError) as error:
        print(f"companion: {error}", file=sys.stderr)
        return 2
    source, known = evidence_of(records[0])
    rows = [row for row in beside_evidence(records, known) if options.only in row.metric]
    # first what claims are about; totals before their parts
    claimed = _claimed_metrics(records[0]["chapter"], [row.metric for row in rows])
    rows.sort(key=lambda row: (row.metric not in claimed, row.metric.count("/")))
    seeds = f"seeds {FIRST_SEED} to {FIRST_SEED + len(records) - 1}"
    print(f"{options.arm}, {_changed(options.arm, changes)}, {seeds}")
    print(f"evidence: {source or 'none of this version of the arm'}")
    print(_table(rows[:MOST_SHOWN]))
    if claimed:
        print(f"claims of the chapter are about {', '.join(claimed)}")
    print("difference, standard error: over pairs of the same seed")
    if len(rows) > MOST_SHOWN:
        more = len(rows) - MOST_SHOWN
        print(f"and {more} more metrics; `--only TEXT`, or `ONLY=TEXT` of make, chooses")
    return 0


def _claimed_metrics(chapter: str, metrics: Sequence[str]) -> list[str]:
    """The metrics that the ledger of a chapter names."""
    path = CLAIMS / f"{chapter}.yaml"
    # its words, as a machine with a GPU may have nothing that reads YAML
    words = set(re.findall(r"[\w@/.-]+", path.read_text("utf-8"))) if path.is_file() else set()
    return [metric for metric in metrics if metric in words]


def _changed(name: str, changes: Mapping[str, str]) -> str:
    """Say in words which settings were changed, and from what values."""
    if not changes:
        return "settings of the evidence"
    chapter = chapter_of_arm(name)
    usual = chapter.arm(name).complete(chapter.chosen)
    return ", ".join(
        f"{setting} = {value} instead of {getattr(usual, setting)}"
        for setting, value in changes.items()
    )


def _pair(entry: str) -> tuple[str, str]:
    """Split ``SETTING=VALUE`` into its two sides."""
    name, equals, value = entry.partition("=")
    if not equals:
        raise ValueError(f"expected SETTING=VALUE, got {entry!r}")
    return name, value


if __name__ == "__main__":
    sys.exit(main())
