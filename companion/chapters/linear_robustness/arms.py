"""The arms of chapter 6: one for each data set and settings, so that a seed runs each once."""

from __future__ import annotations

from typing import NamedTuple

from trainaug.methods.linear_robustness import PlainNorm, StepRule

__all__ = [
    "ADVERSARIAL",
    "CLASSIFIERS",
    "DESCENTS",
    "EXACT",
    "NETWORKS",
    "OPTIMISERS",
    "REGULARISED",
    "STEP_SIZES",
    "Descent",
    "descent_arm",
]

OPTIMISERS: dict[str, PlainNorm] = {"coordinate": "l1", "gradient": "l2", "sign": "linf"}
EXACT = {  # by data set
    "gaussian": "gaussian_max_margin",
    "digits": "digits_max_margin",
    "fashion_mnist": "fashion_max_margin",
}


class Descent(NamedTuple):
    """What an arm of steepest descent runs."""

    optimiser: str
    data: str
    step_size: float = 1.0  # multiple of the theorem's step 1/B^2
    rule: StepRule = "log_loss"  # or a constant step on the mean loss


DESCENTS = {
    "gaussian_coordinate": Descent("coordinate", "gaussian"),
    "gaussian_gradient": Descent("gradient", "gaussian"),
    "gaussian_sign": Descent("sign", "gaussian"),
    "digits_coordinate": Descent("coordinate", "digits"),
    "digits_coordinate_step025": Descent("coordinate", "digits", step_size=0.25),
    "digits_coordinate_step050": Descent("coordinate", "digits", step_size=0.5),
    "digits_coordinate_step200": Descent("coordinate", "digits", step_size=2.0),
    "digits_gradient": Descent("gradient", "digits"),
    "digits_sign": Descent("sign", "digits"),
    "fashion_coordinate": Descent("coordinate", "fashion_mnist"),
    "fashion_gradient": Descent("gradient", "fashion_mnist"),
    "fashion_sign": Descent("sign", "fashion_mnist"),
    "gaussian_coordinate_constant": Descent("coordinate", "gaussian", rule="constant"),
    "gaussian_gradient_constant": Descent("gradient", "gaussian", rule="constant"),
    "gaussian_sign_constant": Descent("sign", "gaussian", rule="constant"),
}
STEP_SIZES = tuple(row.step_size for row in DESCENTS.values() if row.step_size != 1.0)
REGULARISED = {"gaussian": "gaussian_regularised", "digits": "digits_regularised"}
NETWORKS = {  # by kind and data set
    ("convolutional", "gaussian"): "gaussian_convolutional",
    ("dense", "gaussian"): "gaussian_dense",
    ("convolutional", "digits"): "digits_convolutional",
    ("dense", "digits"): "digits_dense",
}
ADVERSARIAL = {"gaussian": "gaussian_adversarial", "digits": "digits_adversarial"}
CLASSIFIERS = {"cnn": "fashion_cnn", "mlp": "fashion_mlp"}  # by model

_DESCENT_ARMS = {row: arm for arm, row in DESCENTS.items()}


def descent_arm(
    optimiser: str, data: str, step_size: float = 1.0, rule: StepRule = "log_loss"
) -> str:
    """Return the arm that runs an optimiser; a KeyError if none does."""
    return _DESCENT_ARMS[Descent(optimiser, data, step_size, rule)]
