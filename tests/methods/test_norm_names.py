"""One vocabulary of norms in attacks and linear robustness, against numpy, cvxpy and long forms."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainaug.methods import attacks
from trainaug.methods import linear_robustness as lr
from trainaug.methods.attacks import fgsm, pgd, project_ball, steepest_step
from trainaug.methods.linear_robustness import FourierNorm
from trainaug.norms import check_norm
from trainaug.randomness import default_generator

Randn = Callable[..., Tensor]
FOURIER = ("fourier_l1", "fourier_linf")
NAMES: tuple[Any, ...] = ("l1", "l2", "linf", *FOURIER)
LISTED = "l1, l2, linf, fourier_l1, fourier_linf or a FourierNorm"


def order_of(name: str) -> Any:
    return name.removeprefix("fourier_")


# --- the linear package: a name stands for one signal as long as the vector


def data(randn: Randn) -> tuple[Tensor, Tensor, Tensor]:
    X, y = randn(0, 5, 6), torch.tensor([1, -1, 1, 1, -1])
    w = randn(1, 6)
    X = X + y[:, None] * w * 3  # a large margin for every row
    return X, y, w


def optimised(make: Callable[[list[Tensor]], Any], Z: Tensor) -> Tensor:
    w = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    optimizer = make([w])

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.logsumexp(-(Z @ w), 0)
        loss.backward()
        return loss

    for _ in range(4):
        optimizer.step(closure)
    return w.detach()


def everything(norm: Any, randn: Randn) -> list[Any]:
    """Results of every function of the package that takes a norm."""
    X, y, w = data(randn)
    Z, x = lr.signed_rows(X, y), randn(2, 3, 6)
    margin = lr.max_margin(X, y, norm)
    path = lr.regularisation_path(Z[None], norm, [0.1], steps=20)
    return [
        str(lr.dual(norm)),
        lr.norm(x, norm),
        lr.dual_vector(x, norm),
        lr.project(x, norm, 0.5),
        lr.prox(x, norm, 0.5),
        lr.worst_case_margin(w, X, y, norm, 0.3),
        lr.worst_case_perturbation(w, y, norm, 0.3),
        lr.robust_error(w, X, y, norm, 0.3),
        lr.robust_radius(w, X, y, norm),
        *lr.certificate(w, X, y, norm),
        lr.second_solver(norm),
        *(margin.w, margin.lam, margin.eps_star, margin.upper),
        lr.enclosure(X, y, norm, margin.w, margin.lam),
        *(path.weights, path.lambda_max, path.residual),
        lr.adversarial_paths(Z, norm, torch.tensor([0.1]), lr=[0.1], record_at=[5]),
        lr.steepest_direction(x, norm),
        lr.steepest_descent_paths(Z[None], [norm], record_at=[5]).weights,
        optimised(lambda params: lr.SteepestDescent(params, 0.1, norm), Z),
        optimised(lambda params: lr.ProximalGradient(params, 0.1, norm, 0.05), Z),
    ]


@pytest.mark.parametrize("name", FOURIER)
def test_a_fourier_name_is_the_norm_of_one_signal(name: str, randn: Randn) -> None:
    """The oracle is the long form, ``FourierNorm(order, (D,))``."""
    by_name = everything(name, randn)
    for short, long in zip(
        by_name, everything(FourierNorm(order_of(name), (6,)), randn), strict=True
    ):
        assert torch.equal(short, long) if isinstance(short, Tensor) else short == long


@pytest.mark.parametrize("name", FOURIER)
def test_named_norms_are_those_of_numpy(name: str, randn: Randn) -> None:
    x = randn(3, 4, 7)
    moduli = abs(np.fft.fft(x.numpy(), norm="ortho"))
    want = moduli.sum(-1) if name == "fourier_l1" else moduli.max(-1)
    np.testing.assert_allclose(lr.norm(x, norm=name), want, rtol=1e-13)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FOURIER)
def test_the_radius_of_a_named_norm_is_that_of_the_program(name: str, randn: Randn) -> None:
    """The oracle is the program in the full complex spectrum."""
    X, y, _ = data(randn)
    w, matrix = cp.Variable(6), np.fft.fft(np.eye(6), norm="ortho")
    moduli = cp.abs(matrix @ w)  # of the weights, in the dual norm
    size = cp.max(moduli) if name == "fourier_l1" else cp.sum(moduli)
    program = cp.Problem(cp.Minimize(size), [lr.signed_rows(X, y).numpy() @ w >= 1])
    program.solve(solver="CLARABEL")
    assert program.status == "optimal"
    best = lr.max_margin(X, y, name)  # type: ignore[arg-type]
    assert best.eps_star == pytest.approx(1 / program.value, rel=1e-6)  # solver tolerance


def test_duals_of_names_are_names() -> None:
    assert [lr.dual(name) for name in NAMES] == ["linf", "l2", "l1", "fourier_linf", "fourier_l1"]
    assert {str(FourierNorm(order_of(name), (3,))) for name in FOURIER} == set(FOURIER)
    assert [check_norm(name) for name in NAMES] == [*NAMES]


def test_norms_are_keywords_everywhere() -> None:
    x = torch.tensor([3.0, -4.0])
    assert float(lr.norm(x, norm="l1")) == 7
    assert lr.dual(norm="l1") == "linf"
    assert torch.equal(lr.dual_vector(x, norm="l1"), lr.dual_vector(x, "l1"))
    assert torch.equal(lr.project(x, norm="l1", radius=2), lr.project(x, "l1", 2))
    assert torch.equal(lr.prox(x, norm="l1", tau=2), lr.prox(x, "l1", 2))


@pytest.mark.parametrize("name", FOURIER)
@pytest.mark.parametrize("kind", ["steepest", "proximal"])
def test_a_named_norm_comes_back_from_a_checkpoint(kind: str, name: Any) -> None:
    def make(norm: Any) -> Any:
        params = [torch.ones(4, requires_grad=True)]
        if kind == "steepest":
            return lr.SteepestDescent(params, 0.1, norm)
        return lr.ProximalGradient(params, 0.1, norm, 0.1)

    buffer = io.BytesIO()
    torch.save(make(name).state_dict(), buffer)
    buffer.seek(0)
    other = make("l2")
    other.load_state_dict(torch.load(buffer))
    assert other.param_groups[0]["norm"] == name


@pytest.mark.parametrize("bad", ["Linf", "fourier", "fourier_l2", ("fourier_l1", (6,)), None, 2])
def test_what_is_no_norm_is_refused_with_the_list(bad: Any, randn: Randn) -> None:
    X, y, w = data(randn)
    Z, x = lr.signed_rows(X, y), randn(3, 2, 1, 2, 3).sigmoid()
    calls: list[Callable[[], Any]] = [
        lambda: lr.dual(bad),
        lambda: lr.norm(x, bad),
        lambda: lr.dual_vector(x, bad),
        lambda: lr.project(x, bad, 1.0),
        lambda: lr.prox(x, bad, 1.0),
        lambda: lr.max_margin(X, y, bad),
        lambda: lr.second_solver(bad),
        lambda: lr.enclosure(X, y, bad, w, y.double()),
        lambda: lr.certificate(w, X, y, bad),
        lambda: lr.worst_case_margin(w, X, y, bad, 0.1),
        lambda: lr.worst_case_perturbation(w, y, bad, 0.1),
        lambda: lr.robust_error(w, X, y, bad, 0.1),
        lambda: lr.robust_radius(w, X, y, bad),
        lambda: lr.adversarial_paths(Z, bad, torch.ones(1), lr=[0.1], record_at=[1]),
        lambda: lr.steepest_direction(w, bad),
        lambda: lr.steepest_descent_paths(Z[None], [bad], record_at=[1]),
        lambda: lr.regularisation_path(Z[None], bad, [0.1], steps=1),
        lambda: lr.SteepestDescent([w.clone().requires_grad_()], 0.1, bad),
        lambda: lr.ProximalGradient([w.clone().requires_grad_()], 0.1, bad, 0.1),
        lambda: project_ball(x, bad, 0.1),
        lambda: steepest_step(x, bad),
        lambda: fgsm(nn.Flatten(), x, torch.zeros(2).long(), norm=bad, eps=0.1),
        lambda: pgd(nn.Flatten(), x, torch.zeros(2).long(), norm=bad, eps=0.1),
    ]
    for call in calls:
        with pytest.raises(ValueError) as error:
            call()
        assert repr(bad) in str(error.value)
        assert LISTED in str(error.value)


# --- attacks: a name runs over the dimensions after the channel, channel by channel


def pictures(randn: Randn, *shape: int) -> tuple[nn.Module, Tensor, Tensor]:
    x = randn(4, *shape).sigmoid()
    size = x[0].numel()
    with torch.random.fork_rng(devices=[]):
        net = nn.Sequential(nn.Flatten(), nn.Linear(size, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        for number, p in enumerate(net.parameters()):
            p.copy_(randn(10 + number, *p.shape))
    return net, x, net(x).argmax(1)


def options(**changes: Any) -> dict[str, Any]:
    shared = {"eps": 0.3, "steps": 4, "step_size": 0.1, "generator": torch.Generator()}
    return shared | changes


@pytest.mark.parametrize("name", FOURIER)
@pytest.mark.parametrize("shape", [(4, 2, 5, 6), (3, 2, 7), (4, 6), (2, 1, 2, 3, 4)], ids=str)
def test_a_fourier_norm_of_the_signals_is_the_name(
    name: Any, shape: tuple[int, ...], randn: Randn
) -> None:
    """The oracle is the attack by name, and numpy for the length."""
    net, x, y = pictures(randn, *shape)
    sides = shape[2:] or shape[1:]
    long = FourierNorm(order_of(name), sides)
    delta = randn(5, *shape)
    assert torch.equal(project_ball(delta, long, 0.5), project_ball(delta, name, 0.5))
    assert torch.equal(steepest_step(delta, long), steepest_step(delta, name))
    for bounds in ((0.0, 1.0), None):
        assert torch.equal(
            fgsm(net, x, y, norm=long, eps=0.3, bounds=bounds),
            fgsm(net, x, y, norm=name, eps=0.3, bounds=bounds),
        )
        adversarial = pgd(net, x, y, norm=long, bounds=bounds, **options())
        assert torch.equal(adversarial, pgd(net, x, y, norm=name, bounds=bounds, **options()))
        assert not torch.equal(adversarial, x)
        axes = tuple(range(-len(sides), 0))
        moduli = abs(np.fft.fftn((adversarial - x).numpy(), axes=axes, norm="ortho"))
        lengths = moduli.sum(axes) if name == "fourier_l1" else moduli.max(axes)
        assert lengths.max() <= 0.3 * (1 + 1e-9)


@pytest.mark.parametrize("name", FOURIER)
@pytest.mark.parametrize("banded", [False, True])
def test_flattened_pictures_are_attacked_as_pictures(name: Any, banded: bool, randn: Randn) -> None:
    """The oracle is the same attack on pictures with one channel."""
    if banded and name == "fourier_l1":
        pytest.skip("bands are factors of single moduli: only fourier_linf takes one")
    net, x, y = pictures(randn, 6, 1, 5, 4)
    flat, norm = x.flatten(1), FourierNorm(order_of(name), (5, 4))
    band = attacks.radial_band((5, 4), 0.0, 0.4) if banded else None
    delta = randn(5, 6, 20)
    for one, two in [
        (project_ball(delta, norm, 0.5, band), project_ball(delta.view_as(x), name, 0.5, band)),
        (steepest_step(delta, norm, band), steepest_step(delta.view_as(x), name, band)),
    ]:
        assert one.shape == delta.shape
        torch.testing.assert_close(one, two.flatten(1), rtol=0, atol=1e-12)
    for bounds in ((0.0, 1.0), None):
        some: dict[str, Any] = {"band": band, "bounds": bounds}
        for attack, more in [(fgsm, {"eps": 0.3}), (pgd, options()), (pgd, options(eps=2.0))]:
            # draws of (B, D) and of (B, 1, H, W) take the same numbers from equal generators
            again = {k: torch.Generator() if k == "generator" else v for k, v in more.items()}
            one = attack(net, flat, y, norm=norm, **more, **some)
            two = attack(net, x, y, norm=name, **again, **some)
            torch.testing.assert_close(one, two.flatten(1), rtol=0, atol=1e-9)
    line = lr.project(delta, norm, 0.5)
    if not banded:
        torch.testing.assert_close(project_ball(delta, norm, 0.5), line, rtol=0, atol=1e-12)


def test_the_name_on_flattened_inputs_is_one_signal(randn: Randn) -> None:
    x = randn(6, 3, 8)
    for name in FOURIER:
        kind: Any = name
        want = lr.project(x, kind, 0.4)
        torch.testing.assert_close(project_ball(x, kind, 0.4), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "sides"),
    [
        ((2, 3, 4, 4), (4, 5)),
        ((2, 3, 4, 4), (16,)),  # a signal of the flattened picture is another norm
        ((2, 3, 4, 4), (3, 4, 4)),  # so is one over the channels
        ((2, 3, 16), (4, 4)),
        ((2, 16), (4, 5)),
    ],
)
def test_signals_that_do_not_fit_are_named(shape: tuple[int, ...], sides: tuple[int, ...]) -> None:
    x, y = torch.full(shape, 0.5), torch.zeros(2).long()
    for order in ("l1", "linf"):
        norm = FourierNorm(order, sides)  # type: ignore[arg-type]
        for call in (
            lambda norm=norm: project_ball(x, norm, 0.1),
            lambda norm=norm: steepest_step(x, norm),
            lambda norm=norm: fgsm(nn.Flatten(), x, y, norm=norm, eps=0.1),
            lambda norm=norm: pgd(nn.Flatten(), x, y, norm=norm, eps=0.1),
        ):
            with pytest.raises(ValueError) as error:
                call()
            assert str(sides) in str(error.value)
            assert str(shape) in str(error.value)


@pytest.mark.parametrize("norm", ["l1", "l2", "linf", "fourier_l1", FourierNorm("l1", (4,))])
def test_bands_are_refused_where_they_mean_nothing(norm: Any) -> None:
    with pytest.raises(ValueError, match="fourier_linf") as error:
        project_ball(torch.ones(2, 4), norm, 0.1, torch.ones(4))
    assert repr(norm) in str(error.value)


# --- the ball of the sum of moduli


def test_projection_on_the_sum_of_moduli_is_that_of_the_program(randn: Randn) -> None:
    x = randn(7, 3, 2, 2, 3)
    result = project_ball(x, "fourier_l1", 0.8)
    matrix = np.kron(np.fft.fft(np.eye(2), norm="ortho"), np.fft.fft(np.eye(3), norm="ortho"))
    for example in range(3):
        for channel in range(2):
            u = cp.Variable(6)
            distance = cp.sum_squares(u - x[example, channel].flatten().numpy())
            program = cp.Problem(cp.Minimize(distance), [cp.norm(matrix @ u, 1) <= 0.8])
            program.solve(solver="CLARABEL")
            assert program.status == "optimal"
            # a relative gap of 1e-8 in the squared distance allows 1e-3 in the point
            nearest = result[example, channel].flatten()
            np.testing.assert_allclose(nearest, u.value, atol=1e-3)


def test_steps_in_the_sum_of_moduli_are_one_wave_in_each_channel(randn: Randn) -> None:
    """The oracle tries every wave of length one, at every frequency, in the best phase."""
    g = randn(8, 4, 2, 3, 4)
    step = steepest_step(g, "fourier_l1")
    assert torch.equal(steepest_step(0 * g, "fourier_l1"), 0 * g)
    rows, columns = np.indices((3, 4))
    for one, gradient in zip(step.flatten(0, 1), g.flatten(0, 1), strict=True):
        moduli = abs(np.fft.fft2(one.numpy(), norm="ortho"))
        assert moduli.sum() == pytest.approx(1, rel=1e-12)
        gains = []
        for i in range(3):
            for j in range(4):
                angle = 2 * math.pi * (i * rows / 3 + j * columns / 4)
                waves = [np.cos(angle), np.sin(angle)]
                lengths = [abs(np.fft.fft2(wave, norm="ortho")).sum() for wave in waves]
                pairs = [
                    float((wave * gradient.numpy()).sum() / length)
                    for wave, length in zip(waves, lengths, strict=True)
                    if length > 1e-9
                ]
                gains.append(math.hypot(*pairs))
        assert float((one * gradient).sum()) == pytest.approx(max(gains), rel=1e-9)


# --- defaults of pgd


@pytest.fixture
def net(randn: Randn) -> tuple[nn.Module, Tensor, Tensor]:
    return pictures(randn, 5, 1, 3, 4)


@pytest.mark.parametrize("name", NAMES)
def test_the_defaults_are_twenty_steps_of_an_eighth_and_the_global_seed(
    name: Any, net: tuple[nn.Module, Tensor, Tensor]
) -> None:
    model, x, y = net
    eps = 0.4
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12)
        torch.rand(3)  # what was drawn before does not matter, the seed does
        before = torch.get_rng_state()
        short = [pgd(model, x, y, norm=name, eps=eps) for _ in range(2)]
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(13)
        other = pgd(model, x, y, norm=name, eps=eps, steps=1)
        torch.manual_seed(12)
        again = pgd(model, x, y, norm=name, eps=eps, steps=1)
    generator = torch.Generator().manual_seed(12)
    long = pgd(model, x, y, norm=name, eps=eps, steps=20, step_size=0.05, generator=generator)
    assert torch.equal(short[0], long)
    assert torch.equal(short[1], long)
    assert not torch.equal(other, again)


def test_no_generator_is_made_without_a_random_start(
    net: tuple[nn.Module, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, y = net
    start = pgd(model, x, y, norm="l2", eps=0.4, random_start=False, generator=torch.Generator())
    monkeypatch.delattr(torch, "initial_seed")
    assert torch.equal(pgd(model, x, y, norm="l2", eps=0.4, random_start=False), start)


def test_a_radius_of_zero_needs_no_step_size(net: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = net
    for eps in (0, 0.0, torch.tensor(0.0)):
        assert torch.equal(pgd(model, x, y, norm="linf", eps=eps), x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="steps=0"):
        pgd(model, x, y, norm="linf", eps=0.1, steps=0)


def test_default_generator_is_the_one_given_or_seeded_like_the_global_one() -> None:
    given = torch.Generator()
    assert default_generator(given, "meta") is given
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        made = default_generator(None)
        assert made.device.type == "cpu"
        drawn = torch.rand(3, generator=made)
        assert torch.equal(drawn, torch.rand(3))


@pytest.mark.gpu
def test_the_default_generator_is_on_the_device_of_the_inputs(
    net: tuple[nn.Module, Tensor, Tensor],
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    model, x, y = net
    state = torch.cuda.get_rng_state()
    result = pgd(model.cuda(), x.cuda(), y.cuda(), norm="linf", eps=0.1)
    assert result.device.type == "cuda"
    assert torch.equal(torch.cuda.get_rng_state(), state)


# --- outputs of a model


class Output(dict[str, Any]):
    """A dictionary whose items are attributes and may be left out, as of Hugging Face."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


