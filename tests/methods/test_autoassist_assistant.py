"""Assistants: logits against loops, gradients by hand, polarity, means, features, resuming."""

from __future__ import annotations

import contextlib
import io

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from trainaug.methods.autoassist import (
    AssistantTrainer,
    ImageAssistant,
    TextAssistant,
    guarded_base,
)
from trainaug.training.randomness import stream

NAN, INF = float("nan"), float("inf")


def pictures(n=40, seed=0):
    """Inputs (N, 1, 2, 3) and classes of three."""
    x = torch.randn(n, 1, 2, 3, generator=stream(seed, "measure"))
    return x, torch.arange(n) % 3


def trainer_of(x, y, *, seed=0, scale=1e-3, **options):
    model = ImageAssistant(6, 3, stream(seed, "init"), scale=scale)
    return AssistantTrainer(model, lambda index: (x[index], y[index]), **options)


def weights_of(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.assistant.parameters()])


# --- the models


def test_image_logits_equal_the_loop():
    x, y = pictures(7)
    model = ImageAssistant(6, 3, stream(0, "init"), scale=1.0)
    assert sum(p.numel() for p in model.parameters()) == 6 + 3
    logits = model(x, y).detach()
    assert logits.shape == (7,)
    for i in range(7):
        pixels = x[i].flatten().tolist()
        expected = sum(w * v for w, v in zip(model.weight.tolist(), pixels, strict=True))
        assert float(logits[i]) == pytest.approx(expected + model.class_bias[y[i]].item(), abs=1e-5)
    small = ImageAssistant(40_000, 1, stream(0, "init"))
    assert small.weight.std().item() == pytest.approx(1e-3, rel=0.02)
    assert abs(small.weight.mean().item()) < 5e-3 / 200


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_text_logits_equal_the_loop_and_ignore_padding(rows, length, seed):
    g = stream(seed, "measure")
    model = TextAssistant(11, 7, stream(seed, "init"), scale=1.0)
    sides = []
    for size in (11, 7):
        tokens = torch.randint(size, (rows, length), generator=g)  # 0 is padding
        sides += [tokens, torch.rand(rows, length, generator=g)]
    logits = model(*sides)
    assert logits.shape == (rows,)
    for i in range(rows):
        expected = model.bias.item()
        for side in range(2):
            tokens, tfidf = sides[2 * side][i].tolist(), sides[2 * side + 1][i].tolist()
            real = [(t, v) for t, v in zip(tokens, tfidf, strict=True) if t != 0]
            if real:
                expected += sum(model.counted[side][t].item() for t, _ in real) / len(real)
            expected += sum(model.weighted[side][t].item() * v for t, v in real)
            expected += model.lengths[side].item() * len(real) / 10
        assert logits[i].item() == pytest.approx(expected, abs=1e-4)
    padded = [F.pad(part, (0, 3)) for part in sides]
    torch.testing.assert_close(model(*padded), logits)
    parts = torch.autograd.grad(logits.sum(), [model.counted[0], model.weighted[1]])
    assert float(parts[0][0]) == float(parts[1][0]) == 0.0
    assert sum(p.numel() for p in model.parameters()) == 2 * (11 + 7) + 3


# --- a step


