"""Former module of networks that are now in `trainaug.training.networks`; imports still work."""

from trainaug.training.networks import ResNet8

__all__ = ["ResNet8"]
