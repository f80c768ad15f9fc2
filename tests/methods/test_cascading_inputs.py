"""What mixers take: kinds of numbers, layouts and batches, states, gradients, refusals."""

from __future__ import annotations

import collections
import io
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_cascading_mixing import KINDS, MODES, add_up, mixer

from trainaug.methods.cascading_sum import CascadeSchedule, sum_mix
from trainaug.training.randomness import stream

Y = torch.tensor([0, 2, 1, 1, 0, 2])
EYE = torch.eye(3)[Y]
PAIRS = torch.tensor([[0, 1, 2], [3, 4, 5]])

# --- numbers


@pytest.mark.oracle("csa.Q15")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_integer_inputs_are_refused_not_truncated(kind, dtype):
    x = torch.ones(6, 2).to(dtype)
    with pytest.raises(ValueError, match=rf"convert pixels first.*{dtype}"):
        mixer(kind=kind, alpha=1.0)(x, Y)
    with pytest.raises(ValueError, match=rf"inputs must be floating.*{dtype}"):
        sum_mix(x, EYE, PAIRS)
    for weights in (None, torch.tensor([0.3, 0.7])):
        with pytest.raises(ValueError, match=rf"labels.*floating.*{dtype}"):
            sum_mix(torch.ones(6, 2), EYE.to(dtype), PAIRS, weights)


@pytest.mark.oracle("csa.Q15")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_summed_in_single(dtype, randn):
    big = torch.tensor([2048.0, 1, 1, 1], dtype=dtype).view(4, 1)
    fine, _ = sum_mix(big, torch.eye(4), torch.arange(4).view(4, 1))
    assert fine.dtype == dtype
    assert torch.equal(fine, torch.tensor([[512.75]]).to(dtype))  # parts of 1/4 vanish in half
    for k in range(2, 17):  # 1/K itself must not be rounded to half
        alike, _ = sum_mix(torch.ones(k, 3, dtype=dtype), torch.eye(k), torch.arange(k).view(k, 1))
        assert torch.equal(alike, torch.ones(1, 3, dtype=dtype))
    x = randn(0, 40, 50).to(dtype)
    groups = torch.arange(40).view(5, 8)
    weights = torch.tensor([0.1, 0.15, 0.2, 0.25, 0.3])
    for w in (None, weights):
        mixed, _ = sum_mix(x, torch.eye(40), groups, w)
        plain = [[0.2] * 8] * 5 if w is None else w.double().unsqueeze(1).expand(5, 8)
        expected = add_up(x, groups.tolist(), plain)
        # half a unit in the last place, and single precision before that
        bound = torch.finfo(dtype).eps / 2 * expected.abs() + 1e-6
        assert bool(((mixed.double() - expected).abs() <= bound).all())
    pixels = [mixer(3, kind="pixel", alpha=1.0)(v, Y)[0] for v in (x[:6], x[:6].double())]
    assert pixels[0].dtype == dtype
    bound = torch.finfo(dtype).eps / 2 * pixels[1].abs() + 1e-6
    assert bool(((pixels[0].double() - pixels[1]).abs() <= bound).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_half_batches_are_those_of_single_rounded_once(kind, dtype, randn):
    x, soft = randn(0, 6, 5).to(dtype), randn(1, 6, 3).softmax(1).to(dtype)
    for options in ({"alpha": 0.4}, {"alpha": 0.4, "rescale": True, "mean": x.mean(0)}):
        if kind == "pixel" and "rescale" in options:
            continue
        got = mixer(3, kind=kind, **options)(x, soft)
        wide = mixer(3, kind=kind, **options)(x.float(), soft.float())
        for half, single in zip(got, wide, strict=True):
            assert half.dtype == dtype
            # a unit in the last place, and what rescaling makes of it
            torch.testing.assert_close(
                half.float(), single, rtol=0, atol=8 * torch.finfo(dtype).eps
            )
        with torch.autocast("cpu", torch.bfloat16):
            assert all(map(torch.equal, mixer(3, kind=kind, **options)(x, soft), got))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_weights_stay_single_where_the_default_type_is_half(dtype, randn):
    schedule, x = CascadeSchedule([(3, 0.5), (1, 0.5)], 8, mode="smooth"), randn(0, 6, 2).float()
    expected = schedule.weights(1), mixer(3, alpha=0.4)(x, Y)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        got = schedule.weights(1), mixer(3, alpha=0.4)(x, Y)
        mixer().set_weights(got[0])
    finally:
        torch.set_default_dtype(default)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1][0], expected[1][0])
    assert got[1][1].dtype == dtype


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_goes_on_to_its_mixes_alone(kind):
    for bad in (math.nan, math.inf):
        x = torch.zeros(6, 2)
        x[4] = bad
        mixed, _ = mixer(3, kind=kind, alpha=1.0)(x, Y)
        assert mixed.isfinite().all(1).sum() == 1


