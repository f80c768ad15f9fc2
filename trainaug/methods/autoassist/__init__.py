"""AutoAssist: a tiny Assistant filters what the Boss trains on; shrinking, its theory and rivals.

Chapter: notebooks/03_autoassist.ipynb
Reference: Zhang, Yu, Dhillon, "AutoAssist: A Framework to Accelerate Training of Deep Neural
Networks", NeurIPS 2019, arXiv 1905.03381.
"""

from trainaug.methods.autoassist.assistant import (
    AssistantTrainer,
    ImageAssistant,
    TextAssistant,
    guarded_base,
)
from trainaug.methods.autoassist.baselines import (
    LossTable,
    RandomSkip,
    ScreenerWeights,
    SelectiveBackprop,
    SelfPacedWeights,
)
from trainaug.methods.autoassist.sampler import AssistedSampler
from trainaug.methods.autoassist.shrinking import (
    constant_threshold,
    decaying_threshold,
    distance_bound,
    keep,
    keep_probability,
    shrinking_bias,
    threshold_floor,
)
from trainaug.methods.autoassist.svm import (
    Path,
    authors_rule,
    gradient_threshold,
    importance_pegasos,
    pegasos,
    svm_gradients,
    svm_objective,
    violators,
)
from trainaug.methods.autoassist.workers import AsyncBatches, WorkerError

__all__ = [
    "AssistantTrainer",
    "AssistedSampler",
    "AsyncBatches",
    "ImageAssistant",
    "LossTable",
    "Path",
    "RandomSkip",
    "ScreenerWeights",
    "SelectiveBackprop",
    "SelfPacedWeights",
    "TextAssistant",
    "WorkerError",
    "authors_rule",
    "constant_threshold",
    "decaying_threshold",
    "distance_bound",
    "gradient_threshold",
    "guarded_base",
    "importance_pegasos",
    "keep",
    "keep_probability",
    "pegasos",
    "shrinking_bias",
    "svm_gradients",
    "svm_objective",
    "threshold_floor",
    "violators",
]
