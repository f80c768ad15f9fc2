"""The runs of chapter 1: their list, trained arms, the ridge baseline, the timing of the losses."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from companion.chapters.hard_negatives.arms import (
    DEEP,
    DEMONSTRATIONS,
    EXTENDED,
    FACTORIAL,
    HEADLINE,
    epochs_of,
    settings_of,
)
from companion.chapters.hard_negatives.arms import tuned as tuned_rate
from companion.chapters.hard_negatives.config import Config
from companion.chapters.hard_negatives.problems import (
    Gallery,
    Pairs,
    PairsDataset,
    captions,
    load_pairs,
)
from companion.chapters.hard_negatives.ridge import fit_ridge
from companion.chapters.hard_negatives.training import build_model, gallery_scores, train_pairs
from companion.evidence.store import Run, rounded
from trainaug.data.bag_of_words import split_words
from trainaug.data.emoji_captions import emoji_captions
from trainaug.data.registry import content_hash
from trainaug.methods.hard_negatives import (
    DistinctGroupBatchSampler,
    MaxOfHinges,
    RetrievalMetrics,
    SumOfHinges,
    cosine_scores,
    retrieval_metrics,
    retrieval_ranks,
)
from trainaug.training.randomness import stream

__all__ = ["SYNONYMS", "execute", "plan"]

SYNONYMS = 0.5  # concepts that share this part of their words are counted as near-synonyms
TIMED = ((128, 1024), (1024, 1024))  # batch sizes and embedding dimensions
REPEATS = {128: 40, 1024: 4}
CURVE = 60


def plan(config: Config) -> list[Run]:
    """List the runs of a configuration; each names its arm, settings and predicted seconds."""
    runs, data = [], content_hash("emoji_captions")
    shared = {name: getattr(config, name) for name in ("batch_size", "patience", "max_epochs")}
    for arms, count in (
        (HEADLINE, config.seeds),
        (FACTORIAL, config.factorial_seeds),
        (EXTENDED, config.extended_seeds),
        (DEEP, config.deep_seeds),
    ):
        for arm in arms if count else ():
            settings, seconds, owner = settings_of(arm)
            settings |= shared | {"lr": tuned_rate(owner)}
            settings["max_epochs"] = epochs_of(arm, config.max_epochs)
            seconds *= min(1.0, 0.1 + config.max_epochs / 60)
            runs += [
                Run("01", arm, settings, config.first_seed + number, data, seconds)
                for number in range(count)
            ]
    ridge = {"split": "family", "encoder": "features"}
    runs += [
        Run("01", "family_ridge", ridge, config.first_seed + number, data, 4.5)
        for number in range(config.seeds)
    ]
    timing: dict[str, Any] = {"shapes": [list(shape) for shape in TIMED]}
    runs += [
        Run("01", "timing", timing, config.first_seed + block, data, 1.5, deterministic=False)
        for block in range(config.timing_blocks)
    ]
    return runs


def execute(run: Run) -> dict[str, Any]:
    """Compute one run.

    Raises:
        ValueError: If the arm is unknown.
    """
    settings = dict(run.config)
    if run.arm == "timing":
        return _time_losses(settings, run.seed)
    pairs = load_pairs(settings["split"], settings["encoder"], run.seed)
    if run.arm.endswith("_ridge"):
        ridge = fit_ridge(pairs)
        result = _scores(pairs, ridge.gallery_scores)
        result["metrics"] |= {"strength": ridge.strength, "crops": float(ridge.crops)}
        result["metrics"]["val/rsum"] = rounded(ridge.validation, 9)
        return result | {"curves": {}, "counters": {}}
    settings_of(run.arm)
    trained = train_pairs(settings, pairs, run.seed)
    result = _scores(pairs, lambda gallery: gallery_scores(trained.model, pairs, gallery))
    epochs = len(trained.validation)
    result["metrics"] |= {
        "val/rsum": rounded(max(trained.validation), 9),
        "best_epoch": float(trained.best_epoch),
        "epochs": float(epochs),
        "final_loss": rounded(trained.loss[-1], 6),
        "final_norm": rounded(trained.norm[-1], 6),
    }
    kept = sorted({round(i * (epochs - 1) / (CURVE - 1)) for i in range(CURVE)} | {0, epochs - 1})
    curves = {
        "epoch": [float(i + 1) for i in kept],
        "val/rsum": [rounded(trained.validation[i], 6) for i in kept],
        "val/r1": [rounded(trained.recall[i], 6) for i in kept],
        "loss": [rounded(trained.loss[i], 6) for i in kept],
        "norm": [rounded(trained.norm[i], 6) for i in kept],
    }
    counters = {"updates": trained.updates, "pairs": epochs * len(pairs.train)}
    result |= {"curves": curves, "counters": counters, "plateau": trained.plateau}
    return result | ({"demonstration": True} if run.arm in DEMONSTRATIONS else {})


def _scores(pairs: Pairs, scores_of: Callable[[Gallery], Tensor]) -> dict[str, Any]:
    """Test metrics, their lenient and per-category versions, and which queries were right.

    ``hits`` has a digit for each concept of the test part: how many of its drawings were right at
    rank one; ``galleries``: in how many galleries it was.
    """
    found: dict[str, list[float]] = {}
    digits = {
        name: torch.zeros(len(pairs.tokens), dtype=torch.long) for name in ("i2t", "t2i", "n")
    }
    alike, categories = _synonyms(), emoji_captions().categories
    for gallery in pairs.test:
        scores, ids = scores_of(gallery), gallery.concepts
        synonyms = alike[ids][:, ids]
        digits["n"][ids] += 1
        for direction, view in (("i2t", scores), ("t2i", scores.T)):
            one = retrieval_metrics(view, ids, ids)
            for name in RetrievalMetrics.__dataclass_fields__:
                found.setdefault(f"test/{direction}/{name}", []).append(getattr(one, name))
            hit = retrieval_ranks(view, ids, ids) == 0
            digits[direction][ids] += hit
            lenient = _lenient_hits(view, synonyms)
            found.setdefault(f"test/{direction}/r1_lenient", []).append(_percent(lenient))
            for category in sorted(set(categories)):
                chosen = torch.tensor([categories[i] == category for i in ids.tolist()])
                if bool(chosen.any()):
                    for name, values in (("r1", hit), ("r1_lenient", lenient)):
                        key = f"test/{direction}/{name}/{category}"
                        found.setdefault(key, []).append(_percent(values[chosen]))
    metrics = {name: rounded(sum(v) / len(v), 9) for name, v in found.items()}
    metrics["test/rsum"] = rounded(
        sum(metrics[f"test/{d}/{r}"] for d in ("i2t", "t2i") for r in ("r1", "r5", "r10")), 9
    )
    strings = {d: "".join(map(str, v[pairs.tested].tolist())) for d, v in digits.items()}
    return {"metrics": metrics, "galleries": strings.pop("n"), "hits": strings}


def _percent(values: Tensor) -> float:
    return 100.0 * float(values.double().mean())


def _lenient_hits(scores: Tensor, synonyms: Tensor) -> Tensor:
    """Whether no item that is not a near-synonym scores as high as the positive, ``(N,)``."""
    best = scores.diagonal().unsqueeze(1)
    return ((scores >= best) & ~synonyms).sum(1) == 0


def _synonyms() -> Tensor:
    """Which concepts share at least half of the words of the two together, bool ``(N, N)``."""
    words = [set(split_words(text)) for text in captions(emoji_captions())]
    number = {word: i for i, word in enumerate(sorted(set().union(*words)))}
    counts = torch.zeros(len(words), len(number))
    for row, own in enumerate(words):
        counts[row, [number[word] for word in own]] = 1.0
    both = counts @ counts.T
    size = counts.sum(1)
    return both / (size.unsqueeze(0) + size.unsqueeze(1) - both) >= SYNONYMS


def _time_losses(settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """Seconds of forward and backward, the losses in turn, and of the rest of a training step."""
    metrics: dict[str, float] = {}
    generator = stream(seed, "timing")
    losses: dict[str, torch.nn.Module] = {"sum": SumOfHinges(), "max": MaxOfHinges()}
    for size, dim in settings["shapes"]:
        images, texts = torch.randn(2, size, dim, generator=generator)
        scores = cosine_scores(images, texts)
        for name, seconds in _interleaved(losses, scores, REPEATS[size]).items():
            metrics[f"{name}/B={size}/d={dim}"] = rounded(seconds, 6)
    metrics |= _time_steps(seed)
    return {"metrics": metrics, "curves": {}, "counters": {}}


def _interleaved(
    losses: dict[str, torch.nn.Module], scores: Tensor, repeats: int
) -> dict[str, float]:
    spent: dict[str, list[float]] = {name: [] for name in losses}
    for number in range(repeats + 2):
        for name in _turn(list(losses), number):
            leaf = scores.detach().clone().requires_grad_(True)
            start = time.perf_counter()
            losses[name](leaf).backward()
            if number >= 2:  # the first two warm up
                spent[name].append(time.perf_counter() - start)
    return {name: sorted(found)[len(found) // 2] for name, found in spent.items()}


def _time_steps(seed: int) -> dict[str, float]:
    """Median seconds of a whole training step with each loss, on new concepts."""
    pairs = load_pairs("family", "features", seed)
    dataset = PairsDataset(pairs, crops=True, generator=stream(seed, "augment"))
    batches = DistinctGroupBatchSampler(pairs.train[:, 0], 128, stream(seed, "order"))
    losses = {"sum": SumOfHinges(reduction="mean"), "max": MaxOfHinges(reduction="mean")}
    models = {name: build_model(settings_of(f"family_{name}")[0], pairs, seed) for name in losses}
    optimizers = {
        name: torch.optim.Adam(model.parameters(), fused=True) for name, model in models.items()
    }
    spent: dict[str, list[float]] = {name: [] for name in losses}
    for number, indices in enumerate(batches):
        for name in _turn(list(losses), number):
            model, optimizer = models[name], optimizers[name]
            start = time.perf_counter()
            x, _, _ = dataset[indices]
            losses[name](model(x)).backward()
            optimizer.step()
            spent[name].append(time.perf_counter() - start)
            optimizer.zero_grad()
    return {
        f"step/{name}": rounded(sorted(found[2:])[len(found[2:]) // 2], 6)
        for name, found in spent.items()
    }


def _turn(names: Sequence[str], number: int) -> Iterator[str]:
    return iter(names if number % 2 else reversed(names))
