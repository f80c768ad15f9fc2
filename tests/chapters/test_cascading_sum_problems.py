"""Chapter 5: parts of the data sets, and the networks."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from companion.chapters.cascading_sum import problems
from companion.chapters.cascading_sum.problems import Problem, problem
from trainaug.data import registry
from trainaug.data.emoji_captions import emoji_captions

pytestmark = pytest.mark.usefixtures("untouched_randomness")

PARTS = ("train", "val", "test")
SIZES = {"digits": (10, 50, 100), "fashion": (10, 100, 500), "emoji": (10, 100)}
LARGEST = {"digits": 16, "fashion": 255}


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> None:
    """Import scikit-learn before the random states are watched: that draws from Python's."""
    problem("digits", 1, 0)


@pytest.fixture
def numbered(monkeypatch) -> None:
    """Every picture is one pixel: the number of its row, of emoji of its drawing."""
    for name in LARGEST:
        problems._pictures(name)
    real, (drawings, classes) = problems._pictures, problems._emoji()

    def pictures(data: str) -> tuple[Tensor, Tensor, int]:
        x, y, official = real(data)
        return torch.arange(len(x)).view(-1, 1, 1, 1), y, official

    numbers = torch.arange(drawings.shape[0] * drawings.shape[1])
    emoji = numbers.view(*drawings.shape[:2], 1, 1, 1), classes
    monkeypatch.setattr(problems, "_pictures", pictures)
    monkeypatch.setattr(problems, "_emoji", lambda: emoji)


def rows_of(data: str, drawn: Problem) -> dict[str, list[int]]:
    """Rows of each part, for `numbered` pictures."""
    largest = LARGEST.get(data, 1)
    parts = {name: getattr(drawn, name).x.flatten().double() * largest for name in PARTS}
    return {name: values.round().long().tolist() for name, values in parts.items()}


def family_classes() -> tuple[Tensor, list[str]]:
    data = emoji_captions()
    return torch.from_numpy(data.families), list(data.categories)


@pytest.mark.parametrize("seed", [0, 17, 1000])
@pytest.mark.parametrize("data", SIZES)
@pytest.mark.usefixtures("numbered")
def test_no_row_is_in_two_parts_and_classes_are_balanced(data, seed):
    drawn = problem(data, SIZES[data][1], seed)
    rows = rows_of(data, drawn)
    assert len(set(itertools.chain(*rows.values()))) == sum(map(len, rows.values()))
    counts = torch.bincount(drawn.train.y, minlength=drawn.num_classes)
    assert counts.tolist() == [SIZES[data][1]] * drawn.num_classes
    assert drawn.num_classes == (8 if data == "emoji" else 10)
    for part in (drawn.val, drawn.test):
        assert set(part.y.tolist()) == set(range(drawn.num_classes))
    if data == "fashion":
        assert (len(drawn.val), len(drawn.test)) == (1000, 2000)
    elif data == "digits":  # a few of the test part may be needed for training
        assert len(drawn.val) == 200
        assert 480 <= len(drawn.test) <= 500
    # not in the order of the file or of the classes
    for name in PARTS:
        assert rows[name] != sorted(rows[name])
        assert getattr(drawn, name).y.diff().ne(0).float().mean() > 0.5


@pytest.mark.parametrize("data", SIZES)
@pytest.mark.usefixtures("numbered")
def test_smaller_training_parts_lie_in_larger_ones_and_the_rest_stays(data):
    drawn = [rows_of(data, problem(data, size, 1000)) for size in SIZES[data]]
    for small, large in itertools.pairwise(drawn):
        assert set(small["train"]) < set(large["train"])
        kept = set(small["train"])
        assert [row for row in large["train"] if row in kept] == small["train"]
        assert (small["val"], small["test"]) == (large["val"], large["test"])


@pytest.mark.parametrize("data", SIZES)
@pytest.mark.usefixtures("numbered")
def test_the_seed_draws_the_parts(data):
    one, again, other = (rows_of(data, problem(data, 10, seed)) for seed in (5, 5, 6))
    assert one == again
    for name in PARTS:
        assert len(set(one[name]) & set(other[name])) < 0.7 * len(one[name]), name
    # two seeds share of a part about what chance does
    if data != "emoji":
        assert set(one["train"]) & set(other["test"]) or data == "fashion"


@pytest.mark.parametrize("seed", [0, 1000])
@pytest.mark.usefixtures("numbered")
def test_the_official_test_set_of_fashion_is_tested_on_and_nothing_else(seed):
    rows = rows_of("fashion", problem("fashion", 500, seed))
    assert min(rows["test"]) >= 60_000 > max(rows["train"] + rows["val"])
    assert max(rows["test"]) < 70_000
    assert max(rows["train"]) > 55_000  # all of the rest may be trained on


