"""Settings of chapter 2; the defaults are the *standard* profile."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Config"]


class Config(BaseModel):
    """Settings of chapter 2.

    Attributes:
        seeds: Seeds of the variance of the headline arms; evidence starts at 1000. A seed draws
            the parts, the initial weights and the order.
        speed_seeds: Seeds of the samplers' training runs.
        extended_seeds: Seeds of the extended arms; 0 leaves them out.
        cifar_seeds: Seeds of the paper's network on CIFAR-10, for a GPU; 0 leaves it out.
        first_seed: First seed; pilots and tuning use 0 to 99.
        timing_blocks: Interleaved blocks of the timings.
        budget: Share of an arm's steps that is trained.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seeds: int = Field(6, ge=1, le=1000)
    speed_seeds: int = Field(26, ge=1, le=1000)
    extended_seeds: int = Field(0, ge=0, le=1000)
    cifar_seeds: int = Field(0, ge=0, le=1000)
    first_seed: int = Field(1000, ge=0)
    timing_blocks: int = Field(20, ge=1, le=1000)
    budget: float = Field(1.0, gt=0, le=1)
