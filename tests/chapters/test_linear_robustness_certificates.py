"""Chapter 6: numbers of the claims on exact solutions and descents, on records made by hand."""

from __future__ import annotations

import math

import pytest

from companion.chapters.linear_robustness import arms, networks, numbers, penalty, pictures
from companion.chapters.linear_robustness import estimands as e
from companion.chapters.linear_robustness.adversarial import FRACTIONS
from companion.chapters.linear_robustness.descent import OPTIMISERS, Descent
from companion.chapters.linear_robustness.exact import Exact
from companion.chapters.linear_robustness.problems import attacks_on
from companion.evidence.claims import judge
from companion.evidence.ledger import load_ledger
from companion.evidence.store import Record
from companion.evidence.tables import judged_numbers
from companion.lab.chapters import functions_of, load_chapter
from companion.paths import CLAIMS
from trainaug.methods.linear_robustness import dual

LEDGER = {claim.id: claim for claim in load_ledger(CLAIMS / "06.yaml")}
FORMULAS = {  # "lin.2/1/0": by claim, part (those beside come last) and setting
    f"{name}/{i}/{k}": formula
    for name, claim in LEDGER.items()
    for i, part in enumerate((*claim.parts, *claim.beside))
    for k, formula in enumerate(part.formulas)
}
FORMULAS["certificate"] = LEDGER["lin.1"].parts[0].certifying
EXCESS = "lin.1/3/0"

SETTINGS = Exact()
EARLY = 10_000
DESCENTS = {
    arm.name: arm.settings
    for arm in load_chapter("06").arms.values()
    if isinstance(arm.settings, Descent)
}

OWN = {"coordinate": "linf", "gradient": "l2", "sign": "l1"}
PROBLEMS = {"gaussian": ("n=10", "n=100"), "digits": ("3/8",), "fashion_mnist": ("1/9",)}
EPS = {"l1": 4.0, "l2": 2.0, "linf": 0.5}
FOURIER_EPS = {"fourier_linf": 1.0, "fourier_l1": 3.0}
STEPS = {"gaussian": 40_000, "digits": 40_000, "fashion_mnist": 10_000}
AWAY = 0.5  # rho / eps* of every optimiser that is not the predicted one


def value(name: str, records: list[Record]) -> float:
    """A number of the ledger."""
    return FORMULAS[name].evaluate(records, functions_of("06"))


def hand_made() -> list[Record]:
    """All records of one seed: ratio 0.9 on the diagonal, 0.5 elsewhere; at 10 000 steps of the
    longer runs 0.8 and 0.5."""
    records: list[Record] = []
    for data, problems in PROBLEMS.items():
        head = {"chapter": "06", "seed": 1000, "data": "d"}
        exact: dict[str, float] = {}
        for problem in problems:
            for attack in map(str, attacks_on(data)):
                eps, at = (EPS | FOURIER_EPS)[attack], f"{problem}/{attack}"
                exact |= {
                    f"{at}/eps_star": eps,
                    f"{at}/upper": eps * 1.01,
                    f"{at}/gap": 1e-7,
                    f"{at}/proved_lower": eps * 0.99,
                    f"{at}/proved_upper": eps * 1.02,
                    f"{at}/second": eps * 0.995,
                    f"{at}/proved_width": 3e-8,
                    f"{at}/solver_difference": 2e-7,
                    f"{at}/train_error": 0.0,
                    f"{at}/error_at/{SETTINGS.just_above}": 0.1,
                }
                exact |= {f"{at}/error_at/{fraction}": 0.0 for fraction in SETTINGS.fractions}
        records.append({**head, "arm": arms.EXACT[data], "metrics": exact})
        for optimiser, alone in OWN.items():
            metrics = {}
            for problem in problems:
                for attack, eps in EPS.items():
                    at = f"{problem}/{attack}/radius"
                    last = 0.9 if attack == alone else AWAY
                    metrics[f"{at}@{STEPS[data]}"] = last * eps
                    if STEPS[data] > EARLY:
                        early = 0.8 if attack == alone else AWAY
                        metrics[f"{at}@{EARLY}"] = early * eps
            curves = {"step": [10.0, float(STEPS[data])]}
            arm = arms.descent_arm(optimiser, data)
            records.append({**head, "arm": arm, "metrics": metrics, "curves": curves})
    # the ablation's runs must be left aside wherever the main comparison is meant
    digits = next(x for x in records if x["arm"] == "digits_coordinate")
    ablation = [
        {**digits, "arm": arm, "metrics": dict.fromkeys(digits["metrics"], 0.001)}
        for arm, row in DESCENTS.items()
        if row.step_size != 1
    ]
    return [*ablation, *records]


