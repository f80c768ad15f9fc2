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
from companion.evidence.store import Record, Run, Store, read_reference, write_atomic
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
from companion.pages.compare import (
    Comparison,
    compare_claims,
    compare_records,
    first_line,
)
from companion.pages.execution import Job, execute_notebooks
from companion.pages.verdicts import judge_records
from companion.paths import NOTEBOOKS, RUNS
from trainaug.data.arrays import DataUnavailableError

__all__ = ["ChapterReport", "notebook_parameters", "reproduce"]

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
    root: Path = RUNS,
) -> int:
    """Recompute chapters, execute their notebooks, write a report.

    A chapter that fails does not stop the others.

    Args:
        profile: Name of the profile.
        chapters: Two-digit numbers of notebooks; all by default.
        parameters: Knobs of the notebooks.
        root: Folder of the runs, the executed notebooks and the report.

    Returns:
        Exit code: 1 if a notebook failed or a result contradicts the evidence, else 0. Absent data
        are no failure.

    Raises:
        ValueError: If a profile, a chapter or a parameter is unknown.
    """
    parameters = dict(parameters or {})
    check_profile(profile)
    check_backend()
    book = sorted(path.name[:2] for path in NOTEBOOKS.glob("*.ipynb"))
    if unknown := sorted(set(chapters or ()) - set(book)):
        raise ValueError(f"unknown chapters {unknown}, expected some of {', '.join(book)}")
    numbers = [number for number in book if not chapters or number in chapters]
    _check_parameters(numbers, parameters)
    built = {number: load_chapter(number) for number in numbers if number in chapter_numbers()}
    plans = {n: c.plan(profile, _knobs(n, parameters)) for n in numbers if (c := built.get(n))}
    if profile != "quick":  # which judges nothing
        for chapter in built.values():
            judge_records(chapter, [])  # refuses a ledger that could not be judged after the runs
    console = Console()
    for number, plan in plans.items():
        seconds = sum(run.predicted_seconds for run in plan)
        console.print(
            f"chapter {number}: {len(plan)} runs, {seconds:.0f} core-seconds predicted, "
            f"{seconds / worker_count() / 60:.1f} min on {worker_count()} workers"
        )
    store = Store(profile, root)
    digests = {number: chapter.code_digest for number, chapter in built.items()}
    _compute([(plan, digests[number]) for number, plan in plans.items()], store)
    reports = {number: ChapterReport(number) for number in numbers}
    jobs = []
    for number in numbers:
        if reasons := _failures(store, plans.get(number, []), digests.get(number, "")):
            reports[number].fail(reasons)
        else:
            jobs.append(_job(number, profile, parameters, store))
    console.print(f"executing {len(jobs)} notebooks, {worker_count()} at once", highlight=False)
    with closing(execute_notebooks(jobs, worker_count(), root)) as ended:
        for number, reason, seconds in ended:
            report = reports[number]
            report.seconds = seconds
            if reason:
                report.fail([reason])
            elif number in built:
                pairs = _finished(store, plans[number], digests[number])
                report.predicted = sum(run.predicted_seconds for run in plans[number])
                report.measured = sum(row["core_seconds"] for _, row in pairs)
                if profile != "quick":
                    _judge_and_compare(report, built[number], profile, pairs)
            console.print(f"notebook {number}: {seconds:.0f} s", highlight=False)
    text = _report_text(profile, list(reports.values()))
    write_atomic(root / profile / "report.md", text)
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.print(f"report: {os.path.relpath(root / profile / 'report.md')}")
    return int(any(report.failed for report in reports.values()))


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


def _job(number: str, profile: str, parameters: Mapping[str, Any], store: Store) -> Job:
    source = notebook_path(number)
    settings = {"profile": profile, "evidence": "recompute", **parameters}
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


def _finished(store: Store, plan: Sequence[Run], digest: str) -> list[tuple[Record, Record]]:
    """Records of a plan, each with its provenance; the notebook has made sure that they exist."""
    pairs = []
    for run in plan:
        conditions = conditions_of(run, digest)
        record = store.read(run, conditions)
        if record is None:
            raise RuntimeError(f"{run.arm}, seed {run.seed}: the record was lost meanwhile")
        pairs.append((record, store.provenance(run, conditions)))
    return pairs


def _judge_and_compare(
    report: ChapterReport,
    chapter: Chapter,
    profile: str,
    pairs: Sequence[tuple[Record, Record]],
) -> None:
    """Fill in the numbers of the claims, the comparison with the evidence, or why there is none."""
    report.judgements = judge_records(chapter, [record for record, _ in pairs], all_there_are=True)
    reference = read_reference(profile, chapter.number)
    if reference is None:
        report.remark = "no evidence yet: `make publish` makes it"
        return
    about = reference.record_set
    evidence = list(zip(reference.records, reference.provenance, strict=True))
    arms = {record["arm"] for record in reference.records}
    early = set(about.waiting) if about.canonical else arms
    report.evidence = judge_records(chapter, reference.records, all_there_are=True)
    report.comparison = compare_records(chapter.number, pairs, evidence, early)
    if report.comparison.elsewhere:
        compare_claims(report.comparison, report.judgements, report.evidence)


def _report_text(profile: str, reports: Sequence[ChapterReport]) -> str:
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


def _both(report: ChapterReport) -> list[dict[str, str]]:
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
