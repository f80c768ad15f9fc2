"""Former module of networks that are now in `trainaug.training.networks`; imports still work."""

from trainaug.training.networks import (
    BagOfTokens,
    CaptionGRU,
    DualEncoder,
    FeatureEncoder,
    PictureCNN,
)

__all__ = ["BagOfTokens", "CaptionGRU", "DualEncoder", "FeatureEncoder", "PictureCNN"]
