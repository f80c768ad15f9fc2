"""Problems made from the data sets: balance, determinism, held-out parts, tensors."""

from __future__ import annotations

from collections import Counter

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from trainaug.data import registry
from trainaug.data.binary import binary_problem
from trainaug.data.fashion_mnist import fashion_mnist_tensors
from trainaug.data.gaussian import gaussian_problem
from trainaug.data.indexed import IndexedDataset
from trainaug.data.sklearn_sets import bundled_arrays

# --- gaussian


# Mean least l2 norm over seeds 0-2 at d = 100, as docs/sources/optimisation_bias.md prints it.
@pytest.mark.parametrize(("n", "norm"), [(50, 0.7730), (12, 0.3727), (10, 0.3409), (3, 0.1781)])
def test_gaussian_matches_the_oracle_table(n: int, norm: float) -> None:
    norms = []
    for seed in range(3):
        X, y = gaussian_problem(n, 100, seed=seed)
        w = cp.Variable(100)
        problem = cp.Problem(cp.Minimize(cp.norm(w, 2)), [cp.multiply(y, X @ w) >= 1])
        problem.solve(solver="CLARABEL")
        assert problem.status == "optimal"
        norms.append(problem.value)
    assert np.mean(norms) == pytest.approx(norm, abs=5.1e-5)  # the table has four decimals


