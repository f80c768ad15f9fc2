"""The translation model: what may look at what, its loss against a loop, and that it learns."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainaug.training.randomness import stream
from trainaug.training.translation import (
    END,
    PAD,
    START,
    TranslationModel,
    greedy_decode,
    translation_losses,
)

WORDS = 13
SOURCE = torch.tensor([[5, 3, 9, 4, 2], [7, 2, 0, 0, 0], [6, 8, 10, 2, 0]])
BEFORE = torch.tensor([[START, 4, 6, 8], [START, 11, 0, 0], [START, 3, 12, 0]])
AFTER = torch.tensor([[4, 6, 8, END], [11, END, 0, 0], [3, 12, END, 0]])


def built(seed: int = 0, **options) -> TranslationModel:
    options = {"dim": 16, "heads": 2} | options
    return TranslationModel(WORDS, stream(seed, "init"), **options).double()


def padded(tokens: Tensor, by: int) -> Tensor:
    return F.pad(tokens, (0, by))


# --- loss -----------------------------------------------------------------------------------------


@pytest.mark.oracle("aa.6")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_match_naive_loop(dtype):
    logits = torch.randn(3, 4, WORDS, generator=stream(0, "measure"), dtype=dtype)
    expected = []
    for sentence, tokens in zip(logits.double(), AFTER, strict=True):
        terms = [-scores.log_softmax(0)[t] for scores, t in zip(sentence, tokens, strict=True) if t]
        expected.append(sum(terms) / len(terms))
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5  # rounding of a mean of four logarithms
    torch.testing.assert_close(
        translation_losses(logits, AFTER).double(),
        torch.stack(expected),
        rtol=tolerance,
        atol=tolerance,
    )


def test_a_long_sentence_of_equally_likely_tokens_is_no_harder():
    losses = translation_losses(torch.zeros(3, 4, WORDS, dtype=torch.float64), AFTER)
    expected = torch.full((3,), float(WORDS), dtype=torch.float64).log()
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=0)


def test_gradient_stays_in_its_sentence_and_out_of_padding():
    logits = torch.zeros(3, 4, WORDS, requires_grad=True)
    translation_losses(logits, AFTER)[2].backward()
    touched = logits.grad.abs().sum(2) > 0
    assert touched.tolist() == [[False] * 4, [False] * 4, [True, True, True, False]]


# --- who looks at what ----------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("more", [(3, 0), (0, 2), (4, 3)])
def test_more_padding_changes_no_loss(more, training):
    model = built().train(training)
    with torch.no_grad():
        plain = translation_losses(model((SOURCE, BEFORE)), AFTER)
        wide = padded(SOURCE, more[0]), padded(BEFORE, more[1])
        other = translation_losses(model(wide), padded(AFTER, more[1]))
    torch.testing.assert_close(other, plain, rtol=1e-10, atol=1e-10)  # sums of other lengths


@pytest.mark.parametrize("position", [1, 2, 3])
def test_no_state_sees_a_later_token(position):
    model = built()
    changed = BEFORE.clone()
    changed[:, position:] = 5
    with torch.no_grad():
        plain, other = model((SOURCE, BEFORE)), model((SOURCE, changed))
    torch.testing.assert_close(other[:, :position], plain[:, :position], rtol=1e-10, atol=1e-10)
    assert (other[:, position] - plain[:, position]).abs().max() > 1e-6


def test_states_depend_on_source_and_on_order():
    model = built()
    with torch.no_grad():
        plain = model((SOURCE, BEFORE))
        turned = SOURCE.clone()
        turned[0, :2] = SOURCE[0, :2].flip(0)
        other = model((turned, BEFORE))
    assert (other[0] - plain[0]).abs().max() > 1e-6
    torch.testing.assert_close(other[1:], plain[1:], rtol=1e-10, atol=1e-10)


def test_sentences_do_not_see_each_other():
    model = built()
    with torch.no_grad():
        together = model((SOURCE, BEFORE))
        alone = model((SOURCE[1:2], BEFORE[1:2]))
    torch.testing.assert_close(together[1:2], alone, rtol=1e-10, atol=1e-10)


# --- weights --------------------------------------------------------------------------------------


def test_same_seed_same_weights_and_other_seed_others():
    first, again, other = built(3), built(3), built(4)
    for (name, a), b, c in zip(
        first.named_parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(a, b), name
        assert a.ndim == 1 or not torch.equal(a, c), name


def test_layers_differ_norms_are_neutral_and_padding_is_nothing():
    model = built()
    first, second = (layer.linear1.weight for layer in model.encoder.layers)
    assert not torch.equal(first, second)
    assert bool((model.embedding.weight[PAD] == 0).all())
    assert bool((model.encoder.norm.weight == 1).all())
    assert bool((model.decoder.layers[0].self_attn.in_proj_bias == 0).all())
    assert model.embedding.weight[1:].std().item() == pytest.approx(16**-0.5, rel=0.2)  # 192 draws


def test_one_table_of_embeddings():
    names = [name for name, p in built().named_parameters() if p.shape[0] == WORDS]
    assert names == ["embedding.weight"]


def test_size_of_the_model_of_the_chapter():
    model = TranslationModel(2000, stream(0, "init"))
    assert sum(p.numel() for p in model.parameters()) == 1_182_208


# --- learning and decoding ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learnt() -> tuple[TranslationModel, Tensor, Tensor]:
    """A model that learnt eight pairs by heart."""
    g = stream(0, "candidates")
    source = torch.randint(3, WORDS, (8, 5), generator=g)
    target = torch.randint(3, WORDS, (8, 6), generator=g)
    for row in range(8):
        source[row, 2 + row % 4 :] = PAD
        target[row, 1 + row % 6 :] = PAD
    source = padded(source, 1)
    before = torch.cat([torch.full((8, 1), START), target], 1)
    after = padded(target, 1)
    after[torch.arange(8), (target != PAD).sum(1)] = END
    model = built(dim=32).float()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        translation_losses(model((source, before)), after).mean().backward()
        optimizer.step()
    return model, source, target


def test_overfits_eight_pairs_and_decodes_them(learnt):
    model, source, target = learnt
    actual = greedy_decode(model, source, batch_size=3)
    assert torch.equal(actual[:, :6], target)
    assert bool((actual[:, 6:] == PAD).all())


def test_decoding_leaves_the_model_and_batches_do_not_matter(learnt):
    model, source, _ = learnt
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    actual = greedy_decode(model, source, batch_size=1)
    assert torch.equal(actual, greedy_decode(model, source))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_decoding_stops_at_the_limit_of_each_sentence():
    model = built()
    with torch.no_grad():  # one token is always likeliest, so no sentence ends by itself
        model.decoder.norm.weight.zero_()
        model.decoder.norm.bias.copy_(model.embedding.weight[7])
        model.embedding.weight[7] *= 10
    actual = greedy_decode(model, SOURCE, most=1.4)
    assert (actual == 7).sum(1).tolist() == [12, 7, 10]  # 1.4 * (5, 2, 4) + 5
    assert (actual == PAD).sum(1).tolist() == [0, 5, 2]


def test_decoded_tokens_are_the_likeliest_after_those_before(learnt):
    model, source, _ = learnt
    actual = greedy_decode(model, source)
    with torch.no_grad():
        logits = model((source, torch.cat([torch.full((8, 1), START), actual], 1)))
    for row in range(8):
        for position, token in enumerate(actual[row].tolist()):
            if token == PAD:
                break
            assert int(logits[row, position].argmax()) == token


# --- devices and bad input ------------------------------------------------------------------------


def test_same_values_under_another_default_device(same_inside_meta):
    def call(source: Tensor, before: Tensor, after: Tensor) -> list[Tensor]:
        model = built()
        losses = translation_losses(model((source, before)), after)
        losses.sum().backward()
        grads = [p.grad for p in model.parameters()]
        return [losses.detach(), greedy_decode(model, source), *grads]

    same_inside_meta(call, SOURCE, BEFORE, AFTER)


@pytest.mark.parametrize(
    "options",
    [{"dim": 15}, {"dim": 0}, {"heads": 3}, {"layers": 0}, {"dropout": 1.0}, {"longest": 0}],
)
def test_wrong_sizes_raise(options):
    with pytest.raises(ValueError, match=str(next(iter(options.values())))):
        built(**options)


def test_wrong_input_raises():
    model = built(longest=4)
    with pytest.raises(ValueError, match="5 tokens, more than 4"):
        model((SOURCE, BEFORE))
    with pytest.raises(ValueError, match="vocabulary=2"):
        TranslationModel(2, stream(0, "init"))
    logits = torch.zeros(3, 4, WORDS)
    with pytest.raises(ValueError, match=r"\(3, 3\)"):
        translation_losses(logits, AFTER[:, :3])
    with pytest.raises(ValueError, match="sentence 1 has no token"):
        translation_losses(logits, AFTER * torch.tensor([[1], [0], [1]]))
    with pytest.raises(ValueError, match="batch_size=0"):
        greedy_decode(built(), SOURCE, batch_size=0)
    with pytest.raises(ValueError, match="sentence 2 has no token"):
        greedy_decode(built(), SOURCE * torch.tensor([[1], [1], [0]]))
