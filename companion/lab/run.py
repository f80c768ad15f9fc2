"""Run one arm with some settings changed, and show its numbers beside the evidence.

    python -m companion run ARM [-p SETTING=VALUE ...] [--seeds N] [--only TEXT]

This module imports what the arm needs, and nothing of notebooks, proofs or ledgers: a machine with
a GPU need not have those (``python -m companion.lab.run`` is the same command there).
"""

from __future__ import annotations

import argparse
import ast
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from companion.evidence.store import Record, Run, Store, read_reference
from companion.lab.arms import Settings, defaults_of
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

__all__ = ["Beside", "beside_evidence", "evidence_of", "main", "parse_changes", "run_arm"]

FIRST_SEED = 1000
MOST_SHOWN = 40


@dataclass(frozen=True)
class Beside:
    """A metric of own runs, and of the evidence's runs of the same seeds.

    Attributes:
        metric: Its name.
        here: Mean of the own runs.
        evidence: Mean of the evidence's, NaN if it has no such run.
        difference: Mean of the differences by seed, NaN without evidence.
        error: Standard error of that mean, NaN below two seeds.
    """

    metric: str
    here: float
    evidence: float
    difference: float
    error: float


def parse_changes(settings: Settings, changes: Mapping[str, object]) -> dict[str, object]:
    """Check changes against the types of settings; text becomes what its setting holds.

    Raises:
        ValueError: If a setting is unknown, or a value is none for it.
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
    if isinstance(value, str):
        with suppress(ValueError, SyntaxError):  # else it is plain text
            value = ast.literal_eval(value)
    if not _fits(value, kind):
        raise ValueError(f"{name} must be of kind {_spelt(kind)}, got {value!r}")
    is_float = kind is float or (get_origin(kind) in (Union, UnionType) and float in get_args(kind))
    return float(value) if is_float and type(value) is int else value


def _fits(value: object, kind: Any) -> bool:
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
    # a literal may name other literals
    return _fits(value, allowed) if get_origin(allowed) is Literal else value == allowed


def _spelt(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")


def run_arm(
    name: str, changes: Mapping[str, object] | None = None, *, seeds: int = 3
) -> list[Record]:
    """Compute an arm with some settings changed, on the first seeds of the evidence.

    Finished runs are kept in the store *own* and not computed again.

    Args:
        name: The arm.
        changes: Settings and their values, or text as a command line gives it.
        seeds: How many, at least 1.

    Returns:
        The records, seeds in order.

    Raises:
        LookupError: If there is no such arm.
        ValueError: If a setting is unknown, a value is none for it, ``seeds`` is below 1, or the
            arm does not run on the device that ``DEVICE`` asks for.
        RuntimeError: If that device is absent here.
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
    arm = chapter.arm(name)
    complete = arm.complete(chapter.chosen)
    settings = replace(complete, **parse_changes(complete, changes))
    check_device(name, settings)
    return [
        Run(
            chapter.number,
            name,
            asdict(settings),
            FIRST_SEED + number,
            settings.data_hash,
            arm.seconds,
            deterministic=arm.deterministic,
            version=arm.version,
            defaults=defaults_of(type(settings)),
        )
        for number in range(seeds)
    ]


def evidence_of(record: Record) -> tuple[str, dict[int, Record]]:
    """The committed records with which a record can be compared: of its arm, version and data.

    Returns:
        Where they stand, *standard* before *full*, and the records by seed; nothing if no set
        holds any of that version.
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
    """Compare own records of one arm with those of the evidence, metric by metric.

    Args:
        records: Of one arm, one a seed.
        known: The evidence by seed; `evidence_of` the first record by default.
    """
    evidence = evidence_of(records[0])[1] if known is None else known
    return [_compared(metric, records, evidence) for metric in records[0]["metrics"]]


def _compared(metric: str, records: Sequence[Record], known: Mapping[int, Record]) -> Beside:
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
    """Do what the command line says.

    Returns:
        Exit code: 0 if all runs are there, 2 if a word was wrong.
    """
    parser = argparse.ArgumentParser(
        prog="python -m companion run", description=__doc__.split("\n")[0]
    )
    parser.add_argument("arm")
    parser.add_argument("-p", "--parameter", action="append", default=[], metavar="SETTING=VALUE")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 1000 on")
    parser.add_argument("--only", default="", metavar="TEXT", help="metrics whose names hold this")
    options = parser.parse_args(arguments)
    try:
        check_backend()
        changes = dict(_pair(entry) for entry in options.parameter)
        check_setting_names(options.arm, changes)
        records = run_arm(options.arm, changes, seeds=options.seeds)
    except (ValueError, LookupError, RuntimeError) as error:
        print(f"companion: {error}", file=sys.stderr)
        return 2
    source, known = evidence_of(records[0])
    rows = [row for row in beside_evidence(records, known) if options.only in row.metric]
    rows.sort(key=lambda row: row.metric.count("/"))  # totals before their parts
    seeds = f"seeds {FIRST_SEED} to {FIRST_SEED + len(records) - 1}"
    print(f"{options.arm}, {_changed(options.arm, changes)}, {seeds}")
    print(f"evidence: {source or 'none of this version of the arm'}")
    print(_table(rows[:MOST_SHOWN]))
    if len(rows) > MOST_SHOWN:
        print(f"and {len(rows) - MOST_SHOWN} more metrics; `--only TEXT` chooses")
    return 0


def _changed(name: str, changes: Mapping[str, str]) -> str:
    """Say in words what was changed, and from what."""
    if not changes:
        return "settings of the evidence"
    chapter = chapter_of_arm(name)
    usual = chapter.arm(name).complete(chapter.chosen)
    return ", ".join(
        f"{setting} = {value} instead of {getattr(usual, setting)}"
        for setting, value in changes.items()
    )


def _pair(entry: str) -> tuple[str, str]:
    name, equals, value = entry.partition("=")
    if not equals:
        raise ValueError(f"expected SETTING=VALUE, got {entry!r}")
    return name, value


if __name__ == "__main__":
    sys.exit(main())
