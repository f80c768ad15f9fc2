"""Which batch next? Perfect Ordering Approximation, curricula and balanced orders.

Chapter: notebooks/04_curriculum.ipynb
Reference: Simionescu, "Deep Learning Training Procedure Augmentations", arXiv 2211.14395.
"""

from trainaug.methods.ordering.copies import Copies
from trainaug.methods.ordering.curriculum import (
    PacedSampler,
    exponential_pacing,
    linear_pacing,
    root_pacing,
    step_pacing,
)
from trainaug.methods.ordering.difficulty import (
    ForgettingTracker,
    RunningHardness,
    example_losses,
    largest_losses,
    self_paced_weights,
)
from trainaug.methods.ordering.exhaustive import (
    exhaustive_orders,
    position_shares,
    train_in_order,
)
from trainaug.methods.ordering.grab import GraBSampler
from trainaug.methods.ordering.sampler import PerfectOrderingSampler, SampleLossSampler
from trainaug.methods.ordering.scores import (
    BatchScorer,
    batch_losses,
    target_alignments,
    trial_losses,
)
from trainaug.undisturbed import undisturbed as preserve_state

__all__ = [
    "BatchScorer",
    "Copies",
    "ForgettingTracker",
    "GraBSampler",
    "PacedSampler",
    "PerfectOrderingSampler",
    "RunningHardness",
    "SampleLossSampler",
    "batch_losses",
    "example_losses",
    "exhaustive_orders",
    "exponential_pacing",
    "largest_losses",
    "linear_pacing",
    "position_shares",
    "preserve_state",
    "root_pacing",
    "self_paced_weights",
    "step_pacing",
    "target_alignments",
    "train_in_order",
    "trial_losses",
]
