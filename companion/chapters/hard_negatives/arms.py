"""The arms of chapter 1: what each trains, and whose learning rate it has.

Arms named ``family_...`` are tested on new concepts, arms named ``vendor_...`` on an icon set, and
so a drawing style, that was not trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from companion.chapters.hard_negatives.problems import load_pairs
from companion.chapters.hard_negatives.ridge import Ridge, run_ridge
from companion.chapters.hard_negatives.timing import Timing, run_timing
from companion.chapters.hard_negatives.train import (
    GRUTraining,
    OrderTraining,
    Training,
    run_demonstration,
    run_training,
    train_pairs,
)
from companion.lab.arms import Arm, Tuned, arm
from companion.lab.arms import Profile as BaseProfile
from companion.lab.results import Result
from companion.lab.tune import Search

__all__ = ["SEARCHES", "Profile", "arms"]

LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
DEEP_LEARNING_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)  # a trial of these arms takes a minute
PILOT_SEEDS = (0, 1)


@dataclass(frozen=True, kw_only=True)
class Profile(BaseProfile):
    """How much of chapter 1 is run; the defaults are *standard*.

    Attributes:
        seeds: Seeds of the two losses and of the ridge regression. A seed draws the split, the
            initial weights and the order.
        factorial_seeds: Seeds of the arms whose picture embeddings have any length.
        extended_seeds: Seeds of the extended arms.
        deep_seeds: Seeds of the picture CNN and the GRU.
        max_epochs: Longest training; most runs reach their plateau before.
        patience: Evaluations without a gain in validation rsum that end a run.
        timing_blocks: Interleaved blocks of the timing of the losses.
    """

    seeds: int = 16
    factorial_seeds: int = 6
    extended_seeds: int = 0
    deep_seeds: int = 0
    max_epochs: int = 120
    patience: int = 10
    timing_blocks: int = 20


def trained(
    name: str,
    settings: Training,
    seeds: str,
    seconds: float,
    *,
    lr: str,
    run: Callable[[Training, int], Result] = run_training,
) -> Arm:
    """Make an arm that trains at the learning rate which was tuned for the arm ``lr``."""
    return arm(name, settings, run, seeds, seconds, tuned={"lr": lr}, version=2)


def arms(profile: Profile) -> list[Arm]:
    """List the arms of the chapter at the sizes of a profile."""
    epochs, patience = profile.max_epochs, profile.patience
    family = Training(max_epochs=epochs, patience=patience)  # new concepts
    vendor = replace(family, split="vendor")  # a new drawing style
    # these cost much, so that their longest training is shorter
    order = OrderTraining(score="order", max_epochs=min(epochs, 40), patience=patience)
    cnn = replace(family, encoder="cnn", max_epochs=min(epochs, 30))
    gru = GRUTraining(captions="gru", max_epochs=min(epochs, 20), patience=patience)
    # the seconds are those of 54 epochs, a tenth of them for setting up and scoring
    part = min(1.0, 0.1 + epochs / 60)
    # fmt: off
    return [
        # two losses by two splits, and with picture embeddings of any length
        trained("family_sum", family, "seeds", 5.5 * part, lr="family_sum"),
        trained("family_max", replace(family, loss="max"), "seeds", 5.5 * part, lr="family_max"),
        trained("vendor_sum", vendor, "seeds", 11.5 * part, lr="vendor_sum"),
        trained("vendor_max", replace(vendor, loss="max"), "seeds", 11.5 * part, lr="vendor_max"),
        trained("family_product_sum", replace(family, score="product"), "factorial_seeds", 5.5 * part, lr="family_product_sum"),
        trained("family_product_max", replace(family, score="product", loss="max"), "factorial_seeds", 5.5 * part, lr="family_product_max"),
        trained("vendor_product_sum", replace(vendor, score="product"), "factorial_seeds", 11.5 * part, lr="vendor_product_sum"),
        trained("vendor_product_max", replace(vendor, score="product", loss="max"), "factorial_seeds", 11.5 * part, lr="vendor_product_max"),
        # crops, the order violation, fewer negatives, siblings, clipping
        trained("vendor_fixed_sum", replace(vendor, crops=False), "extended_seeds", 13 * part, lr="vendor_fixed_sum"),
        trained("family_order_sum", order, "extended_seeds", 40 * part, lr="family_order_sum"),
        trained("vendor_negatives_2_sum", replace(vendor, negatives=2), "extended_seeds", 15 * part, lr="vendor_sum"),
        trained("vendor_negatives_8_sum", replace(vendor, negatives=8), "extended_seeds", 15 * part, lr="vendor_sum"),
        trained("vendor_negatives_32_sum", replace(vendor, negatives=32), "extended_seeds", 15 * part, lr="vendor_sum"),
        trained("family_siblings_negatives_sum", replace(family, siblings="negatives"), "extended_seeds", 8 * part, lr="family_sum"),
        trained("family_siblings_masked_sum", replace(family, siblings="masked"), "extended_seeds", 8 * part, lr="family_sum"),
        trained("family_clip_sum_sum", replace(family, clip=2.0, reduction="sum"), "extended_seeds", 8 * part, lr="family_sum"),
        trained("family_clip_mean_sum", replace(family, clip=2.0), "extended_seeds", 8 * part, lr="family_sum"),
        trained("vendor_fixed_max", replace(vendor, loss="max", crops=False), "extended_seeds", 13 * part, lr="vendor_fixed_max"),
        trained("family_order_max", replace(order, loss="max"), "extended_seeds", 40 * part, lr="family_order_max"),
        trained("vendor_negatives_2_max", replace(vendor, loss="max", negatives=2), "extended_seeds", 15 * part, lr="vendor_max"),
        trained("vendor_negatives_8_max", replace(vendor, loss="max", negatives=8), "extended_seeds", 15 * part, lr="vendor_max"),
        trained("vendor_negatives_32_max", replace(vendor, loss="max", negatives=32), "extended_seeds", 15 * part, lr="vendor_max"),
        trained("family_siblings_negatives_max", replace(family, loss="max", siblings="negatives"), "extended_seeds", 8 * part, lr="family_max"),
        trained("family_siblings_masked_max", replace(family, loss="max", siblings="masked"), "extended_seeds", 8 * part, lr="family_max"),
        trained("family_clip_sum_max", replace(family, loss="max", clip=2.0, reduction="sum"), "extended_seeds", 8 * part, lr="family_max"),
        trained("family_clip_mean_max", replace(family, loss="max", clip=2.0), "extended_seeds", 8 * part, lr="family_max"),
        # between the sum and the maximum: the average, and the sum first
        trained("vendor_average", replace(vendor, loss="average"), "extended_seeds", 13 * part, lr="vendor_average"),
        trained("vendor_warmup_1", replace(vendor, loss="max", warmup=1), "extended_seeds", 13 * part, lr="vendor_max"),
        trained("vendor_warmup_5", replace(vendor, loss="max", warmup=5), "extended_seeds", 13 * part, lr="vendor_max"),
        trained("vendor_warmup_1_no_reset", replace(vendor, loss="max", warmup=1, reset=False), "extended_seeds", 13 * part, lr="vendor_max", run=run_demonstration),
        # encoders that are trained from scratch; those of the maximum may collapse
        trained("family_cnn_sum", cnn, "deep_seeds", 60 * part, lr="family_cnn_sum"),
        trained("family_cnn_max", replace(cnn, loss="max"), "deep_seeds", 60 * part, lr="family_cnn_max", run=run_demonstration),
        trained("family_cnn_warmup_3", replace(cnn, loss="max", warmup=3), "deep_seeds", 60 * part, lr="family_cnn_warmup_3"),
        trained("family_gru_sum", gru, "deep_seeds", 40 * part, lr="family_gru_sum"),
        trained("family_gru_max", replace(gru, loss="max"), "deep_seeds", 40 * part, lr="family_gru_max", run=run_demonstration),
        arm("family_ridge", Ridge(), run_ridge, "seeds", 4.5),
        arm("timing", Timing(), run_timing, "timing_blocks", 1.5, deterministic=False),
    ]
    # fmt: on


def score_training(settings: Training, seed: int) -> float:
    """Score a learning rate by the best validation rsum."""
    return max(train_pairs(settings, load_pairs(settings, seed), seed).validation)


def searches(chosen: Tuned) -> Sequence[Search[Training]]:
    """List the searches of every arm with its own learning rate, all with the same seeds."""
    return [
        Search(
            each.name,
            each.settings,
            "lr",
            DEEP_LEARNING_RATES if each.seeds == "deep_seeds" else LEARNING_RATES,
            score_training,
            PILOT_SEEDS,
        )
        for each in arms(Profile())
        if each.tuned.get("lr") == each.name and isinstance(each.settings, Training)
    ]


SEARCHES = (searches,)