@pytest.mark.oracle("csa.Q15")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_layouts_do_not_matter_and_nothing_is_changed_in_place(kind, mode, randn):
    x = randn(0, 6, 3, 4, 5, dtype=torch.float32)
    wide = torch.stack([x, x], -1)
    apart = wide[..., 0]
    assert not apart.is_contiguous()
    layouts = [x, x.to(memory_format=torch.channels_last), apart, x.flip(0).flip(0)]
    options = {"kind": kind, "mode": mode, "alpha": 1.0, "rescale": kind != "pixel"}
    expected = mixer(3, **options)(x, Y)
    soft = EYE.clone()
    for layout in layouts:
        kept = layout.clone(), Y.clone(), soft.clone()
        for labels in (Y, soft):
            mixed, actual = mixer(3, **options)(layout, labels)
            # without fused products where rows are strided
            torch.testing.assert_close(mixed, expected[0], rtol=0, atol=1e-6)
            assert torch.equal(actual, expected[1])
            assert mixed.untyped_storage().data_ptr() != layout.untyped_storage().data_ptr()
        assert all(map(torch.equal, (layout, Y, soft), kept))


@pytest.mark.oracle("csa.Q15")
def test_labels_are_class_numbers_or_soft(randn):
    x, expected = randn(0, 6, 2), mixer()(randn(0, 6, 2), Y)[1]
    for dtype in (torch.int64, torch.int32, torch.int16, torch.uint8):
        assert torch.equal(mixer()(x, Y.to(dtype))[1], expected)
    for dtype in (torch.float32, torch.float64, torch.float16):
        actual = mixer()(x, EYE.to(dtype))[1]  # multiples of 1/2 are exact
        assert actual.dtype == dtype
        assert torch.equal(actual.float(), expected)
    smooth = 0.9 * EYE.double() + 0.1 / 3
    _, once = mixer(alpha=1.0)(x, smooth)
    _, hard = mixer(alpha=1.0)(x, Y)
    torch.testing.assert_close(once, 0.9 * hard.double() + 0.1 / 3, rtol=0, atol=1e-7)


# --- batches


def test_batches_keep_their_structure(randn):
    x, index = randn(0, 6, 2), torch.arange(6)
    mixed, labels = mixer()(x, Y)
    actual = mixer()((x, Y, index, "epoch 3", torch.tensor(7.0)))
    assert isinstance(actual, tuple)
    assert torch.equal(actual[0], mixed)
    assert torch.equal(actual[1], labels)
    assert actual[3:] == ("epoch 3", torch.tensor(7.0))
    listed = mixer()([x, Y])  # as default_collate gives it
    assert isinstance(listed, list)
    assert torch.equal(listed[1], labels)
    for key in ("labels", "label", "targets", "target", "y"):
        batch = mixer()({"image": x, key: Y, "index": index, "size": 6})
        assert list(batch) == ["image", key, "index", "size"]
        assert torch.equal(batch["image"], mixed)
        assert torch.equal(batch[key], labels)
        assert torch.equal(batch["index"], actual[2])
        assert batch["size"] == 6
    names = [f"picture {i}" for i in range(6)]
    for held in (names, tuple(names)):
        assert mixer()((x, Y, index, held))[3] == type(held)(names[i] for i in actual[2])
    assert mixer()((x, Y, (6, 2)))[2] == (6, 2)
    batch = collections.namedtuple("Batch", "x y index")(x, Y, index)
    again = mixer()(batch)
    assert type(again) is type(batch)
    assert torch.equal(again.index, actual[2])
    mix = mixer(labels_getter=lambda batch: batch[0])
    actual = mix(Y, x)
    assert torch.equal(actual[0], labels)
    assert torch.equal(actual[1], mixed)


