"""Which part of the code computes which entries of records, for ``unread.py``.

Only work is listed whose entries nothing reads in some arm. A name of a function or the beginning
of a statement that no longer exists is an error.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from companion.paths import ROOT


@dataclass(frozen=True)
class Part:
    """A function, or those of its statements that begin with ``text``."""

    file: str
    function: str
    text: str = ""


@dataclass(frozen=True)
class Work:
    """Work that is done for some entries alone.

    Attributes:
        chapter: Two digits.
        parts: The parts of the code that are all at work, the outermost first.
        entries: Patterns of the entries, part by part between slashes; ``{name}`` stands for a local
            variable of the functions.
        note: What a reader must know about it.
        not_in: Pattern of arms whose method needs the work as well.
        when: Whether it is done for these entries alone, by the local variables of the functions.
    """

    chapter: str
    parts: tuple[Part, ...]
    entries: tuple[str, ...]
    note: str = ""
    not_in: str = ""
    when: Callable[[Mapping[str, Any]], bool] | None = None


def _work(number: str, folder: str) -> Callable[..., Work]:
    """Make the function that states the work of a chapter: its parts, then the entries."""

    def work(parts: Sequence[tuple[str, ...]], *entries: str, **options: Any) -> Work:
        paths = (each[0] if "/" in each[0] else f"{folder}/{each[0]}" for each in parts)
        located = (Part(path, *each[1:]) for path, each in zip(paths, parts, strict=True))
        return Work(number, tuple(located), entries, **options)

    return work


def _is_reached(variables: Mapping[str, Any]) -> bool:
    """Whether a training has reached its target, so that its cost is known."""
    trained, settings = variables["trained"], variables["settings"]
    window = [settings.window] if hasattr(settings, "window") else []
    return trained.reached(settings.target_accuracy, *window) is not None


_vse = _work("01", "companion/chapters/hard_negatives")
_gc = _work("02", "companion/chapters/gradient_clustering")
_aa = _work("03", "companion/chapters/autoassist")
_ord = _work("04", "companion/chapters/ordering")
_csa = _work("05", "companion/chapters/cascading_sum")
_lin = _work("06", "companion/chapters/linear_robustness")
_CELL = ("features.py", "run_features")
_MEASURE = ("features.py", "_Watch._measure")
_ORDERS = ("orders.py", "_first_epoch")
_TRAINED = ("train.py", "run_training")
_SAMPLED = [("speed.py", "train_sampler"), ("speed.py", "train_sampler.<locals>.measure")]
_AFTER = "validation after the target is reached"
_LANDSCAPE = "trainaug/methods/cascading_sum/landscape.py"
_ATTACKS = ("pictures.py", "run_pictures")

# The first row that fits a stack and whose entries are all unread counts.
# fmt: off
WORK = (
    _vse([("train.py", "_mean_norm")], "curves norm", "metrics final_norm"),
    _vse([("measures.py", "near_synonyms")], "metrics test/*/r1_lenient", "metrics test/*/r1_lenient/*"),
    _vse([("measures.py", "lenient_hits")], "metrics test/*/r1_lenient", "metrics test/*/r1_lenient/*"),
    _vse([("measures.py", "_by_category")], "metrics test/*/{name}/*"),
    _vse([("measures.py", "measure_test", "hits = retrieval_ranks(")], "hits", "galleries", "metrics test/*/r1/*"),
    _gc([(*_CELL, "values, curve = train_cell(")], "metrics {name}/*", "curves {name}/*", note="whole cells of the grid, with their training"),
    _gc([_CELL, ("features.py", "_Watch._cluster")], "metrics {name}/gc"),
    _gc([_CELL, (*_MEASURE, "gradients = ")], "metrics {name}/gc"),
    _gc([_CELL, (*_MEASURE, "gc = ")], "metrics {name}/gc"),
    _gc([_CELL, (*_MEASURE, "svrg = ")], "metrics {name}/svrg"),
    _gc([_CELL, (*_MEASURE, "plugin = ")], "metrics {name}/norm_plugin"),
    _gc([_CELL, ("features.py", "_Watch.observe", "loss = ")], "metrics {name}/loss", "metrics {name}/half", "curves {name}/loss"),
    _gc([("trajectory.py", "_Observer.observe", 'self._add("loss"')], "curves loss", note="a pass over the training part"),
    _gc([("trajectory.py", "_Observer.observe", 'self._measure(model, self.snapshot, "old")'), ("trajectory.py", "_Observer._measure", "cross = gram_matrix(")], "curves old/svrg"),
    _gc([("trajectory.py", "run_trajectory", "metrics = evaluate(")], "metrics val/*", "metrics test/*"),
    _gc([("theory.py", "published_sweeps")], "metrics published_*"),
    _gc([("speed.py", "run_sampling", 'runs = {"": '), *_SAMPLED], "curves accuracy", "curves drawn", note=_AFTER, when=_is_reached),
    _gc([("speed.py", "run_sampling", 'runs["random/"] = '), *_SAMPLED], "curves random/accuracy", "curves random/drawn", note=_AFTER, when=_is_reached),
    _aa([("linear.py", "run_rules", "gaps = svm_objective(")], "metrics {name}/gap", "metrics {name}/reached", "metrics {name}/products", "metrics {name}/updates", "curves {name}/gap"),
    _ord([(*_TRAINED, "metrics |= evaluate(trained.model, trained.data.train")], "metrics train/*", note="a pass over the training part"),
    _ord([(*_TRAINED, "metrics = evaluate(trained.model, trained.data.test")], "metrics test/*"),
    _ord([_TRAINED, ("train.py", "train_arm.<locals>.measure")], "curves accuracy", "curves forwards", "metrics forwards", "metrics val/accuracy", note=_AFTER, when=_is_reached),
    _ord([("train.py", "train_arm.<locals>.note")], "metrics entropy"),
    _ord([(*_ORDERS, "greedy = torch.tensor(")], "metrics rank/{score}/*"),
    _ord([(*_ORDERS, "for position, share in enumerate(position_shares(")], "metrics share/{name}/[0-9]"),
    _ord([(*_ORDERS, "control = ")], "metrics share/{name}/permuted"),
    _ord([(*_ORDERS, "by_balance = ")], "metrics share/{name}/last_balance"),
    _csa([(_LANDSCAPE, "sharpness")], "metrics sharpness"),
    _csa([(_LANDSCAPE, "hessian_top_eigenvalue")], "metrics curvature"),
    _csa([(_LANDSCAPE, "gradient_lipschitz")], "metrics lipschitz"),
    _csa([("measures.py", "_corrupted_accuracy")], "metrics corrupt/*"),
    _csa([("measures.py", "measure_model", "losses = losses_of(")], "metrics input_gradient"),
    _csa([("measures.py", "measure_model", "(gradients,) = ")], "metrics input_gradient"),
    _csa([("train.py", "_Validation.__call__", "accuracy = evaluate(")], "curves accuracy", "curves step", "metrics val/accuracy", not_in="*_restart"),
    _csa([("train.py", "train_classifier", "trained.switches.append(")], "curves switches"),
    _lin([(*_ATTACKS, "in_box = ")], "metrics {prefix}/box"),
    _lin([(*_ATTACKS, 'metrics[f"linf/{eps:g}/all"]')], "metrics linf/{eps:g}/all"),
    _lin([(*_ATTACKS, 'metrics[f"linf/{eps:g}/box"]')], "metrics linf/{eps:g}/box"),
    _lin([("exact.py", "run_exact", "measured = _solution("), ("exact.py", "_solution", "second = ")], "metrics {problem.name}/{attack}/second", "metrics {problem.name}/{attack}/solver_difference"),
    _lin([("exact.py", "_test_errors")], "metrics {problem.name}/{attack}/test_error", "metrics {problem.name}/{attack}/test_error_under/*"),
)
# fmt: on


@cache
def lines_of(part: Part) -> list[range]:
    """Line numbers of the statements of a function that begin with the part's text.

    Of a statement that contains others only its head counts. Without a text there are none.

    Raises:
        ValueError: If there is no such file, function or statement.
    """
    path = ROOT / part.file
    source = path.read_text("utf-8") if path.is_file() else ""
    node: ast.AST = ast.parse(source)
    for name in part.function.replace("<locals>.", "").split("."):
        defined = (
            each for each in ast.walk(node) if isinstance(each, ast.FunctionDef | ast.ClassDef)
        )
        named = [each for each in defined if each.name == name and each is not node]
        if not named:
            raise ValueError(f"{part.file} has no function {part.function}")
        node = named[0]
    if not part.text:
        return []
    lines = source.splitlines()
    spans = []
    for each in ast.walk(node):
        if isinstance(each, ast.stmt) and lines[each.lineno - 1].lstrip().startswith(part.text):
            body = getattr(each, "body", None)
            end = body[0].lineno - 1 if body else each.end_lineno or each.lineno
            spans.append(range(each.lineno, end + 1))
    if not spans:
        raise ValueError(f"{part.file}, {part.function}: no statement begins with {part.text!r}")
    return spans


def check_work() -> None:
    """Refuse work whose file, function or statement was renamed or removed.

    Raises:
        ValueError: If there is such work.
    """
    for work in WORK:
        for part in work.parts:
            lines_of(part)


def starred(work: Work) -> list[str]:
    """Patterns of a work's entries, with a star for each local variable."""
    return [re.sub(r"\{[^}]*\}", "*", each) for each in work.entries]


def fits(entry: str, pattern: str) -> bool:
    """Whether an entry fits a pattern, part by part between slashes."""
    ours, theirs = entry.split("/"), pattern.split("/")
    return len(ours) == len(theirs) and all(map(fnmatchcase, ours, theirs))
