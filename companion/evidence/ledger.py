"""The claims ledger: what was claimed, by whom, and the rule that will decide it."""

from __future__ import annotations

import hashlib
import json
import math
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from companion.evidence.formulas import Formula, Function, source_hash
from companion.evidence.names import did_you_mean
from companion.evidence.rule import MIN_BLOCKS, MIN_SEEDS, Kind

__all__ = [
    "AFTER",
    "JUDGE_VERSION",
    "Beside",
    "Claim",
    "Part",
    "Published",
    "Seeds",
    "Setting",
    "Worth",
    "criterion_hash",
    "load_ledger",
]

# Part of every `criterion_hash`: raising it makes the rule of every claim a changed one.
JUDGE_VERSION = 2
AFTER = "after the data"
WITH_WORTH: frozenset[Kind] = frozenset({"effect", "none", "not_less", "timing"})
# libyaml reads the ledgers ten times faster; it is not in every build of PyYAML
_LOADER: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
LONGEST_SHOWN = 80  # characters of a wrong value in a message
_NUMBER = r"(\d+\.?\d*|\.\d+)"
_AMOUNT = re.compile(rf"(?:factor {_NUMBER}|{_NUMBER} (\S.*))")


@dataclass(frozen=True)
class Worth:
    """An amount in the unit of a claim: the smallest effect worth having, or a published effect.

    Percentages and factors belong to ratios, whose values are logarithms: ``20 percent`` fewer is
    ``-log(0.8)``, ``factor 2`` is ``log(2)``.

    Args:
        value: The amount in the unit of the values, so a logarithm for ratios.
        unit: ``percent`` or ``factor`` for logarithms of ratios, else the unit as it is shown.
        text: The amount as the ledger writes it.

    Example:
        >>> round(Worth.parse("20 percent").value, 3)
        0.223
    """

    value: float
    unit: str
    text: str

    @classmethod
    def parse(cls, text: str) -> Worth:
        """Read ``1.0 points``, ``20 percent`` or ``factor 2``.

        Raises:
            ValueError: If the text has none of these forms, or the amount is not positive.
        """
        match = _AMOUNT.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"write '1.0 points', '20 percent' or 'factor 2', got {text!r}")
        factor, amount, unit = match.groups()
        if factor is not None:
            unit = "factor"
            value = math.log(float(factor)) if float(factor) > 0 else 0.0  # 0 is refused below
        elif unit == "percent":
            share = float(amount) / 100
            value = -math.log(1 - share) if share < 1 else math.inf
        else:
            value = float(amount)
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"the smallest effect worth having must be positive, got {text!r}")
        return cls(value, unit, text.strip())

    @property
    def is_ratio(self) -> bool:
        """Whether values are logarithms of ratios."""
        return self.unit in ("percent", "factor")


