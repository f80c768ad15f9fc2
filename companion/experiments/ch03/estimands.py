"""Estimands of chapter 3: functions from all records of one seed to one number.

Comparisons of work, of gaps and of seconds are natural logarithms of ratios: below zero the first
is smaller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from companion.experiments.ch03.arms import IMAGES, SVM_SETS
from companion.experiments.ch03.linear import THRESHOLDS
from companion.experiments.records import Estimand, Record, find, metric

__all__ = [
    "ESTIMANDS",
    "accuracy_gain",
    "auc",
    "cost_ratio",
    "log_ratio",
    "reached",
    "seconds_ratio",
    "seconds_to_target",
]

RIVALS = ("selfpaced", "screener", "selective", "pruned")
VARIANTS = ("ahead", "unshuffled", "base0", "base60")
DATA = [arm.removeprefix("svm_") for arm in SVM_SETS]


def log_ratio(arm: str, one: str, other: str) -> Estimand:
    """Make the estimand: log ratio of two metrics of an arm."""
    first, second = metric(arm, one), metric(arm, other)
    return lambda records: math.log(first(records) / second(records))


def worst(estimands: Sequence[Estimand]) -> Estimand:
    """Make the estimand: the largest of several."""
    return lambda records: max(estimand(records) for estimand in estimands)


def difference(one: Estimand, other: Estimand) -> Estimand:
    """Make the estimand: the first minus the second."""
    return lambda records: one(records) - other(records)


# --- pictures -------------------------------------------------------------------------------------


def _of(problem: str, sampler: str, name: str) -> Estimand:
    if sampler == "random":  # the control is a part of the Assistant's record
        return metric(f"images_{problem}_assist", f"random/{name}")
    return metric(f"images_{problem}_{sampler}", name)


def cost_ratio(problem: str, one: str, other: str, what: str = "examples") -> Estimand:
    """Make the estimand: log ratio of what two arms spend until the target accuracy.

    ``what``: ``examples`` that the Boss trains on, its ``work`` in forward passes with all that the
    method adds, or ``scanned`` examples.
    """
    first, second = _of(problem, one, what), _of(problem, other, what)
    return lambda records: math.log(first(records) / second(records))


def accuracy_gain(problem: str, one: str, other: str, name: str = "test/accuracy") -> Estimand:
    """Make the estimand: difference of test accuracy after the whole budget, in points."""
    first, second = _of(problem, one, name), _of(problem, other, name)
    return lambda records: 100 * (first(records) - second(records))


def auc(problem: str, guesser: str = "r") -> Estimand:
    """Make the estimand: AUC for being above the mean loss a pass later, mean over the probes."""

    return _curve_mean(f"images_{problem}_assist", f"auc/{guesser}")


def _curve_mean(arm: str, name: str) -> Estimand:
    def estimand(records: Sequence[Record]) -> float:
        values = find(records, arm)["curves"][name]
        return math.fsum(values) / len(values) if values else 0.5  # a short run judges none

    return estimand


def reached(problem: str, sampler: str) -> Callable[[Sequence[Record]], bool]:
    """Make the truth value: whether the run reached the target, for tables of counts."""
    found = _of(problem, sampler, "reached")
    return lambda records: found(records) > 0


def seconds_to_target(sampler: str) -> Estimand:
    """Make the estimand: seconds to the target, from its examples and the timed updates."""
    examples = _of("0", sampler, "examples")
    timed = metric("timing", f"seconds/{'uniform' if sampler == 'random' else sampler}")
    return lambda records: examples(records) / IMAGES["batch"] * timed(records)


def seconds_ratio(one: str, other: str) -> Estimand:
    """Make the estimand: log ratio of the seconds to the target."""
    first, second = seconds_to_target(one), seconds_to_target(other)
    return lambda records: math.log(first(records) / second(records))


ESTIMANDS: dict[str, Estimand] = {
    "bound_ratio": worst([metric("theorem", f"{c:g}/ratio") for c in THRESHOLDS]),
    "bias_error": metric("theorem", "bias_error"),
    "overhead_async": log_ratio("timing", "seconds/async", "seconds/uniform"),
    "overhead_sync": log_ratio("timing", "seconds/assist", "seconds/uniform"),
    "waiting": metric("timing", "waiting", 100),
    "waiting_share": lambda records: math.log1p(metric("timing", "waiting")(records)),
    "0_auc_gain": lambda records: auc("0")(records) - auc("0", "class")(records),
    "noise_wrong_excess": difference(
        metric("images_noise_assist", "wrong", 100), metric("images_noise_uniform", "wrong", 100)
    ),
}
for _c in THRESHOLDS:
    ESTIMANDS[f"slope_{_c:g}"] = metric("theorem", f"{_c:g}/slope")
    ESTIMANDS[f"theorem_gap_{_c:g}"] = log_ratio("theorem", f"{_c:g}/gap", "0/gap")
for _data in DATA:
    _arm = f"svm_{_data}"
    for _rule in ("loss_only", "authors", "decay_skipped", "sphere", "constant", "random"):
        ESTIMANDS[f"{_data}_{_rule}_gap"] = log_ratio(_arm, f"{_rule}/gap", "sgd/gap")
        ESTIMANDS[f"{_data}_{_rule}_kept"] = metric(_arm, f"{_rule}/kept", 100)
        ESTIMANDS[f"{_data}_{_rule}_norm"] = metric(_arm, f"{_rule}/norm")
    for _rule in ("decaying_1", "decaying_100"):
        ESTIMANDS[f"{_data}_{_rule}_gap"] = log_ratio(_arm, f"{_rule}/gap", "sgd/gap")
        ESTIMANDS[f"{_data}_{_rule}_kept"] = metric(_arm, f"{_rule}/kept", 100)
    ESTIMANDS[f"{_data}_moved_norm"] = log_ratio(
        _arm, "decay_skipped/found_norm", "decay_skipped/predicted_norm"
    )
    for _utility in ("loss", "gradient"):
        for _when, _whats in {"stale": ("products", "updates"), "exact": ("products",)}.items():
            _other = f"{_utility}_{_when}"
            for _what in _whats:  # exact sampling is cut off early: its products are a lower bound
                for _one in ("loss_only", "with_replacement"):
                    ESTIMANDS[f"{_data}_{_one}_over_{_other}_{_what}"] = log_ratio(
                        _arm, f"{_one}/{_what}", f"{_other}/{_what}"
                    )
    ESTIMANDS[f"{_data}_loss_only_over_liblinear"] = log_ratio(
        _arm, "loss_only/products", "liblinear/products"
    )
for _problem in ("0", "noise", "rotated", "large", "resnet8"):
    _pairs = [("assist", "uniform"), ("assist", "random"), ("random", "uniform")]
    if _problem == "0":
        _pairs += [(_sampler, "uniform") for _sampler in (*RIVALS, *VARIANTS)]
    for _one, _other in _pairs:
        _name = f"{_problem}_{_one}_over_{_other}"
        ESTIMANDS[_name] = cost_ratio(_problem, _one, _other)
        ESTIMANDS[f"{_name}_work"] = cost_ratio(_problem, _one, _other, "work")
        ESTIMANDS[f"{_name}_accuracy"] = accuracy_gain(_problem, _one, _other)
        ESTIMANDS[f"{_name}_norms"] = accuracy_gain(_problem, _one, _other, "test/accuracy_norms")
        ESTIMANDS[f"{_name}_calibration"] = accuracy_gain(
            _problem, _one, _other, "test/calibration_error"
        )
    for _guesser in ("r", "class", "loss"):
        ESTIMANDS[f"{_problem}_auc_{_guesser}"] = auc(_problem, _guesser)
    ESTIMANDS[f"{_problem}_kept"] = metric(f"images_{_problem}_assist", "kept", 100)
    ESTIMANDS[f"{_problem}_positives"] = metric(f"images_{_problem}_assist", "positives", 100)
    ESTIMANDS[f"{_problem}_assistant_share"] = metric(
        f"images_{_problem}_assist", "assistant_share", 100
    )
for _other in ("uniform", "random"):
    ESTIMANDS[f"seconds_assist_over_{_other}"] = seconds_ratio("assist", _other)
for _variant in ("ahead", "unshuffled"):
    ESTIMANDS[f"{_variant}_over_assist"] = cost_ratio("0", _variant, "assist")
_uniform, _assist = "translation_uniform", "translation_assist"
for _name, _metric in {"loss": "val/loss", "bleu": "test/bleu", "chrf": "test/chrf"}.items():
    _base = metric(_uniform, _metric)
    ESTIMANDS[f"translation_uniform_{_name}"] = _base
    ESTIMANDS[f"translation_assist_{_name}"] = difference(metric(_assist, _metric), _base)
    ESTIMANDS[f"translation_assist70_{_name}"] = difference(metric(f"{_assist}70", _metric), _base)
    ESTIMANDS[f"translation_random_{_name}"] = difference(
        metric(_assist, f"random/{_metric}"), _base
    )
    ESTIMANDS[f"translation_assist_over_random_{_name}"] = difference(
        metric(_assist, _metric), metric(_assist, f"random/{_metric}")
    )
ESTIMANDS["translation_overhead"] = log_ratio(
    "translation_timing", "seconds/assist", "seconds/uniform"
)
ESTIMANDS["translation_kept"] = metric(_assist, "kept", 100)
ESTIMANDS["translation_confidence"] = metric(_assist, "confidence")
ESTIMANDS["translation_guess"] = metric(_assist, "guess/mean")
ESTIMANDS["translation_auc"] = _curve_mean(_assist, "auc")
