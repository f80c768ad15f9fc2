"""Both optimisers in other people's loops: checkpoints, half precision, overflow, odd gradients."""

from __future__ import annotations

import copy
import io
import math
import pickle

import numpy as np
import pytest
import torch
from torch.nn import Parameter

from trainaug.methods.linear_robustness import FourierNorm, ProximalGradient, SteepestDescent

KINDS = ["l1", "l2", "linf", FourierNorm("l1", (2, 4)), FourierNorm("linf", (8,))]
MAKERS = {
    "constant": lambda p, k: SteepestDescent(p, 0.05, k),
    "normalized": lambda p, k: SteepestDescent(p, 0.05, k, "normalized"),
    "log_loss": lambda p, k: SteepestDescent(p, 0.05, k, "log_loss"),
    "plain": lambda p, k: ProximalGradient(p, 0.1, k, 0.02, accelerate=False),
    "accelerated": lambda p, k: ProximalGradient(p, 0.1, k, 0.02),
}
every = pytest.mark.parametrize("name", MAKERS)
each = pytest.mark.parametrize("kind", KINDS, ids=str)


def advance(optimizer, p, steps, target=None):
    target = torch.linspace(-1, 1, 8) if target is None else target

    def closure():
        optimizer.zero_grad()
        loss = 0.5 * (p - target.to(p)).square().sum() + 1
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)  # weights_only


@every
@each
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_saved_state_goes_on_as_if_nothing_had_happened(name, kind, dtype):
    p = Parameter(torch.zeros(8, dtype=dtype))
    optimizer = MAKERS[name]([p], kind)
    advance(optimizer, p, 4)
    saved = through_a_file({"p": p.data.clone(), "optimizer": optimizer.state_dict()})
    assert optimizer.param_groups[0]["norm"] == kind
    twins = [Parameter(saved["p"].clone()), Parameter(saved["p"].clone())]
    loaded, copied = MAKERS[name]([twins[0]], "l2"), copy.deepcopy(optimizer)
    loaded.load_state_dict(saved["optimizer"])
    pickled = pickle.loads(pickle.dumps(optimizer))  # noqa: S301
    assert loaded.param_groups[0]["norm"] == copied.param_groups[0]["norm"] == kind
    advance(optimizer, p, 3)
    assert not torch.equal(p, saved["p"])
    for other in (loaded, copied, pickled):
        (q,) = other.param_groups[0]["params"]
        advance(other, q, 3)
        assert torch.equal(p, q)


@each
def test_a_state_of_another_type_or_shape(kind):
    p = Parameter(torch.zeros(8, dtype=torch.float64))
    optimizer = ProximalGradient([p], 0.1, kind, 0.02)
    advance(optimizer, p, 4)
    state = through_a_file(optimizer.state_dict())
    q = Parameter(p.detach().float())
    single = ProximalGradient([q], 0.1, kind, 0.02)
    single.load_state_dict(state)
    advance(optimizer, p, 2)
    advance(single, q, 2)
    torch.testing.assert_close(q.double(), p, rtol=0, atol=1e-6)  # rounding of float32
    wide = ProximalGradient([Parameter(torch.zeros(3, 8))], 0.1, kind, 0.02)
    with pytest.raises(ValueError, match=r"does not fit the parameter of shape \(3, 8\)"):
        wide.load_state_dict(state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "l3"}, "unknown norm 'l3'"),
        ({"norm": ("fourier_l2", (8,))}, "unknown norm"),
        ({"norm": ("fourier_l1", (0,))}, "at least 1"),
        ({"lr": math.nan}, "finite and at least 0, got nan"),
        ({"lr": -0.1}, "finite and at least 0, got -0.1"),
    ],
)
@every
def test_bad_states_are_refused_and_change_nothing(name, changes, message):
    optimizer = MAKERS[name]([Parameter(torch.zeros(8))], "l1")
    state = optimizer.state_dict()
    state["param_groups"][0].update(changes)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    foreign = torch.optim.SGD([Parameter(torch.zeros(8))], 0.1).state_dict()
    with pytest.raises(ValueError, match="lacks"):
        optimizer.load_state_dict(foreign)
    assert optimizer.param_groups[0]["norm"] == "l1"


