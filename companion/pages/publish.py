"""Promote finished runs to evidence, for whole chapters or some of their arms.

A record set is written completely into a new folder and then takes the place of the old one in one
step, so that a kill leaves the old set or the new one. `companion.pages.judge` judges the records;
``python -m companion judge --render`` executes the notebooks.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import statistics
import subprocess
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from companion.evidence.ledger import AFTER, load_ledger
from companion.evidence.names import did_you_mean
from companion.evidence.store import (
    Record,
    RecordSet,
    Reference,
    Run,
    Store,
    read_reference,
    reference_folder,
    write_reference,
)
from companion.lab.chapters import Chapter, arm_version, load_chapter
from companion.lab.conditions import conditions_of
from companion.lab.tune import read_trials
from companion.pages.canaries import CanaryState
from companion.pages.compare import is_canonical_fingerprint
from companion.pages.judge import judge
from companion.pages.verdicts import criteria, judge_records
from companion.paths import CLAIMS, COMPANION, LIBRARY, ROOT

__all__ = [
    "PublishRefusedError",
    "machine_slowdown",
    "publish",
    "recover",
    "replace_folder",
    "tuned_edges",
]

PLAN_SLACK = 1.3  # measured core-seconds may exceed those of the plan by this factor
MIN_COMMON_RUNS = 20
# fields of a claim that say what is asked, and by whom, but decide nothing
_WORDING = {"statement", "published", "note", "front", "tier", "posed", "origin", "scope"}
IN_PROGRESS = "evidence in progress"
NOT_CANONICAL = "not made in canonical mode: bytes are not compared"
MOST_NAMED = 8
_RENAME_EXCHANGE = 2  # constants of Linux
_AT_FDCWD = -100

Pair = tuple[Record, Record]  # a record and its provenance


CheckCanaries = Callable[[Sequence[str], Collection[str] | None], Sequence[CanaryState]]


class PublishRefusedError(RuntimeError):
    """Runs may not become evidence; the message gives the reason."""


def _check_canaries(chapters: Sequence[str], arms: Collection[str] | None) -> Sequence[CanaryState]:
    from companion.lab.canary import check_canaries

    return check_canaries(chapters, arms)


def publish(
    number: str,
    profile: str = "standard",
    arms: Sequence[str] = (),
    check: CheckCanaries = _check_canaries,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Promote the runs of a profile to evidence and judge them.

    Args:
        number: Two-digit chapter.
        profile: Profile whose runs are promoted.
        arms: Beginnings of arm names; only the records of these arms are replaced. All by default.
        check: Compares the canaries of arms with the committed ones.
        say: Called with a line for each word that is another one now, and each file written.

    Raises:
        PublishRefusedError: If the ledger is not committed, a rule is newer than the runs that
            decide it and does not say so, a tuned value lies on the edge of its grid, runs are
            missing or damaged, a canary has moved, or the core-seconds, converted to the evidence's
            machine (`machine_slowdown`), exceed the plan by more than 30 %.
    """
    chapter = load_chapter(number)
    _refuse_open_ledger(number)
    if edges := tuned_edges(number):
        raise PublishRefusedError(f"tuned to the edge of the grid: {', '.join(edges)}; widen it")
    plan = chapter.plan(profile)
    chosen = [run for run in plan if not arms or run.arm.startswith(tuple(arms))]
    if not chosen:
        hint = did_you_mean(arms[0], {run.arm for run in plan})
        raise PublishRefusedError(f"no arm of {profile} begins with {', '.join(arms)}{hint}")
    pairs = _finished(chapter, profile, chosen)
    _refuse_moved_canaries(number, chosen, check)
    recover(number, profile)
    previous = read_reference(profile, number)
    _refuse_slow_plan(previous, chosen, [row for _, row in pairs])

    promoted = {run.arm for run in chosen}
    kept = _kept(previous, promoted) if arms else []
    _refuse_newer_rules(number, kept + pairs)
    continued = previous.record_set if previous is not None and arms else None
    described = _describe(number, profile, plan, pairs, kept, continued)

    staging = _staging(number, profile)
    write_reference(profile, number, kept + pairs, described, root=staging)
    written = read_reference(profile, number, staging)
    if written is None:
        raise PublishRefusedError(f"{staging} was removed meanwhile")
    # raises for records that cannot be judged, before they take the place of the old ones
    judge_records(chapter, written.records, all_there_are=True)
    staged = reference_folder(profile, number, staging)
    _carry_over(reference_folder(profile, number), staged)
    replace_folder(staged, reference_folder(profile, number))
    shutil.rmtree(staging)
    judge([number], say=say)


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _refuse_open_ledger(number: str) -> None:
    """Refuse a ledger that is not in Git, or has uncommitted changes."""
    ledger = CLAIMS / f"{number}.yaml"
    if not _git("ls-files", str(ledger)) or _git("status", "--porcelain", str(ledger)):
        raise PublishRefusedError(f"commit {ledger.name} first: criteria come before results")


