"""Proved enclosures against exact fractions, sixty-digit transforms, toys and hostile numbers."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf
from torch import Tensor

from trainaug.methods.linear_robustness import FourierNorm, Norm, max_margin, second_solver
from trainaug.methods.linear_robustness.enclosure import Enclosure, enclosure, exact_witness

# the package may export the function under the module's name
module = importlib.import_module("trainaug.methods.linear_robustness.enclosure")

Randn = Callable[..., Tensor]
Gaussian = Callable[..., tuple[Tensor, Tensor]]
PLAIN: tuple[Norm, ...] = ("l1", "l2", "linf")
SHAPES = [(1,), (2,), (3,), (8,), (9,), (1, 5), (2, 2), (3, 4), (4, 6), (5, 5), (2, 3, 2)]
FOURIER = [FourierNorm(order, shape) for shape in SHAPES for order in ("l1", "linf")]


def doubles(values: Sequence[float] | Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)  # not through float32, which rounds 1e16


def separated(randn: Randn, n: int, d: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Draw data, labels that some weights get right, those weights and a dual point."""
    X, w, lam = randn(seed, n, d), randn(seed + 1, d), randn(seed + 2, n).clamp(min=0)
    lam[0] = 1
    return X, torch.where(X @ w > 0, 1, -1), w, lam


def exact(X: Tensor, y: Tensor, w: Tensor, lam: Tensor) -> tuple[Fraction, list[Fraction]]:
    """Compute the smallest margin and Z^T lam / sum(lam) with one loop an entry."""
    margins, gradient = [], [Fraction(0)] * X.shape[1]
    total = sum(map(Fraction, lam.tolist()))
    for row, label, multiplier in zip(X.tolist(), y.tolist(), lam.tolist(), strict=True):
        margin = Fraction(0)
        for j, (entry, weight) in enumerate(zip(row, w.tolist(), strict=True)):
            margin += int(label) * Fraction(entry) * Fraction(weight)
            gradient[j] += int(label) * Fraction(entry) * Fraction(multiplier) / total
        margins.append(margin)
    return min(margins), gradient


def plain_norm(values: Sequence[Fraction], kind: str) -> Fraction:
    return sum(map(abs, values), Fraction(0)) if kind == "l1" else max(map(abs, values))


def below(value: float) -> float:
    return math.nextafter(value, 0.0)


def above(value: float) -> float:
    return math.nextafter(value, math.inf)


# --- oracles


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attack", ["l1", "linf"])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (1, 7), (6, 4), (20, 50)])
def test_ends_are_the_floats_next_to_the_exact_fractions(
    attack: Norm, n: int, d: int, dtype: torch.dtype, randn: Randn
) -> None:
    for seed in range(5):
        X, y, w, lam = separated(randn, n, d, seed)
        X, w, lam = X.to(dtype), w.to(dtype), lam.to(dtype)
        margin, gradient = exact(X, y, w, lam)
        if margin <= 0:  # the labels were those of the unrounded points
            continue
        weights = [Fraction(value) for value in w.tolist()]
        low = margin / plain_norm(weights, "linf" if attack == "l1" else "l1")
        high = plain_norm(gradient, str(attack))
        got = enclosure(X, y, attack, w, lam)
        assert Fraction(got.lower) <= low < Fraction(above(got.lower))
        assert Fraction(below(got.upper)) < high <= Fraction(got.upper)


@pytest.mark.parametrize(("n", "d"), [(1, 1), (1, 7), (6, 4), (20, 50)])
def test_l2_ends_are_the_floats_next_to_the_roots(n: int, d: int, randn: Randn) -> None:
    X, y, w, lam = separated(randn, n, d)
    margin, gradient = exact(X, y, w, lam)
    size = sum(Fraction(value) ** 2 for value in w.tolist())
    length = sum(value**2 for value in gradient)
    got = enclosure(X, y, "l2", w, lam)
    # compared in squares, which fractions hold exactly; d = 1 is exact, and the root's ball is not
    slack = 1 if d > 1 else 1 + Fraction(1, 2**50)
    assert Fraction(got.lower) ** 2 * size <= margin**2
    assert Fraction(above(got.lower)) ** 2 * size * slack > margin**2
    assert Fraction(got.upper) ** 2 >= length
    assert Fraction(below(got.upper)) ** 2 < length * slack
    with mp.workdps(60):
        root = mp.sqrt(mpf(length.numerator) / length.denominator)
        assert abs(got.upper / root - 1) < 1e-15


