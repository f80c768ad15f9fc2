"""Every public name of the seven packages in the loops of strangers: half precision, empty batches,
NaN, integer labels, another device, compiled, pickled.

What is not walked stands in a table with its reason.
"""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.methods.every_name import (
    CALLS,
    NO_TENSORS,
    Given,
    aa,
    cross_entropy,
    cs,
    gc,
    hn,
    lr,
    od,
    public_names,
    rng,
)

pytestmark = pytest.mark.filterwarnings("ignore")

HALVES = (torch.float16, torch.bfloat16)
REFUSALS = (TypeError, ValueError)


def leaves(value: Any) -> list[Any]:
    """Numbers and tensors of a result."""
    if isinstance(value, Tensor | int | float):
        return [value]
    if is_dataclass(value) and not isinstance(value, type):
        return [leaf for f in fields(value) for leaf in leaves(getattr(value, f.name))]
    if isinstance(value, dict):
        return [leaf for each in value.values() for leaf in leaves(each)]
    return [leaf for each in value for leaf in leaves(each)]


def numbers(value: Any) -> Tensor:
    """All numbers of a result in a row."""
    parts = [torch.as_tensor(leaf).detach().cpu().double().flatten() for leaf in leaves(value)]
    return torch.cat(parts) if parts else torch.zeros(0)


def names_it(error: Exception, *words: str) -> None:
    """A refusal says what it is about."""
    told = str(error).lower()
    assert any(word.lower() in told for word in words), told


def test_every_name_is_walked_or_named() -> None:
    assert sorted([*CALLS, *NO_TENSORS]) == sorted(public_names())


NAMES = pytest.mark.parametrize("name", CALLS)

# decisions differ where two numbers are nearly equal; what they depend on is walked
DISCRETE = {
    "autoassist.keep",
    "gradient_clustering.best_partition",
    "gradient_clustering.GradientClustering",
    "gradient_clustering.exact_moves",
    "ordering.GraBSampler",
    "ordering.PacedSampler",
}
# relative to the largest number of the result
LOOSE = {
    "cascading_sum.gradient_lipschitz": "a quotient of small differences",
    "cascading_sum.hessian_top_eigenvalue": "an eigenvalue of a half-precision function",
    "ordering.trial_losses": "a difference of two losses",
}


@NAMES
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_precision_is_right_or_refused(name: str, dtype: torch.dtype) -> None:
    expected = numbers(CALLS[name](Given(rounded=dtype)))
    given = Given(dtype=dtype, rounded=dtype)
    try:
        actual = numbers(CALLS[name](given))
    except (*REFUSALS, FloatingPointError, ArithmeticError) as error:
        return names_it(error, "float16", "half", "float32", "float64", str(dtype))
    assert bool(actual.isfinite().all()) or not bool(expected.isfinite().all())
    if name in DISCRETE:
        return
    scale = max(1.0, float(expected.abs().max()))
    tolerance = 0.5 if name in LOOSE else 0.02 if dtype == torch.float16 else 0.1
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@NAMES
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_on_cuda_values_are_right_or_refused(name: str, dtype: torch.dtype) -> None:
    expected = numbers(CALLS[name](Given(rounded=dtype)))
    try:
        actual = numbers(CALLS[name](Given(dtype=dtype, rounded=dtype, device="cuda")))
    except (*REFUSALS, FloatingPointError, ArithmeticError) as error:
        return names_it(
            error, "float16", "half", "float32", "float64", str(dtype), "cuda", "device"
        )
    if name in DISCRETE:
        return
    scale = max(1.0, float(expected.abs().max()))
    half = 0.02 if dtype == torch.float16 else 0.1
    tolerance = 0.5 if name in LOOSE else 1e-3 if dtype == torch.float32 else half
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale)


@NAMES
def test_an_empty_batch_is_defined_or_refused(name: str) -> None:
    try:
        actual = CALLS[name](Given(rows=0))
    except ValueError:
        return
    shown = numbers(actual)
    assert bool(shown.isfinite().all()), f"an empty batch gives {shown}"


def spoilable() -> list[tuple[str, str]]:
    """Each floating tensor of each call."""
    pairs = []
    for name, call in CALLS.items():
        given = Given()
        call(given)
        pairs += [(name, tensor) for tensor in dict.fromkeys(given.floats)]
    return pairs


# where the result for infinity is finite, and rightly
LIMITS = {
    ("autoassist.AssistantTrainer", "x"): "an infinite logit is a sure prediction",
    ("cascading_sum.SumTTA", "x"): "the model's own activation is bounded",
    ("hard_negatives.order_scores", "images"): "a picture above every caption violates no order",
    ("ordering.BatchScorer", "x"): "the model's own activation is bounded",
    ("ordering.batch_losses", "x"): "the model's own activation is bounded",
    ("ordering.example_losses", "x"): "the model's own activation is bounded",
    ("ordering.exhaustive_orders", "held"): "the model's own activation is bounded",
}