def _refuse_newer_rules(number: str, pairs: Sequence[Pair]) -> None:
    """Refuse a rule that was not in the ledger yet when the runs that decide it were started.

    A claim that says so, ``posed: after the data``, is not refused.
    """
    started: dict[str, str] = {}  # by arm, of its first run
    for record, row in pairs:
        if moment := row.get("started"):
            started[record["arm"]] = min(started.get(record["arm"], moment), moment)
    path = CLAIMS / f"{number}.yaml"
    now = _rules(path.read_text(encoding="utf-8"))
    newer = []
    for claim in load_ledger(path):
        moments = [started[arm] for arm in claim.arms if arm in started]
        if claim.posed == AFTER or not moments:
            continue
        stood = _rules(_git("cat-file", "blob", _ledger_blob(number, min(moments))))
        if stood.get(claim.id) != now[claim.id]:
            newer.append(claim.id)
    if newer:
        raise PublishRefusedError(
            f"rules of {', '.join(newer)} are newer than the runs: say `posed: {AFTER}` there, or "
            "remove these runs and compute them again"
        )


def _rules(ledger: str) -> dict[str, dict[str, Any]]:
    """What decides each claim of a ledger's text; statements and notes do not."""
    return {
        entry["id"]: {name: value for name, value in entry.items() if name not in _WORDING}
        for entry in yaml.safe_load(ledger)
    }


def _finished(chapter: Chapter, profile: str, runs: Sequence[Run]) -> list[Pair]:
    """Read finished runs with their provenance; refuse if some are missing or damaged."""
    store, digest = Store(profile), chapter.code_digest
    pairs, missing = [], []
    for run in runs:
        conditions = conditions_of(run, digest)
        record = store.read(run, conditions)
        if record is None:
            missing.append(run)
        else:
            pairs.append((record, store.provenance(run, conditions)))
    if missing:
        raise PublishRefusedError(
            f"chapter {chapter.number}: {len(missing)} of {len(runs)} runs are not computed or "
            f"damaged, of {_named([run.arm for run in missing])}; run `make reproduce SEED=all "
            f"PROFILE={profile} CHAPTERS={int(chapter.number)}` first"
        )
    return pairs


def _named(names: Sequence[str]) -> str:
    """List different names, at most `MOST_NAMED` of them."""
    unique = list(dict.fromkeys(names))
    more = f" and {len(unique) - MOST_NAMED} more" if len(unique) > MOST_NAMED else ""
    return ", ".join(unique[:MOST_NAMED]) + more


def _refuse_moved_canaries(number: str, runs: Sequence[Run], check: CheckCanaries) -> None:
    """Refuse arms whose canary has moved, as their records may not be what the code computes."""
    arms = list(dict.fromkeys(run.arm for run in runs if run.deterministic))
    states = {each.arm: each.state for each in check([number], arms)} if arms else {}
    # besides the arms, states may name defaults of settings that have changed
    faults = [
        f"{arm} ({states.get(arm, 'missing')})"
        for arm in dict.fromkeys([*arms, *states])
        if states.get(arm, "missing") != "equal"
    ]
    if faults:
        raise PublishRefusedError(
            f"chapter {number}: the canaries of {_named(faults)} are not equal: a bug, or bump the "
            "version of these arms, record their canaries and run `make reproduce SEED=all`"
        )


