"""Switches of stage, and cascades that are killed and resumed, on real training steps."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trainaug.methods.cascading_sum import CascadeSchedule, PlateauCascade, SumMix, begin_stage
from trainaug.training.randomness import initialise, stream

TOTAL, STAGES = 20, [(4, 0.4), (2, 0.3), (1, 0.3)]


def small_net(seed=0):
    with torch.device("meta"):
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
        )
    initialise(model, stream(seed, "init"))
    return model


def problem():
    g = stream(0, "data")
    y = torch.arange(60) % 3
    return torch.randn(60, 1, 4, 4, generator=g) + y.view(-1, 1, 1, 1) - 1, y


class Training:
    """A cascade by plan (``"step"``, ``"smooth"``) or by plateaus; `state` is all it needs."""

    def __init__(self, kind, seed=0):
        self.kind, self.model = kind, small_net(seed)
        (self.x, self.y), self.step = problem(), 0
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1, momentum=0.9)
        self.mix = SumMix(4, num_classes=3, generator=stream(seed, "mix"))
        self.order = stream(seed, "order")
        if kind == "plateau":
            self.cascade = PlateauCascade(4, patience=1, stop_patience=1, min_delta=0.5)
        else:
            self.schedule = CascadeSchedule(STAGES, TOTAL, mode=kind)
        self.best, self.events = {"score": -math.inf, "weights": None}, []

    def state(self):
        """Go through bytes, as a file would."""
        parts = (self.model, self.optimizer, self.mix)
        state = {"parts": [part.state_dict() for part in parts], "best": self.best}
        state |= {"step": self.step, "order": self.order.get_state()}
        if self.kind == "plateau":
            state["cascade"] = self.cascade.state_dict()
        stream_of_bytes = io.BytesIO()
        torch.save(state, stream_of_bytes)
        stream_of_bytes.seek(0)
        return stream_of_bytes

    def load(self, stream_of_bytes):
        state = torch.load(stream_of_bytes, weights_only=True)
        for part, part_state in zip(
            (self.model, self.optimizer, self.mix), state["parts"], strict=True
        ):
            part.load_state_dict(part_state)
        self.order.set_state(state["order"])
        self.step, self.best = state["step"], state["best"]
        if self.kind == "plateau":
            self.cascade.load_state_dict(state["cascade"])

    def score(self):
        """Accuracy on clean examples."""
        self.model.eval()
        with torch.no_grad():
            score = float((self.model(self.x).argmax(1) == self.y).float().mean())
        self.model.train()
        return score

    def switch(self):
        options = {"weights": self.best["weights"], "reset_optimizer": True}
        begin_stage(self.model, self.optimizer, lr=0.05, **options)
        self.best = {"score": -math.inf, "weights": None}

    def advance(self, until):
        while self.step < until:
            if self.kind == "plateau":
                self.mix.num_groups = self.cascade.k
            else:
                if self.step in self.schedule.boundaries:
                    self.switch()
                self.mix.set_weights(self.schedule.weights(self.step))
            rows = torch.randperm(60, generator=self.order)[: 8 * self.mix.num_groups]
            x, soft = self.mix(self.x[rows], self.y[rows])
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(x), soft).backward()
            self.optimizer.step()
            self.step += 1
            score = self.score()
            if score > self.best["score"]:
                self.best = {"score": score, "weights": copy.deepcopy(self.model.state_dict())}
            if self.kind == "plateau" and not self.cascade.has_finished:
                self.events.append(self.cascade.step(score))
                if self.events[-1] == "reduce_lr":
                    self.optimizer.param_groups[0]["lr"] /= 2
                elif self.events[-1] == "next_stage":
                    self.switch()
        return self


def same(a, b):
    """Compare states leaf by leaf, bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.oracle("csa.Q12")
@pytest.mark.parametrize("kind", ["step", "smooth", "plateau"])
def test_killed_cascades_continue_bit_for_bit(kind):
    whole = Training(kind).advance(TOTAL)
    plan = CascadeSchedule(STAGES, TOTAL)
    kills = {3, 11, plan.boundaries[0] - 1, *plan.boundaries[:2]}
    if kind == "plateau":
        switches = [i + 1 for i, event in enumerate(whole.events) if event == "next_stage"]
        assert len(switches) == 2
        kills = {2, switches[0] - 1, *switches, switches[1] + 1}
    for kill in sorted(kills):
        killed = Training(kind).advance(kill)
        saved = killed.state()
        killed.advance(kill + 2)  # what is lost
        resumed = Training(kind, seed=7)
        resumed.load(saved)
        resumed.advance(TOTAL)
        states = [torch.load(run.state(), weights_only=True) for run in (whole, resumed)]
        assert same(*states)
        if kind == "plateau":
            assert resumed.events == whole.events[kill:]
    assert not same(torch.load(Training(kind, seed=7).advance(TOTAL).state()), states[0])


