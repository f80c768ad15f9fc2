"""How often the rule of verdicts gives which word: the tables of ``docs/verdicts.md``.

    python benchmarks/verdict_rates.py [--draws N] [--check]

Paired differences are drawn from a normal, a skewed and a heavy-tailed law; the words are those of
`companion.evidence.rule`. A row "A against A" splits the seeds of a committed baseline at random,
so that there is no difference, and judges the halves by the claims' own rules. ``--check`` compares
the page with what is drawn now, instead of writing it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from companion.evidence.ledger import Worth
from companion.evidence.rule import seeds_for_power, words_of
from companion.evidence.store import read_reference, write_atomic
from companion.evidence.tables import markdown_table
from companion.paths import ROOT

WORDS = ("holds", "no effect", "no gain", "opposite", "open")
SEEDS = (6, 8, 12, 16, 24, 48)
TRUTHS = {"0": 0.0, "w/2": 0.5, "w": 1.0, "2w": 2.0}
PAGE = ROOT / "docs" / "verdicts.md"
START, END = "<!-- generated: rates -->\n", "<!-- end -->"
Law = Callable[[np.random.Generator, tuple[int, int]], NDArray[np.float64]]
LAWS: dict[str, Law] = {  # mean 0 and standard deviation 1
    "normal": lambda rng, size: rng.normal(size=size),
    "skewed": lambda rng, size: rng.gamma(4.0, 0.5, size=size) - 2.0,
    "heavy-tailed": lambda rng, size: rng.standard_t(5, size=size) / np.sqrt(5 / 3),
}
# Baselines whose seeds are split, with the metric, its scale and the worth of their claims.
BASELINES = (
    ("04", "digits_random", "steps_to_target", "10 percent"),
    ("04", "fashion_mnist_random", "steps_to_target", "10 percent"),
    ("05", "digits_10_erm", "test/accuracy", "1.0 points"),
    ("05", "fashion_100_erm", "test/accuracy", "1.0 points"),
    ("02", "speed_0_uniform", "examples", "10 percent"),
)


def words(values: NDArray[np.float64], worth: float) -> NDArray[np.str_]:
    """Words of many samples, which are the rows of ``values``."""
    mean, sd = values.mean(axis=1), values.std(axis=1, ddof=1)
    return words_of(mean, sd, values.shape[1], worth)


def shares(given: NDArray[np.str_]) -> list[float]:
    """How often each of `WORDS` was given, in percent."""
    return [100 * float((given == word).mean()) for word in WORDS]


def rates(law: Law, draws: int) -> list[dict[str, str]]:
    """The table of one law: true effects in rows, seeds in columns; worth is one sd."""
    rows = []
    for name, truth in TRUTHS.items():
        row = {"truth": name}
        for n in SEEDS:
            rng = np.random.default_rng([n, int(10 * truth)])
            given = words(law(rng, (draws, n)) + truth, 1.0)
            row[f"n = {n}"] = "/".join(f"{share:.0f}" for share in shares(given))
        rows.append(row)
    return rows


def regions(values: NDArray[np.float64], worth: float) -> tuple[NDArray[np.float64], ...]:
    """Lower and upper ends of the region that each sample's word, with its addition, stands for."""
    given = words(values, worth)
    n = values.shape[1]
    mean, sd = values.mean(axis=1), values.std(axis=1, ddof=1)
    half = stats.t.ppf(0.975, n - 1) * sd / np.sqrt(n)
    small, large = mean + half < worth, mean - half >= worth
    low = {"holds": np.where(large, worth, 0.0), "no effect": -worth}
    high = {"holds": np.where(small, worth, np.inf), "no effect": worth, "no gain": worth}
    mirror_small, mirror_large = mean - half > -worth, mean + half <= -worth
    low["opposite"] = np.where(mirror_small, -worth, -np.inf)
    high["opposite"] = np.where(mirror_large, -worth, 0.0)
    lows, highs = np.full(len(values), -np.inf), np.full(len(values), np.inf)
    for word in WORDS:
        lows = np.where(given == word, low.get(word, -np.inf), lows)
        highs = np.where(given == word, high.get(word, np.inf), highs)
    return lows, highs


