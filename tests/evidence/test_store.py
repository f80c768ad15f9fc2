"""The store: keys, whole files whatever happens, and the committed reference."""

from __future__ import annotations

import hashlib
import json
import os
import random
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

from companion.evidence import store as s
from companion.evidence.canonical import versions

RUN = s.Run("06", "sign", {"data": "digits", "steps": 40}, 1000, "d" * 64, 1.5)
HERE = s.Conditions("c" * 64, "f" * 16, "cpu", True)
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
        {"version": 2},
    ],
)
def test_key_depends_on_each_field_of_the_head(change):
    assert replace(RUN, **change).key != RUN.key


def test_key_depends_on_nothing_else():
    assert replace(RUN, predicted_seconds=99.0).key == RUN.key
    assert replace(RUN, config={"steps": 40, "data": "digits"}).key == RUN.key
    assert len(RUN.key) == 64


@pytest.mark.parametrize(
    "change", [{"code": "b" * 64}, {"fingerprint": "e" * 16}, {"device": "cuda"}]
)
def test_a_cached_run_depends_on_its_conditions_too(change, store):
    other = replace(HERE, **change)
    assert s.cache_key(RUN.identity, other) != s.cache_key(RUN.identity, HERE)
    store.write(RUN, HERE, RESULT, SECONDS)
    assert store.read(RUN, other) is None


def test_keys_are_the_documented_hashes():
    # whoever changes this must write every committed key anew
    identity = (
        f'{{"arm":"sign","chapter":"06","data":"{"d" * 64}","seed":1000,'
        '"settings":{"data":"digits","steps":40},"version":1}'
    )
    assert s.record_identity(RUN.head) == RUN.identity == identity
    assert RUN.key == hashlib.sha256(identity.encode()).hexdigest()
    text = f"{identity}\n{HERE.code}\n{HERE.fingerprint}\ncpu"
    assert s.cache_key(identity, HERE) == hashlib.sha256(text.encode()).hexdigest()


# --- identity by difference -----------------------------------------------------------------------

DEFAULTS = {"data": "digits", "steps": 10, "noise": 0.0, "sizes": [1, 2], "models": {}}


def settings_of(**config: object) -> dict[str, object]:
    return replace(RUN, config=config, defaults=DEFAULTS).settings


def test_a_setting_at_its_default_is_not_stated():
    assert settings_of(data="digits", steps=40, noise=0.0, sizes=[1, 2]) == {"steps": 40}
    assert settings_of(unknown=None, noise=0.1) == {"unknown": None, "noise": 0.1}
    assert settings_of() == {}


def test_values_are_compared_as_they_are_written():
    assert settings_of(sizes=(1, 2), noise=0.0) == {}
    # equal in Python, other bytes in a file
    assert settings_of(noise=0) == {"noise": 0}
    assert settings_of(noise=False) == {"noise": False}
    assert settings_of(steps=10.0) == {"steps": 10.0}


def test_a_setting_at_its_default_inside_another_is_not_stated_either():
    models = {"one": {"data": "digits", "steps": 3}, "other": {"steps": 10}}
    assert settings_of(models=models) == {"models": {"one": {"steps": 3}, "other": {}}}


def test_a_new_setting_at_its_default_changes_no_identity():
    config = {"data": "digits", "steps": 40, "models": {"one": {"steps": 3}}}
    old = replace(RUN, config=config, defaults=DEFAULTS)
    wider = {**config, "margin": 0.2, "models": {"one": {"steps": 3, "margin": 0.2}}}
    new = replace(RUN, config=wider, defaults=DEFAULTS | {"margin": 0.2})
    assert new.identity == old.identity
    moved = replace(RUN, config=wider | {"margin": 0.3}, defaults=DEFAULTS | {"margin": 0.2})
    assert moved.identity != old.identity


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
        s.rounded(bad, 9)
    with pytest.raises(ValueError, match="JSON"):
        store.write(RUN, HERE, {"metrics": {"a": bad}}, SECONDS)
    assert store.read(RUN, HERE) is None
    assert not store.folder.exists()


def test_rounded_keeps_twelve_significant_digits():
    assert s.rounded(0.1 + 0.2, 12) == 0.3
    assert s.rounded(123456.7890123456, 12) == 123456.789012
    assert s.rounded(1.23456789e-30, 3) == 1.23e-30


