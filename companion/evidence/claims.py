"""Judge the claims of the ledger on records: words by rule.

A record is the plain mapping of one run (``arm``, ``seed``, ``metrics``, ``curves``). The rule is
`companion.evidence.rule`; here values are gathered, and what stands in the way of a word is said:

- The first ``count`` seeds from the ledger's start decide, so that runs cannot be added until the
  word changes. *exact* takes every seed there is; a violation refutes even where others miss.
- Too few seeds, a missing arm or metric, a value that is not finite: *open*, with the reason.
- An arm of which more than a tenth of the runs did not meet their plateau rule decides nothing.
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
SKEWED, FEW = 1.5, 24  # such skewness with fewer seeds is said


@dataclass(frozen=True)
class Effect:
    """One setting judged.

    Attributes:
        part: Name of the part it belongs to; empty in a claim of one.
        name: The setting.
        formula: The number, as the ledger has it.
        kind: Kind of the claim or part.
        worth: Smallest effect worth having, in the unit of the values; ``None`` without one.
        unit: ``percent`` or ``factor`` for logarithms of ratios, else the unit of the values.
        shift: Threshold of a *bound*: values are distances from it on the side of the claim.
        side: 1, or -1 where the claim is to lie below the threshold.
        word: Word of the setting.
        addition: What narrows it.
        reason: Why it is open or refuted, where that can be said.
        n: Seeds, blocks or cases.
        values: By seed.
        mean: Of the values.
        sd: Their standard deviation; of the fifths of a timing.
        sign: Interval of 99 %, for the sign.
        size: Interval of 95 %, for the size; the extremes of an *exact* claim.
        stability: Share of resamples with the same word.
        skew: Skewness, where it is large and the seeds are few.
        seeds_needed: Seeds for 80 % power at an effect of ``worth``, of an open setting that has
            fewer.
        detectable: Smallest effect that 80 % power would find.
        power: Power for the published effect.
        other_items: Interval of 95 % of the mean for other test items of the same kind as well as
            other seeds, where the records hold what became of each item.
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
    """An effect beside a claim: judged and shown, never deciding."""

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
        statement: The claim.
        note: What a reader should know beside it.
        published: What was published.
        read: What of the work could be read.
        where: Where in the work.
        front: The claim in a few words, if it stands on the front page.
        published_effect: The published size, where there is one number.
        posed: Before or after the data.
        criterion: Hash of the rule.
        kind: Common kind of its parts, or ``parts``.
        worth: Common smallest effect in words, or empty.
        word: The word.
        addition: What narrows it.
        reason: Why it is open, where that can be said.
        effects: The settings that decide.
        beside: What is shown beside.
        pooled: What the settings of each part say together.
        records: Name of the record set that was judged: ``full`` or ``standard``.
        early: Whether that set was made before canonical mode.
        standard_word: Word of the canonical standard records at the seeds they have, where the word
            itself is from others; empty without such records.
        standard_seeds: How many seeds those are, at least.
        standard_settings: How many of the settings they have.
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
        """Whether it counts for or against the works."""
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
    """Lists of two ends as pairs again."""
    return {**plain, **{name: tuple(plain[name]) if plain[name] else None for name in names}}


