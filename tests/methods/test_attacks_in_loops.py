"""Attacks inside training and evaluation code of others: wrappers, targets, types, blind spots."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_attack_balls import KINDS, naive_length
from torch import Tensor, nn

from trainaug.methods.attacks import AttackNorm, equal_bands, fgsm, pgd, radial_band

HALVES = (torch.float16, torch.bfloat16)
NAMES = ("fgsm", "pgd")


def run(name: str, model: Any, x: Tensor, y: Tensor, **options: Any) -> Tensor:
    """Attack with few steps; options of `pgd` alone are dropped for `fgsm`."""
    options = {"norm": "linf", "eps": 0.1} | options
    more = {"steps": 6, "step_size": options["eps"] / 3 or 1.0, "generator": torch.Generator()}
    if name == "fgsm":
        return fgsm(model, x, y, **{k: v for k, v in options.items() if k not in PGD_ONLY})
    return pgd(model, x, y, **(more | options))


PGD_ONLY = ("steps", "step_size", "generator", "restarts", "random_start", "keep")


def losses(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y, reduction="none")


def towards(z: Tensor, y: Tensor) -> Tensor:
    return -losses(z, y)


def minus_margin(z: Tensor, y: Tensor) -> Tensor:
    return -y * z


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Let modules draw their weights from a global generator that is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def problem() -> tuple[nn.Linear, Tensor, Tensor]:
    net = nn.Linear(10, 3)
    x = torch.rand(32, 10)
    return net, x, net(x).argmax(1)


# --- targets


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("kind", "eps"), [("linf", 0.5), ("l2", 1.5), ("l1", 4.0), ("fourier_linf", 0.6)]
)
def test_targets_are_reached(name: str, kind: AttackNorm, eps: float, problem: Any) -> None:
    net, x, y = problem
    target = (y + 1) % 3
    assert not bool((net(x).argmax(1) == target).any())
    options: dict[str, Any] = {"norm": kind, "eps": eps, "targeted": True, "steps": 20}
    actual = run(name, net, x, target, **options)
    assert float((net(actual).argmax(1) == target).double().mean()) > (
        0.7 if name == "fgsm" else 0.9
    )
    smoothed = functools.partial(F.cross_entropy, reduction="none", label_smoothing=0.1)
    targeted = run(name, net, x, target, criterion=smoothed, **options)
    assert float((net(targeted).argmax(1) == target).double().mean()) > 0.7
    # an input that is there stays there, and none ends further away
    near = run(name, net, x, y, **(options | {"eps": 0.2 * eps}))
    assert bool((net(near).argmax(1) == y).all())
    little = run(name, net, x, target, **(options | {"eps": 0.1 * eps}))
    there = net(little).argmax(1) == target
    assert bool((there | (losses(net(little), target) <= losses(net(x), target) + 1e-6)).all())


def test_signs_are_targets_too(problem: Any) -> None:
    net, x, _ = problem

    def line(x: Tensor) -> Tensor:
        return net(x)[:, 0] - net(x)[:, 1]

    y = -line(x).sign()
    for name in NAMES:
        actual = run(name, line, x, y, eps=1.0, targeted=True, criterion=minus_margin)
        assert bool((y * line(actual) > 0).all())
        same = run(name, line, x, -y, eps=1.0, criterion=minus_margin)
        torch.testing.assert_close(y * line(actual), y * line(same), rtol=0, atol=0.5)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "criterion",
    [
        towards,
        lambda z, y: z.gather(1, y[:, None])[:, 0],
        lambda z, y: z.softmax(1).gather(1, y[:, None])[:, 0],
        lambda z, y: (2 * z.gather(1, y[:, None])[:, 0] - z.amax(1)).clamp(max=0.0),
    ],
)
def test_a_criterion_towards_y_is_refused(
    criterion: Any, name: str, targeted: bool, problem: Any
) -> None:
    net, x, y = problem
    with pytest.raises(ValueError, match="targeted=True"):
        run(name, net, x, (y + 1) % 3, criterion=criterion, targeted=targeted)
    with pytest.raises(ValueError, match="targeted=True"):
        run(name, lambda x: net(x)[:, 0], x, 1 - 2 * (y > 0).long(), criterion=lambda z, y: y * z)


@pytest.mark.filterwarnings("ignore:pgd")  # the last sees one output only
@pytest.mark.parametrize(
    "criterion",
    [
        losses,
        functools.partial(F.cross_entropy, reduction="none", label_smoothing=0.5),
        lambda z, y: z.amax(1) - z.gather(1, y[:, None])[:, 0],
        lambda z, _: -(z.softmax(1) * z.log_softmax(1)).sum(1),  # knows nothing of y
        lambda z, _: z[:, 0],
    ],
)
def test_other_criteria_are_taken(criterion: Any, problem: Any) -> None:
    net, x, y = problem
    for labels in (y, (y + 1) % 3, torch.zeros_like(y)):
        run("pgd", net, x, labels, criterion=criterion)


# --- models in wrappers


class Careless(nn.Module):
    """Counts calls also in eval mode, by a new tensor, and hides a network in a list."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.middle = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))
        self.hidden = [nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 3))]
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("sums", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        z = self.hidden[0](self.middle(self.first(x)).relu())
        self.sums += z.detach().sum(0)  # type: ignore[operator, misc]
        return z  # type: ignore[no-any-return]

    def parts(self) -> Iterator[nn.Module]:
        yield from [*self.modules(), *self.hidden[0].modules()]


class Caller:
    def __init__(self, net: nn.Module) -> None:
        self.nets = {"one": [net]}

    def __call__(self, x: Tensor) -> Tensor:
        return self.nets["one"][0].forward(x)  # type: ignore[no-any-return]

    def method(self, x: Tensor) -> Tensor:
        return self(x)


class Slotted:
    __slots__ = ("net",)

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def __call__(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]


GLOBAL = SimpleNamespace(net=nn.Module())


def by_global(x: Tensor) -> Tensor:
    return GLOBAL.net.forward(x)  # type: ignore[no-any-return]


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "module": lambda net: net,
    "lambda": lambda net: lambda x: net(x),
    "forward": lambda net: net.forward,
    "forward in a lambda": lambda net: lambda x: net.forward(x),
    "partials": lambda net: functools.partial(functools.partial(lambda n, x: n.forward(x), net)),
    "default": lambda net: lambda x, n=net: n(x),
    "object": Caller,
    "method": lambda net: Caller(net).method,
    "slots": Slotted,
    "global": lambda net: by_global,
    "data parallel": nn.DataParallel,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("kind", WRAPPERS)
def test_modes_and_buffers_stay_inside_any_wrapper(kind: str, fails: bool) -> None:
    net = Careless().train()
    net.first[0].eval()  # a mixed state must come back
    GLOBAL.net = net
    x, y = torch.rand(16, 10), torch.randint(0, 3, (16,))
    tensors = [b for part in net.parts() for b in part.buffers(recurse=False)]
    before = [b.clone() for b in tensors]
    modes = [part.training for part in net.parts()]
    calls = []

    def criterion(z: Tensor, y: Tensor) -> Tensor:
        calls.append(1)
        if fails and len(calls) > 3:
            raise KeyError("criterion")
        return losses(z, y)

    for name in NAMES if not fails else ["pgd"]:
        want = None if fails else run(name, expected_of(net), x, y, criterion=losses)
        try:
            actual = run(name, WRAPPERS[kind](net), x, y, criterion=criterion)
        except KeyError:
            assert fails
        else:
            assert want is not None
            assert torch.equal(actual, want)
    assert modes == [part.training for part in net.parts()]
    now = [b for part in net.parts() for b in part.buffers(recurse=False)]
    assert all(a is b for a, b in zip(now, tensors, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(now, before, strict=True))
    assert not torch.nn.modules.module._global_forward_pre_hooks


def expected_of(net: Careless) -> nn.Module:
    """Return the network in eval mode, made of a copy."""
    copy = Careless()
    copy.load_state_dict(net.state_dict())
    copy.hidden[0].load_state_dict(net.hidden[0].state_dict())
    copy.hidden[0].eval()
    return copy.eval()


@pytest.mark.filterwarnings("ignore")
def test_scripted_modules_are_attacked_and_their_methods_refused(problem: Any) -> None:
    _, x, y = problem
    net = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).train()
    scripted = torch.jit.script(net)
    want = run("pgd", net, x, y)
    assert torch.equal(run("pgd", scripted, x, y), want)
    assert torch.equal(run("pgd", lambda x: scripted(x), x, y), want)
    assert scripted.training
    with pytest.raises(TypeError, match="scripted"):
        run("pgd", scripted.forward, x, y)


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_is_not_compiled_anew_for_each_attack(problem: Any) -> None:
    _, x, y = problem
    net = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).train()
    want, before = run("pgd", net, x, y), net[1].running_mean.clone()
    graphs = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model = torch.compile(net, backend=backend)
    counts = []
    for _ in range(3):
        assert torch.equal(run("pgd", lambda x: model(x), x, y), want)
        counts.append(len(graphs))
    assert counts[0] == counts[2]
    assert net.training
    assert net[1].training
    assert torch.equal(net[1].running_mean, before)


