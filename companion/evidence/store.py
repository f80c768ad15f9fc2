"""Runs and their results: identities, keys, atomic files, and the committed reference.

A finished run is a folder ``<runs>/<chapter>/<key>/`` with ``result.json`` (the record, compared
byte for byte) and ``provenance.json`` (its checksum; when, where, how long; never compared).
``result.json`` is written last, so a folder that has it is finished and one that lacks it does not
count. A folder whose record does not fit its checksum, or the run that is asked for, is renamed
and does not count either.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import secrets
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

from companion.evidence.canonical import versions
from companion.paths import RESULTS, RUNS

__all__ = [
    "Conditions",
    "Record",
    "RecordSet",
    "Reference",
    "Run",
    "Store",
    "cache_key",
    "canonical_json",
    "checksum",
    "identity_key",
    "read_record_set",
    "read_reference",
    "record_identity",
    "reference_folder",
    "rounded",
    "write_atomic",
    "write_record_set",
    "write_reference",
]

Record = dict[str, Any]
IDENTITY = ("chapter", "arm", "version", "seed", "data", "settings")
_MISSING = object()


def canonical_json(value: Any) -> str:
    """Write JSON in one line with sorted keys: equal values give equal bytes.

    Raises:
        ValueError: If a number is NaN or infinite.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False
    )


def rounded(value: float, digits: int) -> float:
    """Round to ``digits`` significant digits, so that files stay short.

    Raises:
        ValueError: If ``value`` is NaN or infinite.
    """
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number, got {value}")
    return float(f"{value:.{digits}g}")


def _differences(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, object]:
    """The part of a configuration that differs from the defaults, nested configurations included.

    A value is at its default only if both are written alike: 1, 1.0 and true are equal in Python
    and different in a file.
    """
    return {
        name: _differences(value, defaults) if isinstance(value, Mapping) else value
        for name, value in config.items()
        if defaults.get(name, _MISSING) is _MISSING
        or canonical_json(value) != canonical_json(defaults[name])
    }


@dataclass(frozen=True)
class Run:
    """One unit of work: one arm of a chapter, one configuration, one seed.

    Attributes:
        chapter: Two digits.
        arm: Name of the arm.
        config: Everything that the numbers depend on besides the seed; JSON values only.
        seed: Evidence starts at 1000, pilots and tuning use 0 to 99.
        data: Content hash of the data.
        predicted_seconds: Core-seconds expected on the reference machine.
        deterministic: False for timing and asynchronous runs, which are never compared.
        version: Version of the arm; a new one says that its numbers were changed on purpose.
        defaults: Default values, by name, of the settings that a record leaves out.
        together: Whether one call can compute it with runs that differ from it only in the seed.
    """

    chapter: str
    arm: str
    config: Mapping[str, Any]
    seed: int
    data: str
    predicted_seconds: float = field(compare=False)
    deterministic: bool = True
    version: int = 1
    defaults: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    together: bool = field(default=False, compare=False, repr=False)

    # cached, because the progress of a sweep asks for the same runs every second
    @cached_property
    def settings(self) -> dict[str, object]:
        """The part of the configuration that differs from the defaults."""
        return _differences(self.config, self.defaults)

    @property
    def head(self) -> Record:
        """The fields that identify the run in its record."""
        return {
            "chapter": self.chapter,
            "arm": self.arm,
            "version": self.version,
            "seed": self.seed,
            "data": self.data,
            "settings": dict(self.settings),
        }

    @cached_property
    def identity(self) -> str:
        """Canonical text of `head`, by which runs are told apart."""
        return canonical_json(self.head)

    @property
    def key(self) -> str:
        """Hash of the identity, which does not depend on the code or the machine."""
        return identity_key(self.identity)


@dataclass(frozen=True)
class Conditions:
    """What the bytes of a result may depend on besides the run's identity.

    Attributes:
        code: Digest of the code.
        fingerprint: Fingerprint of the environment (`canonical.fingerprint`).
        device: Name of the device.
        is_canonical: Whether the process is in canonical mode.
    """

    code: str
    fingerprint: str
    device: str
    is_canonical: bool


def record_identity(record: Mapping[str, Any]) -> str:
    """Canonical text that identifies a record: chapter, arm, version, seed, data, settings.

    Raises:
        KeyError: If the record lacks one of them.
    """
    return canonical_json({name: record[name] for name in IDENTITY})


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def identity_key(identity: str) -> str:
    """Key of a record, from its identity."""
    return _sha256(identity)


def cache_key(identity: str, conditions: Conditions) -> str:
    """Name of a finished run's folder; other code, fingerprint or device gives another folder."""
    return _sha256(
        "\n".join((identity, conditions.code, conditions.fingerprint, conditions.device))
    )


