"""Chapter 2: samplers against plain loops, and what they spend."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from companion.chapters.gradient_clustering import speed
from companion.chapters.gradient_clustering.problems import HELD_OUT, losses_of, make_model, problem
from companion.chapters.gradient_clustering.speed import (
    HalfCopies,
    MostlyCopies,
    Sampling,
    Trained,
    WrongLabels,
    run_sampling,
    train_sampler,
)
from trainaug.methods.gradient_clustering import clustering as clustering_module
from trainaug.training.models import evaluate
from trainaug.training.randomness import stream

pytestmark = pytest.mark.usefixtures("untouched_randomness")

# an epoch has 11 batches, the last of five
SMALL = replace(
    Sampling.usual(),
    data="digits",
    num_train=105,
    num_val=HELD_OUT["digits"][0],
    num_test=HELD_OUT["digits"][1],
    batch=10,
    clusters=8,
    steps=90,
)


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> None:
    """Import scikit-learn before the random states are watched: that draws from Python's."""
    problem("digits", 0, 20)


@pytest.fixture
def watched(monkeypatch) -> SimpleNamespace:
    """Note the batches with the losses they had, the samplers, and examples clustered."""
    seen = SimpleNamespace(batches=[], losses=[], weights=[], made=[], clustered=[0], assigned=[])
    train, factors = speed.train, clustering_module.layer_factors

    def spy(*parts: Any, feedback: Any, weights: Any, **rest: Any) -> Any:
        def noting(index: Tensor, losses: Tensor) -> None:
            seen.batches.append(index.tolist())
            seen.losses.append(losses.tolist())
            seen.weights.append(None if weights is None else weights(index).tolist())
            seen.clustered.append(seen.clustered[-1])
            feedback(index, losses)

        return train(*parts, feedback=noting, weights=weights, **rest)

    def counted(model: Any, criterion: Any, x: Tensor, *rest: Any, **more: Any) -> Any:
        seen.clustered[-1] += len(x)
        return factors(model, criterion, x, *rest, **more)

    def noted(name: str) -> None:
        kind = getattr(speed, name)

        class Noted(kind):
            def __init__(self, *given: Any, **named: Any) -> None:
                super().__init__(*given, **named)
                seen.made.append(self)

            def set_clusters(self, assign: Tensor) -> None:
                seen.assigned.append((len(seen.batches), assign))
                super().set_clusters(assign)

        monkeypatch.setattr(speed, name, Noted)

    monkeypatch.setattr(speed, "train", spy)
    monkeypatch.setattr(clustering_module, "layer_factors", counted)
    for name in ("SnoozeSampler", "RandomSnoozeSampler", "StratifiedSampler"):
        noted(name)
    return seen


def replay(
    settings: Sampling, seed: int, batches: list[list[int]], weights: list[Any]
) -> SimpleNamespace:
    """Train on these batches, without the loop, and measure as often."""
    data = settings.problem(seed)
    model = make_model("mlp", data, seed)
    optimizer = torch.optim.SGD(model.parameters(), settings.lr, momentum=0.9, weight_decay=1e-4)
    actual = SimpleNamespace(losses=[], accuracy=[], drawn=[])
    for step, (rows, w) in enumerate(zip(batches, weights, strict=True), 1):
        losses = losses_of(model(data.train.x[rows]), data.train.y[rows])
        optimizer.zero_grad()
        (losses * torch.tensor(w or [1.0] * len(rows))).mean().backward()
        optimizer.step()
        actual.losses.append(losses.tolist())
        if step % 20 == 0 or step == len(batches):
            actual.accuracy.append(evaluate(model, data.val, "val")["val/accuracy"])
            actual.drawn.append(sum(map(len, batches[:step])))
    actual.test = evaluate(model, data.test, "test")["test/accuracy"]
    return actual