def _refuse_slow_plan(
    previous: Reference | None, runs: Sequence[Run], provenance: Sequence[Record]
) -> None:
    """Refuse runs that took much longer than the plan says, so that the plan stays true."""
    before = {} if previous is None else _core_seconds(previous)
    # seconds that were published before have been accepted already, on whatever machine they arose
    predicted = sum(
        max(run.predicted_seconds, before.get((run.arm, run.seed), 0.0)) for run in runs
    )
    slowdown = machine_slowdown(previous, runs, provenance)
    measured = sum(row["core_seconds"] for row in provenance) / slowdown
    if measured > PLAN_SLACK * predicted:
        raise PublishRefusedError(
            f"measured {measured:.0f} core-seconds, the plan says {predicted:.0f}: mend the plan"
        )


def _core_seconds(reference: Reference) -> dict[tuple[str, int], float]:
    """Core-seconds of every record, by arm and seed."""
    rows = zip(reference.records, reference.provenance, strict=True)
    return {(record["arm"], record["seed"]): float(row["core_seconds"]) for record, row in rows}


def machine_slowdown(
    reference: Reference | None, plan: Sequence[Run], provenance: Sequence[Record]
) -> float:
    """Factor by which this machine was slower than the evidence's, or its mode; at least 1.

    The plan counts seconds of the machine that made the evidence. The factor is the ratio of the
    total seconds of the runs that both machines have computed, so that it includes the cost of
    canonical mode, which slows some arms and not others. With fewer than 20 such runs it is the
    median ratio to the plan, as nothing better is known.

    Args:
        reference: The committed records.
        plan: Runs that were computed here.
        provenance: Provenance of each of these runs, which says how long it took.
    """
    before = {} if reference is None else _core_seconds(reference)
    ours = [float(row["core_seconds"]) for row in provenance]
    both = [
        (seconds, before[run.arm, run.seed])
        for run, seconds in zip(plan, ours, strict=True)
        if (run.arm, run.seed) in before
    ]
    if len(both) < MIN_COMMON_RUNS:
        ratios = [s / run.predicted_seconds for run, s in zip(plan, ours, strict=True)]
        return max(1.0, statistics.median(ratios))
    return max(1.0, sum(here for here, _ in both) / sum(there for _, there in both))


def _kept(previous: Reference | None, promoted: Collection[str]) -> list[Pair]:
    """The records and provenance of a set that stay when the promoted arms are replaced."""
    if previous is None:
        return []
    pairs = zip(previous.records, previous.provenance, strict=True)
    return [pair for pair in pairs if pair[0]["arm"] not in promoted]


def _describe(
    number: str,
    profile: str,
    plan: Sequence[Run],
    pairs: Sequence[Pair],
    kept: Sequence[Pair],
    previous: RecordSet | None,
) -> RecordSet:
    """Make the ``set.json`` of the new record set.

    Args:
        number: Two-digit chapter.
        profile: Profile of the set.
        plan: All runs of the profile.
        pairs: The promoted records, each with its provenance.
        kept: Those that stay from the previous set.
        previous: The previous set, if only some arms are promoted.
    """
    commit = _git("rev-parse", "HEAD")
    if _git("status", "--porcelain", str(LIBRARY), str(COMPANION)):
        commit += "-dirty"  # nobody can check this code out, and the set must say so
    promoted = {record["arm"] for record, _ in pairs}
    waiting = _waiting(number, plan, promoted, kept, previous)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    started = min(str(row.get("started") or now) for _, row in pairs)
    rules = criteria(number)
    if previous is not None and previous.canonical:  # the new records continue this set
        started = min(started, previous.started or started)
        rules |= previous.criteria
    versions = {arm: arm_version(number, arm) for arm in promoted}
    versions |= {record["arm"]: record["version"] for record, _ in kept}
    canonical = all(
        is_canonical_fingerprint(row["fingerprint"]) for _, row in pairs if row["deterministic"]
    )
    note = "" if canonical else NOT_CANONICAL
    timed_on = previous.timed_on if previous else ""
    if any(not row["deterministic"] for _, row in pairs):
        timed_on = commit
    return RecordSet(
        canonical=canonical,
        note=IN_PROGRESS if waiting else note,
        versions={arm: version for arm, version in sorted(versions.items()) if version != 1},
        commit=commit,
        ledger=_ledger_blob(number, started),
        started=started,
        timed_on=timed_on,
        criteria=rules,
        waiting=waiting,
    )


