"""Losses and scores as one compiled graph, with gradients, also of one tensor given twice."""

from __future__ import annotations

import pytest
import torch

from trainaug.methods.hard_negatives import (
    HingeCurriculum,
    MaxOfHinges,
    SumOfHinges,
    chunked_max_of_hinges,
    chunked_sum_of_hinges,
    cosine_scores,
    group_mask,
    order_scores,
)

GROUPS = torch.tensor([0, 0, 1, 2, 3])
MASK = group_mask(GROUPS)


def hinges(loss):
    """A loss in all its forms: scores, two masks, embeddings, the same ones on both sides."""

    def call(x, y):
        scores = x @ y.T
        total = loss(scores) + loss(scores, (MASK, MASK.T))
        return total + loss(x, y) + loss(x, x, MASK) + loss(scores, scores)

    return call


def chunks(chunked):
    def call(x, y):
        losses = chunked(x, y, GROUPS, chunk_size=2) + chunked(x, x, chunk_size=3)
        return losses + chunked(x, y, reduction="mean")

    return call


CALLS = {
    "sum": hinges(SumOfHinges(0.2)),
    "average": hinges(SumOfHinges(0.2, "none", average_negatives=True)),
    "max": hinges(MaxOfHinges(0.2, "mean")),
    "before": hinges(HingeCurriculum(1, 0.2)),
    "after": hinges(HingeCurriculum(0, 0.2, "none")),
    "chunked sum": chunks(chunked_sum_of_hinges),
    "chunked max": chunks(chunked_max_of_hinges),
    "scores": lambda x, y: (
        cosine_scores(x, y) + order_scores(x, y, chunk_size=2) + cosine_scores(x, x)
    ),
}


def with_gradients(call, *tensors):
    leaves = [t.clone().requires_grad_() for t in tensors]
    value = call(*leaves)
    return value.detach(), *torch.autograd.grad(value.sum(), leaves)


@pytest.mark.parametrize("name", CALLS)
def test_compiled_graphs_give_the_same_numbers(name, randn):
    pair, call = (randn(1, 5, 5), randn(2, 5, 5)), CALLS[name]
    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, with_gradients(compiled, *pair), with_gradients(call, *pair)))
