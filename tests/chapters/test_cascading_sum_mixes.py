"""Chapter 5: single mixes by hand, and weights along a cascade."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from companion.chapters.cascading_sum import arms, problems
from companion.chapters.cascading_sum.train import Mixer, Training, released_weights
from trainaug.methods.cascading_sum import CascadeSchedule
from trainaug.training.randomness import stream

pytestmark = pytest.mark.usefixtures("untouched_randomness")


@pytest.fixture(scope="module", autouse=True)
def data() -> problems.Problem:
    """Import scikit-learn before the random states are watched: that draws from Python's."""
    return problems.problem("digits", 10, 0)


ROWS = {row.name: row for row in arms.trained_arms(arms.Profile())}


def settings_for(arm: str, **changes: Any) -> Training:
    settings = ROWS[f"digits_10_{arm}"].settings
    assert isinstance(settings, Training)
    return replace(settings, **{"steps": 24} | changes)


def mixer_of(data: problems.Problem, settings: Training, seed: int = 0) -> Mixer:
    return Mixer(settings, data.train.x, 10, seed)


# --- single mixes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arm", ["csa4", "constant8", "mixup", "dirichlet4", "single4", "rescale4", "pixel2", "growing4"]
)
def test_the_first_mix_by_hand(data, arm):
    x, y, index = data.train[list(range(100 if arm == "growing4" else 50))]
    changes = {"alpha": 0.4} if arm == "mixup" else {}
    mixed_x, mixed_y, mixed_index = mixer_of(data, settings_for(arm, **changes))((x, y, index))
    k, g = {"mixup": 2, "pixel2": 2, "constant8": 8}.get(arm, 4), stream(0, "mix")
    if arm == "growing4":
        groups = torch.randperm(100, generator=g).view(4, 25)
    else:
        orders = [torch.randperm(50, generator=g) for _ in range(k - 1)]
        groups = torch.stack([torch.arange(50), *orders])
    weights = torch.full((k,), 1 / k)
    if arm in ("mixup", "dirichlet4"):
        alpha = torch.full((k,), 0.4 if arm == "mixup" else 1.0)
        weights = torch._sample_dirichlet(alpha, generator=g)
        assert float(weights.max()) != pytest.approx(1 / k, abs=0.01)
    mixed = torch.einsum("k,kbchw->bchw", weights, x[groups])
    labels = torch.einsum("k,kbc->bc", weights, F.one_hot(y[groups], 10).float())
    if arm == "single4":
        labels = F.one_hot(y, 10).float()
    if arm == "rescale4":  # a mean of four has half the deviation from the mean picture
        mean = data.train.x.mean(0)
        mixed = mean + 2 * (mixed - mean)
    if arm == "pixel2":  # a weight for each pixel, Beta(0.4, 0.4)
        a, b = x[groups]
        share = ((mixed_x - b) / (a - b))[(a - b).abs() > 0.2]
        assert -1e-5 < float(share.min()) < float(share.max()) < 1 + 1e-5
        assert float(share.mean()) == pytest.approx(0.5, abs=0.05)
        assert float(share.std()) == pytest.approx(math.sqrt(0.25 / 1.8), abs=0.05)
    else:
        torch.testing.assert_close(mixed_x, mixed, rtol=1e-5, atol=1e-6)  # order of sums
    torch.testing.assert_close(mixed_y, labels, rtol=1e-5, atol=1e-6)
    assert torch.equal(mixed_index, index[groups[0]])


def test_cutmix_pastes_a_box_of_the_neighbour_and_draws_from_its_seed_alone(data):
    settings = settings_for("cutmix")
    x, y = torch.arange(50 * 64.0).view(50, 1, 8, 8), torch.arange(50) % 10
    batch, actual = (x, y, torch.arange(50)), []
    for start, seed in ((1, 0), (2, 0), (3, 1)):
        with torch.random.fork_rng([]):
            torch.manual_seed(start)
            mixer, before = mixer_of(data, settings, seed), torch.get_rng_state()
            actual.append([mixer(batch) for _ in range(6)])
            assert torch.equal(torch.get_rng_state(), before)
    for one, again in zip(*actual[:2], strict=True):
        assert all(map(torch.equal, one, again))
    assert not all(torch.equal(a[0], b[0]) for a, b in zip(actual[0], actual[2], strict=True))
    shares = []
    for mixed, labels, index in actual[0]:
        kept = mixed == x
        assert bool((kept | (mixed == x.roll(1, 0))).all())
        assert torch.equal(index, batch[2])
        shares.append(float(kept.float().mean()))
        soft = shares[-1] * F.one_hot(y, 10) + (1 - shares[-1]) * F.one_hot(y.roll(1), 10)
        torch.testing.assert_close(labels, soft, rtol=0, atol=1e-6)
    assert len(set(shares)) > 3
    assert min(shares) < 0.9


def smooth_weights(t: float, n: int) -> list[float]:
    """The note's formula, progress t below 1."""
    k = math.floor(t * (n - 1))
    m, u = n - k, t * (n - 1) - k
    return [1 / m + u / (m * (m - 1))] * (m - 1) + [(1 - u) / m]


def test_smooth_weights_are_the_formula_and_jumping_ones_those_of_the_code(data):
    batch = data.train[list(range(10))]
    for arm in ("smooth", "jump"):
        mixer, actual = mixer_of(data, settings_for(arm, steps=240)), []
        for _ in range(240):
            mixer(batch)
            actual.append(mixer.mix.weights)
        assert all(float(w.sum()) == pytest.approx(1, abs=1e-6) for w in actual)
        for step in range(180):  # three stages, before the clean one
            k = 4 - step // 60
            u = step % 60 / 60
            t = (4 - k + u / (1 if arm == "smooth" else 9)) / 3
            expected = smooth_weights(t + 1e-12, 4)
            assert actual[step].tolist() == pytest.approx(expected, abs=1e-6), (arm, step)
        assert all(w.tolist() == [1] for w in actual[180:])
        last, after = actual[59].tolist(), actual[60].tolist()
        assert after == pytest.approx([1 / 3] * 3)
        if arm == "jump":  # the note: so just before its first jump
            assert last == pytest.approx([0.259, 0.259, 0.259, 0.222], abs=1e-3)
        else:
            assert last[-1] < 0.01


@pytest.mark.parametrize("step", [0, 149, 150, 299, 300, 449, 450, 599])
def test_released_weights_by_hand(step):
    schedule = CascadeSchedule([(k, 0.25) for k in (4, 3, 2, 1)], 600)
    u = step % 150 / 150 / 9
    expected = {
        0: [(1 + u / 3) / 4] * 3 + [(1 - u) / 4],
        1: [(1 + u / 2) / 3] * 2 + [(1 - u) / 3],
        2: [(1 + u) / 2, (1 - u) / 2],
        3: [1.0],
    }[step // 150]
    assert released_weights(schedule, step).tolist() == pytest.approx(expected, abs=1e-6)
