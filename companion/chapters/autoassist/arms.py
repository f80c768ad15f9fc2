"""The arms of chapter 3: what each trains, whose learning rate it has, and how that was tuned.

The *Assistant* decides which examples the *Boss*, the network that is wanted, trains on. The
control of an Assistant skips as many at random.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from companion.chapters.autoassist.images import (
    CifarTraining,
    LargeTraining,
    NoisyTraining,
    ResNetTraining,
    RotatedTraining,
    Training,
    run_images,
    run_with_control,
    train_images,
)
from companion.chapters.autoassist.linear import Rules, Theorem, run_rules, run_theorem
from companion.chapters.autoassist.stations import Translation
from companion.chapters.autoassist.timing import (
    Timing,
    TranslationTiming,
    run_timing,
    run_translation_timing,
)
from companion.chapters.autoassist.translation import (
    fit_translation,
    run_translation,
    run_translation_with_control,
)
from companion.lab.arms import Arm, Tuned, arm
from companion.lab.arms import Profile as BaseProfile
from companion.lab.tune import Search, Trial, choose

__all__ = ["CHOICE", "CLEAN", "SEARCHES", "Profile", "arms"]

CLEAN = Training(data="fashion")
GRID = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16)
RESNET_GRID = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
TRANSLATION_GRID = (0.002, 0.004, 0.008)
PILOTS = {Training: (0, 1, 2), ResNetTraining: (0,)}  # seeds of tuning; others: 0, 1
TUNING_TOKENS = 700_000
CONTROL_RATES = (0.43,)  # share that controls keep while they are tuned: that of the first pilots


@dataclass(frozen=True, kw_only=True)
class Profile(BaseProfile):
    """How much of chapter 3 is run; the defaults are *standard*.

    Attributes:
        seeds: Seeds of the linear SVMs. A seed draws parts, initial weights, order and decisions.
        image_seeds: Seeds of the pictures with an Assistant and without.
        extended_seeds: Seeds of the rivals, of noise, rotation and the other variants.
        large_seeds: Seeds of five times the data and of the residual network.
        deep_seeds: Seeds of translation.
        paper_seeds: Seeds of the papers' data, for a GPU.
        timing_blocks: Interleaved blocks of the timings.
    """

    seeds: int = 10
    image_seeds: int = 12
    extended_seeds: int = 0
    large_seeds: int = 0
    deep_seeds: int = 0
    paper_seeds: int = 0
    timing_blocks: int = 8


def rules(name: str, settings: Rules, seconds: float) -> Arm:
    """Make an arm of linear SVMs with all rules on one data set."""
    return arm(name, settings, run_rules, "seeds", seconds, version=2)


def images(name: str, settings: Training, seeds: str, seconds: float, *, lr: str) -> Arm:
    """Make an arm on pictures, at the learning rate which was tuned for the arm ``lr``."""
    return arm(name, settings, run_images, seeds, seconds, tuned={"lr": lr}, version=2)


def controlled(
    name: str, settings: Training, seeds: str, seconds: float, *, lr: str, control: str
) -> Arm:
    """Make an arm on pictures with an Assistant and then its control.

    ``lr`` and ``control`` are the names under which their learning rates were tuned.
    """
    tuned = {"lr": lr, "control_lr": control}
    return arm(name, settings, run_with_control, seeds, seconds, tuned=tuned, version=2)


def translation(name: str, settings: Translation, seeds: str, seconds: float, *, lr: str) -> Arm:
    """Make an arm that translates, at the learning rate which was tuned for the arm ``lr``."""
    return arm(name, settings, run_translation, seeds, seconds, tuned={"lr": lr}, version=2)


def arms(profile: Profile) -> list[Arm]:
    """List the arms of the chapter at the sizes of a profile."""
    assist = replace(CLEAN, sampler="assist")
    noisy = NoisyTraining(data="fashion", noise=0.2)
    rotated = RotatedTraining(data="fashion", rotated=True)
    large = LargeTraining(data="fashion", num_train=50_000, steps=2400)
    resnet8 = ResNetTraining(data="fashion", model="resnet8", steps=600)
    cifar10 = CifarTraining(data="cifar10", model="resnet8", num_train=45_000, steps=30_000)
    office = Translation(data="libreoffice", assistant_lr=0.5, assistant_decay=0.1)
    iwslt14 = replace(
        office,
        data="iwslt14",
        max_words=100,
        vocabulary=10_000,
        tokens=100_000_000,
        batch_tokens=4000,
    )
    wmt14 = replace(iwslt14, data="wmt14")
    timed_office = TranslationTiming(data="libreoffice", assistant_lr=0.5, assistant_decay=0.1)
    # fmt: off
    return [
        # the linear SVM
        rules("svm_breast_cancer", Rules(), 3.5),
        rules("svm_digits", Rules(data="digits"), 2.7),
        rules("svm_fashion", Rules(data="fashion", passes=15, exact_steps=200), 6.0),
        arm("theorem", Theorem(passes=10), run_theorem, "seeds", 3.0),
        # pictures: with an Assistant and without
        images("images_0_uniform", CLEAN, "image_seeds", 11.5, lr="images_0_uniform"),
        controlled("images_0_assist", assist, "image_seeds", 24.0, lr="images_0_assist", control="images_0_random"),
        # its rivals, wrong labels, rotation, and variants of the Assistant's arm
        images("images_0_selfpaced", replace(CLEAN, sampler="selfpaced"), "extended_seeds", 12.0, lr="images_0_selfpaced"),
        images("images_0_screener", replace(CLEAN, sampler="screener"), "extended_seeds", 25.0, lr="images_0_screener"),
        images("images_0_selective", replace(CLEAN, sampler="selective"), "extended_seeds", 17.0, lr="images_0_selective"),
        images("images_0_pruned", replace(CLEAN, sampler="pruned"), "extended_seeds", 12.0, lr="images_0_pruned"),
        images("images_noise_uniform", noisy, "extended_seeds", 11.5, lr="images_noise_uniform"),
        controlled("images_noise_assist", replace(noisy, sampler="assist"), "extended_seeds", 24.0, lr="images_noise_assist", control="images_noise_random"),
        images("images_rotated_uniform", rotated, "extended_seeds", 11.5, lr="images_rotated_uniform"),
        controlled("images_rotated_assist", replace(rotated, sampler="assist"), "extended_seeds", 24.0, lr="images_rotated_assist", control="images_rotated_random"),
        images("images_0_ahead", replace(assist, ahead=20), "extended_seeds", 12.0, lr="images_0_assist"),
        images("images_0_unshuffled", replace(assist, shuffle=False), "extended_seeds", 12.0, lr="images_0_assist"),
        images("images_0_base0", replace(assist, base=0.0), "extended_seeds", 12.0, lr="images_0_assist"),
        images("images_0_base60", replace(assist, base=0.6), "extended_seeds", 12.0, lr="images_0_assist"),
        # five times the data, a residual network, and the paper's data
        images("images_large_uniform", large, "large_seeds", 24.15, lr="images_large_uniform"),
        controlled("images_large_assist", replace(large, sampler="assist"), "large_seeds", 50.4, lr="images_large_assist", control="images_large_random"),
        images("images_resnet8_uniform", resnet8, "large_seeds", 59.8, lr="images_resnet8_uniform"),
        controlled("images_resnet8_assist", replace(resnet8, sampler="assist"), "large_seeds", 124.8, lr="images_resnet8_assist", control="images_resnet8_random"),
        images("images_cifar10_uniform", cifar10, "paper_seeds", 4600.0, lr="images_resnet8_uniform"),
        controlled("images_cifar10_assist", replace(cifar10, sampler="assist"), "paper_seeds", 9600.0, lr="images_resnet8_assist", control="images_resnet8_random"),
        # translation; assist70 with seven tenths of the tokens
        translation("translation_uniform", office, "deep_seeds", 115.0, lr="translation_uniform"),
        arm("translation_assist", replace(office, sampler="assist"), run_translation_with_control, "deep_seeds", 235.0, tuned={"lr": "translation_assist", "control_lr": "translation_random"}, version=2),
        translation("translation_assist70", replace(office, sampler="assist", tokens=420_000), "deep_seeds", 95.0, lr="translation_assist"),
        translation("translation_iwslt14_uniform", iwslt14, "paper_seeds", 50_000.0, lr="translation_uniform"),
        translation("translation_iwslt14_assist", replace(iwslt14, sampler="assist"), "paper_seeds", 50_000.0, lr="translation_assist"),
        translation("translation_wmt14_uniform", wmt14, "paper_seeds", 50_000.0, lr="translation_uniform"),
        translation("translation_wmt14_assist", replace(wmt14, sampler="assist"), "paper_seeds", 50_000.0, lr="translation_assist"),
        # seconds
        arm("translation_timing", timed_office, run_translation_timing, "deep_seeds", 20.0, tuned={"lr": "translation_uniform"}, deterministic=False),
        arm("timing", Timing(data="fashion"), run_timing, "timing_blocks", 6.0, tuned={"lr": "images_0_uniform"}, deterministic=False),
    ]
    # fmt: on


def score_images(settings: Training, seed: int, keep_rates: Sequence[float] = ()) -> float:
    """Score by minus the logarithm of the examples that the Boss trains on until the target.

    A run that never reaches it, or diverges, counts with its whole budget.
    """
    try:
        trained = train_images(settings, seed, keep_rates=keep_rates)
    except FloatingPointError:  # a loss, or a metric at the end, is not finite
        return -math.log(settings.steps * settings.batch)
    first = trained.reached(settings.target, settings.smoothed)
    return -math.log(trained.examples[-1 if first is None else first])


def score_translation(settings: Translation, seed: int, keep_rates: Sequence[float] = ()) -> float:
    """Score by minus the validation loss at the end."""
    return -fit_translation(settings, seed, keep_rates=keep_rates).metrics["val/loss"]


def image_searches(chosen: Tuned) -> Sequence[Search[Training]]:
    """List the searches of arms on pictures with their own learning rate, then of controls."""
    searches: list[Search[Training]] = []
    controls: list[Search[Training]] = []
    for tuned_arm in arms(Profile()):
        settings = tuned_arm.settings
        if not isinstance(settings, Training) or tuned_arm.tuned.get("lr") != tuned_arm.name:
            continue
        grid = RESNET_GRID if isinstance(settings, ResNetTraining) else GRID
        pilots = PILOTS.get(type(settings), (0, 1))
        searches.append(Search(tuned_arm.name, settings, "lr", grid, score_images, pilots))
        if "control_lr" in tuned_arm.tuned:
            [control] = tuned_arm.sources("control_lr")
            score = partial(score_images, keep_rates=CONTROL_RATES)
            random = replace(settings, sampler="random")
            controls.append(Search(control, random, "lr", grid, score, pilots))
    return searches + controls


def translation_searches(chosen: Tuned) -> Sequence[Search[Translation]]:
    """List the searches of arms that translate, then of controls, all with the same budget."""
    searches: list[Search[Translation]] = []
    controls: list[Search[Translation]] = []
    for tuned_arm in arms(Profile()):
        name, settings = tuned_arm.name, tuned_arm.settings
        if not isinstance(settings, Translation) or tuned_arm.tuned.get("lr") != name:
            continue
        settings = replace(settings, tokens=TUNING_TOKENS)
        searches.append(Search(name, settings, "lr", TRANSLATION_GRID, score_translation, (0,)))
        if "control_lr" in tuned_arm.tuned:
            [control] = tuned_arm.sources("control_lr")
            score = partial(score_translation, keep_rates=CONTROL_RATES)
            random = replace(settings, sampler="random")
            controls.append(Search(control, random, "lr", TRANSLATION_GRID, score, (0,)))
    return searches + controls


def choose_rates(trials: Sequence[Trial]) -> dict[str, dict[str, float]]:
    """Choose the best learning rates; that of a control becomes the setting ``control_lr``."""
    controls = {each.tuned.get("control_lr") for each in arms(Profile())}
    chosen: dict[str, dict[str, float]] = {}
    for name, values in choose(trials).items():
        chosen[name] = {"control_lr": values["lr"]} if name in controls else values
    return chosen


SEARCHES = (image_searches, translation_searches)
CHOICE = choose_rates
