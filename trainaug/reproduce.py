"""Run chapters as papermill notebooks, report, and compare with the committed reference."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from trainaug.compare import compare
from trainaug.evidence.canonical import canonical_environment
from trainaug.evidence.claims import Judgement
from trainaug.evidence.store import (
    Run,
    Store,
    environment_fingerprint,
    read_reference,
    write_atomic,
)
from trainaug.evidence.tables import markdown_table, verdict_table
from trainaug.experiments.chapters import TITLES, Chapter, load_chapter, notebook_path
from trainaug.experiments.sweep import missing_runs, worker_count
from trainaug.notebook import chapter_judgements
from trainaug.paths import RUNS

__all__ = ["ChapterReport", "notebook_parameters", "reproduce"]

BOOK = ("00", *TITLES, "08")


@dataclass
class ChapterReport:
    """What happened to one notebook."""

    number: str
    failure: str = ""
    seconds: float = 0.0
    predicted: float = 0.0
    measured: float = 0.0
    judgements: list[Judgement] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    comparison: str = ""


def notebook_parameters(path: Path) -> dict[str, Any]:
    """Names and default values that a notebook's parameters cell declares."""
    import papermill

    return {
        name: yaml.safe_load(entry["default"])
        for name, entry in papermill.inspect_notebook(str(path)).items()
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
        chapters: Two-digit numbers; all that are built, with the first and the last notebook, by
            default.
        parameters: Knobs of the notebooks.
        root: Where runs, executed notebooks and the report go.

    Returns:
        Exit code: 0 if every chapter ran and agrees with the reference, 1 if not.

    Raises:
        ValueError: If a profile, a chapter or a parameter is unknown.
    """
    parameters = dict(parameters or {})
    built = {number: load_chapter(number) for number in TITLES}
    numbers = [n for n in BOOK if (n in chapters if chapters else built.get(n) or n not in TITLES)]
    if absent := [n for n in chapters if n in TITLES and built[n] is None]:
        raise ValueError(f"chapter {', '.join(absent)} is not built yet")
    _check_parameters(numbers, parameters)
    plans = {n: c.plan(profile, _knobs(n, parameters)) for n in numbers if (c := built.get(n))}
    console = Console()
    for number, plan in plans.items():
        seconds = sum(run.predicted_seconds for run in plan)
        console.print(
            f"chapter {number}: {len(plan)} runs, {seconds:.0f} core-seconds predicted, "
            f"{seconds / worker_count() / 60:.1f} min on {worker_count()} workers"
        )
    reports = []
    for number in numbers:
        report = ChapterReport(number)
        reports.append(report)
        started = time.monotonic()
        chapter, plan = built.get(number), plans.get(number, [])
        store, digest = Store(profile, root), chapter.code_digest if chapter else ""
        try:
            _execute(number, profile, parameters, console, store, plan, digest)
            if chapter is not None:
                provenance = [store.provenance(run, digest) for run in plan]
                report.predicted = sum(run.predicted_seconds for run in plan)
                report.measured = sum(row["core_seconds"] for row in provenance)
                if profile != "quick" and not parameters:
                    _judge_and_compare(report, chapter, store, plan)
        except Exception as error:
            report.failure = str(error) or type(error).__name__
        report.seconds = time.monotonic() - started
    text = _report_text(profile, reports)
    write_atomic(root / profile / "report.md", text)
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    failed = [r for r in reports if r.failure or r.differences]
    console.print(f"report: {os.path.relpath(root / profile / 'report.md')}")
    return 1 if failed else 0


def _declared(number: str) -> set[str]:
    """The knobs of a notebook; profile and evidence are the runner's own."""
    return set(notebook_parameters(notebook_path(number))) - {"profile", "evidence"}


def _knobs(number: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    declared = _declared(number)
    return {name: value for name, value in parameters.items() if name in declared}


def _execute(
    number: str,
    profile: str,
    parameters: Mapping[str, Any],
    console: Console,
    store: Store,
    plan: Sequence[Run],
    digest: str,
) -> None:
    """Execute one notebook with papermill in a child process and show the progress of its sweep."""
    source = notebook_path(number)
    root = store.folder.parent
    target = store.folder / "notebooks" / source.name
    target.parent.mkdir(parents=True, exist_ok=True)
    settings = {"profile": profile, "evidence": "recompute", **parameters}
    declared = notebook_parameters(source)
    settings = {name: value for name, value in settings.items() if name in declared}
    with tempfile.TemporaryDirectory() as folder:
        file, log = Path(folder) / "parameters.yaml", Path(folder) / "log.txt"
        file.write_text(yaml.safe_dump(settings), encoding="utf-8")
        command = [sys.executable, "-m", "papermill", str(source), str(target), "-k", "python3"]
        command += ["-f", str(file), "--no-progress-bar", "--cwd", str(source.parent)]
        with log.open("w") as stream:
            switches = {"TRAINAUG_RUNS": str(root), "TRAINAUG_PROGRESS": "off"}
            environment = canonical_environment() | switches
            child = subprocess.Popen(
                command, stdout=stream, stderr=subprocess.STDOUT, env=environment
            )
            try:
                _watch(child, number, console, len(plan), lambda: missing_runs(plan, store, digest))
            except BaseException:
                _end(child)
                raise
        if child.returncode != 0:
            raise RuntimeError(_last_error(log.read_text(encoding="utf-8", errors="replace")))


def _end(child: subprocess.Popen[bytes]) -> None:
    """Interrupt papermill, which ends its kernel; kill it if it does not obey."""
    child.send_signal(signal.SIGINT)
    try:
        child.wait(10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _watch(
    child: subprocess.Popen[bytes],
    number: str,
    console: Console,
    total: int,
    missing: Callable[[], Sequence[Run]],
) -> None:
    started, said = time.monotonic(), -1
    at_start = len(missing())
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"))
    with Progress(
        *columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(f"chapter {number}", total=total or None, state="")
        while child.poll() is None:
            time.sleep(0.25 if time.monotonic() - started < 5 else 1.0)
            left = len(missing())
            done = total - left
            new = at_start - left
            each = (time.monotonic() - started) / new if new else 0.0
            state = f"runs {done}/{total}" + (f", {each * left / 60:.1f} min left" if new else "")
            bar.update(task, completed=done, state=state if total else "")
            step = max(1, total // 10)
            if not console.is_terminal and total and done // step > said:
                said = done // step
                console.print(f"chapter {number}: {state}", highlight=False)


def _last_error(log: str) -> str:
    lines = [line for line in log.splitlines() if line.strip()]
    for line in reversed(lines):
        name = line.split(":")[0]
        if name.replace(".", "").isidentifier() and name.endswith(
            ("Error", "Exception", "Interrupt")
        ):
            return line.strip()
    return lines[-1] if lines else "papermill failed without a message"


def _judge_and_compare(
    report: ChapterReport, chapter: Chapter, store: Store, plan: Sequence[Run]
) -> None:
    read = [store.read(run, chapter.code_digest) for run in plan]
    records = [record for record in read if record is not None]
    report.judgements = chapter_judgements(chapter, records, store.profile)
    reference = read_reference(store.profile, chapter.number)
    if reference is None:
        report.comparison = "no reference yet: `make publish` makes one"
        return
    fingerprints = {row["fingerprint"] for row in reference.provenance}
    same_machine = fingerprints == {environment_fingerprint()}
    report.differences = compare(
        records,
        reference,
        report.judgements,
        chapter_judgements(chapter, reference.records, store.profile),
        same_machine=same_machine,
    )
    word = "DIFFERS from" if report.differences else "agrees with"
    how = "bytes" if same_machine else "statistics, other machine"
    report.comparison = f"{word} the reference ({how})"


def _report_text(profile: str, reports: Sequence[ChapterReport]) -> str:
    rows = [
        {
            "notebook": report.number,
            "state": "FAILED" if report.failure else "ran",
            "seconds": math.ceil(report.seconds),
            "core-seconds": f"{report.measured:.0f} of {report.predicted:.0f} predicted"
            if report.predicted
            else "–",
            "reference": report.comparison or "–",
        }
        for report in reports
    ]
    columns = ["notebook", "state", "seconds", "core-seconds", "reference"]
    parts = [f"# Reproduction, profile {profile}", markdown_table(rows, columns)]
    judged = [judgement for report in reports for judgement in report.judgements]
    if judged:
        parts.append(verdict_table(judged, "markdown"))
    elif profile == "quick":
        parts.append("Claims are not judged in the quick profile.")
    parts += [f"Chapter {r.number} failed: {r.failure}" for r in reports if r.failure]
    parts += [f"Chapter {r.number}: {d}" for r in reports for d in r.differences]
    return "\n\n".join(parts) + "\n"