@given(n=st.integers(1, 20), d=st.integers(1, 20), seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_gaussian_is_nested_labelled_and_deterministic(n: int, d: int, seed: int) -> None:
    X, y = gaussian_problem(n, d, seed=seed)
    more_X, more_y = gaussian_problem(n + 3, d, seed=seed)
    assert X.shape == (n, d)
    assert X.dtype == y.dtype == np.float64
    assert set(y) <= {-1.0, 1.0}
    np.testing.assert_array_equal(X, more_X[:n])
    np.testing.assert_array_equal(y, more_y[:n])
    assert not np.array_equal(X, gaussian_problem(n, d, seed=seed + 1)[0])


@pytest.mark.parametrize(("n", "d"), [(0, 3), (3, 0), (-1, 3)])
def test_gaussian_refuses_empty_sizes(n: int, d: int) -> None:
    with pytest.raises(ValueError, match=f"n={n}, d={d}"):
        gaussian_problem(n, d, seed=0)


# --- two-class problems


CASES = [
    ("digits", (3, 8), 64, 183 + 174),
    ("breast_cancer", (0, 1), 30, 569),
    ("iris", (1, 2), 4, 100),
]


@pytest.mark.parametrize(("name", "classes", "dims", "total"), CASES)
@pytest.mark.parametrize("n", [2, 41, 60])
def test_binary_problem_is_balanced_and_splits_the_rows(name, classes, dims, total, n) -> None:
    problem = binary_problem(name, classes, n=n, seed=3)
    assert problem.X.shape == (n, dims)
    assert problem.X_test.shape == (total - n, dims)
    assert all(part.dtype == np.float64 for part in problem)
    assert (problem.y == 1).sum() == n - n // 2
    assert (problem.y == -1).sum() == n // 2
    assert set(problem.y_test) == {-1.0, 1.0}


@pytest.mark.parametrize(("name", "classes"), [("digits", (3, 8)), ("iris", (1, 2))])
def test_train_and_test_rows_are_disjoint_and_keep_their_labels(name, classes) -> None:
    problem = binary_problem(name, classes, n=30, seed=0)
    data = registry.load(name)
    scale = 16.0 if name == "digits" else 1.0
    for c, label in zip(classes, (1.0, -1.0), strict=True):
        parts = [problem.X[problem.y == label], problem.X_test[problem.y_test == label]]
        actual = Counter(row.tobytes() for part in parts for row in part * scale)
        source = Counter(row.tobytes() for row in data["train_x"][data["train_y"] == c])
        assert actual == source  # as multisets: every row once, none twice


@pytest.mark.parametrize(("name", "classes", "dims", "total"), CASES)
def test_binary_problem_depends_on_the_seed_alone(name, classes, dims, total) -> None:
    first, same, other = (binary_problem(name, classes, n=20, seed=s) for s in (7, 7, 8))
    for a, b in zip(first, same, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first.X, other.X)


@pytest.mark.parametrize("name", ["digits", "iris"])
def test_smaller_sample_is_part_of_a_larger_one(name) -> None:
    small = {row.tobytes() for row in binary_problem(name, (1, 2), n=20, seed=5).X}
    large = {row.tobytes() for row in binary_problem(name, (1, 2), n=40, seed=5).X}
    assert small < large


def test_fashion_problem_uses_the_official_test_pictures() -> None:
    problem = binary_problem("fashion_mnist", (1, 9), n=100, seed=0)
    data = registry.load("fashion_mnist")
    assert problem.X.shape == (100, 784)
    assert problem.X_test.shape == (2000, 784)
    assert (problem.y == 1).sum() == 50
    trousers = data["test_x"][data["test_y"] == 1].reshape(1000, -1) / 255
    np.testing.assert_array_equal(problem.X_test[problem.y_test == 1], trousers)


@pytest.mark.parametrize(("name", "n"), [("digits", 60), ("fashion_mnist", 200)])
def test_pictures_lie_in_the_unit_interval(name, n) -> None:
    problem = binary_problem(name, (3, 8), n=n, seed=1)
    assert problem.X.min() == 0
    assert problem.X.max() == 1  # 60 digits and 200 pictures do reach the largest pixel value
    assert 0 <= problem.X_test.min() <= problem.X_test.max() <= 1


def test_breast_cancer_is_standardised_by_the_training_rows() -> None:
    problem = binary_problem("breast_cancer", n=100, seed=0)
    np.testing.assert_allclose(problem.X.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(problem.X.std(axis=0), 1, rtol=1e-12)
    assert np.abs(problem.X_test.mean(axis=0)).max() > 0.01  # not by its own mean
    data = registry.load("breast_cancer")
    everything = binary_problem("breast_cancer")
    np.testing.assert_array_equal(everything.y == 1, data["train_y"] == 0)  # malignant is +1
    assert len(everything.X_test) == 0
    assert np.isfinite(binary_problem("breast_cancer", n=2, seed=0).X).all()


def test_swapping_the_classes_swaps_the_labels() -> None:
    one, two = binary_problem("iris", (1, 2)), binary_problem("iris", (2, 1))
    np.testing.assert_array_equal(one.X, two.X)
    np.testing.assert_array_equal(one.y, -two.y)


def test_iris_pairs_are_the_negative_and_the_positive_control() -> None:
    def separable(classes: tuple[int, int]) -> bool:
        problem = binary_problem("iris", classes)
        w, b = cp.Variable(4), cp.Variable()
        feasible = cp.Problem(cp.Minimize(0), [cp.multiply(problem.y, problem.X @ w + b) >= 1])
        feasible.solve(solver="CLARABEL")
        return bool(feasible.status == "optimal")

    assert separable((0, 1))
    assert not separable((1, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "gaussian"}, "got 'gaussian'"),
        ({"name": "cifar10"}, "got 'cifar10'"),
        ({"name": "iris", "classes": (1, 1)}, r"got \(1, 1\)"),
        ({"name": "iris", "classes": (1, 7)}, r"got \(1, 7\)"),
        ({"name": "iris", "n": 1}, r"\[2, 100\] .* got 1"),
        ({"name": "iris", "n": 101}, r"\[2, 100\] .* got 101"),
    ],
)
def test_binary_problem_refuses_bad_input(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        binary_problem(**arguments)


def test_unknown_scikit_learn_loader_raises() -> None:
    with pytest.raises(ValueError, match="'fetch_openml'"):
        bundled_arrays("fetch_openml")


# --- tensors


@pytest.fixture
def dataset() -> IndexedDataset:
    generator = torch.Generator().manual_seed(0)
    return IndexedDataset(torch.randn(10, 2, 3, generator=generator), torch.arange(10) % 4)


@pytest.mark.parametrize("as_tensor", [True, False])
@given(indices=st.lists(st.integers(-10, 9), max_size=15))
@settings(max_examples=30, deadline=None)
def test_batch_gather_equals_stacked_singles(as_tensor: bool, indices: list[int]) -> None:
    x = torch.arange(60.0).reshape(10, 2, 3)
    dataset = IndexedDataset(x, torch.arange(10) % 4)
    batch = dataset[torch.tensor(indices, dtype=torch.int64) if as_tensor else indices]
    assert batch[0].shape == (len(indices), 2, 3)
    assert batch[2].tolist() == [i % 10 for i in indices]
    if indices:
        singles = [torch.stack(parts) for parts in zip(*(dataset[i] for i in indices), strict=True)]
        assert all(torch.equal(a, b) for a, b in zip(batch, singles, strict=True))


def test_both_kinds_of_loader_give_the_same_batches(dataset) -> None:
    batches = BatchSampler(SequentialSampler(dataset), batch_size=4, drop_last=False)
    fast = list(DataLoader(dataset, sampler=batches, batch_size=None))
    slow = list(DataLoader(dataset, batch_size=4))
    assert [len(batch[0]) for batch in fast] == [4, 4, 2]
    for a, b in zip(fast, slow, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def test_iterating_a_dataset_ends(dataset) -> None:
    assert [int(index) for _, _, index in dataset] == list(range(10))


@pytest.mark.parametrize("index", [10, -11, [0, 10]])
def test_index_out_of_range_raises(dataset, index) -> None:
    with pytest.raises(IndexError, match="out of range for 10 items"):
        dataset[index]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16])
