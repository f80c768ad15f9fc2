"""Chapter 1: the splits, and the training items that are drawn from them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from companion.chapters.hard_negatives.problems import (
    Gallery,
    Pairs,
    PairsDataset,
    Retrieval,
    load_pairs,
)
from trainaug.data.bag_of_words import split_words
from trainaug.data.emoji_captions import emoji_captions
from trainaug.training.randomness import stream

pytestmark = pytest.mark.usefixtures("untouched_randomness")


@pytest.fixture(scope="module")
def family() -> Pairs:
    return load_pairs(Retrieval(), 0)


@pytest.fixture(scope="module")
def vendor() -> Pairs:
    return load_pairs(Retrieval(split="vendor"), 0)


def concepts_of(galleries: Sequence[Gallery]) -> set[int]:
    return set(torch.cat([gallery.concepts for gallery in galleries]).tolist())


def test_family_split_tests_new_concepts_in_every_style(family: Pairs) -> None:
    parts = set(family.train[:, 0].tolist()), concepts_of(family.val), concepts_of(family.test)
    families = emoji_captions().families
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not parts[a] & parts[b]
        assert not set(families[list(parts[a])]) & set(families[list(parts[b])])
    assert parts[2] <= set(family.tested.tolist())
    assert len(family.train) == 4 * len(parts[0])
    assert [gallery.vendor for gallery in family.val + family.test] == [0, 1, 2, 3] * 2
    assert torch.equal(family.tested, load_pairs(Retrieval(), 0).tested)
    assert not torch.equal(family.tested, load_pairs(Retrieval(), 1).tested)


def test_vendor_split_trains_on_two_styles_and_tests_a_fourth(vendor: Pairs) -> None:
    assert set(vendor.train[:, 1].tolist()) == {0, 1}
    assert set(vendor.train[:, 0].tolist()) == set(range(1594))
    vendors = [[gallery.vendor for gallery in part] for part in (vendor.val, vendor.test)]
    assert vendors == [[2], [3]]


def test_galleries_have_known_words_and_no_drawing_twice(family: Pairs, vendor: Pairs) -> None:
    for pairs in (family, vendor):
        seen = pairs.tokens[pairs.train[:, 0]].unique()
        assert seen.tolist() == list(range(pairs.vocabulary + 1))  # words of training alone
        for gallery in pairs.val + pairs.test:
            assert bool((pairs.tokens[gallery.concepts] > 0).any(1).all())
            drawings = emoji_captions().pictures[gallery.concepts.numpy(), gallery.vendor]
            assert len({drawing.tobytes() for drawing in drawings}) == len(drawings)


def test_fewer_items_and_concepts_change_nothing_else(family: Pairs) -> None:
    few = load_pairs(Retrieval(num_train=1000, num_gallery=10), 0)
    assert torch.equal(few.train, family.train[:: len(family.train) // 1000])
    for small, whole in zip(few.val + few.test, family.val + family.test, strict=True):
        assert torch.equal(small.concepts, whole.concepts[:10])
    for name in ("pictures", "tokens", "in_name", "tested"):
        assert torch.equal(getattr(few, name), getattr(family, name))
    more = load_pairs(Retrieval(num_train=10**6), 0)
    assert torch.equal(more.train, family.train)


@pytest.mark.parametrize("setting", ["split", "encoder"])
def test_unknown_choice_is_refused(setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting} .* 'new'"):
        Retrieval(**{setting: "new"})


def test_name_tokens_are_the_known_words_of_the_name(family: Pairs) -> None:
    names = emoji_captions().names
    for concept in family.train[::40, 0].tolist():
        row, marked = family.tokens[concept], family.in_name[concept]
        count = int((marked & (row > 0)).sum())
        assert count == len(set(split_words(names[concept])))
        assert row[:count].gt(0).all()  # the name stands first
        assert marked[:count].all()


# --- training items -------------------------------------------------------------------------------


def items(
    pairs: Pairs,
    seed: int = 0,
    *,
    crops: bool = True,
    word_drop: float = 0.1,
    feature_drop: float = 0.2,
) -> tuple[Tensor, Tensor, Tensor]:
    """Ask for 2000 items: pictures, weights of the tokens, concepts."""
    dataset = PairsDataset(
        pairs,
        crops=crops,
        word_drop=word_drop,
        feature_drop=feature_drop,
        generator=stream(seed, "augment"),
    )
    (picture, (tokens, weights)), concept, index = dataset[range(2000)]
    assert len(dataset) == len(pairs.train)
    assert torch.equal(pairs.train[index, 0], concept)
    assert torch.equal(tokens, pairs.tokens[concept])
    return picture, weights, concept


def test_items_are_reproducible_from_the_generator(family: Pairs) -> None:
    first, again, other = (items(family, seed)[:2] for seed in (0, 0, 1))
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_names_are_kept_up_to_the_word_drop(family: Pairs) -> None:
    _, weights, concept = items(family)
    known, name = family.tokens[concept] > 0, family.in_name[concept]
    assert set(weights.unique().tolist()) == {0.0, 1.0}
    assert not weights[~known].any()
    kept_name = float(weights[known & name].mean())
    assert kept_name == pytest.approx(0.9, abs=0.02)  # about 5000 draws
    assert float(weights[known & ~name].mean()) == pytest.approx(0.45, abs=0.03)
    _, weights, _ = items(family, word_drop=0.0)
    assert bool(weights[known & name].all())
    assert float(weights[known & ~name].mean()) == pytest.approx(0.5, abs=0.03)


def test_without_crops_the_picture_is_the_whole_one(family: Pairs) -> None:
    concept, vendor = family.train[:2000].unbind(1)
    views = family.pictures[concept, vendor]  # (2000, 6, F)
    picture, _, _ = items(family, crops=False)
    dropped = (picture == 0) & (views[:, 0] != 0)
    assert float(dropped.float().mean()) == pytest.approx(0.2, abs=0.02)
    expected = (views[:, 0] / 0.8).masked_fill(dropped, 0.0)
    torch.testing.assert_close(picture, expected, rtol=1e-6, atol=0)
    assert torch.equal(items(family, crops=False, feature_drop=0.0)[0], views[:, 0])
    cropped = items(family, feature_drop=0.0)[0]
    drawn = (cropped.unsqueeze(1) == views).all(2)  # (2000, 6)
    assert bool(drawn.any(1).all())
    assert float(drawn.float().mean(0).min()) > 0.1  # each view about a sixth