class _Entry(BaseModel):
    """Base of all entries: unknown fields, later changes, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Published(_Entry):
    """What was published, where, and what of the work could be read.

    ``effect`` is the published size in the unit of ``worth``, where there is one.
    """

    value: str
    where: str
    work: str
    read: Literal["text", "abstract", "code", "logs", "secondary", "recalled"]
    effect: str | None = None


class Seeds(_Entry):
    """The seeds that decide: the first ``count`` from ``start`` on."""

    start: int = Field(default=1000, alias="from", ge=100)  # below are pilots
    count: int = Field(default=12, ge=1)


class Setting(_Entry):
    """One number of a claim, positive where it supports the claim.

    ``seeds`` is the number of seeds that decide it, if that differs from the claim's.
    """

    name: str
    number: str
    of: str = ""
    seeds: int | None = Field(default=None, ge=MIN_SEEDS)


class _Rule(_Entry):
    """The fields that one effect has, whether it is a whole claim or a part of one."""

    kind: Kind | None = None
    worth: str | None = None
    unit: str | None = None
    of: str = ""
    settings: tuple[Setting, ...] = ()
    above: float | None = None
    below: float | None = None
    tolerance: float | None = Field(default=None, ge=0)
    certificate: str | None = None
    chance: float = Field(default=0.5, gt=0, lt=1)


class Part(_Rule):
    """One effect: a kind, its settings in one unit, and what its kind needs.

    ``effect``, ``none``, ``not_less`` and ``timing`` have a ``worth``. ``bound`` has ``above`` or
    ``below``, ``exact`` a ``tolerance`` and may have a ``certificate``, a formula for violations
    that are proved; they and ``truth`` have a ``unit``.
    """

    name: str = ""

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> Part:
        """Refuse a part without a field that its kind needs, or with one of another kind."""
        if self.kind is None:
            raise ValueError("give a kind")
        if not self.settings:
            raise ValueError("give settings, each with a name and a number")
        names = [setting.name for setting in self.settings]
        if len(set(names)) < len(names):
            raise ValueError(f"two settings have one name: {names}")
        needed = {
            "bound": (self.above is None) != (self.below is None),
            "exact": self.tolerance is not None,
        }
        if not needed.get(self.kind, True):
            raise ValueError(f"{self.kind}: give {self._missing()}")
        if self.kind in WITH_WORTH:
            if self.worth is None:
                raise ValueError(f"{self.kind}: give worth, the smallest effect worth having")
            if self.unit is not None:
                raise ValueError(f"{self.kind}: worth has the unit; remove unit")
            Worth.parse(self.worth)
        else:
            if self.worth is not None:
                raise ValueError(f"{self.kind} has no worth: remove it")
            if self.unit is None:
                raise ValueError(f"{self.kind}: give the unit of the number")
        kinds = {"above": "bound", "below": "bound", "tolerance": "exact", "certificate": "exact"}
        for name, kind in kinds.items():
            if getattr(self, name) is not None and kind != self.kind:
                raise ValueError(f"{self.kind} has no {name}: that belongs to {kind}")
        _ = self.formulas, self.certifying  # making them refuses text that is no formula
        return self

    def _missing(self) -> str:
        return "one of above and below" if self.kind == "bound" else "tolerance"

    @property
    def amount(self) -> Worth | None:
        """The smallest effect worth having, of the kinds that have one."""
        return Worth.parse(self.worth) if self.worth is not None else None

    @property
    def shown_unit(self) -> str:
        """Unit of the number as readers see it."""
        amount = self.amount
        return amount.unit if amount is not None else str(self.unit)

    @property
    def formulas(self) -> list[Formula]:
        """The number of each setting."""
        return [Formula(setting.number, setting.of or self.of) for setting in self.settings]

    @property
    def certifying(self) -> Formula | None:
        """What certifies a violation of an exact rule, if that is another number."""
        return Formula(self.certificate, self.of) if self.certificate is not None else None


class Beside(Part):
    """An effect that is judged and shown with the claim but never decides its word."""

    label: str


class Claim(_Rule):
    """One entry of the ledger: one effect, or several parts of which all or any must hold.

    ``unanswered`` says why today's records cannot answer, and what would; the word then is *open*.
    ``front`` is the claim in a few words; only claims that have it stand on the front page.
    """

    id: str = Field(pattern=r"^[a-z]+\.\d+$")
    tier: Literal["headline", "extended"]
    origin: Literal["authors", "logs", "ours"]
    scope: Literal["same", "scaled", "proxy"]
    statement: str
    published: Published
    posed: Literal["before the data", "after the data"] = "before the data"
    control: Literal["positive", "negative"] | None = None
    seeds: Seeds = Seeds()
    all_of: tuple[Part, ...] = ()
    any_of: tuple[Part, ...] = ()
    beside: tuple[Beside, ...] = ()
    note: str = ""
    front: str = ""
    unanswered: str | None = None

    @model_validator(mode="after")
    def _can_be_decided(self) -> Claim:
        """Refuse a claim without a rule, with two, with too few seeds, or with a wrong effect."""
        given = [bool(self.settings), bool(self.all_of), bool(self.any_of)]
        if sum(given) > 1 or (not any(given) and self.unanswered is None):
            raise ValueError("give settings, or all_of, or any_of, or unanswered with the reason")
        for parts in (self.all_of, self.any_of):
            if len(parts) == 1:
                raise ValueError("a single part is no list: put its fields into the claim")
            if parts and not all(part.name for part in parts):
                raise ValueError("each part of several has a name")
        if self.settings:
            _ = self.parts  # makes the one part, which checks its fields
        elif self.kind or self.worth or self.of:
            raise ValueError("kind, worth and of belong to the parts")
        statistical = [part.kind for part in self.parts if part.kind != "exact"]
        least = MIN_BLOCKS if "timing" in statistical else MIN_SEEDS
        if statistical and self.seeds.count < least:
            raise ValueError(f"this claim needs at least {least} seeds, got {self.seeds.count}")
        if self.published.effect is not None:
            self._check_published(Worth.parse(self.published.effect))
        return self

    def _check_published(self, effect: Worth) -> None:
        """Refuse a published effect of another unit, or of less than twice the smallest effect."""
        for part in self.parts:
            if (amount := part.amount) is None:
                continue
            if effect.is_ratio != amount.is_ratio or (
                not effect.is_ratio and effect.unit != amount.unit
            ):
                raise ValueError(f"published effect in {effect.unit}, worth in {amount.unit}")
            limit = effect.value / 2 * 1.0001  # room for rounding
            if part.kind == "effect" and self.scope != "proxy" and amount.value > limit:
                raise ValueError(
                    f"worth {amount.text} is more than half of the published {effect.text}"
                )

    @property
    def parts(self) -> tuple[Part, ...]:
        """The effects that decide: one, or those of ``all_of`` or ``any_of``."""
        if not self.settings:
            return self.all_of or self.any_of
        fields = {name: getattr(self, name) for name in _Rule.model_fields}
        return (Part(**fields),)

    @property
    def counts(self) -> bool:
        """Whether it counts for or against the works: the authors' own, on their kind of data."""
        return self.origin != "ours" and self.scope != "proxy" and self.control is None

    def all_formulas(self) -> Iterator[Formula]:
        """Every formula, those of effects that do not decide included."""
        for part in (*self.parts, *self.beside):
            yield from part.formulas
            if part.certifying is not None:
                yield part.certifying

    @property
    def arms(self) -> list[str]:
        """Arms that decide the claim, derived from its formulas."""
        names = (arm for part in self.parts for formula in part.formulas for arm in formula.arms)
        return list(dict.fromkeys(names))


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
            shown = "; ".join(
                f"{where}: {what}, got {textwrap.shorten(repr(value), LONGEST_SHOWN)}"
                for where, what, value in faults
            )
            raise ValueError(f"{path}: claim {name}: {shown}") from error
        if claim.id in claims:
            raise ValueError(f"{path}: claim {name} occurs twice")
        claims[claim.id] = claim
    return list(claims.values())


def criterion_hash(claim: Claim, functions: Mapping[str, Function]) -> str:
    """Hash what decides: kinds, formulas, margins, seeds and the judge's version; no wording.

    Args:
        claim: The claim.
        functions: Functions of the chapter; the source of those that a formula calls counts.

    Returns:
        Hexadecimal sha256.

    Raises:
        ValueError: If a formula calls a function that the chapter does not have.
    """
    rules = [
        part.model_dump(
            mode="json",
            exclude_none=True,
            exclude={"name": True, "label": True, "settings": {"__all__": {"name"}}},
        )
        for part in (*claim.parts, *claim.beside)
    ]
    called = sorted({name for formula in claim.all_formulas() for name in formula.functions})
    if unknown := [name for name in called if name not in functions]:
        hint = did_you_mean(unknown[0], functions)
        raise ValueError(f"claim {claim.id}: unknown function {unknown[0]!r}{hint}")
    plain = {
        "judge": JUDGE_VERSION,
        "deciding": rules[: len(claim.parts)],
        "beside": rules[len(claim.parts) :],
        "any": bool(claim.any_of),
        "seeds": [claim.seeds.start, claim.seeds.count],
        "functions": {name: source_hash(functions[name]) for name in called},
    }
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
