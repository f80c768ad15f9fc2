"""Named random streams, and what draws from them: initial weights and the order of batches.

Nothing here reads or seeds a global generator. Draws are made on ``generator.device`` and moved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import Sampler

__all__ = ["RandomBatchSampler", "initialise", "stream"]

_UNIFORM = (nn.Linear, nn.Conv1d, nn.Conv2d)
_NORMAL = (nn.Embedding, nn.EmbeddingBag)
_CONSTANT = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)


def stream(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return the generator that a seed gives to one purpose, whatever other streams exist.

    Its seed is the first 8 bytes of sha256("seed/name"). Purposes are ``"init"``, ``"order"``,
    ``"candidates"``, ``"augment"``, ``"measure"`` ...; kinds of device give different numbers.

    Example:
        >>> torch.randint(100, (3,), generator=stream(0, "order"))
        tensor([65, 68, 97])
    """
    if type(seed) is not int or not name:
        raise ValueError(f"need an integer seed and a name, got {seed!r} and {name!r}")
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big"))


@torch.no_grad()
def initialise(model: nn.Module, generator: torch.Generator) -> None:
    r"""Draw every parameter of a model anew, in the order of ``model.modules()``.

    Linear and convolution layers: weight and bias uniform on $\pm 1/\sqrt{\text{fan-in}}$, as
    PyTorch's defaults; embeddings: standard normal, padding row zero; normalisation layers:
    weight 1, bias 0, fresh running statistics. A model built inside ``with torch.device("meta")``,
    which costs no random draw, gets its memory here, on ``generator.device``: tie weights after.

    Raises:
        TypeError: If another kind of layer owns parameters, or buffers without memory.
    """
    for module in model.modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        on_meta = any(t.is_meta for t in own)
        owner = on_meta or any(isinstance(t, nn.Parameter) for t in own)
        if owner and not isinstance(module, _UNIFORM + _NORMAL + _CONSTANT):
            raise TypeError(f"cannot initialise a {type(module).__name__}: draw it yourself")
        if on_meta:
            module.to_empty(device=generator.device, recurse=False)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.reset_running_stats()
        for name, p in module.named_parameters(recurse=False):
            values = torch.empty(p.shape, dtype=p.dtype, device=generator.device)
            if isinstance(module, _UNIFORM):
                bound = module.weight[0].numel() ** -0.5  # fan-in
                values.uniform_(-bound, bound, generator=generator)
            elif isinstance(module, _NORMAL):
                values.normal_(generator=generator)
                if module.padding_idx is not None:
                    values[module.padding_idx] = 0.0
            else:
                values.fill_(1.0 if name == "weight" else 0.0)
            p.copy_(values)


class RandomBatchSampler(Sampler[list[int]]):
    """Batches of a fresh random order each epoch; a smaller last one stays unless ``drop_last``.

    Example:
        >>> list(RandomBatchSampler(5, 2, stream(0, "order")))
        [[0, 1], [2, 4], [3]]
    """

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        generator: torch.Generator,
        drop_last: bool = False,
    ) -> None:
        if min(num_examples, batch_size) < 1 or (drop_last and batch_size > num_examples):
            raise ValueError(f"no batch: {num_examples=}, {batch_size=}, {drop_last=}")
        self.num_examples, self.batch_size = num_examples, batch_size
        self.generator, self.drop_last = generator, drop_last
        self._remaining: list[int] = []
        self._resuming = False

    def __len__(self) -> int:
        rounding = 0 if self.drop_last else self.batch_size - 1
        return (self.num_examples + rounding) // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        order = self._remaining if self._resuming else []
        self._resuming = False
        if not order:
            g = self.generator
            order = torch.randperm(self.num_examples, generator=g, device=g.device).tolist()
            order = order[: len(self) * self.batch_size]
        for start in range(0, len(order), self.batch_size):
            self._remaining = order[start + self.batch_size :]
            yield order[start : start + self.batch_size]

    def state_dict(self) -> dict[str, Any]:
        """Return the generator's state and what is left of the epoch."""
        return {"generator": self.generator.get_state(), "remaining": list(self._remaining)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``: the next iteration first finishes the interrupted epoch."""
        self.generator.set_state(state["generator"])
        self._remaining, self._resuming = list(state["remaining"]), True