def check(actual: Trained, expected: SimpleNamespace, losses: list[list[float]]) -> None:
    for one, other in zip(losses, expected.losses, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)
    assert actual.accuracy == pytest.approx(expected.accuracy, abs=0.01)
    assert actual.test == pytest.approx(expected.test, abs=0.01)
    spent = [d + e for d, e in zip(expected.drawn, actual.extra, strict=True)]
    assert actual.examples == spent  # the smaller last batches as they are


@pytest.mark.parametrize("changes", [{}, {"copies": 0.5, "noise": 0.2}])
def test_uniform_is_a_plain_loop(watched, changes):
    settings = replace(SMALL, **changes)
    actual = train_sampler(settings, 4)
    g, batches = stream(4, "order"), []
    while len(batches) < 90:
        batches += [rows.tolist() for rows in torch.randperm(105, generator=g).split(10)]
    assert watched.batches == batches[:90]
    check(actual, replay(settings, 4, watched.batches, [None] * 90), watched.losses)
    assert len(actual.accuracy) == 5  # at 20, 40, 60, 80 and the end
    assert actual.examples == [195, 385, 575, 765, 860]
    assert actual.extra == [0] * 5
    assert actual.active_counts == []
    assert actual.seconds > 0


@pytest.mark.parametrize("sampler", ["snooze", "reweighted"])
@pytest.mark.parametrize(("rule", "tau"), [("mean", 0.5), ("median", 1.0)])
def test_snoozing_learns_from_the_losses_of_training(watched, sampler, rule, tau):
    settings = replace(SMALL, sampler=sampler, rule=rule, tau=tau)
    actual = train_sampler(settings, 0)
    (made,) = watched.made
    assert (made.rule, made.tau, made.reweight) == (rule, tau, sampler == "reweighted")
    assert (made.kind, made.min_batches, made.warmup_epochs) == ("exponential", 1, 0)
    check(actual, replay(settings, 0, watched.batches, watched.weights), watched.losses)
    last = {}
    for rows, losses in zip(watched.batches, watched.losses, strict=True):
        last |= dict(zip(rows, losses, strict=True))
    assert made.alpha.tolist() == [pytest.approx(last[i]) for i in range(105)]
    # it draws what a sampler that is told the same draws
    alone = type(made)(
        105, 10, stream(0, "order"), rule=rule, tau=tau, reweight=sampler == "reweighted"
    )
    batches = []
    while len(batches) < 90:
        for rows in alone:
            at_step = len(batches)
            if at_step == 90:
                break
            batches.append(rows)
            alone.update(torch.tensor(rows), torch.tensor(watched.losses[at_step]))
    assert batches == watched.batches
    assert actual.active_counts == made.active_counts
    assert len(set(actual.active_counts)) > 3
    assert max(actual.active_counts[2:]) < 105
    differs = {w for weights in watched.weights for w in weights} != {1.0}
    assert differs == (sampler == "reweighted")
    assert watched.clustered[-1] == 0


def test_without_a_threshold_snoozing_is_uniform():
    uniform, snooze = (
        train_sampler(replace(SMALL, sampler=name, tau=0.0), 1) for name in ("uniform", "snooze")
    )
    assert (snooze.accuracy, snooze.examples) == (uniform.accuracy, uniform.examples)
    assert snooze.active_counts == [105] * 9


def test_the_random_control_has_the_counts_it_is_given(watched):
    counts = [105, 105, 33, 8, 70]
    settings = replace(SMALL, sampler="random")
    actual = train_sampler(settings, 0, counts=counts)
    assert actual.active_counts[:5] == counts
    assert set(actual.active_counts[5:]) == {70}
    check(actual, replay(settings, 0, watched.batches, [None] * 90), watched.losses)
    for sizes, start in (([10, 10, 10, 3], 22), ([8], 26), ([10] * 7, 27)):
        drawn = watched.batches[start : start + len(sizes)]
        assert [len(rows) for rows in drawn] == sizes
        assert len({i for rows in drawn for i in rows}) == sum(sizes)
    awake = {i for rows in watched.batches[22:26] for i in rows}
    assert min(awake) < 20 < 85 < max(awake)  # spread over the data
    assert train_sampler(settings, 0).active_counts == [105] * 9  # without counts, all


