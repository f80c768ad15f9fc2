"""Sweeps: nothing twice, failures kept apart, one environment for all runs, no worker left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from toy_runs import execute, make_runs, make_seeds

from companion.evidence import canonical
from companion.evidence.store import Run, Store
from companion.lab import sweep as w
from companion.lab.conditions import conditions_of
from companion.lab.worker import compute

CODE = "c" * 64
TOY = "toy_runs"
HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.name == "nt", reason="process groups"),
]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store("quick", tmp_path / "runs")


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    (tmp_path / "marks").mkdir()
    return tmp_path / "marks"


@pytest.fixture(autouse=True)
def workers(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | str], None]:
    """Set the number of workers, which find the toy chapter."""
    path = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    monkeypatch.delenv("BACKEND", raising=False)
    monkeypatch.setenv("TRAINAUG_WORKERS", "1")
    return lambda count: monkeypatch.setenv("TRAINAUG_WORKERS", str(count))


@pytest.fixture
def behave(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Say how the runs misbehave from now on."""
    return lambda kind: monkeypatch.setenv("TOY_KIND", kind)


def computed(marks: Path) -> list[int]:
    return sorted(int(path.name.split("-")[0]) for path in marks.glob("*-*"))


def words_of(marks: Path) -> dict[int, list[str]]:
    """What each run noted about where it was computed."""
    return {int(path.name.split("-")[0]): path.read_text().split() for path in marks.glob("*-*")}


def finished(store: Store, runs: list[Run]) -> list[int]:
    known = [run for run in runs if store.read(run, conditions_of(run, CODE)) is not None]
    return [run.config["number"] for run in known]


def write(store: Store, run: Run) -> None:
    store.write(run, conditions_of(run, CODE), {"metrics": {}}, {})


def bytes_of(store: Store) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in store.folder.glob("*/*/result.json")}


# --- what is computed -----------------------------------------------------------------------------


def test_nothing_is_computed_twice(store, marks, workers, behave):
    workers(2)
    runs = make_runs(marks)
    w.run_sweep(runs[:2], TOY, store, CODE)
    w.run_sweep(runs, TOY, store, CODE)
    assert computed(marks) == [0, 1, 2, 3, 4, 5]
    behave("must not run")
    w.run_sweep(runs, TOY, store, CODE)
    w.run_sweep([], TOY, store, CODE)
    # other code, other runs
    behave("")
    w.run_sweep(runs[:1], TOY, store, "b" * 64)
    assert computed(marks) == [0, 0, 1, 2, 3, 4, 5]


def test_a_store_that_cannot_be_written_is_named_before_anything_runs(tmp_path, marks):
    (tmp_path / "runs").touch()
    with pytest.raises(OSError, match="runs"):
        w.run_sweep(make_runs(marks), TOY, Store("quick", tmp_path / "runs"), CODE)
    assert computed(marks) == []


def test_missing_runs_come_longest_first(store, marks):
    runs = make_runs(marks)
    write(store, runs[4])
    numbers = [run.config["number"] for run in w.missing_runs(runs, store, CODE)]
    assert numbers == [5, 3, 2, 1, 0]


def test_bytes_depend_neither_on_workers_nor_on_order(tmp_path, marks, workers):
    runs = make_runs(marks)
    stores = [Store("quick", tmp_path / name) for name in "abc"]
    for store, plan, count in zip(stores, (runs, runs[::-1], runs), (1, 1, 2), strict=True):
        workers(count)
        w.run_sweep(plan, TOY, store, CODE)
    assert len(bytes_of(stores[0])) == 6
    assert bytes_of(stores[0]) == bytes_of(stores[1]) == bytes_of(stores[2])


def test_few_processes_with_one_thread_serve_all_runs(store, marks, workers):
    workers(2)
    w.run_sweep(make_runs(marks, 8), TOY, store, CODE)
    rows = words_of(marks).values()
    processes = {int(row[2]) for row in rows}
    assert os.getpid() not in processes
    assert 1 <= len(processes) <= 2
    assert {row[3] for row in rows} == {"1"}
    assert not any(map(psutil.pid_exists, processes))


