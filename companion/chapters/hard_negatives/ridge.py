"""A baseline without learned features: ridge regression from picture features to tf-idf."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from companion.chapters.hard_negatives.problems import Gallery, Pairs
from companion.chapters.hard_negatives.training import mean_metrics
from trainaug.data.bag_of_words import tf_idf
from trainaug.methods.hard_negatives import RetrievalMetrics, retrieval_metrics, rsum

__all__ = ["STRENGTHS", "Ridge", "fit_ridge"]

STRENGTHS = (1e1, 1e2, 1e3, 1e4, 1e5)


class Ridge:
    """Linear map from features to tf-idf weights, chosen on the validation part.

    Attributes:
        strength: Chosen penalty on the squared weights.
        crops: Whether the random crops were trained on as well.
        validation: rsum of the choice.
    """

    def __init__(self, pairs: Pairs, words: Tensor, weight: Tensor, mean: Tensor) -> None:
        self.pairs, self.words, self.weight, self.mean = pairs, words, weight, mean
        self.strength, self.crops, self.validation = 0.0, False, 0.0

    def gallery_scores(self, gallery: Gallery) -> Tensor:
        """Cosines of predicted and true tf-idf, rows pictures."""
        x = self.pairs.pictures[gallery.concepts, gallery.vendor, 0].double()
        predicted = F.normalize(x @ self.weight + self.mean, dim=1)  # (N, W)
        return predicted @ self.words[gallery.concepts].T

    def score(self, galleries: tuple[Gallery, ...]) -> tuple[RetrievalMetrics, RetrievalMetrics]:
        """Metrics of both directions, mean over galleries."""
        found = []
        for gallery in galleries:
            scores, ids = self.gallery_scores(gallery), gallery.concepts
            there, back = retrieval_metrics(scores, ids, ids), retrieval_metrics(scores.T, ids, ids)
            found.append((there, back))
        to_caption, to_picture = zip(*found, strict=True)
        return mean_metrics(to_caption), mean_metrics(to_picture)


def fit_ridge(pairs: Pairs) -> Ridge:
    """Fit every strength, with and without crops; return the best by validation rsum."""
    concept, vendor = pairs.train.unbind(1)
    trained = torch.unique(concept)
    words = tf_idf(pairs.tokens, trained, pairs.vocabulary).double()  # (N, W)
    best: Ridge | None = None
    for crops in (False, True):
        views = pairs.pictures[concept, vendor].double()  # (M, 1 + K, F)
        views = views if crops else views[:, :1]
        count = views.shape[0] * views.shape[1]
        mean = words[concept].mean(0)
        target = words[concept] - mean  # (M, W)
        centre = views.mean((0, 1))
        gram = views.flatten(0, 1).T @ views.flatten(0, 1) - count * torch.outer(centre, centre)
        cross = (views - centre).sum(1).T @ target  # (F, W)
        for strength in STRENGTHS:
            penalty = strength * views.shape[1] * torch.eye(len(gram), dtype=gram.dtype)
            weight = torch.linalg.solve(gram + penalty, cross)
            ridge = Ridge(pairs, words, weight, mean - centre @ weight)
            ridge.strength, ridge.crops = strength, crops
            ridge.validation = rsum(*ridge.score(pairs.val))
            if best is None or ridge.validation > best.validation:
                best = ridge
    assert best is not None
    return best
