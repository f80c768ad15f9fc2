"""Samplers that models and orders drive, in loops of others: workers, resuming, ranks, copies."""

from __future__ import annotations

import copy
import io
import pickle
from datetime import timedelta
from functools import partial
from itertools import chain

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils.data import BatchSampler, DataLoader

from trainaug.data.indexed import IndexedDataset
from trainaug.methods.autoassist import AssistedSampler
from trainaug.methods.autoassist.loop import Maker
from trainaug.methods.ordering import (
    GraBSampler,
    PacedSampler,
    PerfectOrderingSampler,
    SampleLossSampler,
    linear_pacing,
)
from trainaug.training.loop import train
from trainaug.training.networks import MLP
from trainaug.training.randomness import RandomBatchSampler, stream

N = 26
DATA = IndexedDataset(torch.randn(N, 3, generator=stream(0, "x")), torch.arange(N) % 3)
HARD = torch.rand(N, generator=stream(0, "hard"))


def first_number(x, y, mask):
    return (4 * x[:, 0, 0]).round()  # with ties


def number_of(indices, shift=0.0):
    return (3 * DATA.x[indices, 1] + shift).round()


def hardness(index):
    return HARD[index]


def ordered(size, seed, scorer=first_number, **options):
    return PerfectOrderingSampler(
        DATA,
        size,
        scorer=scorer,
        num_candidates=3,
        generator=stream(seed, "order"),
        candidate_generator=stream(seed, "candidates"),
        **options,
    )


def by_loss(size, seed, losses_of=number_of, **options):
    g = stream(seed, "order")
    return SampleLossSampler(
        DATA, size, losses_of=losses_of, refresh_every=2, generator=g, **options
    )


def paced(size, seed, **options):
    pacing, g = partial(linear_pacing, a=0.5, b=0.7), stream(seed, "order")
    return PacedSampler(DATA.x[:, 2], size, g, pacing=pacing, num_steps=12, **options)


def assisted(size, seed, predict=hardness, base=0.6, **options):
    g, k = stream(seed, "order"), stream(seed, "keep")
    return AssistedSampler(N, size, predict, g, k, base=base, **options)


MAKE = {
    "partition": ordered,
    "resampled": partial(ordered, candidates="resampled"),
    "sample_loss": by_loss,
    "paced": paced,
    "assisted": assisted,
}
EVERY = pytest.mark.parametrize("name", MAKE)


def make(name, seed=0, size=4, **options):
    return MAKE[name](size, seed, **options)


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)


def written(state):
    """A state in plain values, to compare."""
    if isinstance(state, torch.Tensor):
        return state.tolist()
    if isinstance(state, dict):
        return {name: written(value) for name, value in state.items()}
    return [written(value) for value in state] if isinstance(state, list | tuple) else state


def pickled(sampler):
    return pickle.loads(pickle.dumps(sampler))  # noqa: S301


def loader(sampler, workers, persistent=False, **options):
    if workers:
        options |= {"persistent_workers": persistent, "multiprocessing_context": "fork"}
    batches = options.pop("batches", {"sampler": sampler, "batch_size": None})
    generator = torch.Generator()  # of the workers' seeds
    return DataLoader(DATA, num_workers=workers, generator=generator, **batches, **options)


def indices_of(batches):
    return [batch[2].tolist() for batch in batches]


# --- workers and resuming


@EVERY
@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
def test_a_resumed_run_goes_on_as_if_uninterrupted(name, workers, persistent):
    whole = make(name)
    expected = [list(whole) for _ in range(4)]
    sampler, plain = make(name), make(name)
    source = loader(sampler, workers, persistent)
    assert indices_of(source) == expected[0]
    batches = iter(source)
    first = [next(batches)[2].tolist() for _ in range(3)]
    state = sampler.state_dict()
    del batches, source
    kept = written(state)
    list(sampler)
    resumed = make(name, seed=9)
    resumed.load_state_dict(through_a_file(state))
    assert first + list(resumed) == expected[1]
    assert [list(resumed) for _ in range(2)] == expected[2:]
    assert written(state) == kept  # training left it alone
    list(plain)
    at_the_end = make(name, seed=9)
    at_the_end.load_state_dict(through_a_file(plain.state_dict()))
    assert list(at_the_end) == expected[1]


