"""Chapter 5: what is measured of a trained network, by hand; nothing changes it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion.chapters.cascading_sum import measures, problems
from companion.chapters.cascading_sum.studies import Radii
from companion.chapters.cascading_sum.train import DigitsTraining, train_classifier
from trainaug.data.corruptions import corrupt
from trainaug.data.indexed import IndexedDataset
from trainaug.methods.attacks import fgsm, pgd
from trainaug.methods.cascading_sum import SumTTA, sharpness
from trainaug.training.randomness import stream

pytestmark = pytest.mark.usefixtures("untouched_randomness")

IMAGES, SEED = 60, 3
SETTINGS = DigitsTraining(data="digits", per_class=10, steps=60, lr=0.05, images=IMAGES)
EPS = SETTINGS.eps


@pytest.fixture(scope="module", autouse=True)
def data() -> problems.Problem:
    """Import scikit-learn before the random states are watched: that draws from Python's."""
    return problems.problem("digits", 10, 0)


@pytest.fixture(scope="module")
def fitted(data) -> nn.Module:
    """Fit a small network, in train mode with gradients, as a careless caller may leave it."""
    model = problems.make_model("conv", data, 0)
    train_classifier(model, data.train, data.val, SETTINGS, 10, 0, curve=False)
    F.cross_entropy(model(data.train.x), data.train.y).backward()
    model.features[1].eval()
    return model


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((copy.deepcopy(model).eval()(x).argmax(1) == y).double().mean())


def state_of(model: nn.Module) -> list[Any]:
    tensors = [*model.state_dict().values(), *(p.grad for p in model.parameters())]
    return [t.clone() for t in tensors] + [module.training for module in model.modules()]


def unchanged(model: nn.Module, before: list[Any]) -> bool:
    pairs = zip(state_of(model), before, strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a is b for a, b in pairs)


def naive_calibration_error(logits: Tensor, y: Tensor, bins: int) -> float:
    total = 0.0
    for b in range(bins):
        hits, confidences = [], []
        for row, label in zip(logits.softmax(1).tolist(), y.tolist(), strict=True):
            if b / bins < max(row) <= (b + 1) / bins:
                hits.append(row.index(max(row)) == label)
                confidences.append(max(row))
        total += abs(sum(hits) - sum(confidences)) / len(y)
    return total


# --- attacks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_attacks_weaken_with_their_radius_and_leave_the_network(data, fitted, attack):
    x, y = data.test.x[:IMAGES], data.test.y[:IMAGES]
    before = state_of(fitted)
    actual = [
        measures.robust_accuracy(fitted, x, y, SETTINGS, SEED, attack=attack, eps=eps)
        for eps in (0.0, EPS / 2, EPS, EPS)
    ]
    assert unchanged(fitted, before)
    assert actual[0] == accuracy(fitted, x, y)
    assert actual[0] > actual[1] > actual[2] == actual[3]
    model = copy.deepcopy(fitted).eval()
    if attack == "fgsm":
        attacked = fgsm(model, x, y, norm="linf", eps=EPS)
    else:  # 20 steps of a quarter of the radius, at least two restarts
        g = stream(SEED, "attack")
        options = {"norm": "linf", "steps": 20, "restarts": 2, "keep": "last"}
        attacked = pgd(model, x, y, eps=EPS, step_size=EPS / 4, generator=g, **options)
    assert actual[2] == accuracy(model, attacked, y)


def test_pgd_is_no_weaker_than_fgsm(data, fitted):
    x, y = data.test.x[:IMAGES], data.test.y[:IMAGES]
    for share in (0.5, 1.0, 2.0):
        one, many = (
            measures.robust_accuracy(fitted, x, y, SETTINGS, SEED, attack=attack, eps=share * EPS)
            for attack in ("fgsm", "pgd")
        )
        assert many <= one + 0.01


def test_curves_fall_from_the_clean_accuracy(data, fitted):
    before = state_of(fitted)
    curves = measures.accuracy_curves(fitted, data, SETTINGS, SEED, Radii().shares)
    assert unchanged(fitted, before)
    assert set(curves) == {"eps", "fgsm", "pgd"}
    assert curves["eps"] == pytest.approx([0, *(EPS * 2.0**power for power in range(-3, 3))])
    x, y = data.test.x[:IMAGES], data.test.y[:IMAGES]
    for attack in ("fgsm", "pgd"):
        curve = curves[attack]
        assert curve[0] == accuracy(fitted, x, y)
        assert all(b <= a + 0.02 for a, b in itertools.pairwise(curve))
        one = measures.robust_accuracy(fitted, x, y, SETTINGS, SEED, attack=attack)
        assert curve[4] == one < curve[0]


