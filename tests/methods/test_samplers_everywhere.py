"""What every sampler promises in loops of others: workers, resuming, ranks, lengths, copies."""

from __future__ import annotations

import copy
import io
import pickle
from datetime import timedelta
from itertools import chain

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils.data import DataLoader

from trainaug.data.indexed import IndexedDataset
from trainaug.methods.gradient_clustering import (
    RandomSnoozeSampler,
    SnoozeSampler,
    StratifiedSampler,
)
from trainaug.methods.hard_negatives import DistinctGroupBatchSampler
from trainaug.training.loop import train
from trainaug.training.networks import MLP
from trainaug.training.randomness import RandomBatchSampler, stream

N = 26
GROUPS = torch.arange(N) // 2
CLUSTERS = torch.tensor([0] * 15 + [1] * 8 + [2] * 2 + [3])
DATA = IndexedDataset(torch.randn(N, 3, generator=stream(0, "x")), torch.arange(N) % 3)


def strata(size, generator, **ranks):
    sampler = StratifiedSampler(N, size, generator, **ranks)
    sampler.set_clusters(CLUSTERS)
    return sampler


MAKE = {
    "random": lambda size, g, **ranks: RandomBatchSampler(N, size, g, **ranks),
    "groups": lambda size, g, **ranks: DistinctGroupBatchSampler(GROUPS, size, g, **ranks),
    "reshuffled": lambda size, g, **ranks: StratifiedSampler(N, size, g, **ranks),
    "strata": strata,
    "snooze": lambda size, g, **ranks: SnoozeSampler(N, size, g, tau=0.8, reweight=True, **ranks),
    "linear": lambda size, g, **ranks: SnoozeSampler(
        N, size, g, kind="linear", num_epochs=5, delays=(1, 3), **ranks
    ),
    "control": lambda size, g, **ranks: RandomSnoozeSampler(
        N, size, g, counts=[26, 12, 17], **ranks
    ),
}
LEARNING = ("snooze", "linear")  # the epochs depend on losses
EVERY = pytest.mark.parametrize("name", MAKE)


def make(name, seed=0, size=4, **ranks):
    return MAKE[name](size, stream(seed, "order"), **ranks)


def feed(sampler, batch, epoch):
    """Give the losses of a batch of this epoch, to a sampler that wants them."""
    if hasattr(sampler, "update"):
        index = torch.tensor(batch)
        sampler.update(index, ((index + 1) * (epoch + 2.3)).sin() + 1)


def epoch_of(sampler, batches=None, stop=None):
    """Train on an epoch, or its first batches; return them."""
    actual = []
    for batch in sampler if batches is None else batches:
        actual.append(batch[2].tolist() if torch.is_tensor(batch[-1]) else batch)
        feed(sampler, actual[-1], sampler.epoch)
        if len(actual) == stop:
            break
    return actual


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)


def through_pickle(sampler):
    return pickle.loads(pickle.dumps(sampler))  # noqa: S301


