"""Chapter 5: what an arm is trained on, when, and who may look at what."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion.chapters.cascading_sum import arms, problems
from companion.chapters.cascading_sum import train as training
from trainaug.training.loop import train
from trainaug.training.randomness import RandomBatchSampler, stream

pytestmark = pytest.mark.usefixtures("untouched_randomness")

ROWS = {row.name: row for row in arms.trained_arms(arms.Profile())}
ARMS = [
    name.removeprefix("digits_10_")
    for name, row in ROWS.items()
    if name.startswith("digits_10_") and not name.startswith("digits_10_source")
]
STEPS = 24  # thirds and quarters are whole


@pytest.fixture(scope="module", autouse=True)
def data() -> problems.Problem:
    """Import scikit-learn before the random states are watched: that draws from Python's."""
    return problems.problem("digits", 10, 0)


def settings_for(arm: str = "erm", **changes: Any) -> training.Training:
    settings = ROWS[f"digits_10_{arm}"].settings
    assert isinstance(settings, training.Training)
    alpha = 0.4 if "alpha" in ROWS[f"digits_10_{arm}"].tuned else settings.alpha
    return replace(settings, **{"lr": 0.05, "steps": STEPS, "alpha": alpha} | changes)


def trained(
    settings: training.Training, seed: int = 0, **more: Any
) -> tuple[nn.Module, training.Trained]:
    drawn = problems.problem("digits", settings.per_class, 0)
    model = problems.make_model("conv", drawn, seed)
    parts = model, drawn.train, drawn.val
    return model, training.train_classifier(*parts, settings, 10, seed, **more)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.fixture
def watched(monkeypatch) -> Callable[..., tuple[nn.Module, Any, list[Any]]]:
    """Train and note of every step: batch before and after mixing, K, logits, losses and rate."""

    def run(settings: training.Training, seed: int = 0, **more: Any) -> tuple[Any, Any, list[Any]]:
        seen: list[Any] = []

        def spy(model: Any, part: Any, batches: Any, criterion: Any, optimizer: Any, **rest: Any):
            mixer = rest.pop("batch_transform")

            def transform(batch: Any) -> Any:
                x, y, index = mixer(batch)
                note = {"loaded": batch, "x": x, "y": y, "index": index, "k": mixer.mix.num_groups}
                rate = {"weights": mixer.mix.weights, "lr": optimizer.param_groups[0]["lr"]}
                seen.append(SimpleNamespace(**note, **rate))
                return x, y, index

            def noting(logits: Tensor, y: Tensor) -> Tensor:
                losses = criterion(logits, y)
                seen[-1].logits, seen[-1].losses = logits.detach(), losses.detach()
                return losses

            return train(model, part, batches, noting, optimizer, batch_transform=transform, **rest)

        with monkeypatch.context() as patch:
            patch.setattr(training, "train", spy)
            return *trained(settings, seed, **more), seen

    return run


def plain_training(seed: int, steps: int, smoothing: float = 0.0) -> nn.Module:
    """Clean training without the loop, the samplers and the mixer."""
    drawn = problems.problem("digits", 10, 0)
    model, g = problems.make_model("conv", drawn, seed), stream(seed, "order")
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    model.train()
    for step in range(steps):
        if step % 2 == 0:
            order = torch.randperm(100, generator=g)
        rows = order[:50] if step % 2 == 0 else order[50:]
        optimizer.param_groups[0]["lr"] = 0.05 * (0.5 * (1 + math.cos(math.pi * step / steps)))
        optimizer.zero_grad()
        logits, y = model(drawn.train.x[rows]), drawn.train.y[rows]
        F.cross_entropy(logits, y, label_smoothing=smoothing).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("seed", [0, 1000])
def test_clean_training_is_plain_sgd_bit_by_bit(seed):
    model, noted = trained(settings_for(steps=33), seed)
    assert same_weights(model, plain_training(seed, 33))
    assert noted.step == [30, 33]
    assert noted.examples == noted.forward_examples == 33 * 50
    smoothed, _ = trained(settings_for("smoothing", steps=33), seed)
    twin = plain_training(seed, 33, smoothing=0.1)
    for a, b in zip(smoothed.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)  # order of sums
    assert not same_weights(model, smoothed)


