"""The page on Accelerate, and the rest of its column of the table."""

from __future__ import annotations

import pytest
import torch
from stack_pages import need, run
from torch import nn
from torch.utils.data import DataLoader

from trainaug.data.indexed import IndexedDataset
from trainaug.methods import hard_negatives as hn
from trainaug.methods.attacks import pgd
from trainaug.methods.gradient_clustering import GradientClustering, StratifiedSampler
from trainaug.methods.linear_robustness import ProximalGradient, SteepestDescent
from trainaug.methods.ordering import BatchScorer, PerfectOrderingSampler


def test_awake_is_trained_in_all_epochs_with_a_prepared_loader():
    names = run("accelerate", "Examples that sleep, with a prepared loader")
    assert names["trained"] == names["sampler"].active_counts
    assert min(names["trained"]) < 256


def test_a_loader_that_is_not_prepared_serves_a_sampler_that_asks_the_model():
    names = run("accelerate", "The batch that comes next, chosen by the model")
    assert names["sampler"].emitted == len(names["sampler"]) == 8


@pytest.mark.parametrize("way", ["batch_sampler", "sampler"])
def test_a_prepared_loader_is_refused_by_name_or_known_to_lose_its_sampler(way):
    need("accelerate")
    from accelerate import Accelerator

    data = IndexedDataset(torch.randn(64, 6), torch.arange(64) % 3)
    model, criterion = nn.Linear(6, 3), nn.CrossEntropyLoss(reduction="none")
    sampler = PerfectOrderingSampler(
        data,
        8,
        scorer=BatchScorer("min_loss", model, criterion),
        generator=torch.Generator(),
        candidate_generator=torch.Generator().manual_seed(1),
    )
    accelerator = Accelerator(cpu=True)

    def train_on(loader):
        for x, y, _ in loader:
            accelerator.backward(criterion(model(x), y).mean())

    if way == "batch_sampler":
        loader = accelerator.prepare(DataLoader(data, batch_sampler=sampler))
        with pytest.raises(RuntimeError, match="Accelerate"):
            train_on(loader)
    else:  # what the page warns of
        loader = accelerator.prepare(DataLoader(data, sampler=sampler, batch_size=None))
        assert loader.sampler is not sampler
        assert [int(index) for _, _, index in loader] == list(range(64))


def test_what_the_assistant_kept_is_trained_on():
    names = run("accelerate", "Mixes and AutoAssist")
    assert names["trained"] == names["sampler"].kept < names["sampler"].scanned
    assert names["soft"].shape == (len(names["index"]), 3)
    assert bool(((names["soft"] > 0) & (names["soft"] < 1)).any())


def test_the_batch_that_a_prepared_loader_holds_is_not_lost():
    need("accelerate")
    from accelerate import Accelerator

    groups = torch.arange(64) // 2
    data, seen = IndexedDataset(torch.randn(64, 6), groups), []

    def make():
        return hn.DistinctGroupBatchSampler(groups, 16, torch.Generator().manual_seed(0))

    accelerator = Accelerator(cpu=True)
    sampler = make()
    for _, _, index in accelerator.prepare(DataLoader(data, batch_sampler=sampler)):
        seen += index.tolist()
        if len(seen) == 32:
            state = sampler.state_dict(untrained=1)
            break
    sampler = make()
    sampler.load_state_dict(state)
    for _, _, index in accelerator.prepare(DataLoader(data, batch_sampler=sampler)):
        seen += index.tolist()
    assert sorted(seen) == list(range(64))


@pytest.mark.parametrize("kind", [SteepestDescent, ProximalGradient])
def test_prepared_optimisers_step_as_they_are(kind):
    need("accelerate")
    from accelerate import Accelerator

    x, options = torch.randn(32, 6), {"lr": 0.05, "norm": "l1"}
    if kind is ProximalGradient:
        options |= {"lam": 0.01}
    ends = []
    for is_prepared in (False, True):
        line = nn.Linear(6, 1, bias=False)
        nn.init.zeros_(line.weight)
        optimizer = kind(line.parameters(), **options)
        if is_prepared:
            line, optimizer = Accelerator(cpu=True).prepare(line, optimizer)

        def closure(line=line, optimizer=optimizer):
            optimizer.zero_grad()
            loss = nn.functional.softplus(-x[:, :1].sign() * line(x)).mean()
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure)
        ends.append(line.weight.detach().clone())
    assert bool((ends[0] != 0).any())
    assert torch.equal(*ends)


def test_a_prepared_model_is_clustered_attacked_and_trained_on_its_strata():
    need("accelerate")
    from accelerate import Accelerator

    data = IndexedDataset(torch.randn(64, 6), torch.arange(64) % 3)
    groups, criterion = torch.arange(64) // 2, nn.CrossEntropyLoss(reduction="none")
    loss, sampler = hn.MaxOfHinges(reduction="mean"), StratifiedSampler(64, 16, torch.Generator())
    accelerator = Accelerator(cpu=True)
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer, loader = accelerator.prepare(
        model, optimizer, DataLoader(data, batch_sampler=sampler)
    )
    clusterings = []
    for _ in range(2):
        clustering = GradientClustering(model, criterion, 4, generator=torch.Generator())
        clusterings.append(clustering.fit(DataLoader(data, 32), num_iterations=2).assign)
        sampler.set_clusters(clusterings[-1])
        count = 0
        for x, y, index in loader:
            bounded = {
                "norm": "linf",
                "eps": 0.1,
                "steps": 2,
                "step_size": 0.1,
                "bounds": (-9.0, 9.0),
            }
            moved = pgd(model, x, y, generator=torch.Generator(), **bounded)
            assert 0 < float((moved - x).abs().max()) <= 0.1 + 1e-6
            losses = sampler.weights(index) * criterion(model(moved), y)
            scores = hn.cosine_scores(model(x), model(moved))
            optimizer.zero_grad()
            accelerator.backward(losses.mean() + loss(scores, hn.group_mask(groups[index])))
            optimizer.step()
            count += len(index)
        assert count == 64
    assert not torch.equal(*clusterings)