def _waiting(
    number: str,
    plan: Sequence[Run],
    promoted: Collection[str],
    kept: Sequence[Pair],
    previous: RecordSet | None,
) -> list[str]:
    """The arms of a plan whose records are still absent, of an older version, or not canonical."""
    kept_arms = {record["arm"] for record, _ in kept}
    # a timing is never canonical; it is current until its arm's version is raised
    timings = {run.arm for run in plan if not run.deterministic}

    def is_current(arm: str) -> bool:
        if previous is None or arm not in kept_arms:
            return False
        if arm not in timings and (not previous.canonical or arm in previous.waiting):
            return False
        return previous.version(arm) == arm_version(number, arm)

    return sorted({run.arm for run in plan if run.arm not in promoted and not is_current(run.arm)})


def _ledger_blob(number: str, started: str) -> str:
    """Git's hash of the ledger as it was committed when the runs started."""
    path = (CLAIMS / f"{number}.yaml").relative_to(ROOT)
    commit = _git("rev-list", "-1", f"--before={started}", "HEAD")
    entry = _git("ls-tree", commit, "--", str(path)) if commit else ""
    if not entry:
        raise PublishRefusedError(
            f"{path} was not committed when the runs started ({started}): "
            "criteria come before results"
        )
    return entry.split()[2]  # mode, kind, name of the blob, path


def tuned_edges(number: str) -> list[str]:
    """List a chapter's tuned values that are the least or the greatest that was tried.

    Args:
        number: Two-digit chapter.

    Returns:
        ``arm.setting = value`` for each; empty if the chapter tunes nothing.
    """
    chosen = load_chapter(number).chosen
    if not chosen:
        return []
    tried: dict[tuple[str, str], set[float]] = {}
    for trial in read_trials(number):
        arm = trial.arm.partition("@")[0]  # after it stands the value of a second setting
        tried.setdefault((arm, trial.setting), set()).add(trial.value)
    return [
        f"{arm}.{name} = {value}"
        for arm, values in chosen.items()
        for name, value in values.items()
        if (grid := tried.get((arm, name))) and value in (min(grid), max(grid))
    ]


def _carry_over(folder: Path, staged: Path) -> None:
    """Copy the files that publishing does not write, such as ``tuning.csv``, to the new folder."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_file() and not (staged / path.name).exists():
            shutil.copy2(path, staged / path.name)


def _staging(number: str, profile: str) -> Path:
    """Folder in which a record set is made; it is next to the results, so a rename moves it."""
    return reference_folder(profile, number).parents[1] / f".publishing-{profile}-{number}"


def recover(number: str, profile: str) -> None:
    """Remove what a killed `publish` has left; put the old set back if it was moved aside."""
    staging, folder = _staging(number, profile), reference_folder(profile, number)
    aside = _aside(reference_folder(profile, number, staging))
    if aside.is_dir() and not folder.exists():
        aside.rename(folder)
    shutil.rmtree(staging, ignore_errors=True)


def _aside(staged: Path) -> Path:
    """Where the old set is while the new one takes its place."""
    return staged.with_name(f"{staged.name}.old")


def replace_folder(new: Path, target: Path) -> None:
    """Replace the folder ``target`` by the folder ``new``; the old one stays at ``new`` or near it.

    Linux exchanges two folders in one step. Elsewhere the old one is renamed first; if the process
    is killed at that moment, the next `publish` of the set puts it back.
    """
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        new.rename(target)
    elif not _exchange(new, target):
        target.rename(_aside(new))
        new.rename(target)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths in one step; return False if the system cannot do that."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # TypeError: Windows has no main library
        return False
    names = (os.fsencode(one), os.fsencode(other))
    return bool(rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)
