"""Settings of chapter 5; the defaults are the *standard* profile."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Config"]


class Config(BaseModel):
    """Settings of chapter 5.

    Attributes:
        seeds: Seeds of the headline arms; evidence starts at 1000. A seed draws the parts, the
            initial weights, the order and the mixes.
        extended_seeds: Seeds of the extended arms; 0 leaves them out.
        deep_seeds: Seeds of ResNet-8; 0 leaves it out.
        cifar_seeds: Seeds of the source's network on CIFAR, for a GPU; 0 leaves it out.
        first_seed: First seed; pilots and tuning use 0 to 99.
        images: Test pictures that are attacked and corrupted.
        budget: Share of an arm's steps that is trained.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seeds: int = Field(24, ge=1, le=1000)
    extended_seeds: int = Field(0, ge=0, le=1000)
    deep_seeds: int = Field(0, ge=0, le=1000)
    cifar_seeds: int = Field(0, ge=0, le=1000)
    first_seed: int = Field(1000, ge=0)
    images: int = Field(300, ge=1, le=2000)
    budget: float = Field(1.0, gt=0, le=1)
