"""The generator that a method draws from when its caller gives none."""

from __future__ import annotations

import torch

__all__ = ["default_generator"]


def default_generator(
    generator: torch.Generator | None, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return the generator given, or a new one seeded by the seed of torch's global one.

    The global generator is read and never advanced, so that a method without a generator draws the
    same after the same ``torch.manual_seed``, and changes no other draw.

    Args:
        generator: A generator, returned as it is, or ``None``.
        device: Device of a new generator.
    """
    if generator is not None:
        return generator
    return torch.Generator(device).manual_seed(torch.initial_seed())
