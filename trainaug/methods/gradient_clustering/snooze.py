r"""Redundancy-aware sampling: examples with a small loss are left out ("sleep") for some epochs.

Also its control, which leaves out as many examples at random.

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

_TINY = math.exp(-20)  # values below it count as zero for the rules with a deviation
_TOP_LEVEL = 62  # a sleep of 2^62 epochs; 2^63 is not an int64


def _check_rule(rule: str, tau: float) -> None:
    """Raise a ValueError if the rule is unknown or ``tau`` is outside its range."""
    if rule not in get_args(Rule):
        raise ValueError(f"rule must be one of {', '.join(get_args(Rule))}, got {rule!r}")
    low = -math.inf if rule in ("absolute", "sigma", "log_sigma") else 0.0
    high = {"percentile": 100.0, "cumulative": 1.0}.get(rule, math.inf)
    ends = "" if rule == "absolute" else " and finite"
    if not low <= tau <= high or (ends and math.isinf(tau)):
        raise ValueError(f"tau of the rule {rule} must be in [{low}, {high}]{ends}, got {tau}")


def snooze_threshold(alpha: Tensor, rule: Rule, tau: float) -> float:
    r"""Return the threshold: an example stays awake if its value is at least this.

    ``absolute``: $\tau$ itself. ``mean``: $\tau$ times the mean. ``median``: $\tau$ times the upper
    median, element $\lfloor N/2\rfloor$ of the sorted values, counted from 0. ``percentile``: the
    $\tau$-th percentile, interpolated linearly. ``sigma``: $\mu-\tau\sigma$ of the
    $\alpha\ge e^{-20}$, the deviation with divisor $N$. ``log_sigma``: $e^{\mu-\tau\sigma}$ with
    the mean and deviation of $\log\alpha$ over the same values; if there are none, both rules give
    $e^{-20}$, and all examples sleep. ``cumulative``: the sorted $\alpha$ at which the running sum
    is nearest to $\tau$ times the total; of two equally near ones, the lower.

    Args:
        alpha: Losses or gradient norms, shape ``(N,)``, finite; meant to be at least 0.
        rule: One of the seven rules.
        tau: In ``[0, 100]`` for ``percentile``, ``[0, 1]`` for ``cumulative``, at least 0 for
            ``mean`` and ``median``. Only for ``absolute`` it may be infinite.

    Returns:
        The threshold, in the units of ``alpha``.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> snooze_threshold(torch.tensor([1.0, 2.0, 3.0, 6.0]), "mean", 0.5)
        1.5

    Notes:
        Departure from the authors' code: for ``cumulative`` it determines the position among the
        sorted values, but then reads that position of the unsorted ones.
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
        # Interpolated by hand, because torch.quantile takes 16 million numbers at most.
        position = tau / 100 * (len(a) - 1)
        low = a[[math.floor(position)]]
        fraction = low.new_tensor([position - math.floor(position)])
        return float(low.lerp(a[[math.ceil(position)]], fraction))
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
    """Base of samplers that choose a subset of the examples anew for each epoch."""

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
        self._length_ahead: int | None = None  # batches of the next epoch, once `len` counted them

    @abstractmethod
    def _choose(self) -> Tensor:
        """Set ``active`` for the epoch that begins; return these examples in random order."""

    def _sizes_of(self, count: int) -> list[int]:
        """Return the sizes of the global batches of an epoch with ``count`` examples."""
        return batch_sizes(count, self.batch_size, self.num_replicas, drop_last=self.drop_last)

    def __len__(self) -> int:
        """Return the number of batches of the present epoch, or of the next if that one is over.

        To count the next epoch's batches it is chosen, and then the state is restored.
        """
        if not self._is_over():
            return len(self._ends)
        if self._length_ahead is None:
            state = self._own_state()
            epoch, batches_given = self.epoch, self._place
            self.epoch += 1
            try:
                self._begin()
                length = len(self._ends)
            finally:
                self._load_own_state(state)
                self.epoch, self._place = epoch, batches_given
            self._length_ahead = length
        return self._length_ahead

    def _is_over(self) -> bool:
        # Lightning keeps an iteration open after its last batch, though nothing more comes of it.
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
    """Return a copy of a tensor or list; other values cannot change and are returned as is."""
    if isinstance(value, Tensor):
        return value.clone()
    return list(value) if isinstance(value, list) else value