# --- one run --------------------------------------------------------------------------------------


def test_a_run_reads_back_as_it_was_written(store):
    assert store.read(RUN, HERE) is None
    with pytest.raises(FileNotFoundError):
        store.provenance(RUN, HERE)
    store.write(RUN, HERE, RESULT, SECONDS)
    assert store.read(RUN, HERE) == {**RUN.head, **RESULT}
    provenance = store.provenance(RUN, HERE)
    assert provenance["key"] == RUN.key
    assert provenance["code"] == HERE.code
    assert provenance["fingerprint"] == HERE.fingerprint
    assert provenance["device"] == "cpu"
    assert provenance["canonical"] is True
    assert provenance["core_seconds"] == 1.0
    assert provenance["deterministic"] is True
    assert provenance["versions"] == versions()
    line = (store.run_folder(RUN, HERE) / "result.json").read_bytes().removesuffix(b"\n")
    assert provenance["checksum"] == hashlib.sha256(line).hexdigest()
    assert files_of(store.run_folder(RUN, HERE)) == ["provenance.json", "result.json"]
    # another code is another run
    assert store.read(RUN, replace(HERE, code="b" * 64)) is None


def test_result_bytes_do_not_depend_on_the_writer(tmp_path):
    one, other = s.Store("quick", tmp_path / "a"), s.Store("full", tmp_path / "b")
    one.write(RUN, HERE, RESULT, SECONDS)
    shuffled = dict(reversed(RESULT.items()))
    slow = replace(RUN, config=dict(reversed(RUN.config.items())), predicted_seconds=9.0)
    other.write(slow, HERE, shuffled, {"wall_seconds": 77.0, "core_seconds": 70.0})
    texts = [each.run_folder(RUN, HERE) / "result.json" for each in (one, other)]
    assert texts[0].read_bytes() == texts[1].read_bytes()
    assert texts[0].read_bytes().endswith(b"}\n")


def test_a_result_may_not_overwrite_the_head(store):
    with pytest.raises(ValueError, match="seed"):
        store.write(RUN, HERE, {"seed": 3}, SECONDS)
    assert store.read(RUN, HERE) is None


def test_result_is_written_last(store, monkeypatch):
    renamed = []
    rename = Path.replace
    monkeypatch.setattr(
        Path, "replace", lambda self, to: (renamed.append(Path(to).name), rename(self, to))[1]
    )
    store.write(RUN, HERE, RESULT, SECONDS)
    assert renamed == ["provenance.json", "result.json"]


@pytest.mark.parametrize("left", ["provenance.json", ".result.json.abc.tmp", "failure.json"])
def test_a_folder_without_result_counts_as_unfinished(store, left):
    folder = store.run_folder(RUN, HERE)
    folder.mkdir(parents=True)
    (folder / left).write_text(s.canonical_json({**RUN.head, **RESULT}))
    assert store.read(RUN, HERE) is None
    store.write(RUN, HERE, RESULT, SECONDS)
    assert store.read(RUN, HERE) is not None


def test_a_failure_is_recorded_and_goes_when_the_run_succeeds(store):
    store.write_failure(RUN, HERE, "ValueError: no\nsecond line")
    folder = store.run_folder(RUN, HERE)
    noted = json.loads((folder / "failure.json").read_text())
    assert noted == {**RUN.head, "reason": "ValueError: no\nsecond line"}
    assert store.read(RUN, HERE) is None
    store.write(RUN, HERE, RESULT, SECONDS)
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
from companion.evidence.store import write_atomic

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
                store.write_failure(run, HERE, "first try")
            big = RESULT | {"curves": {"step": [float(i) for i in range(2000)]}}
            store.write(run, HERE, big, {"wall_seconds": time.time()})
            assert store.read(run, HERE) == {**run.head, **big}


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
        assert store.read(run, HERE)["metrics"] == RESULT["metrics"]
        assert store.provenance(run, HERE)["key"] == run.key
        names = files_of(store.run_folder(run, HERE))
        assert [n for n in names if n.endswith(".tmp")] == []


def test_sweep_up_removes_only_old_temporaries(store):
    store.sweep_up()  # no folder yet
    store.write(RUN, HERE, RESULT, SECONDS)
    folder = store.run_folder(RUN, HERE)
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


