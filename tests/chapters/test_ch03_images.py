"""Chapter 3: the Boss on pictures; what each arm draws, spends and reports."""

from __future__ import annotations

import copy
import dataclasses
import math
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from companion.chapters.autoassist import images, problems
from companion.chapters.autoassist.arms import IMAGES
from companion.chapters.autoassist.images import Trained, count_macs, train_images
from companion.chapters.autoassist.problems import losses_of, make_model, pictures
from trainaug.methods.autoassist import AssistantTrainer, AssistedSampler, SelfPacedWeights
from trainaug.training.convnet import StridedConvNet, TwoConvNet
from trainaug.training.models import MLP
from trainaug.training.randomness import stream

pytestmark = pytest.mark.usefixtures("untouched_randomness")

N, BOSS = 300, 559_168  # examples; multiply-adds of the Boss, by hand below
SMALL = IMAGES | {"num_train": N, "batch": 16, "steps": 60, "lr": 0.02}
SAMPLERS = ("uniform", "assist", "selective", "pruned", "selfpaced", "screener")


@pytest.fixture(scope="module", autouse=True)
def _small() -> Any:
    """Few held-out pictures, looks every ten steps, judgements every twenty."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(problems.HELD_OUT, "fashion", (200, 250))
        patch.setattr(images, "EVERY", 10)
        patch.setattr(images, "PROBE_EVERY", 20)
        pictures("fashion", 0, 10)
        yield


def run(seed: int = 5, keep_rates: Any = None, **changes: Any) -> SimpleNamespace:
    """Train an arm and note its batches and what was asked of whom."""
    seen = SimpleNamespace(batches=[], forwards=0, at_looks=[], evaluated=[], judged=[])
    real = {name: getattr(images, name) for name in ("train", "evaluate", "_judge")}
    real_losses = images._present_losses

    def train(model: nn.Module, *given: Any, feedback: Any, **more: Any) -> Any:
        seen.initial = [p.detach().clone() for p in model.parameters()]

        def noting(index: Any, losses: Any) -> None:
            seen.batches.append(index.tolist())
            feedback(index, losses)

        return real["train"](model, *given, feedback=noting, **more)

    def evaluate(model: nn.Module, part: Any, split: str) -> Any:
        seen.evaluated.append((split, len(part)))
        seen.at_looks.append(seen.forwards)
        return real["evaluate"](model, part, split)

    def present(model: nn.Module, data: Any) -> Any:
        losses = real_losses(model, data)

        def counted(index: Any) -> Any:
            seen.forwards += len(index)
            return losses(index)

        return counted

    def judge(*given: Any) -> Any:
        seen.judged.append(given)
        return real["_judge"](*given)

    with pytest.MonkeyPatch.context() as patch:
        for name, stand_in in (("train", train), ("evaluate", evaluate), ("_judge", judge)):
            patch.setattr(images, name, stand_in)
        patch.setattr(images, "_present_losses", present)
        seen.found = train_images(SMALL | changes, seed, keep_rates=keep_rates)
    return seen


@pytest.fixture(scope="module")
def arms() -> dict[str, SimpleNamespace]:
    return {name: run(sampler=name) for name in SAMPLERS}


def scanned_by_hand(batches: list[list[int]], seed: int) -> list[int]:
    """Examples gone through until each batch, read off the order of the passes."""
    order, passes, last, found = stream(seed, "order"), -1, N, []
    places: dict[int, int] = {}
    for batch in batches:
        at = [places.get(i, -1) for i in batch]
        if min(at) <= last or at != sorted(at):  # else it goes on
            passes += 1
            rows = torch.randperm(N, generator=order).tolist()
            places = {row: place for place, row in enumerate(rows)}
            at = [places[i] for i in batch]
            assert at == sorted(at)
        last = at[-1]
        found.append(N * (passes + 1) if len(batch) < SMALL["batch"] else N * passes + last + 1)
    return found


@pytest.mark.oracle("aa.11")
@pytest.mark.parametrize("sampler", [*SAMPLERS, "random"])
def test_costs_by_hand(arms, sampler):
    seen = arms[sampler] if sampler != "random" else run(sampler="random", keep_rates=[0.5])
    looks = range(10, 61, 10)
    examples = [sum(map(len, seen.batches[:step])) for step in looks]
    scanned = scanned_by_hand(seen.batches, 5)
    passed = [scanned[step - 1] for step in looks]
    extra = [0.0] * 6
    if sampler == "assist":  # a guess each, and twice as much to learn
        extra = [784 * (s + 2 * e) / BOSS for s, e in zip(passed, examples, strict=True)]
    elif sampler == "selective":
        extra = [float(s) for s in passed]  # of each at least one forward pass was made
        assert all(n >= s for n, s in zip(seen.at_looks[:6], passed, strict=True))
    elif sampler == "screener":  # to weigh, and a forward and backward pass to learn
        extra = [4 * e * 282_304 / BOSS for e in examples]
    assert seen.found.examples == examples
    assert seen.found.scanned == passed
    expected = [3 * e + more for e, more in zip(examples, extra, strict=True)]
    assert seen.found.work == pytest.approx(expected, rel=1e-12)
    assert len(seen.found.accuracy) == 6
    assert len(seen.batches) == 60
    if sampler in ("uniform", "selfpaced", "screener"):
        assert passed == examples
    else:
        assert seen.found.metrics["kept"] == pytest.approx(examples[-1] / passed[-1], rel=1e-12)
        assert passed[-1] > examples[-1]
    if sampler == "assist":
        share = extra[-1] / (3 * examples[-1])
        assert seen.found.metrics["assistant_share"] == pytest.approx(share, rel=1e-12)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_equal_seeds_give_equal_runs(arms, sampler):
    again, found = run(sampler=sampler, steps=20), arms[sampler]
    assert again.batches == found.batches[:20]
    for name in ("accuracy", "examples", "work", "scanned"):
        assert getattr(again.found, name) == getattr(found.found, name)[:2]
    assert run(seed=6, sampler=sampler, steps=5).batches != found.batches[:5]


def test_all_arms_start_from_the_same_weights_and_examples(arms):
    for name in SAMPLERS:
        for one, other in zip(arms[name].initial, arms["uniform"].initial, strict=True):
            assert torch.equal(one, other)
    for name in ("selfpaced", "screener"):
        assert arms[name].batches == arms["uniform"].batches


def test_an_assistant_that_lets_all_through_changes_nothing(arms):
    found, uniform = run(sampler="assist", base=1.0), arms["uniform"]
    assert found.batches == uniform.batches
    for name in ("accuracy", "examples", "scanned"):
        assert getattr(found.found, name) == getattr(uniform.found, name)
    for name, value in uniform.found.metrics.items():
        assert found.found.metrics[name] == value
    assert all(a > b for a, b in zip(found.found.work, uniform.found.work, strict=True))


def sampler_of(predict: Any) -> AssistedSampler:
    return AssistedSampler(64, 4, predict, stream(0, "order"), stream(0, "keep"), base=0.0)


@pytest.mark.parametrize("ahead", [0, 1, 3, 12])
def test_batches_are_decided_so_many_updates_ahead_and_used_in_order(ahead):
    updates, passes = 0, sampler_of(lambda index: torch.full((len(index),), 0.4))
    expected = [batch for _ in range(6) for batch in passes]
    again = sampler_of(lambda index: torch.full((len(index),), 0.4))
    assert list(islice(images._decide_ahead(again, ahead), len(expected))) == expected
    # who passes tells the number of updates then; a pass has about five batches
    dated = sampler_of(lambda index: (index % 4 == updates % 4).float())
    for number, batch in enumerate(islice(images._decide_ahead(dated, ahead), 24)):
        assert {i % 4 for i in batch} == {max(0, number - ahead) % 4}
        updates += 1
    assert len(dated.keep_rates) >= 4


def test_deciding_ahead_matters_only_to_an_assistant_that_learns(arms, monkeypatch):
    found, at_once = run(sampler="assist", ahead=20), arms["assist"]
    assert found.batches[:1] == at_once.batches[:1]
    assert found.batches != at_once.batches
    constant = lambda self, index: torch.full((len(index),), 0.2)  # noqa: E731
    monkeypatch.setattr(AssistantTrainer, "predict", constant)
    found, at_once = (run(sampler="assist", ahead=ahead) for ahead in (20, 0))
    assert found.batches == at_once.batches
    assert found.found.accuracy == at_once.found.accuracy
    assert found.found.scanned[:-2] == at_once.found.scanned[2:]  # looks are ten updates apart


def test_self_paced_weights_have_the_epochs_of_the_settings(monkeypatch):
    made: list[Any] = []

    class Noted(SelfPacedWeights):
        def __init__(self, *given: Any, **more: Any) -> None:
            super().__init__(*given, **more)
            made.append(self)

    monkeypatch.setattr(images, "SelfPacedWeights", Noted)
    for epochs in (3, IMAGES["pace_epochs"]):
        run(sampler="selfpaced", steps=1, pace_epochs=epochs)
        assert (made[-1].epochs, made[-1].epoch_steps) == (epochs, 19)


def test_the_random_control_skips_as_many_in_each_pass(arms):
    rates = arms["assist"].found.keep_rates
    assert all(0.3 <= rate <= 1 for rate in rates)
    given = [1.0, 0.5, 0.25]
    for kept in (given, rates):
        found = run(sampler="random", keep_rates=kept).found.keep_rates[:-1]  # whole passes
        wanted = [*kept, *[kept[-1]] * len(found)]
        for rate, of in zip(found, wanted, strict=False):
            assert abs(rate - of) < 4 * math.sqrt(of * (1 - of) / N) + 1e-12
        assert len(found) >= 3
    with pytest.raises(ValueError, match="need rates"):
        run(sampler="random")
    with pytest.raises(ValueError, match="unknown sampler 'sideways'"):
        run(sampler="sideways")


def test_reached_averages_the_last_five_looks():
    found = Trained(accuracy=[0.0, 1.0, 1.0, 0.25, 0.5, 0.75, 1.0, 0.0])
    means = [0.55, 0.7, 0.7, 0.5]  # of the looks 4 to 7
    for target in (0.5, 0.6, 0.7):
        expected = next(k for k, mean in enumerate(means, 4) if mean >= target)
        assert found.reached(target) == expected
    assert found.reached(0.71) is None
    assert Trained(accuracy=[1.0] * 4).reached(0.1) is None  # too few looks
    assert Trained(accuracy=[0.75] * 9).reached(0.75) == 4


def test_guesses_are_judged_by_later_losses(arms):
    judged, found = arms["assist"].judged, arms["assist"].found
    assert not arms["uniform"].judged
    assert len(judged) == len(found.auc) == 2  # at 40 and 60, of 20 and 40
    assert torch.equal(judged[1][1], judged[0][2])
    assert not torch.equal(judged[0][1], judged[0][2])
    assert not torch.equal(judged[0][0], judged[1][0])
    r, before, losses, y = judged[0]
    assert len(r) == N
    hard = (losses > losses.mean()).tolist()
    by_class = [float(before[y == c].mean()) for c in y]
    assert found.auc[0] == {
        "r": roc_auc_score(hard, r.tolist()),
        "class": pytest.approx(roc_auc_score(hard, by_class), abs=1e-3),  # rounding makes ties
        "loss": roc_auc_score(hard, before.tolist()),
    }
    assert images._judge(losses, before, losses, y)["r"] == 1.0  # a perfect guesser
    assert images._judge(-losses, before, losses, y)["r"] == 0.0
    assert images._judge(r, losses, losses, y)["loss"] == 1.0
    assert set(images._judge(r, before, torch.ones(N), y).values()) == {0.5}


def test_no_choice_of_training_looks_at_the_test_part(arms, monkeypatch):
    assert arms["assist"].evaluated == [("val", 200)] * 6 + [("test", 250)]

    def other(*given: Any, **more: Any) -> Any:
        data = pictures(*given, **more)
        return dataclasses.replace(data, test=data.val)

    monkeypatch.setattr(images, "pictures", other)
    found, expected = run(sampler="assist").found, arms["assist"].found
    for name in ("accuracy", "examples", "work", "scanned", "auc", "keep_rates"):
        assert getattr(found, name) == getattr(expected, name)
    assert found.metrics["test/accuracy"] == found.accuracy[-1]
    assert found.metrics["test/accuracy"] != expected.metrics["test/accuracy"]


@pytest.mark.oracle("aa.7")
def test_a_threshold_at_the_mean_prefers_wrong_labels():
    for sampler, steps in (("uniform", 57), ("assist", 10), ("pruned", 120), ("selective", 80)):
        seen = run(sampler=sampler, noise=0.2, steps=steps)
        wrong = pictures("fashion", 5, N, noise=0.2).wrong
        drawn = torch.tensor([i for batch in seen.batches for i in batch])
        share, of_data = float(wrong[drawn].double().mean()), float(wrong.double().mean())
        assert seen.found.metrics["wrong"] == pytest.approx(share, rel=1e-12)
        if sampler == "uniform":
            assert share == pytest.approx(of_data, rel=1e-12)  # three whole passes
        if sampler in ("pruned", "selective"):
            assert share > of_data + 0.03


@pytest.mark.oracle("aa.8")
def test_norms_estimated_anew_leave_the_model_as_it_was():
    data = pictures("fashion", 1, N)
    model = make_model("cnn", data, 0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for rows in torch.arange(N).split(50) * 3:
        optimizer.zero_grad()
        losses_of(model(data.train.x[rows]), data.train.y[rows]).mean().backward()
        optimizer.step()
    optimizer.zero_grad()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    twin = copy.deepcopy(model)  # one batch with all examples, by hand
    for norm in twin.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0
    with torch.no_grad():
        twin(data.train.x)
        anew = float((twin.eval()(data.test.x).argmax(1) == data.test.y).double().mean())
    found = []
    for mean, var in ((0.0, 1.0), (3.0, 50.0)):
        for norm in norms:
            norm.running_mean.fill_(mean)
            norm.running_var.fill_(var)
        before = {name: t.clone() for name, t in model.state_dict().items()}
        found.append(images._final(model, data))
        for name, t in model.state_dict().items():
            assert torch.equal(t, before[name])
        assert all(m.training for m in model.modules())
        assert {norm.momentum for norm in norms} == {0.1}
    assert [of["test/accuracy_norms"] for of in found] == pytest.approx([anew, anew], abs=0.005)
    assert found[0]["test/accuracy_norms"] == found[1]["test/accuracy_norms"] > 0.3
    assert found[1]["test/accuracy"] < 0.3
    with torch.no_grad():
        logits = model.eval()(data.test.x)
        confidence, guess = logits.softmax(1).max(1)
        error = 0.0
        for k in range(15):
            inside = (confidence >= k / 15) & ((confidence < (k + 1) / 15) | (k == 14))
            gap = confidence[inside].double() - (guess == data.test.y)[inside].double()
            error += abs(float(gap.sum())) / 250
        assert found[1]["test/calibration_error"] == pytest.approx(error, rel=1e-6)
        model.head.bias[0] = 3e38
    with pytest.raises(FloatingPointError, match="'test/loss': inf"):
        images._final(model, data)
    with torch.no_grad():
        model.head.bias[0] = math.nan
    with pytest.raises(FloatingPointError, match="'test/loss': nan"):
        images._final(model, data)


def test_count_macs_by_hand():
    g, x = stream(0, "init"), torch.rand(3, 1, 28, 28, generator=stream(0, "measure"))
    model = StridedConvNet(10, g)
    before = [t.clone() for t in model.state_dict().values()]
    first, second, third = 14 * 14 * 16 * 9, 7 * 7 * 32 * 16 * 9, 4 * 4 * 64 * 32 * 9
    assert count_macs(model, x) == first + second + third + 1024 * 10 == BOSS
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())
    two = 28 * 28 * 8 * 9 + 14 * 14 * 16 * 8 * 9
    assert count_macs(TwoConvNet(1, g), x) == two + 64 == 282_304
    assert count_macs(MLP(784, 5, 10, g), x) == 784 * 5 + 50