def test_state_is_k_weights_and_the_generator(randn):
    x = randn(0, 6, 2)
    mix = mixer(3, alpha=1.0)
    mix(x, Y)
    mix.num_groups = 2
    stream_of_bytes = io.BytesIO()
    torch.save(mix.state_dict(), stream_of_bytes)
    stream_of_bytes.seek(0)
    other = mixer(6, seed=9, alpha=1.0)
    other.load_state_dict(torch.load(stream_of_bytes, weights_only=True))
    for _ in range(3):
        assert all(map(torch.equal, other(x, Y), mix(x, Y)))
    mix.set_weights(torch.tensor([0.5, 0.3, 0.2]))
    other.load_state_dict(mix.state_dict())
    assert other.num_groups == 3
    assert all(map(torch.equal, other(x, Y), mix(x, Y)))


# --- gradients


@pytest.mark.parametrize("own_weights", [False, True])
def test_gradients_of_the_sum_match_finite_differences(own_weights, randn):
    groups = torch.tensor([[0, 1], [1, 3], [1, 2]])
    weights = randn(2, *((3, 2) if own_weights else (3,))).softmax(0).requires_grad_()
    x, labels = randn(0, 4, 2, 2).requires_grad_(), randn(1, 4, 3).requires_grad_()
    call = lambda x, labels, w: sum_mix(x, labels, groups, w)  # noqa: E731
    assert torch.autograd.gradcheck(call, (x, labels, weights))
    assert torch.autograd.gradcheck(lambda x: sum_mix(x, labels.detach(), groups)[0], x)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_samples_of_a_mix_alone(kind, randn):
    x = randn(0, 7, 4).requires_grad_()
    mixed, _, first = mixer(3, kind=kind, alpha=2.0)(x, torch.arange(7) % 3, torch.arange(7))
    assert not first.requires_grad
    mixed[0].sum().backward()
    reached = x.grad.sum(1)
    assert int((reached != 0).sum()) == 3
    assert reached[first[0]] != 0
    assert float(reached.sum()) == pytest.approx(4, rel=1e-6)  # weights of a pixel add up to 1


# --- refusals


