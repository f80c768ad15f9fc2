"""The store: keys, whole files whatever happens, and the committed reference."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainaug.evidence import store as s

RUN = s.Run("06", "sign", {"data": "digits", "steps": 40}, 1000, "d" * 64, 1.5)
CODE = "c" * 64
RESULT = {"metrics": {"a/b": 0.1 + 0.2}, "curves": {"step": [1.0, 2.0]}, "counters": {"n": 3}}
SECONDS = {"wall_seconds": 2.0, "core_seconds": 1.0}

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # surrogates are no text
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=10,
)


@pytest.fixture
def store(tmp_path: Path) -> s.Store:
    return s.Store("quick", tmp_path)


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"chapter": "05"},
        {"arm": "gradient"},
        {"config": {"data": "digits", "steps": 41}},
        {"config": {"data": "digits"}},
        {"seed": 1001},
        {"data": "e" * 64},
    ],
)
def test_key_depends_on_each_field_of_the_head(change):
    assert replace(RUN, **change).key(CODE) != RUN.key(CODE)


def test_key_depends_on_the_code_and_on_nothing_else():
    assert RUN.key("b" * 64) != RUN.key(CODE)
    assert replace(RUN, predicted_seconds=99.0).key(CODE) == RUN.key(CODE)
    assert replace(RUN, config={"steps": 40, "data": "digits"}).key(CODE) == RUN.key(CODE)
    assert len(RUN.key(CODE)) == 64


def test_key_is_the_documented_hash():
    # whoever changes this must write every committed key anew
    identity = (
        '{"arm":"sign","chapter":"06","config":{"data":"digits","steps":40},'
        f'"data":"{"d" * 64}","seed":1000}}'
    )
    assert s.record_identity(RUN.head) == identity
    assert RUN.key(CODE) == hashlib.sha256(f"{identity}\n{CODE}".encode()).hexdigest()


# --- JSON -----------------------------------------------------------------------------------------


@given(JSON)
def test_canonical_json_reads_back_and_is_stable(value):
    text = s.canonical_json(value)
    assert "\n" not in text
    assert json.loads(text) == value
    assert s.canonical_json(json.loads(text)) == text


def test_canonical_json_sorts_keys_at_every_depth():
    one = {"b": [1, {"y": 2, "x": 1.5}], "a": "é"}
    other = {"a": "é", "b": [1, {"x": 1.5, "y": 2}]}
    assert s.canonical_json(one) == s.canonical_json(other)
    assert s.canonical_json(one) == '{"a":"é","b":[1,{"x":1.5,"y":2}]}'


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused(bad, store):
    with pytest.raises(ValueError, match="JSON"):
        s.canonical_json({"a": [1.0, bad]})
    with pytest.raises(ValueError, match="finite"):
        s.rounded(bad)
    with pytest.raises(ValueError, match="JSON"):
        store.write(RUN, CODE, {"metrics": {"a": bad}}, SECONDS)
    assert store.read(RUN, CODE) is None
    assert not store.folder.exists()


def test_rounded_keeps_twelve_significant_digits():
    assert s.rounded(0.1 + 0.2) == 0.3
    assert s.rounded(123456.7890123456) == 123456.789012
    assert s.rounded(1.23456789e-30, 3) == 1.23e-30


# --- one run --------------------------------------------------------------------------------------


def test_a_run_reads_back_as_it_was_written(store):
    assert store.read(RUN, CODE) is None
    with pytest.raises(FileNotFoundError):
        store.provenance(RUN, CODE)
    store.write(RUN, CODE, RESULT, SECONDS)
    assert store.read(RUN, CODE) == {**RUN.head, **RESULT}
    provenance = store.provenance(RUN, CODE)
    assert provenance["key"] == RUN.key(CODE)
    assert provenance["code_digest"] == CODE
    assert provenance["core_seconds"] == 1.0
    assert provenance["deterministic"] is True
    assert provenance["versions"] == s.versions()
    assert files_of(store.run_folder(RUN, CODE)) == ["provenance.json", "result.json"]
    # another code is another run
    assert store.read(RUN, "b" * 64) is None


def test_result_bytes_do_not_depend_on_the_writer(tmp_path):
    one, other = s.Store("quick", tmp_path / "a"), s.Store("full", tmp_path / "b")
    one.write(RUN, CODE, RESULT, SECONDS)
    shuffled = dict(reversed(RESULT.items()))
    slow = replace(RUN, config=dict(reversed(RUN.config.items())), predicted_seconds=9.0)
    other.write(slow, CODE, shuffled, {"wall_seconds": 77.0, "core_seconds": 70.0})
    texts = [each.run_folder(RUN, CODE) / "result.json" for each in (one, other)]
    assert texts[0].read_bytes() == texts[1].read_bytes()
    assert texts[0].read_bytes().endswith(b"}\n")


def test_a_result_may_not_overwrite_the_head(store):
    with pytest.raises(ValueError, match="seed"):
        store.write(RUN, CODE, {"seed": 3}, SECONDS)
    assert store.read(RUN, CODE) is None


def test_result_is_written_last(store, monkeypatch):
    renamed = []
    rename = Path.replace
    monkeypatch.setattr(
        Path, "replace", lambda self, to: (renamed.append(Path(to).name), rename(self, to))[1]
    )
    store.write(RUN, CODE, RESULT, SECONDS)
    assert renamed == ["provenance.json", "result.json"]


@pytest.mark.parametrize("left", ["provenance.json", ".result.json.abc.tmp", "failure.json"])
def test_a_folder_without_result_counts_as_unfinished(store, left):
    folder = store.run_folder(RUN, CODE)
    folder.mkdir(parents=True)
    (folder / left).write_text(s.canonical_json({**RUN.head, **RESULT}))
    assert store.read(RUN, CODE) is None
    store.write(RUN, CODE, RESULT, SECONDS)
    assert store.read(RUN, CODE) is not None


def test_a_failure_is_recorded_and_goes_when_the_run_succeeds(store):
    store.write_failure(RUN, CODE, "ValueError: no\nsecond line")
    folder = store.run_folder(RUN, CODE)
    noted = json.loads((folder / "failure.json").read_text())
    assert noted == {**RUN.head, "reason": "ValueError: no\nsecond line"}
    assert store.read(RUN, CODE) is None
    store.write(RUN, CODE, RESULT, SECONDS)
    assert files_of(folder) == ["provenance.json", "result.json"]


# --- whole files ----------------------------------------------------------------------------------


def test_write_atomic_makes_folders_and_keeps_the_text_as_it_is(tmp_path):
    path = tmp_path / "a" / "b.txt"
    s.write_atomic(path, "é\r\nline\n")
    assert path.read_bytes() == "é\r\nline\n".encode()
    assert files_of(path.parent) == ["b.txt"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_written_files_are_as_readable_as_any_other(tmp_path):
    s.write_atomic(tmp_path / "ours", "")
    (tmp_path / "plain").write_text("")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "plain")]
    assert modes[0] == modes[1]


def test_old_file_stays_whole_when_the_rename_fails(tmp_path, monkeypatch):
    path = tmp_path / "file"
    s.write_atomic(path, "old")

    def fail(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        s.write_atomic(path, "new")
    assert path.read_text() == "old"
    assert files_of(tmp_path) == ["file"]


def test_old_file_stays_whole_when_the_text_cannot_be_written(tmp_path):
    path = tmp_path / "file"
    s.write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        s.write_atomic(path, "new \ud800")
    assert path.read_text() == "old"
    assert files_of(tmp_path) == ["file"]


KILLED = """
import os, signal, sys
from pathlib import Path
from trainaug.evidence.store import write_atomic