@pytest.mark.parametrize("spoil", [math.nan, math.inf])
@pytest.mark.parametrize(("name", "tensor"), spoilable())
def test_what_is_not_finite_is_refused_or_shows(name: str, tensor: str, spoil: float) -> None:
    if math.isinf(spoil) and (name, tensor) in LIMITS:
        return
    try:
        actual = numbers(CALLS[name](Given(spoilt=tensor, spoil=spoil)))
    except (ValueError, ArithmeticError) as error:
        return names_it(error, "finite", "nan", "inf", "must be in", "range")
    assert not bool(actual.isfinite().all()), f"{tensor} holds {spoil}, which the result hides"


def labelled() -> list[str]:
    """Calls that take labels."""
    actual = []
    for name, call in CALLS.items():
        given = Given()
        call(given)
        if given.labelled:
            actual.append(name)
    return actual


@pytest.mark.parametrize("name", labelled())
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.bool], ids=str)
def test_labels_of_any_type_mean_the_same(name: str, dtype: torch.dtype) -> None:
    given = Given()
    expected = numbers(CALLS[name](given))
    if dtype == torch.bool and max(given.labelled) > 1:
        pytest.skip("more than two classes")
    try:
        actual = numbers(CALLS[name](Given(label_type=dtype)))
    except REFUSALS as error:
        return names_it(error, "label", "class", str(dtype))
    torch.testing.assert_close(actual, expected)


# a module that is made without a generator belongs on the default device, as all of torch's do
MADE_THERE = {"linear_robustness.LinearClassifier"}


@pytest.mark.parametrize("name", sorted(CALLS.keys() - MADE_THERE))
def test_values_are_the_same_inside_another_default_device(name: str) -> None:
    expected = numbers(CALLS[name](Given()))
    with torch.device("meta"):
        got = CALLS[name](Given())
    for leaf in leaves(got):
        assert not isinstance(leaf, Tensor) or leaf.device.type == "cpu"
    torch.testing.assert_close(numbers(got), expected, rtol=0, atol=0, equal_nan=True)


# modules and functions of tensors alone; the others decide by values, draw from generators,
# differentiate or train inside, and are called around a compiled model, not compiled themselves
COMPILED = (
    "attacks.project_ball",
    "attacks.steepest_step",
    "autoassist.ImageAssistant",
    "autoassist.TextAssistant",
    "hard_negatives.HingeCurriculum",
    "hard_negatives.MaxOfHinges",
    "hard_negatives.SumOfHinges",
    "hard_negatives.cosine_scores",
    "hard_negatives.order_scores",
    "linear_robustness.DeepLinear",
    "linear_robustness.LinearClassifier",
    "linear_robustness.norm",
    "linear_robustness.prox",
)


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_is_the_same(name: str) -> None:
    torch.compiler.reset()
    expected = numbers(CALLS[name](Given()))
    actual = numbers(torch.compile(CALLS[name], backend="eager")(Given()))
    torch.testing.assert_close(actual, expected)


INDEX = torch.arange(4)
LOSSES = torch.tensor([0.1, 0.4, 0.2, 0.7])


def net() -> nn.Module:
    """A small network without global randomness."""
    return Given().net()


def paced() -> od.PacedSampler:
    """Batches of a growing pool."""
    return od.PacedSampler(LOSSES, 2, rng(), pacing=half_then_all, num_steps=4)


def half_then_all(progress: float) -> float:
    """A pacing that a pickle can name."""
    return od.step_pacing(progress, a=0.5, b=0.5)


def ones(index: Tensor) -> Tensor:
    """Predictions that a pickle can name."""
    return torch.ones(len(index))


def features(index: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs of an Assistant."""
    return torch.eye(4)[index], index % 2


def batches(sampler: Any) -> list[Any]:
    """An epoch."""
    return list(sampler)


def passes(made: Any) -> Any:
    """Predictions for the next batch."""
    return made.predict(INDEX)


def mixes(mix: Any) -> Any:
    """A mix of a batch."""
    return mix(torch.eye(4), INDEX % 3)


def falls(plateau: cs.PlateauCascade) -> int:
    """Sums after two scores that are no better."""
    plateau.step(0.5)
    plateau.step(0.5)
    return plateau.k


class Table(torch.utils.data.Dataset[Any]):
    """Four examples."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: Any) -> Any:
        return torch.eye(4)[index], torch.as_tensor(index) % 2, torch.as_tensor(index)


def steps(optimizer: torch.optim.Optimizer) -> Tensor:
    """Two steps on a parabola."""
    (w,) = optimizer.param_groups[0]["params"]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = 0.5 * (w - torch.arange(4.0)).square().sum()
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)
    return w.detach().clone()


def zeros() -> list[nn.Parameter]:
    """A parameter."""
    return [nn.Parameter(torch.zeros(4))]


def fed(made: Any) -> Any:
    """An object after a batch of losses."""
    made.update(INDEX, LOSSES)
    return made


