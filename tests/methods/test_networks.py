"""Linear networks and adversarial paths against PyTorch layers, autograd and the optimiser."""

from __future__ import annotations

import contextlib
import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from trainaug.methods.linear_robustness import (
    NORMS,
    CircularConvLinear,
    DeepLinear,
    FourierNorm,
    LinearClassifier,
    SteepestDescent,
    adversarial_paths,
    convolutional_paths,
    dense_paths,
    dual,
    max_margin,
    norm,
    regularisation_path,
    robust_radius,
    signed_rows,
    steepest_descent_paths,
)

SHAPES = [(1,), (2,), (5,), (6,), (2, 3), (4, 4), (3, 5)]
DEPTHS = [1, 2, 3, 4]
MASK = torch.tensor([[True] * 4, [True, False, True, False]])
ATTACKS = [*NORMS, FourierNorm("linf", (2, 3)), FourierNorm("l1", (6,))]
EXACT = 1e-12  # rounding of a few hundred products of order one


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def filled(net, seed):
    """Replace all weights by normal ones in float64: fresh networks are zero."""
    generator = seeded(seed)
    for p in net.double().parameters():
        p.data.normal_(generator=generator)
    return net


def torch_layers(weight, x, shape):
    """Apply the filters with conv1d or conv2d, circular padding and full width."""
    d = math.prod(shape)
    convolve = F.conv1d if len(shape) == 1 else F.conv2d
    padding = [side for n in reversed(shape) for side in (0, n - 1)]
    for w in weight[:-1]:
        image = F.pad(x.reshape(-1, 1, *shape), padding, mode="circular")
        x = convolve(image, w.reshape(1, 1, *shape)).flatten(1) / math.sqrt(d)
    return x @ weight[-1]


@pytest.mark.oracle("lin.6.12")
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_is_the_product_with_its_linearisation(depth, shape, randn):
    d = math.prod(shape)
    x = randn(0, 7, d)
    conv = filled(CircularConvLinear(shape, depth, seeded(0)), 2)
    for net in (conv, filled(DeepLinear(d, depth, seeded(0)), 1), filled(LinearClassifier(d), 3)):
        point = x[0].clone().requires_grad_()
        (by_autograd,) = torch.autograd.grad(net(point[None]).sum(), point)
        beta = net.linearize().detach()
        scale = float(beta.abs().max()) * d  # depth 4 reaches 1e3
        torch.testing.assert_close(net(x).detach(), x @ beta, rtol=0, atol=EXACT * scale)
        torch.testing.assert_close(by_autograd, beta, rtol=0, atol=EXACT * scale)
        assert net(x).shape == (7,)
    expected = torch_layers(conv.weight, x, shape)
    torch.testing.assert_close(conv(x), expected, rtol=1e-10, atol=1e-10)
    spectra = torch.fft.fftn(conv.weight.unflatten(-1, shape), dim=tuple(range(1, 1 + len(shape))))
    product = (spectra / math.sqrt(d)).prod(0).flatten()
    beta = torch.fft.fftn(conv.linearize().reshape(shape), norm="ortho").flatten()
    torch.testing.assert_close(beta, product, rtol=1e-10, atol=1e-10)


def test_start_is_zero_at_the_end_and_unit_columns_before():
    dense, conv = DeepLinear(6, 3, seeded(0)), CircularConvLinear((2, 3), 3, seeded(0))
    assert torch.equal(dense.last, torch.zeros(6))
    assert torch.equal(conv.weight[-1], torch.zeros(6))
    torch.testing.assert_close(dense.hidden.norm(dim=1), torch.ones(2, 6))
    torch.testing.assert_close(conv.weight[:-1].norm(dim=1), torch.ones(2))
    assert torch.equal(LinearClassifier(6).weight, torch.zeros(6))
    assert torch.equal(dense.hidden, DeepLinear(6, 3, seeded(0)).hidden)
    assert CircularConvLinear((6,), 1, seeded(0)).weight.shape == (1, 6)
    for size, depth in ((6, 0), (0, 2)):
        with pytest.raises(ValueError, match="at least"):
            DeepLinear(size, depth, seeded(0))
    for shape, depth in (((6,), 0), ((6, 0), 2), ((), 2)):
        with pytest.raises(ValueError, match="at least"):
            CircularConvLinear(shape, depth, seeded(0))
    with pytest.raises(ValueError, match="at least"):
        LinearClassifier(0)


