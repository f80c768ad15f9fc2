"""Fashion-MNIST in small pieces, one thread, and a guard around every global random state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from trainaug.data.fashion_mnist import fashion_mnist_tensors
from trainaug.data.indexed import IndexedDataset
from trainaug.training.loop import History, train
from trainaug.training.networks import SmallCNN
from trainaug.training.randomness import RandomBatchSampler, stream


@pytest.fixture(autouse=True)
def _guard(untouched_randomness: None) -> None:
    """Watch every test of this folder."""


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
