"""Find the chapters and what each of them runs.

A chapter is a folder below ``companion/chapters``. Its package states what it is `About`, and its
``arms.py`` has a `Profile`, whose defaults are the *standard* profile, and ``arms(profile)``, which
lists its arms. The folder also has ``figures.py``, ``tuned.toml`` if something is tuned, and
``numbers.py`` if its ledger calls functions. A profile is stated by its differences from the
defaults, in ``notebooks/profiles/<profile>.yaml``.
"""

from __future__ import annotations

import pkgutil
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from functools import cache, cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from companion.evidence.digest import code_digest
from companion.evidence.formulas import Function
from companion.evidence.store import Record, Run
from companion.lab.about import About
from companion.lab.arms import Arm, Profile, Settings, plan
from companion.lab.tune import Stage, Trial, choose
from companion.paths import CHAPTERS, NOTEBOOKS, PROFILES

__all__ = [
    "BUDGET_SECONDS",
    "EXECUTE",
    "PROFILE_NAMES",
    "Chapter",
    "NoSuchArmError",
    "about",
    "arm_version",
    "chapter_number",
    "chapter_numbers",
    "chapter_of_arm",
    "check_device",
    "check_profile",
    "check_setting_names",
    "execute",
    "execute_together",
    "functions_of",
    "load_chapter",
    "notebook_path",
    "package_of",
]

PROFILE_NAMES = ("quick", "standard", "full", "paper")
BUDGET_SECONDS = {"quick": 60.0, "standard": 900.0, "full": 7000.0}
#: The module whose `execute` and `execute_together` workers call.
EXECUTE = "companion.lab.chapters"
_PACKAGE = "companion.chapters"


class NoSuchArmError(LookupError):
    """No arm has this name."""


@dataclass(frozen=True)
class Chapter:
    """The experiments of one chapter.

    Attributes:
        number: Two digits.
        title: The notebook's name without its number.
        package: Dotted name of its folder.
        profile_class: Its subclass of `Profile`.
        rows: Returns the arms that a profile runs.
        functions: Functions that the formulas of its ledger may call, by name.
        searches: Stages of its tuning.
        choice: Returns the values, by arm and setting, that follow from the trials of tuning.
    """

    number: str
    title: str
    package: str
    profile_class: type[Profile]
    rows: Callable[[Profile], Sequence[Arm]]
    functions: Mapping[str, Function]
    searches: Sequence[Stage] = ()
    choice: Callable[[Sequence[Trial]], dict[str, dict[str, float]]] = choose

    @cached_property
    def arms(self) -> dict[str, Arm]:
        """All arms in their standard settings, by name."""
        return {arm.name: arm for arm in self.rows(self.profile_class())}

    @cached_property
    def chosen(self) -> dict[str, dict[str, float]]:
        """The values that tuning chose, by arm and then by setting."""
        path = self.tuned_path
        return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    @property
    def tuned_path(self) -> Path:
        """File of the values that tuning chose."""
        return CHAPTERS / self.package.rpartition(".")[2] / "tuned.toml"

    @property
    def code_digest(self) -> str:
        """Digest of the code behind the runs."""
        return code_digest(f"{self.package}.arms")

    def arm(self, name: str) -> Arm:
        """The arm of this name, in its standard settings.

        Raises:
            NoSuchArmError: If there is none.
        """
        if name not in self.arms:
            raise NoSuchArmError(f"chapter {self.number} has no arm {name!r}")
        return self.arms[name]

    def plan(self, profile: str, knobs: Mapping[str, Any] | None = None) -> list[Run]:
        """List the runs of a profile; ``knobs`` replace fields of the profile.

        Raises:
            ValueError: If the profile, or a knob, is unknown or out of range.
        """
        resolved = resolve_profile(self, profile, knobs)
        return list(plan(self.number, self.rows(resolved), resolved, self.chosen))

    def execute(self, run: Run) -> Record:
        """Compute one run.

        Returns:
            ``metrics``, ``curves``, ``counters`` and what the arm adds.

        Raises:
            NoSuchArmError: If the chapter does not have the run's arm.
        """
        arm = self.arm(run.arm)
        settings = type(arm.settings).from_config(run.config)
        check_device(run.arm, settings)
        return arm.run(settings, run.seed).as_record()

    def execute_together(self, runs: Sequence[Run]) -> list[Record]:
        """Compute runs that differ only in their seeds in one call.

        Returns:
            What `execute` returns for each of them, in their order.

        Raises:
            NoSuchArmError: If the chapter does not have the runs' arm.
            ValueError: If the runs differ in more than their seeds, the arm does not compute
                several seeds together, or it returns another number of results.
        """
        first = runs[0]
        arm = self.arm(first.arm)
        if any(replace(run, seed=first.seed) != first for run in runs):
            raise ValueError(f"{first.arm}: the runs differ in more than their seeds")
        if arm.together is None:
            raise ValueError(f"{first.arm} does not compute several seeds together")
        settings = type(arm.settings).from_config(first.config)
        check_device(first.arm, settings)
        results = arm.together(settings, [run.seed for run in runs])
        if len(results) != len(runs):
            raise ValueError(f"{first.arm}: {len(results)} results for {len(runs)} seeds")
        return [result.as_record() for result in results]


