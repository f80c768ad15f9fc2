"""Chapter 5: stages with restarts, and who looks at what while training."""

from __future__ import annotations

import copy
import inspect
import math
from dataclasses import replace
from typing import Any, get_type_hints

import pytest
import torch
from torch import Tensor, nn

from companion.chapters.cascading_sum import arms, problems
from companion.chapters.cascading_sum import train as training
from trainaug.data.indexed import IndexedDataset
from trainaug.methods.cascading_sum import begin_stage
from trainaug.training.loop import train
from trainaug.training.models import evaluate

pytestmark = pytest.mark.usefixtures("untouched_randomness")


@pytest.fixture(scope="module", autouse=True)
def data() -> problems.Problem:
    """Import scikit-learn before the random states are watched: that draws from Python's."""
    return problems.problem("digits", 10, 0)


ROWS = {row.name: row for row in arms.trained_arms(arms.Profile())}


def settings_for(arm: str = "erm", **changes: Any) -> training.Training:
    settings = ROWS[f"digits_10_{arm}"].settings
    assert isinstance(settings, training.Training)
    return replace(settings, **{"lr": 0.05, "steps": 24} | changes)


def trained(
    data: problems.Problem, settings: training.Training, **more: Any
) -> tuple[nn.Module, training.Trained]:
    model = problems.make_model("conv", data, 0)
    parts = model, data.train, data.val
    return model, training.train_classifier(*parts, settings, data.num_classes, 0, **more)


