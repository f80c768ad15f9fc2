"""Execute chapter notebooks with papermill, compare with the committed evidence, and report."""

from __future__ import annotations

import ast
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from companion.evidence.claims import Judgement
from companion.evidence.store import Run, Store, read_reference, write_atomic
from companion.evidence.tables import markdown_table, shown_effect
from companion.lab.chapters import (
    EXECUTE,
    Chapter,
    chapter_numbers,
    check_profile,
    load_chapter,
    notebook_path,
)
from companion.lab.conditions import conditions_of
from companion.lab.progress import sweep_progress
from companion.lab.sweep import (
    Plan,
    SweepFailedError,
    check_backend,
    missing_runs,
    run_sweeps,
    worker_count,
)
from companion.pages import canaries
from companion.pages.compare import Comparison, compare_claims, first_line
from companion.pages.execution import Job, execute_notebooks
from companion.pages.one_seed import (
    compare_with_evidence,
    differing_metrics,
    finished_runs,
    runs_of_seed,
)
from companion.pages.verdicts import judge_records
from companion.paths import NOTEBOOKS, RUNS
from trainaug.data.arrays import DataUnavailableError

__all__ = ["ChapterReport", "notebook_parameters", "reproduce"]

MOST_ROWS = 30  # differing metrics that the report shows; it names all differing records

_NO_DATA = DataUnavailableError.__name__
# messages of `trainaug.data.registry`: "cannot get NAME (…", or "NAME is not in the cache (…"
_DATA_NAME = re.compile(r"(?:cannot get )?(\w+) (?:\(|is not in the cache)")


@dataclass
class ChapterReport:
    """What happened to one notebook.

    Attributes:
        number: Two digits.
        failure: Why it failed; empty if it did not.
        unavailable: Name of the data that this machine cannot get, if the notebook failed for that.
        seconds: Wall seconds of executing the notebook, once its runs are there.
        predicted: Core-seconds of the runs by the plan.
        measured: Core-seconds that the runs took.
        judgements: Numbers of the claims on the records of this machine; no verdicts.
        evidence: Numbers of the claims on the committed records.
        comparison: Outcome of the comparison with the evidence.
        differing: Rows of a table: metrics that differ from the evidence's.
        remark: Why nothing was compared.
    """

    number: str
    failure: str = ""
    unavailable: str = ""
    seconds: float = 0.0
    predicted: float = 0.0
    measured: float = 0.0
    judgements: list[Judgement] = field(default_factory=list)
    evidence: list[Judgement] = field(default_factory=list)
    comparison: Comparison | None = None
    differing: list[dict[str, object]] = field(default_factory=list)
    remark: str = ""

    def fail(self, reasons: Sequence[str]) -> None:
        """Note why nothing came of it: data that are missing here, or a failure."""
        if all(reason.startswith(_NO_DATA) for reason in reasons):
            self.unavailable = _data_name(reasons[0])
        else:
            self.failure = reasons[0].splitlines()[0]

    @property
    def failed(self) -> bool:
        """Whether the command must end with an error because of this notebook."""
        return bool(self.failure) or (self.comparison is not None and self.comparison.failed)


def notebook_parameters(path: Path) -> dict[str, object]:
    """Names and default values that a notebook's parameters cell declares."""
    # papermill can list them too, but its import is slow, and a wrong name must fail at once
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", ())]
    lines = ast.parse("".join(tagged[0]["source"])).body if tagged else []
    return {
        target.id: ast.literal_eval(line.value)
        for line in lines
        if isinstance(line, ast.Assign)
        for target in line.targets
        if isinstance(target, ast.Name)
    }


def _check_parameters(numbers: Sequence[str], parameters: Mapping[str, Any]) -> None:
    """Refuse, before anything starts, a parameter that no chosen notebook declares."""
    declared = {name for number in numbers for name in _declared(number)}
    for name in parameters:
        if name not in declared:
            raise ValueError(
                f"unknown parameter {name!r}, the notebooks declare {sorted(declared)}"
            )


