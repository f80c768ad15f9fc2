"""Bags of words: by hand, and against scikit-learn's tf-idf."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

from trainaug.data.bag_of_words import build_vocabulary, split_words, tf_idf, token_matrix
from trainaug.data.emoji_captions import emoji_captions

pytestmark = pytest.mark.usefixtures("untouched_randomness")

TEXTS = (
    "kiss: man, man",
    "Man dancing | dance | MAN",
    "flag: Côte d’Ivoire",
    "keycap: 10 | ten",
    "hug_face",
    "",
    "dance dance dance ten",
)


def sklearn_weights(texts: list[str], train: list[int]) -> np.ndarray:
    """Let scikit-learn learn words and rarities from the training texts, and weigh all texts."""
    vectorizer = TfidfVectorizer(
        binary=True, smooth_idf=True, norm="l2", token_pattern=r"[^\W_]+", dtype=np.float64
    )
    vectorizer.fit([texts[i] for i in train])
    assert list(vectorizer.get_feature_names_out()) == sorted(vectorizer.vocabulary_)
    return vectorizer.transform(texts).toarray()


def own_weights(texts: list[str], train: list[int]) -> torch.Tensor:
    vocabulary = build_vocabulary(texts[i] for i in train)
    return tf_idf(token_matrix(texts, vocabulary), torch.tensor(train), len(vocabulary))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Kiss: man, man", ["kiss", "man", "man"]),
        ("flag: Côte d’Ivoire", ["flag", "côte", "d", "ivoire"]),
        ("hug_face|10-thirty", ["hug", "face", "10", "thirty"]),
        ("ÄÖ ß 日本", ["äö", "ß", "日本"]),
        (" #* —\n", []),
        ("", []),
    ],
)
def test_words_are_letters_and_digits_in_lower_case(text, words):
    assert split_words(text) == words


def test_vocabulary_counts_from_one_in_alphabetical_order():
    assert build_vocabulary(["b a", "C a"]) == {"a": 1, "b": 2, "c": 3}
    assert build_vocabulary(iter(["c", "a b a"])) == {"a": 1, "b": 2, "c": 3}
    assert build_vocabulary([]) == {}


def test_tokens_are_the_known_words_once_in_order_then_zeros():
    vocabulary = {"man": 1, "kiss": 2, "dance": 3, "ten": 4}
    tokens = token_matrix(TEXTS, vocabulary)
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == [[2, 1], [1, 3], [0, 0], [4, 0], [0, 0], [0, 0], [3, 4]]
    # as wide as the longest text, not as the vocabulary
    assert token_matrix(["ten", ""], vocabulary).tolist() == [[4], [0]]
    assert token_matrix(["unknown", ""], vocabulary).shape == (2, 0)


def test_weights_by_hand():
    # of three training texts "a" is in three, "b" in one, and "c" in none but the last text
    tokens = torch.tensor([[1, 2], [1, 0], [1, 0], [3, 0], [0, 0]])
    actual = tf_idf(tokens, torch.tensor([0, 1, 2]), 3)
    assert actual.dtype == torch.float32
    common, rare = 1.0, np.log(4 / 2) + 1
    length = np.hypot(common, rare)
    expected = [[common / length, rare / length, 0], [1, 0, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0]]
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-6, atol=1e-7)


def test_weights_are_those_of_scikit_learn():
    for train in ([0, 1, 3, 6], [1], list(range(len(TEXTS)))):
        expected = sklearn_weights(list(TEXTS), train)
        actual = own_weights(list(TEXTS), train)
        assert actual.shape == expected.shape
        np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=1e-6)  # float32


LETTERS = st.text(alphabet="abcdeABé1 _-", max_size=12)


@settings(deadline=None, max_examples=60)
@given(st.lists(LETTERS, min_size=1, max_size=12), st.data())
def test_weights_of_any_texts_are_those_of_scikit_learn(texts, data):
    rows = st.sets(st.integers(0, len(texts) - 1), min_size=1)
    train = sorted(data.draw(rows))
    vocabulary = build_vocabulary(texts[i] for i in train)
    assume(vocabulary)  # scikit-learn refuses an empty one
    expected, actual = sklearn_weights(texts, train), own_weights(texts, train).numpy()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)  # float32
    lengths = np.linalg.norm(actual, axis=1)
    known = (token_matrix(texts, vocabulary) > 0).any(1).numpy()
    np.testing.assert_allclose(lengths, known, rtol=0, atol=1e-6)


def test_weights_of_the_emoji_are_those_of_scikit_learn():
    data = emoji_captions()
    texts = [" ".join([n, *k]) for n, k in zip(data.names, data.keywords, strict=True)]
    train = list(range(0, len(texts), 2))
    expected, actual = sklearn_weights(texts, train), own_weights(texts, train)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=1e-6)  # float32


def test_no_text_gives_no_row_and_one_text_is_no_sequence() -> None:
    assert token_matrix([], {"man": 1}).shape == (0, 0)
    with pytest.raises(TypeError, match="got one text"):
        token_matrix("man", {"man": 1})


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_weights_do_not_depend_on_the_type_of_integers(dtype) -> None:
    vocabulary = build_vocabulary(TEXTS)
    tokens, train = token_matrix(TEXTS, vocabulary), torch.tensor([0, 1, 6])
    expected = tf_idf(tokens, train, len(vocabulary))
    assert torch.equal(tf_idf(tokens.to(dtype), train.to(dtype), len(vocabulary)), expected)


@pytest.mark.parametrize(
    ("tokens", "train"),
    [
        ([[1, 3]], [0]),
        ([[-1, 2]], [0]),
        ([[1.0, 2.0]], [0]),
        ([[1, 2]], [1]),
        ([[1, 2]], [-1]),
        ([[1, 2]], [True]),
        ([[1, 2]], [0.0]),
    ],
)
def test_numbers_that_are_no_tokens_or_rows_are_refused(tokens, train) -> None:
    with pytest.raises(ValueError, match="must be"):
        tf_idf(torch.tensor(tokens), torch.tensor(train), 2)
