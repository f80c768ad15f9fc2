"""Chapter 1: splits, training items, training to the plateau, the ridge and the runs."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as SklearnRidge
from torch.optim.optimizer import register_optimizer_step_post_hook

from companion.chapters.hard_negatives import problems, ridge, runs, training
from companion.chapters.hard_negatives.arms import BASE
from companion.chapters.hard_negatives.problems import Gallery, Pairs, PairsDataset, load_pairs
from companion.evidence.store import Run, canonical_json
from trainaug.data.bag_of_words import split_words, tf_idf
from trainaug.data.emoji_captions import emoji_captions
from trainaug.methods.hard_negatives import MaxOfHinges, RetrievalMetrics, SumOfHinges, rsum
from trainaug.training.randomness import stream

pytestmark = pytest.mark.usefixtures("untouched_randomness")

BATCHES = 8  # of 32 pairs, in the small problem


@pytest.fixture(scope="module")
def family() -> Pairs:
    return load_pairs("family", "features", 0)


@pytest.fixture(scope="module")
def vendor() -> Pairs:
    return load_pairs("vendor", "features", 0)


@pytest.fixture(scope="module")
def small(family: Pairs) -> Pairs:
    """Train on 64 concepts and score 30 in two galleries, with 40 of the features."""
    val, test = (
        tuple(Gallery(one.concepts[:30], one.vendor) for one in part[:2])
        for part in (family.val, family.test)
    )
    pictures = family.pictures[..., 150:190].clone()
    return replace(family, pictures=pictures, train=family.train[:256], val=val, test=test)


def settings_for(**changes: Any) -> dict[str, Any]:
    short = {"lr": 1e-3, "batch_size": 32, "patience": 10, "max_epochs": 2}
    return BASE | short | changes


# --- splits ---------------------------------------------------------------------------------------


def concepts_of(galleries: Sequence[Gallery]) -> set[int]:
    return set(torch.cat([gallery.concepts for gallery in galleries]).tolist())


def test_family_split_tests_new_concepts_in_every_style(family):
    parts = set(family.train[:, 0].tolist()), concepts_of(family.val), concepts_of(family.test)
    families = emoji_captions().families
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not parts[a] & parts[b]
        assert not set(families[list(parts[a])]) & set(families[list(parts[b])])
    assert parts[2] <= set(family.tested.tolist())
    assert len(family.train) == 4 * len(parts[0])
    assert [gallery.vendor for gallery in family.val + family.test] == [0, 1, 2, 3] * 2
    other = load_pairs("family", "features", 1)
    assert not torch.equal(family.tested, other.tested)
    assert torch.equal(family.tested, load_pairs("family", "features", 0).tested)


def test_vendor_split_trains_on_two_styles_and_tests_a_fourth(vendor):
    assert set(vendor.train[:, 1].tolist()) == {0, 1}
    assert set(vendor.train[:, 0].tolist()) == set(range(1594))
    assert [[gallery.vendor for gallery in part] for part in (vendor.val, vendor.test)] == [
        [2],
        [3],
    ]


def test_galleries_have_known_words_and_no_drawing_twice(family, vendor):
    for pairs in (family, vendor):
        seen = pairs.tokens[pairs.train[:, 0]].unique()
        assert seen.tolist() == list(range(pairs.vocabulary + 1))  # words of training alone
        for gallery in pairs.val + pairs.test:
            assert bool((pairs.tokens[gallery.concepts] > 0).any(1).all())
            drawings = emoji_captions().pictures[gallery.concepts.numpy(), gallery.vendor]
            assert len({drawing.tobytes() for drawing in drawings}) == len(drawings)
    with pytest.raises(ValueError, match="unknown split 'new' or encoder 'features'"):
        load_pairs("new", "features", 0)


def test_name_tokens_are_the_known_words_of_the_name(family):
    names = emoji_captions().names
    for concept in family.train[::40, 0].tolist():
        row, marked = family.tokens[concept], family.in_name[concept]
        count = int((marked & (row > 0)).sum())
        assert count == len(set(split_words(names[concept])))
        assert row[:count].gt(0).all()  # the name stands first
        assert marked[:count].all()


# --- training items -------------------------------------------------------------------------------


def items(pairs: Pairs, seed: int = 0, crops: bool = True) -> tuple[Any, torch.Tensor]:
    """Ask for 2000 items: pictures and weights, and the concepts."""
    dataset = PairsDataset(pairs, crops=crops, generator=stream(seed, "augment"))
    (picture, (tokens, weights)), concept, index = dataset[range(2000)]
    assert len(dataset) == len(pairs.train)
    assert torch.equal(pairs.train[index, 0], concept)
    assert torch.equal(tokens, pairs.tokens[concept])
    return (picture, weights), concept


def test_items_are_reproducible_from_the_generator(family):
    (first, _), (again, _), (other, _) = (items(family, seed) for seed in (0, 0, 1))
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_names_are_kept_up_to_the_word_drop(family, monkeypatch):
    (_, weights), concept = items(family)
    known, name = family.tokens[concept] > 0, family.in_name[concept]
    assert set(weights.unique().tolist()) == {0.0, 1.0}
    assert not weights[~known].any()
    kept_name = float(weights[known & name].mean())
    assert kept_name == pytest.approx(0.9, abs=0.02)  # about 5000 draws
    assert float(weights[known & ~name].mean()) == pytest.approx(0.45, abs=0.03)
    monkeypatch.setattr(problems, "WORD_DROP", 0.0)
    (_, weights), _ = items(family)
    assert bool(weights[known & name].all())
    assert float(weights[known & ~name].mean()) == pytest.approx(0.5, abs=0.03)


def test_without_crops_the_picture_is_the_whole_one(family, monkeypatch):
    concept, vendor = family.train[:2000].unbind(1)
    views = family.pictures[concept, vendor]  # (2000, 6, F)
    (picture, _), _ = items(family, crops=False)
    dropped = (picture == 0) & (views[:, 0] != 0)
    assert float(dropped.float().mean()) == pytest.approx(0.2, abs=0.02)
    expected = (views[:, 0] / 0.8).masked_fill(dropped, 0.0)
    torch.testing.assert_close(picture, expected, rtol=1e-6, atol=0)
    monkeypatch.setattr(problems, "FEATURE_DROP", 0.0)
    assert torch.equal(items(family, crops=False)[0][0], views[:, 0])
    cropped = items(family, crops=True)[0][0]
    drawn = (cropped.unsqueeze(1) == views).all(2)  # (2000, 6)
    assert bool(drawn.any(1).all())
    assert float(drawn.float().mean(0).min()) > 0.1  # each view about a sixth


# --- training -------------------------------------------------------------------------------------


def test_training_is_reproducible_bit_by_bit(small):
    first, again, other = (training.train_pairs(settings_for(), small, s) for s in (0, 0, 1))
    for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    for name in ("validation", "recall", "loss", "norm", "updates", "best_epoch", "plateau"):
        assert getattr(first, name) == getattr(again, name)
    assert first.loss != other.loss
    assert (first.updates, len(first.validation), first.plateau) == (2 * BATCHES, 2, False)


def scripted(monkeypatch, values: list[float]) -> list[dict[str, torch.Tensor]]:
    """Make validation say ``values`` in turn; the weights it was asked about."""
    seen: list[dict[str, torch.Tensor]] = []

    def score(model: torch.nn.Module, *_: Any) -> tuple[RetrievalMetrics, RetrievalMetrics]:
        seen.append(copy.deepcopy(model.state_dict()))
        nothing = RetrievalMetrics(0.0, 0.0, 0.0, 1.0, 1.0)
        return replace(nothing, r1=values[len(seen) - 1]), nothing

    monkeypatch.setattr(training, "score", score)
    return seen


def test_the_weights_of_the_best_validation_come_back(small, monkeypatch):
    seen = scripted(monkeypatch, [100.0, 300.0, 200.0, 300.0])
    trained = training.train_pairs(settings_for(max_epochs=4), small, 0)
    assert (trained.best_epoch, trained.validation) == (1, [100.0, 300.0, 200.0, 300.0])
    assert trained.recall == [50.0, 150.0, 100.0, 150.0]
    for name, value in trained.model.state_dict().items():
        assert torch.equal(value, seen[1][name])
        assert not torch.equal(value, seen[3][name])


@pytest.mark.parametrize(("most", "ends", "plateau"), [(20, 6, True), (6, 6, True), (5, 5, False)])
def test_patience_counts_gains_below_the_plateau(small, monkeypatch, most, ends, plateau):
    gain = training.PLATEAU
    # too small a gain, then one that is just enough, then three that are too small
    values = [0.0, 0.9, 1.0, *(1 + i / 20 for i in range(1, 18))]
    scripted(monkeypatch, [100 + gain * value for value in values])
    trained = training.train_pairs(settings_for(patience=3, max_epochs=most), small, 0)
    assert (len(trained.validation), trained.plateau) == (ends, plateau)
    assert trained.best_epoch == ends - 1  # a small gain is still kept


@pytest.fixture
def steps() -> Iterator[list[tuple[torch.optim.Optimizer, int, float, float]]]:
    """Watch every update: optimiser, updates it remembers, rate, norm of the gradient it used."""
    seen: list[Any] = []
    before = torch.zeros(())

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
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
def test_the_switch_of_the_curriculum_forgets_the_averages(small, steps, monkeypatch, reset):
    calls: list[str] = []
    for name, loss in (("sum", SumOfHinges), ("max", MaxOfHinges)):
        forward = loss.forward
        monkeypatch.setattr(
            loss, "forward", lambda *a, f=forward, n=name: (calls.append(n), f(*a))[1]
        )
    training.train_pairs(settings_for(loss="max", warmup=1, reset=reset, max_epochs=3), small, 0)
    assert calls == ["sum"] * BATCHES + ["max"] * 2 * BATCHES
    optimisers, known, rates, _ = zip(*steps, strict=True)
    one, two = list(range(1, BATCHES + 1)), list(range(1, 2 * BATCHES + 1))
    assert len({id(optimiser) for optimiser in optimisers}) == 1 + reset
    assert list(known) == (one + two if reset else list(range(1, 3 * BATCHES + 1)))
    rise = [1e-3 * i / BATCHES for i in one]
    assert list(rates) == pytest.approx(rise + [1e-3] * 2 * BATCHES)  # no second rise


def test_clipping_bounds_the_gradient(small, steps):
    norms = {}
    for reduction, clip in (("mean", 0.0), ("sum", 0.0), ("mean", 0.01), ("sum", 0.01)):
        steps.clear()
        changes = {"reduction": reduction, "clip": clip, "max_epochs": 1}
        training.train_pairs(settings_for(**changes), small, 0)
        norms[reduction, clip] = [norm for *_, norm in steps]
    assert min(norms["mean", 0.0]) > 0.01
    assert norms["sum", 0.0][0] == pytest.approx(32 * norms["mean", 0.0][0], rel=1e-4)
    for reduction in ("mean", "sum"):
        assert norms[reduction, 0.01] == pytest.approx([0.01] * BATCHES, rel=1e-3)


# --- ridge ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("crops", [False, True])
def test_ridge_is_that_of_scikit_learn(small, monkeypatch, crops):
    monkeypatch.setattr(ridge, "STRENGTHS", (1e2,))
    verdicts = iter([0.0, 1.0] if crops else [1.0, 0.0])
    monkeypatch.setattr(ridge, "rsum", lambda *_: next(verdicts))
    found = ridge.fit_ridge(small)
    assert (found.strength, found.crops, found.validation) == (1e2, crops, 1.0)
    concept, vendor = small.train.unbind(1)
    views = small.pictures[concept, vendor][:, : 6 if crops else 1].double()
    words = tf_idf(small.tokens, concept.unique(), small.vocabulary).double()
    x, y = views.flatten(0, 1).numpy(), words[concept].repeat_interleave(views.shape[1], 0).numpy()
    expected = SklearnRidge(alpha=1e2 * views.shape[1]).fit(x, y)
    np.testing.assert_allclose(found.weight.numpy(), expected.coef_.T, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.mean.numpy(), expected.intercept_, rtol=0, atol=1e-9)
    gallery = small.test[1]
    predicted = expected.predict(small.pictures[gallery.concepts, gallery.vendor, 0].double())
    predicted /= np.linalg.norm(predicted, axis=1, keepdims=True)
    cosines = predicted @ words[gallery.concepts].numpy().T
    np.testing.assert_allclose(found.gallery_scores(gallery), cosines, rtol=0, atol=1e-9)


def test_ridge_is_the_best_by_validation(small, monkeypatch):
    seen: list[float] = []
    monkeypatch.setattr(ridge, "rsum", lambda *found: seen.append(rsum(*found)) or seen[-1])
    found = ridge.fit_ridge(small)
    choices = [(crops, strength) for crops in (False, True) for strength in ridge.STRENGTHS]
    assert len(seen) == len(choices)
    assert len(set(seen)) > 2
    assert (found.crops, found.strength) == choices[seen.index(max(seen))]
    assert found.validation == max(seen) == rsum(*found.score(small.val))
    for place in (0, 3, 7):  # a tie later on does not count
        verdicts = iter([2.0 if i in (place, 9) else 1.9 for i in range(10)])
        monkeypatch.setattr(ridge, "rsum", lambda *_, v=verdicts: next(v))
        found = ridge.fit_ridge(small)
        assert (found.crops, found.strength) == choices[place]


# --- runs -----------------------------------------------------------------------------------------


def test_synonyms_share_half_of_their_words():
    found = runs._synonyms()
    assert torch.equal(found, found.T)
    assert bool(found.diagonal().all())
    words = [set(split_words(text)) for text in problems.captions(emoji_captions())]
    for row in (0, 100, 777, 1593, int(found.sum(1).argmax())):
        for column, other in enumerate(words):
            shared = len(words[row] & other) / len(words[row] | other)
            assert bool(found[row, column]) == (shared >= 0.5)


def test_lenient_hits_by_hand():
    alike = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    # a better near-synonym; a tie with another concept; a tie with a near-synonym
    scores = torch.tensor([[0.4, 0.9, 0.1], [0.2, 0.5, 0.5], [0.1, 0.6, 0.7]])
    assert runs._lenient_hits(scores, alike).tolist() == [True, False, True]
    assert runs._lenient_hits(torch.full((3, 3), 0.5), alike).tolist() == [False] * 3
    assert runs._lenient_hits(scores, torch.eye(3, dtype=torch.bool)).tolist() == [False] * 2 + [
        True
    ]


@pytest.mark.parametrize("arm", ["family_max", "family_ridge"])
def test_a_run_keeps_what_the_estimands_read(small, monkeypatch, arm):
    monkeypatch.setattr(runs, "load_pairs", lambda *_: small)
    result = runs.execute(Run("01", arm, settings_for(loss="max"), 0, "", 1.0))
    canonical_json(result)
    metrics, counts = result["metrics"], [int(digit) for digit in result["galleries"]]
    assert len(counts) == len(small.tested)
    assert sum(counts) == 60
    for direction in ("i2t", "t2i"):
        hits = [int(digit) for digit in result["hits"][direction]]
        assert all(0 <= hit <= count for hit, count in zip(hits, counts, strict=True))
        assert metrics[f"test/{direction}/r1"] == pytest.approx(100 * sum(hits) / 60)
        assert metrics[f"test/{direction}/r1"] <= metrics[f"test/{direction}/r1_lenient"]
    assert metrics["test/rsum"] >= metrics["test/i2t/r1"] + metrics["test/t2i/r1"]
    if arm == "family_max":
        assert metrics["val/rsum"] == pytest.approx(max(result["curves"]["val/rsum"]), rel=1e-5)
        assert result["curves"]["epoch"] == [1.0, 2.0]
        assert result["counters"] == {"updates": 2 * BATCHES, "pairs": 2 * 256}
        with pytest.raises(ValueError, match="unknown arm 'family_min'"):
            runs.execute(Run("01", "family_min", settings_for(), 0, "", 1.0))


def test_timing_gives_positive_seconds(family, monkeypatch):
    few = replace(family, train=family.train[:1024])
    monkeypatch.setattr(runs, "load_pairs", lambda *_: few)
    monkeypatch.setattr(runs, "REPEATS", {8: 3})
    metrics = runs.execute(Run("01", "timing", {"shapes": [[8, 4]]}, 0, "", 1.0))["metrics"]
    assert set(metrics) == {"sum/B=8/d=4", "max/B=8/d=4", "step/sum", "step/max"}
    assert all(seconds > 0 for seconds in metrics.values())
