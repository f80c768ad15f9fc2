"""Parts, draws of each class, copies and label noise, against plain loops over the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainaug.data.splits import (
    add_label_noise,
    cut_parts,
    draw_copies,
    draw_of_each_class,
    draw_parts,
    join_pictures,
    take_of_each_class,
)

SEEDS = st.integers(0, 2**32)
LABELS = st.lists(st.integers(0, 3), min_size=1, max_size=40)


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def permuted(count: int, g: torch.Generator) -> list[int]:
    return torch.randperm(count, generator=g).tolist()


def as_lists(parts: dict[str, torch.Tensor]) -> dict[str, list[int]]:
    return {name: rows.tolist() for name, rows in parts.items()}


# --- pictures in one row


@pytest.mark.parametrize("shape", [(9,), (3, 3), (2, 4), (1, 3, 3), (3, 2, 4)])
@pytest.mark.parametrize("num_test", [0, 2])
def test_pictures_come_in_order_with_their_classes(shape, num_test):
    x = np.arange(5 * np.prod(shape), dtype=np.uint8).reshape(5, *shape)
    y = np.arange(5, dtype=np.uint8)
    known = 5 - num_test
    arrays = {"train_x": x[:known], "train_y": y[:known], "test_x": x[known:], "test_y": y[known:]}
    pictures, classes, trainable = join_pictures(arrays)
    sides = {1: (1, 3, 3), 2: (1, *shape), 3: shape}[len(shape)]
    assert pictures.shape == (5, *sides)
    assert pictures.dtype == torch.uint8
    assert pictures.flatten().tolist() == x.flatten().tolist()
    assert (classes.dtype, classes.tolist()) == (torch.int64, [0, 1, 2, 3, 4])
    assert trainable == known


def test_flat_pictures_that_are_no_squares_are_refused():
    x, y = np.zeros((2, 12)), np.zeros(2)
    with pytest.raises(ValueError, match="12"):
        join_pictures({"train_x": x, "train_y": y, "test_x": x[:0], "test_y": y[:0]})


# --- parts


@given(
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=5),
    more=st.integers(0, 5),
    rest=st.none() | st.integers(0, 4),
)
@settings(max_examples=60, deadline=None)
def test_cuts_are_consecutive_and_the_rest_is_what_others_leave(sizes, more, rest):
    order = permuted(sum(sizes) + more, source())
    wanted: dict[str, int | None] = {f"part {i}": size for i, size in enumerate(sizes)}
    if rest is not None:
        wanted[f"part {rest % len(sizes)}"] = None
    expected, start = {}, 0
    for i, size in enumerate(sizes):
        stop = start + size + (more if wanted[f"part {i}"] is None else 0)
        expected[f"part {i}"] = order[start:stop]
        start = stop
    actual = as_lists(cut_parts(torch.tensor(order), wanted))
    assert actual == expected
    assert list(actual) == list(wanted)


@pytest.mark.parametrize(
    "sizes", [{"a": 4, "b": 3}, {"a": 7, "b": None}, {"a": -1, "b": 2}, {"a": None, "b": None}]
)
def test_parts_that_cannot_be_cut_are_refused(sizes):
    with pytest.raises(ValueError, match=r"6 examples .*'a'"):
        cut_parts(torch.arange(6), sizes)


@given(seed=SEEDS, official=st.integers(0, 9), val=st.integers(0, 4), test=st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_parts_are_slices_of_one_permutation_or_of_two(seed, official, val, test):
    """Oracle: lists, sliced by hand, of what the generator permutes first and then."""
    test = min(test, official) if official else test
    drawn = draw_parts(
        {"val": val, "test": test, "train": None}, 12, source(seed), num_official_test=official
    )
    g = source(seed)
    order = permuted(12, g)
    expected = {"val": order[:val], "test": order[val : val + test], "train": order[val + test :]}
    if official:
        of_test = [12 + row for row in permuted(official, g)]
        expected |= {"test": of_test[:test], "train": order[val:]}
    assert as_lists(drawn) == expected
    assert list(drawn) == ["val", "test", "train"]


def test_the_test_part_may_stand_anywhere_and_be_absent():
    sizes = {"train": 3, "test": 2, "val": 1}
    drawn = draw_parts(sizes, 6, source(1), num_official_test=4)
    assert {name: len(rows) for name, rows in drawn.items()} == sizes
    others = draw_parts({"train": 3, "val": 1}, 6, source(1), num_official_test=4)
    assert as_lists(others) == {name: drawn[name].tolist() for name in ("train", "val")}


@pytest.mark.parametrize("sizes", [{"train": 7, "test": 1}, {"train": 1, "test": 5}])
def test_too_few_examples_or_official_test_examples_are_refused(sizes):
    with pytest.raises(ValueError, match=r"cannot cut [64] examples"):
        draw_parts(sizes, 6, source(), num_official_test=4)


# --- so many of each class


@given(y=LABELS, count=st.integers(0, 4))
@settings(max_examples=80, deadline=None)
def test_the_first_of_each_class_are_those_that_a_loop_counts(y, count):
    taken: list[int] = []
    counts = dict.fromkeys(range(4), 0)
    for position, label in enumerate(y):
        if counts[label] < count:
            counts[label] += 1
            taken.append(position)
    if min(counts.values()) < count:
        short = next(c for c in counts if counts[c] < count)
        with pytest.raises(ValueError, match=rf"class {short} has {counts[short]} .*{count} are"):
            take_of_each_class(torch.tensor(y), count, 4)
    else:
        assert take_of_each_class(torch.tensor(y), count, 4).tolist() == taken


@given(seed=SEEDS, y=LABELS, share=st.floats(0, 1), turned=st.booleans())
@settings(max_examples=80, deadline=None)
def test_draws_of_each_class_are_the_heads_of_permuted_members(seed, y, share, turned):
    classes = [3, 1] if turned else [1, 3]
    counts = {c: int(share * y.count(c)) for c in classes}
    g = np.random.default_rng(seed)
    expected: list[int] = []
    for c in classes:
        members = [position for position, label in enumerate(y) if label == c]
        expected += [members[k] for k in g.permutation(len(members))[: counts[c]]]
    drawn = draw_of_each_class(np.array(y), counts, np.random.default_rng(seed))
    assert drawn.tolist() == sorted(expected)
    all_of_them = {c: y.count(c) for c in classes}
    more = draw_of_each_class(np.array(y), all_of_them, np.random.default_rng(seed))
    assert set(drawn.tolist()) <= set(more.tolist())


@pytest.mark.parametrize("count", [3, -1])
def test_classes_with_too_few_examples_are_named(count):
    with pytest.raises(ValueError, match=f"class 5 has 2 examples, {count} are"):
        draw_of_each_class(np.array([5, 0, 5]), {0: 1, 5: count}, np.random.default_rng(0))


# --- copies


@given(seed=SEEDS, sizes=st.tuples(*[st.integers(1, 9)] * 3))
@settings(max_examples=60, deadline=None)
def test_copies_are_dealt_round_by_round_and_shuffled(seed, sizes):
    """Oracle: copies dealt one by one to those with the fewest, then put in the drawn order."""
    num_copied, more, extra = sizes
    num_distinct = num_copied + more - 1
    dealt = list(range(num_distinct))
    for _ in range(extra):
        dealt.append(min(range(num_copied), key=dealt.count))
    expected = [dealt[k] for k in permuted(len(dealt), source(seed))]
    drawn = draw_copies(num_distinct + extra, num_distinct, num_copied, source(seed))
    assert drawn.tolist() == expected


@pytest.mark.parametrize("sizes", [(5, 6, 1), (5, 3, 4), (5, 3, 0)])
def test_impossible_numbers_of_copies_are_refused(sizes):
    with pytest.raises(ValueError, match=", ".join(str(size) for size in reversed(sizes[1:]))):
        draw_copies(*sizes, source())


# --- label noise


@given(
    seed=SEEDS, y=LABELS, share=st.sampled_from([0.0, 0.2, 0.7, 1.0]), classes_first=st.booleans()
)
@settings(max_examples=80, deadline=None)
def test_wrong_labels_are_those_of_a_loop_over_the_drawn_numbers(seed, y, share, classes_first):
    g = source(seed)
    if classes_first:
        shifts = torch.randint(1, 5, (len(y),), generator=g).tolist()
    chances = torch.rand(len(y), generator=g).tolist()
    if not classes_first:
        shifts = torch.randint(1, 5, (len(y),), generator=g).tolist()
    share = float(torch.tensor(share))  # the draws are compared in float32
    expected = [
        (label + shift) % 5 if chance < share else label
        for label, shift, chance in zip(y, shifts, chances, strict=True)
    ]
    mine = source(seed)
    options = {"classes_first": True} if classes_first else {}
    labels, wrong = add_label_noise(torch.tensor(y), share, 5, mine, **options)
    assert labels.tolist() == expected
    assert wrong.tolist() == [a != b for a, b in zip(expected, y, strict=True)]
    # what is drawn later is the same for every share
    assert torch.equal(torch.rand(3, generator=mine), torch.rand(3, generator=g))


def test_labels_of_any_integer_type_stay_as_they_are():
    y = torch.tensor([2, 0, 1], dtype=torch.uint8)
    labels, wrong = add_label_noise(y, 1.0, 3, source())
    assert (labels.dtype, y.tolist()) == (torch.int64, [2, 0, 1])
    assert bool(wrong.all())
    assert not bool((labels == y).any())
    assert set(labels.tolist()) <= {0, 1, 2}


@pytest.mark.parametrize(
    ("share", "num_classes", "value"),
    [(1.1, 4, "share=1.1"), (-0.1, 4, "share=-0.1"), (0.5, 1, "num_classes=1"), (0.5, 3, "3")],
)
def test_impossible_noise_is_refused(share, num_classes, value):
    with pytest.raises(ValueError, match=value):
        add_label_noise(torch.tensor([0, 3]), share, num_classes, source())


# --- the same draws in years to come


def test_draws_of_a_seed_stay_what_they_are():
    """Oracle: numbers that the chapters drew before these functions were written."""
    g = source(7)
    parts = draw_parts({"val": 2, "test": 2, "train": None}, 6, g, num_official_test=3)
    assert as_lists(parts) == {"val": [3, 0], "test": [6, 8], "train": [1, 5, 2, 4]}
    labels, _ = add_label_noise(torch.tensor([0, 1, 2, 3, 4, 5]), 0.5, 10, g)
    assert labels.tolist() == [0, 4, 2, 3, 4, 9]
    assert draw_copies(6, 4, 2, g).tolist() == [0, 2, 1, 1, 3, 0]
    labels, _ = add_label_noise(torch.tensor([0, 1, 2, 3]), 0.5, 10, g, classes_first=True)
    assert labels.tolist() == [0, 4, 2, 3]
    y = np.array([0, 1, 0, 1, 1, 0])
    assert draw_of_each_class(y, {1: 2, 0: 1}, np.random.default_rng(7)).tolist() == [1, 2, 4]
