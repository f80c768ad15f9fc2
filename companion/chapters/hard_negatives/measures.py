"""How well scores retrieve: metrics of galleries, and what a record states of the test part."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields

import torch
from torch import Tensor

from companion.chapters.hard_negatives.numbers import DIRECTIONS
from companion.chapters.hard_negatives.problems import Gallery, Pairs, captions
from companion.evidence.store import rounded
from trainaug.data.bag_of_words import split_words
from trainaug.data.emoji_captions import emoji_captions
from trainaug.methods.hard_negatives import RetrievalMetrics, retrieval_metrics, retrieval_ranks

__all__ = [
    "BothDirections",
    "ScoreGallery",
    "lenient_hits",
    "measure_test",
    "near_synonyms",
    "score_galleries",
]

#: Picture to caption, caption to picture.
BothDirections = tuple[RetrievalMetrics, RetrievalMetrics]
#: Gives the scores of a gallery, drawings by captions.
ScoreGallery = Callable[[Gallery], Tensor]


def score_galleries(galleries: Sequence[Gallery], score: ScoreGallery) -> BothDirections:
    """Metrics of both directions, mean over galleries."""
    to_caption, to_picture = [], []
    for gallery in galleries:
        scores, ids = score(gallery), gallery.concepts
        to_caption.append(retrieval_metrics(scores, ids, ids))
        to_picture.append(retrieval_metrics(scores.T, ids, ids))
    return _mean(to_caption), _mean(to_picture)


def _mean(metrics: Sequence[RetrievalMetrics]) -> RetrievalMetrics:
    names = [each.name for each in fields(RetrievalMetrics)]
    return RetrievalMetrics(
        **{name: math.fsum(getattr(m, name) for m in metrics) / len(metrics) for name in names}
    )


def measure_test(
    pairs: Pairs, score: ScoreGallery, synonyms: float
) -> tuple[dict[str, float], dict[str, object]]:
    """Score the test part.

    Returns:
        Metrics, means over galleries, and notes. The metrics include lenient ones, which forgive
        near-synonyms, and those of each category. In the notes ``hits`` and ``galleries`` have one
        digit for each concept of the test part: how many of its drawings were right at rank one,
        and how many galleries contain it.
    """
    by_gallery: dict[str, list[float]] = {}
    count = len(pairs.tokens)
    right = {direction: torch.zeros(count, dtype=torch.long) for direction in DIRECTIONS}
    times = torch.zeros(count, dtype=torch.long)
    alike = near_synonyms(synonyms)
    for gallery in pairs.test:
        scores, ids = score(gallery), gallery.concepts
        times[ids] += 1
        for direction, view in (("i2t", scores), ("t2i", scores.T)):
            strict = retrieval_metrics(view, ids, ids)
            hits = retrieval_ranks(view, ids, ids) == 0
            right[direction][ids] += hits
            lenient = lenient_hits(view, alike[ids][:, ids])
            values = asdict(strict) | {"r1_lenient": _percent(lenient)}
            values |= _by_category("r1", hits, ids) | _by_category("r1_lenient", lenient, ids)
            for name, value in values.items():
                by_gallery.setdefault(f"test/{direction}/{name}", []).append(value)
    metrics = {name: sum(values) / len(values) for name, values in by_gallery.items()}
    recalls = [f"test/{direction}/{r}" for direction in DIRECTIONS for r in ("r1", "r5", "r10")]
    # the sum of the numbers as the record states them
    metrics["test/rsum"] = sum(rounded(metrics[name], 9) for name in recalls)
    digits = {name: _digits(values[pairs.tested]) for name, values in right.items()}
    return metrics, {"galleries": _digits(times[pairs.tested]), "hits": digits}


def _by_category(name: str, hits: Tensor, ids: Tensor) -> dict[str, float]:
    """Percentage of hits by category; a category without a query in the gallery is left out."""
    categories = emoji_captions().categories
    values: dict[str, float] = {}
    for category in sorted(set(categories)):
        chosen = torch.tensor([categories[i] == category for i in ids.tolist()])
        if bool(chosen.any()):
            values[f"{name}/{category}"] = _percent(hits[chosen])
    return values


def _percent(hits: Tensor) -> float:
    return 100.0 * float(hits.double().mean())


def _digits(counts: Tensor) -> str:
    return "".join(map(str, counts.tolist()))


def lenient_hits(scores: Tensor, synonyms: Tensor) -> Tensor:
    """Whether the positive scores higher than all items that are not its near-synonyms, ``(N,)``.

    Args:
        scores: Shape ``(N, N)``, positives on the diagonal.
        synonyms: Near-synonyms, an item of itself included, bool ``(N, N)``.
    """
    best = scores.diagonal().unsqueeze(1)
    return ((scores >= best) & ~synonyms).sum(1) == 0


def near_synonyms(share: float) -> Tensor:
    """Which pairs of concepts share at least this part of all their words, bool ``(N, N)``."""
    words = [set(split_words(text)) for text in captions(emoji_captions())]
    number = {word: i for i, word in enumerate(sorted(set().union(*words)))}
    counts = torch.zeros(len(words), len(number))
    for concept, known_words in enumerate(words):
        counts[concept, [number[word] for word in known_words]] = 1.0
    both = counts @ counts.T
    size = counts.sum(1)
    return both / (size.unsqueeze(0) + size.unsqueeze(1) - both) >= share
