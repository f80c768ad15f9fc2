"""Baselines of AutoAssist: other ways to skip examples, or to weigh them, by their losses.

Each offers some of three functions to a training loop: ``predict`` tells an `AssistedSampler` whom
to keep, ``weights`` weighs the losses of a batch, and ``update`` takes these losses.

Reference: Kumar, Packer, Koller, "Self-Paced Learning", NeurIPS 2010; Kim, Choi, "ScreenerNet",
arXiv 1801.00904; Jiang et al., "Accelerating Deep Learning by Focusing on the Biggest Losers",
arXiv 1910.00762; Qin et al., "InfoBatch", ICLR 2024.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from trainaug.checks import widened
from trainaug.methods.autoassist.assistant import check_losses, example_numbers
from trainaug.methods.autoassist.shrinking import check_base
from trainaug.roots import power
from trainaug.structures import StateDict

__all__ = ["LossTable", "RandomSkip", "ScreenerWeights", "SelectiveBackprop", "SelfPacedWeights"]


class RandomSkip:
    """Skip at random, at the rates of another sampler's passes: the control to be beaten.

    Pass ``predict`` and ``on_pass`` to an `AssistedSampler` with ``base=0``.

    Args:
        rates: Share kept in each pass, in ``(0, 1]``, say `AssistedSampler.keep_rates`; the last
            rate holds for all later passes.

    Raises:
        ValueError: If there is no rate, or one is not in ``(0, 1]``.
    """

    def __init__(self, rates: Sequence[float]) -> None:
        if len(rates) == 0 or not all(0 < rate <= 1 for rate in rates):
            raise ValueError(f"need rates in (0, 1], got {list(rates)}")
        self.rates, self.passes = tuple(float(rate) for rate in rates), 0

    def predict(self, indices: Tensor) -> Tensor:
        """Return the rate of this pass for every example, ``(B,)``, in ``(0, 1]``.

        Args:
            indices: Numbers of examples, ``(B,)``; only their length and device are used.
        """
        rate = self.rates[min(self.passes, len(self.rates) - 1)]
        return torch.full((len(indices),), rate, device=indices.device)

    def on_pass(self) -> None:
        """Go on to the next pass."""
        self.passes += 1

    def state_dict(self) -> StateDict:
        """Return the number of the pass."""
        return {"passes": self.passes}

    def load_state_dict(self, state: StateDict) -> None:
        """Continue from ``state``."""
        self.passes = state["passes"]


class LossTable:
    r"""InfoBatch-style pruning with rescaling: losses below the mean are kept at a rate $\gamma_0$.

    Pass ``predict`` and ``on_pass`` to an `AssistedSampler` with the same ``base``, and call
    ``weights`` and ``update`` in the loop. Weights $1/p$ make up for the pruned examples, so the
    gradient has no bias in direction, unlike in shrinking. The last passes may keep all examples.

    Args:
        num_examples: Number of examples N, at least 1.
        base: Share $\gamma_0$ kept of the examples below the mean, in ``(0, 1]``, or 0 without
            ``rescale``; InfoBatch's r is $1-\gamma_0=0.5$.
        rescale: Whether to weigh by $1/p$.
        full_from: Pass from which all are kept with weight 1; never by default.

    Attributes:
        losses: Last loss of each example, ``(N,)``, infinite before its first.

    Raises:
        ValueError: If there is no example, ``base`` is outside ``[0, 1]``, or it is 0 and
            ``rescale`` would divide by it.
    """

    _state = ("losses", "_is_low", "passes")

    def __init__(
        self,
        num_examples: int,
        base: float = 0.5,
        *,
        rescale: bool = True,
        full_from: int | None = None,
    ) -> None:
        check_base(base)
        if num_examples < 1 or (rescale and base == 0):
            raise ValueError(f"need examples and, to rescale, base > 0: {num_examples}, {base}")
        self.base, self.rescale, self.full_from = base, rescale, full_from
        self.losses = torch.full((num_examples,), torch.inf, device="cpu")
        self._is_low = torch.zeros(num_examples, dtype=torch.bool, device="cpu")
        self.passes = 0

    def predict(self, indices: Tensor) -> Tensor:
        """Return 0 for examples below the mean at the start of the pass, else 1, ``(B,)``.

        Args:
            indices: Numbers of the examples, ``(B,)``, of any integer type, from 0 to N - 1.

        Raises:
            TypeError: If ``indices`` is not a tensor.
            ValueError: If the indices are not integers of N examples, or not ``(B,)``.
        """
        return (~self._is_low[example_numbers(indices, len(self.losses))]).float()

    def weights(self, indices: Tensor) -> Tensor:
        """Return weights $1/p$, ``(B,)``; p is an example's probability of being kept in this pass.

        Without ``rescale`` all are 1.

        Args:
            indices: Numbers of the examples, ``(B,)``, of any integer type, from 0 to N - 1.

        Raises:
            TypeError: If ``indices`` is not a tensor.
            ValueError: If the indices are not integers of N examples, or not ``(B,)``.
        """
        is_low = self._is_low[example_numbers(indices, len(self.losses))]
        p = torch.where(is_low, self.base, 1.0)
        return (1 / p if self.rescale else torch.ones_like(p)).to(indices.device)

    def update(self, indices: Tensor, values: Tensor) -> None:
        """Store the Boss's losses; of an example that repeats, the last counts.

        Args:
            indices: Numbers of the examples, ``(B,)``, of any integer type, from 0 to N - 1.
            values: Their losses ``(B,)``, B at least 1.

        Raises:
            TypeError: If ``indices`` is not a tensor.
            ValueError: If the shapes differ, there is no loss, or an example is not one of N.
            FloatingPointError: If a loss is NaN or infinite, naming the example.
        """
        _store(self.losses, indices, values)

    def on_pass(self) -> None:
        """Begin a pass: mark the examples whose loss is below the mean of all known losses."""
        self.passes += 1
        known = self.losses[self.losses.isfinite()]
        # before the first loss no example is low
        self._is_low = self.losses < (known.mean() if len(known) else -torch.inf)
        if self.full_from is not None and self.passes >= self.full_from:
            self._is_low = torch.zeros_like(self._is_low)

    def state_dict(self) -> StateDict:
        """Return losses, decisions and the number of the pass."""
        return {
            n: v.clone() if isinstance(v := getattr(self, n), Tensor) else v for n in self._state
        }

    def load_state_dict(self, state: StateDict) -> None:
        """Continue from ``state``; ValueError if it is of another number of examples."""
        _check_length(state["losses"], self.losses)
        vars(self).update(
            {n: v.clone() if isinstance(v := state[n], Tensor) else v for n in self._state}
        )


class SelectiveBackprop:
    r"""Keep with probability $\mathrm{cdf}(\ell)^\beta$ among recent losses, after a forward pass.

    Pass ``predict`` to an `AssistedSampler` with ``base=0``. Every candidate costs a forward pass,
    which ``forwards`` counts; those that are kept cost another one with their batch.

    Args:
        losses_of: Maps indices ``(b,)``, int64 on the CPU, to the present losses ``(b,)`` of these
            examples; must leave the model as it is.
        beta: Exponent $\beta>0$; a larger one keeps fewer.
        history: Number of recent losses in the distribution, at least 1.

    Raises:
        ValueError: If ``beta`` is not positive and finite, or ``history`` below 1.
    """

    def __init__(
        self, losses_of: Callable[[Tensor], Tensor], *, beta: float = 1.0, history: int = 1024
    ) -> None:
        if not 0 < beta < torch.inf or history < 1:
            raise ValueError(f"need beta > 0 and history >= 1, got {beta}, {history}")
        self.losses_of, self.beta, self.forwards = losses_of, beta, 0
        self._recent: deque[float] = deque(maxlen=history)

    @torch.no_grad()
    def predict(self, indices: Tensor) -> Tensor:
        r"""Return $\mathrm{cdf}(\ell)^\beta$ of the examples, ``(B,)``, in ``[0, 1]``.

        These examples' losses are part of the distribution already.

        Args:
            indices: Numbers of the examples, ``(B,)``, of an integer type, which ``losses_of``
                gets as they are.

        Raises:
            TypeError: If ``indices`` is not a tensor.
            ValueError: If ``losses_of`` gives another shape, there is no example, or the indices
                are not integers from 0.
            FloatingPointError: If a loss is NaN or infinite, naming the example.
        """
        losses = self.losses_of(indices).detach().cpu().double()
        check_losses(indices, losses)
        self.forwards += len(indices)
        self._recent.extend(losses.tolist())
        recent = torch.tensor(sorted(self._recent), dtype=torch.float64, device="cpu")
        below = torch.searchsorted(recent, losses, right=True)
        # at least 1, as for a loss that a history shorter than the batch has dropped already
        return (below.clamp(min=1) / len(recent)).clamp(max=1.0).float() ** self.beta

    def state_dict(self) -> StateDict:
        """Return the recent losses and the number of forward passes."""
        return {"recent": list(self._recent), "forwards": self.forwards}

    def load_state_dict(self, state: StateDict) -> None:
        """Continue from ``state``."""
        self._recent = deque(state["recent"], maxlen=self._recent.maxlen)
        self.forwards = state["forwards"]


class SelfPacedWeights:
    r"""Self-paced learning: weigh easy examples up, and include harder ones over time.

    Pace and weights are those of the code of AutoAssist's authors (2019). In epoch e the pace
    $\lambda$ is a quantile of the last losses, that of $\mathrm{linspace}(0.25,1,5)_e$ and finally
    that of 1, the largest. Weights are $(1-\ell/\lambda)_+^{1/(q-1)}+0.01$, divided by their mean
    in the batch. All examples are computed, so nothing is saved. Call ``weights`` and ``update``.

    Args:
        num_examples: Number of examples N, at least 1.
        epoch_steps: Updates per epoch, at least 1.
        start: Loss of an example not seen yet, above 0; the authors of AutoAssist take 1000, in
            translation 100.
        epochs: Epochs until the quantile is that of 1, at least 1; they take 5, in translation 10.
        q: Parameter of the exponent of the mixture weighting, above 1.

    Raises:
        ValueError: If a setting is out of range, or ``start`` or ``q`` is not finite.
    """

    _state = ("losses", "_steps", "_pace")

    def __init__(
        self,
        num_examples: int,
        epoch_steps: int,
        *,
        start: float = 1000.0,
        epochs: int = 5,
        q: float = 4.0,
    ) -> None:
        is_in_range = 1 < q < torch.inf and 0 < start < torch.inf
        if min(num_examples, epoch_steps, epochs) < 1 or not is_in_range:
            raise ValueError(
                f"out of range: {num_examples=}, {epoch_steps=}, {epochs=}, {q=}, {start=}"
            )
        self.epoch_steps, self.epochs, self.q = epoch_steps, epochs, q
        self.losses = torch.full((num_examples,), start, device="cpu")
        self._steps, self._pace = 0, start

    def weights(self, indices: Tensor) -> Tensor:
        """Return weights ``(B,)`` with mean 1, by the examples' last losses.

        Args:
            indices: Numbers of the examples, ``(B,)``, of any integer type, from 0 to N - 1.

        Raises:
            TypeError: If ``indices`` is not a tensor.
            ValueError: If the indices are not integers of N examples, or not ``(B,)``.
        """
        epoch, step = self._steps // self.epoch_steps, self._steps % self.epoch_steps
        if step == 0:
            share = 1.0 if self.epochs == 1 else min(1.0, 0.25 + 0.75 * epoch / (self.epochs - 1))
            self._pace = float(self.losses.quantile(share))
        last = self.losses[example_numbers(indices, len(self.losses))]
        easiness = (1 - last / max(self._pace, 1e-12)).clamp(min=0)  # losses and pace may be 0
        w = power(easiness, 1 / (self.q - 1)) + 0.01
        return (w / w.mean()).to(indices.device)

    def update(self, indices: Tensor, values: Tensor) -> None:
        """Store the Boss's losses; of an example that repeats, the last counts.

        Args:
            indices: Numbers of the examples, ``(B,)``, of any integer type, from 0 to N - 1.
            values: Their losses ``(B,)``, B at least 1.

        Raises:
            TypeError: If ``indices`` is not a tensor.
            ValueError: If the shapes differ, there is no loss, or an example is not one of N.
            FloatingPointError: If a loss is NaN or infinite, naming the example.
        """
        _store(self.losses, indices, values)
        self._steps += 1

    def state_dict(self) -> StateDict:
        """Return the losses, the pace and the number of updates."""
        return {"losses": self.losses.clone(), "_steps": self._steps, "_pace": self._pace}

    def load_state_dict(self, state: StateDict) -> None:
        """Continue from ``state``; ValueError if it is of another number of examples."""
        _check_length(state["losses"], self.losses)
        vars(self).update({name: state[name] for name in self._state})
        self.losses = state["losses"].clone()


class ScreenerWeights:
    r"""ScreenerNet: a second network, the screener, weighs the losses and learns from them.

    Weights are $s(x)\in(0,1)$. The screener's loss is the mean of
    $(1-s)^2\ell+s^2\max(M-\ell,0)$ plus $0.01$ times the mean modulus of its parameters. It saves
    no computation and adds its own. Call ``weights`` and ``update``.

    Args:
        screener: ``screener(x)`` gives logits of s, ``(B,)`` or ``(B, 1)``.
        inputs_of: Maps indices ``(B,)`` to inputs ``x`` ``(B, ...)`` on the screener's device.
        optimizer: Optimiser of the screener; the authors take Adam with 1e-4 (MNIST).
        margin: Margin $M>0$; 1 for MNIST, 10 for CIFAR.
        penalty: Factor of the mean modulus, at least 0.

    Raises:
        ValueError: If ``margin`` is not positive, ``penalty`` is negative, or one is not finite.
    """

    def __init__(
        self,
        screener: nn.Module,
        inputs_of: Callable[[Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
        *,
        margin: float = 1.0,
        penalty: float = 0.01,
    ) -> None:
        if not (0 < margin < torch.inf and 0 <= penalty < torch.inf):
            raise ValueError(f"need margin > 0 and penalty >= 0, got {margin}, {penalty}")
        self.screener, self.inputs_of, self.optimizer = screener, inputs_of, optimizer
        self.margin, self.penalty = margin, penalty

    @torch.no_grad()
    def weights(self, indices: Tensor) -> Tensor:
        """Return s of the examples, ``(B,)``, in ``[0, 1]``, without gradients.

        Args:
            indices: Numbers of the examples, ``(B,)``, which ``inputs_of`` gets as they are.

        Raises:
            RuntimeError: If the screener does not give one logit for each example.
        """
        return self._weigh(indices).to(indices.device)

    def update(self, indices: Tensor, values: Tensor) -> None:
        """Take one step on the screener's loss, with the Boss's losses held fixed.

        Args:
            indices: Numbers of the examples, ``(B,)``, of an integer type, from 0, which
                ``inputs_of`` gets as they are.
            values: Their losses ``(B,)``, B at least 1.

        Raises:
            TypeError: If ``indices`` is not a tensor.
            ValueError: If the shapes differ, there is no loss, or the indices are not integers
                from 0.
            FloatingPointError: If a loss is NaN or infinite, naming the example.
            RuntimeError: If the screener does not give one logit for each example.
        """
        check_losses(indices, values)
        with torch.enable_grad():
            s = self._weigh(indices)
            fixed = values.detach().to(s)
            loss = ((1 - s) ** 2 * fixed + s**2 * (self.margin - fixed).clamp(min=0)).mean()
            sizes = torch.cat([widened(p).abs().flatten() for p in self.screener.parameters()])
            self.optimizer.zero_grad()
            (loss + self.penalty * sizes.mean()).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()

    def _weigh(self, indices: Tensor) -> Tensor:
        """Return s, ``(B,)``, with gradients, in float32 or wider."""
        s: Tensor = self.screener(self.inputs_of(indices)).reshape(len(indices))
        return widened(s).sigmoid()


def _store(table: Tensor, index: Tensor, losses: Tensor) -> None:
    """Write losses ``(B,)`` into a table ``(N,)``; of an example that repeats, the last counts."""
    losses = losses.detach().float().cpu()
    check_losses(index, losses)
    examples = example_numbers(index, len(table))
    if len(torch.unique(examples)) < len(examples):  # torch would write any of the repeated ones
        last_row = {example: row for row, example in enumerate(examples.tolist())}
        rows = torch.tensor(list(last_row.values()), device="cpu")
        examples, losses = examples[rows], losses[rows]
    table[examples] = losses


def _check_length(given: Tensor, expected: Tensor) -> None:
    if given.shape != expected.shape:
        raise ValueError(f"the state is of {len(given)} examples, need {len(expected)}")
