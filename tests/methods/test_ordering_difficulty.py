"""What tells how difficult an example is, against loops, closed forms and brute force."""

from __future__ import annotations

import io
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trainaug.methods.ordering import (
    ForgettingTracker,
    RunningHardness,
    example_losses,
    largest_losses,
    self_paced_weights,
)
from trainaug.training.randomness import initialise, stream


def through_a_file(state):
    """Save and load, with nothing but tensors and plain values."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def losses_of(outputs, y):
    return F.cross_entropy(outputs, y, reduction="none")


@pytest.mark.parametrize("batch_size", [1, 4, 512])
def test_losses_of_examples_leave_the_modes(batch_size, randn):
    with torch.device("meta"):
        inner = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))
        model = nn.Sequential(inner, nn.Linear(3, 3))
    initialise(model, stream(0, "init"))
    model.double()[0].eval()  # mixed
    x, y = randn(1, 9, 3), torch.arange(9) % 3
    modes = [module.training for module in model.modules()]
    before = [t.clone() for t in model.state_dict().values()]
    got = example_losses(model, losses_of, x, y, batch_size=batch_size)
    assert [module.training for module in model.modules()] == modes
    assert all(map(torch.equal, model.state_dict().values(), before))
    assert not got.requires_grad
    expected = losses_of(model.eval()(x), y).detach()
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    model.train()
    with pytest.raises(ValueError):
        example_losses(model, losses_of, x, y[:3])
    assert all(module.training for module in model.modules())


VISITS = st.lists(
    st.dictionaries(st.integers(0, 5), st.integers(0, 1), max_size=6), min_size=1, max_size=12
)


@given(VISITS)
@settings(max_examples=100, deadline=None)
def test_forgetting_matches_the_loop(visits):
    tracker = ForgettingTracker(6)
    events, history = [0] * 6, {i: [] for i in range(6)}
    for visit in visits:
        resumed = ForgettingTracker(6)
        resumed.load_state_dict(through_a_file(tracker.state_dict()))
        index = torch.tensor(list(visit), dtype=torch.long)
        resumed.update(index, torch.tensor([bool(v) for v in visit.values()], dtype=torch.bool))
        assert tracker.events.tolist() == events  # the state is a copy
        for i, correct in visit.items():
            history[i].append(correct)
        for i, seen in history.items():
            events[i] = sum(a > b for a, b in itertools.pairwise(seen))
        tracker = resumed
        assert tracker.events.tolist() == events
        assert tracker.learned.tolist() == [1 in history[i] for i in range(6)]
        scores = [events[i] if 1 in history[i] else max(events) + 1 for i in range(6)]
        assert tracker.scores().tolist() == scores


@given(st.lists(st.floats(0, 10), min_size=1, max_size=8), st.floats(0.01, 1))
@settings(max_examples=80, deadline=None)
def test_running_hardness_in_closed_form(losses, gamma):
    hardness = RunningHardness(3, gamma)
    for loss in losses:
        resumed = RunningHardness(3, gamma)
        resumed.load_state_dict(through_a_file(hardness.state_dict()))
        hardness = resumed
        hardness.update(torch.tensor([2, 0]), torch.tensor([loss, 1.0], requires_grad=True))
    fade = [(1 - gamma) ** age for age in range(len(losses))][::-1]
    weights = [fade[0], *(gamma * f for f in fade[1:])]
    expected = sum(w * loss for w, loss in zip(weights, losses, strict=True))
    assert hardness.values.tolist() == pytest.approx([1.0, 0.0, expected], rel=1e-5, abs=1e-6)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=5), st.integers(0, 7))
@settings(max_examples=80, deadline=None)
def test_self_paced_weights_are_the_minimiser(levels, threshold):
    losses = torch.tensor(levels, dtype=torch.float64, requires_grad=True)
    weights = self_paced_weights(losses, threshold)
    assert weights.dtype == losses.dtype
    assert not weights.requires_grad
    assert weights.tolist() == [float(level < threshold) for level in levels]
    grid = torch.cartesian_prod(*[torch.tensor([0.0, 0.5, 1.0]).double()] * len(levels))
    worth = grid.reshape(-1, len(levels)) @ (losses.detach() - threshold)
    assert float(weights @ (losses.detach() - threshold)) == pytest.approx(float(worth.min()))


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=9, unique=True), st.integers(1, 12))
@settings(max_examples=80, deadline=None)
def test_largest_losses_count_alone(levels, count):
    losses = torch.tensor(levels, dtype=torch.float64, requires_grad=True)
    kept = largest_losses(losses, count)
    top = sorted(levels)[-count:]
    assert kept.mean().item() == pytest.approx(sum(top) / len(top), abs=1e-12)
    kept.mean().backward()
    slopes = [1 / len(top) if level in top else 0.0 for level in levels]
    assert losses.grad.tolist() == pytest.approx(slopes, abs=1e-15)
    assert kept.shape == losses.shape


def test_of_equal_losses_so_many_count():
    losses = torch.ones(7, requires_grad=True)
    largest_losses(losses, 3).mean().backward()
    assert losses.grad.sort().values.tolist() == pytest.approx([0] * 4 + [1 / 3] * 3)


def test_difficulty_refuses_bad_input():
    with pytest.raises(ValueError, match="at least one example, got 0"):
        ForgettingTracker(0)
    for n, gamma in ((0, 0.5), (3, 0), (3, 1.1), (3, math.nan)):
        with pytest.raises(ValueError, match=f"got {n}, {gamma}"):
            RunningHardness(n, gamma)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        largest_losses(torch.ones(3), 0)


# --- devices


def everything(losses):
    index = torch.arange(6, device="cpu").to(losses.device)
    tracker, hardness = ForgettingTracker(6), RunningHardness(6)
    for shift in range(3):
        tracker.update(index, losses > shift / 3)
        hardness.update(index, losses * shift)
    values = [self_paced_weights(losses, 0.2), largest_losses(losses, 2)]
    return [*values, tracker.scores().tolist(), hardness.values.tolist()]  # the last on the CPU


def test_inside_a_meta_context_values_are_the_same(same_inside_meta, randn):
    same_inside_meta(everything, randn(1, 6))


@pytest.mark.gpu
def test_on_cuda_values_are_the_same(same_on_cuda, randn):
    same_on_cuda(everything, randn(1, 6))


# --- what training loops bring


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
def test_an_index_of_any_integer_type_and_repeats_are_visits_in_order(dtype):
    index, right = torch.tensor([1, 0, 1, 1], dtype=dtype), torch.tensor([1, 0, 0, 1])
    for correct in (right.bool(), right.byte(), right):
        tracker = ForgettingTracker(3)
        tracker.update(index, correct)
        assert tracker.events.tolist() == [0, 1, 0]
        assert tracker.learned.tolist() == [False, True, False]
    for losses_type in (torch.float16, torch.bfloat16, torch.float64):
        running = RunningHardness(3, 0.5)
        running.update(index, torch.tensor([1.0, 5.0, 3.0, 4.0], dtype=losses_type))
        assert running.values.tolist() == [5.0, 3.0, 0.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e300])
def test_losses_that_are_not_finite_are_not_stored(bad):
    losses = torch.tensor([1.0, bad], dtype=torch.float64)
    running = RunningHardness(3)
    with pytest.raises(ValueError, match="must be finite, row 1"):
        running.update(torch.arange(2), losses)
    assert running.values.tolist() == [0.0] * 3
    if bad != 1e300:
        with pytest.raises(ValueError, match="must be finite"):
            self_paced_weights(losses, 2.0)
        assert not largest_losses(losses, 1).isfinite().all()
    with pytest.raises(ValueError, match="NaN"):
        self_paced_weights(losses[:1], math.nan)


def test_records_and_states_that_do_not_fit_are_refused():
    index = torch.arange(2)
    for make, good in ((ForgettingTracker, torch.ones(2).bool()), (RunningHardness, torch.ones(2))):
        for where, values in (
            (index - 1, good),
            (index + 2, good),
            (index / 1, good),
            (index, good[:1]),
        ):
            with pytest.raises(ValueError, match="must be"):
                make(3).update(where, values)
        with pytest.raises(ValueError, match="state is of 4 examples, need 3"):
            make(3).load_state_dict(make(4).state_dict())
        make(3).update(index[:0], good[:0])
    with pytest.raises(ValueError, match="true or false"):
        ForgettingTracker(3).update(index, torch.tensor([1, 2]))
    assert (
        len(largest_losses(torch.zeros(0), 3)) == len(self_paced_weights(torch.zeros(0), 1.0)) == 0
    )
    with pytest.raises(ValueError, match=r"\(B,\)"):
        largest_losses(torch.zeros(()), 1)


def test_examples_of_several_parts_are_scored_and_what_does_not_fit_is_refused(randn):
    class Sum(nn.Module):
        def forward(self, x):
            return x["a"] + x["b"][0]

    x, y = {"a": randn(1, 5, 3), "b": (randn(2, 5, 3),)}, torch.arange(5) % 3
    expected = losses_of(x["a"] + x["b"][0], y)
    assert torch.equal(example_losses(Sum(), losses_of, x, y, batch_size=2), expected)
    for bad in ({"x": x, "y": y[:4]}, {"x": x["a"][:0], "y": y[:0]}):
        with pytest.raises(ValueError, match="need examples of one number"):
            example_losses(Sum(), losses_of, **bad)
    with pytest.raises(ValueError, match="per-example losses"):
        example_losses(Sum(), F.cross_entropy, x, y)