@pytest.mark.parametrize(("refresh", "iterations"), [(2, 3), (1, 1), (3, 4)])
def test_stratified_counts_every_extra_pass(watched, refresh, iterations):
    settings = replace(SMALL, sampler="stratified", refresh=refresh, iterations=iterations)
    actual = train_sampler(settings, 2)
    epochs = [e for e in range(1, 9) if (e - 1) % refresh == 0]  # 11 updates each
    assert [at_step for at_step, _ in watched.assigned] == [11 * e for e in epochs]
    first, later = 105 * iterations + 8, 105  # the first takes its centres from eight examples
    expected = []
    for step in (20, 40, 60, 80, 90):
        begun = [e for e in epochs if 11 * e < step]
        expected.append(first + later * (len(begun) - 1) if begun else 0)
    assert actual.extra == expected
    assert actual.extra == [watched.clustered[step - 1] for step in (20, 40, 60, 80, 90)]
    for (start, assign), (end, _) in zip(
        watched.assigned, [*watched.assigned[1:], (90, None)], strict=True
    ):
        drawn = torch.tensor([i for rows in watched.batches[start:end] for i in rows])
        strata = len(assign.unique())
        whole = len(drawn) // strata * strata
        for labels in assign[drawn[:whole]].view(-1, strata):  # a round has one of each stratum
            assert len(labels.unique()) == strata
    weights: list[Any] = []
    for step, rows in enumerate(watched.batches):
        known = [assign for at_step, assign in watched.assigned if at_step <= step]
        if not known:
            weights.append(None)
            continue
        sizes = torch.bincount(known[-1])
        strata = int((sizes > 0).sum())
        weights.append([strata * int(sizes[known[-1][i]]) / 105 for i in rows])
    check(actual, replay(settings, 2, watched.batches, weights), watched.losses)
    assert actual.active_counts == []


def test_clusters_are_those_of_the_present_weights(watched, monkeypatch):
    seen = []
    fit = speed.GradientClustering.fit

    def noting(self: Any, batches: Any, passes: int) -> Any:
        data = SMALL.problem(0)
        parts = [torch.cat([batch[k] for batch in batches]) for k in range(3)]
        assert torch.equal(parts[0], data.train.x)
        assert torch.equal(parts[1], data.train.y)
        assert parts[2].tolist() == list(range(105))
        assert {len(batch[2]) for batch in batches} == {10, 5}
        with torch.no_grad():
            loss = losses_of(self.model(data.train.x), data.train.y).mean()
        seen.append((passes, self.num_clusters, float(loss), self.generator.initial_seed()))
        return fit(self, batches, passes)

    monkeypatch.setattr(speed.GradientClustering, "fit", noting)
    train_sampler(replace(SMALL, sampler="stratified", refresh=2), 0)
    assert [given[0] for given in seen] == [3, 1, 1, 1]
    assert {given[1] for given in seen} == {8}
    losses = [given[2] for given in seen]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 2 * losses[-1]
    assert {given[3] for given in seen} == {stream(0, "clusters").initial_seed()}


def test_reached_averages_the_last_five_looks():
    actual = Trained(accuracy=[0.1, 0.9, 0.9, 0.2, 0.4, 0.6, 0.9, 0.9])
    means = [0.5, 0.6, 0.6, 0.6]  # of the looks 4 to 7
    assert [sum(actual.accuracy[end - 4 : end + 1]) / 5 for end in range(4, 8)] == pytest.approx(
        means
    )
    assert actual.reached(0.49, 5) == 4
    assert actual.reached(0.55, 5) == 5
    assert actual.reached(0.61, 5) is None
    assert Trained(accuracy=[1.0] * 4).reached(0.1, 5) is None  # too few looks
    assert Trained(accuracy=[0.75] * 9).reached(0.75, 5) == 4
    assert Trained(accuracy=[0.0] * 5 + [1.0] * 3).reached(0.6, 5) == 7