def test_runs_that_are_not_deterministic_go_last_and_alone(store, marks, workers):
    workers(2)
    timed = make_runs(marks, 3, deterministic=False)
    plain = make_runs(marks, 4, first=10)
    w.run_sweep([*timed, *plain], TOY, store, CODE)
    rows = words_of(marks)
    spans = {number: (float(row[0]), float(row[1])) for number, row in rows.items()}
    assert len(spans) == 7
    last_plain = max(end for number, (_, end) in spans.items() if number >= 10)
    alone = sorted(span for number, span in spans.items() if number < 10)
    ends = [last_plain, *(end for _, end in alone)]
    assert all(start >= end for (start, _), end in zip(alone, ends, strict=False))
    processes = [{rows[n][2] for n in rows if (n < 10) is timing} for timing in (True, False)]
    assert processes[0].isdisjoint(processes[1]), "a process served both kinds"
    provenance = store.provenance(timed[0], conditions_of(timed[0], CODE))
    assert provenance["deterministic"] is False
    assert provenance["canonical"] is False
    assert provenance["fingerprint"].endswith("-native")


def test_what_a_run_prints_disturbs_nothing(store, marks, behave, capfd):
    behave("loud")
    w.run_sweep(make_runs(marks, 2), TOY, store, CODE)
    assert computed(marks) == [0, 1]
    heard = capfd.readouterr()
    assert heard.out == ""
    assert heard.err.count("printed by Python") == 2
    assert heard.err.count("printed below Python") == 2


# --- where it is computed -------------------------------------------------------------------------

PINNED = ["AVX2", "COMPATIBLE"]


def capability_here() -> str:
    """What torch chooses in a process without any variable."""
    code = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    environment = canonical.native_environment()
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def workers_of_this_process() -> list[psutil.Process]:
    """Those alone: other tests of this process leave helpers of their libraries behind."""
    children = psutil.Process().children()
    return [child for child in children if "companion.lab.worker" in child.cmdline()]


@pytest.mark.parametrize("count", [1, 2])
def test_runs_are_canonical_whatever_the_shell_says(store, marks, monkeypatch, count):
    monkeypatch.setenv("MKL_CBWR", "AVX512")
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    runs = make_runs(marks, count)
    w.run_sweep(runs, TOY, store, CODE)
    assert [row[4:] for row in words_of(marks).values()] == [PINNED] * count
    provenance = store.provenance(runs[0], conditions_of(runs[0], CODE))
    assert provenance["canonical"] is True
    assert provenance["fingerprint"] == canonical.fingerprint(canonical=True)


def test_a_timing_run_has_none_of_the_variables(store, marks, monkeypatch):
    for name, value in canonical.canonical_variables().items():
        monkeypatch.setenv(name, value)
    w.run_sweep(make_runs(marks, 1, deterministic=False), TOY, store, CODE)
    assert words_of(marks)[0][4:] == [capability_here(), "None"]


NOTEBOOK = """
import os
from pathlib import Path
assert "MKL_CBWR" not in os.environ
import numpy, torch
from toy_runs import make_runs
from companion.evidence.store import Store
from companion.lab.sweep import run_sweep
folder = Path(os.environ["TOY_FOLDER"])
run_sweep(make_runs(folder / "marks", 1), "toy_runs", Store("quick", folder / "runs"), "c" * 64)
"""


def test_a_notebook_that_was_opened_without_any_variable_computes_canonical_runs(tmp_path, marks):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(NOTEBOOK)])
    client = NotebookClient(notebook, kernel_name="python3", timeout=120)
    environment = canonical.native_environment() | {"TOY_FOLDER": str(tmp_path)}
    client.execute(env=environment)
    assert words_of(marks)[0][4:] == PINNED


def test_variables_of_the_shell_change_neither_keys_nor_bytes(store, marks, monkeypatch, capsys):
    runs = make_runs(marks, 2)
    for name in (*canonical.canonical_variables(), "OPENBLAS_L2_SIZE"):
        monkeypatch.delenv(name, raising=False)
    w.run_sweep(runs, TOY, store, CODE)
    assert capsys.readouterr().err == ""
    before = bytes_of(store)
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    monkeypatch.setenv("OPENBLAS_L2_SIZE", "2048")
    assert w.missing_runs(runs, store, CODE) == []
    other = Store("quick", store.folder.parents[1] / "other")
    w.run_sweep(runs, TOY, other, CODE)
    assert bytes_of(other) == before
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "ATEN_CPU_CAPABILITY=default" in lines[0]
    assert "OPENBLAS_L2_SIZE=2048" in lines[0]