class SnoozeSampler(_SubsetSampler):
    r"""Batches of the examples that are awake, in random order; one iteration is one epoch.

    $\alpha_i$ is the loss of example $i$ when it was last trained on. After an epoch, the examples
    that were awake in it are judged. ``exponential``: if $\alpha_i$ is at least the threshold, the
    example's level falls to 0, otherwise it rises by 1; the example comes back $2^\text{level}$
    epochs later. ``linear``: the share $p$ of all examples with the lowest $\alpha$ is dropped.
    Those among them that were awake fall asleep, for longer the lower they are; all examples that
    are not dropped wake. An example at the end of its sleep counts as highest. $p$ and the longest
    sleep change linearly over training. In both kinds sleepers keep their last $\alpha$. Epochs
    with fewer than ``min_batches`` full batches awake are skipped; examples that wake in such an
    epoch stay awake for the next.

    Pass the training losses to ``update``, and multiply them by ``weights``; in ``train`` these are
    the arguments ``feedback`` and ``weights``. An example without a loss stays awake. ``len()`` is
    exact: between epochs it is the length of the next one, given the losses so far. Every rank
    needs the losses of all ranks. If `torch.distributed` is initialised with ``num_replicas``
    processes, they are gathered when an epoch is chosen: by an iteration, or by ``len()`` between
    epochs, which must then be called on all ranks. Otherwise pass the losses of all ranks to
    ``update`` on each of them.

    Args:
        num_examples: Number of examples, N.
        batch_size: Batch size of each rank, B.
        generator: Source of the order, with equal seeds on all ranks.
        rule: Threshold of the exponential kind, see ``snooze_threshold``.
        tau: Parameter of the rule; it may be changed between epochs.
        kind: ``exponential`` or ``linear``.
        min_batches: At least 1; if N is too small for so many, all examples must be awake.
        warmup_epochs: How many epochs at the start are not judged; these and the next are complete.
        beta: Decay of a moving average of each example's losses, in ``[0, 1)``, corrected for its
            start at 0; with 0 the last loss alone counts.
        drop_fraction: $p$ at the start and at the end of training.
        delays: Longest sleep in epochs, at the start and at the end of training. The first is also
            the shortest sleep throughout.
        num_epochs: Length of training; needed for the linear kind.
        reweight: Whether ``weights`` differ from 1.
        drop_last: Leave out an incomplete last batch of each epoch.
        num_replicas: Number of processes that train together.
        rank: Number of this process.

    Attributes:
        active: Which examples are awake in this epoch, ``(N,)`` bool, on the CPU.
        active_counts: Number awake in each epoch so far, on all ranks, for the random control.
        skipped_epochs: Number of epochs skipped so far, because too few examples were awake.
        levels: The level $\delta$ of each example, ``(N,)`` int64, from 0 to 62: for how many
            judgements in a row its $\alpha$ has been below the threshold.
        waits: Epochs until an example wakes, ``(N,)`` int64, 0 for those awake. In the exponential
            kind it is $2^\delta-v$ for a sleeper, with $v$ the epochs since it was last awake.

    Raises:
        ValueError: If a setting is out of range.
        RuntimeError: When the next epoch is chosen, if there has been no loss at all, or losses of
            other ranks are missing. From ``set_epoch``, if the epoch is not the next in turn.

    Notes:
        Departure from the authors' code: its linear kind drops examples even before any loss.
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
        self._is_due = zeros.bool()  # examples of this epoch whose loss has not come yet
        self._news: list[tuple[Tensor, Tensor]] = []  # losses that not all ranks have yet
        self._heard_of = -1  # the last epoch whose losses all ranks have

    @property
    def alpha(self) -> Tensor:
        r"""The $\alpha$ of all examples, ``(N,)``, NaN before the first loss."""
        return self._average / (1 - self.beta ** self._visits.double())  # 0/0 before the first loss

    def update(self, indices: Tensor, values: Tensor) -> None:
        """Take the losses of some examples from the training pass.

        With several ranks they count only when the next epoch is chosen, with those of the others.

        Args:
            indices: Numbers of the examples, ``(B,)``, integers in [0, N), all different.
            values: Their losses, or gradient norms, ``(B,)``, finite.

        Raises:
            TypeError: If ``indices`` is not a tensor.
            ValueError: If shapes differ, or an index is out of range or occurs twice.
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
        # A stateful loader took snapshots before these batches were trained on: update them, too.
        for state in (vars(self), *self._open_snapshots()):
            state["_is_due"][i] = False
            if self.num_replicas > 1:
                state["_news"].append((i.clone(), a.clone()))
            else:
                self._average_in(state, i, a)

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
        """Tell whether a loss of this rank's share of the epoch is still missing."""
        return bool(self._is_due[self._order[self._ranks_of_places()[1] == self.rank]].any())

    def _ranks_of_places(self) -> tuple[Tensor, Tensor]:
        """Return the batch and the rank that each position of this epoch's order belongs to."""
        ends = torch.tensor([0, *self._ends], device="cpu")
        batch = torch.arange(len(self._ends), device="cpu").repeat_interleave(ends.diff())
        position = torch.arange(len(batch), device="cpu")
        return batch, (position - ends[batch]) % self.num_replicas

    def _missing(self) -> Tensor:
        """Return other ranks' examples without a loss, in batches that this rank has trained on."""
        batch, rank = self._ranks_of_places()
        is_due = self._is_due[self._order]
        is_fed = torch.zeros(len(self._ends), dtype=torch.bool, device="cpu")
        is_fed[batch[(rank == self.rank) & ~is_due]] = True
        return self._order[(rank != self.rank) & is_due & is_fed[batch]]

    def _hear_other_ranks(self, epoch: int) -> None:
        """Add the losses of an epoch that has ended to the averages, the same on all ranks."""
        if self.num_replicas == 1 or epoch == self._heard_of:
            return
        news = from_all_ranks(self._news, self.num_replicas)
        if news is None:  # without torch.distributed this rank must have got all losses itself
            missing = self._missing()
            if len(missing):
                raise RuntimeError(
                    f"the losses of {len(missing)} examples of other ranks have not come, as of "
                    f"example {int(missing[0])}: initialise torch.distributed, or feed back the "
                    "losses of all ranks on each"
                )
            news = [self._news]
        is_known = torch.zeros(self.num_examples, dtype=torch.bool, device="cpu")
        for losses_of_rank in news:  # a loss that several ranks have counts once
            is_new = ~is_known
            for i, a in losses_of_rank:
                self._average_in(vars(self), i[is_new[i]], a[is_new[i]])
                is_known[i] = True
        self._news, self._heard_of, self._length_ahead = [], epoch, None

    def _own_state(self) -> StateDict:
        # The state differs between ranks while one has losses that the others have not got yet.
        differs = bool(self._news) and len(self._missing()) > 0
        return super()._own_state() | {"rank": self.rank if differs else None}

    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        if state["rank"] not in (None, self.rank):
            raise ValueError(
                f"state of rank {state['rank']}, with losses that rank {self.rank} does not have: "
                "in mid-epoch save and load the state of each rank"
            )
        super()._load_own_state(state)

    def _average_in(self, state: Mapping[str, Any], i: Tensor, a: Tensor) -> None:
        """Add losses ``a`` of examples ``i`` to the moving averages in ``state``, in place."""
        state["_average"][i] = self.beta * state["_average"][i] + (1 - self.beta) * a
        state["_visits"][i] += 1

    def weights(self, indices: Tensor) -> Tensor:
        r"""Return the weights ``(B,)`` of the losses of examples of this epoch, on their device.

        Without ``reweight`` they are 1. With it, a weight is the number of epochs run since the
        example was last in one, $2^\delta$ if none was skipped, and 0 for examples not in this one.

        The bookkeeping over time is exact: once an example has been seen in epoch $e$, counted from
        0, its weights add up to $e+1$, as if it had come with weight 1 in every epoch. (An epoch
        cut short counts as run.) So its mean weight per epoch is 1 whenever it has been seen, and
        it tends to 1, for each example and over the data, if sleeps stay short compared with the
        run; for an example that never exceeds the threshold it varies between 1/2 and 1.

        A single epoch is not exact: unlike in InfoBatch's random pruning, the losses decide who
        sleeps. So its gradient is a biased estimate, and present gradients of an example stand in
        for those of the epochs it missed.

        Args:
            indices: Numbers of the examples, ``(B,)``, integers in [0, N).

        Raises:
            TypeError: If ``indices`` is not a tensor.
            ValueError: If the shape or type is wrong, or an index is out of range.
        """
        i = checked_indices(indices, self.num_examples)
        w = self._weights[i] if self.reweight else torch.ones_like(i)
        return w.to(indices.device, torch.get_default_dtype())

    def _choose(self) -> Tensor:
        """Judge the last epoch, set who is awake and the weights, and return them in random order.

        A last batch that is dropped leaves its examples out of the epoch: they get the weight 0.
        """
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
        self._weights = torch.zeros_like(self.waits)  # sleepers keep the weight 0
        self._weights[order] = self._unseen_for[order]
        self._unseen_for[order] = 0
        self._is_due = torch.zeros_like(self.active)
        self._is_due[order] = True
        return order

    def _judge(self) -> None:
        """Set levels and waits of the exponential kind after an epoch."""
        alpha = self.alpha
        threshold = snooze_threshold(alpha[self._visits > 0], self.rule, self.tau)
        is_low = alpha < threshold  # False for NaN: an example without a loss stays awake
        self.levels[self.active & ~is_low] = 0
        self.levels[self.active & is_low] += 1
        self.levels.clamp_(max=_TOP_LEVEL)
        self.waits[self.active] = 2 ** self.levels[self.active]
        self.waits -= 1

    def _drop_lowest(self, progress: float) -> None:
        """Set the waits of the linear kind; ``progress`` is the share of training that is done."""
        (p, p_end), (shortest, longest) = self.drop_fraction, self.delays
        dropped = int(self.num_examples * (p + progress * (p_end - p)))
        # An example at the end of its sleep, or without a loss, counts as highest.
        counts_as_highest = (self.waits == 1) | (self._visits == 0)
        keys = self.alpha.masked_fill(counts_as_highest, math.inf)
        shuffled = self._permutation(self.num_examples)  # so that ties are broken at random
        low, high = shuffled[keys[shuffled].argsort(stable=True)].tensor_split([dropped])
        # From 1 for the lowest down to 1 / dropped.
        height = torch.arange(dropped, 0, -1, dtype=torch.float64, device="cpu") / max(1, dropped)
        sleeps = (shortest + progress * (longest - shortest) * height).ceil().long()
        is_new = self.active[low]
        self.waits[self.waits > 1] -= 1
        self.waits[high] = 0
        self.waits[low[is_new]] = sleeps[is_new]

    def _let_time_pass(self) -> None:
        """Skip all epochs before enough examples are awake; the authors' code skips one by one."""
        enough = min(self.min_batches * self.batch_size * self.num_replicas, self.num_examples)
        skipped = int(self.waits.kthvalue(enough).values)
        self.skipped_epochs += skipped
        self.waits = (self.waits - skipped).clamp(min=0)
        self.active = self.waits == 0


class RandomSnoozeSampler(_SubsetSampler):
    """The control of ``SnoozeSampler``: as many examples in each epoch, but random ones.

    Args:
        num_examples: Number of examples, N.
        batch_size: Batch size of each rank, B.
        generator: Source of the subsets, all equally likely, and of their order.
        counts: Number of examples in each epoch, from 1 to N, usually
            ``SnoozeSampler.active_counts``; later epochs repeat the last number.
        drop_last: Leave out an incomplete last batch of each epoch.
        num_replicas: Number of processes that train together.
        rank: Number of this process.

    Raises:
        ValueError: If there are no counts, one is out of range, or one leaves a rank without an
            example in some batch.
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
            self._sizes_of(count)  # raises if a rank would get an empty batch
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
