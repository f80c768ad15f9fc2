"""Named random streams, and what draws from them: initial weights and the order of batches.

Nothing here reads or seeds a global generator. Values are drawn on ``generator.device``, then
moved.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from trainaug.batches import OrderedBatchSampler, batch_sizes

__all__ = ["RandomBatchSampler", "initialise", "stream"]

_UNIFORM = (nn.Linear, nn.Conv1d, nn.Conv2d)
_NORMAL = (nn.Embedding, nn.EmbeddingBag)
_CONSTANT = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)


def stream(seed: int, name: str) -> torch.Generator:
    """Return the random generator for one purpose; it does not depend on other streams.

    Its seed is the first 8 bytes of sha256("seed/name"). Purposes are ``"init"``, ``"order"``,
    ``"candidates"``, ``"augment"``, ``"measure"`` and others. It draws on the CPU.

    Args:
        seed: Seed of the whole run, any integer.
        name: The purpose, not empty.

    Raises:
        ValueError: If the seed is not an integer or the name is empty.

    Example:
        >>> torch.randint(100, (3,), generator=stream(0, "order"))
        tensor([65, 68, 97])
    """
    if type(seed) is not int or not name:
        raise ValueError(f"need an integer seed and a name, got {seed!r} and {name!r}")
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big"))


@torch.no_grad()
def initialise(model: nn.Module, generator: torch.Generator) -> None:
    r"""Draw every parameter of a model anew, in the order of ``model.modules()``.

    Linear and convolution layers: weight and bias uniform on $\pm 1/\sqrt{\text{fan-in}}$, as
    PyTorch's defaults. Embeddings: standard normal, with a padding row of zeros. Normalisation
    layers: weight 1, bias 0, reset running statistics. A model built inside ``with
    torch.device("meta")``, where no random number is drawn, gets its memory here, on
    ``generator.device``; tie weights only afterwards.

    Args:
        model: Changed in place.
        generator: Source of the weights; they are drawn on its device, then moved.

    Raises:
        TypeError: If a layer of another type has parameters, or buffers on the meta device.
    """
    for module in model.modules():
        tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        on_meta = any(t.is_meta for t in tensors)
        must_draw = on_meta or any(isinstance(t, nn.Parameter) for t in tensors)
        if must_draw and not isinstance(module, _UNIFORM + _NORMAL + _CONSTANT):
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


class RandomBatchSampler(OrderedBatchSampler):
    """Batches in a fresh random order each epoch (random reshuffling).

    Args:
        num_examples: Number of examples, N.
        batch_size: Batch size of each rank, B.
        generator: Source of the orders, with equal seeds on all ranks.
        drop_last: Leave out an incomplete last batch.
        num_replicas: Number of processes that train together.
        rank: Number of this process.

    Raises:
        ValueError: If there is no batch, or too few examples to give each rank one in each batch.

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
        *,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(
            num_examples, batch_size, generator, drop_last, num_replicas=num_replicas, rank=rank
        )
        self._sizes = batch_sizes(num_examples, batch_size, num_replicas, drop_last=drop_last)

    def __len__(self) -> int:
        return len(self._sizes)

    def _draw_epoch(self) -> tuple[Tensor, list[int]]:
        return self._permutation(self.num_examples), self._sizes
