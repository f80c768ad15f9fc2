r"""Training on a few batches in every possible order, from one state: what order can do, exactly.

Orders share their beginnings, so the $M!$ orders of $M$ batches form a tree with $\sum_k M!/(M-k)!$
training steps, 1956 instead of 4320 for $M = 6$. The states of one level take their steps at the
same time.

Chapter: notebooks/04_curriculum.ipynb
Reference: Simionescu, "Deep Learning Training Procedure Augmentations", arXiv 2211.14395, whose
code trains in all orders one after another.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainaug.checks import widened
from trainaug.methods.ordering.copies import Copies, Criterion
from trainaug.methods.ordering.nested import leaves, per_example
from trainaug.structures import logits_of, map_tensors, model_losses, run_on, unwrapped
from trainaug.undisturbed import in_eval_mode, undisturbed

__all__ = ["exhaustive_orders", "position_shares", "train_in_order"]

ROWS = 1024  # examples evaluated at a time: more do not fit a processor's cache
Batch = tuple[Any, Any]  # inputs and targets


def all_orders(num_batches: int, *, max_batches: int = 8) -> Tensor:
    """Return every permutation of ``range(num_batches)`` in lexicographic order, ``(M!, M)``.

    Args:
        num_batches: M, from 1 to ``max_batches``.
        max_batches: Largest M, a guard against too many orders, of which there are $M!$.

    Raises:
        ValueError: If ``num_batches`` is below 1 or above ``max_batches``.
    """
    if not 1 <= num_batches <= max_batches:
        raise ValueError(
            f"{num_batches} batches have {math.factorial(max(0, num_batches))} orders; give 1 to "
            f"{max_batches} batches, or raise max_batches"
        )
    return torch.tensor(list(itertools.permutations(range(num_batches))), device="cpu")


def train_in_order(
    model: nn.Module,
    optimizer: Optimizer,
    criterion: Criterion,
    batches: Sequence[Batch],
    order: Sequence[int],
) -> None:
    """Train on the batches in the given order, one step each; model and optimiser change.

    Args:
        model: Trained in the mode it is in.
        optimizer: Takes one step for each batch, on the mean of its losses.
        criterion: Returns per-example losses ``(B,)``.
        batches: Pairs of inputs ``(B, ...)`` and targets ``(B, ...)``, each a tensor or tuples,
            lists and dicts of them.
        order: Numbers of the batches; one that occurs again is trained on again.

    Raises:
        ValueError: If ``criterion`` does not give per-example losses ``(B,)``, or a batch is empty.
        IndexError: If there is no batch of such a number.
    """
    for number in order:
        x, y = batches[number]
        rows = len(leaves(x)[0])
        if rows == 0:
            raise ValueError(f"batch {number} is empty")
        optimizer.zero_grad()
        losses = widened(per_example(model_losses(model, criterion, x, y), rows))
        losses.mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def exhaustive_orders(
    model: nn.Module,
    optimizer: Optimizer,
    criterion: Criterion,
    batches: Sequence[Batch],
    evaluate: Callable[[Any], Tensor],
    held_out: Any,
    *,
    max_batches: int = 8,
    together: bool = True,
) -> tuple[Tensor, Tensor]:
    """Train on the batches in every order, each from the present state, and evaluate each result.

    Args:
        model: Trained in the mode it is in, evaluated in eval mode; its state is restored.
        optimizer: Optimiser of the model; its state is restored.
        criterion: Returns per-example losses ``(B,)``.
        batches: At most ``max_batches`` pairs of inputs and targets of equal shapes, each a
            tensor or tuples, lists and dicts of them.
        evaluate: Maps outputs on ``held_out``, ``(N, ...)``, to numbers ``(E,)``; it may use only
            PyTorch operations.
        held_out: Inputs that are in no batch.
        max_batches: Largest M, a guard against too many orders, of which there are $M!$.
        together: Whether to train copies of the model at the same time along the tree of orders;
            otherwise one order is trained after another.

    Returns:
        Orders, ``(M!, M)``, lexicographic, and the numbers of each, ``(M!, E)``.

    Raises:
        ValueError: If there are too many batches or none, their shapes differ, or one or
            ``held_out`` is empty.
        TypeError: If ``together`` and ``Copies`` cannot stack the optimiser's steps.
        RuntimeError: If ``together`` and ``torch.vmap`` cannot run model or criterion.
    """
    model = unwrapped(model)
    orders = all_orders(len(batches), max_batches=max_batches)
    if len({tuple(t.shape for t in leaves(batch)) for batch in batches}) > 1:
        raise ValueError("all batches must have the same shape; drop the incomplete one")
    num_held_out = len(leaves(held_out)[0])
    if min(num_held_out, len(leaves(batches[0])[0])) == 0:
        raise ValueError("the batches and held_out must have examples")
    if not together:
        measures = []
        for order in orders.tolist():
            with undisturbed(model, optimizer):
                train_in_order(model, optimizer, criterion, batches, order)
                with torch.no_grad():
                    measures.append(evaluate(logits_of(run_on(model.eval(), held_out))))
        return orders, torch.stack(measures)
    inputs, targets = (_stacked(parts) for parts in zip(*batches, strict=True))  # (M, B, ...)

    def batch_of(numbers: Any) -> Batch:
        return map_tensors(lambda t: t[numbers], inputs), map_tensors(lambda t: t[numbers], targets)

    with undisturbed(model):
        root = Copies(model, optimizer, criterion)
        measures = []
        for first in range(len(batches)):  # one subtree at a time bounds the memory
            branch = root.select(torch.tensor([0], device="cpu"))
            branch.step(*batch_of([first]))
            prefixes = torch.tensor([[first]], device="cpu")  # (K, k) numbers of batches
            while prefixes.shape[1] < len(batches):
                parent, prefixes = _children(prefixes, len(batches))
                branch = branch.select(parent)
                branch.step(*batch_of(prefixes[:, -1]))
            with in_eval_mode(model), torch.no_grad():
                chunk = max(1, ROWS // num_held_out)
                ends = branch.outputs(held_out, shared=True, chunk_size=chunk)  # (K, N, ...)
                measures.append(torch.vmap(evaluate)(ends))
    return orders, torch.cat(measures)


def _stacked(parts: Sequence[Any]) -> Any:
    """Stack the tensors of several nested values of the same structure, into that structure."""
    columns = iter(zip(*(leaves(part) for part in parts), strict=True))
    return map_tensors(lambda _: torch.stack(next(columns)), parts[0])


def _children(used: Tensor, num_batches: int) -> tuple[Tensor, Tensor]:
    """Extend each prefix ``(K, k)`` by every batch not in it, in lexicographic order.

    Return for each new prefix the row of the old one, and the new prefixes, ``(J, k + 1)``.
    """
    free = torch.ones(len(used), num_batches, dtype=torch.bool, device="cpu")
    free.scatter_(1, used, False)
    parent, batch = free.nonzero(as_tuple=True)
    return parent, torch.cat([used[parent], batch.unsqueeze(1)], 1)


def position_shares(orders: Tensor, values: Tensor) -> Tensor:
    r"""Return the share of the variance over orders that the batch at each position explains.

    $\eta^2_p = \mathrm{Var}\,\mathrm E[v \mid \text{batch at } p] / \mathrm{Var}\,v$.

    Args:
        orders: All orders, ``(K, M)``.
        values: One number per order, ``(K,)``.

    Returns:
        Shares in [0, 1], ``(M,)``; NaN if all values are equal, or one is not finite.

    Raises:
        ValueError: If there is no order or shapes do not fit.
    """
    if orders.ndim != 2 or len(orders) == 0 or values.shape != orders.shape[:1]:
        raise ValueError(
            f"need orders (K, M), values (K,): {tuple(orders.shape)}, {tuple(values.shape)}"
        )
    values = values.double()
    if bool((values == values[0]).all()):
        return torch.full((orders.shape[1],), torch.nan, dtype=values.dtype, device=values.device)
    total = values.var(correction=0)
    shares = []
    for position in orders.unbind(1):
        batch, inverse, count = torch.unique(position, return_inverse=True, return_counts=True)
        sums = torch.zeros(len(batch), dtype=values.dtype, device=values.device)
        means = sums.index_add(0, inverse, values) / count
        shares.append((count * (means - values.mean()) ** 2).sum() / len(values) / total)
    return torch.stack(shares)
