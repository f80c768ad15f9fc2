"""Cascades: plans, plateaus, switches of stage, and runs that are killed and resumed."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from trainaug.methods.cascading_sum import (
    CascadeSchedule,
    PlateauCascade,
    stage_boundaries,
)
from trainaug.training.randomness import stream

# --- plans

COUNTS = st.lists(st.integers(1, 9), max_size=4).map(lambda k: [*sorted(k, reverse=True), 1])


@st.composite
def plans(draw):
    counts = draw(COUNTS)
    parts = [draw(st.integers(1, 20)) for _ in counts]
    total = draw(st.integers(10, 200)) * len(counts)
    stages = [(k, part / sum(parts)) for k, part in zip(counts, parts, strict=True)]
    shortest = min(parts) / sum(parts) * total
    return stages, total if shortest > 2 else math.ceil(2 * total / shortest)


def padded(weights, k):
    return F.pad(weights.double(), (0, k - len(weights)))


@pytest.mark.oracle("csa.Q10")
@given(plans())
@settings(max_examples=60, deadline=None)
def test_plans_fall_from_the_first_k_to_one(plan):
    stages, total = plan
    step, smooth = (CascadeSchedule(stages, total, mode=mode) for mode in ("step", "smooth"))
    counts = [step.k(i) for i in range(total)]
    assert counts == [smooth.k(i) for i in range(total)] == sorted(counts, reverse=True)
    assert (counts[0], counts[-1]) == (stages[0][0], 1)
    lengths = [b - a for a, b in zip((0, *step.boundaries), step.boundaries, strict=False)]
    assert sum(lengths) == total == step.boundaries[-1]
    shares = [share for _, share in stages]
    assert sum(shares) == pytest.approx(1, abs=1e-12)
    for length, share in zip(lengths, shares, strict=True):
        assert abs(length - share * total) < 1 + 1e-6  # both ends are rounded
    stage_of = [i for i, length in enumerate(lengths) for _ in range(length)]
    assert [step.stage(i) for i in range(total)] == stage_of
    assert counts == [stages[i][0] for i in stage_of]
    largest = stages[0][0]
    corners = [padded(torch.full((k,), 1 / k), largest) for k, _ in stages]
    corners.append(corners[-1])
    for i in range(total):
        w = step.weights(i)
        assert torch.equal(w, torch.full((counts[i],), 1 / counts[i]))
        w = smooth.weights(i)
        assert len(w) == counts[i]
        assert float(w.min()) >= 0
        assert float(w.sum()) == pytest.approx(1, abs=1e-6)
        # continuous: every step of a stage is the same part of the way to the next one's weights
        then = padded(smooth.weights(i + 1), largest) if i + 1 < total else corners[-1]
        stage = stage_of[i]
        move = (corners[stage + 1] - corners[stage]) / lengths[stage]
        torch.testing.assert_close(then - padded(w, largest), move, rtol=0, atol=2e-7)


@pytest.mark.oracle("csa.Q10")
@pytest.mark.parametrize("n", [2, 3, 4, 6, 8])
def test_smooth_plans_are_the_formula_of_the_gradual_cascade(n):
    length = 30  # steps of a stage; the cascade's own time t runs over n - 1 stages
    total = length * n
    stages = [(k, 1 / n) for k in range(n, 0, -1)]
    schedule = CascadeSchedule(stages, total, mode="smooth")
    assert schedule.boundaries == tuple(range(length, total + 1, length))
    before = None
    for step in range(total):
        k, rest = min(step // length, n - 1), step % length
        m, u = n - k, rest / length
        expected = [1.0] + [0.0] * (n - 1)
        if m > 1:
            expected = [1 / m + u / (m * (m - 1))] * (m - 1) + [(1 - u) / m] + [0.0] * k
        actual = padded(schedule.weights(step), n)
        assert actual.tolist() == pytest.approx(expected, abs=1e-7)
        if rest == 0:  # integer steps: a stage starts at equal weights, without accumulated t
            assert torch.equal(schedule.weights(step), torch.full((m,), 1 / m))
        if before is not None:
            dt = 1 / (length * (n - 1))
            assert float((actual - before).abs().max()) < 2 * (n - 1) * dt
        before = actual


@pytest.mark.oracle("csa.Q10")
@pytest.mark.parametrize(
    ("t", "expected"),
    [
        (0.0, (0.25, 0.25, 0.25, 0.25)),
        (0.15, (0.2875, 0.2875, 0.2875, 0.1375)),
        (0.5, (0.4167, 0.4167, 0.1667)),
        (0.9, (0.85, 0.15)),
    ],
)
def test_smooth_plans_have_the_vectors_worked_out_by_hand(t, expected):
    stages = [(4, 0.3), (3, 0.3), (2, 0.3), (1, 0.1)]
    schedule = CascadeSchedule(stages, 1000, mode="smooth")  # the cascade is the first 900
    actual = schedule.weights(round(900 * t))
    assert actual.tolist() == pytest.approx(expected, abs=5e-5)
    assert schedule.weights(900).tolist() == schedule.weights(999).tolist() == [1.0]


def test_boundaries_are_whole_steps():
    assert stage_boundaries([1.0], 7) == (7,)
    assert stage_boundaries([1 / 3] * 3, 3) == (1, 2, 3)
    for n in range(2, 30):
        assert stage_boundaries([1 / n] * n, 12 * n) == tuple(range(12, 12 * n + 1, 12))
    assert CascadeSchedule([(1, 1.0)], 5, mode="smooth").weights(4).tolist() == [1.0]


@pytest.mark.parametrize(
    ("stages", "options", "message"),
    [
        ([], {}, r"\[\]"),
        ([(2, 0.5), (4, 0.25), (1, 0.25)], {}, r"never rise.*\[2, 4, 1\]"),
        ([(4, 0.5), (2, 0.5)], {}, r"end at 1.*\[4, 2\]"),
        ([(1, 0.5), (0, 0.5)], {}, r"whole numbers from 1.*\[1, 0\]"),
        ([(2.0, 0.5), (1, 0.5)], {}, r"whole numbers.*\[2.0, 1\]"),
        ([(2, 0.5), (1, 0.4)], {}, r"add up to 1.*\[0.5, 0.4\]"),
        ([(2, 1.5), (1, -0.5)], {}, r"above 0.*\[1.5, -0.5\]"),
        ([(2, math.nan), (1, 0.5)], {}, "nan"),
        ([(2, 0.95), (1, 0.05)], {}, "8 steps leave a stage.*without a step"),
        ([(2, 0.5), (1, 0.5)], {"mode": "linear"}, "mode.*'linear'"),
    ],
)
def test_impossible_plans_are_named(stages, options, message):
    with pytest.raises(ValueError, match=message):
        CascadeSchedule(stages, 8, **options)


@pytest.mark.parametrize("total", [8.0, math.nan, True])
def test_numbers_of_steps_that_are_not_whole_are_named(total):
    with pytest.raises(ValueError, match=f"total_steps must be a whole number, got {total}"):
        stage_boundaries([0.5, 0.5], total)


@pytest.mark.parametrize("step", [-1, 8])
def test_steps_outside_the_run_are_named(step):
    schedule = CascadeSchedule([(2, 0.5), (1, 0.5)], 8)
    for ask in (schedule.k, schedule.weights, schedule.stage):
        with pytest.raises(ValueError, match=f"from 0 to 7, got {step}"):
            ask(step)


# --- plateaus


def naive_cascade(scores, k, factor, patience, stop_patience, min_delta):
    """Answer from the epochs of the last best and the last reduction, without counters."""
    events, counts, epochs, best, best_at, reduced_at = [], [], 0, None, 0, 0
    for score in scores:
        epochs += 1
        event = "continue"
        if best is None or score > best + min_delta * abs(best):
            event, best, best_at, reduced_at = "improved", score, epochs, epochs
        elif epochs == best_at + stop_patience * k:
            event = "finished" if k == 1 else "next_stage"
            k, epochs, best = max(k // factor, 1), 0, None
        elif epochs == reduced_at + patience * k:
            event, reduced_at = "reduce_lr", epochs
        events.append(event)
        counts.append(k)
        if event == "finished":
            break
    return events, counts


OPTIONS = st.fixed_dictionaries(
    {
        "factor": st.integers(2, 4),
        "patience": st.integers(1, 3),
        "stop_patience": st.integers(1, 5),
        "min_delta": st.sampled_from([0.0, 1e-3, 0.2]),
    }
)
LEVELS = torch.tensor([-0.5, 0.0, 0.5, 0.5004, 0.58, 0.65, 0.9], dtype=torch.float64)


@given(st.integers(0, 10**6), st.integers(1, 9), OPTIONS, st.integers(0, 40))
@settings(max_examples=100, deadline=None)
def test_plateaus_match_a_naive_twin_and_survive_a_restart(seed, k0, options, kill):
    drawn = torch.randint(len(LEVELS), (150,), generator=stream(seed, "scores"))
    scores = LEVELS[drawn].tolist()
    cascade, actual, counts = PlateauCascade(k0, **options), [], []
    for i, score in enumerate(scores):
        if i == kill:
            state = copy.deepcopy(cascade.state_dict())
            cascade.step(score)  # what is lost with the killed run
            cascade = PlateauCascade()
            cascade.load_state_dict(state)
            assert cascade.state_dict() == state
        actual.append(cascade.step(score))
        counts.append(cascade.k)
        assert cascade.has_finished == (actual[-1] == "finished")
        if cascade.has_finished:
            break
    assert (actual, counts) == naive_cascade(scores, k0, **options)


def test_every_event_of_a_cascade_from_three_to_one():
    cascade = PlateauCascade(3, factor=3, patience=1, stop_patience=2, min_delta=0.1)
    flat = {"continue": 0.5, "reduce_lr": 0.54, "next_stage": 0.1}
    expected = ["continue", "continue", "reduce_lr", "continue", "continue", "next_stage"]
    assert cascade.step(0.5) == "improved"
    assert [cascade.step(flat[event]) for event in expected] == expected  # 0.54 is below 1.1 * 0.5
    assert cascade.k == 1
    assert [cascade.step(s) for s in (0.2, 0.2, 0.3, 0.3)] == [
        "improved", "reduce_lr", "improved", "reduce_lr",
    ]  # fmt: skip
    assert not cascade.has_finished
    assert cascade.step(0.3) == "finished"
    with pytest.raises(ValueError, match="has finished"):
        cascade.step(0.9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k0": 0}, "k0=0"),
        ({"k0": 2.5}, "k0=2.5"),
        ({"factor": 1}, "factor=1"),
        ({"factor": 2.5}, "factor=2.5"),
        ({"patience": 0}, "patience=0"),
        ({"stop_patience": 0}, "stop_patience=0"),
        ({"min_delta": -0.1}, "min_delta=-0.1"),
        ({"min_delta": math.nan}, "min_delta=nan"),
        ({"min_delta": math.inf}, "min_delta=inf"),
    ],
)
def test_impossible_cascades_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        PlateauCascade(**options)


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_scores_that_are_no_numbers_are_named(score):
    with pytest.raises(ValueError, match=f"got {score}"):
        PlateauCascade().step(score)


def test_scores_of_any_kind_are_kept_as_numbers():
    cascade, twin = PlateauCascade(2), PlateauCascade(2)
    running = torch.zeros((), dtype=torch.bfloat16)
    for score in (0.5, 0.25, 0.75):
        running.fill_(score)  # one tensor throughout
        kind = np.float32(score) if score == 0.25 else running
        assert cascade.step(kind) == twin.step(score)
    assert cascade.state_dict() == twin.state_dict()
    assert type(cascade.best) is float


def test_states_of_something_else_are_named():
    cascade, state = PlateauCascade(4), PlateauCascade(2).state_dict()
    for wrong in ({}, state | {"epoch": 3}, {key: state[key] for key in state if key != "k"}):
        with pytest.raises(ValueError, match=r"need the state \['best'"):
            cascade.load_state_dict(wrong)
        assert cascade.k == 4