def test_small_integers_index_a_large_set(dtype) -> None:
    dataset = IndexedDataset(torch.arange(70_000), torch.zeros(70_000))
    _, _, index = dataset[torch.tensor([0, 100], dtype=dtype)]
    assert index.tolist() == [0, 100]
    assert index.dtype == torch.int64
    if dtype != torch.uint8:
        assert dataset[torch.tensor([-1], dtype=dtype)][2].tolist() == [69_999]


@pytest.mark.parametrize("index", [[0.5, 1.0], torch.ones(10, dtype=torch.bool)])
def test_index_that_is_no_integer_raises(dataset, index) -> None:
    with pytest.raises(TypeError, match="indices must be integers"):
        dataset[index]


def test_mismatched_lengths_raise() -> None:
    with pytest.raises(ValueError, match=r"\[3\].*\[2\]"):
        IndexedDataset(torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match="one length"):
        IndexedDataset(torch.tensor(1.0), torch.zeros(1))


def test_gather_makes_no_tensor_on_a_default_device(dataset) -> None:
    expected = dataset[[3, 1]]
    with torch.device("meta"):
        actual = dataset[[3, 1]]
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_fashion_splits_partition_the_official_training_set() -> None:
    train, val = (fashion_mnist_tensors(split, seed=1) for split in ("train", "val"))
    assert train.x.shape == (55000, 1, 28, 28)
    assert train.x.dtype == torch.float32
    assert train.y.dtype == torch.int64
    assert torch.bincount(train.y).tolist() == [5500] * 10
    assert torch.bincount(val.y).tolist() == [500] * 10
    assert 0 <= float(train.x.min()) <= float(train.x.max()) <= 1
    data = registry.load("fashion_mnist")
    bytes_of = [(part.x * 255).round().to(torch.uint8).numpy() for part in (train, val)]
    actual = Counter(picture.tobytes() for part in bytes_of for picture in part)
    assert actual == Counter(picture.tobytes() for picture in data["train_x"])


def test_fashion_validation_depends_on_the_seed_alone() -> None:
    one, same, other = (fashion_mnist_tensors("val", seed=s) for s in (0, 0, 1))
    assert torch.equal(one.x, same.x)
    assert not torch.equal(one.x, other.x)


def test_fashion_test_part_is_the_official_one() -> None:
    test = fashion_mnist_tensors("test", seed=5)
    data = registry.load("fashion_mnist")
    assert len(test) == 10000
    np.testing.assert_array_equal(test.y.numpy(), data["test_y"])
    np.testing.assert_allclose(test.x[:, 0].numpy() * 255, data["test_x"], atol=1e-4)  # float32
    x, y, index = test[123]
    assert x.shape == (1, 28, 28)
    assert (int(y), int(index)) == (int(data["test_y"][123]), 123)


def test_fashion_unknown_split_raises() -> None:
    with pytest.raises(ValueError, match="got 'valid'"):
        fashion_mnist_tensors("valid")  # type: ignore[arg-type]


def test_a_data_set_moves_to_a_device_and_stays_where_it_was() -> None:
    dataset = IndexedDataset(torch.arange(6.0).view(3, 2), torch.tensor([0, 1, 0]))
    moved = dataset.to(torch.device("meta"))
    assert (moved.x.shape, moved.x.device.type) == ((3, 2), "meta")
    assert (moved.y.dtype, moved.y.device.type) == (torch.int64, "meta")
    same = dataset.to(torch.device("cpu"))
    assert same.x is dataset.x
    assert same.y is dataset.y
