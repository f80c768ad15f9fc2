"""Timings of the attacks: a Fourier step against a plain one."""

from __future__ import annotations

import json
import statistics
import time
from typing import Any

import torch

from trainaug.methods.attacks.balls import AttackNorm, _ball
from trainaug.methods.attacks.pgd import _STEP_SWEEPS, _Attack
from trainaug.training.networks import SmallCNN

PAIR: tuple[tuple[AttackNorm, float], ...] = (("linf", 0.03), ("fourier_linf", 0.3))  # with eps


def fourier_step_against_linf(pairs: int = 40) -> dict[str, Any]:
    """Time one step of Fourier PGD against one of plain linf PGD, on one thread.

    A step is the gradient, the steepest direction and the projections on ball and box (0, 1).
    Inputs are a random batch of 128 pictures of Fashion-MNIST's size; the SmallCNN is untrained.

    Returns:
        Seconds of one step of each kind in ``pairs`` interleaved pairs, the ratios Fourier / linf,
        and their median under ``ratio``.
    """
    generator = torch.Generator().manual_seed(0)
    model = SmallCNN(10, generator).eval()
    x = torch.rand(128, 1, 28, 28, generator=generator)
    y = torch.randint(10, (128,), generator=generator)
    seconds: dict[str, list[float]] = {"linf": [], "fourier_linf": []}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(pairs + 1):
            for norm, eps in PAIR:
                attack = _Attack(model, x, y, _ball(x, norm, eps, None), (0.0, 1.0), None)
                delta = attack.sweep(attack.ball.draw(x, generator), _STEP_SWEEPS)
                start = time.perf_counter()
                attack.sweep(attack.step(delta, eps / 4), _STEP_SWEEPS)
                seconds[norm].append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    linf, fourier = seconds["linf"][1:], seconds["fourier_linf"][1:]  # the first pair warms up
    ratios = [f / p for f, p in zip(fourier, linf, strict=True)]
    return {
        "linf_seconds": linf,
        "fourier_seconds": fourier,
        "ratios": ratios,
        "ratio": statistics.median(ratios),
    }


if __name__ == "__main__":
    print(json.dumps({"fourier_step_against_linf": fourier_step_against_linf()}, indent=1))