# --- damaged runs ---------------------------------------------------------------------------------


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def _cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def _swap_in(folder: Path, store: s.Store, run: s.Run, name: str) -> None:
    """Put a file of another run in the place of this one's."""
    other = replace(run, seed=run.seed + 1)
    store.write(other, HERE, {"metrics": {"a/b": 7.0}}, SECONDS)
    (folder / name).write_bytes((store.run_folder(other, HERE) / name).read_bytes())


DAMAGES = {
    "a changed number": (lambda f, st: _edit(f / "result.json", "0.3", "0.4"), "checksum"),
    "cut in the middle": (lambda f, st: _cut(f / "result.json", 30), "result.json is cut off"),
    "empty": (lambda f, st: _cut(f / "result.json", 0), "result.json is cut off"),
    "without its last byte": (lambda f, st: _cut(f / "result.json", -1), "result.json is cut off"),
    "no provenance": (lambda f, st: (f / "provenance.json").unlink(), "provenance.json"),
    "provenance cut": (lambda f, st: _cut(f / "provenance.json", 30), "provenance.json"),
    "no object": (lambda f, st: (f / "provenance.json").write_text("[]\n"), "provenance.json"),
    "record of another run": (lambda f, st: _swap_in(f, st, RUN, "result.json"), "checksum"),
    "provenance of another run": (
        lambda f, st: _swap_in(f, st, RUN, "provenance.json"),
        "checksum",
    ),
    "both of another run": (
        lambda f, st: [_swap_in(f, st, RUN, n) for n in ("result.json", "provenance.json")],
        "another run's",
    ),
    "of other code": (
        lambda f, st: _edit(f / "provenance.json", HERE.code, "b" * 64),
        "another run's (code)",
    ),
}


