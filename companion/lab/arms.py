"""The arms of a chapter: one table of what is run, with which settings, how often and how long.

A chapter states each kind of run as a frozen dataclass of settings with defaults, and lists its
arms with literal names. Seeds, budgets, tuned values and the list of runs follow from this list, by
the same code for every chapter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import ClassVar, Self, TypeVar

from companion.evidence.store import Run
from companion.lab.results import Result

__all__ = ["Arm", "Profile", "Settings", "Tuned", "arm", "defaults_of", "plan"]

#: The values that tuning chose, by arm and then by setting.
Tuned = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Settings(ABC):
    """Everything that the numbers of one kind of run depend on, besides its seed.

    A record states only the settings that differ from their defaults, and those that have none. So
    a new setting whose default is what was done before leaves every record valid. A default must
    never change, because old records would then mean something else.
    """

    #: Kinds of devices on which these runs can be computed; any other is refused.
    devices: ClassVar[tuple[str, ...]] = ("cpu",)

    @property
    @abstractmethod
    def data_hash(self) -> str:
        """Hash of the content of the data, or a phrase that says where they come from."""

    def shortened(self, share: float) -> Self:
        """Return the settings of a run with this share of its steps, if a subclass can shorten it.

        By default the settings stay as they are.
        """
        return self

    def tiny(self) -> Self:
        """Return settings with which the run takes seconds and keeps every phase, for its canary.

        By default the settings stay as they are.
        """
        return self

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> Self:
        """Make settings from the configuration of a run or record, in which tuples are lists."""
        return cls(**{name: _tupled(value) for name, value in config.items()})


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How much of a chapter is run; each chapter adds fields such as its numbers of seeds.

    Attributes:
        first_seed: Seeds count up from here; evidence starts at 1000, pilots and tuning use 0 to
            99.
        budget: Share of a run's steps that is computed, above 0 and at most 1.
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
    """One arm; made by `arm`, in which a type checker sees whether settings and function fit.

    Attributes:
        name: Its name, the same in ledger, records and figures.
        settings: All that its numbers depend on, besides the seed and what is tuned.
        run: Computes one run from complete settings and a seed.
        seeds: Name of the profile's field that holds its number of seeds.
        seconds: Core-seconds of one run on the reference machine.
        tuned: For each tuned setting the arm whose tuned value it takes; for a setting that holds a
            tuple, one arm for each entry.
        version: Raised in the commit that changes the arm's numbers on purpose.
        deterministic: False where its numbers are seconds: it is run alone, outside canonical
            mode, and never compared.
        together: Computes runs of the same settings and several seeds in one call, and returns a
            result for each seed, in their order. In canonical mode each must have the bytes that
            ``run`` gives. A sweep calls it in place of ``run``, so leave it out where it is slower.
    """

    name: str
    settings: Settings
    run: Callable[..., Result]
    seeds: str
    seconds: float
    tuned: Mapping[str, str | tuple[str, ...]]
    version: int
    deterministic: bool
    together: Callable[..., Sequence[Result]] | None

    def complete(self, chosen: Tuned) -> Settings:
        """Return its settings with the values that tuning chose filled in.

        Raises:
            ValueError: If such a value was not tuned.
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
        """The arms whose tuned values a setting takes: one, or one for each entry of a tuple."""
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
    together: Callable[[S, Sequence[int]], Sequence[Result]] | None = None,
) -> Arm:
    """Make an arm; its arguments are the attributes of `Arm`."""
    return Arm(name, settings, run, seeds, seconds, tuned or {}, version, deterministic, together)


def defaults_of(settings: type[Settings]) -> dict[str, object]:
    """Defaults of a class of settings, by name; settings without a default are left out."""
    defaults: dict[str, object] = {}
    for each in fields(settings):
        if each.default is not MISSING:
            defaults[each.name] = each.default
        elif each.default_factory is not MISSING:
            defaults[each.name] = each.default_factory()
    return defaults


def plan(chapter: str, arms: Sequence[Arm], profile: Profile, chosen: Tuned) -> Iterator[Run]:
    """List the runs of a profile: the arms in order, and the seeds of each arm in order.

    Args:
        chapter: Two digits.
        arms: The arms.
        profile: How much of them is run.
        chosen: The values that tuning chose.

    Raises:
        ValueError: If two arms share a name, or a value was not tuned.
    """
    names = [each.name for each in arms]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"chapter {chapter}: two arms are called {', '.join(twice)}")
    share = profile.budget
    for each in arms:
        settings = each.complete(chosen).shortened(share)
        config = asdict(settings)
        data = settings.data_hash
        defaults = defaults_of(type(settings))
        for number in range(getattr(profile, each.seeds)):
            yield Run(
                chapter,
                each.name,
                config,
                profile.first_seed + number,
                data,
                # set-up and measurements take a fifth of the time, whatever the budget
                each.seconds * (0.2 + 0.8 * share),
                deterministic=each.deterministic,
                version=each.version,
                defaults=defaults,
                together=each.together is not None,
            )


def _tupled(value: object) -> object:
    """Turn lists, which JSON has for the tuples of settings, into tuples, at every depth."""
    if isinstance(value, list | tuple):
        return tuple(_tupled(item) for item in value)
    return value