# --- inference mode


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_inference_mode_changes_nothing(kind: AttackNorm, name: str, problem: Any) -> None:
    net, x, y = problem
    want = run(name, net, x, y, norm=kind)
    assert not torch.equal(want, x)
    with torch.inference_mode():
        assert torch.equal(run(name, net, x, y, norm=kind), want)
        assert torch.equal(run(name, net, x.clone(), y.clone(), norm=kind), want)
        frozen = nn.Linear(10, 3)
        with pytest.raises(RuntimeError, match=r"[Ii]nference"):
            run(name, frozen, x, y, norm=kind)
    with torch.no_grad():
        assert torch.equal(run(name, net, x, y, norm=kind), want)


# --- the l1 ball in a box


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1, 30, 2000])
@pytest.mark.parametrize("weights", ["dense", "sparse", "heavy", "equal"])
def test_l1_steps_in_a_box_reach_the_optimum(name: str, size: int, weights: str) -> None:
    generator = torch.Generator().manual_seed(size)
    w = torch.randn(size, dtype=torch.float64, generator=generator)
    if weights == "sparse":
        w[1:] *= torch.rand(size - 1, generator=generator) < 0.1
    elif weights == "heavy":
        w = w.sign() * (3 * torch.randn(size, dtype=torch.float64, generator=generator)).exp()
    elif weights == "equal":
        w = w.sign()
    x = torch.rand(4, size, dtype=torch.float64, generator=generator)
    x[2:] = x[2:].round()  # on the edge of the box
    room = torch.where(w > 0, 1 - x, x)
    for eps in (1e-3, size / 8, 2.0 * size):
        # coordinates by weight, each filled up to the box: a fractional knapsack
        best = []
        for row in room:
            left, gain = eps, 0.0
            for i in w.abs().argsort(descending=True).tolist():
                used = min(left, float(row[i]))
                left, gain = left - used, gain + used * float(w[i].abs())
            best.append(gain)
        for step, start in ((eps / 8, True), (eps / 4, False)):
            options: dict[str, Any] = {"steps": 20, "step_size": step, "random_start": start}
            options |= {"norm": "l1", "eps": eps, "criterion": lambda z, y: -y * z}
            actual = run(name, lambda x: x @ w, x, -torch.ones(4), **options)
            assert 0 <= float(actual.min()) <= float(actual.max()) <= 1
            assert naive_length(actual - x, "l1") <= eps * (1 + 1e-9)
            gains = (actual - x) @ w
            torch.testing.assert_close(gains, torch.tensor(best).double(), rtol=1e-6, atol=0)


