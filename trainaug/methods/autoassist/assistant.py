r"""Assistants: tiny models that guess for every example whether the Boss, the main model, needs it.

Reference: Zhang, Yu, Dhillon, "AutoAssist: A Framework to Accelerate Training of Deep Neural
Networks", NeurIPS 2019, arXiv 1905.03381, and its authors' code for features and targets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainaug.checks import class_labels, widened
from trainaug.checks import indices as checked_indices
from trainaug.methods.autoassist.shrinking import check_base
from trainaug.structures import StateDict

__all__ = ["AssistantTrainer", "Features", "ImageAssistant", "TextAssistant", "guarded_base"]

Features = Callable[[Tensor], tuple[Tensor, ...]]
Mean = Literal["running", "epoch"]


class ImageAssistant(nn.Module):
    r"""Logit $W^\top\mathrm{vec}(x)+U_y$ of an example being hard: raw pixels and its class.

    $d+K$ parameters, drawn from $0.001\,\mathcal N(0,1)$ as in the authors' code.

    Args:
        num_features: Numbers per example, d, at least 1.
        num_classes: Number of classes K, at least 1.
        generator: Source of the initial weights, which are made on its device.
        scale: Their standard deviation.

    Raises:
        ValueError: If a size is below 1.
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        generator: torch.Generator,
        *,
        scale: float = 1e-3,
    ) -> None:
        super().__init__()
        if min(num_features, num_classes) < 1:
            raise ValueError(f"need sizes >= 1, got {num_features=}, {num_classes=}")
        self.weight = _drawn(num_features, generator, scale)
        self.class_bias = _drawn(num_classes, generator, scale)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the logits of being hard, ``(B,)``, in the type of the weights.

        Args:
            x: Inputs ``(B, ...)`` of d numbers per example, of any real type.
            y: Class numbers ``(B,)`` from 0 to K - 1, of any integer type.

        Raises:
            ValueError: If shapes do not fit, or a class is not an integer from 0 to K - 1.
        """
        labels, size = class_labels(y, len(self.class_bias)), len(self.weight)
        if x.ndim < 2 or labels.shape != x.shape[:1] or x.flatten(1).shape[1] != size:
            raise ValueError(
                f"need (B, ...) of {size} numbers an example and (B,), got "
                f"{tuple(x.shape)}, {tuple(y.shape)}"
            )
        numbers = x.flatten(1).to(self.weight.dtype)
        return numbers @ self.weight + self.class_bias[labels]


class TextAssistant(nn.Module):
    r"""Logit of a sentence pair being hard, from its bags of tokens.

    Source and target each add three terms: the mean weight of their distinct tokens, the product of
    further weights with their tf-idf, and a weight times a tenth of their number of distinct
    tokens. A bias comes to that. Token 0 is padding.

    Args:
        source_size: Tokens of the source vocabulary, padding included, at least 1.
        target_size: Tokens of the target vocabulary, likewise.
        generator: Source of the initial weights, which are made on its device.
        scale: Their standard deviation; 1e-4 in the authors' code.

    Raises:
        ValueError: If a size is below 1.
    """

    def __init__(
        self,
        source_size: int,
        target_size: int,
        generator: torch.Generator,
        *,
        scale: float = 1e-4,
    ) -> None:
        super().__init__()
        if min(source_size, target_size) < 1:
            raise ValueError(f"need sizes >= 1, got {source_size=}, {target_size=}")
        sizes = (source_size, target_size)
        self.counted = nn.ParameterList(_drawn(size, generator, scale) for size in sizes)
        self.weighted = nn.ParameterList(_drawn(size, generator, scale) for size in sizes)
        self.lengths = _drawn(2, generator, scale)
        self.bias = _drawn(1, generator, scale)

    def forward(
        self, source: Tensor, source_tfidf: Tensor, target: Tensor, target_tfidf: Tensor
    ) -> Tensor:
        """Return the logits of being hard, ``(B,)``.

        Args:
            source: Distinct tokens of each source sentence, ``(B, T)``, of any integer type, from
                0 to ``source_size`` - 1; 0 is padding.
            source_tfidf: Their tf-idf, ``(B, T)``, ignored where a token is 0.
            target: Distinct tokens of each target sentence, likewise, below ``target_size``; its T
                may differ from that of ``source``.
            target_tfidf: Their tf-idf, of the shape of ``target``.

        Raises:
            ValueError: If shapes do not fit, or a token is not an integer in its vocabulary.
        """
        logits = self.bias.expand(len(source))
        sides = ((source, source_tfidf), (target, target_tfidf))
        for side, (numbers, tfidf) in enumerate(sides):
            if numbers.ndim != 2 or len(numbers) != len(source) or tfidf.shape != numbers.shape:
                raise ValueError(
                    f"need (B, T) twice a side, got {tuple(numbers.shape)}, {tuple(tfidf.shape)}"
                )
            tokens = class_labels(numbers, len(self.counted[side]))
            # integers and half precision are computed in the type of the weights
            if not tfidf.is_floating_point() or widened(tfidf) is not tfidf:
                tfidf = tfidf.to(self.bias)
            present = (tokens != 0).to(tfidf)  # (B, T)
            count = present.sum(1)
            total = (self.counted[side][tokens] * present).sum(1)
            logits = logits + total / count.clamp(min=1)
            logits = logits + (self.weighted[side][tokens] * tfidf * present).sum(1)
            logits = logits + self.lengths[side] * count / 10
        return logits


class AssistantTrainer:
    r"""Train an Assistant on the losses that the Boss has computed anyway.

    The target is $t_i=\mathbb 1[\ell_i>\bar\ell]$ with $\bar\ell$ a mean of the Boss's losses. A
    ``running`` mean moves with each batch, $\bar\ell\leftarrow m\bar\ell+(1-m)\cdot$ mean of the
    batch. An ``epoch`` mean is that of the epoch before, which `end_epoch` closes. Each batch makes
    one step of SGD with an L2 penalty.

    Args:
        assistant: ``assistant(*features_of(indices))`` gives logits ``(B,)``.
        features_of: Maps indices ``(B,)``, int64 on the CPU, to the tuple that the Assistant sees
            of these examples, which must be the same at all times.
        lr: Learning rate; the authors use 0.01 for images, 0.5 for text.
        weight_decay: Factor of the L2 penalty; 0.001 for images, 0.1 for text.
        mean: Kind of mean, ``running`` or ``epoch``.
        momentum: Weight m of the past in the running mean, in ``[0, 1)``.

    Attributes:
        mean_loss: The mean that the next targets compare with; ``None`` before there is one.
        confidence: Running accuracy $\kappa\leftarrow0.95\,\kappa+0.05\,\mathrm{acc}$ from 0, where
            acc is that of a batch's predictions before its step; for `guarded_base`.
        positives: Share of hard examples among those learnt from.
        num_steps: Steps so far.

    Raises:
        ValueError: If a setting is out of range.
    """

    _counters = ("mean_loss", "confidence", "num_steps", "_hard", "_seen", "_epoch")

    def __init__(
        self,
        assistant: nn.Module,
        features_of: Features,
        *,
        lr: float = 0.01,
        weight_decay: float = 1e-3,
        mean: Mean = "running",
        momentum: float = 0.75,
    ) -> None:
        if mean not in get_args(Mean) or not 0 <= momentum < 1:
            raise ValueError(
                f"need a mean of {get_args(Mean)}, 0 <= momentum < 1: {mean!r}, {momentum}"
            )
        self.assistant, self.features_of = assistant, features_of
        self.optimizer = torch.optim.SGD(
            assistant.parameters(), float(lr), weight_decay=float(weight_decay)
        )
        self.mean, self.momentum = mean, momentum
        self.mean_loss: float | None = None
        self.confidence, self.num_steps = 0.0, 0
        self._hard, self._seen = 0, 0
        self._epoch = (0.0, 0)  # sum and number of the losses since `end_epoch`

    @property
    def positives(self) -> float:
        """Share of hard examples among those learnt from; 0 before."""
        return self._hard / max(1, self._seen)

    @torch.no_grad()
    def predict(self, indices: Tensor) -> Tensor:
        r"""Return $r=\sigma(\text{logit})$ of examples, ``(B,)``, in ``[0, 1]``, without gradients.

        Args:
            indices: Numbers of the examples, ``(B,)``, of any integer type, from 0.

        Raises:
            TypeError: If ``indices`` is not a tensor.
            ValueError: If the indices are not integers from 0 of shape ``(B,)``, or the logits not
                ``(B,)``.
        """
        return self._logits(indices).sigmoid()

    def update(self, indices: Tensor, values: Tensor) -> None:
        """Learn in one step which of the Boss's losses are above the mean.

        A running mean takes in this batch first. With an epoch mean, the losses of the first epoch
        are only collected.

        Args:
            indices: Numbers of the examples, ``(B,)``, of any integer type, from 0.
            values: Their losses ``(B,)``, B at least 1; in translation, losses per token.

        Raises:
            TypeError: If ``indices`` is not a tensor.
            ValueError: If the shapes differ, there is no loss, the indices are not integers from 0,
                or the Assistant's logits are not ``(B,)``.
            FloatingPointError: If a loss is NaN or infinite, naming the example.
        """
        check_losses(indices, values)
        losses = widened(values.detach())
        mean = float(losses.double().mean())
        total, count = self._epoch
        self._epoch = (total + mean * len(losses), count + len(losses))
        if self.mean == "running":
            m = self.momentum
            previous = mean if self.mean_loss is None else self.mean_loss
            self.mean_loss = m * previous + (1 - m) * mean
        if self.mean_loss is not None:
            self.step(indices, losses > self.mean_loss)

    def end_epoch(self) -> None:
        """Make the mean of the losses since the last call the one that targets compare with."""
        total, count = self._epoch
        if self.mean == "epoch" and count > 0:
            self.mean_loss = total / count
        self._epoch = (0.0, 0)

    def step(self, indices: Tensor, hard: Tensor) -> float:
        """Take one step of SGD towards given targets, whatever the mean.

        Args:
            indices: Numbers of the examples, ``(B,)``, of any integer type, from 0.
            hard: Targets ``(B,)``, true where an example was hard.

        Returns:
            The mean binary cross-entropy before the step.

        Raises:
            TypeError: If ``indices`` is not a tensor.
            ValueError: If the indices are not integers from 0 of shape ``(B,)``, or logits or
                targets have another shape.
        """
        with torch.enable_grad():
            logits = self._logits(indices)
            target = hard.to(logits)
            loss = F.binary_cross_entropy_with_logits(logits, target)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        accuracy = float(((logits.detach() > 0) == (target > 0.5)).double().mean())
        self.confidence = 0.95 * self.confidence + 0.05 * accuracy
        self.num_steps += 1
        self._hard += int(hard.sum())
        self._seen += len(indices)
        return loss.item()

    def _logits(self, indices: Tensor) -> Tensor:
        """Return the Assistant's logits ``(B,)``, those of half precision in float32."""
        logits: Tensor = self.assistant(*self.features_of(example_numbers(indices)))
        if logits.shape != indices.shape:
            raise ValueError(
                f"the Assistant must give {tuple(indices.shape)}, got {tuple(logits.shape)}"
            )
        return widened(logits)

    def state_dict(self) -> StateDict:
        """Return the Assistant's weights, its optimiser's state and the counters."""
        counters = {name: getattr(self, name) for name in self._counters}
        weights = {name: t.clone() for name, t in self.assistant.state_dict().items()}
        return counters | {"assistant": weights, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: StateDict) -> None:
        """Continue from ``state``."""
        self.assistant.load_state_dict(state["assistant"])
        self.optimizer.load_state_dict(state["optimizer"])
        vars(self).update({name: state[name] for name in self._counters})


