"""Runs and their results: keys, atomic files, and the committed reference.

A finished run is a folder ``<runs>/<chapter>/<key>/`` with ``result.json`` (deterministic, compared
byte for byte) and ``provenance.json`` (when, where, how long; never compared). ``result.json`` is
written last, so a folder that has it is finished and one that lacks it counts for nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trainaug.paths import RESULTS, RUNS

__all__ = [
    "Record",
    "Reference",
    "Run",
    "Store",
    "canonical_json",
    "environment_fingerprint",
    "read_reference",
    "record_identity",
    "reference_folder",
    "rounded",
    "versions",
    "write_atomic",
    "write_reference",
]

Record = dict[str, Any]
_VERSIONED = ("torch", "numpy", "scipy", "cvxpy", "clarabel", "highspy", "scs")


def canonical_json(value: Any) -> str:
    """Write JSON in one line with sorted keys: equal values give equal bytes.

    Raises:
        ValueError: If a number is NaN or infinite.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False
    )


def rounded(value: float, digits: int = 12) -> float:
    """Round to ``digits`` significant digits, so that files stay short.

    Raises:
        ValueError: If ``value`` is NaN or infinite.
    """
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number, got {value}")
    return float(f"{value:.{digits}g}")


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
    """

    chapter: str
    arm: str
    config: Mapping[str, Any]
    seed: int
    data: str
    predicted_seconds: float = field(compare=False)
    deterministic: bool = True

    @property
    def head(self) -> Record:
        """The fields that identify the run in its record."""
        return {
            "chapter": self.chapter,
            "arm": self.arm,
            "config": dict(self.config),
            "seed": self.seed,
            "data": self.data,
        }

    def key(self, code_digest: str) -> str:
        """Hash the head and the code digest."""
        return _key(record_identity(self.head), code_digest)


def record_identity(record: Mapping[str, Any]) -> str:
    """Canonical text of what a record is about: chapter, arm, config, seed, data."""
    return canonical_json({k: record[k] for k in ("chapter", "arm", "config", "seed", "data")})


def _key(identity: str, code_digest: str) -> str:
    return hashlib.sha256(f"{identity}\n{code_digest}".encode()).hexdigest()


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that can move a number."""
    return {"python": platform.python_version()} | {name: version(name) for name in _VERSIONED}


@cache
def environment_fingerprint() -> str:
    """Hash what decides the last bit: processor, its linear-algebra kernels, library versions.

    Equal fingerprints promise equal bytes; different ones only equal statistics.
    """
    import numpy  # noqa: F401  (loads the BLAS that is asked about)
    from threadpoolctl import threadpool_info

    cpu = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        wanted = ("model name", "flags", "cpu family", "model\t", "Features")
        first = cpuinfo.read_text().split("\n\n")[0].splitlines()
        cpu = "\n".join(line for line in first if line.startswith(wanted))
    blas = sorted(
        f"{row['internal_api']} {row.get('version')} {row.get('architecture')}"
        for row in threadpool_info()
        if row["user_api"] == "blas" and "numpy" in row["filepath"]
    )
    text = canonical_json([platform.system(), platform.machine(), cpu, blas, versions()])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a whole file or nothing: temporary file in the same folder, fsync, rename.

    Text is written as UTF-8 with the line ends that it has.
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


