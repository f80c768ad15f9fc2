"""Linear classifiers made maximally robust by the optimiser's norm, with certificates.

Chapter: notebooks/06_linear_robustness.ipynb
Reference: Faghri et al., "Bridging the Gap Between Adversarial Robustness and Optimization Bias",
2021, arXiv 2102.08868; Faghri's thesis, arXiv 2112.01423.
"""

from trainaug.methods.linear_robustness.max_margin import (
    MaxMargin,
    NotSeparableError,
    SolverFailedError,
    max_margin,
    second_solver,
)
from trainaug.methods.linear_robustness.norms import (
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

__all__ = [
    "NORMS",
    "Certificate",
    "FourierNorm",
    "MaxMargin",
    "Norm",
    "NotSeparableError",
    "Path",
    "PlainNorm",
    "SolverFailedError",
    "SteepestDescent",
    "StepRule",
    "certificate",
    "dual",
    "dual_vector",
    "max_margin",
    "norm",
    "project",
    "prox",
    "robust_error",
    "robust_radius",
    "second_solver",
    "signed_rows",
    "steepest_descent_paths",
    "steepest_direction",
    "worst_case_margin",
    "worst_case_perturbation",
]