def check_device(name: str, settings: Settings) -> None:
    """Refuse a device on which the code of an arm does not put its tensors.

    Args:
        name: The arm.
        settings: Its settings.

    Raises:
        ValueError: If its settings do not allow the device, or ``DEVICE`` names no device.
        RuntimeError: If this machine does not have the device.
    """
    from companion.lab.device import asked_device, run_device

    preferred = str(getattr(settings, "device", "cpu"))
    asked = asked_device(preferred)
    known = " and ".join(settings.devices)
    # before `run_device`, which would only say that a GPU is absent here
    if asked not in ("auto", *settings.devices) and asked in ("cuda", "mps"):
        raise ValueError(f"{name} runs on {known}, not on {asked}: unset DEVICE")
    kind = run_device(preferred).type
    if kind not in settings.devices:
        raise ValueError(f"{name} runs on {known}, not on {kind}: unset DEVICE")


@cache
def _packages() -> dict[str, ModuleType]:
    """The packages of the chapters by number, in order; their experiments are not imported."""
    parent = import_module(_PACKAGE)
    packages = [
        import_module(f"{_PACKAGE}.{each.name}") for each in pkgutil.iter_modules(parent.__path__)
    ]
    packages.sort(key=lambda package: package.ABOUT.number)
    return {package.ABOUT.number: package for package in packages}


def chapter_numbers() -> tuple[str, ...]:
    """Numbers of the chapters, two digits each, in order."""
    return tuple(_packages())


def package_of(number: str) -> str:
    """Dotted name of a chapter's folder.

    Raises:
        ValueError: If there is no such chapter.
    """
    return _packages()[chapter_number(number)].__name__


def about(number: str) -> About:
    """What a chapter states about itself.

    Raises:
        ValueError: If there is no such chapter.
    """
    stated: About = _packages()[chapter_number(number)].ABOUT
    return stated


def chapter_number(name: str) -> str:
    """Two-digit number of a chapter that is written as ``6`` or ``06``.

    Raises:
        ValueError: If there is no such chapter.
    """
    number = str(name).strip().zfill(2)
    if number not in _packages():
        raise ValueError(f"unknown chapter {name!r}, expected one of {', '.join(_packages())}")
    return number


def functions_of(number: str) -> dict[str, Function]:
    """Functions that a chapter's formulas may call: what its ``numbers.py`` exports."""
    name = f"{package_of(number)}.numbers"
    if find_spec(name) is None:
        return {}
    module = import_module(name)
    return {each: getattr(module, each) for each in module.__all__}


@cache
def load_chapter(number: str) -> Chapter:
    """Import a chapter's experiments.

    Raises:
        ValueError: If there is no such chapter.
    """
    package = package_of(number)
    table = import_module(f"{package}.arms")
    return Chapter(
        number,
        about(number).title,
        package,
        table.Profile,
        table.arms,
        functions_of(number),
        getattr(table, "SEARCHES", ()),
        getattr(table, "CHOICE", choose),
    )


def execute(run: Run) -> Record:
    """Compute one run of any chapter in this process; workers call this function."""
    return load_chapter(run.chapter).execute(run)


def execute_together(runs: Sequence[Run]) -> list[Record]:
    """Compute runs of any chapter that differ only in their seeds; workers call this function."""
    return load_chapter(runs[0].chapter).execute_together(runs)


