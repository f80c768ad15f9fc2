"""Settings of chapter 6; the defaults are the *standard* profile."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

from companion.chapters.linear_robustness.arms import STEP_SIZES

__all__ = ["DATA", "Config"]

DATA = ("gaussian", "digits", "fashion_mnist")


class Config(BaseModel):
    """Settings of chapter 6.

    Attributes:
        seeds: Number of seeds; evidence starts at 1000.
        extended_seeds: Seeds of the extended experiments: rates, regularisation,
            adversarial training, pictures.
        first_seed: First seed; pilots use 0 to 99.
        sizes: Numbers of examples of the Gaussian problems, in 100 dimensions.
        gaussian_steps: Steps of each optimiser on the Gaussian problems.
        digits_steps: Steps on pairs of digits, 60 examples in 64 dimensions.
        fashion_steps: Steps on pairs of Fashion-MNIST classes, 100 examples in 784 dimensions.
        step_sizes: Multiples of the theorem's step $1/B^2$ that coordinate descent is given in
            the ablation, on digits; each has an arm of its own.
        rate_steps: Steps of the constant schedule, Gaussian problems of 10 and 25 examples.
        path_steps: Proximal steps of the regularisation path.
        network_steps: Steps of the linear networks.
        adversarial_steps: Steps of adversarial training.
        epochs: Epochs of the picture classifiers on 10 000 Fashion-MNIST pictures.
        attack_images: Test pictures attacked.
        attack_steps: Steps of each attack.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seeds: int = Field(10, ge=1, le=1000)
    extended_seeds: int = Field(5, ge=1, le=1000)
    first_seed: int = Field(1000, ge=0)
    sizes: tuple[int, ...] = (3, 6, 10, 12, 25, 50, 100)
    gaussian_steps: int = Field(40_000, ge=100, le=1_000_000)
    digits_steps: int = Field(40_000, ge=100, le=1_000_000)
    fashion_steps: int = Field(10_000, ge=100, le=1_000_000)
    step_sizes: tuple[float, ...] = STEP_SIZES
    rate_steps: int = Field(40_000, ge=100, le=1_000_000)
    path_steps: int = Field(2_500, ge=10, le=1_000_000)
    network_steps: int = Field(5_000, ge=100, le=1_000_000)
    adversarial_steps: int = Field(10_000, ge=100, le=1_000_000)
    epochs: int = Field(2, ge=1, le=100)
    attack_images: int = Field(100, ge=10, le=10_000)
    attack_steps: int = Field(10, ge=1, le=1000)

    @field_validator("step_sizes")
    @classmethod
    def _have_arms(cls, sizes: tuple[float, ...]) -> tuple[float, ...]:
        if unnamed := [size for size in sizes if size not in STEP_SIZES]:
            known = ", ".join(map(str, STEP_SIZES))
            raise ValueError(f"no arm has the step size {unnamed[0]:g}, expected some of {known}")
        return sizes
