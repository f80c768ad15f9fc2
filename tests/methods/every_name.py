"""A small call of every public name of the seven method packages, for tests that walk them all.

A call takes its tensors from `Given`, which makes them in the asked types and notes them.
"""

from __future__ import annotations

import functools
import inspect
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainaug.data.indexed import IndexedDataset
from trainaug.methods import (
    attacks,
    autoassist,
    cascading_sum,
    gradient_clustering,
    hard_negatives,
    linear_robustness,
    ordering,
)
from trainaug.methods.ordering.exhaustive import all_orders

PACKAGES = {
    package.__name__.rpartition(".")[2]: package
    for package in (
        attacks,
        autoassist,
        cascading_sum,
        gradient_clustering,
        hard_negatives,
        linear_robustness,
        ordering,
    )
}
at = attacks
aa = autoassist
cs = cascading_sum
gc = gradient_clustering
hn = hard_negatives
lr = linear_robustness
od = ordering


@dataclass
class Given:
    """Arguments of a call.

    Args:
        dtype: Of floating tensors; their values are those that the ``rounded`` type can hold.
        labels: Type of labels.
        device: Where tensors and models are.
        rows: Examples in a batch.
        spoilt: Name of the floating tensor that has ``spoil`` as its first number.
        spoil: The number.
    """

    dtype: torch.dtype = torch.float32
    rounded: torch.dtype = torch.float32
    label_type: torch.dtype = torch.int64
    device: str = "cpu"
    rows: int = 6
    spoilt: str = ""
    spoil: float = float("nan")
    floats: list[str] = field(default_factory=list)
    labelled: list[int] = field(default_factory=list)  # smallest and largest label

    def x(self, name: str, *shape: int) -> Tensor:
        """Standard normal numbers, the same for a name."""
        self.floats.append(name)
        seed = zlib.crc32(name.encode())
        values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), device="cpu")
        values = values.to(self.rounded).to(self.device, self.dtype)
        if name == self.spoilt and values.numel():
            values.view(-1)[0] = self.spoil
        return values

    def positive(self, name: str, *shape: int) -> Tensor:
        """Numbers above 0.1 and below 0.9."""
        values = self.x(name, *shape)
        return torch.where(values.isfinite(), 0.1 + 0.8 * values.sigmoid(), values)

    def labels(self, count: int, classes: int = 2) -> Tensor:
        """Class numbers in turn."""
        self.labelled += [0, classes - 1]
        return (torch.arange(count, device=self.device) % classes).to(self.label_type)

    def signs(self, count: int) -> Tensor:
        """Labels -1 and +1 in turn."""
        self.labelled += [-1, 1]
        return (1 - 2 * (torch.arange(count, device=self.device) % 2)).to(self.label_type)

    def net(self, features: int = 4, classes: int = 2) -> nn.Module:
        """Two layers, without global randomness."""
        with torch.device("meta"):  # draws nothing
            layers = nn.Sequential(nn.Linear(features, 5), nn.Tanh(), nn.Linear(5, classes))
        layers = layers.to_empty(device=self.device).to(self.dtype)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in layers.parameters():
                drawn = torch.randn(p.shape, generator=generator, device="cpu")
                p.copy_((0.5 * drawn).to(self.rounded))
        return layers


