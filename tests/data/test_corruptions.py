"""Noise, blur and contrast against loops over pixels, and their range."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainaug.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from trainaug.training.randomness import stream

pytestmark = pytest.mark.usefixtures("untouched_randomness")

STD = dict(zip(SEVERITIES, (0.05, 0.1, 0.15, 0.2, 0.3), strict=True))
SIGMA = dict(zip(SEVERITIES, (0.5, 0.75, 1.0, 1.5, 2.0), strict=True))
FACTOR = dict(zip(SEVERITIES, (0.75, 0.5, 0.4, 0.3, 0.15), strict=True))


def pictures(*shape, dtype=torch.float64, seed=0):
    """Draw pictures with many pixels on the edge of the range."""
    x = torch.randn(*shape, dtype=torch.float64, generator=stream(seed, "x"))
    return (0.5 + 0.5 * x).clamp(0, 1).to(dtype)


def corrupted(x, kind, severity, seed=0):
    return corrupt(x, kind, severity, generator=stream(seed, "noise"))


def mirrored(i, size):
    """Reflect a place outside a row at its first or last pixel."""
    i = abs(i)
    return 2 * (size - 1) - i if i >= size else i


def blur(picture, sigma, radius):
    """Blur one ``(H, W)`` picture, pixel by pixel."""
    weights = [math.exp(-(d**2) / (2 * sigma**2)) for d in range(-radius, radius + 1)]
    h, w = picture.shape
    result = torch.zeros(h, w, dtype=torch.float64)
    for i in range(h):
        for j in range(w):
            for di, a in enumerate(weights, -radius):
                for dj, b in enumerate(weights, -radius):
                    pixel = picture[mirrored(i + di, h), mirrored(j + dj, w)]
                    result[i, j] += a * b / sum(weights) ** 2 * float(pixel)
    return result


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize(
    ("shape", "radius"), [((8, 8), 3), ((12, 12), 5), ((5, 9), 2), ((9, 5), 2)]
)
def test_blur_matches_a_loop_over_pixels(shape, radius, severity):
    x = pictures(1, 3, *shape)
    sigma = SIGMA[severity] * math.sqrt(min(shape) / 28)
    actual = corrupt(x, "blur", severity)
    for channel in (0, 2):
        expected = blur(x[0, channel], sigma, radius)
        torch.testing.assert_close(actual[0, channel], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_blur_is_cut_off_at_five_pixels(severity):
    x = torch.zeros(1, 1, 28, 28)
    x[0, 0, 14, 14] = 1.0
    actual = corrupt(x, "blur", severity)[0, 0]
    weights = [math.exp(-(d**2) / (2 * SIGMA[severity] ** 2)) for d in range(-5, 6)]
    row = torch.zeros(28)
    row[9:20] = torch.tensor(weights) / sum(weights)
    torch.testing.assert_close(actual, row.outer(row), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_pulls_pixels_to_the_mean_of_their_picture(severity, dtype):
    x = pictures(4, 1, 6, 7, dtype=dtype)
    actual = corrupt(x, "contrast", severity)
    assert actual.dtype == dtype
    for picture, paler in zip(x, actual, strict=True):
        mean = sum(picture.flatten().tolist()) / 42
        expected = [mean + FACTOR[severity] * (v - mean) for v in picture.flatten().tolist()]
        assert paler.flatten().tolist() == pytest.approx(expected, abs=1e-6)
    coloured = pictures(2, 3, 4, 4, dtype=dtype)
    actual = corrupt(coloured, "contrast", severity)
    shift = actual - FACTOR[severity] * coloured  # the same for all pixels and channels
    spread = shift.flatten(1).amax(1) - shift.flatten(1).amin(1)
    assert float(spread.max()) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_is_gaussian_clipped_and_from_the_generator(severity, dtype):
    grey = torch.full((3, 1, 60, 60), 0.5, dtype=dtype)
    actual = corrupted(grey, "noise", severity)
    drawn = torch.randn(grey.shape, dtype=dtype, generator=stream(0, "noise"))
    torch.testing.assert_close(actual, (0.5 + STD[severity] * drawn).clamp(0, 1))
    inside = actual[(actual > 0) & (actual < 1)] - 0.5
    if severity <= 3:  # hardly any is clipped at more than three standard deviations
        assert float(inside.std()) == pytest.approx(STD[severity], rel=0.03)
    assert torch.equal(corrupted(grey, "noise", severity), actual)
    assert not torch.equal(corrupted(grey, "noise", severity, seed=1), actual)
    with pytest.raises(ValueError, match="noise needs a generator"):
        corrupt(grey, "noise", severity)


@given(
    st.sampled_from(CORRUPTIONS),
    st.sampled_from(SEVERITIES),
    st.tuples(st.integers(1, 3), st.sampled_from([1, 3]), st.integers(1, 13), st.integers(1, 13)),
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(0, 10**6),
)
@settings(max_examples=120, deadline=None)
def test_corrupted_pictures_stay_pictures(kind, severity, shape, dtype, seed):
    x = pictures(*shape, dtype=dtype, seed=seed)
    kept = x.clone()
    actual = corrupted(x, kind, severity)
    assert actual.shape == x.shape
    assert actual.dtype == dtype
    assert 0 <= float(actual.min()) <= float(actual.max()) <= 1
    assert torch.equal(x, kept)
    if kind != "noise":
        constant = torch.full(shape, float(x.flatten()[0]), dtype=dtype)
        blank = corrupt(constant, kind, severity)
        # torchvision's weights of red, green and blue add up to 0.9999
        grey = 1e-4 if kind == "contrast" and shape[1] == 3 else 1e-6
        torch.testing.assert_close(blank, constant, rtol=0, atol=grey)
        alone = corrupt(x[:1], kind, severity)
        torch.testing.assert_close(actual[:1], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [8, 28, 32])
@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_white_stays_in_range_and_severities_hurt_more(kind, size):
    white = corrupted(torch.ones(2, 1, size, size), kind, 1)
    assert float(white.max()) <= 1
    x = pictures(6, 1, size, size)
    harm = [float((corrupted(x, kind, s) - x).square().mean()) for s in SEVERITIES]
    assert harm[0] > 0
    assert harm == sorted(set(harm))


@pytest.mark.parametrize(
    ("kind", "severity", "message"),
    [
        ("fog", 1, "noise, blur, contrast.*'fog'"),
        ("blur", 0, "severity 1 to 5.*0"),
        ("blur", 6, "severity 1 to 5.*6"),
        ("contrast", -1, "-1"),
    ],
)
def test_unknown_corruptions_are_named(kind, severity, message):
    with pytest.raises(ValueError, match=message):
        corrupt(torch.zeros(1, 1, 8, 8), kind, severity)


def everything(x):
    return [corrupted(x, kind, severity) for kind in CORRUPTIONS for severity in SEVERITIES]


def test_inside_a_meta_context_values_are_the_same(same_inside_meta):
    same_inside_meta(everything, pictures(2, 3, 8, 8))


@pytest.mark.gpu
def test_on_cuda_values_are_the_same(same_on_cuda):
    same_on_cuda(everything, pictures(2, 3, 8, 8))


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_pictures_of_bytes_are_refused(kind):
    with pytest.raises(ValueError, match=r"floating point in \[0, 1\], got torch.uint8"):
        corrupted(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), kind, 1)
