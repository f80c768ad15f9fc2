"""Curvature and sharpness: quadratics, dense Hessians, naive ascent, rescaled networks."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, hessian

from trainaug.methods.cascading_sum import (
    gradient_lipschitz,
    hessian_top_eigenvalue,
    sharpness,
)
from trainaug.training.randomness import initialise, stream


def cross_entropy(logits, y):
    return F.cross_entropy(logits, y, reduction="none")


def own_losses(losses, y):
    return losses


class Quadratic(nn.Module):
    r"""Every example's loss is $\frac12\theta^\top A\theta$, of a matrix and a vector."""

    def __init__(self, a, theta):
        super().__init__()
        self.a = a
        self.first = nn.Parameter(theta[:6].clone().view(2, 3))
        self.rest = nn.Parameter(theta[6:].clone())

    def forward(self, x):
        theta = torch.cat([self.first.flatten(), self.rest])
        return (theta @ self.a @ theta / 2).expand(len(x))


def symmetric(eigenvalues, seed=0):
    d = len(eigenvalues)
    noise = torch.randn(d, d, dtype=torch.float64, generator=stream(seed, "a"))
    q = torch.linalg.qr(noise).Q
    return q @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ q.T


def net(kind="mlp", dtype=torch.float64, seed=0):
    with torch.device("meta"):
        layers = [nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)]
        if kind == "conv":
            layers = [nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(3, 3)]
        if kind == "norm":
            layers = [nn.Conv2d(1, 3, 2, bias=False), nn.BatchNorm2d(3), nn.ReLU()]
            layers += [nn.Flatten(), nn.Linear(3, 3)]
        model = nn.Sequential(*layers)
    initialise(model, stream(seed, "init"))
    if kind == "norm":
        model[1].eps = 1e-12
        model[1].running_mean.uniform_(-0.1, 0.1, generator=stream(0, "mean"))
        model[1].running_var.uniform_(0.1, 0.3, generator=stream(0, "var"))
    return model.to(dtype)


def batch(kind="mlp", dtype=torch.float64):
    x = torch.randn(12, 4, dtype=torch.float64, generator=stream(0, "x")).to(dtype)
    return (x if kind == "mlp" else x.view(12, 1, 2, 2)), torch.arange(12) % 3


def measured(model, x, y, criterion=cross_entropy, seed=0, **options):
    """Call all three with a generator of the same seed."""
    return [
        hessian_top_eigenvalue(model, criterion, x, y, generator=stream(seed, "v")),
        gradient_lipschitz(model, criterion, x, y, radius=0.1, generator=stream(seed, "v")),
        sharpness(model, criterion, x, y, rho=0.1, generator=stream(seed, "v")),
    ]


# --- curvature


@pytest.mark.oracle("csa.Q19")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "eigenvalues",
    [
        [7.0, 5, 3, 2, 1, 0.5, 0.1, 0],
        [2.0, 1, 0.5, 0, -1, -2, -3, -5],  # the strongest curvature is downward
        [4.0] * 8,
        [0.0] * 8,
        [1e-3] + [0.0] * 7,
    ],
    ids=str,
)
def test_curvature_of_quadratics(eigenvalues, seed, dtype):
    a, theta = symmetric(eigenvalues, seed).to(dtype), torch.ones(8, dtype=dtype)
    model, x, y = Quadratic(a, theta), torch.zeros(3, 1), torch.zeros(3)
    top = max(eigenvalues, key=abs)
    actual = hessian_top_eigenvalue(model, own_losses, x, y, generator=stream(seed, "v"))
    assert actual == pytest.approx(top, rel=1e-3, abs=1e-6)
    sharp = {"iterations": 500, "tolerance": 1e-12, "generator": stream(seed, "v")}
    actual = hessian_top_eigenvalue(model, own_losses, x, y, **sharp)
    assert actual == pytest.approx(top, rel=1e-5, abs=1e-6)
    # |A d| / |d| for every draw d, of any length
    g, ratios = stream(seed, "v"), []
    for _ in range(10):
        d = torch.cat([torch.randn(n, generator=g, dtype=dtype) for n in (6, 2)])
        ratios.append(float((a @ d).norm() / d.norm()))
    for radius in (0.5, 20.0):
        options = {"radius": radius, "generator": stream(seed, "v")}
        actual = gradient_lipschitz(model, own_losses, x, y, **options)
        assert actual == pytest.approx(max(ratios), rel=1e-5, abs=1e-5)  # rounding of theta + d
        assert actual <= abs(top) + 1e-5
        one = {"radius": radius, "draws": 1, "generator": stream(seed, "v")}
        first = gradient_lipschitz(model, own_losses, x, y, **one)
        assert first == pytest.approx(ratios[0], rel=1e-5, abs=1e-5)


