"""Chapter 1: training to the plateau, the ridge, what a run states, and the timing."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as SklearnRidge
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from companion.chapters.hard_negatives import ridge, train
from companion.chapters.hard_negatives.arms import Profile, arms
from companion.chapters.hard_negatives.measures import (
    BothDirections,
    lenient_hits,
    near_synonyms,
    score_galleries,
)
from companion.chapters.hard_negatives.problems import Pairs, Retrieval, captions, load_pairs
from companion.chapters.hard_negatives.ridge import Ridge, fit_ridge, run_ridge
from companion.chapters.hard_negatives.timing import Timing, run_timing
from companion.chapters.hard_negatives.train import (
    Training,
    run_demonstration,
    run_training,
    train_pairs,
)
from companion.evidence.store import canonical_json
from companion.lab.results import Result
from trainaug.data.bag_of_words import split_words, tf_idf
from trainaug.data.emoji_captions import emoji_captions
from trainaug.methods.hard_negatives import RetrievalMetrics, rsum

pytestmark = pytest.mark.usefixtures("untouched_randomness")

BATCHES = 8  # of 32 pairs, in the small problem
SHORT = Training(batch_size=32, max_epochs=2)


@pytest.fixture(scope="module")
def small() -> Pairs:
    """Train on 64 concepts and score 30 in each gallery, with 40 of the features."""
    pairs = load_pairs(Retrieval(num_gallery=30), 0)
    pictures = pairs.pictures[..., 150:190].clone()
    return replace(pairs, pictures=pictures, train=pairs.train[:256])


# --- arms -----------------------------------------------------------------------------------------


def test_arms_that_share_a_learning_rate_share_what_is_trained() -> None:
    rows = {row.name: row for row in arms(Profile())}
    for row in rows.values():
        for owner in row.tuned.values():
            assert rows[owner].tuned == {"lr": owner}
            for name in ("split", "encoder", "captions", "score", "loss"):
                assert getattr(row.settings, name) == getattr(rows[owner].settings, name)


@pytest.mark.parametrize("setting", ["captions", "score", "loss", "siblings", "reduction"])
def test_unknown_choice_is_refused(setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting} .* 'other'"):
        replace(SHORT, **{setting: "other"})


def test_training_of_no_epoch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_epochs .* 0"):
        Training(max_epochs=0)


# --- training -------------------------------------------------------------------------------------


def test_training_is_reproducible_bit_by_bit(small: Pairs) -> None:
    first, again, other = (train_pairs(SHORT, small, seed) for seed in (0, 0, 1))
    for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    for name in ("validation", "recall", "loss", "norm", "updates", "best_epoch", "plateau"):
        assert getattr(first, name) == getattr(again, name)
    assert first.loss != other.loss
    assert (first.updates, len(first.validation), first.plateau) == (2 * BATCHES, 2, False)


def test_a_wider_margin_has_a_larger_loss(small: Pairs) -> None:
    losses = [train_pairs(replace(SHORT, margin=m), small, 0).loss[0] for m in (0.1, 0.2, 0.3)]
    assert losses == sorted(losses)


def scripted(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> list[dict[str, Tensor]]:
    """Make validation say ``values`` in turn; the weights it was asked about."""
    seen: list[dict[str, Tensor]] = []

    def validate(model: nn.Module, pairs: Pairs) -> BothDirections:
        seen.append(copy.deepcopy(model.state_dict()))
        nothing = RetrievalMetrics(0.0, 0.0, 0.0, 1.0, 1.0)
        return replace(nothing, r1=values[len(seen) - 1]), nothing

    monkeypatch.setattr(train, "validate", validate)
    return seen


def test_the_weights_of_the_best_validation_come_back(
    small: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = scripted(monkeypatch, [100.0, 300.0, 200.0, 300.0])
    trained = train_pairs(replace(SHORT, max_epochs=4), small, 0)
    assert (trained.best_epoch, trained.validation) == (1, [100.0, 300.0, 200.0, 300.0])
    assert trained.recall == [50.0, 150.0, 100.0, 150.0]
    for name, value in trained.model.state_dict().items():
        assert torch.equal(value, seen[1][name])
        assert not torch.equal(value, seen[3][name])


@pytest.mark.parametrize(("most", "ends", "plateau"), [(20, 6, True), (6, 6, True), (5, 5, False)])
def test_patience_counts_gains_below_the_plateau(
    small: Pairs, monkeypatch: pytest.MonkeyPatch, most: int, ends: int, plateau: bool
) -> None:
    # too small a gain, then one that is just enough, then three that are too small
    gains = [0.0, 0.9, 1.0, *(1 + i / 20 for i in range(1, 18))]
    scripted(monkeypatch, [100 + SHORT.plateau * gain for gain in gains])
    trained = train_pairs(replace(SHORT, patience=3, max_epochs=most), small, 0)
    assert (len(trained.validation), trained.plateau) == (ends, plateau)
    assert trained.best_epoch == ends - 1  # a small gain is still kept


Steps = list[tuple[torch.optim.Optimizer, int, float, float]]


@pytest.fixture
def steps() -> Iterator[Steps]:
    """Watch every update: optimiser, updates it remembers, rate, norm of the gradient it used."""
    seen: Steps = []
    before = torch.zeros(())

    def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
        nonlocal before
        (group,) = optimizer.param_groups
        states = [optimizer.state[p] for p in group["params"]]
        known = int(states[0]["step"])
        average = torch.cat([state["exp_avg"].flatten() for state in states])
        used = (average - 0.9 * before * (known > 1)) / 0.1
        before = average
        seen.append((optimizer, known, group["lr"], float(used.norm())))

    handle = register_optimizer_step_post_hook(note)
    yield seen
    handle.remove()


@pytest.mark.parametrize("reset", [True, False])
def test_the_switch_of_the_curriculum_forgets_the_averages(
    small: Pairs, steps: Steps, reset: bool
) -> None:
    total = train_pairs(replace(SHORT, max_epochs=3), small, 0).loss
    steps.clear()
    settings = replace(SHORT, loss="max", warmup=1, reset=reset, max_epochs=3)
    loss = train_pairs(settings, small, 0).loss
    # two hinges of cosines are at most 4.4, and the sum over 62 negatives is larger
    assert loss[0] == total[0]
    assert max(loss[1:]) <= 4.4 < min(total)
    optimisers, known, rates, _ = zip(*steps, strict=True)
    one, two = list(range(1, BATCHES + 1)), list(range(1, 2 * BATCHES + 1))
    assert len({id(optimiser) for optimiser in optimisers}) == 1 + reset
    assert list(known) == (one + two if reset else list(range(1, 3 * BATCHES + 1)))
    rise = [1e-3 * i / BATCHES for i in one]
    assert list(rates) == pytest.approx(rise + [1e-3] * 2 * BATCHES)  # no second rise


def test_clipping_bounds_the_gradient(small: Pairs, steps: Steps) -> None:
    norms = {}
    for reduction, clip in (("mean", 0.0), ("sum", 0.0), ("mean", 0.01), ("sum", 0.01)):
        steps.clear()
        train_pairs(replace(SHORT, reduction=reduction, clip=clip, max_epochs=1), small, 0)
        norms[reduction, clip] = [norm for *_, norm in steps]
    assert min(norms["mean", 0.0]) > 0.01
    assert norms["sum", 0.0][0] == pytest.approx(32 * norms["mean", 0.0][0], rel=1e-4)
    for reduction in ("mean", "sum"):
        assert norms[reduction, 0.01] == pytest.approx([0.01] * BATCHES, rel=1e-3)


# --- ridge ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("crops", [False, True])
def test_ridge_is_that_of_scikit_learn(
    small: Pairs, monkeypatch: pytest.MonkeyPatch, crops: bool
) -> None:
    verdicts = iter([0.0, 1.0] if crops else [1.0, 0.0])
    monkeypatch.setattr(ridge, "rsum", lambda *_: next(verdicts))
    fitted, validation = fit_ridge(small, [1e2])
    assert (fitted.strength, fitted.crops, validation) == (1e2, crops, 1.0)
    concept, vendor = small.train.unbind(1)
    views = small.pictures[concept, vendor][:, : 6 if crops else 1].double()
    words = tf_idf(small.tokens, concept.unique(), small.vocabulary).double()
    x, y = views.flatten(0, 1).numpy(), words[concept].repeat_interleave(views.shape[1], 0).numpy()
    expected = SklearnRidge(alpha=1e2 * views.shape[1]).fit(x, y)
    np.testing.assert_allclose(fitted.weight.numpy(), expected.coef_.T, rtol=0, atol=1e-9)
    np.testing.assert_allclose(fitted.intercept.numpy(), expected.intercept_, rtol=0, atol=1e-9)
    gallery = small.test[1]
    predicted = expected.predict(small.pictures[gallery.concepts, gallery.vendor, 0].double())
    predicted /= np.linalg.norm(predicted, axis=1, keepdims=True)
    cosines = predicted @ words[gallery.concepts].numpy().T
    np.testing.assert_allclose(fitted.gallery_scores(gallery), cosines, rtol=0, atol=1e-9)


def test_ridge_is_the_best_by_validation(small: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def noted(*metrics: RetrievalMetrics) -> float:
        seen.append(rsum(*metrics))
        return seen[-1]

    monkeypatch.setattr(ridge, "rsum", noted)
    strengths = Ridge().strengths
    fitted, validation = fit_ridge(small, strengths)
    choices = [(crops, strength) for crops in (False, True) for strength in strengths]
    assert len(seen) == len(choices)
    assert len(set(seen)) > 2
    assert (fitted.crops, fitted.strength) == choices[seen.index(max(seen))]
    assert validation == max(seen) == rsum(*score_galleries(small.val, fitted.gallery_scores))
    for first in (0, 3, 7):  # a tie later on does not count
        verdicts = iter([2.0 if i in (first, 9) else 1.9 for i in range(10)])
        monkeypatch.setattr(ridge, "rsum", lambda *_, v=verdicts: next(v))
        fitted, _ = fit_ridge(small, strengths)
        assert (fitted.crops, fitted.strength) == choices[first]


# --- what a run states ----------------------------------------------------------------------------


def test_synonyms_share_half_of_their_words() -> None:
    alike = near_synonyms(0.5)
    assert torch.equal(alike, alike.T)
    assert bool(alike.diagonal().all())
    words = [set(split_words(text)) for text in captions(emoji_captions())]
    for row in (0, 100, 777, 1593, int(alike.sum(1).argmax())):
        for column, other in enumerate(words):
            shared = len(words[row] & other) / len(words[row] | other)
            assert bool(alike[row, column]) == (shared >= 0.5)


def test_lenient_hits_by_hand() -> None:
    alike = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    alone = torch.eye(3, dtype=torch.bool)
    # a better near-synonym; a tie with another concept; a tie with a near-synonym
    scores = torch.tensor([[0.4, 0.9, 0.1], [0.2, 0.5, 0.5], [0.1, 0.6, 0.7]])
    assert lenient_hits(scores, alike).tolist() == [True, False, True]
    assert lenient_hits(torch.full((3, 3), 0.5), alike).tolist() == [False] * 3
    assert lenient_hits(scores, alone).tolist() == [False, False, True]


def check_test_part(result: Result, pairs: Pairs) -> None:
    """The digits of the concepts add up to the metrics."""
    record: Any = result.as_record()
    canonical_json(record)
    metrics, counts = record["metrics"], [int(digit) for digit in record["galleries"]]
    assert len(counts) == len(pairs.tested)
    assert sum(counts) == 4 * 30
    for direction in ("i2t", "t2i"):
        hits = [int(digit) for digit in record["hits"][direction]]
        assert all(0 <= hit <= count for hit, count in zip(hits, counts, strict=True))
        assert metrics[f"test/{direction}/r1"] == pytest.approx(100 * sum(hits) / 120)
        assert metrics[f"test/{direction}/r1"] <= metrics[f"test/{direction}/r1_lenient"]
    recalls = [metrics[f"test/{d}/{r}"] for d in ("i2t", "t2i") for r in ("r1", "r5", "r10")]
    assert metrics["test/rsum"] == pytest.approx(sum(recalls))


def test_a_run_states_its_test_part_and_the_ends_of_its_curves(
    small: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "load_pairs", lambda *_: small)
    result = run_training(replace(SHORT, loss="max"), 0)
    check_test_part(result, small)
    assert result.metrics["val/rsum"] == pytest.approx(max(result.curves["val/rsum"]), rel=1e-5)
    assert result.metrics["final_loss"] == result.curves["loss"][-1]
    assert result.curves["epoch"] == [1.0, 2.0]
    assert result.counters == {"updates": 2 * BATCHES, "pairs": 2 * 256}
    assert result.notes["plateau"] is False
    demonstration = run_demonstration(replace(SHORT, loss="max"), 0)
    assert demonstration.notes == {**result.notes, "demonstration": True}
    assert demonstration.metrics == result.metrics


def test_a_run_of_the_ridge_states_its_test_part(
    small: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ridge, "load_pairs", lambda *_: small)
    check_test_part(run_ridge(Ridge(), 0), small)


def test_timing_gives_positive_seconds() -> None:
    metrics = run_timing(Timing(shapes=((8, 4),), repeats=(3,), batch_size=512), 0).metrics
    assert set(metrics) == {"sum/B=8/d=4", "max/B=8/d=4", "step/sum", "step/max"}
    assert all(seconds > 0 for seconds in metrics.values())
