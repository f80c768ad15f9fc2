"""Judge the claims of the ledger on records.

A record is the plain mapping of one run (``arm``, ``seed``, ``metrics``, ``curves``). The rule that
turns values into a word is `companion.evidence.rule`. This module computes the values and decides
when they do not suffice:

- Only the first ``count`` seeds from the ledger's start decide, so that nobody can add runs until
  the word changes. *exact* takes every seed there is, and one violation refutes the claim even if
  other seeds are missing.
- The word is *open*, with the reason, if there are too few seeds, an arm or metric is missing, or a
  value is not finite.
- An arm decides nothing if more than a tenth of its runs did not meet their plateau rule.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np

from companion.evidence.formulas import Formula, Function, Items
from companion.evidence.ledger import Claim, Part, Setting, criterion_hash
from companion.evidence.names import did_you_mean
from companion.evidence.rule import (
    MIN_BLOCKS,
    NARROW,
    Level,
    Pair,
    Pooled,
    Ruling,
    combine_and,
    combine_or,
    combine_settings,
    detectable_effect,
    fifths,
    interval_for_other_items,
    pool,
    power_of_sign,
    rule_exact,
    rule_truth,
    rule_values,
    seeds_for_power,
    stability,
)

__all__ = ["Aside", "Effect", "Judgement", "Record", "judge", "round_numbers", "verdicts_json"]

Record = Mapping[str, Any]

MIN_PLATEAU_PERCENT = 90
ITEM_VALUES = "item_values"
SKEWED, FEW = 1.5, 24  # a larger skewness is reported if there are fewer seeds than this


@dataclass(frozen=True)
class Effect:
    """One setting judged.

    Attributes:
        part: Name of the part it belongs to; empty in a claim without parts.
        name: Name of the setting.
        formula: Formula of its number, as the ledger has it.
        kind: Kind of the claim or part.
        worth: Smallest effect worth having, in the unit of the values; ``None`` without one.
        unit: ``percent`` or ``factor`` for logarithms of ratios, else the unit of the values.
        shift: Threshold of a *bound*, whose values are distances from it towards the claim; else 0.
        side: 1, or -1 for a *bound* that says that the number lies below the threshold.
        word: Word of the setting.
        addition: ``small`` or ``at least worth``, which narrow the word, or empty.
        reason: Why the word is open or the claim refuted; may be empty.
        n: Number of seeds, blocks or cases.
        values: Value of each seed; a positive one supports the claim.
        mean: Mean of the values.
        sd: Standard deviation of the values, or of a timing's five means (`rule.fifths`).
        sign: 99 % interval of the mean, which decides the sign.
        size: 95 % interval of the mean, which decides the size; of an *exact* claim the extremes.
        stability: Share of resamples of the seeds that get the same word.
        skew: Skewness of the values, given only if it is large and the seeds are few.
        seeds_needed: Seeds that have 80 % power at an effect of ``worth``, given only for an open
            setting that has fewer.
        detectable: Smallest effect at which these seeds have 80 % power.
        power: Power of these seeds at the published effect.
        other_items: 95 % interval of the mean for other seeds and other test items of the same
            kind, given only if the records hold a value of each item.
    """

    part: str
    name: str
    formula: str
    kind: str
    worth: float | None
    unit: str
    shift: float
    side: int
    word: str
    addition: str
    reason: str
    n: int
    values: dict[int, float]
    mean: float | None = None
    sd: float | None = None
    sign: Pair | None = None
    size: Pair | None = None
    stability: float | None = None
    skew: float | None = None
    seeds_needed: int | None = None
    detectable: float | None = None
    power: float | None = None
    other_items: Pair | None = None

    @property
    def words(self) -> str:
        """Word and addition as one phrase."""
        return f"{self.word}, {self.addition}" if self.addition else self.word

    @property
    def is_ratio(self) -> bool:
        """Whether values are logarithms of ratios."""
        return self.unit in ("percent", "factor")

    @property
    def is_narrow(self) -> bool:
        """Whether other seeds of the same kind would often give another word."""
        return self.stability is not None and self.stability < NARROW


@dataclass(frozen=True)
class Aside:
    """An effect that is judged and shown with a claim but never decides it."""

    label: str
    word: str
    addition: str
    reason: str
    effects: tuple[Effect, ...]

    @property
    def words(self) -> str:
        """Word and addition as one phrase."""
        return f"{self.word}, {self.addition}" if self.addition else self.word


@dataclass(frozen=True)
class Judgement:
    """One claim judged.

    Attributes:
        id: Such as ``csa.1``.
        tier: ``headline`` or ``extended``.
        origin: Who said it: ``authors``, ``logs`` or ``ours``.
        scope: ``same``, ``scaled`` or ``proxy``.
        control: ``positive`` or ``negative`` for controls, else empty.
        statement: The claim in a sentence.
        note: What else a reader should know about the claim.
        published: What was published.
        read: Which source of the published value we could read, such as ``text`` or ``code``.
        where: Where in the work the claim stands.
        front: The claim in a few words, if it stands on the front page.
        published_effect: The published size, if it is one number.
        posed: ``before the data`` or ``after the data``: when its rule was written.
        criterion: Hash of the rule (`ledger.criterion_hash`).
        kind: Common kind of its parts, or ``parts``.
        worth: Common smallest effect worth having of its parts, in words, or empty.
        word: The word.
        addition: ``small`` or ``at least worth``, which narrow the word, or empty.
        reason: Why the word is open; may be empty.
        effects: The settings that decide.
        beside: Effects that are shown with the claim but do not decide.
        pooled: What the settings of each part say together.
        records: Name of the record set that was judged: ``full`` or ``standard``.
        early: Whether that set was made before canonical mode.
        standard_word: Word of the canonical standard records at the seeds they have, if ``word``
            comes from other records; empty without such records.
        standard_seeds: Smallest number of seeds of a setting behind ``standard_word``.
        standard_settings: Number of settings behind ``standard_word``.
    """

    id: str
    tier: str
    origin: str
    scope: str
    control: str
    statement: str
    note: str
    published: str
    read: str
    where: str
    front: str
    published_effect: str
    posed: str
    criterion: str
    kind: str
    worth: str
    word: str = "open"
    addition: str = ""
    reason: str = "no records"
    effects: tuple[Effect, ...] = ()
    beside: tuple[Aside, ...] = ()
    pooled: tuple[Pooled, ...] = ()
    records: str = ""
    early: bool = False
    standard_word: str = ""
    standard_seeds: int = 0
    standard_settings: int = 0

    @property
    def words(self) -> str:
        """Word and addition as one phrase."""
        return f"{self.word}, {self.addition}" if self.addition else self.word

    @property
    def counts(self) -> bool:
        """Whether the word counts for or against the authors' works."""
        return self.origin != "ours" and self.scope != "proxy" and not self.control

    @property
    def stability(self) -> float | None:
        """Least share of resamples with the same word, over the deciding settings."""
        return min((e.stability for e in self.effects if e.stability is not None), default=None)

    @property
    def is_narrow(self) -> bool:
        """Whether the word of a deciding setting would often be another with other seeds."""
        return any(effect.is_narrow for effect in self.effects)

    @property
    def has_values(self) -> bool:
        """Whether any deciding setting has a value."""
        return any(effect.n for effect in self.effects)

    def to_json(self) -> dict[str, object]:
        """Plain data for ``verdicts``, rounded by :func:`round_numbers`."""
        plain: dict[str, object] = round_numbers(asdict(self))
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Judgement:
        """Read back what `to_json` has made; a missing or unknown field raises a TypeError."""
        names = {each.name for each in fields(cls)}
        if missing := sorted(names - plain.keys()):
            raise TypeError(f"missing field {missing[0]!r}")
        beside = tuple(
            Aside(**{**aside, "effects": tuple(map(_read_effect, aside["effects"]))})
            for aside in plain["beside"]
        )
        effects = tuple(map(_read_effect, plain["effects"]))
        pooled = tuple(
            Pooled(**_with_pairs(each, "interval", "prediction")) for each in plain["pooled"]
        )
        return cls(**{**plain, "effects": effects, "beside": beside, "pooled": pooled})


