"""The arms of chapter 5: what each mixes at which stage, and where its learning rate comes from.

*The source* is the thesis (Simionescu 2022) with its released code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from companion.chapters.cascading_sum.studies import (
    DigitsObjective,
    DigitsRadii,
    Objective,
    Radii,
    run_objective,
    run_radii,
    run_training,
    train_arm,
)
from companion.chapters.cascading_sum.train import (
    CifarTraining,
    DigitsTraining,
    EmojiTraining,
    Stages,
    Training,
)
from companion.lab.arms import Arm, Settings, Tuned, arm
from companion.lab.arms import Profile as BaseProfile
from companion.lab.tune import Search, Trial, choose, mean_curve
from trainaug.training.loop import NonFiniteLossError

__all__ = [
    "CHOICE",
    "SEARCHES",
    "Compared",
    "Profile",
    "arms",
    "choose_strengths",
    "neighbour_mean",
]

# stages of a cascade: samples in a mix, and share of the steps
THIRD = 1 / 3
CASCADE: Stages = ((4, THIRD), (2, THIRD), (1, THIRD))
CLEANED: Stages = ((2, 2 * THIRD), (1, THIRD))  # as the cascade, clean for the last third
RESTARTED: Stages = ((1, THIRD), (1, THIRD), (1, THIRD))
FROM_EIGHT: Stages = ((8, 0.25), (4, 0.25), (2, 0.25), (1, 0.25))
GRADUAL: Stages = ((4, 0.25), (3, 0.25), (2, 0.25), (1, 0.25))
ALPHAS = (0.2, 0.4, 1.0)  # of mixup
LEARNING_RATES = (
    0.000375, 0.00075, 0.0015, 0.003, 0.00625, 0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2,
)  # fmt: skip
RADII_IMAGES = 100  # fewer than usual, since a curve attacks every picture at seven radii


@dataclass(frozen=True, kw_only=True)
class Profile(BaseProfile):
    """How much of chapter 5 is run; the defaults are *standard*.

    Attributes:
        seeds: Seeds of the headline arms. A seed draws the parts, the initial weights, the order
            and the mixes.
        extended_seeds: Seeds of the extended arms.
        deep_seeds: Seeds of ResNet-8.
        cifar_seeds: Seeds of the source's network on CIFAR, for a GPU.
        images: Test pictures that are attacked and corrupted.
    """

    seeds: int = 24
    extended_seeds: int = 0
    deep_seeds: int = 0
    cifar_seeds: int = 0
    images: int = 300


@dataclass(frozen=True)
class Compared(Arm):
    """An arm that trains the arms ``trained``, each with the values that were tuned for it."""

    trained: Mapping[str, Arm]

    def complete(self, chosen: Tuned) -> Settings:
        if not isinstance(self.settings, Radii):
            raise TypeError(f"{self.name}: settings must be of kind Radii, got {self.settings!r}")
        models: dict[str, Training] = {}
        for name, trained_arm in self.trained.items():
            settings = trained_arm.complete(chosen)
            if not isinstance(settings, Training):
                raise TypeError(f"{self.name}: {trained_arm.name} trains no model")
            models[name] = settings
        return replace(self.settings, models=models)


def trained(
    name: str, settings: Training, seeds: str, seconds: float, *, lr: str = "", alpha: str = ""
) -> Arm:
    """Make a training arm; ``lr`` and ``alpha`` name the arms whose tuned values it takes."""
    named = {"lr": lr, "alpha": alpha}
    tuned = {setting: source for setting, source in named.items() if source}
    return arm(name, settings, run_training, seeds, seconds, tuned=tuned, version=2)


def compared(name: str, settings: Radii, seconds: float, others: Mapping[str, Arm]) -> Arm:
    """Make an arm that measures the accuracy of other arms against the radius of the attacks."""
    return Compared(
        name,
        settings,
        run_radii,
        "extended_seeds",
        seconds,
        tuned={},
        version=2,
        deterministic=True,
        together=None,
        trained=others,
    )


def trained_arms(profile: Profile) -> list[Arm]:
    """List the arms that train one model and measure it."""
    images = profile.images
    fashion = Training(images=images)
    digits = DigitsTraining(data="digits", per_class=10, images=images)
    emoji = EmojiTraining(data="emoji", images=images)
    cifar10 = CifarTraining(data="cifar10", model="wrn28_10", steps=12_000, lr=0.05, images=images)
    cifar100 = replace(cifar10, data="cifar100")
    # fmt: off
    return [
        # plain training, the cascade and its controls, on two data sets
        trained("digits_10_erm", digits, "seeds", 1.2, lr="digits_10_erm"),
        trained("digits_10_csa4", replace(digits, stages=CASCADE), "seeds", 1.2, lr="digits_10_csa4"),
        trained("digits_10_csa2", replace(digits, stages=CLEANED), "seeds", 1.2, lr="digits_10_csa2"),
        trained("digits_10_mixup_clean", replace(digits, stages=CLEANED, weights="dirichlet"), "seeds", 1.2, lr="digits_10_mixup_clean", alpha="digits_10_mixup_clean"),
        trained("digits_10_erm_restart", replace(digits, stages=RESTARTED, restart=True), "seeds", 1.2, lr="digits_10_erm_restart"),
        trained("digits_10_csa4_restart", replace(digits, stages=CASCADE, restart=True), "seeds", 1.2, lr="digits_10_csa4_restart"),
        trained("fashion_100_erm", fashion, "seeds", 3.9, lr="fashion_100_erm"),
        trained("fashion_100_csa4", replace(fashion, stages=CASCADE), "seeds", 3.9, lr="fashion_100_csa4"),
        trained("fashion_100_csa2", replace(fashion, stages=CLEANED), "seeds", 3.9, lr="fashion_100_csa2"),
        trained("fashion_100_mixup_clean", replace(fashion, stages=CLEANED, weights="dirichlet"), "seeds", 3.9, lr="fashion_100_mixup_clean", alpha="fashion_100_mixup_clean"),
        trained("fashion_100_erm_restart", replace(fashion, stages=RESTARTED, restart=True), "seeds", 3.9, lr="fashion_100_erm_restart"),
        trained("fashion_100_csa4_restart", replace(fashion, stages=CASCADE, restart=True), "seeds", 3.9, lr="fashion_100_csa4_restart"),
        # other mixes, orders, weights, labels and losses; the source's recipe by plateaus; and its
        # budget for K = 4, 2.14 times that of plain training
        trained("digits_10_smoothing", replace(digits, labels="smoothed"), "extended_seeds", 1.2, lr="digits_10_smoothing"),
        trained("digits_10_mixup", replace(digits, stages=((2, 1.0),), weights="dirichlet"), "extended_seeds", 1.2, lr="digits_10_mixup", alpha="digits_10_mixup"),
        trained("digits_10_cutmix", replace(digits, stages=((2, 1.0),), mixer="cutmix"), "extended_seeds", 1.2, lr="digits_10_cutmix"),
        trained("digits_10_constant2", replace(digits, stages=((2, 1.0),)), "extended_seeds", 1.2, lr="digits_10_constant2"),
        trained("digits_10_constant4", replace(digits, stages=((4, 1.0),)), "extended_seeds", 1.2, lr="digits_10_constant4"),
        trained("digits_10_constant8", replace(digits, stages=((8, 1.0),)), "extended_seeds", 1.2, lr="digits_10_constant8"),
        trained("digits_10_random4", replace(digits, stages=CASCADE, order="random"), "extended_seeds", 1.2, lr="digits_10_random4"),
        trained("digits_10_reversed4", replace(digits, stages=CASCADE[::-1]), "extended_seeds", 1.2, lr="digits_10_reversed4"),
        trained("digits_10_csa8", replace(digits, stages=FROM_EIGHT), "extended_seeds", 1.2, lr="digits_10_csa8"),
        trained("digits_10_smooth", replace(digits, stages=GRADUAL, weights="smooth"), "extended_seeds", 1.2, lr="digits_10_smooth"),
        trained("digits_10_jump", replace(digits, stages=GRADUAL, weights="jump"), "extended_seeds", 1.2, lr="digits_10_smooth"),
        trained("digits_10_dirichlet4", replace(digits, stages=CASCADE, weights="dirichlet", alpha=1.0), "extended_seeds", 1.2, lr="digits_10_dirichlet4"),
        trained("digits_10_single4", replace(digits, stages=CASCADE, labels="first"), "extended_seeds", 1.2, lr="digits_10_single4"),
        trained("digits_10_pixel2", replace(digits, stages=CLEANED, weights="pixel", alpha=0.4), "extended_seeds", 1.2, lr="digits_10_pixel2"),
        trained("digits_10_rescale4", replace(digits, stages=CASCADE, rescale=True), "extended_seeds", 1.2, lr="digits_10_rescale4"),
        trained("digits_10_bce4", replace(digits, stages=CASCADE, loss="bce"), "extended_seeds", 1.2, lr="digits_10_bce4"),
        trained("digits_10_growing4", replace(digits, stages=CASCADE, grouping="growing"), "extended_seeds", 1.2, lr="digits_10_growing4"),
        trained("digits_10_examples4", replace(digits, stages=CASCADE, grouping="groups"), "extended_seeds", 1.08, lr="digits_10_examples4"),
        trained("digits_10_source1", replace(digits, k0=1), "extended_seeds", 2.4, lr="digits_10_erm_restart"),
        trained("digits_10_source4", replace(digits, k0=4), "extended_seeds", 4.8, lr="digits_10_csa4_restart"),
        trained("digits_10_longer", replace(digits, steps=1284), "extended_seeds", 2.28, lr="digits_10_longer"),
        trained("fashion_100_smoothing", replace(fashion, labels="smoothed"), "extended_seeds", 3.9, lr="fashion_100_smoothing"),
        trained("fashion_100_mixup", replace(fashion, stages=((2, 1.0),), weights="dirichlet"), "extended_seeds", 3.9, lr="fashion_100_mixup", alpha="fashion_100_mixup"),
        trained("fashion_100_cutmix", replace(fashion, stages=((2, 1.0),), mixer="cutmix"), "extended_seeds", 3.9, lr="fashion_100_cutmix"),
        trained("fashion_100_constant2", replace(fashion, stages=((2, 1.0),)), "extended_seeds", 3.9, lr="fashion_100_constant2"),
        trained("fashion_100_constant4", replace(fashion, stages=((4, 1.0),)), "extended_seeds", 3.9, lr="fashion_100_constant4"),
        trained("fashion_100_constant8", replace(fashion, stages=((8, 1.0),)), "extended_seeds", 3.9, lr="fashion_100_constant8"),
        trained("fashion_100_random4", replace(fashion, stages=CASCADE, order="random"), "extended_seeds", 3.9, lr="fashion_100_random4"),
        trained("fashion_100_reversed4", replace(fashion, stages=CASCADE[::-1]), "extended_seeds", 3.9, lr="fashion_100_reversed4"),
        trained("fashion_100_csa8", replace(fashion, stages=FROM_EIGHT), "extended_seeds", 3.9, lr="fashion_100_csa8"),
        trained("fashion_100_smooth", replace(fashion, stages=GRADUAL, weights="smooth"), "extended_seeds", 3.9, lr="fashion_100_smooth"),
        trained("fashion_100_jump", replace(fashion, stages=GRADUAL, weights="jump"), "extended_seeds", 3.9, lr="fashion_100_smooth"),
        trained("fashion_100_dirichlet4", replace(fashion, stages=CASCADE, weights="dirichlet", alpha=1.0), "extended_seeds", 3.9, lr="fashion_100_dirichlet4"),
        trained("fashion_100_single4", replace(fashion, stages=CASCADE, labels="first"), "extended_seeds", 3.9, lr="fashion_100_single4"),
        trained("fashion_100_pixel2", replace(fashion, stages=CLEANED, weights="pixel", alpha=0.4), "extended_seeds", 3.9, lr="fashion_100_pixel2"),
        trained("fashion_100_rescale4", replace(fashion, stages=CASCADE, rescale=True), "extended_seeds", 3.9, lr="fashion_100_rescale4"),
        trained("fashion_100_bce4", replace(fashion, stages=CASCADE, loss="bce"), "extended_seeds", 3.9, lr="fashion_100_bce4"),
        trained("fashion_100_growing4", replace(fashion, stages=CASCADE, grouping="growing"), "extended_seeds", 3.9, lr="fashion_100_growing4"),
        trained("fashion_100_examples4", replace(fashion, stages=CASCADE, grouping="groups"), "extended_seeds", 3.51, lr="fashion_100_examples4"),
        trained("fashion_100_source1", replace(fashion, k0=1), "extended_seeds", 7.8, lr="fashion_100_erm_restart"),
        trained("fashion_100_source4", replace(fashion, k0=4), "extended_seeds", 15.6, lr="fashion_100_csa4_restart"),
        trained("fashion_100_longer", replace(fashion, steps=1284), "extended_seeds", 7.41, lr="fashion_100_longer"),
        # fewer and more pictures of a class
        trained("digits_50_erm", replace(digits, per_class=50), "extended_seeds", 1.2, lr="digits_50_erm"),
        trained("digits_50_csa4", replace(digits, per_class=50, stages=CASCADE), "extended_seeds", 1.2, lr="digits_50_csa4"),
        trained("digits_100_erm", replace(digits, per_class=100), "extended_seeds", 1.2, lr="digits_100_erm"),
        trained("digits_100_csa4", replace(digits, per_class=100, stages=CASCADE), "extended_seeds", 1.2, lr="digits_100_csa4"),
        trained("fashion_10_erm", replace(fashion, per_class=10), "extended_seeds", 3.9, lr="fashion_10_erm"),
        trained("fashion_10_csa4", replace(fashion, per_class=10, stages=CASCADE), "extended_seeds", 3.9, lr="fashion_10_csa4"),
        trained("fashion_50_erm", replace(fashion, per_class=50), "extended_seeds", 3.9, lr="fashion_50_erm"),
        trained("fashion_50_csa4", replace(fashion, per_class=50, stages=CASCADE), "extended_seeds", 3.9, lr="fashion_50_csa4"),
        trained("fashion_500_erm", replace(fashion, per_class=500), "extended_seeds", 3.9, lr="fashion_500_erm"),
        trained("fashion_500_csa4", replace(fashion, per_class=500, stages=CASCADE), "extended_seeds", 3.9, lr="fashion_500_csa4"),
        # colour
        trained("emoji_100_erm", emoji, "extended_seeds", 5, lr="emoji_100_erm"),
        trained("emoji_100_csa4", replace(emoji, stages=CASCADE), "extended_seeds", 5, lr="emoji_100_csa4"),
        trained("emoji_100_csa2", replace(emoji, stages=CLEANED), "extended_seeds", 5, lr="emoji_100_csa2"),
        trained("emoji_100_mixup_clean", replace(emoji, stages=CLEANED, weights="dirichlet"), "extended_seeds", 5, lr="emoji_100_mixup_clean", alpha="emoji_100_mixup_clean"),
        trained("emoji_100_erm_restart", replace(emoji, stages=RESTARTED, restart=True), "extended_seeds", 5, lr="emoji_100_erm_restart"),
        trained("emoji_100_csa4_restart", replace(emoji, stages=CASCADE, restart=True), "extended_seeds", 5, lr="emoji_100_csa4_restart"),
        # ResNet-8 with the learning rates of the small network: 20 times its cost forbids a grid
        trained("resnet8_erm", replace(fashion, model="resnet8"), "deep_seeds", 40, lr="fashion_100_erm"),
        trained("resnet8_csa4", replace(fashion, stages=CASCADE, model="resnet8"), "deep_seeds", 40, lr="fashion_100_csa4"),
        trained("resnet8_mixup_clean", replace(fashion, stages=CLEANED, weights="dirichlet", model="resnet8"), "deep_seeds", 40, lr="fashion_100_mixup_clean", alpha="fashion_100_mixup_clean"),
        # the source's data and network, for a GPU: its learning rate and about its steps at K = 1
        trained("cifar10_100_erm", cifar10, "cifar_seeds", 7200),
        trained("cifar10_100_csa4", replace(cifar10, stages=CASCADE), "cifar_seeds", 7200),
        trained("cifar10_100_csa2", replace(cifar10, stages=CLEANED), "cifar_seeds", 7200),
        trained("cifar10_100_mixup_clean", replace(cifar10, stages=CLEANED, weights="dirichlet", alpha=0.4), "cifar_seeds", 7200),
        trained("cifar10_100_erm_restart", replace(cifar10, stages=RESTARTED, restart=True), "cifar_seeds", 7200),
        trained("cifar10_100_csa4_restart", replace(cifar10, stages=CASCADE, restart=True), "cifar_seeds", 7200),
        trained("cifar10_500_erm", replace(cifar10, per_class=500), "cifar_seeds", 7200),
        trained("cifar10_500_csa4", replace(cifar10, per_class=500, stages=CASCADE), "cifar_seeds", 7200),
        trained("cifar10_500_csa2", replace(cifar10, per_class=500, stages=CLEANED), "cifar_seeds", 7200),
        trained("cifar10_500_mixup_clean", replace(cifar10, per_class=500, stages=CLEANED, weights="dirichlet", alpha=0.4), "cifar_seeds", 7200),
        trained("cifar10_500_erm_restart", replace(cifar10, per_class=500, stages=RESTARTED, restart=True), "cifar_seeds", 7200),
        trained("cifar10_500_csa4_restart", replace(cifar10, per_class=500, stages=CASCADE, restart=True), "cifar_seeds", 7200),
        trained("cifar100_100_erm", cifar100, "cifar_seeds", 7200),
        trained("cifar100_100_csa4", replace(cifar100, stages=CASCADE), "cifar_seeds", 7200),
        trained("cifar100_100_csa2", replace(cifar100, stages=CLEANED), "cifar_seeds", 7200),
        trained("cifar100_100_mixup_clean", replace(cifar100, stages=CLEANED, weights="dirichlet", alpha=0.4), "cifar_seeds", 7200),
        trained("cifar100_100_erm_restart", replace(cifar100, stages=RESTARTED, restart=True), "cifar_seeds", 7200),
        trained("cifar100_100_csa4_restart", replace(cifar100, stages=CASCADE, restart=True), "cifar_seeds", 7200),
        trained("cifar100_500_erm", replace(cifar100, per_class=500), "cifar_seeds", 7200),
        trained("cifar100_500_csa4", replace(cifar100, per_class=500, stages=CASCADE), "cifar_seeds", 7200),
        trained("cifar100_500_csa2", replace(cifar100, per_class=500, stages=CLEANED), "cifar_seeds", 7200),
        trained("cifar100_500_mixup_clean", replace(cifar100, per_class=500, stages=CLEANED, weights="dirichlet", alpha=0.4), "cifar_seeds", 7200),
        trained("cifar100_500_erm_restart", replace(cifar100, per_class=500, stages=RESTARTED, restart=True), "cifar_seeds", 7200),
        trained("cifar100_500_csa4_restart", replace(cifar100, per_class=500, stages=CASCADE, restart=True), "cifar_seeds", 7200),
    ]
    # fmt: on


def arms(profile: Profile) -> list[Arm]:
    """List the arms of the chapter at the sizes of a profile."""
    training_arms = trained_arms(profile)
    arm_by_name = {each.name: each for each in training_arms}
    images = profile.images
    radii_images = min(RADII_IMAGES, images)
    # ..._radii: accuracy against the radius; ..._objective: curvature of the objectives with
    # 1, 2, 4 and 8 samples in a mix, at the weights of one cascade
    # fmt: off
    return [
        *training_arms,
        compared("digits_10_radii", DigitsRadii(data="digits", images=radii_images), 10.8, {
            "erm": arm_by_name["digits_10_erm"],
            "csa2": arm_by_name["digits_10_csa2"],
            "csa4": arm_by_name["digits_10_csa4"],
            "constant2": arm_by_name["digits_10_constant2"],
            "mixup": arm_by_name["digits_10_mixup"],
        }),
        arm("digits_10_objective", DigitsObjective(data="digits", per_class=10, stages=CASCADE, images=images), run_objective, "extended_seeds", 6.0, tuned={"lr": "digits_10_csa4"}, version=2),
        compared("fashion_100_radii", Radii(images=radii_images), 35.1, {
            "erm": arm_by_name["fashion_100_erm"],
            "csa2": arm_by_name["fashion_100_csa2"],
            "csa4": arm_by_name["fashion_100_csa4"],
            "constant2": arm_by_name["fashion_100_constant2"],
            "mixup": arm_by_name["fashion_100_mixup"],
        }),
        arm("fashion_100_objective", Objective(stages=CASCADE, images=images), run_objective, "extended_seeds", 19.5, tuned={"lr": "fashion_100_csa4"}, version=2),
    ]
    # fmt: on


# --- tuning ---------------------------------------------------------------------------------------


def score_training(settings: Training, seed: int) -> float:
    """Return the validation accuracy at the end, in [0, 1]; 0 if the training diverged."""
    try:
        return train_arm(settings, seed, curve=False)[2].accuracy[-1]
    except NonFiniteLossError:
        return 0.0


def searches(chosen: Tuned) -> Sequence[Search[Training]]:
    """List the searches of every arm with its own learning rate, all on the same grid.

    An arm of mixup has one search for each strength, named ``arm@alpha``.
    """
    listed: list[Search[Training]] = []
    for tuned_arm in trained_arms(Profile()):
        settings = tuned_arm.settings
        if tuned_arm.tuned.get("lr") != tuned_arm.name or not isinstance(settings, Training):
            continue
        # digits have a small validation part, and their runs are cheap
        seeds = tuple(range(6 if isinstance(settings, DigitsTraining) else 3))
        variants = {tuned_arm.name: settings}
        if "alpha" in tuned_arm.tuned:
            variants = {f"{tuned_arm.name}@{a:g}": replace(settings, alpha=a) for a in ALPHAS}
        listed += [
            Search(name, variant, "lr", LEARNING_RATES, score_training, seeds)
            for name, variant in variants.items()
        ]
    return listed


def neighbour_mean(trials: Sequence[Trial]) -> dict[float, float]:
    """Average the score at each value of the grid with those of its two neighbours.

    The curves are flat and the validation parts small, so a single score is mostly noise.
    """
    curve = mean_curve(trials)
    scores = list(curve.values())
    windows = [scores[max(0, number - 1) : number + 2] for number in range(len(scores))]
    return {value: sum(each) / len(each) for value, each in zip(curve, windows, strict=True)}


def choose_strengths(trials: Sequence[Trial]) -> dict[str, dict[str, float]]:
    """Choose the learning rate of every arm, and of mixup the strength with the highest score."""
    chosen: dict[str, dict[str, float]] = {}
    best: dict[str, float] = {}
    for name, values in choose(trials, neighbour_mean).items():
        arm_name, _, alpha = name.partition("@")
        curve = neighbour_mean([trial for trial in trials if trial.arm == name])
        score = max(curve.values())
        if arm_name in chosen and score <= best[arm_name]:
            continue
        chosen[arm_name] = values | ({"alpha": float(alpha)} if alpha else {})
        best[arm_name] = score
    return chosen


SEARCHES = (searches,)
CHOICE = choose_strengths
