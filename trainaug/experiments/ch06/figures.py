r"""Figures of chapter 6."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from trainaug.evidence.plots import PALETTE, band, figure, matrix
from trainaug.evidence.store import Record
from trainaug.experiments.ch06.estimands import exact_metrics, matrices, problem_names
from trainaug.experiments.ch06.runs import FRACTIONS, JUST_ABOVE, OPTIMISERS
from trainaug.methods.linear_robustness import PlainNorm, dual

__all__ = [
    "ATTACK_LABELS",
    "OPTIMISER_LABELS",
    "README_PANELS",
    "certificate_bands",
    "optimiser_attack_matrix",
    "robust_error_curves",
    "step_size_ablation",
    "test_robustness_matrix",
    "toy_balls",
]

OPTIMISER_LABELS = {
    "coordinate": "coordinate descent",
    "gradient": "gradient descent",
    "sign": "sign descent",
}
ATTACK_LABELS = {"linf": r"$\ell_\infty$", "l2": r"$\ell_2$", "l1": r"$\ell_1$"}
# the order of the optimisers: coordinate, gradient, sign
ATTACKS: tuple[PlainNorm, ...] = ("linf", "l2", "l1")
COLOURS = dict(zip(OPTIMISERS, PALETTE, strict=False))
DATA_LABELS = {
    "gaussian": "Gaussian",
    "digits": "digits",
    "fashion_mnist": "Fashion-MNIST",
}


README_PANELS = (("gaussian", "n=10"), ("digits", "3/8"), ("fashion_mnist", "1/9"))


def _seeds(records: Sequence[Record]) -> list[list[Record]]:
    by_seed: dict[int, list[Record]] = {}
    for record in records:
        by_seed.setdefault(record["seed"], []).append(record)
    return [by_seed[seed] for seed in sorted(by_seed)]


def certificate_bands(records: Sequence[Record], panels: Sequence[tuple[str, str]]) -> Figure:
    r"""Both bounds of $\varepsilon^*$ along training, relative to the exact $\varepsilon^*$.

    Args:
        records: All records of the chapter.
        panels: Data set and problem of each panel, in two rows if more than three.
    """
    columns = min(3, len(panels))
    drawn, axes = figure(columns, -(-len(panels) // columns), height=3.0)
    for axis, (data, problem) in zip(axes, panels, strict=True):
        for name, kind in OPTIMISERS.items():
            lower, upper = [], []
            for seed in _seeds(records):
                eps = exact_metrics(seed, data)[f"{problem}/{dual(kind)}/eps_star"]
                run = next(
                    r
                    for r in seed
                    if r["arm"] == name
                    and r["config"]["data"] == data
                    and r["config"]["step_size"] == 1.0
                )
                steps = run["curves"]["step"]
                lower.append([v / eps for v in run["curves"][f"{problem}/lower"]])
                upper.append([v / eps for v in run["curves"][f"{problem}/upper"]])
            label = f"{OPTIMISER_LABELS[name]} ({ATTACK_LABELS[dual(kind)]})"
            band(axis, steps, lower, label=label, colour=COLOURS[name])
            band(axis, steps, upper, label="_", colour=COLOURS[name], style="--")
        axis.axhline(1.0, color="k", linewidth=0.8)
        axis.set_xscale("log")
        axis.set_ylim(0.5, 1.5)
        axis.set_title(f"{DATA_LABELS[data]}, {problem}", fontsize=10)
        axis.set_xlabel("steps")
    for axis in axes[::columns]:
        axis.set_ylabel(r"bounds of $\varepsilon^*$ / exact $\varepsilon^*$")
    axes[0].legend(fontsize=8, loc="upper right")
    return drawn


def optimiser_attack_matrix(
    records: Sequence[Record], problems: Sequence[tuple[str, str]]
) -> Figure:
    r"""Mean over seeds of $\rho/\varepsilon^*$ for each optimiser under each attack."""
    drawn, axes = figure(len(problems), height=2.6)
    for number, (axis, (data, problem)) in enumerate(zip(axes, problems, strict=True)):
        found = [dict(matrices(seed, data))[problem] for seed in _seeds(records)]
        values = [
            [float(np.mean([m[name, attack] for m in found])) for attack in ATTACKS]
            for name in OPTIMISERS
        ]
        rows = list(OPTIMISER_LABELS.values()) if number == 0 else [""] * len(OPTIMISERS)
        columns = [ATTACK_LABELS[attack] for attack in ATTACKS]
        matrix(axis, values, rows=rows, columns=columns, digits=3)
        axis.set_title(f"{DATA_LABELS[data]}, {problem}", fontsize=10)
        axis.set_xlabel("attack norm")
    return drawn


def robust_error_curves(records: Sequence[Record]) -> Figure:
    r"""Robust training error of the exact solutions against the radius of the attack."""
    drawn, axes = figure(3, height=2.8)
    shown = [f for f in (*FRACTIONS, JUST_ABOVE) if f >= 0.9]
    for axis, data in zip(axes, DATA_LABELS, strict=True):
        for attack, colour, dashes in zip(ATTACKS, PALETTE, ("-", "--", ":"), strict=False):
            curves = [
                [exact[f"{problem}/{attack}/error_at/{f}"] * 100 for f in shown]
                for exact in (exact_metrics(seed, data) for seed in _seeds(records))
                for problem in problem_names(exact)
            ]
            label = f"{ATTACK_LABELS[attack]} attack"
            band(axis, shown, curves, label=label, colour=colour, style=f"{dashes}o")
        axis.axvline(1.0, color="k", linewidth=0.8)
        axis.set_xlim(0.9885, 1.0015)
        axis.set_xticks([0.99, 0.995, 1.0])
        axis.set_title(DATA_LABELS[data], fontsize=10)
        axis.set_xlabel(r"attack radius / $\varepsilon^*$")
    axes[0].set_ylabel("training examples flipped (%)")
    axes[0].legend(fontsize=8, loc="upper left")
    return drawn


def test_robustness_matrix(records: Sequence[Record], data: str) -> Figure:
    r"""Test error (%) of the exact solutions, clean and attacked at half of $\varepsilon^*$."""
    drawn, axes = figure(1, height=2.4)
    kinds = [f"test_error_under/{attack}" for attack in ATTACKS]
    values = np.zeros((3, 4))
    for i, trained in enumerate(ATTACKS):
        for j, kind in enumerate(("test_error", *kinds)):
            values[i, j] = 100 * np.mean(
                [
                    exact[f"{problem}/{trained}/{kind}"]
                    for exact in (exact_metrics(seed, data) for seed in _seeds(records))
                    for problem in problem_names(exact)
                ]
            )
    matrix(
        axes[0],
        values,
        rows=[f"robust to {ATTACK_LABELS[a]}" for a in ATTACKS],
        columns=["no attack", *(ATTACK_LABELS[a] for a in ATTACKS)],
        limits=(0.0, 100.0),
        digits=1,
    )
    title = rf"{DATA_LABELS[data]}: test error (%) at $\frac{{1}}{{2}}\varepsilon^*$"
    axes[0].set_title(title, fontsize=10)
    return drawn


def step_size_ablation(records: Sequence[Record]) -> Figure:
    r"""Ratio reached by coordinate descent on digits for multiples of the step $1/B^2$."""
    problems = problem_names(exact_metrics(_seeds(records)[0], "digits"))
    drawn, axes = figure(len(problems), height=2.8)
    runs = [r for r in records if r["arm"] == "coordinate" and r["config"]["data"] == "digits"]
    sizes = sorted({run["config"]["step_size"] for run in runs})
    eps = {seed[0]["seed"]: exact_metrics(seed, "digits") for seed in _seeds(records)}
    for axis, problem in zip(axes, problems, strict=True):
        for size, colour in zip(sizes, PALETTE, strict=False):
            chosen = [run for run in runs if run["config"]["step_size"] == size]
            curves = [
                np.array(run["curves"][f"{problem}/lower"])
                / eps[run["seed"]][f"{problem}/linf/eps_star"]
                for run in chosen
            ]
            label = rf"$\alpha = {size:g}/B^2$"
            band(axis, chosen[0]["curves"]["step"], curves, label=label, colour=colour)
        axis.axhline(1.0, color="k", linewidth=0.8)
        axis.set_xscale("log")
        axis.set_ylim(0.9, 1.01)
        axis.set_title(f"digits, {problem}", fontsize=10)
        axis.set_xlabel("steps")
    axes[0].set_ylabel(r"$\rho\,/\,\varepsilon^*$, $\ell_\infty$ attack")
    axes[0].legend(fontsize=8, loc="lower right")
    return drawn


def toy_balls(solutions: dict[str, tuple[Sequence[float], float]], rows: np.ndarray) -> Figure:
    r"""The plane toy: signed points, the separating line and the largest ball around each point.

    Args:
        solutions: Weights and radius of the exact solution for each attack.
        rows: Signed points $y_i x_i$, shape ``(N, 2)``.
    """
    drawn, axes = figure(3, height=3.0)
    angle = np.linspace(0, 2 * np.pi, 200)
    circle = np.stack([np.cos(angle), np.sin(angle)], 1)  # (200, 2)
    order = {"linf": np.inf, "l2": 2, "l1": 1}
    for axis, attack, colour in zip(axes, ATTACKS, PALETTE, strict=False):
        w, eps = np.asarray(solutions[attack][0]), solutions[attack][1]
        ball = circle / np.linalg.norm(circle, order[attack], axis=1, keepdims=True)
        for point in rows:
            axis.fill(*(point + eps * ball).T, color=colour, alpha=0.25)
        axis.plot(rows[:, 0], rows[:, 1], "k.", markersize=6)
        reach = np.array([-9.0, 9.0])
        along = np.array([-w[1], w[0]]) / np.linalg.norm(w)
        axis.plot(reach * along[0], reach * along[1], color="k", linewidth=1)
        axis.set_xlim(-2.5, 7.5)
        axis.set_ylim(-2.5, 5.5)
        axis.set_aspect("equal")
        axis.set_title(rf"{ATTACK_LABELS[attack]}: $\varepsilon^* = {eps:.3f}$", fontsize=10)
        axis.set_xlabel("feature 1")
    axes[0].set_ylabel("feature 2")
    return drawn