@EVERY
def test_before_the_first_epoch_and_after_a_break_states_resume(name):
    expected = list(make(name))
    resumed = make(name, seed=9)
    resumed.load_state_dict(through_a_file(make(name).state_dict()))
    first = next(iter(resumed))
    again = make(name, seed=8)
    again.load_state_dict(through_a_file(resumed.state_dict()))
    assert [first, *again] == expected


@EVERY
def test_a_state_of_other_sizes_is_refused_and_changes_nothing(name):
    sampler = make(name)
    next(iter(sampler))
    before = written(sampler.state_dict())
    for other in (make(name, size=3), make(name, num_replicas=2)):
        with pytest.raises(ValueError, match=r"state of (batch_size=3|num_replicas=2), need"):
            sampler.load_state_dict(other.state_dict())
    assert written(sampler.state_dict()) == before


@EVERY
@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_copy_goes_its_own_way(name, copied):
    sampler = make(name)
    batches = iter(loader(sampler, 0))
    next(batches)
    twin, other = copied(sampler), copied(sampler)
    assert written(twin.state_dict()) == written(sampler.state_dict())
    resumed = make(name, seed=9)
    resumed.load_state_dict(sampler.state_dict())
    assert indices_of(batches) == list(resumed)
    assert list(twin) == list(other)  # the next epoch, as nothing was loaded


def test_what_was_decided_and_not_trained_on_comes_again_whatever_is_known_now():
    known = HARD.clone()
    sampler = assisted(3, 0, lambda index: known[index], base=0.0)
    batches = iter(loader(sampler, 2))
    trained = [next(batches)[2].tolist() for _ in range(2)]
    state, kept = sampler.state_dict(), sampler.kept
    known[:] = 0.0
    del batches
    resumed = assisted(3, 9, lambda index: known[index], base=0.0)
    resumed.load_state_dict(state)
    assert len(list(chain(*trained, *resumed))) == kept == resumed.kept


# --- epochs and lengths


@EVERY
def test_the_length_is_that_of_the_iteration_or_refused(name):
    sampler = make(name)
    for _ in range(2):
        if name == "assisted":
            for sized in (sampler, loader(sampler, 0)):
                with pytest.raises(TypeError, match="not known before it; max_batches"):
                    len(sized)
            assert len(list(sampler)) <= sampler.max_batches == 7
        else:
            assert len(list(sampler)) == len(sampler) == len(loader(sampler, 0))


@EVERY
def test_set_epoch_enters_any_epoch_or_refuses(name):
    whole = make(name)
    expected = []
    for epoch in range(3):
        whole.set_epoch(epoch)
        expected.append(list(whole))
    sampler = make(name)
    list(sampler)
    for epoch in (2, 0, 0, 1):
        if name == "assisted":
            if epoch != sampler.epoch + 1:
                with pytest.raises(RuntimeError, match=f"epoch {epoch} cannot .* load the state"):
                    sampler.set_epoch(epoch)
        else:
            sampler.set_epoch(epoch)
            resumed = make(name, seed=9)
            resumed.load_state_dict(sampler.state_dict())
            assert list(resumed) == list(sampler) == expected[epoch]
    with pytest.raises(ValueError, match="at least 0, got -1"):
        sampler.set_epoch(-1)


def test_once_numbered_epochs_go_on_by_number():
    sampler, by_hand = make("partition"), make("partition")
    sampler.set_epoch(0)
    actual = [list(sampler) for _ in range(3)]
    state = through_a_file(sampler.state_dict())
    for epoch in range(3):
        by_hand.set_epoch(epoch)
        assert list(by_hand) == actual[epoch]
    resumed = make("partition", seed=9)
    resumed.load_state_dict(state)
    by_hand.set_epoch(3)
    assert list(resumed) == list(by_hand)


# --- ranks


@EVERY
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_share_the_global_batches(name, ranks, size):
    samplers = [make(name, size=size, num_replicas=ranks, rank=rank) for rank in range(ranks)]
    alone = make(name, size=size * ranks)
    for _ in range(3):
        shares = [list(sampler) for sampler in samplers]
        together = [list(chain(*parts)) for parts in zip(*shares, strict=True)]
        assert all(1 <= len(batch) <= size for share in shares for batch in share)
        for parts in zip(*shares, strict=True):
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
        if name == "paced":
            assert len(together) == 12
            assert all(len(set(batch)) == len(batch) for batch in together)
        else:
            flat = list(chain(*together))
            assert len(set(flat)) == len(flat)
            assert sorted(flat) == sorted(chain(*alone))
    restored = make(name, seed=9, size=size, num_replicas=ranks, rank=1)
    restored.load_state_dict(samplers[0].state_dict())  # any rank's state is good for all
    assert list(restored) == list(samplers[1])


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("drop_last", [False, True])
def test_with_base_one_ranks_have_the_shares_of_the_plain_sampler(ranks, drop_last):
    for size in (2, 3, 5):
        options = {"num_replicas": ranks, "rank": 1, "drop_last": drop_last}
        plain = RandomBatchSampler(N, size, stream(0, "order"), **options)
        sampler = assisted(size, 0, base=1.0, **options)
        for _ in range(2):
            assert list(sampler) == list(plain)


