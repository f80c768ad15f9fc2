"""Chapter 6: numbers on schedules, penalties, nets, adversarial training and pictures."""

from __future__ import annotations

import math
from typing import Any

import pytest

from companion.chapters.linear_robustness import estimands as e
from companion.chapters.linear_robustness import numbers
from companion.chapters.linear_robustness.adversarial import FRACTIONS
from companion.chapters.linear_robustness.penalty import STRENGTHS
from companion.evidence.ledger import load_ledger
from companion.evidence.store import Record
from companion.lab.chapters import functions_of
from companion.paths import CLAIMS

FORMULAS = {  # "lin.7/1/0": by claim, part (those beside come last) and setting
    f"{claim.id}/{i}/{k}": formula
    for claim in load_ledger(CLAIMS / "06.yaml")
    if claim.id not in ("lin.1", "lin.2", "lin.6")
    for i, part in enumerate((*claim.parts, *claim.beside))
    for k, formula in enumerate(part.formulas)
}

EPS = {"linf": 0.5, "l2": 2.0, "l1": 4.0, "fourier_linf": 1.0, "fourier_l1": 3.0}
OWN = {"coordinate": "linf", "gradient": "l2", "sign": "l1"}
PROBLEMS = {"gaussian": ("n=10", "n=25", "n=50"), "digits": ("0/1", "4/9", "3/8")}
STEPS = [10, 100, 1000, 1_000_000]
RATIOS = {0.0: 0.3, 0.5: 0.5, 0.8: 0.7, 0.9: 0.8, 0.95: 0.75, 0.99: 0.6, 1.05: 0.9}
DEPTHS = {1: 0.5, 2: 0.9, 3: 0.6, 4: 0.4}


def lower(attack: str, gap: Any) -> list[float]:
    """Radii with the gap wanted from step 1000 on; before, which is not fitted, none at all."""
    return [EPS[attack] * (1 - gap(t)) if t >= 1000 else 0.0 for t in STEPS]


def path_gap(strength: float) -> float:
    """0.1 at 1e-2 and, by one over the logarithm, 0.04 at 1e-5."""
    return 0.1 * math.log(100) / math.log(1 / strength)


def picture_metrics(energy: tuple[float, ...], accuracy: dict[float, list[float]]) -> dict:
    metrics = {f"energy/band={i}": share for i, share in enumerate(energy)}
    for eps, values in accuracy.items():
        metrics |= {f"fourier_linf/{eps:g}/band={i}": value for i, value in enumerate(values)}
        metrics |= {f"fourier_linf/{eps:g}/all": 0.1, f"fourier_linf/{eps:g}/box": 0.2}
    return metrics


def record(arm: str, metrics: dict, curves: dict | None = None) -> Record:
    head = {"chapter": "06", "seed": 1000, "data": "d", "arm": arm}
    return {**head, "metrics": metrics, "curves": curves or {}}


def hand_made() -> dict[str, Record]:
    """All records of one seed, by arm; coordinate descent's ablation comes first."""
    arm = "digits_coordinate_step050"
    ablation = {f"{p}/linf/radius@10000": 0.001 for p in PROBLEMS["digits"]}
    actual: dict[str, Record] = {arm: record(arm, ablation)}

    def add(arm: str, metrics: dict, curves: dict | None = None) -> None:
        actual[arm] = record(arm, metrics, curves)

    for data, problems in PROBLEMS.items():
        exact = {f"{p}/{attack}/eps_star": eps for p in problems for attack, eps in EPS.items()}
        add(f"{data}_max_margin", exact)
        for optimiser, alone in OWN.items():
            metrics = {f"{p}/{alone}/radius@10000": 0.8 * EPS[alone] for p in problems}
            for name, gap in (
                (f"{data}_{optimiser}", lambda t: 100 / t),
                (f"{data}_{optimiser}_constant", lambda t: 0.5 / log(t)),
            ):
                curves = {"step": STEPS} | {f"{p}/lower": lower(alone, gap) for p in problems}
                add(name, metrics, curves)
        paths = {}
        for p in problems[:1] if data == "gaussian" else problems:
            for attack in numbers.PENALTIES:
                for s in STRENGTHS:
                    paths[f"{p}/{attack}/radius@{s:g}"] = EPS[attack] * (1 - path_gap(s))
                    paths[f"{p}/{attack}/residual@{s:g}"] = 0.1
        add(f"{data}_regularised", paths)
        nets = {
            f"{p}/depth={d}/{attack}/radius": share * EPS[attack]
            for p in problems
            for d, share in DEPTHS.items()
            for attack in ("l2", "fourier_linf")
        }
        add(f"{data}_convolutional", nets)
        add(f"{data}_dense", {f"{p}/depth=2/fourier_linf/radius": 0.7 for p in problems})
        attacked = [p for p in problems if p != "n=25"]
        trained = {f"{p}/radius@{f:g}": 0.5 * RATIOS[f] for p in attacked for f in FRACTIONS}
        add(f"{data}_adversarial", trained)
    falling = {0.05: [0.6, 0.7, 0.8, 0.9], 0.1: [0.5, 0.6, 0.7, 0.8], 0.2: [0.1, 0.2, 0.3, 0.4]}
    add("fashion_cnn", picture_metrics((0.2, 0.6, 0.1, 0.1), falling))
    add("fashion_mlp", picture_metrics((0.4, 0.3, 0.2, 0.1), falling))
    return actual


