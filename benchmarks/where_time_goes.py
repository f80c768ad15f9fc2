"""Where the core-seconds of the standard profile go: one seed of every arm, sampled.

    python benchmarks/where_time_goes.py [--share 0.02] [CHAPTER ...]
    python benchmarks/where_time_goes.py --draw

Each arm that takes at least this share of its chapter is computed once, in canonical mode, while a
timer notes every few milliseconds of processor time which function of this project is at work. The
shares are scaled to the core-seconds that the committed evidence states and are written to
``results/bench/where_time_goes.json``; chapters that are not measured keep their earlier shares.
It takes about ten minutes; ``docs/time.md`` shows the outcome.
"""

from __future__ import annotations

import argparse
import ast
import json
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from matplotlib.figure import Figure

from companion.evidence.plots import PALETTE, set_style
from companion.evidence.store import Run, read_reference, write_atomic
from companion.evidence.tables import markdown_table
from companion.lab.chapters import about, chapter_numbers, load_chapter
from companion.lab.processes import child_environment
from companion.paths import COMPANION, LIBRARY, RESULTS, ROOT

TARGET = RESULTS / "bench" / "where_time_goes.json"
PAGE = ROOT / "docs" / "time.md"
PICTURE = ROOT / "docs" / "_static" / "where_time_goes.png"
START, END = "<!-- generated: where_time_goes -->", "<!-- end -->"
INTERVAL = 0.005  # seconds of processor time between samples
KINDS = ("training", "method", "measurement", "data", "rest")
# Kind of work, part of a file's path, beginning of a function's name. The first rule that matches
# any frame of a stack decides. Rules that find a "method" or "measurement" by its file come after
# the rule of `take_step`, because such code may be part of a training step.
IMPORTS = "imports"  # stands for the file of a frame that imports something
RULES = (
    ("rest", IMPORTS, ""),
    ("data", "trainaug/data/", ""),
    ("data", "/corpora.py", ""),
    ("measurement", "/loop.py", "measure"),
    # observers are called in a step and yet measure
    ("measurement", "gradient_clustering/", "_Observer"),
    ("measurement", "ordering/train.py", "note"),
    ("training", "/loop.py", "take_step"),
    ("measurement", "/measures.py", ""),
    ("measurement", "trainaug/methods/cascading_sum/landscape", ""),
    ("measurement", "companion/", "evaluate"),
    ("measurement", "trainaug/", "evaluate"),
    ("measurement", "hard_negatives/train.py", "_note_validation"),
    ("measurement", "hard_negatives/train.py", "_mean_norm"),
    ("measurement", "hard_negatives/train.py", "gallery_scores"),
    ("measurement", "gradient_clustering/", "_Watch"),
    ("measurement", "autoassist/", "_Notes"),
    ("measurement", "autoassist/linear.py", "_measure_path"),
    ("measurement", "autoassist/linear.py", "_moved"),
    ("measurement", "autoassist/problems.py", "svm_optimum"),
    ("measurement", "ordering/", "_first_epoch"),
    ("measurement", "ordering/scores.py", "_gradient_norms"),
    ("measurement", "autoassist/svm.py", "svm_objective"),
    ("measurement", "linear_robustness/pictures.py", "_Attacked"),
    ("data", "/problems.py", "problem"),
    ("data", "/problems.py", "load_"),
    ("data", "/problems.py", "picture"),
    ("method", "trainaug/methods/", ""),
    ("training", "companion/chapters/", ""),
    ("training", "trainaug/training/", ""),
)


def kind_of(frames: list[tuple[str, str]]) -> str:
    """Kind of work that a stack does; its frames are pairs of file and function."""
    for kind, file, function in RULES:
        for path, name in frames:
            # a nested function is named after those around it: "train.<locals>.take_step"
            if file in path and any(word.startswith(function) for word in name.split(".")):
                return kind
    return "rest"


def project_frames(frame: FrameType | None) -> list[tuple[str, str]]:
    """File and function of a stack's frames in this project, the outermost first."""
    frames = []
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith("<frozen importlib"):
            frames.append((IMPORTS, ""))
        elif path.startswith(str(ROOT)) and "/site-packages/" not in path:
            frames.append((path.removeprefix(f"{ROOT}/"), frame.f_code.co_qualname))
        frame = frame.f_back
    return frames[::-1]


def names_in(path: Path) -> set[str]:
    """Names of all functions and classes that a file defines, nested ones and methods included."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    tree = ast.parse(path.read_text("utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


def check_rules() -> None:
    """Refuse a rule that can never match, because its file or function was renamed or removed.

    Raises:
        ValueError: If there is such a rule.
    """
    files = {
        path.relative_to(ROOT).as_posix(): path
        for folder in (LIBRARY, COMPANION)
        for path in folder.rglob("*.py")
    }
    for kind, part, function in RULES:
        if part == IMPORTS:
            continue
        paths = [path for name, path in files.items() if part in name]
        names = {name for path in paths for name in names_in(path)}
        if not paths or not any(name.startswith(function) for name in names):
            raise ValueError(f"rule {(kind, part, function)} fits no function of this project")


@contextmanager
def sampled(count: Callable[[FrameType | None, float], None]) -> Iterator[None]:
    """Sample the block; ``count`` is given each sample's frame and the seconds it stands for."""
    last = time.process_time()

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal last
        now = time.process_time()
        # Python calls the handler only after a C function has returned, so a sample stands for all
        # the time since the last one
        count(frame, now - last)
        last = now

    before = signal.signal(signal.SIGPROF, note)
    signal.setitimer(signal.ITIMER_PROF, INTERVAL, INTERVAL)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def first_runs(number: str) -> dict[str, Run]:
    """The run of the first seed of every arm of the standard profile."""
    first: dict[str, Run] = {}
    for run in load_chapter(number).plan("standard"):
        first.setdefault(run.arm, run)
    return first


