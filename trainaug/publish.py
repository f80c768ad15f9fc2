"""Verify the committed results and promote a run to reference."""

from __future__ import annotations

import hashlib
import statistics
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from trainaug.evidence import canonical
from trainaug.evidence.statistics import prediction_interval
from trainaug.evidence.store import (
    Record,
    RecordSet,
    Reference,
    Run,
    Store,
    canonical_json,
    read_reference,
    reference_folder,
    write_atomic,
    write_reference,
)
from trainaug.experiments.chapters import TITLES, Chapter, load_chapter
from trainaug.experiments.conditions import conditions_of
from trainaug.experiments.sweep import recompute
from trainaug.notebook import collect_records
from trainaug.paths import CLAIMS, PACKAGE, ROOT
from trainaug.views import refresh_views, verdicts_text

__all__ = [
    "PublishRefusedError",
    "Verification",
    "machine_slowdown",
    "publish",
    "sample_runs",
    "tuned_edges",
    "verify",
    "verify_sample",
]

PREDICTION_CONFIDENCE = 0.999
PLAN_SLACK = 1.3
MIN_COMMON_RUNS = 20


class PublishRefusedError(RuntimeError):
    """A run may not become reference, with the reason."""


@dataclass
class Verification:
    """Outcome of a comparison of recomputed runs with the reference."""

    checked: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    stale: bool = False


def _same(record: Record, others: Sequence[Record], fresh: Record, *, bytes_count: bool) -> str:
    """Compare a recomputed record; return what moved, or nothing."""
    if bytes_count:
        return "" if canonical_json(record) == canonical_json(fresh) else "other bytes"
    for name, value in record["metrics"].items():
        # some metrics are of classes that not every seed's parts hold
        values = [other["metrics"][name] for other in others if name in other["metrics"]]
        if name not in fresh["metrics"]:
            return f"no {name}"
        truth_value = {*values, fresh["metrics"][name]} <= {0.0, 1.0}  # which has no interval
        if len(values) < 3 or truth_value:
            continue
        interval = prediction_interval(values, PREDICTION_CONFIDENCE)
        slack = 1e-6 * max(1.0, abs(value))
        if not interval.low - slack <= fresh["metrics"][name] <= interval.high + slack:
            return f"{name} = {fresh['metrics'][name]:.6g} against {value:.6g}"
    return ""


def _moved(run: Run, fresh: Record, reference: Reference) -> str:
    """Compare a recomputed run with the reference; return what moved, or nothing."""
    pair = reference.find(run)
    if pair is None:
        return "not in the reference"
    record, provenance = pair
    peers = [
        other
        for other in reference.records
        if other["arm"] == run.arm and other["settings"] == record["settings"]
    ]
    same_machine = provenance["fingerprint"] == canonical.fingerprint(canonical=True)
    return _same(record, peers, fresh, bytes_count=same_machine)


def _known_runs(chapter: Chapter, profile: str) -> dict[str, Run]:
    return {run.identity: run for run in chapter.plan(profile) if run.deterministic}


def verify(number: str, profile: str = "standard") -> Verification:
    """Recompute one seed of every arm; re-stamp a stale reference whose numbers did not move.

    Args:
        number: Two-digit chapter.
        profile: ``"standard"`` or ``"full"``.

    Raises:
        LookupError: If the chapter is built but has no reference.
    """
    chapter = load_chapter(number)
    if chapter is None:
        return Verification()
    reference = read_reference(profile, number)
    if reference is None:
        raise LookupError(f"chapter {number} has no {profile} reference: run `make publish`")
    outcome = Verification()
    arms: dict[str, Run] = {}
    for run in _known_runs(chapter, profile).values():
        arms.setdefault(canonical_json([run.arm, run.settings]), run)
    fresh = recompute([(chapter.runs_module, run) for run in arms.values()])
    for run, record in zip(arms.values(), fresh, strict=True):
        name = f"{run.arm} {canonical_json(run.settings)}, seed {run.seed}"
        moved = _moved(run, record, reference)
        outcome.checked.append(name)
        if moved:
            outcome.moved.append(f"{name}: {moved}")
    digests = {row["code"] for row in reference.provenance}
    outcome.stale = digests != {chapter.code_digest}
    if outcome.stale and not outcome.moved:
        stamped = [row | {"code": chapter.code_digest} for row in reference.provenance]
        rows = zip(reference.records, stamped, strict=True)
        write_reference(profile, number, rows, reference.record_set)
        outcome.stale = False
    return outcome


def sample_runs(chapter: Chapter, profile: str, count: int, seconds: float) -> list[Run]:
    """Choose runs of the reference by the hash of its records file, within a time budget."""
    text = (reference_folder(profile, chapter.number) / "records.jsonl").read_bytes()
    seed = hashlib.sha256(text).hexdigest()
    known = _known_runs(chapter, profile)

    def rank(identity: str) -> str:
        return hashlib.sha256(f"{seed}{identity}".encode()).hexdigest()

    chosen: list[Run] = []
    spent = 0.0
    for identity in sorted(known, key=rank):
        run = known[identity]
        if len(chosen) < count and spent + run.predicted_seconds <= seconds:
            chosen.append(run)
            spent += run.predicted_seconds
    return chosen