def test_another_canonical_variable_takes_nothing_from_the_cache(store, marks, monkeypatch):
    runs = [*make_runs(marks, 2), *make_runs(marks, 1, first=2, deterministic=False)]
    for run in runs:
        write(store, run)
    assert w.missing_runs(runs, store, CODE) == []
    moved = canonical.VARIABLES | {"MKL_CBWR": "AVX2"}
    monkeypatch.setattr(canonical, "VARIABLES", moved)
    # the timing run has none of the variables
    assert w.missing_runs(runs, store, CODE) == [runs[1], runs[0]]


@pytest.fixture
def abacus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let there be one CUDA device."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "abacus")


@pytest.mark.usefixtures("abacus")
def test_another_device_takes_nothing_from_the_cache(store, marks, monkeypatch):
    runs = make_runs(marks, 2)
    for run in runs:
        write(store, run)
    assert w.missing_runs(runs, store, CODE) == []
    monkeypatch.setenv("DEVICE", "cuda")
    assert len(w.missing_runs(runs, store, CODE)) == 2
    write(store, runs[0])
    provenance = store.provenance(runs[0], conditions_of(runs[0], CODE))
    assert provenance["device"] == "cuda: abacus"
    assert provenance["canonical"] is False
    monkeypatch.delenv("DEVICE")
    assert w.missing_runs(runs, store, CODE) == []
    assert store.provenance(runs[0], conditions_of(runs[0], CODE))["device"] == "cpu"


def test_a_run_goes_where_its_arm_says_unless_the_environment_does(abacus, monkeypatch):
    wide = Run("05", "paper", {"device": "auto"}, 1000, "d", 1.0)
    small = Run("05", "arm", {}, 1000, "d", 1.0)
    assert conditions_of(wide, CODE).device == "cuda: abacus"
    assert conditions_of(wide, CODE).is_canonical is False
    assert conditions_of(small, CODE).device == "cpu"
    assert conditions_of(small, CODE).is_canonical is True
    monkeypatch.setenv("DEVICE", "cpu")
    assert conditions_of(wide, CODE).device == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("DEVICE", "cuda")
    with pytest.raises(RuntimeError, match="no 'cuda' device here"):
        conditions_of(small, CODE)


# --- failures -------------------------------------------------------------------------------------


def test_failures_are_named_recorded_and_tried_again(store, marks, workers, behave):
    workers(2)
    behave("fails")
    runs = make_runs(marks)
    (marks / "broken").touch()
    with pytest.raises(w.SweepFailedError) as caught:
        w.run_sweep(runs, TOY, store, CODE)
    text = str(caught.value)
    assert "2 of 6 runs failed" in text
    assert "arm, seed 1001: ValueError: number 1 is broken" in text
    assert "arm, seed 1004: ValueError: number 4 is broken" in text
    assert finished(store, runs) == [0, 2, 3, 5]
    reason = (store.run_folder(runs[1], conditions_of(runs[1], CODE)) / "failure.json").read_text()
    assert "number 1 is broken" in reason
    assert "toy_runs.py" in reason, "the place of the error"
    before = bytes_of(store)
    (marks / "broken").unlink()
    w.run_sweep(runs, TOY, store, CODE)
    assert finished(store, runs) == [0, 1, 2, 3, 4, 5]
    assert computed(marks) == [0, 1, 2, 3, 4, 5]
    assert {key: bytes_of(store)[key] for key in before} == before
    assert list(store.folder.glob("*/*/failure.json")) == []


def test_many_failures_are_counted_and_five_are_shown(store, marks, behave):
    behave("must not run")
    with pytest.raises(w.SweepFailedError) as caught:
        w.run_sweep(make_runs(marks, 8), TOY, store, CODE)
    assert "8 of 8 runs failed" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 6


def test_a_number_that_is_not_finite_is_a_failure(store, marks, behave):
    behave("not finite")
    runs = make_runs(marks, 4)
    with pytest.raises(w.SweepFailedError, match="seed 1002: ValueError"):
        w.run_sweep(runs, TOY, store, CODE)
    assert finished(store, runs) == [0, 1, 3]
    folder = store.run_folder(runs[2], conditions_of(runs[2], CODE))
    assert sorted(p.name for p in folder.iterdir()) == ["failure.json"]