def flat_hessian(model, x, y):
    """Differentiate twice with all parameters in one vector."""
    named = dict(model.named_parameters())

    def loss(flat):
        parts = flat.split([p.numel() for p in named.values()])
        at = {n: part.view(p.shape) for (n, p), part in zip(named.items(), parts, strict=True)}
        return cross_entropy(functional_call(model, at, (x,)), y).mean()

    start = torch.cat([p.detach().flatten() for p in named.values()])
    return hessian(loss)(start), torch.func.grad(loss), start


@pytest.mark.oracle("csa.Q19")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["mlp", "conv", "norm"])
def test_curvature_of_networks_is_that_of_the_dense_hessian(kind, seed):
    model, (x, y) = net(kind, seed=seed).eval(), batch(kind)
    dense, slope, start = flat_hessian(model, x, y)
    top = max(torch.linalg.eigvalsh(dense).tolist(), key=abs)
    actual = hessian_top_eigenvalue(model, cross_entropy, x, y, generator=stream(seed, "v"))
    assert actual == pytest.approx(top, rel=1e-3)
    sharp = {"iterations": 1000, "tolerance": 1e-13, "generator": stream(seed, "v")}
    actual = hessian_top_eigenvalue(model, cross_entropy, x, y, **sharp)
    assert actual == pytest.approx(top, rel=1e-6)
    g, ratios, near = stream(seed, "v"), [], []
    sizes = [p.numel() for p in model.parameters()]
    for _ in range(4):
        d = torch.cat([torch.randn(n, generator=g, dtype=torch.float64) for n in sizes])
        d = 0.3 * d / d.norm()
        ratios.append(float((slope(start + d) - slope(start)).norm() / 0.3))
        near.append(float((dense @ d).norm() / 0.3))
    for radius, expected, rel in ((0.3, ratios, 1e-9), (1e-6, near, 1e-4)):
        options = {"radius": radius, "draws": 4, "generator": stream(seed, "v")}
        actual = gradient_lipschitz(model, cross_entropy, x, y, **options)
        assert actual == pytest.approx(max(expected), rel=rel)