def descend(net, Z, steps, lr=0.3):
    """Train one network with the package's optimiser; return its functions and costs."""
    optimizer = SteepestDescent(net.parameters(), lr, "l2", "normalized")
    betas, costs = [], []
    for _ in range(steps + 1):
        betas.append(net.linearize().detach().clone())
        costs.append(sum(p.detach().square().sum() for p in net.parameters()))
        optimizer.zero_grad()
        torch.logsumexp(-net(Z), 0).backward()
        optimizer.step()
    return torch.stack(betas), torch.stack(costs)


@pytest.mark.oracle("lin.6.12")
@pytest.mark.parametrize("depth", [2, 3])
def test_all_zero_start_is_a_saddle(depth, randn):
    for net in (DeepLinear(6, depth, seeded(0)), CircularConvLinear((6,), depth, seeded(0))):
        for p in net.parameters():
            p.data.zero_()
        betas, costs = descend(net.double(), randn(1, 3, 6), 3)
        assert not betas.any()
        assert not costs.any()


@pytest.mark.oracle("lin.6.12")
def test_balanced_rescaling_keeps_the_function():
    net = filled(CircularConvLinear((3, 4), 3, seeded(0)), 4)
    before = net.linearize().detach()
    net.weight.data[:2] *= torch.tensor([[-8.0], [-1 / 8]]).double()
    torch.testing.assert_close(net.linearize().detach(), before, rtol=0, atol=EXACT)