class Store:
    """The finished runs of one profile in one folder; safe with several processes.

    Two processes that compute the same run write the same bytes, and each file appears whole.

    Args:
        profile: Name of the profile.
        root: Folder of all profiles.
    """

    def __init__(self, profile: str, root: Path = RUNS) -> None:
        self.profile = profile
        self.folder = root / profile

    def run_folder(self, run: Run, code_digest: str) -> Path:
        """Folder of one run."""
        return self.folder / run.chapter / run.key(code_digest)

    def read(self, run: Run, code_digest: str) -> Record | None:
        """Return the record of a finished run, else ``None``."""
        path = self.run_folder(run, code_digest) / "result.json"
        if not path.is_file():
            return None
        record: Record = json.loads(path.read_text(encoding="utf-8"))
        return record

    def provenance(self, run: Run, code_digest: str) -> Record:
        """Return the provenance of a finished run.

        Raises:
            FileNotFoundError: If the run is not finished.
        """
        path = self.run_folder(run, code_digest) / "provenance.json"
        provenance: Record = json.loads(path.read_text(encoding="utf-8"))
        return provenance

    def write(
        self, run: Run, code_digest: str, result: Mapping[str, Any], seconds: Mapping[str, float]
    ) -> None:
        """Write a finished run.

        Args:
            run: The run.
            code_digest: Digest of the code that computed it.
            result: ``metrics``, ``curves``, ``counters`` and optional flags.
            seconds: Wall and processor seconds.

        Raises:
            ValueError: If a number is NaN or infinite, or ``result`` names a field of the head.
        """
        if clash := run.head.keys() & result.keys():
            raise ValueError(f"a result may not set {sorted(clash)}")
        folder = self.run_folder(run, code_digest)
        record = canonical_json(run.head | dict(result)) + "\n"
        provenance = {
            "key": run.key(code_digest),
            "code_digest": code_digest,
            "deterministic": run.deterministic,
            "fingerprint": environment_fingerprint(),
            "host": f"{platform.system()} {platform.machine()}",
            "device": "cpu",
            "versions": versions(),
            **seconds,
        }
        write_atomic(folder / "provenance.json", canonical_json(provenance) + "\n")
        write_atomic(folder / "result.json", record)
        (folder / "failure.json").unlink(missing_ok=True)

    def write_failure(self, run: Run, code_digest: str, reason: str) -> None:
        """Note that a run failed and why; it is tried again next time."""
        folder = self.run_folder(run, code_digest)
        write_atomic(folder / "failure.json", canonical_json({**run.head, "reason": reason}) + "\n")

    def sweep_up(self) -> None:
        """Remove temporary files that a killed process left more than an hour ago."""
        import time

        for path in self.folder.glob("*/*/.*.tmp"):
            try:
                if time.time() - path.stat().st_mtime > 3600:
                    path.unlink()
            except FileNotFoundError:
                continue


@dataclass(frozen=True)
class Reference:
    """The committed results of one chapter: records and, line by line, their provenance."""

    records: list[Record]
    provenance: list[Record]

    def find(self, run: Run) -> tuple[Record, Record] | None:
        """Return record and provenance of a run whatever its code digest, else ``None``."""
        identity = record_identity(run.head)
        for record, provenance in zip(self.records, self.provenance, strict=True):
            if record_identity(record) == identity:
                return record, provenance
        return None


def reference_folder(profile: str, chapter: str, root: Path = RESULTS) -> Path:
    """Folder of the committed results of a chapter."""
    return root / profile / chapter


def read_reference(profile: str, chapter: str, root: Path = RESULTS) -> Reference | None:
    """Read the committed results of a chapter, or ``None`` where there are none.

    Raises:
        ValueError: If a key does not follow from its record, or lines are missing.
    """
    folder = reference_folder(profile, chapter, root)
    if not (folder / "records.jsonl").is_file():
        return None
    records, provenance = (
        # not `splitlines`, which also splits at characters that JSON leaves as they are
        [json.loads(line) for line in text.removesuffix("\n").split("\n")]
        for text in (
            (folder / name).read_text(encoding="utf-8")
            for name in ("records.jsonl", "provenance.jsonl")
        )
    )
    keys = [row["key"] for row in provenance]
    wanted = [
        _key(record_identity(record), row["code_digest"])
        for record, row in zip(records, provenance, strict=True)
    ]
    if keys != wanted or keys != sorted(keys):
        raise ValueError(f"{folder}: records and provenance do not belong together")
    return Reference(records, provenance)


def write_reference(
    profile: str,
    chapter: str,
    rows: Iterable[tuple[Record, Record]],
    code_digest: str,
    root: Path = RESULTS,
) -> None:
    """Write records and provenance, stamped with ``code_digest`` and sorted by key."""
    stamped = []
    for record, provenance in rows:
        key = _key(record_identity(record), code_digest)
        stamped.append((key, record, provenance | {"key": key, "code_digest": code_digest}))
    stamped.sort(key=lambda row: row[0])
    folder = reference_folder(profile, chapter, root)
    for name, column in (("records.jsonl", 1), ("provenance.jsonl", 2)):
        lines = [canonical_json(row[column]) + "\n" for row in stamped]
        write_atomic(folder / name, "".join(lines))
