"""Give the committed records new identities, keys and checksums; their numbers stay as they are.

    python docs/migrations/2026_rekey.py [--results FOLDER] [--names TABLE]

Until then a record stated its whole configuration, and its key was hashed from that and from the
code's digest. Now it states the arm's version and the settings that differ from the defaults
(`companion.experiments.defaults`). The table of names is a list of ``{"chapter", "old", "settings",
"new"}``: an arm ``old`` whose configuration holds all of ``settings`` is called ``new``.

The script is kept as the proof: it first checks the old keys, and it writes nothing unless every
record and every line of provenance is the same in all but identity, key and checksum.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from companion.evidence.store import (
    Record,
    RecordSet,
    Reference,
    Run,
    canonical_json,
    identity_key,
    read_reference,
    record_identity,
    write_reference,
)
from companion.experiments.defaults import DEFAULTS
from companion.paths import RESULTS

NAMES = Path(__file__).with_name("arm_names.json")
NOTE = "made before canonical mode"
OLD_IDENTITY = ("chapter", "arm", "config", "seed", "data")
NEW_FIELDS = ("chapter", "arm", "config", "version", "settings")
NEW_PROVENANCE = ("key", "checksum", "code", "code_digest", "canonical")


def read_lines(path: Path) -> list[Record]:
    """Read a file of one JSON object a line."""
    text = path.read_text(encoding="utf-8").removesuffix("\n")
    return [json.loads(line) for line in text.split("\n")]


def old_key(record: Record, code_digest: str) -> str:
    """Key by the old rule."""
    identity = canonical_json({name: record[name] for name in OLD_IDENTITY})
    return hashlib.sha256(f"{identity}\n{code_digest}".encode()).hexdigest()


def is_part(settings: Record, config: Record) -> bool:
    """Whether a configuration holds all of the settings."""
    return all(
        name in config and canonical_json(config[name]) == canonical_json(value)
        for name, value in settings.items()
    )


def new_name(record: Record, names: Sequence[dict[str, Any]]) -> str:
    """Name of a record's arm by the table; the old one where the table has none.

    Raises:
        ValueError: If the table has several.
    """
    fitting = {
        entry["new"]
        for entry in names
        if (entry["chapter"], entry["old"]) == (record["chapter"], record["arm"])
        and is_part(entry.get("settings", {}), record["config"])
    }
    if len(fitting) > 1:
        raise ValueError(f"{record['arm']}: several new names, {', '.join(sorted(fitting))}")
    name: str = fitting.pop() if fitting else record["arm"]
    return name


def converted(record: Record, names: Sequence[dict[str, Any]]) -> Record:
    """Return a record of the new format; every set so far was made with version 1 of its arms."""
    run = Run(
        record["chapter"],
        new_name(record, names),
        record["config"],
        record["seed"],
        record["data"],
        0.0,
        defaults=DEFAULTS[record["chapter"]],
    )
    rest = {name: value for name, value in record.items() if name != "config"}
    return rest | run.head


def without(value: Record, names: Sequence[str]) -> str:
    """Text of all fields but the named ones."""
    return canonical_json({name: field for name, field in value.items() if name not in names})


def convert(profile: str, chapter: str, root: Path, names: Sequence[dict[str, Any]]) -> str:
    """Convert the results of a chapter.

    Returns:
        What was done, in words.

    Raises:
        ValueError: If the old files do not fit together, or anything but the identities would
            change.
    """
    folder = root / profile / chapter
    old_records = read_lines(folder / "records.jsonl")
    if "settings" in old_records[0]:
        reference = read_reference(profile, chapter, root)
        count = len(reference.records) if reference else 0
        return f"{profile} {chapter}: converted already, {count} records fit their checksums"
    old_rows = read_lines(folder / "provenance.jsonl")
    for record, row in zip(old_records, old_rows, strict=True):
        if row["key"] != old_key(record, row["code_digest"]):
            raise ValueError(f"{folder}: {record['arm']}, seed {record['seed']}: the old key")
    records = [converted(record, names) for record in old_records]
    if names:
        shared = [pair for pair, n in Counter((r["arm"], r["seed"]) for r in records).items()]
        if len(shared) < len(records):
            raise ValueError(f"{folder}: some records share arm and seed")
    rows = [
        {name: value for name, value in row.items() if name != "code_digest"}
        | {"code": row["code_digest"], "canonical": False}
        for row in old_rows
    ]
    commit = commit_of(folder / "records.jsonl")
    record_set = RecordSet(
        canonical=False,
        note=NOTE,
        versions={},
        commit=commit,
        ledger="unknown",
        started="",
        timed_on=commit,
    )
    with tempfile.TemporaryDirectory() as trial:
        write_reference(profile, chapter, zip(records, rows, strict=True), record_set, Path(trial))
        reference = read_reference(profile, chapter, Path(trial))
    assert reference is not None
    prove(reference, old_records, old_rows, records)
    pairs = zip(reference.records, reference.provenance, strict=True)
    write_reference(profile, chapter, pairs, record_set, root)
    return f"{profile} {chapter}: {len(records)} records, equal in all but their identities"


def prove(
    reference: Reference,
    old_records: Sequence[Record],
    old_rows: Sequence[Record],
    converted_records: Sequence[Record],
) -> None:
    """Compare what was written with what was there, record by record.

    Raises:
        ValueError: If anything but the identities differs, or a record is lost.
    """
    # which old line has become which new one, by the new key
    place = {identity_key(record_identity(r)): i for i, r in enumerate(converted_records)}
    for record, row in zip(reference.records, reference.provenance, strict=True):
        name = f"{record['arm']}, seed {record['seed']}"
        number = place.pop(row["key"])
        old, old_row = old_records[number], old_rows[number]
        if without(record, NEW_FIELDS) != without(old, NEW_FIELDS):
            raise ValueError(f"{name}: not only the identity differs")
        if without(row, NEW_PROVENANCE) != without(old_row, NEW_PROVENANCE):
            raise ValueError(f"{name}: not only the keys of the provenance differ")
        defaults = DEFAULTS[record["chapter"]]
        config = restored(old["config"], record["settings"], defaults)
        if canonical_json(config) != canonical_json(old["config"]):
            raise ValueError(f"{name}: settings and defaults do not give the configuration back")
    if place:
        raise ValueError(f"{len(place)} records are lost")


def restored(names: Record, settings: Record, defaults: Mapping[str, Any]) -> Record:
    """Fill in the settings that ``names`` has, from the record or from the defaults."""
    config = {}
    for name, value in names.items():
        if name not in settings:
            config[name] = defaults[name]
        elif isinstance(value, dict):
            config[name] = restored(value, settings[name], defaults)
        else:
            config[name] = settings[name]
    return config


def commit_of(path: Path) -> str:
    """Commit of the last change of a file.

    Raises:
        ValueError: If there is none.
    """
    command = ["git", "-C", str(path.parent), "log", "-1", "--format=%H", "--", path.name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not (commit := done.stdout.strip()):
        raise ValueError(f"{path}: git knows no commit of it {done.stderr.strip()}".strip())
    return commit


def main() -> None:
    """Convert all chapters of both profiles."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--names", type=Path, default=NAMES)
    options = parser.parse_args()
    names = []
    if options.names.is_file():
        names = json.loads(options.names.read_text(encoding="utf-8"))
    for profile in ("standard", "full"):
        for chapter in DEFAULTS:
            if (options.results / profile / chapter / "records.jsonl").is_file():
                sys.stdout.write(convert(profile, chapter, options.results, names) + "\n")


if __name__ == "__main__":
    main()