WRAPPED: dict[str, Callable[[Tensor], Any]] = {
    "dict": lambda z: {"loss": None, "logits": z},
    "object": lambda z: SimpleNamespace(loss=None, logits=z),
    "both": lambda z: Output(logits=z, hidden_states=()),
}
UNNAMED: dict[str, Callable[[Tensor], Any]] = {
    "dict": lambda z: {"scores": z},
    "object": lambda z: SimpleNamespace(scores=z, logits=None),
    "both": lambda z: Output(scores=z),
    "tuple": lambda z: (z, None),
}


def attack_both(model: Any, x: Tensor, y: Tensor, **more: Any) -> list[Tensor]:
    once = fgsm(model, x, y, norm="linf", eps=0.1, **more)
    start = {"random_start": False, "keep": "last"}  # the end of a run, so that no rank is lost
    return [once, pgd(model, x, y, norm="linf", eps=0.1, **start, **more)]


@pytest.mark.parametrize("wrap", WRAPPED)
def test_logits_are_taken_out_first(wrap: str, net: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = net
    seen: list[type] = []

    def criterion(z: Tensor, y: Tensor) -> Tensor:
        seen.append(type(z))
        return F.cross_entropy(z, y, reduction="none")

    plain = attack_both(model, x, y)
    for more in ({}, {"criterion": criterion}):
        for got, want in zip(
            attack_both(lambda x: WRAPPED[wrap](model(x)), x, y, **more), plain, strict=True
        ):
            assert torch.equal(got, want)
    assert set(seen) == {Tensor}


@pytest.mark.parametrize("wrap", UNNAMED)
@pytest.mark.parametrize("label_type", [torch.int64, torch.uint8, torch.int16], ids=str)
def test_other_outputs_go_to_the_criterion_as_they_are(
    wrap: str, label_type: torch.dtype, net: tuple[nn.Module, Tensor, Tensor]
) -> None:
    """The oracle attacks the scores by cross-entropy alone, with soft labels of one class."""
    model, x, y = net

    def read(output: Any, y: Tensor) -> Tensor:
        scores = {
            "dict": lambda: output["scores"],
            "object": lambda: output.scores,
            "both": lambda: output.scores,
            "tuple": lambda: output[0],
        }[wrap]()
        return F.cross_entropy(scores, y, reduction="none")

    soft = F.one_hot(y, 3).double()
    want = attack_both(
        model, x, soft, criterion=lambda z, y: F.cross_entropy(z, y, reduction="none")
    )
    wrapped = lambda x: UNNAMED[wrap](model(x))  # noqa: E731
    got = attack_both(wrapped, x, y.to(label_type), criterion=read)
    for one, two in zip(got, want, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)
        assert not torch.equal(one, x)


@pytest.mark.parametrize("wrap", UNNAMED)
def test_outputs_without_logits_need_a_criterion(
    wrap: str, net: tuple[nn.Module, Tensor, Tensor]
) -> None:
    model, x, y = net
    name = type(UNNAMED[wrap](x)).__name__
    for attack in (fgsm, pgd):
        with pytest.raises(TypeError, match=f"{name} without.*criterion"):
            attack(lambda x: UNNAMED[wrap](model(x)), x, y, norm="linf", eps=0.1)
        with pytest.raises(TypeError, match="tuple"):
            attack(lambda x: {"logits": (model(x),)}, x, y, norm="linf", eps=0.1)
        with pytest.raises(ValueError, match=r"losses \(5,\)"):
            attack(
                lambda x: {"scores": model(x)},
                x,
                y,
                norm="linf",
                eps=0.1,
                criterion=lambda out, y: F.cross_entropy(out["scores"], y),
            )


def test_a_hugging_face_classifier_is_attacked_as_it_is() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=8,
        patch_size=4,
        num_channels=1,
        num_labels=3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.ViTForImageClassification(config).train()
        x, y = torch.rand(4, 1, 8, 8), torch.arange(4) % 3
    for attack in (fgsm, pgd):
        want = attack(lambda x: model(x).logits, x, y, norm="fourier_linf", eps=0.1)
        assert torch.equal(attack(model, x, y, norm="fourier_linf", eps=0.1), want)
    assert model.training
