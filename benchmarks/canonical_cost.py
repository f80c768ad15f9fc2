"""What canonical mode costs: core-seconds of real runs in canonical mode and without it.

    python benchmarks/canonical_cost.py [--rounds N]

Each run is computed in fresh processes of both kinds, alternately, one at a time. The ratio of a
chapter, canonical over native, is that of the sums of its runs' medians. The outcome is written to
``results/bench/canonical_cost.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

from companion.evidence.store import write_atomic
from companion.lab.chapters import load_chapter
from companion.lab.sweep import child_environment
from companion.paths import RESULTS

# Arms that stand for their chapter: plain training and the method.
ARMS = {
    "01": ("vendor_max", "family_sum"),
    "02": ("speed_0_snooze", "speed_0_stratified", "digits_mlp_0"),
    "03": ("images_0_uniform", "svm_digits"),
    "04": ("fashion_mnist_delta_target", "digits_min_loss", "orders_mlp_lr005"),
    "05": ("fashion_100_erm", "digits_10_csa4"),
    "06": ("digits_coordinate", "gaussian_max_margin"),
}


def measure_here(number: str, arm: str) -> float:
    """Core-seconds of a run in this process, without those of imports and loading of data."""
    from dataclasses import replace

    from companion.evidence.canonical import is_canonical
    from companion.lab import kernels
    from companion.lab.canary.sizes import tiny_config
    from companion.lab.worker import compute

    if is_canonical():
        kernels.install()
    chapter = load_chapter(number)
    assert chapter is not None
    run = next(run for run in chapter.plan("standard") if run.arm == arm)
    # a tiny run of the arm first, which imports and loads what the timed run needs
    compute(replace(run, config=tiny_config(run)), chapter.execute)
    return compute(run, chapter.execute)[1]["core_seconds"]


def measure(number: str, arm: str, *, is_canonical: bool) -> float:
    """Core-seconds of a run in a new process, by `measure_here`."""
    answer = subprocess.run(
        [sys.executable, __file__, "--child", number, arm],
        env=child_environment(is_canonical=is_canonical),
        capture_output=True,
        text=True,
        check=True,
    )
    return float(answer.stdout.split()[-1])


def main() -> None:
    """Measure all chapters, or one run in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--child", nargs=2, metavar=("CHAPTER", "ARM"))
    arguments = parser.parse_args()
    if arguments.child:
        print(measure_here(*arguments.child))
        return
    chapters = {}
    for number, arms in ARMS.items():
        rows = {}
        for arm in arms:
            seconds: dict[bool, list[float]] = {False: [], True: []}
            for turn in range(2 * arguments.rounds):
                # native, canonical, canonical, native, so that a drift of the machine cancels
                kind = turn % 4 in (1, 2)
                seconds[kind].append(measure(number, arm, is_canonical=kind))
            native, canonical = (statistics.median(seconds[kind]) for kind in (False, True))
            rows[arm] = {"native": round(native, 2), "canonical": round(canonical, 2)}
            print(number, arm, rows[arm], flush=True)
        sums = [sum(row[kind] for row in rows.values()) for kind in ("canonical", "native")]
        chapters[number] = {"ratio": round(sums[0] / sums[1], 2), "runs": rows}
    path = RESULTS / "bench" / "canonical_cost.json"
    write_atomic(path, json.dumps(chapters, indent=1) + "\n")


if __name__ == "__main__":
    main()