@pytest.mark.oracle("aa.5")
@given(st.integers(1, 9), st.integers(0, 999), st.sampled_from([0.0, 0.1]))
@settings(max_examples=40, deadline=None)
def test_a_step_is_that_of_the_cross_entropy_by_hand(n, seed, decay):
    """dL/dW = mean of (r - t) x, dL/dU_y likewise; and autograd on BCE with logits."""
    x, y = pictures(seed=seed)
    g = stream(seed, "measure")
    index = torch.randperm(40, generator=g)[:n]
    hard = torch.rand(n, generator=g) < 0.5
    trainer = trainer_of(x, y, seed=seed, scale=1.0, lr=0.5, weight_decay=decay)
    before = weights_of(trainer)
    w, u = before[:6], before[6:]
    logits = x[index].flatten(1) @ w + u[y[index]]
    r, t = 1 / (1 + (-logits).exp()), hard.float()
    by_hand = torch.zeros(9)
    for j in range(n):
        by_hand[:6] += (r[j] - t[j]) * x[index[j]].flatten() / n
        by_hand[6 + y[index[j]]] += (r[j] - t[j]) / n
    twin = before.clone().requires_grad_()
    twin_logits = x[index].flatten(1) @ twin[:6] + twin[6:][y[index]]
    loss = F.binary_cross_entropy_with_logits(twin_logits, t)
    (auto,) = torch.autograd.grad(loss, twin)
    torch.testing.assert_close(by_hand, auto, rtol=1e-4, atol=1e-5)
    assert trainer.step(index, hard) == pytest.approx(loss.item(), rel=1e-5)
    expected = before - 0.5 * (by_hand + decay * before)
    torch.testing.assert_close(weights_of(trainer), expected, rtol=1e-4, atol=1e-5)
    right = float(((logits > 0) == hard).float().mean())
    assert trainer.confidence == pytest.approx(0.05 * right)
    assert (trainer.num_steps, trainer.positives) == (1, int(hard.sum()) / n)


@pytest.mark.oracle("aa.5")
def test_a_class_that_is_always_hard_ends_above_one_half_and_an_easy_one_below():
    x, y = pictures()
    trainer = trainer_of(0 * x, y, lr=0.1, weight_decay=0.0)
    for _ in range(300):
        trainer.update(torch.arange(40), torch.tensor([0.1, 5.0, 0.2])[y])
    r = trainer.predict(torch.arange(3))
    assert float(r[1]) > 0.8
    assert max(float(r[0]), float(r[2])) < 0.2
    assert trainer.confidence > 0.95
    assert trainer.positives == pytest.approx(13 / 40)


# --- means and targets


@pytest.mark.parametrize("momentum", [0.0, 0.75, 0.9])
def test_the_running_mean_and_the_targets_equal_the_loop(momentum):
    x, y = pictures()
    trainer, g = trainer_of(x, y, momentum=momentum), stream(2, "measure")
    mean, hard, seen, kappa = None, 0, 0, 0.0
    assert (trainer.mean_loss, trainer.positives, trainer.confidence) == (None, 0.0, 0.0)
    for _ in range(12):
        n = int(torch.randint(1, 9, (), generator=g))
        index, losses = torch.randperm(40, generator=g)[:n], torch.rand(n, generator=g)
        batch = sum(losses.tolist()) / n
        mean = batch if mean is None else momentum * mean + (1 - momentum) * batch
        targets = [loss > mean for loss in losses.tolist()]
        guesses = (trainer.predict(index) > 0.5).tolist()
        twin = trainer_of(x, y)
        twin.assistant.load_state_dict(trainer.assistant.state_dict())
        twin.step(index, torch.tensor(targets))
        trainer.update(index, losses)
        assert torch.equal(weights_of(trainer), weights_of(twin))
        accuracy = sum(a == b for a, b in zip(guesses, targets, strict=True)) / n
        kappa = 0.95 * kappa + 0.05 * accuracy
        hard, seen = hard + sum(targets), seen + n
        assert trainer.mean_loss == pytest.approx(mean, rel=1e-12)
        assert trainer.confidence == pytest.approx(kappa, rel=1e-12)
        assert trainer.positives == hard / seen
    assert trainer.num_steps == 12
    trainer.end_epoch()  # is for the other kind
    assert trainer.mean_loss == pytest.approx(mean, rel=1e-12)


def test_the_mean_of_the_epoch_before_is_over_all_its_losses():
    x, y = pictures()
    trainer = trainer_of(x, y, mean="epoch")
    start = weights_of(trainer)
    trainer.end_epoch()  # of nothing
    trainer.update(torch.tensor([0, 1, 2]), torch.tensor([1.0, 2.0, 3.0]))
    trainer.update(torch.tensor([3]), torch.tensor([10.0]))
    assert (trainer.mean_loss, trainer.num_steps) == (None, 0)  # only collected
    assert torch.equal(weights_of(trainer), start)
    trainer.end_epoch()
    assert trainer.mean_loss == 4.0
    trainer.update(torch.tensor([4, 5, 6]), torch.tensor([4.0, 4.5, 100.0]))  # equal is easy
    assert (trainer.mean_loss, trainer.num_steps, trainer.positives) == (4.0, 1, 2 / 3)
    trainer.end_epoch()
    trainer.end_epoch()  # nothing since
    assert trainer.mean_loss == pytest.approx(108.5 / 3)