def test_an_interrupt_inside_a_run_keeps_what_is_finished(store, marks, behave):
    behave("interrupted")
    runs = make_runs(marks)
    with pytest.raises(KeyboardInterrupt):
        w.run_sweep(runs, TOY, store, CODE)
    assert finished(store, runs) == [4, 5]  # the longest go first
    folder = store.run_folder(runs[3], conditions_of(runs[3], CODE))
    assert not (folder / "failure.json").exists()
    behave("")
    w.run_sweep(runs, TOY, store, CODE)
    assert finished(store, runs) == computed(marks) == [0, 1, 2, 3, 4, 5]


def test_an_interrupt_between_runs_keeps_what_is_finished(store, tmp_path, marks, workers):
    workers(2)
    runs = make_runs(marks, 12)

    def stop(done: int, total: int, seconds_left: float) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        w.run_sweep(runs, TOY, store, CODE, stop)
    assert workers_of_this_process() == [], "a worker outlived the interrupt"
    assert len(finished(store, runs)) >= 4
    w.run_sweep(runs, TOY, store, CODE)
    undisturbed = Store("quick", tmp_path / "undisturbed")
    w.run_sweep(runs, TOY, undisturbed, CODE)
    assert bytes_of(store) == bytes_of(undisturbed)
    assert len(bytes_of(store)) == 12


@pytest.mark.parametrize(
    ("count", "kind", "ending"),
    [
        (2, "killed", "the process ended with signal 9"),
        pytest.param(
            1, "killed with a child", "the process ended with signal 9", marks=pytest.mark.soak
        ),
        pytest.param(1, "exits", "the process ended with code 3", marks=pytest.mark.soak),
    ],
)
def test_a_worker_that_dies_fails_its_run_alone(store, marks, workers, behave, kind, ending, count):
    workers(count)
    behave(kind)
    runs = make_runs(marks)
    (marks / "broken").touch()
    with pytest.raises(w.SweepFailedError, match=f"1 of 6 runs failed.*\n.*seed 1002: {ending}"):
        w.run_sweep(runs, TOY, store, CODE)
    assert finished(store, runs) == [0, 1, 3, 4, 5]
    folder = store.run_folder(runs[2], conditions_of(runs[2], CODE))
    assert ending in (folder / "failure.json").read_text()
    (marks / "broken").unlink()
    w.run_sweep(runs, TOY, store, CODE)
    assert finished(store, runs) == [0, 1, 2, 3, 4, 5]


def test_processes_that_cannot_start_are_one_error(store, marks, tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(HERE)]))
    with pytest.raises(RuntimeError, match="could not start: the process ended with code 1"):
        w.run_sweep(make_runs(marks), TOY, store, CODE)
    assert list(store.folder.glob("*/*")) == []


PARENT = """
import sys
from pathlib import Path
from toy_runs import make_runs
from companion.evidence.store import Store
from companion.lab.sweep import run_sweep

folder = Path(sys.argv[1])
run_sweep(make_runs(folder / "marks"), "toy_runs", Store("quick", folder / "runs"), "c" * 64)
"""


def test_workers_end_when_their_parent_is_killed(tmp_path, marks, workers, behave):
    workers(2)
    behave("slow")
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)])
    children: list[psutil.Process] = []
    end = time.monotonic() + 60
    while len(children) < 2:
        assert time.monotonic() < end
        assert parent.poll() is None
        time.sleep(0.1)
        actual = psutil.Process(parent.pid).children()
        children = [p for p in actual if "companion.lab.worker" in p.cmdline()]
    time.sleep(3)  # they are in their runs, or load torch
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=5)
    assert alive == []


# --- runs that one call computes ------------------------------------------------------------------


def calls(marks: Path) -> list[list[str]]:
    """Number and seed of every run of each call for several runs."""
    return sorted(path.read_text().split() for path in marks.glob("call.*"))


def stored_seeds(store: Store, runs: list[Run]) -> list[int]:
    return [run.seed for run in runs if store.read(run, conditions_of(run, CODE)) is not None]