def changed(arm: str, **values: float) -> list[Record]:
    """The records with some metrics of one of them replaced."""
    records = hand_made()
    (record,) = (x for x in records if x["arm"] == arm)
    for name, value in values.items():
        assert name in record["metrics"], name
        record["metrics"][name] = value
    return records


BY_HAND = {
    "lin.1/0/0": 1e-7,  # gap of the solver
    "lin.1/1/0": 2e-7,  # difference of two solvers
    "lin.1/2/0": 3e-8,  # width of the enclosure
    EXCESS: 0.0,
    "lin.1/4/0": 0.0,  # problems that flip elsewhere
    "certificate": 0.0,
    # percent beyond the largest radius: Gaussian up to 50 and 100 examples, digits, Fashion-MNIST
    **{f"lin.2/0/{setting}": -10.0 for setting in range(4)},
    # log-ratio to the next best optimiser, of the same
    **{f"lin.2/1/{setting}": math.log(0.9 / 0.5) for setting in range(4)},
    # after 10 000 steps, at which Fashion-MNIST ends with 0.9
    "lin.2/2/0": -20.0,
    "lin.2/2/1": -20.0,
    "lin.2/3/0": math.log(0.8 / 0.5),
    "lin.6/0/0": 0.0,  # training error
    "lin.6/1/0": 0.0,  # the same under attack
    "lin.6/2/0": 0.0,  # problems that lose no point beyond the radius
}


@pytest.mark.parametrize("name", BY_HAND)
def test_a_number_equals_the_value_by_hand(name):
    for records in (hand_made(), hand_made()[::-1]):
        assert value(name, records) == pytest.approx(BY_HAND[name], abs=1e-12)


