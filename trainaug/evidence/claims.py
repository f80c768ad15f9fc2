"""The claims ledger: what was claimed, the rule that decides it, and the verdict.

A record is the plain mapping of one run (``arm``, ``seed``, ``metrics`` ...); an estimand is a
function from all records of one seed to one float. The rules are those of design §4. Where that
page leaves a choice:

- *statistical* and *timing* use exactly the first ``seeds`` seeds (5 and 20 at least; a block of
  timing is a seed), so that runs cannot be added until the verdict changes.
- Too few runs, a KeyError in an estimand and a value that is not finite make that estimand
  *inconclusive*, with the reason. A claim without any record is *not tested*.
- *exact* is |value| <= tolerance on every seed there is. A certified violation contradicts even
  where other seeds are missing.
- ``arms`` limits the records that a claim sees, and the plateau rule with it, to those arms.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trainaug.evidence.statistics import seeds_needed, t_interval

__all__ = [
    "Beside",
    "Claim",
    "Criterion",
    "Estimate",
    "Judgement",
    "Power",
    "Region",
    "Source",
    "criterion_hash",
    "decide",
    "expected_false_reproduced",
    "judge",
    "load_ledger",
    "round_numbers",
    "verdicts_json",
]

Record = Mapping[str, Any]
Estimand = Callable[[Sequence[Record]], float]
Kind = Literal["exact", "statistical", "timing"]
Verdict = Literal["reproduced", "contradicted", "inconclusive", "not tested"]

MIN_SEEDS = {"exact": 1, "statistical": 5, "timing": 20}
MIN_PLATEAU_PERCENT = 90
TIMING_SLACK = 1.05
_NUMBER = r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*"
_REGION = re.compile(rf"\s*(?:(>=|<=|>|<){_NUMBER}|(in|outside)\s*\({_NUMBER},{_NUMBER}\)\s*)")


@dataclass(frozen=True)
class Region:
    """``> a``, ``>= a``, ``< a``, ``<= a``, ``in (a, b)`` without ends, or its rest ``outside``.

    Example:
        >>> Region.parse("in (-1, 1)").contains_interval(-0.5, 0.9)
        True
    """

    op: str
    bounds: tuple[float, ...]

    @classmethod
    def parse(cls, text: str) -> Region:
        """Read one of the six forms; anything else raises a ValueError that shows the text."""
        if not (found := _REGION.fullmatch(text)):
            forms = "'> a', '>= a', '< a', '<= a', 'in (a, b)', 'outside (a, b)'"
            raise ValueError(f"not a region: {text!r}; write one of {forms}")
        op, *numbers = [group for group in found.groups() if group is not None]
        bounds = tuple(map(float, numbers))
        if not all(map(math.isfinite, bounds)) or list(bounds) != sorted(set(bounds)):
            raise ValueError(f"the ends of a region must be finite and increasing: {text!r}")
        return cls(op, bounds)

    def __str__(self) -> str:
        ends = ", ".join(map(repr, self.bounds))
        return f"{self.op} ({ends})" if len(self.bounds) == 2 else f"{self.op} {ends}"

    @property
    def pieces(self) -> list[tuple[float, float]]:
        """The region as one or two intervals; ends may be infinite."""
        a, b = self.bounds[0], self.bounds[-1]
        below, above = (-math.inf, a), (b, math.inf)
        return {"<": [below], ">": [above], "i": [(a, b)], "o": [below, above]}[self.op[0]]

    def contains_interval(self, low: float, high: float) -> bool:
        """Whether all of ``[low, high]`` lies in the region."""
        if not low <= high:
            raise ValueError(f"expected low <= high, got {low} and {high}")
        if self.op in (">=", "<=", "outside"):
            return any(a <= low and high <= b for a, b in self.pieces)
        return any(a < low and high < b for a, b in self.pieces)


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Criterion(_Entry):
    """One estimand and one of three rules.

    Statistical: two regions. Exact: a ``tolerance``, and ``violation`` may name an estimand that
    certifies a violation (without it the estimand certifies itself). Timing: a ``target`` ratio
    for the log-ratio, passed up to 5 % more.
    """

    estimand: str
    unit: str
    reproduced: str | None = None
    contradicted: str | None = None
    tolerance: float | None = Field(default=None, ge=0)
    violation: str | None = None
    target: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _has_one_rule(self) -> Criterion:
        given = self.model_fields_set - {"estimand", "unit", "violation"}
        if given not in ({"reproduced", "contradicted"}, {"tolerance"}, {"target"}):
            rules = "reproduced and contradicted, or tolerance, or target"
            raise ValueError(f"{self.estimand}: give {rules}; got {sorted(given)}")
        if self.violation is not None and self.kind != "exact":
            raise ValueError(f"{self.estimand}: violation belongs to tolerance")
        for one, other in itertools.permutations(self.regions, 2):
            if all(any(c <= a and b <= d for c, d in other.pieces) for a, b in one.pieces):
                raise ValueError(f"{self.estimand}: '{one}' lies inside '{other}'")
        return self

    @property
    def kind(self) -> Kind:
        """The kind of rule."""
        if self.tolerance is not None:
            return "exact"
        return "statistical" if self.target is None else "timing"

    @property
    def regions(self) -> list[Region]:
        """The regions *reproduced* and *contradicted* of a statistical rule."""
        return [Region.parse(text) for text in (self.reproduced, self.contradicted) if text]

    @property
    def smallest_effect(self) -> float | None:
        """Least distance between bounds of the two regions, or half an ``in`` if that is less.

        ``None`` for ``> 0`` beside ``<= 0``: equal bounds state no smallest effect.
        """
        pairs = itertools.combinations((region.bounds for region in self.regions), 2)
        distances = {abs(a - b) for one, other in pairs for a in one for b in other}
        distances |= {(r.bounds[1] - r.bounds[0]) / 2 for r in self.regions if r.op == "in"}
        return min(distances - {0.0}, default=None)


class Source(_Entry):
    """Where the claim was made, the number published, and what of the work could be read."""

    work: str
    where: str
    published: str
    read: Literal["text", "abstract", "code", "logs", "secondary", "recalled"]


class Power(_Entry):
    """Sd of the pilot, and predicted power for one of the two verdicts with n seeds."""

    pilot_sd: float = Field(ge=0)
    n: int = Field(ge=2)
    power: float = Field(ge=0, le=1)


class Beside(_Entry):
    """A second rule, judged and shown beside the verdict, never deciding it."""

    label: str
    all_of: tuple[Criterion, ...]


class Claim(_Entry):
    """One entry of the ledger."""

    id: str = Field(pattern=r"^[a-z]+\.\d+$")
    tier: Literal["headline", "extended"]
    statement: str
    source: Source
    kind: Kind
    all_of: tuple[Criterion, ...] | None = None
    beside: Beside | None = None
    arms: tuple[str, ...] | None = None
    seeds: int = Field(default=10, ge=1)
    confidence: float = Field(default=0.95, gt=0, lt=1)
    power: Power | None = None
    not_tested: str | None = None

    @model_validator(mode="after")
    def _can_be_decided(self) -> Claim:
        if bool(self.all_of) == bool(self.not_tested):
            raise ValueError("give either all_of or not_tested with the reason")
        if self.beside and not self.beside.all_of:
            raise ValueError(f"beside {self.beside.label!r} has an empty all_of")
        for each in self.all_of or ():
            if each.kind != self.kind:
                raise ValueError(f"{each.estimand}: {each.kind} rule in a {self.kind} claim")
        if self.kind == "statistical" and self.all_of:
            if self.seeds < MIN_SEEDS["statistical"]:
                raise ValueError(f"a statistical claim needs at least 5 seeds, got {self.seeds}")
            power = self.power.power if self.power else None
            if self.tier == "headline" and (power is None or power < 0.8):
                raise ValueError(f"a headline claim states a power of at least 0.8, got {power}")
        return self


@dataclass(frozen=True)
class Estimate:
    """One criterion judged; for *exact*, ``low`` and ``high`` are the extremes over seeds."""

    estimand: str
    unit: str
    rule: dict[str, Any]
    verdict: Verdict
    reason: str
    n: int
    values: dict[int, float]
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    sd: float | None = None
    under_powered: bool = False
    seeds_needed: int | None = None


@dataclass(frozen=True)
class Judgement:
    """One claim judged; ``beside`` holds label, verdict, reason and estimates of that rule."""

    id: str
    tier: str
    kind: str
    statement: str
    published: str
    read: str
    confidence: float
    criterion_hash: str
    verdict: Verdict = "not tested"
    reason: str = "no records"
    estimates: tuple[Estimate, ...] = ()
    beside: dict[str, Any] | None = None
    under_powered: bool = field(init=False)
    seeds_needed: int | None = field(init=False)

    def __post_init__(self) -> None:
        needed = max((each.seeds_needed or 0 for each in self.estimates), default=0)
        object.__setattr__(self, "under_powered", any(e.under_powered for e in self.estimates))
        object.__setattr__(self, "seeds_needed", needed or None)

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``verdicts.json``, rounded by :func:`round_numbers`."""
        plain: dict[str, Any] = round_numbers(asdict(self))
        return plain


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
    """Text of ``verdicts.json``: equal bytes for equal judgements."""
    plain = [each.to_json() for each in judgements]
    return json.dumps(plain, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def load_ledger(path: Path | str) -> list[Claim]:
    """Read the claims of one chapter; a ValueError names the file, the claim and the fault."""
    try:
        entries = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path}: expected a list of claims, got {type(entries).__name__}")
    claims: dict[str, Claim] = {}
    for number, entry in enumerate(entries, start=1):
        name = (entry.get("id") if isinstance(entry, dict) else None) or f"number {number}"
        try:
            claim = Claim.model_validate(entry)
        except ValidationError as error:
            faults = [(".".join(map(str, e["loc"])), e["msg"], e["input"]) for e in error.errors()]
            shown = "; ".join(f"{where}: {what}, got {value!r}" for where, what, value in faults)
            raise ValueError(f"{path}: claim {name}: {shown}") from error
        if claim.id in claims:
            raise ValueError(f"{path}: claim {name} occurs twice")
        claims[claim.id] = claim
    return list(claims.values())