def guarded_base(base: float, confidence: float) -> float:
    r"""Return $\max(\gamma_0,1-\kappa)$: an Assistant that is often wrong filters little.

    As in the authors' code for translation.

    Args:
        base: Base pass rate $\gamma_0$, in ``[0, 1]``.
        confidence: Accuracy $\kappa$ in ``[0, 1]``, as `AssistantTrainer.confidence`.

    Raises:
        ValueError: If a number is outside ``[0, 1]``.
    """
    check_base(base)
    check_base(confidence)
    return max(base, 1 - confidence)


def example_numbers(indices: Tensor, num_examples: int | None = None) -> Tensor:
    """Return indices ``(B,)`` as int64 on the CPU: unsigned bytes would index as a mask.

    Raises:
        TypeError: If they are not a tensor.
        ValueError: If they are not integers from 0 to ``num_examples`` - 1.
    """
    count = torch.iinfo(torch.int64).max if num_examples is None else num_examples
    return checked_indices(indices, count)


def check_losses(index: Tensor, losses: Tensor) -> None:
    """Check that each index has a loss.

    Raises:
        TypeError: If ``index`` is not a tensor.
        ValueError: If the indices are not integers from 0 of shape ``(B,)``, there is none, or the
            losses have another shape.
        FloatingPointError: If a loss is NaN or infinite, naming the example.
    """
    example_numbers(index)
    if losses.shape != index.shape:
        raise ValueError(f"losses must have shape {tuple(index.shape)}, got {tuple(losses.shape)}")
    if len(index) == 0:
        raise ValueError("need the losses of one example or more, got none")
    if not bool(losses.isfinite().all()):
        bad = int((~losses.isfinite()).nonzero()[0])
        raise FloatingPointError(f"the loss of example {int(index[bad])} is {losses[bad].item()}")


def _drawn(size: int, generator: torch.Generator, scale: float) -> nn.Parameter:
    """Draw a parameter ``(size,)`` from a normal distribution of deviation ``scale``."""
    values = torch.randn(size, generator=generator, device=generator.device)
    return nn.Parameter(scale * values)
