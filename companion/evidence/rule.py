r"""From the values of a claim to its word.

A value is one number per seed, signed so that positive supports the claim. Two Student t intervals
decide: one of 99 % for the *sign* of the effect, and one of 95 % for its *size*, which is compared
with *worth*, the smallest effect worth having. The words are *holds*, *opposite*, *no effect*, *no
gain*, *mixed* and *open*; a word stands for a region in which the true effect lies, and an addition
narrows it.

The error rates of this rule are simulated in ``docs/verdicts.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from companion.evidence.statistics import mean_and_sd

__all__ = [
    "KINDS",
    "MANY_SETTINGS",
    "MIN_BLOCKS",
    "MIN_SEEDS",
    "Kind",
    "Level",
    "Pooled",
    "Ruling",
    "Word",
    "combine_and",
    "combine_or",
    "combine_settings",
    "detectable_effect",
    "fifths",
    "interval_for_other_items",
    "pool",
    "power_of_sign",
    "rule_exact",
    "rule_truth",
    "rule_values",
    "seeds_for_power",
    "stability",
    "words_of",
]

Word = Literal["holds", "opposite", "no effect", "no gain", "mixed", "open"]
Addition = Literal["", "small", "at least worth"]
Kind = Literal["effect", "none", "not_less", "bound", "truth", "exact", "timing"]
KINDS: tuple[Kind, ...] = ("effect", "none", "not_less", "bound", "truth", "exact", "timing")
MIN_SEEDS = 5
MIN_BLOCKS = 20  # of interleaved timings
MANY_SETTINGS = 5  # from so many on a random-effects mean is shown
NARROW = 0.9  # a word that a smaller share of resamples of the seeds gets is marked
_RESAMPLES = 2000
# words that refute, strongest first
_STRENGTH: tuple[Word, ...] = ("opposite", "no effect", "no gain")

Pair = tuple[float, float]


@dataclass(frozen=True)
class Level:
    """Confidence of the two intervals."""

    sign: float = 0.99
    size: float = 0.95

    def among(self, count: int) -> Level:
        """The level that each of ``count`` words needs so that all are right at this level."""
        return Level(1 - (1 - self.sign) / count, 1 - (1 - self.size) / count)


@dataclass(frozen=True)
class Ruling:
    """What the values of one setting say.

    Args:
        word: The word.
        addition: What narrows the word, or an empty text.
        n: Number of seeds, blocks or cases.
        means: Number of values behind the intervals: ``n``, or five for a timing (`fifths`).
        mean: Mean of these values; ``None`` without values.
        sd: Their sample standard deviation; ``None`` with fewer than two values.
        sign: Interval that decides the sign.
        size: Interval that decides the size.
        reason: Why the word is *open*, or an *exact* claim refuted, in words.
    """

    word: Word
    addition: Addition = ""
    n: int = 0
    means: int = 0
    mean: float | None = None
    sd: float | None = None
    sign: Pair | None = None
    size: Pair | None = None
    reason: str = ""

    @property
    def words(self) -> str:
        """Word and addition as one phrase."""
        return f"{self.word}, {self.addition}" if self.addition else self.word


@cache
def _quantile(confidence: float, freedom: int) -> float:
    from scipy import stats

    return float(stats.t.ppf((1 + confidence) / 2, freedom))


def _interval(mean: float, sd: float, n: int, confidence: float) -> Pair:
    half = _quantile(confidence, n - 1) * sd / math.sqrt(n)
    return mean - half, mean + half


def _addition(low: float, high: float, worth: float) -> Addition:
    """Addition for an effect whose amount lies between ``low`` and ``high``."""
    if high < worth:
        return "small"
    return "at least worth" if low >= worth else ""


def _word_of_effect(sign: Pair, size: Pair, worth: float) -> tuple[Word, Addition]:
    low, high = size
    if sign[0] > 0:
        return "holds", _addition(low, high, worth)
    if sign[1] < 0:
        return "opposite", _addition(-high, -low, worth)
    if -worth < low and high < worth:
        return "no effect", ""
    return ("no gain" if high < worth else "open"), ""


def _word_of_none(sign: Pair, size: Pair, worth: float) -> tuple[Word, Addition]:
    low, high = size
    if -worth < low and high < worth:
        return "holds", ""
    return ("opposite" if low >= worth or high <= -worth else "open"), ""


def _word_of_not_less(sign: Pair, size: Pair, worth: float) -> tuple[Word, Addition]:
    if size[0] > -worth:
        return "holds", ""
    return ("opposite" if size[1] <= -worth else "open"), ""


def _word_of_bound(sign: Pair, size: Pair, worth: float) -> tuple[Word, Addition]:
    if sign[0] > 0:
        return "holds", ""
    return ("opposite" if sign[1] < 0 else "open"), ""


_WORDS: dict[str, Callable[[Pair, Pair, float], tuple[Word, Addition]]] = {
    "effect": _word_of_effect,
    "timing": _word_of_effect,
    "none": _word_of_none,
    "not_less": _word_of_not_less,
    "bound": _word_of_bound,
}


def _regions(kind: Kind, ruling: Ruling, worth: float) -> list[Pair]:
    """Open intervals, one or two, in which the true effect lies if the ruling is right."""
    everything = (-math.inf, math.inf)
    if kind in ("effect", "timing"):
        ends: dict[tuple[str, str], Pair] = {
            ("holds", ""): (0, math.inf),
            ("holds", "small"): (0, worth),
            ("holds", "at least worth"): (worth, math.inf),
            ("no effect", ""): (-worth, worth),
            ("no gain", ""): (-math.inf, worth),
            ("opposite", ""): (-math.inf, 0),
            ("opposite", "small"): (-worth, 0),
            ("opposite", "at least worth"): (-math.inf, -worth),
        }
        return [ends.get((ruling.word, ruling.addition), everything)]
    inside = {
        "none": [(-worth, worth)],
        "not_less": [(-worth, math.inf)],
        "bound": [(0.0, math.inf)],
    }[kind]
    outside = {
        "none": [(-math.inf, -worth), (worth, math.inf)],
        "not_less": [(-math.inf, -worth)],
        "bound": [(-math.inf, 0.0)],
    }[kind]
    return {"holds": inside, "opposite": outside}.get(ruling.word, [everything])


def _are_disjoint(ones: Sequence[Pair], others: Sequence[Pair]) -> bool:
    """Whether no open interval of the first list overlaps one of the second."""
    return all(max(a, c) >= min(b, d) for a, b in ones for c, d in others)


def fifths(blocks: Sequence[float]) -> list[float]:
    """Means of the five consecutive fifths of a series of timings."""
    return [float(np.mean(part)) for part in np.array_split(np.asarray(blocks, np.float64), 5)]


def rule_values(
    values: Sequence[float],
    worth: float,
    kind: Kind = "effect",
    *,
    level: Level = Level(),
    reason: str = "",
) -> Ruling:
    """Judge the values of one setting.

    Args:
        values: One per seed; of a ``timing`` one per block, in the order of measurement.
        worth: Smallest effect worth having, positive; not used by ``bound``.
        kind: All but ``truth`` and ``exact``, which have functions of their own.
        level: Confidence of the intervals.
        reason: Why values are missing; the word then is *open*.

    Returns:
        Word and intervals. The word is *open* with fewer than five seeds or twenty blocks, and if
        leaving out one value gives a word that excludes this one.

    Raises:
        ValueError: If ``worth`` is not positive, or all values are equal.
    """
    if kind not in _WORDS:
        raise ValueError(f"kind must be one of {', '.join(_WORDS)}, got {kind!r}")
    if kind != "bound" and not (worth > 0 and math.isfinite(worth)):
        raise ValueError(f"worth must be positive, got {worth}")
    n = len(values)
    least = MIN_BLOCKS if kind == "timing" else MIN_SEEDS
    if not all(map(math.isfinite, values)):
        bad = next(v for v in values if not math.isfinite(v))
        return Ruling("open", n=n, reason=reason or f"a value is {bad}")
    if n < 2:
        return Ruling(
            "open",
            n=n,
            mean=values[0] if values else None,
            reason=reason or f"{n} of at least {least} values",
        )
    counted = fifths(values) if kind == "timing" and n >= least else list(values)
    ruling = _ruled(counted, worth, kind, level, least=MIN_SEEDS)
    ruling = replace(ruling, n=n)
    if reason or n < least:
        return replace(
            ruling, word="open", addition="", reason=reason or f"{n} of at least {least} values"
        )
    region = _regions(kind, ruling, worth)
    for omitted in range(len(counted)):
        rest = counted[:omitted] + counted[omitted + 1 :]
        other = _ruled(rest, worth, kind, level, least=MIN_SEEDS)
        if _are_disjoint(region, _regions(kind, other, worth)):
            why = f"without value {omitted + 1} of {len(counted)} the word is “{other.words}”"
            return replace(ruling, word="open", addition="", reason=why)
    return ruling


def _ruled(values: list[float], worth: float, kind: Kind, level: Level, *, least: int) -> Ruling:
    """Word and intervals of all values; *open* with fewer than ``least``."""
    mean, sd = (float(each) for each in mean_and_sd(values))
    if sd == 0 and len(values) >= least:
        raise ValueError(f"all {len(values)} values are {mean}: that is no statistical claim")
    sign, size = (_interval(mean, sd, len(values), c) for c in (level.sign, level.size))
    n = len(values)
    common = Ruling("open", n=n, means=n, mean=mean, sd=sd, sign=sign, size=size)
    if len(values) < least:
        return common
    word, addition = _WORDS[kind](sign, size, worth)
    return replace(common, word=word, addition=addition)


def rule_truth(values: Sequence[float], chance: float = 0.5, *, reason: str = "") -> Ruling:
    """Judge truth values, one per seed, with a Clopper-Pearson interval of 99 %.

    Args:
        values: Ones and zeros.
        chance: Share of ones that a statement without content would get, in (0, 1).
        reason: Why values are missing; the word then is *open*.

    Raises:
        ValueError: If a value is neither 0 nor 1, or ``chance`` lies outside (0, 1).
    """
    if not 0 < chance < 1:
        raise ValueError(f"chance must be in (0, 1), got {chance}")
    if wrong := [v for v in values if v not in (0, 1)]:
        raise ValueError(f"a truth value is 0 or 1, got {wrong[0]}")
    n = len(values)
    true = int(sum(values))
    if n == 0:
        return Ruling("open", reason=reason or f"0 of at least {MIN_SEEDS} values")
    from scipy import stats

    def interval(confidence: float) -> Pair:
        tail = (1 - confidence) / 2
        low = float(stats.beta.ppf(tail, true, n - true + 1)) if true else 0.0
        high = float(stats.beta.isf(tail, true + 1, n - true)) if true < n else 1.0
        return low, high

    sign, size = interval(0.99), interval(0.95)
    ruling = Ruling("open", n=n, mean=true / n, sign=sign, size=size, reason=reason)
    if reason or n < MIN_SEEDS:
        return replace(ruling, reason=reason or f"{n} of at least {MIN_SEEDS} values")
    if sign[0] > chance:
        return replace(ruling, word="holds")
    return replace(ruling, word="opposite") if sign[1] < chance else ruling


def rule_exact(
    values: Sequence[float], tolerance: float, certified: Sequence[float] = (), *, reason: str = ""
) -> Ruling:
    """Judge cases that must agree within a tolerance.

    Args:
        values: Deviation of each case.
        tolerance: The largest deviation that counts as agreement.
        certified: Proved deviations; one beyond the tolerance refutes the claim. Without them the
            values themselves count as proved.
        reason: Why cases are missing; a claim without violation then is *open*.
    """
    if not values:
        return Ruling("open", reason=reason or "no case")
    ruling = Ruling(
        "open", n=len(values), mean=math.fsum(values) / len(values), size=(min(values), max(values))
    )
    if any(abs(v) > tolerance for v in (certified or values)):
        worst = max((certified or values), key=abs)
        return replace(ruling, word="opposite", reason=f"{worst:.6g} exceeds {tolerance:g}")
    beyond = [v for v in values if not abs(v) <= tolerance]
    if beyond:
        why = f"{beyond[0]:.6g} exceeds {tolerance:g}, not certified"
        return replace(ruling, reason=reason or why)
    return replace(ruling, word="open" if reason else "holds", reason=reason)


# --- several settings, several parts --------------------------------------------------------------


def _shared_addition(rulings: Sequence[Ruling]) -> Addition:
    additions = {each.addition for each in rulings}
    return additions.pop() if len(additions) == 1 else ""


def combine_settings(rulings: Sequence[Ruling], worth: float) -> Ruling:
    """Judge several settings of one effect, in one unit.

    Args:
        rulings: One per setting.
        worth: Their common smallest effect worth having.

    Returns:
        The word of all settings together; with mean and intervals only if there is one setting.

    Raises:
        ValueError: If ``rulings`` is empty.
    """
    if not rulings:
        raise ValueError("a claim needs a setting")
    if len(rulings) == 1:
        return rulings[0]
    words = {each.word for each in rulings}
    if len(words) == 1:
        word = words.pop()
        addition = _shared_addition(rulings)
        return Ruling(word, addition, reason=_open_settings(rulings) if word == "open" else "")
    if _is_mixed(rulings):
        return Ruling("mixed")
    sizes = [each.size for each in rulings]
    if all(size is not None and -worth < size[0] and size[1] < worth for size in sizes):
        return Ruling("no effect")
    if words <= {"no effect", "no gain", "opposite"}:
        return Ruling("no gain")
    return Ruling("open", reason=_open_settings(rulings) or "the settings do not agree")


def _open_settings(rulings: Sequence[Ruling]) -> str:
    count = sum(each.word == "open" for each in rulings)
    return f"{count} of {len(rulings)} settings are open" if count else ""


def _is_mixed(rulings: Sequence[Ruling]) -> bool:
    """Whether one setting holds and another is refuted, with intervals that do not overlap."""
    # stricter the more settings there are, as more pairs could be apart by chance
    confidence = 1 - 0.05 / (len(rulings) - 1)
    holding = [each for each in rulings if each.word == "holds"]
    refuting = [each for each in rulings if each.word in _STRENGTH]

    def interval(ruling: Ruling) -> Pair | None:
        if ruling.mean is None or ruling.sd is None:
            return None
        return _interval(ruling.mean, ruling.sd, ruling.means, confidence)

    pairs = [(interval(one), interval(other)) for one in holding for other in refuting]
    return any(a and b and max(a[0], b[0]) > min(a[1], b[1]) for a, b in pairs)


def combine_and(words: Sequence[Ruling], corrected: Sequence[Ruling]) -> Ruling:
    """Judge a claim that says several things at once.

    Args:
        words: Rulings of its parts.
        corrected: Rulings of the same parts at the stricter `Level.among` their number, because any
            one of them can refute the claim.
    """
    if all(each.word == "holds" for each in words):
        return Ruling("holds", _shared_addition(words))
    for word in _STRENGTH:
        if refuting := [each for each in corrected if each.word == word]:
            return Ruling(word, _shared_addition(refuting))
    if any(each.word == "mixed" for each in words):
        return Ruling("mixed")
    return Ruling("open", reason=_open_parts(words))


def combine_or(words: Sequence[Ruling], corrected: Sequence[Ruling]) -> Ruling:
    """Judge a claim that says one thing or another; any one part can establish it.

    Args:
        words: Rulings of its parts.
        corrected: Rulings of the same parts at the stricter `Level.among` their number.
    """
    if holding := [each for each in corrected if each.word == "holds"]:
        return Ruling("holds", _shared_addition(holding))
    refuting = {each.word for each in words}
    if refuting <= set(_STRENGTH):
        return Ruling(refuting.pop() if len(refuting) == 1 else "no gain", _shared_addition(words))
    if any(each.word == "mixed" for each in words):
        return Ruling("mixed")
    return Ruling("open", reason=_open_parts(words))


def _open_parts(words: Sequence[Ruling]) -> str:
    count = sum(each.word == "open" for each in words)
    return f"{count} of {len(words)} parts are open" if count else "no part refutes the claim alone"


@dataclass(frozen=True)
class Pooled:
    """What several settings of one effect say together; it decides nothing.

    Args:
        part: The part of the claim whose settings they are; empty in a claim without parts.
        settings: Number of settings.
        mean: Their plain mean, or from five settings on the mean of a random-effects model.
        interval: 95 % interval of that mean, from five settings on.
        prediction: 95 % interval for another setting of this kind, from five settings on.
    """

    part: str
    settings: int
    mean: float
    interval: Pair | None = None
    prediction: Pair | None = None


def pool(rulings: Sequence[Ruling], part: str = "") -> Pooled | None:
    r"""Pool the settings of one effect; ``None`` for a single setting or if one has no spread.

    Fewer than five settings have a plain mean. From five on a random-effects model gives the
    variance between settings by DerSimonian and Laird (1986), the interval by Hartung and Knapp
    (2001), which is $t_{k-1}$ with the weighted residual variance, and the prediction interval by
    Higgins, Thompson and Spiegelhalter (2009) with $t_{k-2}$.
    """
    known = [(r.mean, r.sd, r.means) for r in rulings if r.mean is not None and r.sd]
    k = len(known)
    if k < 2 or k < len(rulings):
        return None
    y = np.array([mean for mean, _, _ in known])
    if k < MANY_SETTINGS:
        return Pooled(part, k, float(y.mean()))
    v = np.array([sd**2 / n for _, sd, n in known])  # variance of each mean
    fixed = 1 / v
    spread = float((fixed * (y - (fixed * y).sum() / fixed.sum()) ** 2).sum())
    scale = float(fixed.sum() - (fixed**2).sum() / fixed.sum())
    between = max(0.0, (spread - (k - 1)) / scale)
    weights = 1 / (v + between)
    mean = float((weights * y).sum() / weights.sum())
    variance = float((weights * (y - mean) ** 2).sum() / (k - 1) / weights.sum())
    half = _quantile(0.95, k - 1) * math.sqrt(variance)
    wide = _quantile(0.95, k - 2) * math.sqrt(variance + between)
    return Pooled(part, k, mean, (mean - half, mean + half), (mean - wide, mean + wide))


# --- shown with the word --------------------------------------------------------------------------


def stability(values: Sequence[float], worth: float, kind: Kind = "effect") -> float:
    """Share of resamples of the values that get the same word.

    Additions are ignored. *No effect* and *holds, small* count as the same if both intervals lie
    within the smallest effect.

    Args:
        values: At least two values; of a ``timing`` its `fifths`.
        worth: Smallest effect worth having.
        kind: One of the kinds with intervals.
    """
    x = np.asarray(values, np.float64)
    n = len(x)
    drawn = x[np.random.default_rng(0).integers(n, size=(_RESAMPLES, n))]
    mean, sd = drawn.mean(axis=1), drawn.std(axis=1, ddof=1)
    alone = words_of(x.mean()[None], x.std(ddof=1)[None], n, worth, kind, merge_small=True)
    words = words_of(mean, sd, n, worth, kind, merge_small=True)
    return float((words == alone).mean())


def interval_for_other_items(values: Sequence[float], items: NDArray[np.float64]) -> Pair | None:
    """Interval of 95 % of a mean, for other seeds and other test items of the same kind.

    All seeds share one test set, so their spread says nothing about another one. The variance is
    $s^2/n + v/N$ with the variance $v$ between the N items' means over seeds. As $v$ also contains
    what the seeds add to an item's mean, the interval is too wide rather than too narrow.

    Args:
        values: One per seed, at least two.
        items: Value of each item, ``(n, N)``; NaN for an item that was not tested.

    Returns:
        The interval; ``None`` with fewer than two items.
    """
    means = items[:, ~np.isnan(items).any(axis=0)].mean(axis=0)
    if means.shape[0] < 2:
        return None
    mean, sd = (float(each) for each in mean_and_sd(values))
    n = len(values)
    half = _quantile(0.95, n - 1) * math.sqrt(sd**2 / n + float(means.var(ddof=1)) / len(means))
    return mean - half, mean + half


def words_of(
    mean: NDArray[np.float64],
    sd: NDArray[np.float64],
    n: int,
    worth: float,
    kind: Kind = "effect",
    *,
    merge_small: bool = False,
) -> NDArray[np.str_]:
    """Words of many samples at once, for resampling and simulation; no value is left out.

    Args:
        mean: Mean of each sample, ``(S,)``.
        sd: Standard deviation of each sample, ``(S,)``.
        n: Number of values of every sample.
        worth: Smallest effect worth having.
        kind: One of the kinds with intervals.
        merge_small: Whether *holds, small* counts as *no effect* where both intervals lie within
            the smallest effect.

    Returns:
        A word for each sample, ``(S,)``.
    """
    level = Level()
    for_sign, for_size = (_quantile(c, n - 1) * sd / math.sqrt(n) for c in (level.sign, level.size))
    sign_low, sign_high = mean - for_sign, mean + for_sign
    low, high = mean - for_size, mean + for_size
    within = (-worth < low) & (high < worth)
    words = ["holds", "opposite"]
    if kind == "none":
        conditions = [within, (low >= worth) | (high <= -worth)]
    elif kind == "not_less":
        conditions = [low > -worth, high <= -worth]
    elif kind == "bound":
        conditions = [sign_low > 0, sign_high < 0]
    else:
        both_within = within & (-worth < sign_low) & (sign_high < worth)
        small = both_within & ~(sign_high < 0) & merge_small
        # the first condition that is met decides
        conditions = [small, sign_low > 0, sign_high < 0, within, high < worth]
        words = ["no effect", "holds", "opposite", "no effect", "no gain"]
    return np.select(conditions, words, "open")


def power_of_sign(effect: ArrayLike, n: int, level: Level = Level()) -> NDArray[np.float64]:
    """Probability that the interval for the sign lies above zero.

    Args:
        effect: True mean, in standard deviations over seeds.
        n: Number of seeds, at least 2.
        level: Confidence of the intervals.
    """
    from scipy import stats

    shift = np.asarray(effect, np.float64) * math.sqrt(n)
    return np.asarray(stats.nct.sf(_quantile(level.sign, n - 1), n - 1, shift))


def seeds_for_power(effect: float, power: float = 0.8) -> int | None:
    """Fewest seeds, at least five, that show the sign of an effect with some probability.

    Args:
        effect: True mean, in standard deviations over seeds, positive.
        power: The probability, in (0, 1).

    Returns:
        The number; ``None`` if 5120 seeds do not suffice.
    """
    too_few, enough = MIN_SEEDS - 1, MIN_SEEDS
    while power_of_sign(effect, enough) < power:
        too_few, enough = enough, 2 * enough
        if enough > 10_000:
            return None
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if power_of_sign(effect, middle) >= power:
            enough = middle
        else:
            too_few = middle
    return enough


def detectable_effect(sd: float, n: int, power: float = 0.8) -> float:
    """Smallest true effect whose sign ``n`` seeds show with this power, in the unit of ``sd``."""
    return _detectable_in_sds(n, power) * sd


@cache
def _detectable_in_sds(n: int, power: float) -> float:
    from scipy import optimize

    root = optimize.brentq(lambda effect: float(power_of_sign(effect, n)) - power, 1e-6, 100.0)
    return float(root)
