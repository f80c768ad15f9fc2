r"""Notice the collapsed state, in which all embeddings coincide and the gradient vanishes.

There each query's hardest hinge is the margin $\alpha$, so the max-of-hinges loss of a pair is
$2\alpha$.

Chapter: notebooks/01_vse_hard_negatives.ipynb
Reference: Faghri et al., VSE++, BMVC 2018, the max of hinges. That training may sit at this value
is what users of the authors' public code report; the limits of 1 % and 1e-3 are ours.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from trainaug.checks import finite, widened
from trainaug.methods.hard_negatives.losses import MaxOfHinges

__all__ = ["CollapseMonitor", "is_collapsed"]


@torch.no_grad()
def is_collapsed(scores: Tensor, margin: float = 0.2) -> bool:
    r"""Whether scores are those of a collapsed model, whose embeddings all coincide.

    Args:
        scores: ``(B, B)``, floating and finite, true pairs on the diagonal.
        margin: Margin $\alpha$ of the loss, above 0.

    Returns:
        True if the max-of-hinges loss of a pair is within 1 % of $2\alpha$ and the scores off the
        diagonal have a standard deviation below 1e-3. Never true for a single pair.

    Raises:
        ValueError: If the shape or the type is wrong, a score is not finite, they are on the meta
            device, or the margin is not positive.

    Notes:
        Rounding to half precision makes equal scores differ. For rounded scores the loss may
        therefore be off by another $2\varepsilon\max|S|$ (never by more than $\alpha$ in all) and
        the deviation be larger by $\varepsilon\max|S|/2$, with $\varepsilon$ of the type. They are
        recognised by their values, so converting them to float32 makes no difference.
    """
    if not margin > 0:
        raise ValueError(f"margin must be positive, got {margin}")
    if scores.is_meta:
        raise ValueError("scores on the meta device have no values to look at")
    finite("scores", scores)
    loss = MaxOfHinges(margin, "mean")(scores)
    if len(scores) < 2:
        return False
    scores = widened(scores)
    off_diagonal = scores[~torch.eye(len(scores), dtype=torch.bool, device=scores.device)]
    spacing = _spacing(scores)
    is_at_plateau = (loss - 2 * margin).abs() <= min(0.02 * margin + 2 * spacing, margin)
    return bool(is_at_plateau) and bool(off_diagonal.std() < 1e-3 + spacing / 2)


def _spacing(scores: Tensor) -> float:
    """Return the gap of half-precision numbers at the largest score, or 0 if none is rounded."""
    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal(scores.to(dtype).to(scores.dtype), scores):
            return torch.finfo(dtype).eps * float(scores.abs().max())
    return 0.0


class CollapseMonitor:
    """Warn once when a training run has sat in the collapsed state for a while.

    Args:
        margin: Margin of the loss, above 0.
        patience: Batches in a row that must be collapsed, at least 1.

    Raises:
        ValueError: If the margin is not positive and finite, or ``patience`` below 1.
    """

    def __init__(self, margin: float = 0.2, patience: int = 50) -> None:
        if not 0 < margin < math.inf or patience < 1:
            raise ValueError(f"need margin > 0 and patience >= 1, got {margin} and {patience}")
        self.margin, self.patience, self.streak, self.warned = margin, patience, 0, False

    def update(self, scores: Tensor) -> bool:
        """Check a batch of scores; the warning is a ``UserWarning``, given once.

        Args:
            scores: ``(B, B)``, floating and finite, true pairs on the diagonal.

        Returns:
            True while the streak of collapsed batches is ``patience`` or longer.

        Raises:
            ValueError: As in `is_collapsed`; the streak then stays as it is.
        """
        self.streak = self.streak + 1 if is_collapsed(scores, self.margin) else 0
        has_collapsed = self.streak >= self.patience
        if has_collapsed and not self.warned:
            self.warned = True
            warnings.warn(
                f"all embeddings have coincided for {self.streak} batches (loss of a pair at twice "
                "the margin): lower the learning rate, or start with the sum of hinges",
                stacklevel=2,
            )
        return has_collapsed

    def state_dict(self) -> dict[str, int | bool]:
        """Return the streak and whether the warning was given."""
        return {"streak": self.streak, "warned": self.warned}

    def load_state_dict(self, state: dict[str, int | bool]) -> None:
        """Continue from ``state``."""
        self.streak, self.warned = int(state["streak"]), bool(state["warned"])
