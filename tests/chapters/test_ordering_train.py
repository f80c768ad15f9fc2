"""Chapter 4: what an arm is trained on, what it costs, who may look at what, and its record."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion.chapters.ordering import problems
from companion.chapters.ordering import train as training
from companion.chapters.ordering.train import FashionTraining, Training, run_training
from companion.evidence.store import canonical_json
from trainaug.data.indexed import IndexedDataset
from trainaug.methods.ordering import GraBSampler, example_losses
from trainaug.methods.ordering.sampler import epoch_seed
from trainaug.methods.ordering.scores import BatchScorer, Score
from trainaug.training.loop import train
from trainaug.training.models import evaluate
from trainaug.training.randomness import stream

pytestmark = pytest.mark.usefixtures("untouched_randomness")

SCORES = get_args(Score)
EPOCH = 16  # batches of 64 in the 1024 training digits


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> None:
    """Import scikit-learn before the random states are watched: that draws from Python's."""
    problems.problem("digits", 0)


def settings_for(order: Any = "random", **changes: Any) -> Training:
    return replace(Training(order=order, steps=20, lr=0.1), **changes)


def paced(order: Any, **changes: Any) -> Training:
    start = FashionTraining(data="fashion_mnist", order=order, steps=20, lr=0.1)
    return replace(start, **changes)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


Seen = list[list[int]]


@pytest.fixture
def watched(monkeypatch) -> Callable[..., tuple[training.Trained, Seen]]:
    """Train an arm and note every batch it was trained on."""

    def run(settings: Training, seed: int = 0, **options: Any) -> tuple[Any, Seen]:
        seen: Seen = []

        def spy(*args: Any, observers: Any = (), **rest: Any) -> Any:
            if "max_steps" not in rest:  # the teacher
                return train(*args, observers=observers, **rest)

            def note(model: nn.Module, step: int, index: Tensor, losses: Tensor) -> None:
                seen.append(index.tolist())

            return train(*args, observers=[*observers, note], **rest)

        with monkeypatch.context() as patch:
            patch.setattr(training, "train", spy)
            return training.train_arm(settings, seed, **options), seen

    return run


def in_epochs(seen: Seen) -> list[set[frozenset[int]]]:
    assert len(seen) % EPOCH == 0
    return [{*map(frozenset, seen[i : i + EPOCH])} for i in range(0, len(seen), EPOCH)]


@pytest.mark.parametrize(
    "settings",
    [settings_for(o) for o in ("random", "min_loss", "delta_target", "grad_align", "random_more")]
    + [settings_for("delta_abs", model="cnn_bn", steps=3), settings_for("grab", model="linear")]
    + [settings_for("min_loss", pool="resampled"), paced("ascending", noise=0.4, steps=6)],
    ids=lambda s: f"{s.order}-{s.model}-{s.pool}",
)
def test_training_is_reproducible_bit_by_bit(settings):
    one, again, other = (training.train_arm(settings, seed) for seed in (1, 1, 2))
    for name in ("accuracy", "forwards", "train_loss", "entropy"):
        assert getattr(one, name) == getattr(again, name)
    assert same_weights(one.model, again.model)
    assert not same_weights(one.model, other.model)
    assert len(one.accuracy) == len(one.forwards) == len(one.entropy) == settings.steps