def naive_moduli(values: Sequence[Fraction], shape: tuple[int, ...]) -> list[mpf]:
    """Sum the unitary transform's definition term by term, sixty digits."""
    numbers = [mpf(value.numerator) / value.denominator for value in values]
    places = list(product(*map(range, shape)))
    moduli = []
    for k in places:
        total = mp.mpc(0)
        for value, j in zip(numbers, places, strict=True):
            turn = sum(mpf(a * b) / side for a, b, side in zip(j, k, shape, strict=True))
            total += value * mp.expjpi(-2 * turn)
        moduli.append(abs(total) / mp.sqrt(len(values)))
    return moduli


@pytest.mark.parametrize("attack", FOURIER, ids=lambda kind: f"{kind}-{kind.shape}")
def test_fourier_ends_match_sixty_digits(attack: FourierNorm, randn: Randn) -> None:
    X, y, w, lam = separated(randn, 4, math.prod(attack.shape))
    margin, gradient = exact(X, y, w, lam)
    got = enclosure(X, y, attack, w, lam)
    with mp.workdps(60):
        weights = naive_moduli([Fraction(value) for value in w.tolist()], attack.shape)
        moduli = naive_moduli(gradient, attack.shape)
        size, high = (
            (max(weights), mp.fsum(moduli))
            if attack.order == "l1"
            else (mp.fsum(weights), max(moduli))
        )
        low = mpf(margin.numerator) / margin.denominator / size
        slack = mpf(10) ** -50  # of the sixty digits
        assert got.lower <= low * (1 + slack)
        assert got.upper >= high * (1 - slack)
        assert above(above(got.lower)) > low  # at most one float further than the nearest
        assert below(below(got.upper)) < high


@pytest.mark.parametrize("side", [1, 2, 5, 28, 100])
def test_spectrum_agrees_with_the_other_transform_of_the_library(side: int, randn: Randn) -> None:
    from flint import acb, arb, ctx

    values = [int(value) for value in (1e6 * randn(side, side)).tolist()]
    with ctx.workprec(128):
        other = [z / arb(side).sqrt() for z in acb.dft(values)]  # fast, by another algorithm
        spectrum = module._spectrum(values, (side,), 128)
        assert all(z.overlaps(u) for z, u in zip(spectrum, other, strict=True))
        assert max(float(z.abs_upper() - z.abs_lower()) for z in spectrum) < 1e-25


# --- toy: z_1 = (4, 1), z_2 = (1, 2)

TOY_X, TOY_Y = doubles([[4.0, 1.0], [-1.0, -2.0]]), torch.tensor([1, -1])
TOY: list[tuple[Norm, Fraction, tuple[float, float], tuple[float, float]]] = [
    # attack, square of eps*, optimal w, optimal lam up to scale
    ("linf", Fraction(49, 16), (1, 3), (1, 3)),
    ("l2", Fraction(5), (1, 2), (0, 1)),
    ("l1", Fraction(9), (1, 1), (0, 1)),
    (FourierNorm("linf", (2,)), Fraction(9, 2), (1, 1), (0, 1)),
    (FourierNorm("l1", (2,)), Fraction(49, 8), (1, 3), (1, 3)),
]