@pytest.mark.parametrize(("damage", "word"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_run_is_named_and_set_aside(store, capsys, damage, word):
    store.write(RUN, HERE, RESULT, SECONDS)
    folder = store.run_folder(RUN, HERE)
    damage(folder, store)
    damaged = (folder / "result.json").read_bytes()
    assert store.read(RUN, HERE) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert str(folder / "result.json") in line
    assert word in line
    assert "sign, seed 1000" in line
    aside = folder.with_name(folder.name + ".damaged-1")
    assert (aside / "result.json").read_bytes() == damaged
    assert not folder.exists()
    # it is said once, and the run can be computed again
    assert store.read(RUN, HERE) is None
    assert capsys.readouterr().err == ""
    store.write(RUN, HERE, RESULT, SECONDS)
    assert store.read(RUN, HERE) == {**RUN.head, **RESULT}


def test_damaged_runs_are_kept_apart(store):
    folder = store.run_folder(RUN, HERE)
    for _ in range(3):
        store.write(RUN, HERE, RESULT, SECONDS)
        _cut(folder / "result.json", 10)
        assert store.read(RUN, HERE) is None
    assert files_of(folder.parent) == [f"{folder.name}.damaged-{n}" for n in (1, 2, 3)]


def test_a_writer_between_its_two_files_is_waited_for(store, monkeypatch):
    """Two timing runs of one identity have different bytes: the second may be half written."""
    store.write(RUN, HERE, RESULT, SECONDS)
    folder = store.run_folder(RUN, HERE)
    whole = (folder / "provenance.json").read_text()
    _edit(folder / "provenance.json", '"checksum":"', '"checksum":"0')

    def sleep(seconds: float) -> None:
        if seconds:
            (folder / "provenance.json").write_text(whole)

    monkeypatch.setattr(time, "sleep", sleep)
    assert store.read(RUN, HERE) == {**RUN.head, **RESULT}


def test_a_folder_that_another_process_set_aside_counts_as_not_there(store, monkeypatch, capsys):
    store.write(RUN, HERE, RESULT, SECONDS)
    folder = store.run_folder(RUN, HERE)
    _cut(folder / "result.json", 10)
    rename = Path.rename

    def faster(self: Path, target: Path) -> Path:
        rename(self, target.with_name("taken"))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", faster)
    assert store.read(RUN, HERE) is None
    assert capsys.readouterr().err == ""


def test_no_mutated_run_is_accepted_with_a_changed_value(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    generator = random.Random(23)
    store = s.Store("quick", tmp_path)
    runs = [replace(RUN, seed=1000 + i) for i in range(8)]
    for run in runs:
        numbers = [generator.random() for _ in range(20)]
        result = {"metrics": {"a/b": generator.random()}, "curves": {"step": numbers}}
        store.write(run, HERE, result, SECONDS)
    names = ("result.json", "provenance.json")
    whole = {
        (run.seed, name): (store.run_folder(run, HERE) / name).read_bytes()
        for run in runs
        for name in names
    }
    refused = 0
    for _ in range(1000):
        run, other = generator.sample(runs, 2)
        folder = store.run_folder(run, HERE)
        folder.mkdir(exist_ok=True)
        for name in names:
            (folder / name).write_bytes(whole[run.seed, name])
        name = generator.choice(names)
        text = bytearray(whole[run.seed, name])
        kind = generator.choice(["flip", "cut", "swap", "digit"])
        if kind == "flip":
            text[generator.randrange(len(text))] ^= 1 << generator.randrange(8)
        elif kind == "cut":
            del text[generator.randrange(len(text)) :]
        elif kind == "swap":
            text = bytearray(whole[other.seed, name])
        else:
            position = generator.choice([i for i, byte in enumerate(text) if chr(byte).isdigit()])
            text[position] = ord(str((int(chr(text[position])) + 1) % 10))
        (folder / name).write_bytes(bytes(text))
        record = store.read(run, HERE)
        if record is None:
            refused += 1
            assert not folder.exists()
        else:
            assert s.canonical_json(record).encode() + b"\n" == whole[run.seed, "result.json"]
            assert name == "provenance.json", "a changed record was accepted"
    assert refused > 700


# --- the reference --------------------------------------------------------------------------------

ROWS = [
    (
        {**RUN.head, "arm": arm, "seed": seed, "metrics": {"m": seed / 7}},
        {"fingerprint": "f", "core_seconds": 1.0, "key": "old", "code": "old"},
    )
    for arm in ("sign", "gradient\u2028\x85")  # JSON leaves these line ends as they are
    for seed in range(1000, 1005)
]


SET = s.RecordSet(
    canonical=False,
    note="made for a test",
    versions={},
    commit="1" * 40,
    ledger="unknown",
    started="",
    timed_on="1" * 40,
)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    s.write_reference("standard", "06", ROWS, SET, tmp_path)
    return tmp_path / "standard" / "06"


def test_reference_reads_back_sorted_by_key(written, tmp_path):
    reference = s.read_reference("standard", "06", tmp_path)
    keys = [row["key"] for row in reference.provenance]
    assert keys == sorted(keys)
    assert {row["code"] for row in reference.provenance} == {"old"}
    assert reference.record_set == SET
    in_text = sorted(map(s.canonical_json, reference.records))
    assert in_text == sorted(s.canonical_json(record) for record, _ in ROWS)
    assert files_of(written) == ["provenance.jsonl", "records.jsonl", "set.json"]
    # a second writing, in another order, gives the same bytes
    before = [path.read_bytes() for path in sorted(written.iterdir())]
    s.write_reference("standard", "06", reversed(ROWS), SET, tmp_path)
    assert [path.read_bytes() for path in sorted(written.iterdir())] == before


def test_reference_line_is_the_bytes_of_the_result(store, tmp_path):
    store.write(RUN, HERE, RESULT, SECONDS)
    rows = [(store.read(RUN, HERE), store.provenance(RUN, HERE))]
    s.write_reference("quick", "06", rows, SET, tmp_path / "results")
    line = (tmp_path / "results" / "quick" / "06" / "records.jsonl").read_bytes()
    assert line == (store.run_folder(RUN, HERE) / "result.json").read_bytes()


def test_no_reference_is_none(written, tmp_path):
    assert s.read_reference("full", "06", tmp_path) is None
    assert s.read_reference("standard", "05", tmp_path) is None


def _number(folder: Path, seed: int, arm: str = '"sign"') -> int:
    """Number of the line of a record."""
    lines = _lines(folder / "records.jsonl")
    words = (f'"seed":{seed}', f'"arm":{arm}')
    (number,) = [i for i, line in enumerate(lines, 1) if all(w in line for w in words)]
    return number


def _edit_line(path: Path, number: int, old: str, new: str) -> None:
    lines = _lines(path)
    assert old in lines[number - 1]
    lines[number - 1] = lines[number - 1].replace(old, new, 1)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("records.jsonl", '"m":', '"m":1', ["sign", "seed 1003", "checksum"]),
        ("records.jsonl", '"seed":1003', '"seed":1013', ["sign", "seed 1013", "checksum"]),
        ("records.jsonl", '"version":1', '"version":2', ["sign", "seed 1003"]),
        ("records.jsonl", '"metrics":', '"metrics"', ["the line cannot be read"]),
        ("records.jsonl", '"settings":', '"config":', ["lacks settings"]),
        ("provenance.jsonl", '"key":"', '"key":"0', ["sign", "seed 1003", "key"]),
        ("provenance.jsonl", '"checksum":"', '"checksum":"0', ["sign", "seed 1003", "checksum"]),
        ("provenance.jsonl", '"key":', '"key"', ["provenance.jsonl"]),
    ],
)
def test_a_damaged_line_is_named_with_its_file_and_number(written, tmp_path, name, old, new, words):
    number = _number(written, 1003)
    _edit_line(written / name, number, old, new)
    with pytest.raises(ValueError) as caught:
        s.read_reference("standard", "06", tmp_path)
    text = str(caught.value)
    assert f"records.jsonl, line {number}: " in text
    assert [word for word in words if word not in text] == []


def test_a_record_with_a_new_checksum_and_the_old_key_is_refused(written, tmp_path):
    """Whoever edits an identity and makes the checksum fit must still make the key fit."""
    number = _number(written, 1003)
    _edit_line(written / "records.jsonl", number, '"steps":40', '"steps":41')
    line = _lines(written / "records.jsonl")[number - 1]
    row = json.loads(_lines(written / "provenance.jsonl")[number - 1])
    new = hashlib.sha256(line.encode()).hexdigest()
    _edit_line(written / "provenance.jsonl", number, row["checksum"], new)
    with pytest.raises(ValueError, match=f"line {number}: sign, seed 1003: .* key"):
        s.read_reference("standard", "06", tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: _edit(f / "records.jsonl", '"seed":1003', '"seed":1013'),
        lambda f: _edit(f / "records.jsonl", '"steps":40', '"steps":41'),
        lambda f: (f / "set.json").unlink(),
        lambda f: _edit(f / "set.json", '"versions": {}', '"versions": {"sign": 2}'),
        lambda f: _edit(f / "set.json", '"canonical": false', '"canonical": "no"'),
        lambda f: _edit(f / "set.json", '"ledger"', '"book"'),
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
        "settings",
        "no set",
        "another version in the set",
        "a set of another type",
        "a set without a ledger",
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


def test_no_two_records_may_have_one_identity(tmp_path):
    with pytest.raises(ValueError, match="sign, seed 1000: two records"):
        s.write_reference("standard", "06", [*ROWS, ROWS[0]], SET, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_find_takes_the_version_of_the_set(tmp_path):
    """The arm has been given a new version since; the set is still what it was."""
    present = replace(RUN, version=3)
    versions_of = {"sign": 2}
    rows = [({**RUN.head, "version": 2, "metrics": {}}, {"code": "old"})]
    with pytest.raises(ValueError, match="version 2 is not that of the set"):
        s.write_reference("standard", "06", rows, SET, tmp_path)
    s.write_reference("standard", "06", rows, replace(SET, versions=versions_of), tmp_path)
    reference = s.read_reference("standard", "06", tmp_path)
    assert reference.record_set.version("sign") == 2
    assert reference.record_set.version("gradient") == 1
    record, _ = reference.find(present)
    assert record["version"] == 2


def test_find_ignores_the_prediction(written, tmp_path):
    reference = s.read_reference("standard", "06", tmp_path)
    record, provenance = reference.find(replace(RUN, seed=1003, predicted_seconds=7.0))
    assert record["metrics"] == {"m": 1003 / 7}
    assert provenance["key"] == replace(RUN, seed=1003).key
    for change in ({"seed": 999}, {"arm": "x"}, {"config": {"data": "digits"}}, {"data": "e"}):
        assert reference.find(replace(RUN, **change)) is None
