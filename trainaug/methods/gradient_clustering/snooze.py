r"""Redundancy-aware sampling: examples of small loss sleep for a while; and its random control.

Chapter: notebooks/02_gradient_clustering.ipynb
Reference: Faghri's thesis, arXiv 2112.01423, 2022, abstract. That it means these samplers of the
public code of Faghri, Duvenaud, Fleet, Ba, arXiv 2007.04532, is our inference.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.data import Sampler

from trainaug.roots import log

__all__ = ["RandomSnoozeSampler", "SnoozeSampler", "snooze_threshold"]

Rule = Literal["absolute", "mean", "median", "percentile", "sigma", "log_sigma", "cumulative"]
Kind = Literal["exponential", "linear"]

_TINY = math.exp(-20)
_TOP_LEVEL = 62  # a sleep of 2^62 epochs; 2^63 is not an int64


def _check_rule(rule: str, tau: float) -> None:
    if rule not in get_args(Rule):
        raise ValueError(f"rule must be one of {', '.join(get_args(Rule))}, got {rule!r}")
    low = -math.inf if rule in ("absolute", "sigma", "log_sigma") else 0.0
    high = {"percentile": 100.0, "cumulative": 1.0}.get(rule, math.inf)
    ends = "" if rule == "absolute" else " and finite"
    if not low <= tau <= high or (ends and math.isinf(tau)):
        raise ValueError(f"tau of the rule {rule} must be in [{low}, {high}]{ends}, got {tau}")


def snooze_threshold(alpha: Tensor, rule: Rule, tau: float) -> float:
    r"""Return the value from which on an example stays awake.

    ``absolute``: $\tau$. ``mean``: $\tau$ times the mean. ``median``: $\tau$ times the upper
    median, place $\lfloor N/2\rfloor$ from 0 of the sorted. ``percentile``: the $\tau$-th,
    interpolated linearly. ``sigma``: $\mu-\tau\sigma$, the deviation with divisor $N$, without
    the $\alpha<e^{-20}$. ``log_sigma``: $e^{\mu-\tau\sigma}$ of $\log\alpha$, also without them;
    where none is left both give $e^{-20}$, and all sleep. ``cumulative``: the sorted $\alpha$
    at which the running sum is nearest to $\tau$ times the whole, the lower of two.

    Args:
        alpha: Losses or gradient norms, shape ``(N,)``, finite; meant to be at least 0.
        rule: One of the seven.
        tau: In ``[0, 100]`` for ``percentile``, ``[0, 1]`` for ``cumulative``, at least 0 for
            ``mean`` and ``median``; infinite for ``absolute`` alone.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> snooze_threshold(torch.tensor([1.0, 2.0, 3.0, 6.0]), "mean", 0.5)
        1.5

    Notes:
        Departure from the authors' code: it finds the place for ``cumulative`` among the sorted
        values, but looks it up in the unsorted ones.
    """
    _check_rule(rule, tau)
    if alpha.ndim != 1 or len(alpha) == 0 or not bool(alpha.isfinite().all()):
        raise ValueError(f"alpha must be finite of shape (N,), got {alpha}")
    a = alpha.detach().cpu().double().sort().values  # (N,)
    if rule == "absolute":
        return float(tau)
    if rule == "mean":
        return tau * float(a.mean())
    if rule == "median":
        return tau * float(a[len(a) // 2])
    if rule == "percentile":
        place = tau / 100 * (len(a) - 1)  # by hand: torch.quantile takes 16 million numbers at most
        low = a[[math.floor(place)]]
        return float(low.lerp(a[[math.ceil(place)]], low.new_tensor([place - math.floor(place)])))
    if rule == "cumulative":
        sums = a.cumsum(0)
        return float(a[(sums - tau * sums[-1]).abs().argmin()])
    a = a[a >= _TINY]
    if len(a) == 0:
        return _TINY
    a = log(a) if rule == "log_sigma" else a
    value = a.mean() - tau * a.std(correction=0)
    return float(value.exp() if rule == "log_sigma" else value)


class _SubsetSampler(Sampler[list[int]]):
    """Batches of some of the examples, chosen anew each epoch; can resume inside an epoch."""

    _state: tuple[str, ...] = ("active", "active_counts", "_remaining")

    def __init__(self, n: int, batch_size: int, generator: torch.Generator, drop_last: bool):
        if min(n, batch_size) < 1 or (drop_last and batch_size > n):
            raise ValueError(f"no batch: num_examples={n}, {batch_size=}, {drop_last=}")
        self.num_examples, self.batch_size = n, batch_size
        self.generator, self.drop_last = generator, drop_last
        self.active = torch.ones(n, dtype=torch.bool, device="cpu")
        self.active_counts: list[int] = []
        self._remaining: list[int] = []
        self._resuming = False

    @property
    def epoch(self) -> int:
        """Number of the present epoch, from 0."""
        return max(0, len(self.active_counts) - 1)

    def __len__(self) -> int:
        """Batches of the present epoch; the next may have another number."""
        rounding = 0 if self.drop_last else self.batch_size - 1
        return (int(self.active.sum()) + rounding) // self.batch_size

    def _permutation(self, count: int) -> Tensor:
        g = self.generator
        return torch.randperm(count, generator=g, device=g.device).cpu()

    def _choose(self) -> Tensor:
        """Set ``active`` for the epoch that begins; return these examples in random order."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[list[int]]:
        order = self._remaining if self._resuming else []
        self._resuming = False
        if not order:
            order = self._choose().tolist()
            self.active_counts.append(int(self.active.sum()))
        for start in range(0, len(order), self.batch_size):
            self._remaining = order[start + self.batch_size :]
            yield order[start : start + self.batch_size]

    def state_dict(self) -> dict[str, Any]:
        """Return the generator's state, what is left of the epoch, and what is known so far."""
        own = copy.deepcopy({name: getattr(self, name) for name in self._state})
        return own | {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``: the next iteration first finishes the interrupted epoch."""
        if len(state["active"]) != self.num_examples:
            raise ValueError(f"state of {len(state['active'])} examples, need {self.num_examples}")
        vars(self).update(copy.deepcopy({name: state[name] for name in self._state}))
        self.generator.set_state(state["generator"])
        self._resuming = True


class SnoozeSampler(_SubsetSampler):
    r"""Batches of the examples awake, in random order; an iteration is an epoch.

    $\alpha_i$ is the loss of example $i$ when it was last trained on. After an epoch those
    awake in it are judged. ``exponential``: from the threshold on, a level falls to 0, else it
    rises by 1, and the example comes back $2^\text{level}$ epochs later. ``linear``: the lowest
    $p$ of all $\alpha$ are dropped, and those dropped anew sleep, the lowest longest; $p$ and the
    longest sleep grow on lines over training; all others wake, and count as highest when their
    sleep is over. Sleepers keep their last $\alpha$ in both. Epochs with fewer than
    ``min_batches`` full batches awake are skipped, and who wakes in one stays awake for the next.

    Pass ``feedback``, and ``weights``, to ``train``. An example without a loss stays awake.

    Args:
        num_examples: N.
        batch_size: B.
        generator: Source of the order.
        rule: Threshold of the exponential kind, see ``snooze_threshold``.
        tau: Its parameter; may be set anew between epochs.
        kind: ``exponential`` or ``linear``.
        min_batches: At least 1; where N is too small for so many, all are awake.
        warmup_epochs: Complete epochs first that are not judged; the next is complete, too.
        beta: Decay of an average of the losses, corrected for its start at 0, in ``[0, 1)``.
        drop_fraction: p at the start and the end of training.
        delays: Longest sleep at the start, which always is the shortest, and at the end; epochs.
        num_epochs: Length of training; the linear kind needs it.
        reweight: Whether ``weights`` differ from 1.
        drop_last: Leave out an incomplete last batch of each epoch.

    Attributes:
        active: Who is awake in this epoch, ``(N,)``; state is on the CPU.
        active_counts: Number awake in each epoch so far, for the random control.
        skipped_epochs: Idle epochs skipped so far.
        levels: The note's $\delta$, ``(N,)``, at most 62.
        waits: Epochs until an example wakes, ``(N,)``: with the note's counter, $2^\delta-v$.

    Raises:
        ValueError: If a setting is out of range.
        RuntimeError: While iterating, if an epoch ends and no loss has ever come.

    Notes:
        Departure from the authors' code: its linear kind drops before there is any loss, too.
    """

    _state = (*_SubsetSampler._state, "skipped_epochs", "levels", "waits", "_average", "_visits")
    _state += ("_unseen_for", "_weights")

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        generator: torch.Generator,
        *,
        rule: Rule = "mean",
        tau: float = 1.0,
        kind: Kind = "exponential",
        min_batches: int = 1,
        warmup_epochs: int = 0,
        beta: float = 0.0,
        drop_fraction: tuple[float, float] = (0.5, 0.9),
        delays: tuple[int, int] = (2, 200),
        num_epochs: int | None = None,
        reweight: bool = False,
        drop_last: bool = False,
    ) -> None:
        super().__init__(num_examples, batch_size, generator, drop_last)
        _check_rule(rule, tau)
        for value, is_fine, need in (
            (kind, kind in get_args(Kind), "kind exponential or linear"),
            (min_batches, min_batches >= 1, "min_batches >= 1"),
            (warmup_epochs, warmup_epochs >= 0, "warmup_epochs >= 0"),
            (beta, 0 <= beta < 1, "beta in [0, 1)"),
            (drop_fraction, all(0 <= p <= 1 for p in drop_fraction), "drop_fraction in [0, 1]"),
            (delays, 1 <= delays[0] <= delays[1], "1 <= delays[0] <= delays[1]"),
            (num_epochs, kind != "linear" or (num_epochs or 0) >= 1, "num_epochs >= 1 if linear"),
        ):
            if not is_fine:
                raise ValueError(f"need {need}, got {value!r}")
        self.rule, self.tau, self.kind, self.beta = rule, tau, kind, beta
        self.min_batches, self.warmup_epochs, self.reweight = min_batches, warmup_epochs, reweight
        self.drop_fraction, self.delays, self.num_epochs = drop_fraction, delays, num_epochs
        self.skipped_epochs = 0
        zeros = torch.zeros(num_examples, dtype=torch.int64, device="cpu")
        self.levels, self.waits, self._visits, self._unseen_for = (zeros.clone() for _ in range(4))
        self._average, self._weights = zeros.double(), zeros + 1

    @property
    def alpha(self) -> Tensor:
        r"""The $\alpha$ of all examples, ``(N,)``, NaN before the first loss."""
        return self._average / (1 - self.beta ** self._visits.double())  # 0/0 where not visited

    def feedback(self, index: Tensor, losses: Tensor) -> None:
        """Take the losses ``(B,)`` of the training pass of the examples ``index`` ``(B,)``.

        Raises:
            ValueError: If shapes differ, or an index is out of range or comes twice.
            FloatingPointError: If a loss is NaN or infinite, naming the example.
        """
        i = self._checked(index)
        a = losses.detach().cpu().double()
        if a.shape != i.shape:
            raise ValueError(f"losses must have shape {tuple(i.shape)}, got {tuple(a.shape)}")
        if len(set(i.tolist())) != len(i):
            raise ValueError(f"an example comes twice in {i.tolist()}")
        if not bool(a.isfinite().all()):
            bad = int((~a.isfinite()).nonzero()[0])
            raise FloatingPointError(f"the loss of example {int(i[bad])} is {float(a[bad])}")
        self._average[i] = self.beta * self._average[i] + (1 - self.beta) * a
        self._visits[i] += 1

    def weights(self, index: Tensor) -> Tensor:
        r"""Return the weights ``(B,)`` of the losses of examples of this epoch, on their device.

        1, or with ``reweight`` the epochs run since the example was last in one, $2^\delta$ if
        none was skipped, and 0 for those not in this one. Exact is the bookkeeping over time: seen
        in epoch $e$ from 0, an example has weights that add up to $e+1$ so far, as if it had come
        with weight 1 every time; an epoch cut short counts as run. The mean weight over the epochs
        is 1 at each sight, so it tends to 1, for each example and over the data, if sleeps stay
        short beside the run; that of one that never rises swings between 1/2 and 1. Not exact is
        a single epoch: unlike InfoBatch's random pruning the losses fix who sleeps, so its gradient
        is a biased estimate, and present gradients of an example stand in for those it missed.
        """
        i = self._checked(index)
        w = self._weights[i] if self.reweight else torch.ones_like(i)
        return w.to(index.device, torch.get_default_dtype())

    def _checked(self, index: Tensor) -> Tensor:
        i = index.detach().cpu()
        if i.ndim != 1 or i.is_floating_point() or i.dtype == torch.bool:
            raise ValueError(f"index must be of integers with shape (B,), got {index}")
        wrong = i[(i < 0) | (i >= self.num_examples)].tolist()
        if wrong:
            raise ValueError(f"index must be from 0 to {self.num_examples - 1}, got {wrong}")
        return i.long()

    def _choose(self) -> Tensor:
        if self.active_counts and self.epoch >= self.warmup_epochs:
            if not bool(self._visits.any()):
                raise RuntimeError("no losses have come: pass sampler.feedback to the loop")
            if self.kind == "exponential":
                self._judge()
            else:
                self._rank(min(1.0, len(self.active_counts) / (self.num_epochs or 1)))
            self._let_time_pass()
        awake = self.active.nonzero().squeeze(1)
        order = awake[self._permutation(len(awake))][: len(self) * self.batch_size]
        self._unseen_for += 1
        self._weights = torch.zeros_like(self.waits)  # the sleepers'
        self._weights[order] = self._unseen_for[order]
        self._unseen_for[order] = 0
        return order

    def _judge(self) -> None:
        known = self.alpha
        tau = snooze_threshold(known[self._visits > 0], self.rule, self.tau)
        is_low = known < tau  # not where it is NaN
        self.levels[self.active & ~is_low] = 0
        self.levels[self.active & is_low] += 1
        self.levels.clamp_(max=_TOP_LEVEL)
        self.waits[self.active] = 2 ** self.levels[self.active]
        self.waits -= 1

    def _rank(self, progress: float) -> None:
        (p, p_end), (shortest, longest) = self.drop_fraction, self.delays
        dropped = int(self.num_examples * (p + progress * (p_end - p)))
        is_first = (self.waits == 1) | (self._visits == 0)
        keys = self.alpha.masked_fill(is_first, math.inf)
        ties = self._permutation(self.num_examples)
        low, high = ties[keys[ties].argsort(stable=True)].tensor_split([dropped])
        height = torch.arange(dropped, 0, -1, dtype=torch.float64, device="cpu") / max(1, dropped)
        sleeps = (shortest + progress * (longest - shortest) * height).ceil().long()
        is_new = self.active[low]
        self.waits[self.waits > 1] -= 1
        self.waits[high] = 0
        self.waits[low[is_new]] = sleeps[is_new]

    def _let_time_pass(self) -> None:
        """Skip epochs until enough are awake: the counting of the note in one go."""
        enough = min(self.min_batches * self.batch_size, self.num_examples)
        skipped = int(self.waits.kthvalue(enough).values)
        self.skipped_epochs += skipped
        self.waits = (self.waits - skipped).clamp(min=0)
        self.active = self.waits == 0


class RandomSnoozeSampler(_SubsetSampler):
    """The control: in each epoch as many examples as the other sampler had awake, but random ones.

    Args:
        num_examples: N.
        batch_size: B.
        generator: Source of the subsets, all equally likely, and of their order.
        counts: Examples of each epoch, from 1 to N, say ``SnoozeSampler.active_counts``; after
            the last, that number goes on.
        drop_last: As the other sampler's.

    Raises:
        ValueError: If there are no counts, or one is out of range.
    """

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        generator: torch.Generator,
        counts: Sequence[int],
        *,
        drop_last: bool = False,
    ) -> None:
        super().__init__(num_examples, batch_size, generator, drop_last)
        least = batch_size if drop_last else 1
        wrong = [count for count in counts if not least <= count <= num_examples]
        if wrong or not counts:
            raise ValueError(f"need counts from {least} to {num_examples}, got {wrong or counts}")
        self.counts = tuple(counts)

    def _choose(self) -> Tensor:
        count = self.counts[min(len(self.active_counts), len(self.counts) - 1)]
        order = self._permutation(self.num_examples)[:count]
        self.active = torch.zeros_like(self.active)
        self.active[order] = True
        return order[: len(self) * self.batch_size]