@pytest.mark.oracle("aa.6")
def test_of_skewed_losses_fewer_than_half_are_hard():
    x, y = pictures(4000)
    u = torch.rand(4000, generator=stream(0, "measure"))
    # of exponential losses e^-1 are above the mean; 4 sigma of 4000
    for losses, share in ((-u.log(), 0.368), (u, 0.5), (9 + u.log(), 0.632)):
        trainer = trainer_of(x, y, momentum=0.0)
        trainer.update(torch.arange(4000), losses)
        assert trainer.positives == pytest.approx(share, abs=0.032)
        if share < 0.5:
            assert float(losses.mean()) > 1.2 * float(losses.median())


@given(st.floats(0.001953125, 100, width=32), st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_equal_losses_are_all_easy(loss, n):
    x, y = pictures()
    trainer = trainer_of(x, y)
    for _ in range(3):
        trainer.update(torch.arange(n), torch.full((n,), loss))
    assert trainer.positives == 0.0


# --- features


@pytest.mark.oracle("aa.9")
def test_features_are_asked_for_by_index_and_a_prediction_is_of_the_index_alone():
    x, y = pictures()
    asked = []

    def features(index):
        assert index.device.type == "cpu"
        assert index.dtype == torch.int64
        actual = x[index], y[index]
        asked.append((index.clone(), actual))
        return actual

    trainer = AssistantTrainer(ImageAssistant(6, 3, stream(0, "init"), scale=1.0), features)
    g, kept = stream(1, "order"), x.clone()
    for _ in range(5):
        index = torch.randperm(40, generator=g)[:11]
        trainer.predict(index)
        trainer.update(index, torch.rand(11, generator=g))
        assert [torch.equal(i, index) for i, _ in asked[-2:]] == [True] * 2
    for index, (inputs, classes) in asked:
        assert torch.equal(inputs, kept[index])
        assert torch.equal(classes, y[index])
    alone = torch.cat([trainer.predict(torch.tensor([i])) for i in range(40)])
    order = torch.randperm(40, generator=g)
    torch.testing.assert_close(trainer.predict(order), alone[order], rtol=1e-6, atol=1e-7)
    assert bool(((alone >= 0) & (alone <= 1)).all())


def test_predicting_leaves_no_trace_and_learning_works_without_gradients():
    x, y = pictures()
    trainer, index = trainer_of(x, y), torch.arange(8)
    before = weights_of(trainer)
    r = trainer.predict(index)
    assert (r.requires_grad, trainer.num_steps) == (False, 0)
    assert torch.equal(weights_of(trainer), before)
    torch.testing.assert_close(
        r, (x[index].flatten(1) @ before[:6] + before[6:][y[index]]).sigmoid()
    )
    with torch.no_grad():
        trainer.update(index, torch.arange(8.0))
    assert not torch.equal(weights_of(trainer), before)


# --- resuming, devices, bad input


@pytest.mark.parametrize("mean", ["running", "epoch"])
def test_resumes_after_every_step_of_an_epoch(mean):
    x, y = pictures()
    losses = torch.rand(12, 5, generator=stream(3, "measure"))

    def run(trainer, start, stop):
        seen = []
        for step in range(start, stop):
            if step % 4 == 0:
                trainer.end_epoch()
            trainer.update(torch.arange(5) + step, losses[step])
            counters = trainer.mean_loss, trainer.confidence, trainer.positives, trainer.num_steps
            seen.append((*counters, weights_of(trainer).tolist()))
        return seen

    whole = run(trainer_of(x, y, mean=mean), 0, 12)
    for stop in range(12):
        first = trainer_of(x, y, mean=mean)
        run(first, 0, stop)
        file = io.BytesIO()
        state = first.state_dict()
        run(first, stop, 12)  # the state is a copy
        torch.save(state, file)
        file.seek(0)
        again = trainer_of(x, y, mean=mean, seed=8, lr=3.0)
        run(again, 0, 3)
        again.load_state_dict(torch.load(file, weights_only=True))
        assert run(again, stop, 12) == whole[stop:]


def everything(x, y, losses):
    trainer = trainer_of(x, y, scale=1.0)
    index = torch.arange(len(losses), device=losses.device)
    trainer.update(index, losses)
    text = TextAssistant(9, 9, stream(0, "init"))
    tokens = y[:, None].expand(-1, 4)
    logits = text(tokens, tokens * 0.5, tokens + 1, tokens * 0.1).detach()
    return [trainer.predict(index), weights_of(trainer), trainer.mean_loss, logits]


def test_inside_a_meta_context_values_are_the_same(same_inside_meta):
    x, y = pictures(9)
    same_inside_meta(everything, x, y, torch.arange(9) / 8)


def test_the_guard_by_hand():
    assert [guarded_base(0.3, k) for k in (0.0, 0.5, 0.75, 1.0)] == [1.0, 0.5, 0.3, 0.3]
    for bad in ((1.5, 0.5), (0.5, -0.5), (0.5, NAN), (NAN, 0.5)):
        with pytest.raises(ValueError, match=rf"got ({bad[0]}|{bad[1]})"):
            guarded_base(*bad)


def test_bad_input_is_refused():
    x, y = pictures()
    g = stream(0, "init")
    for make, sizes in ((ImageAssistant, (0, 3)), (TextAssistant, (3, 0))):
        with pytest.raises(
            ValueError, match=rf"need sizes >= 1, got \w+={sizes[0]}, \w+={sizes[1]}"
        ):
            make(*sizes, g)
    for option in ({"mean": "median"}, {"momentum": 1.0}, {"momentum": -0.1}, {"momentum": NAN}):
        with pytest.raises(ValueError, match=str(*option.values())):
            trainer_of(x, y, **option)
    trainer = trainer_of(x, y)
    with pytest.raises(ValueError, match=r"losses must have shape \(3,\), got \(2,\)"):
        trainer.update(torch.arange(3), torch.ones(2))
    with pytest.raises(ValueError, match=r"index must be of integers with shape \(B,\)"):
        trainer.update(torch.arange(4).view(2, 2), torch.ones(2, 2))
    calls = (
        lambda: trainer.predict([0, 1]),
        lambda: trainer.update([0, 1], torch.ones(2)),
        lambda: trainer.step([0, 1], torch.ones(2)),
    )
    for call in calls:
        with pytest.raises(TypeError, match=r"indices must be a tensor .*, got list"):
            call()
    for bad in (NAN, INF, -INF):
        with pytest.raises(FloatingPointError, match=f"the loss of example 17 is {bad}"):
            trainer.update(torch.tensor([4, 17, 9]), torch.tensor([1.0, bad, bad]))
    assert (trainer.mean_loss, trainer.num_steps) == (None, 0)  # left as it was


def test_a_batch_without_examples_does_not_spoil_the_mean():
    trainer = trainer_of(*pictures())
    trainer.update(torch.arange(3), torch.ones(3))
    with contextlib.suppress(ValueError):  # or leave it as it was
        trainer.update(torch.arange(0), torch.ones(0))
    assert trainer.mean_loss == 1.0


# --- what training loops bring

INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]


