"""A sweep on a real Ray cluster of this machine: the same bytes, failures named, no child left."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import psutil
import pytest
from stack_pages import need

from companion.evidence.store import Run, Store
from companion.lab import sweep
from companion.lab.chapters import load_chapter

CODE = "c" * 64
CHAPTERS = "companion.lab.chapters"
LAB_TESTS = Path(__file__).parents[1] / "lab"


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    need("ray")
    import ray

    yield
    ray.shutdown()


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The toy chapter of the lab's tests, which children find as well."""
    monkeypatch.syspath_prepend(str(LAB_TESTS))
    path = [str(LAB_TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    import toy_runs

    return toy_runs


def bytes_of(store: Store) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in store.folder.glob("*/*/result.json")}


def test_runs_of_a_chapter_have_the_bytes_of_the_local_run(tmp_path, monkeypatch):
    plan: list[Run] = load_chapter("06").plan("quick")
    runs = sorted((run for run in plan if run.deterministic), key=lambda r: r.predicted_seconds)[:3]
    stores = {backend: Store("quick", tmp_path / backend) for backend in ("processes", "ray")}
    for backend, store in stores.items():
        monkeypatch.setenv("BACKEND", backend)
        sweep.run_sweep(runs, CHAPTERS, store, CODE)
    assert len(bytes_of(stores["ray"])) == len(runs)
    assert bytes_of(stores["ray"]) == bytes_of(stores["processes"])
    records = list(sweep.recompute([(CHAPTERS, run) for run in runs]))
    assert [record["arm"] for record in records] == [run.arm for run in runs]


@pytest.mark.parametrize("kind", ["fails", "killed", "exits"])
def test_a_failure_is_named_and_the_others_are_kept(kind, toy, tmp_path, monkeypatch):
    marks = tmp_path / "marks"
    marks.mkdir()
    (marks / "broken").touch()
    monkeypatch.setenv("BACKEND", "ray")
    monkeypatch.setenv("TOY_KIND", kind)
    store, runs = Store("quick", tmp_path / "runs"), toy.make_runs(marks, 4)
    with pytest.raises(sweep.SweepFailedError, match="1 of 4 runs failed"):
        sweep.run_sweep(runs, "toy_runs", store, CODE)
    assert len(bytes_of(store)) == 3
    (marks / "broken").unlink()
    sweep.run_sweep(runs, "toy_runs", store, CODE)
    assert len(bytes_of(store)) == 4


def test_no_child_outlives_its_task(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("BACKEND", "ray")
    (tmp_path / "marks").mkdir()
    runs = toy.make_runs(tmp_path / "marks", 2)
    sweep.run_sweep(runs, "toy_runs", Store("quick", tmp_path / "runs"), CODE)
    assert [p for p in psutil.process_iter(["cmdline"]) if is_child(p.info["cmdline"])] == []


def is_child(command: list[str] | None) -> bool:
    return command is not None and command[:3] == [sys.executable, "-m", "companion.lab.worker"]
