r"""Redundancy-aware sampling: examples of small loss sleep for a while; and its random control.

Chapter: notebooks/02_gradient_clustering.ipynb
Reference: Faghri's thesis, arXiv 2112.01423, 2022, abstract. That it means these samplers of the
public code of Faghri, Duvenaud, Fleet, Ba, arXiv 2007.04532, is our inference.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from trainaug.batches import OrderedBatchSampler, batch_sizes, from_all_ranks
from trainaug.checks import indices as checked_indices
from trainaug.roots import log
from trainaug.structures import StateDict

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

    Returns:
        The threshold, in the units of ``alpha``.

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
        position = (
            tau / 100 * (len(a) - 1)
        )  # by hand: torch.quantile takes 16 million numbers at most
        low = a[[math.floor(position)]]
        return float(
            low.lerp(a[[math.ceil(position)]], low.new_tensor([position - math.floor(position)]))
        )
    if rule == "cumulative":
        sums = a.cumsum(0)
        return float(a[(sums - tau * sums[-1]).abs().argmin()])
    a = a[a >= _TINY]
    if len(a) == 0:
        return _TINY
    a = log(a) if rule == "log_sigma" else a
    value = a.mean() - tau * a.std(correction=0)
    return float(value.exp() if rule == "log_sigma" else value)


class _SubsetSampler(OrderedBatchSampler):
    """Batches of some of the examples, chosen anew each epoch."""

    _kept: tuple[str, ...] = ("active", "active_counts")  # attributes that are state

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        generator: torch.Generator,
        drop_last: bool,
        num_replicas: int,
        rank: int,
    ) -> None:
        super().__init__(
            num_examples, batch_size, generator, drop_last, num_replicas=num_replicas, rank=rank
        )
        self._sizes_of(num_examples)
        self.active = torch.ones(num_examples, dtype=torch.bool, device="cpu")
        self.active_counts: list[int] = []
        self._length_ahead: int | None = None  # of the next epoch, once it was asked for

    @abstractmethod
    def _choose(self) -> Tensor:
        """Set ``active`` for the epoch that begins; return these examples in random order."""

    def _sizes_of(self, count: int) -> list[int]:
        return batch_sizes(count, self.batch_size, self.num_replicas, drop_last=self.drop_last)

    def __len__(self) -> int:
        """Batches of the present epoch; once it is trained on or abandoned, of the next.

        The next epoch is chosen for that on a copy, so that nothing changes.
        """
        if not self._is_over():
            return len(self._ends)
        if self._length_ahead is None:
            kept, epoch, position = self._own_state(), self.epoch, self._place
            self.epoch += 1
            try:
                self._begin()
                length = len(self._ends)
            finally:
                self._load_own_state(kept)
                self.epoch, self._place = epoch, position
            self._length_ahead = length
        return self._length_ahead

    def _is_over(self) -> bool:
        # Lightning holds on to an iteration after its last batch, of which nothing is left to come.
        is_drawn = self._iteration is not None and self._loader is not None and self._has_no_more()
        if is_drawn and not self._pending and not self._awaits_last():
            return True
        return super()._is_over()

    def _draw_epoch(self) -> tuple[Tensor, list[int]]:
        order = self._choose()
        self.active_counts.append(int(self.active.sum()))
        self._length_ahead = None
        return order, self._sizes_of(len(order))

    def _own_state(self) -> StateDict:
        state = {name: _copied(getattr(self, name)) for name in self._kept}
        return super()._own_state() | state

    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        super()._load_own_state(state)
        vars(self).update({name: _copied(state[name]) for name in self._kept})
        self._length_ahead = None


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    return list(value) if isinstance(value, list) else value


class SnoozeSampler(_SubsetSampler):
    r"""Batches of the examples awake, in random order; an iteration is an epoch.

    $\alpha_i$ is the loss of example $i$ when it was last trained on. After an epoch those
    awake in it are judged. ``exponential``: from the threshold on, a level falls to 0, else it
    rises by 1, and the example comes back $2^\text{level}$ epochs later. ``linear``: the lowest
    $p$ of all $\alpha$ are dropped, and those dropped anew sleep, the lowest longest; $p$ and the
    longest sleep grow on lines over training; all others wake, and count as highest when their
    sleep is over. Sleepers keep their last $\alpha$ in both. Epochs with fewer than
    ``min_batches`` full batches awake are skipped, and who wakes in one stays awake for the next.

    Give the training losses to ``update``, and multiply by ``weights``; of ``train`` they are
    ``feedback`` and ``weights``. An example without a loss stays awake.
    ``len()`` is exact: between epochs it is that of the next, and later losses correct it. All
    ranks need the losses of all: where `torch.distributed` is initialised with ``num_replicas``
    processes they are gathered when an epoch is chosen, by an iteration or by ``len()`` between
    two, so do that on all ranks; elsewhere feed back the losses of all ranks on each.

    Args:
        num_examples: N.
        batch_size: B, of each rank.
        generator: Source of the order, with equal seeds on all ranks.
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
        num_replicas: Processes that train together.
        rank: This process.

    Attributes:
        active: Who is awake in this epoch, ``(N,)``; state is on the CPU.
        active_counts: Number awake in each epoch so far, on all ranks, for the random control.
        skipped_epochs: Idle epochs skipped so far.
        levels: The level $\delta$ of each example, ``(N,)`` int64, from 0 to 62: for how many
            judgements in a row its $\alpha$ has been below the threshold.
        waits: Epochs until an example wakes, ``(N,)`` int64, 0 for those awake; for a sleeper of
            the exponential kind $2^\delta-v$, with $v$ the epochs since it was last awake.

    Raises:
        ValueError: If a setting is out of range.
        RuntimeError: While the next epoch is chosen, if no loss has ever come, or those of other
            ranks have not; by ``set_epoch``, if it is not the next in turn.

    Notes:
        Departure from the authors' code: its linear kind drops before there is any loss, too.
    """

    _kept = (*_SubsetSampler._kept, "skipped_epochs", "levels", "waits", "_average", "_visits")
    _kept += ("_unseen_for", "_weights", "_is_due", "_news", "_heard_of")

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
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(num_examples, batch_size, generator, drop_last, num_replicas, rank)
        if batch_size == 1 < num_replicas and not drop_last:
            raise ValueError(
                "batch_size 1 on several ranks needs drop_last: who is awake cannot be shared "
                "evenly in every epoch"
            )
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
        self._is_due = zeros.bool()  # examples of this epoch that no loss has come for
        self._news: list[tuple[Tensor, Tensor]] = []  # losses that not all ranks have, yet
        self._heard_of = -1  # epoch whose losses all ranks have

    @property
    def alpha(self) -> Tensor:
        r"""The $\alpha$ of all examples, ``(N,)``, NaN before the first loss."""
        return self._average / (1 - self.beta ** self._visits.double())  # 0/0 where not visited

    def update(self, indices: Tensor, values: Tensor) -> None:
        """Take the losses of the training pass of some examples.

        With several ranks these wait for those of the other ranks, until the next epoch is chosen.

        Args:
            indices: Numbers of the examples, ``(B,)``, integers in [0, N), all different.
            values: Their losses, or gradient norms, ``(B,)``, finite.

        Raises:
            ValueError: If shapes differ, or an index is out of range or comes twice.
            FloatingPointError: If a loss is NaN or infinite, naming the example.
        """
        i = checked_indices(indices, self.num_examples)
        a = values.detach().cpu().double()
        if a.shape != i.shape:
            raise ValueError(f"losses must have shape {tuple(i.shape)}, got {tuple(a.shape)}")
        if len(set(i.tolist())) != len(i):
            raise ValueError(f"an example comes twice in {i.tolist()}")
        if not bool(a.isfinite().all()):
            bad = int((~a.isfinite()).nonzero()[0])
            raise FloatingPointError(f"the loss of example {int(i[bad])} is {float(a[bad])}")
        self._length_ahead = None
        for kept in (vars(self), *self._open_snapshots()):
            kept["_is_due"][i] = False
            if self.num_replicas > 1:
                kept["_news"].append((i.clone(), a.clone()))
            else:
                self._average_in(kept, i, a)

    def __len__(self) -> int:
        if self._is_over():
            self._hear_other_ranks(self.epoch)
        return super().__len__()

    def _begin(self) -> None:
        self._hear_other_ranks(self.epoch - 1)
        super()._begin()

    def _enter(self, epoch: int) -> None:
        self._refuse_to_enter(epoch)

    def _awaits_last(self) -> bool:
        return bool(self._is_due[self._order[self._ranks_of_places()[1] == self.rank]].any())

    def _ranks_of_places(self) -> tuple[Tensor, Tensor]:
        """Batch and rank of each place in the order of this epoch."""
        ends = torch.tensor([0, *self._ends], device="cpu")
        batch = torch.arange(len(self._ends), device="cpu").repeat_interleave(ends.diff())
        position = torch.arange(len(batch), device="cpu")
        return batch, (position - ends[batch]) % self.num_replicas

    def _missing(self) -> Tensor:
        """Examples of other ranks without a loss, in batches where one of this rank's has one."""
        batch, rank = self._ranks_of_places()
        is_due = self._is_due[self._order]
        is_fed = torch.zeros(len(self._ends), dtype=torch.bool, device="cpu")
        is_fed[batch[(rank == self.rank) & ~is_due]] = True
        return self._order[(rank != self.rank) & is_due & is_fed[batch]]

    def _hear_other_ranks(self, epoch: int) -> None:
        """Average in the losses of an epoch that has ended, the same ones on all ranks."""
        if self.num_replicas == 1 or epoch == self._heard_of:
            return
        news = from_all_ranks(self._news, self.num_replicas)
        if news is None:
            missing = self._missing()
            if len(missing):
                raise RuntimeError(
                    f"the losses of {len(missing)} examples of other ranks have not come, as of "
                    f"example {int(missing[0])}: initialise torch.distributed, or feed back the "
                    "losses of all ranks on each"
                )
            news = [self._news]
        is_known = torch.zeros(self.num_examples, dtype=torch.bool, device="cpu")
        for of_rank in news:  # a loss that several ranks have counts once
            is_new = ~is_known
            for i, a in of_rank:
                self._average_in(vars(self), i[is_new[i]], a[is_new[i]])
                is_known[i] = True
        self._news, self._heard_of, self._length_ahead = [], epoch, None

    def _own_state(self) -> StateDict:
        is_own = bool(self._news) and len(self._missing()) > 0
        return super()._own_state() | {"rank": self.rank if is_own else None}

    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        if state["rank"] not in (None, self.rank):
            raise ValueError(
                f"state of rank {state['rank']}, with losses that rank {self.rank} does not have: "
                "in mid-epoch save and load the state of each rank"
            )
        super()._load_own_state(state)

    def _average_in(self, kept: Mapping[str, Any], i: Tensor, a: Tensor) -> None:
        kept["_average"][i] = self.beta * kept["_average"][i] + (1 - self.beta) * a
        kept["_visits"][i] += 1

    def weights(self, indices: Tensor) -> Tensor:
        r"""Return the weights ``(B,)`` of the losses of examples of this epoch, on their device.

        1, or with ``reweight`` the epochs run since the example was last in one, $2^\delta$ if
        none was skipped, and 0 for those not in this one. Exact is the bookkeeping over time: seen
        in epoch $e$ from 0, an example has weights that add up to $e+1$ so far, as if it had come
        with weight 1 every time; an epoch cut short counts as run. The mean weight over the epochs
        is 1 at each sight, so it tends to 1, for each example and over the data, if sleeps stay
        short beside the run; that of one that never rises swings between 1/2 and 1. Not exact is
        a single epoch: unlike InfoBatch's random pruning the losses fix who sleeps, so its gradient
        is a biased estimate, and present gradients of an example stand in for those it missed.

        Args:
            indices: Numbers of the examples, ``(B,)``, integers in [0, N).

        Raises:
            ValueError: If the shape or the type is another, or an index is out of range.
        """
        i = checked_indices(indices, self.num_examples)
        w = self._weights[i] if self.reweight else torch.ones_like(i)
        return w.to(indices.device, torch.get_default_dtype())

    def _choose(self) -> Tensor:
        if self.active_counts and self.epoch > self.warmup_epochs:
            if not bool(self._visits.any()):
                raise RuntimeError("no losses have come: pass sampler.update to the loop")
            if self.kind == "exponential":
                self._judge()
            else:
                self._drop_lowest(min(1.0, len(self.active_counts) / (self.num_epochs or 1)))
            self._let_time_pass()
        awake = self.active.nonzero().squeeze(1)
        order = awake[self._permutation(len(awake))][: sum(self._sizes_of(len(awake)))]
        self._unseen_for += 1
        self._weights = torch.zeros_like(self.waits)  # the sleepers'
        self._weights[order] = self._unseen_for[order]
        self._unseen_for[order] = 0
        self._is_due = torch.zeros_like(self.active)
        self._is_due[order] = True
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

    def _drop_lowest(self, progress: float) -> None:
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
        """Skip idle epochs until enough are awake; the authors' code counts them one by one."""
        enough = min(self.min_batches * self.batch_size * self.num_replicas, self.num_examples)
        skipped = int(self.waits.kthvalue(enough).values)
        self.skipped_epochs += skipped
        self.waits = (self.waits - skipped).clamp(min=0)
        self.active = self.waits == 0