# --- what is kept


def test_success_on_the_way_counts(problem: Any) -> None:
    seen: list[Tensor] = []

    def model(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return (30 * x[:, 0]).sin() + 0.5  # steps jump over the valleys

    x, y = torch.rand(64, 4, generator=torch.Generator().manual_seed(0)), torch.ones(64)
    for kind in KINDS:
        seen.clear()
        options: dict[str, Any] = {"norm": kind, "eps": 0.2, "criterion": minus_margin, "steps": 5}
        options |= {"step_size": 0.09, "restarts": 2, "bounds": None}
        actual = run("pgd", model, x, y, **options)
        ever = torch.stack([(30 * s[:, 0]).sin() + 0.5 <= 0 for s in seen]).any(0)
        is_wrong = model(actual) <= 0
        assert torch.equal(is_wrong, ever)
        last = model(run("pgd", model, x, y, keep="last", **options)) <= 0
        assert bool((last <= is_wrong).all())
        assert kind == "fourier_linf" or bool((last < is_wrong).any())
    with pytest.raises(ValueError, match="'best'"):
        run("pgd", model, x, y, keep="best", criterion=minus_margin)


# --- nothing to do, nothing to see


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_empty_batches_and_radius_zero_give_the_inputs(
    kind: AttackNorm, name: str, dtype: torch.dtype
) -> None:
    for shape in [(0, 4), (0, 2, 3, 5)]:
        x, y = torch.zeros(shape, dtype=dtype), torch.zeros(0, dtype=torch.long)
        actual = run(name, nn.Flatten(), x, y, norm=kind)
        assert actual.shape == shape
        assert actual.dtype == dtype
    x = torch.rand(2, 4).to(dtype).requires_grad_()
    actual = run(name, nn.Flatten(), x, torch.zeros(2).long(), norm=kind, eps=0.0)
    assert torch.equal(actual, x)
    assert not actual.requires_grad
    assert actual.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("name", NAMES)
def test_numbers_that_are_none_are_named_with_step_and_example(name: str, problem: Any) -> None:
    net, x, y = problem

    def broken(x: Tensor) -> Tensor:
        z = net(x)
        return torch.where(torch.arange(len(x))[:, None] == 5, math.nan, z)

    hiding = {"criterion": lambda z, y: losses(z.nan_to_num(), y)}
    for options in ({}, hiding):
        with pytest.raises(FloatingPointError, match=r"logits .*example 5 holds nan at x"):
            run(name, broken, x, y, **options)
    with pytest.raises(FloatingPointError, match=r"gradient .*example 0 holds -?inf"):
        run(name, net, x, y, criterion=lambda z, y: (z[:, 0] - z[:, 0].detach()).sqrt())
    masked = torch.tensor([0.0, 0.0, -math.inf])
    assert bool(run(name, lambda x: net(x) + masked, x, y % 2).isfinite().all())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("model", "criterion"),
    [
        (lambda net: lambda x: net(x).detach(), None),
        (lambda net: lambda x: net(x.detach()), None),
        (lambda net: torch.no_grad()(net.forward), None),
        (lambda net: net, lambda z, y: losses(z, y).detach()),
    ],
)
def test_a_loss_cut_off_from_the_inputs_is_refused(
    name: str, model: Any, criterion: Any, problem: Any
) -> None:
    net, x, y = problem
    with pytest.raises(ValueError, match="no gradient"):
        run(name, model(net), x, y, criterion=criterion)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_zero_are_counted(name: str, problem: Any) -> None:
    net, x, y = problem
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(name, net, x, y)
    for model, share in [
        (lambda x: net((8 * x).round() / 8), "32 of 32"),
        (lambda x: 1e6 * net(x), "of 32"),
        (lambda x: net(x * (torch.arange(32) < 30)[:, None]), "2 of 32"),
    ]:
        with pytest.warns(UserWarning, match=f"exactly zero for .*{share}") as record:
            run(name, model, x, model(x).argmax(1), random_start=False, eps=1e-3)
        assert len(record) == 1
        assert record[0].filename == __file__


