"""The arms of chapter 6: what each solves or trains, and how its learning rate was tuned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from companion.chapters.linear_robustness.adversarial import (
    FRACTIONS,
    Adversarial,
    run_adversarial,
    score_adversarial,
)
from companion.chapters.linear_robustness.descent import (
    OPTIMISERS,
    ConstantCoordinateDescent,
    ConstantGradientDescent,
    ConstantSignDescent,
    CoordinateDescent,
    Descent,
    GradientDescent,
    SignDescent,
    run_descent,
    run_descents,
)
from companion.chapters.linear_robustness.exact import Exact, run_exact
from companion.chapters.linear_robustness.networks import (
    DEPTHS,
    Convolutional,
    Dense,
    run_convolutional,
    run_dense,
    score_convolutional,
    score_dense,
)
from companion.chapters.linear_robustness.penalty import Regularised, run_regularised
from companion.chapters.linear_robustness.pictures import (
    CnnAttack,
    MlpAttack,
    PictureAttack,
    run_pictures,
    score_pictures,
)
from companion.chapters.linear_robustness.problems import ProblemSettings
from companion.lab.arms import Arm, S, Tuned, arm
from companion.lab.arms import Profile as BaseProfile
from companion.lab.tune import Search, Trial, choose

__all__ = [
    "ADVERSARIAL",
    "CHOICE",
    "CLASSIFIERS",
    "EXACT",
    "NETWORKS",
    "REGULARISED",
    "SEARCHES",
    "Profile",
    "arms",
    "descent_arm",
    "percent_curve",
    "share_curve",
]

# names under which tuning keeps a learning rate: one for each depth, one for each radius
CONVOLUTIONAL_RATES = ("convolutional-1", "convolutional-2", "convolutional-3", "convolutional-4")
ADVERSARIAL_RATES = (
    "adversarial-0", "adversarial-0.5", "adversarial-0.8", "adversarial-0.9", "adversarial-0.95",
    "adversarial-0.99", "adversarial-1.05",
)  # fmt: skip
NETWORK_GRID = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
ADVERSARIAL_GRID = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
PICTURE_GRID = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
# a margin that is not positive counts as this share of the best one on the grid
WORST_SHARE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Profile(BaseProfile):
    """How much of chapter 6 is run; the defaults are *standard*.

    Attributes:
        seeds: Seeds of the exact solutions, the descents and the networks. A seed draws the
            problems.
        extended_seeds: Seeds of the constant steps, the penalties, adversarial training and
            pictures.
        sizes: Numbers of examples of the Gaussian problems, in 100 dimensions.
        gaussian_steps: Steps of each optimiser on the Gaussian problems.
        digits_steps: Steps on pairs of digits, 60 examples in 64 dimensions.
        fashion_steps: Steps on pairs of Fashion-MNIST classes, 100 examples in 784 dimensions.
        rate_steps: Steps of the constant rule, Gaussian problems of 10 and 25 examples.
        path_steps: Proximal steps of the regularisation path.
        network_steps: Steps of the linear networks.
        adversarial_steps: Steps of adversarial training.
        epochs: Passes of the picture classifiers over 10 000 Fashion-MNIST pictures.
        attack_images: Test pictures attacked.
        attack_steps: Steps of each attack.
    """

    seeds: int = 10
    extended_seeds: int = 5
    sizes: tuple[int, ...] = (3, 6, 10, 12, 25, 50, 100)
    gaussian_steps: int = 40_000
    digits_steps: int = 40_000
    fashion_steps: int = 10_000
    rate_steps: int = 40_000
    path_steps: int = 2_500
    network_steps: int = 5_000
    adversarial_steps: int = 10_000
    epochs: int = 2
    attack_images: int = 100
    attack_steps: int = 10


def descent(name: str, settings: Descent, seeds: str, seconds: float) -> Arm:
    """Make an arm of steepest descent; ``seconds`` are those of 10 000 steps."""
    seconds *= settings.steps / 10_000
    # pictures of several seeds exceed the caches: together they take longer than one by one
    together = None if settings.data == "fashion_mnist" else run_descents
    return arm(name, settings, run_descent, seeds, seconds, together=together)


def regularised(name: str, settings: Regularised) -> Arm:
    """Make an arm of regularisation paths."""
    return arm(name, settings, run_regularised, "extended_seeds", 4.0 * settings.steps / 1000)


def convolutional(name: str, settings: Convolutional) -> Arm:
    """Make an arm of convolutional networks, each depth at its own learning rate."""
    seconds = 7.0 * settings.steps / 10_000
    rates = {"lr": CONVOLUTIONAL_RATES}
    return arm(name, settings, run_convolutional, "seeds", seconds, tuned=rates, version=2)


def dense(name: str, settings: Dense) -> Arm:
    """Make an arm of fully connected networks."""
    seconds = 2.5 * settings.steps / 10_000
    return arm(name, settings, run_dense, "seeds", seconds, tuned={"lr": "dense-2"}, version=2)


def adversarial(name: str, settings: Adversarial) -> Arm:
    """Make an arm of adversarial training, each radius at its own learning rate."""
    seconds = 3.5 * settings.steps / 10_000
    rates = {"lr": ADVERSARIAL_RATES}
    return arm(name, settings, run_adversarial, "extended_seeds", seconds, tuned=rates)


def pictures(name: str, settings: PictureAttack, *, epoch: float, attack: float, lr: str) -> Arm:
    """Make an arm of a picture classifier.

    ``epoch`` and ``attack`` are the seconds of one epoch, and of ten steps of an attack on 100
    pictures.
    """
    # by band, on all frequencies and in the box; in l-inf without and with the box; in l2
    attacks = (settings.bands + 2) * len(settings.eps) + 2 * len(settings.linf_eps) + 1
    work = settings.images * settings.steps / 1000
    seconds = settings.epochs * epoch + attacks * attack * work + 3
    tuned = {"lr": lr}
    return arm(name, settings, run_pictures, "extended_seeds", seconds, tuned=tuned, version=2)


def arms(profile: Profile) -> list[Arm]:
    """List the arms of the chapter at the sizes of a profile."""
    gaussian, digits, fashion = profile.gaussian_steps, profile.digits_steps, profile.fashion_steps
    sizes, rate, path = profile.sizes, profile.rate_steps, profile.path_steps
    network, attacked = profile.network_steps, profile.adversarial_steps
    epochs, images, steps = profile.epochs, profile.attack_images, profile.attack_steps
    # fmt: off
    return [
        # the largest robust radius, exactly
        arm("gaussian_max_margin", Exact(sizes=sizes), run_exact, "seeds", 3.0),
        arm("digits_max_margin", Exact(data="digits"), run_exact, "seeds", 1.5),
        arm("fashion_max_margin", Exact(data="fashion_mnist"), run_exact, "seeds", 11.0),
        # three optimisers with the theorem's step
        descent("gaussian_coordinate", CoordinateDescent(sizes=sizes, steps=gaussian), "seeds", 0.7),
        descent("gaussian_gradient", GradientDescent(sizes=sizes, steps=gaussian), "seeds", 0.7),
        descent("gaussian_sign", SignDescent(sizes=sizes, steps=gaussian), "seeds", 0.7),
        descent("digits_coordinate", CoordinateDescent(data="digits", steps=digits), "seeds", 0.5),
        descent("digits_gradient", GradientDescent(data="digits", steps=digits), "seeds", 0.5),
        descent("digits_sign", SignDescent(data="digits", steps=digits), "seeds", 0.5),
        descent("fashion_coordinate", CoordinateDescent(data="fashion_mnist", steps=fashion), "seeds", 1.7),
        descent("fashion_gradient", GradientDescent(data="fashion_mnist", steps=fashion), "seeds", 1.7),
        descent("fashion_sign", SignDescent(data="fashion_mnist", steps=fashion), "seeds", 1.7),
        # other multiples of the step
        descent("digits_coordinate_step025", CoordinateDescent(data="digits", steps=digits, step_size=0.25), "seeds", 0.5),
        descent("digits_coordinate_step050", CoordinateDescent(data="digits", steps=digits, step_size=0.5), "seeds", 0.5),
        descent("digits_coordinate_step200", CoordinateDescent(data="digits", steps=digits, step_size=2.0), "seeds", 0.5),
        # a constant step on the mean loss, whose rate the theorem gives
        descent("gaussian_coordinate_constant", ConstantCoordinateDescent(sizes=(10, 25), steps=rate), "extended_seeds", 0.6),
        descent("gaussian_gradient_constant", ConstantGradientDescent(sizes=(10, 25), steps=rate), "extended_seeds", 0.6),
        descent("gaussian_sign_constant", ConstantSignDescent(sizes=(10, 25), steps=rate), "extended_seeds", 0.6),
        # other sources of bias: penalties, architectures, training by attack
        regularised("gaussian_regularised", Regularised(sizes=(10,), steps=path)),
        regularised("digits_regularised", Regularised(data="digits", steps=path)),
        convolutional("gaussian_convolutional", Convolutional(sizes=(3, 10, 25), steps=network)),
        convolutional("digits_convolutional", Convolutional(data="digits", steps=network)),
        dense("gaussian_dense", Dense(sizes=(3, 10, 25), steps=network)),
        dense("digits_dense", Dense(data="digits", steps=network)),
        adversarial("gaussian_adversarial", Adversarial(sizes=(10, 50), steps=attacked)),
        adversarial("digits_adversarial", Adversarial(data="digits", steps=attacked)),
        # networks on pictures, attacked by frequency band
        pictures("fashion_cnn", CnnAttack(data="fashion_mnist", epochs=epochs, images=images, steps=steps), epoch=5.0, attack=0.6, lr="cnn"),
        pictures("fashion_mlp", MlpAttack(data="fashion_mnist", epochs=epochs, images=images, steps=steps), epoch=0.8, attack=0.08, lr="mlp"),
    ]
    # fmt: on


# --- arms by what they run ------------------------------------------------------------------------

_STANDARD = arms(Profile())


def _settings_of(kind: type[S]) -> list[S]:
    """Settings of one kind, of all arms at their standard sizes."""
    return [each.settings for each in _STANDARD if isinstance(each.settings, kind)]


def _by_data(kind: type[ProblemSettings]) -> dict[str, str]:
    """Names of the arms with settings of one kind, by data set."""
    names: dict[str, str] = {}
    for each in _STANDARD:
        if isinstance(each.settings, kind):
            names[each.settings.data] = each.name
    return names


def descent_arm(optimiser: str, data: str, step_size: float = 1.0) -> str:
    """Name of the arm that runs an optimiser with a multiple of the theorem's step.

    Raises:
        KeyError: If no arm does.
    """
    wanted = (OPTIMISERS[optimiser], data, step_size, "log_loss")
    for each in _STANDARD:
        settings = each.settings
        if not isinstance(settings, Descent):
            continue
        if (settings.weight_norm, settings.data, settings.step_size, settings.rule) == wanted:
            return each.name
    raise KeyError(f"no arm runs {optimiser} descent on {data} with step_size={step_size:g}")


EXACT = _by_data(Exact)
REGULARISED = _by_data(Regularised)
NETWORKS = {"convolutional": _by_data(Convolutional), "dense": _by_data(Dense)}
ADVERSARIAL = _by_data(Adversarial)
CLASSIFIERS = {"cnn": "fashion_cnn", "mlp": "fashion_mlp"}  # by model


# --- tuning ---------------------------------------------------------------------------------------
# No score is a quantity that a claim is about. All arms of a group have the same grid and trials.


def convolutional_searches(chosen: Tuned) -> Sequence[Search[Convolutional]]:
    """List a search for each depth, on the problems of both arms."""
    return [
        Search(
            name,
            replace(settings, depths=(depth,), lr=(1.0,)),
            "lr",
            NETWORK_GRID,
            score_convolutional,
        )
        for depth, name in zip(DEPTHS, CONVOLUTIONAL_RATES, strict=True)
        for settings in _settings_of(Convolutional)
    ]


def dense_searches(chosen: Tuned) -> Sequence[Search[Dense]]:
    """List the searches of the fully connected networks, which share one learning rate."""
    return [
        Search("dense-2", settings, "lr", NETWORK_GRID, score_dense)
        for settings in _settings_of(Dense)
    ]


def adversarial_searches(chosen: Tuned) -> Sequence[Search[Adversarial]]:
    """List a search for each radius, on the problems of both arms."""
    return [
        Search(
            name,
            replace(settings, fractions=(fraction,), lr=(1.0,)),
            "lr",
            ADVERSARIAL_GRID,
            score_adversarial,
        )
        for fraction, name in zip(FRACTIONS, ADVERSARIAL_RATES, strict=True)
        for settings in _settings_of(Adversarial)
    ]


def picture_searches(chosen: Tuned) -> Sequence[Search[PictureAttack]]:
    """List the searches of both classifiers."""
    return [
        Search(settings.model, settings, "lr", PICTURE_GRID, score_pictures)
        for settings in _settings_of(PictureAttack)
    ]


def share_curve(trials: Sequence[Trial]) -> dict[float, float]:
    """Average, at each value, the log ratio of an arm's score to the best score on the grid.

    The mean is over problems and seeds. Where no score of a problem is positive (adversarial
    training beyond eps*), the difference from the best score, over its size, takes the place of
    the log ratio.
    """
    shares: dict[float, list[float]] = {}
    for case in sorted({(trial.problem, trial.seed) for trial in trials}):
        scores = {t.value: t.score for t in trials if (t.problem, t.seed) == case}
        best = max(scores.values())
        for value, score in scores.items():
            if best > 0:
                share = math.log(max(score / best, WORST_SHARE))
            else:
                share = max((score - best) / abs(best or 1.0), math.log(WORST_SHARE))
            shares.setdefault(value, []).append(share)
    return {value: math.fsum(each) / len(each) for value, each in sorted(shares.items())}


def percent_curve(trials: Sequence[Trial]) -> dict[float, float]:
    """How much, in percent, the geometric mean of the scores lies above the best, by value.

    It is `share_curve` without its logarithm. Where all scores are negative, that curve already
    holds relative differences.
    """
    is_difference = all(trial.score < 0 for trial in trials)
    return {
        value: 100 * (mean if is_difference else math.expm1(mean))
        for value, mean in share_curve(trials).items()
    }


SEARCHES = (convolutional_searches, dense_searches, adversarial_searches, picture_searches)
CHOICE = partial(choose, curve_of=share_curve)
