"""Encoders against plain formulas: what counts in a caption, and where the numbers come from."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainaug.methods.hard_negatives import SumOfHinges, cosine_scores, order_scores
from trainaug.training.networks import (
    BagOfTokens,
    CaptionGRU,
    DualEncoder,
    FeatureEncoder,
    PictureCNN,
)
from trainaug.training.randomness import stream

WORDS, DIM = 11, 5
# a whole caption, one with words left out in front and between, a single word, none kept, none
TOKENS = torch.tensor([[3, 1, 7, 2], [4, 9, 11, 6], [8, 0, 0, 0], [5, 2, 0, 0], [0, 0, 0, 0]])
WEIGHTS = torch.tensor(
    [[1.0, 1, 1, 1], [0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.float64
)
BUILD = {
    "features": lambda g: FeatureEncoder(6, 8, DIM, g),
    "cnn": lambda g: PictureCNN(DIM, g),
    "bag": lambda g: BagOfTokens(WORDS, DIM, g),
    "gru": lambda g: CaptionGRU(WORDS, DIM, g),
}
CAPTIONS = ("bag", "gru")


def built(name: str, seed: int = 0) -> nn.Module:
    return BUILD[name](stream(seed, "init")).double()


def pictures_for(name: str) -> Tensor:
    shape = (5, 6) if name == "features" else (5, 3, 32, 32)
    return torch.randn(*shape, dtype=torch.float64, generator=stream(0, "measure"))


def input_of(name: str):
    return (TOKENS, WEIGHTS) if name in CAPTIONS else pictures_for(name)


def dual(pictures: str, captions: str, score=cosine_scores, normalise: str = "both") -> DualEncoder:
    init = stream(0, "init")
    return DualEncoder(BUILD[pictures](init), BUILD[captions](init), score, normalise).double()


# --- formulas -------------------------------------------------------------------------------------


def test_features_pass_two_layers_with_a_relu_between():
    model, x = built("features"), pictures_for("features")
    first, last = model[0], model[2]
    expected = (x @ first.weight.T + first.bias).clamp_min(0) @ last.weight.T + last.bias
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    assert model(x).shape == (5, DIM)


@pytest.mark.parametrize("training", [True, False])
def test_cnn_is_four_strided_convolutions_and_a_mean(training):
    model, x = built("cnn").train(training), pictures_for("cnn")
    layers, y = list(model.features), x
    for convolution in layers[::3]:
        y = F.conv2d(y, convolution.weight, stride=2, padding=1)
        if training:  # fresh running statistics are 0 and 1
            mean, var = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), False, keepdim=True)
            y = (y - mean) / (var + 1e-5).sqrt()
        else:
            y = y / math.sqrt(1 + 1e-5)
        y = y.clamp_min(0)
    assert y.shape == (5, 128, 2, 2)
    expected = y.mean((2, 3)) @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)


def test_cnn_has_the_stated_size():
    count = sum(p.numel() for p in PictureCNN(128, stream(0, "init")).parameters())
    assert count == (3 * 16 + 16 * 32 + 32 * 64 + 64 * 128) * 9 + 2 * 240 + 128 * 129
    assert round(count / 1000) == 114


def test_bag_is_the_weighted_sum_of_word_vectors():
    model = built("bag")
    weights = WEIGHTS * torch.rand(5, 4, dtype=torch.float64, generator=stream(0, "measure"))
    expected = torch.zeros(5, DIM, dtype=torch.float64)
    for row in range(5):
        for position in range(4):
            expected[row] += weights[row, position] * model.embedding.weight[TOKENS[row, position]]
    torch.testing.assert_close(model((TOKENS, weights)), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(expected[3:], torch.zeros(2, DIM))  # nothing is kept


def gru_state(model: CaptionGRU, tokens: list[int]) -> Tensor:
    """Run the recurrence over the tokens of one caption in plain formulas."""
    gru, state = model.gru, torch.zeros(DIM, dtype=torch.float64)
    for token in tokens:
        word = model.embedding.weight[token]
        of_word = (gru.weight_ih_l0 @ word + gru.bias_ih_l0).split(DIM)
        of_state = (gru.weight_hh_l0 @ state + gru.bias_hh_l0).split(DIM)
        reset = torch.sigmoid(of_word[0] + of_state[0])
        keep = torch.sigmoid(of_word[1] + of_state[1])
        new = torch.tanh(of_word[2] + reset * of_state[2])
        state = (1 - keep) * new + keep * state
    return state


def test_gru_reads_the_kept_tokens_one_caption_at_a_time():
    model = built("gru")
    actual = model((TOKENS, WEIGHTS))
    for row, kept in enumerate([[3, 1, 7, 2], [9, 6], [8], [0], [0]]):
        torch.testing.assert_close(actual[row], gru_state(model, kept), rtol=1e-12, atol=1e-12)
        alone = model.gru(model.embedding(torch.tensor([kept])))[1][0, 0]
        torch.testing.assert_close(actual[row], alone, rtol=1e-12, atol=1e-12)
    reverse = model((TOKENS.flip(1), WEIGHTS.flip(1)))
    assert not torch.allclose(reverse[:2], actual[:2])  # order counts
    torch.testing.assert_close(reverse[2:], actual[2:], rtol=1e-12, atol=1e-12)  # padding in front


@pytest.mark.parametrize("name", CAPTIONS)
def test_padding_and_left_out_words_have_no_effect(name):
    model = built(name)
    actual = model((TOKENS, WEIGHTS))
    longer = F.pad(TOKENS, (0, 3)), F.pad(WEIGHTS, (0, 3))
    torch.testing.assert_close(model(longer), actual, rtol=1e-12, atol=1e-12)
    # a weight on padding changes nothing, nor does the word that is left out
    torch.testing.assert_close(
        model((longer[0], longer[1] + (longer[0] == 0))), actual, rtol=1e-12, atol=1e-12
    )
    other = TOKENS.masked_fill((WEIGHTS == 0) & (TOKENS > 0), 10)
    torch.testing.assert_close(model((other, WEIGHTS)), actual, rtol=1e-12, atol=1e-12)
    for row in range(5):  # nor do the other captions of the batch
        alone = model((TOKENS[row : row + 1], WEIGHTS[row : row + 1]))[0]
        torch.testing.assert_close(alone, actual[row], rtol=1e-12, atol=1e-12)
    assert model.embedding.weight[0].abs().sum() == 0


def test_words_of_a_bag_start_at_length_about_one():
    weight = BagOfTokens(500, 256, stream(0, "init")).embedding.weight.detach()
    lengths = weight[1:].norm(dim=1)
    # chi with 256 degrees of freedom, divided by 16: mean 1, deviation 0.044
    assert float(lengths.mean()) == pytest.approx(1, abs=0.01)
    assert float(lengths.std()) == pytest.approx(0.044, abs=0.01)


# --- both together --------------------------------------------------------------------------------


@pytest.mark.parametrize("normalise", ["both", "captions", "none"])
def test_normalise_says_which_side_has_unit_length(normalise):
    model = dual("features", "bag", lambda images, captions: images @ captions.T, normalise)
    x, caption = pictures_for("features")[:3], (TOKENS[:3], WEIGHTS[:3])
    images, texts = model.pictures(x), model.captions(caption)
    if normalise == "both":
        images = images / images.square().sum(1, keepdim=True).sqrt()
    if normalise != "none":
        texts = texts / texts.square().sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(model.embed_pictures(x), images, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model.embed_captions(caption), texts, rtol=1e-12, atol=1e-12)
    scores = model((x, caption)).tolist()
    for i in range(3):
        for j in range(3):  # rows are pictures
            assert scores[i][j] == pytest.approx((images[i] @ texts[j]).item(), abs=1e-12)


@pytest.mark.parametrize("normalise", ["pictures", "", "Both"])
def test_an_unknown_normalise_is_refused(normalise):
    with pytest.raises(ValueError, match=f"got '{normalise}'"):
        dual("features", "bag", normalise=normalise)


@pytest.mark.parametrize("score", [cosine_scores, order_scores])
@pytest.mark.parametrize("captions", CAPTIONS)
@pytest.mark.parametrize("pictures", ["features", "cnn"])
def test_gradients_flow_to_every_parameter(pictures, captions, score):
    model = dual(pictures, captions, score)
    x = pictures_for(pictures)
    scores = model((x, (TOKENS, WEIGHTS)))
    SumOfHinges(margin=5.0)(scores).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert bool(p.grad.isfinite().all()), name
        assert float(p.grad.abs().sum()) > 0, name
    words = model.captions.embedding.weight.grad.abs().sum(1)
    used = set(TOKENS[WEIGHTS > 0].tolist())
    assert set(words.nonzero().flatten().tolist()) == used  # padding and left-out words: none


# --- randomness and devices -----------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILD)
def test_the_generator_alone_decides_the_weights(name):
    states = [built(name, seed).state_dict() for seed in (0, 0, 1)]
    with torch.random.fork_rng([]):
        torch.manual_seed(123)
        states.append(built(name).state_dict())
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key])
        assert torch.equal(value, states[3][key])
    assert any(not torch.equal(value, states[2][key]) for key, value in states[0].items())


@pytest.mark.parametrize("name", BUILD)
def test_same_values_under_another_default_device(name, same_inside_meta):
    tensors = input_of(name)
    tensors = tensors if isinstance(tensors, tuple) else (tensors,)

    def call(*given: Tensor) -> list[Tensor]:
        model = built(name)
        values = model(given if len(given) > 1 else given[0])
        values.square().sum().backward()
        return [values.detach(), *(p.grad for p in model.parameters())]

    same_inside_meta(call, *tensors)


def test_the_whole_has_the_same_values_under_another_default_device(same_inside_meta):
    def call(x: Tensor, tokens: Tensor, weights: Tensor) -> Tensor:
        return dual("cnn", "gru")((x, (tokens, weights))).detach()

    same_inside_meta(call, pictures_for("cnn"), TOKENS, WEIGHTS)


@pytest.mark.parametrize("size", [1e-4, 1.0, 3e4])
def test_half_precision_embeddings_have_length_one_and_zeros_stay_zeros(size):
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0]]).mul(size / 5).half()
    both = DualEncoder(nn.Identity(), nn.Identity(), cosine_scores)
    for actual in (both.embed_pictures(rows), both.embed_captions(rows)):
        assert actual.dtype == torch.float16
        expected = torch.tensor([[0.6, 0.8], [0.0, 0.0]])
        torch.testing.assert_close(actual.float(), expected, rtol=0, atol=2e-3)
