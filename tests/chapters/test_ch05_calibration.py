"""Chapter 5: calibration error and losses, which need no network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from companion.chapters.cascading_sum import measures
from trainaug.training.randomness import stream

pytestmark = pytest.mark.usefixtures("untouched_randomness")


def naive_calibration_error(logits: Tensor, y: Tensor, bins: int) -> float:
    total = 0.0
    for b in range(bins):
        hits, confidences = [], []
        for row, label in zip(logits.softmax(1).tolist(), y.tolist(), strict=True):
            if b / bins < max(row) <= (b + 1) / bins:
                hits.append(row.index(max(row)) == label)
                confidences.append(max(row))
        total += abs(sum(hits) - sum(confidences)) / len(y)
    return total


@pytest.mark.parametrize("bins", [1, 2, 15])
@pytest.mark.parametrize("scale", [0.5, 2.0, 8.0])
def test_calibration_error_equals_a_naive_loop(bins, scale):
    g = stream(0, f"{bins}/{scale}")
    logits, y = scale * torch.randn(300, 4, generator=g), torch.randint(4, (300,), generator=g)
    found = measures.calibration_error(logits, y, bins)
    assert found == pytest.approx(naive_calibration_error(logits, y, bins), abs=1e-6)
    assert measures.calibration_error(logits, y) == measures.calibration_error(logits, y, 15)
    turned = torch.randperm(300, generator=g)
    assert measures.calibration_error(logits[turned], y[turned], bins) == pytest.approx(found)


def test_calibration_error_in_closed_form():
    sure, y = 200.0 * torch.eye(5), torch.arange(5)
    assert measures.calibration_error(sure, y) == 0
    assert measures.calibration_error(sure, y.roll(1)) == 1
    # a coin that says 1/2 and is right half the time; always right: half too little confidence
    even = torch.zeros(4, 2)
    assert measures.calibration_error(even, torch.tensor([0, 1, 0, 1])) == pytest.approx(0)
    assert measures.calibration_error(even, torch.zeros(4).long()) == pytest.approx(0.5)
    # a confidence on an edge belongs to the lower bin: (1/2 right, 3/4 wrong) do not cancel
    logits = torch.tensor([[1.0, 1.0], [3.0, 1.0]]).log()
    assert measures.calibration_error(logits, torch.tensor([0, 1]), 2) == pytest.approx(0.625)


def test_losses_take_hard_and_soft_labels():
    logits, y = torch.randn(6, 3, generator=stream(0, "x")), torch.tensor([0, 1, 2, 2, 1, 0])
    hard, soft = (measures.losses_of(logits, labels) for labels in (y, F.one_hot(y, 3).float()))
    assert hard.shape == (6,)
    torch.testing.assert_close(hard, soft)
    torch.testing.assert_close(hard, -logits.log_softmax(1)[torch.arange(6), y])