log = math.log


def value(name: str, changes: dict[str, dict[str, Any]] | None = None) -> float:
    """A number of the ledger after changing metrics, or curves where the name is one."""
    records = hand_made()
    for key, new in (changes or {}).items():
        for metric, changed in new.items():
            part = "curves" if isinstance(changed, list) else "metrics"
            assert metric in records[key][part], metric
            records[key][part][metric] = changed
    return FORMULAS[name].evaluate(records.values(), functions_of("06"))


# between t = 10^3 and 10^6 the logarithm doubles
CONSTANT_POWER = -log(2) / log(1000)
BY_HAND = {
    # exponents of t and of log t; the gaps are 100 / t and 0.5 / log t
    "lin.3/0/0": CONSTANT_POWER - (-1.0),
    "lin.3/1/0": -1.0,
    "lin.3/2/0": 0.0,
    # Gaussian data and digits: rise of the path in percent, and its exponent
    **{f"lin.4/0/{setting}": 6.0 for setting in range(2)},
    **{f"lin.4/1/{setting}": 0.0 for setting in range(2)},
    "lin.4/2/0": 100 * (path_gap(0.1) - path_gap(1e-3)),
    **{f"lin.5/0/{setting}": -10.0 for setting in range(2)},
    **{f"lin.5/1/{setting}": log(0.9 / 0.7) for setting in range(2)},
    "lin.5/2/0": log(0.9 / 0.6),
    # a radius of 0.8 against 0.99, 0.5 and 1.05
    **{f"lin.7/0/{setting}": 10.0 for setting in range(2)},
    **{f"lin.7/1/{setting}": 20.0 for setting in range(2)},
    **{f"lin.7/2/{setting}": -20.0 for setting in range(2)},
    "lin.7/3/0": 50.0,  # the best radius below eps* is 0.9 of it
    "lin.7/4/0": 0.0,  # 0.8 against 0.8
    "lin.8/0/0": 20.0,
    "lin.8/1/0": 0.6,
    "lin.8/2/0": 0.0,
    "lin.8/3/0": 1.0,
}