def test_runs_that_differ_in_the_seed_alone_are_computed_together(store, marks, workers, tmp_path):
    runs = [*make_seeds(marks, 3, number=7), *make_seeds(marks, 2, number=8)]
    heard: list[int] = []
    w.run_sweep(runs, TOY, store, CODE, lambda done, total, left: heard.append(done))
    assert calls(marks) == [["7/1000", "7/1001", "7/1002"], ["8/1000", "8/1001"]]
    assert heard == [0, 1, 2, 3, 4, 5]
    alone = Store("quick", tmp_path / "alone")
    w.run_sweep([replace(run, together=False) for run in runs], TOY, alone, CODE)
    assert len(calls(marks)) == 2, "runs that do not allow it were computed together"
    assert len(bytes_of(store)) == 5
    assert bytes_of(store) == bytes_of(alone)


def test_each_run_of_a_call_has_its_share_of_the_seconds(store, marks):
    runs = make_seeds(marks, 3)
    w.run_sweep(runs, TOY, store, CODE)
    rows = [store.provenance(run, conditions_of(run, CODE)) for run in runs]
    assert len({(row["wall_seconds"], row["core_seconds"]) for row in rows}) == 1
    spans = [path.read_text().split()[:2] for path in marks.glob("0-*")]
    passed = max(float(end) for _, end in spans) - min(float(start) for start, _ in spans)
    assert passed <= 3 * rows[0]["wall_seconds"] + 0.01 < 2 * passed


def test_each_worker_gets_a_part_of_the_seeds(store, marks, workers):
    workers(2)
    w.run_sweep(make_seeds(marks, 5), TOY, store, CODE)
    assert calls(marks) == [["0/1000", "0/1001", "0/1002"], ["0/1003", "0/1004"]]


def test_timings_are_never_computed_together(store, marks):
    w.run_sweep(make_seeds(marks, 2, deterministic=False), TOY, store, CODE)
    assert calls(marks) == []
    assert computed(marks) == [0, 0]


def test_a_call_that_fails_names_every_seed_and_then_each_is_tried_alone(store, marks, behave):
    behave("fails")
    (marks / "broken").touch()
    broken, sound = make_seeds(marks, 3, number=1), make_seeds(marks, 2, number=2)
    with pytest.raises(w.SweepFailedError) as caught:
        w.run_sweep([*broken, *sound], TOY, store, CODE)
    assert "3 of 5 runs failed" in str(caught.value)
    for run in broken:
        assert f"arm, seed {run.seed}: ValueError: number 1 is broken" in str(caught.value)
        note = store.run_folder(run, conditions_of(run, CODE)) / "failure.json"
        assert f'"seed":{run.seed}' in note.read_text()
    assert stored_seeds(store, sound) == [1000, 1001]
    (marks / "broken").unlink()
    w.run_sweep([*broken, *sound], TOY, store, CODE)
    assert stored_seeds(store, broken) == [1000, 1001, 1002]
    assert calls(marks) == [["1/1000", "1/1001", "1/1002"], ["2/1000", "2/1001"]]
    assert list(store.folder.glob("*/*/failure.json")) == []


def test_a_worker_that_dies_between_two_records_keeps_the_first(store, marks, behave, tmp_path):
    behave("killed between records")
    (marks / "broken").touch()
    runs = make_seeds(marks, 4)
    with pytest.raises(w.SweepFailedError) as caught:
        w.run_sweep(runs, TOY, store, CODE)
    assert "2 of 4 runs failed" in str(caught.value)
    assert all(f"seed {seed}: the process ended" in str(caught.value) for seed in (1002, 1003))
    assert stored_seeds(store, runs) == [1000, 1001]
    assert len(list(store.folder.glob("*/*/failure.json"))) == 2
    before = bytes_of(store)
    w.run_sweep(runs, TOY, store, CODE)
    assert stored_seeds(store, runs) == [1000, 1001, 1002, 1003]
    assert {key: bytes_of(store)[key] for key in before} == before
    undisturbed = Store("quick", tmp_path / "undisturbed")
    w.run_sweep([replace(run, together=False) for run in runs], TOY, undisturbed, CODE)
    assert bytes_of(store) == bytes_of(undisturbed)


# --- verification ---------------------------------------------------------------------------------


def test_recompute_gives_the_records_in_order_and_stores_nothing(store, marks, workers, tmp_path):
    workers(2)
    timed = make_runs(marks, 1, first=6, deterministic=False)
    runs = [*make_runs(marks, 3), *timed, *make_runs(marks, 1, first=7)]
    records = list(w.recompute([(TOY, run) for run in runs]))
    assert [record["seed"] for record in records] == [run.seed for run in runs]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["marks"]
    w.run_sweep(runs, TOY, store, CODE)
    assert records == [store.read(run, conditions_of(run, CODE)) for run in runs]


