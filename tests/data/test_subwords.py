"""Sub-word units: round trip, special numbers, same units for same texts; tf-idf as sklearn's."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfTransformer, TfidfVectorizer
from torch import Tensor

from trainaug.data.subwords import (
    END,
    PAD,
    START,
    UNKNOWN,
    DocumentCounts,
    Subwords,
    document_counts,
    tfidf_bags,
    train_subwords,
)

TEXTS = [
    "Click the icon, and then click the button.",
    "Klicken Sie auf das Symbol (F5) und dann auf die Schaltfläche.",
    "Click the (small) icon twice!",
    "Das Symbol, das kleine Symbol, öffnet die Datei „x.txt“ – auch =SUM(A1;B2).",
]


@pytest.fixture(scope="module")
def subwords() -> Subwords:
    return train_subwords(TEXTS, 120)


def test_special_units_have_their_numbers() -> None:
    assert (PAD, START, END, UNKNOWN) == (0, 1, 2, 3)


@pytest.mark.parametrize("size", [70, 90, 120])
def test_training_texts_survive_the_round_trip(size) -> None:
    units = train_subwords(TEXTS, size)
    assert len(units) == size
    ids = units.encode(TEXTS, 200)
    assert ids.dtype == torch.int64
    assert not (ids == UNKNOWN).any()
    assert int(ids.max()) < size
    assert units.decode(ids) == TEXTS


def test_larger_vocabulary_gives_shorter_rows() -> None:
    lengths = [
        int((train_subwords(TEXTS, size).encode(TEXTS, 200) > END).sum()) for size in (60, 90, 120)
    ]
    assert lengths == sorted(lengths, reverse=True)
    assert len(set(lengths)) == 3


def test_units_do_not_cross_words_or_punctuation() -> None:
    ids = train_subwords(["so, so, so, so, (so) we do"] * 9, 60).encode(["so, we"], 9)
    assert int((ids > END).sum()) == 3


def test_rows_end_with_the_end_and_are_padded(subwords) -> None:
    ids = subwords.encode(["Click the icon", "", "Click"], 50)
    assert ids.shape == (3, int((ids[0] != PAD).sum()))
    for row in ids.tolist():
        end = row.index(END)
        assert all(number > UNKNOWN for number in row[:end])
        assert row[end + 1 :] == [PAD] * (len(row) - end - 1)
    assert ids[1, 0] == END
    assert subwords.decode(ids) == ["Click the icon", "", "Click"]


def test_long_texts_are_cut_but_end(subwords) -> None:
    whole = subwords.encode(TEXTS[:1], 99)[0]
    for length in (1, 2, 5):
        ids = subwords.encode(TEXTS, length)
        assert ids.shape == (4, length)
        assert (ids[:, -1] == END).all()
        assert torch.equal(ids[0, :-1], whole[: length - 1])
    exact = subwords.encode(TEXTS[:1], len(whole))
    assert torch.equal(exact[0], whole)


def test_no_texts_give_no_rows(subwords) -> None:
    assert subwords.encode([], 9).shape == (0, 0)
    assert subwords.encode([], 9).dtype == torch.int64
    assert subwords.decode(torch.zeros(0, 4, dtype=torch.long)) == []


def test_unseen_characters_are_unknown_and_say_so(subwords) -> None:
    ids = subwords.encode(["Click 車"], 9)
    assert (ids == UNKNOWN).sum() == 1
    assert subwords.decode(ids) == ["Click <unknown>"]


def test_names_of_special_units_in_a_text_are_text() -> None:
    units = train_subwords([*TEXTS, "<pad> <start> <end> <unknown>"], 120)
    ids = units.encode(["<end> of <pad>"], 50)
    assert (ids == END).sum() == 1
    assert units.decode(ids) == ["<end> of <pad>"]


def test_white_space_is_levelled(subwords) -> None:
    ids = subwords.encode(["Click the icon", "  Click\tthe\n icon "], 50)
    assert torch.equal(ids[0], ids[1])


def test_decoding_stops_at_the_first_end_and_drops_start(subwords) -> None:
    body = subwords.encode(["Click"], 50)[0].tolist()
    rest = subwords.encode(["the icon"], 50)[0].tolist()
    assert subwords.decode(torch.tensor([[START, *body, *rest, PAD]])) == ["Click"]
    assert subwords.decode(torch.tensor([[START, PAD, *body[:-1]]])) == ["Click"]


@pytest.mark.parametrize("length", [0, -3])
def test_row_without_room_for_the_end_is_refused(length, subwords) -> None:
    with pytest.raises(ValueError, match=f"at least 1, got {length}"):
        subwords.encode(["a"], length)


def test_too_small_a_vocabulary_is_refused() -> None:
    characters = {c for text in TEXTS for c in text if c != " "} | {"▁"}
    least = 4 + len(characters)
    assert len(train_subwords(TEXTS, least)) == least
    with pytest.raises(ValueError, match=f"at least {least}, .* got {least - 1}"):
        train_subwords(TEXTS, least - 1)


def test_model_survives_json(subwords) -> None:
    again = Subwords(subwords.to_json())
    assert len(again) == len(subwords) == 120
    assert torch.equal(again.encode(TEXTS, 99), subwords.encode(TEXTS, 99))
    assert (again.encode(["<end>"], 99) == END).sum() == 1


def test_same_texts_give_the_same_units_in_any_order_process_and_thread_number(subwords) -> None:
    expected = subwords.to_json()
    assert train_subwords(reversed(TEXTS), 120).to_json() == expected
    code = "import sys; from trainaug.data.subwords import train_subwords as t\n"
    code += f"sys.stdout.buffer.write(t({TEXTS!r}, 120).to_json().encode())"
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert run.stdout.decode() == expected


# --- tf-idf


def random_ids(rows: int, length: int, size: int, seed: int) -> Tensor:
    """Rows with a start, an end and padding, some empty."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(UNKNOWN, size, (rows, length), generator=generator)
    ends = torch.randint(0, length, (rows,), generator=generator)
    places = torch.arange(length)
    ids[places[None] > ends[:, None]] = PAD
    ids[torch.arange(rows), ends] = END
    return torch.cat([torch.full((rows, 1), START), ids], 1)