# name of the number, changed record, changed metrics, value by hand
CHANGES = [
    ("lin.2/0/0", "gaussian_sign", {"n=10/l1/radius@40000": 2.8}, -30.0),
    ("lin.2/0/0", "gaussian_sign", {"n=100/l1/radius@40000": 0.4}, -10.0),
    ("lin.2/0/1", "gaussian_sign", {"n=100/l1/radius@40000": 0.4}, -90.0),
    ("lin.2/0/2", "digits_coordinate", {"3/8/linf/radius@40000": 0.4}, -20.0),
    ("lin.2/0/3", "fashion_gradient", {"1/9/l2/radius@10000": 1.0}, -50.0),
    # another optimiser is better under this attack
    ("lin.2/1/0", "gaussian_sign", {"n=10/l2/radius@40000": 1.9}, math.log(0.9 / 0.95)),
    ("lin.2/1/0", "gaussian_sign", {"n=100/l2/radius@40000": 1.9}, math.log(1.8)),
    ("lin.2/1/1", "gaussian_sign", {"n=100/l2/radius@40000": 1.9}, math.log(0.9 / 0.95)),
    ("lin.2/1/2", "digits_gradient", {"3/8/linf/radius@40000": 0.45}, 0.0),
    ("lin.2/1/3", "fashion_sign", {"1/9/linf/radius@10000": 0.45}, 0.0),
    # a model that separates nothing has a negative radius
    ("lin.2/1/0", "gaussian_sign", {"n=10/l1/radius@40000": -1.0}, -math.log(100)),
    ("lin.2/2/0", "gaussian_sign", {"n=100/l1/radius@10000": 0.4}, -90.0),
    ("lin.2/2/1", "fashion_gradient", {"1/9/l2/radius@10000": 0.4}, -80.0),
    ("lin.2/2/1", "digits_gradient", {"3/8/l2/radius@10000": -0.4}, -120.0),
    ("lin.2/3/0", "gaussian_sign", {"n=10/l2/radius@10000": 1.9}, math.log(0.8 / 0.95)),
    ("lin.2/3/0", "gaussian_sign", {"n=10/l2/radius@40000": 1.9}, math.log(0.8 / 0.5)),
    ("lin.1/0/0", "digits_max_margin", {"3/8/l2/gap": 3e-4}, 3e-4),
    ("lin.1/0/0", "fashion_max_margin", {"1/9/fourier_linf/gap": 0.1}, 0.1),
    ("lin.1/1/0", "gaussian_max_margin", {"n=100/linf/solver_difference": 0.2}, 0.2),
    ("lin.1/2/0", "digits_max_margin", {"3/8/l1/proved_width": 4e-6}, 4e-6),
    ("lin.1/2/0", "gaussian_max_margin", {"n=10/fourier_l1/proved_width": 0.1}, 0.1),
    ("lin.1/2/0", "digits_max_margin", {"3/8/l1/proved_width": 1e-8}, 3e-8),
    # above eps*, still below the certified upper bound 1.01 eps*
    (EXCESS, "digits_gradient", {"3/8/l2/radius@40000": 2.01}, 0.005),
    ("certificate", "digits_gradient", {"3/8/l2/radius@40000": 2.01}, 0.0),
    ("certificate", "digits_sign", {"3/8/l2/radius@10000": 2.0402}, 0.01),
    (EXCESS, "gaussian_sign", {"n=100/linf/radius@40000": 0.55}, 0.1),
    ("lin.1/4/0", "digits_max_margin", {"3/8/l2/error_at/0.999": 0.02}, 1.0),
    ("lin.1/4/0", "digits_max_margin", {"3/8/l2/error_at/1.001": 0.0}, 1.0),
    ("lin.1/4/0", "digits_max_margin", {"3/8/l2/error_at/0.99": 0.02}, 0.0),
    ("lin.6/0/0", "fashion_max_margin", {"1/9/l1/train_error": 0.03}, 0.03),
    ("lin.6/1/0", "gaussian_max_margin", {"n=10/l1/error_at/0.25": 0.1}, 0.1),
    # three problems under five attacks, Fashion-MNIST under four
    ("lin.6/2/0", "digits_max_margin", {"3/8/l2/error_at/1.001": 0.0}, 1 / 19),
]


@pytest.mark.parametrize(
    ("name", "arm", "values", "by_hand"),
    CHANGES,
    ids=[f"{name}-{arm}-{next(iter(values))}" for name, arm, values, _ in CHANGES],
)
def test_a_number_follows_a_changed_record(name, arm, values, by_hand):
    assert value(name, changed(arm, **values)) == pytest.approx(by_hand, abs=1e-12)


def test_the_certificate_is_the_same_in_every_part():
    certificates = [part.certifying for part in LEDGER["lin.1"].parts]
    texts = {certificate.text for certificate in certificates if certificate}
    assert texts == {FORMULAS[EXCESS].text.replace("eps_star", "upper")}


def test_only_the_ablation_does_not_stand_in_for_the_main_run():
    kept = [x for x in hand_made() if x["arm"] != "digits_coordinate"]
    assert "digits_coordinate_step050" in {x["arm"] for x in kept}
    with pytest.raises(KeyError, match="no record of digits_coordinate'"):
        value("lin.2/1/2", kept)