def _read_effect(plain: Mapping[str, Any]) -> Effect:
    values = {int(seed): value for seed, value in plain["values"].items()}
    return Effect(**{**_with_pairs(plain, "sign", "size", "other_items"), "values": values})


def _with_pairs(plain: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Turn the named fields, which JSON holds as lists of two ends, into tuples again."""
    return {**plain, **{name: tuple(plain[name]) if plain[name] else None for name in names}}


def round_numbers(value: Any) -> Any:
    """Copy plain data with text keys and floats of 12 significant digits without -0.

    Raises:
        ValueError: If a number is NaN or infinite.
    """
    if isinstance(value, Mapping):
        return {str(key): round_numbers(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [round_numbers(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"cannot write {value} to JSON")
    return float(f"{value:.12g}") + 0.0 if isinstance(value, float) else value


def verdicts_json(judgements: Sequence[Judgement]) -> str:
    """Text of a file of verdicts; equal judgements give equal bytes."""
    plain = [each.to_json() for each in judgements]
    return json.dumps(plain, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


@dataclass
class _Records:
    """The records that one claim may read, by seed, and how to evaluate its formulas on them.

    ``all_there_are`` is the argument of `judge`; ``blocked`` says why an arm decides nothing.
    """

    claim: Claim
    by_seed: dict[int, list[Record]]
    functions: Mapping[str, Function]
    all_there_are: bool
    blocked: dict[str, str] = field(default_factory=dict)

    def values(
        self, formula: Formula, part: Part, seeds: int | None = None
    ) -> tuple[dict[int, float], str]:
        """Return the finite values by seed, and why they do not suffice; empty if they do."""
        count = seeds or self.claim.seeds.count
        needed = 1 if part.kind == "exact" or self.all_there_are else count
        values: dict[int, float] = {}
        missing = problem = ""
        deciding = sorted(self.by_seed)
        if part.kind != "exact":
            deciding = [seed for seed in deciding if seed >= self.claim.seeds.start][:count]
        for seed in deciding:
            try:
                value = formula.evaluate(self.by_seed[seed], self.functions)
            except KeyError as error:
                missing = missing or str(error.args[0])
                continue
            if math.isfinite(value):
                values[seed] = value
            else:
                problem = problem or f"seed {seed} gives {value}"
        if missing and not values:  # perhaps misspelt; what a single seed lacks was spelt right
            missing += did_you_mean(missing, self._metrics_and_curves())
        if blocked := next((self.blocked[arm] for arm in formula.arms if arm in self.blocked), ""):
            return values, blocked
        if not problem and len(values) < needed:
            unit = "blocks" if part.kind == "timing" else "seeds"
            problem = f"{len(values)} of {needed} {unit}" + (f": {missing}" if missing else "")
        return values, problem

    def _metrics_and_curves(self) -> set[str]:
        """Names of all metrics and curves of the records."""
        return {
            name
            for records in self.by_seed.values()
            for record in records
            for name in (*record["metrics"], *record["curves"])
        }

    def items(self, formula: Formula, seeds: Iterable[int]) -> Items | None:
        """Values of the test items, ``(seeds, items)``; ``None`` unless every seed has the same."""
        item_values: Callable[..., Any] | None = self.functions.get(ITEM_VALUES)
        if item_values is None:
            return None
        rows = [formula.evaluate_items(self.by_seed[seed], item_values) for seed in seeds]
        known = [row for row in rows if row is not None]
        if not known or len(known) < len(rows) or len({len(row) for row in known}) > 1:
            return None
        return np.stack(known)


def judge(
    claim: Claim,
    records: Sequence[Record],
    functions: Mapping[str, Function],
    *,
    known_arms: Collection[str] | None = None,
    all_there_are: bool = False,
) -> Judgement:
    """Judge one claim.

    Args:
        claim: The entry of the ledger.
        records: All runs of the chapter.
        functions: Functions of the chapter that formulas may call; one named ``item_values`` gives
            the values of the test items of a record and a metric.
        known_arms: Arms of the chapter; a formula that names another is refused. ``None`` skips
            this check.
        all_there_are: Whether the seeds and settings that exist may decide even if the ledger asks
            for more. This is for comparing record sets, never for the word of a claim.

    Raises:
        ValueError: If a formula names an unknown arm or function, an arm has two records for a
            seed, or the values of a statistical claim are all equal.
    """
    judgement = Judgement(
        id=claim.id,
        tier=claim.tier,
        origin=claim.origin,
        scope=claim.scope,
        control=claim.control or "",
        statement=claim.statement,
        note=claim.note,
        published=claim.published.value,
        read=claim.published.read,
        where=claim.published.where,
        front=claim.front,
        published_effect=claim.published.effect or "",
        posed=claim.posed,
        criterion=criterion_hash(claim, functions),
        kind=_common([str(part.kind) for part in claim.parts]) or "parts",
        worth=_common([part.worth or "" for part in claim.parts]),
    )
    arms = {arm for formula in claim.all_formulas() for arm in formula.arms}
    if known_arms is not None and (unknown := sorted(arms - set(known_arms))):
        hint = did_you_mean(unknown[0], known_arms)
        raise ValueError(f"claim {claim.id}: unknown arm {unknown[0]!r}{hint}")
    by_seed: dict[int, list[Record]] = {}
    for record in records:
        if record["arm"] in arms:
            by_seed.setdefault(record["seed"], []).append(record)
    blocked = _unfinished_arms([each for group in by_seed.values() for each in group])
    source = _Records(claim, by_seed, functions, all_there_are, blocked)
    asides = tuple(
        Aside(each.label, ruling.word, ruling.addition, ruling.reason, effects)
        for each in claim.beside
        for ruling, effects, _ in [_judge_part(each, source, Level())]
    )
    judgement = replace(judgement, beside=asides)
    if not claim.parts:
        return replace(judgement, reason=claim.unanswered or "")
    try:
        ruling, effects, pooled = _judge_parts(claim, source)
    except ValueError as error:
        raise ValueError(f"claim {claim.id}: {error}") from error
    judgement = replace(judgement, effects=effects, word=ruling.word, addition=ruling.addition)
    judgement = replace(judgement, reason=ruling.reason, pooled=pooled)
    if claim.unanswered is not None:
        return replace(judgement, word="open", addition="", reason=claim.unanswered)
    return judgement


def _common(values: Sequence[str]) -> str:
    """The value that all share, else an empty text."""
    return values[0] if len(set(values)) == 1 else ""


# the ruling, the settings behind it, and what several settings of a part say together
_Judged = tuple[Ruling, tuple[Effect, ...], tuple[Pooled, ...]]


def _judge_parts(claim: Claim, source: _Records) -> _Judged:
    """Judge the parts of a claim, and combine them by "and" or "or" if there are several."""
    judged = [_judge_part(part, source, Level()) for part in claim.parts]
    effects = tuple(effect for _, each, _ in judged for effect in each)
    pooled = tuple(each for _, _, several in judged for each in several)
    words = [ruling for ruling, _, _ in judged]
    if len(words) == 1:
        return words[0], effects, pooled
    # One part alone can refute an "and" or establish an "or", so these words need stricter levels.
    level = Level().among(len(words))
    corrected = [
        _combined(part, [ruling for _, _, _, ruling in _rulings(part, source, level)])
        for part in claim.parts
    ]
    return (combine_or if claim.any_of else combine_and)(words, corrected), effects, pooled


def _judge_part(part: Part, source: _Records, level: Level) -> _Judged:
    """Judge the settings of a part, combine them, and pool them where they have intervals."""
    judged = list(_rulings(part, source, level))
    rulings = [ruling for *_, ruling in judged]
    effects = tuple(
        _effect(part, setting, formula, ruling, values, source)
        for setting, formula, values, ruling in judged
    )
    together = None
    if rulings and part.kind not in ("truth", "exact"):
        together = pool(rulings, part.name)
    return _combined(part, rulings), effects, (together,) if together is not None else ()


def _rulings(
    part: Part, source: _Records, level: Level
) -> Iterator[tuple[Setting, Formula, dict[int, float], Ruling]]:
    """Yield each setting with its formula, its values (positive for the claim) and their ruling."""
    for setting, formula in zip(part.settings, part.formulas, strict=True):
        raw, problem = source.values(formula, part, setting.seeds)
        if source.all_there_are and not raw:  # a comparison leaves such settings out
            continue
        values = {seed: _towards_claim(value, part) for seed, value in raw.items()}
        try:
            ruling = _rule(part, list(values.values()), problem, source, level)
        except ValueError as error:
            raise ValueError(f"{setting.name}: {error}") from error
        yield setting, formula, values, ruling


def _combined(part: Part, rulings: Sequence[Ruling]) -> Ruling:
    if not rulings:
        return Ruling("open", reason="no records")
    return combine_settings(rulings, part.amount.value if part.amount is not None else 0.0)


def _towards_claim(value: float, part: Part) -> float:
    """The value, or for a *bound* its distance from the threshold, positive towards the claim."""
    if part.above is not None:
        return value - part.above
    return part.below - value if part.below is not None else value


def _rule(
    part: Part, values: Sequence[float], problem: str, source: _Records, level: Level
) -> Ruling:
    """Apply the rule of the part's kind; a ``problem`` with the values leaves the word *open*."""
    assert part.kind is not None
    if part.kind == "truth":
        return rule_truth(values, part.chance, reason=problem)
    if part.kind == "exact":
        assert part.tolerance is not None
        certified: list[float] = []
        if part.certifying is not None:
            # 0 proves no violation; `rule_exact` would take an empty list for "no certificate"
            certified = list(source.values(part.certifying, part)[0].values()) or [0.0]
        return rule_exact(values, part.tolerance, certified, reason=problem)
    worth = part.amount.value if part.amount is not None else 0.0
    return rule_values(values, worth, part.kind, level=level, reason=problem)


def _effect(
    part: Part,
    setting: Setting,
    formula: Formula,
    ruling: Ruling,
    values: dict[int, float],
    source: _Records,
) -> Effect:
    """Put together what is shown of a setting: its ruling, then stability, power and the like."""
    amount = part.amount
    claim = source.claim
    effect = Effect(
        part=part.name,
        name=setting.name,
        formula=formula.text + (f" of {formula.metric}" if formula.metric else ""),
        kind=str(part.kind),
        worth=amount.value if amount is not None else None,
        unit=part.shown_unit,
        shift=part.above if part.above is not None else part.below or 0.0,
        side=-1 if part.below is not None else 1,
        word=ruling.word,
        addition=ruling.addition,
        reason=ruling.reason,
        n=ruling.n,
        values=values,
        mean=ruling.mean,
        sd=ruling.sd,
        sign=ruling.sign,
        size=ruling.size,
    )
    if part.kind in ("truth", "exact") or ruling.sd is None or not ruling.sd > 0:
        return effect
    counted = list(values.values())
    if part.kind == "timing":
        if len(counted) < MIN_BLOCKS:
            return effect
        counted = fifths(counted)
    worth = amount.value if amount is not None else 0.0
    if len(counted) >= 3:
        effect = replace(effect, skew=_large_skew(counted))
    if len(counted) >= 5:
        assert part.kind is not None
        effect = replace(
            effect,
            stability=stability(counted, worth, part.kind) if ruling.word != "open" else None,
            detectable=detectable_effect(ruling.sd, len(counted)),
        )
    if part.kind != "timing" and (items := source.items(formula, values)) is not None:
        effect = replace(effect, other_items=interval_for_other_items(counted, items))
    if ruling.word == "open" and worth > 0:
        needed = seeds_for_power(worth / ruling.sd)
        if needed is None or needed > len(counted):  # otherwise more seeds are not the remedy
            effect = replace(effect, seeds_needed=needed)
    if claim.published.effect is not None and part.kind == "effect":
        published = type(amount).parse(claim.published.effect) if amount is not None else None
        if published is not None:
            power = float(power_of_sign(published.value / ruling.sd, len(counted)))
            effect = replace(effect, power=power)
    return effect


def _large_skew(values: Sequence[float]) -> float | None:
    """Skewness of the values if its size exceeds `SKEWED` and they are fewer than `FEW`."""
    mean = math.fsum(values) / len(values)
    second = math.fsum((v - mean) ** 2 for v in values) / len(values)
    if second == 0 or len(values) >= FEW:
        return None
    skew = math.fsum((v - mean) ** 3 for v in values) / len(values) / second**1.5
    return skew if abs(skew) > SKEWED else None


def _unfinished_arms(records: Sequence[Record]) -> dict[str, str]:
    """Arms of which too many runs did not meet their plateau rule, each with a reason in words."""
    counted = [e for e in records if "plateau" in e and not e.get("demonstration", False)]
    reasons = {}
    for arm in sorted({each["arm"] for each in counted}):
        met = [bool(each["plateau"]) for each in counted if each["arm"] == arm]
        if 100 * sum(met) < MIN_PLATEAU_PERCENT * len(met):
            reasons[arm] = (
                f"arm {arm}: {sum(met)} of {len(met)} runs met their plateau rule (< 90 %)"
            )
    return reasons
