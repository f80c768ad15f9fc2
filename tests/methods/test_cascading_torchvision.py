"""Mixers used as torchvision's transforms are: kinds kept, settings told, in ``Compose``."""

from __future__ import annotations

import copy
import functools
import itertools
import pickle
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
import torch.nn.functional as F
from test_cascading_mixing import KINDS, MODES, mixer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, default_collate
from torchvision import tv_tensors
from torchvision.transforms import v2

from trainaug.methods.cascading_sum import SumMix
from trainaug.training.randomness import stream

Y = torch.tensor([0, 2, 1, 1, 0, 2])


class Kind(Tensor):
    """A subclass as torch makes them: it keeps itself in every operation."""


@pytest.fixture
def seeded():
    """Global seeds that a test may set."""
    with torch.random.fork_rng(devices=[]):
        yield torch.manual_seed


# --- kinds of tensors


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_pictures_and_videos_stay_what_they_are(kind, mode, k, randn):
    options = {"kind": kind, "mode": mode, "alpha": 1.0, "rescale": kind != "pixel"}
    for shape, what in (
        ((3, 4, 5), tv_tensors.Image),
        ((2, 3, 4, 5), tv_tensors.Video),
        ((4,), Kind),
    ):
        plain = randn(0, 6, *shape, dtype=torch.float32)
        x = plain.as_subclass(what)
        expected = mixer(k, **options)(plain, Y, plain)
        got = mixer(k, **options)(x, Y, x.clone())  # a second one follows its first sample
        assert [type(part) for part in got] == [what, Tensor, what]
        assert all(
            torch.equal(a.as_subclass(Tensor), b)
            for a, b in zip(got[:2], expected[:2], strict=True)
        )
        batch = mixer(k, **options)({"image": x, "label": Y})
        assert type(batch["image"]) is what
        half = x.half().as_subclass(what)  # a tv_tensor loses its kind here
        assert type(mixer(k, **options)(half, Y)[0]) is what


def test_gradients_go_through_a_kind(randn):
    leaf = randn(0, 6, 3, 2, 2).requires_grad_()
    mixed, _ = mixer(3)(
        tv_tensors.wrap(leaf.as_subclass(Tensor), like=tv_tensors.Image(leaf.detach())), Y
    )
    mixed.as_subclass(Tensor).sum().backward()
    torch.testing.assert_close(leaf.grad, torch.full_like(leaf, 1 / 3))


def test_a_mix_of_a_parameter_is_none(randn):
    x = nn.Parameter(randn(0, 6, 4))
    mixed, _ = mixer(2)(x, Y)
    assert type(mixed) is Tensor
    mixed.sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("k", [1, 2])
def test_what_belongs_to_one_picture_is_refused(k):
    x = tv_tensors.Image(torch.zeros(6, 3, 4, 4))
    boxes = tv_tensors.BoundingBoxes(torch.zeros(6, 4), format="XYXY", canvas_size=(4, 4))
    for item in (boxes, tv_tensors.Mask(torch.zeros(6, 4, 4))):
        for batch in ((x, Y, item), (item, Y), {"image": x, "label": Y, "also": item}):
            with pytest.raises(ValueError, match=f"no {type(item).__name__}.*take them out"):
                mixer(k)(*batch) if isinstance(batch, tuple) else mixer(k)(batch)


