"""Chapter 3: small timings, one with a real worker, and what runs record for claims and tables."""

from __future__ import annotations

import itertools
import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from companion.chapters.autoassist import arms, images, problems, runs, timing, translation
from companion.chapters.autoassist import estimands as e
from companion.chapters.autoassist.arms import IMAGES
from companion.chapters.autoassist.corpora import make_corpus
from companion.chapters.autoassist.images import Trained
from companion.chapters.autoassist.problems import pictures
from companion.chapters.autoassist.translation import TRANSLATION, fit_translation
from companion.evidence.ledger import load_ledger
from companion.evidence.store import Run, canonical_json
from companion.lab import chapters
from companion.lab.records import Estimand, find
from companion.paths import CLAIMS
from trainaug.data.parallel_text import ParallelText
from trainaug.methods.autoassist import AsyncBatches, ImageAssistant
from trainaug.training.randomness import stream

SETTINGS = IMAGES | {"num_train": 200, "batch": 8, "lr": 0.02}
ROUNDS, STEPS, WARM_UP, QUEUE, TRACED, LAG = 2, 24, 3, 12, 6, 10
KINDS = ("boss/wait", "assistant/form", "assistant/learn", "assistant/wait")


@pytest.fixture(scope="module")
def timed() -> tuple[dict[str, float], dict[str, list[float]], AsyncBatches, list[str]]:
    made: list[Any] = []
    slept: list[float] = []
    order: list[str] = []

    class Watched(AsyncBatches):
        def __init__(self, *given: Any, **more: Any) -> None:
            super().__init__(*given, timeout=300.0, **more)  # on a busy machine
            made.append((self, self.worker_pid))

    real = timing.train

    def train(model: Any, data: Any, sampler: Any, *given: Any, **more: Any) -> Any:
        order.append(f"{type(sampler).__name__} {more['max_steps']}")
        return real(model, data, sampler, *given, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(problems.HELD_OUT, "fashion", (50, 50))
        sizes = {
            "ROUNDS": ROUNDS,
            "STEPS": STEPS,
            "WARM_UP": WARM_UP,
            "QUEUE": QUEUE,
            "TRACED": TRACED,
        }
        sizes |= {"LAG": LAG, "IDLE": 0.05}
        for name, value in sizes.items():
            patch.setattr(timing, name, value)
        patch.setattr(timing, "AsyncBatches", Watched)
        patch.setattr(timing, "train", train)
        patch.setattr(timing.time, "sleep", slept.append)
        metrics, curves = timing.time_updates(SETTINGS, 1)
    assert slept == [0.05] * 3 * ROUNDS
    batches, pid = made[0]
    assert len(made) == 1
    assert batches.worker_pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)  # the worker is gone
    return metrics, curves, batches, order


def test_seconds_are_of_every_way_after_warming_up(timed):
    metrics, _, _, order = timed
    ways = ("uniform", "assist", "async")
    assert set(metrics) == {*(f"seconds/{way}" for way in ways), "waiting", "dropped"}
    assert all(0 < metrics[f"seconds/{way}"] < 60 for way in ways)
    assert names_read("timing") <= set(metrics)
    assert 0 <= metrics["waiting"] <= 1
    assert metrics["dropped"] >= 0
    kinds = ("AssistedSampler", "Watched", "RandomBatchSampler")  # seed 1 begins with the second
    warm_up = dict.fromkeys(kinds, WARM_UP) | {"Watched": QUEUE}
    expected = [f"{kind} {steps}" for kind in kinds for steps in (warm_up[kind], STEPS)]
    assert order == ROUNDS * expected


def test_the_timeline_is_inside_its_window(timed):
    _, curves, batches, _ = timed
    waits = [e.start for e in batches.events if (e.who, e.what) == ("boss", "wait")]
    assert len(waits) >= ROUNDS * (QUEUE + STEPS) - 1  # the first is the warm-up
    length = 1000 * (waits[-LAG] - waits[-TRACED - LAG])
    assert len(curves["boss/wait/start"]) == TRACED
    assert curves["boss/wait/start"][0] == 0
    for kind in KINDS:
        if f"{kind}/start" not in curves:  # a busy machine may leave no time to learn in it
            assert kind != "boss/wait"
            continue
        starts, ends = curves[f"{kind}/start"], curves[f"{kind}/end"]
        assert all(0 <= start < length for start in starts)
        assert all(start <= end for start, end in zip(starts, ends, strict=True))
        for queue, most in (("batches", 20), ("feedbacks", 21)):
            depths = curves[f"{kind}/{queue}"]
            assert len(depths) == len(starts)
            assert all(0 <= depth <= most for depth in depths)
    assert set(curves) <= {
        "staleness",
        *(f"{k}/{v}" for k in KINDS for v in ("start", "end", "batches", "feedbacks")),
    }