@pytest.mark.parametrize("dtype", [*INTEGERS, torch.bool], ids=str)
def test_classes_and_tokens_of_any_type_give_the_same_logits(dtype):
    x, y = pictures(5)
    y = y.clamp(max=1)
    model = ImageAssistant(6, 3, stream(0, "init"), scale=1.0)
    assert torch.equal(model(x, y.to(dtype)), model(x, y))
    text = TextAssistant(4, 4, stream(0, "init"), scale=1.0)
    tokens, tfidf = y[:, None] * torch.ones(2).long(), torch.rand(5, 2, generator=stream(1, "x"))
    expected = text(tokens, tfidf, tokens, tfidf)
    assert torch.equal(text(tokens.to(dtype), tfidf, tokens.to(dtype), tfidf), expected)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float64], ids=str
)
def test_inputs_of_any_type_are_numbers(dtype):
    x, y = pictures(5)
    x = (8 * x.abs()).round()
    model = ImageAssistant(6, 3, stream(0, "init"), scale=1.0)
    assert torch.equal(model(x.to(dtype), y), model(x, y))
    text = TextAssistant(4, 4, stream(0, "init"), scale=1.0)
    tokens, weights = y[:, None] * torch.ones(2).long(), x.flatten(1)[:, :2].clamp(max=3)
    torch.testing.assert_close(
        text(tokens, weights.to(dtype), tokens, weights.to(dtype)).float(),
        text(tokens, weights, tokens, weights),
    )