@pytest.mark.oracle("csa.Q16")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.0}, "alpha.*0.0"),
        ({"alpha": -1.0}, "alpha.*-1.0"),
        ({"alpha": 1e-3}, "alpha.*0.001"),  # the law would be lost to underflow
        ({"mean": math.nan}, "mean must be finite"),
        ({"mean": torch.tensor([0.0, math.inf])}, "mean must be finite.*inf"),
        ({"alpha": math.nan}, "alpha.*nan"),
        ({"alpha": math.inf}, "alpha.*inf"),
        ({"mode": "pairs"}, "mode.*'pairs'"),
        ({"remainder": "pad"}, "remainder.*'pad'"),
        ({"classes": 0}, "num_classes.*0"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        mixer(2, **options)


@pytest.mark.oracle("csa.Q16")
@pytest.mark.parametrize("k", [0, -2, 2.0, 2.5, True, math.nan])
def test_impossible_numbers_of_samples_are_named(k):
    for kind in KINDS:
        with pytest.raises(ValueError, match=f"num_groups must be a whole number.*got {k}"):
            mixer(k, kind=kind)
        mix = mixer(3, kind=kind)
        with pytest.raises(ValueError, match=f"num_groups must be a whole number.*got {k}"):
            mix.num_groups = k
        assert mix.num_groups == 3


@pytest.mark.oracle("csa.Q16")
@pytest.mark.parametrize("kind", KINDS)
def test_batches_that_give_no_mix_are_named(kind):
    refused = [
        (0, {"mode": "pairing"}, "an empty batch has no mix of 4"),
        *((0, {"remainder": r}, "an empty batch") for r in ("drop", "wrap", "error")),
        *((n, {"remainder": "drop"}, f"a batch of {n} has no mix of 4.*wrap") for n in (1, 3)),
        *((n, {"remainder": "error"}, f"a batch of {n} cannot be cut into 4") for n in (1, 3)),
    ]
    for n, options, message in refused:
        mix = mixer(4, kind=kind, alpha=1.0, **options)
        with pytest.raises(ValueError, match=message):
            mix(torch.zeros(n, 2), Y[:n])
        mix.num_groups = 1
        x, labels = mix(torch.zeros(n, 2), Y[:n])  # at 1 they are as they are
        assert (x.shape, labels.shape) == ((n, 2), (n, 3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_batches_smaller_than_k_are_mixed_with_themselves(kind, n, randn):
    x = randn(0, n, 2, dtype=torch.float32)
    for options, rows in (({"mode": "pairing"}, n), ({"remainder": "wrap"}, 1)):
        for alpha in (0.4, None)[: 1 if kind == "pixel" else 2]:
            mix = mixer(7, kind=kind, alpha=alpha, **options)
            mixed, labels, first = mix(x, Y[:n], torch.arange(n))
            assert len(mixed) == len(labels) == len(first) == rows
            torch.testing.assert_close(labels.sum(1), torch.ones(rows))
            assert bool((x.amin(0) - 1e-6 <= mixed).all() & (mixed <= x.amax(0) + 1e-6).all())
            if n == 1:
                torch.testing.assert_close(mixed, x)
                torch.testing.assert_close(labels, EYE[:1])


@pytest.mark.oracle("csa.Q16")
@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((torch.zeros(6, 2), Y + 1), "labels must be from 0 to 2, got 1 to 3"),
        ((torch.zeros(6, 2), Y - 1), "labels must be from 0 to 2, got -1 to 1"),
        (
            (torch.zeros(6, 2), (255 * Y).to(torch.uint8)),
            "labels must be from 0 to 2, got 0 to 255",
        ),
        ((torch.zeros(5, 2), Y), "5 inputs have 6 labels"),
        ((torch.zeros(6, 2), torch.eye(6)), r"soft labels \(6, 3\), got \(6, 6\)"),
        ((torch.zeros(6, 2), torch.zeros(6)), r"soft labels \(6, 3\), got \(6,\)"),
        ((torch.zeros(6, 2), torch.zeros(6, 3, dtype=torch.int64)), r"int64 \(6, 3\)"),
        ((torch.zeros(6, 2), Y > 0), "torch.bool"),
        ((torch.zeros(6, 2), EYE * math.nan), "labels must be finite.*nan"),
        ((torch.zeros(6, 2), EYE / 0), "labels must be finite"),
        ((torch.zeros(6, 2), torch.tensor(1)), "6 inputs have 0 labels"),
        ((torch.tensor(1.0), Y), "row an example"),
        ((torch.zeros(6, 2), Y.to("meta")), "one device, got cpu and meta"),
        ((torch.zeros(6, 2, device="meta"), Y.to("meta")), "got meta and meta"),
        (([torch.zeros(6, 2)], Y), "must be flat.*list"),
        (((torch.zeros(6, 2), torch.zeros(6)), Y, torch.zeros(6)), "must be flat.*tuple"),
        (({"image": {"a": 1}, "w": torch.zeros(6), "y": Y},), "must be flat.*dict"),
        ((torch.zeros(6, 2), Y, np.zeros(6)), "must be flat.*ndarray"),
        ((torch.zeros(6, 2), [0] * 6), r"no tensor of labels, got \[0"),
        ((torch.zeros(6, 2),), "Tensor"),
        ((), "no tensor of labels, got None"),
        (({"x": torch.zeros(6, 2), "class": Y},), "no tensor of labels, got None"),
        (({"y": Y},), "no inputs"),
    ],
)
@pytest.mark.parametrize("k", [1, 2])
def test_impossible_batches_are_named(batch, message, k):
    with pytest.raises(ValueError, match=message):
        mixer(k)(*batch)


@pytest.mark.oracle("csa.Q16")
def test_labels_that_are_no_entry_of_the_batch_are_refused():
    both = torch.stack([Y, Y], 1)
    with pytest.raises(ValueError, match=r"labels_getter.*entry"):
        mixer(labels_getter=lambda batch: batch[1][:, 0])(torch.zeros(6, 2), both)


@pytest.mark.oracle("csa.Q16")
@pytest.mark.parametrize(
    "weights", [[], [0.5, 0.4], [1.5, -0.5], [math.nan, 1.0], [[0.5, 0.5]], 1.0], ids=str
)
def test_weights_that_are_no_distribution_are_named(weights):
    mix = mixer()
    with pytest.raises(ValueError, match=r"weights must be.*got"):
        mix.set_weights(torch.tensor(weights))
    assert mix.weights is None
    mix.set_weights(torch.tensor([0.5, 0.5]))
    mix.num_groups = 3
    with pytest.raises(ValueError, match=r"num_groups is 3.*2 weights"):
        mix(torch.zeros(6, 2), Y)
    with pytest.raises(ValueError, match=r"at most 256 weights.*got 257"):
        mix.set_weights(torch.full((257,), 1 / 257, dtype=torch.float64))
    mix.set_weights(None)
    assert mix.weights is None
    assert all(map(torch.equal, mix(torch.eye(6), Y), mixer(3)(torch.eye(6), Y)))


@pytest.mark.oracle("csa.Q16")
def test_sum_mix_names_shapes_that_do_not_fit():
    x = torch.zeros(6, 2)
    for labels, shape in ((torch.zeros(6), r"\(6,\)"), (torch.zeros(5, 3), r"\(5, 3\)")):
        with pytest.raises(ValueError, match=rf"labels \(6, C\), got {shape}"):
            sum_mix(x, labels, PAIRS)
    with pytest.raises(ValueError, match="row an example"):
        sum_mix(torch.tensor(1.0), EYE, PAIRS)
    for moved in ((x, EYE.to("meta"), PAIRS), (x, EYE, PAIRS.to("meta"))):
        with pytest.raises(ValueError, match="one device, got cpu"):
            sum_mix(*moved)
    for kind in (torch.int32, torch.uint8, torch.float32):  # bytes would be a mask
        with pytest.raises(ValueError, match=f"groups must be int64, got {kind}"):
            sum_mix(x, EYE, PAIRS.to(kind))
    for groups in (torch.arange(6), torch.zeros(0, 2).long(), torch.zeros(2, 0).long()):
        with pytest.raises(ValueError, match=r"groups \(K, B\), got \("):
            sum_mix(x, EYE, groups)
    for weights in (torch.ones(3), torch.ones(3, 2), torch.tensor(1.0)):
        with pytest.raises(ValueError, match=r"weights \(2,\) or \(2, 3\), got \("):
            sum_mix(x, EYE, PAIRS, weights)


@pytest.mark.oracle("csa.Q16")
@pytest.mark.parametrize("options", [{"alpha": None}, {"alpha": 1.0, "rescale": True}])
def test_pixels_need_alpha_and_cannot_be_rescaled(options):
    with pytest.raises(ValueError, match=r"needs alpha, no rescale.*got .*(None|True)"):
        mixer(kind="pixel", **options)(torch.zeros(6, 2), Y)
    mix = mixer(kind="pixel", alpha=1.0)
    mix.set_weights(torch.tensor([0.7, 0.3]))
    with pytest.raises(ValueError, match=r"no set weights.*0\.7"):
        mix(torch.zeros(6, 2), Y)


# --- devices


def everything(x):
    y, actual = torch.arange(7, device=x.device) % 3, []
    for mode in MODES:
        for options in ({}, {"alpha": 0.4}, {"rescale": True, "mean": x.mean(0)}):
            actual += mixer(3, mode=mode, **options)(x, y)
        actual += mixer(3, kind="single", mode=mode)(x, y, y)
        actual += mixer(3, kind="pixel", mode=mode, alpha=1.0)(x, F.one_hot(y, 3).to(x))
    smooth = mixer(3)
    smooth.set_weights(CascadeSchedule([(3, 0.5), (1, 0.5)], 8, mode="smooth").weights(2))
    return [*actual, *smooth(x, y)]


def test_inside_a_meta_context_values_are_the_same(same_inside_meta, randn):
    same_inside_meta(everything, randn(0, 7, 2, 3))


@pytest.mark.gpu
def test_on_cuda_values_are_the_same(same_on_cuda, randn):
    same_on_cuda(everything, randn(0, 7, 2, 3))


def test_equal_seeds_give_equal_mixes(randn):
    x = randn(0, 6, 2)
    for kind in KINDS:
        first = mixer(kind=kind, alpha=1.0)(x, Y)
        assert all(map(torch.equal, first, mixer(kind=kind, alpha=1.0)(x, Y)))
        assert not torch.equal(first[0], mixer(kind=kind, alpha=1.0, seed=1)(x, Y)[0])
        assert stream(0, "mix").initial_seed() != stream(1, "mix").initial_seed()
