"""What torchrun starts: a script, and then a file with the values of some of its names."""

from __future__ import annotations

import os
import runpy
import sys
from typing import Any

import torch
from torch import nn


def plain(value: Any) -> Any:
    """Return what `torch.load` takes back: of a module its state."""
    return value.state_dict() if isinstance(value, nn.Module) else value


def main(script: str, folder: str, *names: str) -> None:
    """Run the script and store the values of the names."""
    torch.set_num_threads(1)
    values = runpy.run_path(script, run_name="__main__")
    chosen = {name: plain(values[name]) for name in names}
    torch.save(chosen, f"{folder}/rank{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