def die(self, target):
    os.kill(os.getpid(), signal.SIGKILL)

Path.replace = die
write_atomic(Path(sys.argv[1]), "new" * 10_000)
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
@pytest.mark.parametrize("old", ["old", None])
def test_old_file_stays_whole_when_the_process_is_killed_before_the_rename(tmp_path, old):
    path = tmp_path / "file"
    if old is not None:
        path.write_text(old)
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert (path.read_text() if path.exists() else None) == old
    left = [name for name in files_of(tmp_path) if name != "file"]
    assert len(left) == 1
    assert left[0].startswith(".file.")
    assert left[0].endswith(".tmp")
    assert (tmp_path / left[0]).stat().st_size == 30_000


def _write_many(root: str, start_at: float) -> None:
    store = s.Store("quick", Path(root))
    time.sleep(max(0.0, start_at - time.time()))
    for round_ in range(5):
        for seed in range(1000, 1020):
            run = replace(RUN, seed=seed)
            if round_ == 0 and seed % 3 == 0:
                store.write_failure(run, CODE, "first try")
            big = RESULT | {"curves": {"step": [float(i) for i in range(2000)]}}
            store.write(run, CODE, big, {"wall_seconds": time.time()})
            assert store.read(run, CODE) == {**run.head, **big}


