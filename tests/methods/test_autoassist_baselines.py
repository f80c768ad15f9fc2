"""The rivals of AutoAssist, and importance sampling: loops, enumeration, resuming, bad input."""

from __future__ import annotations

import bisect
import io
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainaug.methods.autoassist import (
    AssistantTrainer,
    AssistedSampler,
    ImageAssistant,
    LossTable,
    RandomSkip,
    ScreenerWeights,
    SelectiveBackprop,
    SelfPacedWeights,
    importance_pegasos,
    svm_gradients,
)
from trainaug.training.randomness import stream

NAN = float("nan")


def assisted(n, size, rival, **options):
    g = stream(0, "order"), stream(0, "keep")
    on_pass = getattr(rival, "on_pass", None)
    return AssistedSampler(n, size, rival.predict, *g, on_pass=on_pass, **options)


# --- random skipping


def test_random_skipping_has_the_rates_of_the_passes():
    n, rates = 20_000, [0.7, 0.2, 1.0]
    rival = RandomSkip(rates)
    sampler = assisted(n, 100, rival, base=0.0)
    seen = [set(itertools.chain(*sampler)) for _ in range(4)]
    for actual, rate in zip(sampler.keep_rates, [*rates, 1.0], strict=True):
        assert abs(actual - rate) <= 4 * math.sqrt(rate * (1 - rate) / n)
    assert len(seen[0] & seen[1]) / n == pytest.approx(0.14, abs=0.01)  # independent
    assert rival.predict(torch.arange(3)).tolist() == [1.0] * 3
    assert RandomSkip([0.25]).predict(torch.tensor([7, 1])).tolist() == [0.25] * 2


# --- the table of losses