@pytest.mark.parametrize("kept", range(2, 13))
def test_no_rank_is_left_without_a_batch_at_the_end_of_a_pass(kept):
    passing = torch.zeros(N)
    passing[torch.randperm(N, generator=stream(kept, "kept"))[:kept]] = 1.0
    for size in (1, 2):
        options = {"base": 0.0, "num_replicas": 2}
        shares = [
            list(assisted(size, 0, passing.__getitem__, rank=rank, **options)) for rank in (0, 1)
        ]
        assert len(shares[0]) == len(shares[1])
        actual = list(chain(*shares[0], *shares[1]))
        assert len(set(actual)) == len(actual) == (kept if size == 2 else kept - kept % 2)
        assert all(shares[0] + shares[1])


def test_ranks_that_cannot_share_are_refused():
    for name in ("partition", "resampled", "sample_loss", "assisted"):
        with pytest.raises(ValueError, match="27"):
            make(name, num_replicas=27)
    with pytest.raises(ValueError, match=r"first pool, 0.7 of 26, is below 20"):
        make("paced", num_replicas=5)
    with pytest.raises(ValueError, match="26 units cannot be shared by 3 ranks"):
        GraBSampler(26, 2, generator=stream(0, "order"), num_replicas=3)
    with pytest.raises(ValueError, match=r"max_scans must be at least .* num_replicas=2, got 7"):
        make("assisted", num_replicas=2, max_scans=7)
    with pytest.raises(ValueError, match="cannot ask the Assistants of other ranks"):
        Maker(lambda attempt: (make("assisted", num_replicas=2), object()), (), 0, (N, 4), {})
    for build in (*(partial(make, name) for name in MAKE), grab):
        with pytest.raises(ValueError, match="rank=2, num_replicas=2"):
            build(num_replicas=2, rank=2)


def _rank(rank, file, results):
    """Two processes whose scores, losses and Assistants differ."""
    timeout = timedelta(seconds=60)
    store = f"file://{file}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timeout)
    sign, shift = (1, 0.0) if rank == 0 else (-1, 0.4)
    state = {
        "partition": {"scorer": lambda *batch: sign * first_number(*batch)},
        "resampled": {"scorer": lambda *batch: sign * first_number(*batch)},
        "sample_loss": {"losses_of": lambda indices: number_of(indices, shift)},
        "assisted": {"predict": lambda index: HARD[index] * rank, "confidence": lambda: rank / 2},
    }
    results[rank] = {
        name: [list(make(name, num_replicas=2, rank=rank, **options)) for _ in range(2)]
        for name, options in state.items()
    }
    dist.destroy_process_group()


def test_processes_that_know_different_things_choose_alike(tmp_path):
    results = mp.get_context("fork").Manager().dict()
    processes = mp.start_processes(
        _rank, (tmp_path / "store", results), nprocs=2, start_method="fork", join=False
    )
    assert processes is not None
    while not processes.join():
        pass
    means = {"predict": lambda index: HARD[index] / 2, "base": 0.8}
    for name in results[0]:
        options = means if name == "assisted" else {}
        expected = [list(make(name, num_replicas=2, rank=rank, **options)) for rank in range(2)]
        assert [results[rank][name][0] for rank in range(2)] == expected


# --- GraB, whose state is what was recorded


def vectors(epoch):
    return torch.randn(8, 3, generator=stream(epoch, "gradients"))


def grab(seed=0, **options):
    return GraBSampler(8, 3, generator=stream(seed, "order"), **options)


def visits(batches, sampler, epoch):
    actual = []
    for batch in batches:
        for unit in batch:
            actual.append(int(unit))
            sampler.update(int(unit), vectors(epoch)[unit])
    return actual