def criterion_hash(claim: Claim) -> str:
    """sha256 of what decides: kind, all_of, beside, arms, seeds, confidence; never of wording."""
    deciding = {"kind", "all_of", "beside", "arms", "seeds", "confidence"}
    plain = claim.model_dump(mode="json", include=deciding, exclude_none=True)
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def decide(low: float, high: float, reproduced: Region, contradicted: Region) -> Verdict:
    """The statistical rule for one interval; *reproduced* comes first."""
    if reproduced.contains_interval(low, high):
        return "reproduced"
    return "contradicted" if contradicted.contains_interval(low, high) else "inconclusive"


def judge(claim: Claim, records: Sequence[Record], estimands: Mapping[str, Estimand]) -> Judgement:
    """Judge one claim.

    Args:
        claim: The entry of the ledger.
        records: All runs of the chapter. Statistical claims refuse the pilot seeds 0-99.
        estimands: Every function that the ledger names; an unknown name raises a ValueError.
    """
    judgement = Judgement(
        **claim.model_dump(include={"id", "tier", "kind", "statement", "confidence"}),
        published=claim.source.published,
        read=claim.source.read,
        criterion_hash=criterion_hash(claim),
    )
    if claim.not_tested or not claim.all_of:
        return replace(judgement, reason=claim.not_tested or "")
    by_seed: dict[int, list[Record]] = {}
    for record in records:
        if claim.arms is None or record["arm"] in claim.arms:
            by_seed.setdefault(record["seed"], []).append(record)
    if not by_seed:
        return judgement
    if claim.kind == "statistical" and min(by_seed) < 100:
        raise ValueError(f"claim {claim.id}: seed {min(by_seed)} is a pilot seed (0-99)")
    blocked = _why_blocked(claim, [each for group in by_seed.values() for each in group])

    def measure(name: str, kind: str, needed: int) -> tuple[dict[int, float], str]:
        """Finite values by seed, and why they are not all that the rule needs."""
        if name not in estimands:
            raise ValueError(f"claim {claim.id}: {name!r} is not one of {sorted(estimands)}")
        values: dict[int, float] = {}
        absent = undefined = ""
        for seed in sorted(by_seed)[: None if kind == "exact" else needed]:
            try:
                value = float(estimands[name](by_seed[seed]))
            except KeyError as error:
                absent = absent or f" (seed {seed} has no {error})"
                continue
            if math.isfinite(value):
                values[seed] = value
            else:
                undefined = undefined or f"{name}: seed {seed} gives {value}"
        if not undefined and len(values) < needed:
            undefined = f"{name}: {len(values)} of {needed} seeds or blocks{absent}"
        return values, undefined

    def apply(criteria: Sequence[Criterion]) -> dict[str, Any]:
        estimates = [_judge_one(each, claim, measure) for each in criteria]
        if blocked:
            estimates = [replace(e, verdict="inconclusive", reason=blocked) for e in estimates]
        found = {each.verdict for each in estimates}
        verdict = "contradicted" if "contradicted" in found else "inconclusive"
        verdict = "reproduced" if found == {"reproduced"} else verdict
        reasons = dict.fromkeys(e.reason for e in estimates if e.verdict == verdict and e.reason)
        return {"verdict": verdict, "reason": "; ".join(reasons), "estimates": tuple(estimates)}

    if claim.beside:
        beside = {"label": claim.beside.label, **apply(claim.beside.all_of)}
        judgement = replace(judgement, beside=beside)
    return replace(judgement, **apply(claim.all_of))


