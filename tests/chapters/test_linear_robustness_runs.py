"""Chapter 6: what the runs of every arm must obey, on small problems."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from companion.chapters.linear_robustness.arms import (
    ADVERSARIAL,
    CLASSIFIERS,
    EXACT,
    NETWORKS,
    REGULARISED,
    descent_arm,
)
from companion.chapters.linear_robustness.descent import (
    CoordinateDescent,
    Descent,
    GradientDescent,
    run_descent,
)
from companion.chapters.linear_robustness.exact import Exact
from companion.chapters.linear_robustness.numbers import problem_names
from companion.chapters.linear_robustness.problems import (
    ProblemSettings,
    attacks_on,
    load_problems,
    log_spaced,
)
from companion.evidence.ledger import load_ledger
from companion.evidence.store import Store, canonical_json
from companion.lab.arms import Settings
from companion.lab.chapters import EXECUTE, functions_of, load_chapter
from companion.lab.conditions import conditions_of
from companion.lab.sweep import run_sweep
from companion.paths import CLAIMS
from trainaug.methods.linear_robustness import dual

CHAPTER = load_chapter("06")
DATA = ("gaussian", "digits", "fashion_mnist")
SEED = 1000
Results = Mapping[str, Mapping[str, Any]]


def small(settings: Settings) -> Settings:
    """Settings of the canary, with every size of the Gaussian problems that a claim reads."""
    tiny = settings.tiny()
    if not isinstance(tiny, ProblemSettings) or tiny.data != "gaussian":
        return tiny
    assert isinstance(settings, ProblemSettings)
    sizes = settings.sizes if len(settings.sizes) < 4 else (3, 10, 25, 50)
    tiny = replace(tiny, sizes=sizes)
    # the rates are fitted from step 1000 on
    return replace(tiny, steps=2000) if isinstance(tiny, Descent) else tiny


SMALL = {name: small(arm.complete(CHAPTER.chosen)) for name, arm in CHAPTER.arms.items()}
DESCENTS = {name: each for name, each in SMALL.items() if isinstance(each, Descent)}


def compute(arm: str, settings: Settings, seed: int = SEED) -> Mapping[str, Any]:
    return CHAPTER.arms[arm].run(settings, seed).as_record()


@pytest.fixture(scope="module")
def results() -> Results:
    return {arm: compute(arm, settings) for arm, settings in SMALL.items()}


def test_curves_of_a_run_are_short_and_equally_long(results):
    for arm, result in results.items():
        canonical_json(result)  # refuses NaN
        # a spectrum is over ranks, everything else over the steps
        lengths = {len(c) for name, c in result["curves"].items() if not name.endswith("spectrum")}
        assert len(lengths) <= 1, arm
        assert max(lengths, default=0) <= 30, arm


# --- exact solutions and descents -----------------------------------------------------------------


@pytest.mark.parametrize("data", DATA)
def test_exact_solutions_are_what_they_should_be(results, data):
    metrics = results[EXACT[data]]["metrics"]
    settings = Exact()
    for name in problem_names(metrics):
        for attack in attacks_on(data):
            at = f"{name}/{attack}"
            # two solvers agree, and no point flips before eps* but some does behind it
            assert metrics[f"{at}/gap"] < 1e-5
            assert metrics[f"{at}/solver_difference"] < 1e-5
            assert metrics[f"{at}/eps_star"] <= metrics[f"{at}/upper"] * (1 + 1e-9)
            assert metrics[f"{at}/train_error"] == 0
            assert not any(metrics[f"{at}/error_at/{f}"] for f in settings.fractions)
            assert metrics[f"{at}/error_at/{settings.just_above}"] > 0
            if data != "gaussian":
                plain = metrics[f"{at}/test_error"]
                attacked = [metrics[f"{at}/test_error_under/{each}"] for each in attacks_on(data)]
                assert 0 <= plain <= min(attacked)
                assert max(attacked) <= 1
        # the l2 ball lies between the other two, in pixels and, by Parseval, in frequencies
        radii = [metrics[f"{name}/{attack}/eps_star"] for attack in ("linf", "l2", "l1")]
        assert radii == sorted(radii)
        assert metrics[f"{name}/fourier_linf/eps_star"] <= radii[1]
        assert metrics.get(f"{name}/fourier_l1/eps_star", math.inf) >= radii[1]


@pytest.mark.parametrize("data", DATA)
def test_proved_bounds_enclose_what_both_solvers_say(results, data):
    metrics = results[EXACT[data]]["metrics"]
    for name in problem_names(metrics):
        for attack in attacks_on(data):
            at = f"{name}/{attack}"
            lower, upper = metrics[f"{at}/proved_lower"], metrics[f"{at}/proved_upper"]
            assert lower <= metrics[f"{at}/eps_star"] * (1 + 1e-12), at
            assert metrics[f"{at}/eps_star"] <= upper * (1 + 1e-12), at
            # the second solver is inexact: its own point may fall short, but never exceed
            assert metrics[f"{at}/second"] <= upper * (1 + 1e-12), at
            assert metrics[f"{at}/second"] >= lower * (1 - 1e-5), at
            width = metrics[f"{at}/proved_width"]
            assert 0 <= width < 1e-5, at
            assert width == pytest.approx(upper / lower - 1, abs=1e-11), at


@pytest.mark.parametrize("arm", DESCENTS)
def test_bounds_enclose_the_radius_at_every_recorded_step(results, arm):
    settings, result = DESCENTS[arm], results[arm]
    exact = results[EXACT[settings.data]]["metrics"]
    predicted = dual(settings.weight_norm)
    steps = result["curves"]["step"]
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1]) == (10, settings.steps)
    for problem in load_problems(settings, SEED):
        name = problem.name
        eps = exact[f"{name}/{predicted}/eps_star"]
        lower, upper = (result["curves"][f"{name}/{bound}"] for bound in ("lower", "upper"))
        # curves keep six digits, the solvers are good to 1e-5
        assert max(lower) <= eps * (1 + 2e-5)
        assert min(upper) >= eps * (1 - 2e-5)
        # the last point of the curve is the metric
        radius = result["metrics"][f"{name}/{predicted}/radius@{settings.steps}"]
        assert max(radius, 0) == pytest.approx(max(lower[-1], 0), rel=1e-5)
        assert result["metrics"][f"{name}/upper"] == pytest.approx(min(upper), rel=1e-5)


def test_the_two_rules_give_different_paths(results):
    for optimiser in ("coordinate", "gradient", "sign"):
        scaled, constant = (
            results[arm]["curves"]["n=10/lower"]
            for arm in (f"gaussian_{optimiser}", f"gaussian_{optimiser}_constant")
        )
        assert scaled != constant


def test_step_size_and_seed_change_the_result(results):
    plain = results["digits_coordinate"]["metrics"]
    assert results["digits_coordinate_step050"]["metrics"] != plain
    other = compute("digits_coordinate", SMALL["digits_coordinate"], SEED + 1)
    assert other["metrics"] != plain


@pytest.mark.system
@pytest.mark.skipif(os.name == "nt", reason="process groups")
def test_descents_of_several_seeds_together_have_the_bytes_of_single_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINAUG_WORKERS", "1")
    monkeypatch.delenv("BACKEND", raising=False)
    arms = [descent_arm(optimiser, "gaussian") for optimiser in ("coordinate", "gradient", "sign")]
    arms.append(descent_arm("coordinate", "digits"))
    runs = [run for run in CHAPTER.plan("quick") if run.arm in arms]
    assert all(run.together for run in runs)
    together, alone = Store("quick", tmp_path / "together"), Store("quick", tmp_path / "alone")
    code = CHAPTER.code_digest
    run_sweep(runs, EXECUTE, together, code)
    run_sweep([replace(run, together=False) for run in runs], EXECUTE, alone, code)
    for run in runs:
        conditions = conditions_of(run, code)
        assert canonical_json(together.read(run, conditions)) == canonical_json(
            alone.read(run, conditions)
        )
    shared = {
        (run.arm, together.provenance(run, conditions_of(run, code))["wall_seconds"])
        for run in runs
    }
    assert len(shared) == len(arms), "the seeds of an arm were not computed in one call"


@pytest.mark.parametrize("steps", [100, 400, 9_999, 10_000, 40_000, 1_000_000])
def test_recorded_steps_go_from_10_to_the_last_one(steps):
    recorded = log_spaced(steps, 28)
    assert recorded == sorted(set(recorded))
    assert (recorded[0], recorded[-1]) == (10, steps)
    assert len(recorded) <= 28


def test_the_published_number_of_steps_is_noted_where_a_run_is_longer():
    assert CoordinateDescent().noted == {10_000, 40_000}
    assert CoordinateDescent(steps=100).noted == {100}


@pytest.mark.parametrize("optimiser", ["coordinate", "gradient", "sign"])
def test_padding_does_not_change_a_problem(results, optimiser):
    """n = 3 is padded to 50 rows in the stack; alone it is not."""
    arm = descent_arm(optimiser, "gaussian")
    alone = compute(arm, replace(DESCENTS[arm], sizes=(3,)))
    for name, value in alone["metrics"].items():
        assert results[arm]["metrics"][name] == pytest.approx(value, rel=1e-9), name
    for name, curve in alone["curves"].items():
        assert results[arm]["curves"][name] == pytest.approx(curve, rel=2e-6), name


# --- other sources of bias ------------------------------------------------------------------------


def below_exact(results: Results, data: str, radii: Mapping[str, float], attack: str = "") -> None:
    """Refuse a radius above the exact one; keys are problem and attack, the latter if not given."""
    exact = results[EXACT[data]]["metrics"]
    assert radii
    for at, radius in radii.items():
        name = f"{at}/{attack}" if attack else at
        assert radius <= exact[f"{name}/eps_star"] * (1 + 1e-5), at


@pytest.mark.parametrize(
    ("data", "arm"), [(data, arm) for arms in NETWORKS.values() for data, arm in arms.items()]
)
def test_networks_stay_below_the_exact_radius(results, data, arm):
    metrics, curves = results[arm]["metrics"], results[arm]["curves"]
    networks = sorted({name.rsplit("/", 1)[0] for name in metrics if name.endswith("/active")})
    for at in networks:
        problem = at.split("/depth=")[0]
        radii = {
            f"{problem}/{attack}": metrics[f"{at}/{attack}/radius"]
            for attack in ("l2", "linf", "fourier_linf")
        }
        below_exact(results, data, radii)
        assert curves[at][-1] == pytest.approx(radii[f"{problem}/fourier_linf"], rel=1e-5)
        assert 0 < metrics[f"{at}/active"] <= 1
        # the cost exists exactly for a net that separates
        assert (f"{at}/quasi_norm" in metrics) == (metrics[f"{at}/l2/radius"] > 0)
        spectrum = curves[f"{at}/spectrum"]
        assert spectrum[0] == 1
        assert spectrum == sorted(spectrum, reverse=True)
        assert spectrum[-1] >= 0


@pytest.mark.parametrize("data", REGULARISED)
def test_regularised_solutions_stay_below_the_exact_radius(results, data):
    metrics = results[REGULARISED[data]]["metrics"]
    for name, radius in metrics.items():
        at, _, strength = name.partition("/radius@")
        if strength:
            below_exact(results, data, {at: radius})
            assert metrics[f"{at}/residual@{strength}"] >= 0
            assert metrics[f"{at}/lambda_max"] > 0


@pytest.mark.parametrize("data", ADVERSARIAL)
def test_adversarial_training_stays_below_the_exact_radius(results, data):
    result = results[ADVERSARIAL[data]]
    for name, radius in result["metrics"].items():
        problem, _, fraction = name.partition("/radius@")
        below_exact(results, data, {problem: radius}, "linf")
        assert result["curves"][f"{problem}/{fraction}"][-1] == pytest.approx(radius, rel=1e-5)


@pytest.mark.parametrize("arm", CLASSIFIERS.values())
def test_pictures_are_attacked_in_every_band(results, arm):
    metrics = results[arm]["metrics"]
    energy = [value for name, value in metrics.items() if name.startswith("energy/")]
    assert sum(energy) == pytest.approx(1, abs=1e-6)
    assert min(energy) >= 0
    # shares of the attacked pictures
    images = SMALL[arm].images
    for name, value in metrics.items():
        if not name.startswith("energy/"):
            assert 0 <= value <= 1
            assert round(images * value) == pytest.approx(images * value)


# --- problems, settings, formulas -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "shapes"),
    [
        ("gaussian", [(3, 100), (12, 100)]),
        ("digits", [(60, 64)] * 3),
        ("fashion_mnist", [(100, 784)] * 4),
    ],
)
def test_problems_depend_on_the_seed_and_have_the_stated_sizes(data, shapes):
    settings = Exact(data=data, sizes=(3, 12))
    one, again, other = (load_problems(settings, seed) for seed in (1000, 1000, 1001))
    assert [tuple(problem.X.shape) for problem in one] == shapes
    for a, b, c in zip(one, again, other, strict=True):
        assert a.X.equal(b.X)
        assert not a.X.equal(c.X)
        assert set(a.y.tolist()) == {-1.0, 1.0}
        assert len(a.X_test) == len(a.y_test)
        assert (len(a.y_test) > 0) == (data != "gaussian")


def test_unknown_data_are_named():
    with pytest.raises(ValueError, match="'mnist'"):
        run_descent(GradientDescent(data="mnist"), 0)


@pytest.mark.parametrize("arm", SMALL)
def test_settings_come_back_from_a_record(arm):
    settings = SMALL[arm]
    written = json.loads(canonical_json({name: getattr(settings, name) for name in vars(settings)}))
    assert type(settings).from_config(written) == settings


def test_a_smaller_budget_shortens_what_has_steps():
    whole, tenth = CHAPTER.plan("standard"), CHAPTER.plan("standard", {"budget": 0.1})
    for one, other in zip(whole, tenth, strict=True):
        if one.arm in CLASSIFIERS.values():
            assert other.config["epochs"] < one.config["epochs"]
        elif "steps" in one.config:
            assert other.config["steps"] == one.config["steps"] / 10
        else:
            assert other.config == one.config


def test_a_descent_without_an_arm_is_refused():
    assert descent_arm("coordinate", "digits") == "digits_coordinate"
    assert descent_arm("coordinate", "digits", 0.5) == "digits_coordinate_step050"
    with pytest.raises(KeyError, match=r"step_size=0\.75"):
        descent_arm("coordinate", "digits", 0.75)


def formulas() -> Sequence[Any]:
    return [
        (claim.id, formula)
        for claim in load_ledger(CLAIMS / "06.yaml")
        for part in (*claim.parts, *claim.beside)
        for formula in part.formulas
    ]


def test_the_ledger_reads_what_the_runs_write(results):
    head = {"chapter": "06", "seed": SEED, "data": ""}
    records = [{**head, "arm": arm, **result} for arm, result in results.items()]
    for claim, formula in formulas():
        if "(10000," in formula.text:
            # 10 000 steps are not reached: nothing to read
            with pytest.raises(KeyError, match="radius@10000"):
                formula.evaluate(records, functions_of("06"))
        elif ", 100, 100)" in formula.text:
            with pytest.raises(KeyError, match="at least 100"):
                formula.evaluate(records, functions_of("06"))
        else:
            value = formula.evaluate(records, functions_of("06"))
            # forty proximal steps: not every path has converged
            assert math.isfinite(value) or (claim == "lin.4" and math.isnan(value)), formula.text