def same_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("arm", ["csa4_restart", "erm_restart", "csa4"])
def test_a_restart_goes_on_from_the_best_weights_without_momentum(monkeypatch, data, arm):
    """Accuracies are made up: the best of each stage is not the last."""
    made_up = {8: [0.2, 0.9, 0.9, 0.3], 16: [0.5, 0.4, 0.1, 0.6], 24: [0.7, 0.2, 0.6, 0.1]}
    plan, states, begun, rates = [v for part in made_up.values() for v in part], [], [], []

    def score(model: nn.Module, part: Any, split: str) -> dict[str, float]:
        assert part is data.val
        states.append(copy.deepcopy(model.state_dict()))
        is_after = len(states) % 5 == 0 and arm != "csa4"  # right after a restart
        return {"val/accuracy": 0.0 if is_after else plan.pop(0)}

    def begin(model: nn.Module, optimizer: Any, **options: Any) -> None:
        assert optimizer.state
        begin_stage(model, optimizer, **options)
        assert not optimizer.state
        assert {g["lr"] for g in optimizer.param_groups} == {0.05}
        begun.append(copy.deepcopy(model.state_dict()))

    def spy(*args: Any, batch_transform: Any, **rest: Any) -> Any:
        def transform(batch: Any) -> Any:
            rates.append(args[4].param_groups[0]["lr"])
            return batch_transform(batch)

        return train(*args, batch_transform=transform, **rest)

    monkeypatch.setattr(training, "evaluate", score)
    monkeypatch.setattr(training, "begin_stage", begin)
    monkeypatch.setattr(training, "train", spy)
    model, noted = trained(data, settings_for(arm, measure_every=2))
    length = 24 if arm == "csa4" else 8
    cosine = [0.025 * (1 + math.cos(math.pi * (step % length) / length)) for step in range(24)]
    assert rates == pytest.approx(cosine)
    assert noted.step == list(range(2, 25, 2))
    assert noted.accuracy == [v for part in made_up.values() for v in part]
    if arm == "csa4":
        assert (begun, noted.switches) == ([], [])
        return
    # the first of equals in stage 1, the last of stage 2, the first of stage 3
    for state, best in zip(begun, (states[1], states[5 + 3], states[10]), strict=True):
        assert same_weights(state, best)
    assert same_weights(model.state_dict(), states[10])
    for number in (4, 9, 14):  # measured right after, before any update
        assert same_weights(states[number], begun[number // 5])
    assert noted.switches == [0.0] * 3


def test_after_the_last_stage_a_restarted_model_is_as_good_as_its_best_measurement(data):
    model, noted = trained(data, settings_for("csa4_restart", lr=0.2, steps=90), curve=False)
    assert noted.step == [30, 60, 90]  # chosen by it, so measured even without a curve
    assert len(noted.switches) == 3
    assert noted.switches == noted.accuracy  # one measurement a stage
    assert noted.switches[-1] == evaluate(model, data.val, "val")["val/accuracy"]
    assert noted.examples == noted.forward_examples == 90 * 50


# --- who looks at what ----------------------------------------------------------------------------


@pytest.mark.oracle("csa.Q17")
@pytest.mark.parametrize("arm", ["constant8", "csa4_restart", "cutmix", "erm"])
def test_what_is_noted_is_clean_validation_accuracy(monkeypatch, data, arm):
    by_hand: list[float] = []

    def score(model: nn.Module, part: Any, split: str) -> dict[str, float]:
        assert part is data.val
        twin = copy.deepcopy(model).eval()
        with torch.no_grad():
            by_hand.append(float((twin(data.val.x).argmax(1) == data.val.y).double().mean()))
        return evaluate(model, part, split)

    monkeypatch.setattr(training, "evaluate", score)
    x, y = data.val.x.clone(), data.val.y.clone()
    for options, steps in (({}, [10, 20, 24]), ({"curve": False}, [24])):
        by_hand.clear()
        model, noted = trained(data, settings_for(arm, measure_every=10), **options)
        if arm == "csa4_restart":
            assert noted.step == [8, 16, 24]
            assert noted.accuracy == pytest.approx(by_hand[::2])
            assert noted.switches == pytest.approx(by_hand[1::2])
        else:
            assert noted.step == steps
            assert noted.accuracy == pytest.approx(by_hand)
            assert noted.switches == []
        final = evaluate(model, data.val, "val")["val/accuracy"]
        assert final == (noted.switches or noted.accuracy)[-1]
    assert torch.equal(x, data.val.x)
    assert torch.equal(y, data.val.y)


@pytest.mark.oracle("csa.Q21")
def test_training_takes_a_training_and_a_validation_part_and_no_other(data):
    parameters = inspect.signature(training.train_classifier).parameters
    assert not any("test" in name or "data" in name for name in parameters)
    hints = get_type_hints(training.train_classifier)
    assert hints["train_part"] is hints["val_part"] is IndexedDataset
    assert problems.Problem not in hints.values()
    model, settings = problems.make_model("conv", data, 0), settings_for()
    for parts in ((data, data.val), (data.train, data)):
        with pytest.raises((TypeError, AttributeError)):
            training.train_classifier(model, *parts, settings, 10, 0)


@pytest.mark.parametrize("arm", ["csa4", "erm_restart"])
def test_observers_see_every_step_and_change_nothing(data, arm):
    seen: list[tuple[int, Tensor, Tensor]] = []

    def meddle(model: nn.Module, step: int, index: Tensor, losses: Tensor) -> None:
        seen.append((step, index, losses.clone()))
        with torch.no_grad():
            for p in model.eval().parameters():
                p.zero_()
        losses.zero_()
        torch.rand(3)

    model, _ = trained(data, settings_for(arm), observers=[meddle])
    plain, _ = trained(data, settings_for(arm))
    assert same_weights(model.state_dict(), plain.state_dict())
    steps = list(range(24)) if arm == "csa4" else 3 * list(range(8))
    assert [step for step, *_ in seen] == steps
    assert all(index.shape == losses.shape == (50,) for _, index, losses in seen)
    assert all(bool((losses > 0).all()) for *_, losses in seen)


def test_stages_that_leave_no_step_are_refused(data):
    with pytest.raises(ValueError, match="leave a stage"):
        trained(data, settings_for("csa8", steps=2))
    with pytest.raises(ValueError, match="add up to 1"):
        trained(data, settings_for(stages=((2, 0.5), (1, 0.4))))