def test_every_timed_batch_has_a_staleness(timed):
    _, curves, batches, _ = timed
    assert sum(curves["staleness"]) == ROUNDS * STEPS
    assert len(curves["staleness"]) - 1 <= 41  # queues of 20 and the one at work
    starts = [QUEUE + k * (QUEUE + STEPS) for k in range(ROUNDS)]
    timed_batches = [age for at in starts for age in batches.staleness[at : at + STEPS]]
    counted = torch.bincount(torch.tensor(timed_batches))
    assert curves["staleness"] == counted.tolist()


def test_a_restarted_worker_draws_anew_and_learns_from_all_features(monkeypatch):
    monkeypatch.setitem(problems.HELD_OUT, "fashion", (50, 50))
    data = pictures("fashion", 0, 40)
    x, y = data.train.x.flatten(1), data.train.y
    built = []
    for attempt in (0, 0, 1):
        assistant = ImageAssistant(784, 10, stream(0, "assistant"))
        built.append(timing.build(assistant, x, y, SETTINGS, 0, attempt=attempt))
    batches = [list(sampler) for sampler, _ in built]
    assert batches[0] == batches[1] != batches[2]
    sampler, trainer = built[0]
    assert (sampler.base, sampler.batch_size) == (SETTINGS["base"], SETTINGS["batch"])
    before = trainer.predict(torch.arange(40))
    trainer.update(torch.arange(8), torch.arange(8.0))
    trainer.update(torch.arange(8), torch.arange(8.0) + 5)
    assert trainer.num_steps == 2
    assert not torch.equal(trainer.predict(torch.arange(40)), before)
    group = trainer.optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.01, 1e-3)


# --- translation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
def test_an_update_has_the_median_seconds_without_what_comes_once(monkeypatch, seed):
    now, calls = 0.0, []

    def fit(settings: Any, of: int, *, looks: int, watch: Any) -> None:
        nonlocal now
        sampler = settings["sampler"]
        assert (of, looks, settings["lr"], settings["tokens"]) == (seed, 1, 0.5, timing.TOKENS)
        now += 5000  # before the first update
        for step in range(12):
            now += 900 if step == 5 else {"uniform": 2.0, "assist": 3.0}[sampler]
            watch()
        calls.append(sampler)

    monkeypatch.setattr(timing, "fit_translation", fit)
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now))
    found = timing.time_translation({"sampler": "other", "tokens": 9, "lr": 0.5}, seed)
    assert found == {"seconds/uniform": 2.0, "seconds/assist": 3.0}
    order = ["uniform", "assist"] if seed % 2 else ["assist", "uniform"]
    assert calls == 2 * order


@pytest.fixture
def toy_corpus(monkeypatch) -> None:
    words = {"red": "rot", "blue": "blau", "tree": "Baum", "house": "Haus", "big": "groß"}
    pairs = list(itertools.product(words, words))
    text = ParallelText(
        *(
            tuple(" ".join(p) for p in side)
            for side in (pairs, [[words[a], words[b]] for a, b in pairs])
        )
    )
    corpus = make_corpus(dict.fromkeys(("train", "val", "test"), text), 40)
    monkeypatch.setattr(translation, "load_corpus", lambda *settings: corpus)


def test_both_samplers_of_translation_are_timed(toy_corpus, monkeypatch):
    monkeypatch.setattr(timing, "TOKENS", 1000)
    small = TRANSLATION | {"batch_tokens": 50, "pool": 12, "warm_up": 5}
    found = timing.time_translation(small, 1)
    assert set(found) == {"seconds/uniform", "seconds/assist"}
    assert all(0 < value < 1 for value in found.values())
    assert names_read("translation_timing") <= set(found)


@pytest.mark.parametrize("looks", [1, 7])
def test_training_makes_as_many_looks_as_asked(toy_corpus, looks):
    small = TRANSLATION | {"tokens": 600, "batch_tokens": 50, "pool": 12, "warm_up": 5}
    for sampler in ("uniform", "assist"):
        found = fit_translation(small | {"sampler": sampler}, 1, looks=looks)
        tokens = found.curves["tokens"]
        assert len(tokens) == len(found.curves["val_loss"]) == looks
        for number, spent in enumerate(tokens, 1):
            assert 0 <= spent - number * 600 / looks < 50  # within one batch


# --- what runs record -----------------------------------------------------------------------------