@pytest.mark.parametrize("seed", [0, 1000])
@pytest.mark.usefixtures("numbered")
def test_all_drawings_of_a_family_are_in_one_part(seed):
    families, categories = family_classes()
    drawn = problem("emoji", 100, seed)
    rows = rows_of("emoji", drawn)
    drawn_families = {
        name: set(families[[row // 4 for row in rows[name]]].tolist()) for name in PARTS
    }
    for one, other in itertools.combinations(PARTS, 2):
        assert not drawn_families[one] & drawn_families[other]
    for name in ("val", "test"):  # a concept's four drawings stay together
        assert sorted(rows[name]) == [
            4 * c + v for c in sorted({r // 4 for r in rows[name]}) for v in range(4)
        ]
    for name in PARTS:
        for row, label in zip(rows[name], getattr(drawn, name).y.tolist(), strict=True):
            assert categories[row // 4] == problems.EMOJI_CLASSES[label]
    assert set(categories) == {*problems.EMOJI_CLASSES, "Flags"}


@pytest.mark.parametrize("name", LARGEST)
def test_a_part_holds_stored_pictures_with_their_classes(name):
    arrays = registry.load(problems.CONTENT[name])
    known = {
        arrays[f"{split}_x"][row].astype("float64").tobytes(): int(arrays[f"{split}_y"][row])
        for split in ("train", "test")
        for row in range(len(arrays[f"{split}_y"]))
    }
    drawn = problem(name, 10, 3)
    for part in (drawn.train, drawn.val, drawn.test):
        assert part.x.dtype == torch.float32
        assert part.x.shape[1:] == ((1, 8, 8) if name == "digits" else (1, 28, 28))
        assert 0 == float(part.x.min()) < float(part.x.max()) == 1
        stored = (part.x.double() * LARGEST[name]).round().flatten(1)
        shape = arrays["train_x"].shape[1:]
        for picture, label in zip(stored, part.y.tolist(), strict=True):
            assert known[picture.view(shape).numpy().tobytes()] == label


def test_emoji_are_halved_drawings_in_colour():
    data, (x, classes) = emoji_captions(), problems._emoji()
    assert x.shape == (1594, 4, 3, 32, 32)
    for concept, vendor in ((0, 0), (700, 3), (1593, 1)):
        drawing = torch.tensor(data.pictures[concept, vendor]).double() / 255  # (64, 64, 3)
        block = drawing[10:12, 20:22].mean((0, 1))
        torch.testing.assert_close(x[concept, vendor, :, 5, 10].double(), block, rtol=0, atol=1e-6)
    drawn = problem("emoji", 10, 3)
    assert drawn.test.x.shape[1:] == (3, 32, 32)
    assert 0 <= float(drawn.test.x.min()) < float(drawn.test.x.max()) <= 1
    assert int((classes < 0).sum()) == sum(name == "Flags" for name in data.categories) > 0


def test_what_cannot_be_drawn_is_refused_and_named():
    with pytest.raises(ValueError, match=r"digits, fashion, emoji.*, got 'letters'"):
        problem("letters", 10, 0)
    with pytest.raises(ValueError, match=r"class \d has \d+ .*200 are asked for"):
        problem("digits", 200, 0)
    with pytest.raises(ValueError, match=r"class \d has \d+ .*1000 are asked for"):
        problem("emoji", 1000, 0)
    drawn = problem("digits", 10, 0)
    with pytest.raises(ValueError, match="conv, resnet8 or wrn28_10, got 'transformer'"):
        problems.make_model("transformer", drawn, 0)


@pytest.mark.usefixtures("numbered")
def test_every_seed_of_evidence_has_enough_pictures():
    for data, sizes in SIZES.items():
        for seed in (0, 1, 2, *range(1000, 1024)):
            assert len(problem(data, sizes[-1], seed).train) == sizes[-1] * (
                8 if data == "emoji" else 10
            )


@pytest.mark.usefixtures("numbered")
def test_the_test_part_gives_up_only_what_a_class_lacks():
    moved = 0
    for seed in range(1000, 1006):
        drawn, y = problem("digits", 100, seed), problems._pictures("digits")[1]
        rows = rows_of("digits", drawn)
        whole = rows_of("digits", problem("digits", 50, seed, reserved=0))
        half = rows_of("digits", problem("digits", 50, seed))
        assert half == rows | {"train": whole["train"]}  # smaller parts do not need them
        given = set(whole["test"]) - set(rows["test"])
        assert [row for row in whole["test"] if row not in given] == rows["test"]
        assert given <= set(rows["train"])
        assert whole["val"] == rows["val"]
        left = torch.bincount(y, minlength=10)
        left -= torch.bincount(y[whole["val"] + whole["test"]], minlength=10)
        lacking = (100 - left).clamp(min=0)
        assert torch.equal(torch.bincount(y[sorted(given)], minlength=10), lacking)
        moved += len(given)
    assert moved > 0


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize("name", ["conv", "resnet8"])
@pytest.mark.parametrize("data", SIZES)
def test_networks_fit_the_pictures_and_have_the_weights_of_their_seed(data, name):
    drawn: Any = problem(data, 10, 0)
    model, again, other = (problems.make_model(name, drawn, seed) for seed in (7, 7, 8))
    assert same_weights(model, again)
    assert not same_weights(model, other)
    assert model(drawn.train.x[:6]).shape == (6, drawn.num_classes)
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    if name == "conv":  # three convolutions, their norms, and 64 channels of an eighth of the side
        channels, side = drawn.train.x.shape[1], -(-drawn.train.x.shape[-1] // 8)
        weights = 9 * (channels * 16 + 16 * 32 + 32 * 64) + 2 * 112
        weights += (64 * side**2 + 1) * drawn.num_classes
        assert sum(p.numel() for p in model.parameters()) == weights < 100_000
