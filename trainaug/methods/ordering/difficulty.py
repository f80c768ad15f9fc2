"""How difficult each example is, from a trained model or from its history during training.

Chapter: notebooks/04_curriculum.ipynb
Reference: Hacohen, Weinshall, ICML 2019, arXiv 1904.03626 (teacher and self-taught losses);
Toneva et al., ICLR 2019, arXiv 1812.05159 (forgetting events); Zhou, Wang, Bilmes, "Curriculum
learning by dynamic instance hardness", NeurIPS 2020; Kumar, Packer, Koller, "Self-paced learning",
NeurIPS 2010; Kawaguchi, Lu, "Ordered SGD", AISTATS 2020.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trainaug.checks import finite, widened
from trainaug.checks import indices as checked_indices
from trainaug.methods.ordering.nested import leaves, per_example
from trainaug.structures import map_tensors, model_losses
from trainaug.undisturbed import in_eval_mode

__all__ = [
    "ForgettingTracker",
    "RunningHardness",
    "example_losses",
    "largest_losses",
    "self_paced_weights",
]


def example_losses(
    model: nn.Module,
    criterion: Callable[[Any, Any], Tensor],
    x: Any,
    y: Any,
    *,
    batch_size: int = 512,
) -> Tensor:
    """Return the loss of each example in eval mode, as a measure of its difficulty for the model.

    With another, better model these are the *teacher* scores of Hacohen, Weinshall (2019); with the
    same model, trained before without a curriculum, their *self-taught* scores. A model that has
    memorised its training data, or noisy labels in it, gives scores that say little: train the
    teacher on other examples.

    Args:
        model: Its modes are restored; batches are moved to the device of its parameters.
        criterion: Returns per-example losses ``(B,)``.
        x: Inputs ``(n, ...)``, or tuples, lists and dicts of such tensors.
        y: Targets ``(n, ...)``, likewise.
        batch_size: Examples at a time, at least 1; it does not change the losses unless they depend
            on the batch.

    Returns:
        Losses ``(n,)``, as the criterion gives them, without gradients.

    Raises:
        ValueError: If there is no example, lengths differ, ``batch_size`` is below 1, or
            ``criterion`` gives another shape.
    """
    lengths = {len(t) for t in leaves((x, y))}
    if len(lengths) != 1 or 0 in lengths or batch_size < 1:
        raise ValueError(f"need examples of one number, got {sorted(lengths)}; {batch_size=}")
    count = lengths.pop()
    parameter = next(model.parameters(), None)

    def part(value: Any, start: int) -> Any:
        rows = map_tensors(lambda t: t[start : start + batch_size], value)
        return rows if parameter is None else map_tensors(lambda t: t.to(parameter.device), rows)

    with in_eval_mode(model), torch.no_grad():
        parts = []
        for start in range(0, count, batch_size):
            losses = model_losses(model, criterion, part(x, start), part(y, start))
            parts.append(per_example(losses, min(batch_size, count - start)))
        return torch.cat(parts)


class ForgettingTracker:
    """Count how often each example went from right to wrong between two visits.

    These are the forgetting events of Toneva et al. (2019).

    Args:
        num_examples: Number of examples ``n``, at least 1.

    Attributes:
        events: Forgetting events so far, int64 ``(n,)``.
        learned: Whether the example was right at least once, bool ``(n,)``.

    Raises:
        ValueError: If there is no example.
    """

    def __init__(self, num_examples: int) -> None:
        if num_examples < 1:
            raise ValueError(f"need at least one example, got {num_examples}")
        self.events = torch.zeros(num_examples, dtype=torch.long, device="cpu")
        self.learned = torch.zeros(num_examples, dtype=torch.bool, device="cpu")
        self._was_right = torch.zeros(num_examples, dtype=torch.bool, device="cpu")

    def update(self, indices: Tensor, values: Tensor) -> None:
        """Record for some examples whether the model classifies them correctly now.

        An example that occurs several times counts as visited several times, in that order.

        Args:
            indices: Numbers of the examples, ``(B,)``, of any integer type, from 0 to n - 1.
            values: Whether each is right, ``(B,)``, bool or numbers 0 and 1.

        Raises:
            TypeError: If ``indices`` is not a tensor.
            ValueError: If an index is out of range or no integer, shapes differ, or a value is not
                true or false, 0 or 1.
        """
        index = checked_indices(indices, len(self.events))
        given = values.detach().cpu()
        if given.shape != index.shape or not bool(((given == 0) | (given == 1)).all()):
            raise ValueError(f"values must be true or false, {tuple(index.shape)}, got {given}")
        correct = given.bool()
        for rows in _visits(index):
            examples, right = index[rows], correct[rows]
            self.events[examples] += (self._was_right[examples] & ~right).long()
            self._was_right[examples] = right
            self.learned[examples] |= right

    def scores(self) -> Tensor:
        """Return the difficulty of each example, float32 ``(n,)``.

        It is the number of events; for an example that was never right, one above their maximum.
        """
        return torch.where(self.learned, self.events, self.events.max() + 1).float()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the counts."""
        names = {"events": self.events, "learned": self.learned, "was_right": self._was_right}
        return {name: value.clone() for name, value in names.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from ``state``; raise ValueError if its number of examples differs."""
        _check_length(state["events"], self.events)
        self.events, self.learned = state["events"].clone(), state["learned"].clone()
        self._was_right = state["was_right"].clone()


class RunningHardness:
    r"""Dynamic instance hardness $r \leftarrow \gamma\,a + (1-\gamma)\,r$ with $a$ the last loss.

    The measure is that of Zhou, Wang, Bilmes (2020).

    Args:
        num_examples: Number of examples ``n``, at least 1.
        gamma: Weight of the new loss, in (0, 1].

    Attributes:
        values: Present hardness, float ``(n,)``; 0 before the first loss, which replaces it.

    Raises:
        ValueError: If there is no example, or ``gamma`` is out of range.
    """

    def __init__(self, num_examples: int, gamma: float = 0.9) -> None:
        if num_examples < 1 or not 0 < gamma <= 1:
            raise ValueError(f"need examples and gamma in (0, 1], got {num_examples}, {gamma}")
        self.gamma = gamma
        self.values = torch.zeros(num_examples, device="cpu")
        self._seen = torch.zeros(num_examples, dtype=torch.bool, device="cpu")

    def update(self, indices: Tensor, values: Tensor) -> None:
        """Add the losses of some examples to their running hardness.

        An example that occurs several times counts as visited several times, in that order.

        Args:
            indices: Numbers of the examples, ``(B,)``, of any integer type, from 0 to n - 1.
            values: Their losses ``(B,)``.

        Raises:
            TypeError: If ``indices`` is not a tensor.
            ValueError: If an index is out of range or no integer, shapes differ, or a loss is not
                finite.
        """
        index = checked_indices(indices, len(self.values))
        losses = values.detach().float().cpu()
        if losses.shape != index.shape:
            raise ValueError(f"losses must be {tuple(index.shape)}, got {tuple(losses.shape)}")
        finite("losses", losses)
        for rows in _visits(index):
            examples, new = index[rows], losses[rows]
            mixed = self.gamma * new + (1 - self.gamma) * self.values[examples]
            self.values[examples] = torch.where(self._seen[examples], mixed, new)
            self._seen[examples] = True

    def state_dict(self) -> dict[str, Tensor]:
        """Return the values."""
        return {"values": self.values.clone(), "seen": self._seen.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from ``state``; raise ValueError if its number of examples differs."""
        _check_length(state["values"], self.values)
        self.values, self._seen = state["values"].clone(), state["seen"].clone()


def self_paced_weights(losses: Tensor, threshold: float) -> Tensor:
    r"""Return the weights $w_i = 1[\ell_i < \lambda]$ of self-paced learning.

    They minimise $\sum_i w_i(\ell_i - \lambda)$ over $w \in [0, 1]^B$ (Kumar, Packer, Koller 2010).
    Raise the threshold $\lambda$ during training until all examples count.

    Args:
        losses: Per-example losses, finite, ``(B,)`` or any other shape.
        threshold: $\lambda$, any number but NaN.

    Returns:
        Weights 0 and 1, in the shape and type of the losses, without gradients.

    Raises:
        ValueError: If a loss is not finite, which a weight of 0 would hide, or the threshold is
            NaN.
    """
    finite("losses", losses)
    if threshold != threshold:
        raise ValueError("the threshold is NaN")
    return (widened(losses.detach()) < threshold).to(losses.dtype)


def largest_losses(losses: Tensor, count: int) -> Tensor:
    """Keep the ``count`` largest losses, scaled so that the mean over all ``B`` is their mean.

    This is the ordered SGD of Kawaguchi, Lu (2020).

    Args:
        losses: Per-example losses ``(B,)``, with gradients.
        count: Number of losses that count, at least 1; if ``B`` is smaller, all count.

    Returns:
        Losses ``(B,)``; the other losses are zero, and so are their gradients. If any loss is NaN
        or infinite, the result contains such a value as well. Of an empty batch it is empty.

    Raises:
        ValueError: If ``count`` is below 1 or the losses are not ``(B,)``.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if losses.ndim != 1:
        raise ValueError(f"losses must be (B,), got {tuple(losses.shape)}")
    count = max(1, min(count, len(losses)))
    largest = losses.detach().topk(min(count, len(losses))).indices
    chosen = torch.zeros_like(losses).scatter_(0, largest, 1.0)
    return losses * chosen * (len(losses) / count)


def _visits(index: Tensor) -> list[Tensor]:
    """Split the rows of ``index`` into first visits of an example, second visits, and so on.

    No example occurs twice in one part, so that indexing with it updates every visit.
    """
    if len(torch.unique(index)) == len(index):
        return [torch.arange(len(index), device="cpu")]
    rows_by_visit: list[list[int]] = []
    visits: dict[int, int] = {}  # by example, so far
    for row, example in enumerate(index.tolist()):
        before = visits.get(example, 0)
        if before == len(rows_by_visit):
            rows_by_visit.append([])
        rows_by_visit[before].append(row)
        visits[example] = before + 1
    return [torch.tensor(rows, device="cpu") for rows in rows_by_visit]


def _check_length(given: Tensor, expected: Tensor) -> None:
    if given.shape != expected.shape:
        raise ValueError(f"the state is of {len(given)} examples, need {len(expected)}")