def test_random_is_plain_sgd_on_reshuffled_batches(watched):
    """A twin without samplers and loop; the step length falls to zero over the whole budget."""
    actual, seen = watched(settings_for(steps=40), steps=EPOCH + 3)
    data = problems.problem("digits", 0)
    model = problems.make_model("mlp", data, 0)
    optimizer = problems.source_sgd(model, 0.1)
    first = stream(0, "order").initial_seed()
    for step in range(EPOCH + 3):
        g = torch.Generator().manual_seed(epoch_seed(first, step // EPOCH))
        batch = torch.randperm(1024, generator=g).split(64)[step % EPOCH]
        assert seen[step] == batch.tolist()
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 40)
        optimizer.zero_grad()
        F.cross_entropy(model(data.train.x[batch]), data.train.y[batch]).backward()
        optimizer.step()
    for a, b in zip(actual.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)  # order of sums


def test_scores_choose_among_the_batches_of_random_reshuffling(watched):
    expected, plain = in_epochs(watched(settings_for(steps=2 * EPOCH))[1]), []
    assert len(expected[0] | expected[1]) == 2 * EPOCH
    for score in SCORES:
        _, seen = watched(settings_for(score, steps=2 * EPOCH))
        assert in_epochs(seen) == expected, score
        plain.append(seen)
    assert all(a != b for i, a in enumerate(plain) for b in plain[:i])
    # what is drawn anew from the remaining examples is not: but every example once an epoch
    _, seen = watched(settings_for("min_loss", pool="resampled", steps=2 * EPOCH))
    for epoch, batches in zip(in_epochs(seen), expected, strict=True):
        assert sorted(i for batch in epoch for i in batch) == list(range(1024))
        assert len(epoch & batches) < EPOCH / 2


def test_scores_pick_what_they_say(watched):
    """The first batch of ``min_loss`` is the easiest of all 16, of ``max_loss`` the hardest."""
    data = problems.problem("digits", 0)
    model = problems.make_model("mlp", data, 0)
    batches = torch.tensor(watched(settings_for(steps=EPOCH))[1])
    with torch.no_grad():
        losses = [
            float(problems.losses_of(model(x), y).mean())
            for x, y, _ in (data.train[b] for b in batches)
        ]
    for score, best in (("min_loss", min(losses)), ("max_loss", max(losses))):
        _, seen = watched(settings_for(score, candidates=EPOCH, steps=1))
        assert seen[0] == batches[losses.index(best)].tolist()


@pytest.mark.parametrize(
    ("order", "each", "once"),
    # forward-equivalents of scoring, in batches: for each candidate, and once a step. A trial step
    # is a forward and a backward pass, 3; the target is 2 batches
    [
        ("random", 0, 0),
        ("random_more", 0, 0),
        ("min_loss", 1, 0),
        ("max_loss", 1, 0),
        ("delta_abs", 3 + 1, 0),  # the loss again after the trial step
        ("delta_rel", 3 + 1, 0),
        ("delta_target", 3 + 2, 2),  # the target after each trial step, and once before
        ("grad_align", 2, 2 * 3),  # forward mode: value and derivative; the target's gradient
        ("fixed", 0, 0),
        ("grab", 0, 0),
    ],
)
@pytest.mark.parametrize("candidates", [2, 8])
def test_forward_equivalents_are_those_of_the_cost_model(order, each, once, candidates):
    actual = training.train_arm(settings_for(order, candidates=candidates, steps=EPOCH + 2), 0)
    spent, expected = 0, []
    for step in range(EPOCH + 2):
        left = EPOCH - step % EPOCH
        scored = min(candidates, left) if left > 1 else 0  # the last batch has no rival
        spent += 3 + each * scored + once * (scored > 0)
        expected.append(spent)
    assert actual.forwards == expected


def test_steps_end_the_training_and_nothing_is_measured():
    timed = training.train_arm(settings_for("delta_abs"), 0, steps=5)
    assert timed.accuracy == timed.forwards == timed.entropy == timed.train_loss == []
    assert timed.seconds > 0
    # measuring does not change what is trained: the same after one step more of the same schedule
    for order in ("random", "delta_abs"):
        whole = training.train_arm(settings_for(order), 0)
        assert same_weights(whole.model, training.train_arm(settings_for(order), 0, steps=20).model)


def test_early_ends_the_training_at_the_target():
    settings = settings_for(steps=160, lr=0.35, target_accuracy=0.85)
    whole, early = (training.train_arm(settings, 0, early=value) for value in (False, True))
    count = whole.reached(0.85)
    assert count is not None
    assert count < len(whole.accuracy) == 160
    assert early.accuracy == whole.accuracy[:count]
    assert early.accuracy[-1] >= 0.85 > max(early.accuracy[:-1])
    never = training.train_arm(replace(settings, lr=1e-6, steps=3), 0, early=True)
    assert (len(never.accuracy), never.reached(0.9)) == (3, None)


def test_the_target_is_reached_at_its_first_passing():
    data = problems.problem("digits", 0)
    actual = training.Trained(data, problems.make_model("linear", data, 0), [0.1, 0.9, 0.5, 0.95])
    assert [actual.reached(t) for t in (0.1, 0.5, 0.9, 0.91, 0.96)] == [1, 2, 2, 4, None]


@pytest.mark.parametrize("settings", [settings_for(steps=3), paced("random_list", steps=3)])
def test_what_is_noted_is_the_entropy_of_labels_and_the_held_out_accuracy(watched, settings):
    actual, seen = watched(settings)
    for entropy, batch in zip(actual.entropy, seen, strict=True):
        shares = [c / len(batch) for c in actual.data.train.y[batch].bincount().tolist() if c]
        assert entropy == pytest.approx(-sum(p * math.log(p) for p in shares), rel=1e-5)
    assert actual.accuracy[-1] == evaluate(actual.model, actual.data.val, "val")["val/accuracy"]
    assert actual.train_loss == []


@pytest.mark.parametrize("order", SCORES)
def test_scores_look_at_the_target_part_and_at_no_other(monkeypatch, order):
    def weights_with(**parts: Callable[[IndexedDataset], IndexedDataset]) -> nn.Module:
        def changed(*args: Any, **options: Any) -> problems.Problem:
            data = problems.problem(*args, **options)
            return replace(
                data, **{part: change(getattr(data, part)) for part, change in parts.items()}
            )

        with monkeypatch.context() as patch:
            patch.setattr(training, "problem", changed)
            return training.train_arm(settings_for(order), 0).model

    def other(part: IndexedDataset) -> IndexedDataset:
        return IndexedDataset(1 - part.x, (part.y + 3) % 10)

    plain = weights_with()
    assert same_weights(plain, weights_with(val=other, test=other))
    uses = order in ("delta_target", "grad_align")
    assert same_weights(plain, weights_with(target=other)) == (not uses)


def test_the_scorer_is_given_the_target_part(monkeypatch):
    given: list[Any] = []

    class Spy(BatchScorer):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            given.append((args[0], options["target"]))

    monkeypatch.setattr(training, "BatchScorer", Spy)
    data = training.train_arm(settings_for("delta_target", steps=1), 0).data
    ((score, (x, y)),) = given
    assert score == "delta_target"
    assert torch.equal(x, data.target.x)
    assert torch.equal(y, data.target.y)


def test_the_control_trains_on_the_target_part_too(watched):
    actual, seen = watched(settings_for("random_more", steps=18))
    data = problems.problem("digits", 0)
    for k in ("x", "y"):
        both = torch.cat([getattr(data.train, k), getattr(data.target, k)])
        assert torch.equal(getattr(actual.data.train, k), both)
        assert torch.equal(getattr(actual.data.val, k), getattr(data.val, k))
    assert sorted(i for batch in seen for i in batch) == list(range(1024 + 128))


@pytest.mark.parametrize("order", ["fixed", "grab"])
def test_fixed_batches_come_once_an_epoch_in_a_new_order(watched, order):
    actual, seen = watched(settings_for(order, model="linear", steps=3 * EPOCH))
    first, second, third = in_epochs(seen)
    assert first == second == third
    assert sorted(i for batch in first for i in batch) == list(range(1024))
    assert len({tuple(map(tuple, seen[i : i + EPOCH])) for i in (0, 16, 32)}) == 3
    assert len(actual.train_loss) == 3 * EPOCH
    now = evaluate(actual.model, actual.data.train, "train")["train/loss"]
    assert actual.train_loss[-1] == pytest.approx(now, rel=1e-6)


def test_grab_gets_the_gradient_of_each_batch_and_decides_the_next_epoch(watched, monkeypatch):
    samplers, recorded = [], []

    class Spy(GraBSampler):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            samplers.append(self.order)

        def update(self, indices: int | Tensor, values: Tensor) -> None:
            recorded.append((indices, values.clone()))
            super().update(indices, values)
            samplers[1:] = [self.order]

    monkeypatch.setattr(training, "GraBSampler", Spy)
    actual, seen = watched(settings_for("grab", model="linear", steps=EPOCH))
    assert [unit for unit, _ in recorded] == samplers[0]
    _, longer = watched(settings_for("grab", model="linear", steps=2 * EPOCH))
    by_unit = dict(zip(samplers[0], seen, strict=True))
    assert [by_unit[unit] for unit, _ in recorded[2 * EPOCH :]] == longer[EPOCH:]
    # the first gradient, from the initial weights
    model = problems.make_model("linear", actual.data, 0)
    x, y, _ = actual.data.train[seen[0]]
    loss = F.cross_entropy(model(x), y)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*model.parameters()])])
    torch.testing.assert_close(recorded[0][1], expected, rtol=1e-5, atol=1e-6)


