"""Gradient clustering: strata of similar gradients, samplers that use them, and variance measures.

Chapter: notebooks/02_gradient_clustering.ipynb
Reference: Faghri, Duvenaud, Fleet, Ba, "A Study of Gradient Variance in Deep Learning",
arXiv 2007.04532, 2020; Faghri, "Training Efficiency and Robustness in Deep Learning",
arXiv 2112.01423, 2021.
"""

from trainaug.methods.gradient_clustering.centers import (
    GradientCenters,
    choose_route,
    route_costs,
)
from trainaug.methods.gradient_clustering.clustering import Clustering, GradientClustering
from trainaug.methods.gradient_clustering.estimators import (
    GradientEstimator,
    SGEstimator,
    StratifiedEstimator,
    SVRGEstimator,
    per_example_gradients,
)
from trainaug.methods.gradient_clustering.factors import (
    Factors,
    LayerFactors,
    UnsupportedLayerError,
    flat_gradients,
    gram_matrix,
    layer_factors,
)
from trainaug.methods.gradient_clustering.moments import Moments, gradient_moments
from trainaug.methods.gradient_clustering.sampler import StratifiedSampler
from trainaug.methods.gradient_clustering.snooze import (
    RandomSnoozeSampler,
    SnoozeSampler,
    snooze_threshold,
)
from trainaug.methods.gradient_clustering.variance import (
    best_partition,
    enumerate_estimates,
    exact_moves,
    move_deltas,
    sampling_variance,
    stratified_variance,
    svrg_variance,
    total_distortion,
)

__all__ = [
    "Clustering",
    "Factors",
    "GradientCenters",
    "GradientClustering",
    "GradientEstimator",
    "LayerFactors",
    "Moments",
    "RandomSnoozeSampler",
    "SGEstimator",
    "SVRGEstimator",
    "SnoozeSampler",
    "StratifiedEstimator",
    "StratifiedSampler",
    "UnsupportedLayerError",
    "best_partition",
    "choose_route",
    "enumerate_estimates",
    "exact_moves",
    "flat_gradients",
    "gradient_moments",
    "gram_matrix",
    "layer_factors",
    "move_deltas",
    "per_example_gradients",
    "route_costs",
    "sampling_variance",
    "snooze_threshold",
    "stratified_variance",
    "svrg_variance",
    "total_distortion",
]
