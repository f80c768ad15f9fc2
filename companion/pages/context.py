"""Set-up of a chapter notebook: call `start`, then use the `Context` that it returns.

What a chapter shows comes from one of two folders and never from both: *reference* reads the
committed ``results/<profile>`` and computes no experiment; *recompute* computes the runs that are
missing in ``runs/<profile>`` and never reads ``results/``. *seed 1000* shows what *reference*
shows, after it has computed that seed and compared the two.
"""

# ruff: noqa: E402
from __future__ import annotations

from companion.evidence import canonical

# NumPy and torch choose their kernels when they are loaded, so this comes before every import that
# loads them. A kernel that was started without the variables becomes canonical here.
NOT_CANONICAL = canonical.enter()

import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any, Literal

import torch
from matplotlib.figure import Figure

from companion.evidence.canonical import versions
from companion.evidence.claims import Effect, Judgement
from companion.evidence.statistics import t_interval
from companion.evidence.store import Record, Reference, Run, Store, read_reference
from companion.evidence.tables import (
    fmt_interval,
    fmt_number,
    own_numbers,
    text_table,
    verdict_blocks,
)
from companion.lab.chapters import (
    EXECUTE,
    Chapter,
    arm_version,
    chapter_number,
    load_chapter,
)
from companion.lab.conditions import conditions_of
from companion.lab.device import device_name, run_device
from companion.lab.progress import sweep_progress
from companion.lab.records import Estimand
from companion.lab.run import run_arm
from companion.lab.sweep import run_sweep, worker_count
from companion.pages.compare import first_line
from companion.pages.one_seed import (
    compare_with_evidence,
    differing_metrics,
    finished_runs,
    runs_of_seed,
    seed_of,
)
from companion.pages.pictures import show_figure
from companion.pages.proofs import Proofs
from companion.pages.verdicts import (
    criteria,
    judge_records,
    mark_changed_criteria,
    read_verdicts,
)
from companion.paths import NOTEBOOKS, check_checkout
from trainaug.training.randomness import stream

__all__ = [
    "Context",
    "NoReferenceError",
    "collect_records",
    "describe_evidence",
    "show_figure",
    "start",
]

EVIDENCE = ("reference", "recompute", "seed 1000")
Shown = Literal["mean", "saved", "times"]
# Only versions that the lock file pins, as outputs are compared and others differ by machine.
_SHOWN_VERSIONS = ("python", "torch", "numpy", "scipy", "cvxpy", "clarabel")


class NoReferenceError(LookupError):
    """There are no records for the settings that were asked for."""


def collect_records(
    chapter: Chapter, profile: str, evidence: str, knobs: Mapping[str, Any] | None = None
) -> list[Record]:
    """Read the records of a plan, in its order, without computing any.

    Raises:
        NoReferenceError: If the record of a run is missing.
        ValueError: If ``evidence`` or a setting is unknown.
    """
    _check_evidence(evidence)
    plan = chapter.plan(profile, knobs)
    minutes = sum(run.predicted_seconds for run in plan) / worker_count() / 60
    if evidence == "recompute":
        store = Store(profile)
        digest = chapter.code_digest
        stored = [store.read(run, conditions_of(run, digest)) for run in plan]
        records = [record for record in stored if record is not None]
        if len(records) < len(plan):
            raise NoReferenceError(
                f"chapter {chapter.number}: {len(plan) - len(records)} of {len(plan)} runs of "
                f"profile {profile!r} are not computed yet (about {minutes:.1f} min)"
            )
        return records
    reference = read_reference(profile, chapter.number)
    pairs = [reference.find(run) for run in plan] if reference else [None]
    known = [pair for pair in pairs if pair is not None]
    if len(known) < len(pairs):
        raise NoReferenceError(
            f"chapter {chapter.number}: no reference results for these settings of profile "
            f'{profile!r}; set evidence = "recompute" (about {minutes:.1f} min)'
        )
    return [record for record, _ in known]


