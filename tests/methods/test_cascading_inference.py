"""Prediction from mixes, and attacks on pixels of models that normalise inside."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trainaug.data import registry
from trainaug.methods.attacks import fgsm, pgd
from trainaug.methods.cascading_sum import SumTTA
from trainaug.training.networks import TwoConvNet
from trainaug.training.randomness import initialise, stream

AVERAGES = ["logits", "probs"]


def small_net(dtype=torch.float64):
    with torch.device("meta"):
        layers = [nn.Flatten(), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)]
        model = nn.Sequential(*layers)
    initialise(model, stream(0, "init"))
    for p in model.parameters():
        p.data *= 3.0  # far from linear
    return model.to(dtype).eval()


def averaged(model, bank, **options):
    return SumTTA(model, bank, generator=stream(0, "partners"), **options).eval()


# --- prediction from mixes


@pytest.mark.oracle("csa.Q20")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize(("lam", "repeats"), [(0.5, 1), (0.5, 7), (0.9, 3), (1.0, 4)])
def test_predictions_match_a_naive_loop(lam, repeats, average, dtype, randn):
    model = small_net(dtype)
    bank, x = randn(0, 9, 2, 3, dtype=dtype), randn(1, 5, 2, 3, dtype=dtype)
    tta = averaged(model, bank, lam=lam, repeats=repeats, average=average)
    rows = torch.randint(9, (repeats,), generator=stream(0, "partners")).tolist()
    assert torch.equal(tta.partners, torch.stack([bank[i] for i in rows]))
    total = torch.zeros(5, 3, dtype=torch.float64)
    for i in rows:
        for j in range(5):
            logits = model((lam * x[j] + (1 - lam) * bank[i]).unsqueeze(0))[0].double()
            total[j] += logits if average == "logits" else logits.softmax(0)
    expected = total / repeats if average == "logits" else (total / repeats).log()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    actual = tta(x)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)
    if average == "probs":
        assert actual.exp().sum(1).tolist() == pytest.approx([1] * 5, abs=1e-5)


@pytest.mark.oracle("csa.Q20")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_one_repeat_of_the_input_alone_is_the_model(dtype, randn):
    model, x = small_net(dtype), randn(1, 5, 2, 3, dtype=dtype)
    tta = averaged(model, randn(0, 9, 2, 3, dtype=dtype), lam=1.0, repeats=1)
    assert torch.equal(tta(x), model(x))
    tta.average = "probs"
    torch.testing.assert_close(tta(x), model(x).log_softmax(1), rtol=0, atol=1e-6)


@pytest.mark.oracle("csa.Q20")
@pytest.mark.parametrize("average", AVERAGES)
def test_predictions_depend_on_no_other_input_and_no_order(average, randn):
    x = randn(1, 8, 2, 3)
    tta = averaged(small_net(), randn(0, 9, 2, 3), average=average)
    together, order = tta(x), torch.randperm(8, generator=stream(0, "order"))
    close = {"rtol": 0, "atol": 1e-12}  # sums of another batch size are ordered otherwise
    torch.testing.assert_close(tta(x[order]), together[order], **close)
    torch.testing.assert_close(torch.cat([tta(row[None]) for row in x]), together, **close)
    others = torch.cat([x[:2], 100 * x[2:]])
    torch.testing.assert_close(tta(others)[:2], together[:2], **close)
    assert float((tta(x) - tta.model(x).log_softmax(1)).detach().abs().max()) > 0.1


@pytest.mark.oracle("csa.Q20")
@pytest.mark.parametrize("average", AVERAGES)
def test_gradients_go_through_all_partners(average, randn):
    model, x = small_net(), randn(1, 3, 2, 3).requires_grad_()
    tta = averaged(model, randn(0, 9, 2, 3), repeats=4, lam=0.6, average=average)
    assert torch.autograd.gradcheck(tta, x)
    assert not tta.partners.requires_grad
    (whole,) = torch.autograd.grad(tta(x)[:, 0].sum(), x)
    parts = []
    for partner in tta.partners:  # of mean logits the gradient is the mean, each part its own
        logits = model(0.6 * x + 0.4 * partner)
        parts.append(torch.autograd.grad(logits[:, 0].sum(), x)[0])
    if average == "logits":
        torch.testing.assert_close(torch.stack(parts).mean(0), whole, rtol=1e-12, atol=1e-14)
    assert float((parts[0] - parts[1]).abs().max()) > 1e-3


def test_fresh_partners_are_drawn_evenly_from_the_bank(randn):
    bank, x = randn(0, 4, 2, 3), randn(1, 5, 2, 3)
    kept = bank.clone()
    tta = averaged(small_net(), bank, repeats=4000)
    first, drawn = tta.partners.clone(), []
    for _ in range(2):
        drawn.append((tta.partners.flatten(1)[:, None] == bank.flatten(1)).all(2).double())
        assert drawn[-1].sum(1).tolist() == [1] * 4000
        # four standard errors of a share of 4000 draws
        assert float((drawn[-1].mean(0) - 0.25).abs().max()) < 4 * math.sqrt(3 / 16 / 4000)
        tta.redraw(bank)
    assert not torch.equal(drawn[0], drawn[1])
    again = averaged(small_net(), bank, repeats=4000)
    assert torch.equal(again.partners, first)
    again.load_state_dict(tta.state_dict())
    assert torch.equal(again(x), tta(x))
    tta.partners.zero_()
    assert torch.equal(bank, kept)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lam": 0.0}, r"lam=0\.0"),
        ({"lam": 1.5}, r"lam=1\.5"),
        ({"lam": math.nan}, "lam=nan"),
        ({"repeats": 0}, "repeats=0"),
        ({"average": "votes"}, "average.*'votes'"),
    ],
)
def test_options_out_of_range_are_named(options, message, randn):
    with pytest.raises(ValueError, match=message):
        averaged(small_net(), randn(0, 9, 2, 3), **options)
    with pytest.raises(ValueError, match=r"a bank, got .* 0"):
        averaged(small_net(), torch.zeros(0, 2, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("average", AVERAGES)
def test_half_inputs_are_mixed_and_averaged_in_single(average, dtype, randn):
    bank, x = (randn(seed, 9, 2, 3).to(dtype) for seed in (0, 1))
    flat = nn.Flatten()
    got = averaged(flat, bank, average=average, repeats=64)(x)
    wide = averaged(flat, bank.float(), average=average, repeats=64)(x.float())
    assert got.dtype == dtype
    rounding = torch.finfo(dtype).eps  # that of the mixes and of the result
    torch.testing.assert_close(got.float(), wide, rtol=rounding, atol=2 * rounding)


@pytest.mark.parametrize("average", AVERAGES)
def test_an_empty_batch_has_no_predictions(average, randn):
    tta = averaged(small_net(), randn(0, 9, 2, 3), average=average)
    assert tta(torch.zeros(0, 2, 3).double()).shape == (0, 3)


def test_predicting_leaves_the_model_as_it_is(randn):
    model, x = small_net(), randn(1, 5, 2, 3)
    before = copy.deepcopy(model.state_dict())
    with torch.inference_mode():
        tta = SumTTA(model, x, generator=stream(0, "partners"))
        tta(x)
        tta.redraw(x)
    assert not tta.partners.is_inference()
    assert all(torch.equal(v, before[key]) for key, v in model.state_dict().items())
    assert not any(m.training for m in model)
    leaf = x.clone().requires_grad_()
    tta(leaf).sum().backward()  # an attack can go on with these partners
    tta.load_state_dict(tta.state_dict())
    bank = x.clone().requires_grad_()
    tta.redraw(bank)
    assert not tta.partners.requires_grad


def test_impossible_banks_inputs_and_models_are_named(randn):
    model, bank, x = small_net(), randn(0, 9, 2, 3), randn(1, 5, 2, 3)
    for wrong in ((255 * bank.abs()).to(torch.uint8), bank[:0]):
        with pytest.raises(ValueError, match="bank"):
            averaged(model, wrong)
        with pytest.raises(ValueError, match="bank"):
            averaged(model, bank).redraw(wrong)
    with pytest.raises(ValueError, match=r"partners must be finite.*nan"):
        averaged(model, bank * math.nan)
    tta = averaged(model, bank, repeats=5)
    with pytest.raises(ValueError, match=r"convert pixels first.*torch\.uint8"):
        tta(x.to(torch.uint8))
    with pytest.raises(ValueError, match=r"shape \(1, 2, 3\), their partners \(2, 3\)"):
        tta(x.unsqueeze(1))  # would be broadcast against the partners
    for wrong, kind in ((lambda v: {"logits": v}, "dict"), (lambda v: v, r"\(25, 2, 3\)")):
        with pytest.raises(ValueError, match=rf"logits \(B, C\), got {kind}"):
            averaged(wrong, bank, repeats=5)(x)


def everything(x):
    model, actual = small_net().to(x.device), []
    for average in AVERAGES:
        tta = averaged(model, x.flip(0), average=average, repeats=3)
        actual += [tta(x), tta.partners]
        tta.redraw(x)
        actual.append(tta(x))
    return actual


def test_inside_a_meta_context_values_are_the_same(same_inside_meta, randn):
    same_inside_meta(everything, randn(0, 5, 2, 3))


@pytest.mark.gpu
def test_on_cuda_values_are_the_same(same_on_cuda, randn):
    same_on_cuda(everything, randn(0, 5, 2, 3))


# --- attacks on pixels


class Normalised(nn.Module):
    """Take pixels in [0, 1], normalise, predict."""

    def __init__(self, model, mean, std):
        super().__init__()
        self.model, self.mean, self.std = model, mean, std

    def forward(self, x):
        return self.model((x - self.mean) / self.std)


@pytest.fixture(scope="module")
def digits():
    arrays = registry.load("digits")
    x = torch.tensor(np.asarray(arrays["train_x"]), dtype=torch.float32).view(-1, 1, 8, 8) / 16
    y = torch.tensor(np.asarray(arrays["train_y"])).long()
    inside = TwoConvNet(10, stream(0, "init"), batch_norm=True)
    model = Normalised(inside, x[200:].mean(), x[200:].std())
    optimizer, order = torch.optim.Adam(model.parameters(), 0.01), stream(0, "order")
    for _ in range(150):
        rows = torch.randint(200, len(x), (128,), generator=order)
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.eval(), x[:200], y[:200]


def attacked(name, model, x, y, eps, **options):
    if name == "fgsm":
        return fgsm(model, x, y, norm="linf", eps=eps, **options)
    options |= {"steps": 20, "step_size": eps / 4 or 1.0, "generator": stream(0, "attack")}
    return pgd(model, x, y, norm="linf", eps=eps, restarts=2, **options)


def accuracy(model, x, y):
    with torch.no_grad():
        return float((model(x).argmax(1) == y).double().mean())


@pytest.mark.oracle("csa.Q18")
def test_accuracy_falls_with_the_radius_and_pgd_is_the_stronger(digits):
    model, x, y = digits
    clean = accuracy(model, x, y)
    assert clean > 0.9
    curves = {}
    for name in ("fgsm", "pgd"):
        assert torch.equal(attacked(name, model, x, y, 0.0), x)
        curves[name] = [clean]
        for eps in (0.02, 0.05, 0.1, 0.15, 0.2):
            actual = attacked(name, model, x, y, eps)
            assert float((actual - x).abs().max()) <= eps + 1e-6
            assert float((actual - x).abs().max()) > 0.99 * eps  # pixels, not normalised units
            assert 0 <= float(actual.min()) <= float(actual.max()) <= 1
            assert not actual.requires_grad
            curves[name].append(accuracy(model, actual, y))
        for weaker, stronger in zip(curves[name], curves[name][1:], strict=False):
            assert stronger <= weaker + 0.01
    for once, many in zip(*curves.values(), strict=True):
        assert many <= once + 0.01  # else suspect masked gradients
    assert curves["pgd"][3] < clean - 0.2  # the attack does something
    assert curves["pgd"][3] < curves["fgsm"][3]


@pytest.mark.oracle("csa.Q18")
@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_attacks_run_in_eval_mode_and_store_no_gradient(name, digits):
    model, x, y = copy.deepcopy(digits[0]), digits[1][:20].clone(), digits[2][:20]
    expected = attacked(name, model, x, y, 0.1)
    kept = x.clone()
    model.train()
    state = copy.deepcopy(model.state_dict())
    assert torch.equal(attacked(name, model, x, y, 0.1), expected)
    assert all(module.training for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, state[key]) for key, v in model.state_dict().items())
    assert torch.equal(x, kept)
    assert x.grad is None
    assert not x.requires_grad


@pytest.mark.oracle("csa.Q18")
@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_the_margin_of_a_linear_model_falls_by_eps_times_its_length(name, randn):
    w, x = randn(0, 12), randn(1, 6, 12).sigmoid()
    y = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    std = torch.linspace(0.5, 2.0, 12, dtype=torch.float64)
    model = Normalised(lambda v: v @ w, torch.tensor(0.3, dtype=torch.float64), std)
    options = {"criterion": lambda z, y: -y * z, "bounds": None}
    actual = attacked(name, model, x, y, 0.07, **options)
    drop = y * (model(x) - model(actual))
    expected = torch.full_like(drop, 0.07 * float((w / std).abs().sum()))
    torch.testing.assert_close(drop, expected, rtol=0, atol=1e-12)


@pytest.mark.oracle("csa.Q20")
@pytest.mark.oracle("csa.Q18")
def test_attacks_see_all_partners(digits):
    model, x, y = digits
    tta = averaged(model, x[100:], repeats=8, lam=0.6)
    actual = attacked("fgsm", tta, x[:40], y[:40], 0.1)
    losses = [F.cross_entropy(tta(v), y[:40]).item() for v in (x[:40], actual)]
    blind = attacked("fgsm", model, x[:40], y[:40], 0.1)
    assert losses[1] > F.cross_entropy(tta(blind), y[:40]).item() > losses[0]
