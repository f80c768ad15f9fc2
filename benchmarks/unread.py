"""What no claim, figure or table reads in the committed records, and what it takes to compute.

    python benchmarks/unread.py [CHAPTER ...]
    python benchmarks/unread.py --draw

An entry is a metric, a curve, a counter or another field of a record. First the ledgers are judged,
the key figures drawn and the cells of the notebooks executed while the records note which of their
entries are read by name. Where code loops over all entries, it counts what comes out: an entry is
read if its values change anything that is shown. Then the entries that nothing reads are left out
of all records, and everything must come out the same.

After that one seed of every arm of the standard profile is sampled as in ``where_time_goes.py``.
``unread_work.py`` says which part of the code computes which entries; its core-seconds count as
unread where the arm's entries are. What comes for free beside entries that are read is not there.

It takes about 40 minutes of one core, and writes ``results/bench/unread.json`` and its table in
``docs/time.md``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from unread_work import WORK, Work, check_work, fits, lines_of, starred
from where_time_goes import (
    KINDS,
    PAGE,
    check_rules,
    first_runs,
    kind_of,
    project_frames,
    sampled,
    weights,
)
from where_time_goes import TARGET as SHARES

from companion.evidence import store
from companion.evidence.store import Record, read_reference, write_atomic
from companion.evidence.tables import markdown_table
from companion.lab.chapters import about, chapter_numbers, load_chapter, notebook_path
from companion.lab.processes import child_environment
from companion.paths import RESULTS, ROOT

TARGET = RESULTS / "bench" / "unread.json"
START, END = "<!-- generated: unread -->", "<!-- end -->"
SECTIONS = ("metrics", "curves", "counters")
USEFUL = ("training", "method", "measurement")
Entries = dict[str, set[str]]  # by arm; an entry is "metrics test/loss", "curves loss", "plateau"
How = Literal["left out", "raised", "lowered"]


# --- what is read ---------------------------------------------------------------------------------


class LoopName(str):
    """A name of an entry that code has got by looping over all of them."""

    __slots__ = ()


class Traced(dict[str, Any]):
    """A mapping that notes which of its values are read, by name or in a loop.

    Args:
        values: What it holds.
        note: Is given each name that is read, and whether a loop gave it.
    """

    def __init__(self, values: Mapping[str, Any], note: Callable[[str, bool], None]) -> None:
        super().__init__(values)
        self._note = note

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        self._note(str(name), isinstance(name, LoopName))
        return value

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a name."""
        if name not in self:
            return default
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return map(LoopName, super().__iter__())

    def keys(self) -> Any:
        """All names, each of which tells that it comes from a loop."""
        return list(self)

    def values(self) -> Any:
        """All values, each of which counts as read in a loop."""
        return [self[name] for name in self]

    def items(self) -> Any:
        """All names with their values, each of which counts as read in a loop."""
        return [(name, self[name]) for name in self]


@dataclass
class Reads:
    """What has been read: by name, and in loops."""

    by_name: Entries = field(default_factory=lambda: defaultdict(set))
    in_loops: Entries = field(default_factory=lambda: defaultdict(set))

    def traced(self, record: Record) -> Traced:
        """A record that notes here what is read of it."""
        arm = record["arm"]

        def note_in(section: str) -> Callable[[str, bool], None]:
            def note(name: str, is_loop: bool) -> None:
                entries = self.in_loops if is_loop else self.by_name
                entries[arm].add(f"{section} {name}" if section else name)

            return note

        sections = {
            name: Traced(record[name], note_in(name)) for name in SECTIONS if name in record
        }
        return Traced({**record, **sections}, note_in(""))


def entries_of(record: Record) -> list[str]:
    """All entries of a record."""
    heads = {*store.IDENTITY, *SECTIONS}
    parts = [f"{section} {name}" for section in SECTIONS for name in record.get(section, ())]
    return parts + [name for name in record if name not in heads]


def known_entries(number: str, *profiles: str) -> Entries:
    """The entries of all committed records of a chapter."""
    known: Entries = defaultdict(set)
    for profile in profiles or ("standard", "full"):
        reference = read_reference(profile, number)
        for record in reference.records if reference else ():
            known[record["arm"]].update(entries_of(record))
    return known