# --- types


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-0.1, 0.7), None], ids=str)
def test_half_precision_stays_in_ball_and_box(
    kind: AttackNorm, name: str, dtype: torch.dtype, bounds: Any
) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(60, 3)).to(dtype)
    x = (0.7 * torch.rand(16, 1, 6, 10)).to(dtype).clamp(max=0.699)
    y = net(x).argmax(1)
    radii = {"linf": 0.031, "l2": 0.3, "l1": 1.5, "fourier_linf": 0.05, "fourier_l1": 0.6}
    eps = radii[kind]
    actual = run(name, net, x, y, norm=kind, eps=eps, bounds=bounds)
    assert actual.dtype == dtype
    moved = (actual != x).flatten(1).any(1)
    assert bool(moved.all())
    delta = actual.double() - x.double()
    # sums of rounding errors in a modulus, each half a spacing of the numbers below 1; and in a
    # sum of 60 moduli, which is at most 60**0.5 times the length
    sums = {"fourier_linf": 60**0.5, "fourier_l1": 60.0}
    slack = sums.get(kind, 0.0) * torch.finfo(dtype).eps / 4
    assert naive_length(delta, kind) <= eps * (1 + 1e-6) + slack
    if bounds is not None:
        assert bounds[0] <= float(actual.double().min())
        assert float(actual.double().max()) <= bounds[1]
    before, after = losses(net(x).float(), y).mean(), losses(net(actual).float(), y).mean()
    assert bool(after > before)


