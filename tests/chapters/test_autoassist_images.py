"""Chapter 3: the Boss on pictures; what each arm draws, spends and reports."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from companion.chapters.autoassist import images
from companion.chapters.autoassist.images import (
    Trained,
    Training,
    decide_ahead,
    run_images,
    run_with_control,
    train_images,
)
from companion.chapters.autoassist.measures import count_macs, judge_guesses, measure_end
from companion.chapters.autoassist.problems import losses_of, make_model, pictures
from trainaug.methods.autoassist import AssistantTrainer, AssistedSampler
from trainaug.training.networks import MLP, StridedConvNet, TwoConvNet
from trainaug.training.randomness import stream

pytestmark = pytest.mark.usefixtures("untouched_randomness")

N, BOSS = 300, 559_168  # examples; multiply-adds of the Boss, by hand below
SMALL = Training(
    data="fashion",
    num_train=N,
    num_val=200,
    num_test=250,
    batch=16,
    steps=60,
    lr=0.02,
    every=10,
    probe_every=20,
)
SAMPLERS = ("uniform", "assist", "selective", "pruned", "selfpaced", "screener")


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> None:
    """Data are loaded before the random states are watched."""
    pictures("fashion", 0, 10)


@dataclass
class Seen:
    """A training, with its batches and what was asked of whom."""

    trained: Trained
    batches: list[list[int]] = field(default_factory=list)
    initial: list[Tensor] = field(default_factory=list)
    forwards: int = 0  # of losses at present
    at_evaluations: list[int] = field(default_factory=list)  # such forwards until then
    judged: list[tuple[Tensor, ...]] = field(default_factory=list)


def run(seed: int = 5, keep_rates: Sequence[float] = (), **changes: Any) -> Seen:
    """Train an arm and note its batches and what was asked of whom."""
    seen = Seen(Trained())
    real_train, real_evaluate = images.train, images.evaluate
    real_losses, real_judge = images.present_losses, images.judge_guesses

    def train(model: nn.Module, *given: Any, feedback: Any, **more: Any) -> Any:
        seen.initial = [p.detach().clone() for p in model.parameters()]

        def noting(index: Tensor, losses: Tensor) -> None:
            seen.batches.append(index.tolist())
            feedback(index, losses)

        return real_train(model, *given, feedback=noting, **more)

    def evaluate(model: nn.Module, part: Any, split: str) -> Mapping[str, float]:
        assert (split, len(part)) == ("val", SMALL.num_val)  # the test part is for the end
        seen.at_evaluations.append(seen.forwards)
        return real_evaluate(model, part, split)

    def present_losses(model: nn.Module, data: Any) -> Any:
        losses = real_losses(model, data)

        def counted(index: Tensor) -> Tensor:
            seen.forwards += len(index)
            return losses(index)

        return counted

    def judge_guesses(*given: Tensor) -> Mapping[str, float]:
        seen.judged.append(given)
        return real_judge(*given)

    with pytest.MonkeyPatch.context() as patch:
        for stand_in in (train, evaluate, present_losses, judge_guesses):
            patch.setattr(images, stand_in.__name__, stand_in)
        seen.trained = train_images(replace(SMALL, **changes), seed, keep_rates=keep_rates)
    return seen


@pytest.fixture(scope="module")
def arms() -> dict[str, Seen]:
    return {name: run(sampler=name) for name in SAMPLERS}


def scanned_by_hand(batches: list[list[int]], seed: int) -> list[int]:
    """Examples gone through until each batch, read off the order of the passes."""
    order, passes, last = stream(seed, "order"), -1, N
    scanned: list[int] = []
    rank_of: dict[int, int] = {}
    for batch in batches:
        ranks = [rank_of.get(i, -1) for i in batch]
        if min(ranks) <= last or ranks != sorted(ranks):  # another pass has begun
            passes += 1
            rows = torch.randperm(N, generator=order).tolist()
            rank_of = {row: rank for rank, row in enumerate(rows)}
            ranks = [rank_of[i] for i in batch]
            assert ranks == sorted(ranks)
        last = ranks[-1]
        is_whole = len(batch) < SMALL.batch
        scanned.append(N * (passes + 1) if is_whole else N * passes + last + 1)
    return scanned


@pytest.mark.oracle("aa.11")
@pytest.mark.parametrize("sampler", [*SAMPLERS, "random"])
def test_costs_by_hand(arms, sampler):
    seen = arms[sampler] if sampler != "random" else run(sampler="random", keep_rates=[0.5])
    steps = range(10, 61, 10)
    examples = [sum(map(len, seen.batches[:step])) for step in steps]
    scanned = scanned_by_hand(seen.batches, 5)
    passed = [scanned[step - 1] for step in steps]
    extra = [0.0] * 6
    if sampler == "assist":  # a guess each, and twice as much to learn
        extra = [784 * (s + 2 * e) / BOSS for s, e in zip(passed, examples, strict=True)]
    elif sampler == "selective":
        extra = [float(s) for s in passed]  # of each at least one forward pass was made
        assert all(n >= s for n, s in zip(seen.at_evaluations, passed, strict=True))
    elif sampler == "screener":  # to weigh, and a forward and backward pass to learn
        extra = [4 * e * 282_304 / BOSS for e in examples]
    trained = seen.trained
    assert trained.examples == examples
    assert trained.scanned == passed
    expected = [3 * e + more for e, more in zip(examples, extra, strict=True)]
    assert trained.work == pytest.approx(expected, rel=1e-12)
    assert len(trained.accuracy) == 6
    assert len(seen.batches) == 60
    if sampler in ("uniform", "selfpaced", "screener"):
        assert passed == examples
    else:
        assert trained.metrics["kept"] == pytest.approx(examples[-1] / passed[-1], rel=1e-12)
        assert passed[-1] > examples[-1]
    if sampler == "assist":
        share = extra[-1] / (3 * examples[-1])
        assert trained.metrics["assistant_share"] == pytest.approx(share, rel=1e-12)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_equal_seeds_give_equal_runs(arms, sampler):
    again, seen = run(sampler=sampler, steps=20), arms[sampler]
    assert again.batches == seen.batches[:20]
    for name in ("accuracy", "examples", "work", "scanned"):
        assert getattr(again.trained, name) == getattr(seen.trained, name)[:2]
    assert run(seed=6, sampler=sampler, steps=5).batches != seen.batches[:5]


def test_all_arms_start_from_the_same_weights_and_examples(arms):
    for name in SAMPLERS:
        for one, other in zip(arms[name].initial, arms["uniform"].initial, strict=True):
            assert torch.equal(one, other)
    for name in ("selfpaced", "screener"):
        assert arms[name].batches == arms["uniform"].batches


def test_an_assistant_that_lets_all_through_changes_nothing(arms):
    seen, uniform = run(sampler="assist", base=1.0), arms["uniform"]
    assert seen.batches == uniform.batches
    for name in ("accuracy", "examples", "scanned"):
        assert getattr(seen.trained, name) == getattr(uniform.trained, name)
    for name, value in uniform.trained.metrics.items():
        assert seen.trained.metrics[name] == value
    pairs = zip(seen.trained.work, uniform.trained.work, strict=True)
    assert all(work > plain for work, plain in pairs)


def sampler_of(predict: Any) -> AssistedSampler:
    return AssistedSampler(64, 4, predict, stream(0, "order"), stream(0, "keep"), base=0.0)


@pytest.mark.parametrize("ahead", [0, 1, 3, 12])
def test_batches_are_decided_so_many_updates_ahead_and_used_in_order(ahead):
    updates, passes = 0, sampler_of(lambda index: torch.full((len(index),), 0.4))
    expected = [batch for _ in range(6) for batch in passes]
    again = sampler_of(lambda index: torch.full((len(index),), 0.4))
    assert list(islice(decide_ahead(again, ahead), len(expected))) == expected
    # who passes tells the number of updates then; a pass has about five batches
    dated = sampler_of(lambda index: (index % 4 == updates % 4).float())
    for number, batch in enumerate(islice(decide_ahead(dated, ahead), 24)):
        assert {i % 4 for i in batch} == {max(0, number - ahead) % 4}
        updates += 1
    assert len(dated.keep_rates) >= 4


def test_deciding_ahead_matters_only_to_an_assistant_that_learns(arms, monkeypatch):
    seen, at_once = run(sampler="assist", ahead=20), arms["assist"]
    assert seen.batches[:1] == at_once.batches[:1]
    assert seen.batches != at_once.batches
    constant = lambda self, index: torch.full((len(index),), 0.2)  # noqa: E731
    monkeypatch.setattr(AssistantTrainer, "predict", constant)
    seen, at_once = (run(sampler="assist", ahead=ahead) for ahead in (20, 0))
    assert seen.batches == at_once.batches
    assert seen.trained.accuracy == at_once.trained.accuracy
    # evaluations are ten updates apart
    assert seen.trained.scanned[:-2] == at_once.trained.scanned[2:]


def test_the_random_control_skips_as_many_in_each_pass(arms):
    rates = arms["assist"].trained.keep_rates
    assert all(0.3 <= rate <= 1 for rate in rates)
    for given in ([1.0, 0.5, 0.25], rates):
        kept = run(sampler="random", keep_rates=given).trained.keep_rates[:-1]  # whole passes
        wanted = [*given, *[given[-1]] * len(kept)]
        for rate, asked in zip(kept, wanted, strict=False):
            assert abs(rate - asked) < 4 * math.sqrt(asked * (1 - asked) / N) + 1e-12
        assert len(kept) >= 3


def test_wrong_samplers_are_refused():
    with pytest.raises(ValueError, match="need rates"):
        run(sampler="random")
    with pytest.raises(ValueError, match="'sideways'"):
        run(sampler="sideways")


def test_reached_averages_the_last_five_evaluations():
    trained = Trained(accuracy=[0.0, 1.0, 1.0, 0.25, 0.5, 0.75, 1.0, 0.0])
    means = [0.55, 0.7, 0.7, 0.5]  # of the evaluations 4 to 7
    for target in (0.5, 0.6, 0.7):
        expected = next(k for k, mean in enumerate(means, 4) if mean >= target)
        assert trained.reached(target) == expected
    assert trained.reached(0.71) is None
    assert Trained(accuracy=[1.0] * 4).reached(0.1) is None  # too few evaluations
    assert Trained(accuracy=[0.75] * 9).reached(0.75) == 4


def test_guesses_are_judged_by_later_losses(arms):
    judged, trained = arms["assist"].judged, arms["assist"].trained
    assert not arms["uniform"].judged
    assert len(judged) == len(trained.auc) == 2  # at 40 and 60, guesses of 20 and 40
    assert torch.equal(judged[1][1], judged[0][2])
    assert not torch.equal(judged[0][1], judged[0][2])
    assert not torch.equal(judged[0][0], judged[1][0])
    r, before, losses, y = judged[0]
    assert len(r) == N
    hard = (losses > losses.mean()).tolist()
    by_class = [float(before[y == c].mean()) for c in y]
    assert trained.auc[0] == {
        "r": roc_auc_score(hard, r.tolist()),
        "class": pytest.approx(roc_auc_score(hard, by_class), abs=1e-3),  # rounding makes ties
        "loss": roc_auc_score(hard, before.tolist()),
    }
    assert judge_guesses(losses, before, losses, y)["r"] == 1.0  # a perfect guesser
    assert judge_guesses(-losses, before, losses, y)["r"] == 0.0
    assert judge_guesses(r, losses, losses, y)["loss"] == 1.0
    assert set(judge_guesses(r, before, torch.ones(N), y).values()) == {0.5}


def test_no_choice_of_training_looks_at_the_test_part(arms, monkeypatch):
    def other(*given: Any, **more: Any) -> Any:
        data = pictures(*given, **more)
        return replace(data, test=data.val)

    monkeypatch.setattr(images, "pictures", other)
    trained, expected = run(sampler="assist").trained, arms["assist"].trained
    for name in ("accuracy", "examples", "work", "scanned", "auc", "keep_rates"):
        assert getattr(trained, name) == getattr(expected, name)
    assert trained.metrics["test/accuracy"] == trained.accuracy[-1]
    assert trained.metrics["test/accuracy"] != expected.metrics["test/accuracy"]


@pytest.mark.oracle("aa.7")
def test_a_threshold_at_the_mean_prefers_wrong_labels():
    for sampler, steps in (("uniform", 57), ("assist", 10), ("pruned", 120), ("selective", 80)):
        seen = run(sampler=sampler, noise=0.2, steps=steps)
        wrong = replace(SMALL, noise=0.2).draw(5).wrong
        drawn = torch.tensor([i for batch in seen.batches for i in batch])
        share, overall = float(wrong[drawn].double().mean()), float(wrong.double().mean())
        assert seen.trained.metrics["wrong"] == pytest.approx(share, rel=1e-12)
        if sampler == "uniform":
            assert share == pytest.approx(overall, rel=1e-12)  # three whole passes
        if sampler in ("pruned", "selective"):
            assert share > overall + 0.03


@pytest.mark.oracle("aa.8")
def test_norms_estimated_anew_leave_the_model_as_it_was():
    data = SMALL.draw(1)
    model = make_model("cnn", data, 0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for rows in torch.arange(N).split(50) * 3:
        optimizer.zero_grad()
        losses_of(model(data.train.x[rows]), data.train.y[rows]).mean().backward()
        optimizer.step()
    optimizer.zero_grad()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    twin = copy.deepcopy(model)  # one batch with all examples, by hand
    for norm in twin.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0
    with torch.no_grad():
        twin(data.train.x)
        anew = float((twin.eval()(data.test.x).argmax(1) == data.test.y).double().mean())
    ends = []
    for mean, var in ((0.0, 1.0), (3.0, 50.0)):
        for norm in norms:
            norm.running_mean.fill_(mean)
            norm.running_var.fill_(var)
        before = {name: t.clone() for name, t in model.state_dict().items()}
        ends.append(measure_end(model, data))
        for name, t in model.state_dict().items():
            assert torch.equal(t, before[name])
        assert all(m.training for m in model.modules())
        assert {norm.momentum for norm in norms} == {0.1}
    assert [end["test/accuracy_norms"] for end in ends] == pytest.approx([anew, anew], abs=0.005)
    assert ends[0]["test/accuracy_norms"] == ends[1]["test/accuracy_norms"] > 0.3
    assert ends[1]["test/accuracy"] < 0.3
    with torch.no_grad():
        logits = model.eval()(data.test.x)
        confidence, guess = logits.softmax(1).max(1)
        error = 0.0
        for k in range(15):
            inside = (confidence >= k / 15) & ((confidence < (k + 1) / 15) | (k == 14))
            gap = confidence[inside].double() - (guess == data.test.y)[inside].double()
            error += abs(float(gap.sum())) / 250
        assert ends[1]["test/calibration_error"] == pytest.approx(error, rel=1e-6)
        model.head.bias[0] = 3e38
    with pytest.raises(FloatingPointError, match="'test/loss': inf"):
        measure_end(model, data)
    with torch.no_grad():
        model.head.bias[0] = math.nan
    with pytest.raises(FloatingPointError, match="'test/loss': nan"):
        measure_end(model, data)


def test_count_macs_by_hand():
    g, x = stream(0, "init"), torch.rand(3, 1, 28, 28, generator=stream(0, "measure"))
    model = StridedConvNet(10, g)
    before = [t.clone() for t in model.state_dict().values()]
    first, second, third = 14 * 14 * 16 * 9, 7 * 7 * 32 * 16 * 9, 4 * 4 * 64 * 32 * 9
    assert count_macs(model, x) == first + second + third + 1024 * 10 == BOSS
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())
    two = 28 * 28 * 8 * 9 + 14 * 14 * 16 * 8 * 9
    assert count_macs(TwoConvNet(1, g), x) == two + 64 == 282_304
    assert count_macs(MLP(784, 5, 10, g), x) == 784 * 5 + 50


# --- records --------------------------------------------------------------------------------------


def planned(settings: Training, seed: int, keep_rates: Sequence[float] = ()) -> Trained:
    """A run whose first five evaluations have a mean accuracy of 0.9."""
    scale = 1.0 if settings.sampler == "random" else 2.0
    return Trained(
        accuracy=[0.5, *[1.0] * 7],
        examples=[10.0 * scale * k for k in range(8)],
        work=[30.0 * scale * k for k in range(8)],
        scanned=[20.0 * scale * k for k in range(8)],
        auc=[{"r": 0.7, "class": 0.6, "loss": 0.9}],
        keep_rates=list(keep_rates) or [settings.lr, 0.5],
        metrics={"test/accuracy": settings.lr},
    )


def test_a_record_has_what_was_spent_when_the_target_was_first_reached(monkeypatch):
    monkeypatch.setattr(images, "train_images", planned)
    record = run_images(replace(SMALL, target=0.9), 3)
    assert record.metrics == {
        "reached": 1.0, "examples": 80.0, "work": 240.0, "scanned": 160.0, "test/accuracy": 0.02,
    }  # fmt: skip
    assert set(record.curves) == {"accuracy", "examples", "scanned", "keep_rates"}
    record = run_images(replace(SMALL, target=1.1), 3)  # never: all of the run
    assert (record.metrics["reached"], record.metrics["examples"]) == (0.0, 140.0)


def test_a_control_skips_at_the_rates_of_its_assistant_and_has_its_own_learning_rate(monkeypatch):
    monkeypatch.setattr(images, "train_images", planned)
    record = run_with_control(replace(SMALL, sampler="assist", control_lr=0.03, target=0.9), 3)
    assert record.curves["random/keep_rates"] == record.curves["keep_rates"] == [0.02, 0.5]
    assert record.metrics["random/test/accuracy"] == 0.03
    assert (record.metrics["examples"], record.metrics["random/examples"]) == (80.0, 40.0)
    assert record.curves["auc/class"] == [0.6]
    assert "random/auc/class" not in record.curves