# --- everything at once ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(data, fitted) -> dict[str, float]:
    return measures.measure_model(fitted, data, SETTINGS, SEED)


KINDS = ("noise", "blur", "contrast")
SHARES = ("test/accuracy", "test/ece", "fgsm", "pgd", *(f"corrupt/{k}" for k in (*KINDS, "mean")))
LANDSCAPE = ("sharpness", "curvature", "lipschitz")


def test_measurements_are_complete_in_range_and_repeatable(data, fitted, measured):
    assert set(measured) == {*SHARES, *LANDSCAPE, "test/nll", "input_gradient"}
    assert all(0 <= measured[name] <= 1 for name in SHARES)
    assert min(measured[n] for n in ("test/nll", "input_gradient", "sharpness", "lipschitz")) > 0
    assert 0.2 < measured["test/accuracy"] < 1
    before = state_of(fitted)
    again = measures.measure_model(fitted, data, SETTINGS, SEED)
    assert again == measured
    assert unchanged(fitted, before)
    other = measures.measure_model(fitted, data, SETTINGS, 1)
    same = {name for name in measured if other[name] == measured[name]}
    assert {"test/accuracy", "test/nll", "test/ece", "input_gradient", "fgsm"} <= same
    assert {"corrupt/blur", "corrupt/contrast"} <= same
    assert not {"sharpness", "lipschitz"} & same


def test_measurements_by_hand(data, fitted, measured):
    model, (x, y) = copy.deepcopy(fitted).eval(), (data.test.x, data.test.y)
    logits = model(x).detach()
    assert measured["test/accuracy"] == accuracy(model, x, y)
    assert measured["test/nll"] == pytest.approx(float(F.cross_entropy(logits, y)), rel=1e-5)
    assert measured["test/ece"] == pytest.approx(naive_calibration_error(logits, y, 15), abs=1e-6)
    x, y = x[:IMAGES], y[:IMAGES]
    norms = []
    for one, label in zip(x.split(1), y.split(1), strict=True):
        leaf = one.clone().requires_grad_()
        F.cross_entropy(model(leaf), label).backward()
        norms.append(float(leaf.grad.abs().sum()))
    assert measured["input_gradient"] == pytest.approx(sum(norms) / IMAGES, rel=1e-4)
    for attack in ("fgsm", "pgd"):
        robust = measures.robust_accuracy(model, x, y, SETTINGS, SEED, attack=attack)
        assert measured[attack] == robust
    for kind in KINDS:
        actual = [
            accuracy(model, corrupt(x, kind, s, generator=stream(SEED, f"{kind}/{s}")), y)
            for s in range(1, 6)
        ]
        assert measured[f"corrupt/{kind}"] == pytest.approx(sum(actual) / 5)
    mean = sum(measured[f"corrupt/{kind}"] for kind in KINDS) / 3
    assert measured["corrupt/mean"] == pytest.approx(mean)
    options: dict[str, Any] = {"rho": 0.05, "generator": stream(SEED, "landscape")}
    x, y = data.train.x[:IMAGES], data.train.y[:IMAGES]  # fewer than 200
    expected = sharpness(model, measures.losses_of, x, y, **options)
    assert measured["sharpness"] == pytest.approx(expected, rel=1e-6)


def test_landscape_is_that_of_the_training_part_and_the_rest_of_the_test_part(
    data, fitted, measured
):
    def other(part: IndexedDataset) -> IndexedDataset:
        return IndexedDataset(1 - part.x, part.y)

    for part in ("train", "val", "test"):
        changed = replace(data, **{part: other(getattr(data, part))})
        actual = measures.measure_model(fitted, changed, SETTINGS, SEED)
        differing = {name for name in measured if actual[name] != measured[name]}
        if part == "test":
            assert differing.isdisjoint(LANDSCAPE)
            assert {"test/accuracy", "test/nll", "input_gradient"} <= differing
        else:
            assert differing == (set(LANDSCAPE) if part == "train" else set())


