"""The arms of chapter 2: what each trains and measures, and whose tuned values it has.

In a *snooze* examples of small loss sleep for some epochs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from companion.chapters.gradient_clustering.features import Features, run_features
from companion.chapters.gradient_clustering.grids import (
    RATES,
    SWEPT_RATES,
    SWEPT_TAUS,
    TAUS,
    TEACHERS,
)
from companion.chapters.gradient_clustering.speed import (
    HalfCopies,
    MostlyCopies,
    Sampling,
    WrongLabels,
    counts_of_snooze,
    run_sampling,
    train_sampler,
)
from companion.chapters.gradient_clustering.theory import (
    Departures,
    Enumeration,
    run_departures,
    run_enumeration,
)
from companion.chapters.gradient_clustering.timing import (
    ResNetTiming,
    SamplerTiming,
    Timing,
    run_sampler_timing,
    run_timing,
)
from companion.chapters.gradient_clustering.trajectory import (
    CifarTrajectory,
    FashionTrajectory,
    Trajectory,
    run_trajectory,
)
from companion.lab.arms import Arm, Tuned, arm
from companion.lab.arms import Profile as BaseProfile
from companion.lab.tune import Search, Trial, choose, mean_curve
from trainaug.training.loop import NonFiniteLossError

__all__ = ["CHOICE", "LEARNING_RATES", "SEARCHES", "THRESHOLDS", "Profile", "arms"]

LEARNING_RATES = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
THRESHOLDS = (0.125, 0.25, 0.5, 1.0)  # of snoozing, as multiples of the mean loss


@dataclass(frozen=True, kw_only=True)
class Profile(BaseProfile):
    """How much of chapter 2 is run; the defaults are *standard*.

    Attributes:
        seeds: Seeds of the headline arms that measure variance. A seed draws the parts, the initial
            weights and the order.
        speed_seeds: Seeds of the samplers' training runs.
        extended_seeds: Seeds of the extended arms.
        cifar_seeds: Seeds of the paper's network on CIFAR-10, for a GPU.
        timing_blocks: Interleaved blocks of the timings.
    """

    seeds: int = 6
    speed_seeds: int = 26
    extended_seeds: int = 0
    cifar_seeds: int = 0
    timing_blocks: int = 20


def followed(name: str, settings: Trajectory, seeds: str, seconds: float) -> Arm:
    """Make an arm that measures variances along ordinary SGD."""
    return arm(name, settings, run_trajectory, seeds, seconds, version=2)


def featured(name: str, settings: Features, seeds: str, seconds: float) -> Arm:
    """Make an arm that trains a grid of random features."""
    return arm(name, settings, run_features, seeds, seconds, version=2)


def sampled(name: str, settings: Sampling, seeds: str, seconds: float, **tuned: str) -> Arm:
    """Make an arm that trains with a sampler; ``tuned``: by setting, the arm whose value it takes."""
    return arm(name, settings, run_sampling, seeds, seconds, tuned=tuned, version=2)


def arms(profile: Profile) -> list[Arm]:
    """List the arms of the chapter at the sizes of a profile."""
    digits = Trajectory()
    fashion = FashionTrajectory(data="fashion", num_train=2000, refresh=250, steps=1500)
    conv = replace(fashion, model="cnn", num_train=1000)
    # the paper's network and schedule
    cifar = CifarTrajectory(
        data="cifar10", model="resnet8", num_train=45_000, lr=0.01, momentum=0.9, batch=128,
        clusters=128, steps=80_000, refresh=20_000, drop=0.1, measured=5000,
    )  # fmt: skip
    grid = Features(
        taus=tuple(TAUS), lrs=tuple(RATES), teachers=tuple(TEACHERS), copies=(0.0,), steps=5000
    )
    sweep = Features(
        taus=tuple(SWEPT_TAUS), lrs=tuple(SWEPT_RATES), copies=(0.0,), steps=5000, curves=True
    )
    whole = Sampling.usual()
    half = HalfCopies.usual(copies=0.5)
    most = MostlyCopies.usual(copies=0.9)
    wrong = WrongLabels.usual(noise=0.1)  # the negative control
    # fmt: off
    return [
        # variance along ordinary SGD, without copies and with 90 per cent
        followed("digits_mlp_0", digits, "seeds", 4.5),
        followed("digits_mlp_90", replace(digits, copies=0.9), "seeds", 4.5),
        followed("fashion_mlp_0", fashion, "seeds", 6.8),
        followed("fashion_mlp_90", replace(fashion, copies=0.9), "seeds", 6.8),
        # other networks and copies, a smaller rate from half-way on, wrong labels, other centres
        # and rules, shifts and flips
        followed("fashion_cnn_0", conv, "extended_seeds", 20.0),
        followed("digits_mlp_50", replace(digits, copies=0.5), "extended_seeds", 4.5),
        followed("fashion_mlp_50", replace(fashion, copies=0.5), "extended_seeds", 6.8),
        followed("digits_mlp_drop", replace(digits, drop=0.1), "extended_seeds", 4.5),
        followed("digits_mlp_noise", replace(digits, noise=0.1), "extended_seeds", 4.5),
        followed("digits_mlp_variants", replace(digits, variants=True), "extended_seeds", 13.5),
        followed("fashion_mlp_drop", replace(fashion, drop=0.1), "extended_seeds", 6.8),
        followed("fashion_mlp_noise", replace(fashion, noise=0.1), "extended_seeds", 6.8),
        followed("fashion_mlp_variants", replace(fashion, variants=True), "extended_seeds", 20.4),
        followed("fashion_cnn_drop", replace(conv, drop=0.1), "extended_seeds", 20.0),
        followed("fashion_cnn_noise", replace(conv, noise=0.1), "extended_seeds", 20.0),
        followed("fashion_cnn_variants", replace(conv, variants=True), "extended_seeds", 60.0),
        followed("fashion_cnn_augment", replace(conv, augment=True, measured=500), "extended_seeds", 40.0),
        followed("fashion_mlp_augment", replace(fashion, augment=True, measured=500), "extended_seeds", 10.0),
        followed("fashion_mlp_90_augment", replace(fashion, augment=True, copies=0.9, measured=500), "extended_seeds", 10.0),
        followed("cifar10_resnet8_0", cifar, "cifar_seeds", 40_000.0),
        followed("cifar10_resnet8_noise", replace(cifar, noise=0.2), "cifar_seeds", 40_000.0),
        followed("cifar10_resnet8_90", replace(cifar, copies=0.9), "cifar_seeds", 40_000.0),
        # random features
        featured("features_rates", sweep, "seeds", 3.8),
        featured("features_copies", Features(taus=(0.1, 1.0, 2.0), lrs=(0.01,), copies=(0.0, 0.5, 0.9), steps=5000), "seeds", 5.2),
        featured("features_grid", grid, "extended_seeds", 25.0),
        # samplers; a snooze's record also has its control, which sleeps as long but at random
        sampled("speed_0_uniform", whole, "speed_seeds", 2.1, lr="speed_0_uniform"),
        sampled("speed_0_snooze", replace(whole, sampler="snooze"), "speed_seeds", 4.6, lr="speed_0_snooze", tau="speed_0_snooze", control_lr="speed_0_random"),
        sampled("speed_0_stratified", replace(whole, sampler="stratified"), "speed_seeds", 3.8, lr="speed_0_stratified"),
        sampled("speed_90_uniform", most, "speed_seeds", 2.1, lr="speed_90_uniform"),
        sampled("speed_90_snooze", replace(most, sampler="snooze"), "speed_seeds", 4.6, lr="speed_90_snooze", tau="speed_90_snooze", control_lr="speed_90_random"),
        sampled("speed_90_stratified", replace(most, sampler="stratified"), "speed_seeds", 3.8, lr="speed_90_stratified"),
        sampled("speed_0_reweighted", replace(whole, sampler="reweighted"), "extended_seeds", 2.4, lr="speed_0_reweighted", tau="speed_0_reweighted"),
        sampled("speed_90_reweighted", replace(most, sampler="reweighted"), "extended_seeds", 2.4, lr="speed_90_reweighted", tau="speed_90_reweighted"),
        sampled("speed_50_uniform", half, "extended_seeds", 2.1, lr="speed_50_uniform"),
        sampled("speed_50_snooze", replace(half, sampler="snooze"), "extended_seeds", 4.6, lr="speed_50_snooze", tau="speed_50_snooze", control_lr="speed_50_random"),
        sampled("speed_50_reweighted", replace(half, sampler="reweighted"), "extended_seeds", 2.4, lr="speed_50_reweighted", tau="speed_50_reweighted"),
        sampled("speed_50_stratified", replace(half, sampler="stratified"), "extended_seeds", 3.8, lr="speed_50_stratified"),
        sampled("speed_noise_uniform", wrong, "extended_seeds", 2.1, lr="speed_noise_uniform"),
        sampled("speed_noise_snooze", replace(wrong, sampler="snooze"), "extended_seeds", 4.6, lr="speed_noise_snooze", tau="speed_noise_snooze", control_lr="speed_noise_random"),
        arm("enumeration", Enumeration(), run_enumeration, "seeds", 0.5),
        arm("departures", Departures(), run_departures, "extended_seeds", 8.0, version=2),
        arm("timing_mlp", Timing(), run_timing, "timing_blocks", 0.7, deterministic=False),
        arm("timing_resnet8", ResNetTiming(model="resnet8"), run_timing, "timing_blocks", 1.8, deterministic=False),
        arm("timing_samplers", SamplerTiming.usual(), run_sampler_timing, "timing_blocks", 1.5, tuned={"lr": "speed_0_uniform"}, deterministic=False),
    ]
    # fmt: on


# --- tuning ---------------------------------------------------------------------------------------


def score_sampler(settings: Sampling, seed: int, counts: Sequence[int] | None = None) -> float:
    """Score settings by minus the logarithm of the examples to the target of the validation part.

    All examples count if it is never reached, or the loss is not finite.
    """
    try:
        trained = train_sampler(settings, seed, counts=counts)
    except NonFiniteLossError:
        return -math.log(settings.steps * settings.batch)
    reached = trained.reached(settings.target_accuracy, settings.window)
    return -math.log(trained.examples[-1 if reached is None else reached])


def score_control(settings: Sampling, seed: int) -> float:
    """Score the control of a snooze, with as many examples awake in each epoch as the snooze has."""
    return score_sampler(settings.control(), seed, counts_of_snooze(settings, seed))


def sampler_searches(chosen: Tuned) -> Sequence[Search[Sampling]]:
    """List the searches of every arm with its own learning rate, all on the same grid.

    A sampler with a threshold has one search for each, named ``arm@threshold``.
    """
    searches: list[Search[Sampling]] = []
    for tuned_arm in arms(Profile()):
        settings = tuned_arm.settings
        if not isinstance(settings, Sampling) or tuned_arm.tuned["lr"] != tuned_arm.name:
            continue
        variants = {tuned_arm.name: settings}
        if "tau" in tuned_arm.tuned:
            variants = {
                f"{tuned_arm.name}@{tau:g}": replace(settings, tau=tau) for tau in THRESHOLDS
            }
        for name, variant in variants.items():
            searches.append(Search(name, variant, "lr", LEARNING_RATES, score_sampler))
    return searches


def control_searches(chosen: Tuned) -> Sequence[Search[Sampling]]:
    """List the searches of the snoozes' controls, after what was chosen for the snoozes."""
    searches: list[Search[Sampling]] = []
    for tuned_arm in arms(Profile()):
        if isinstance(tuned_arm.settings, Sampling) and "control_lr" in tuned_arm.tuned:
            tuned = chosen[tuned_arm.name]
            snooze = replace(tuned_arm.settings, lr=tuned["lr"], tau=tuned["tau"])
            [name] = tuned_arm.sources("control_lr")
            searches.append(Search(name, snooze, "control_lr", LEARNING_RATES, score_control))
    return searches


def choose_thresholds(trials: Sequence[Trial]) -> dict[str, dict[str, float]]:
    """Choose the learning rate of every arm, and its threshold by the highest mean score."""
    chosen: dict[str, dict[str, float]] = {}
    scores: dict[str, float] = {}
    for name, values in choose(trials).items():
        arm_name, _, tau = name.partition("@")
        score = max(mean_curve(trials, name).values())
        if arm_name in chosen and score <= scores[arm_name]:
            continue
        chosen[arm_name] = values | ({"tau": float(tau)} if tau else {})
        scores[arm_name] = score
    return chosen


SEARCHES = (sampler_searches, control_searches)
CHOICE = choose_thresholds