def test_two_processes_that_write_the_same_runs_leave_valid_files(tmp_path):
    context = get_context("spawn")
    start_at = time.time() + 3.0  # both have imported by then
    writers = [context.Process(target=_write_many, args=(str(tmp_path), start_at)) for _ in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    store = s.Store("quick", tmp_path)
    for seed in range(1000, 1020):
        run = replace(RUN, seed=seed)
        assert store.read(run, CODE)["metrics"] == RESULT["metrics"]
        assert store.provenance(run, CODE)["key"] == run.key(CODE)
        names = files_of(store.run_folder(run, CODE))
        assert [n for n in names if n.endswith(".tmp")] == []


def test_sweep_up_removes_only_old_temporaries(store):
    store.sweep_up()  # no folder yet
    store.write(RUN, CODE, RESULT, SECONDS)
    folder = store.run_folder(RUN, CODE)
    for name in (".result.json.old.tmp", ".result.json.new.tmp", "notes.txt"):
        (folder / name).write_text("")
    two_hours_ago = time.time() - 7200
    for name in (".result.json.old.tmp", "notes.txt", "result.json"):
        os.utime(folder / name, (two_hours_ago, two_hours_ago))
    store.sweep_up()
    assert files_of(folder) == [
        ".result.json.new.tmp",
        "notes.txt",
        "provenance.json",
        "result.json",
    ]


# --- the reference --------------------------------------------------------------------------------

ROWS = [
    (
        {**RUN.head, "arm": arm, "seed": seed, "metrics": {"m": seed / 7}},
        {"fingerprint": "f", "core_seconds": 1.0, "key": "old", "code_digest": "old"},
    )
    for arm in ("sign", "gradient\u2028\x85")  # JSON leaves these line ends as they are
    for seed in range(1000, 1005)
]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    s.write_reference("standard", "06", ROWS, CODE, tmp_path)
    return tmp_path / "standard" / "06"


def test_reference_reads_back_sorted_by_key(written, tmp_path):
    reference = s.read_reference("standard", "06", tmp_path)
    keys = [row["key"] for row in reference.provenance]
    assert keys == sorted(keys)
    assert {row["code_digest"] for row in reference.provenance} == {CODE}
    in_text = sorted(map(s.canonical_json, reference.records))
    assert in_text == sorted(s.canonical_json(record) for record, _ in ROWS)
    assert files_of(written) == ["provenance.jsonl", "records.jsonl"]
    # a second writing, in another order, gives the same bytes
    before = [path.read_bytes() for path in sorted(written.iterdir())]
    s.write_reference("standard", "06", reversed(ROWS), CODE, tmp_path)
    assert [path.read_bytes() for path in sorted(written.iterdir())] == before


def test_reference_line_is_the_bytes_of_the_result(store, tmp_path):
    store.write(RUN, CODE, RESULT, SECONDS)
    rows = [(store.read(RUN, CODE), store.provenance(RUN, CODE))]
    s.write_reference("quick", "06", rows, CODE, tmp_path / "results")
    line = (tmp_path / "results" / "quick" / "06" / "records.jsonl").read_bytes()
    assert line == (store.run_folder(RUN, CODE) / "result.json").read_bytes()


def test_no_reference_is_none(written, tmp_path):
    assert s.read_reference("full", "06", tmp_path) is None
    assert s.read_reference("standard", "05", tmp_path) is None


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: _edit(f / "records.jsonl", '"seed":1003', '"seed":1013'),
        lambda f: _edit(f / "records.jsonl", '"steps":40', '"steps":41'),
        lambda f: _edit(f / "provenance.jsonl", CODE, "b" * 64),
        lambda f: _edit(f / "provenance.jsonl", '"key":"', '"key":"0'),
        lambda f: (f / "records.jsonl").write_text("\n".join(_lines(f / "records.jsonl")[::-1])),
        lambda f: [
            path.write_text("\n".join(_lines(path)[::-1]) + "\n") for path in f.glob("*.jsonl")
        ],
        lambda f: (f / "records.jsonl").write_text("\n".join(_lines(f / "records.jsonl")[:-1])),
        lambda f: (f / "provenance.jsonl").write_text(_lines(f / "provenance.jsonl")[0]),
        lambda f: (f / "provenance.jsonl").write_text(""),
        lambda f: [path.write_text(path.read_text()[:-40]) for path in f.glob("*.jsonl")],
        lambda f: [path.write_text(path.read_text() * 2) for path in f.glob("*.jsonl")],
    ],
    ids=[
        "seed",
        "config",
        "digest",
        "key",
        "records in another order",
        "both in another order",
        "record missing",
        "provenance missing",
        "provenance empty",
        "last line cut",
        "every line twice",
    ],
)
def test_reference_that_was_tampered_with_is_refused(written, tmp_path, damage):
    damage(written)
    with pytest.raises(ValueError):
        s.read_reference("standard", "06", tmp_path)


