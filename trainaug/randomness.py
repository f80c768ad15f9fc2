"""The generator that draws where the caller gives none."""

from __future__ import annotations

import torch

from trainaug.checks import source_of_randomness

__all__ = ["default_generator"]


def default_generator(
    generator: torch.Generator | None, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return the generator that was given, or a new one that follows ``torch.manual_seed``.

    The seed of the new one is ``torch.initial_seed()``, which is read: the global generator is
    neither advanced nor seeded. The workers of a loader have a seed each, so theirs differ. Keep
    the new generator: another call returns one that draws the same numbers again.

    Args:
        generator: Source of randomness, or None.
        device: Where a new one draws.

    Returns:
        A generator; the one that was given as it is, on whatever device it draws.

    Raises:
        TypeError: If something else was given, as a seed is.

    Example:
        >>> _ = torch.manual_seed(3)
        >>> default_generator(None).initial_seed()
        3
    """
    if generator is not None:
        return source_of_randomness("generator", generator)
    return torch.Generator(device).manual_seed(torch.initial_seed())
