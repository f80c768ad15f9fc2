"""Models that take keywords and give objects or dicts, and models without forward mode."""

from __future__ import annotations

import warnings
from collections import UserDict
from dataclasses import dataclass
from typing import get_args

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainaug.methods.gradient_clustering import (
    GradientClustering,
    SGEstimator,
    SVRGEstimator,
    flat_gradients,
    layer_factors,
    per_example_gradients,
)
from trainaug.methods.ordering import (
    BatchScorer,
    batch_losses,
    example_losses,
    exhaustive_orders,
    target_alignments,
    train_in_order,
    trial_losses,
)
from trainaug.methods.ordering.scores import Score
from trainaug.structures import logits_of, losses_of_output, run_on
from trainaug.training.randomness import initialise, stream

Y = torch.arange(12) % 3


def losses_of(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, reduction="none")


@dataclass
class Output:
    """What a model gives, by attributes."""

    logits: Tensor
    hidden: Tensor | None = None


class Named(UserDict):
    """What a model gives, by attributes and by keys, as Hugging Face's outputs."""

    @property
    def logits(self) -> Tensor:
        return self["logits"]


OUTPUTS = {
    "tensor": lambda z: z,
    "object": Output,
    "dict": lambda z: {"loss": None, "logits": z},
    "both": lambda z: Named(logits=z, cache=object()),
    "other names": lambda z: {"scores": z},
}
CRITERIA = {
    "of logits": losses_of,
    "by attribute": lambda output, y: losses_of(output.logits, y),
    "by key": lambda output, y: losses_of(output["logits"], y),
    "by another key": lambda output, y: losses_of(output["scores"], y),
}
RIGHT = [("tensor", "of logits"), ("other names", "by another key")]
RIGHT += [(kind, "of logits") for kind in ("object", "dict", "both")]
RIGHT += [("object", "by attribute"), ("dict", "by key"), ("both", "by attribute")]
RIGHT += [("both", "by key")]


class Keywords(nn.Module):
    """Takes its inputs by keywords, with one that has a default."""

    def __init__(self, output, body):
        super().__init__()
        self.output, self.body = output, body

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: object):
        x = input_ids if attention_mask is None else input_ids * attention_mask
        return self.output(self.body(x))


class Whole(Keywords):
    """Takes one mapping."""

    def forward(self, x):
        return super().forward(x["input_ids"], x["attention_mask"])


class Setting:
    """The same network with plain tensors, and with named inputs and outputs."""

    def __init__(self, kind, randn, wrapped=Keywords):
        with torch.device("meta"):
            body = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
        initialise(body, stream(0, "init"))
        self.body = body.double()
        self.model = wrapped(OUTPUTS[kind], self.body)
        ids, mask = randn(0, 12, 4).double(), torch.ones(12, 4, dtype=torch.float64)
        mask[::2, 3] = 0
        self.named, self.plain = {"input_ids": ids, "attention_mask": mask}, ids * mask

    def __len__(self):
        return len(self.plain)

    def __getitem__(self, rows):
        return {name: values[rows] for name, values in self.named.items()}, Y[rows], rows


def both(setting, function, criterion):
    """What a function of model, criterion and inputs gives in the two forms."""
    actual = function(setting.model, CRITERIA[criterion], setting.named)
    return actual, function(setting.body, losses_of, setting.plain)


@pytest.mark.parametrize("wrapped", [Keywords, Whole])
@pytest.mark.parametrize(("kind", "criterion"), RIGHT)
def test_gradients_of_named_inputs_and_outputs_are_those_of_plain_ones(
    kind, criterion, wrapped, randn
):
    setting = Setting(kind, randn, wrapped)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for function in (
            lambda m, c, x: flat_gradients(layer_factors(m, c, x, Y)),
            lambda m, c, x: per_example_gradients(m, c, x, Y),
            lambda m, c, x: example_losses(m, c, x, Y, batch_size=5),
        ):
            assert torch.equal(*both(setting, function, criterion))

        def clusters(model, criterion, x):
            clustering = GradientClustering(model, criterion, 3, generator=stream(0, "c"))
            rows = torch.arange(12).split(5)
            parts = {k: v.split(5) for k, v in x.items()} if isinstance(x, dict) else x.split(5)
            batches = [
                ({k: v[i] for k, v in parts.items()} if isinstance(x, dict) else parts[i], Y[r], r)
                for i, r in enumerate(rows)
            ]
            return clustering.fit(batches, 3).assign

        assert torch.equal(*both(setting, clusters, criterion))
    for make in (SGEstimator, SVRGEstimator):
        estimator = make(CRITERIA[criterion], setting, 4)
        estimator.refresh(setting.model)
        got = estimator.estimate(setting.model, torch.tensor([1, 7, 2]))
        expected = flat_gradients(
            layer_factors(setting.body, losses_of, setting.plain[[1, 7, 2]], Y[[1, 7, 2]])
        ).mean(0)
        if make is SGEstimator:
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
        assert got.shape == expected.shape


@pytest.mark.parametrize(("kind", "criterion"), RIGHT)
def test_scores_of_named_inputs_and_outputs_are_those_of_plain_ones(kind, criterion, randn):
    setting = Setting(kind, randn)
    labels = Y.view(4, 3)

    def candidates(x):
        return {k: candidates(v) for k, v in x.items()} if isinstance(x, dict) else x.view(4, 3, 4)

    for score in get_args(Score):
        for together, independent in ((True, False), (False, False), (True, True)):

            def scores(model, criterion, x, options=(score, together, independent)):
                optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
                scorer = BatchScorer(
                    options[0],
                    model,
                    criterion,
                    optimizer=optimizer,
                    target=(x, Y),
                    together=options[1],
                    independent=options[2],
                )
                return scorer(candidates(x), labels)

            torch.testing.assert_close(*both(setting, scores, criterion), rtol=0, atol=1e-12)

    def losses(model, criterion, x):
        return batch_losses(model, criterion, candidates(x), labels)

    assert torch.equal(*both(setting, losses, criterion))