def rng(seed: int = 0) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Losses of examples, accumulated in float32 as autocast does it."""
    return F.cross_entropy(logits.float(), y.long(), reduction="none").to(logits.dtype)


def separable(g: Given) -> tuple[Tensor, Tensor]:
    """Rows whose first column is their label."""
    y = g.signs(g.rows)
    X = 0.3 * g.x("X", g.rows, 3)
    X[:, 0] = X[:, 0] + torch.where(torch.arange(g.rows, device=g.device) % 2 == 0, 2, -2)
    return X, y


def separator(g: Given) -> Tensor:
    """Weights that separate `separable`."""
    return 0.01 * g.x("w", 3) + torch.tensor([1.0, 0.0, 0.0], dtype=g.dtype, device=g.device)


def rows_of(g: Given) -> Tensor:
    """Rows with a positive margin, shape ``(1, N, 3)``."""
    Z = 0.3 * g.x("Z", 1, g.rows, 3)
    Z[..., 0] = Z[..., 0] + 2
    return Z


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """Plain steps."""
    return torch.optim.SGD(model.parameters(), 0.1)


def descend(make: Callable[[list[nn.Parameter]], Any]) -> Callable[[Given], Tensor]:
    """Three steps of an optimiser on a parabola."""

    def run(g: Given) -> Tensor:
        target = g.x("target", 4)
        w = nn.Parameter(torch.zeros_like(target))
        optimizer = make([w])

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = 0.5 * (w - target).float().square().sum()
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure)
        return w.detach()

    return run


def dataset(g: Given) -> IndexedDataset:
    """Inputs with labels."""
    return IndexedDataset(g.x("x", g.rows, 4), g.labels(g.rows))


def estimate(kind: str) -> Callable[[Given], Tensor]:
    """One estimate of a gradient."""

    def run(g: Given) -> Tensor:
        model, data = g.net(), dataset(g)
        if kind == "stratified":
            clusters = torch.arange(g.rows, device=g.device) % 2
            estimator: Any = gc.StratifiedEstimator(cross_entropy, data, clusters)
        else:
            make = gc.SGEstimator if kind == "sg" else gc.SVRGEstimator
            estimator = make(cross_entropy, data, max(1, g.rows), replacement=False)
        estimator.refresh(model)
        actual: Tensor = estimator.sample(model, rng())
        return actual

    return run


def factors_of(g: Given) -> Any:
    """Factors of a small net's gradients."""
    return gc.layer_factors(g.net(), cross_entropy, g.x("x", g.rows, 4), g.labels(g.rows))


def clustered(g: Given) -> Tensor:
    """Assignments of a fit."""
    data = (g.x("x", g.rows, 4), g.labels(g.rows), torch.arange(g.rows, device=g.device))
    return gc.GradientClustering(g.net(), cross_entropy, 2, generator=rng()).fit([data], 2).assign


def gram_of(g: Given) -> Tensor:
    """Inner products of gradients, in float64 as they are always held."""
    gradients = g.x("grads", g.rows, 3).double()
    return gradients @ gradients.T


def batches_of(g: Given) -> tuple[Tensor, Tensor]:
    """Candidates ``(3, B, 4)`` with labels."""
    return g.x("x", 3, g.rows, 4), g.labels(3 * g.rows).reshape(3, g.rows)


def mixed(make: Callable[..., nn.Module]) -> Callable[[Given], Any]:
    """A mix of a batch."""

    def run(g: Given) -> Any:
        mix = make(2, num_classes=3, generator=rng())
        return mix(g.x("x", g.rows, 2, 4, 4), g.labels(g.rows, 3))

    return run


def with_losses(make: Callable[[int], Any]) -> Callable[[Given], Any]:
    """Give an object of N examples the losses of a batch, and read its state."""

    def run(g: Given) -> Any:
        made = make(8)
        index = torch.arange(g.rows, device=g.device)
        made.update(index, g.positive("losses", g.rows))
        state = made.state_dict()
        return [v for v in state.values() if isinstance(v, Tensor) and v.is_floating_point()]

    return run


def screened(g: Given) -> Tensor:
    """Weights of a screener after a step."""
    screener = g.net(4, 1)
    x = g.x("x", 8, 4)
    weigh = aa.ScreenerWeights(screener, lambda i: x[i], sgd(screener))
    index = torch.arange(g.rows, device=g.device)
    weigh.update(index, g.positive("losses", g.rows))
    return weigh.weights(index)


def assisted(g: Given) -> Tensor:
    """Predictions of an Assistant after a feedback."""
    x = g.x("x", 8, 4).float()
    y = torch.arange(8, device=g.device) % 2
    trainer = aa.AssistantTrainer(aa.ImageAssistant(4, 2, rng()), lambda i: (x[i], y[i]))
    index = torch.arange(g.rows, device=g.device)
    trainer.update(index, g.positive("losses", g.rows))
    return trainer.predict(index)


