"""Chapter 2: parts of the data sets, copies, wrong labels, and the networks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion.chapters.gradient_clustering import problems
from companion.chapters.gradient_clustering.problems import Problem, problem
from trainaug.data import registry
from trainaug.training.randomness import stream

pytestmark = pytest.mark.usefixtures("untouched_randomness")

PARTS = ("train", "val", "test")
LARGEST = {"digits": 16, "fashion": 255}
SIZES = {"digits": (297, 500), "fashion": (3000, 2000)}


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> None:
    """Import scikit-learn before the random states are watched: that draws from Python's."""
    problem("digits", 0, 20)


@pytest.fixture
def numbered(monkeypatch) -> None:
    """Every picture is one pixel: the number of its row."""
    real = problems.pictures

    def pictures(data: str) -> tuple[Tensor, Tensor, int]:
        x, y, official = real(data)
        return torch.arange(len(x)).view(-1, 1, 1, 1), y, official

    monkeypatch.setattr(problems, "pictures", pictures)


def rows_of(data: str, drawn: Problem) -> dict[str, list[int]]:
    """Rows of each part, for `numbered` pictures."""
    parts = {name: getattr(drawn, name).x.flatten().double() * LARGEST[data] for name in PARTS}
    return {name: values.round().long().tolist() for name, values in parts.items()}


@pytest.mark.parametrize("seed", [0, 1000])
@pytest.mark.parametrize("data", SIZES)
@pytest.mark.usefixtures("numbered")
def test_parts_are_disjoint_and_drawn_from_the_seed(data, seed):
    drawn, again, other = (problem(data, s, 1000) for s in (seed, seed, seed + 1))
    rows = rows_of(data, drawn)
    assert len(set(itertools.chain(*rows.values()))) == 1000 + sum(SIZES[data])
    assert (len(drawn.val), len(drawn.test)) == SIZES[data]
    assert rows == rows_of(data, again)
    y = problems.pictures(data)[1]
    for name in PARTS:
        assert torch.equal(getattr(drawn, name).y, y[rows[name]])
        assert rows[name] != rows_of(data, other)[name]
        assert rows[name] != sorted(rows[name])
    if data == "fashion":  # its official test set is tested on and nothing else
        assert min(rows["test"]) >= 60_000 > max(rows["train"] + rows["val"])
        assert max(rows["train"]) > 55_000
    assert sorted(drawn.copy_of.tolist()) == list(range(1000))


@pytest.mark.parametrize(("num_train", "copies"), [(100, 0.9), (200, 0.5), (1000, 0.9), (60, 0.3)])
@pytest.mark.usefixtures("numbered")
def test_copies_are_exact_and_as_many_of_each(num_train, copies):
    drawn = problem("digits", 3, num_train, copies=copies, noise=0.5)
    rows, number = rows_of("digits", drawn), drawn.copy_of
    distinct = num_train - round(copies * num_train)
    counts = torch.bincount(number)
    assert len(rows["train"]) == len(number) == num_train
    assert len(counts) == distinct
    more = counts[:10] - 1
    assert int(more.sum()) == num_train - distinct
    assert int(more.max() - more.min()) == (0 if (num_train - distinct) % 10 == 0 else 1)
    assert bool((counts[10:] == 1).all())
    # equal numbers are equal pictures and labels, other numbers other pictures
    pairs = set(zip(number.tolist(), rows["train"], drawn.train.y.tolist(), strict=True))
    assert len(pairs) == len({n for n, *_ in pairs}) == len({r for _, r, _ in pairs}) == distinct
    assert not set(rows["train"]) & {*rows["val"], *rows["test"]}
    assert number.tolist() != sorted(number.tolist())  # copies are not beside each other
    whole = problem("digits", 3, num_train)
    for name in ("val", "test"):  # the same whatever the training part
        assert torch.equal(getattr(drawn, name).x, getattr(whole, name).x)
        assert torch.equal(getattr(drawn, name).y, getattr(whole, name).y)


@pytest.mark.parametrize("noise", [0.1, 0.5])
@pytest.mark.usefixtures("numbered")
def test_a_share_of_training_labels_is_another_class_at_random(noise):
    y = problems.pictures("fashion")[1]
    drawn = problem("fashion", 1, 10_000, noise=noise)
    rows = rows_of("fashion", drawn)
    shift = (drawn.train.y - y[rows["train"]]) % 10
    wrong = float((shift != 0).float().mean())
    assert abs(wrong - noise) < 4 * (noise * (1 - noise) / 10_000) ** 0.5  # four deviations
    counts = torch.bincount(shift, minlength=10)[1:].double() / (10_000 * wrong)
    assert float((counts - 1 / 9).abs().max()) < 0.04  # all nine others alike
    for name in ("val", "test"):
        assert torch.equal(getattr(drawn, name).y, y[rows[name]])
    clean = problem("fashion", 1, 10_000)
    assert rows["train"] == rows_of("fashion", clean)["train"]  # noise moves no picture
    assert torch.equal(clean.train.y, y[rows["train"]])


