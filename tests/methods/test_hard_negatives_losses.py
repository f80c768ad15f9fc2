"""Hinge losses of a matrix of scores against plain loops, by hand, and by their symmetries."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainaug.methods.hard_negatives import (
    CollapseMonitor,
    HingeCurriculum,
    MaxOfHinges,
    SumOfHinges,
    cosine_scores,
    group_mask,
    is_collapsed,
    order_scores,
)

LOSSES = [SumOfHinges, MaxOfHinges]
ROUNDING = {torch.float32: 2e-5, torch.float64: 1e-13}  # a few hundred terms of order one
HAND = torch.tensor([[0.9, 0.8], [0.1, 0.5]], dtype=torch.float64)


def loop(scores, by_row, by_column, margin, hardest):
    """Losses of the pairs and the gradient of their sum: queries, negatives, directions in turn."""
    S, size = scores.tolist(), len(scores)
    losses, gradient = [0.0] * size, [[0.0] * size for _ in range(size)]
    for query in range(size):
        for caption_is_query, excluded in ((False, by_row), (True, by_column)):
            violations = []
            for other in range(size):
                cell = (other, query) if caption_is_query else (query, other)
                if not excluded[cell]:
                    hinge = max(0.0, margin - S[query][query] + S[cell[0]][cell[1]])
                    violations.append((hinge, cell))
            if hardest:
                violations = [max(violations)] if violations else []
            for hinge, (a, b) in violations:
                losses[query] += hinge
                gradient[a][b] += hinge > 0
                gradient[query][query] -= hinge > 0
    tensors = (torch.tensor(values, dtype=scores.dtype) for values in (losses, gradient))
    return tuple(tensors)


def masks_of(kind, size):
    """Return one mask for all, or a different one for each direction, and both as a tuple."""
    diagonal = torch.eye(size, dtype=torch.bool)
    grouped = group_mask(torch.arange(size) // 3)
    draws = torch.rand(2, size, size, generator=torch.Generator().manual_seed(size)) < 0.4
    mixed = (draws[0] | diagonal, draws[1] | diagonal)
    given_mask = {"default": None, "diagonal": diagonal, "group": grouped, "two": mixed}[kind]
    both = given_mask if kind == "two" else (grouped if kind == "group" else diagonal,) * 2
    return given_mask, both


def with_gradient(call, *tensors):
    leaves = [t.clone().requires_grad_() for t in tensors]
    value = call(*leaves)
    return value.detach(), *torch.autograd.grad(value.sum(), leaves)


def copied(thing):
    return pickle.loads(pickle.dumps(thing))  # noqa: S301 - written the moment before


@pytest.mark.oracle("vse.1")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["default", "diagonal", "group", "two"])
@pytest.mark.parametrize("size", [1, 2, 3, 8, 17])
@pytest.mark.parametrize("loss", LOSSES)
def test_losses_and_gradients_match_the_loop(loss, size, kind, dtype, randn):
    scores = 0.3 * randn(size, size, size, dtype=dtype)
    mask, both = masks_of(kind, size)
    for margin in (0.0, 0.2, 1.5):
        expected, slope = loop(scores, *both, margin, hardest=loss is MaxOfHinges)
        got, gradient = with_gradient(lambda s, m=margin: loss(m, "none")(s, mask), scores)
        torch.testing.assert_close(got, expected, rtol=0, atol=ROUNDING[dtype])
        assert torch.equal(gradient, slope)  # counts of triplets
        for reduction, value in (("sum", expected.sum()), ("mean", expected.mean())):
            got = loss(margin, reduction)(scores, mask)
            torch.testing.assert_close(got, value, rtol=ROUNDING[dtype], atol=ROUNDING[dtype])
            assert got.dtype == dtype


@pytest.mark.oracle("vse.2")
@pytest.mark.parametrize("loss", LOSSES)
def test_hand_case(loss):
    value, gradient = with_gradient(loss(0.2, "none"), HAND)
    torch.testing.assert_close(value, value.new_tensor([0.1, 0.5]))  # row 0 and column 1
    assert gradient.tolist() == [[-1.0, 2.0], [0.0, -1.0]]
    assert loss()(HAND).item() == pytest.approx(0.6, abs=1e-15)
    assert loss()(HAND.float()).item() == pytest.approx(0.6, abs=1e-6)


@st.composite
def batches(draw, smallest=2):
    """Scores, groups and a margin in quarters: every sum is exact and ties are frequent."""
    size = draw(st.integers(smallest, 7))
    quarters = st.lists(st.integers(-4, 4), min_size=size * size, max_size=size * size)
    scores = torch.tensor(draw(quarters), dtype=torch.float64).reshape(size, size) / 4
    groups = torch.tensor(draw(st.lists(st.integers(0, 3), min_size=size, max_size=size)))
    return scores, groups, draw(st.integers(0, 3)) / 4, draw(st.permutations(range(size)))


@pytest.mark.oracle("vse.3")
@given(batches(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_maximum_and_sum_bound_each_other(batch, grouped):
    scores, groups, margin, _ = batch
    mask = group_mask(groups) if grouped else None
    most = int((~group_mask(groups)).sum(1).max()) if grouped else len(scores) - 1
    largest, total = (loss(margin, "none")(scores, mask) for loss in (MaxOfHinges, SumOfHinges))
    assert bool((largest >= 0).all())
    assert bool((largest <= total).all())
    assert bool((total <= max(most, 1) * largest).all())


@pytest.mark.oracle("vse.3")
@given(batches(), st.sampled_from(LOSSES), st.integers(-8, 8))
@settings(max_examples=150, deadline=None)
def test_order_direction_and_level_do_not_matter(batch, loss, level):
    scores, groups, margin, order = batch
    losses = loss(margin, "none")
    for ids in (groups, torch.arange(len(groups))):
        mask, expected = group_mask(ids), losses(scores, group_mask(ids))
        moved = losses(scores[order][:, order], group_mask(ids[order]))
        assert torch.equal(moved, expected[order])
        assert torch.equal(losses(scores.T, mask.T), expected)  # pictures and captions swapped
        assert torch.equal(losses(scores + level / 4, mask), expected)
        assert torch.equal(losses(scores, (mask, mask)), expected)


@pytest.mark.oracle("vse.7")
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_batches_of_one_and_two(loss, dtype, randn):
    one = randn(1, 1, 1, dtype=dtype)
    for reduction in ("sum", "mean", "none"):
        value, gradient = with_gradient(loss(0.2, reduction), one)  # fails without a graph
        assert value.flatten().tolist() == [0.0]
        assert gradient.tolist() == [[0.0]]
    two = with_gradient(loss(0.7, "none"), randn(2, 2, 2, dtype=dtype))
    other = with_gradient(SumOfHinges(0.7, "none"), randn(2, 2, 2, dtype=dtype))
    assert all(torch.equal(a, b) for a, b in zip(two, other, strict=True))


@pytest.mark.oracle("vse.6")
@pytest.mark.parametrize("loss", LOSSES)
def test_pairs_of_one_group_are_worth_nothing(loss, randn):
    everyone = group_mask(torch.full((5,), 7))
    for part in with_gradient(lambda s: loss(0.2, "none")(s, everyone), randn(3, 5, 5)):
        assert torch.equal(part, torch.zeros_like(part))


@pytest.mark.oracle("vse.12")
@given(batches(smallest=1))
@settings(max_examples=50, deadline=None)
def test_group_mask_is_an_equivalence(batch):
    _, groups, _, order = batch
    mask = group_mask(groups)
    expected = [[a == b for b in groups.tolist()] for a in groups.tolist()]
    assert mask.tolist() == expected
    assert bool(mask.diagonal().all())
    assert torch.equal(mask, mask.T)
    assert torch.equal(group_mask(groups[order]), mask[order][:, order])


@pytest.mark.oracle("vse.8")
@pytest.mark.parametrize("by_row", [True, False])
def test_of_equal_negatives_one_takes_the_gradient(by_row):
    scores = torch.eye(4, dtype=torch.float64)
    none = torch.ones(4, 4, dtype=torch.bool)
    one = torch.eye(4, dtype=torch.bool)
    mask = (one, none) if by_row else (none, one)
    _, gradient = with_gradient(lambda s: MaxOfHinges(1.5)(s, mask), scores)
    assert gradient.diagonal().tolist() == [-1.0] * 4
    off = (gradient - torch.diag(gradient.diagonal())).T if not by_row else gradient.clone()
    assert off.fill_diagonal_(0.0).sort(1).values.tolist() == [[0.0, 0.0, 0.0, 1.0]] * 4
    _, gradient = with_gradient(lambda s: SumOfHinges(1.5)(s, mask), scores)
    assert torch.equal(gradient, torch.where(one, -3.0, torch.ones(4, 4).double()))


@pytest.mark.oracle("vse.6")
@pytest.mark.parametrize("loss", LOSSES)
def test_two_captions_of_one_picture_exert_no_force(loss, randn):
    picture, captions = randn(5, 1, 6), randn(6, 2, 6)
    gap = float(cosine_scores(picture, captions).diff().abs())

    def siblings(margin, mask=None):
        return with_gradient(
            lambda x, y: loss(margin)(cosine_scores(x.expand(2, -1), y), mask), picture, captions
        )

    value, *slopes = siblings(1.01 * gap)
    assert value.item() == pytest.approx(4 * 1.01 * gap, rel=1e-12)
    assert max(float(slope.abs().max()) for slope in slopes) < 1e-12
    assert float(siblings(0.99 * gap)[1].abs().max()) > 0.1  # only one of the rows is active
    for part in siblings(1.0, group_mask(torch.zeros(2))):
        assert torch.equal(part, torch.zeros_like(part))


@pytest.mark.oracle("vse.6")
def test_maximum_feels_siblings_in_a_larger_batch():
    scores = torch.tensor([[0.5, 0.3, 0.4], [0.5, 0.3, 0.4], [0.45, 0.2, 0.6]])  # 0, 1: one picture
    _, paper = with_gradient(MaxOfHinges(0.25), scores)
    assert paper[:2].sum(0).tolist() == [0.0, -1.0, 2.0]  # caption 0 is not drawn to its picture
    assert paper[2].tolist() == [1.0, 0.0, -2.0]  # columns 0 and 1 do not see picture 2
    _, masked = with_gradient(
        lambda s: MaxOfHinges(0.25)(s, group_mask(torch.tensor([0, 0, 1]))), scores
    )
    assert masked[:2].sum(0).tolist() == [-2.0, -2.0, 3.0]
    assert masked[2].tolist() == [2.0, 1.0, -2.0]


@pytest.mark.oracle("vse.4")
@pytest.mark.parametrize("size", [2, 5, 128])
@pytest.mark.parametrize("loss", LOSSES)
def test_collapsed_embeddings_give_the_plateau_and_no_gradient(loss, size, randn):
    pairs = randn(1, 1, 6).expand(size, -1), 3 * randn(1, 1, 6).expand(size, -1)
    value, *slopes = with_gradient(lambda x, y: loss(0.2)(cosine_scores(x, y)), *pairs)
    plateau = 2 * size * 0.2 if loss is MaxOfHinges else 2 * size * (size - 1) * 0.2
    assert value.item() == pytest.approx(plateau, rel=1e-12)
    assert max(float(slope.abs().max()) for slope in slopes) < 1e-12


@pytest.mark.oracle("vse.11")
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("scored", [cosine_scores, order_scores])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_pass_gradcheck_away_from_kinks(loss, scored, grouped, randn):
    x, y = randn(8, 5, 3), randn(9, 5, 3)
    mask = group_mask(torch.tensor([0, 0, 1, 2, 3])) if grouped else None
    scores, off = scored(x, y), ~torch.eye(5, dtype=torch.bool)
    for s in (scores, scores.T):  # steps are 1e-6
        assert float((0.2 - s.diagonal() + s)[off].abs().min()) > 1e-3
        assert float(s.sort(0).values.diff(dim=0).min()) > 1e-3
    assert torch.autograd.gradcheck(
        lambda x, y: loss(0.2, "none")(scored(x, y), mask), (x.requires_grad_(), y.requires_grad_())
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_nan_is_passed_on_unless_masked(loss):
    scores = torch.eye(3).index_put((torch.tensor([1]), torch.tensor([2])), torch.tensor(math.nan))
    assert loss(0.2, "none")(scores).isnan().tolist() == [False, True, True]
    assert not loss()(scores, group_mask(torch.tensor([0, 1, 1]))).isnan()


KINDS = {
    "sum": SumOfHinges,
    "average": lambda *args: SumOfHinges(*args, average_negatives=True),
    "max": MaxOfHinges,
    "before": lambda *args: HingeCurriculum(1, *args),
    "after": lambda *args: HingeCurriculum(0, *args),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_shows_in_loss_and_gradient(kind, randn):
    loss = KINDS[kind](0.2)
    for bad in (math.nan, math.inf, -math.inf):
        for size, position in ((1, (0, 0)), (4, (2, 2)), (4, (1, 2))):
            scores = randn(1, size, size)
            scores[position] = bad
            if bad == -math.inf and position == (1, 2):  # as good as masked
                masked = torch.eye(4, dtype=torch.bool)
                masked[position] = True
                assert torch.equal(loss(scores), loss(scores, masked)) or kind == "average"
                continue
            value, gradient = with_gradient(loss, scores)
            assert not value.isfinite()
            assert not gradient.isfinite().all()


# --- embeddings in place of scores


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_give_the_loss_of_their_cosine_scores(kind, randn):
    loss, pair = KINDS[kind](0.2, "none"), (randn(1, 7, 7), randn(2, 7, 7))  # as square as scores
    mask = group_mask(torch.arange(7) // 2)
    for given_mask in (None, mask, (mask, mask.T)):
        expected = with_gradient(lambda x, y, m=given_mask: loss(cosine_scores(x, y), m), *pair)
        for call in (
            lambda x, y, m=given_mask: loss(x, y, m),
            lambda x, y, m=given_mask: loss(x, captions=y, positive_mask=m),
        ):
            torch.testing.assert_close(with_gradient(call, *pair), expected)
    scores = cosine_scores(*pair)
    assert torch.equal(loss(scores, mask), loss(scores, positive_mask=mask))
    half = [x.half() for x in pair]
    # each score of the second is rounded to half precision
    torch.testing.assert_close(loss(*half), loss(cosine_scores(*half)), atol=4e-3, rtol=0)
    eye = torch.eye(7)  # no mask among embeddings of 0 and 1
    assert torch.equal(loss(eye, eye), loss(cosine_scores(eye, eye)))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_neither_scores_nor_embeddings_is_refused(kind, randn):
    loss, x, mask = KINDS[kind](), randn(1, 5, 3), torch.eye(5, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"loss\(images, captions\)"):
        loss(x)
    for other in (x[:4], x[:, :2], x[0]):
        with pytest.raises(ValueError, match=r"need embeddings \(B, D\) twice, got \(5, 3\) and"):
            loss(x, other)
    with pytest.raises(ValueError, match="two masks"):
        loss(x @ x.T, mask, mask)
    with pytest.raises(ValueError, match=r"boolean \(5, 5\), got torch.float64 of 0 and 1"):
        loss(x @ x.T, mask.double())
    with pytest.raises(ValueError, match=r"boolean \(5, 5\).*got torch.int64"):
        loss(x @ x.T, mask.long())


# --- half precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_half_scores_are_added_up_in_single(kind, dtype, randn):
    scores = randn(2, 400, 400).to(dtype)  # the sum is about 200,000, above float16's largest
    mask = group_mask(torch.arange(400) // 2)
    for reduction in ("sum", "mean", "none"):
        loss = KINDS[kind](0.2, reduction)
        value, gradient = with_gradient(lambda s, f=loss: f(s, mask), scores)
        expected, slope = with_gradient(lambda s, f=loss: f(s, mask), scores.double())
        assert (value.dtype, gradient.dtype) == (torch.float32, dtype)
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)
        # half a unit in the last place of a half-precision number
        torch.testing.assert_close(gradient.double(), slope, rtol=torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("normalised_in", ["single", "half"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("spread", [0.0, 0.003, 0.02])
def test_collapse_is_seen_through_rounding(spread, dtype, normalised_in, randn):
    normalise = torch.nn.functional.normalize
    for seed, dim in enumerate((64, 256, 1024)):
        pair = randn(7, dim).float() + spread * randn(seed, 2, 64, dim).float()
        assert is_collapsed(cosine_scores(*pair))
        scores = cosine_scores(*pair.to(dtype))
        if normalised_in == "half":
            x, y = normalise(pair.to(dtype), dim=2)
            scores = x @ y.T
        assert is_collapsed(scores)
        assert is_collapsed(scores.float())  # what was rounded stays rounded


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_spread_scores_are_not_collapsed_in_half(dtype, randn):
    base, ids = randn(7, 64).float(), torch.eye(64)
    for spread in (0.3, 1.0):
        pair = base + spread * randn(8, 2, 64, 64).float()
        assert not is_collapsed(cosine_scores(*pair))
        assert not is_collapsed(cosine_scores(*pair.to(dtype)))
    for level in (0.0, 0.7, 30.0):  # true pairs lead by the margin: the loss is 0
        assert not is_collapsed((level + 0.5 * ids).to(dtype))
    monitor = CollapseMonitor(patience=1)
    monitor.load_state_dict(copy.deepcopy(monitor).state_dict())
    assert not copied(monitor).update(ids.to(dtype))


# --- torch.func, torch.compile, copies


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_function_transforms_give_the_same_numbers(kind, masked, randn):
    loss, scores = KINDS[kind](0.2), randn(3, 2, 5, 5)
    groups = torch.tensor([[0, 0, 1, 2, 3], [0, 1, 2, 3, 1]])

    def call(s, g):
        return loss(s, group_mask(g) if masked else None)

    expected = [
        with_gradient(lambda s, g=g: call(s, g), s) for s, g in zip(scores, groups, strict=True)
    ]
    values, slopes = (torch.stack(parts) for parts in zip(*expected, strict=True))
    assert torch.equal(torch.vmap(call)(scores, groups), values)
    assert torch.equal(torch.vmap(torch.func.grad(call))(scores, groups), slopes)
    tangent = randn(4, 5, 5)
    _, slope = torch.func.jvp(lambda s: call(s, groups[0]), (scores[0],), (tangent,))
    torch.testing.assert_close(slope, (slopes[0] * tangent).sum())
    assert not torch.func.hessian(call)(scores[0], groups[0]).any()  # linear between the kinks


@pytest.mark.parametrize("kind", ["sum", "max"])
def test_compiled_losses_are_whole_graphs(kind, randn):
    loss, scores = KINDS[kind](0.2, "none"), randn(5, 5, 5)
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    mask = group_mask(torch.tensor([0, 0, 1, 2, 3]))
    for given_mask in (None, (mask, mask.T)):
        got = with_gradient(lambda s, m=given_mask: compiled(s, m), scores)
        expected = with_gradient(lambda s, m=given_mask: loss(s, m), scores)
        assert all(map(torch.equal, got, expected))
    assert loss(scores.to("meta"), mask.to("meta")).is_meta


def test_a_compiled_curriculum_is_compiled_once_a_phase(randn):
    curriculum, counts = HingeCurriculum(15), []

    def count(graph, _):
        counts.append(1)
        return graph.forward

    compiled = torch.compile(curriculum, fullgraph=True, backend=count)
    for _ in range(30):
        assert torch.equal(compiled(HAND), curriculum(HAND))
        curriculum.step()
    assert len(counts) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_copies_of_losses_are_the_same_losses(kind, randn):
    loss, scores = KINDS[kind](0.3, "mean"), randn(6, 5, 5)
    for twin in (copy.deepcopy(loss), copied(loss)):
        assert torch.equal(twin(scores), loss(scores))
        assert repr(twin) == repr(loss)


def test_layouts_do_not_matter(randn):
    scores = randn(6, 5, 5).float()
    for kind in KINDS.values():
        expected = with_gradient(kind(0.3, "none"), scores.clone())
        for layout in (scores.T.contiguous().T, torch.stack([scores, scores], 2)[..., 0]):
            assert not layout.is_contiguous()
            assert all(map(torch.equal, with_gradient(kind(0.3, "none"), layout), expected))


def test_bad_input_is_refused():
    for loss in (*KINDS.values(),):
        for kind in (torch.int64, torch.bool, torch.complex64):
            with pytest.raises(ValueError, match=f"scores must be floating, got {kind}"):
                loss()(torch.eye(3).to(kind))
        with pytest.raises(ValueError, match="boolean tensor, got list"):
            loss()(HAND, [[True, False], [False, True]])
        with pytest.raises(ValueError, match=r"on cpu, got .* on meta"):
            loss()(HAND, torch.eye(2, dtype=torch.bool, device="meta"))
        with pytest.raises(ValueError, match="one mask or two, got 3"):
            loss()(HAND, (torch.eye(2, dtype=torch.bool),) * 3)
    for kind in (torch.float16, torch.bfloat16, torch.complex64):  # 2049 would be 2048
        with pytest.raises(ValueError, match=f"integer type, got {kind}"):
            group_mask(torch.arange(3).to(kind))
    with pytest.raises(ValueError, match=r"groups must be finite.*nan"):
        group_mask(torch.tensor([0.0, math.nan]))
    with pytest.raises(ValueError, match="meta device have no values"):
        is_collapsed(torch.zeros(2, 2, device="meta"))
    with pytest.raises(ValueError, match=r"warmup_steps.*nan"):
        HingeCurriculum(math.nan)
    for loss in (*LOSSES, lambda *args: HingeCurriculum(1, *args)):
        for margin in (-0.1, math.inf, math.nan):
            with pytest.raises(ValueError, match=f"margin.*{margin}"):
                loss(margin)
        with pytest.raises(ValueError, match=r"reduction.*'total'"):
            loss(0.2, "total")
        for scores in (torch.zeros(2, 3), torch.zeros(4), torch.tensor(1.0), torch.zeros(0, 0)):
            with pytest.raises(ValueError, match=r"scores must have shape \(B, B\)"):
                loss()(scores)
        eye = torch.eye(2, dtype=torch.bool)
        for mask in (eye.float(), torch.eye(3, dtype=torch.bool), (eye, eye.long())):
            with pytest.raises(ValueError, match=r"boolean \(2, 2\)"):
                loss()(HAND, mask)
        for mask in (~eye, (eye, ~eye)):
            with pytest.raises(ValueError, match="must hold the diagonal"):
                loss()(HAND, mask)
    with pytest.raises(ValueError, match=r"groups must have shape \(B,\), got \(2, 1\)"):
        group_mask(torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"warmup_steps.*-1"):
        HingeCurriculum(-1)


# --- devices


def everything(scores):
    groups = torch.tensor([0, 0, 1, 2, 3], device=scores.device)
    mask = group_mask(groups)
    result = [loss(0.2, "none")(scores, m) for loss in LOSSES for m in (None, mask, (mask, mask))]
    result += [SumOfHinges(average_negatives=True)(scores), HingeCurriculum(1)(scores), mask]
    return result


def test_inside_a_meta_context_values_are_the_same(same_inside_meta, randn):
    same_inside_meta(everything, randn(10, 5, 5))


@pytest.mark.gpu
def test_on_cuda_values_are_the_same(same_on_cuda, randn):
    same_on_cuda(everything, randn(10, 5, 5))
