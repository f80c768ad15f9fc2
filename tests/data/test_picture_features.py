"""Hand-made picture features and random crops against slow numpy loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainaug.data.picture_features import FEATURES, picture_features, random_crops

pytestmark = pytest.mark.usefixtures("untouched_randomness")

SIZES = [(1, 8, 8), (3, 16, 24), (2, 40, 32), (2, 64, 64)]
GRID, DIRECTIONS, COLOURS = slice(0, 192), slice(192, 704), slice(704, 768)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(seed: int, b: int, h: int, w: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(b, 3, h, w, generator=seeded(seed), dtype=dtype)


def slow_features(picture: np.ndarray) -> np.ndarray:
    """Describe one picture ``(3, H, W)`` pixel by pixel."""
    _, h, w = picture.shape
    grey = picture.mean(0)
    grid, directions, colours = np.zeros((3, 8, 8)), np.zeros((8, 8, 8)), np.zeros((4, 4, 4))
    axes = [(math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)) for k in range(8)]
    for i in range(h):
        for j in range(w):
            cell = i // (h // 8), j // (w // 8)
            for c in range(3):
                grid[c][cell] += picture[c, i, j] / (h // 8 * (w // 8))
            right = (grey[i, min(j + 1, w - 1)] - grey[i, max(j - 1, 0)]) / 2
            down = (grey[min(i + 1, h - 1), j] - grey[max(i - 1, 0), j]) / 2
            along = [right * x + down * y for x, y in axes]
            directions[along.index(max(along))][cell] += right**2 + down**2
            level = [min(int(picture[c, i, j] * 4), 3) for c in range(3)]
            colours[tuple(level)] += 1 / (h * w)
    directions = np.sqrt(directions)
    directions /= max(np.linalg.norm(directions), 1e-6)
    return np.concatenate([grid.ravel(), directions.ravel(), np.sqrt(colours).ravel()])


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)], ids=str
)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_features_match_a_slow_loop(size, dtype, tolerance) -> None:
    pictures = draw(0, *size, dtype=dtype)
    got = picture_features(pictures)
    assert got.shape == (size[0], FEATURES)
    assert got.dtype == dtype
    expected = np.stack([slow_features(p) for p in pictures.double().numpy()])
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=tolerance)  # sums of < 4096


def test_gradients_and_colours_have_unit_norm() -> None:
    features = picture_features(draw(1, 6, 32, 32))
    for part in (DIRECTIONS, COLOURS):
        torch.testing.assert_close(features[:, part].norm(dim=1), torch.ones(6).double())


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_flat_picture_has_one_colour_and_no_gradient(value) -> None:
    features = picture_features(torch.full((1, 3, 16, 16), value).double())[0]
    torch.testing.assert_close(features[GRID], torch.full((192,), value).double())
    assert features[DIRECTIONS].count_nonzero() == 0
    level = min(int(value * 4), 3)
    assert features[COLOURS].nonzero().tolist() == [[level * (16 + 4 + 1)]]
    assert features[COLOURS].max() == 1


def test_primary_colours_fall_into_their_places() -> None:
    red, green, blue = torch.eye(3).double()[:, :, None, None].expand(3, 3, 8, 8)
    features = picture_features(torch.stack([red, green, blue]))
    assert features[:, COLOURS].argmax(1).tolist() == [3 * 16, 3 * 4, 3]


@pytest.mark.parametrize("direction", range(8))
def test_ramp_has_its_own_direction_only(direction) -> None:
    angle = torch.tensor(direction * math.pi / 4, dtype=torch.float64)
    y, x = torch.meshgrid(torch.arange(16.0).double(), torch.arange(16.0).double(), indexing="ij")
    ramp = 0.5 + (x * angle.cos() + y * angle.sin()) / 64
    features = picture_features(ramp.expand(1, 3, 16, 16))[0, DIRECTIONS].view(8, 8, 8)
    inner = features[:, 1:-1, 1:-1]  # replicated borders bend the gradient of diagonal ramps
    assert inner[direction].min() > 0
    assert inner.sum() == inner[direction].sum()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_mirror_image_mirrors_cells_and_directions(seed) -> None:
    pictures = draw(seed, 2, 16, 24)
    plain, mirrored = picture_features(pictures), picture_features(pictures.flip(3))
    torch.testing.assert_close(
        mirrored[:, GRID].view(2, 3, 8, 8), plain[:, GRID].view(2, 3, 8, 8).flip(3)
    )
    opposite = [(4 - k) % 8 for k in range(8)]
    torch.testing.assert_close(
        mirrored[:, DIRECTIONS].view(2, 8, 8, 8),
        plain[:, DIRECTIONS].view(2, 8, 8, 8).flip(3)[:, opposite],
    )
    torch.testing.assert_close(mirrored[:, COLOURS], plain[:, COLOURS])


def test_pictures_do_not_mix_and_stay_as_they_were() -> None:
    pictures = draw(2, 5, 16, 16)
    before = pictures.clone()
    alone = torch.cat([picture_features(picture[None]) for picture in pictures])
    torch.testing.assert_close(picture_features(pictures), alone)
    assert torch.equal(pictures, before)


@pytest.mark.parametrize(
    "shape", [(3, 8, 8), (1, 1, 8, 8), (1, 4, 8, 8), (1, 3, 8, 12), (1, 3, 9, 8), (8, 8)], ids=str
)
def test_bad_shape_raises(shape) -> None:
    with pytest.raises(ValueError, match=r"need \(B, 3, H, W\).*got \(" + str(shape[0])):
        picture_features(torch.zeros(shape))


# --- crops


def slow_crops(pictures: np.ndarray, draws: np.ndarray, smallest: float) -> np.ndarray:
    """Sample each window bilinearly, pixel by pixel."""
    b, channels, h, w = pictures.shape
    crops = np.zeros_like(pictures)
    for n in range(b):
        side = smallest + (1 - smallest) * draws[n, 0]
        left, top = ((1 - side) * draws[n, k] for k in (1, 2))  # corner, as shares of the sides
        for i in range(h):
            for j in range(w):
                y = min(max((top + side * (i + 0.5) / h) * h - 0.5, 0), h - 1)
                x = min(max((left + side * (j + 0.5) / w) * w - 0.5, 0), w - 1)
                i0, j0 = int(y), int(x)
                i1, j1 = min(i0 + 1, h - 1), min(j0 + 1, w - 1)
                for c in range(channels):
                    p = pictures[n, c]
                    upper = p[i0, j0] * (j0 + 1 - x) + p[i0, j1] * (x - j0)
                    lower = p[i1, j0] * (j0 + 1 - x) + p[i1, j1] * (x - j0)
                    value = upper * (i0 + 1 - y) + lower * (y - i0)
                    crops[n, c, i, j] = min(value * (0.8 + 0.4 * draws[n, 3 + c]), 1)
    return crops


@pytest.mark.parametrize("smallest", [0.3, 0.75, 1.0])
@pytest.mark.parametrize("size", [(3, 8, 8), (2, 16, 24)], ids=str)
def test_crops_match_a_slow_loop(size, smallest) -> None:
    pictures = draw(3, *size)
    draws = torch.rand(size[0], 6, generator=seeded(4)).double()
    got = random_crops(pictures, smallest=smallest, generator=seeded(4))
    expected = slow_crops(pictures.numpy(), draws.numpy(), smallest)
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("smallest", [0.01, 0.75, 1.0])
def test_crops_keep_shape_type_and_range(smallest, dtype) -> None:
    pictures = draw(5, 40, 16, 16, dtype=dtype)
    pictures[:20] = pictures[:20].round()  # pure colours at both ends of the range
    before = pictures.clone()
    crops = random_crops(pictures, smallest=smallest, generator=seeded(0))
    assert crops.shape == pictures.shape
    assert crops.dtype == dtype
    assert crops.min() >= 0
    assert crops.max() <= 1
    assert torch.equal(pictures, before)


def test_crops_follow_the_generator() -> None:
    pictures = draw(6, 4, 16, 16)
    generator = seeded(1)
    first = random_crops(pictures, generator=generator)
    again = random_crops(pictures, generator=generator)
    assert torch.equal(first, random_crops(pictures, generator=seeded(1)))
    assert not torch.equal(first, again)
    assert not torch.equal(first, random_crops(pictures, generator=seeded(2)))


def test_whole_window_leaves_the_picture_up_to_a_gain_for_each_channel() -> None:
    pictures = 0.1 + 0.7 * draw(7, 200, 8, 8)  # times 1.2 stays below 1
    ratio = random_crops(pictures, smallest=1, generator=seeded(3)) / pictures
    gain = ratio.mean((2, 3), keepdim=True)
    torch.testing.assert_close(ratio, gain.expand_as(ratio))
    assert gain.min() >= 0.8
    assert gain.max() <= 1.2
    assert gain.min() < 0.81  # 600 draws reach both ends
    assert gain.max() > 1.19
    assert gain.flatten(1).std(dim=1).min() > 0  # one gain a channel, not one a picture


@pytest.mark.parametrize("smallest", [0, -0.5, 1.01, math.nan])
def test_bad_smallest_raises(smallest) -> None:
    with pytest.raises(ValueError, match=rf"smallest must be in \(0, 1\], got {smallest}"):
        random_crops(torch.zeros(1, 3, 8, 8), smallest=smallest, generator=seeded(0))


# --- types and values


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_single(dtype) -> None:
    pictures = draw(5, 3, 16, 24).to(dtype)
    assert torch.equal(picture_features(pictures), picture_features(pictures.float()).to(dtype))
    half = random_crops(pictures, generator=seeded(1))
    assert torch.equal(half, random_crops(pictures.float(), generator=seeded(1)).to(dtype))


def test_no_pictures_give_no_rows() -> None:
    none = torch.zeros(0, 3, 16, 16)
    assert picture_features(none).shape == (0, FEATURES)
    assert random_crops(none, generator=seeded(0)).shape == none.shape


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool], ids=str)
def test_pictures_of_integers_are_refused(dtype) -> None:
    whole = torch.ones(2, 3, 8, 8).to(dtype)
    for function in (picture_features, lambda x: random_crops(x, generator=seeded(0))):
        with pytest.raises(ValueError, match=rf"floating point in \[0, 1\], got {dtype}"):
            function(whole)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_of_what_is_not_finite_are_refused(value) -> None:
    pictures = draw(6, 2, 8, 8)
    pictures[1, 2, 3, 4] = value
    with pytest.raises(ValueError, match=f"pictures must be finite, row 1 holds {value}"):
        picture_features(pictures)


# --- devices


def crops_of(pictures: Tensor) -> Tensor:
    return random_crops(pictures, generator=seeded(0))


@pytest.mark.parametrize("function", [picture_features, crops_of])
def test_inside_a_meta_context_values_are_the_same(
    function, same_inside_meta: Callable[..., None]
) -> None:
    same_inside_meta(function, draw(8, 2, 16, 16))


@pytest.mark.gpu
@pytest.mark.parametrize("function", [picture_features, crops_of])
def test_on_cuda_values_are_the_same(function, same_on_cuda: Callable[..., None]) -> None:
    same_on_cuda(function, draw(9, 2, 16, 16))