def reproduce(
    profile: str,
    chapters: Sequence[str] = (),
    parameters: Mapping[str, Any] | None = None,
    *,
    seed: int | None = None,
    root: Path = RUNS,
) -> int:
    """Recompute chapters, execute their notebooks, write a report.

    A chapter that fails does not stop the others.

    Args:
        profile: Name of the profile.
        chapters: Two-digit numbers of notebooks; all by default.
        parameters: Knobs of the notebooks.
        seed: Compute this seed alone, compare it and the canaries with the evidence, and execute
            the notebooks on the evidence. All seeds by default, and in chapters without evidence.
        root: Folder of the runs, the executed notebooks and the report.

    Returns:
        Exit code: 1 if a notebook failed or a result contradicts the evidence, else 0. Absent data
        are no failure.

    Raises:
        ValueError: If a profile, a chapter, a parameter or a seed is unknown, or a seed is asked
            for with changed knobs, for which there is no evidence.
    """
    parameters = dict(parameters or {})
    if seed is not None and parameters:
        raise ValueError("there is no evidence for changed knobs: say SEED=all, or change no knob")
    check_profile(profile)
    check_backend()
    book = sorted(path.name[:2] for path in NOTEBOOKS.glob("*.ipynb"))
    if unknown := sorted(set(chapters or ()) - set(book)):
        raise ValueError(f"unknown chapters {unknown}, expected some of {', '.join(book)}")
    numbers = [number for number in book if not chapters or number in chapters]
    _check_parameters(numbers, parameters)
    tasks = {n: _task(n, profile, parameters, seed) for n in numbers if n in chapter_numbers()}
    if profile != "quick":  # which judges nothing
        for task in tasks.values():
            # refuses a ledger that could not be judged after the runs
            judge_records(task.chapter, [])
    console = Console()
    for number, task in tasks.items():
        seconds = sum(run.predicted_seconds for run in task.runs)
        console.print(
            f"chapter {number}: {len(task.runs)} runs, {seconds:.0f} core-seconds predicted, "
            f"{seconds / worker_count() / 60:.1f} min on {worker_count()} workers"
        )
    store = Store(profile, root)
    _compute([(task.runs, task.digest) for task in tasks.values()], store)
    reports = {number: ChapterReport(number) for number in numbers}
    jobs = []
    for number in numbers:
        planned = tasks.get(number)
        if planned and (reasons := _failures(store, planned.runs, planned.digest)):
            reports[number].fail(reasons)
        else:
            evidence = planned.evidence if planned else ""
            jobs.append(
                _job(number, store, {"profile": profile, "evidence": evidence} | parameters)
            )
    console.print(f"executing {len(jobs)} notebooks, {worker_count()} at once", highlight=False)
    with closing(execute_notebooks(jobs, worker_count(), root)) as ended:
        for number, reason, seconds in ended:
            report = reports[number]
            report.seconds = seconds
            if reason:
                report.fail([reason])
            elif number in tasks:
                _fill_in(report, tasks[number], store)
            console.print(f"notebook {number}: {seconds:.0f} s", highlight=False)
    outcome = canaries.Outcome()
    sampled = [number for number, task in tasks.items() if task.is_sample]
    if sampled and os.environ.get("DEVICE", "cpu") == "cpu":
        outcome = canaries.check(sampled, skipped="passed here", say=console.print)
    text = _report_text(profile, list(reports.values()), outcome)
    write_atomic(root / profile / "report.md", text)
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.print(f"report: {os.path.relpath(root / profile / 'report.md')}")
    return int(bool(outcome.faults) or any(report.failed for report in reports.values()))


@dataclass(frozen=True)
class _Task:
    """What is computed of a chapter, and what its notebook shows.

    Attributes:
        chapter: The chapter.
        runs: What is computed.
        digest: Digest of the code behind the runs.
        evidence: What the notebook shows, as `start` takes it.
    """

    chapter: Chapter
    runs: Sequence[Run]
    digest: str
    evidence: str

    @property
    def is_sample(self) -> bool:
        """Whether one seed alone is computed."""
        return self.evidence != "recompute"


def _task(number: str, profile: str, parameters: Mapping[str, Any], seed: int | None) -> _Task:
    chapter = load_chapter(number)
    runs, evidence = chapter.plan(profile, _knobs(number, parameters)), "recompute"
    if seed is not None and read_reference(profile, number):
        runs, evidence = runs_of_seed(runs, seed), f"seed {seed}"
    return _Task(chapter, runs, chapter.code_digest, evidence)


def _declared(number: str) -> set[str]:
    """The knobs of a notebook: its parameters but for profile and evidence, which are set here."""
    return set(notebook_parameters(notebook_path(number))) - {"profile", "evidence"}


def _knobs(number: str, parameters: Mapping[str, object]) -> dict[str, object]:
    declared = _declared(number)
    return {name: value for name, value in parameters.items() if name in declared}


def _compute(plans: Sequence[Plan], store: Store) -> None:
    """Compute what is missing of all chapters; why a run failed is noted beside it."""
    with sweep_progress("runs", worker_count(), lines=True) as show, suppress(SweepFailedError):
        run_sweeps(plans, EXECUTE, store, show)


def _job(number: str, store: Store, settings: Mapping[str, object]) -> Job:
    source = notebook_path(number)
    declared = notebook_parameters(source)
    given = {name: value for name, value in settings.items() if name in declared}
    return Job(number, source, store.folder / "notebooks" / source.name, given)


def _failures(store: Store, plan: Sequence[Run], digest: str) -> list[str]:
    """Why runs of a plan failed, from the files that the sweep has written into their folders."""
    missing = missing_runs(plan, store, digest)
    paths = [store.run_folder(run, conditions_of(run, digest)) / "failure.json" for run in missing]
    return [
        json.loads(path.read_text(encoding="utf-8"))["reason"] for path in paths if path.is_file()
    ]


