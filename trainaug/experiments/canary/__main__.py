"""Record canaries, or run some in this process, which then must be canonical.

``record [NN ...]`` computes all canaries of chapters in canonical children and writes what is
committed; ``run NN [--details]`` is such a child: it reads names as a JSON list and answers a JSON
line for each; ``one NN ARM`` prints the two hashes of one arm.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from typing import Any


def _compute(run: Any, execute: Any) -> dict[str, str]:
    """Return the hashes of one tiny run."""
    from trainaug.evidence.store import canonical_json
    from trainaug.experiments.canary.recorder import Trace, recording
    from trainaug.experiments.canary.sizes import patched

    trace = Trace()
    with patched(run), recording(trace):
        result = execute(run)
    trace.add("result", {name: value for name, value in result.items() if name != "curves"})
    record = canonical_json(run.head | result)
    return {
        "trace": trace.hexdigest(),
        "record": hashlib.sha256(record.encode()).hexdigest()[:16],
    }


def _details(run: Any, execute: Any) -> dict[str, list[str]]:
    """Return the operations that a tiny run calls and the functions that it enters."""
    from trainaug.experiments.canary.recorder import Operations, entered_functions
    from trainaug.experiments.canary.sizes import patched

    operations = Operations()
    with patched(run), entered_functions() as functions, operations:
        execute(run)
    return {"operations": sorted(operations.names), "functions": sorted(functions)}


def _record(numbers: list[str]) -> int:
    from trainaug.experiments.canary.check import (
        compute_canaries,
        write_canaries,
        write_operations,
    )
    from trainaug.evidence.digest import behaviour_digest
    from trainaug.experiments.chapters import TITLES
    from trainaug.experiments.defaults import arm_version
    from trainaug.experiments.sweep import worker_count

    for number in numbers or TITLES:
        canaries = compute_canaries(number, workers=worker_count(), details=True)
        if not canaries:
            continue
        versions = {canary.arm: arm_version(number, canary.arm) for canary in canaries}
        write_canaries(number, canaries, versions, behaviour_digest(number))
        write_operations(number, canaries)
        sys.stdout.write(f"chapter {number}: {len(canaries)} canaries recorded\n")
    return 0


def main(arguments: list[str]) -> int:
    """Do as the arguments say; a child answers on the real standard output alone."""
    if arguments[:1] == ["record"]:
        return _record(arguments[1:])
    answers, sys.stdout = sys.stdout, sys.stderr
    import warnings

    import torch
    from threadpoolctl import threadpool_limits

    from trainaug.experiments.canary.check import canary_runs
    from trainaug.experiments.canary.sizes import tiny_config
    from trainaug.experiments.chapters import load_chapter

    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
    torch.set_num_threads(1)
    action, number = arguments[:2]
    chapter = load_chapter(number)
    assert chapter is not None
    names = json.load(sys.stdin) if action == "run" else [arguments[2]]
    runs = canary_runs(number)
    status = 0
    with threadpool_limits(1):
        for name in names:
            tiny = replace(runs[name], config=tiny_config(runs[name]))
            try:
                answer: dict[str, Any] = {"arm": name} | _compute(tiny, chapter.execute)
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
