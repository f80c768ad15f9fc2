"""Former module of what is now in `trainaug.undisturbed`; imports still work."""

from trainaug.undisturbed import undisturbed as preserve_state

__all__ = ["preserve_state"]