def test_recompute_names_the_run_that_fails(marks, behave):
    behave("fails")
    (marks / "broken").touch()
    with pytest.raises(w.SweepFailedError, match="arm, seed 1001: ValueError"):
        list(w.recompute([(TOY, run) for run in make_runs(marks)]))
    assert workers_of_this_process() == []


# --- settings -------------------------------------------------------------------------------------


def test_progress_counts_to_the_end(store, marks):
    runs = make_runs(marks)
    write(store, runs[0])
    heard: list[tuple[int, int, float]] = []
    w.run_sweep(runs, TOY, store, CODE, lambda *words: heard.append(words))
    done = [words[0] for words in heard]
    assert done[0] == 1
    assert done[-1] == 6
    assert done == sorted(done)
    assert set(done) == {1, 2, 3, 4, 5, 6}
    assert {words[1] for words in heard} == {6}
    assert heard[0][2] == pytest.approx(2 + 3 + 4 + 5 + 6)
    assert heard[-1][2] == pytest.approx(0.0)


def test_worker_count_is_what_was_asked_for(monkeypatch):
    monkeypatch.setenv("TRAINAUG_WORKERS", "3")
    assert w.worker_count() == 3
    monkeypatch.delenv("TRAINAUG_WORKERS")
    assert w.worker_count() >= 1
    monkeypatch.setenv("TRAINAUG_WORKERS", "")
    assert w.worker_count() >= 1


@pytest.mark.parametrize("bad", ["0", "-1", "two", "1.5", " "])
def test_a_wrong_worker_count_is_named_before_anything_runs(store, marks, workers, bad):
    workers(bad)
    with pytest.raises(ValueError, match=f"TRAINAUG_WORKERS.*{bad!r}"):
        w.run_sweep(make_runs(marks), TOY, store, CODE)
    assert computed(marks) == []


@pytest.mark.parametrize(
    ("backend", "device", "reason"),
    [("dask", "cpu", "dask"), ("ray", "cpu", "needs Ray"), ("ray", "cuda", "runs of the CPU")],
)
def test_a_backend_that_cannot_be_is_named_before_anything_runs(
    store, marks, monkeypatch, backend, device, reason
):
    monkeypatch.setenv("BACKEND", backend)
    monkeypatch.setenv("DEVICE", device)
    is_installed = True if device == "cuda" else None
    monkeypatch.setattr(w.importlib.util, "find_spec", lambda name: is_installed)
    with pytest.raises(ValueError, match=f"BACKEND.*{reason}"):
        w.run_sweep(make_runs(marks), TOY, store, CODE)
    with pytest.raises(ValueError, match=f"BACKEND.*{reason}"):
        list(w.recompute([(TOY, run) for run in make_runs(marks)]))
    assert computed(marks) == []


def test_compute_runs_on_one_thread_and_restores_the_number(marks, behave):
    (run,) = make_runs(marks, 1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        result, spent = compute(run, execute)
        assert torch.get_num_threads() == 2
        behave("must not run")
        with pytest.raises(AssertionError, match="although finished"):
            compute(run, execute)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert words_of(marks)[0][3] == "1"
    assert result["counters"] == {"runs": 1}
    assert spent["wall_seconds"] >= 0.02
    assert 0 <= spent["core_seconds"] <= spent["wall_seconds"] + 0.1


def test_old_temporaries_are_swept_up_first(store, marks):
    runs = make_runs(marks, 1)
    folder = store.run_folder(runs[0], conditions_of(runs[0], CODE))
    folder.mkdir(parents=True)
    left = folder / ".result.json.x.tmp"
    left.touch()
    os.utime(left, (time.time() - 7200,) * 2)
    w.run_sweep(runs, TOY, store, CODE)
    assert sorted(p.name for p in folder.iterdir()) == ["provenance.json", "result.json"]


def test_a_damaged_run_is_computed_again(store, marks, capsys):
    runs = make_runs(marks, 2)
    w.run_sweep(runs, TOY, store, CODE)
    path = store.run_folder(runs[1], conditions_of(runs[1], CODE)) / "result.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    w.run_sweep(runs, TOY, store, CODE)
    assert path.read_bytes() == whole
    assert str(path) in capsys.readouterr().err
    assert computed(marks) == [0, 1, 1]
