"""Cascading Sum Augmentation: train on averages of K samples, K falling to 1.

Chapter: notebooks/05_cascading_sum.ipynb
Reference: Simionescu, "Deep Learning Training Procedure Augmentations", 2022, arXiv 2211.14395.
"""

from trainaug.methods.cascading_sum.functional import equalise_variance, sum_mix
from trainaug.methods.cascading_sum.inference import SumTTA
from trainaug.methods.cascading_sum.landscape import (
    gradient_lipschitz,
    hessian_top_eigenvalue,
    sharpness,
)
from trainaug.methods.cascading_sum.mixing import PixelMix, SingleLabelMix, SumMix
from trainaug.methods.cascading_sum.schedule import (
    CascadeSchedule,
    PlateauCascade,
    begin_stage,
    stage_boundaries,
)

__all__ = [
    "CascadeSchedule",
    "PixelMix",
    "PlateauCascade",
    "SingleLabelMix",
    "SumMix",
    "SumTTA",
    "begin_stage",
    "equalise_variance",
    "gradient_lipschitz",
    "hessian_top_eigenvalue",
    "sharpness",
    "stage_boundaries",
    "sum_mix",
]
