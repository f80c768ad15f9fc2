"""Gathering embeddings over real processes: the gradient is that of one process."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainaug.methods.hard_negatives import MaxOfHinges, SumOfHinges, cosine_scores, group_mask
from trainaug.training.devices import all_gather_with_grad
from trainaug.training.randomness import initialise, stream

RANKS, ROWS = 2, 5
SECONDS = 60  # a rank that waits longer fails, and with it the test
LOSSES = {"sum": SumOfHinges, "max": MaxOfHinges}
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}  # other orders of summation
GROUPS = torch.tensor([0, 0, 1, 2, 3, 1, 4, 5, 5, 0])  # some groups are in both ranks


class Encoders(nn.Module):
    """A linear encoder of pictures and one of captions."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        with torch.device("meta"):
            self.pictures, self.captions = nn.Linear(6, 4), nn.Linear(3, 4)
        initialise(self, stream(0, "init"))
        self.to(dtype)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.pictures(x), self.captions(y)


def batch(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    draws = torch.randn(RANKS * ROWS, 9, generator=stream(0, "measure"), dtype=torch.float64)
    return draws[:, :6].to(dtype), draws[:, 6:].to(dtype)


def loss_of(name: str, pictures: Tensor, captions: Tensor) -> Tensor:
    criterion = LOSSES[name](reduction="mean")
    return criterion(cosine_scores(pictures, captions), group_mask(GROUPS))


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters()]


def naive_gather(x: Tensor) -> Tensor:
    """Gather as people first write it: only the own rows carry gradients."""
    rows = [torch.empty_like(x) for _ in range(RANKS)]
    dist.all_gather(rows, x.detach())
    rows[dist.get_rank()] = x
    return torch.cat(rows)


def averaged(name: str, gather, dtype: torch.dtype) -> list[Tensor]:
    """Gradients of one rank, averaged over the ranks by hand."""
    model, own_rows = Encoders(dtype), slice(ROWS * dist.get_rank(), ROWS * (dist.get_rank() + 1))
    embeddings = model(*(part[own_rows] for part in batch(dtype)))
    loss_of(name, *map(gather, embeddings)).backward()
    actual = gradients(model)
    for gradient in actual:
        dist.all_reduce(gradient)
    return [gradient / RANKS for gradient in actual]


def by_library(name: str, dtype: torch.dtype) -> list[Tensor]:
    """The same by `DistributedDataParallel`."""
    model, own_rows = Encoders(dtype), slice(ROWS * dist.get_rank(), ROWS * (dist.get_rank() + 1))
    parallel = DistributedDataParallel(model)  # by name: its hooks must outlive the forward pass
    embeddings = parallel(*(part[own_rows] for part in batch(dtype)))
    loss_of(name, *map(all_gather_with_grad, embeddings)).backward()
    return gradients(model)


def refusal(x: Tensor) -> str:
    try:
        all_gather_with_grad(x)
    except ValueError as error:
        return str(error)
    return "accepted"


def work(rank: int, folder: str) -> None:
    """Run on one rank: write everything that the tests ask for."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(seconds=SECONDS),
    )
    actual: dict = {}
    for name in LOSSES:
        for dtype in TOLERANCE:
            actual["with gradients", name, dtype] = averaged(name, all_gather_with_grad, dtype)
            actual["library", name, dtype] = by_library(name, dtype)
            actual["naive", name, dtype] = averaged(name, naive_gather, dtype)
    rows = torch.arange(24.0).view(2, 4, 3) + 100 * rank
    actual["gathered"] = all_gather_with_grad(rows.transpose(1, 2))  # not contiguous
    actual["other rows"] = refusal(torch.zeros(3 + rank, 2))
    actual["other width"] = refusal(torch.zeros(3, 2 + rank))
    torch.save(actual, Path(folder) / f"{rank}.pt")
    dist.barrier()  # a rank that leaves first would break the other's last exchange
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads may abort the interpreter's own way out; all is written by now


@pytest.fixture(scope="module")
def actual(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each rank found."""
    folder = tmp_path_factory.mktemp("ranks")
    context = mp.spawn(work, args=(str(folder),), nprocs=RANKS, join=False)
    deadline = time.monotonic() + SECONDS
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < deadline, f"the ranks are not done after {SECONDS} s"
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
    torch.serialization.add_safe_globals([torch.float32, torch.float64])
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


def whole(name: str, dtype: torch.dtype) -> list[Tensor]:
    model = Encoders(dtype)
    loss_of(name, *map(all_gather_with_grad, model(*batch(dtype)))).backward()
    return gradients(model)


def distance(a: list[Tensor], b: list[Tensor]) -> float:
    """Largest difference as a share of the largest entry of ``b``."""
    left, right = (torch.cat([t.flatten() for t in tensors]) for tensors in (a, b))
    return float((left - right).abs().max() / right.abs().max())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", ["with gradients", "library"])
def test_averaged_gradients_are_those_of_one_process(actual, kind, name, dtype):
    expected = whole(name, dtype)
    assert min(float(g.abs().max()) for g in expected) > 0.01  # every parameter is learnt
    for rank in actual:
        assert rank[kind, name, dtype][0].dtype == dtype
        assert distance(rank[kind, name, dtype], expected) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_a_gather_without_gradients_is_noticed(actual, name, dtype):
    expected = whole(name, dtype)
    assert distance(actual[0]["naive", name, dtype], expected) > 0.1
    # each rank's part is missing on the others: 1/R of the gradient is left
    part = [gradient / RANKS for gradient in expected]
    assert distance(actual[0]["naive", name, dtype], part) <= TOLERANCE[dtype]


def test_rows_come_in_rank_order(actual):
    rows = torch.arange(24.0).view(2, 4, 3).transpose(1, 2)
    for rank in actual:
        assert torch.equal(rank["gathered"], torch.cat([rows, rows + 100]))


def test_different_sizes_raise_on_every_rank_with_the_values(actual):
    for rank in actual:
        assert "equally many rows" in rank["other rows"]
        assert "[[3, 6], [4, 8]]" in rank["other rows"]
        assert "[[3, 6], [3, 9]]" in rank["other width"]


def test_without_a_group_it_is_the_identity(same_inside_meta):
    x = torch.ones(3, 2, requires_grad=True)
    assert not dist.is_initialized()
    assert all_gather_with_grad(x) is x
    same_inside_meta(all_gather_with_grad, torch.ones(3, 2))
    with pytest.raises(ValueError, match="got a scalar"):
        all_gather_with_grad(torch.tensor(1.0))


def test_with_one_rank_it_is_the_identity(tmp_path):
    x = torch.ones(3, 2)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{tmp_path}/meeting",
        rank=0,
        world_size=1,
        timeout=timedelta(seconds=SECONDS),
    )
    try:
        assert all_gather_with_grad(x) is x
    finally:
        dist.destroy_process_group()