def test_a_radius_below_the_spacing_of_numbers_is_named() -> None:
    net = nn.Linear(4, 3).bfloat16()
    x = torch.full((8, 4), 0.75).bfloat16()
    with pytest.warns(UserWarning, match="8 of 8 examples did not move.*bfloat16"):
        run("pgd", net, x, net(x).argmax(1), eps=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_autocast_around_and_inside_the_model(name: str, problem: Any) -> None:
    net, x, y = problem
    inside = torch.autocast("cpu", torch.bfloat16)(net.forward)
    actual = run(name, inside, x, y)
    assert actual.dtype == x.dtype
    assert naive_length(actual - x, "linf") <= 0.1 + 1e-6
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(run(name, net, x, y), actual)
        losses(net(actual), y).mean().backward()
    assert net.weight.grad is not None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.bool])
def test_labels_of_any_integer_type(name: str, dtype: torch.dtype, problem: Any) -> None:
    net, x, y = problem
    y = y % 2
    for criterion in (None, losses):
        want = run(name, net, x, y, criterion=criterion)
        assert torch.equal(run(name, net, x, y.to(dtype), criterion=criterion), want)


@pytest.mark.parametrize("name", NAMES)
def test_labels_that_are_none_are_refused_or_left_to_the_criterion(name: str, problem: Any) -> None:
    net, x, y = problem
    soft = F.one_hot(y, 3).float()
    for labels, message in [
        (soft, r"\(32, 3\)"),
        (F.one_hot(y, 3), r"\(32, 3\)"),
        (y.float(), "integer"),
        (y - 100, "0 to 2"),
        (y + 1, "0 to 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            run(name, net, x, labels)
    want = run(name, net, x, y, keep="last", restarts=1)
    actual = run(name, net, x, soft, criterion=losses)
    assert bool((losses(net(actual), y) >= losses(net(want), y) - 1e-6).all())
    with pytest.raises(TypeError, match="list"):
        run(name, net, x, y.tolist())
    with pytest.raises(ValueError, match=r"\(32, 1\)"):
        run(name, lambda x: net(x)[:, :1], x, y % 1)
    # labels 0 and 1 of one output: integers are refused, floats judged by the criterion
    bce = functools.partial(F.binary_cross_entropy_with_logits, reduction="none")

    def line(x: Tensor) -> Tensor:
        return net(x)[:, 0]

    with pytest.raises(ValueError, match="-1"):
        run(name, line, x, y % 2, criterion=lambda z, y: bce(z, y.float()))
    with pytest.raises(ValueError, match="-1"):
        run(name, line, x, (2 * (y % 2) - 1).to(torch.uint8), criterion=minus_margin)
    zeros_and_ones = (line(x) > 0).float()
    actual = run(name, line, x, zeros_and_ones, criterion=bce)
    assert bool((bce(line(actual), zeros_and_ones) > bce(line(x), zeros_and_ones)).all())


@pytest.mark.parametrize("name", NAMES)
def test_outputs_that_name_their_logits(name: str, problem: Any) -> None:
    net, x, y = problem
    want = run(name, net, x, y)
    for wrap in (lambda z: {"logits": z, "loss": None}, lambda z: SimpleNamespace(logits=z)):
        assert torch.equal(run(name, lambda x, w=wrap: w(net(x)), x, y), want)
        assert torch.equal(run(name, lambda x, w=wrap: w(net(x)), x, y, criterion=losses), want)
    with pytest.raises(TypeError, match="tuple"):
        run(name, lambda x: (net(x), None), x, y)
    for model in (lambda x: net(x)[:5], lambda x: net(x).argmax(1)):
        with pytest.raises(ValueError, match=r"\(32, C\)"):
            run(name, model, x, y)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 4, dtype=torch.uint8), "uint8.*255"),
        (torch.full((2, 4), math.nan), "nan"),
        (torch.zeros(2, 4, device="meta"), "meta"),
        (torch.zeros(2, 4, dtype=torch.cfloat), "complex"),
    ],
)
def test_inputs_that_cannot_be_attacked_are_refused(name: str, x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(name, nn.Identity(), x, torch.zeros(2).long())
    with pytest.raises(ValueError, match=r"losses \(2,\)"):
        run(
            name, nn.Identity(), torch.zeros(2, 4), torch.zeros(2).long(), criterion=F.cross_entropy
        )


# --- inputs of the caller


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_views_layouts_and_leaves_of_the_caller(kind: AttackNorm, name: str) -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.LazyLinear(3))
    base = torch.rand(8, 6, 6, 4)
    plain = base[..., :2].permute(0, 3, 1, 2).contiguous()
    y = net(plain).argmax(1)
    want = run(name, net, plain, y, norm=kind)
    grad = torch.ones_like(net[0].weight)
    net[0].weight.grad = grad.clone()
    leaf = plain.clone().requires_grad_()
    views = {
        "strided": base[..., :2].permute(0, 3, 1, 2),
        "channels last": plain.to(memory_format=torch.channels_last),
        "leaf": leaf,
        "inner": leaf * 1,
    }
    before = base.clone()
    for x in views.values():
        actual = run(name, net, x, y, norm=kind)
        torch.testing.assert_close(actual, want, rtol=0, atol=1e-5)
        assert not actual.requires_grad
    assert torch.equal(base, before)
    assert torch.equal(leaf, plain)
    assert leaf.grad is None
    assert torch.equal(net[0].weight.grad, grad)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_bounds_for_each_channel(kind: AttackNorm, name: str) -> None:
    raw = torch.rand(8, 3, 4, 4).round(decimals=1)
    mean, std = torch.rand(3, 1, 1), 0.2 + torch.rand(3, 1, 1)
    x, low, high = (raw - mean) / std, -mean / std, (1 - mean) / std
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    y = net(x).argmax(1)
    actual = run(name, net, x, y, norm=kind, eps=1.0, bounds=(low, high))
    assert bool(((actual >= low) & (actual <= high)).all())
    assert float(losses(net(actual), y).mean()) > float(losses(net(x), y).mean())
    same = run(name, net, raw, y, norm=kind, bounds=(torch.tensor(0.0), 1.0))
    assert torch.equal(same, run(name, net, raw, y, norm=kind))
    for bounds, message in [
        ((high, low), "low < high"),
        ((torch.zeros(5), torch.ones(5)), r"\(5,\)"),
        ((low + 0.1, high), "must be finite and within"),
    ]:
        with pytest.raises((ValueError, RuntimeError), match=message):
            run(name, net, x, y, norm=kind, bounds=bounds)


def test_bands_of_shapes_that_are_none_are_named() -> None:
    for low, high in [(math.nan, 0.5), (0.1, math.nan)]:
        with pytest.raises(ValueError, match="nan"):
            radial_band((4, 4), low, high)
    with pytest.raises(ValueError, match="-1"):
        radial_band((4, -1), 0.0, 0.5)
    with pytest.raises(ValueError, match="into -1"):
        equal_bands((4,), -1)
