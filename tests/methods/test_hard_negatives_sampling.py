"""What is drawn or remembered: batches, subsets of negatives, the curriculum, the monitor."""

from __future__ import annotations

import io
import math
import warnings
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from trainaug.methods.hard_negatives import (
    CollapseMonitor,
    DistinctGroupBatchSampler,
    HingeCurriculum,
    MaxOfHinges,
    SumOfHinges,
    cosine_scores,
    group_mask,
    is_collapsed,
    subsample_negatives,
)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def through_a_file(state):
    """Save and load, with nothing but tensors and plain values."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# --- batches of distinct groups


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.integers(1, 12), st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_batches_hold_every_item_once_and_no_group_twice(groups, batch_size, seed):
    num_batches = math.ceil(len(groups) / batch_size)
    most = max(Counter(groups).values())
    if most > num_batches:
        with pytest.raises(ValueError, match=f"{most} items.*{num_batches} batches.*{batch_size}"):
            DistinctGroupBatchSampler(torch.tensor(groups), batch_size, seeded(seed))
        return
    sampler = DistinctGroupBatchSampler(torch.tensor(groups), batch_size, seeded(seed))
    for _ in range(3):
        batches = list(sampler)
        assert len(batches) == len(sampler) == num_batches
        assert sorted(item for batch in batches for item in batch) == list(range(len(groups)))
        sizes = {len(batch) for batch in batches}
        assert max(sizes) <= batch_size
        assert max(sizes) - min(sizes) <= 1
        for batch in batches:
            assert len({groups[item] for item in batch}) == len(batch)


GROUPS = torch.tensor([5, 5, 2, 2, 2, 9, 9, 1, 3, 3, 7, 8, 8])


@pytest.mark.oracle("vse.15")
def test_the_seed_alone_decides_the_batches_and_the_losses(randn):
    scores = cosine_scores(randn(1, 13, 4), randn(2, 13, 4))

    def run(seed, epochs=4):
        sampler = DistinctGroupBatchSampler(GROUPS, 4, seeded(seed))
        batches = [batch for _ in range(epochs) for batch in sampler]
        return batches, [MaxOfHinges()(scores[b][:, b]).item() for b in batches]

    assert run(3) == run(3)
    assert run(3)[0] != run(4)[0]
    batches = run(3)[0]
    assert len({str(batches[start : start + 4]) for start in range(0, 16, 4)}) == 4  # epochs differ
    for batch in batches:  # nothing is left for the group mask to hide
        assert torch.equal(group_mask(GROUPS[batch]), torch.eye(len(batch), dtype=torch.bool))


@pytest.mark.oracle("vse.15")
@pytest.mark.parametrize("done", range(10))
def test_sampler_resumes_in_the_middle_of_an_epoch(done):
    straight = DistinctGroupBatchSampler(GROUPS, 4, seeded(3))
    expected = [batch for _ in range(4) for batch in straight]

    def batches(sampler):
        while True:
            yield from sampler

    sampler = DistinctGroupBatchSampler(GROUPS, 4, seeded(3))
    stream = batches(sampler)
    first = [next(stream) for _ in range(done)]
    state = through_a_file(sampler.state_dict())
    next(stream)  # the state is a copy: going on does not change it
    resumed = DistinctGroupBatchSampler(GROUPS, 4, seeded(99))
    resumed.load_state_dict(state)
    again = DistinctGroupBatchSampler(GROUPS, 4, seeded(98))
    again.load_state_dict(through_a_file(resumed.state_dict()))
    for other in (resumed, again):
        stream = batches(other)
        assert first + [next(stream) for _ in range(16 - done)] == expected


def test_an_abandoned_epoch_is_not_finished_unless_loaded():
    sampler = DistinctGroupBatchSampler(GROUPS, 4, seeded(3))
    next(iter(sampler))
    assert sorted(item for batch in sampler for item in batch) == list(range(13))


def test_batches_mix_all_groups_evenly():
    sampler = DistinctGroupBatchSampler(torch.arange(12) // 2, 6, seeded(0))
    together = torch.zeros(12, 12)
    for _ in range(600):
        for batch in sampler:
            together[torch.tensor(batch).unsqueeze(1), torch.tensor(batch)] += 1
    other = ~group_mask(torch.arange(12) // 2)
    # one of the two batches; five standard deviations of a share of 1200 draws, 600 independent
    assert float((together[other] / 600 - 0.5).abs().max()) < 5 * 0.5 / math.sqrt(600)
    assert set(together[~other].tolist()) == {0.0, 600.0}


def test_sampler_feeds_a_loader():
    sampler = DistinctGroupBatchSampler(GROUPS, 4, seeded(3))
    loader = DataLoader(range(13), batch_sampler=sampler, generator=seeded(0))
    batches = [batch.tolist() for batch in loader]
    assert batches == list(DistinctGroupBatchSampler(GROUPS, 4, seeded(3)))


def test_sampler_refuses_bad_input():
    for groups, size in ((GROUPS[:0], 4), (GROUPS[None], 4), (GROUPS, 0), (GROUPS, -1)):
        with pytest.raises(ValueError, match=f"need groups.*batch_size={size}"):
            DistinctGroupBatchSampler(groups, size, seeded(0))


# --- subsets of negatives


@st.composite
def positives(draw):
    size = draw(st.integers(1, 8))
    cells = draw(st.lists(st.booleans(), min_size=size * size, max_size=size * size))
    return torch.tensor(cells).reshape(size, size) | torch.eye(size, dtype=torch.bool)


@given(positives(), st.integers(1, 9), st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_each_query_keeps_exactly_so_many_of_its_negatives(mask, number, seed):
    before = mask.clone()
    by_row, by_column = subsample_negatives(mask, number, generator=seeded(seed))
    assert torch.equal(mask, before)
    for drawn, dim in ((by_row, 1), (by_column, 0)):
        assert drawn.dtype == torch.bool
        assert bool((drawn | ~mask).all())  # what was no negative stays none
        assert torch.equal((~drawn).sum(dim), (~mask).sum(dim).clamp(max=number))
    again = subsample_negatives(mask, number, generator=seeded(seed))
    assert torch.equal(by_row, again[0])
    assert torch.equal(by_column, again[1])


def test_subsets_are_uniform_and_fresh_for_each_query_and_direction(randn):
    mask, g = group_mask(torch.tensor([0, 0, 1, 2, 3, 4])), seeded(0)
    kept = torch.zeros(2, 6, 6)
    same = 0
    for _ in range(800):
        by_row, by_column = subsample_negatives(mask, 2, generator=g)
        kept += ~torch.stack([by_row, by_column])
        same += int(torch.equal(by_row, by_column)) + int(torch.equal(by_row, by_column.T))
    share = torch.where(mask, 0.0, 2 / (~mask).sum(1, keepdim=True))
    assert float((kept[0] / 800 - share).abs().max()) < 5 * 0.5 / math.sqrt(800)
    assert float((kept[1] / 800 - share.T).abs().max()) < 5 * 0.5 / math.sqrt(800)
    assert same < 8
    scores = randn(1, 6, 6)
    pair = subsample_negatives(mask, 5, generator=g)  # none has more
    for loss in (SumOfHinges(), MaxOfHinges()):
        assert torch.equal(loss(scores, pair), loss(scores, mask))
        assert loss(scores, subsample_negatives(mask, 1, generator=g)) <= loss(scores, mask)
    one = subsample_negatives(mask, 1, generator=g)
    assert torch.equal(SumOfHinges()(scores, one), MaxOfHinges()(scores, one))


def test_subsampling_refuses_bad_input():
    eye = torch.eye(3, dtype=torch.bool)
    with pytest.raises(ValueError, match="num_negatives must be at least 1, got 0"):
        subsample_negatives(eye, 0, generator=seeded(0))
    for bad in (eye.float(), eye[:2], eye[0]):
        with pytest.raises(ValueError, match="a mask must be boolean"):
            subsample_negatives(bad, 1, generator=seeded(0))
    with pytest.raises(ValueError, match="diagonal"):
        subsample_negatives(~eye, 1, generator=seeded(0))


# --- averages and the curriculum


def test_average_negatives_divides_by_their_number(randn):
    scores = randn(7, 9, 9)
    mask = group_mask(torch.tensor([0, 0, 0, 1, 1, 2, 3, 4, 5]))
    many, none = torch.eye(9, dtype=torch.bool), torch.ones(9, 9, dtype=torch.bool)
    by_row = SumOfHinges(0.2, "none")(scores, (mask, none)) / torch.tensor(
        [6, 6, 6, 7, 7, *[8] * 4]
    )
    by_column = SumOfHinges(0.2, "none")(scores, (none, many)) / 8
    got = SumOfHinges(0.2, "none", average_negatives=True)(scores, (mask, many))
    torch.testing.assert_close(got, by_row + by_column, rtol=1e-13, atol=0)
    flat = SumOfHinges(0.2, average_negatives=True)(torch.zeros(9, 9))
    assert flat.item() == pytest.approx(2 * 9 * 0.2, rel=1e-6)  # as the maximum's plateau
    assert SumOfHinges(average_negatives=True)(scores, none).item() == 0.0


def test_curriculum_switches_once_and_resumes(randn):
    scores = randn(2, 6, 6)
    total, largest = SumOfHinges(0.3, average_negatives=True)(scores), MaxOfHinges(0.3)(scores)
    for warmup in (0, 1, 3):
        curriculum, seen, switches = None, [], []
        for _ in range(5):  # each update in a new process
            resumed = HingeCurriculum(warmup, 0.3, average_negatives=True)
            if curriculum is not None:
                resumed.load_state_dict(through_a_file(curriculum.state_dict()))
            curriculum = resumed
            seen.append(curriculum(scores).item())
            switches.append(curriculum.step())
        assert seen == [total.item()] * warmup + [largest.item()] * (5 - warmup)
        assert switches == [step + 1 == warmup for step in range(5)]
    mask = group_mask(torch.arange(6) // 2)
    for steps, loss in ((1, SumOfHinges), (0, MaxOfHinges)):
        got = HingeCurriculum(steps, 0.3, "none")(scores, mask)
        assert torch.equal(got, loss(0.3, "none")(scores, mask))


# --- the monitor


@pytest.mark.oracle("vse.4")
def test_collapse_is_a_loss_at_the_plateau_and_equal_scores(randn):
    flat, eye = torch.full((6, 6), 0.7), torch.eye(6)
    assert is_collapsed(flat)
    assert is_collapsed(flat.double(), margin=1.0)
    for shift in (-1, 1):  # a pair's loss is 2 (margin - lead), within 1 % of 2 margin
        assert is_collapsed(flat + shift * 0.0019 * eye)
        assert not is_collapsed(flat + shift * 0.0021 * eye)
        assert is_collapsed(flat + shift * 0.0021 * eye, margin=0.3)
    noise = randn(1, 6, 6).float() * (1 - eye)
    off = noise[~eye.bool()].std()
    assert is_collapsed(flat + 0.0005 / off * noise)
    twins = torch.block_diag(flat[:2, :2], flat[:2, :2])  # at the plateau, yet with two clusters
    assert MaxOfHinges(0.2, "mean")(twins).item() == pytest.approx(0.4, rel=1e-6)
    assert not is_collapsed(twins)
    same = randn(2, 1, 4).expand(5, -1)
    assert is_collapsed(cosine_scores(same, same))
    assert not is_collapsed(flat[:1, :1])
    assert not is_collapsed(cosine_scores(randn(3, 5, 4), randn(4, 5, 4)))


def test_monitor_warns_once_and_resumes():
    flat, good = torch.zeros(4, 4), torch.eye(4)
    monitor, actual = CollapseMonitor(patience=3), []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for scores in [flat, flat, good, *[flat] * 5, good, *[flat] * 3]:
            resumed = CollapseMonitor(patience=3)
            resumed.load_state_dict(through_a_file(monitor.state_dict()))
            monitor = resumed
            actual.append(monitor.update(scores))
            assert len(caught) == (True in actual)
    assert actual == [*[False] * 5, *[True] * 3, *[False] * 3, True]
    assert "coincided for 3 batches" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert monitor.state_dict() == {"streak": 3, "warned": True}


def test_monitor_refuses_bad_input():
    for margin, patience in ((0.0, 5), (-1.0, 5), (math.inf, 5), (math.nan, 5), (0.2, 0)):
        with pytest.raises(ValueError, match=f"got {margin} and {patience}"):
            CollapseMonitor(margin, patience)
    with pytest.raises(ValueError, match="margin must be positive, got 0"):
        is_collapsed(torch.zeros(2, 2), 0)
    with pytest.raises(ValueError, match="scores must have shape"):
        CollapseMonitor().update(torch.zeros(2, 3))
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match=f"scores must be finite.*{bad}"):
            CollapseMonitor().update(torch.full((2, 2), bad))


# --- devices


def everything(groups):
    """Draw on the CPU, wherever the groups live."""
    batches = list(DistinctGroupBatchSampler(groups, 4, seeded(3)))
    mask = group_mask(groups)
    flat = torch.zeros(4, 4, device=groups.device)
    monitor = CollapseMonitor(patience=2)
    streak = [monitor.update(flat), monitor.streak, is_collapsed(flat)]
    return [batches, streak, *subsample_negatives(mask, 3, generator=seeded(1))]


def test_inside_a_meta_context_values_are_the_same(same_inside_meta):
    same_inside_meta(everything, GROUPS)


@pytest.mark.gpu
def test_on_cuda_values_are_the_same(same_on_cuda):
    same_on_cuda(everything, GROUPS)
