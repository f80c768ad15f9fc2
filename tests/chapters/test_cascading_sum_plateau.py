"""The source's recipe by plateaus: it counts what it spends and ends with its best weights."""

from __future__ import annotations

import inspect

import pytest
import torch

from companion.chapters.cascading_sum import plateau as module
from companion.chapters.cascading_sum.plateau import train_by_plateaus
from companion.chapters.cascading_sum.train import DigitsTraining
from trainaug.training.models import evaluate

BATCH = 50


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trained(k0, seed=1, **changes):
    short = {"patience": 2, "stop_patience": 4} | changes
    settings = DigitsTraining(data="digits", per_class=10, k0=k0, lr=0.1, **short)
    data = settings.problem(seed)
    model = settings.build(data, seed)
    noted = train_by_plateaus(model, data.train, data.val, settings, data.num_classes, seed)
    return model, data, noted


@pytest.mark.parametrize("k0", [1, 2, 4])
def test_it_counts_examples_and_updates(k0):
    _, _, noted = trained(k0)
    assert len(noted.switches) == {1: 0, 2: 1, 4: 2}[k0]
    assert noted.forward_examples % BATCH == 0
    assert noted.step == [noted.forward_examples // BATCH]
    # a mix of K uses up K examples
    assert (
        noted.examples == noted.forward_examples
        if k0 == 1
        else noted.examples > noted.forward_examples
    )


def test_it_ends_with_the_best_weights_by_validation(monkeypatch):
    seen = []
    real = module.PlateauCascade.step

    def step(self, score):
        seen.append(score)
        return real(self, score)

    monkeypatch.setattr(module.PlateauCascade, "step", step)
    model, data, noted = trained(1)
    last = evaluate(model, data.val, "val")["val/accuracy"]
    assert noted.accuracy == [last]
    # improvements below the relative threshold do not count as one
    assert last >= max(seen) * (1 - module.PlateauCascade(1).min_delta) - 1e-12


def test_every_stage_starts_from_the_best_with_the_right_rate(monkeypatch):
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
    assert calls == [(0.1, True, 0), (pytest.approx(0.1 * 0.2), True, 0)]


def test_the_number_of_updates_is_bounded():
    _, _, noted = trained(4, max_steps=5)
    assert noted.forward_examples == 5 * BATCH


def test_it_repeats_itself_and_cannot_see_the_test_part():
    first, second = (trained(2)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    names = list(inspect.signature(train_by_plateaus).parameters)
    assert not any("test" in name or "data" in name for name in names)
