"""The arms of a chapter: one table of what is run, with which settings, how often and how long.

A chapter states each kind of run as a frozen dataclass of settings with defaults, and lists its
arms as rows with literal names. Seeds, budgets, tuned values and the list of runs follow from the
rows, by the same code for every chapter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import ClassVar, Self, TypeVar

from companion.evidence.store import Run
from companion.lab.results import Result

__all__ = ["Arm", "Profile", "Settings", "Tuned", "arm", "defaults_of", "plan"]

#: What tuning chose: by arm, by setting.
Tuned = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Settings(ABC):
    """Everything that the numbers of one kind of run depend on, besides its seed.

    A record states the settings that differ from their defaults, and those that have none. So a
    new setting whose default is what was done before leaves every record valid, and a default that
    changes would give old records another meaning: it never does.
    """

    #: Kinds of devices on which its runs can be computed; others are refused by name.
    devices: ClassVar[tuple[str, ...]] = ("cpu",)

    @property
    @abstractmethod
    def data_hash(self) -> str:
        """Hash of the content of the data, or in words where they come from."""

    def shortened(self, share: float) -> Self:
        """Return the settings of a run with this share of its steps; as they are by default."""
        return self

    def tiny(self) -> Self:
        """Return settings of the same run in seconds, every phase kept: what its canary runs."""
        return self

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> Self:
        """Make settings from what a run or a record states of them, as JSON has it."""
        return cls(**{name: _tupled(value) for name, value in config.items()})


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How much of a chapter is run: numbers of seeds by name, and what a chapter adds.

    Attributes:
        first_seed: Seeds count up from here; evidence starts at 1000, pilots and tuning use 0 to
            99.
        budget: Share of the steps of a training, above 0 and at most 1.
    """

    first_seed: int = 1000
    budget: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.budget <= 1:
            raise ValueError(f"budget must be above 0 and at most 1, got {self.budget}")
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, int) and value < 0:
                raise ValueError(f"{each.name} must be at least 0, got {value}")


S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class Arm:
    """One row of the table; made by `arm`, which checks that settings and function fit.

    Attributes:
        name: The same in ledger, records and figures.
        settings: All that its numbers depend on, besides the seed and what is tuned.
        run: Computes it from complete settings and a seed.
        seeds: Name of the profile's number of seeds for it.
        seconds: Core-seconds of one run on the reference machine.
        tuned: From a setting to the arm whose tuned value it takes, or to the arms of a tuple's.
        version: Raised in the commit that moves the arm's numbers on purpose.
        deterministic: False where its numbers are seconds: it is run alone, outside canonical
            mode, and never compared.
    """

    name: str
    settings: Settings
    run: Callable[..., Result]
    seeds: str
    seconds: float
    tuned: Mapping[str, str | tuple[str, ...]]
    version: int
    deterministic: bool

    def complete(self, chosen: Tuned) -> Settings:
        """Return its settings with what tuning chose for them.

        Raises:
            ValueError: If a value that it takes was not tuned.
        """
        taken: dict[str, float | tuple[float, ...]] = {}
        for setting, source in self.tuned.items():
            values = []
            for each in self.sources(setting):
                if setting not in chosen.get(each, {}):
                    raise ValueError(f"{self.name}: {setting} of {each} is not tuned; run `TUNE=1`")
                values.append(chosen[each][setting])
            taken[setting] = values[0] if isinstance(source, str) else tuple(values)
        return replace(self.settings, **taken)

    def sources(self, setting: str) -> tuple[str, ...]:
        """The arms whose tuned values a setting takes: one, or one for each of a tuple."""
        source = self.tuned[setting]
        return (source,) if isinstance(source, str) else source


def arm(
    name: str,
    settings: S,
    run: Callable[[S, int], Result],
    seeds: str,
    seconds: float,
    *,
    tuned: Mapping[str, str | tuple[str, ...]] | None = None,
    version: int = 1,
    deterministic: bool = True,
) -> Arm:
    """Make a row; arguments as the attributes of `Arm`."""
    return Arm(name, settings, run, seeds, seconds, tuned or {}, version, deterministic)


def defaults_of(settings: type[Settings]) -> dict[str, object]:
    """Defaults of a kind of settings, by name; a setting without one is not there."""
    defaults: dict[str, object] = {}
    for each in fields(settings):
        if each.default is not MISSING:
            defaults[each.name] = each.default
        elif each.default_factory is not MISSING:
            defaults[each.name] = each.default_factory()
    return defaults


def plan(chapter: str, arms: Sequence[Arm], profile: Profile, chosen: Tuned) -> Iterator[Run]:
    """List the runs of a profile, in the order of the rows, seeds in order.

    Args:
        chapter: Two digits.
        arms: The rows.
        profile: How much of them is run.
        chosen: What tuning chose.

    Raises:
        ValueError: If two rows share a name, or a value was not tuned.
    """
    names = [row.name for row in arms]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"chapter {chapter}: two arms are called {', '.join(twice)}")
    share = profile.budget
    for row in arms:
        settings = row.complete(chosen).shortened(share)
        config, data, defaults = asdict(settings), settings.data_hash, defaults_of(type(settings))
        for number in range(getattr(profile, row.seeds)):
            yield Run(
                chapter,
                row.name,
                config,
                profile.first_seed + number,
                data,
                # setting up and measuring take a fifth, whatever the budget
                row.seconds * (0.2 + 0.8 * share),
                deterministic=row.deterministic,
                version=row.version,
                defaults=defaults,
            )


def _tupled(value: object) -> object:
    """Settings hold tuples where JSON has lists."""
    if isinstance(value, list | tuple):
        return tuple(_tupled(item) for item in value)
    return value
