"""Which batches a trained model chooses, and that it is trained on what it was scored on."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from trainaug.methods.ordering import (
    BatchScorer,
    PerfectOrderingSampler,
    SampleLossSampler,
    example_losses,
    exponential_pacing,
    linear_pacing,
    root_pacing,
    step_pacing,
)
from trainaug.training.networks import MLP
from trainaug.training.randomness import RandomBatchSampler, stream

KINDS = ["partition", "resampled"]


class Data:
    """Two features, three classes; one read of many indices is one batch."""

    def __init__(self, n, device="cpu"):
        g = torch.Generator().manual_seed(n)
        self.y = torch.arange(n, device="cpu").remainder(3).to(device)
        self.x = torch.randn(n, 2, generator=g, device="cpu").double().to(device)
        self.x[:, 0] += 2 * self.y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, indices):
        return self.x[indices], self.y[indices], torch.tensor(indices, device="cpu")


def ordered(data, batch_size, scorer, *, seed=0, **options):
    generators = {"generator": stream(seed, "order")}
    generators["candidate_generator"] = stream(seed, "candidates")
    return PerfectOrderingSampler(data, batch_size, scorer=scorer, **generators, **options)


def by_loss(data, batch_size, losses_of, *, seed=0, **options):
    g = stream(seed, "order")
    return SampleLossSampler(data, batch_size, losses_of=losses_of, generator=g, **options)


def model_of(data, lr=0.1, **options):
    model = MLP(2, 5, 3, stream(0, "init")).double().to(data.x.device)
    return model, torch.optim.SGD(model.parameters(), lr, **options)


def losses_of(outputs, y):
    return F.cross_entropy(outputs, y, reduction="none")


def step(model, optimizer, data, batch):
    optimizer.zero_grad()
    losses_of(model(data.x[batch]), data.y[batch]).mean().backward()
    optimizer.step()


@pytest.mark.oracle("ord.P11")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [12, 14])
def test_what_is_scored_is_what_is_trained_on(n, kind):
    data, seen = Data(n), []

    def keep(x, y, mask):
        seen.append((x, y, mask))
        return torch.arange(len(x)).remainder(2).double()  # the second offer

    for batch in ordered(data, 4, keep, num_candidates=3, candidates=kind):
        if seen:
            x, y, mask = seen.pop()
            kept = slice(None) if mask is None else mask[1]
            assert torch.equal(x[1][kept], data[batch][0])
            assert torch.equal(y[1][kept], data[batch][1])


@pytest.mark.oracle("ord.P20")
@pytest.mark.parametrize("n", [30, 32])
@pytest.mark.parametrize(("score", "last"), [("min_loss", 1), ("max_loss", 0), ("delta_abs", 0)])
def test_a_batch_with_wrong_labels_is_the_hardest(score, last, n):
    data = Data(n)
    data.x[:, 0] += 8 * data.y
    model, optimizer = model_of(data)
    for _ in range(300):
        step(model, optimizer, data, list(range(n)))
    partition = list(RandomBatchSampler(n, 6, stream(0, "order")))
    data.y[partition[2]] = (data.y[partition[2]] + 1) % 3
    optimizer.param_groups[0]["lr"] = 1e-4  # no trial step goes too far
    scorer = BatchScorer(score, model, losses_of, optimizer=optimizer)
    for seed in range(3):
        generators = {"generator": stream(0, "order"), "candidate_generator": stream(seed, "c")}
        batches = list(
            PerfectOrderingSampler(
                data, 6, scorer=lambda *b: scorer(*b), num_candidates=99, **generators
            )
        )
        assert batches[-last] == partition[2]
        assert sorted(batches) == sorted(partition)


@pytest.mark.oracle("ord.P16")
def test_batches_sorted_by_loss_can_hold_a_single_class():
    data = Data(48)
    data.x[data.y == 0, 0] -= 6  # far from the other two, so its losses are the smallest
    model, optimizer = model_of(data)
    for _ in range(200):
        step(model, optimizer, data, list(range(48)))

    def entropies(batches):
        shares = [torch.bincount(data.y[batch], minlength=3) / len(batch) for batch in batches]
        return torch.stack([torch.special.entr(share).sum() for share in shares])

    def present(indices):
        return example_losses(model, losses_of, data.x[indices], data.y[indices])

    for descending in (False, True):
        batches = list(by_loss(data, 8, present, descending=descending))
        assert float(entropies(batches).min()) == 0.0
        assert entropies(batches)[-1 if descending else 0] == 0.0
    plain = entropies(RandomBatchSampler(48, 8, stream(0, "order")))
    assert float(plain.min()) > 0.5


# --- devices


def everything(x):
    """Draw on the CPU, wherever data and model live."""
    data, actual = Data(14), []
    data.x, data.y = x, data.y.to(x.device)
    model, optimizer = model_of(data)
    for kind, score in itertools.product(KINDS, ["max_loss", "delta_abs"]):
        scorer = BatchScorer(score, model, losses_of, optimizer=optimizer)
        for batch in ordered(data, 4, scorer, num_candidates=3, candidates=kind):
            step(model, optimizer, data, batch)
            actual.append([batch, model(x[:2]).detach()])

    def present(indices):
        return example_losses(model, losses_of, data.x[indices], data.y[indices])

    return [*actual, list(by_loss(data, 4, present))]


def test_inside_a_meta_context_values_are_the_same(same_inside_meta, randn):
    same_inside_meta(everything, randn(1, 14, 2))


@pytest.mark.gpu
def test_on_cuda_values_are_the_same(same_on_cuda, randn):
    same_on_cuda(everything, randn(1, 14, 2))


@pytest.mark.parametrize("progress", [float("nan"), -0.01, 1.01, float("inf")])
def test_progress_outside_a_run_is_refused(progress):
    for pacing in (
        partial(linear_pacing, a=0.5, b=0.5),
        partial(root_pacing, a=0.5, b=0.5),
        partial(step_pacing, a=0.5, b=0.5),
        partial(exponential_pacing, b=0.5, c=2.0, every=0.5),
    ):
        assert pacing(1.0) == 1.0
        with pytest.raises(ValueError, match=r"progress must be in \[0, 1\]"):
            pacing(progress)