def changed(record: Record, entries: Collection[str], how: How) -> Record:
    """The record with some of its entries left out, or with their values far up or down."""
    kept = dict(record)
    for entry in entries:
        section, is_part, name = entry.partition(" ")  # names may contain spaces
        if is_part and section in kept:
            kept[section] = dict(kept[section])
        mapping, name = (kept.get(section, {}), name) if is_part else (kept, entry)
        if name not in mapping:  # a record of the other profile
            continue
        if how == "left out":
            del mapping[name]
        else:
            mapping[name] = _moved(mapping[name], 1000.0 if how == "raised" else -1000.0)
    return kept


def _moved(value: Any, factor: float) -> Any:
    if isinstance(value, list):
        return [_moved(each, factor) for each in value]
    if isinstance(value, str | Mapping):
        raise ValueError(f"cannot move {value!r}")
    return value * factor + factor


def show_everything(number: str) -> bytes:
    """All that a chapter shows: verdicts, key figure, and the outputs of its notebook's cells."""
    from companion.pages.judge import verdicts_text
    from companion.pages.views import key_figure_png

    shown = [verdicts_text(number).encode()]
    if about(number).key_figure:
        shown.append(key_figure_png(number))
    return b"\n".join([*shown, executed(notebook_path(number))])


def executed(path: Path) -> bytes:
    """Execute the cells of a notebook in this process; return what they print and display."""
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    cells = json.loads(path.read_text("utf-8"))["cells"]
    shell = InteractiveShell.instance()
    os.chdir(path.parent)
    with capture_output() as captured:
        for cell in cells:
            if cell["cell_type"] == "code":
                shell.run_cell("".join(cell["source"])).raise_error()
    displayed = [json.dumps(output.data, sort_keys=True) for output in captured.outputs]
    return "\n".join([captured.stdout, *displayed]).encode()


@dataclass(frozen=True)
class Answer:
    """What came of showing everything; ``shown`` is a hash, empty if something failed."""

    shown: str
    by_name: dict[str, list[str]] = field(default_factory=dict)
    in_loops: dict[str, list[str]] = field(default_factory=dict)


def read_inside(number: str, entries: Mapping[str, Sequence[str]], how: How) -> Answer:
    """Show everything in this process, with some entries of the records changed."""
    reads, make = Reads(), store.Reference

    def traced_reference(records: list[Record], *rest: Any) -> store.Reference:
        altered = [changed(each, entries.get(each["arm"], ()), how) for each in records]
        return make([reads.traced(each) for each in altered], *rest)

    store.Reference = traced_reference  # type: ignore[assignment, misc]
    shown = hashlib.sha256(show_everything(number)).hexdigest()
    by_name, in_loops = (
        {arm: sorted(names) for arm, names in each.items()}
        for each in (reads.by_name, reads.in_loops)
    )
    return Answer(shown, by_name, in_loops)


def child(number: str, task: str, given: Mapping[str, Any]) -> str | None:
    """Run a task in a new process in canonical mode; ``None`` if it failed."""
    # where values are changed on purpose, code that refuses them is no error
    is_trial = task == "read" and given["entries"]
    done = subprocess.run(
        [sys.executable, str(Path(__file__)), number, "--inside", task],
        env=child_environment(is_canonical=True) | {"MPLBACKEND": "agg"},
        input=json.dumps(given),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if is_trial else None,
        text=True,
    )
    return None if done.returncode else done.stdout.splitlines()[-1]


def read(number: str, entries: Entries | None = None, how: How = "left out") -> Answer:
    """Show everything in a new process, with some entries of the records changed."""
    plain = {arm: sorted(names) for arm, names in (entries or {}).items()}
    said = child(number, "read", {"entries": plain, "how": how})
    return Answer("") if said is None else Answer(**json.loads(said))


def _matter(number: str, entries: Entries, shown: str) -> bool:
    """Whether anything that is shown changes with the values of these entries."""
    return any(read(number, entries, how).shown != shown for how in ("raised", "lowered"))


