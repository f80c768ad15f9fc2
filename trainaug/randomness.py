"""The generator that draws where the caller gives none."""

from __future__ import annotations

import torch

from trainaug.checks import source_of_randomness

__all__ = ["default_generator"]


def default_generator(
    generator: torch.Generator | None, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return the generator that was given, or a new one that follows ``torch.manual_seed``.

    The new one is seeded by ``torch.initial_seed()``; the global generator is neither advanced nor
    seeded. Each worker of a loader has a seed of its own, so their generators differ. Keep the new
    generator: another call returns one that draws the same numbers again.

    Args:
        generator: Source of randomness, or None.
        device: Device of a new generator.

    Returns:
        ``generator`` unchanged, on whatever device it draws, or the new one.

    Raises:
        TypeError: If ``generator`` is something else, such as a seed.

    Example:
        >>> _ = torch.manual_seed(3)
        >>> default_generator(None).initial_seed()
        3
    """
    if generator is not None:
        return source_of_randomness("generator", generator)
    return torch.Generator(device).manual_seed(torch.initial_seed())