# --- switches


def trained(optimizer_class=torch.optim.SGD, **options):
    """Train a few steps; return model, optimiser and the weights of the step before the last."""
    model, (x, y) = small_net(), problem()
    optimizer = optimizer_class(model.parameters(), lr=0.1, **options)
    for _ in range(4):
        best = copy.deepcopy(model.state_dict())
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, optimizer, best


@pytest.mark.oracle("csa.Q13")
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_a_stage_starts_from_the_best_weights_and_as_configured(given, reset):
    x, y = problem()
    model, optimizer, best = trained(momentum=0.9)
    last = copy.deepcopy(model.state_dict())
    momenta = copy.deepcopy(optimizer.state_dict()["state"])
    kept, inside = copy.deepcopy(best), {id(p) for p in model.parameters()}
    expected_model = small_net()
    expected_model.load_state_dict(best if given else last)
    weights = best if given else None
    begin_stage(model, optimizer, lr=0.03, weights=weights, reset_optimizer=reset)
    assert same(dict(model.state_dict()), dict(best if given else last))
    assert not same(dict(best), dict(last))
    assert optimizer.param_groups[0]["lr"] == 0.03
    if reset:
        assert not optimizer.state
    else:
        assert same(optimizer.state_dict()["state"], momenta)
    assert {id(p) for p in model.parameters()} == inside  # the optimiser still holds them
    logits = [m.eval()(x) for m in (model, expected_model)]
    assert torch.equal(*logits)  # and so the accuracy, before any update
    model.train()
    F.cross_entropy(model(x), y).backward()
    gradient = model[4].weight.grad.clone()
    before = model[4].weight.detach().clone()
    optimizer.step()
    momentum = gradient if reset else momenta[4]["momentum_buffer"] * 0.9 + gradient
    torch.testing.assert_close(model[4].weight, before - 0.03 * momentum, rtol=0, atol=1e-7)
    assert same(dict(best), dict(kept))  # training on leaves the caller's weights alone


@pytest.mark.oracle("csa.Q13")
def test_a_stage_sets_the_rate_of_every_group_and_of_later_schedulers():
    model, groups = small_net(), []
    for p in model.parameters():
        groups.append({"params": [p], "lr": 0.1 * (len(groups) + 1)})
    optimizer = torch.optim.AdamW(groups)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    begin_stage(model, optimizer, lr=0.0)
    begin_stage(model, optimizer, lr=0.02)
    assert [group["lr"] for group in optimizer.param_groups] == [0.02] * len(groups)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    assert scheduler.get_last_lr() == [0.02] * len(groups)  # not 0.1, what it began with
    optimizer.step()
    scheduler.step()
    assert scheduler.get_last_lr() == [0.01] * len(groups)
    for lr in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"lr.*got {lr}"):
            begin_stage(model, optimizer, lr=lr)
    assert optimizer.param_groups[0]["lr"] == 0.01


def test_a_stage_keeps_rates_that_are_tensors():
    model, rate = small_net(), torch.tensor(0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    begin_stage(model, optimizer, lr=0.02)
    assert optimizer.param_groups[0]["lr"] is rate  # captured graphs hold it
    assert rate == torch.tensor(0.02)


def test_a_stage_that_cannot_begin_changes_nothing():
    model, optimizer, best = trained(momentum=0.9)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    with pytest.raises(ValueError, match="lr must be finite"):
        begin_stage(model, optimizer, lr=math.nan, weights=best, reset_optimizer=True)
    assert same((model.state_dict(), optimizer.state_dict()), before)


# --- devices


def everything(x):
    """Plan on the CPU, whatever the default device."""
    actual = [x]
    for mode in ("step", "smooth"):
        schedule = CascadeSchedule(STAGES, TOTAL, mode=mode)
        actual += [schedule.weights(step) for step in range(TOTAL)]
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    begin_stage(model, optimizer, lr=0.2, weights=small_net(1).state_dict())
    return [*actual, *model.state_dict().values()]


def test_inside_a_meta_context_values_are_the_same(same_inside_meta):
    same_inside_meta(everything, problem()[0])
