"""Former module of what is now in `trainaug.norms`; imports still work."""

from trainaug.norms import (
    NORMS,
    FourierNorm,
    Norm,
    PlainNorm,
    check_norm,
    dual,
    dual_vector,
    norm,
    project,
    prox,
)

__all__ = [
    "NORMS",
    "FourierNorm",
    "Norm",
    "PlainNorm",
    "check_norm",
    "dual",
    "dual_vector",
    "norm",
    "project",
    "prox",
]
