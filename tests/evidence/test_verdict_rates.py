"""How often the rule is wrong: the table of the docs, and what was promised of it."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from companion.paths import BENCHMARKS

spec = importlib.util.spec_from_file_location("verdict_rates", BENCHMARKS / "verdict_rates.py")
assert spec is not None
assert spec.loader is not None
rates = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rates)
DRAWS = 4000
PROMISED = {  # truth, n: percent of holds / no effect / no gain / opposite / open
    ("0", 6): (1, 22, 28, 0, 49),
    ("0", 12): (1, 77, 11, 1, 11),
    ("0", 24): (0, 99, 0, 1, 0),
    ("w/2", 8): (7, 20, 3, 0, 70),
    ("w/2", 24): (38, 53, 0, 0, 9),
    ("w", 6): (20, 2, 2, 0, 78),
    ("w", 12): (64, 2, 2, 0, 33),
    ("w", 48): (100, 0, 0, 0, 0),
    ("2w", 8): (95, 0, 0, 0, 5),
}


@pytest.mark.parametrize("law", rates.LAWS)
def test_laws_have_mean_zero_and_standard_deviation_one(law):
    x = rates.LAWS[law](np.random.default_rng(0), (400_000, 1))
    assert abs(x.mean()) < 0.01
    assert x.std() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("truth", "n"), PROMISED)
def test_words_are_as_frequent_as_was_promised(truth, n):
    table = {row["truth"]: row for row in rates.rates(rates.LAWS["normal"], DRAWS)}
    actual = [int(share) for share in table[truth][f"n = {n}"].split("/")]
    assert actual == pytest.approx(list(PROMISED[truth, n]), abs=3)


@pytest.mark.parametrize("law", rates.LAWS)
def test_a_false_sign_is_rare_whatever_the_law(law):
    table = {row["truth"]: row for row in rates.rates(rates.LAWS[law], DRAWS)}
    for cell in (table["0"][f"n = {n}"] for n in rates.SEEDS):
        holds, _, _, opposite, _ = (int(share) for share in cell.split("/"))
        assert holds <= 2
        assert opposite <= 3


def test_half_of_the_seeds_hardly_ever_says_what_all_exclude():
    for row in rates.prefix_contradictions(DRAWS):
        assert float(row["opposite word, %"]) < 0.1
        assert float(row["regions apart, %"]) < 0.1


def test_the_regions_of_the_simulation_exclude_what_they_should():
    z = np.linspace(-1, 1, 12)
    z /= z.std(ddof=1)
    samples = np.stack([3 + 0.3 * z, 0.3 * z, -3 + 0.3 * z, 0.5 + 0.1 * z, 0.5 + 2 * z])
    low, high = rates.regions(samples, 1.0)
    assert low.tolist() == [1.0, -1.0, -np.inf, 0.0, -np.inf]
    assert high.tolist() == [np.inf, 1.0, -1.0, 1.0, np.inf]


def test_a_baseline_against_itself_seldom_has_a_sign():
    for row in rates.a_against_a(DRAWS):
        assert float(row["holds"]) < 1.5
        assert float(row["opposite"]) < 1.5


def test_the_page_shows_the_tables():
    page = rates.PAGE.read_text(encoding="utf-8")
    assert rates.with_report(page, rates.report(20_000)) == page