def test_excess_counts_the_ablation_and_not_the_constant_schedule():
    """Every model on the log loss is compared, whatever its step size."""
    counted = {arm for arm, row in DESCENTS.items() if row.rule != "constant"}
    assert set(FORMULAS[EXCESS].arms) == counted | set(arms.EXACT.values())
    wide = changed("digits_coordinate_step050", **{"3/8/l2/radius@40000": 2.2})
    assert value(EXCESS, wide) == pytest.approx(0.1)


def test_no_problem_that_is_small_enough_counts_as_missing():
    exact, *runs = (
        next(x for x in hand_made() if x["arm"] == arm)
        for arm in ("gaussian_max_margin", *(f"gaussian_{name}" for name in OWN))
    )
    with pytest.raises(KeyError, match="at most 9 examples"):
        numbers.smallest_diagonal("end", exact, *runs, 9)


def test_constants_of_the_numbers_are_those_of_the_runs():
    assert {name: dual(kind) for name, kind in OPTIMISERS.items()} == numbers.OWN_ATTACKS
    assert SETTINGS.fractions == numbers.FRACTIONS
    rates = {each.sizes for each in DESCENTS.values() if each.rule == "constant"}
    assert rates == {numbers.RATE_SIZES}
    assert numbers.DEPTHS == networks.DEPTHS
    assert set(numbers.SMALL) <= set(penalty.STRENGTHS)
    assert tuple(f for f in FRACTIONS if 0 < f < 1) == numbers.BELOW
    assert (numbers.BANDS, numbers.EPS) == (pictures.BANDS, pictures.EPS)
    multiples = f"{SETTINGS.fractions[-1]}, {SETTINGS.just_above},"
    assert FORMULAS["lin.1/4/0"].text.startswith(f"flips_elsewhere({multiples}")
    assert FORMULAS["lin.6/2/0"].text.startswith(f"share_unharmed({SETTINGS.just_above},")
    assert {each.published_steps for each in DESCENTS.values()} == {EARLY}
    for name in ("lin.2/2/0", "lin.2/2/1", "lin.2/3/0", "lin.7/4/0"):
        assert f"({EARLY}," in FORMULAS[name].text


def test_numbers_of_the_notebook_by_hand():
    records = hand_made()
    assert e.ratio("sign", "l1", "gaussian", "n=10")(records) == pytest.approx(0.9)
    assert e.ratio("sign", "l2", "gaussian", "n=10")(records) == pytest.approx(0.5)
    assert e.matrices(records, "digits")["3/8"]["gradient", "l2"] == pytest.approx(0.9)
    assert e.ratio("sign", "l1", "gaussian", "n=10", at=10_000)(records) == pytest.approx(0.8)
    assert e.exact("gaussian", "n=10/l2/eps_star")(records) == 2.0
    rows = e.enclosures(records, [("digits", "3/8"), ("fashion_mnist", "1/9")])
    assert len(rows) == 5 + 4
    assert rows[1] == ("digits 3/8", "l2", 1.98, 2.04, 2.0, 1.99)
    assert rows[-1][:2] == ("fashion_mnist 1/9", "fourier_linf")
    assert numbers.problem_names(e.exact_metrics(records, "gaussian")) == ["n=10", "n=100"]


def test_numbers_that_decide_stand_under_their_parts():
    judged = judge(LEDGER["lin.2"], hand_made(), functions_of("06"), all_there_are=True)
    lines = judged_numbers(judged).splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [
        f"lin.2, {part.name}" for part in LEDGER["lin.2"].parts
    ]
    assert lines[1].startswith("  Gaussian, 3 to 50 examples: -10.00 percent")
    assert lines[-1].startswith("  four pairs of Fashion-MNIST: 44 %")  # 1 - 0.5 / 0.9
    exact = judge(LEDGER["lin.1"], hand_made(), functions_of("06"), all_there_are=True)
    assert "at most 1.0e-07 relative gap" in judged_numbers(exact)
