"""The page on `torch.compile`: all losses and scores as one graph.

The graphs are made as for any back end, and run by the one that needs no C++ compiler: what could
break one is found before, and a minute of compiling is saved. One loss is compiled in earnest.
"""

from __future__ import annotations

import functools
import shutil

import pytest
import torch
from stack_pages import run

from trainaug.methods import hard_negatives as hn
from trainaug.training.translation import translation_losses

COMPILE = torch.compile


@pytest.fixture(autouse=True)
def _without_a_compiler(monkeypatch):
    compiled = functools.partial(COMPILE, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", compiled)
    yield
    torch.compiler.reset()


def test_a_step_compiles_as_one_graph_and_the_switch_is_seen():
    names = run("compile", "A compiled loss")
    assert names["curriculum"].steps == 4
    batch = torch.randn(16, 20), torch.randn(16, 12), torch.arange(16) // 2
    scores = hn.cosine_scores(names["f"](batch[0]), names["g"](batch[1]))
    expected = hn.MaxOfHinges(reduction="mean")(scores, hn.group_mask(batch[2]))
    torch.testing.assert_close(names["compute_loss"](*batch), expected)


def test_a_compiled_model_is_attacked_scored_and_trained():
    names = run("compile", "A compiled model")
    assert names["sampler"].emitted == 3
    assert bool(((names["moved"] - names["inputs"]).abs() <= 0.03 + 1e-6).all())


LOSSES = {
    "sum": lambda a, b: hn.SumOfHinges()(hn.cosine_scores(a, b)),
    "average": lambda a, b: hn.SumOfHinges(average_negatives=True)(hn.cosine_scores(a, b)),
    "max": lambda a, b: hn.MaxOfHinges()(hn.cosine_scores(a, b)),
    "none": lambda a, b: hn.MaxOfHinges(reduction="none")(hn.order_scores(a, b)).sum(),
    "curriculum": lambda a, b: hn.HingeCurriculum(3)(hn.cosine_scores(a, b)),
    "groups": lambda a, b: hn.MaxOfHinges()(a @ b.T, hn.group_mask(torch.arange(8) // 2)),
    "translation": lambda a, b: translation_losses(
        (a @ b.T).view(2, 4, 8), torch.arange(1, 9).view(2, 4) % 8
    ).sum(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_one_graph_with_the_same_gradient(name):
    a, b = torch.randn(2, 8, 5, dtype=torch.float64)
    grads = []
    for compute in (LOSSES[name], torch.compile(LOSSES[name], fullgraph=True)):
        x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
        loss = compute(x, y)
        loss.backward()
        grads.append((loss.detach(), x.grad, y.grad))
    for eager, compiled in zip(*grads, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++, with which torch compiles")
def test_compiled_code_gives_the_same_numbers_up_to_rounding():
    x = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)
    mask = hn.group_mask(torch.tensor([0, 0, 1, 2, 3]))
    call = lambda x: hn.MaxOfHinges(0.2)(x, x, mask)  # noqa: E731
    (expected,) = torch.autograd.grad(call(x), x)
    (actual,) = torch.autograd.grad(COMPILE(call, fullgraph=True, backend="inductor")(x), x)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
