"""How difficult each example is, by a trained model or by how it fared during training.

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
    x: Tensor,
    y: Tensor,
    *,
    batch_size: int = 512,
) -> Tensor:
    """Loss of each example in eval mode, ``(n,)``: the difficulty that a trained model sees.

    Of another, better model these are *teacher* scores; of the same model, trained before without
    a curriculum, *self-taught* ones. Scores of a model that has memorised its training data, or
    noisy labels in it, say little: train the teacher on other examples.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            parts = zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True)
            return torch.cat([criterion(model(part), target) for part, target in parts])
    finally:
        for module, mode in modes:
            module.training = mode


class ForgettingTracker:
    """Count how often each example went from right to wrong between two visits.

    Attributes:
        events: Forgetting events so far, int64 ``(n,)``.
        learned: Whether the example was right at least once, bool ``(n,)``.
    """

    def __init__(self, num_examples: int) -> None:
        if num_examples < 1:
            raise ValueError(f"need at least one example, got {num_examples}")
        self.events = torch.zeros(num_examples, dtype=torch.long, device="cpu")
        self.learned = torch.zeros(num_examples, dtype=torch.bool, device="cpu")
        self._was_right = torch.zeros(num_examples, dtype=torch.bool, device="cpu")

    def record(self, index: Tensor, correct: Tensor) -> None:
        """Note whether the examples ``index`` ``(B,)``, each once, are ``correct`` now."""
        index, correct = index.cpu(), correct.cpu()
        self.events[index] += (self._was_right[index] & ~correct).long()
        self._was_right[index] = correct
        self.learned[index] |= correct

    def scores(self) -> Tensor:
        """Difficulty, float ``(n,)``: events; one above the most for examples never right."""
        return torch.where(self.learned, self.events, self.events.max() + 1).float()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the counts."""
        names = {"events": self.events, "learned": self.learned, "was_right": self._was_right}
        return {name: value.clone() for name, value in names.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from ``state``."""
        self.events, self.learned = state["events"].clone(), state["learned"].clone()
        self._was_right = state["was_right"].clone()


class RunningHardness:
    r"""Dynamic instance hardness $r \leftarrow \gamma\,a + (1-\gamma)\,r$ with $a$ the last loss.

    Args:
        num_examples: Number of examples ``n``.
        gamma: Weight of the new loss, in (0, 1].

    Attributes:
        values: Present hardness, float ``(n,)``; the first loss of an example replaces the zero.
    """

    def __init__(self, num_examples: int, gamma: float = 0.9) -> None:
        if num_examples < 1 or not 0 < gamma <= 1:
            raise ValueError(f"need examples and gamma in (0, 1], got {num_examples}, {gamma}")
        self.gamma = gamma
        self.values = torch.zeros(num_examples, device="cpu")
        self._seen = torch.zeros(num_examples, dtype=torch.bool, device="cpu")

    def record(self, index: Tensor, losses: Tensor) -> None:
        """Take in the losses ``(B,)`` of the examples ``index`` ``(B,)``, each once."""
        index, losses = index.cpu(), losses.detach().float().cpu()
        mixed = self.gamma * losses + (1 - self.gamma) * self.values[index]
        self.values[index] = torch.where(self._seen[index], mixed, losses)
        self._seen[index] = True

    def state_dict(self) -> dict[str, Tensor]:
        """Return the values."""
        return {"values": self.values.clone(), "seen": self._seen.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from ``state``."""
        self.values, self._seen = state["values"].clone(), state["seen"].clone()


def self_paced_weights(losses: Tensor, threshold: float) -> Tensor:
    r"""Weights $w_i = 1[\ell_i < \lambda]$, the minimiser of $\sum_i w_i(\ell_i - \lambda)$.

    Over $w \in [0, 1]^B$; raise the threshold $\lambda$ during training until all examples count.
    """
    return (losses.detach() < threshold).to(losses.dtype)


def largest_losses(losses: Tensor, count: int) -> Tensor:
    """Ordered SGD: scale the ``count`` largest losses so that the mean of all is theirs.

    Args:
        losses: Per-example losses ``(B,)``, with gradients.
        count: Examples that count, at least 1; all where ``B`` is smaller.

    Returns:
        Losses ``(B,)``: zero for the others, whose gradients are zero too.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    count = min(count, len(losses))
    chosen = torch.zeros_like(losses).scatter_(0, losses.detach().topk(count).indices, 1.0)
    return losses * chosen * (len(losses) / count)
