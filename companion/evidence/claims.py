"""Judge the claims of the ledger on records: verdicts by rule.

A record is the plain mapping of one run (``arm``, ``seed``, ``metrics`` ...); an estimand is a
function from all records of one seed to one float. The rules are those of design §4. Where that
page leaves a choice:

- *statistical* and *timing* use exactly the first ``seeds`` seeds (5 and 20 at least; a block of
  timing is a seed), at *full* the first ``seeds_at_full``, so that runs cannot be added until the
  verdict changes.
- Too few runs, a KeyError in an estimand and a value that is not finite make that estimand
  *inconclusive*, with the reason. A claim without any record is *not tested*, and so is one whose
  ``arms`` are not all there and none of whose estimands has a value: another profile runs it.
- *exact* is |value| <= tolerance on every seed there is. A certified violation contradicts even
  where other seeds are missing.
- ``arms`` limits the records that a claim sees, and the plateau rule with it, to those arms.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from companion.evidence.formulas import Formula, Function
from companion.evidence.ledger import MIN_SEEDS, Claim, Criterion, Region, criterion_hash
from companion.evidence.statistics import seeds_needed, t_interval

__all__ = [
    "Estimate",
    "Judgement",
    "decide",
    "expected_false_reproduced",
    "judge",
    "round_numbers",
    "verdicts_json",
]

Record = Mapping[str, Any]
Verdict = Literal["reproduced", "contradicted", "inconclusive", "not tested"]

MIN_PLATEAU_PERCENT = 90
TIMING_SLACK = 1.05
_MISSING_ARM = "no records of arm"


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

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Judgement:
        """Read back what `to_json` has made; a missing or unknown field raises a TypeError."""
        fields = {k: v for k, v in plain.items() if k not in ("under_powered", "seeds_needed")}
        beside = fields.pop("beside")
        if beside is not None:
            beside = {**beside, "estimates": tuple(map(_read_estimate, beside["estimates"]))}
        estimates = tuple(map(_read_estimate, fields.pop("estimates")))
        return cls(**fields, estimates=estimates, beside=beside)


def _read_estimate(plain: Mapping[str, Any]) -> Estimate:
    values = {int(seed): value for seed, value in plain["values"].items()}
    return Estimate(**{**plain, "values": values})


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


def decide(low: float, high: float, reproduced: Region, contradicted: Region) -> Verdict:
    """The statistical rule for one interval; *reproduced* comes first."""
    if reproduced.contains_interval(low, high):
        return "reproduced"
    return "contradicted" if contradicted.contains_interval(low, high) else "inconclusive"


def judge(claim: Claim, records: Sequence[Record], functions: Mapping[str, Function]) -> Judgement:
    """Judge one claim.

    Args:
        claim: The entry of the ledger.
        records: All runs of the chapter. Statistical claims refuse the pilot seeds 0-99.
        functions: Functions of the chapter that formulas may call; an unknown one raises a ValueError.
    """
    judgement = Judgement(
        **claim.model_dump(include={"id", "tier", "kind", "statement", "confidence"}),
        published=claim.source.published,
        read=claim.source.read,
        criterion_hash=criterion_hash(claim, functions),
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

    def measure(
        name: str, formula: Formula, kind: str, needed: int
    ) -> tuple[dict[int, float], str]:
        """Finite values by seed, and why they are not all that the rule needs."""
        values: dict[int, float] = {}
        absent = undefined = ""
        for seed in sorted(by_seed)[: None if kind == "exact" else needed]:
            try:
                value = formula.evaluate(by_seed[seed], functions)
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

    found = apply(claim.all_of)
    if blocked.startswith(_MISSING_ARM) and not any(each.n for each in found["estimates"]):
        return replace(judgement, reason=blocked)  # this profile leaves the claim's runs out
    if claim.beside:
        beside = {"label": claim.beside.label, **apply(claim.beside.all_of)}
        judgement = replace(judgement, beside=beside)
    return replace(judgement, **found)


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
        return f"{_MISSING_ARM} {missing[0]!r}"
    counted = [e for e in records if "plateau" in e and not e.get("demonstration", False)]
    for arm in arms:
        met = [bool(each["plateau"]) for each in counted if each["arm"] == arm]
        if 100 * sum(met) < MIN_PLATEAU_PERCENT * len(met):
            return f"arm {arm!r}: {sum(met)} of {len(met)} runs met their plateau rule (< 90 %)"
    return ""


def _judge_one(
    rule: Criterion,
    claim: Claim,
    measure: Callable[[str, Formula, str, int], tuple[dict[int, float], str]],
) -> Estimate:
    """Judge one criterion; with too few values it shows its interval but gets no verdict."""
    name = rule.estimand
    values, problem = measure(name, rule.formula, rule.kind, max(claim.seeds, MIN_SEEDS[rule.kind]))
    shown = rule.model_dump(exclude={"estimand", "number", "of", "unit"}, exclude_none=True)
    estimate = Estimate(
        name, rule.unit, shown, "inconclusive", problem, n=len(values), values=values
    )
    if rule.tolerance is not None:
        if values:
            x = list(values.values())
            mean = math.fsum(x) / len(x)
            estimate = replace(estimate, mean=mean, low=min(x), high=max(x))
        certified = {seed: abs(value) for seed, value in values.items()}
        if rule.certificate is not None:
            certified, undefined = measure(
                name, rule.certificate, "exact", 0
            )  # 0: where there is one
            problem = problem or undefined
        for seed, value in certified.items():
            if value > rule.tolerance:
                reason = f"{name}: seed {seed}: {value:.6g} > {rule.tolerance:g}"
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
