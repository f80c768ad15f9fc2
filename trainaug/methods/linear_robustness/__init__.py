"""Linear classifiers made maximally robust by optimiser, regulariser or architecture.

Chapter: notebooks/06_linear_robustness.ipynb
Reference: Faghri et al., "Bridging the Gap Between Adversarial Robustness and Optimization Bias",
2021, arXiv 2102.08868; Faghri's thesis, arXiv 2112.01423.
"""

from trainaug.methods.linear_robustness.adversarial import adversarial_paths
from trainaug.methods.linear_robustness.enclosure import Enclosure, enclosure
from trainaug.methods.linear_robustness.max_margin import (
    MaxMargin,
    NotSeparableError,
    SolverFailedError,
    max_margin,
    second_solver,
)
from trainaug.methods.linear_robustness.networks import (
    CircularConvLinear,
    DeepLinear,
    LinearClassifier,
    NetworkPath,
    convolutional_paths,
    dense_paths,
)
from trainaug.methods.linear_robustness.proximal import (
    ProximalGradient,
    RegularisationPath,
    regularisation_path,
)
from trainaug.methods.linear_robustness.robustness import (
    Certificate,
    certificate,
    robust_error,
    robust_radius,
    signed_rows,
    worst_case_margin,
    worst_case_perturbation,
)
from trainaug.methods.linear_robustness.steepest_descent import (
    Path,
    SteepestDescent,
    StepRule,
    steepest_descent_paths,
    steepest_direction,
)
from trainaug.norms import (
    NORMS,
    FourierNorm,
    Norm,
    PlainNorm,
    dual,
    dual_vector,
    norm,
    project,
    prox,
)

__all__ = [
    "NORMS",
    "Certificate",
    "CircularConvLinear",
    "DeepLinear",
    "Enclosure",
    "FourierNorm",
    "LinearClassifier",
    "MaxMargin",
    "NetworkPath",
    "Norm",
    "NotSeparableError",
    "Path",
    "PlainNorm",
    "ProximalGradient",
    "RegularisationPath",
    "SolverFailedError",
    "SteepestDescent",
    "StepRule",
    "adversarial_paths",
    "certificate",
    "convolutional_paths",
    "dense_paths",
    "dual",
    "dual_vector",
    "enclosure",
    "max_margin",
    "norm",
    "project",
    "prox",
    "regularisation_path",
    "robust_error",
    "robust_radius",
    "second_solver",
    "signed_rows",
    "steepest_descent_paths",
    "steepest_direction",
    "worst_case_margin",
    "worst_case_perturbation",
]