def unread_entries(number: str) -> Entries:
    """The entries that nothing reads, by arm.

    Raises:
        RuntimeError: If a chapter cannot be shown, or shows something else without them.
    """
    known, first = known_entries(number), read(number)
    if not first.shown:
        raise RuntimeError(f"chapter {number} cannot be shown")
    named = {arm: set(names) for arm, names in first.by_name.items()}
    loops: dict[str, Entries] = defaultdict(lambda: defaultdict(set))
    for arm, names in first.in_loops.items():
        for entry in set(names) & known[arm] - named.get(arm, set()):
            # those of one kind, whose names end alike, are tried together
            loops[entry.rpartition("/")[2].partition("@")[0]][arm].add(entry)
    everything: Entries = defaultdict(set)
    for group in loops.values():
        for arm, names in group.items():
            everything[arm] |= names
    if everything and _matter(number, everything, first.shown):
        for ending, group in sorted(loops.items()):
            if len(loops) == 1 or _matter(number, group, first.shown):
                print(f"chapter {number}: a loop reads {ending}", file=sys.stderr, flush=True)
                for arm, names in group.items():
                    named.setdefault(arm, set()).update(names)
    unread = {arm: names - named.get(arm, set()) for arm, names in known.items()}
    unread = {arm: names for arm, names in unread.items() if names}
    if read(number, unread).shown != first.shown:
        raise RuntimeError(f"chapter {number} shows something else without its unread entries")
    return unread


# --- patterns -------------------------------------------------------------------------------------


def patterns(unread: Entries, known: Entries) -> list[dict[str, Any]]:
    """Describe unread entries by patterns, with the arms that they are unread in.

    A ``*`` stands for one part of a name between slashes. A pattern fits no entry of its arms that
    is read.
    """
    arms_of: dict[str, set[str]] = defaultdict(set)
    for arm, entries in unread.items():
        for entry in entries:
            arms_of[entry].add(arm)
    groups: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for entry, arms in arms_of.items():
        groups[tuple(sorted(arms))].add(entry)
    rows = []
    for arms, entries in groups.items():
        read_here = {e for arm in arms for e in known[arm] - unread[arm]}
        rows += [{"entry": each, "arms": list(arms)} for each in _merged(entries, read_here)]
    return sorted(rows, key=lambda row: (row["entry"], row["arms"]))


def _merged(entries: Iterable[str], others: Collection[str]) -> set[str]:
    """Replace parts of names by ``*`` where entries differ in one part and no other entry fits."""
    merged = set(entries)
    for position in range(max(each.count("/") for each in merged) + 1):
        alike: dict[tuple[str, ...], set[str]] = defaultdict(set)
        for entry in merged:
            parts = entry.split("/")
            if position < len(parts):
                section = parts[0].partition(" ")[0]
                parts[position] = "*" if position else f"{section} *"
                alike[tuple(parts)].add(entry)
        for parts_of_pattern, members in alike.items():
            pattern = "/".join(parts_of_pattern)
            is_whole = pattern.endswith(" *") or pattern == "*"
            if len(members) > 1 and not is_whole and not any(fits(e, pattern) for e in others):
                merged = merged - members | {pattern}
    return merged


def expanded(rows: Iterable[Mapping[str, Any]], known: Entries) -> Entries:
    """The entries that the rows of `patterns` stand for, by arm."""
    unread: Entries = defaultdict(set)
    for row in rows:
        for arm in row["arms"]:
            unread[arm] |= {entry for entry in known[arm] if fits(entry, row["entry"])}
    return dict(unread)


# --- seconds --------------------------------------------------------------------------------------


def frames_of(frame: FrameType | None) -> list[FrameType]:
    """A stack's frames, the innermost first."""
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames


def variables_at(work: Work, frames: Sequence[FrameType]) -> dict[str, Any] | None:
    """Local variables of the parts of some work, or ``None`` if a stack does not do it."""
    variables: dict[str, Any] = {}
    for part in work.parts:
        for frame in frames:
            code = frame.f_code
            if code.co_qualname != part.function or code.co_filename != str(ROOT / part.file):
                continue
            if not part.text or any(frame.f_lineno in lines for lines in lines_of(part)):
                variables |= frame.f_locals
                break
        else:
            return None
    return variables


