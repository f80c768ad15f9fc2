"""Record canaries, or run some in this process, which then must be canonical.

``record [NN ...]`` computes all canaries of chapters in canonical child processes and writes the
files that are committed. ``run NN [--details]`` is such a child: it reads the names of arms as a
JSON list and answers a JSON line for each. ``cover SECONDS [NN ...]`` compares, for every arm of
*standard*, the functions that an evidence run enters with those that its canary enters; its child
is ``coverage NN --seconds S``. ``one NN ARM`` prints the two hashes of one arm.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from companion.evidence.store import Record, Run
    from companion.lab.canary.check import Canary, Coverage

    Execute = Callable[[Run], Record]


def _compute(run: Run, execute: Execute) -> Canary:
    """Execute one tiny run and return the hashes of its trace and its record."""
    from companion.evidence.store import canonical_json
    from companion.lab.canary.check import Canary
    from companion.lab.canary.recorder import Trace, recording
    from companion.lab.canary.sizes import tiny_data

    trace = Trace()
    with tiny_data(run), recording(trace):
        result = execute(run)
    trace.add("result", {name: value for name, value in result.items() if name != "curves"})
    record = canonical_json(result)
    digest = hashlib.sha256(record.encode()).hexdigest()[:16]
    return Canary(run.arm, trace.hexdigest(), digest)


def _with_details(canary: Canary, run: Run, execute: Execute) -> Canary:
    """Execute a tiny run again to add the operations that it calls and the functions it enters."""
    from companion.lab.canary.recorder import Operations, entered_functions
    from companion.lab.canary.sizes import tiny_data

    operations = Operations()
    with tiny_data(run), entered_functions() as functions, operations:
        execute(run)
    calls = tuple(sorted(operations.names))
    return replace(canary, operations=calls, functions=tuple(sorted(functions)))


def _coverage(run: Run, execute: Execute, seconds: float) -> Coverage:
    """Return how many functions a run at full size enters, and which of them its canary does not.

    After so many core-seconds the run is broken off, and `entered_functions` adds an empty name.
    """
    from companion.lab.canary.check import Coverage
    from companion.lab.canary.recorder import entered_functions
    from companion.lab.canary.sizes import tiny_config, tiny_data

    tiny = replace(run, config=tiny_config(run))
    with tiny_data(tiny), entered_functions() as in_canary:
        execute(tiny)
    with entered_functions(seconds) as in_evidence:
        execute(run)
    return Coverage(
        run.arm,
        evidence=len(in_evidence - {""}),
        complete="" not in in_evidence,
        missing=tuple(sorted(in_evidence - in_canary - {""})),
    )


def _answer(run: Run, execute: Execute, arguments: list[str]) -> dict[str, object]:
    """Return what a child answers for one run."""
    from companion.lab.canary.sizes import tiny_config

    if arguments[0] == "coverage":
        return asdict(_coverage(run, execute, float(arguments[3])))
    tiny = replace(run, config=tiny_config(run))
    canary = _compute(tiny, execute)
    if "--details" in arguments:
        canary = _with_details(canary, tiny, execute)
    return canary.to_json()


def _record(numbers: list[str]) -> int:
    """Compute and write the canaries of chapters, or of all if none is named."""
    from companion.evidence.digest import behaviour_digest
    from companion.lab.canary.check import (
        compute_canaries,
        write_canaries,
        write_constants,
        write_operations,
    )
    from companion.lab.chapters import arm_version, chapter_numbers, package_of
    from companion.lab.sweep import worker_count

    for number in numbers or chapter_numbers():
        canaries = compute_canaries(number, workers=worker_count(), details=True)
        if not canaries:
            continue
        versions = {canary.arm: arm_version(number, canary.arm) for canary in canaries}
        write_canaries(number, canaries, versions, behaviour_digest(package_of(number)))
        write_operations(number, canaries)
        write_constants(number)
        sys.stdout.write(f"chapter {number}: {len(canaries)} canaries recorded\n")
    return 0


def _cover(seconds: float, numbers: list[str]) -> int:
    """Compare and write the coverage of chapters, or of all if none is named."""
    from companion.lab.canary.check import compare_coverage, write_coverage
    from companion.lab.chapters import chapter_numbers, load_chapter
    from companion.lab.sweep import worker_count

    for number in numbers or chapter_numbers():
        chapter = load_chapter(number)
        arms = {run.arm for run in chapter.plan("standard") if run.deterministic}
        rows = compare_coverage(number, arms, seconds=seconds, workers=worker_count())
        write_coverage(number, rows)
        missing = sum(bool(row.missing) for row in rows)
        sys.stdout.write(f"chapter {number}: {len(rows)} arms, {missing} with functions missing\n")
    return 0


def main(arguments: list[str]) -> int:
    """Do what the arguments say, and return the exit code."""
    if arguments[:1] == ["cover"]:
        return _cover(float(arguments[1]), arguments[2:])
    if arguments[:1] == ["record"]:
        return _record(arguments[1:])
    answers, sys.stdout = sys.stdout, sys.stderr  # what runs print must not mix with answers
    import warnings

    import torch
    from threadpoolctl import threadpool_limits

    from companion.lab import kernels
    from companion.lab.canary.check import canary_runs
    from companion.lab.chapters import load_chapter

    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
    torch.set_num_threads(1)
    kernels.install()
    action, number = arguments[:2]
    chapter = load_chapter(number)
    names = [arguments[2]] if action == "one" else json.load(sys.stdin)
    runs = canary_runs(number)
    status = 0
    with threadpool_limits(1):
        for name in names:
            run = runs[name]
            try:
                answer = _answer(run, chapter.execute, arguments)
            except Exception as error:
                answer = {"arm": name, "error": f"{type(error).__name__}: {error}"}
                status = 1
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