@every
@each
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32_and_rounded_once(name, kind, dtype):
    for scale in (1e-2, 1.0, 100.0):
        start = (scale * torch.linspace(-1, 2, 8)).to(dtype)
        gradient = (scale * torch.tensor([3.0, -1, 2, 0, 1, 1, -2, 4])).to(dtype)
        results = []
        for wanted in (dtype, torch.float32):
            p = Parameter(start.to(wanted, copy=True))
            optimizer = MAKERS[name]([p], kind)

            p.grad = gradient.to(wanted)
            optimizer.step(lambda: torch.tensor(2.0))
            results.append(p.detach())
        assert results[0].dtype == dtype
        assert torch.equal(results[0], results[1].to(dtype))


def test_half_precision_momentum_outlives_its_square():
    p = Parameter(torch.zeros(8, dtype=torch.float16))
    optimizer = ProximalGradient([p], 0.01, "l1", 0.0)
    advance(optimizer, p, 1)
    optimizer.state[p]["momentum"].fill_(300.0)  # 4 * 300^2 is above the largest float16
    optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
    advance(optimizer, p, 1)
    assert bool(optimizer.state[p]["ahead"].isfinite().all())
    assert optimizer.state[p]["momentum"].dtype == torch.float32


@every
def test_a_step_moves_all_groups_or_none(name):
    a, b = Parameter(torch.ones(8)), Parameter(torch.ones(8))
    optimizer = MAKERS[name]([{"params": [a]}, {"params": [b]}], "l2")

    def closure(bad):
        a.grad, b.grad = torch.ones(8), torch.full((8,), bad)
        return torch.tensor(1.0)

    for bad, message in ((math.inf, "NaN or infinite entry"), (3e38, "leads to NaN or infinite")):
        b.data.fill_(-3e38)
        before = b.detach().clone()
        optimizer.param_groups[1]["lr"] = 0.05 if bad == math.inf else 2.0
        if name == "normalized" and bad != math.inf:
            continue  # its steps are as long as lr, whatever the gradient is
        with pytest.raises(FloatingPointError, match=message):
            optimizer.step(lambda bad=bad: closure(bad))
        assert torch.equal(a.detach(), torch.ones(8))
        assert torch.equal(b.detach(), before)


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "accelerated"])
def test_a_gradient_scaler_skips_the_step_that_overflows(name):
    p, twin = Parameter(torch.zeros(8)), Parameter(torch.zeros(8))
    optimizer, plain = MAKERS[name]([p], "linf"), MAKERS[name]([twin], "linf")
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    loss = {"loss": torch.tensor(2.0)} if name == "log_loss" else {}
    for slope in (torch.full((8,), math.inf), torch.full((8,), math.nan), torch.arange(1.0, 9.0)):
        optimizer.zero_grad()
        scaler.scale((p * slope).sum()).backward()
        scaler.step(optimizer, **loss)
        scaler.update()
        if not bool(slope.isfinite().all()):
            assert not p.detach().any()
    twin.grad = torch.arange(1.0, 9.0)
    plain.step(**loss)
    assert torch.equal(p, twin)
    assert bool(p.any())


@every
def test_gradients_that_are_no_vector_are_named(name):
    embedding = torch.nn.Embedding(4, 8, sparse=True, _weight=torch.ones(4, 8))
    embedding(torch.tensor([1])).sum().backward()
    complex_valued = Parameter(torch.ones(8, dtype=torch.complex64))
    complex_valued.grad = torch.ones_like(complex_valued)
    meta = Parameter(torch.ones(8, device="meta"))
    meta.grad = torch.ones_like(meta)
    for p, message in (
        (embedding.weight, "sparse gradients"),
        (complex_valued, "must be real, got a gradient of torch.complex64"),
        (meta, "meta device"),
    ):
        with pytest.raises(ValueError, match=message):
            MAKERS[name]([p], "l2").step(lambda: torch.tensor(1.0))


@every
@each
def test_frozen_missing_and_empty_parameters_stay(name, kind):
    used, frozen = Parameter(torch.zeros(8)), Parameter(torch.ones(3), requires_grad=False)
    unused, empty = Parameter(torch.ones(5)), Parameter(torch.ones(0))
    empty.grad = torch.ones(0)
    optimizer = MAKERS[name]([used, frozen, unused, empty], kind)
    advance(optimizer, used, 2)
    assert bool(used.any())
    assert torch.equal(frozen, torch.ones(3))
    assert torch.equal(unused, torch.ones(5))
    optimizer.zero_grad()
    before = used.detach().clone()
    optimizer.step(lambda: torch.tensor(1.0))  # no gradient anywhere
    assert torch.equal(used.detach(), before)