def is_same(a, b):
    """Whether two states are equal, tensors to the bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(is_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(is_same, a, b))
    return a == b


def loader(sampler, workers, persistent=False, **options):
    if workers:
        options |= {"persistent_workers": persistent, "multiprocessing_context": "fork"}
    batches = options.pop("batches", {"sampler": sampler, "batch_size": None})
    generator = torch.Generator()  # of the workers' seeds
    return DataLoader(DATA, num_workers=workers, generator=generator, **batches, **options)


# --- workers and resuming


@EVERY
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_goes_on_as_if_uninterrupted(name, workers):
    whole = make(name)
    expected = [epoch_of(whole) for _ in range(4)]
    for stop in (2, len(expected[1])):  # inside an epoch, and at the end of one
        sampler = make(name)
        epoch_of(sampler)
        batches = iter(loader(sampler, workers))
        first = epoch_of(sampler, batches, stop)
        state = sampler.state_dict()
        del batches
        kept = through_a_file(state)
        for _ in range(2):
            epoch_of(sampler)
        resumed = make(name, seed=9)
        resumed.load_state_dict(through_a_file(state))
        if stop == 2:
            assert len(resumed) == len(expected[1])
            first += epoch_of(resumed, loader(resumed, workers))
        assert first == expected[1]
        assert [epoch_of(resumed) for _ in range(2)] == expected[2:]
        assert is_same(state, kept)  # training left it alone


@pytest.mark.parametrize("name", ["random", "snooze", "control"])
def test_persistent_workers_lose_nothing_and_lengths_are_true(name):
    whole, sampler = make(name), make(name)
    expected = [epoch_of(whole) for _ in range(4)]
    batches = loader(sampler, 2, persistent=True)
    for epoch in range(2):
        assert len(batches) == len(expected[epoch])
        assert epoch_of(sampler, batches) == expected[epoch]
    assert len(batches) == len(expected[2])
    assert epoch_of(sampler, batches, 2) == expected[2][:2]
    resumed = make(name, seed=9)
    resumed.load_state_dict(sampler.state_dict())
    assert [epoch_of(resumed), epoch_of(resumed)] == [expected[2][2:], expected[3]]


def test_the_states_of_a_loader_without_order_lose_nothing():
    sampler = make("random")
    batches = iter(loader(sampler, 2, in_order=False))
    trained = epoch_of(sampler, batches, 3)
    state = sampler.state_dict()
    del batches
    sampler.load_state_dict(state)
    assert sorted(chain(*trained, *sampler)) == list(range(N))


@EVERY
def test_before_the_first_epoch_and_after_a_break_states_resume(name):
    whole = make(name)
    expected = [epoch_of(whole) for _ in range(2)]
    resumed = make(name, seed=9)
    resumed.load_state_dict(through_a_file(make(name).state_dict()))
    assert epoch_of(resumed, stop=2) == expected[0][:2]
    again = make(name, seed=8)
    again.load_state_dict(through_a_file(resumed.state_dict()))
    assert [epoch_of(again), epoch_of(again)] == [expected[0][2:], expected[1]]


@EVERY
def test_batches_fetched_ahead_by_the_loop_count_as_untrained(name):
    sampler = make(name)
    expected = list(make(name))
    batches = loader(sampler, 0, batches={"batch_sampler": sampler})
    assert epoch_of(sampler, iter(batches), 3) == expected[:3]
    resumed = make(name, seed=9)
    resumed.load_state_dict(sampler.state_dict(untrained=2))
    assert epoch_of(resumed) == expected[1:]
    with pytest.raises(ValueError, match="untrained must be from 0 to 3, got 4"):
        sampler.state_dict(untrained=4)


@EVERY
def test_a_state_of_other_sizes_is_refused_and_changes_nothing(name):
    sampler = make(name)
    epoch_of(sampler, stop=2)
    before = sampler.state_dict()
    for other in (make(name, size=3), make(name, num_replicas=2)):
        with pytest.raises(ValueError, match=r"state of (batch_size=3|num_replicas=2), need"):
            sampler.load_state_dict(other.state_dict())
    assert is_same(sampler.state_dict(), before)


def test_a_state_of_other_groups_is_refused():
    other = DistinctGroupBatchSampler(GROUPS.flip(0) // 2, 4, stream(0, "order"))
    with pytest.raises(ValueError, match="other groups"):
        make("groups").load_state_dict(other.state_dict())


@EVERY
@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle])
def test_a_copy_goes_its_own_way(name, copied):
    sampler = make(name)
    batches = iter(loader(sampler, 0))
    feed(sampler, next(batches)[2].tolist(), 0)
    twin = copied(sampler)
    assert is_same(twin.state_dict(), sampler.state_dict())
    del batches
    assert [epoch_of(sampler) for _ in range(2)] == [epoch_of(twin) for _ in range(2)]


@EVERY
def test_two_iterations_at_once_are_refused(name):
    sampler = make(name)
    first = iter(sampler)
    feed(sampler, next(first), 0)
    next(iter(sampler))
    with pytest.raises(RuntimeError, match="another epoch was begun"):
        next(first)


def test_clusters_do_not_change_under_batches_that_workers_hold():
    sampler = make("strata")
    batches = loader(sampler, 2)
    for number, _ in enumerate(batches):
        if number == 0:
            with pytest.raises(RuntimeError, match="of the old clusters"):
                sampler.set_clusters(CLUSTERS)
    sampler.set_clusters(GROUPS)
    assert sampler.num_clusters == 13


# --- epochs and lengths


@EVERY
def test_the_length_is_that_of_the_iteration_at_any_time(name):
    sampler = make(name)
    for _ in range(5):
        length, actual = len(sampler), []
        for batch in sampler:
            assert len(sampler) == length
            feed(sampler, batch, sampler.epoch)
            actual.append(batch)
        assert len(actual) == length


def test_a_loss_that_comes_late_still_counts_in_the_length_and_the_epoch():
    lengths = []
    for is_late in (False, True):
        sampler = make("snooze")
        held = [batch for batch in sampler if is_late or feed(sampler, batch, 0)]
        if is_late:
            for batch in held[:-1]:
                feed(sampler, batch, 0)
            len(sampler)
            feed(sampler, held[-1], 0)
        lengths += [len(sampler), epoch_of(sampler)]
    assert lengths[:2] == lengths[2:]
    assert len(lengths[1]) == lengths[0] < 7


@EVERY
def test_set_epoch_enters_any_epoch_as_a_whole_run_would(name):
    whole = make(name)
    expected = [epoch_of(whole) for _ in range(4)]
    sampler = make(name)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        actual = []
        for batch in sampler:
            sampler.set_epoch(epoch)  # the present one goes on
            feed(sampler, batch, epoch)
            actual.append(batch)
        assert actual == expected[epoch]
    for epoch in (3, 0, 0):
        if name in LEARNING:
            with pytest.raises(RuntimeError, match=f"epoch {epoch} cannot be entered"):
                sampler.set_epoch(epoch)
        else:
            sampler.set_epoch(epoch)
            assert len(sampler) == len(expected[epoch])
            resumed = make(name, seed=9)
            resumed.load_state_dict(sampler.state_dict())
            assert list(resumed) == list(sampler) == expected[epoch]
    with pytest.raises(ValueError, match="at least 0, got -1"):
        sampler.set_epoch(-1)


@EVERY
def test_set_epoch_after_loading_finishes_the_epoch_or_leaves_it(name):
    sampler = make(name)
    expected = epoch_of(sampler, stop=2)
    state = sampler.state_dict()
    sampler.load_state_dict(state)
    sampler.set_epoch(0)
    expected += epoch_of(sampler)
    assert expected == epoch_of(make(name))
    sampler.load_state_dict(state)
    sampler.set_epoch(1)
    assert len(epoch_of(sampler)) == len(expected) or name in (*LEARNING, "control")
    assert sampler.epoch == 1
    end = sampler.state_dict()
    sampler.load_state_dict(end)
    sampler.set_epoch(1)  # nothing is left of it
    assert epoch_of(sampler) == []


def test_clusters_that_came_later_cannot_be_drawn_again():
    sampler = make("reshuffled")
    list(sampler)
    sampler.set_clusters(CLUSTERS)
    list(sampler)
    with pytest.raises(RuntimeError, match="epoch 0 cannot be entered"):
        sampler.set_epoch(0)


@EVERY
def test_training_goes_on_with_the_epochs_after_those_before(name):
    whole, sampler = make(name), make(name)
    expected = [epoch_of(whole) for _ in range(3)]
    model, seen = MLP(3, 4, 3, stream(0, "init")), []

    def remember(index, losses):
        seen.append(index.tolist())
        feed(sampler, seen[-1], sampler.epoch)

    def run(**options):
        criterion = torch.nn.CrossEntropyLoss(reduction="none")
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        train(model, DATA, sampler, criterion, optimizer, feedback=remember, **options)

    run(num_epochs=1)
    run(max_steps=1)
    state = sampler.state_dict()
    sampler = make(name, seed=9)
    sampler.load_state_dict(state)
    run(num_epochs=2)
    if name not in LEARNING:
        seen.extend([[], []])
        run(num_epochs=1, first_epoch=0)
        assert seen[seen.index([]) + 2 :] == expected[0]
        del seen[seen.index([]) :]
    assert seen == list(chain(*expected))


# --- ranks


@EVERY
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_the_global_batches_of_one_process(name, ranks):
    samplers = [make(name, num_replicas=ranks, rank=rank) for rank in range(ranks)]
    alone = make(name, size=4 * ranks)
    for epoch in range(4):
        lengths = {len(sampler) for sampler in samplers}
        shares = [list(sampler) for sampler in samplers]
        together = [list(chain(*parts)) for parts in zip(*shares, strict=True)]
        assert lengths == {len(together)}
        assert all(1 <= len(batch) <= 4 for share in shares for batch in share)
        for parts in zip(*shares, strict=True):
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
        expected = list(alone)
        assert sorted(chain(*together)) == sorted(chain(*expected))
        for batch in together:
            assert name != "groups" or len(set(GROUPS[batch].tolist())) == len(batch)
        if name != "strata":
            assert len(set(chain(*together))) == sum(map(len, together))
        for batch in expected:
            feed(alone, batch, epoch)
        for sampler in samplers:
            for batch in together:
                feed(sampler, batch, epoch)
            if hasattr(sampler, "weights"):
                index = torch.arange(N)
                assert torch.equal(sampler.weights(index), alone.weights(index))
    restored = make(name, seed=9, num_replicas=ranks, rank=1)
    restored.load_state_dict(samplers[0].state_dict())  # any rank's state is good for all
    assert list(restored) == list(samplers[1])


@pytest.mark.parametrize("name", LEARNING)
def test_losses_of_other_ranks_that_have_not_come_are_refused(name):
    sampler = make(name, num_replicas=2, rank=1)
    first = next(iter(sampler))
    feed(sampler, first, 0)
    with pytest.raises(ValueError, match="state of rank 1, with losses that rank 0"):
        make(name, num_replicas=2, rank=0).load_state_dict(sampler.state_dict())
    make(name, num_replicas=2, rank=1).load_state_dict(sampler.state_dict())
    with pytest.raises(RuntimeError, match="losses of 4 examples of other ranks have not come"):
        len(sampler)


@EVERY
def test_ranks_out_of_range_and_without_examples_are_refused(name):
    for rank in (-1, 2):
        with pytest.raises(ValueError, match=f"rank={rank}, num_replicas=2"):
            make(name, num_replicas=2, rank=rank)
    with pytest.raises(ValueError, match=r"27 ranks|a group has 2 items"):
        make(name, num_replicas=27, rank=0)


def test_ranks_that_cannot_share_every_epoch_evenly_are_refused():
    with pytest.raises(ValueError, match="batch_size 1 on several ranks needs drop_last"):
        make("snooze", size=1, num_replicas=2)
    with pytest.raises(ValueError, match="13 examples cannot give each of 2 ranks"):
        RandomSnoozeSampler(N, 1, stream(0, "order"), counts=[26, 13], num_replicas=2)
    with pytest.raises(ValueError, match="5 items in 3 batches do not give each of 2 ranks"):
        DistinctGroupBatchSampler(torch.arange(5), 1, stream(0, "order"), num_replicas=2)


def _rank(rank, file, results):
    timeout = timedelta(seconds=60)
    store = f"file://{file}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timeout)
    actual = {}
    for name in LEARNING:
        sampler = make(name, num_replicas=2, rank=rank)
        actual[name] = [(len(sampler), epoch_of(sampler)) for _ in range(4)]
    sampler = make("strata", num_replicas=2, rank=rank)
    sampler.set_clusters(CLUSTERS if rank == 0 else GROUPS)
    actual["strata"] = [(len(sampler), epoch_of(sampler)) for _ in range(2)]
    results[rank] = actual
    dist.destroy_process_group()


def test_processes_that_train_on_their_shares_know_what_all_know(tmp_path):
    results = mp.get_context("fork").Manager().dict()
    processes = mp.start_processes(
        _rank, (tmp_path / "store", results), nprocs=2, start_method="fork", join=False
    )
    assert processes is not None
    while not processes.join():
        pass
    for name in (*LEARNING, "strata"):
        alone = make(name, size=8)
        for first, second in zip(results[0][name], results[1][name], strict=True):
            expected = epoch_of(alone)
            assert first[0] == second[0] == len(first[1]) == len(second[1])
            together = sorted(chain(*first[1], *second[1]))
            assert together == sorted(chain(*expected))
    assert min(len(batches) for _, batches in results[0]["snooze"]) < 4


# --- what comes from outside


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
@pytest.mark.parametrize("name", ["strata", *LEARNING])
def test_indices_of_any_integer_type_mean_the_same(name, dtype):
    samplers = make(name), make(name)
    for sampler, kind in zip(samplers, (torch.int64, dtype), strict=True):
        for batch in sampler:
            index = torch.tensor(batch, dtype=kind)
            if name in LEARNING:
                sampler.update(index, index.bfloat16() / 8)
        index = torch.arange(N, dtype=kind)
        assert torch.equal(sampler.weights(index), samplers[0].weights(torch.arange(N)))
    assert list(samplers[0]) == list(samplers[1])
    for wrong in (torch.tensor([0, -1]), torch.tensor([N])):
        with pytest.raises(ValueError, match="index must be from 0 to 25, got"):
            samplers[0].weights(wrong)


def test_labels_of_groups_and_clusters_are_of_any_integer_type_and_no_other():
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        sampler = DistinctGroupBatchSampler(GROUPS.to(dtype), 4, stream(0, "order"))
        assert list(sampler) == list(make("groups"))
        clustered = StratifiedSampler(N, 4, stream(0, "order"))
        clustered.set_clusters(CLUSTERS.to(dtype))
        assert list(clustered) == list(make("strata"))
    with pytest.raises(ValueError, match=r"integer type, got torch\.float32"):
        DistinctGroupBatchSampler(GROUPS.float(), 4, stream(0, "order"))


def test_a_data_set_takes_indices_of_any_integer_type():
    data = IndexedDataset(torch.arange(200.0), torch.arange(200))
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        index = torch.tensor([3, 100] if dtype == torch.uint8 else [-1, 100], dtype=dtype)
        expected = [3, 100] if dtype == torch.uint8 else [199, 100]
        assert [part.tolist() for part in data[index]] == [expected] * 3
