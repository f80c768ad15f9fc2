"""What torchrun starts: a script, and then a file with the values of some of its names."""

from __future__ import annotations

import os
import runpy
import sys
from typing import Any

import torch
from torch import nn

torch.set_num_threads(1)
script, folder, *names = sys.argv[1:]
found = runpy.run_path(script, run_name="__main__")


def plain(value: Any) -> Any:
    """Return what `torch.load` takes back: of a module its state."""
    return value.state_dict() if isinstance(value, nn.Module) else value


torch.save({name: plain(found[name]) for name in names}, f"{folder}/rank{os.environ['RANK']}.pt")