def prefix_contradictions(draws: int) -> list[dict[str, str]]:
    """How often the first seeds, at least half of them, say what all of them exclude."""
    rows = []
    for name, truth in TRUTHS.items():
        turned, excluded, checked = 0, 0, 0
        for n in (12, 16, 24, 48):
            rng = np.random.default_rng([n, 7, int(10 * truth)])
            values = rng.normal(truth, 1.0, size=(draws, n))
            whole = words(values, 1.0)
            low, high = regions(values, 1.0)
            for part in sorted({n // 2, 2 * n // 3, n - 1}):
                before = words(values[:, :part], 1.0)
                pairs = (("holds", "opposite"), ("opposite", "holds"))
                turned += sum(int(((before == a) & (whole == b)).sum()) for a, b in pairs)
                low_before, high_before = regions(values[:, :part], 1.0)
                apart = np.maximum(low, low_before) >= np.minimum(high, high_before)
                excluded += int(apart.sum())
                checked += draws
        row = {"truth": name, "opposite word, %": f"{100 * turned / checked:.3f}"}
        rows.append(row | {"regions apart, %": f"{100 * excluded / checked:.3f}"})
    return rows


def a_against_a(draws: int) -> list[dict[str, str]]:
    """Words that a baseline gets against itself: its seeds split in two halves at random."""
    rows = []
    for number, arm, metric, text in BASELINES:
        reference = read_reference("full", number)
        assert reference is not None
        worth = Worth.parse(text)
        values = np.array([r["metrics"][metric] for r in reference.records if r["arm"] == arm])
        values = np.log(values) if worth.is_ratio else 100 * values
        half = len(values) // 2
        rng = np.random.default_rng([int(number), half])
        order = rng.permuted(np.tile(np.arange(len(values)), (draws, 1)), axis=1)
        differences = values[order[:, :half]] - values[order[:, half : 2 * half]]
        differences = differences[differences.std(axis=1) > 0]
        row = {"baseline": f"{number} {arm}", "pairs": str(half), "worth": text}
        given = shares(words(differences, worth.value))
        rows.append(row | {w: f"{share:.1f}" for w, share in zip(WORDS, given, strict=True)})
    return rows


def report(draws: int) -> str:
    """The generated part of the page."""
    columns = ["truth", *(f"n = {n}" for n in SEEDS)]
    parts = [
        f"{draws} draws a cell; percent *{' / '.join(WORDS)}*; the smallest effect `w` is one "
        "standard deviation of the paired differences."
    ]
    for name, law in LAWS.items():
        parts += [
            f"### {name.capitalize()} differences",
            markdown_table(rates(law, draws), columns),
        ]
    parts += [
        "### Prefixes against the whole",
        "At least half of the seeds, and then all: how often does one say *holds* and the other "
        "*opposite*, and how often does a word with its addition exclude the other's?",
        markdown_table(
            prefix_contradictions(draws), ["truth", "opposite word, %", "regions apart, %"]
        ),
        "### A against A",
        "The seeds of committed baselines, split at random into two arms that differ in nothing; "
        "percent of each word.",
        markdown_table(a_against_a(draws), ["baseline", "pairs", "worth", *WORDS]),
        "### Seeds for 80 % power",
        markdown_table(
            [
                {"true effect, sd": f"{effect:g}", "seeds for its sign": seeds_for_power(effect)}
                for effect in (0.5, 0.75, 1.0, 1.5, 2.0)
            ],
            ["true effect, sd", "seeds for its sign"],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def with_report(page: str, text: str) -> str:
    """The page with its generated part replaced."""
    head, rest = page.split(START)
    return f"{head}{START}{text}{END}{rest.split(END, 1)[1]}"


def main() -> int:
    """Write the tables into the page, or compare them with it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=20_000)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    before = Path(PAGE).read_text(encoding="utf-8")
    after = with_report(before, report(options.draws))
    if options.check:
        return int(before != after)
    write_atomic(PAGE, after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
