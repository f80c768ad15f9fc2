"""Record canaries, or run some in this process, which then must be canonical.

``record [NN ...]`` computes all canaries of chapters in canonical children and writes what is
committed; ``run NN [--details]`` is such a child: it reads names as a JSON list and answers a JSON
line for each. ``cover SECONDS [NN ...]`` compares the functions that an evidence run of every arm
of *standard* and its canary enter; its child is ``coverage NN --seconds S``. ``one NN ARM`` prints
the two hashes of one arm.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from typing import Any


def _compute(run: Any, execute: Any) -> dict[str, str]:
    """Return the hashes of one tiny run."""
    from companion.evidence.store import canonical_json
    from companion.lab.canary.recorder import Trace, recording
    from companion.lab.canary.sizes import tiny_data

    trace = Trace()
    with tiny_data(run), recording(trace):
        result = execute(run)
    trace.add("result", {name: value for name, value in result.items() if name != "curves"})
    record = canonical_json(result)
    return {
        "trace": trace.hexdigest(),
        "record": hashlib.sha256(record.encode()).hexdigest()[:16],
    }


def _details(run: Any, execute: Any) -> dict[str, list[str]]:
    """Return the operations that a tiny run calls and the functions that it enters."""
    from companion.lab.canary.recorder import Operations, entered_functions
    from companion.lab.canary.sizes import tiny_data

    operations = Operations()
    with tiny_data(run), entered_functions() as functions, operations:
        execute(run)
    return {"operations": sorted(operations.names), "functions": sorted(functions)}


def _coverage(run: Any, execute: Any, seconds: float) -> dict[str, Any]:
    """Return how many functions a run at full size enters, and which of them its canary does not.

    A run that takes more than so many core-seconds is broken off.
    """
    from companion.lab.canary.recorder import entered_functions
    from companion.lab.canary.sizes import tiny_config, tiny_data

    tiny = replace(run, config=tiny_config(run))
    with tiny_data(tiny), entered_functions() as in_canary:
        execute(tiny)
    with entered_functions(seconds) as in_evidence:
        execute(run)
    complete = "" not in in_evidence
    return {
        "evidence": len(in_evidence - {""}),
        "complete": complete,
        "missing": sorted(in_evidence - in_canary - {""}),
    }


def _record(numbers: list[str]) -> int:
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
    from companion.lab.canary.check import compare_coverage, write_coverage
    from companion.lab.chapters import chapter_numbers, load_chapter
    from companion.lab.sweep import worker_count

    for number in numbers or chapter_numbers():
        chapter = load_chapter(number)
        arms = {run.arm for run in chapter.plan("standard") if run.deterministic}
        rows = compare_coverage(number, arms, seconds=seconds, workers=worker_count())
        write_coverage(number, rows)
        missing = sum(bool(row["missing"]) for row in rows.values())
        sys.stdout.write(f"chapter {number}: {len(rows)} arms, {missing} with functions missing\n")
    return 0


def main(arguments: list[str]) -> int:
    """Do as the arguments say; a child answers on the real standard output alone."""
    if arguments[:1] == ["cover"]:
        return _cover(float(arguments[1]), arguments[2:])
    if arguments[:1] == ["record"]:
        return _record(arguments[1:])
    answers, sys.stdout = sys.stdout, sys.stderr
    import warnings

    import torch
    from threadpoolctl import threadpool_limits

    from companion.lab import kernels
    from companion.lab.canary.check import canary_runs
    from companion.lab.canary.sizes import tiny_config
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
            answer: dict[str, Any] = {"arm": name}
            tiny = replace(runs[name], config=tiny_config(runs[name]))
            try:
                if action == "coverage":
                    answer |= _coverage(runs[name], chapter.execute, float(arguments[3]))
                else:
                    answer |= _compute(tiny, chapter.execute)
                if "--details" in arguments:
                    answer |= _details(tiny, chapter.execute)
            except Exception as error:
                answer = {"arm": name, "error": f"{type(error).__name__}: {error}"}
                status = 1
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