@every
def test_closures_may_return_nothing_or_a_number(name):
    p = Parameter(torch.zeros(8))
    optimizer = MAKERS[name]([p], "l2")

    def closure(value):
        p.grad = torch.ones(8)
        return value

    assert optimizer.step(lambda: closure(2.0)) == 2.0
    before = p.detach().clone()
    if name == "log_loss":
        with pytest.raises(ValueError, match="needs the loss"):
            optimizer.step(lambda: closure(None))
        assert torch.equal(p.detach(), before)
    else:
        assert optimizer.step(lambda: closure(None)) is None
        assert not torch.equal(p.detach(), before)


@every
@pytest.mark.parametrize("tensor", [False, True])
def test_a_schedule_may_set_the_step_to_zero_and_to_no_number_else(name, tensor):
    p = Parameter(torch.ones(8))
    optimizer = MAKERS[name]([p], "l1")
    if tensor:
        optimizer.param_groups[0]["lr"] = torch.tensor(optimizer.param_groups[0]["lr"])
    start = p.detach().clone()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step > 0))
    advance(optimizer, p, 1)
    assert torch.equal(p.detach(), start)
    loaded = MAKERS[name]([Parameter(torch.ones(8))], "l1")
    loaded.load_state_dict(through_a_file(optimizer.state_dict()))
    schedule.step()
    advance(optimizer, p, 1)
    assert not torch.equal(p.detach(), start)
    for bad in (math.nan, math.inf, -1.0):
        optimizer.param_groups[0]["lr"] = bad
        before = p.detach().clone()
        with pytest.raises(ValueError, match=f"lr must be finite and at least 0, got {bad}"):
            advance(optimizer, p, 1)
        assert torch.equal(p.detach(), before)


@every
@pytest.mark.parametrize("option", ["maximize", "weight_decay", "momentum", "betas"])
def test_options_of_other_optimisers_are_not_ignored(name, option):
    value = {"maximize": True, "betas": (0.9, 0.9)}.get(option, 0.1)
    optimizer = MAKERS[name]([Parameter(torch.zeros(8))], "l1")
    with pytest.raises(ValueError, match=f"has no option '{option}'"):
        optimizer.add_param_group({"params": [Parameter(torch.zeros(8))], option: value})
    group = {"params": [Parameter(torch.zeros(8))], "weight_decay": 0.0, "name": "head"}
    optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 2


def test_a_tensor_of_several_steps_is_only_for_separate_problems():
    with pytest.raises(ValueError, match=r"lr must be one number, got shape \(2,\)"):
        SteepestDescent([Parameter(torch.zeros(2, 8))], torch.tensor([0.1, 0.2]), "l1")


def test_shapes_of_a_fourier_norm_are_plain_whole_numbers():
    for shape in ([2, 4], torch.Size([2, 4]), tuple(np.array([2, 4]))):
        kind = FourierNorm("l1", shape)
        assert kind == FourierNorm("l1", (2, 4))
        assert hash(kind) == hash(FourierNorm("l1", (2, 4)))
        assert [type(side) for side in kind.shape] == [int, int]
    for shape in (8, (2.0, 4.0), "24"):
        with pytest.raises(ValueError, match="tuple of whole numbers"):
            FourierNorm("l1", shape)


@pytest.mark.gpu
def test_on_cuda_states_and_overflows_are_the_same():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    for name, make in MAKERS.items():
        for kind in KINDS:
            p, q = Parameter(torch.zeros(8)), Parameter(torch.zeros(8, device="cuda"))
            ours, theirs = make([p], kind), make([q], kind)
            advance(ours, p, 3)
            theirs.load_state_dict(through_a_file(ours.state_dict()))
            q.data.copy_(p.data)
            advance(ours, p, 2)
            advance(theirs, q, 2)
            torch.testing.assert_close(q.detach().cpu(), p.detach(), rtol=0, atol=1e-5, msg=name)
    mixed = [Parameter(torch.ones(8)), Parameter(torch.ones(8, device="cuda"))]
    for p in mixed:
        p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match="on one device, got cpu, cuda:0"):
        SteepestDescent(mixed, 0.1, "l1").step()
