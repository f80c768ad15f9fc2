"""The script that gave the committed records their new identities: numbers are untouched."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from companion.evidence.store import canonical_json, read_reference
from companion.paths import ROOT

CODE = "c" * 64
BASE = {"data": "digits", "model": "mlp", "order": "random", "candidates": 8, "pool": "partition"}
BASE |= {"steps": 320, "noise": 0.0, "lr": 0.35}


@pytest.fixture(scope="module")
def rekey() -> ModuleType:
    spec = spec_from_file_location("rekey", ROOT / "docs" / "migrations" / "2026_rekey.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def old_record(arm: str, seed: int, **settings: Any) -> dict[str, Any]:
    return {
        "chapter": "04",
        "arm": arm,
        "config": BASE | settings,
        "seed": seed,
        "data": "d" * 64,
        "metrics": {"test/accuracy": seed / 7},
        "curves": {"step": [1.0, 2.0]},
        "counters": {"steps": 320},
        "flag": "\u2028",
    }


RECORDS = [old_record("digits_random", seed) for seed in range(1000, 1004)]
RECORDS += [old_record("grid_0.05", seed, lr=lr) for seed in (1000, 1001) for lr in (0.1, 0.35)]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A committed set of the old format in a repository of its own."""
    rows = []
    for record in RECORDS:
        fields = ("chapter", "arm", "config", "seed", "data")
        identity = canonical_json({name: record[name] for name in fields})
        key = hashlib.sha256(f"{identity}\n{CODE}".encode()).hexdigest()
        provenance = {"key": key, "code_digest": CODE, "core_seconds": 1.25, "fingerprint": "f"}
        rows.append((key, record, provenance | {"deterministic": True}))
    rows.sort(key=lambda row: row[0])
    folder = tmp_path / "results" / "standard" / "04"
    folder.mkdir(parents=True)
    for name, column in (("records.jsonl", 1), ("provenance.jsonl", 2)):
        text = "".join(canonical_json(row[column]) + "\n" for row in rows)
        (folder / name).write_text(text, encoding="utf-8")
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "results"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    return tmp_path / "results"


NAMES = [
    {"chapter": "04", "old": "grid_0.05", "settings": {"lr": 0.1}, "new": "grid_lr01"},
    {"chapter": "04", "old": "grid_0.05", "settings": {"lr": 0.35}, "new": "grid_lr035"},
    {"chapter": "05", "old": "digits_random", "settings": {}, "new": "another_chapters"},
]


@pytest.mark.parametrize("names", [[], NAMES])
def test_all_but_the_identities_is_equal(rekey, results, names):
    rekey.convert("standard", "04", results, names)
    reference = read_reference("standard", "04", results)
    assert len(reference.records) == len(RECORDS)
    numbers = ("seed", "data", "metrics", "curves", "counters", "flag")
    texts = [
        sorted(canonical_json({name: record[name] for name in numbers}) for record in records)
        for records in (RECORDS, reference.records)
    ]
    assert texts[0] == texts[1]
    assert all("config" not in record for record in reference.records)
    assert {row["core_seconds"] for row in reference.provenance} == {1.25}
    assert {row["code"] for row in reference.provenance} == {CODE}
    by_arm = {record["arm"]: record["settings"] for record in reference.records}
    assert by_arm["digits_random"] == {}
    assert set(by_arm) - {"digits_random"} == (
        {"grid_lr01", "grid_lr035"} if names else {"grid_0.05"}
    )
    about = reference.record_set
    assert (about.canonical, about.note) == (False, "made before canonical mode")
    assert (about.ledger, about.versions, len(about.commit)) == ("unknown", {}, 40)


def test_a_second_time_changes_nothing_and_says_so(rekey, results):
    rekey.convert("standard", "04", results, NAMES)
    files = sorted((results / "standard" / "04").iterdir())
    before = [path.read_bytes() for path in files]
    assert "already" in rekey.convert("standard", "04", results, NAMES)
    assert [path.read_bytes() for path in files] == before


@pytest.mark.parametrize(
    ("names", "word"),
    [
        (NAMES[2:], "share arm and seed"),
        ([*NAMES, NAMES[0] | {"new": "other"}], "several new names"),
        ([NAMES[0], NAMES[1] | {"new": "digits_random"}], "share arm and seed"),
    ],
)
def test_a_table_that_does_not_tell_records_apart_is_refused(rekey, results, names, word):
    files = sorted((results / "standard" / "04").iterdir())
    before = [path.read_bytes() for path in files]
    with pytest.raises(ValueError, match=word):
        rekey.convert("standard", "04", results, names)
    assert sorted((results / "standard" / "04").iterdir()) == files
    assert [path.read_bytes() for path in files] == before


def test_records_that_do_not_fit_their_old_keys_are_refused(rekey, results):
    path = results / "standard" / "04" / "records.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace('"lr":0.1', '"lr":0.2', 1))
    with pytest.raises(ValueError, match="old key"):
        rekey.convert("standard", "04", results, NAMES)


def test_a_changed_number_does_not_pass_the_proof(rekey, results):
    rekey.convert("standard", "04", results, [])
    reference = read_reference("standard", "04", results)
    rows = [row | {"code_digest": CODE} for row in reference.provenance]
    olds = [next(r for r in RECORDS if _same(rekey, r, new)) for new in reference.records]
    rekey.prove(reference, olds, rows, reference.records)
    moved = [json.loads(json.dumps(record)) for record in olds]
    metrics = moved[3]["metrics"]
    metrics["test/accuracy"] = math.nextafter(metrics["test/accuracy"], 0.0)
    with pytest.raises(ValueError, match="not only the identity"):
        rekey.prove(reference, moved, rows, reference.records)
    other = [row | {"core_seconds": 2.0} for row in rows]
    with pytest.raises(ValueError, match="provenance"):
        rekey.prove(reference, olds, other, reference.records)


def _same(rekey: ModuleType, old: dict[str, Any], new: dict[str, Any]) -> bool:
    return bool(canonical_json(rekey.converted(old, [])) == canonical_json(new))