def verify_sample(
    count: int, seconds: float, say: Callable[[str], None] = lambda line: None
) -> Verification:
    """Recompute a sample of the reference of every chapter with a ledger.

    Stale references are reported and fail; `verify` re-stamps them.

    Raises:
        LookupError: If a chapter with a ledger has no reference.
    """
    outcome = Verification()
    sample: list[tuple[str, Chapter, Reference, Run]] = []
    for number in TITLES:
        chapter = load_chapter(number)
        if chapter is None or not (CLAIMS / f"{number}.yaml").is_file():
            say(f"chapter {number}: not built")
            continue
        for profile in ("standard", "full"):
            reference = read_reference(profile, number)
            if reference is None:
                if profile == "standard":
                    raise LookupError(f"chapter {number} has no reference: run `make publish`")
                continue
            if {row["code"] for row in reference.provenance} != {chapter.code_digest}:
                outcome.stale = True
                command = f"trainaug verify {number} --profile {profile}"
                say(f"chapter {number}, {profile}: STALE, run `{command}`")
            title = f"chapter {number}, {profile}"
            runs = sample_runs(chapter, profile, count, seconds)
            sample += [(title, chapter, reference, run) for run in runs]
    fresh = recompute([(chapter.runs_module, run) for _, chapter, _, run in sample])
    for (title, _, reference, run), record in zip(sample, fresh, strict=True):
        name = f"{title}: {run.arm}, seed {run.seed}"
        moved = _moved(run, record, reference)
        outcome.checked.append(name)
        if moved:
            outcome.moved.append(f"{name}: {moved}")
        say(f"{name}: {moved or 'equal'}")
    return outcome


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def tuned_edges(path: Path) -> list[str]:
    """Name the tuned values that are the least or the greatest of their grid.

    Args:
        path: YAML of ``{arm: {setting: {value: v, grid: [...]}}}``; none if the file is absent.
    """
    tuned = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return [
        f"{arm}.{name} = {entry['value']}"
        for arm, settings in tuned.items()
        for name, entry in settings.items()
        if entry["value"] in (min(entry["grid"]), max(entry["grid"]))
    ]


def machine_slowdown(
    reference: Reference | None, plan: Sequence[Run], provenance: Sequence[Record]
) -> float:
    """How much slower than the reference's machine this one was, at least 1.

    The plan counts seconds of the machine that made the reference. The median is taken over the
    runs that both have; with fewer than 20 of them nothing is known and 1 is returned.
    """
    pairs = zip(plan, provenance, strict=True)
    known = [(pair[1], row) for run, row in pairs if reference and (pair := reference.find(run))]
    if len(known) < MIN_COMMON_RUNS:
        return 1.0
    ratios = [float(ours["core_seconds"]) / theirs["core_seconds"] for theirs, ours in known]
    slowdown: float = max(1.0, statistics.median(ratios))
    return slowdown


def publish(number: str, profile: str = "standard") -> None:
    """Promote the runs of a profile to reference and refresh every view made from them.

    Raises:
        PublishRefusedError: If the ledger is not committed, a tuned value lies on the edge of its
            grid, runs are missing, or the core-seconds, in those of the reference's machine, exceed
            the plan by more than 30 %.
    """
    chapter = load_chapter(number)
    ledger = CLAIMS / f"{number}.yaml"
    if chapter is None:
        raise PublishRefusedError(f"chapter {number} is not built yet")
    tracked = _git("ls-files", str(ledger)).strip()
    if not tracked or _git("status", "--porcelain", str(ledger)).strip():
        raise PublishRefusedError(f"commit {ledger.name} first: criteria come before results")
    if edges := tuned_edges(PACKAGE / "experiments" / f"ch{number}" / "tuned.yaml"):
        raise PublishRefusedError(f"tuned to the edge of the grid: {', '.join(edges)}; widen it")
    plan, store = chapter.plan(profile), Store(profile)
    try:
        records, _ = collect_records(chapter, profile, "recompute")
    except LookupError as error:
        raise PublishRefusedError(f"{error}; run `make reproduce` first") from error
    provenance = [store.provenance(run, conditions_of(run, chapter.code_digest)) for run in plan]
    predicted = sum(run.predicted_seconds for run in plan)
    slowdown = machine_slowdown(read_reference(profile, number), plan, provenance)
    measured = sum(row["core_seconds"] for row in provenance) / slowdown
    if measured > PLAN_SLACK * predicted:
        raise PublishRefusedError(
            f"measured {measured:.0f} core-seconds, the plan says {predicted:.0f}: mend the plan"
        )
    rows = zip(records, provenance, strict=True)
    commit = _git("rev-parse", "HEAD").strip()
    record_set = RecordSet(
        canonical=all(row["canonical"] for row in provenance if row["deterministic"]),
        note="",
        versions={run.arm: run.version for run in plan if run.version != 1},
        commit=commit,
        ledger=_git("rev-parse", f"HEAD:{ledger.relative_to(ROOT)}").strip(),
        started="",
        timed_on=commit,
    )
    write_reference(profile, number, rows, record_set)
    folder = reference_folder(profile, number)
    write_atomic(folder / "verdicts.json", verdicts_text(number, profile))
    refresh_views()
