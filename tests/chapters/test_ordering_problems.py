"""Chapter 4: parts of the data sets, and models."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import nn

from companion.chapters.ordering import problems
from trainaug.data import registry

pytestmark = pytest.mark.usefixtures("untouched_randomness")


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> None:
    """Import scikit-learn before the random states are watched: that draws from Python's."""
    problems.problem("digits", 0)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


# --- parts ----------------------------------------------------------------------------------------


@pytest.mark.oracle("ord.P14")
@pytest.mark.parametrize("seed", [0, 17, 1000, 1001])
def test_no_row_is_in_two_parts(seed):
    for name, sizes in problems.SIZES.items():
        data, counts = problems.problem(name, seed), sizes.drawn()
        assert {part: len(rows) for part, rows in data.rows.items()} == counts
        assert {part: len(getattr(data, part)) for part in counts} == counts
        sets = {part: set(rows.tolist()) for part, rows in data.rows.items()}
        assert len(set().union(*sets.values())) == sum(counts.values())
    # of Fashion-MNIST the official test set is where the test part, and it alone, comes from
    test = sets.pop("test")
    assert min(test) >= 60_000 > max(set().union(*sets.values()))
    pair = problems.pair_problem(seed)
    counts = problems.PAIR.drawn()
    assert {part: len(rows) for part, rows in pair.rows.items()} == counts
    assert len(torch.cat(list(pair.rows.values())).unique()) == sum(counts.values())


def test_a_part_for_a_teacher_is_there_if_it_is_asked_for():
    sizes = problems.Sizes(30, 10, 20, 15, teacher=12)
    data = problems.problem("digits", 3, sizes=sizes)
    assert data.teacher is not None
    assert len(data.teacher) == 12
    assert len(torch.cat(list(data.rows.values())).unique()) == 30 + 10 + 20 + 15 + 12
    assert problems.problem("digits", 3).teacher is None


@pytest.mark.parametrize("name", problems.SIZES)
def test_a_part_holds_the_pictures_and_classes_of_its_rows(name):
    data, arrays = problems.problem(name, 3), registry.load(name)
    largest = {"digits": 16, "fashion_mnist": 255}[name]
    for part, rows in data.rows.items():
        held = getattr(data, part)
        assert held.x.shape[1:] == ((1, 8, 8) if name == "digits" else (1, 28, 28))
        assert held.x.dtype == torch.float32
        assert 0 == float(held.x.min()) < float(held.x.max()) == 1
        for position in (0, 7, len(rows) - 1):
            row, known = int(rows[position]), len(arrays["train_y"])
            split, row = ("train", row) if row < known else ("test", row - known)
            picture = torch.tensor(arrays[f"{split}_x"][row].astype(float) / largest)
            torch.testing.assert_close(held.x[position].flatten(), picture.flatten().float())
            assert held.y[position] == arrays[f"{split}_y"][row]
    assert data.num_classes == len(data.train.y.unique()) == 10


@pytest.mark.parametrize("draw", [partial(problems.problem, name) for name in problems.SIZES])
def test_the_seed_draws_the_parts(draw):
    one, again, other = draw(5), draw(5), draw(6)
    for part, rows in one.rows.items():
        assert torch.equal(rows, again.rows[part])
        assert torch.equal(getattr(one, part).x, getattr(again, part).x)
        assert not torch.equal(rows, other.rows[part])


def test_noise_moves_its_share_of_training_labels_to_other_classes():
    clean, noisy, wrong = (problems.problem("fashion_mnist", 5, noise=n) for n in (0.0, 0.4, 1.0))
    for part, rows in clean.rows.items():
        assert torch.equal(rows, noisy.rows[part])
        assert torch.equal(getattr(clean, part).x, getattr(noisy, part).x)
        assert torch.equal(getattr(clean, part).y, getattr(noisy, part).y) == (part != "train")
    moved = float((clean.train.y != noisy.train.y).float().mean())
    assert moved == pytest.approx(0.4, abs=4 * math.sqrt(0.24 / 2048))
    assert not bool((clean.train.y == wrong.train.y).any())  # never the same class
    assert set(wrong.train.y.tolist()) == set(range(10))
    # every other class about equally often: 205 draws each of 2048 / 9
    shifts = torch.bincount((wrong.train.y - clean.train.y) % 10, minlength=10)
    assert shifts[0] == 0
    assert float((shifts[1:] - 2048 / 9).abs().max()) < 4.5 * math.sqrt(2048 / 9)


def test_the_pair_is_two_digits_with_classes_zero_and_one():
    data, y = problems.pair_problem(3), problems._pictures("digits")[1]
    assert data.num_classes == 2
    for part, rows in data.rows.items():
        assert set(y[rows].tolist()) == {3, 8}
        assert torch.equal(getattr(data, part).y, (y[rows] == 8).long())
    assert torch.equal(data.train.x, problems.pair_problem(3).train.x)
    other = problems.pair_problem(3, (1, 7))
    assert set(y[torch.cat(list(other.rows.values()))].tolist()) == {1, 7}


def test_unknown_names_raise_and_are_named():
    data = problems.problem("digits", 0)
    with pytest.raises(ValueError, match="digits, fashion_mnist, got 'letters'"):
        problems.problem("letters", 0)
    with pytest.raises(ValueError, match="linear, mlp, cnn, cnn_bn, got 'transformer'"):
        problems.make_model("transformer", data, 0)


# --- models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", problems.SIZES)
@pytest.mark.parametrize("name", problems.MODELS)
def test_models_have_the_weights_of_their_seed_and_an_output_a_class(name, data):
    drawn = problems.problem(data, 0)
    model, again, other = (problems.make_model(name, drawn, seed) for seed in (7, 7, 8))
    assert same_weights(model, again)
    assert not same_weights(model, other)
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == (name == "cnn_bn")
    x = drawn.train.x[:6]
    logits = model(x)
    assert logits.shape == (6, 10)
    gap = float((logits[:2] - model(x[:2])).detach().abs().max())
    assert (gap < 1e-5) == (name != "cnn_bn")  # independent examples, in training mode
    pair = problems.pair_problem(0)
    assert problems.make_model(name, pair, 0)(pair.train.x[:3]).shape == (3, 2)


def test_the_hidden_layer_has_as_many_units_as_asked_for():
    model = problems.make_model("mlp", problems.problem("digits", 0), 0, hidden=5)
    assert sum(p.numel() for p in model.parameters()) == 5 * (64 + 1) + 10 * (5 + 1)


def test_optimiser_is_as_asked_for_and_losses_are_cross_entropies():
    data = problems.problem("digits", 0)
    model = problems.make_model("linear", data, 0)
    for momentum in (0.9, 0.0):
        (group,) = problems.source_sgd(model, 0.3, momentum, 0.02).param_groups
        assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.3, momentum, 0.02)
        assert group["nesterov"] == (momentum > 0)  # torch refuses it without momentum
    logits, y = model(data.train.x[:5]), data.train.y[:5]
    expected = -logits.log_softmax(1)[torch.arange(5), y]
    torch.testing.assert_close(problems.losses_of(logits, y), expected, rtol=1e-6, atol=0)
