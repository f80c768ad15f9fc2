"""The pages on other stacks: every example runs as it stands, and does what the page says."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from pages import FOLDER, namespaces, packages, run_on_two_ranks, sources

PAGES = sorted(path.name for path in FOLDER.glob("*.md") if path.name != "index.md")
ON_RANKS = "ddp.md"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))  # of nobody else


@pytest.mark.parametrize("name", [name for name in PAGES if name != ON_RANKS])
def test_the_examples_of_a_page_run_as_they_stand(name, needs):
    needs(*packages(name))
    if name == "compile.md" and shutil.which("g++") is None:
        pytest.skip("needs a C++ compiler")
    assert len(namespaces(name)) > 1


@pytest.mark.parametrize("number", range(2))
def test_the_scripts_for_several_processes_run_as_they_stand(number, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(sources(ON_RANKS)[number], encoding="utf-8")
    printed = run_on_two_ranks(script)
    assert {"rank 0", "rank 1"} <= set(re.findall(r"rank \d", printed))
    assert len(sources(ON_RANKS)) == 2


def test_every_page_is_linked_and_says_what_each_example_needs():
    index = (FOLDER / "index.md").read_text(encoding="utf-8")
    toctree = re.search(r"```\{toctree\}\n(.*?)```", index, re.DOTALL)
    assert toctree is not None
    assert {f"{line}.md" for line in toctree[1].split() if not line.startswith(":")} >= set(PAGES)
    for name in PAGES:
        text = (FOLDER / name).read_text(encoding="utf-8")
        examples = text.split("```python\n")[:-1]
        assert all(re.search(r"Needs `pip install [^`]+`[^\n]*\n\n$", above) for above in examples)


def test_under_accelerate_every_example_that_was_awake_is_trained_on(needs):
    needs(*packages("accelerate.md"))
    first, second, third = namespaces("accelerate.md")
    assert first["trained"] == first["sampler"].active_counts
    assert min(first["trained"]) < 256
    assert second["sampler"].emitted == 8
    assert third["trained"] == third["sampler"].kept < third["sampler"].scanned == 512


def test_in_plain_loops_a_crash_loses_nothing(needs):
    needs(*packages("pytorch.md"))
    first, second, third, _ = namespaces("pytorch.md")
    flat = [index for batch in first["trained"] for index in batch]
    counts = first["sampler"].active_counts
    for count in counts:  # epoch after epoch, each example that was awake once
        epoch, flat = flat[:count], flat[count:]
        assert len(set(epoch)) == count
    assert flat == []
    assert min(counts) < 256
    assert sorted(second["seen"]) == list(range(64))
    assert third["sampler"].emitted == 8


def test_under_the_trainer_a_run_has_the_updates_it_planned(needs):
    needs(*packages("trainer.md"))
    _, sleeping, ordered, hardened, _ = namespaces("trainer.md")
    assert sleeping["state"].global_step == len(sleeping["trained"]) == 40
    counts = sleeping["sampler"].active_counts
    assert sum(counts[:-1]) <= sum(sleeping["trained"]) <= sum(counts)
    assert min(counts) < 128
    assert ordered["sampler"].emitted == 16
    assert hardened["trainer"].state.global_step == 8


def test_compiled_steps_train_and_compiled_models_are_scored():
    if shutil.which("g++") is None:
        pytest.skip("needs a C++ compiler")
    first, second = namespaces("compile.md")
    assert first["step"] == 3
    assert bool(first["loss"].isfinite())
    assert second["sampler"].emitted == 3
    assert all(bool(p.isfinite().all()) for p in second["model"].parameters())
    assert isinstance(second["model"], torch.nn.Module)
