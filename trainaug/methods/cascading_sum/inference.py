r"""Test-time sum augmentation: average the predictions for mixes of an input with training images.

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

from trainaug.checks import finite, source_of_randomness, widened

__all__ = ["SumTTA"]


class SumTTA(nn.Module):
    r"""A model that predicts from mixes with fixed partners.

    $\frac1R\sum_{r=1}^R f(\lambda x+(1-\lambda)x'_r)$. All inputs share the R partners, drawn from
    a bank of training images. So a prediction depends neither on the other inputs of its batch nor
    on its position there, and an attack can differentiate through all partners.

    Args:
        model: Maps ``(B, ...)`` to logits ``(B, C)``. Its modes are left as they are: predict with
            it in eval mode, since BatchNorm in train mode mixes the inputs of a batch.
        bank: Images to draw partners from, floating, shape ``(N, ...)``; never test images.
        lam: Weight of the input, in (0, 1]; at 1 the partners do not count.
        repeats: Number of partners R, at least 1, drawn with replacement.
        average: ``"logits"`` as in the source, or ``"probs"``, whose logarithm is returned.
        generator: Source of the partners.

    Raises:
        ValueError: If an option is out of range, the bank or an input is not floating, a partner
            is not finite, an input's shape is not the partners', or the logits' not ``(B, C)``.
        TypeError: If ``generator`` is something else, such as a seed.

    Example:
        >>> tta = SumTTA(nn.Identity(), torch.eye(2), repeats=2, generator=torch.Generator())
        >>> tta(torch.tensor([[3.0, 1.0]])).shape
        torch.Size([1, 2])

    Notes:
        Half-precision inputs are mixed, and their logits averaged, in float32.
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
        self.generator = source_of_randomness("generator", generator)
        self.register_buffer("partners", bank[:0].clone())
        self.redraw(bank)

    def redraw(self, bank: Tensor) -> None:
        """Draw new partners from a bank, which no attack has seen yet.

        Args:
            bank: Images, floating, shape ``(N, ...)``, N at least 1; R are drawn, with replacement.

        Raises:
            ValueError: If the bank is empty or not floating, or a partner is not finite.
        """
        if len(bank) == 0 or not bank.is_floating_point():
            raise ValueError(f"need a bank of floating images, got {bank.dtype} {len(bank)}")
        g = self.generator
        rows = torch.randint(len(bank), (self.repeats,), generator=g, device=g.device)
        with torch.inference_mode(False):  # else an attack could not differentiate later
            partners = bank.detach()[rows.to(bank.device)]  # (R, ...)
        finite("partners", partners)
        self.partners = partners

    def forward(self, x: Tensor) -> Tensor:
        """Return mean logits, or the logarithm of mean probabilities, ``(B, C)``.

        Args:
            x: Inputs, floating, shape ``(B, ...)``, each of the shape of a partner. The model sees
                all R B mixes at once.

        Raises:
            ValueError: If the inputs are not floating or not of the partners' shape, or the model
                does not give a tensor of two dimensions.
        """
        if not x.is_floating_point():
            raise ValueError(f"inputs must be floating (convert pixels first), got {x.dtype}")
        if x.shape[1:] != self.partners.shape[1:]:
            shapes = tuple(x.shape[1:]), tuple(self.partners.shape[1:])
            raise ValueError(f"inputs have shape {shapes[0]}, their partners {shapes[1]}")
        wide = widened(x)
        mixed = self.lam * wide + (1 - self.lam) * self.partners.to(wide).unsqueeze(1)
        logits: Tensor = self.model(mixed.to(x.dtype).flatten(0, 1))  # (R B, C)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            kind = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"the model must give logits (B, C), got {kind}")
        dtype = logits.dtype
        logits = widened(logits).reshape(self.repeats, len(x), logits.shape[1])  # (R, B, C)
        if self.average == "logits":
            return logits.mean(0).to(dtype)
        return (F.log_softmax(logits, 2).logsumexp(0) - math.log(self.repeats)).to(dtype)