def test_find_ignores_the_code_and_the_prediction(written, tmp_path):
    reference = s.read_reference("standard", "06", tmp_path)
    record, provenance = reference.find(replace(RUN, seed=1003, predicted_seconds=7.0))
    assert record["metrics"] == {"m": 1003 / 7}
    assert provenance["key"] == replace(RUN, seed=1003).key(CODE)
    for change in ({"seed": 999}, {"arm": "x"}, {"config": {"data": "digits"}}, {"data": "e"}):
        assert reference.find(replace(RUN, **change)) is None


# --- the machine ----------------------------------------------------------------------------------


def test_fingerprint_is_the_same_in_a_fresh_process():
    code = (
        "import torch, sklearn\n"
        "from trainaug.evidence.store import environment_fingerprint as f; print(f())"
    )
    fresh = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120
    )
    assert fresh.stdout.strip() == s.environment_fingerprint() == s.environment_fingerprint()


@pytest.mark.parametrize("name", ["python", "torch", "numpy", "cvxpy", "clarabel"])
def test_fingerprint_changes_with_versions(name, monkeypatch):
    original = s.environment_fingerprint.__wrapped__()
    moved = s.versions() | {name: "0.0.1"}
    monkeypatch.setattr(s, "versions", lambda: moved)
    assert s.environment_fingerprint.__wrapped__() != original


def test_fingerprint_changes_with_the_processor(monkeypatch):
    original = s.environment_fingerprint.__wrapped__()
    read = Path.read_text
    monkeypatch.setattr(
        Path,
        "read_text",
        lambda self, *a, **k: (
            "model name\t: other\n\n" if str(self) == "/proc/cpuinfo" else read(self, *a, **k)
        ),
    )
    monkeypatch.setattr(s.platform, "machine", lambda: "z80")
    assert s.environment_fingerprint.__wrapped__() != original