@pytest.mark.parametrize(("attack", "square", "w", "lam"), TOY, ids=lambda value: str(value))
def test_toy_by_hand(
    attack: Norm, square: Fraction, w: tuple[float, float], lam: tuple[float, float], randn: Randn
) -> None:
    points = doubles(w), doubles(lam)
    best = enclosure(TOY_X, TOY_Y, attack, *points)
    assert Fraction(best.lower) ** 2 <= square <= Fraction(best.upper) ** 2
    assert best.width <= 5e-16  # the two floats around the value
    if attack in ("linf", "l1"):
        assert best == Enclosure(math.sqrt(square), math.sqrt(square))
        assert best.width == 0
    solved = max_margin(TOY_X, TOY_Y, attack)
    for seed, noise in enumerate((0, 1e-12, 1e-6, 1e-2)):
        near = enclosure(
            TOY_X,
            TOY_Y,
            attack,
            solved.w * (1 + noise * randn(seed, 2)),
            (solved.lam * (1 + noise * randn(seed + 9, 2))).clamp(min=0),
        )
        assert Fraction(near.lower) ** 2 <= square <= Fraction(near.upper) ** 2
        assert near.width <= 1e-6 + 10 * noise


# --- solver points


@pytest.mark.oracle("lin.6.3")
@pytest.mark.parametrize(
    "attack",
    [*PLAIN, FourierNorm("linf", (100,)), FourierNorm("linf", (10, 10)), FourierNorm("l1", (100,))],
    ids=str,
)
@pytest.mark.parametrize(("n", "seed"), [(3, 0), (10, 1), (50, 2)])
def test_solver_points_are_proved_to_a_millionth(
    attack: Norm, n: int, seed: int, gaussian: Gaussian
) -> None:
    X, y = gaussian(n, seed)
    first = max_margin(X, y, attack)
    second = max_margin(X, y, attack, solver=second_solver(attack))
    for a, b in product((first, second), repeat=2):  # weights of one, dual point of the other
        got = enclosure(X, y, attack, a.w, b.lam)
        assert 0 < got.lower <= got.upper
        assert got.width <= 1e-6
        assert got.lower == pytest.approx(a.eps_star, rel=1e-12)
        assert got.upper == pytest.approx(b.upper, rel=1e-12)
        for result in (first, second):
            assert result.eps_star <= got.upper * (1 + 1e-12)
            assert result.upper >= got.lower * (1 - 1e-12)


def test_a_fashion_sized_problem_takes_less_than_five_seconds(randn: Randn) -> None:
    X, y, w, lam = separated(randn, 100, 784)
    for attack in (*PLAIN, FourierNorm("linf", (28, 28))):
        start = time.perf_counter()
        got = enclosure(X, y, attack, w, lam)
        assert time.perf_counter() - start < 5
        assert 0 < got.lower < got.upper


# --- properties

NUMBERS = st.one_of(
    st.integers(-3, 3).map(float),
    st.floats(-10, 10),
    st.floats(allow_nan=False, allow_infinity=False),  # up to 1e308 and denormal
)
NORMS_OF_SIX = (*PLAIN, *(FourierNorm(o, s) for o in ("l1", "linf") for s in ((6,), (2, 3))))


@given(
    entries=st.lists(NUMBERS, min_size=24, max_size=24),
    weights=st.lists(NUMBERS, min_size=6, max_size=6),
    multipliers=st.lists(NUMBERS.map(abs), min_size=4, max_size=4),
    attack=st.sampled_from(NORMS_OF_SIX),
    precision=st.sampled_from([2, 20, 53, 128, 300]),
    order=st.permutations(range(4)),
)
@settings(max_examples=300, deadline=None)
def test_any_points_make_a_sandwich_that_order_cannot_change(
    entries: list[float],
    weights: list[float],
    multipliers: list[float],
    attack: Norm,
    precision: int,
    order: list[int],
) -> None:
    X, w, lam = doubles(entries).reshape(4, 6), doubles(weights), doubles(multipliers)
    margins = [exact(row[None], torch.ones(1), w, torch.ones(1))[0] for row in X]
    y = torch.tensor([1 if margin > 0 else -1 for margin in margins])
    if 0 in margins or not lam.any():
        with pytest.raises(ValueError, match=r"exactly zero|all zero"):
            enclosure(X, y, attack, w, lam)
        return
    got = enclosure(X, y, attack, w, lam, precision=precision)
    assert 0 <= got.lower <= got.upper
    assert got.width >= 0
    assert got == enclosure(X[order], y[order], attack, w, lam[order], precision=precision)
    assert got == enclosure(-X, -y, attack, w, lam, precision=precision)
    if attack in PLAIN:
        assert got == enclosure(X.flip(1), y, attack, w.flip(0), lam, precision=precision)