# what has a state: how it is made, and what its copy must do alike
STATEFUL: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "autoassist.AssistantTrainer": (
        lambda: fed(aa.AssistantTrainer(aa.ImageAssistant(4, 2, rng()), features)),
        passes,
    ),
    "autoassist.AssistedSampler": (
        lambda: aa.AssistedSampler(8, 2, ones, rng(), rng(1)),
        batches,
    ),
    "autoassist.LossTable": (lambda: fed(aa.LossTable(4)), passes),
    "autoassist.RandomSkip": (lambda: aa.RandomSkip([0.5, 0.25]), passes),
    "autoassist.SelectiveBackprop": (lambda: aa.SelectiveBackprop(ones), passes),
    "autoassist.SelfPacedWeights": (
        lambda: fed(aa.SelfPacedWeights(4, 1)),
        lambda made: made.weights(INDEX),
    ),
    "cascading_sum.PixelMix": (
        lambda: cs.PixelMix(2, num_classes=3, alpha=0.5, generator=rng()),
        mixes,
    ),
    "cascading_sum.PlateauCascade": (
        lambda: cs.PlateauCascade(4, patience=1),
        lambda made: [(made.step(0.5) and 0) or 0, (made.step(0.5) and 0) or 0, made.k],
    ),
    "cascading_sum.SingleLabelMix": (
        lambda: cs.SingleLabelMix(2, num_classes=3, generator=rng()),
        mixes,
    ),
    "cascading_sum.SumMix": (lambda: cs.SumMix(2, num_classes=3, generator=rng()), mixes),
    "gradient_clustering.RandomSnoozeSampler": (
        lambda: gc.RandomSnoozeSampler(8, 2, rng(), counts=[4]),
        batches,
    ),
    "gradient_clustering.SnoozeSampler": (lambda: fed(gc.SnoozeSampler(8, 2, rng())), batches),
    "gradient_clustering.StratifiedSampler": (
        lambda: gc.StratifiedSampler(8, 2, rng()),
        batches,
    ),
    "hard_negatives.CollapseMonitor": (
        hn.CollapseMonitor,
        lambda made: made.update(torch.eye(4)),
    ),
    "hard_negatives.DistinctGroupBatchSampler": (
        lambda: hn.DistinctGroupBatchSampler(torch.arange(8) // 2, 2, rng()),
        batches,
    ),
    "hard_negatives.HingeCurriculum": (
        lambda: hn.HingeCurriculum(2),
        lambda made: [made.step(), made(torch.arange(16.0).reshape(4, 4))],
    ),
    "linear_robustness.ProximalGradient": (
        lambda: lr.ProximalGradient(zeros(), 0.1, "l1", 0.05),
        steps,
    ),
    "linear_robustness.SteepestDescent": (lambda: lr.SteepestDescent(zeros(), 0.1, "l1"), steps),
    "ordering.ForgettingTracker": (
        lambda: od.ForgettingTracker(4),
        lambda made: [made.update(INDEX, LOSSES > 0.3) or 0, made.scores()],
    ),
    "ordering.GraBSampler": (lambda: od.GraBSampler(4, 2, generator=rng()), batches),
    "ordering.PacedSampler": (paced, batches),
    "ordering.RunningHardness": (
        lambda: od.RunningHardness(4),
        lambda made: [made.update(INDEX, LOSSES) or 0, list(made.state_dict().values())],
    ),
    "ordering.PerfectOrderingSampler": (
        lambda: od.PerfectOrderingSampler(
            Table(),
            2,
            scorer=od.BatchScorer("max_loss", net(), cross_entropy),
            num_candidates=1,
            generator=rng(),
            candidate_generator=rng(1),
        ),
        batches,
    ),
    "ordering.SampleLossSampler": (
        lambda: od.SampleLossSampler(Table(), 2, losses_of=listed, generator=rng()),
        batches,
    ),
}


def listed(indices: Tensor) -> Tensor:
    """Losses that a pickle can name."""
    return indices.float()


@pytest.mark.parametrize("name", STATEFUL)
@pytest.mark.parametrize("how", ["pickle", "deepcopy", "state"])
def test_a_copy_goes_on_alike(name: str, how: str) -> None:
    make, probe = STATEFUL[name]
    made = make()
    if how == "state":
        file = io.BytesIO()
        torch.save(made.state_dict(), file)
        file.seek(0)
        twin = make()
        twin.load_state_dict(torch.load(file))
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(made))  # noqa: S301
    else:
        twin = copy.deepcopy(made)
    torch.testing.assert_close(numbers(probe(twin)), numbers(probe(made)), rtol=0, atol=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: cs.SumTTA(net(), torch.zeros(3, 4), repeats=2, generator=seed),
        lambda seed: cs.SumMix(2, num_classes=2, generator=seed),
        lambda seed: od.PacedSampler(LOSSES, 2, seed, pacing=half_then_all, num_steps=4),
        lambda seed: od.SampleLossSampler(Table(), 2, seed, losses_of=listed),
    ],
)
def test_a_seed_in_place_of_a_generator_is_named(make: Any) -> None:
    with pytest.raises(TypeError, match=r"torch\.Generator.*got int"):
        make(0)