def is_unread(
    work: Work,
    arm: str,
    variables: Mapping[str, Any],
    known: Collection[str],
    unread: Collection[str],
) -> bool:
    """Whether an arm has entries that the work computes, and nothing reads any of them."""
    if work.not_in and fnmatchcase(arm, work.not_in):
        return False
    if work.when is not None and not work.when(variables):
        return False
    wanted = [entry.format_map(variables) for entry in work.entries]
    computed = [entry for entry in known if any(fits(entry, each) for each in wanted)]
    return bool(computed) and all(entry in unread for entry in computed)


def time_inside(number: str, unread: Entries) -> list[dict[str, Any]]:
    """Sample one seed of every arm in this process; return the core-seconds of unread work.

    Each row has the index of the work, the arm, the kind of work and the seconds.
    """
    chapter, spent, first = load_chapter(number), weights(number), first_runs(number)
    known = known_entries(number, "standard")
    rows = []
    for arm in [arm for arm in first if arm in spent]:
        seconds: Counter[tuple[int, str]] = Counter()

        def count(
            frame: FrameType | None,
            passed: float,
            arm: str = arm,
            seconds: Counter[tuple[int, str]] = seconds,
        ) -> None:
            index = _unread_work(number, arm, frames_of(frame), known[arm], unread.get(arm, set()))
            seconds[index, kind_of(project_frames(frame))] += passed

        with sampled(count):
            chapter.execute(first[arm])
        scale = spent[arm] / sum(seconds.values())
        for (index, kind), value in seconds.items():
            if index >= 0:
                rows.append({"work": index, "arm": arm, "kind": kind, "seconds": scale * value})
        print(f"chapter {number}: {arm}", file=sys.stderr, flush=True)
    return rows


def _unread_work(
    number: str, arm: str, frames: Sequence[FrameType], known: set[str], unread: set[str]
) -> int:
    """Index of the first work that a stack does and nothing reads, or -1."""
    for index, work in enumerate(WORK):
        if work.chapter == number:
            variables = variables_at(work, frames)
            if variables is not None and is_unread(work, arm, variables, known, unread):
                return index
    return -1


def _timed(number: str, unread: Entries) -> list[dict[str, Any]]:
    """What `time_inside` gives, with one row for all work that has the same entries and note."""
    said = child(number, "time", {arm: sorted(names) for arm, names in unread.items()})
    if said is None:
        raise RuntimeError(f"chapter {number} cannot be timed")
    kinds: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    arms: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in json.loads(said):
        work = WORK[row["work"]]
        key = ", ".join(f"`{each}`" for each in starred(work)), work.note
        kinds[key][row["kind"]] += row["seconds"]
        arms[key].add(row["arm"])
    rows = [
        {
            "entries": entries,
            "arms": sorted(arms[entries, note]),
            "seconds": {kind: round(each[kind], 2) for kind in KINDS if each[kind]},
            "note": note,
        }
        for (entries, note), each in kinds.items()
    ]
    return sorted(rows, key=lambda row: -sum(row["seconds"].values()))


# --- the page -------------------------------------------------------------------------------------


def measured(number: str) -> dict[str, Any]:
    """The figures of a chapter: its unread entries, and the core-seconds of what computes them."""
    unread, known = unread_entries(number), known_entries(number)
    standard = known_entries(number, "standard")
    return {
        "entries": sum(map(len, standard.values())),
        "unread_entries": sum(len(unread.get(arm, set()) & standard[arm]) for arm in standard),
        "work": _timed(number, unread),
        "unread": patterns(unread, known),
    }


@dataclass(frozen=True)
class Totals:
    """Core-seconds of the standard profile: all, those of useful kinds, and unread ones of both."""

    everything: float
    useful: float
    unread: float
    unread_useful: float

    @property
    def share(self) -> float:
        """Useful percent of what remains without unread measurements."""
        return 100 * (self.useful - self.unread_useful) / (self.everything - self.unread)


def totals(figures: Mapping[str, Any], shares: Mapping[str, Any]) -> Totals:
    """Add up the chapters' figures and what ``where_time_goes.py`` has measured."""
    spent = [row["seconds"] for chapter in figures.values() for row in chapter["work"]]
    return Totals(
        sum(chapter["core_seconds"] for chapter in shares.values()),
        sum(c["core_seconds"] * c["shares"][kind] for c in shares.values() for kind in USEFUL),
        sum(seconds for kinds in spent for seconds in kinds.values()),
        sum(kinds.get(kind, 0.0) for kinds in spent for kind in USEFUL),
    )