@pytest.mark.parametrize("attack", NORMS_OF_SIX, ids=str)
@pytest.mark.parametrize("power", [-900, -3, 1, 60, 900])
def test_scale_of_the_points_leaves_it_exactly_unchanged(
    attack: Norm, power: int, randn: Randn
) -> None:
    X, y, w, lam = separated(randn, 4, 6)
    plain = enclosure(X, y, attack, w, lam)
    scale = math.ldexp(1.0, power)
    assert enclosure(X, y, attack, scale * w, lam) == plain
    assert enclosure(X, y, attack, w, scale * lam) == plain
    scaled = enclosure(scale * X, y, attack, w, lam)
    assert scaled == Enclosure(scale * plain.lower, scale * plain.upper)
    assert enclosure(X, y.to(torch.int8), attack, w, lam) == plain
    assert enclosure(X, y.double(), attack, w, lam) == plain


@pytest.mark.parametrize("attack", NORMS_OF_SIX, ids=str)
def test_more_bits_tighten_and_few_bits_still_enclose(attack: Norm, randn: Randn) -> None:
    X, y, w, lam = separated(randn, 4, 6)
    nested = [enclosure(X, y, attack, w, lam, precision=bits) for bits in (2, 8, 30, 60, 128, 999)]
    for wide, tight in pairwise(nested):
        assert wide.lower <= tight.lower <= tight.upper <= wide.upper
    assert nested[-1] == nested[-2]


# --- rounding


def test_ends_bracket_a_third_and_its_width_is_rounded_up() -> None:
    X, y, one = doubles([[1.0, 0.0]]), torch.ones(1), torch.ones(1).double()
    got = enclosure(X, y, "linf", doubles([1.0, 2.0]), one)
    assert Fraction(got.lower) < Fraction(1, 3) < Fraction(above(got.lower))
    assert got.upper == 1
    width = Fraction(got.upper) / Fraction(got.lower) - 1
    assert Fraction(below(got.width)) < width <= Fraction(got.width)
    rows = torch.eye(3).double()
    third = enclosure(rows, torch.ones(3), "linf", torch.ones(3).double(), torch.ones(3).double())
    assert Fraction(third.lower) < Fraction(1, 3) < Fraction(third.upper)
    assert third.upper == above(third.lower)


@given(
    st.fractions(min_value=0, max_value=Fraction(2) ** 1100),
    st.integers(-1200, 0),
)
@settings(max_examples=300, deadline=None)
def test_outward_floats_are_the_nearest_on_their_side(value: Fraction, power: int) -> None:
    value *= Fraction(2) ** power
    low, high = module._outward(value, 0.0), module._outward(value, math.inf)
    assert low <= value <= high
    assert high == low or high == above(low)
    assert (high == low) == (value == low)


def test_results_outside_the_floats_are_clipped_outward() -> None:
    huge, tiny, one = 1.5e308, 5e-324, torch.ones(1)
    big = doubles([[huge, huge]])
    got = enclosure(big, one, "l1", torch.ones(2).double(), one.double())
    assert got == Enclosure(torch.finfo(torch.float64).max, math.inf)
    assert got.width == math.inf
    small = doubles([[tiny, 0.0]])
    got = enclosure(small, one, "linf", doubles([1.0, 1.0]), one.double())
    assert got == Enclosure(0.0, tiny)
    assert got.width == math.inf


# --- numbers that floating point gets wrong


def left_to_right(row: Tensor, w: Tensor) -> float:
    total = 0.0
    for entry, weight in zip(row.tolist(), w.tolist(), strict=True):
        total += entry * weight
    return total


