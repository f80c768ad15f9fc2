"""Nested batches: rows are counted and taken in every structure, or refused by name."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from trainaug.structures import eagerly, map_tensors, num_rows, take_rows, unwrapped

Pair = namedtuple("Pair", ["first", "second"])
A, B = torch.arange(4.0), torch.arange(8).view(4, 2)
NESTS = {
    "tensor": A,
    "tuple": (A, B),
    "list": [A, (B, A)],
    "named": Pair(A, {"b": B}),
    "dict": {"a": A, "b": [B]},
    "ordered": OrderedDict(a=A, b=B),
    "user": UserDict(a=A, b=B),
    "captions": (A, ["w", "x", "y", "z"]),
    "options": {"a": A, "return_loss": True, "mask": None},
}


def flat(value):
    if isinstance(value, UserDict | dict):
        return [leaf for item in value.values() for leaf in flat(item)]
    if isinstance(value, tuple | list):
        return [leaf for item in value for leaf in flat(item)]
    return value.tolist() if isinstance(value, torch.Tensor) else [value]


@pytest.mark.parametrize("name", NESTS)
def test_rows_are_those_of_every_column(name):
    value = NESTS[name]
    assert num_rows(value) == 4
    taken = take_rows(value, torch.tensor([3, 1]))
    assert type(taken) is type(value)
    assert num_rows(taken) == 2
    columns = {"w": "z", 0.0: 3.0}  # what comes first, and what comes now
    assert all(columns.get(first, 3.0) in flat(taken) for first in columns if first in flat(value))
    again = take_rows(taken, torch.tensor([1, 0]))
    assert flat(again) == flat(take_rows(value, torch.tensor([1, 3])))
    doubled = map_tensors(lambda t: 2 * t, value)
    assert type(doubled) is type(value)
    assert num_rows(doubled) == 4
    assert flat(doubled) != flat(value)
    assert flat(value) == flat(NESTS[name])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ((A, B[:3]), r"equally many rows, got \[4, 3\]"),
        ((A, ["x", "y"]), r"equally many rows, got \[4, 2\]"),
        (torch.tensor(1.0), "a scalar"),
        ({"return_loss": True}, "got dict"),
        (None, "got NoneType"),
        ((A, A.numpy()), "got ndarray"),
        (pack_sequence([A, A[:2]]), "PackedSequence"),
    ],
    ids=str,
)
def test_what_has_no_rows_is_refused(value, message):
    with pytest.raises((TypeError, ValueError), match=message):
        num_rows(value)


def test_wrappers_come_off_and_compiled_code_runs_as_written():
    inner = nn.Linear(2, 2)
    assert unwrapped(inner) is inner
    assert unwrapped(nn.DataParallel(inner)) is inner
    compiled = torch.compile(inner, backend=lambda graph, inputs: pytest.fail("compiled"))
    assert unwrapped(nn.DataParallel(compiled)) is inner
    with eagerly():
        assert torch.equal(compiled(torch.eye(2)), inner(torch.eye(2)))
