"""A baseline without learned features: ridge regression from picture features to tf-idf."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from companion.chapters.hard_negatives.measures import measure_test, score_galleries
from companion.chapters.hard_negatives.problems import Gallery, Pairs, Retrieval, load_pairs
from companion.lab.device import run_device
from companion.lab.results import Result, make_result
from trainaug.data.bag_of_words import tf_idf
from trainaug.methods.hard_negatives import rsum

__all__ = ["FittedRidge", "Ridge", "fit_ridge", "run_ridge"]


@dataclass(frozen=True, kw_only=True)
class Ridge(Retrieval):
    """Ridge regression, chosen on the validation part.

    Attributes:
        strengths: Penalties on the squared weights; each is tried with and without crops.
    """

    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")  # in float64

    strengths: tuple[float, ...] = (1e1, 1e2, 1e3, 1e4, 1e5)


@dataclass(frozen=True)
class FittedRidge:
    """Linear map from features to tf-idf weights.

    Attributes:
        pairs: The split.
        words: tf-idf weights of all captions, ``(N, W)``.
        weight: Weights of the map, ``(F, W)``.
        intercept: Constant that the map adds, ``(W,)``.
        strength: Penalty on the squared weights.
        crops: Whether the random crops were trained on as well.
    """

    pairs: Pairs
    words: Tensor
    weight: Tensor
    intercept: Tensor
    strength: float
    crops: bool

    def gallery_scores(self, gallery: Gallery) -> Tensor:
        """Cosines of predicted and true tf-idf weights, drawings by captions, on the CPU."""
        x = self.pairs.pictures[gallery.concepts, gallery.vendor, 0].double()
        predicted = F.normalize(x @ self.weight + self.intercept, dim=1)  # (N, W)
        return (predicted @ self.words[gallery.concepts].T).cpu()


def fit_ridge(pairs: Pairs, strengths: Sequence[float]) -> tuple[FittedRidge, float]:
    """Fit every strength, with and without crops; return the best by rsum on the validation part.

    The rsum, the sum of recalls at 1, 5 and 10 in both directions, is returned as well.
    """
    concept, vendor = pairs.train.unbind(1)
    trained_on = torch.unique(concept)
    device = pairs.pictures.device
    words = tf_idf(pairs.tokens.cpu(), trained_on, pairs.vocabulary).double().to(device)  # (N, W)
    best: tuple[FittedRidge, float] | None = None
    for crops in (False, True):
        views = pairs.pictures[concept, vendor].double()  # (M, 1 + K, F): whole, then K crops
        views = views if crops else views[:, :1]
        count = views.shape[0] * views.shape[1]
        mean = words[concept].mean(0)
        target = words[concept] - mean  # (M, W)
        centre = views.mean((0, 1))
        gram = views.flatten(0, 1).T @ views.flatten(0, 1) - count * torch.outer(centre, centre)
        cross = (views - centre).sum(1).T @ target  # (F, W)
        for strength in strengths:
            # the Gram matrix is a sum over the views, so the penalty grows with their number
            penalty = strength * views.shape[1] * torch.eye(len(gram)).to(gram)
            weight = torch.linalg.solve(gram + penalty, cross)
            ridge = FittedRidge(pairs, words, weight, mean - centre @ weight, strength, crops)
            validation = rsum(*score_galleries(pairs.val, ridge.gallery_scores))
            if best is None or validation > best[1]:
                best = ridge, validation
    if best is None:
        raise ValueError("no strength to try")
    return best


def run_ridge(settings: Ridge, seed: int) -> Result:
    """Fit the ridge regression and score the test part."""
    pairs = load_pairs(settings, seed).to(run_device())
    ridge, validation = fit_ridge(pairs, settings.strengths)
    metrics, notes = measure_test(pairs, ridge.gallery_scores, settings.synonyms)
    metrics |= {
        "strength": ridge.strength,
        "crops": float(ridge.crops),
        "val/rsum": validation,
    }
    return make_result(metrics, notes=notes)