def _check_evidence(evidence: str) -> None:
    if evidence not in ("reference", "recompute") and seed_of(evidence) is None:
        raise ValueError(f"unknown evidence {evidence!r}, expected one of {', '.join(EVIDENCE)}")


def describe_evidence(profile: str, number: str, reference: Reference) -> str:
    """Describe a committed record set in words: its folder, how it was made, how many arms are old.

    Args:
        profile: Profile of the set.
        number: Two-digit chapter.
        reference: The set.
    """
    about = reference.record_set
    words = [f"results/{profile}/{number}", about.note or "canonical"]
    if about.canonical:
        words.append(f"commit {about.commit[:7]}")
        arms = {record["arm"] for record in reference.records}
        if newer := sum(about.version(arm) < arm_version(number, arm) for arm in arms):
            words.append(f"{newer} of {len(arms)} arms have a newer version: recompute")
    return ", ".join(words)


@dataclass
class Context(Proofs):
    """What a chapter notebook works with; made by `start`.

    Attributes:
        chapter: The chapter's experiments.
        profile: Name of the profile.
        evidence: ``"reference"``, ``"recompute"``, or a seed, as ``"seed 1000"``.
        knobs: Settings that differ from the profile.
        records: The records, after `run`.
    """

    chapter: Chapter
    profile: str
    evidence: str
    knobs: Mapping[str, Any]
    records: list[Record] = field(default_factory=list)

    def run(self, arm: str = "", *, seeds: int = 3, **changes: Any) -> list[Record]:
        """Compute the missing runs (*recompute*) or read the committed records; return the records.

        With *seed 1000* it computes what is missing of that seed, too, and prints how it compares
        with the committed records.

        Args:
            arm: Run this arm alone, with settings changed: ``ctx.run("family_max", margin=0.3)``.
                `records` stay as they are.
            seeds: Number of seeds of that arm, from 1000 on.
            changes: Changed settings of that arm.

        Raises:
            LookupError: If there is no such arm, or no committed record of a run.
            ValueError: If a setting is unknown or a value does not fit it.
        """
        if arm:
            return run_arm(arm, changes, seeds=seeds)
        if computed := _computed(self.chapter, self.profile, self.evidence, self.knobs):
            store, digest = Store(self.profile), self.chapter.code_digest
            with sweep_progress(f"chapter {self.chapter.number}", worker_count()) as show:
                run_sweep(computed, EXECUTE, store, digest, show)
            if seed_of(self.evidence) is not None:
                self._print_comparison(finished_runs(store, computed, digest))
        self.records = collect_records(self.chapter, self.profile, self.evidence, self.knobs)
        return self.records

    def _print_comparison(self, pairs: Sequence[tuple[Record, Record]]) -> None:
        """Say how records with their provenance compare with the committed ones, and show both."""
        number = self.chapter.number
        reference = read_reference(self.profile, number)
        assert reference is not None  # `start` has checked it
        comparison = compare_with_evidence(number, pairs, reference)
        print(first_line([comparison], {}))
        if rows := differing_metrics(comparison, pairs, reference):
            print(text_table(rows, list(rows[0])))

    @cached_property
    def judgements(self) -> dict[str, Judgement]:
        """The committed verdicts of the chapter, by claim."""
        number = self.chapter.number
        judged = mark_changed_criteria(read_verdicts(number), criteria(number))
        return {each.id: each for each in judged}

    def effect(self, claim: str, setting: str = "", part: str = "") -> Effect:
        """One judged number of a claim.

        Args:
            claim: Such as ``ord.1``.
            setting: Name of the setting; the first by default.
            part: Name of the part, if several have such a setting.

        Raises:
            KeyError: If the claim or the setting is unknown.
        """
        judged = self.judgements[claim]
        effects = [*judged.effects, *(e for aside in judged.beside for e in aside.effects)]
        for effect in effects:
            if setting in ("", effect.name) and part in ("", effect.part):
                return effect
        raise KeyError(f"claim {claim} has no setting {setting!r}")

    def verdicts(self) -> None:
        """Print the committed verdict of every claim of the chapter with the numbers behind it.

        After *recompute* the numbers of the recomputed runs follow, without verdicts.
        """
        print(verdict_blocks(list(self.judgements.values())))
        if self.evidence == "recompute" and self.profile != "quick":
            print(f"\nYour own runs, profile {self.profile}:\n")
            print(own_numbers(judge_records(self.chapter, self.records, all_there_are=True)))

    def full_records(self) -> list[Record]:
        """Return the records of the committed full profile; none if there is no reference."""
        reference = read_reference("full", self.chapter.number)
        return reference.records if reference else []

    def full_table(
        self,
        rows: Mapping[str, Mapping[str, Estimand]],
        digits: int = 3,
        *,
        shown: Shown = "mean",
    ) -> None:
        """Print a table as `table` does, but from the committed records of the full profile."""
        records = self.full_records()
        if not records:
            print("full profile: no reference yet")
            return
        replace(self, records=records).table(rows, digits, shown=shown)

    def values(self, estimand: Estimand) -> list[float]:
        """Values of an estimand, one for each seed that ran its arms, seeds in order.

        Raises:
            KeyError: If no seed has a value.
        """
        by_seed: dict[int, list[Record]] = {}
        for record in self.records:
            by_seed.setdefault(record["seed"], []).append(record)
        values, absent = [], KeyError("no records")
        for seed in sorted(by_seed):
            try:
                values.append(estimand(by_seed[seed]))
            except KeyError as error:
                absent = error
        if not values:
            raise absent
        return values

    def table(
        self,
        rows: Mapping[str, Mapping[str, Estimand]],
        digits: int = 3,
        *,
        shown: Shown = "mean",
    ) -> None:
        """Print means with 95 % intervals over seeds; of truth values, how many are true.

        The column ``n`` is the number of seeds; where the other columns have different numbers, the
        number of each.

        Args:
            rows: By name of row and then of column, a function from all records of one seed to a
                number.
            digits: Decimals; with ``times`` the significant figures of the mean.
            shown: ``mean`` shows the numbers as they are. The others are for logarithms of ratios:
                percent ``saved``, below zero if more is spent, or how many ``times`` as much.
        """
        printed = []
        for name, cells in rows.items():
            row: dict[str, object] = {"": name}
            counts = []
            for column, estimand in cells.items():
                values = self.values(estimand)
                counts.append(len(values))
                if all(isinstance(value, bool) for value in values):
                    row[column] = f"{sum(values):.0f} of {len(values)}"
                    continue
                if len(values) < 2:  # one seed, as in quick, has no interval
                    row[column] = _spelt(values, digits, shown)
                    continue
                row[column] = _spelt(t_interval(values, 0.95)[:3], digits, shown)
            are_equal = len(set(counts)) == 1
            printed.append(row | {"n": counts[0] if are_equal else ", ".join(map(str, counts))})
        print(text_table(printed, list(printed[0])))

    def rows(self, rows: Sequence[Sequence[Any]], columns: Sequence[str], digits: int) -> None:
        """Print rows of plain values under the names of columns; floats get ``digits`` decimals."""
        shown = [
            {
                head: f"{value:.{digits}f}" if isinstance(value, float) else str(value)
                for head, value in zip(columns, row, strict=True)
            }
            for row in rows
        ]
        print(text_table(shown, columns))

    def stream(self, purpose: str) -> torch.Generator:
        """Return the random generator of a named purpose; the same for every run of the book."""
        return stream(int(self.chapter.number), purpose)

    def show(self, figure: Figure, alt: str) -> None:
        """Display a figure; see `show_figure`."""
        show_figure(figure, alt)

    def finish(self) -> None:
        """Print where the numbers came from, the data they are about, and the next notebook."""
        digests = {record["data"][:12] for record in self.records}
        source = "runs" if self.evidence == "recompute" else "results"
        names = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
        # "~" comes after "_", so the chapter's own notebook is not among the later ones
        later = [name for name in names if name > f"{self.chapter.number}~"]
        print(f"{len(self.records)} runs from {source}/{self.profile}/{self.chapter.number}")
        print(f"data {', '.join(sorted(digests))}")
        print(f"next: {later[0] if later else names[0]}")