# --- test-time mixing -----------------------------------------------------------------------------


def test_test_time_mixing_by_hand(monkeypatch, data, fitted):
    made: list[Any] = []
    asked: list[tuple[Any, Tensor]] = []

    class Spy(SumTTA):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            made.append(self)

    def spy(model: Callable[..., Tensor], x: Tensor, y: Tensor, **options: Any) -> Tensor:
        asked.append((model, pgd(model, x, y, **options)))
        return asked[-1][1]

    monkeypatch.setattr(measures, "SumTTA", Spy)
    monkeypatch.setattr(measures, "pgd", spy)
    before = state_of(fitted)
    few = replace(SETTINGS, images=40)
    actual = measures.measure_test_time_mixing(fitted, data, few, SEED, 16)
    assert unchanged(fitted, before)
    assert actual == measures.measure_test_time_mixing(fitted, data, few, SEED, 16)
    model, x, y = copy.deepcopy(fitted).eval(), data.test.x[:40], data.test.y[:40]
    attacked, judge = made[:2]
    assert len(attacked.partners) == len(judge.partners) == 16
    assert not torch.equal(attacked.partners, judge.partners)  # fresh ones
    known = {picture.numpy().tobytes() for picture in data.train.x}
    assert {p.numpy().tobytes() for p in (*attacked.partners, *judge.partners)} <= known
    (bare_model, bare), (mixed_model, adaptive) = asked[:2]
    assert bare_model is fitted
    assert mixed_model is attacked

    def mixed(x: Tensor) -> float:
        with torch.no_grad():
            logits = sum(model((x + partner) / 2) for partner in judge.partners)
        return float((logits.argmax(1) == y).double().mean())

    assert actual == {
        "clean/bare": accuracy(model, x, y),
        "clean/mixed": mixed(x),
        "pgd/bare": measures.robust_accuracy(fitted, x, y, SETTINGS, SEED, attack="pgd"),
        "pgd/unaware": mixed(bare),
        "pgd/adaptive": mixed(adaptive),
    }


# --- calibration error and losses, which need no network ------------------------------------------


@pytest.mark.parametrize("bins", [1, 2, 15])
@pytest.mark.parametrize("scale", [0.5, 2.0, 8.0])
def test_calibration_error_equals_a_naive_loop(bins, scale):
    g = stream(0, f"{bins}/{scale}")
    logits, y = scale * torch.randn(300, 4, generator=g), torch.randint(4, (300,), generator=g)
    actual = measures.calibration_error(logits, y, bins)
    assert actual == pytest.approx(naive_calibration_error(logits, y, bins), abs=1e-6)
    assert measures.calibration_error(logits, y) == measures.calibration_error(logits, y, 15)
    turned = torch.randperm(300, generator=g)
    assert measures.calibration_error(logits[turned], y[turned], bins) == pytest.approx(actual)


def test_calibration_error_in_closed_form():
    sure, y = 200.0 * torch.eye(5), torch.arange(5)
    assert measures.calibration_error(sure, y) == 0
    assert measures.calibration_error(sure, y.roll(1)) == 1
    # a coin that says 1/2 and is right half the time; always right: half too little confidence
    even = torch.zeros(4, 2)
    assert measures.calibration_error(even, torch.tensor([0, 1, 0, 1])) == pytest.approx(0)
    assert measures.calibration_error(even, torch.zeros(4).long()) == pytest.approx(0.5)
    # a confidence on an edge belongs to the lower bin: (1/2 right, 3/4 wrong) do not cancel
    logits = torch.tensor([[1.0, 1.0], [3.0, 1.0]]).log()
    assert measures.calibration_error(logits, torch.tensor([0, 1]), 2) == pytest.approx(0.625)


def test_losses_take_hard_and_soft_labels():
    logits, y = torch.randn(6, 3, generator=stream(0, "x")), torch.tensor([0, 1, 2, 2, 1, 0])
    hard, soft = (measures.losses_of(logits, labels) for labels in (y, F.one_hot(y, 3).float()))
    assert hard.shape == (6,)
    torch.testing.assert_close(hard, soft)
    torch.testing.assert_close(hard, -logits.log_softmax(1)[torch.arange(6), y])