@pytest.mark.parametrize("attack", PLAIN)
@pytest.mark.parametrize(("last", "sign"), [(-3.0, "exactly zero"), (-3.5, "negative")])
def test_a_margin_that_is_positive_by_rounding_only_is_refused(
    attack: Norm, last: float, sign: str
) -> None:
    row = doubles([1e16, 3.0, -1e16, last])
    w = torch.ones(4).double()
    assert left_to_right(row, w) > 0  # 1e16 + 3 is rounded to 1e16 + 4
    X = torch.stack([w, row])
    with pytest.raises(ValueError, match=f"the margin of row 1 is {sign}"):
        enclosure(X, torch.ones(2), attack, w, w[:2])


@pytest.mark.parametrize("attack", [*PLAIN, FourierNorm("linf", (3,)), FourierNorm("l1", (3,))])
def test_a_margin_that_rounding_hides_is_found(attack: Norm) -> None:
    row, w = doubles([1e16, 1.0, -1e16]), torch.ones(3).double()
    assert left_to_right(row, w) == 0
    size = {"linf": 3.0, "l2": math.sqrt(3), "l1": 1.0}
    expected = math.sqrt(3) if isinstance(attack, FourierNorm) else size[attack]
    got = enclosure(row[None], torch.ones(1), attack, w, torch.ones(1).double())
    assert got.lower == pytest.approx(1 / expected, rel=1e-15)


@pytest.mark.parametrize(
    ("attack", "square"),
    [
        ("l1", 1),
        ("l2", 1),
        ("linf", 1),
        (FourierNorm("linf", (2,)), Fraction(1, 2)),
        (FourierNorm("l1", (1, 2)), 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [1e-200, 5e-324, 1e200])
def test_products_that_underflow_or_overflow_are_exact(
    attack: Norm, square: Fraction, size: float
) -> None:
    X, w = doubles([[size, 0.0]]), doubles([size, 0.0])
    assert left_to_right(X[0], w) in (0.0, math.inf)
    got = enclosure(X, torch.ones(1), attack, w, doubles([size]))
    # one row, so eps* is its norm, and weights along it attain it
    assert Fraction(got.lower) ** 2 <= square * Fraction(size) ** 2 <= Fraction(got.upper) ** 2
    assert got.upper <= above(above(got.lower))


def test_a_vanishing_dual_combination_gives_no_bound_below_zero() -> None:
    X, y = doubles([[1.0, 1.0], [1.0, 1.0]]), torch.tensor([1, -1])
    with pytest.raises(ValueError, match="row 1 is negative"):
        enclosure(X, y, "l2", torch.ones(2).double(), torch.ones(2).double())


# --- refusals

ONES = torch.ones(2).double()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"X": torch.ones(2)}, r"X must have shape \(N, D\)"),
        ({"X": torch.full((2, 2), math.nan)}, "finite, row 0"),
        ({"y": torch.tensor([0, 1])}, r"labels must be -1 or \+1, got \[0\]"),
        ({"y": torch.ones(3)}, r"y must have shape \(2,\), got \(3,\)"),
        ({"attack": "l4"}, "unknown norm 'l4'"),
        ({"attack": FourierNorm("l1", (2, 2))}, r"\(2, 2\) does not fit 2 columns"),
        ({"w": torch.ones(3)}, r"w must be floating point of shape \(2,\).*got.*\(3,\)"),
        ({"w": torch.ones(2).int()}, "w must be floating point.*got torch.int32"),
        ({"w": torch.tensor([1.0, math.inf])}, "w must be finite, got inf at 1"),
        ({"w": torch.zeros(2)}, "w must not be all zero"),
        ({"w": torch.tensor([1.0, -1.0])}, "w does not separate.*row 1 is exactly zero"),
        ({"w": torch.tensor([-1.0, -1.0])}, "w does not separate.*row 0 is negative"),
        ({"lam": torch.ones(2, 1)}, r"lam must be floating.*\(2,\).*got.*\(2, 1\)"),
        ({"lam": torch.tensor([math.nan, 1.0])}, "lam must be finite, got nan at 0"),
        ({"lam": torch.tensor([1.0, -0.5])}, "lam must be at least 0, got -0.5 at 1"),
        ({"lam": torch.zeros(2)}, "lam must not be all zero"),
        ({"precision": 1}, "precision must be at least 2 bits, got 1"),
    ],
)
def test_malformed_input_is_named(changed: dict[str, object], message: str) -> None:
    good: dict[str, object] = {
        "X": doubles([[2.0, 1.0], [1.0, 1.0]]),
        "y": torch.ones(2),
        "attack": "l2",
        "w": ONES,
        "lam": ONES,
    }
    assert enclosure(**good).lower > 0  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        enclosure(**(good | changed))  # type: ignore[arg-type]