def checksum(record: Mapping[str, Any]) -> str:
    """Hash of a record as it stands in a file, without the line break."""
    return _sha256(canonical_json(record))


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a whole file or nothing: temporary file in the same folder, fsync, rename.

    Text is written as UTF-8, and its line breaks stay as they are.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    # not `mkstemp`, whose files nobody else may read: these are shared and committed
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class _DamagedError(ValueError):
    """A file does not hold what was written there."""


def _object_in(text: bytes, name: str) -> Record:
    """Parse a line that must hold one JSON object; ``name`` is for the message."""
    try:
        value = json.loads(text.decode("utf-8"))
    except ValueError as error:  # the JSON or the encoding is wrong
        raise _DamagedError(f"{name} cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise _DamagedError(f"{name} holds no record")
    return value


def _line_of(path: Path) -> bytes:
    """Read a file of one line; the line break at its end proves that the file is whole."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise _DamagedError(f"{path.name} cannot be read ({error.strerror})") from error
    if not text.endswith(b"\n"):
        raise _DamagedError(f"{path.name} is cut off")
    return text[:-1]


class Store:
    """The finished runs of one profile in one folder; safe with several processes.

    Two processes that compute the same run write the same bytes, and each file appears whole.

    Args:
        profile: Name of the profile.
        root: Folder of all profiles.
    """

    # Seconds to wait before each attempt to read a record: one that does not fit is read again,
    # because another process may have written only one of its two files.
    _PAUSES = (0.0, 0.05, 0.2)

    def __init__(self, profile: str, root: Path = RUNS) -> None:
        self.profile = profile
        self.root = root
        self.folder = root / profile

    def run_folder(self, run: Run, conditions: Conditions) -> Path:
        """Folder of one run."""
        return self.folder / run.chapter / cache_key(run.identity, conditions)

    def read(self, run: Run, conditions: Conditions) -> Record | None:
        """Return the record of a finished run, else ``None``.

        The folder of a record that is damaged, or that is another run's, is renamed with a line on
        standard error; the run then counts as not finished.
        """
        folder = self.run_folder(run, conditions)
        damage = ""
        for pause in self._PAUSES:
            time.sleep(pause)
            if not (folder / "result.json").is_file():
                return None
            try:
                return self._checked(folder, run, conditions)
            except _DamagedError as error:
                damage = str(error)
        if aside := _set_aside(folder):
            sys.stderr.write(
                f"{folder / 'result.json'}: {damage}; {run.arm}, seed {run.seed}, counts as not "
                f"computed, the folder is kept as {aside.name}\n"
            )
        return None

    def _checked(self, folder: Path, run: Run, conditions: Conditions) -> Record:
        """Read a record; raise a `_DamagedError` if it is not what this run has written."""
        line = _line_of(folder / "result.json")
        provenance = _object_in(_line_of(folder / "provenance.json"), "provenance.json")
        if hashlib.sha256(line).hexdigest() != provenance.get("checksum"):
            raise _DamagedError("the record does not fit the checksum in provenance.json")
        record = _object_in(line, "result.json")
        if not all(name in record for name in IDENTITY) or record_identity(record) != run.identity:
            raise _DamagedError("the record is another run's")
        expected = {"key": run.key, **_facts(conditions)}
        if wrong := [name for name, value in expected.items() if provenance.get(name) != value]:
            raise _DamagedError(f"provenance.json is another run's ({', '.join(wrong)})")
        return record

    def provenance(self, run: Run, conditions: Conditions) -> Record:
        """Return the provenance of a finished run.

        Raises:
            FileNotFoundError: If the run is not finished.
        """
        path = self.run_folder(run, conditions) / "provenance.json"
        provenance: Record = json.loads(path.read_text(encoding="utf-8"))
        return provenance

    def write(
        self,
        run: Run,
        conditions: Conditions,
        result: Mapping[str, Any],
        seconds: Mapping[str, float],
        started: str = "",
    ) -> None:
        """Write a finished run.

        Args:
            run: The run.
            conditions: As measured in the process that computed it.
            result: ``metrics``, ``curves``, ``counters`` and optional flags.
            seconds: Wall and processor seconds; an even share where runs were computed together.
            started: When the run started, as an ISO 8601 date and time.

        Raises:
            ValueError: If a number is NaN or infinite, or ``result`` has a field of `Run.head`.
        """
        if clash := run.head.keys() & result.keys():
            raise ValueError(f"a result may not set {sorted(clash)}")
        folder = self.run_folder(run, conditions)
        record = run.head | dict(result)
        text = canonical_json(record) + "\n"
        provenance = {
            "key": run.key,
            "checksum": checksum(record),
            "deterministic": run.deterministic,
            "host": f"{platform.system()} {platform.machine()}",
            "versions": versions(),
            "started": started,
            **_facts(conditions),
            **seconds,
        }
        write_atomic(folder / "provenance.json", canonical_json(provenance) + "\n")
        write_atomic(folder / "result.json", text)  # last: from now on the run is finished
        (folder / "failure.json").unlink(missing_ok=True)

    def write_failure(self, run: Run, conditions: Conditions, reason: str) -> None:
        """Write why a run failed, unless it is finished; the next sweep tries it again."""
        folder = self.run_folder(run, conditions)
        if (folder / "result.json").is_file():  # its call failed, but after its record was written
            return
        write_atomic(folder / "failure.json", canonical_json({**run.head, "reason": reason}) + "\n")

    def has_failed(self, run: Run, conditions: Conditions) -> bool:
        """Whether the last attempt at a run failed."""
        return (self.run_folder(run, conditions) / "failure.json").is_file()

    def check_writable(self) -> None:
        """Write one byte to a temporary file, to find out whether the store can be written.

        Raises:
            OSError: If the folder cannot be made or written, or the disk is full.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.folder) as file:
            file.write(b"0")

    def sweep_up(self) -> None:
        """Remove temporary files that a killed process left more than an hour ago."""
        for path in self.folder.glob("*/*/.*.tmp"):
            try:
                if time.time() - path.stat().st_mtime > 3600:
                    path.unlink()
            except FileNotFoundError:
                continue


