r"""Test-time sum augmentation: predict the mean over mixes of an input with known ones.

Chapter: notebooks/05_cascading_sum.ipynb
Reference: public code of Cascading Sum Augmentation (2019-2020); Pang, Xu and Zhu, "Mixup
Inference", ICLR 2020, for a related defence.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SumTTA"]


class SumTTA(nn.Module):
    r"""A model that predicts from mixes with fixed partners.

    $\frac1R\sum_{r=1}^R f(\lambda x+(1-\lambda)x'_r)$. All inputs share the R partners, drawn from
    a bank of training images: a prediction then depends neither on the other inputs of its batch
    nor on its place, and an attack can differentiate through all of them.

    Args:
        model: Maps ``(B, ...)`` to logits ``(B, C)``.
        bank: Images to draw partners from, shape ``(N, ...)``; never test images.
        lam: Weight of the input, in (0, 1]; at 1 and R = 1 the model itself.
        repeats: Number of partners R, at least 1, drawn with replacement.
        average: ``"logits"`` as in the source, or ``"probs"``, whose logarithm is returned.
        generator: Source of the partners.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> tta = SumTTA(nn.Identity(), torch.eye(2), repeats=2, generator=torch.Generator())
        >>> tta(torch.tensor([[3.0, 1.0]])).shape
        torch.Size([1, 2])

    Notes:
        The source mixes a test batch with its own shuffle, so its predictions depend on which
        images are tested together.
    """

    partners: Tensor

    def __init__(
        self,
        model: nn.Module,
        bank: Tensor,
        *,
        lam: float = 0.5,
        repeats: int = 32,
        average: Literal["logits", "probs"] = "logits",
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if not 0 < lam <= 1 or repeats < 1 or len(bank) == 0:
            raise ValueError(
                f"need 0 < lam <= 1, repeats >= 1, a bank, got {lam=}, {repeats=}, {len(bank)}"
            )
        if average not in ("logits", "probs"):
            raise ValueError(f"average must be logits or probs, got {average!r}")
        self.model, self.lam, self.repeats, self.average = model, lam, repeats, average
        self.generator = generator
        self.register_buffer("partners", bank[:0].clone())
        self.redraw(bank)

    def redraw(self, bank: Tensor) -> None:
        """Take fresh partners from a bank: what an attack has not seen."""
        g = self.generator
        rows = torch.randint(len(bank), (self.repeats,), generator=g, device=g.device)
        self.partners = bank[rows.to(bank.device)]  # (R, ...)

    def forward(self, x: Tensor) -> Tensor:
        """Return mean logits, or the logarithm of mean probabilities, ``(B, C)``."""
        mixed = self.lam * x + (1 - self.lam) * self.partners.to(x).unsqueeze(1)  # (R, B, ...)
        logits = self.model(mixed.flatten(0, 1)).view(self.repeats, len(x), -1)  # (R, B, C)
        if self.average == "logits":
            return logits.mean(0)  # type: ignore[no-any-return]
        return F.log_softmax(logits, 2).logsumexp(0) - math.log(self.repeats)