# name of the number, changes by record, value by hand
CHANGES: list[tuple[str, dict[str, dict[str, Any]], float]] = [
    # one of six gaps: three optimisers, n = 10 and 25
    (
        "lin.3/0/0",
        {"gaussian_sign_constant": {"n=25/lower": lower("l1", lambda t: 0.1)}},
        5 / 6 * CONSTANT_POWER + 1,
    ),
    (
        "lin.3/2/0",
        {"gaussian_sign_constant": {"n=25/lower": lower("l1", lambda t: 0.5 / log(t) ** 2)}},
        -1 / 6,
    ),
    (
        "lin.3/1/0",
        {"gaussian_coordinate": {"n=10/lower": lower("linf", lambda t: t**-0.5)}},
        -(5 + 0.5) / 6,
    ),
    # the other schedule, the other sizes and the early steps are left aside
    ("lin.3/1/0", {"gaussian_sign_constant": {"n=25/lower": lower("l1", lambda t: 0.1)}}, -1.0),
    ("lin.3/1/0", {"gaussian_coordinate": {"n=50/lower": [0.1] * 4}}, -1.0),
    (
        "lin.3/1/0",
        {"gaussian_sign": {"n=10/lower": [3.0, 1.0, *lower("l1", lambda t: 100 / t)[2:]]}},
        -1.0,
    ),
    # beyond eps*, which six digits allow, the gap counts as 1e-6: from 0.1 down by 10^-5 in 10^3
    (
        "lin.3/1/0",
        {"gaussian_sign": {"n=10/lower": [0.0, 0.0, 3.6, 4.000001]}},
        -(5 + 5 / 3) / 6,
    ),
    # twelve paths on digits, three problems under four attacks, and four on Gaussian data
    ("lin.4/0/1", {"digits_regularised": {"3/8/l1/radius@1e-05": 4 * 0.89}}, -1.0),
    ("lin.4/0/1", {"digits_regularised": {"3/8/l1/radius@0.001": 0.0}}, 6.0),
    ("lin.4/0/0", {"digits_regularised": {"3/8/l1/radius@1e-05": 4 * 0.89}}, 6.0),
    ("lin.4/0/0", {"gaussian_regularised": {"n=10/l1/radius@0.01": 4 * 0.95}}, 1.0),
    (
        "lin.4/1/1",
        {
            "digits_regularised": {
                f"0/1/l2/radius@{s:g}": 2 - 2 * log(100) / log(1 / s) ** 2 for s in STRENGTHS
            }
        },
        1 / 12,
    ),
    (
        "lin.4/1/0",
        {
            "gaussian_regularised": {
                f"n=10/l2/radius@{s:g}": 2 - 2 * log(100) / log(1 / s) ** 2 for s in STRENGTHS
            }
        },
        1 / 4,
    ),
    # strengths above 1e-2 are not fitted
    ("lin.4/1/1", {"digits_regularised": {"0/1/l2/residual@0.1": 5.0}}, 0.0),
    ("lin.4/1/1", {"digits_regularised": {"0/1/l2/residual@0.001": 0.101}}, math.nan),
    ("lin.4/0/0", {"gaussian_regularised": {"n=10/linf/residual@0.01": 0.101}}, math.nan),
    ("lin.4/0/0", {"gaussian_regularised": {"n=10/linf/residual@1e-05": 0.101}}, math.nan),
    (
        "lin.4/2/0",
        {"gaussian_regularised": {"n=10/l1/radius@0.1": 4 * (0.9 - path_gap(0.1))}},
        100 * (path_gap(0.1) + 0.1 / 4 - path_gap(1e-3)),
    ),
    ("lin.4/2/0", {"gaussian_regularised": {"n=10/l1/residual@0.1": 0.101}}, math.nan),
    # means over three problems of a kind
    ("lin.5/0/0", {"gaussian_convolutional": {"n=10/depth=2/fourier_linf/radius": 0.6}}, -20.0),
    ("lin.5/0/0", {"digits_convolutional": {"3/8/depth=2/fourier_linf/radius": 0.6}}, -10.0),
    ("lin.5/0/0", {"gaussian_convolutional": {"n=10/depth=2/l2/radius": 0.1}}, -10.0),
    ("lin.5/0/1", {"digits_convolutional": {"3/8/depth=2/fourier_linf/radius": 0.6}}, -20.0),
    ("lin.5/1/0", {"gaussian_dense": {"n=10/depth=2/fourier_linf/radius": 0.1}}, log(0.9 / 0.5)),
    ("lin.5/1/1", {"digits_dense": {"3/8/depth=2/fourier_linf/radius": 0.1}}, log(0.9 / 0.5)),
    # another depth is better on one of the six
    (
        "lin.5/2/0",
        {"digits_convolutional": {"3/8/depth=1/fourier_linf/radius": 0.95}},
        (5 * log(1.5) + log(0.9 / 0.95)) / 6,
    ),
    ("lin.5/2/0", {"digits_convolutional": {"3/8/depth=4/fourier_linf/radius": 0.5}}, log(1.5)),
    # a net that separates nothing counts as a hundredth
    (
        "lin.5/2/0",
        {"gaussian_convolutional": {"n=50/depth=2/fourier_linf/radius": -3.0}},
        (5 * log(1.5) + log(0.01 / 0.6)) / 6,
    ),
    # two Gaussian problems and three pairs
    ("lin.7/0/0", {"gaussian_adversarial": {"n=10/radius@0.99": 0.4}}, 0.0),
    ("lin.7/0/1", {"digits_adversarial": {"0/1/radius@0.8": 0.2}}, 0.0),
    ("lin.7/1/0", {"gaussian_adversarial": {"n=10/radius@0.5": 0.5}}, -5.0),
    ("lin.7/1/1", {"digits_adversarial": {"3/8/radius@0.5": 0.4}}, 10.0),
    ("lin.7/2/0", {"gaussian_adversarial": {"n=50/radius@1.05": -0.05}}, 30.0),
    ("lin.7/2/1", {"digits_adversarial": {"4/9/radius@1.05": 0.3}}, -10.0),
    # 1.05 and 0 are no radius below eps*
    ("lin.7/3/0", {"digits_adversarial": {"0/1/radius@0.99": 0.45}}, 52.0),
    ("lin.7/3/0", {"digits_adversarial": {"0/1/radius@1.05": 0.49}}, 50.0),
    ("lin.7/3/0", {"digits_adversarial": {"0/1/radius@0": 0.4}}, 40.0),
    ("lin.7/4/0", {"digits_adversarial": {"4/9/radius@0.5": 0.48}}, -log(0.96 / 0.8) / 5),
    ("lin.7/4/0", {"gaussian_coordinate": {"n=10/linf/radius@10000": 0.5}}, -log(0.8) / 5),
    ("lin.7/4/0", {"digits_coordinate_step050": {"4/9/linf/radius@10000": 0.4}}, 0.0),
    ("lin.8/0/0", {"fashion_mlp": {"energy/band=3": 0.7}}, -10.0),
    ("lin.8/0/0", {"fashion_cnn": {"energy/band=3": 0.7}}, 30.0),
    ("lin.8/1/0", {"fashion_cnn": {"energy/band=3": 0.7}}, 0.7),
    ("lin.8/1/0", {"fashion_mlp": {"energy/band=3": 0.7}}, 0.6),
    ("lin.8/2/0", {"fashion_cnn": {"fourier_linf/0.1/band=2": 0.83}}, 3.0),
    ("lin.8/2/0", {"fashion_cnn": {"fourier_linf/0.2/band=0": 0.55}}, 5.0),
    ("lin.8/2/0", {"fashion_cnn": {"fourier_linf/0.2/all": 0.55}}, 0.0),
    ("lin.8/2/0", {"fashion_mlp": {"fourier_linf/0.2/band=0": 0.55}}, 0.0),
    # two neighbours change places: 1 - 6 * 2 / (4 * 15)
    ("lin.8/3/0", {"fashion_cnn": {"fourier_linf/0.1/band=0": 0.9}}, 0.8),
    # the lowest band becomes the least harmful: 1 - 6 * 12 / (4 * 15)
    (
        "lin.8/3/0",
        {"fashion_cnn": {f"fourier_linf/{eps}/band=0": 1.0 for eps in numbers.EPS}},
        -0.2,
    ),
    ("lin.8/3/0", {"fashion_mlp": {"fourier_linf/0.1/band=0": 0.9}}, 1.0),
]