def round_numbers(value: Any) -> Any:
    """Copy plain data with text keys, floats of 12 significant digits, no -0, NaN or inf."""
    if isinstance(value, Mapping):
        return {str(key): round_numbers(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [round_numbers(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"cannot write {value} to JSON")
    return float(f"{value:.12g}") + 0.0 if isinstance(value, float) else value


def verdicts_json(judgements: Sequence[Judgement]) -> str:
    """Text of a file of verdicts: equal bytes for equal judgements."""
    plain = [each.to_json() for each in judgements]
    return json.dumps(plain, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


@dataclass
class _Records:
    """The records that a claim may read, by seed, with what they can be asked."""

    claim: Claim
    by_seed: dict[int, list[Record]]
    functions: Mapping[str, Function]
    all_there_are: bool
    blocked: dict[str, str] = field(default_factory=dict)

    def values(
        self, formula: Formula, part: Part, seeds: int | None = None
    ) -> tuple[dict[int, float], str]:
        """Finite values by seed, and why they are not all that the rule needs."""
        count = seeds or self.claim.seeds.count
        needed = 1 if part.kind == "exact" or self.all_there_are else count
        values: dict[int, float] = {}
        absent = undefined = ""
        there = sorted(self.by_seed)
        if part.kind != "exact":
            there = [seed for seed in there if seed >= self.claim.seeds.start][:count]
        for seed in there:
            try:
                value = formula.evaluate(self.by_seed[seed], self.functions)
            except KeyError as error:
                absent = absent or str(error.args[0])
                continue
            if math.isfinite(value):
                values[seed] = value
            else:
                undefined = undefined or f"seed {seed} gives {value}"
        if blocked := next((self.blocked[arm] for arm in formula.arms if arm in self.blocked), ""):
            return values, blocked
        if not undefined and len(values) < needed:
            what = "blocks" if part.kind == "timing" else "seeds"
            undefined = f"{len(values)} of {needed} {what}" + (f": {absent}" if absent else "")
        return values, undefined

    def items(self, formula: Formula, seeds: Iterable[int]) -> Items | None:
        """The number of each test item, a row a seed; ``None`` where the records have no items."""
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
        known_arms: Arms of the chapter, to refuse a formula that names another; not asked without.
        all_there_are: Whether fewer seeds than the ledger's count, and fewer settings, may decide:
            for comparing record sets, never for the word of a claim.

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
        raise ValueError(f"claim {claim.id}: unknown arm {unknown[0]!r}")
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
    return values[0] if len(set(values)) == 1 else ""


_Judged = tuple[Ruling, tuple[Effect, ...], tuple[Pooled, ...]]


def _judge_parts(claim: Claim, source: _Records) -> _Judged:
    judged = [_judge_part(part, source, Level()) for part in claim.parts]
    effects = tuple(effect for _, each, _ in judged for effect in each)
    pooled = tuple(each for _, _, several in judged for each in several)
    words = [ruling for ruling, _, _ in judged]
    if len(words) == 1:
        return words[0], effects, pooled
    level = Level().among(len(words))
    corrected = [
        _combined(part, [ruling for _, _, _, ruling in _rulings(part, source, level)])
        for part in claim.parts
    ]
    return (combine_or if claim.any_of else combine_and)(words, corrected), effects, pooled


def _judge_part(part: Part, source: _Records, level: Level) -> _Judged:
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
    """Each setting with its formula, its values towards the claim and what they say."""
    for setting, formula in zip(part.settings, part.formulas, strict=True):
        raw, problem = source.values(formula, part, setting.seeds)
        if source.all_there_are and not raw:
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
    """A value in the direction of the claim, measured from the threshold of a *bound*."""
    if part.above is not None:
        return value - part.above
    return part.below - value if part.below is not None else value


def _rule(
    part: Part, values: Sequence[float], problem: str, source: _Records, level: Level
) -> Ruling:
    assert part.kind is not None
    if part.kind == "truth":
        return rule_truth(values, part.chance, reason=problem)
    if part.kind == "exact":
        assert part.tolerance is not None
        certified: list[float] = []
        if part.certifying is not None:
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
        if needed is None or needed > len(counted):  # else such an effect was likely to be found
            effect = replace(effect, seeds_needed=needed)
    if claim.published.effect is not None and part.kind == "effect":
        published = type(amount).parse(claim.published.effect) if amount is not None else None
        if published is not None:
            power = float(power_of_sign(published.value / ruling.sd, len(counted)))
            effect = replace(effect, power=power)
    return effect


def _large_skew(values: Sequence[float]) -> float | None:
    """Skewness, if it is large and there are few values."""
    mean = math.fsum(values) / len(values)
    second = math.fsum((v - mean) ** 2 for v in values) / len(values)
    if second == 0 or len(values) >= FEW:
        return None
    skew = math.fsum((v - mean) ** 3 for v in values) / len(values) / second**1.5
    return skew if abs(skew) > SKEWED else None


def _unfinished_arms(records: Sequence[Record]) -> dict[str, str]:
    """Arms of which too many runs did not meet their plateau rule, with a sentence that says so."""
    counted = [e for e in records if "plateau" in e and not e.get("demonstration", False)]
    said = {}
    for arm in sorted({each["arm"] for each in counted}):
        met = [bool(each["plateau"]) for each in counted if each["arm"] == arm]
        if 100 * sum(met) < MIN_PLATEAU_PERCENT * len(met):
            said[arm] = f"arm {arm}: {sum(met)} of {len(met)} runs met their plateau rule (< 90 %)"
    return said
