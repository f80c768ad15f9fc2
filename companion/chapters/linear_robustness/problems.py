"""The problems of chapter 6: what every arm is given, and how problems are stacked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trainaug.data.binary import binary_problem
from trainaug.data.gaussian import gaussian_problem
from trainaug.methods.linear_robustness import NORMS, FourierNorm, Norm, signed_rows

__all__ = ["EXAMPLES", "PAIRS", "SHAPES", "Problem", "attacks_on", "load_problems", "stacked"]

PAIRS = {
    "digits": ((0, 1), (4, 9), (3, 8)),
    "fashion_mnist": ((1, 9), (0, 9), (1, 5), (3, 8)),
}
EXAMPLES = {"digits": 60, "fashion_mnist": 100}
SHAPES: dict[str, tuple[int, ...]] = {
    "gaussian": (100,),
    "digits": (8, 8),
    "fashion_mnist": (28, 28),
}


class Problem(NamedTuple):
    """A two-class problem as tensors; the test part may be empty."""

    name: str
    X: Tensor
    y: Tensor
    X_test: Tensor
    y_test: Tensor


def load_problems(config: dict[str, Any], seed: int) -> list[Problem]:
    """Draw the problems that a run's configuration names."""
    data = config["data"]
    if data == "gaussian":
        drawn = [(f"n={n}", gaussian_problem(n, 100, seed=seed)) for n in config["sizes"]]
        empty = torch.zeros(0, 100, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
        return [
            Problem(name, torch.from_numpy(X), torch.from_numpy(y), *empty)
            for name, (X, y) in drawn
        ]
    problems = []
    for pair in PAIRS[data]:
        X, y, X_test, y_test = map(
            torch.from_numpy, binary_problem(data, pair, n=EXAMPLES[data], seed=seed)
        )
        problems.append(Problem(f"{pair[0]}/{pair[1]}", X, y, X_test, y_test))
    return problems


def attacks_on(data: str) -> tuple[Norm, ...]:
    """The attack norms of a data set's exact solutions.

    The Fourier l1 ball is left out for 28x28 pictures, where the second solver takes ten seconds.
    """
    fourier = FourierNorm("linf", SHAPES[data])
    if data == "fashion_mnist":
        return (*NORMS, fourier)
    return (*NORMS, fourier, FourierNorm("l1", SHAPES[data]))


def stacked(problems: Sequence[Problem]) -> tuple[Tensor, Tensor]:
    """Signed rows of all problems, padded to ``(P, N, D)``, and the mask of real rows."""
    rows = [signed_rows(problem.X, problem.y) for problem in problems]
    lengths = torch.tensor([len(Z) for Z in rows])
    Z = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # (P, N, D)
    return Z, torch.arange(Z.shape[1]) < lengths.unsqueeze(1)