def _data_name(reason: str) -> str:
    """Name of the data set in the message of a `DataUnavailableError`, else its first line."""
    named = _DATA_NAME.search(reason)
    return named[1] if named else reason.removeprefix(f"{_NO_DATA}: ").splitlines()[0]


def _fill_in(report: ChapterReport, task: _Task, store: Store) -> None:
    """Fill in what was computed and how it compares with the evidence, or why it does not."""
    pairs = finished_runs(store, task.runs, task.digest)
    report.predicted = sum(run.predicted_seconds for run in task.runs)
    report.measured = sum(row["core_seconds"] for _, row in pairs)
    if store.profile == "quick":
        return
    number = task.chapter.number
    reference = read_reference(store.profile, number)
    if reference is None:
        report.remark = "no evidence yet: `make publish` makes it"
        return
    report.comparison = compare_with_evidence(number, pairs, reference)
    report.differing = differing_metrics(report.comparison, pairs, reference)
    if task.is_sample:  # of which no interval could be had
        return
    records = [record for record, _ in pairs]
    report.judgements = judge_records(task.chapter, records, all_there_are=True)
    report.evidence = judge_records(task.chapter, reference.records, all_there_are=True)
    if report.comparison.elsewhere:
        compare_claims(report.comparison, report.judgements, report.evidence)


def _report_text(
    profile: str, reports: Sequence[ChapterReport], canary_outcome: canaries.Outcome
) -> str:
    """Markdown of the report: a sentence, a table of notebooks, then all differences and faults."""
    comparisons = [report.comparison for report in reports if report.comparison is not None]
    unavailable = {report.number: report.unavailable for report in reports if report.unavailable}
    failed = [report.number for report in reports if report.failure]
    rows = [
        {
            "notebook": report.number,
            "state": _state(report),
            "seconds": math.ceil(report.seconds),
            "core-seconds of runs": f"{report.measured:.0f} of {report.predicted:.0f} predicted"
            if report.predicted
            else "–",
            "evidence": report.comparison.state if report.comparison else report.remark or "–",
        }
        for report in reports
    ]
    columns = ["notebook", "state", "seconds", "core-seconds of runs", "evidence"]
    parts = [
        first_line(comparisons, unavailable, failed),
        f"# Reproduction, profile {profile}",
        markdown_table(rows, columns),
    ]
    if profile == "quick":
        parts.append("Claims are not judged in the quick profile.")
    if canary_outcome.compared:
        equal = canary_outcome.compared - len(canary_outcome.faults)
        parts.append(f"{equal} of {canary_outcome.compared} canaries are equal.")
        parts += [f"MOVED {line}" for line in canary_outcome.faults]
    if rows := [row for report in reports for row in report.differing]:
        parts.append("Metrics that differ from the evidence's, the first of each record:")
        parts.append(markdown_table(rows[:MOST_ROWS], list(rows[0])))
    if both := [row for report in reports for row in _both(report)]:
        parts.append("Where own results and evidence are not the same:")
        parts.append(markdown_table(both, ["claim", "setting", "here", "evidence"]))
    parts += [f"Chapter {r.number} failed: {r.failure}" for r in reports if r.failure]
    for comparison in comparisons:
        name = f"Chapter {comparison.chapter}"
        parts += [f"{name}: {line}: other bytes" for line in comparison.differing]
        parts += [f"{name}: {line}" for line in (*comparison.turned, *comparison.moved)]
    return "\n\n".join(parts) + "\n"


def _state(report: ChapterReport) -> str:
    if report.failure:
        return "FAILED"
    return f"no data: {report.unavailable}" if report.unavailable else "ran"


def _both(report: ChapterReport) -> list[dict[str, object]]:
    """Rows of the numbers that differ from the evidence's, so that nobody confuses the two.

    There are none if the comparison has met no difference.
    """
    comparison = report.comparison
    if comparison is None or not (
        comparison.absent or comparison.differing or comparison.moved or comparison.turned
    ):
        return []
    theirs = _numbers(report.evidence)
    return [
        {
            "claim": claim,
            "setting": setting,
            "here": here,
            "evidence": theirs.get((claim, setting), "–"),
        }
        for (claim, setting), here in _numbers(report.judgements).items()
        if here != theirs.get((claim, setting))
    ]


def _numbers(judgements: Sequence[Judgement]) -> dict[tuple[str, str], str]:
    """Shown numbers by claim and setting."""
    return {
        (judgement.id, f"{effect.part} {effect.name}".strip()): (
            f"{shown_effect(effect)}, n = {effect.n}"
        )
        for judgement in judgements
        for effect in judgement.effects
        if effect.n
    }