@given(shape=st.sampled_from(SHAPES), depth=st.sampled_from([2, 3]), seed=st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_least_cost_of_a_function_is_its_quasi_norm(shape, depth, seed):
    """Theorem 9: sum_l |w_l|^2 >= L sum_k |b_k|^(2/L), attained by equal moduli."""
    d, kind = math.prod(shape), FourierNorm("l1", shape)
    drawn = torch.randn(depth, d, generator=seeded(seed), dtype=torch.float64)
    b = kind.transform(drawn[0])
    least = depth * float(b.abs().pow(2 / depth).sum())
    factors = b.abs().pow(1 / depth).expand(depth, d).to(b.dtype).clone()
    factors[0] *= b / b.abs()  # the phases of a real signal are Hermitian, and 0 as well
    net = CircularConvLinear(shape, depth, seeded(0)).double()
    other = torch.cat([kind.transform(drawn[1:]), b[None]])
    other[-1] /= other[:-1].prod(0)
    for spectra, attained in ((factors, True), (other, False)):
        net.weight.data.copy_(kind.invert(spectra))
        cost = float(net.weight.detach().square().sum())
        # dividing by small bins costs the second kind digits
        size = 1e-13 * d * (1 + float(spectra.abs().max())) ** depth
        torch.testing.assert_close(net.linearize().detach(), drawn[0], rtol=0, atol=size)
        assert cost >= least * (1 - 1e-12)
        assert not attained or cost == pytest.approx(least, rel=1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_convolutional_paths_equal_training_the_modules(shape, randn):
    d, steps = math.prod(shape), 25
    Z, mask = randn(5, 2, 4, d), MASK
    lr = [0.3, 0.2, 0.1, 0.05]
    options = {"record_at": range(steps + 1), "generator": seeded(6), "mask": mask}
    actual = convolutional_paths(Z, shape, DEPTHS, lr=lr, **options)
    drawn = torch.randn(4, d, 1, generator=seeded(6)).squeeze(-1)
    start = (drawn / drawn.norm(dim=1, keepdim=True)).double()
    assert actual.steps.tolist() == list(range(steps + 1))
    assert actual.beta.shape == (steps + 1, 2, 4, d)
    for m, depth in enumerate(DEPTHS):
        for i in range(2):
            net = CircularConvLinear(shape, depth, seeded(0)).double()
            net.weight.data[:-1] = start[: depth - 1]
            betas, costs = descend(net, Z[i][mask[i]], steps, lr[m])
            torch.testing.assert_close(actual.beta[:, i, m], betas, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(actual.cost[:, i, m], costs, rtol=1e-9, atol=1e-9)
    options |= {"record_at": [3, 7], "generator": seeded(6)}
    sparse = convolutional_paths(Z, shape, DEPTHS, lr=lr, **options)
    assert torch.equal(sparse.beta, actual.beta[[3, 7]])


@pytest.mark.parametrize("d", [1, 6])
def test_dense_paths_equal_training_the_module(d, randn):
    Z, mask = randn(5, 2, 4, d), MASK
    actual = dense_paths(Z, lr=0.3, record_at=range(26), generator=seeded(7), mask=mask)
    for i in range(2):
        betas, costs = descend(DeepLinear(d, 2, seeded(7)).double(), Z[i][mask[i]], 25)
        torch.testing.assert_close(actual.beta[:, i, 0], betas, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(actual.cost[:, i, 0], costs, rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module")
def trained(gaussian):
    """Networks of depth 1 to 4 on two problems of ten rows, at unit margin, with their data."""
    problems = [gaussian(10, seed) for seed in range(2)]
    Z = torch.stack([signed_rows(X, y) for X, y in problems])
    options = {"record_at": [4000], "generator": seeded(0)}
    conv = convolutional_paths(Z, (100,), DEPTHS, lr=[1.0] * 4, **options).beta[0]
    dense = dense_paths(Z, lr=1.0, record_at=[2000], generator=seeded(0)).beta[0]
    margins = (conv @ Z.mT).amin(-1, keepdim=True)  # positive, or the radii below are not
    return problems, conv / margins, dense[:, 0]


@pytest.mark.parametrize("seed", [0, 1])
def test_depth_selects_the_norm_of_the_margin(seed, trained):
    problems, conv, dense = trained
    X, y = problems[seed]
    fourier = FourierNorm("linf", (100,))
    best = {attack: max_margin(X, y, attack).eps_star for attack in ("l2", fourier)}
    # lower than 1 by the steps still missing; measured 0.9997, 0.998 and above 0.983
    assert float(robust_radius(conv[seed, 0], X, y, "l2")) > 0.99 * best["l2"]
    assert float(robust_radius(dense[seed], X, y, "l2")) > 0.99 * best["l2"]
    radii = robust_radius(conv[seed], X, y, fourier) / best[fourier]
    assert float(radii[1]) > 0.95
    assert float(radii[[0, 2, 3]].max()) < 0.8
    assert float(radii.max()) <= 1 + 1e-6


@pytest.mark.oracle("lin.6.13")
@pytest.mark.parametrize("seed", [0, 1])
def test_deeper_networks_have_sparser_spectra_of_smaller_quasi_norm(seed, trained):
    """Expected, not proved; seen for both seeds: 30, 10, 8 and 24, 6, 6 active frequencies."""
    moduli = FourierNorm("l1", (100,)).transform(trained[1][seed]).abs()  # (M, D)
    active = (moduli > 0.01 * moduli.amax(-1, keepdim=True)).sum(-1)
    for m, depth in ((2, 3), (3, 4)):
        assert int(active[m]) < int(active[1])
        quasi = moduli.pow(2 / depth).sum(-1).pow(depth / 2)
        assert float(quasi[m]) < float(quasi[1])


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_adversarial_steps_follow_the_gradient_of_the_worst_margins(attack, randn):
    Z, eps, lr = randn(8, 4, 6), torch.tensor([0.0, 0.1, 1.0]).double(), [0.3, 0.2, 0.1]
    path = adversarial_paths(Z, attack, eps, lr=lr, record_at=range(31))
    plain = steepest_descent_paths(Z[None], ["l2"], record_at=range(31), lr=0.3, step="normalized")
    torch.testing.assert_close(path[:, 0], plain.weights[:, 0, 0], rtol=0, atol=EXACT)
    first = torch.tensor(lr, dtype=Z.dtype)[:, None] * Z.mean(0) / Z.mean(0).norm()
    torch.testing.assert_close(path[1], first, rtol=0, atol=EXACT)  # subgradient zero at w = 0
    assert not path[0].any()
    for t in range(1, 30):
        for e, radius in enumerate(eps):
            w = path[t, e].clone().requires_grad_()
            torch.logsumexp(-(Z @ w - radius * norm(w, dual(attack))), 0).backward()
            expected = path[t, e] - lr[e] / math.sqrt(t + 1) * w.grad / w.grad.norm()
            torch.testing.assert_close(path[t + 1, e], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_adversarial_training_is_robust_below_the_limit_only(attack, gaussian):
    X, y = gaussian(2, 1, d=6)
    Z, best = signed_rows(X, y), max_margin(X, y, attack).upper
    eps = torch.tensor([0.5, 0.8, 1.01]).double() * best
    w = adversarial_paths(Z, attack, eps, lr=[0.1] * 3, record_at=[2000])[0]
    worst = (w @ Z.T).amin(-1) - eps * norm(w, dual(attack))
    assert (worst > 0).tolist() == [True, True, False]
    (w * w.new_ones(()).requires_grad_()).sum().backward()  # refused for tensors of inference mode


def test_bad_requests_are_refused_and_named():
    Z, eps = torch.ones(1, 2, 6), torch.tensor([0.1])

    def conv(Z=Z, shape=(6,), depths=(1, 2), lr=(1.0, 1.0), record_at=(1,)):
        convolutional_paths(Z, shape, depths, lr=lr, record_at=record_at, generator=seeded(0))

    def attacked(Z=Z[0], eps=eps, lr=(1.0,), record_at=(1,)):
        adversarial_paths(Z, "l2", eps, lr=lr, record_at=record_at)

    for call, name, values, message in [
        (conv, "depths", [(0, 2), (), (-1, 1)], "need depths >= 1"),
        (conv, "shape", [(2, 4), (5,)], "signals of 6"),
        (conv, "lr", [(1.0,), (1.0, 0.0), (-1.0, 1.0), (math.nan, 1.0)], "2 positive step lengths"),
        (conv, "record_at", [(2, 1), (1, 1), (), (-1,)], "must increase from at least 0"),
        (conv, "Z", [Z * math.nan, Z[:, :0], Z[0]], r"shape \(P, N, D\)"),
        (attacked, "Z", [Z, Z[0] * math.inf, Z[0, :0]], r"shape \(N, D\)"),
        (attacked, "eps", [-eps, eps * math.nan, eps[0]], r"at least 0, of shape \(E,\)"),
        (attacked, "lr", [(1.0, 1.0), (0.0,), (math.inf,)], "1 positive step lengths"),
        (attacked, "record_at", [(2, 1), (1, 1), (), (-1,)], "must increase from at least 0"),
    ]:
        for value in values:
            with pytest.raises(ValueError, match=message):
                call(**{name: value})


def everything(Z):
    options = {"record_at": [0, 4], "generator": seeded(9)}
    nets = DeepLinear(6, 3, seeded(0)), CircularConvLinear((2, 3), 3, seeded(0))
    scores = [filled(net.cpu(), 1).to(Z)(Z[0]).detach() for net in nets]
    conv = convolutional_paths(Z, (2, 3), DEPTHS, lr=[0.1] * 4, **options)
    dense = dense_paths(Z, lr=0.1, record_at=[4], generator=seeded(9))
    eps = torch.tensor([0.0, 0.1], device=Z.device)
    attacked = [adversarial_paths(Z[0], k, eps, lr=[0.1] * 2, record_at=[4]) for k in NORMS]
    return scores, conv, dense, attacked


def test_inside_a_meta_context_values_are_the_same(same_inside_meta, randn):
    same_inside_meta(everything, randn(10, 2, 3, 6))


@pytest.mark.gpu
def test_on_cuda_values_are_the_same(same_on_cuda, randn):
    same_on_cuda(everything, randn(10, 2, 3, 6))


def test_masks_are_checked_and_padding_may_hold_anything(randn):
    Z = randn(30, 2, 4, 6)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    options = {"record_at": [5], "mask": mask}
    for train in (
        lambda Z, **o: convolutional_paths(
            Z, (6,), (2,), lr=[0.1], generator=torch.Generator().manual_seed(0), **o
        ),
        lambda Z, **o: dense_paths(Z, lr=0.1, generator=torch.Generator().manual_seed(0), **o),
    ):
        padded = Z.clone()
        padded[~mask] = torch.nan
        assert torch.equal(train(padded, **options).beta, train(Z, **options).beta)
        with pytest.raises(ValueError, match="a row in each problem"):
            train(Z, record_at=[5], mask=mask & (torch.arange(2) == 0).unsqueeze(1))
        with pytest.raises(ValueError, match="a real row is not"):
            train(torch.full_like(Z, torch.nan), **options)


def trainers(Z, steps=20):
    options = {"record_at": [steps], "generator": seeded(0)}
    yield "dense", lambda: dense_paths(Z, lr=0.1, **options).beta
    yield "conv", lambda: convolutional_paths(Z, (2, 3), (1, 2, 3), lr=[0.1] * 3, **options).beta
    for kind in NORMS:
        eps = torch.tensor([0.0]).to(Z)
        yield (
            kind,
            lambda kind=kind, eps=eps: adversarial_paths(
                Z[0], kind, eps, lr=[0.1], record_at=[steps]
            ),
        )
        yield kind, lambda kind=kind: steepest_descent_paths(Z, [kind], record_at=[steps]).weights
        yield kind, lambda kind=kind: regularisation_path(Z, kind, [0.5], steps=steps).weights


def test_rows_of_other_types_are_refused_by_name(randn):
    Z = randn(40, 1, 4, 6)
    for dtype in (torch.float16, torch.bfloat16, torch.int64, torch.uint8):
        for _, call in trainers(Z.to(dtype)):
            with pytest.raises(ValueError, match=f"float32 or float64, got {dtype}"):
                call()
    for _, call in trainers(Z.to("meta")):
        with pytest.raises(ValueError, match="meta device"):
            call()


def test_autocast_and_rows_that_require_grad_change_nothing(randn):
    Z = randn(41, 1, 4, 6, dtype=torch.float32) + 0.5
    for (_, plain), (_, inside) in zip(
        trainers(Z), trainers(Z.clone().requires_grad_()), strict=True
    ):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = inside()
        assert torch.equal(actual, plain())
        assert not actual.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_scale_of_the_rows_is_right_or_refused(dtype, randn):
    """Networks and attacks take steps of fixed length: the first do not see a tiny scale."""
    Z = randn(42, 1, 4, 6, dtype=dtype) + 0.5
    exponent = 30 if dtype == torch.float32 else 300
    for power in (-exponent, exponent):
        for name, call in trainers(2.0 ** (3 * power) * Z):
            try:
                actual = call()
            except (ValueError, FloatingPointError):
                assert name not in ("dense", "conv") or power > 0
                continue
            assert bool(actual.isfinite().all())
            if name in ("dense", "conv"):
                assert bool(actual.any())


def test_rows_without_a_gradient_stay_and_separated_rows_go_on(randn):
    zeros = torch.zeros(1, 3, 6).double()
    for name, call in trainers(zeros):
        if name in ("dense", "conv"):
            assert not call().any()
    Z = torch.full((1, 2, 6), 1e4).double()  # every margin is out of reach of exp
    for _, call in trainers(Z, 60):
        with contextlib.suppress(FloatingPointError):  # or says that the loss is flat
            assert bool(call().isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_modules_work_in_half_precision_and_under_autocast(dtype, randn):
    x = randn(43, 5, 6).float()
    for build in (
        lambda: DeepLinear(6, 3, seeded(0)),
        lambda: CircularConvLinear((2, 3), 3, seeded(0)),
        lambda: LinearClassifier(6),
    ):
        net = filled(build(), 2)
        expected, beta = net(x.double()), net.linearize()
        half = copy.deepcopy(net).to(dtype)
        assert half(x.to(dtype)).dtype == half.linearize().dtype == dtype
        bound = 0.1 * float(expected.detach().abs().max())  # three roundings to 8 bits
        torch.testing.assert_close(half(x.to(dtype)).double(), expected, rtol=0, atol=bound)
        bound = 0.1 * float(beta.detach().abs().max())
        torch.testing.assert_close(half.linearize().double(), beta, rtol=0, atol=bound)
        with torch.autocast("cpu", dtype=dtype):
            scores = net.float()(x)
            scores.float().sum().backward()
        assert all(bool(p.grad.isfinite().all()) for p in net.parameters())