@pytest.mark.parametrize("sampler", ["uniform", "stratified"])
def test_timed_runs_are_not_measured(monkeypatch, sampler):
    looks = []
    real = speed.evaluate
    monkeypatch.setattr(speed, "evaluate", lambda *given: looks.append(given) or real(*given))
    settings = replace(SMALL, sampler=sampler, steps=30)
    actual = train_sampler(settings, 0, measured=False)
    assert looks == []
    assert (actual.accuracy, actual.examples, actual.test) == ([], [], 0.0)
    assert actual.seconds > 0
    measured = train_sampler(settings, 0)
    assert [len(measured.accuracy), len(looks)] == [2, 3]  # at 20 and 30; and the test part, once
    assert {len(part) for _, part, _ in looks[:2]} == {HELD_OUT["digits"][0]}
    assert len(looks[2][1]) == HELD_OUT["digits"][1]


def test_unknown_samplers_are_named_and_runs_are_deterministic():
    with pytest.raises(ValueError, match="unknown sampler 'sideways'"):
        train_sampler(replace(SMALL, sampler="sideways"), 0)
    for sampler in ("uniform", "snooze", "reweighted", "stratified"):
        settings = replace(SMALL, sampler=sampler, steps=24)
        one, again = (vars(train_sampler(settings, 0)) | {"seconds": 0} for _ in range(2))
        assert one == again
        assert one != vars(train_sampler(settings, 1)) | {"seconds": 0}


# --- runs -----------------------------------------------------------------------------------------


def test_a_snooze_s_run_has_its_control_with_as_many_awake():
    settings = replace(SMALL, sampler="snooze", control_lr=0.02, copies=0.5)
    result = run_sampling(settings, 3)
    assert result == run_sampling(settings, 3)
    snooze = train_sampler(settings, 3)
    control = train_sampler(settings.control(), 3, counts=snooze.active_counts)
    for prefix, trained in (("", snooze), ("random/", control)):
        assert result.metrics[f"{prefix}examples"] == trained.examples[-1]
        assert result.metrics[f"{prefix}test/accuracy"] == pytest.approx(trained.test)
        assert result.curves[f"{prefix}active"] == snooze.active_counts
        assert result.curves[f"{prefix}accuracy"] == pytest.approx(trained.accuracy, rel=1e-5)


@pytest.mark.parametrize("kind", [Sampling, HalfCopies, MostlyCopies, WrongLabels])
def test_costs_are_those_of_the_look_that_reached_the_target(monkeypatch, kind):
    settings = replace(kind.usual(), sampler="snooze", lr=0.1, control_lr=0.2)
    target = settings.target_accuracy
    ramp = [target - 0.0105 + 0.001 * i for i in range(130)]  # the mean of five is two looks behind
    examples = [64.0 * (i + 1) for i in range(130)]
    extra = [float(i) for i in range(130)]

    def fake(settings: Sampling, seed: int, *, counts: list[int] | None = None) -> Trained:
        is_snooze = settings.sampler == "snooze"
        assert settings.lr == (0.1 if is_snooze else 0.2)
        assert counts == (None if is_snooze else list(range(70)))
        accuracy = ramp if is_snooze else [target - 0.01] * 130
        return Trained(accuracy, examples, extra, test=0.5, active_counts=list(range(70)))

    monkeypatch.setattr(speed, "train_sampler", fake)
    result = run_sampling(settings, 3)
    reached = {"reached": 1, "examples": 64 * 14, "extra": 13, "test/accuracy": 0.5}
    never = {"reached": 0, "examples": 64 * 130, "extra": 129, "test/accuracy": 0.5}
    assert result.metrics == reached | {f"random/{name}": v for name, v in never.items()}
    # at most sixty points
    assert result.curves["drawn"] == [64.0 * (i + 1) for i in range(0, 130, 3)]
    assert len(result.curves["accuracy"]) == len(result.curves["drawn"])
    assert result.curves["active"] == [float(c) for c in range(60)]
