"""Chapter 3: parts, wrong labels, rotation, networks, and pairs of classes for the linear SVM."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch

from companion.chapters.autoassist import problems
from companion.chapters.autoassist.problems import (
    Pictures,
    losses_of,
    make_model,
    pictures,
    svm_optimum,
    svm_problem,
)
from trainaug.data.indexed import IndexedDataset
from trainaug.methods.autoassist import pegasos, svm_objective
from trainaug.training.networks import ResNet8, StridedConvNet
from trainaug.training.randomness import stream

pytestmark = pytest.mark.usefixtures("untouched_randomness")


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> None:
    """Data are loaded and scikit-learn is imported before the random states are watched."""
    small("fashion", 0, 10)
    svm_problem("breast_cancer", 0)


def small(
    data: str, seed: int, num_train: int, *, noise: float = 0.0, rotated: bool = False
) -> Pictures:
    """Draw parts of which the held-out ones are small."""
    return pictures(data, seed, num_train, num_val=200, num_test=300, noise=noise, rotated=rotated)


def parts(data: Pictures) -> list[IndexedDataset]:
    return [data.train, data.val, data.test]


def test_sizes_shapes_and_official_test_set():
    data = small("fashion", 3, 500)
    assert [len(part) for part in parts(data)] == [500, 200, 300]
    for part in parts(data):
        assert part.x.shape == (len(part), 1, 28, 28)
        assert part.x.dtype == torch.float32
        assert 0 <= float(part.x.min()) < float(part.x.max()) <= 1
        assert part.y.dtype == torch.int64
        assert set(part.y.tolist()) == set(range(10))
    assert not bool(data.wrong.any())


def test_parts_are_disjoint_rows_of_the_data(monkeypatch):
    n, official = 900, 600
    x = torch.arange(n).view(n, 1, 1, 1).expand(n, 1, 2, 2)  # a picture is its row's number
    monkeypatch.setattr(problems, "_arrays", lambda data: (x, torch.arange(n) % 10, official))
    data = small("fashion", 1, 400)
    rows = [(part.x[:, 0, 0, 0] * 255).round().long() for part in parts(data)]
    assert [len(set(numbers.tolist())) for numbers in rows] == [400, 200, 300]
    for one, other in combinations(rows, 2):
        assert not set(one.tolist()) & set(other.tolist())
    assert max(rows[0].max(), rows[1].max()) < official <= rows[2].min()
    for numbers, part in zip(rows, parts(data), strict=True):
        assert torch.equal(part.y, numbers % 10)
    more = small("fashion", 1, 100)  # fewer: a part of them
    assert torch.equal(more.train.x, data.train.x[:100])
    assert torch.equal(more.test.x, data.test.x)
    other = small("fashion", 2, 400)
    assert not torch.equal(other.train.x, data.train.x)


def test_wrong_labels_are_never_the_true_ones_and_of_training_alone():
    clean, noisy = small("fashion", 4, 5000), small("fashion", 4, 5000, noise=0.2)
    for one, other in zip(parts(clean), parts(noisy), strict=True):
        assert torch.equal(one.x, other.x)
    assert torch.equal(noisy.val.y, clean.val.y)
    assert torch.equal(noisy.test.y, clean.test.y)
    assert torch.equal(noisy.train.y != clean.train.y, noisy.wrong)
    share = float(noisy.wrong.double().mean())
    assert abs(share - 0.2) < 5 * math.sqrt(0.16 / 5000)  # five standard deviations
    shift = (noisy.train.y - clean.train.y)[noisy.wrong] % 10
    counts = torch.bincount(shift, minlength=10)
    assert counts[0] == 0
    mean = counts.sum() / 9
    assert bool(((counts[1:] - mean).abs() < 5 * mean.sqrt()).all())


def test_rotation_is_fixed_by_the_seed_and_keeps_the_range():
    plain = small("fashion", 4, 300)
    one, again = (small("fashion", 4, 300, rotated=True) for _ in range(2))
    for a, b, c in zip(parts(one), parts(again), parts(plain), strict=True):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, c.y)
        assert float(a.x.min()) >= 0
        assert float(a.x.max()) <= 1 + 1e-6  # weights of a bilinear mean in float32
        assert not torch.equal(a.x, c.x)
    other = small("fashion", 5, 300, rotated=True)
    assert not torch.equal(other.train.x, one.train.x)


def test_pictures_are_turned_by_up_to_a_right_angle(monkeypatch):
    x = torch.rand(2, 1, 9, 9, generator=stream(0, "measure"))
    for value, k in ((1.0, 1), (0.0, -1)):  # numpy counts a positive angle as we do, or not
        monkeypatch.setattr(torch, "rand", lambda n, value=value, **_: torch.full((n,), value))
        turned = problems._turned(x, stream(0, "angles/0"))
        torch.testing.assert_close(turned, torch.rot90(x, k, (2, 3)), rtol=0, atol=1e-5)
    monkeypatch.setattr(torch, "rand", lambda n, **_: torch.full((n,), 0.5))
    turned = problems._turned(x, stream(0, "angles/0"))
    torch.testing.assert_close(turned, x, rtol=0, atol=1e-5)  # no angle


def test_cifar_comes_from_the_cache(monkeypatch):
    g = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        f"{part}_x": g.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)
        for part, n in (("train", 40), ("test", 30))
    }
    arrays |= {"train_y": np.arange(40) % 10, "test_y": np.arange(30) % 10}
    asked: list[Any] = []
    monkeypatch.setattr(problems, "load_cifar", lambda *given: asked.append(given) or arrays)
    problems._arrays.cache_clear()
    try:
        data = pictures("cifar10", 0, 30, num_val=10, num_test=20)
    finally:
        problems._arrays.cache_clear()
    assert asked == [(problems.DATA_CACHE / problems.CIFAR, 10)]
    assert [len(part) for part in parts(data)] == [30, 10, 20]
    assert data.train.x.shape[1:] == (3, 32, 32)


@pytest.mark.parametrize(
    ("given", "more", "message"),
    [
        (("digits", 0, 10), {}, "'digits'"),
        (("fashion", 0, 10), {"noise": 1.0}, r"1\.0"),
        (("fashion", 0, 10), {"noise": -0.1}, r"-0\.1"),
        (("fashion", 0, 0), {}, "got 0"),
        (("fashion", 0, 59_801), {}, "59801"),
    ],
)
def test_wrong_problems_are_named(given, more, message):
    with pytest.raises(ValueError, match=message):
        small(*given, **more)


def test_networks():
    data = pictures("fashion", 0, 10)
    for name, kind in (("cnn", StridedConvNet), ("resnet8", ResNet8)):
        model = make_model(name, data, 7)
        assert isinstance(model, kind)
        logits = model(data.train.x)
        assert logits.shape == (10, 10)
        again, other = make_model(name, data, 7), make_model(name, data, 8)
        weights = [torch.cat([p.flatten() for p in m.parameters()]) for m in (model, again, other)]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])
    with pytest.raises(ValueError, match="model must be cnn or resnet8, got 'mlp'"):
        make_model("mlp", data, 0)
    losses = losses_of(logits, data.train.y)
    expected = [-row.log_softmax(0)[y] for row, y in zip(logits, data.train.y, strict=True)]
    torch.testing.assert_close(losses, torch.stack(expected))


# --- linear SVM -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("data", "n"), [("breast_cancer", 569), ("digits", 357)])
def test_svm_problem_has_rows_of_length_one(data, n):
    X, y = svm_problem(data, 0)
    assert len(X) == len(y) == n
    assert X.dtype == y.dtype == torch.float64
    torch.testing.assert_close(X.norm(dim=1), torch.ones(n, dtype=X.dtype), rtol=1e-12, atol=0)
    assert set(y.tolist()) == {-1.0, 1.0}
    assert torch.equal(svm_problem(data, 1)[0], X)  # all there are


def test_pullovers_and_shirts_are_drawn_by_the_seed():
    (X, y), (again, _), (other, _) = (svm_problem("fashion", seed) for seed in (0, 0, 1))
    assert X.shape == (2000, 784)
    torch.testing.assert_close(X.norm(dim=1), torch.ones(2000, dtype=X.dtype), rtol=1e-12, atol=0)
    assert abs(float(y.mean())) < 0.15
    assert torch.equal(X, again)
    assert not torch.equal(X, other)
    with pytest.raises(ValueError, match="'wine'"):
        svm_problem("wine", 0)


def test_optimum_is_below_a_long_run_and_meets_the_dual():
    lam = 1e-2
    for data in ("breast_cancer", "digits"):
        X, y = svm_problem(data, 0)
        best = svm_optimum(X, y, lam)
        assert best.value == pytest.approx(float(svm_objective(best.w, X, y, lam)), rel=1e-12)
        order = torch.randint(len(X), (30 * len(X),), generator=stream(0, "order"))
        path = pegasos(X, y, lam, order, record_every=50)
        tail = torch.stack(path.weights[len(path.weights) // 2 :]).mean(0)
        assert -1e-9 < float(svm_objective(tail, X, y, lam)) - best.value < 2e-3
        # w = sum a_i y_i x_i / (lam N): a_i is 1 inside the margin, 0 outside, between on it; any
        # a in 0 to 1 gives a lower bound of the minimum, the dual objective
        margins, signed = y * (X @ best.w), y[:, None] * X
        a = (margins < 1).double()
        edge = (margins - 1).abs() <= 1e-5
        a[edge] = 0.0
        rest = best.w * lam * len(X) - a @ signed
        on_edge = torch.linalg.lstsq(signed[edge].T, rest[:, None], driver="gelsd").solution
        a[edge] = on_edge[:, 0].clamp(0, 1)
        lower = a.mean() - lam / 2 * (a @ signed / (lam * len(X))).square().sum()
        assert -1e-9 < best.value - float(lower) < 1e-4
