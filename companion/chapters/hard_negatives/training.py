"""Train one dual encoder to its plateau and score it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from companion.chapters.hard_negatives.problems import Gallery, Pairs, PairsDataset
from trainaug.methods.hard_negatives import (
    DistinctGroupBatchSampler,
    HingeCurriculum,
    MaxOfHinges,
    RetrievalMetrics,
    SumOfHinges,
    cosine_scores,
    group_mask,
    order_scores,
    retrieval_metrics,
    retrieval_ranks,
    rsum,
    subsample_negatives,
)
from trainaug.training.embeddings import (
    BagOfTokens,
    CaptionGRU,
    DualEncoder,
    FeatureEncoder,
    PictureCNN,
)
from trainaug.training.loop import train
from trainaug.training.randomness import RandomBatchSampler, stream

__all__ = ["HIDDEN", "MARGIN", "Trained", "build_model", "gallery_scores", "score", "train_pairs"]

MARGIN, ORDER_MARGIN = 0.2, 0.05
PLATEAU = 4.0  # points of rsum (of 600): a smaller gain does not count
HIDDEN, DIM, GRU_DIM = 256, 256, 128
Direction = tuple[RetrievalMetrics, RetrievalMetrics]


@dataclass
class Trained:
    """A run: the model of the best validation epoch, and what happened by epoch."""

    model: DualEncoder
    plateau: bool
    best_epoch: int
    updates: int
    validation: list[float] = field(default_factory=list)  # rsum
    recall: list[float] = field(default_factory=list)  # R@1, mean of both directions
    loss: list[float] = field(default_factory=list)  # mean training loss of a pair
    norm: list[float] = field(default_factory=list)  # length of the mean picture embedding


def _absolute(score: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda images, captions: score(images.abs(), captions.abs())


def build_model(settings: dict[str, Any], pairs: Pairs, seed: int) -> DualEncoder:
    """Make the encoders of an arm; arms of one seed and kind start from the same weights."""
    init = stream(seed, "init")
    recurrent = settings["captions"] == "gru"
    dim = GRU_DIM if recurrent else DIM
    if settings["encoder"] == "features":
        size = pairs.pictures.shape[-1]
        pictures: nn.Module = FeatureEncoder(size, HIDDEN, dim, init)
    else:
        pictures = PictureCNN(dim, init)
    kind = CaptionGRU if recurrent else BagOfTokens
    caption = kind(pairs.vocabulary, dim, init)
    scores = {
        "cosine": cosine_scores,
        "product": lambda images, captions: images @ captions.T,
        "order": _absolute(order_scores),
    }
    normalise = {"cosine": "none", "product": "captions", "order": "both"}[settings["score"]]
    return DualEncoder(pictures, caption, scores[settings["score"]], normalise)


def _criterion(
    settings: dict[str, Any], batches: int, seed: int
) -> tuple[Callable[[Tensor, Tensor], Tensor], HingeCurriculum | None]:
    margin = ORDER_MARGIN if settings["score"] == "order" else MARGIN
    average = settings["loss"] == "average"
    curriculum = None
    loss: nn.Module
    if settings["warmup"]:
        steps = settings["warmup"] * batches
        loss = curriculum = HingeCurriculum(steps, margin, "none")
    elif settings["loss"] == "max":
        loss = MaxOfHinges(margin, "none")
    else:
        loss = SumOfHinges(margin, "none", average_negatives=average)
    generator = stream(seed, "candidates")

    def criterion(scores: Tensor, concepts: Tensor) -> Tensor:
        mask: Any = None
        if settings["siblings"] == "masked":
            mask = group_mask(concepts)
        if settings["negatives"]:
            own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
            mask = subsample_negatives(own, settings["negatives"], generator=generator)
        losses: Tensor = loss(scores, mask)
        return losses * len(losses) if settings["reduction"] == "sum" else losses

    return criterion, curriculum


def train_pairs(settings: dict[str, Any], pairs: Pairs, seed: int) -> Trained:
    """Train with Adam to the plateau of the validation rsum; keep the best validation epoch.

    The rate rises linearly over the first epoch and then stays. Validation is after every epoch;
    ``patience`` evaluations in a row that are not `PLATEAU` above an earlier one end the run.
    """
    model = build_model(settings, pairs, seed)
    dataset = PairsDataset(pairs, crops=settings["crops"], generator=stream(seed, "augment"))
    order, size = stream(seed, "order"), settings["batch_size"]
    sampler: Any
    if settings["siblings"] == "none":
        sampler = DistinctGroupBatchSampler(pairs.train[:, 0], size, order)
    else:
        sampler = RandomBatchSampler(len(pairs.train), size, order)
    criterion, curriculum = _criterion(settings, len(sampler), seed)

    def clip(*_: Any) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), settings["clip"])

    def fresh(epoch: int) -> tuple[torch.optim.Adam, LambdaLR]:
        optimizer = torch.optim.Adam(model.parameters(), lr=settings["lr"], fused=True)
        if settings["clip"]:
            optimizer.register_step_pre_hook(clip)
        rise = len(sampler) if epoch == 0 else 1
        return optimizer, LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / rise))

    optimizer, scheduler = fresh(0)
    result = Trained(model, plateau=False, best_epoch=0, updates=0)
    best, level, since = -math.inf, -math.inf, 0
    weights = copy.deepcopy(model.state_dict())
    for epoch in range(settings["max_epochs"]):
        if curriculum is not None and settings["reset"] and epoch == settings["warmup"]:
            optimizer, scheduler = fresh(epoch)
        history = train(
            model,
            dataset,
            sampler,
            criterion,
            optimizer,
            num_epochs=1,
            scheduler=scheduler,
            feedback=None if curriculum is None else lambda *_: curriculum.step(),
        )
        result.updates += history.steps
        found = score(model, pairs, pairs.val)
        value = rsum(*found)
        result.validation.append(value)
        result.recall.append((found[0].r1 + found[1].r1) / 2)
        result.loss.append(math.fsum(history.losses) / history.steps)
        result.norm.append(_mean_norm(model, pairs))
        if value > best:
            best, result.best_epoch = value, epoch
            weights = copy.deepcopy(model.state_dict())
        level, since = (value, 0) if value >= level + PLATEAU else (level, since + 1)
        if since >= settings["patience"]:
            result.plateau = True
            break
    model.load_state_dict(weights)
    return result


@torch.no_grad()
def gallery_scores(model: DualEncoder, pairs: Pairs, gallery: Gallery) -> Tensor:
    """Scores of a gallery's drawings (rows) and captions, in eval mode."""
    training = model.training
    model.eval()
    tokens = pairs.tokens[gallery.concepts]
    captions = model.embed_captions((tokens, (tokens > 0).float()))
    images = model.embed_pictures(pairs.pictures[gallery.concepts, gallery.vendor, 0])
    model.train(training)
    return model.score(images, captions)