def linear(make: Callable[[], nn.Module]) -> Callable[[Given], Tensor]:
    """Outputs of a linear network."""

    def run(g: Given) -> Tensor:
        actual: Tensor = make().to(g.device, g.dtype)(g.x("x", g.rows, 4))
        return actual.detach()

    return run


def attacked(attack: Callable[..., Tensor], **options: Any) -> Callable[[Given], Tensor]:
    """Attack a small net."""

    def run(g: Given) -> Tensor:
        x = g.positive("x", g.rows, 4)
        return attack(g.net(), x, g.labels(g.rows), norm="linf", eps=0.1, **options)

    return run


def pairs(g: Given) -> tuple[Tensor, Tensor]:
    """Embeddings of pictures and captions."""
    return g.x("images", g.rows, 4), g.x("captions", g.rows, 4)


def ids(g: Given) -> Tensor:
    """Each example a group of its own."""
    return torch.arange(g.rows, device=g.device)


def grabbed(g: Given) -> list[int]:
    """The order after an epoch of gradients."""
    sampler = od.GraBSampler(4, 3, generator=rng())
    for unit in list(sampler):
        sampler.update(unit, g.x(f"gradient {unit}", 3))
    return list(sampler.order)


def landscape(name: str, **options: Any) -> Callable[[Given], float]:
    """A measure of the loss around a small net."""

    def run(g: Given) -> float:
        measure = getattr(cs, name)
        x, y = g.x("x", g.rows, 4), g.labels(g.rows)
        return float(measure(g.net(), cross_entropy, x, y, generator=rng(), **options))

    return run


def halves(g: Given) -> Tensor:
    """Test-time augmentation of a small net."""
    return cs.SumTTA(g.net(), g.x("bank", 5, 4), repeats=32, generator=rng())(g.x("x", g.rows, 4))


def begun(g: Given) -> list[Tensor]:
    """Parameters after a stage has begun anew."""
    model = g.net()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    cs.begin_stage(model, sgd(model), lr=0.1, weights=weights)
    return [p.detach() for p in model.parameters()]


def exhausted(g: Given) -> Any:
    """All orders of two batches."""
    model = g.net()
    data = [(g.x(f"x {k}", g.rows, 4), g.labels(g.rows)) for k in range(2)]

    def evaluate(logits: Tensor) -> Tensor:
        return logits.float().mean().reshape(1)

    return od.exhaustive_orders(model, sgd(model), cross_entropy, data, evaluate, g.x("held", 3, 4))


def ordered(g: Given) -> list[Tensor]:
    """Parameters after two batches in an order."""
    model = g.net()
    data = [(g.x(f"x {k}", g.rows, 4), g.labels(g.rows)) for k in range(2)]
    od.train_in_order(model, sgd(model), cross_entropy, data, [1, 0])
    return [p.detach() for p in model.parameters()]


def copied(g: Given) -> Tensor:
    """Losses of two copies that have made a step."""
    model = g.net()
    copies = od.Copies(model, sgd(model), cross_entropy, 2)
    x, y = g.x("x", 2, g.rows, 4), g.labels(2 * g.rows).reshape(2, g.rows)
    copies.step(x, y)
    return copies.losses(x, y).detach()


def preserved(g: Given) -> list[Tensor]:
    """Parameters after a block that overwrites them."""
    model = g.net()
    with od.preserve_state(model):
        for p in model.parameters():
            p.data.zero_()
    return [p.detach() for p in model.parameters()]


def text_logits(g: Given) -> Tensor:
    """Logits of an Assistant for text."""
    assistant = aa.TextAssistant(5, 5, rng()).to(g.device, g.dtype)
    tokens = torch.arange(1, 4, device=g.device).expand(g.rows, 3)
    return assistant(
        tokens, g.positive("source", g.rows, 3), tokens, g.positive("target", g.rows, 3)
    ).detach()


