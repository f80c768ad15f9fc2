"""Choice of the device, and moving nested batches."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch
from torch import nn

from trainaug.training.devices import device_of, map_tensors, pick_device, to_device


def pretend(monkeypatch, *, cuda: bool, mps: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "float32", "float64"),
    [
        (True, True, "cuda", "cuda"),
        (False, True, "mps", "cpu"),
        (False, False, "cpu", "cpu"),
    ],
)
def test_auto_takes_cuda_then_mps_then_cpu(monkeypatch, cuda, mps, float32, float64):
    pretend(monkeypatch, cuda=cuda, mps=mps)
    assert pick_device().type == float32
    assert pick_device(dtype=torch.float64).type == float64
    assert pick_device("cpu").type == "cpu"


def test_mps_leaves_float64_to_the_cpu(monkeypatch):
    pretend(monkeypatch, cuda=False, mps=True)
    assert pick_device("mps").type == "mps"
    assert pick_device("mps", dtype=torch.float64).type == "cpu"


@pytest.mark.parametrize("choice", ["cuda", "mps"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_absent_device_raises_saying_what_to_do(monkeypatch, choice, dtype):
    pretend(monkeypatch, cuda=False, mps=False)
    with pytest.raises(RuntimeError, match=f"no '{choice}' device here: choose 'auto' or 'cpu'"):
        pick_device(choice, dtype=dtype)


def test_unknown_device_raises_with_the_value():
    with pytest.raises(ValueError, match="got 'tpu'"):
        pick_device("tpu")


def test_device_of_a_model_without_parameters_raises():
    with pytest.raises(ValueError, match="ReLU has no parameters"):
        device_of(nn.ReLU())


def test_map_tensors_keeps_the_nesting():
    Pair = namedtuple("Pair", "left right")
    one = torch.ones(2)
    value = {"a": (one, [one, "text"]), "b": Pair(one, None), "c": 3}
    mapped = map_tensors(lambda t: t + 1, value)
    assert mapped["a"][0].tolist() == [2, 2]
    assert mapped["a"][1][1] == "text"
    assert mapped["b"].left.tolist() == [2, 2]
    assert mapped["b"].right is None
    assert mapped["c"] == 3
    assert one.tolist() == [1, 1]
    assert to_device(value, torch.device("meta"))["b"].left.is_meta