def test_features_that_do_not_fit_are_refused():
    x, y = pictures(5)
    model, text = ImageAssistant(6, 3, stream(0, "init")), TextAssistant(4, 4, stream(0, "init"))
    for bad in ((x, y - 1), (x, y + 1), (x, y / 1), (x, y[:, None]), (x[:4], y), (x[..., :2], y)):
        with pytest.raises(ValueError, match=r"labels must be|need \(B"):
            model(*bad)
    side = y[:, None], torch.ones(5, 1)
    for bad in (
        (y[:, None] - 1, side[1]),
        (y[:, None] + 2, side[1]),
        (y, side[1][:, 0]),
        (side[0], torch.ones(5, 2)),
    ):
        with pytest.raises(ValueError, match=r"labels must be|need \(B"):
            text(*side, *bad)
    assert model(x[:0], y[:0]).shape == (0,)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16, None], ids=str)
def test_an_index_of_any_integer_type_and_half_precision_train_alike(dtype, half):
    x, y = pictures(8)
    index, losses = torch.tensor([1, 0, 1, 1]), torch.tensor([0.5, 1.0, 2.0, 2.0])
    ours, theirs = trainer_of(x, y, lr=0.5), trainer_of(x, y, lr=0.5)
    if half is not None:
        ours.assistant.to(half)
    ours.update(index.to(dtype), losses.to(half or torch.float32))
    theirs.update(index, losses)
    assert ours.mean_loss == theirs.mean_loss
    assert ours.positives == theirs.positives
    got, expected = ours.predict(index.to(dtype)), theirs.predict(index)
    assert got.dtype == torch.float32
    assert torch.isfinite(got).all()
    torch.testing.assert_close(got, expected, rtol=0, atol=0 if half is None else 0.02)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_equal_losses_are_not_above_their_mean_in_half_precision(dtype):
    x, y = pictures(8)
    trainer = trainer_of(x, y)
    value = torch.tensor([1.0 + torch.finfo(dtype).eps], dtype=dtype)
    trainer.mean_loss, trainer.momentum = float(value) - 1e-6, 0.999
    trainer.update(torch.arange(4), value.expand(4))
    assert trainer.positives == 1.0  # just above, which rounding to half precision would hide


def test_an_index_that_is_none_and_logits_of_another_shape_are_refused():
    x, y = pictures(8)
    trainer = trainer_of(x, y)
    for bad in (torch.tensor([-1]), torch.tensor([0.5]), torch.tensor([True]), torch.tensor([[1]])):
        with pytest.raises(ValueError, match=r"index must be|must have shape"):
            trainer.predict(bad)
        with pytest.raises(ValueError, match=r"index must be|must have shape"):
            trainer.update(bad, torch.ones(len(bad)))
    with pytest.raises(ValueError, match="one example or more"):
        trainer.update(torch.arange(0), torch.ones(0))
    layer = torch.nn.Linear(6, 1, device="meta").to_empty(device="cpu")
    wide = AssistantTrainer(layer, lambda i: (x[i].flatten(1),))
    with pytest.raises(ValueError, match=r"must give \(2,\), got \(2, 1\)"):
        wide.predict(torch.arange(2))
