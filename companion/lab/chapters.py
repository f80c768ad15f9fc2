"""Find the chapters and what each of them runs.

A chapter is a folder below ``companion/chapters`` that states what it is `About`, with
``arms.py``: a `Profile` whose defaults are the *standard* profile, and ``arms(profile)``, its
rows; beside it ``figures.py``, ``tuned.toml`` and, where its ledger calls functions,
``numbers.py``. Profiles are the differences that ``notebooks/profiles/<profile>.yaml`` lists.
"""

from __future__ import annotations

import pkgutil
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
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
    "functions_of",
    "load_chapter",
    "notebook_path",
    "package_of",
]

PROFILE_NAMES = ("quick", "standard", "full", "paper")
BUDGET_SECONDS = {"quick": 60.0, "standard": 900.0, "full": 7000.0}
#: The module whose `execute` workers call.
EXECUTE = "companion.lab.chapters"
_PACKAGE = "companion.chapters"


class NoSuchArmError(LookupError):
    """No row of a chapter has this name."""


@dataclass(frozen=True)
class Chapter:
    """The experiments of one chapter.

    Attributes:
        number: Two digits.
        title: The notebook's name without its number.
        package: Dotted name of its folder.
        profile_class: Its `Profile`.
        rows: Gives the arms that a profile runs.
        functions: What the formulas of the ledger may call, by name.
        searches: Stages of its tuning.
        choice: What it takes from the trials.
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
        """What tuning chose: by arm, by setting."""
        path = self.tuned_path
        return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    @property
    def tuned_path(self) -> Path:
        """File of what tuning chose."""
        return CHAPTERS / self.package.rpartition(".")[2] / "tuned.toml"

    @property
    def code_digest(self) -> str:
        """Digest of the code behind the runs."""
        return code_digest(f"{self.package}.arms")

    def arm(self, name: str) -> Arm:
        """The row of a name.

        Raises:
            NoSuchArmError: If there is none.
        """
        if name not in self.arms:
            raise NoSuchArmError(f"chapter {self.number} has no arm {name!r}")
        return self.arms[name]

    def plan(self, profile: str, knobs: Mapping[str, Any] | None = None) -> list[Run]:
        """List the runs of a profile, with ``knobs`` in place of its settings.

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
            NoSuchArmError: If no row has the run's arm.
        """
        arm = self.arm(run.arm)
        settings = type(arm.settings).from_config(run.config)
        check_device(run.arm, settings)
        return arm.run(settings, run.seed).as_record()


def check_device(name: str, settings: Settings) -> None:
    """Refuse a device on which the code of an arm does not put its tensors.

    Args:
        name: The arm.
        settings: Its settings.

    Raises:
        ValueError: If the device of the run is none of theirs, or ``DEVICE`` is no device.
        RuntimeError: If the device is absent here.
    """
    from companion.lab.device import asked_device, run_device

    preferred = str(getattr(settings, "device", "cpu"))
    asked = asked_device(preferred)
    known = " and ".join(settings.devices)
    if asked not in ("auto", *settings.devices) and asked in ("cuda", "mps"):
        raise ValueError(f"{name} runs on {known}, not on {asked}: unset DEVICE")
    kind = run_device(preferred).type
    if kind not in settings.devices:
        raise ValueError(f"{name} runs on {known}, not on {kind}: unset DEVICE")


@cache
def _packages() -> dict[str, ModuleType]:
    """The folders of the chapters, by number."""
    parent = import_module(_PACKAGE)
    packages = [
        import_module(f"{_PACKAGE}.{each.name}") for each in pkgutil.iter_modules(parent.__path__)
    ]
    return {m.ABOUT.number: m for m in sorted(packages, key=lambda module: module.ABOUT.number)}


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
    """What a chapter states of itself.

    Raises:
        ValueError: If there is no such chapter.
    """
    stated: About = _packages()[chapter_number(number)].ABOUT
    return stated


def chapter_number(name: str) -> str:
    """Read a chapter as people write it: ``6``, ``06``.

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
    """Compute one run of any chapter, in this process; what workers call."""
    return load_chapter(run.chapter).execute(run)


def check_setting_names(arm: str, names: Iterable[str]) -> None:
    """Refuse a setting that no settings class of an arm's chapter has; nothing is imported.

    Raises:
        ValueError: If there is none of such a name, with those that are like it.
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
    """Text of each chapter's ``arms.py``, where every arm's name stands as a literal."""
    return {n: (_folder(n) / "arms.py").read_text("utf-8") for n in chapter_numbers()}


def chapter_of_arm(name: str) -> Chapter:
    """The chapter that has an arm of this name; no other chapter is imported.

    Raises:
        NoSuchArmError: If no chapter has it, with those whose names are like it.
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
    """Present version of an arm; 1 for one that is no more."""
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
    """Refuse what is no profile.

    Raises:
        ValueError: If there is none of this name.
    """
    if name not in PROFILE_NAMES:
        raise ValueError(f"unknown profile {name!r}, expected one of {', '.join(PROFILE_NAMES)}")


def resolve_profile(
    chapter: Chapter, profile: str, knobs: Mapping[str, Any] | None = None
) -> Profile:
    """Apply a profile's differences and then single knobs to the defaults.

    A knob that stands at its default leaves the choice to the profile.

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
    return list(value) if isinstance(value, tuple) else value


def _check_kind(name: str, value: object, default: object) -> None:
    """Refuse a value of another kind than the default's."""
    wanted: tuple[type, ...] = {int: (int,), float: (int, float), tuple: (list, tuple)}.get(
        type(default), (type(default),)
    )
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
        kind = "list" if wanted[0] is list else wanted[-1].__name__
        raise ValueError(f"{name} must be of kind {kind}, got {value!r}")