def test_a_curriculum_goes_by_a_teacher_trained_on_other_examples(watched, monkeypatch):
    taught: list[tuple[nn.Module, Any]] = []

    def spy(teacher: nn.Module, losses_of: Any, x: Tensor, y: Tensor) -> Tensor:
        taught.append((teacher, example_losses(teacher, losses_of, x, y)))
        return taught[-1][1]

    monkeypatch.setattr(training, "example_losses", spy)
    batches = {
        order: watched(paced(order, noise=0.4, steps=10))
        for order in ("ascending", "descending", "random_list")
    }
    (teacher, losses), *others = taught
    assert all(torch.equal(losses, other) for _, other in others)
    data = batches["ascending"][0].data
    held_out = evaluate(teacher, data.val, "val")["val/accuracy"]
    assert evaluate(teacher, data.teacher, "t")["t/accuracy"] > held_out > 0.7
    pool = math.ceil(0.2 * 2048)  # at the start
    ranks = losses.argsort(stable=True).argsort()
    wrong = data.train.y != problems.problem("fashion_mnist", 0).train.y
    share = {order: float(wrong[seen[0]].float().mean()) for order, (_, seen) in batches.items()}
    assert max(ranks[batches["ascending"][1][0]].tolist()) < pool
    assert min(ranks[batches["descending"][1][0]].tolist()) >= 2048 - pool
    assert share["ascending"] < 0.1 < share["random_list"] < 0.7 < share["descending"]


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(ValueError, match="order 'ascending' needs num_teacher above 0"):
        training.train_arm(settings_for("ascending"), 0)
    with pytest.raises(ValueError, match="unknown order 'sideways'"):
        training.train_arm(settings_for("sideways"), 0)
    with pytest.raises(ValueError, match="got 'everything'"):
        training.train_arm(settings_for("min_loss", pool="everything"), 0)