def _facts(conditions: Conditions) -> Record:
    """The conditions as fields of a run's provenance."""
    return {
        "code": conditions.code,
        "fingerprint": conditions.fingerprint,
        "device": conditions.device,
        "canonical": conditions.is_canonical,
    }


def _set_aside(folder: Path) -> Path | None:
    """Rename a damaged folder; ``None`` if another process was faster."""
    for number in count(1):
        aside = folder.with_name(f"{folder.name}.damaged-{number}")
        if aside.exists():
            continue
        try:
            return folder.rename(aside)
        except FileNotFoundError:
            return None
        except OSError:
            # another process may have taken the name meanwhile; other errors would only repeat
            if not aside.exists():
                raise
    raise AssertionError("unreachable: the numbers do not end")


@dataclass(frozen=True)
class RecordSet:
    """What is stated once about all committed records of a chapter, in ``set.json``.

    Attributes:
        canonical: Whether the records were made in canonical mode.
        note: What a reader must know about the records, in words; may be empty.
        versions: Version of each arm that does not have version 1.
        commit: Commit of the code that made the records.
        ledger: Git's hash of the ledger as it was committed when the runs started, or
            ``"unknown"``.
        started: When the first run started, as an ISO 8601 date and time; empty if unknown.
        timed_on: Commit of the code with which the timing runs were made.
        criteria: Hash of every deciding rule when the set was published, by claim; a claim without
            an entry was not judged then.
        waiting: Arms whose records are still to be promoted, while the evidence is in progress.
    """

    canonical: bool
    note: str
    versions: Mapping[str, int]
    commit: str
    ledger: str
    started: str
    timed_on: str
    criteria: Mapping[str, str] = field(default_factory=dict)
    waiting: Sequence[str] = ()

    def version(self, arm: str) -> int:
        """Version of an arm with which the set was published."""
        return self.versions.get(arm, 1)


def read_record_set(folder: Path) -> RecordSet:
    """Read ``set.json`` of a folder of committed results.

    Raises:
        ValueError: If it is missing or does not hold what a `RecordSet` needs.
    """
    path = folder / "set.json"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    kinds = {"canonical": bool, "versions": dict, "criteria": dict, "waiting": list}
    names = [each.name for each in fields(RecordSet)]
    optional = ("criteria", "waiting")  # sets from before these fields existed lack them
    if not isinstance(value, dict) or not {*names} - {*optional} <= {*value} <= {*names}:
        raise ValueError(f"{path}: must hold exactly {', '.join(names)}")
    stated: dict[str, Any] = {"criteria": {}, "waiting": []} | value
    for name in names:
        if not isinstance(stated[name], kinds.get(name, str)):
            raise ValueError(f"{path}: {name} = {stated[name]!r}")
    for arm, number in stated["versions"].items():
        if type(number) is not int or number < 1:
            raise ValueError(f"{path}: version of {arm} = {number!r}")
    return RecordSet(**stated | {"waiting": tuple(stated["waiting"])})


@dataclass(frozen=True)
class Reference:
    """The committed results of one chapter.

    Attributes:
        records: The records, sorted by key.
        provenance: Provenance of each record, in the same order.
        record_set: What is stated about all of them.
    """

    records: list[Record]
    provenance: list[Record]
    record_set: RecordSet

    @cached_property
    def _rows(self) -> dict[str, int]:
        """Index of each record, by its identity."""
        return {record_identity(record): i for i, record in enumerate(self.records)}

    def find(self, run: Run) -> tuple[Record, Record] | None:
        """Return record and provenance of a run, else ``None``.

        The version is the one that the set was published with, not the arm's present one.
        """
        head = run.head | {"version": self.record_set.version(run.arm)}
        row = self._rows.get(record_identity(head))
        return None if row is None else (self.records[row], self.provenance[row])