def test_a_kind_is_kept_where_torchvision_cannot_be_imported():
    code = (
        "import sys, torch\n"
        "from trainaug.methods.cascading_sum import SumMix\n"
        "assert 'torchvision' not in sys.modules\n"
        "sys.modules['torchvision'] = None\n"
        "class Kind(torch.Tensor): pass\n"
        "x = torch.ones(4, 2).as_subclass(Kind)\n"
        "mixed, _ = SumMix(2, num_classes=2)(x, torch.arange(4) % 2)\n"
        "assert type(mixed) is Kind\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- settings


@pytest.mark.parametrize("kind", KINDS)
def test_the_repr_tells_every_setting(kind):
    mix = mixer(2, kind=kind, classes=10)
    name = KINDS[kind].__name__
    assert repr(mix) == (
        f"{name}(num_groups=2, num_classes=10, alpha=None, mode='groups', remainder='drop', "
        "rescale=False, mean=0.0, labels_getter='default')"
    )
    mix.num_groups = 4
    assert "num_groups=4" in repr(mix)
    mix.set_weights(torch.tensor([0.75, 0.25]))
    assert "num_groups=2" in repr(mix)
    assert "weights=[0.75, 0.25]" in repr(mix)
    assert "mean=[0.5, 0.25]" in repr(mixer(mean=torch.tensor([0.5, 0.25])))
    assert "mean=torch.Size([1, 28, 28])" in repr(mixer(mean=torch.zeros(1, 28, 28)))
    assert repr(mix) in repr(nn.Sequential(mix))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_soft_labels_need_no_number_of_classes(kind, mode, randn):
    x, soft, options = randn(0, 6, 2), F.one_hot(Y, 3).float(), {"mode": mode, "alpha": 1.0}
    expected = mixer(2, kind=kind, **options)(x, soft)
    mix = KINDS[kind](2, generator=stream(0, "mix"), **options)
    assert all(map(torch.equal, mix(x, soft), expected))
    for k in (1, 2):
        mix.num_groups = k
        with pytest.raises(ValueError, match=r"num_classes must be set.*torch.int64"):
            mix(x, Y)
        with pytest.raises(ValueError, match=r"expected soft labels \(6, C\), got \(6,\)"):
            mix(x, x[:, 0])


# --- the default generator


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_generator_the_global_seed_is_followed_and_left_alone(kind, randn, seeded):
    x = randn(0, 6, 2)

    def draws(seed, count=3, **options):
        seeded(seed)
        mix = KINDS[kind](2, num_classes=3, alpha=1.0, **options)
        before = torch.get_rng_state()
        actual = [mix(x, Y)[0] for _ in range(count)]
        assert torch.equal(torch.get_rng_state(), before)
        return actual

    first = draws(5)
    assert all(map(torch.equal, first, draws(5)))
    assert all(map(torch.equal, first, draws(0, generator=torch.Generator().manual_seed(5))))
    assert not torch.equal(first[0], first[1])
    assert not any(map(torch.equal, first, draws(6)))


def test_without_a_generator_a_state_goes_on_alike(randn, seeded):
    x = randn(0, 6, 2)
    seeded(5)
    mix = SumMix(2, num_classes=3, alpha=1.0)
    fresh = mix.state_dict()  # before the first draw
    expected = [mix(x, Y)[0] for _ in range(3)]
    later = mix.state_dict()
    following = mix(x, Y)[0]
    seeded(6)
    for state, known in ((fresh, expected[0]), (later, following)):
        twin = SumMix(2, num_classes=3, alpha=1.0)
        twin.load_state_dict(state)
        assert torch.equal(twin(x, Y)[0], known)


def test_a_copy_of_a_mixer_without_a_generator_has_none(monkeypatch):
    mix = SumMix(2, num_classes=3)
    copies = [copy.deepcopy(mix), pickle.loads(pickle.dumps(mix))]  # noqa: S301
    with monkeypatch.context() as patch:  # as while a process is being spawned
        patch.setattr("trainaug.methods.cascading_sum.mixing.get_spawning_popen", lambda: True)
        sent = bytes(ForkingPickler.dumps(mix))
    copies.append(pickle.loads(sent))  # noqa: S301
    assert all(twin.generator is None for twin in copies)


def together(transform, rows):
    return transform(*default_collate(rows))


def loader_of(transform, **options):
    """Four batches in which every example has a class of its own."""
    data = TensorDataset(torch.eye(12).repeat(4, 1), torch.arange(12).repeat(4))
    return DataLoader(data, 12, collate_fn=functools.partial(together, transform), **options)


def test_without_a_generator_workers_and_epochs_differ(seeded):
    def epochs(seed):
        seeded(seed)
        mix = v2.Compose([SumMix(2, num_classes=12)])
        loader = loader_of(mix, num_workers=2, timeout=120, multiprocessing_context="fork")
        return [x for _ in range(2) for x, _ in loader]

    actual = epochs(3)
    assert len(actual) == 8
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(actual, 2))
    assert all(map(torch.equal, epochs(3), actual))
    assert not any(map(torch.equal, epochs(4), actual))


# --- in a pipeline


@pytest.mark.parametrize("kind", KINDS)
def test_it_stands_in_a_composition_like_mixup(kind, seeded):
    seeded(0)  # torchvision draws from the global generator
    x = tv_tensors.Image(torch.arange(6 * 3 * 4 * 4, dtype=torch.uint8).reshape(6, 3, 4, 4))
    before = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)])
    mix = mixer(2, kind=kind, alpha=1.0)
    whole = v2.Compose([*before.transforms, mix, v2.RandomHorizontalFlip(1.0)])
    assert repr(mix) in repr(whole)
    expected = mixer(2, kind=kind, alpha=1.0)(before(x), Y)
    for batch in ((x, Y), {"image": x, "labels": Y}):
        got = whole(*batch) if isinstance(batch, tuple) else whole(batch)
        mixed, labels = got if isinstance(got, tuple) else got.values()
        assert type(mixed) is tv_tensors.Image
        mix.generator.manual_seed(stream(0, "mix").initial_seed())
        assert torch.equal(mixed.flip(-1), expected[0].as_subclass(Tensor))
        assert torch.equal(labels, expected[1])
    one_of = v2.RandomChoice([mixer(2, kind=kind, alpha=1.0), v2.MixUp(num_classes=3)])
    kinds = {type(part) for _ in range(8) for part in one_of(before(x), Y)}
    assert kinds == {tv_tensors.Image, Tensor}


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_of_one_is_right_or_told_what_to_do(mode, randn):
    x = tv_tensors.Image(randn(0, 1, 3, 4, 4).float())
    mix = SumMix(2, num_classes=3, mode=mode)
    if mode == "groups":
        with pytest.raises(ValueError, match=r"a batch of 1 has no mix of 2.*wrap.*drop_last"):
            mix(x, Y[:1])
        with pytest.raises(ValueError, match=r"a batch of 1 cannot be cut.*wrap.*drop"):
            SumMix(2, num_classes=3, remainder="error")(x, Y[:1])
        mix = SumMix(2, num_classes=3, remainder="wrap")
    mixed, labels = mix(x, Y[:1])
    torch.testing.assert_close(mixed, x)
    assert labels.tolist() == [[1.0, 0.0, 0.0]]
