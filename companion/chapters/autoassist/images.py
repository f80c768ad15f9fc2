"""Fewer examples to the same accuracy? The Boss on pictures, with an Assistant or its rivals."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.optim import SGD, Adam

from companion.chapters.autoassist.problems import Pictures, losses_of, make_model, pictures
from trainaug.methods.autoassist import (
    AssistantTrainer,
    AssistedSampler,
    ImageAssistant,
    LossTable,
    RandomSkip,
    ScreenerWeights,
    SelectiveBackprop,
    SelfPacedWeights,
)
from trainaug.training.convnet import TwoConvNet
from trainaug.training.loop import train
from trainaug.training.models import evaluate, predict, undisturbed
from trainaug.training.randomness import RandomBatchSampler, stream

__all__ = [
    "EVERY",
    "GUESSERS",
    "PROBE_EVERY",
    "SMOOTHED",
    "Trained",
    "assisted",
    "count_macs",
    "train_images",
]

EVERY = 30  # steps between two looks at the validation part
SMOOTHED = 5  # looks that are averaged
GUESSERS = ("r", "class", "loss")  # of who will be hard: Assistant, class, own loss
PROBE = 1000  # training examples that the Assistant's guesses are judged on
PROBE_EVERY = 150  # steps between a guess and its judgement


@dataclass
class Trained:
    """A run: validation accuracy at each look, with what was spent until then."""

    accuracy: list[float] = field(default_factory=list)
    examples: list[float] = field(default_factory=list)  # through the Boss, forward and backward
    work: list[float] = field(default_factory=list)  # forward passes of the Boss it amounts to
    scanned: list[float] = field(default_factory=list)
    auc: list[dict[str, float]] = field(default_factory=list)
    keep_rates: list[float] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)

    def reached(self, target: float) -> int | None:
        """Look at which the mean of the last ones first reached the target, or ``None``."""
        for end in range(SMOOTHED, len(self.accuracy) + 1):
            if sum(self.accuracy[end - SMOOTHED : end]) >= SMOOTHED * target:
                return end - 1
        return None


def count_macs(model: nn.Module, x: Tensor) -> int:
    """Count the multiply-adds of linear and convolution layers in a pass of one example."""
    counts: list[int] = []

    def count(layer: nn.Module, _: Any, y: Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        counts.append(y[0].numel() * weight[0].numel())

    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with undisturbed(model), torch.no_grad():
        model.eval()(x[:1])
    for hook in hooks:
        hook.remove()
    return sum(counts)


def assisted(
    data: Pictures, settings: Mapping[str, Any], seed: int
) -> tuple[AssistedSampler, AssistantTrainer]:
    """Build the Assistant on normalised pixels and labels, and the sampler that asks it."""
    flat = data.train.x.flatten(1)
    seen = (flat - flat.mean()) / flat.std()  # raw pixels, normalised as one
    assistant = ImageAssistant(flat.shape[1], 10, stream(seed, "assistant"))
    labels = data.train.y
    trainer = AssistantTrainer(
        assistant,
        lambda index: (seen.index_select(0, index), labels.index_select(0, index)),
        lr=settings["assistant_lr"],
        weight_decay=settings["assistant_decay"],
    )
    sampler = AssistedSampler(
        len(labels),
        settings["batch"],
        trainer.predict,
        stream(seed, "order"),
        stream(seed, "keep"),
        base=settings["base"],
        shuffle=settings["shuffle"],
    )
    return sampler, trainer


@dataclass
class _Arm:
    """Stations of an arm, and its work beside the Boss's own passes, in forward passes."""

    sampler: Any
    feedback: Callable[[Tensor, Tensor], object] | None = None
    weights: Callable[[Tensor], Tensor] | None = None
    extra: Callable[[int], float] = lambda examples: 0.0
    trainer: AssistantTrainer | None = None


def _decide_ahead(sampler: AssistedSampler, updates: int) -> Iterator[list[int]]:
    """Give the batches of pass after pass, each decided so many updates before it is used."""
    ready: deque[list[int]] = deque()
    while True:
        for batch in sampler:
            ready.append(batch)
            if len(ready) > updates:
                yield ready.popleft()