@pytest.mark.parametrize("rescale", [True, False])
@given(seed=st.integers(0, 999), n=st.integers(1, 12), full_from=st.none() | st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_pruning_by_the_mean_equals_the_loop(rescale, seed, n, full_from):
    g, base = stream(seed, "measure"), 0.25
    rival = LossTable(n, base, rescale=rescale, full_from=full_from)
    last, everyone = [math.inf] * n, torch.arange(n)
    for number in range(5):
        known = [v for v in last if v < math.inf]
        low = [bool(known) and v < sum(known) / len(known) for v in last]
        if number == 0 or (full_from is not None and number >= full_from):
            low = [False] * n
        if number:
            rival.on_pass()
        frozen = list(low)
        for _ in range(3):  # decisions stay for the pass
            assert rival.predict(everyone).tolist() == [0.0 if v else 1.0 for v in frozen]
            expected = [1 / base if v and rescale else 1.0 for v in frozen]
            assert rival.weights(everyone).tolist() == expected
            index = torch.randperm(n, generator=g)[: 1 + n // 2]
            losses = torch.rand(len(index), generator=g, dtype=torch.float64)
            rival.update(index, losses)
            for i, loss in zip(index.tolist(), losses.tolist(), strict=True):
                last[i] = loss
    torch.testing.assert_close(rival.losses, torch.tensor(last), rtol=1e-6, atol=0)


@pytest.mark.oracle("aa.2")
def test_weights_of_the_survivors_make_pruning_unbiased(randn):
    """Enumerated over who is kept; and over the sampler's passes by simulation."""
    n, base, grads = 6, 0.5, randn(0, 6, 2)
    rival, everyone = LossTable(n, base), torch.arange(6)
    rival.update(everyone, torch.tensor([0.1, 5.0, 0.2, 0.3, 9.0, 0.4]))
    rival.on_pass()
    r, w = rival.predict(everyone), rival.weights(everyone).double()
    assert r.tolist() == [0, 1, 0, 0, 1, 0]
    total = torch.zeros(2).double()
    for kept in itertools.product([0, 1], repeat=n):
        p = base + (1 - base) * r.double()
        chance = math.prod(float(p[i] if kept[i] else 1 - p[i]) for i in range(n))
        total += chance * (torch.tensor(kept) * w) @ grads / n
    torch.testing.assert_close(total, grads.mean(0), rtol=0, atol=1e-12)
    sampler, counts = assisted(n, 2, rival, base=base), torch.zeros(n)
    for _ in range(1000):
        for batch in sampler:
            counts[batch] += 1
    # four deviations of a share of 1000
    assert float((counts / 1000 * w - 1).abs().max()) < 4 * 2 * math.sqrt(0.25 / 1000)


# --- selective backpropagation


@given(
    losses=st.lists(st.integers(0, 5), min_size=1, max_size=30),
    cuts=st.lists(st.integers(1, 7), min_size=1, max_size=10),
    beta=st.sampled_from([0.5, 1.0, 3.0]),
    history=st.sampled_from([7, 12, 1024]),
)
@settings(max_examples=60, deadline=None)
def test_chances_are_the_empirical_distribution_of_recent_losses(losses, cuts, beta, history):
    table = torch.tensor(losses) / 4.0
    rival = SelectiveBackprop(lambda index: table[index], beta=beta, history=history)
    seen, at = [], 0
    for cut in cuts:
        if at >= len(losses):
            break
        index = torch.arange(at, min(at + cut, len(losses)))
        at += cut
        seen += losses[int(index[0]) : int(index[-1]) + 1]
        recent = sorted(seen[-history:])
        expected = [(bisect.bisect_right(recent, losses[i]) / len(recent)) ** beta for i in index]
        r = rival.predict(index)
        assert r.tolist() == pytest.approx(expected, abs=1e-6)
        assert bool(((r > 0) & (r <= 1)).all())
    assert rival.forwards == len(seen)


def test_an_easy_example_has_a_chance_in_a_batch_beyond_the_history():
    rival = SelectiveBackprop(lambda index: index.double(), history=2)
    r = rival.predict(torch.arange(4))
    assert bool(((r > 0) & (r <= 1)).all())  # as is promised


def test_selective_backpropagation_keeps_a_share_by_the_losses_without_a_graph():
    weight = torch.ones(1, requires_grad=True)
    rival = SelectiveBackprop(lambda index: index / 1000 * weight, beta=2.0)
    sampler = assisted(1000, 20, rival, base=0.0)
    list(sampler)
    assert sampler.keep_rates[-1] == pytest.approx(1 / 3, abs=0.06)  # E[cdf^2]
    assert not rival.predict(torch.arange(3)).requires_grad
    assert rival.forwards >= sampler.scanned


# --- self-paced weights


@pytest.mark.parametrize(("epochs", "q"), [(5, 4.0), (1, 2.0), (3, 1.5)])
def test_self_paced_weights_equal_the_loop(epochs, q):
    n, steps, start, g = 11, 3, 50.0, stream(0, "measure")
    rival = SelfPacedWeights(n, steps, start=start, epochs=epochs, q=q)
    last, pace = [start] * n, None
    for step in range(20):
        index = torch.randperm(n, generator=g)[:4]
        if step % steps == 0:
            shares = [0.25 + 0.75 * e / (epochs - 1) for e in range(epochs)] if epochs > 1 else [1]
            share = shares[min(step // steps, epochs - 1)]
            position, ranked = share * (n - 1), sorted(last)
            low = int(position)
            high = min(low + 1, n - 1)
            pace = ranked[low] + (position - low) * (ranked[high] - ranked[low])
        raw = [max(0.0, 1 - last[i] / pace) ** (1 / (q - 1)) + 0.01 for i in index.tolist()]
        weights = rival.weights(index)
        mean = sum(raw) / 4
        assert weights.tolist() == pytest.approx([w / mean for w in raw], rel=1e-3)
        assert float(weights.mean()) == pytest.approx(1.0, abs=1e-5)
        losses = torch.rand(4, generator=g) * 3
        rival.update(index, losses)
        for i, loss in zip(index.tolist(), losses.tolist(), strict=True):
            last[i] = loss


# --- the screener


class Screener(torch.nn.Module):
    """A linear layer that draws no global randomness."""

    def __init__(self, weight, bias=0.0):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))
        self.bias = torch.nn.Parameter(torch.tensor([bias]))

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight, self.bias)  # (B, 1)


def test_a_step_of_the_screener_is_that_of_its_loss_by_hand(randn):
    x, losses = randn(0, 5, 3, dtype=torch.float32), torch.tensor([0.1, 3.0, 0.9, 2.0, 0.5])
    net = Screener([[0.3, -0.8, 0.5]], 0.2)
    optimizer = torch.optim.SGD(net.parameters(), 0.7)
    rival = ScreenerWeights(net, lambda index: x[index], optimizer, margin=1.0, penalty=0.04)
    index, old, bias = torch.tensor([4, 0, 2]), net.weight.detach().clone()[0], 0.2
    s = [1 / (1 + math.exp(-float(x[i] @ old) - bias)) for i in index.tolist()]
    weights = rival.weights(index)
    assert weights.tolist() == pytest.approx(s, abs=1e-6)
    assert not weights.requires_grad
    fed = losses[index].requires_grad_()
    rival.update(index, fed)
    assert fed.grad is None
    slopes = [
        (-2 * (1 - a) * loss + 2 * a * max(1 - loss, 0.0)) * a * (1 - a) / 3
        for a, loss in zip(s, losses[index].tolist(), strict=True)
    ]
    wanted = sum(slope * x[i] for slope, i in zip(slopes, index.tolist(), strict=True))
    expected = old - 0.7 * (wanted + 0.01 * old.sign())  # 0.04 / 4 parameters
    torch.testing.assert_close(net.weight.detach()[0], expected, rtol=1e-5, atol=1e-6)
    assert net.bias.item() == pytest.approx(bias - 0.7 * (sum(slopes) + 0.01), abs=1e-6)


# --- importance sampling


def problem(n, d, seed):
    g = stream(seed, "measure")
    X = torch.randn(n, d, dtype=torch.float64, generator=g)
    return X, torch.randint(2, (n,), generator=g).double() * 2 - 1


def naive_scores(w, X, y, lam, utility, floor):
    if utility == "loss":
        actual = [max(0.0, 1 - float(y[i] * (w @ X[i]))) for i in range(len(X))]
    else:
        actual = svm_gradients(w, X, y, lam).norm(dim=1).tolist()
    actual = torch.tensor(
        [s + floor * sum(actual) / len(actual) for s in actual], dtype=torch.float64
    )
    return actual / actual.sum()


@pytest.mark.parametrize("utility", ["loss", "gradient"])
@pytest.mark.parametrize("refresh", [None, 1, 4])
@pytest.mark.parametrize("project", ["ball", "none"])
def test_importance_sampling_equals_the_loop_and_counts_products(utility, refresh, project):
    (X, y), lam, steps = problem(9, 3, 4), 0.1, 23
    options = {"utility": utility, "refresh": refresh, "project": project, "step_offset": 1.0}
    path = importance_pegasos(X, y, lam, steps, stream(0, "draws"), **options)
    every, g, w = refresh or 9, stream(0, "draws"), torch.zeros(3).double()
    for k in range(1, steps + 1):
        if (k - 1) % every == 0:
            q = naive_scores(w, X, y, lam, utility, 1e-3)
            many = min(every, steps - k + 1)
            draws = torch.multinomial(q, many, replacement=True, generator=g).tolist()
        i, eta = draws[(k - 1) % every], 1 / (lam * (k + 1.0))
        hinge = svm_gradients(w, X, y, lam)[i] - lam * w
        w = w - eta * (lam * w + hinge / (9 * q[i]))
        if project == "ball" and float(w.norm()) > lam**-0.5:
            w = w / w.norm() * lam**-0.5
        torch.testing.assert_close(path.weights[k], w, rtol=1e-9, atol=1e-9)
        # exact: N an update; stale: N a refresh and 1 an update
        scored = -(-k // every) * 9
        assert path.products[k] == (scored if every == 1 else scored + k)
    assert path.steps == path.updates == list(range(steps + 1))


@pytest.mark.parametrize("utility", ["loss", "gradient"])
@pytest.mark.parametrize("refresh", [1, 6])
def test_the_estimate_of_importance_sampling_is_unbiased(utility, refresh, monkeypatch):
    """Every draw enumerated, after some steps: its mean is the step of gradient descent."""
    (X, y), lam, before = problem(6, 3, 2), 0.1, [3, 0, 5]
    real, seen, total = torch.multinomial, [], 0
    for last in range(6):
        script = [*before, last]

        def scripted(q, many, *, replacement, generator, script=script):
            real(q, many, replacement=replacement, generator=generator)  # must be possible
            seen.append(q)
            start, script[:] = script[:many], script[many:]
            return torch.tensor(start)

        monkeypatch.setattr(torch, "multinomial", scripted)
        path = importance_pegasos(
            X, y, lam, 4, stream(0, "draws"), utility=utility, refresh=refresh, project="none"
        )
        w, end = path.weights[-2], path.weights[-1]
        total = total + seen[-1][last] * end
    violated = float((y * (X @ w) < 1).double().mean())
    assert 0 < violated < 1 or refresh == 6
    mean = svm_gradients(w, X, y, lam).mean(0)
    torch.testing.assert_close(total, w - mean / (lam * 104), rtol=0, atol=1e-12)


# --- resuming, devices, bad input


def used(kind, rival, start, stop):
    """Weights and predictions of some steps, which give losses back; passes of four steps."""
    table, seen = torch.rand(20, 9, generator=stream(1, "measure")), []
    for step in range(start, stop):
        if kind == "table" and step and step % 4 == 0:
            rival.on_pass()
        index = (torch.arange(4) * 2 + step) % 9
        seen.append(rival.weights(index).tolist())
        if kind == "table":
            seen[-1] += rival.predict(index).tolist()
        rival.update(index, table[step, index])
    return seen


@pytest.mark.parametrize("kind", ["table", "paced"])
def test_resumes_after_every_step(kind):
    def make():
        return LossTable(9, full_from=4) if kind == "table" else SelfPacedWeights(9, 4, start=2.0)

    whole = used(kind, make(), 0, 18)
    for stop in range(18):
        first, again = make(), make()
        used(kind, first, 0, stop)
        state = first.state_dict()
        used(kind, first, stop, 18)  # the state is a copy
        used(kind, again, 3, 9)
        again.load_state_dict(state)
        assert used(kind, again, stop, 18) == whole[stop:]


@pytest.mark.parametrize("kind", ["random", "selective"])
def test_skipping_resumes_after_every_batch(kind):
    table = torch.rand(40, generator=stream(1, "measure"))

    def make():
        rival = RandomSkip([0.9, 0.4, 0.7, 0.2])
        if kind == "selective":
            rival = SelectiveBackprop(lambda index: table[index], history=12)
        return rival, assisted(40, 6, rival, base=0.0)

    def go(rival, sampler, count):
        passes = itertools.chain.from_iterable(itertools.repeat(sampler))
        return [(b, getattr(rival, "forwards", 0)) for b in itertools.islice(passes, count)]

    def chances(rival):
        return rival.predict(torch.arange(40)).tolist()

    rival, sampler = make()
    whole, ends = go(rival, sampler, 24), chances(rival)
    assert len(sampler.keep_rates) >= 4
    for stop in range(24):
        first, again = make(), make()
        assert go(*first, stop) == whole[:stop]
        states = [part.state_dict() for part in first]
        for used in (first, again):  # the states are copies
            go(*used, 9)
        for part, state in zip(again, states, strict=True):
            part.load_state_dict(state)
        assert go(*again, 24 - stop) == whole[stop:]
        assert again[1].keep_rates == sampler.keep_rates
        assert chances(again[0]) == ends


def everything(losses):
    index = torch.arange(9, device=losses.device)
    table, paced, skip = LossTable(9), SelfPacedWeights(9, 4, start=2.0), RandomSkip([0.5])
    actual = [skip.predict(index), paced.weights(index)]
    for rival in (table, paced):
        rival.update(index, losses)
    table.on_pass()
    losers = SelectiveBackprop(lambda index: losses[index])
    return [*actual, table.weights(index), paced.weights(index), losers.predict(index).tolist()]


def test_inside_a_meta_context_values_are_the_same(same_inside_meta):
    same_inside_meta(everything, torch.arange(9) / 8)


@pytest.mark.gpu
def test_on_cuda_values_are_the_same(same_on_cuda):
    same_on_cuda(everything, torch.arange(9) / 8)


def test_bad_input_is_refused():
    for rates in ([], [0.0], [0.5, 1.5], [NAN]):
        with pytest.raises(ValueError, match=r"need rates in \(0, 1\], got \["):
            RandomSkip(rates)
    for args in ((0,), (3, 0.0), (3, 1.5), (3, NAN)):
        with pytest.raises(ValueError, match=str(args[-1])):
            LossTable(*args)
    assert LossTable(3, 0.0, rescale=False).weights(torch.arange(2)).tolist() == [1.0, 1.0]
    for option in ({"beta": 0.0}, {"history": 0}):
        with pytest.raises(ValueError, match="need beta > 0 and history >= 1, got"):
            SelectiveBackprop(torch.Tensor.float, **option)
    for name, value in {"start": 0.0, "epochs": 0, "q": 1.0, "num_examples": 0}.items():
        with pytest.raises(ValueError, match=f"{name}={value}"):
            SelfPacedWeights(**{"num_examples": 3, "epoch_steps": 2, name: value})
    net = Screener([[0.0]])
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for option in ({"margin": 0.0}, {"penalty": -1.0}):
        with pytest.raises(ValueError, match=str(*option.values())):
            ScreenerWeights(net, torch.Tensor.long, optimizer, **option)
    screener = ScreenerWeights(net, torch.Tensor.long, optimizer)
    for rival in (LossTable(9), SelfPacedWeights(9, 2), screener):
        with pytest.raises(ValueError, match=r"losses must have shape \(2,\), got \(3,\)"):
            rival.update(torch.arange(2), torch.ones(3))
        with pytest.raises(FloatingPointError, match="the loss of example 7 is nan"):
            rival.update(torch.tensor([2, 7]), torch.tensor([1.0, NAN]))
        with pytest.raises(TypeError, match=r"indices must be a tensor .*, got list"):
            rival.update([2, 7], torch.ones(2))
    with pytest.raises(FloatingPointError, match="the loss of example 1 is nan"):
        SelectiveBackprop(lambda index: torch.tensor([0.0, NAN])).predict(torch.arange(2))


# --- what training loops bring


def screener():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return ScreenerWeights(model, lambda i: i[:, None].to(model.weight.dtype) / 10, optimizer)


RIVALS = {
    "table": lambda: LossTable(6),
    "paced": lambda: SelfPacedWeights(6, 2),
    "screener": screener,
}


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_types_of_index_and_losses_change_no_weight(name, dtype, half):
    index, losses = torch.tensor([1, 0, 1, 5]), torch.tensor([0.5, 1.0, 2.0, 3.0])
    ours, theirs = RIVALS[name](), RIVALS[name]()
    for _ in range(3):
        ours.update(index.to(dtype), losses.to(half))
        theirs.update(index, losses)
        for rival in (ours, theirs):
            if isinstance(rival, LossTable):
                assert rival.losses.tolist()[:2] == [1.0, 2.0]  # the last of a repeated one
                rival.on_pass()
        assert torch.equal(ours.weights(index.to(dtype)), theirs.weights(index))
        if isinstance(ours, LossTable):
            assert torch.equal(ours.predict(index.to(dtype)), theirs.predict(index))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_a_screener_in_half_precision_gives_finite_weights(half):
    rival = screener()
    rival.screener.to(half)
    index = torch.arange(4)
    rival.update(index, torch.tensor([0.0, 1.0, 300.0, 60_000.0]))
    weights = rival.weights(index)
    assert weights.dtype == torch.float32
    assert bool(((weights >= 0) & (weights <= 1)).all())


@pytest.mark.parametrize("name", ["table", "paced"])
def test_examples_and_losses_that_a_table_cannot_hold_are_refused(name):
    rival = RIVALS[name]()
    before, index = rival.losses.clone(), torch.tensor([0, 1])
    for bad in (index - 1, index + 5, index / 2, index > 0):
        with pytest.raises(ValueError, match="index must be"):
            rival.update(bad, torch.ones(2))
        with pytest.raises(ValueError, match="index must be"):
            rival.weights(bad)
    for bad in (NAN, math.inf, 1e300):
        with pytest.raises(FloatingPointError, match="the loss of example 1"):
            rival.update(index, torch.tensor([1.0, bad], dtype=torch.float64))
    assert torch.equal(rival.losses, before)
    with pytest.raises(ValueError, match="the state is of 6 examples, need 5"):
        (LossTable(5) if name == "table" else SelfPacedWeights(5, 2)).load_state_dict(
            rival.state_dict()
        )


def test_settings_that_are_no_numbers_are_refused():
    for make in (
        lambda: SelectiveBackprop(lambda i: i, beta=NAN),
        lambda: SelfPacedWeights(3, 1, q=NAN),
        lambda: SelfPacedWeights(3, 1, start=NAN),
        lambda: ScreenerWeights(torch.nn.ReLU(), lambda i: i, None, margin=NAN),
    ):
        with pytest.raises(ValueError, match="nan"):
            make()


def test_every_state_is_loaded_from_a_file_without_trust():
    index, losses = torch.arange(3), torch.tensor([0.5, 1.0, 2.0])
    selective = SelectiveBackprop(lambda i: losses[i])
    selective.predict(index)
    rivals = [LossTable(3), SelfPacedWeights(3, 2), selective, RandomSkip(torch.tensor([0.5]))]
    for rival in rivals[:2]:
        rival.update(index, losses)
    x = torch.randn(3, 2, generator=stream(0, "measure"))
    trainer = AssistantTrainer(ImageAssistant(2, 2, stream(0, "init")), lambda i: (x[i], i % 2))
    trainer.update(index, losses)
    for each in (*rivals, trainer):
        file = io.BytesIO()
        torch.save(each.state_dict(), file)
        file.seek(0)
        each.load_state_dict(torch.load(file))
