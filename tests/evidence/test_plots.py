"""Figures: the same bytes, text alternatives, the palette, and what the plots draw."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb, to_rgba
from PIL import Image

from companion.evidence import plots
from companion.pages.pictures import png_bytes

OKABE_ITO = {
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
}
CURVES = np.array([[1.0, 4.0, 2.0], [3.0, 0.0, 2.5], [2.0, 8.0, 1.0], [9.0, 9.0, 9.0]])
DRAW = """
from companion.evidence import plots
from companion.pages.pictures import png_bytes
plots.set_style()
drawn, axes = plots.figure(2)
plots.band(axes[0], [1, 2, 3], [[1, 4, 2], [3, 0, 2]], label="a $x$", colour=plots.PALETTE[0])
plots.matrix(axes[1], [[0.25]], rows=["r"], columns=["c"])
axes[0].legend()
picture = png_bytes(drawn, "two panels")
"""


@pytest.fixture(autouse=True)
def _style_restored() -> Iterator[None]:
    with matplotlib.rc_context():
        plots.set_style()
        yield


def draw() -> bytes:
    namespace: dict[str, bytes] = {}
    exec(DRAW, namespace)  # noqa: S102  (the text that the other process runs)
    return namespace["picture"]


def test_same_figure_gives_the_same_picture():
    first = draw()
    other, axes = plots.figure()
    axes[0].plot(np.arange(5), label="something else")
    png_bytes(other, "other")
    assert draw() == first
    assert len(first) > 5000


def test_same_figure_gives_the_same_picture_in_another_process():
    code = DRAW + "\nimport sys; sys.stdout.buffer.write(picture)"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, timeout=120
    )
    assert done.stdout == draw()


def test_picture_depends_on_what_is_drawn():
    def one(value: float) -> bytes:
        drawn, axes = plots.figure()
        axes[0].plot([0, value])
        return png_bytes(drawn, "line")

    assert one(1.0) == one(1.0)
    assert one(1.0) != one(2.0)


def test_picture_is_twice_as_large_and_carries_its_text_alternative_alone():
    drawn, _ = plots.figure()
    alt = 'ρ < "eps*" & it\'s > 0'
    with Image.open(io.BytesIO(png_bytes(drawn, alt))) as picture:
        shown = drawn.get_size_inches() * drawn.dpi
        assert picture.size == tuple(2 * shown)
        picture.load()
        assert picture.info == {"Description": alt}  # neither a date nor the drawing software


def test_picture_keeps_the_colours_that_were_drawn():
    drawn, axes = plots.figure()
    for height, colour in enumerate(plots.PALETTE):
        axes[0].axhspan(height, height + 0.5, color=colour)
    with Image.open(io.BytesIO(png_bytes(drawn, "bands"))) as picture:
        actual = {colour for _, colour in picture.convert("RGB").getcolors(256)}
    wanted = {tuple(round(255 * part) for part in to_rgb(colour)) for colour in plots.PALETTE}
    assert wanted <= actual


def test_palette_is_okabe_and_itos_without_yellow():
    assert set(plots.PALETTE) == OKABE_ITO - {"#F0E442"}  # hardly seen as a line on white
    assert len(plots.PALETTE) == 7
    cycle = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]
    assert tuple(cycle) == plots.PALETTE


def _linear(colour: str) -> np.ndarray:
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def _lab(linear: np.ndarray) -> np.ndarray:
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    t = np.array(to_xyz) @ np.clip(linear, 0, 1) / [0.9505, 1.0, 1.089]
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


# Machado, Oliveira and Fernandes 2009, severity 1
VISION = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
}


@pytest.mark.parametrize("vision", VISION)
def test_colours_are_told_apart_with_common_colour_visions(vision):
    seen = [_lab(VISION[vision] @ _linear(colour)) for colour in plots.PALETTE]
    distances = {
        (plots.PALETTE[i], plots.PALETTE[j]): np.linalg.norm(seen[i] - seen[j])
        for i in range(len(seen))
        for j in range(i)
    }
    # CIE76: 2.3 is just noticeable; ten is plain for a line
    assert min(distances.values()) > 10, min(distances, key=distances.get)


def test_figure_lists_its_axes_row_by_row():
    drawn, axes = plots.figure(3, 2, height=2.0)
    assert len(axes) == 6
    assert drawn.axes == axes
    assert tuple(drawn.get_size_inches()) == (10.0, 4.0)
    tops = [axis.get_position().y1 for axis in axes]
    assert tops[0] == tops[2] > tops[3]


def test_figure_stays_outside_pyplot():
    before = plt.get_fignums()
    plots.figure()
    assert plt.get_fignums() == before


def test_band_draws_median_and_range():
    _, axes = plots.figure()
    plots.band(axes[0], [1, 2, 3], CURVES, label="sign", colour="#0072B2", style="--")
    (line,) = axes[0].lines
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(line.get_ydata(), [2.5, 6.0, 2.25])
    assert (line.get_label(), line.get_linestyle()) == ("sign", "--")
    assert to_rgba(line.get_color()) == to_rgba("#0072B2")
    (filled,) = axes[0].collections
    vertices = filled.get_paths()[0].vertices
    for x, low, high in ((1, 1.0, 9.0), (2, 0.0, 9.0), (3, 1.0, 9.0)):
        at = vertices[vertices[:, 0] == x, 1]
        assert (at.min(), at.max()) == (low, high)


def test_band_of_one_seed_is_its_curve():
    _, axes = plots.figure()
    plots.band(axes[0], [1, 2, 3], CURVES[:1], label="one", colour="k")
    np.testing.assert_array_equal(axes[0].lines[0].get_ydata(), CURVES[0])


def test_matrix_draws_each_number_in_its_cell():
    _, axes = plots.figure()
    values = [[0.0, 0.126, 1.0], [0.5, 0.99, 0.2]]
    plots.matrix(axes[0], values, rows=["r0", "r1"], columns=["a", "b", "c"], digits=2)
    shown = {text.get_position(): text.get_text() for text in axes[0].texts}
    assert shown == {(j, i): f"{values[i][j]:.2f}" for i in range(2) for j in range(3)}
    assert shown[1, 0] == "0.13"
    np.testing.assert_array_equal(axes[0].images[0].get_array(), values)
    assert axes[0].images[0].get_clim() == (0.0, 1.0)
    assert [tick.get_text() for tick in axes[0].get_xticklabels()] == ["a", "b", "c"]
    assert [tick.get_text() for tick in axes[0].get_yticklabels()] == ["r0", "r1"]


@pytest.mark.parametrize("limits", [(0.0, 1.0), (0.0, 100.0), (-1.0, 1.0)])
def test_matrix_numbers_stand_out_from_their_cells(limits):
    _, axes = plots.figure()
    values = np.linspace(*limits, 21)[None]
    names = [""] * 21
    plots.matrix(axes[0], values, rows=["r"], columns=names, limits=limits)
    image = axes[0].images[0]
    for value, text in zip(values[0], axes[0].texts, strict=True):
        paper = np.array([0.2126, 0.7152, 0.0722]) @ _linear(image.to_rgba(value)[:3])
        ink = np.array([0.2126, 0.7152, 0.0722]) @ _linear(text.get_color())
        light, dark = max(paper, ink), min(paper, ink)
        assert (light + 0.05) / (dark + 0.05) > 3.0, value  # WCAG: the least for large text
