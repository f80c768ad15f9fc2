"""Settings of chapter 1; the defaults are the *standard* profile."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Config"]


class Config(BaseModel):
    """Settings of chapter 1.

    Attributes:
        seeds: Number of seeds of the two losses and of the ridge; evidence starts at 1000. A seed
            draws the split, the initial weights and the order.
        factorial_seeds: Seeds of the arms with free pictures, of these the first.
        extended_seeds: Seeds of the extended arms; 0 leaves them out.
        deep_seeds: Seeds of the picture CNN and of the collapse demonstration; 0 leaves them out.
        first_seed: First seed; pilots and tuning use 0 to 99.
        max_epochs: Longest training; most runs reach their plateau before.
        patience: Evaluations without a gain in validation rsum that end a run.
        batch_size: Pairs in a batch.
        timing_blocks: Interleaved blocks of the timing of the losses.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seeds: int = Field(16, ge=1, le=1000)
    factorial_seeds: int = Field(6, ge=1, le=1000)
    extended_seeds: int = Field(0, ge=0, le=1000)
    deep_seeds: int = Field(0, ge=0, le=1000)
    first_seed: int = Field(1000, ge=0)
    max_epochs: int = Field(120, ge=1, le=1000)
    patience: int = Field(10, ge=1, le=1000)
    batch_size: int = Field(128, ge=2, le=100_000)
    timing_blocks: int = Field(20, ge=1, le=1000)
