"""Settings of chapter 3; the defaults are the *standard* profile."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Config"]


class Config(BaseModel):
    """Settings of chapter 3.

    Attributes:
        seeds: Seeds of the linear SVMs; evidence starts at 1000. A seed draws parts, initial
            weights, order and decisions.
        image_seeds: Seeds of the pictures with an Assistant and without.
        extended_seeds: Seeds of the rivals, of noise, rotation and the other variants; 0 leaves
            them out.
        large_seeds: Seeds of five times the data and of the residual network; 0 leaves them out.
        deep_seeds: Seeds of translation; 0 leaves it out.
        paper_seeds: Seeds of the papers' data, for a GPU; 0 leaves them out.
        first_seed: First seed; pilots and tuning use 0 to 99.
        timing_blocks: Interleaved blocks of the timings.
        budget: Share of an arm's updates that is trained.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seeds: int = Field(10, ge=1, le=1000)
    image_seeds: int = Field(12, ge=1, le=1000)
    extended_seeds: int = Field(0, ge=0, le=1000)
    large_seeds: int = Field(0, ge=0, le=1000)
    deep_seeds: int = Field(0, ge=0, le=1000)
    paper_seeds: int = Field(0, ge=0, le=1000)
    first_seed: int = Field(1000, ge=0)
    timing_blocks: int = Field(8, ge=1, le=1000)
    budget: float = Field(1.0, gt=0, le=1)