def expected_false_reproduced(judgements: Sequence[Judgement]) -> float:
    """Number of false *reproduced* to expect from chance, at most.

    Where the truth sits on the edge of its region, an interval of confidence c falls inside with
    probability (1 - c) / 2. The sum of that over the statistical and timing claims judged is what
    to expect if every truth sat there. Exact claims add nothing.
    """
    drawn = [each for each in judgements if each.kind != "exact" and each.verdict != "not tested"]
    return math.fsum((1 - each.confidence) / 2 for each in drawn)


def _why_blocked(claim: Claim, records: Sequence[Record]) -> str:
    arms = sorted({each["arm"] for each in records})
    if missing := sorted(set(claim.arms or ()) - set(arms)):
        return f"no records of arm {missing[0]!r}"
    counted = [e for e in records if "plateau" in e and not e.get("demonstration", False)]
    for arm in arms:
        met = [bool(each["plateau"]) for each in counted if each["arm"] == arm]
        if 100 * sum(met) < MIN_PLATEAU_PERCENT * len(met):
            return f"arm {arm!r}: {sum(met)} of {len(met)} runs met their plateau rule (< 90 %)"
    return ""


def _judge_one(
    rule: Criterion, claim: Claim, measure: Callable[[str, str, int], tuple[dict[int, float], str]]
) -> Estimate:
    """Judge one criterion; with too few values it shows its interval but gets no verdict."""
    name = rule.estimand
    values, problem = measure(name, rule.kind, max(claim.seeds, MIN_SEEDS[rule.kind]))
    shown = rule.model_dump(exclude={"estimand", "unit"}, exclude_none=True)
    estimate = Estimate(
        name, rule.unit, shown, "inconclusive", problem, n=len(values), values=values
    )
    if rule.tolerance is not None:
        if values:
            x = list(values.values())
            mean = math.fsum(x) / len(x)
            estimate = replace(estimate, mean=mean, low=min(x), high=max(x))
        certified = {seed: abs(value) for seed, value in values.items()}
        if rule.violation is not None:
            certified, undefined = measure(rule.violation, "exact", 0)  # 0: where there is one
            problem = problem or undefined
        for seed, value in certified.items():
            if value > rule.tolerance:
                reason = f"{rule.violation or name}: seed {seed}: {value:.6g} > {rule.tolerance:g}"
                return replace(estimate, verdict="contradicted", reason=reason)
        for seed, value in values.items():
            if abs(value) > rule.tolerance:
                problem = problem or f"{name}: seed {seed} gives {value:.6g}, not certified"
        verdict: Verdict = "inconclusive" if problem else "reproduced"
        return replace(estimate, verdict=verdict, reason=problem)
    if len(values) < 2:
        return estimate
    interval = t_interval(list(values.values()), claim.confidence)
    estimate = replace(estimate, **interval._asdict())
    regions, effect = rule.regions, rule.smallest_effect
    if rule.target is not None:
        limit = math.log(rule.target * TIMING_SLACK)
        regions = [Region("<=", (limit,)), Region(">", (limit,))]
    if effect is not None and (interval.high - interval.low) / 2 > effect:
        needed = seeds_needed(interval.sd, effect, claim.confidence)
        estimate = replace(estimate, under_powered=True, seeds_needed=needed)
    if problem:
        return estimate
    verdict = decide(interval.low, interval.high, *regions)
    if verdict == "reproduced":
        reason = f"{name}: all {interval.n} values are equal" if interval.sd == 0 else ""
    else:
        where = f"inside '{regions[1]}'" if verdict == "contradicted" else "inside neither region"
        reason = f"{name}: [{interval.low:.6g}, {interval.high:.6g}] is {where}"
    return replace(estimate, verdict=verdict, reason=reason)
