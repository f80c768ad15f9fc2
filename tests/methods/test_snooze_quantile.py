"""The percentile of snoozing is that of NumPy and of torch, and has no largest number of losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainaug.methods.gradient_clustering import snooze_threshold
from trainaug.training.randomness import stream


@pytest.mark.parametrize("n", [1, 2, 3, 10, 101, 1000])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_percentiles_are_those_of_torch_and_numpy(n, dtype):
    alpha = torch.rand(n, dtype=torch.float64, generator=stream(0, "alpha")).to(dtype)
    for tau in (0.0, 0.1, 12.5, 30.0, 50.0, 99.9, 100.0, *(100 * alpha[:5].double()).tolist()):
        actual = snooze_threshold(alpha, "percentile", tau)
        assert actual == float(alpha.double().quantile(tau / 100))
        assert actual == pytest.approx(float(np.percentile(alpha.double().numpy(), tau)), rel=1e-14)


def test_more_losses_than_torch_long_took_have_percentiles():
    n = (1 << 24) + 1
    assert snooze_threshold(torch.arange(n), "percentile", 30.0) == pytest.approx(0.3 * (n - 1))
