"""Settings of chapter 4; the defaults are the *standard* profile."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

from companion.experiments.ch04.arms import ORDER_LRS

__all__ = ["Config"]


class Config(BaseModel):
    """Settings of chapter 4.

    Attributes:
        seeds: Seeds of the trained headline arms and of what the scores select; evidence starts at
            1000. A seed draws the parts, the initial weights and the orders.
        order_seeds: Seeds of the exhaustive study of one epoch.
        later_seeds: Seeds of the exhaustive study of later epochs; 0 leaves it out.
        extended_seeds: Seeds of the extended arms; 0 leaves them out.
        first_seed: First seed; pilots and tuning use 0 to 99.
        order_epochs: Epochs of that study, the later ones from four states each.
        order_lrs: Step lengths at which an MLP is replayed too, with and without momentum; each
            has arms of its own.
        budget: Share of an arm's steps that is trained.
        timing_blocks: Interleaved blocks of the timing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seeds: int = Field(36, ge=1, le=1000)
    order_seeds: int = Field(20, ge=1, le=1000)
    later_seeds: int = Field(0, ge=0, le=1000)
    extended_seeds: int = Field(0, ge=0, le=1000)
    first_seed: int = Field(1000, ge=0)
    order_epochs: int = Field(8, ge=2, le=20)
    order_lrs: tuple[float, ...] = ORDER_LRS
    budget: float = Field(1.0, gt=0, le=1)
    timing_blocks: int = Field(20, ge=1, le=1000)

    @field_validator("order_lrs")
    @classmethod
    def _have_arms(cls, lrs: tuple[float, ...]) -> tuple[float, ...]:
        if unnamed := [lr for lr in lrs if lr not in ORDER_LRS]:
            known = ", ".join(map(str, ORDER_LRS))
            raise ValueError(f"no arm has the step length {unnamed[0]:g}, expected some of {known}")
        return lrs