def reference_folder(profile: str, chapter: str, root: Path = RESULTS) -> Path:
    """Folder of the committed results of a chapter."""
    return root / profile / chapter


def _lines_of(path: Path) -> list[bytes]:
    """Lines of a file without their line breaks; the last line must have one, too."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    # not `splitlines`, which also splits at characters that JSON leaves as they are
    lines = text.split(b"\n")
    if lines.pop():
        raise ValueError(f"{path}, line {len(lines) + 1}: cut off")
    return lines


def _check_row(
    line: bytes, record: Record, provenance: Record, chapter: str, record_set: RecordSet
) -> None:
    """Check one committed record, and the line it was read from, against provenance and set."""
    if missing := [name for name in IDENTITY if name not in record]:
        raise _DamagedError(f"lacks {', '.join(missing)}")
    name = f"{record['arm']}, seed {record['seed']}"
    if provenance.get("checksum") != hashlib.sha256(line).hexdigest():
        raise _DamagedError(f"{name}: the record does not fit its checksum")
    if provenance.get("key") != identity_key(record_identity(record)):
        raise _DamagedError(f"{name}: the record does not fit its key")
    if record["chapter"] != chapter:
        raise _DamagedError(f"{name}: a record of chapter {record['chapter']}")
    if record["version"] != record_set.version(record["arm"]):
        expected = record_set.version(record["arm"])
        raise _DamagedError(f"{name}: version {record['version']}, set.json says {expected}")


def read_reference(profile: str, chapter: str, root: Path = RESULTS) -> Reference | None:
    """Read the committed results of a chapter; ``None`` if it has none.

    Raises:
        ValueError: If a file, a line or a record is not what was published; the message names file,
            line, arm and seed.
    """
    folder = reference_folder(profile, chapter, root)
    path = folder / "records.jsonl"
    if not path.is_file():
        return None
    record_set = read_record_set(folder)
    lines = _lines_of(path)
    rows = _lines_of(folder / "provenance.jsonl")
    if len(lines) != len(rows):
        raise ValueError(f"{path}: {len(lines)} records, but {len(rows)} lines of provenance")
    records: list[Record] = []
    provenance: list[Record] = []
    for number, (line, row) in enumerate(zip(lines, rows, strict=True), start=1):
        try:
            provenance.append(_object_in(row, "its line of provenance.jsonl"))
            records.append(_object_in(line, "the line"))
            _check_row(line, records[-1], provenance[-1], chapter, record_set)
            if number > 1 and provenance[-1]["key"] <= provenance[-2]["key"]:
                raise _DamagedError(f"{records[-1]['arm']}, seed {records[-1]['seed']}: not sorted")
        except _DamagedError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return Reference(records, provenance, record_set)


def write_reference(
    profile: str,
    chapter: str,
    rows: Iterable[tuple[Record, Record]],
    record_set: RecordSet,
    root: Path = RESULTS,
) -> None:
    """Write the files of a record set: records sorted by key, their provenance, and ``set.json``.

    Raises:
        ValueError: If two records have one identity, or a version is not the set's.
    """
    keyed: dict[str, tuple[Record, Record]] = {}
    for record, provenance in rows:
        key = identity_key(record_identity(record))
        name = f"{record['arm']}, seed {record['seed']}"
        if key in keyed:
            raise ValueError(f"{name}: two records have one identity")
        if record["version"] != record_set.version(record["arm"]):
            raise ValueError(f"{name}: version {record['version']} is not that of the set")
        keyed[key] = record, provenance | {"key": key, "checksum": checksum(record)}
    sorted_rows = [keyed[key] for key in sorted(keyed)]
    folder = reference_folder(profile, chapter, root)
    write_atomic(folder / "records.jsonl", _text([record for record, _ in sorted_rows]))
    write_atomic(folder / "provenance.jsonl", _text([row for _, row in sorted_rows]))
    write_record_set(profile, chapter, record_set, root)


def write_record_set(
    profile: str, chapter: str, record_set: RecordSet, root: Path = RESULTS
) -> None:
    """Write ``set.json`` of a chapter's results and leave its records as they are."""
    about = json.dumps(asdict(record_set), indent=1, sort_keys=True, ensure_ascii=False)
    write_atomic(reference_folder(profile, chapter, root) / "set.json", about + "\n")


def _text(rows: Sequence[Record]) -> str:
    return "".join(canonical_json(row) + "\n" for row in rows)
