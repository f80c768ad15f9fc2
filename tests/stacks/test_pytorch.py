"""The page on plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from stack_pages import run
from torch.utils.data import DataLoader


def test_a_crash_loses_nothing_and_repeats_nothing():
    names = run("pytorch", "Workers, feedback, and going on after a crash")
    rows = [row for batch in names["trained"] for row in batch]
    counts = names["sampler"].active_counts
    assert len(counts) == 4
    assert min(counts) < 256
    for count, epoch in zip(counts, torch.tensor(rows).split(counts), strict=True):
        assert len(epoch.unique()) == count


def test_a_stateful_loader_resumes_exactly():
    names = run("pytorch", "A loader that keeps the state itself")
    assert sorted(names["seen"]) == list(range(64))


def test_accumulation_counts_as_training():
    names = run("pytorch", "The batch that comes next, chosen by the model")
    assert names["sampler"].emitted == 8
    assert {int(state["step"]) for state in names["optimizer"].state.values()} == {4}
    assert names["scorer"].backward_rows > 0


def test_a_loader_with_workers_is_refused_by_a_sampler_that_asks_the_model():
    names = run("pytorch", "The batch that comes next, chosen by the model")
    loader = DataLoader(names["data"], sampler=names["sampler"], batch_size=None, num_workers=1)
    with pytest.raises(RuntimeError, match="num_workers=0"):
        list(loader)


def test_the_loop_of_this_library_learns():
    names = run("pytorch", "Strata, mixes and attacks in the loop of this library")
    history = names["history"]
    assert history.steps == 16
    assert names["mix"].num_groups == 1
    assert history.losses[-1] < history.losses[0]