def score(model: DualEncoder, pairs: Pairs, galleries: tuple[Gallery, ...]) -> Direction:
    """Metrics of both directions, mean over galleries: picture to caption, caption to picture."""
    found = []
    for gallery in galleries:
        scores, ids = gallery_scores(model, pairs, gallery), gallery.concepts
        found.append((retrieval_metrics(scores, ids, ids), retrieval_metrics(scores.T, ids, ids)))
    to_caption, to_picture = zip(*found, strict=True)
    return mean_metrics(to_caption), mean_metrics(to_picture)


def mean_metrics(metrics: tuple[RetrievalMetrics, ...]) -> RetrievalMetrics:
    """Average metrics over galleries."""
    names = RetrievalMetrics.__dataclass_fields__
    return RetrievalMetrics(
        **{n: math.fsum(getattr(m, n) for m in metrics) / len(metrics) for n in names}
    )


@torch.no_grad()
def _mean_norm(model: DualEncoder, pairs: Pairs) -> float:
    training = model.training
    model.eval()
    gallery = pairs.val[0]
    images = model.embed_pictures(pairs.pictures[gallery.concepts, gallery.vendor, 0])
    model.train(training)
    return float(nn.functional.normalize(images, dim=1).mean(0).norm())


def hits(scores: Tensor, ids: Tensor) -> Tensor:
    """Whether each query's best positive is ranked first, ties against the model; bool ``(N,)``."""
    return retrieval_ranks(scores, ids, ids) == 0