def dense(bags: Tensor, weights: Tensor, size: int) -> np.ndarray:
    actual = torch.zeros(len(bags), size).scatter_(1, bags, weights)
    return actual.numpy()


def count_matrix(ids: Tensor, size: int) -> np.ndarray:
    counts = np.zeros((len(ids), size))
    for row, numbers in enumerate(ids.tolist()):
        for number in numbers:
            counts[row, number] += number not in (PAD, START, END)
    return counts


@pytest.mark.parametrize(("rows", "length", "size", "seed"), [(1, 3, 5, 0), (40, 12, 20, 1)])
def test_weights_equal_sklearns(rows, length, size, seed) -> None:
    train, other = random_ids(50, length, size, seed), random_ids(rows, length, size, seed + 9)
    oracle = TfidfTransformer().fit(count_matrix(train, size))
    counts = document_counts(train, size)
    for ids in (train, other):
        bags, weights = tfidf_bags(ids, size, counts)
        assert (bags.dtype, weights.dtype) == (torch.int64, torch.float32)
        expected = oracle.transform(count_matrix(ids, size)).toarray()
        np.testing.assert_allclose(dense(bags, weights, size), expected, atol=1e-6)  # float32
    ours = TfidfTransformer().fit_transform(count_matrix(other, size)).toarray()
    np.testing.assert_allclose(dense(*tfidf_bags(other, size), size), ours, atol=1e-6)


def test_weights_of_texts_equal_the_vectorizers(subwords) -> None:
    ids = subwords.encode(TEXTS, 200)
    vectorizer = TfidfVectorizer(analyzer=lambda row: [n for n in row if n > END])
    expected = vectorizer.fit_transform(ids.tolist()).toarray()
    columns = vectorizer.get_feature_names_out().astype(int)
    actual = dense(*tfidf_bags(ids, len(subwords)), len(subwords))
    np.testing.assert_allclose(actual[:, columns], expected, atol=1e-6)  # float32


def test_bags_are_distinct_sorted_and_padded() -> None:
    ids = random_ids(40, 12, 9, 3)
    bags, weights = tfidf_bags(ids, 9)
    sets = [sorted({n for n in row if n > END}) for row in ids.tolist()]
    assert bags.shape == weights.shape == (40, max(map(len, sets)))
    for bag, weight, expected in zip(bags, weights, sets, strict=True):
        assert bag.tolist() == expected + [PAD] * (bags.shape[1] - len(expected))
        assert (weight[len(expected) :] == 0).all()
        assert (weight[: len(expected)] > 0).all()
        assert float(weight.norm()) == pytest.approx(1.0 if expected else 0.0, abs=1e-6)
    assert any(not expected for expected in sets)


def test_document_counts_are_of_texts_not_of_occurrences() -> None:
    actual = document_counts(torch.tensor([[1, 4, 4, 2], [5, 4, 2, 0], [2, 0, 0, 0]]), 7)
    assert actual.total == 3
    assert actual.counts.tolist() == [0, 0, 0, 0, 2, 1, 0]


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (2, 0), (2, 3)])
def test_bags_of_nothing_are_empty(shape) -> None:
    ids = torch.zeros(shape, dtype=torch.long)
    bags, weights = tfidf_bags(ids, 5)
    assert bags.shape == weights.shape == (shape[0], 0)
    assert document_counts(ids, 5).counts.tolist() == [0] * 5


@pytest.mark.parametrize("number", [-1, 5])
def test_numbers_outside_the_vocabulary_are_refused(number) -> None:
    ids = torch.tensor([[4, number]])
    for call in (tfidf_bags, document_counts):
        with pytest.raises(ValueError, match=r"in 0 \.\. 4"):
            call(ids, 5)


def test_counts_of_another_vocabulary_are_refused() -> None:
    with pytest.raises(ValueError, match=r"counts are of \(4,\) units, expected 5"):
        tfidf_bags(torch.tensor([[4]]), 5, DocumentCounts(1, torch.zeros(4)))


# --- what is no model, and types of numbers


@pytest.mark.parametrize("change", [lambda m: m, lambda m: "\ufeff" + m])
def test_model_is_read_with_or_without_a_byte_order_mark(change) -> None:
    model = train_subwords(["ab ab"], 20).to_json()
    assert Subwords(change(model)).to_json() == model


@pytest.mark.parametrize(
    "model", ["", "{}", "null", "[" * 100_000, "<html></html>", "version https://git-lfs"]
)
def test_text_that_is_no_model_is_refused(model) -> None:
    with pytest.raises(ValueError, match="not the JSON text of sub-word units"):
        Subwords(model)


def test_model_of_other_special_units_is_refused() -> None:
    model = train_subwords(["ab ab"], 20).to_json()
    with pytest.raises(ValueError, match="the first sub-word units must be"):
        Subwords(model.replace("<start>", "[CLS]"))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_bags_of_small_integers_are_the_same(dtype) -> None:
    ids = torch.tensor([[5, 4, 5, END], [7, END, PAD, PAD]])
    for actual, expected in zip(tfidf_bags(ids.to(dtype), 8), tfidf_bags(ids, 8), strict=True):
        assert torch.equal(actual, expected)
    with pytest.raises(ValueError, match="integer type"):
        tfidf_bags(ids.float(), 8)
