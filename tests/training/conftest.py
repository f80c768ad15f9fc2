"""Fashion-MNIST in small pieces, one thread, and a guard around every global random state."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from trainaug.data.fashion_mnist import fashion_mnist_tensors
from trainaug.data.indexed import IndexedDataset
from trainaug.training.loop import History, train
from trainaug.training.models import SmallCNN
from trainaug.training.randomness import RandomBatchSampler, stream


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _global_randomness_untouched() -> Iterator[None]:
    """Nothing in this folder may draw from, or seed, a global generator."""
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    yield
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]
    assert repr(before[2]) == repr(after[2])


def _first(split: str, count: int) -> IndexedDataset:
    full = fashion_mnist_tensors(split)  # type: ignore[arg-type]
    return IndexedDataset(full.x[:count].clone(), full.y[:count].clone())


@pytest.fixture(scope="session")
def train_set() -> IndexedDataset:
    return _first("train", 1500)


@pytest.fixture(scope="session")
def val_set() -> IndexedDataset:
    return _first("val", 1000)


@pytest.fixture(scope="session")
def tiny_set(train_set: IndexedDataset) -> IndexedDataset:
    return IndexedDataset(train_set.x[:96].clone(), train_set.y[:96].clone())


Run = Callable[..., tuple[torch.nn.Module, History]]


@pytest.fixture
def run() -> Run:
    """Train a SmallCNN, or ``model``, from one seed; options as in ``train``."""

    def run_it(
        dataset: Any, *, seed: int = 0, model: torch.nn.Module | None = None, **options: Any
    ) -> tuple[torch.nn.Module, History]:
        model = SmallCNN(10, stream(seed, "init")) if model is None else model
        if "batch_sampler" not in options:
            order = stream(seed, "order")
            options["batch_sampler"] = RandomBatchSampler(len(dataset), 32, order)
        options.setdefault("criterion", torch.nn.CrossEntropyLoss(reduction="none"))
        make_optimizer = options.pop(
            "make_optimizer", lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)
        )
        if "max_steps" not in options:
            options.setdefault("num_epochs", 1)
        make_scheduler = options.pop("make_scheduler", None)
        optimizer = make_optimizer(model.parameters())
        if make_scheduler is not None:
            options["scheduler"] = make_scheduler(optimizer)
        sampler, criterion = options.pop("batch_sampler"), options.pop("criterion")
        return model, train(model, dataset, sampler, criterion, optimizer, **options)

    return run_it