@pytest.mark.parametrize("name", SIZES)
def test_a_part_holds_stored_pictures_with_their_classes(name):
    arrays = registry.load(problems.CONTENT[name])
    drawn = problem(name, 2, 60)
    known = {
        arrays[f"{split}_x"][row].astype("float64").tobytes(): int(arrays[f"{split}_y"][row])
        for split in ("train", "test")
        for row in range(len(arrays[f"{split}_y"]))
    }
    shape = arrays["train_x"].shape[1:]
    for part in (drawn.train, drawn.val, drawn.test):
        assert part.x.dtype == torch.float32
        assert part.x.shape[1:] == ((1, 8, 8) if name == "digits" else (1, 28, 28))
        assert 0 == float(part.x.min()) < float(part.x.max()) == 1
        stored = (part.x.double() * LARGEST[name]).round().flatten(1)
        for picture, label in zip(stored, part.y.tolist(), strict=True):
            assert known[picture.view(shape).numpy().tobytes()] == label


def test_cifar_comes_from_the_reader_s_archive(monkeypatch):
    g = np.random.Generator(np.random.PCG64(0))
    arrays = {
        f"{split}_{k}": g.integers(0, high, (n, *shape)).astype("uint8")
        for split, n in (("train", 50), ("test", 20))
        for k, high, shape in (("x", 256, (3, 32, 32)), ("y", 10, ()))
    }
    asked = []
    monkeypatch.setattr(problems, "load_cifar", lambda *given: asked.append(given) or arrays)
    problems.pictures.cache_clear()
    drawn = problem("cifar10", 0, 30, copies=0.5, held_out=(10, 15))
    assert asked == [(problems.DATA_CACHE / "cifar-10-binary.tar.gz", 10)]
    tested = {picture.tobytes() for picture in arrays["test_x"]}
    for part, size in ((drawn.train, 30), (drawn.val, 10), (drawn.test, 15)):
        assert part.x.shape == (size, 3, 32, 32)
        pictures = (part.x * 255).round().byte().numpy()
        assert {p.tobytes() in tested for p in pictures} == {part is drawn.test}
    problems.pictures.cache_clear()


def test_what_cannot_be_drawn_is_refused_and_named():
    with pytest.raises(ValueError, match=r"digits, fashion, cifar10, got 'letters'"):
        problem("letters", 0, 100)
    for shares in ({"copies": 1.0}, {"noise": 1.0}, {"copies": -0.1}, {"noise": -0.1}):
        value = next(iter(shares.values()))
        with pytest.raises(ValueError, match=rf"0 <= copies, noise < 1, got .*{value}"):
            problem("digits", 0, 100, **shares)
    for num_train, copies, distinct in ((9, 0, 9), (50, 0.9, 5), (1001, 0, 1001)):
        with pytest.raises(ValueError, match=rf"\b{distinct}\b"):
            problem("digits", 0, num_train, copies=copies)
    drawn = problem("digits", 0, 20)
    with pytest.raises(ValueError, match="mlp, cnn or resnet8, got 'transformer'"):
        problems.make_model("transformer", drawn, 0)


def test_to_moves_the_parts_and_keeps_the_rest():
    drawn = problem("digits", 0, 20, copies=0.5)
    moved = drawn.to(torch.device("meta"))
    for name in PARTS:
        part, split = getattr(moved, name), getattr(drawn, name)
        assert (part.x.device.type, part.y.device.type) == ("meta", "meta")
        assert (part.x.shape, part.y.dtype) == (split.x.shape, split.y.dtype)
    same = drawn.to(torch.device("cpu"))
    for name in PARTS:
        assert torch.equal(getattr(same, name).x, getattr(drawn, name).x)
        assert torch.equal(getattr(same, name).y, getattr(drawn, name).y)
    assert torch.equal(moved.copy_of, drawn.copy_of)


# --- networks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", SIZES)
@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet8"])
def test_networks_fit_the_pictures_and_have_the_weights_of_their_seed(name, data):
    drawn = problem(data, 0, 20)
    model, again, other = (problems.make_model(name, drawn, seed) for seed in (4, 4, 5))
    logits = model(drawn.train.x)
    assert logits.shape == (20, 10)
    assert torch.equal(logits, again(drawn.train.x))
    assert not torch.equal(logits, other(drawn.train.x))
    # examples are independent: alone they have the same logits
    torch.testing.assert_close(model(drawn.train.x[:1]), logits[:1], rtol=1e-4, atol=1e-5)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    if name == "mlp":
        pixels = drawn.train.x[0].numel()
        assert [tuple(p.shape) for p in model.parameters()] == [
            (64, pixels),
            (64,),
            (10, 64),
            (10,),
        ]


def test_losses_are_the_cross_entropy_of_each_example():
    logits = torch.randn(5, 10, generator=stream(0, "logits"), dtype=torch.float64)
    y = torch.tensor([0, 3, 9, 9, 1])
    expected = [
        F.cross_entropy(row[None], label[None]) for row, label in zip(logits, y, strict=True)
    ]
    torch.testing.assert_close(problems.losses_of(logits, y), torch.stack(expected))