class Asked(dict[str, Any]):
    """Gives every key the same value and keeps it."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def __missing__(self, key: str) -> Any:
        self[key] = self.value
        return self.value


def tabled() -> list[Estimand]:
    """What the notebook's tables show beside the claims, of the arms that are run below."""
    found = [
        *(e.metric("images_0_assist", name) for name in ("kept", "positives", "assistant_share")),
        *(
            e.metric("theorem", f"{c}/{what}")
            for c in (0, 1, 10, 100)
            for what in ("slope", "kept")
        ),
        *(e.metric("svm_digits", f"{rule}/norm") for rule in ("authors", "sphere")),
        e.metric("svm_digits", "decay_skipped/distance"),
        e.seconds_ratio("assist", "random"),
        e.metric("timing", "waiting"),
        e.log_ratio("translation_timing", "seconds/assist", "seconds/uniform"),
    ]
    for one, other in (
        *((f"{rule}/gap", "sgd/gap") for rule in ("loss_only", "random", "authors", "sphere")),
        *(("loss_only/products", f"gradient_{kind}/products") for kind in ("stale", "exact")),
        ("with_replacement/updates", "gradient_stale/updates"),
        ("loss_only/products", "liblinear/products"),
    ):
        found.append(e.log_ratio("svm_digits", one, other))
    for other in ("uniform", "random"):
        found += [e.cost_ratio("0", "assist", other, what) for what in ("examples", "work")]
        found += [
            e.accuracy_gain("0", "assist", other, f"test/{name}")
            for name in ("accuracy", "accuracy_norms", "calibration_error")
        ]
        found.append(e.reached("0", other))
    return found


def names_read(arm: str) -> set[str]:
    """Metrics of an arm that claims and tables read."""
    names = [*arms.SVM_SETS, "theorem", "timing", "translation_timing", *arms.TRANSLATION_ARMS]
    given = [
        {"arm": name, "metrics": Asked(1.0), "curves": Asked([1.0])}
        for name in [*names, *arms.HEADLINE, *arms.EXTENDED, *arms.LARGE]
    ]
    for claim in load_ledger(CLAIMS / "03.yaml"):
        for formula in claim.all_formulas():
            formula.evaluate(given, chapters.functions_of("03"))
    for estimand in tabled():
        estimand(given)
    return set(find(given, arm)["metrics"])


def execute(arm: str, settings: dict[str, Any]) -> dict[str, Any]:
    given = dict(settings)
    found = runs.execute(Run("03", arm, settings, 3, "", 1.0))
    assert dict(settings) == given
    assert canonical_json(found)
    assert set(found) == {"metrics", "curves", "counters"}
    return found


def test_linear_runs_record_what_is_read(monkeypatch):
    small = {"passes": 1, "exact_steps": 3, "data": "digits"}
    found = execute("svm_digits", arms.SVM | small)
    assert names_read("svm_digits") <= set(found["metrics"])
    found = execute("theorem", {"data": "breast_cancer", "lam": 0.01, "passes": 1})
    assert names_read("theorem") <= set(found["metrics"])


def test_a_run_with_an_assistant_records_its_control_too(monkeypatch):
    monkeypatch.setitem(problems.HELD_OUT, "fashion", (50, 50))
    seen: list[Any] = []
    real = runs.train_images
    monkeypatch.setattr(images, "PROBE_EVERY", 30)

    def train(settings: Any, seed: int, **more: Any) -> Trained:
        found = real(settings, seed, **more)
        found.accuracy, found.examples = [0.5, *[1.0] * 7], [10.0 * k for k in range(8)]
        found.work, found.scanned = [30.0 * k for k in range(8)], [20.0 * k for k in range(8)]
        seen.append((settings, more, found))
        return found

    monkeypatch.setattr(runs, "train_images", train)
    settings, _ = arms.settings_of("images_0_assist")
    settings |= {"num_train": 100, "batch": 8, "steps": 60, "lr": 0.02, "control_lr": 0.03}
    one = execute("images_0_assist", settings)
    assert names_read("images_0_assist") <= set(one["metrics"])
    (given, none, first), (control, more, _) = seen
    assert (given, none) == (settings, {})
    assert control == settings | {"sampler": "random", "lr": 0.03}
    assert more == {"keep_rates": first.keep_rates}
    for prefix in ("", "random/"):  # the first five looks have a mean of 0.9
        found = [one["metrics"][prefix + k] for k in ("reached", "examples", "work", "scanned")]
        assert found == [1.0, 40.0, 120.0, 80.0]
        assert {f"{prefix}{k}" for k in ("accuracy", "examples", "scanned", "keep_rates")} <= set(
            one["curves"]
        )
    assert {name for name in one["curves"] if "auc" in name} == {"auc/r", "auc/class", "auc/loss"}
    monkeypatch.setitem(arms.TARGETS, "0", 1.1)  # never
    del settings["control_lr"]
    one = execute("images_0_uniform", settings | {"sampler": "uniform"})
    found = [one["metrics"][k] for k in ("reached", "examples", "work", "scanned")]
    assert found == [0.0, 70.0, 210.0, 140.0]
    assert names_read("images_0_uniform") <= set(one["metrics"])
    assert not any(name.startswith("random") for name in one["metrics"])