def _spelt(numbers: Sequence[float], digits: int, shown: Shown) -> str:
    """Text of a mean, or of a mean and the two ends of its interval, for `Context.table`."""
    mean, *ends = numbers
    if shown == "saved":  # the larger ratio saves less, so the ends change places
        mean, *ends = (100 * (1 - math.exp(value)) for value in (mean, *reversed(ends)))
    elif shown == "times":
        mean, *ends = map(math.exp, numbers)
        digits = max(0, digits - 1 - math.floor(math.log10(mean)))
    if not ends:
        return fmt_number(mean, digits)
    low, high = ends
    return fmt_interval(mean, low, high, digits)


def start(
    chapter: str,
    *,
    profile: str = "standard",
    evidence: str = "reference",
    knobs: Mapping[str, Any] | None = None,
) -> Context:
    """Check the settings, limit torch to one thread, and print what the chapter will use.

    A knob at its default leaves the choice to the profile.

    Args:
        chapter: Number of the chapter.
        profile: ``"quick"``, ``"standard"``, ``"full"`` or ``"paper"``.
        evidence: ``"reference"``, ``"recompute"``, or a seed, as ``"seed 1000"``.
        knobs: Values of fields of the chapter's profile.

    Returns:
        The context.

    Raises:
        ValueError: If a setting is unknown, or ``DEVICE`` names no device.
        RuntimeError: If this machine does not have the device that ``DEVICE`` asks for.
        NoReferenceError: If there are no committed records for these settings, and *recompute* was
            not asked for.
    """
    check_checkout()
    number = chapter_number(chapter)
    loaded = load_chapter(number)
    _say_if_not_canonical()
    torch.set_num_threads(1)
    # torch's own forward-mode derivative loads scripted functions, which cause this warning
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
    context = Context(loaded, profile, evidence, dict(knobs or {}))
    plan = loaded.plan(profile, knobs)
    sources = []
    if evidence != "recompute":
        collect_records(loaded, profile, evidence, knobs)
        reference = read_reference(profile, number)
        sources += [describe_evidence(profile, number, reference)] if reference else []
    if computed := _computed(loaded, profile, evidence, knobs):
        seconds = sum(run.predicted_seconds for run in computed)
        sources.append(f"runs/{profile}/{number}, at most {seconds:.0f} core-seconds")
    installed = versions()
    rows = [
        {"setting": "profile", "value": profile},
        {"setting": "evidence", "value": f"{evidence}: {'; '.join(sources)}"},
        {"setting": "runs", "value": str(len(plan))},
        {"setting": "seeds", "value": _span([run.seed for run in plan])},
        {"setting": "device", "value": _device()},
        {"setting": "versions", "value": ", ".join(f"{k} {installed[k]}" for k in _SHOWN_VERSIONS)},
    ]
    print(text_table(rows, ["setting", "value"]))
    return context


def _computed(
    chapter: Chapter, profile: str, evidence: str, knobs: Mapping[str, Any] | None
) -> list[Run]:
    """The runs that must be there: all of the plan, those of a seed, or none."""
    if evidence == "reference":
        return []
    plan, seed = chapter.plan(profile, knobs), seed_of(evidence)
    return plan if seed is None else runs_of_seed(plan, seed)


@cache
def _say_if_not_canonical() -> None:
    """Print the warning once per kernel, on standard error, where no output is compared."""
    if NOT_CANONICAL:
        print(NOT_CANONICAL, file=sys.stderr)


def _device() -> str:
    """Device on which runs are computed, in words."""
    device = run_device()
    return "cpu, one thread a process" if device.type == "cpu" else device_name(device)


def _span(seeds: Sequence[int]) -> str:
    return f"{min(seeds)} to {max(seeds)}"
