"""Sweeps: nothing twice, failures kept apart, the same bytes for every number of workers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainaug.evidence.store import Run, Store
from trainaug.experiments import sweep as w

CODE = "c" * 64


def make_runs(folder: Path, count: int = 6, **options: Any) -> list[Run]:
    """Runs that leave a mark in ``folder`` each time they are computed."""
    return [
        Run("99", "arm", {"marks": str(folder), "number": i}, 1000 + i, "d", 1.0 + i, **options)
        for i in range(count)
    ]


def execute(run: Run) -> dict[str, Any]:
    """Note start, end, process and threads; the result depends on config and seed alone."""
    started = time.monotonic()
    time.sleep(0.02)
    value = float(torch.randn(50, generator=torch.Generator().manual_seed(run.seed)).sum())
    mark = Path(run.config["marks"]) / f"{run.config['number']}-{time.time_ns()}"
    words = (started, time.monotonic(), os.getpid(), torch.get_num_threads())
    mark.write_text(" ".join(map(str, words)))
    return {"metrics": {"value": value}, "curves": {}, "counters": {"runs": 1}}


def fail_once(run: Run) -> dict[str, Any]:
    """Fail for numbers 1 and 4 as long as the file ``broken`` is there."""
    if run.config["number"] in (1, 4) and (Path(run.config["marks"]) / "broken").exists():
        raise ValueError(f"number {run.config['number']} is broken")
    return execute(run)


def not_finite(run: Run) -> dict[str, Any]:
    """A loss that is NaN in run 2."""
    result = execute(run)
    if run.config["number"] == 2:
        result["metrics"]["value"] = float("nan")
    return result


def interrupted(run: Run) -> dict[str, Any]:
    """Ctrl-C in run 3."""
    if run.config["number"] == 3:
        raise KeyboardInterrupt
    return execute(run)


def dies_once(run: Run) -> dict[str, Any]:
    """Be killed, as by the system when memory runs out, as long as ``broken`` is there."""
    if run.config["number"] == 0 and (Path(run.config["marks"]) / "broken").exists():
        time.sleep(0.5)  # the others are through by then
        os.kill(os.getpid(), signal.SIGKILL)
    return execute(run)


def must_not_run(run: Run) -> dict[str, Any]:
    raise AssertionError("computed although finished")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store("quick", tmp_path / "runs")


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    (tmp_path / "marks").mkdir()
    return tmp_path / "marks"


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | str], None]:
    """Set the number of workers."""
    monkeypatch.delenv("BACKEND", raising=False)
    monkeypatch.setenv("TRAINAUG_WORKERS", "1")
    return lambda count: monkeypatch.setenv("TRAINAUG_WORKERS", str(count))


def computed(marks: Path) -> list[int]:
    return sorted(int(path.name.split("-")[0]) for path in marks.glob("*-*"))


def finished(store: Store, runs: list[Run]) -> list[int]:
    return [run.config["number"] for run in runs if store.read(run, CODE) is not None]


def bytes_of(store: Store) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in store.folder.glob("*/*/result.json")}


# --- what is computed -----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
def test_nothing_is_computed_twice(store, marks, workers, count):
    workers(count)
    runs = make_runs(marks)
    w.run_sweep(runs[:2], execute, store, CODE)
    w.run_sweep(runs, execute, store, CODE)
    assert computed(marks) == [0, 1, 2, 3, 4, 5]
    w.run_sweep(runs, must_not_run, store, CODE)
    w.run_sweep([], must_not_run, store, CODE)
    # other code, other runs
    w.run_sweep(runs[:1], execute, store, "b" * 64)
    assert computed(marks) == [0, 0, 1, 2, 3, 4, 5]


def test_missing_runs_come_longest_first(store, marks):
    runs = make_runs(marks)
    store.write(runs[4], CODE, {"metrics": {}}, {})
    numbers = [run.config["number"] for run in w.missing_runs(runs, store, CODE)]
    assert numbers == [5, 3, 2, 1, 0]


def test_bytes_depend_neither_on_workers_nor_on_order(tmp_path, marks, workers):
    runs = make_runs(marks)
    stores = [Store("quick", tmp_path / name) for name in "abc"]
    for store, plan, count in zip(stores, (runs, runs[::-1], runs), (1, 1, 2), strict=True):
        workers(count)
        w.run_sweep(plan, execute, store, CODE)
    assert len(bytes_of(stores[0])) == 6
    assert bytes_of(stores[0]) == bytes_of(stores[1]) == bytes_of(stores[2])


def test_each_worker_is_its_own_process_with_one_thread(store, marks, workers):
    workers(2)
    w.run_sweep(make_runs(marks, 8), execute, store, CODE)
    rows = [path.read_text().split() for path in marks.glob("*-*")]
    processes = {int(row[2]) for row in rows}
    assert os.getpid() not in processes
    assert 1 <= len(processes) <= 2
    assert {row[3] for row in rows} == {"1"}


@pytest.mark.parametrize("count", [1, 2])
def test_runs_that_are_not_deterministic_go_last_and_alone(store, marks, workers, count):
    workers(count)
    timed = make_runs(marks, 3, deterministic=False)
    plain = [
        Run("99", "arm", {"marks": str(marks), "number": 10 + i}, i, "d", 0.1) for i in range(4)
    ]
    w.run_sweep([*timed, *plain], execute, store, CODE)
    spans = {}
    for path in marks.glob("*-*"):
        start, end, *_ = path.read_text().split()
        spans[int(path.name.split("-")[0])] = (float(start), float(end))
    assert len(spans) == 7
    last_plain = max(end for number, (_, end) in spans.items() if number >= 10)
    alone = sorted(span for number, span in spans.items() if number < 10)
    ends = [last_plain, *(end for _, end in alone)]
    assert all(start >= end for (start, _), end in zip(alone, ends, strict=False))
    assert store.provenance(timed[0], CODE)["deterministic"] is False


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
def test_failures_are_named_recorded_and_tried_again(store, marks, workers, count):
    workers(count)
    runs = make_runs(marks)
    (marks / "broken").touch()
    with pytest.raises(w.SweepFailedError) as caught:
        w.run_sweep(runs, fail_once, store, CODE)
    text = str(caught.value)
    assert "2 of 6 runs failed" in text
    assert "arm, seed 1001: ValueError: number 1 is broken" in text
    assert "arm, seed 1004: ValueError: number 4 is broken" in text
    assert finished(store, runs) == [0, 2, 3, 5]
    reason = (store.run_folder(runs[1], CODE) / "failure.json").read_text()
    assert "number 1 is broken" in reason
    assert "fail_once" in reason, "the place of the error"
    before = bytes_of(store)
    (marks / "broken").unlink()
    w.run_sweep(runs, fail_once, store, CODE)
    assert finished(store, runs) == [0, 1, 2, 3, 4, 5]
    assert computed(marks) == [0, 1, 2, 3, 4, 5]
    assert {key: bytes_of(store)[key] for key in before} == before
    assert list(store.folder.glob("*/*/failure.json")) == []


def test_many_failures_are_counted_and_five_are_shown(store, marks, workers):
    with pytest.raises(w.SweepFailedError) as caught:
        w.run_sweep(make_runs(marks, 8), must_not_run, store, CODE)
    assert "8 of 8 runs failed" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 6


def test_a_number_that_is_not_finite_is_a_failure(store, marks, workers):
    runs = make_runs(marks, 4)
    with pytest.raises(w.SweepFailedError, match="seed 1002: ValueError"):
        w.run_sweep(runs, not_finite, store, CODE)
    assert finished(store, runs) == [0, 1, 3]
    assert sorted(p.name for p in store.run_folder(runs[2], CODE).iterdir()) == ["failure.json"]


def test_an_interrupt_inside_a_run_keeps_what_is_finished(store, marks, workers):
    runs = make_runs(marks)
    with pytest.raises(KeyboardInterrupt):
        w.run_sweep(runs, interrupted, store, CODE)
    assert finished(store, runs) == [4, 5]  # the longest go first
    assert not (store.run_folder(runs[3], CODE) / "failure.json").exists()
    w.run_sweep(runs, execute, store, CODE)
    assert finished(store, runs) == computed(marks) == [0, 1, 2, 3, 4, 5]


# joblib says that it cancels; loky's manager thread may end in a KeyError when it is cancelled
@pytest.mark.filterwarnings("ignore:.*have been cancelled")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("count", [1, 2])
def test_an_interrupt_between_runs_keeps_what_is_finished(store, tmp_path, marks, workers, count):
    workers(count)
    runs = make_runs(marks, 12)

    def stop(done: int, total: int, seconds_left: float) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        w.run_sweep(runs, execute, store, CODE, stop)
    assert len(finished(store, runs)) >= 4
    w.run_sweep(runs, execute, store, CODE)
    undisturbed = Store("quick", tmp_path / "undisturbed")
    w.run_sweep(runs, execute, undisturbed, CODE)
    assert bytes_of(store) == bytes_of(undisturbed)
    assert len(bytes_of(store)) == 12


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_a_killed_worker_stops_the_sweep_and_keeps_what_is_finished(store, marks, workers):
    workers(2)
    runs = make_runs(marks)
    (marks / "broken").touch()
    with pytest.raises(RuntimeError, match=r"terminated|killed"):
        w.run_sweep(runs, dies_once, store, CODE)
    assert 0 not in finished(store, runs)
    (marks / "broken").unlink()
    w.run_sweep(runs, dies_once, store, CODE)
    assert finished(store, runs) == [0, 1, 2, 3, 4, 5]


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
def test_progress_counts_to_the_end(store, marks, workers, count):
    workers(count)
    runs = make_runs(marks)
    store.write(runs[0], CODE, {"metrics": {}}, {})
    heard: list[tuple[int, int, float]] = []
    w.run_sweep(runs, execute, store, CODE, lambda *words: heard.append(words))
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
    for empty in (lambda: monkeypatch.delenv("TRAINAUG_WORKERS"), lambda: None):
        empty()
        assert w.worker_count() >= 1
    monkeypatch.setenv("TRAINAUG_WORKERS", "")
    assert w.worker_count() >= 1
    monkeypatch.delenv("TRAINAUG_WORKERS")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert w.worker_count() == 4


@pytest.mark.parametrize("bad", ["0", "-1", "two", "1.5", " "])
def test_a_wrong_worker_count_is_named_before_anything_runs(store, marks, workers, bad):
    workers(bad)
    with pytest.raises(ValueError, match=f"TRAINAUG_WORKERS.*{bad!r}"):
        w.run_sweep(make_runs(marks), execute, store, CODE)
    assert computed(marks) == []


def test_an_unknown_backend_is_named_before_anything_runs(store, marks, workers, monkeypatch):
    monkeypatch.setenv("BACKEND", "dask")
    with pytest.raises(ValueError, match="BACKEND must be loky or ray, got 'dask'"):
        w.run_sweep(make_runs(marks), execute, store, CODE)
    assert computed(marks) == []


def test_compute_runs_on_one_thread_and_restores_the_number(marks):
    (run,) = make_runs(marks, 1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        result, spent = w.compute(run, execute)
        assert torch.get_num_threads() == 2
        with pytest.raises(AssertionError, match="although finished"):
            w.compute(run, must_not_run)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    (mark,) = marks.glob("*-*")
    assert mark.read_text().split()[3] == "1"
    assert result["counters"] == {"runs": 1}
    assert spent["wall_seconds"] >= 0.02
    assert 0 <= spent["core_seconds"] <= spent["wall_seconds"] + 0.1


def test_old_temporaries_are_swept_up_first(store, marks, workers):
    runs = make_runs(marks, 1)
    folder = store.run_folder(runs[0], CODE)
    folder.mkdir(parents=True)
    left = folder / ".result.json.x.tmp"
    left.touch()
    os.utime(left, (time.time() - 7200,) * 2)
    w.run_sweep(runs, execute, store, CODE)
    assert sorted(p.name for p in folder.iterdir()) == ["provenance.json", "result.json"]
