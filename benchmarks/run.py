"""Run every benchmark, write one JSON file, and compare it with the targets.

``python benchmarks/run.py`` measures and writes ``results/bench/benchmarks.json``; ``--check``
measures nothing and fails if a stored figure misses its target. Measure on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attacks
import autoassist
import beside
import cascading_sum
import gradient_clustering
import hard_negatives
import linear_robustness
import ordering
import samplers
import torch

from companion.evidence.store import write_atomic
from companion.paths import RESULTS

OUT = RESULTS / "bench" / "benchmarks.json"


@dataclass(frozen=True)
class Benchmark:
    """One number and its target: at most ``target``, or at least that if ``larger`` is better.

    ``field`` names the number in what ``run`` returns.
    """

    name: str
    run: Callable[[], dict[str, Any]]
    field: str
    target: float
    unit: str
    larger: bool = False

    def meets(self, measured: float) -> bool:
        return measured >= self.target if self.larger else measured <= self.target


BENCHMARKS = (
    Benchmark(
        "21 problems x 3 norms x 10 000 steps, one call, one thread",
        linear_robustness.batched_descent,
        "seconds",
        30.0,
        "s",
    ),
    Benchmark(
        "one call against 63 calls, one problem and one norm each, 2000 steps",
        linear_robustness.batched_against_solo,
        "ratio",
        5.0,
        "x",
        larger=True,
    ),
    Benchmark(
        "Fourier-linf PGD step against a plain linf step, CNN, B = 128",
        attacks.fourier_step_against_linf,
        "ratio",
        1.3,
        "x",
    ),
    Benchmark(
        "full complex Fourier program against the half spectrum, n = 100, d = 100",
        lambda: linear_robustness.half_spectrum("gaussian"),
        "ratio",
        3.0,
        "x",
        larger=True,
    ),
    Benchmark(
        "full complex Fourier program against the half spectrum, n = 100, d = 784",
        lambda: linear_robustness.half_spectrum("fashion_mnist"),
        "ratio",
        3.0,
        "x",
        larger=True,
    ),
    Benchmark(
        "enclosure of one Fashion-MNIST pair, n = 100, slowest attack",
        linear_robustness.enclosure_seconds,
        "seconds",
        30.0,
        "s",
    ),
    Benchmark(
        "max of hinges against the sum, forward and backward, B = 128",
        lambda: hard_negatives.max_against_sum(128),
        "ratio",
        1.05,
        "x",
    ),
    Benchmark(
        "max of hinges against pytorch-metric-learning, B = 128, d = 1024",
        lambda: hard_negatives.max_against_library(128),
        "ratio",
        0.5,
        "x",
    ),
    Benchmark(
        "max of hinges against the sum, forward and backward, B = 1024",
        lambda: hard_negatives.max_against_sum(1024),
        "ratio",
        1.05,
        "x",
    ),
    Benchmark(
        "max of hinges against pytorch-metric-learning, B = 1024, d = 1024",
        lambda: hard_negatives.max_against_library(1024),
        "ratio",
        0.5,
        "x",
    ),
    Benchmark(
        "max of hinges, share of a training step of chapter 1, B = 128",
        hard_negatives.share_of_a_step,
        "share",
        0.05,
        "of the step",
    ),
    Benchmark(
        "chunked max of hinges, memory added at B = 16 384, d = 256",
        hard_negatives.chunked_memory,
        "gibibytes",
        2.0,
        "GiB",
    ),
    Benchmark(
        "a step chosen by min_loss among 8 candidates against a plain step, MLP, digits",
        lambda: ordering.scored_step("digits", "mlp"),
        "ratio",
        3.0,
        "x",
    ),
    Benchmark(
        "a step chosen by min_loss among 8 candidates against a plain step, MLP, Fashion-MNIST",
        lambda: ordering.scored_step("fashion_mnist", "mlp"),
        "ratio",
        3.0,
        "x",
    ),
    Benchmark(
        "the same, conv net, Fashion-MNIST",
        lambda: ordering.scored_step("fashion_mnist", "cnn"),
        "ratio",
        3.0,
        "x",
    ),
    Benchmark(
        "8 trial steps one after another against side by side, MLP, digits",
        lambda: ordering.trial_steps("digits", "mlp"),
        "ratio",
        2.0,
        "x",
        larger=True,
    ),
    Benchmark(
        "8 trial steps one after another against side by side, MLP, Fashion-MNIST",
        lambda: ordering.trial_steps("fashion_mnist", "mlp"),
        "ratio",
        2.0,
        "x",
        larger=True,
    ),
    Benchmark(
        "8 trial steps one after another against side by side, conv net, digits",
        lambda: ordering.trial_steps("digits", "cnn"),
        "ratio",
        2.0,
        "x",
        larger=True,
    ),
    Benchmark(
        "720 orders one after another against the tree side by side, MLP",
        lambda: ordering.all_orders_at_once("mlp"),
        "ratio",
        10.0,
        "x",
        larger=True,
    ),
    Benchmark(
        "720 orders one after another against the tree side by side, conv net with BatchNorm",
        lambda: ordering.all_orders_at_once("cnn_bn"),
        "ratio",
        10.0,
        "x",
        larger=True,
    ),
    Benchmark(
        "mixes of two against torchvision's MixUp, B = 128, 3 x 32 x 32",
        lambda: cascading_sum.against_mixup((3, 32, 32)),
        "ratio",
        1.05,
        "x",
    ),
    Benchmark(
        "mixes of two against torchvision's MixUp, B = 128, 1 x 28 x 28",
        lambda: cascading_sum.against_mixup((1, 28, 28)),
        "ratio",
        1.05,
        "x",
    ),
    Benchmark(
        "mixes of eight against mixes of two, B = 128, 3 x 32 x 32",
        lambda: cascading_sum.eight_against_two((3, 32, 32)),
        "ratio",
        1.5,
        "x",
    ),
    Benchmark(
        "mixes of eight against mixes of two, B = 128, 1 x 28 x 28",
        lambda: cascading_sum.eight_against_two((1, 28, 28)),
        "ratio",
        1.5,
        "x",
    ),
    Benchmark(
        "mixes of four, share of a training step, ResNet-8, B = 128, 3 x 32 x 32",
        cascading_sum.share_of_a_step,
        "share",
        0.02,
        "of the step",
    ),
    Benchmark(
        "rows that a cascade passes through the model against drawn examples over K, ratio - 1",
        cascading_sum.rows_of_a_cascade,
        "gap",
        0.0,
        "",
    ),
    Benchmark(
        "import trainaug beyond import torch",
        lambda: linear_robustness.import_seconds("trainaug"),
        "median_seconds",
        0.3,
        "s",
    ),
    Benchmark(
        "import trainaug.methods.linear_robustness beyond import torch",
        lambda: linear_robustness.import_seconds("trainaug.methods.linear_robustness"),
        "median_seconds",
        0.3,
        "s",
    ),
    Benchmark(
        "open chapter 6 in its default settings",
        linear_robustness.open_chapter,
        "seconds",
        30.0,
        "s",
    ),
    Benchmark(
        "assigning a batch to clusters of gradients against forward and backward, MLP, B = K = 128",
        lambda: gradient_clustering.assignment("mlp"),
        "ratio",
        1.35,
        "x",
    ),
    Benchmark(
        "the same, ResNet-8 without BatchNorm, 28x28",
        lambda: gradient_clustering.assignment("resnet8"),
        "ratio",
        1.6,
        "x",
    ),
    Benchmark(
        "numbers of materialised gradients against those that clustering keeps, MLP",
        gradient_clustering.memory,
        "ratio",
        10.0,
        "x",
        larger=True,
    ),
    Benchmark(
        "a pass of clustering against an epoch of training, MLP",
        lambda: gradient_clustering.full_pass("mlp"),
        "ratio",
        2.0,
        "x",
    ),
    Benchmark(
        "a pass of clustering against an epoch of training, ResNet-8 without BatchNorm",
        lambda: gradient_clustering.full_pass("resnet8"),
        "ratio",
        2.0,
        "x",
    ),
    Benchmark(
        "exponent of a pass's seconds in the examples, MLP",
        lambda: gradient_clustering.growth("examples"),
        "exponent",
        1.15,
        "",
    ),
    Benchmark(
        "exponent of the distances' seconds in the clusters, MLP",
        lambda: gradient_clustering.growth("clusters"),
        "exponent",
        1.15,
        "",
    ),
    Benchmark(
        "an update with the asynchronous Assistant against the plain loader, B = 128",
        lambda: autoassist.step_against_plain(False),
        "ratio",
        1.10,
        "x",
    ),
    Benchmark(
        "share of the time that the Boss waits for the asynchronous Assistant",
        lambda: autoassist.step_against_plain(False),
        "waiting_share",
        0.05,
        "of the time",
    ),
    Benchmark(
        "an update with the synchronous Assistant against the plain loader, B = 128",
        lambda: autoassist.step_against_plain(True),
        "ratio",
        1.15,
        "x",
    ),
    Benchmark(
        "multiply-adds of the Assistant against the Boss's, 28x28 pictures",
        autoassist.assistant_share,
        "share",
        0.1,
        "of the Boss's",
    ),
    Benchmark(
        "a batch of 256 of 1 281 167 examples, slowest sampler that runs no model",
        samplers.slowest_batch,
        "milliseconds",
        0.2,
        "ms",
    ),
    *(
        Benchmark(f"{name}, upper end of 95 %", measure, "upper", target * beside.SLACK, "x")
        for name, (measure, target) in beside.TARGETS.items()
    ),
)


def run_all(out: Path = OUT) -> dict[str, Any]:
    """Measure everything and write ``out``.

    A benchmark that raises is written with its error and counts as missed.

    Returns:
        ``machine`` and ``benchmarks``, a list of rows with ``name``, ``measured``, ``target``,
        ``unit``, ``ok`` and ``details``.
    """
    rows = []
    for bench in BENCHMARKS:
        try:
            details = bench.run()
            measured = float(details[bench.field])
        except Exception as error:
            details = {"error": f"{type(error).__name__}: {error}"}
            measured = None
        rows.append(
            {
                "name": bench.name,
                "measured": measured,
                "target": bench.target,
                "larger_is_better": bench.larger,
                "unit": bench.unit,
                "ok": measured is not None and bench.meets(measured),
                "details": details,
            }
        )
    machine = {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    result = {"machine": machine, "benchmarks": rows}
    write_atomic(out, json.dumps(result, indent=1, sort_keys=True) + "\n")
    return result


def _processor() -> str:
    """Name of the processor's model; on Linux `platform` does not give it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def check(out: Path = OUT) -> list[str]:
    """Compare a written file with today's targets, without slack.

    Returns:
        One line for each target that is missed, has no measurement or could not run.

    Raises:
        FileNotFoundError: If nothing has been measured.
    """
    rows = {row["name"]: row for row in json.loads(out.read_text())["benchmarks"]}
    missed = []
    for bench in BENCHMARKS:
        measured = rows.get(bench.name, {}).get("measured")
        if measured is None:
            reason = rows.get(bench.name, {}).get("details", {}).get("error", "not measured")
            missed.append(f"{bench.name}: {reason}")
        elif not bench.meets(measured):
            sign = ">=" if bench.larger else "<="
            missed.append(
                f"{bench.name}: {measured:.3g} {bench.unit}, target {sign} {bench.target:g}"
            )
    return missed


def main() -> int:
    """Measure and print every benchmark, or check the stored figures; 1 if one misses a target."""
    parser = argparse.ArgumentParser(description="Run the benchmarks and store their figures.")
    parser.add_argument(
        "--check", action="store_true", help="compare the stored figures with their targets"
    )
    if parser.parse_args().check:
        if not OUT.is_file():
            print(f"no stored figures at {OUT}: run {Path(__file__).name} first", file=sys.stderr)
            return 1
        missed = check()
        for line in missed:
            print(line, file=sys.stderr)
        return bool(missed)
    for row in run_all()["benchmarks"]:
        measured = "failed" if row["measured"] is None else f"{row['measured']:.3g} {row['unit']}"
        target = f"{'>=' if row['larger_is_better'] else '<='} {row['target']:g}"
        print(f"{'ok' if row['ok'] else 'MISSED':6} {measured:>9} ({target:>6})  {row['name']}")
        if row["measured"] is None:
            print(f"       {row['details']['error']}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
