"""Train one dual encoder of chapter 1 to its plateau, and make the record of the run."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR

from companion.chapters.hard_negatives.measures import (
    BothDirections,
    measure_test,
    score_galleries,
)
from companion.chapters.hard_negatives.problems import (
    Gallery,
    Pairs,
    PairsDataset,
    Retrieval,
    check_choice,
    load_pairs,
)
from companion.lab.device import run_device
from companion.lab.results import Result, evenly, make_result
from trainaug.methods.hard_negatives import (
    DistinctGroupBatchSampler,
    HingeCurriculum,
    MaxOfHinges,
    SumOfHinges,
    cosine_scores,
    group_mask,
    order_scores,
    rsum,
    subsample_negatives,
)
from trainaug.training.loop import train
from trainaug.training.networks import (
    BagOfTokens,
    CaptionGRU,
    DualEncoder,
    FeatureEncoder,
    PictureCNN,
)
from trainaug.training.randomness import RandomBatchSampler, stream
from trainaug.undisturbed import in_eval_mode

__all__ = [
    "GRUTraining",
    "OrderTraining",
    "Trained",
    "Training",
    "build_model",
    "gallery_scores",
    "run_demonstration",
    "run_training",
    "train_pairs",
    "validate",
]

Captions = Literal["bag", "gru"]
Score = Literal["cosine", "product", "order"]
Loss = Literal["sum", "max", "average"]
Siblings = Literal["none", "masked", "negatives"]
Reduction = Literal["mean", "sum"]


@dataclass(frozen=True, kw_only=True)
class Training(Retrieval):
    """Training of a picture and a caption encoder on a hinge loss.

    Attributes:
        captions: Encoder of captions, a ``bag`` of words or a ``gru``.
        score: ``cosine``, ``product``, which leaves the length of pictures free, or ``order``,
            the order violation.
        loss: ``sum`` of hinges, ``max`` of hinges, or the ``average`` over the negatives of a query
            in place of their sum.
        margin: Margin of the hinges.
        crops: Whether the random crops are trained on as well.
        siblings: Drawings of the same concept in a batch: ``none``, a batch never has two;
            ``masked``, they are not negatives of each other; ``negatives``, they are.
        negatives: Candidates for the negatives of each query, 0 for all others of the batch.
        warmup: Epochs with the sum before the maximum.
        reset: Whether the optimiser forgets its averages at that switch.
        clip: Largest norm of the gradient, 0 for no limit.
        reduction: Loss of a batch, ``mean`` or ``sum`` over its pairs.
        batch_size: Pairs in a batch.
        lr: Learning rate of Adam; it rises linearly over the first epoch and then stays.
        max_epochs: Longest training.
        patience: Evaluations in a row without a gain in validation rsum that end a run.
        plateau: Points of rsum, of 600; a smaller gain does not count.
        hidden: Hidden units of the encoder of features.
        dim: Numbers in an embedding.
        word_drop: Share of the words that are left out of a training caption.
        feature_drop: Share of the features that are left out of a training picture.
        curve_points: Points that a record keeps of each curve.
    """

    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda", "mps")

    captions: Captions = "bag"
    score: Score = "cosine"
    loss: Loss = "sum"
    margin: float = 0.2
    crops: bool = True
    siblings: Siblings = "none"
    negatives: int = 0
    warmup: int = 0
    reset: bool = True
    clip: float = 0.0
    reduction: Reduction = "mean"
    batch_size: int = 128
    lr: float = 1e-3
    max_epochs: int = 120
    patience: int = 10
    plateau: float = 4.0
    hidden: int = 256
    dim: int = 256
    word_drop: float = 0.1
    feature_drop: float = 0.2
    curve_points: int = 60

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("captions", self.captions, get_args(Captions))
        check_choice("score", self.score, get_args(Score))
        check_choice("loss", self.loss, get_args(Loss))
        check_choice("siblings", self.siblings, get_args(Siblings))
        check_choice("reduction", self.reduction, get_args(Reduction))
        if self.max_epochs < 1:
            raise ValueError(f"max_epochs must be at least 1, got {self.max_epochs}")

    def shortened(self, share: float) -> Self:
        return replace(self, max_epochs=max(1, round(self.max_epochs * share)))

    def tiny(self) -> Self:
        # the sum before the maximum, the switch, and two evaluations after it
        epochs = max(4, self.warmup + 3)
        return replace(super().tiny(), max_epochs=epochs, patience=2, batch_size=32)

    def dataset(self, pairs: Pairs, seed: int) -> PairsDataset:
        """Return its training items."""
        return PairsDataset(
            pairs,
            crops=self.crops,
            word_drop=self.word_drop,
            feature_drop=self.feature_drop,
            generator=stream(seed, "augment"),
        )


@dataclass(frozen=True, kw_only=True)
class OrderTraining(Training):
    """`Training` by the order violation, whose margin is smaller."""

    score: Score = field()  # no default: its records have always stated it
    margin: float = 0.05


@dataclass(frozen=True, kw_only=True)
class GRUTraining(Training):
    """`Training` with a GRU, whose embeddings are smaller."""

    captions: Captions = field()  # no default: its records have always stated it
    dim: int = 128


@dataclass
class Trained:
    """A run: the model of the best validation epoch, and what happened by epoch."""

    model: DualEncoder
    plateau: bool = False
    best_epoch: int = 0
    updates: int = 0
    validation: list[float] = field(default_factory=list)  # rsum
    recall: list[float] = field(default_factory=list)  # R@1, mean of both directions
    loss: list[float] = field(default_factory=list)  # mean training loss of a pair
    norm: list[float] = field(default_factory=list)  # length of the mean picture embedding


def _product(images: Tensor, captions: Tensor) -> Tensor:
    return images @ captions.T


def _order(images: Tensor, captions: Tensor) -> Tensor:
    return order_scores(images.abs(), captions.abs())


def build_model(settings: Training, pairs: Pairs, seed: int) -> DualEncoder:
    """Make the encoders of an arm; arms of one seed and kind start from the same weights."""
    init = stream(seed, "init")
    pictures: nn.Module
    if settings.encoder == "features":
        size = pairs.pictures.shape[-1]
        pictures = FeatureEncoder(size, settings.hidden, settings.dim, init)
    else:
        pictures = PictureCNN(settings.dim, init)
    encoder = CaptionGRU if settings.captions == "gru" else BagOfTokens
    caption = encoder(pairs.vocabulary, settings.dim, init)
    if settings.score == "product":
        return DualEncoder(pictures, caption, _product, "captions")
    if settings.score == "order":
        return DualEncoder(pictures, caption, _order, "both")
    return DualEncoder(pictures, caption, cosine_scores, "none")


def _loss(settings: Training, batches: int) -> HingeCurriculum | MaxOfHinges | SumOfHinges:
    """Make the loss of each pair, ``(B,)``; ``batches`` is the number of batches of an epoch."""
    if settings.warmup:
        return HingeCurriculum(settings.warmup * batches, settings.margin, "none")
    if settings.loss == "max":
        return MaxOfHinges(settings.margin, "none")
    average = settings.loss == "average"
    return SumOfHinges(settings.margin, "none", average_negatives=average)


def _criterion(
    settings: Training, loss: nn.Module, seed: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """Make the loss of scores and concepts, with negatives left out as the settings say."""
    generator = stream(seed, "candidates")

    def criterion(scores: Tensor, concepts: Tensor) -> Tensor:
        mask: Tensor | tuple[Tensor, Tensor] | None = None
        if settings.siblings == "masked":
            mask = group_mask(concepts)
        if settings.negatives:
            true_pairs = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
            mask = subsample_negatives(true_pairs, settings.negatives, generator=generator)
        losses: Tensor = loss(scores, mask)
        # the loop takes the mean over the pairs, which makes this their sum
        return losses * len(losses) if settings.reduction == "sum" else losses

    return criterion


def _sampler(
    settings: Training, pairs: Pairs, seed: int
) -> DistinctGroupBatchSampler | RandomBatchSampler:
    order = stream(seed, "order")
    if settings.siblings == "none":
        return DistinctGroupBatchSampler(pairs.train[:, 0], settings.batch_size, order)
    return RandomBatchSampler(len(pairs.train), settings.batch_size, order)


def _optimizer(settings: Training, model: nn.Module, rise: int) -> tuple[Adam, LambdaLR]:
    """Make an optimiser, and the schedule by which its learning rate rises over ``rise`` steps."""
    optimizer = Adam(model.parameters(), lr=settings.lr, fused=True)

    def clip(*_: object) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip)

    if settings.clip:
        optimizer.register_step_pre_hook(clip)
    return optimizer, LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / rise))


def train_pairs(settings: Training, pairs: Pairs, seed: int) -> Trained:
    """Train with Adam to the plateau of the validation rsum; keep the best validation epoch.

    Validation follows every epoch. A gain is a value at least ``plateau`` points above the one at
    the last gain; ``patience`` evaluations in a row without a gain end the run.
    """
    device = run_device()
    pairs = pairs.to(device)
    model = build_model(settings, pairs, seed).to(device)
    dataset = settings.dataset(pairs, seed)
    sampler = _sampler(settings, pairs, seed)
    loss = _loss(settings, len(sampler))
    curriculum = loss if isinstance(loss, HingeCurriculum) else None
    criterion = _criterion(settings, loss, seed)
    optimizer, scheduler = _optimizer(settings, model, rise=len(sampler))
    trained = Trained(model)
    weights = copy.deepcopy(model.state_dict())
    best = level = -math.inf  # of the rsum: the largest, and that at the last gain
    evaluations_since_gain = 0
    for epoch in range(settings.max_epochs):
        if curriculum is not None and settings.reset and epoch == settings.warmup:
            optimizer, scheduler = _optimizer(settings, model, rise=1)
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
        trained.updates += history.steps
        trained.loss.append(math.fsum(history.losses) / history.steps)
        value = _note_validation(trained, pairs)
        if value > best:
            best = value
            trained.best_epoch = epoch
            weights = copy.deepcopy(model.state_dict())
        evaluations_since_gain += 1
        if value >= level + settings.plateau:
            level = value
            evaluations_since_gain = 0
        if evaluations_since_gain >= settings.patience:
            trained.plateau = True
            break
    model.load_state_dict(weights)
    return trained


def _note_validation(trained: Trained, pairs: Pairs) -> float:
    """Validate after an epoch, note the results in ``trained``, and return the rsum."""
    to_caption, to_picture = validate(trained.model, pairs)
    value = rsum(to_caption, to_picture)
    trained.validation.append(value)
    trained.recall.append((to_caption.r1 + to_picture.r1) / 2)
    trained.norm.append(_mean_norm(trained.model, pairs))
    return value


def validate(model: DualEncoder, pairs: Pairs) -> BothDirections:
    """Metrics of the validation part."""
    return score_galleries(pairs.val, partial(gallery_scores, model, pairs))


@torch.no_grad()
def gallery_scores(model: DualEncoder, pairs: Pairs, gallery: Gallery) -> Tensor:
    """Score the drawings of a gallery's concepts by one vendor against all captions, ``(N, N)``.

    The model is in eval mode meanwhile; the scores are on the CPU.
    """
    tokens = pairs.tokens[gallery.concepts]
    with in_eval_mode(model):
        captions = model.embed_captions((tokens, (tokens > 0).float()))
        # view 0 is the whole picture, the others are crops
        images = model.embed_pictures(pairs.pictures[gallery.concepts, gallery.vendor, 0])
    return model.score(images, captions).cpu()


@torch.no_grad()
def _mean_norm(model: DualEncoder, pairs: Pairs) -> float:
    """Length of the mean of normalised picture embeddings: 1 if they have collapsed to a point."""
    gallery = pairs.val[0]
    with in_eval_mode(model):
        images = model.embed_pictures(pairs.pictures[gallery.concepts, gallery.vendor, 0])
    return float(nn.functional.normalize(images, dim=1).mean(0).norm())


def run_training(settings: Training, seed: int) -> Result:
    """Train an arm and score the test part."""
    pairs = load_pairs(settings, seed).to(run_device())
    trained = train_pairs(settings, pairs, seed)
    score = partial(gallery_scores, trained.model, pairs)
    metrics, notes = measure_test(pairs, score, settings.synonyms)
    epochs = len(trained.validation)
    metrics |= {
        "val/rsum": max(trained.validation),
        "best_epoch": float(trained.best_epoch),
        "epochs": float(epochs),
    }
    kept = evenly(epochs, settings.curve_points)
    curves = {
        "epoch": [float(i + 1) for i in kept],
        "val/rsum": [trained.validation[i] for i in kept],
        "val/r1": [trained.recall[i] for i in kept],
        "loss": [trained.loss[i] for i in kept],
        "norm": [trained.norm[i] for i in kept],
    }
    counters = {"updates": trained.updates, "pairs": epochs * len(pairs.train)}
    notes |= {"plateau": trained.plateau}
    result = make_result(metrics, curves, counters, notes=notes)
    # the last points of the curves, rounded as in the curves
    ends = {f"final_{name}": result.curves[name][-1] for name in ("loss", "norm")}
    return replace(result, metrics={**result.metrics, **ends})


def run_demonstration(settings: Training, seed: int) -> Result:
    """As `run_training`, for an arm that may fail to train: its plateaus count for no claim."""
    result = run_training(settings, seed)
    return replace(result, notes={**result.notes, "demonstration": True})