class RandomSnoozeSampler(_SubsetSampler):
    """The control: in each epoch as many examples as the other sampler had awake, but random ones.

    Args:
        num_examples: N.
        batch_size: B, of each rank.
        generator: Source of the subsets, all equally likely, and of their order.
        counts: Examples of each epoch, from 1 to N, say ``SnoozeSampler.active_counts``; after
            the last, that number goes on.
        drop_last: As the other sampler's.
        num_replicas: Processes that train together.
        rank: This process.

    Raises:
        ValueError: If there are no counts, one is out of range, or gives a rank an empty batch.
    """

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        generator: torch.Generator,
        *,
        counts: Sequence[int],
        drop_last: bool = False,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(num_examples, batch_size, generator, drop_last, num_replicas, rank)
        least = (batch_size if drop_last else 1) * num_replicas
        wrong = [count for count in counts if not least <= count <= num_examples]
        if wrong or not counts:
            raise ValueError(f"need counts from {least} to {num_examples}, got {wrong or counts}")
        for count in set(counts):
            self._sizes_of(count)
        self.counts = tuple(counts)

    def _choose(self) -> Tensor:
        count = self.counts[min(self.epoch, len(self.counts) - 1)]
        order = self._permutation(self.num_examples)[:count]
        self.active = torch.zeros_like(self.active)
        self.active[order] = True
        return order[: sum(self._sizes_of(count))]

    def _enter(self, epoch: int) -> None:
        self.active_counts = []
        self._length_ahead = None
        super()._enter(epoch)
