"""Centres of clusters of gradients: distances on every route, updates, splits, on-line moves."""

from __future__ import annotations

import copy
import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad, vmap

from trainaug.methods.gradient_clustering import GradientCenters, gram_matrix, layer_factors
from trainaug.methods.gradient_clustering import centers as module
from trainaug.methods.gradient_clustering.centers import choose_route, route_costs
from trainaug.training.randomness import initialise, stream

KINDS = ["means", "svd", "full"]
ROUTES = ["factored", "mixed", "materialised"]
losses_of = partial(F.cross_entropy, reduction="none")


class Positions(nn.Module):
    """Linear layers over 3 positions, the first without a bias."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 5, bias=False), nn.Linear(5, 3)

    def forward(self, x):
        return self.b(self.a(x.view(-1, 3, 4)).tanh()).sum(1)


def cnn():
    layers = [nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(2, 3, 2, bias=False)]
    return nn.Sequential(nn.Unflatten(1, (1, 3, 4)), *layers, nn.Flatten(), nn.Linear(3, 3))


MODELS = {
    "mlp": lambda: nn.Sequential(nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3)),
    "positions": Positions,
    "cnn": cnn,
}


def problem(name, randn, b=9, dtype=torch.float64, scale=1.0):
    """Return factors, and gradients by layer ``(B, O, I)``, the bias in the last column."""
    with torch.device("meta"):
        model = MODELS[name]()
    initialise(model, stream(0, "init"))
    model.to(dtype)
    x, y = scale * randn(1, b, 12, dtype=dtype), torch.arange(b) % 3

    def loss(p, x, y):
        return losses_of(functional_call(model, p, (x[None],)), y[None])[0]

    actual = vmap(grad(loss), (None, 0, 0))(dict(model.named_parameters()), x, y)
    grads = {}
    for layer, part in model.named_modules():
        if getattr(part, "weight", None) is not None:
            g = actual[f"{layer}.weight"].flatten(2)
            if part.bias is not None:
                g = torch.cat([g, actual[f"{layer}.bias"][:, :, None]], 2)
            grads[layer] = g.detach()
    return layer_factors(model, losses_of, x, y), grads


def outer(center):
    """Centres as matrices, ``(K, O, I)``."""
    return center[0] if len(center) == 1 else center[1][:, :, None] * center[0][:, None, :]


def pick(factors, rows):
    return {name: layer.rows(rows) for name, layer in factors.items()}


def placed(kind, factors, rows):
    centers = GradientCenters(len(rows), kind)
    centers.append(pick(factors, torch.tensor(rows, device="cpu")))
    return centers


def averages(layer):
    """Mean inputs and summed output gradients, one position at a time."""
    a, d, t = layer.inputs(), layer.grads(), layer.sizes[3]
    c, e = (sum(v[:, :, s] for s in range(t)) for v in (a / t, d))
    return (torch.cat([c, c.new_ones(len(c), 1)], 1) if layer.bias else c), e


# --- distances


@pytest.mark.oracle("gc.2")
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_distances_equal_materialised_ones_on_every_route(name, kind, route, randn, monkeypatch):
    monkeypatch.setattr(module, "choose_route", lambda *sizes: route)
    factors, grads = problem(name, randn)
    centers = placed(kind, factors, [0, 4, 8, 3])
    for block in (1 << 20, 40):  # all at once, and a few examples at a time
        monkeypatch.setattr(module, "BLOCK", block)
        actual = centers.sq_distances(factors)
        assert actual.dtype == torch.float64
        expected = torch.zeros(9, 4, dtype=torch.float64)
        for layer, g in grads.items():
            matrices = outer(centers.centers[layer])
            for i, k in itertools.product(range(9), range(4)):
                expected[i, k] += (matrices[k] - g[i]).square().sum()
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)
    if kind == "full" or (kind == "svd" and name == "mlp"):  # rank one, each
        assert float(actual[torch.tensor([0, 4, 8, 3]), torch.arange(4)].max()) == 0.0


@pytest.mark.oracle("gc.2")
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", MODELS)
def test_distances_in_float32_are_accurate_and_never_negative(name, route, randn, monkeypatch):
    monkeypatch.setattr(module, "choose_route", lambda *sizes: route)
    for scale in (1.0, 30.0):
        factors, grads = problem(name, randn, 40, torch.float32, scale)
        for kind in KINDS:
            centers = placed(kind, factors, list(range(40)))
            actual = centers.sq_distances(factors)
            assert actual.dtype == torch.float64
            assert float(actual.min()) >= 0.0
            expected, largest = torch.zeros_like(actual), torch.zeros(40, 1, dtype=torch.float64)
            for layer, g in grads.items():
                g, c = g.double(), outer(centers.centers[layer]).double()
                expected += (c - g[:, None]).square().sum((2, 3))
                largest += g.square().sum((1, 2))[:, None] + c.square().sum((1, 2)).max()
            # 2^-23 for each of the rounded terms, and some more for their sums
            assert float(((actual - expected).abs() / largest).max()) < 1e-6


def test_bad_input_is_refused(randn):
    factors, _ = problem("mlp", randn)
    centers = placed("means", factors, [0, 1])
    with pytest.raises(ValueError, match="num_clusters must be >= 1, got 0"):
        GradientCenters(0)
    with pytest.raises(ValueError, match=r"kind must be one of .* got 'mean'"):
        GradientCenters(2, "mean")
    with pytest.raises(ValueError, match=r"centres of \['0', '2'\], gradients of \['2'\]"):
        centers.sq_distances({"2": factors["2"]})


def test_route_costs_by_hand():
    products, large = 3 * 2 * 13 / 2, 3 * 2 * 35 / 2
    linear = [products + 2 * 12, products + 2 * 35 * 2, 2 * 35 * 2 + large]
    assert [*route_costs(2, 3, 5, 7, 1).values()] == linear
    lengths = 2 * 16 * 13 + 32 * 2 * 5 * 4
    conv = [4 * products + lengths, 4 * products + 2 * 35 * 5, 2 * 35 * 5 + large]
    assert [*route_costs(2, 3, 5, 7, 4).values()] == conv


@given(*[st.integers(1, n) for n in (300, 300, 2000, 2000, 800)])
@settings(max_examples=100, deadline=None)
def test_the_route_costs_least(b, k, i, o, t):
    costs = route_costs(b, k, i, o, t)
    assert costs[choose_route(b, k, i, o, t)] == min(costs.values())


def test_routes_of_known_layers():
    for i, o in ((785, 1024), (1025, 1024), (1025, 10)):  # the MLP that the work runs on MNIST
        assert choose_route(128, 128, i, o, 1) == "factored"
    assert choose_route(128, 128, 145, 16, 28 * 28) == "materialised"
    assert choose_route(128, 1, 300, 300, 9) == "factored"
    assert choose_route(128, 1, 300, 300, 140) == "mixed"


@pytest.mark.parametrize("name", MODELS)
def test_gram_matrix_equals_products_of_gradients(name, randn):
    factors, grads = problem(name, randn, 9, torch.float32)
    g = torch.cat([part.double().flatten(1) for part in grads.values()], 1)
    actual = gram_matrix(pick(factors, slice(2)), pick(factors, slice(1, 9)))
    assert actual.dtype == torch.float64
    torch.testing.assert_close(actual, g[:2] @ g[1:].T, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="no layers"):
        gram_matrix({}, {})


# --- updates

ASSIGN = [2, 0, 2, 2, 0, 4, 2, 0, 2]  # 1 and 3 stay empty


def naive_centers(kind, layer, g, members):
    if kind == "means":
        c, d = (v[members].mean(0) for v in averages(layer))
        return d[:, None] * c
    mean = g[members].mean(0)
    if kind == "full":
        return mean
    u, s, vh = torch.linalg.svd(mean)
    return s[0] * u[:, :1] * vh[:1]


@pytest.mark.parametrize("split", [None, (1, 2), (3, 0)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_updates_equal_naive_means(name, kind, split, randn):
    factors, grads = problem(name, randn)
    half = torch.tensor([0, 0, 1, 0, 1, 1, 1, 1, 0])
    centers = placed(kind, factors, [0, 2, 4, 6, 8])
    before = copy.deepcopy(centers.centers)
    for rows in (slice(0, 4), slice(4, 8), slice(8, 9)):  # a ragged last batch
        centers.add(pick(factors, rows), torch.tensor(ASSIGN)[rows], half[rows])
    sizes = centers.update(split)
    empty, other = split or (None, None)
    second = [label == other and h == 1 for label, h in zip(ASSIGN, half, strict=True)]
    assign = [empty if moves else label for moves, label in zip(second, ASSIGN, strict=True)]
    assert sizes.tolist() == [assign.count(k) for k in range(5)]
    for layer, g in grads.items():
        for k in range(5):
            members = [i for i, label in enumerate(assign) if label == k]
            actual = outer(centers.centers[layer])[k]
            expected = outer(before[layer])[k]  # without examples
            if members:
                expected = naive_centers(kind, factors[layer], g, members)
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-13 if members else 0)
    after = centers.sq_distances(factors)
    assert centers.update().tolist() == [0] * 5  # nothing is left of the sums
    centers.add(factors, torch.tensor(ASSIGN), half)
    centers.discard()
    assert centers.update().tolist() == [0] * 5
    assert torch.equal(centers.sq_distances(factors), after)


def test_svd_is_the_best_rank_one_and_means_are_not(randn):
    factors, grads = problem("mlp", randn)
    actual, mean, zeros = {}, grads["0"].mean(0), torch.zeros(9, dtype=torch.int64)
    for kind in KINDS:
        centers = placed(kind, factors, [0])
        centers.add(factors, zeros, zeros)
        centers.update()
        actual[kind] = float((outer(centers.centers["0"])[0] - mean).norm())
    rest = float(torch.linalg.svdvals(mean)[1:].norm())
    assert actual["full"] == pytest.approx(0, abs=1e-14)
    assert actual["svd"] == pytest.approx(rest, abs=1e-13)
    assert actual["means"] > 1.05 * rest


@pytest.mark.parametrize("decay", [0.0, 0.7, 0.999])
@pytest.mark.parametrize("name", MODELS)
def test_on_line_moves_equal_a_naive_loop(name, decay, randn):
    factors, _ = problem(name, randn)
    centers = placed("means", factors, [0, 2, 4, 6, 8])
    sizes, s = torch.tensor([2.0, 1.0, 0.5, 0.0, 0.0], dtype=torch.float64), [2, 1, 0.5, 0, 0]
    naive = {n: [[v.clone() for v in part] for part in c] for n, c in centers.centers.items()}
    for rows in (slice(0, 6), slice(6, 9)):
        labels = ASSIGN[rows]
        sizes = centers.blend(pick(factors, rows), torch.tensor(labels), sizes, decay)
        for k in range(5):
            new = decay * s[k] + (1 - decay) * labels.count(k)
            for layer, parts in naive.items():
                for part, values in zip(parts, averages(factors[layer].rows(rows)), strict=True):
                    total = sum(v for v, label in zip(values, labels, strict=True) if label == k)
                    if new > 0:
                        part[k] = (decay * s[k] * part[k] + (1 - decay) * total) / new
            s[k] = new
        assert sizes.tolist() == pytest.approx(s, abs=1e-15)
        for layer, parts in naive.items():
            expected = tuple(torch.stack(part) for part in parts)
            torch.testing.assert_close(centers.centers[layer], expected, rtol=0, atol=1e-13)
    for kind in ("svd", "full"):
        with pytest.raises(ValueError, match=f"are means, got kind='{kind}'"):
            placed(kind, factors, [0, 1]).blend(factors, torch.zeros(9).long(), torch.ones(2), 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_centers_are_copied_moved_and_restored(kind, randn):
    factors, _ = problem("cnn", randn)

    def call():
        assign = torch.tensor(ASSIGN, device="cpu") // 2
        centers, other = placed(kind, factors, [0, 1, 2]), GradientCenters(3, kind)
        state = centers.state_dict()
        centers.copy_center(0, 2)
        centers.move_to(factors, 1, 8)
        for part in (other, other):  # the state is a copy, and stays one
            part.load_state_dict(state)
            part.add(factors, assign, assign % 2)
            restored = part.sq_distances(factors)
            part.update((2, 0))
        expected = placed(kind, factors, [0, 8, 0]), placed(kind, factors, [0, 1, 2])
        return [restored] + [c.sq_distances(factors) for c in (centers, *expected, other)]

    actual = call()
    restored, moved, expected, first, updated = actual
    torch.testing.assert_close(torch.stack([moved, restored]), torch.stack([expected, first]))
    assert float((updated - first).abs().max()) > 0.1
    with torch.device("meta"):
        inside = call()  # an SVD may differ in the last bit
    torch.testing.assert_close(inside, actual, rtol=0, atol=1e-13)