def weights(number: str) -> dict[str, float]:
    """Core-seconds of each arm in the committed standard evidence."""
    reference = read_reference("standard", number)
    assert reference is not None
    spent: dict[str, float] = defaultdict(float)
    for record, row in zip(reference.records, reference.provenance, strict=True):
        spent[record["arm"]] += row["core_seconds"]
    return spent


def profile_chapter(number: str, least: float) -> dict[str, Any]:
    """Shares of a chapter's core-seconds by kind, and the functions that take most.

    Arms that take less than the share ``least`` are left out; ``covered`` is what the others take.
    """
    chapter, spent, first = load_chapter(number), weights(number), first_runs(number)
    whole = sum(spent.values())
    chosen = [arm for arm in first if spent.get(arm, 0) >= least * whole]
    covered = sum(spent[arm] for arm in chosen)
    kinds: Counter[str] = Counter()
    functions: Counter[tuple[str, str]] = Counter()
    for arm in chosen:
        seconds: Counter[tuple[str, str]] = Counter()

        def count(frame: FrameType | None, passed: float, seconds: Counter[Any] = seconds) -> None:
            frames = project_frames(frame)
            path, name = frames[-1] if frames else ("", "")
            seconds[kind_of(frames), f"{path}:{name}"] += passed

        with sampled(count):
            chapter.execute(first[arm])
        scale = spent[arm] / sum(seconds.values())
        for (kind, function), value in seconds.items():
            kinds[kind] += scale * value
            functions[kind, function] += scale * value
        print(f"chapter {number}: {arm}", file=sys.stderr, flush=True)
    return {
        "core_seconds": round(whole, 1),
        "covered": round(covered / whole, 3),
        "shares": {kind: round(kinds[kind] / covered, 4) for kind in KINDS},
        "functions": [
            {"kind": kind, "function": name, "share": round(value / covered, 4)}
            for (kind, name), value in functions.most_common(12)
        ],
    }


def table(measured: Mapping[str, Any]) -> str:
    """The table of the page: core-seconds of each chapter and their shares in percent."""
    rows = [
        {
            "chapter": f"{int(number)} {about(number).title.replace('_', ' ')}",
            "core-seconds": round(chapter["core_seconds"]),
            **{kind: round(100 * chapter["shares"][kind]) for kind in KINDS},
        }
        for number, chapter in measured.items()
    ]
    return markdown_table(rows, ["chapter", "core-seconds", *KINDS])


def with_table(page: str, measured: Mapping[str, Any]) -> str:
    """The page with its generated part replaced."""
    head, rest = page.split(START)
    return f"{head}{START}\n{table(measured)}\n{END}{rest.split(END, 1)[1]}"


def draw(measured: Mapping[str, Any]) -> Figure:
    """Draw a bar for each chapter, divided by kind."""
    set_style()
    drawn = Figure(figsize=(8.0, 3.2))
    axis = drawn.subplots()
    left = [0.0] * len(measured)
    names = [about(number).title.replace("_", " ") for number in measured]
    for kind, colour, hatch in zip(KINDS, PALETTE, ("", "//", "..", "xx", ""), strict=False):
        widths = [c["core_seconds"] * c["shares"][kind] for c in measured.values()]
        axis.barh(names, widths, left=left, color=colour, hatch=hatch, label=kind, edgecolor="w")
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axis.invert_yaxis()
    axis.set_xlabel("core-seconds of the standard profile")
    axis.legend(ncols=len(KINDS), loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8)
    return drawn


def show(measured: Mapping[str, Any]) -> None:
    """Write the table into the page, and the picture beside it."""
    write_atomic(PAGE, with_table(PAGE.read_text("utf-8"), measured))
    draw(measured).savefig(PICTURE, dpi=200, metadata={"Software": None})


def main() -> None:
    """Profile chapters, each in a new process in canonical mode."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("chapters", nargs="*", default=chapter_numbers())
    parser.add_argument("--share", type=float, default=0.02, help="of a chapter, at least")
    parser.add_argument("--draw", action="store_true", help="the page and its picture alone")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    check_rules()
    if options.inside:
        (number,) = options.chapters
        print(json.dumps(profile_chapter(number, options.share)))
        return
    known = json.loads(TARGET.read_text("utf-8")) if TARGET.is_file() else {}
    for number in () if options.draw else options.chapters:
        command = [sys.executable, str(Path(__file__)), number, "--inside"]
        done = subprocess.run(
            [*command, "--share", str(options.share)],
            env=child_environment(is_canonical=True),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        known[number] = json.loads(done.stdout.splitlines()[-1])
        write_atomic(TARGET, json.dumps(dict(sorted(known.items())), indent=1) + "\n")
    show(known)


if __name__ == "__main__":
    main()