def check_setting_names(arm: str, names: Iterable[str]) -> None:
    """Refuse settings that no class of the arm's chapter has, before its slow import.

    The names are read from the source text. A name that another arm of the chapter has passes here
    and is refused later.

    Raises:
        ValueError: If a name is unknown; the message suggests similar names.
    """
    for number, table in _tables().items():
        if f'"{arm}"' in table:
            files = [*_folder(number).glob("*.py"), Path(__file__).with_name("arms.py")]
            text = "\n".join(file.read_text("utf-8") for file in files)
            known = set(re.findall(r"^    (\w+): ", text, re.MULTILINE))
            for name in names:
                if name not in known:
                    alike = get_close_matches(name, sorted(known), n=3)
                    hint = f"; did you mean {', '.join(alike)}?" if alike else ""
                    raise ValueError(f"{arm} has no setting {name!r}{hint}")


def _folder(number: str) -> Path:
    return CHAPTERS / package_of(number).rpartition(".")[2]


def _tables() -> dict[str, str]:
    """Text of each chapter's ``arms.py``, in which every arm's name stands as a literal."""
    return {n: (_folder(n) / "arms.py").read_text("utf-8") for n in chapter_numbers()}


def chapter_of_arm(name: str) -> Chapter:
    """The chapter that has an arm of this name; chapters that do not mention it are not imported.

    Raises:
        NoSuchArmError: If no chapter has it; the message suggests similar names.
    """
    tables = _tables()
    for number, table in tables.items():
        if f'"{name}"' in table and name in (chapter := load_chapter(number)).arms:
            return chapter
    known = {word for table in tables.values() for word in re.findall(r'"(\w+)"', table)}
    alike = get_close_matches(name, sorted(known), n=3)
    hint = f"; did you mean {', '.join(alike)}?" if alike else ""
    raise NoSuchArmError(f"no chapter has an arm {name!r}{hint}")


def arm_version(number: str, arm: str) -> int:
    """Present version of an arm; 1 if the arm no longer exists."""
    arms = load_chapter(number).arms
    return arms[arm].version if arm in arms else 1


def notebook_path(name: str) -> Path:
    """Path of the notebook whose name starts with two digits, say ``"06"``.

    Raises:
        FileNotFoundError: If there is no such notebook.
    """
    paths = sorted(NOTEBOOKS.glob(f"{name}_*.ipynb"))
    if len(paths) != 1:
        raise FileNotFoundError(f"expected one notebook {name}_*.ipynb, found {len(paths)}")
    return paths[0]


def check_profile(name: str) -> None:
    """Refuse a name that is not in `PROFILE_NAMES`.

    Raises:
        ValueError: If there is no such profile.
    """
    if name not in PROFILE_NAMES:
        raise ValueError(f"unknown profile {name!r}, expected one of {', '.join(PROFILE_NAMES)}")


def resolve_profile(
    chapter: Chapter, profile: str, knobs: Mapping[str, Any] | None = None
) -> Profile:
    """Apply a profile's differences and then single knobs to the defaults.

    A notebook passes all of its knobs, so one that is at its default leaves the choice to the
    profile.

    Raises:
        ValueError: If the profile, or a knob, is unknown or out of range.
    """
    check_profile(profile)
    import yaml  # not at the top: whoever runs one arm needs no profiles

    path = PROFILES / f"{profile}.yaml"
    if not path.is_file() and profile != "standard":
        raise ValueError(f"profile {profile!r} has no file {path.name}")
    sections = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    given = dict((sections or {}).get(chapter.number) or {})
    defaults = {each.name: each.default for each in fields(chapter.profile_class)}
    given |= {
        name: value
        for name, value in (knobs or {}).items()
        if name not in defaults or _plain(value) != _plain(defaults[name])
    }
    where = f"chapter {chapter.number}, profile {profile}"
    for name, value in given.items():
        if name not in defaults:
            raise ValueError(f"{where}: unknown {name!r}, expected one of {', '.join(defaults)}")
        _check_kind(f"{where}: {name}", value, defaults[name])
    try:
        plain: dict[str, Any] = {
            n: tuple(v) if isinstance(v, list) else v for n, v in given.items()
        }
        return chapter.profile_class(**plain)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _plain(value: object) -> object:
    """The value, a tuple as a list, so that the two compare as equal."""
    return list(value) if isinstance(value, tuple) else value


def _check_kind(name: str, value: object, default: object) -> None:
    """Refuse a value of another kind than the default's; ``name`` is for the message."""
    wanted: tuple[type, ...] = {int: (int,), float: (int, float), tuple: (list, tuple)}.get(
        type(default), (type(default),)
    )
    # Python counts truth values as whole numbers
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
        kind = "list" if wanted[0] is list else wanted[-1].__name__
        raise ValueError(f"{name} must be of kind {kind}, got {value!r}")