@pytest.mark.parametrize("workers", [0, 2])
def test_grab_in_loaders_of_batches(workers):
    """All units of an epoch are fetched ahead."""
    units = torch.arange(8)

    def batches(sampler):
        context = "fork" if workers else None
        options = {"num_workers": workers, "multiprocessing_context": context}
        batch_sampler = BatchSampler(sampler, 2, False)
        return DataLoader(
            units, batch_sampler=batch_sampler, generator=torch.Generator(), **options
        )

    whole, sampler = grab(), grab()
    expected = [visits([[u] for u in whole], whole, epoch) for epoch in range(3)]
    assert visits(batches(sampler), sampler, 0) == expected[0]
    flow = iter(batches(sampler))
    first = visits([next(flow)], sampler, 1)
    state = through_a_file(sampler.state_dict())
    del flow
    for again in (sampler, grab(9)):
        again.load_state_dict(state)
        again.set_epoch(1)
        assert first + visits(batches(again), again, 1) == expected[1]
        again.set_epoch(2)
        assert visits(batches(again), again, 2) == expected[2]
    flow = iter(batches(sampler))
    next(flow)
    del flow  # left early: not all were visited
    list(sampler)
    with pytest.raises(RuntimeError, match=r"8 of 8 units of the last epoch were .* not recorded"):
        next(iter(sampler))
    with pytest.raises(RuntimeError, match=r"epoch 4 cannot .* 0 of 8 gradients of epoch 3"):
        sampler.set_epoch(4)


def test_grab_on_ranks_needs_the_gradients_of_all():
    samplers, whole = [grab(num_replicas=2, rank=rank) for rank in (0, 1)], grab()
    for epoch in range(3):
        order = list(whole.order)
        visits([order], whole, epoch)
        assert [len(sampler) for sampler in samplers] == [4, 4]
        shares = [list(sampler) for sampler in samplers]
        assert [unit for pair in zip(*shares, strict=True) for unit in pair] == order
        for sampler in samplers:
            visits([order], sampler, epoch)
    samplers[0].update(whole.order[0], torch.ones(3))
    with pytest.raises(RuntimeError, match="1 units are recorded, which is no multiple of 2"):
        next(iter(samplers[0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_grab_sums_half_precision_in_single(dtype):
    low, single = grab(), grab()
    for epoch in range(3):
        gradients = (300 * vectors(epoch)).to(dtype)  # sums of squares overflow float16
        for unit in list(low):
            low.update(unit, gradients[unit])
            single.update(unit, gradients[unit].float())
        assert low.order == single.order


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_grab_refuses_gradients_that_are_not_finite_and_goes_on(bad):
    sampler, whole = grab(), grab()
    for position, unit in enumerate(list(sampler)):
        if position in (0, 3):
            before = written(sampler.state_dict())
            with pytest.raises(
                ValueError, match=f"gradient of unit {unit} must be finite, .*{bad}"
            ):
                sampler.update(unit, torch.tensor([0.0, bad, 1.0]))
            assert written(sampler.state_dict()) == before
        for each in (sampler, whole):
            each.update(unit, vectors(0)[unit])
    assert sampler.order == whole.order
    sampler = grab()
    sampler.update(sampler.order[0], torch.tensor([3e38, 3e38, 0.0]))
    with pytest.raises(ValueError, match="the sums overflow with the gradient of unit"):
        sampler.update(sampler.order[1], torch.tensor([3e38, -3e38, 0.0]))


def test_grab_copies_and_refuses_states_of_other_sizes():
    sampler = grab()
    flow = iter(DataLoader(torch.arange(8), sampler=sampler, generator=torch.Generator()))
    visits([next(flow)], sampler, 0)
    for twin in (copy.deepcopy(sampler), pickled(sampler)):
        assert written(twin.state_dict()) == written(sampler.state_dict())
        assert list(twin) == sampler.order[1:]
    other = GraBSampler(8, 2, generator=stream(0, "order"))
    with pytest.raises(ValueError, match="8 units with gradients of 3, need 8 and 2"):
        other.load_state_dict(sampler.state_dict())


# --- training


@EVERY
def test_the_training_loop_takes_them(name):
    expected, seen = list(make(name)), []
    model = MLP(3, 4, 3, stream(0, "init"))
    criterion = torch.nn.CrossEntropyLoss(reduction="none")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    if name in ("partition", "resampled", "sample_loss"):
        numbered = make(name)
        numbered.set_epoch(0)
        expected = list(numbered)
    train(
        model,
        DATA,
        make(name),
        criterion,
        optimizer,
        num_epochs=1,
        feedback=lambda index, losses: seen.append(index.tolist()),
    )
    assert seen == expected