def sentence(added: Totals) -> str:
    """What the figures say in words."""
    return (
        f"Of the {added.everything:,.0f} core-seconds of the standard profile, measurements that "
        f"nothing reads take {added.unread:,.0f} ({100 * added.unread / added.everything:.1f} "
        f"percent). Of all others, training, the methods' passes and measurements that a claim, a "
        f"figure or a table reads make up **{added.share:.1f} percent**."
    )


def _title(number: str) -> str:
    return f"{int(number)} {about(number).title.replace('_', ' ')}"


def seconds_table(figures: Mapping[str, Any]) -> str:
    """The table of what takes a second or more."""
    rows = []
    for number, chapter in figures.items():
        arms = len(known_entries(number, "standard"))
        for row in chapter["work"]:
            if (seconds := round(sum(row["seconds"].values()))) >= 1:
                names = row["arms"]
                shown = ", ".join(names) if len(names) < 3 else f"{len(names)} of {arms}"
                cells = {"chapter": _title(number), "entries": row["entries"], "arms": shown}
                rows.append(cells | {"core-seconds": seconds, "note": row["note"]})
    return markdown_table(rows, ["chapter", "entries", "arms", "core-seconds", "note"])


def entries_table(figures: Mapping[str, Any]) -> str:
    """The table of all unread entries of the standard profile, numbers in their names left out."""
    rows = []
    for number, chapter in figures.items():
        standard = set(known_entries(number, "standard"))
        names = {_coarse(row["entry"]) for row in chapter["unread"] if standard & {*row["arms"]}}
        rows.append(
            {
                "chapter": _title(number),
                "entries": chapter["entries"],
                "unread": chapter["unread_entries"],
                "names": ", ".join(f"`{name}`" for name in sorted(names)),
            }
        )
    return markdown_table(rows, ["chapter", "entries", "unread", "names"])


def _coarse(entry: str) -> str:
    """A name with a star for each part that is a number, a size or a depth."""
    section, is_part, name = entry.partition(" ")
    if not is_part:
        return entry
    name = re.sub(r"(?<![^/@])(n=|depth=)?[\d.]+(e-\d+)?(?![^/])", "*", name)
    return f"{section} {re.sub('([*]/)+', '*/', name)}"


def block(figures: Mapping[str, Any], shares: Mapping[str, Any]) -> str:
    """The generated part of the page."""
    short = sum(
        seconds
        for chapter in figures.values()
        for seconds in (sum(row["seconds"].values()) for row in chapter["work"])
        if round(seconds) < 1
    )
    return "\n\n".join(
        (
            sentence(totals(figures, shares)),
            seconds_table(figures),
            f"Others that take less than a second each take {short:.1f} together. All that is not "
            "in the table comes for free beside entries that are read.",
            "<details><summary>All entries that nothing reads in some arm</summary>",
            entries_table(figures),
            "</details>",
        )
    )


def with_block(page: str, figures: Mapping[str, Any]) -> str:
    """The page with its generated part replaced."""
    shares = json.loads(SHARES.read_text("utf-8"))
    head, rest = page.split(START)
    return f"{head}{START}\n{block(figures, shares)}\n{END}{rest.split(END, 1)[1]}"


def main() -> None:
    """Find the unread entries of chapters and time them; write the figures and the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("chapters", nargs="*", default=chapter_numbers())
    parser.add_argument("--draw", action="store_true", help="the page alone")
    parser.add_argument("--inside", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        (number,) = options.chapters
        given = json.load(sys.stdin)
        if options.inside == "read":
            print(json.dumps(asdict(read_inside(number, given["entries"], given["how"]))))
        else:
            unread = {arm: set(entries) for arm, entries in given.items()}
            print(json.dumps(time_inside(number, unread)))
        return
    check_rules()
    check_work()
    figures = json.loads(TARGET.read_text("utf-8")) if TARGET.is_file() else {}
    for number in () if options.draw else options.chapters:
        figures[number] = measured(number)
        write_atomic(TARGET, json.dumps(dict(sorted(figures.items())), indent=1) + "\n")
    write_atomic(PAGE, with_block(PAGE.read_text("utf-8"), figures))


if __name__ == "__main__":
    main()
