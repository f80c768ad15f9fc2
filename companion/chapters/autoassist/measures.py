"""What is measured of the Boss, the network that is wanted, on pictures, and of who guesses."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from companion.chapters.autoassist.problems import Pictures, losses_of
from trainaug.training.models import evaluate, predict
from trainaug.undisturbed import undisturbed

__all__ = ["GUESSERS", "count_macs", "judge_guesses", "measure_end", "present_losses"]

# which examples will be hard: by the Assistant, by the class, by the example's present loss
GUESSERS = ("r", "class", "loss")


def count_macs(model: nn.Module, x: Tensor) -> int:
    """Count the multiply-adds of linear and convolution layers in a pass of one example."""
    counts: list[int] = []

    def count(layer: nn.Module, _: object, y: Tensor) -> None:
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


def present_losses(model: nn.Module, data: Pictures) -> Callable[[Tensor], Tensor]:
    """Return a function that gives the losses of training examples, in eval mode."""

    def losses(index: Tensor) -> Tensor:
        with undisturbed(model), torch.no_grad():
            return losses_of(model.eval()(data.train.x[index]), data.train.y[index])

    return losses


def judge_guesses(r: Tensor, before: Tensor, losses: Tensor, y: Tensor) -> dict[str, float]:
    """AUC of guesses that an example's loss will be above the mean, for three guessers.

    Args:
        r: Guesses of the Assistant, ``(n,)``.
        before: Losses when it guessed.
        losses: Losses later.
        y: Classes.

    Returns:
        By name in `GUESSERS`; 0.5 for each if all later losses are above the mean, or none.
    """
    r, before, losses, y = (values.cpu() for values in (r, before, losses, y))  # for NumPy
    hard = (losses > losses.mean()).numpy()
    if hard.all() or not hard.any():
        return dict.fromkeys(GUESSERS, 0.5)
    counts = torch.bincount(y, minlength=10).clamp(min=1)
    by_class = torch.zeros(10).index_add(0, y, before) / counts
    guesses = zip(GUESSERS, (r, by_class[y], before), strict=True)
    return {name: float(roc_auc_score(hard, guess.numpy())) for name, guess in guesses}


def measure_end(
    model: nn.Module, data: Pictures, *, bins: int = 15, norm_batch: int = 500
) -> dict[str, float]:
    """Test accuracy, loss and calibration, and the accuracy with BatchNorm estimated anew.

    Args:
        model: A trained model; it is left undisturbed.
        data: The parts; the norms are estimated on the training part.
        bins: Bins of confidence, for the calibration error.
        norm_batch: Examples whose moments are estimated at once.

    Raises:
        FloatingPointError: If a number is not finite.
    """
    logits, y = predict(model, data.test)
    confidence, predicted = (values.cpu() for values in logits.softmax(1).max(1))
    hits = (predicted == y.cpu()).double()
    bin_numbers = (confidence * bins).long().clamp(0, bins - 1)  # NaN has one, too; it raises below
    zeros = torch.zeros(bins, dtype=torch.float64)
    gaps = zeros.index_add(0, bin_numbers, confidence.double() - hits)
    metrics = {
        "test/accuracy": float(hits.mean()),
        "test/loss": float(F.cross_entropy(logits, y)),
        "test/calibration_error": float(gaps.abs().sum() / len(y)),
        "test/accuracy_norms": _accuracy_with_new_norms(model, data, norm_batch),
    }
    if not all(math.isfinite(value) for value in metrics.values()):
        raise FloatingPointError(f"not finite: {metrics}")
    return metrics


def _accuracy_with_new_norms(model: nn.Module, data: Pictures, batch: int) -> float:
    """Test accuracy with BatchNorm's moments taken from one pass over all training examples.

    The running moments of an arm are those of the examples that it chose to train on.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    with undisturbed(model), torch.no_grad():
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over the pass
            norm.train()
        for rows in torch.split(torch.arange(len(data.train)), batch):
            model(data.train.x[rows])
        for norm in norms:
            norm.eval()
        accuracy = evaluate(model, data.test, "test")["test/accuracy"]
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return accuracy