# what returns something to compare, from the tensors of `Given`
CALLS: Mapping[str, Callable[[Given], Any]] = {
    "attacks.fgsm": attacked(at.fgsm),
    "attacks.pgd": lambda g: attacked(at.pgd, steps=2, step_size=0.05, generator=rng())(g),
    "attacks.project_ball": lambda g: at.project_ball(g.x("delta", g.rows, 4), "l2", 0.5),
    "attacks.steepest_step": lambda g: at.steepest_step(g.x("gradient", g.rows, 4), "l2"),
    "autoassist.AssistantTrainer": assisted,
    "autoassist.ImageAssistant": lambda g: (
        aa.ImageAssistant(4, 2, rng())
        .to(g.device, g.dtype)(g.x("x", g.rows, 4), g.labels(g.rows))
        .detach()
    ),
    "autoassist.LossTable": with_losses(aa.LossTable),
    "autoassist.ScreenerWeights": screened,
    "autoassist.SelectiveBackprop": lambda g: aa.SelectiveBackprop(
        lambda i: g.positive("losses", len(i))
    ).predict(torch.arange(g.rows, device=g.device)),
    "autoassist.SelfPacedWeights": with_losses(lambda n: aa.SelfPacedWeights(n, 1)),
    "autoassist.TextAssistant": text_logits,
    "autoassist.authors_rule": lambda g: aa.authors_rule(g.positive("norms", 4), 0.3, 1.0, rng())(
        1, 0, 0.5, 1.0
    ),
    "autoassist.gradient_threshold": lambda g: aa.gradient_threshold(
        *separable(g), 0.1, aa.constant_threshold(0.5)
    )(1, 0, 0.5, 1.0),
    "autoassist.importance_pegasos": lambda g: aa.importance_pegasos(
        *separable(g), 0.1, 5, rng()
    ).weights[-1],
    "autoassist.keep": lambda g: aa.keep(g.positive("r", g.rows), 0.3, g.positive("u", g.rows)),
    "autoassist.keep_probability": lambda g: aa.keep_probability(g.positive("r", g.rows), 0.3),
    "autoassist.pegasos": lambda g: aa.pegasos(
        *separable(g), 0.1, torch.arange(5, device=g.device)
    ).weights[-1],
    "autoassist.shrinking_bias": lambda g: aa.shrinking_bias(
        g.x("gradients", g.rows, 3), g.positive("p", g.rows)
    ),
    "autoassist.svm_gradients": lambda g: aa.svm_gradients(g.x("w", 3), *separable(g), 0.1),
    "autoassist.svm_objective": lambda g: aa.svm_objective(g.x("w", 3), *separable(g), 0.1),
    "cascading_sum.PixelMix": mixed(functools.partial(cs.PixelMix, alpha=0.5)),
    "cascading_sum.SingleLabelMix": mixed(cs.SingleLabelMix),
    "cascading_sum.SumMix": mixed(cs.SumMix),
    "cascading_sum.SumTTA": halves,
    "cascading_sum.begin_stage": begun,
    "cascading_sum.equalise_variance": lambda g: cs.equalise_variance(
        g.x("x", g.rows, 4), torch.tensor([0.5, 0.5], device=g.device)
    ),
    "cascading_sum.gradient_lipschitz": landscape("gradient_lipschitz", radius=0.1, draws=2),
    "cascading_sum.hessian_top_eigenvalue": landscape("hessian_top_eigenvalue", iterations=200),
    "cascading_sum.sharpness": landscape("sharpness", rho=0.1, steps=2),
    "cascading_sum.sum_mix": lambda g: cs.sum_mix(
        g.x("x", g.rows, 4),
        F.one_hot(g.labels(g.rows).long(), 2).to(g.dtype),
        torch.arange(g.rows, device=g.device).reshape(-1, 2),
    ),
    "gradient_clustering.GradientClustering": clustered,
    "gradient_clustering.LayerFactors": lambda g: gc.flat_gradients(factors_of(g)),
    "gradient_clustering.SGEstimator": estimate("sg"),
    "gradient_clustering.SVRGEstimator": estimate("svrg"),
    "gradient_clustering.StratifiedEstimator": estimate("stratified"),
    "gradient_clustering.SnoozeSampler": with_losses(lambda n: gc.SnoozeSampler(n, 2, rng())),
    "gradient_clustering.best_partition": lambda g: gc.best_partition(g.x("grads", g.rows, 3), 2),
    "gradient_clustering.enumerate_estimates": lambda g: gc.enumerate_estimates(
        g.x("grads", g.rows, 3), torch.arange(g.rows, device=g.device) % 2
    ),
    "gradient_clustering.exact_moves": lambda g: gc.exact_moves(
        gram_of(g),
        torch.arange(g.rows, device=g.device) % 2,
        2,
    ),
    "gradient_clustering.flat_gradients": lambda g: gc.flat_gradients(factors_of(g)),
    "gradient_clustering.gradient_moments": lambda g: (
        gc.gradient_moments(g.x("samples", g.rows, 3)).variance
    ),
    "gradient_clustering.gram_matrix": lambda g: gc.gram_matrix(factors_of(g), factors_of(g)),
    "gradient_clustering.layer_factors": lambda g: gc.flat_gradients(factors_of(g)),
    "gradient_clustering.move_deltas": lambda g: gc.move_deltas(
        gram_of(g),
        torch.arange(g.rows, device=g.device) % 2,
        2,
    ),
    "gradient_clustering.per_example_gradients": lambda g: gc.per_example_gradients(
        g.net(), cross_entropy, g.x("x", g.rows, 4), g.labels(g.rows)
    ),
    "gradient_clustering.sampling_variance": lambda g: gc.sampling_variance(
        g.x("grads", g.rows, 3), 2
    ),
    "gradient_clustering.snooze_threshold": lambda g: gc.snooze_threshold(
        g.positive("alpha", g.rows), "mean", 0.5
    ),
    "gradient_clustering.stratified_variance": lambda g: gc.stratified_variance(
        g.x("grads", g.rows, 3), torch.arange(g.rows, device=g.device) % 2
    ),
    "gradient_clustering.svrg_variance": lambda g: gc.svrg_variance(
        g.x("grads", g.rows, 3), g.x("snapshot", g.rows, 3), 2
    ),
    "gradient_clustering.total_distortion": lambda g: gc.total_distortion(
        g.x("grads", g.rows, 3), torch.arange(g.rows, device=g.device) % 2
    ),
    "hard_negatives.CollapseMonitor": lambda g: hn.CollapseMonitor().update(
        g.x("scores", g.rows, g.rows)
    ),
    "hard_negatives.HingeCurriculum": lambda g: hn.HingeCurriculum(2)(
        g.x("scores", g.rows, g.rows)
    ),
    "hard_negatives.MaxOfHinges": lambda g: hn.MaxOfHinges()(g.x("scores", g.rows, g.rows)),
    "hard_negatives.SumOfHinges": lambda g: hn.SumOfHinges()(g.x("scores", g.rows, g.rows)),
    "hard_negatives.chunked_max_of_hinges": lambda g: hn.chunked_max_of_hinges(*pairs(g)),
    "hard_negatives.chunked_sum_of_hinges": lambda g: hn.chunked_sum_of_hinges(*pairs(g)),
    "hard_negatives.cosine_scores": lambda g: hn.cosine_scores(*pairs(g)),
    "hard_negatives.folded_metrics": lambda g: [
        each.mean_r for each in hn.folded_metrics(g.x("scores", g.rows, g.rows), ids(g), ids(g), 1)
    ],
    "hard_negatives.is_collapsed": lambda g: hn.is_collapsed(g.x("scores", g.rows, g.rows)),
    "hard_negatives.order_scores": lambda g: hn.order_scores(*pairs(g)),
    "hard_negatives.retrieval_metrics": lambda g: (
        hn.retrieval_metrics(g.x("scores", g.rows, g.rows), ids(g), ids(g)).mean_r
    ),
    "hard_negatives.retrieval_ranks": lambda g: hn.retrieval_ranks(
        g.x("scores", g.rows, g.rows), ids(g), ids(g)
    ),
    "linear_robustness.CircularConvLinear": linear(lambda: lr.CircularConvLinear((4,), 2, rng())),
    "linear_robustness.DeepLinear": linear(lambda: lr.DeepLinear(4, 2, rng())),
    "linear_robustness.LinearClassifier": linear(lambda: lr.LinearClassifier(4)),
    "linear_robustness.ProximalGradient": descend(
        lambda params: lr.ProximalGradient(params, 0.1, "l1", 0.05)
    ),
    "linear_robustness.SteepestDescent": descend(lambda params: lr.SteepestDescent(params, 0.1)),
    "linear_robustness.adversarial_paths": lambda g: lr.adversarial_paths(
        rows_of(g)[0],
        "l2",
        torch.tensor([0.1], dtype=g.dtype, device=g.device),
        lr=[0.1],
        record_at=[2],
    ),
    "linear_robustness.certificate": lambda g: lr.certificate(g.x("w", 3), *separable(g), "l2"),
    "linear_robustness.convolutional_paths": lambda g: (
        lr.convolutional_paths(rows_of(g), (3,), [1], lr=[0.1], record_at=[2], generator=rng()).beta
    ),
    "linear_robustness.dense_paths": lambda g: (
        lr.dense_paths(rows_of(g), lr=0.1, record_at=[2], generator=rng()).beta
    ),
    "linear_robustness.dual_vector": lambda g: lr.dual_vector(g.x("x", g.rows, 4), "l2"),
    "linear_robustness.enclosure": lambda g: (
        lr.enclosure(
            *separable(g), "l2", separator(g), torch.ones(g.rows, dtype=g.dtype, device=g.device)
        ).upper
    ),
    "linear_robustness.max_margin": lambda g: lr.max_margin(*separable(g), "l2").eps_star,
    "linear_robustness.norm": lambda g: lr.norm(g.x("x", g.rows, 4), "l2"),
    "linear_robustness.project": lambda g: lr.project(g.x("x", g.rows, 4), "l1", 0.5),
    "linear_robustness.prox": lambda g: lr.prox(g.x("x", g.rows, 4), "linf", 0.5),
    "linear_robustness.regularisation_path": lambda g: (
        lr.regularisation_path(rows_of(g), "l2", [0.1], steps=20).weights
    ),
    "linear_robustness.robust_error": lambda g: lr.robust_error(
        g.x("w", 3), *separable(g), "linf", 0.1
    ),
    "linear_robustness.robust_radius": lambda g: lr.robust_radius(
        g.x("w", 3), *separable(g), "linf"
    ),
    "linear_robustness.signed_rows": lambda g: lr.signed_rows(*separable(g)),
    "linear_robustness.steepest_descent_paths": lambda g: (
        lr.steepest_descent_paths(rows_of(g), ["l2"], record_at=[2]).weights
    ),
    "linear_robustness.steepest_direction": lambda g: lr.steepest_direction(
        g.x("g", g.rows, 4), "l2"
    ),
    "linear_robustness.worst_case_margin": lambda g: lr.worst_case_margin(
        g.x("w", 3), *separable(g), "l1", 0.1
    ),
    "linear_robustness.worst_case_perturbation": lambda g: lr.worst_case_perturbation(
        g.x("w", 3), g.signs(g.rows), "l1", 0.1
    ),
    "ordering.BatchScorer": lambda g: od.BatchScorer("max_loss", g.net(), cross_entropy)(
        *batches_of(g)
    ),
    "ordering.Copies": copied,
    "ordering.GraBSampler": grabbed,
    "ordering.PacedSampler": lambda g: list(
        od.PacedSampler(
            g.x("scores", 8),
            2,
            rng(),
            pacing=lambda progress: od.linear_pacing(progress, a=0.5, b=0.5),
            num_steps=4,
        )
    ),
    "ordering.RunningHardness": with_losses(od.RunningHardness),
    "ordering.batch_losses": lambda g: od.batch_losses(g.net(), cross_entropy, *batches_of(g)),
    "ordering.example_losses": lambda g: od.example_losses(
        g.net(), cross_entropy, g.x("x", g.rows, 4), g.labels(g.rows)
    ),
    "ordering.exhaustive_orders": exhausted,
    "ordering.largest_losses": lambda g: od.largest_losses(g.positive("losses", g.rows), 2),
    "ordering.position_shares": lambda g: od.position_shares(all_orders(3), g.x("values", 6)),
    "ordering.preserve_state": preserved,
    "ordering.self_paced_weights": lambda g: od.self_paced_weights(
        g.positive("losses", g.rows), 0.5
    ),
    "ordering.target_alignments": lambda g: od.target_alignments(
        g.net(), cross_entropy, *batches_of(g), target=(g.x("target", 3, 4), g.labels(3))
    ),
    "ordering.train_in_order": ordered,
    "ordering.trial_losses": lambda g: _trial(g),
}