# --- records --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        settings_for(steps=70),
        settings_for("delta_target", steps=70),
        settings_for("grab", model="linear", steps=70),
    ],
    ids=lambda settings: settings.order,
)
def test_a_run_keeps_what_the_estimands_read(settings):
    result = run_training(settings, 0)
    text = canonical_json(result.as_record())
    assert text == canonical_json(run_training(settings, 0).as_record())
    metrics, curves = result.metrics, result.curves
    assert result.counters == {"steps": 70}
    trained = training.train_arm(settings, 0)
    expected = evaluate(trained.model, trained.data.test, "test")
    expected |= evaluate(trained.model, trained.data.train, "train")
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-8)
    assert metrics["forwards"] == trained.forwards[-1]
    assert all(len(curve) <= settings.curve_points for curve in curves.values())
    assert (curves["step"][0], curves["step"][-1]) == (1, 70)
    assert curves["step"] == sorted(set(curves["step"]))
    for step, accuracy in zip(curves["step"], curves["accuracy"], strict=True):
        assert accuracy == pytest.approx(trained.accuracy[int(step) - 1], rel=1e-5)
    assert ("train_loss" in curves) == (settings.order == "grab")


@pytest.mark.parametrize(("passing", "first"), [(30, 30), (1, 1), (100, 100), (None, 100)])
def test_summary_by_hand(monkeypatch, passing, first):
    data = problems.problem("digits", 0)
    steps = range(1, 101)
    trained = training.Trained(
        data,
        problems.make_model("linear", data, 0),
        accuracy=[0.95 if passing is not None and s >= passing else 0.5 for s in steps],
        forwards=[3.0 * s + 7 for s in steps],
        entropy=[2.0] * 30 + [1.0] * 70,
    )
    monkeypatch.setattr(training, "train_arm", lambda settings, seed: trained)
    result = run_training(Training(), 0)
    wanted = {"steps_to_target": first, "forwards_to_target": 3 * first + 7, "forwards": 307}
    wanted |= {"reached": float(passing is not None), "entropy": (30 * 2 + 10) / 40}
    wanted["val/accuracy"] = trained.accuracy[-1]
    assert {name: result.metrics[name] for name in wanted} == pytest.approx(wanted)
    assert result.curves["step"][:6] == [1, 2, 3, 4, 5, 6]  # dense where the target is reached