@pytest.mark.parametrize("linear", [True, False])
def test_parameters_without_curvature_count_as_zero(linear):
    class Extra(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.unused = net(), nn.Parameter(torch.ones(2, 2).double())

        def forward(self, x):
            return self.inner[0](x)[:, :1] if linear else self.inner(x)

    x, y = batch()
    criterion = (lambda z, y: z[:, 0]) if linear else cross_entropy
    values = measured(Extra(), x, y, criterion)
    if linear:
        assert values[:2] == [0.0, 0.0]
        model = net()[0]  # the loss sees its first filter
        rise = 0.1 * float(model.weight[0].detach().norm() * x.mean(0).norm())
        assert values[2] == pytest.approx(rise, rel=1e-3)
    else:
        alone = measured(net(), x, y)
        assert values[0] == pytest.approx(alone[0], rel=1e-3)
        assert values[1] <= values[0]
        assert values[2] == pytest.approx(alone[2], rel=1e-2)  # from another second start


# --- sharpness


def naive_sharpness(model, x, y, rho, g, steps, restarts):
    """Climb filter by filter, in loops."""
    named = {n: p.detach().clone() for n, p in model.named_parameters()}
    filters = [(n, i) for n, p in named.items() if p.ndim > 1 for i in range(len(p))]

    def loss_at(delta):
        at = {n: p.clone() for n, p in named.items()}
        for n, i in filters:
            at[n][i] += delta[n, i]
        for p in at.values():
            p.requires_grad_()
        loss = cross_entropy(functional_call(model, at, (x,)), y).mean()
        loss.backward()
        return loss.item(), at

    start, seen = loss_at(dict.fromkeys(filters, 0.0))[0], []
    for _ in range(restarts):
        drawn = {n: torch.randn(p.shape, dtype=p.dtype, generator=g) for n, p in named.items()}
        radius = {(n, i): rho * named[n][i].norm() for n, i in filters}
        delta = {(n, i): radius[n, i] * drawn[n][i] / drawn[n][i].norm() for n, i in filters}
        for _ in range(steps):
            loss, at = loss_at(delta)
            seen.append(loss)
            for n, i in filters:
                slope = at[n].grad[i]
                ahead = delta[n, i] + radius[n, i] / 2 * slope / slope.norm()
                delta[n, i] = ahead * min(1.0, float(radius[n, i] / ahead.norm()))
        seen.append(loss_at(delta)[0])
    return max(0.0, max(seen) - start)


@pytest.mark.oracle("csa.Q19")
@pytest.mark.parametrize("rho", [0.02, 0.3])
@pytest.mark.parametrize(("steps", "restarts"), [(1, 1), (10, 2)])
@pytest.mark.parametrize("kind", ["mlp", "conv", "norm"])
def test_sharpness_matches_naive_ascent(kind, steps, restarts, rho):
    model, (x, y) = net(kind).eval(), batch(kind)
    expected = naive_sharpness(model, x, y, rho, stream(0, "v"), steps, restarts)
    options = {"rho": rho, "steps": steps, "restarts": restarts, "generator": stream(0, "v")}
    actual = sharpness(model, cross_entropy, x, y, **options)
    assert actual == pytest.approx(expected, rel=1e-9)
    if steps == 10:
        assert actual > 0


@pytest.mark.oracle("csa.Q19")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sharpness_of_round_quadratics_is_closed_form(dtype):
    theta = torch.tensor([3.0, 4, 0, 0, 0, 0, 1, 1], dtype=dtype)  # filters of length 5 and 0
    x, y = torch.zeros(3, 1), torch.zeros(3)
    for curvature, rho in ((2.0, 0.1), (0.5, 1.0)):
        model = Quadratic(curvature * torch.eye(8, dtype=dtype), theta)
        options = {"rho": rho, "steps": 60, "generator": stream(0, "v")}
        actual = sharpness(model, own_losses, x, y, **options)
        # the worst point lies outward, at (1 + rho) theta; the vector is no filter and stays
        assert actual == pytest.approx(curvature / 2 * 25 * ((1 + rho) ** 2 - 1), rel=1e-5)
        hill = Quadratic(-curvature * torch.eye(8, dtype=dtype), theta)
        inward = {"rho": 0.1, "steps": 60, "generator": stream(0, "v")}
        actual = sharpness(hill, own_losses, x, y, **inward)
        assert actual == pytest.approx(curvature / 2 * 25 * (1 - 0.9**2), rel=1e-5)


@pytest.mark.oracle("csa.Q19")
@pytest.mark.parametrize("kind", ["mlp", "conv", "norm"])
def test_sharpness_rises_with_the_radius_from_its_slope_at_zero(kind):
    model, (x, y) = net(kind).eval(), batch(kind)
    radii = [1e-6, 0.01, 0.03, 0.1, 0.3, 1.0]
    options = {"steps": 40, "restarts": 3}
    values = [
        sharpness(model, cross_entropy, x, y, rho=rho, generator=stream(0, "v"), **options)
        for rho in radii
    ]
    assert values == sorted(values)
    assert values[0] > 0
    cross_entropy(model(x), y).mean().backward()
    filters = [p for p in model.parameters() if p.ndim > 1]
    slope = sum(
        float((p.detach().flatten(1).norm(dim=1) * p.grad.flatten(1).norm(dim=1)).sum())
        for p in filters
    )
    assert values[0] / 1e-6 == pytest.approx(slope, rel=1e-3)


@pytest.mark.oracle("csa.Q19")
@pytest.mark.parametrize("kind", ["conv", "norm"])
def test_sharpness_does_not_see_the_scale_of_filters(kind):
    model, (x, y) = net(kind).eval(), batch(kind)
    other = copy.deepcopy(model)
    with torch.no_grad():
        if kind == "conv":  # a ReLU passes a factor on, the next layer takes it back
            other[0].weight *= 7.3
            other[0].bias *= 7.3
            other[3].weight /= 7.3
        else:  # each filter its own factor, which its statistics take back
            model[1].eps = other[1].eps = 0.0
            factor = torch.tensor([0.2, 3.0, 11.0], dtype=torch.float64)
            other[0].weight *= factor.view(3, 1, 1, 1)
            other[1].running_mean *= factor
            other[1].running_var *= factor.square()
    torch.testing.assert_close(other(x), model(x), rtol=1e-12, atol=1e-12)
    a, b = measured(model, x, y), measured(other, x, y)
    assert a[2] == pytest.approx(b[2], rel=1e-8)
    assert a[0] != pytest.approx(b[0], rel=0.1)  # while the Hessian does see it


# --- what settles, and what does not


SPECTRA = {
    "saddle": [3.0, -3, 1, -1, 0.5, -0.5, 0, 0],
    "close": [2.0, -1.99, 1, 0, 0, 0, 0, 0],
    "downward": [-4.0, 1, 1, 1, 0, 0, 0, 0],
    "flat": [1.0, 0.99, 0.98, 0.97, 0.96, 0.95, 0.94, 0.93],
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SPECTRA)
def test_a_curvature_that_is_given_is_an_eigenvalue(name, seed):
    a = symmetric(SPECTRA[name], seed)
    model, x, y = Quadratic(a, torch.ones(8).double()), torch.zeros(3, 1), torch.zeros(3)
    actual = hessian_top_eigenvalue(model, own_losses, x, y, generator=stream(seed, "v"))
    assert abs(actual) == pytest.approx(max(map(abs, SPECTRA[name])), rel=1e-2)
    assert min(abs(actual - value) for value in SPECTRA[name]) < 1e-3
    options = {"iterations": 2, "tolerance": 1e-6, "generator": stream(seed, "v")}
    with pytest.raises(ArithmeticError, match="no eigenvalue settled in 2 products"):
        hessian_top_eigenvalue(model, own_losses, x, y, **options)
    power = hessian_top_eigenvalue(model, own_losses, x, y, stopping="change", **options)
    assert abs(power) <= max(map(abs, SPECTRA[name])) + 1e-9  # some number, always


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_one_parameter_and_no_curvature_settle_at_once(dtype):
    single = nn.Module()
    single.p = nn.Parameter(torch.ones(1, dtype=dtype))
    for scale in (5.0, -5.0, 0.0):
        single.forward = lambda x, scale=scale: scale / 2 * single.p.square() + 0 * x
        options = {"iterations": 1, "tolerance": 0.0, "generator": stream(0, "v")}
        x = torch.zeros(3, dtype=dtype)
        assert hessian_top_eigenvalue(single, own_losses, x, x, **options) == scale


def test_nested_batches_and_wrapped_models_are_measured_alike():
    class Parts(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return {"logits": self.inner(torch.cat([x["a"], x["b"]], 1))}

    x, y = batch()
    nested = {"a": x[:, :1], "b": x[:, 1:]}
    actual = measured(Parts(net()), nested, (y,), lambda z, y: cross_entropy(z["logits"], y[0]))
    assert actual == measured(net(), x, y)
    assert measured(nn.DataParallel(net()), x, y) == measured(net(), x, y)
    compiled = torch.compile(net(), backend="aot_eager")  # which has no second backward pass
    assert measured(compiled, x, y) == measured(net(), x, y)


@pytest.mark.parametrize("number", range(3))
def test_half_precision_and_values_that_are_not_finite_are_refused(number):
    def measure(model, x, y):
        calls = (
            lambda: hessian_top_eigenvalue(model, cross_entropy, x, y, generator=stream(0, "v")),
            lambda: gradient_lipschitz(
                model, cross_entropy, x, y, radius=0.1, generator=stream(0, "v")
            ),
            lambda: sharpness(model, cross_entropy, x, y, rho=0.1, generator=stream(0, "v")),
        )
        return calls[number]()

    x, y = batch()
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(TypeError, match=f"0.weight is {dtype}"):
            measure(net().to(dtype), x.to(dtype), y)
    for bad in (float("nan"), float("inf")):
        wrong = x.clone()
        wrong[2, 1] = bad
        with pytest.raises(FloatingPointError, match="not finite"):
            measure(net(), wrong, y)
    with torch.autocast("cpu", torch.bfloat16):  # not of the caller's model
        actual = measure(net(dtype=torch.float32), x.float(), y)
    assert actual == measure(net(dtype=torch.float32), x.float(), y)