@pytest.mark.parametrize("name", FORMULAS)
def test_a_number_equals_the_value_by_hand(name):
    assert value(name) == pytest.approx(BY_HAND[name], abs=1e-9)
    backwards = list(hand_made().values())[::-1]
    assert FORMULAS[name].evaluate(backwards, functions_of("06")) == pytest.approx(
        BY_HAND[name], abs=1e-9
    )


@pytest.mark.parametrize(
    ("name", "changes", "by_hand"),
    CHANGES,
    ids=[f"{n}-{next(iter(c))}-{next(iter(next(iter(c.values()))))}" for n, c, _ in CHANGES],
)
def test_a_number_follows_a_changed_record(name, changes, by_hand):
    assert value(name, changes) == pytest.approx(by_hand, abs=1e-9, nan_ok=True)


def test_rise_of_a_path_is_missing_wherever_a_solve_is():
    """Whichever of the paths has not converged."""
    for attack in numbers.PENALTIES:
        changes = {"digits_regularised": {f"3/8/{attack}/residual@1e-05": 0.101}}
        assert math.isnan(value("lin.4/0/1", changes)), attack


def test_numbers_of_the_notebook_by_hand():
    records = list(hand_made().values())
    assert e.path_ratio("digits", "3/8", "l1", 1e-5)(records) == pytest.approx(0.96)
    assert e.network_value("convolutional", 3, "digits", "3/8", "l2")(records) == pytest.approx(0.6)
    assert e.adversarial_ratio("digits", "3/8", 0.95)(records) == pytest.approx(0.75)
    assert e.band_accuracy("cnn", 0.1, "band=2")(records) == pytest.approx(70)
    assert e.band_accuracy("mlp", 0.2, "box")(records) == pytest.approx(20)
    assert e.energy_share("mlp", 1)(records) == 0.3
