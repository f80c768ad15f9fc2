"""The claims ledger: what was claimed, by whom, and the rule that will decide it."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from companion.evidence.formulas import Formula, Function, source_hash

__all__ = [
    "MIN_SEEDS",
    "Beside",
    "Claim",
    "Criterion",
    "Kind",
    "Power",
    "Region",
    "Source",
    "criterion_hash",
    "load_ledger",
]

Kind = Literal["exact", "statistical", "timing"]
MIN_SEEDS = {"exact": 1, "statistical": 5, "timing": 20}
# libyaml reads the ledgers ten times faster; it is not in every build of PyYAML
_LOADER: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
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
    """One number, as a `Formula`, and one of three rules.

    Statistical: two regions. Exact: a ``tolerance``, and ``violation`` may be a formula that certifies
    a violation (without it the number certifies itself). Timing: a ``target`` ratio for the log-ratio,
    passed up to 5 % more.
    """

    estimand: str
    number: str
    of: str = ""
    unit: str
    reproduced: str | None = None
    contradicted: str | None = None
    tolerance: float | None = Field(default=None, ge=0)
    violation: str | None = None
    target: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _has_one_rule(self) -> Criterion:
        given = self.model_fields_set - {"estimand", "number", "of", "unit", "violation"}
        if given not in ({"reproduced", "contradicted"}, {"tolerance"}, {"target"}):
            rules = "reproduced and contradicted, or tolerance, or target"
            raise ValueError(f"{self.estimand}: give {rules}; got {sorted(given)}")
        if self.violation is not None and self.kind != "exact":
            raise ValueError(f"{self.estimand}: violation belongs to tolerance")
        _ = self.formula, self.certificate  # refuses what is no formula
        for one, other in itertools.permutations(self.regions, 2):
            if all(any(c <= a and b <= d for c, d in other.pieces) for a, b in one.pieces):
                raise ValueError(f"{self.estimand}: '{one}' lies inside '{other}'")
        return self

    @property
    def formula(self) -> Formula:
        """The number."""
        return Formula(self.number, self.of)

    @property
    def certificate(self) -> Formula | None:
        """What certifies a violation of an exact rule, if it is another number."""
        return Formula(self.violation, self.of) if self.violation is not None else None

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
    """One entry of the ledger; ``seeds_at_full`` are those that the full profile decides with."""

    id: str = Field(pattern=r"^[a-z]+\.\d+$")
    tier: Literal["headline", "extended"]
    statement: str
    source: Source
    kind: Kind
    all_of: tuple[Criterion, ...] | None = None
    beside: Beside | None = None
    arms: tuple[str, ...] | None = None
    seeds: int = Field(default=10, ge=1)
    seeds_at_full: int | None = Field(default=None, ge=1)
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
            if self.seeds_at_full is not None and self.seeds_at_full < self.seeds:
                raise ValueError(f"seeds_at_full is below seeds: {self.seeds_at_full}")
            power = self.power.power if self.power else None
            if self.tier == "headline" and (power is None or power < 0.8):
                raise ValueError(f"a headline claim states a power of at least 0.8, got {power}")
        return self

    def at(self, profile: str) -> Claim:
        """The claim as a profile decides it: with ``seeds_at_full`` seeds at *full*."""
        if profile != "full" or self.seeds_at_full is None:
            return self
        return self.model_copy(update={"seeds": self.seeds_at_full})


def load_ledger(path: Path | str) -> list[Claim]:
    """Read the claims of one chapter; a ValueError names the file, the claim and the fault."""
    try:
        entries = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_LOADER)  # noqa: S506
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


def criterion_hash(claim: Claim, functions: Mapping[str, Function]) -> str:
    """Hash what decides: formulas, rules, seeds and confidence, never the wording.

    Args:
        claim: The claim.
        functions: Functions of the chapter; the source of those that a formula calls counts.

    Returns:
        Hexadecimal sha256.
    """
    deciding = {"kind", "all_of", "beside", "arms", "seeds", "confidence"}
    plain = claim.model_dump(mode="json", include=deciding, exclude_none=True)
    criteria = [*(claim.all_of or ()), *(claim.beside.all_of if claim.beside else ())]
    formulas = [f for each in criteria for f in (each.formula, each.certificate) if f is not None]
    called = sorted({name for formula in formulas for name in formula.functions})
    plain["functions"] = {name: source_hash(functions[name]) for name in called}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
