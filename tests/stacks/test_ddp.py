"""The page on several processes: two of them by torchrun, with gloo on the CPU."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from stack_pages import launch, launch_example
from torch import nn

from trainaug.methods import hard_negatives as hn

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="no gloo in this PyTorch"
)


def test_two_processes_train_as_one_on_the_whole_batch(tmp_path):
    ranks = launch_example("Hard negatives: the matrix of all ranks", tmp_path, "towers")
    torch.manual_seed(0)
    pictures, captions, groups = torch.randn(64, 20), torch.randn(64, 12), torch.arange(64) // 2
    f, g, loss = nn.Linear(20, 8), nn.Linear(12, 8), hn.MaxOfHinges(reduction="mean")
    optimizer = torch.optim.SGD([*f.parameters(), *g.parameters()], lr=0.1)
    sampler = hn.DistinctGroupBatchSampler(groups, 16, torch.Generator().manual_seed(0))
    for _ in range(2):
        for rows in sampler:
            optimizer.zero_grad()
            loss(hn.cosine_scores(f(pictures[rows]), g(captions[rows]))).backward()
            optimizer.step()
    expected = [f.weight, f.bias, g.weight, g.bias]
    for rank in ranks:
        for value, alone in zip(rank["towers"].values(), expected, strict=True):
            torch.testing.assert_close(value, alone.detach(), rtol=0, atol=1e-6)


def test_awake_is_trained_on_all_ranks(tmp_path):
    first, second = launch_example("What is learnt, on all ranks", tmp_path, "trained", "model")
    together = [a + b for a, b in zip(first["trained"], second["trained"], strict=True)]
    assert together[0] == 256
    assert min(together) < 256
    assert all(abs(a - b) <= 8 for a, b in zip(first["trained"], second["trained"], strict=True))
    for a, b in zip(first["model"].values(), second["model"].values(), strict=True):
        assert torch.equal(a, b)


def test_a_chosen_batch_is_shared(tmp_path):
    title = "The batch that comes next, chosen by the model"
    first, second = launch_example(title, tmp_path, "trained")
    assert sorted(first["trained"] + second["trained"]) == list(range(256))


def test_lightning_leaves_the_sampler_its_ranks(tmp_path):
    title = "Lightning, Accelerate and the Trainer"
    first, second = launch_example(title, tmp_path, "classifier")
    assert first["classifier"].keys() == second["classifier"].keys()
    for a, b in zip(first["classifier"].values(), second["classifier"].values(), strict=True):
        assert torch.equal(a, b)


def test_ranks_that_learn_have_equally_many_batches_of_their_own(tmp_path):
    script = Path(__file__).with_name("ddp_cells.py")
    names = ("trained", "kept", "clusters", "mixed", "furthest", "weight")
    first, second = launch(script, tmp_path, *names)
    for name in ("assisted", "ordered", "strata"):
        assert len(first["trained"][name]) == len(second["trained"][name]) > 0
    assisted = [*chain(*first["trained"]["assisted"]), *chain(*second["trained"]["assisted"])]
    assert len(assisted) == first["kept"] == second["kept"] < 2 * 160
    assert max(assisted.count(row) for row in set(assisted)) == 2  # once in each pass at most
    ordered = [*chain(*first["trained"]["ordered"]), *chain(*second["trained"]["ordered"])]
    assert sorted(ordered) == list(range(160))
    assert torch.equal(first["clusters"], second["clusters"])
    assert not torch.equal(first["mixed"], second["mixed"])
    assert all(0 < rank["furthest"] <= 0.1 + 1e-6 for rank in (first, second))
    assert torch.equal(first["weight"], second["weight"])
