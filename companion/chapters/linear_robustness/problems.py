"""The problems of chapter 6: what every run on them states, and how they are drawn and stacked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from companion.lab.arms import Settings
from companion.lab.device import run_device
from trainaug.data.binary import binary_problem
from trainaug.data.gaussian import gaussian_problem
from trainaug.data.registry import content_hash
from trainaug.methods.linear_robustness import NORMS, FourierNorm, Norm, signed_rows
from trainaug.roots import log10

__all__ = [
    "EXAMPLES",
    "PAIRS",
    "Problem",
    "ProblemSettings",
    "Stepped",
    "attacks_on",
    "load_on_device",
    "load_problems",
    "log_spaced",
    "shape_of",
    "stacked",
]

Pairs = tuple[tuple[int, int], ...]

PAIRS: dict[str, Pairs] = {
    "digits": ((0, 1), (4, 9), (3, 8)),
    "fashion_mnist": ((1, 9), (0, 9), (1, 5), (3, 8)),
}
TINY_PAIRS: dict[str, Pairs] = {"digits": ((0, 1), (3, 8)), "fashion_mnist": ((1, 9),)}
EXAMPLES = {"digits": 60, "fashion_mnist": 100}
SHAPES = {"digits": (8, 8), "fashion_mnist": (28, 28)}


@dataclass(frozen=True, kw_only=True)
class ProblemSettings(Settings):
    """Two-class problems of one data set, which one run treats together.

    Attributes:
        data: ``gaussian``, ``digits`` or ``fashion_mnist``.
        sizes: Numbers of examples of the Gaussian problems.
        features: Dimension of the Gaussian problems.
        pairs: Classes of the other problems; by default those of `PAIRS`.
        examples: Training examples of each pair of classes; by default as in `EXAMPLES`.
    """

    data: str = "gaussian"
    sizes: tuple[int, ...] = (3, 6, 10, 12, 25, 50, 100)
    features: int = 100
    pairs: Pairs | None = None
    examples: int | None = None

    @property
    def data_hash(self) -> str:
        return content_hash(self.data)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an example."""
        return shape_of(self.data, self.features)

    def tiny(self) -> Self:
        return replace(
            self,
            sizes=self.sizes[:: max(1, len(self.sizes) - 1)][:2],
            pairs=TINY_PAIRS.get(self.data),
            examples=None if self.data == "gaussian" else 24,
        )


@dataclass(frozen=True, kw_only=True)
class Stepped(ProblemSettings):
    """`ProblemSettings` of runs that take steps.

    Attributes:
        steps: Updates of every model.
    """

    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")  # in float64

    steps: int

    def shortened(self, share: float) -> Self:
        return replace(self, steps=max(10, round(self.steps * share)))

    def tiny(self) -> Self:
        return replace(super().tiny(), steps=240)


class Problem(NamedTuple):
    """A two-class problem as tensors; the test part may be empty."""

    name: str
    X: Tensor
    y: Tensor
    X_test: Tensor
    y_test: Tensor

    def to(self, device: torch.device) -> Problem:
        """Return the same problem on a device."""
        parts = (self.X, self.y, self.X_test, self.y_test)
        return Problem(self.name, *(part.to(device) for part in parts))


def load_problems(settings: ProblemSettings, seed: int) -> list[Problem]:
    """Draw the problems of a run.

    Raises:
        ValueError: If the data set is unknown.
    """
    data, features = settings.data, settings.features
    problems: list[Problem] = []
    if data == "gaussian":
        for n in settings.sizes:
            X, y = map(torch.from_numpy, gaussian_problem(n, features, seed=seed))
            problems.append(Problem(f"n={n}", X, y, X.new_zeros(0, features), y.new_zeros(0)))
        return problems
    if data not in PAIRS:
        raise ValueError(f"data must be one of gaussian, {', '.join(PAIRS)}, got {data!r}")
    examples = EXAMPLES[data] if settings.examples is None else settings.examples
    for pair in PAIRS[data] if settings.pairs is None else settings.pairs:
        drawn = binary_problem(data, pair, n=examples, seed=seed)
        problems.append(Problem(f"{pair[0]}/{pair[1]}", *map(torch.from_numpy, drawn)))
    return problems


def load_on_device(settings: ProblemSettings, seed: int) -> list[Problem]:
    """Draw the problems of a run, and put them on its device."""
    device = run_device()
    return [problem.to(device) for problem in load_problems(settings, seed)]


def shape_of(data: str, features: int = 100) -> tuple[int, ...]:
    """Shape of an example of a data set; ``features`` is the dimension of Gaussian ones."""
    return (features,) if data == "gaussian" else SHAPES[data]


def attacks_on(data: str, features: int = 100) -> tuple[Norm, ...]:
    """The attack norms of a data set's exact solutions.

    The Fourier l1 ball is left out for 28x28 pictures, where the second solver takes ten seconds.
    """
    shape = shape_of(data, features)
    fourier = FourierNorm("linf", shape)
    if data == "fashion_mnist":
        return (*NORMS, fourier)
    return (*NORMS, fourier, FourierNorm("l1", shape))


def stacked(problems: Sequence[Problem]) -> tuple[Tensor, Tensor]:
    """Stack the signed examples $y_i x_i$ of all problems.

    Returns:
        The examples, padded to ``(P, N, D)``, and the mask of those that are real, ``(P, N)``.
    """
    rows = [signed_rows(problem.X, problem.y) for problem in problems]
    lengths = torch.tensor([len(Z) for Z in rows], device=rows[0].device)
    Z = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # (P, N, D)
    return Z, torch.arange(Z.shape[1], device=Z.device) < lengths.unsqueeze(1)


def log_spaced(steps: int, points: int) -> list[int]:
    """At most ``points`` steps from 10 to ``steps``, evenly spread on a logarithmic axis."""
    last = log10(torch.tensor(float(steps))).item()
    spaced = torch.logspace(1, last, points, dtype=torch.float64)
    chosen = {round(step) for step in spaced.tolist()} | {steps}
    return sorted(step for step in chosen if step <= steps)