@pytest.mark.parametrize("together", [True, False])
def test_orders_of_named_batches_are_those_of_plain_ones(together, randn):
    setting = Setting("object", randn)

    def orders(model, criterion, x):
        def part(rows):
            return {k: v[rows] for k, v in x.items()} if isinstance(x, dict) else x[rows]

        batches = [(part(rows), Y[rows]) for rows in torch.arange(12).split(4)]
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        actual = exhaustive_orders(
            model, optimizer, criterion, batches, lambda z: z.mean(0), x, together=together
        )
        train_in_order(model, optimizer, criterion, batches, actual[0][0].tolist())
        return actual[1]

    actual = orders(setting.model, losses_of, setting.named)
    again = Setting("tensor", randn)
    torch.testing.assert_close(actual, orders(again.body, losses_of, again.plain))
    torch.testing.assert_close(*(list(s.body.parameters()) for s in (setting, again)))


def test_logits_are_taken_out_first_and_errors_of_the_criterion_are_its_own():
    z = torch.randn(4, 3, generator=stream(0, "z"))
    assert all(logits_of(OUTPUTS[kind](z)) is z for kind in OUTPUTS if kind != "other names")
    other = OUTPUTS["other names"](z)
    assert logits_of(other) is other
    with pytest.raises(TypeError, match="my own"):
        losses_of_output(lambda z, y: (_ for _ in ()).throw(TypeError("my own")), Output(z), Y)
    with pytest.raises(KeyError, match="scores"):
        losses_of_output(CRITERIA["by another key"], OUTPUTS["dict"](z), Y[:4])


def test_inputs_go_by_keywords_only_where_the_model_names_them(randn):
    x = randn(0, 2, 4)
    assert torch.equal(run_on(Keywords(lambda z: z, nn.Identity()), {"input_ids": x}), x)
    named = {"input_ids": x, "attention_mask": 2 * x}
    expected = 2 * x * x
    for wrapped in (Keywords, Whole):
        model = nn.DataParallel(wrapped(lambda z: z, nn.Identity()))
        assert torch.equal(run_on(model, named), expected)
        assert torch.equal(run_on(model, UserDict(named)), expected)


# --- forward mode ---------------------------------------------------------------------------------


class Squares(torch.autograd.Function):
    """A function whose author wrote no derivative for forward mode."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.square()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 2 * x * grad


class Squaring(nn.Module):
    def __init__(self, fused):
        super().__init__()
        self.fused = fused

    def forward(self, x):
        return Squares.apply(x) if self.fused else x.square()


class Attention(nn.Module):
    """Tokens of two numbers that attend to one another; the kernel decides on forward mode."""

    def forward(self, x):
        x = x.unflatten(1, (1, -1, 2))
        return F.scaled_dot_product_attention(x, x, x).flatten(1)


def network(middle):
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 6), middle, nn.Linear(6, 3))
    initialise(model, stream(0, "init"))
    return model.double()


def alignments(model, randn, wrap=lambda model: model):
    x, target = randn(1, 5, 4, 4).double(), randn(2, 6, 4).double()
    labels = torch.arange(20).view(5, 4) % 3
    scorer = BatchScorer("grad_align", wrap(model), losses_of, target=(target, Y[:6]))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        actual = [scorer(x, labels) for _ in range(2)]
        actual.append(target_alignments(model, losses_of, x, labels, target=(target, Y[:6])))
    ours = [w for w in said if "trainaug" in w.filename]
    along = _gradient(model, target, Y[:6])
    expected = torch.stack([_gradient(model, x[i], labels[i]) @ along for i in range(5)])
    for each in actual:
        torch.testing.assert_close(each, expected, rtol=0, atol=1e-12)
    assert ours == []
    return scorer


def _gradient(model, x, y):
    loss = losses_of(model(x), y).mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def test_alignments_are_the_same_with_and_without_forward_mode(randn, capsys):
    """The oracle is the inner product of two gradients by autograd, in double precision."""
    costs = []
    for fused in (False, True):
        scorer = alignments(network(Squaring(fused)), randn)
        costs.append((scorer.forward_rows, scorer.backward_rows))
    assert costs == [(2 * (40 + 6), 2 * 6), (2 * (20 + 6), 2 * (20 + 6))]
    alignments(network(Attention()), randn)
    assert capsys.readouterr().err == ""


def test_models_under_data_parallelism_are_scored_by_the_module_inside(randn, tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for fused in (False, True):
            alignments(network(Squaring(fused)), randn, DistributedDataParallel)
        setting = Setting("object", randn)
        model = DistributedDataParallel(setting.model)
        actual = flat_gradients(layer_factors(model, losses_of, setting.named, Y))
        assert torch.equal(actual, per_example_gradients(model, losses_of, setting.named, Y))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        x = {name: values.view(4, 3, 4) for name, values in setting.named.items()}
        before, after = trial_losses(model, optimizer, losses_of, x, Y.view(4, 3))
        assert bool((after < before).all())
    finally:
        dist.destroy_process_group()
