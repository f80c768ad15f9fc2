"""Former module of networks that are now in `trainaug.training.networks`; imports still work."""

from trainaug.training.networks import StridedConvNet, TwoConvNet

__all__ = ["StridedConvNet", "TwoConvNet"]
