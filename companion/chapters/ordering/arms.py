"""The arms of chapter 4: what each trains, whose learning rate it has, and how that was tuned.

*The source* is the thesis (Simionescu 2022) with its released code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from companion.chapters.ordering.orders import Orders, run_orders
from companion.chapters.ordering.scores import Selection, Timing, run_selection, run_timing
from companion.chapters.ordering.train import FashionTraining, Training, run_training, train_arm
from companion.lab.arms import Arm, Tuned, arm
from companion.lab.arms import Profile as BaseProfile
from companion.lab.tune import Search

__all__ = ["COUNTS", "PROBLEMS", "SCORES", "SEARCHES", "Profile", "arms"]

SCORES = ("min_loss", "delta_abs", "delta_target")  # one of each kind in the source
PROBLEMS = ("digits", "fashion_mnist")
COUNTS = (2, 4, 16)
STEP_LENGTHS = (
    0.015, 0.03, 0.06, 0.09, 0.12, 0.18, 0.25, 0.35, 0.5, 0.7, 1.0, 2.0, 4.0, 8.0,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Profile(BaseProfile):
    """How much of chapter 4 is run; the defaults are *standard*.

    Attributes:
        seeds: Seeds of the trained headline arms and of what the scores select. A seed draws the
            parts, the initial weights and the orders.
        order_seeds: Seeds of the exhaustive study of one epoch.
        later_seeds: Seeds of the exhaustive study of later epochs.
        extended_seeds: Seeds of the extended arms.
        order_epochs: Epochs of the study of later epochs, which replays each from four states.
        timing_blocks: Interleaved blocks of the timing.
    """

    seeds: int = 36
    order_seeds: int = 20
    later_seeds: int = 0
    extended_seeds: int = 0
    order_epochs: int = 8
    timing_blocks: int = 20


def trained(name: str, settings: Training, seeds: str, seconds: float, *, lr: str) -> Arm:
    """Make an arm that trains at the learning rate which was tuned for the arm ``lr``."""
    return arm(name, settings, run_training, seeds, seconds, tuned={"lr": lr}, version=2)


def arms(profile: Profile) -> list[Arm]:
    """List the arms of the chapter at the sizes of a profile."""
    fashion = FashionTraining(data="fashion_mnist")
    epochs = profile.order_epochs
    # fmt: off
    return [
        # random reshuffling and three scores: at its learning rate, and at their own
        trained("digits_random", Training(), "seeds", 0.3, lr="digits_random"),
        trained("digits_min_loss", Training(order="min_loss"), "seeds", 0.35, lr="digits_random"),
        trained("digits_min_loss_tuned", Training(order="min_loss"), "seeds", 0.35, lr="digits_min_loss_tuned"),
        trained("digits_delta_abs", Training(order="delta_abs"), "seeds", 0.75, lr="digits_random"),
        trained("digits_delta_abs_tuned", Training(order="delta_abs"), "seeds", 0.75, lr="digits_delta_abs_tuned"),
        trained("digits_delta_target", Training(order="delta_target"), "seeds", 0.75, lr="digits_random"),
        trained("digits_delta_target_tuned", Training(order="delta_target"), "seeds", 0.75, lr="digits_delta_target_tuned"),
        trained("fashion_mnist_random", fashion, "seeds", 0.9, lr="fashion_mnist_random"),
        trained("fashion_mnist_min_loss", replace(fashion, order="min_loss"), "seeds", 1.05, lr="fashion_mnist_random"),
        trained("fashion_mnist_min_loss_tuned", replace(fashion, order="min_loss"), "seeds", 1.05, lr="fashion_mnist_min_loss_tuned"),
        trained("fashion_mnist_delta_abs", replace(fashion, order="delta_abs"), "seeds", 2.25, lr="fashion_mnist_random"),
        trained("fashion_mnist_delta_abs_tuned", replace(fashion, order="delta_abs"), "seeds", 2.25, lr="fashion_mnist_delta_abs_tuned"),
        trained("fashion_mnist_delta_target", replace(fashion, order="delta_target"), "seeds", 2.25, lr="fashion_mnist_random"),
        trained("fashion_mnist_delta_target_tuned", replace(fashion, order="delta_target"), "seeds", 2.25, lr="fashion_mnist_delta_target_tuned"),
        # other scores, numbers of candidates, networks, pacings, fixed batches
        trained("digits_max_loss", Training(order="max_loss"), "extended_seeds", 0.35, lr="digits_random"),
        trained("digits_delta_rel", Training(order="delta_rel"), "extended_seeds", 0.75, lr="digits_random"),
        trained("digits_grad_align", Training(order="grad_align"), "extended_seeds", 0.75, lr="digits_random"),
        trained("digits_min_loss_2", Training(order="min_loss", candidates=2), "extended_seeds", 0.219, lr="digits_random"),
        trained("digits_min_loss_4", Training(order="min_loss", candidates=4), "extended_seeds", 0.262, lr="digits_random"),
        trained("digits_min_loss_16", Training(order="min_loss", candidates=16), "extended_seeds", 0.525, lr="digits_random"),
        trained("digits_delta_abs_2", Training(order="delta_abs", candidates=2), "extended_seeds", 0.469, lr="digits_random"),
        trained("digits_delta_abs_4", Training(order="delta_abs", candidates=4), "extended_seeds", 0.562, lr="digits_random"),
        trained("digits_delta_abs_16", Training(order="delta_abs", candidates=16), "extended_seeds", 1.125, lr="digits_random"),
        trained("digits_delta_target_2", Training(order="delta_target", candidates=2), "extended_seeds", 0.469, lr="digits_random"),
        trained("digits_delta_target_4", Training(order="delta_target", candidates=4), "extended_seeds", 0.562, lr="digits_random"),
        trained("digits_delta_target_16", Training(order="delta_target", candidates=16), "extended_seeds", 1.125, lr="digits_random"),
        trained("digits_min_loss_resampled", Training(order="min_loss", pool="resampled"), "extended_seeds", 1.2, lr="digits_random"),
        trained("digits_random_more", Training(order="random_more"), "extended_seeds", 0.3, lr="digits_random"),
        trained("fashion_mnist_random_more", replace(fashion, order="random_more"), "extended_seeds", 0.9, lr="fashion_mnist_random"),
        trained("digits_linear_random", Training(model="linear"), "extended_seeds", 0.24, lr="digits_linear_random"),
        trained("digits_linear_min_loss", Training(model="linear", order="min_loss"), "extended_seeds", 0.28, lr="digits_linear_random"),
        trained("digits_linear_delta_abs", Training(model="linear", order="delta_abs"), "extended_seeds", 0.6, lr="digits_linear_random"),
        trained("digits_linear_delta_target", Training(model="linear", order="delta_target"), "extended_seeds", 0.6, lr="digits_linear_random"),
        trained("digits_cnn_random", Training(model="cnn"), "extended_seeds", 1.2, lr="digits_cnn_random"),
        trained("digits_cnn_min_loss", Training(model="cnn", order="min_loss"), "extended_seeds", 1.4, lr="digits_cnn_random"),
        trained("digits_cnn_delta_abs", Training(model="cnn", order="delta_abs"), "extended_seeds", 3, lr="digits_cnn_random"),
        trained("digits_cnn_delta_target", Training(model="cnn", order="delta_target"), "extended_seeds", 3, lr="digits_cnn_random"),
        trained("digits_cnn_bn_random", Training(model="cnn_bn"), "extended_seeds", 1.5, lr="digits_cnn_bn_random"),
        trained("digits_cnn_bn_min_loss", Training(model="cnn_bn", order="min_loss"), "extended_seeds", 1.75, lr="digits_cnn_bn_random"),
        trained("digits_cnn_bn_delta_abs", Training(model="cnn_bn", order="delta_abs"), "extended_seeds", 3.75, lr="digits_cnn_bn_random"),
        trained("digits_cnn_bn_delta_target", Training(model="cnn_bn", order="delta_target"), "extended_seeds", 3.75, lr="digits_cnn_bn_random"),
        trained("paced_short_random", replace(fashion, steps=32), "extended_seeds", 1, lr="paced_short_random"),
        trained("paced_short_ascending", replace(fashion, order="ascending", steps=32), "extended_seeds", 1, lr="paced_short_ascending"),
        trained("paced_short_descending", replace(fashion, order="descending", steps=32), "extended_seeds", 1, lr="paced_short_descending"),
        trained("paced_short_random_list", replace(fashion, order="random_list", steps=32), "extended_seeds", 1, lr="paced_short_random_list"),
        trained("paced_noisy_random", replace(fashion, noise=0.4), "extended_seeds", 1, lr="paced_noisy_random"),
        trained("paced_noisy_ascending", replace(fashion, order="ascending", noise=0.4), "extended_seeds", 1, lr="paced_noisy_ascending"),
        trained("paced_noisy_descending", replace(fashion, order="descending", noise=0.4), "extended_seeds", 1, lr="paced_noisy_descending"),
        trained("paced_noisy_random_list", replace(fashion, order="random_list", noise=0.4), "extended_seeds", 1, lr="paced_noisy_random_list"),
        trained("units_fixed", Training(model="linear", order="fixed", steps=640), "extended_seeds", 2, lr="units_fixed"),
        trained("units_grab", Training(model="linear", order="grab", steps=640), "extended_seeds", 2, lr="units_grab"),
        # every order of six batches: the source's kind of network at the learning rate of the
        # best mean in pilots, and an MLP at several, with the source's momentum and without
        arm("orders_cnn_bn", Orders(model="cnn_bn", lr=0.1), run_orders, "order_seeds", 1.8, version=3),
        arm("orders_mlp_lr005", Orders(lr=0.05), run_orders, "order_seeds", 0.2, version=2),
        arm("orders_mlp_plain_lr005", Orders(lr=0.05, momentum=0.0), run_orders, "order_seeds", 0.2, version=2),
        arm("orders_mlp_lr010", Orders(lr=0.1), run_orders, "order_seeds", 0.2, version=2),
        arm("orders_mlp_plain_lr010", Orders(lr=0.1, momentum=0.0), run_orders, "order_seeds", 0.2, version=2),
        arm("orders_mlp_lr020", Orders(lr=0.2), run_orders, "order_seeds", 0.2, version=2),
        arm("orders_mlp_plain_lr020", Orders(lr=0.2, momentum=0.0), run_orders, "order_seeds", 0.2, version=2),
        # the same epoch by epoch
        arm("epochs_cnn_bn", Orders(model="cnn_bn", lr=0.1, epochs=epochs), run_orders, "later_seeds", 1.8 * (4 * epochs - 2), version=3),
        arm("selection", Selection(), run_selection, "seeds", 0.15, tuned={"lr": "digits_random"}, version=2),
        arm("timing_digits", Timing(), run_timing, "timing_blocks", 2.0, tuned={"lr": "digits_random"}, deterministic=False),
        arm("timing_fashion_mnist", Timing(data="fashion_mnist"), run_timing, "timing_blocks", 2.0, tuned={"lr": "fashion_mnist_random"}, deterministic=False),
    ]
    # fmt: on


def score_training(settings: Training, seed: int) -> float:
    """Score a learning rate by what its arm is meant to show, on the validation part.

    Arms with fixed batches are scored by their training loss, paced ones by their accuracy, all
    others by minus the logarithm of the steps to the target.
    """
    trained = train_arm(settings, seed)
    if settings.order in ("fixed", "grab"):
        return -math.log(trained.train_loss[-1])
    if settings.steps == 32 or settings.noise > 0:
        return trained.accuracy[-1]
    return -math.log(trained.reached(settings.target_accuracy) or settings.steps)


def searches(chosen: Tuned) -> Sequence[Search[Training]]:
    """List the searches of every arm with its own learning rate, all on the same grid."""
    return [
        Search(each.name, each.settings, "lr", STEP_LENGTHS, score_training)
        for each in arms(Profile())
        if each.tuned.get("lr") == each.name and isinstance(each.settings, Training)
    ]


SEARCHES = (searches,)