def _stations(
    settings: Mapping[str, Any],
    data: Pictures,
    model: nn.Module,
    seed: int,
    keep_rates: Sequence[float] | None,
) -> _Arm:
    n, batch, name = len(data.train), settings["batch"], settings["sampler"]
    order, draws = stream(seed, "order"), stream(seed, "keep")
    plain = RandomBatchSampler(n, batch, order)
    boss = count_macs(model, data.train.x)
    if name == "uniform":
        return _Arm(plain)
    if name == "assist":
        sampler, trainer = assisted(data, settings, seed)
        d = data.train.x[0].numel()  # a guess costs d, a step of the Assistant 2d an example
        return _Arm(
            sampler,
            trainer.update,
            extra=lambda examples: d * (sampler.scanned + 2 * examples) / boss,
            trainer=trainer,
        )
    if name == "random":
        skip = RandomSkip(keep_rates or [])
        of = AssistedSampler(n, batch, skip.predict, order, draws, base=0.0, on_pass=skip.on_pass)
        return _Arm(of)
    if name == "selective":
        chosen = SelectiveBackprop(_present_losses(model, data), beta=settings["beta"])
        of = AssistedSampler(n, batch, chosen.predict, order, draws, base=0.0)
        return _Arm(of, extra=lambda examples: float(of.scanned))
    if name == "pruned":
        table = LossTable(n, 0.5)
        of = AssistedSampler(
            n, batch, table.predict, order, draws, base=table.base, on_pass=table.on_pass
        )
        return _Arm(of, table.update, table.weights)
    if name == "selfpaced":
        paced = SelfPacedWeights(n, -(-n // batch), epochs=settings["pace_epochs"])
        return _Arm(plain, paced.update, paced.weights)
    if name == "screener":
        net = TwoConvNet(1, stream(seed, "screener"), in_channels=data.train.x.shape[1])
        share = count_macs(net, data.train.x) / boss
        optimizer = Adam(net.parameters(), 1e-3, fused=True)
        weighing = ScreenerWeights(net, lambda index: data.train.x[index], optimizer)
        return _Arm(
            plain, weighing.update, weighing.weights, extra=lambda examples: 4 * share * examples
        )
    raise ValueError(f"unknown sampler {name!r}")


def _present_losses(model: nn.Module, data: Pictures) -> Callable[[Tensor], Tensor]:
    def losses(index: Tensor) -> Tensor:
        with undisturbed(model), torch.no_grad():
            return losses_of(model.eval()(data.train.x[index]), data.train.y[index])

    return losses


def train_images(
    settings: Mapping[str, Any], seed: int, *, keep_rates: Sequence[float] | None = None
) -> Trained:
    """Train one arm.

    Args:
        settings: As in `arms.IMAGES`, with ``lr``; ``steps`` are the Boss's updates, so every arm
            trains on as many examples at most.
        seed: Seed of parts, weights, order, decisions.
        keep_rates: Share kept in each pass, for ``sampler="random"``.
    """
    data = pictures(
        settings["data"],
        seed,
        settings["num_train"],
        noise=settings["noise"],
        rotated=settings["rotated"],
    )
    model = make_model(settings["model"], data, seed)
    optimizer = SGD(
        model.parameters(),
        settings["lr"],
        momentum=settings["momentum"],
        weight_decay=settings["decay"],
    )
    arm = _stations(settings, data, model, seed, keep_rates)
    found, drawn = Trained(), 0
    wrong_seen = 0
    probe = torch.randperm(len(data.train), generator=stream(seed, "measure"))[:PROBE]
    guesses: list[tuple[Tensor, Tensor]] = []  # of the last probe: r, losses

    def look(model: nn.Module) -> dict[str, float]:
        found.accuracy.append(evaluate(model, data.val, "val")["val/accuracy"])
        found.examples.append(float(drawn))
        found.work.append(3 * drawn + arm.extra(drawn))
        found.scanned.append(float(getattr(arm.sampler, "scanned", drawn)))
        if arm.trainer is not None and len(found.accuracy) * EVERY % PROBE_EVERY == 0:
            losses = _present_losses(model, data)(probe)
            if guesses:
                found.auc.append(_judge(*guesses.pop(), losses, data.train.y[probe]))
            guesses.append((arm.trainer.predict(probe), losses))
        return {}

    def count(index: Tensor, losses: Tensor) -> None:
        nonlocal drawn, wrong_seen
        drawn += len(index)
        wrong_seen += int(data.wrong[index.cpu()].sum())
        if arm.feedback is not None:
            arm.feedback(index, losses)

    train(
        model,
        data.train,
        _decide_ahead(arm.sampler, settings["ahead"]) if settings["ahead"] else arm.sampler,
        losses_of,
        optimizer,
        max_steps=settings["steps"],
        weights=arm.weights,
        feedback=count,
        evaluate=look,
        evaluate_every=EVERY,
    )
    found.metrics = _final(model, data) | {"wrong": wrong_seen / drawn}
    if isinstance(arm.sampler, AssistedSampler):
        found.keep_rates = arm.sampler.rates_so_far()
        found.metrics["kept"] = arm.sampler.kept / arm.sampler.scanned
    if arm.trainer is not None:
        found.metrics["positives"] = arm.trainer.positives
        found.metrics["assistant_share"] = arm.extra(drawn) / (3 * drawn)
    return found


def _judge(r: Tensor, before: Tensor, losses: Tensor, y: Tensor) -> dict[str, float]:
    """AUC of guesses for being above the mean loss later, with two other guessers beside."""
    hard = (losses > losses.mean()).numpy()
    if hard.all() or not hard.any():
        return dict.fromkeys(GUESSERS, 0.5)
    by_class = torch.zeros(10).index_add(0, y, before) / torch.bincount(y, minlength=10).clamp(
        min=1
    )
    guesses = zip(GUESSERS, (r, by_class[y], before), strict=True)
    return {name: float(roc_auc_score(hard, guess.numpy())) for name, guess in guesses}


def _final(model: nn.Module, data: Pictures) -> dict[str, float]:
    """Test accuracy, loss and calibration, and the accuracy with BatchNorm estimated anew."""
    logits, y = predict(model, data.test)
    confidence, guess = logits.softmax(1).max(1)
    hits = (guess == y).double()
    bins = (confidence * 15).long().clamp(0, 14)  # of NaN, too: they raise below
    gaps = torch.zeros(15, dtype=torch.float64).index_add(0, bins, confidence.double() - hits)
    found = {
        "test/accuracy": float(hits.mean()),
        "test/loss": float(F.cross_entropy(logits, y)),
        "test/calibration_error": float(gaps.abs().sum() / len(y)),
    }
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    with undisturbed(model), torch.no_grad():
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum, kept = None, norm.momentum  # a plain mean over the pass
            norm.train()
        for rows in torch.split(torch.arange(len(data.train)), 500):
            model(data.train.x[rows])
        for norm in norms:
            norm.eval()
        found["test/accuracy_norms"] = evaluate(model, data.test, "test")["test/accuracy"]
        for norm in norms:
            norm.momentum = kept
    if not all(math.isfinite(value) for value in found.values()):
        raise FloatingPointError(f"not finite: {found}")
    return found
