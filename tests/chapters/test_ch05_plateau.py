"""The source's recipe by plateaus: it counts what it spends and ends with its best weights."""

from __future__ import annotations

import inspect

import pytest
import torch

from companion.chapters.cascading_sum import plateau as module
from companion.chapters.cascading_sum.arms import settings_of
from companion.chapters.cascading_sum.plateau import train_by_plateaus
from companion.chapters.cascading_sum.problems import make_model, problem
from companion.chapters.cascading_sum.training import BATCH
from trainaug.training.models import evaluate


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", {"patience": 2, "stop_patience": 4})


def trained(k0, seed=1):
    data = problem("digits", 10, seed)
    model = make_model("conv", data, seed)
    settings = settings_of("digits_10_source1")[0] | {"k0": k0, "lr": 0.1}
    found = train_by_plateaus(model, data.train, data.val, settings, data.num_classes, seed)
    return model, data, found


@pytest.mark.parametrize("k0", [1, 2, 4])
def test_it_counts_examples_and_updates(short, k0):
    _, _, found = trained(k0)
    assert len(found.switches) == {1: 0, 2: 1, 4: 2}[k0]
    assert found.forward_examples % BATCH == 0
    assert found.step == [found.forward_examples // BATCH]
    # a mix of K uses up K examples
    assert (
        found.examples == found.forward_examples
        if k0 == 1
        else found.examples > found.forward_examples
    )


def test_it_ends_with_the_best_weights_by_validation(short, monkeypatch):
    seen = []
    real = module.PlateauCascade.step

    def step(self, score):
        seen.append(score)
        return real(self, score)

    monkeypatch.setattr(module.PlateauCascade, "step", step)
    model, data, found = trained(1)
    last = evaluate(model, data.val, "val")["val/accuracy"]
    assert found.accuracy == [last]
    # improvements below the relative threshold do not count as one
    assert last >= max(seen) * (1 - module.PlateauCascade(1).min_delta) - 1e-12


def test_every_stage_starts_from_the_best_with_the_right_rate(short, monkeypatch):
    calls = []
    real = module.begin_stage

    def begin(model, optimizer, **options):
        real(model, optimizer, **options)
        same = [
            torch.equal(a, b)
            for a, b in zip(model.state_dict().values(), options["weights"].values(), strict=True)
        ]
        calls.append((options["lr"], all(same), len(optimizer.state)))

    monkeypatch.setattr(module, "begin_stage", begin)
    trained(4)
    assert calls == [(0.1, True, 0), (pytest.approx(0.1 * module.LAST_RATE), True, 0)]


def test_the_number_of_updates_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "MAX_STEPS", 5)
    _, _, found = trained(4)
    assert found.forward_examples == 5 * BATCH


def test_it_repeats_itself_and_cannot_see_the_test_part(short):
    first, second = (trained(2)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    names = list(inspect.signature(train_by_plateaus).parameters)
    assert names == ["model", "train_part", "val_part", "settings", "num_classes", "seed"]