K_OF: dict[str, list[int]] = {
    **dict.fromkeys(("erm", "smoothing", "erm_restart", "longer"), [1] * 24),
    **dict.fromkeys(("csa2", "mixup_clean", "pixel2"), [2] * 16 + [1] * 8),
    **dict.fromkeys(("mixup", "constant2"), [2] * 24),
    "constant4": [4] * 24,
    "constant8": [8] * 24,
    "reversed4": [1] * 8 + [2] * 8 + [4] * 8,
    "csa8": [8] * 6 + [4] * 6 + [2] * 6 + [1] * 6,
    **dict.fromkeys(("smooth", "jump"), [4] * 6 + [3] * 6 + [2] * 6 + [1] * 6),
    "examples4": [4] * 2 + [2] * 4 + [1] * 8,  # 24 / 3 steps of each K, divided by K
}


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_mixes_as_many_samples_as_it_says(watched, arm):
    model, noted, seen = watched(settings_for(arm))
    again, _, other = *trained(settings_for(arm)), trained(settings_for(arm), 1)[0]
    assert same_weights(model, again)
    assert not same_weights(model, other)
    counts = [step.k for step in seen]
    if arm == "random4":
        assert set(counts) <= {1, 2, 4}
    elif arm != "cutmix":
        assert counts == K_OF.get(arm, [4] * 8 + [2] * 8 + [1] * 8)
    mixed_rows = {"growing4": lambda k: 100 // k}.get(arm, lambda k: 50)
    loaded = {"growing4": lambda k: 100, "examples4": lambda k: 50 * k}.get(arm, lambda k: 50)
    for step in seen:
        x, y, _ = step.loaded
        assert (len(x), len(step.x)) == (loaded(step.k), mixed_rows(step.k))
        assert step.y.dtype == torch.float32
        assert step.y.shape == (len(step.x), 10)
        torch.testing.assert_close(step.y.sum(1), torch.ones(len(step.x)), rtol=0, atol=1e-6)
        assert float(step.y.min()) >= 0
        is_equal = arm not in ("mixup", "mixup_clean", "dirichlet4", "smooth", "jump", "cutmix")
        if is_equal and arm != "single4":  # multiples of 1 / K, and of no smaller number
            torch.testing.assert_close((step.y * step.k).round() / step.k, step.y)
            assert float(step.y[step.y > 0].min()) == pytest.approx(1 / step.k)
        elif arm != "cutmix":
            assert int((step.y > 0).sum(1).max()) == (1 if arm == "single4" else step.k)
        if step.k == 1:
            assert torch.equal(step.x, x)
            assert torch.equal(step.y, F.one_hot(y, 10).float())
        smoothing = 0.1 if arm == "smoothing" else 0.0
        target = (1 - smoothing) * step.y + smoothing / 10
        losses = -(target * step.logits.log_softmax(1)).sum(1)
        if arm == "bce4" and step.k > 1:
            losses = F.binary_cross_entropy_with_logits(step.logits, step.y, reduction="none")
            losses = losses.mean(1)
        torch.testing.assert_close(step.losses, losses, rtol=1e-4, atol=1e-6)
    assert noted.examples == sum(len(step.loaded[0]) for step in seen)
    assert noted.forward_examples == sum(len(step.x) for step in seen)
    steps = 14 if arm == "examples4" else 24
    expected = {"growing4": 24 * 100}.get(arm, 24 * 50)  # equal steps, or equal examples
    assert (len(seen), noted.examples) == (steps, expected)
    if arm != "growing4":
        assert noted.forward_examples == steps * 50
    assert noted.step[-1] == steps


def test_all_arms_at_full_length_have_the_steps_or_examples_of_clean_training(data):
    for arm in ARMS:
        settings = ROWS[f"digits_10_{arm}"].settings
        assert isinstance(settings, training.Training)
        mixer = training.Mixer(settings, data.train.x, 10, 0)
        examples = 0
        for step in range(mixer.total):
            mixer.step = step
            examples += 50 * mixer.loader_batches()
        assert mixer.total == {"longer": 1284, "examples4": 350}.get(arm, 600)
        expected = {"longer": 64_200, "growing4": 60_000}.get(arm, 30_000)
        assert abs(examples - expected) <= 50, arm


@pytest.mark.parametrize("size", [100, 250, 1000])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_joined_batches_are_plain_ones_in_their_order(size, count):
    joined = training.JoinedBatches(
        RandomBatchSampler(size, 50, stream(0, "order"), drop_last=True), lambda: count
    )
    first = next(iter(joined))
    g = stream(0, "order")
    order = torch.cat([torch.randperm(size, generator=g) for _ in range(4)]).tolist()
    assert first == order[: 50 * count]
    joined.batches.generator = stream(0, "order")
    epoch = list(joined)
    assert all(len(batch) == 50 * count for batch in epoch)
    flat = [row for batch in epoch for row in batch]
    assert flat == order[: len(flat)]  # none of an epoch is left out
    assert size <= len(flat) < size + 50 * count


def test_random_draws_k_of_the_stages_by_their_shares(data):
    settings = settings_for("random4", stages=((4, 0.5), (2, 0.3), (1, 0.2)), steps=3000)
    mixer = training.Mixer(settings, data.train.x, 10, 0)
    batch = (data.train.x[:4], data.train.y[:4], torch.arange(4))
    counts = []
    for _ in range(3000):
        mixer(batch)
        counts.append(mixer.mix.num_groups)
    for part in (counts[:1000], counts[-1000:]):  # throughout, whatever the stage
        for k, share in settings.stages:
            # 4.5 standard deviations of a share
            assert part.count(k) / 1000 == pytest.approx(share, abs=4.5 * math.sqrt(0.25 / 1000))