def test_a_witness_is_exact_or_none() -> None:
    corners = doubles([[1.0, 1.0], [-1.0, -1.0], [3.0, 1.0]])
    actual = exact_witness(corners, doubles([0.4, 0.6, 0.0]))  # only the support counts
    assert actual is not None
    assert actual.tolist() == [0.5, 0.5, 0.0]
    third = doubles([[0.3, 0.1], [-0.1, 0.2], [-0.1, -0.4]])
    actual = exact_witness(third, doubles([0.3, 0.3, 0.4]))
    assert actual is None or float((actual @ third).abs().max()) < 1e-16
    nearly = doubles([[1.0, above(1.0)], [-1.0, -1.0]])  # separable by one unit in the last place
    assert exact_witness(nearly, doubles([0.5, 0.5])) is None
    assert exact_witness(corners, doubles([0.5, 0.0, 0.5])) is None  # rows of one side
    assert exact_witness(corners, torch.zeros(3).double()) is None
    zeros = exact_witness(torch.zeros(2, 2).double(), doubles([1.0, 0.0]))
    assert zeros is not None
    assert zeros.tolist() == [1.0, 0.0]


def test_unsigned_labels_are_refused() -> None:
    X, one = doubles([[2.0, 1.0], [-1.0, -1.0]]), torch.ones(2).double()
    y = torch.tensor([1, 255], dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"labels.*got \[255\]; unsigned bytes"):
        enclosure(X, y, "l2", one, one)
    expected = enclosure(X, torch.tensor([1, -1]), "l2", one, one)
    for dtype in (torch.int8, torch.int32, torch.float16):
        assert enclosure(X, torch.tensor([1, -1]).to(dtype), "l2", one, one) == expected


# --- gradients, context, devices


def test_points_that_require_grad_are_only_read(randn: Randn) -> None:
    X, y, w, lam = separated(randn, 4, 6)
    expected = enclosure(X, y, "l2", w, lam)
    leaves = [t.clone().requires_grad_() for t in (X, w, lam)]
    assert enclosure(leaves[0], y, "l2", leaves[1], leaves[2]) == expected
    assert all(leaf.grad is None for leaf in leaves)
    assert torch.equal(leaves[0], X)


def test_the_working_precision_of_flint_is_left_as_it_was(randn: Randn) -> None:
    from flint import ctx

    before = ctx.prec
    enclosure(*separated(randn, 4, 6)[:2], "l2", *separated(randn, 4, 6)[2:], precision=300)
    assert ctx.prec == before


@pytest.mark.parametrize("attack", ["l2", FourierNorm("linf", (2, 3))], ids=str)
def test_inside_a_meta_context_values_are_the_same(
    attack: Norm, same_inside_meta: Callable[..., None], randn: Randn
) -> None:
    same_inside_meta(lambda X, y, w, lam: enclosure(X, y, attack, w, lam), *separated(randn, 4, 6))


@pytest.mark.gpu
@pytest.mark.parametrize("attack", ["l2", FourierNorm("linf", (2, 3))], ids=str)
def test_on_cuda_values_are_the_same(
    attack: Norm, same_on_cuda: Callable[..., None], randn: Randn
) -> None:
    same_on_cuda(lambda X, y, w, lam: enclosure(X, y, attack, w, lam), *separated(randn, 4, 6))
