"""The default generator: follows the global seed, leaves the global state alone."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from trainaug.randomness import default_generator


@pytest.fixture(autouse=True)
def _global_state_kept():
    with torch.random.fork_rng(devices=[]):
        yield


def test_a_given_generator_is_returned_as_it_is():
    given = torch.Generator().manual_seed(5)
    before = given.get_state()
    assert default_generator(given, "meta") is given
    assert torch.equal(given.get_state(), before)


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1, 2**64 - 1])
def test_the_default_follows_the_global_seed_and_leaves_it_alone(seed):
    torch.manual_seed(seed)
    torch.rand(3)  # where the global generator stands makes no difference
    before = torch.get_rng_state()
    drawn = [torch.rand(4, generator=default_generator(None)) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*drawn)
    assert torch.equal(drawn[0], torch.rand(4, generator=torch.Generator().manual_seed(seed)))


def test_the_default_draws_on_the_cpu_inside_another_default_device():
    with torch.device("meta"):
        assert default_generator(None).device.type == "cpu"


class _Draws(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, _):
        return default_generator(None).initial_seed()


def test_workers_differ_and_epochs_too():
    loader = DataLoader(_Draws(), num_workers=2, multiprocessing_context="fork", collate_fn=list)
    seeds = [seed for _ in range(2) for (seed,) in loader]
    assert len(set(seeds)) == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_on_cuda_the_default_draws_there():
    torch.manual_seed(3)
    generator = default_generator(None, "cuda")
    assert generator.device.type == "cuda"
    assert generator.initial_seed() == 3