def _trial(g: Given) -> Any:
    model = g.net()
    return od.trial_losses(model, sgd(model), cross_entropy, *batches_of(g))


# what cannot be called with tensors, and why
NO_TENSORS = {
    name: reason
    for reason, names in {
        "a type, a protocol or a named value": """attacks.AttackNorm
            gradient_clustering.GradientEstimator linear_robustness.Norm linear_robustness.NORMS
            linear_robustness.PlainNorm linear_robustness.StepRule""",
        "a result, made by functions that are walked": """autoassist.Path
            gradient_clustering.Clustering gradient_clustering.Factors gradient_clustering.Moments
            hard_negatives.RetrievalMetrics linear_robustness.Certificate
            linear_robustness.Enclosure linear_robustness.MaxMargin linear_robustness.NetworkPath
            linear_robustness.Path linear_robustness.RegularisationPath""",
        "an exception": """autoassist.WorkerError gradient_clustering.UnsupportedLayerError
            linear_robustness.NotSeparableError
            linear_robustness.SolverFailedError""",
        "takes numbers, names or shapes": """attacks.equal_bands attacks.radial_band
            attacks.FourierNorm
            autoassist.RandomSkip autoassist.constant_threshold autoassist.decaying_threshold
            autoassist.distance_bound autoassist.guarded_base
            autoassist.threshold_floor autoassist.violators cascading_sum.CascadeSchedule
            cascading_sum.PlateauCascade cascading_sum.stage_boundaries
            gradient_clustering.choose_route gradient_clustering.route_costs
            linear_robustness.FourierNorm linear_robustness.dual linear_robustness.second_solver
            ordering.exponential_pacing ordering.linear_pacing
            ordering.root_pacing ordering.step_pacing hard_negatives.rsum""",
        "takes integers or booleans that are no labels": """gradient_clustering.RandomSnoozeSampler
            gradient_clustering.StratifiedSampler hard_negatives.DistinctGroupBatchSampler
            hard_negatives.group_mask hard_negatives.subsample_negatives
            ordering.ForgettingTracker autoassist.AssistedSampler""",
        "asks functions that the caller wrote; their numbers are walked with the functions": """
            autoassist.AsyncBatches ordering.PerfectOrderingSampler ordering.SampleLossSampler""",
        "walked inside GradientClustering": "gradient_clustering.GradientCenters",
    }.items()
    for name in names.split()
}


def public_names() -> set[str]:
    """Every name of a package's ``__all__``."""
    return {f"{short}.{name}" for short, package in PACKAGES.items() for name in package.__all__}


def is_class(name: str) -> bool:
    """Whether a public name is a class."""
    package, _, attribute = name.partition(".")
    return inspect.isclass(getattr(PACKAGES[package], attribute))
