"""As good a translation from fewer sentences? A small Transformer, with an Assistant or its rivals.

The Transformer is the *Boss*; the *Assistant* decides which sentences it trains on. Batches hold
equally many padded tokens in every arm (the authors' 2500 and 3000 are a confound), and runs end
after equally many target tokens, not counting those of sentences that were left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import sacrebleu
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR

from companion.chapters.autoassist.corpora import (
    Corpus,
    Pairs,
    pack_text,
    sample_translations,
)
from companion.chapters.autoassist.stations import (
    Station,
    TokenBatches,
    Translation,
    make_station,
)
from companion.lab.device import run_device
from companion.lab.results import Result, make_result
from trainaug.methods.autoassist import AssistedSampler
from trainaug.training.devices import device_of, to_device
from trainaug.training.loop import train
from trainaug.training.randomness import stream
from trainaug.training.translation import (
    TranslationModel,
    greedy_decode,
    translation_losses,
)
from trainaug.undisturbed import undisturbed

__all__ = [
    "Fitted",
    "fit_translation",
    "run_translation",
    "run_translation_with_control",
    "target_token_work",
    "train_translation",
]

FORWARDS = 3  # cost of a training step: one forward pass, and a backward pass that costs two
Metrics = dict[str, float]
Curves = dict[str, list[float]]


@dataclass
class Fitted:
    """A trained model with what was measured on the way.

    Curves over the evaluations are ``tokens`` trained on, ``work`` (the forward and backward passes
    of Boss and Assistant, as forward passes of a target token), ``scanned`` sentences and
    ``val_loss`` per token. The curve over passes is ``keep_rates``, the unfinished last one
    included. Curves over judgements are ``auc``, how well the Assistant's guesses tell which
    training sentences have an above mean loss about a pass later, and ``auc_loss`` and
    ``auc_length``, how well the present loss and the length do.
    """

    model: TranslationModel
    corpus: Corpus
    metrics: Metrics = field(default_factory=dict)
    curves: Curves = field(default_factory=dict)


class _Notes:
    """Watch a training: what it spent, its validation loss, and the Assistant's guesses."""

    def __init__(
        self,
        settings: Translation,
        fitted: Fitted,
        station: Station,
        batches: TokenBatches,
        seed: int,
    ) -> None:
        self.settings, self.fitted = settings, fitted
        self.station, self.batches = station, batches
        self.pairs = fitted.corpus.pairs["train"]
        self.boss = target_token_work(fitted.model, self.pairs)  # of a forward pass
        order = torch.randperm(len(self.pairs), generator=stream(seed, "measure"))
        self.probe = order[: settings.probe]
        # guesses of the Assistant and of the two other guessers, by suffix of their curve
        self.guesses: list[dict[str, Tensor]] = []
        names = ("tokens", "work", "scanned", "val_loss", "auc", "auc_loss", "auc_length")
        fitted.curves |= {name: [] for name in names}

    def is_due(self) -> bool:
        """Whether enough tokens are spent for the next evaluation."""
        done = len(self.fitted.curves["tokens"])
        return self.batches.tokens * self.settings.evaluations >= self.settings.tokens * (done + 1)

    def evaluate(self) -> None:
        """Note the validation loss and what was spent, and at some evaluations the guesses."""
        model, curves, held_out = self.fitted.model, self.fitted.curves, self.fitted.corpus.pairs
        tokens, sampler = self.batches.tokens, self.station.sampler
        curves["tokens"].append(float(tokens))
        curves["work"].append(FORWARDS * tokens + self.station.work() / self.boss)
        scanned = self.batches.sentences
        if isinstance(sampler, AssistedSampler):
            scanned = sampler.scanned
        curves["scanned"].append(float(scanned))
        losses = self._losses(model, held_out["val"])
        lengths = held_out["val"].lengths
        curves["val_loss"].append(float((losses * lengths).sum() / lengths.sum()))
        trainer = self.station.trainer
        if trainer is not None and len(curves["tokens"]) % self.settings.probe_every == 0:
            now = self._losses(model, self.pairs, self.probe)
            lengths = self.pairs.lengths[self.probe].float()
            guess = trainer.predict(self.probe).cpu()
            self.guesses.append({"": guess, "_loss": now, "_length": lengths})

    def finish(self, num_steps: int) -> None:
        """Judge the guesses and fill in the metrics."""
        metrics, curves, sampler = self.fitted.metrics, self.fitted.curves, self.station.sampler
        for before, later in pairwise(self.guesses):
            for name, guess in before.items():
                curves[f"auc{name}"].append(_auc(guess, later["_loss"]))
        final = curves["val_loss"][-1]
        metrics |= {
            "val/loss": final,
            "val/perplexity": float(torch.tensor(final, dtype=torch.float64).exp()),
            "tokens": float(self.batches.tokens),
            "sentences": float(self.batches.sentences),
            "steps": float(num_steps),
            "scanned": curves["scanned"][-1],
            "work": curves["work"][-1],
        }
        if isinstance(sampler, AssistedSampler):
            curves["keep_rates"] = sampler.rates_so_far()
            metrics["kept"] = sampler.kept / sampler.scanned
        if (trainer := self.station.trainer) is not None:
            boss = FORWARDS * self.batches.tokens * self.boss
            metrics["positives"] = trainer.positives
            metrics["confidence"] = trainer.confidence
            metrics["assistant_share"] = self.station.work() / boss
        if self.guesses:  # with a few evaluations there are none
            last = self.guesses[-1][""]
            metrics |= {"guess/mean": float(last.mean()), "guess/sd": float(last.std())}

    def _losses(self, model: nn.Module, pairs: Pairs, rows: Tensor | None = None) -> Tensor:
        """Mean loss per token of each sentence, ``(N,)``, in eval mode; the model is undisturbed.

        ``rows`` are the numbers of the N sentences, all by default. Sentences and losses are on the
        CPU.
        """
        device = device_of(model)
        rows = torch.arange(len(pairs), device="cpu") if rows is None else rows
        losses = torch.empty(len(rows), device="cpu")
        by_length = pairs.lengths[rows].argsort(stable=True)
        with undisturbed(model), torch.no_grad():
            model.eval()
            for part in torch.split(by_length, self.settings.eval_batch):
                x, y, _ = to_device(pairs[rows[part].tolist()], device)
                losses[part] = translation_losses(model(x), y).cpu()
        return losses


def fit_translation(
    settings: Translation,
    seed: int,
    *,
    keep_rates: Sequence[float] = (),
    corpus: Corpus | None = None,
    watch: Callable[[], object] = lambda: None,
) -> Fitted:
    """Train one arm.

    Args:
        settings: Those of the arm.
        seed: Draws weights, order, decisions; the parts are fixed.
        keep_rates: Share kept in each pass, for ``sampler="random"``.
        corpus: Other sentences than those of the settings.
        watch: Called after every update.

    Returns:
        The trained model, and what was measured of it.

    Raises:
        ValueError: If a setting is wrong.
    """
    corpus = settings.corpus() if corpus is None else corpus
    pairs, budget = corpus.pairs["train"], settings.tokens
    model = TranslationModel(len(corpus.subwords), stream(seed, "init")).to(run_device())
    station = make_station(settings, corpus, seed, keep_rates)
    batches = TokenBatches(
        station.sampler, pairs.lengths, settings.batch_tokens, budget, stream(seed, "batches")
    )
    optimizer = Adam(model.parameters(), settings.lr, betas=settings.betas, fused=True)

    def clip(*_: object) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip)

    optimizer.register_step_pre_hook(clip)

    def rate(step: int) -> float:  # by tokens, so that it is the same in every arm
        spent = min(1.0, batches.tokens / budget)
        return float(min(1.0, (step + 1) / settings.warm_up) * (1 - settings.rate_fall * spent))

    fitted = Fitted(model, corpus)
    notes = _Notes(settings, fitted, station, batches, seed)

    def after(index: Tensor, losses: Tensor) -> None:
        if station.feedback is not None:
            station.feedback(index, losses)
        watch()
        while notes.is_due():
            notes.evaluate()

    history = train(
        model,
        pairs,
        batches,
        translation_losses,
        optimizer,
        num_epochs=1,
        scheduler=LambdaLR(optimizer, rate),
        weights=station.weights,
        feedback=after,
    )
    notes.finish(history.steps)
    return fitted


def train_translation(
    settings: Translation,
    seed: int,
    *,
    keep_rates: Sequence[float] = (),
    corpus: Corpus | None = None,
) -> tuple[Metrics, Curves]:
    """Train one arm and translate the test part; arguments as in `fit_translation`.

    On one thread equal seeds give equal numbers.

    Returns:
        Metrics, with ``test/bleu`` and ``test/chrf`` of greedy translations, and curves.
    """
    fitted = fit_translation(settings, seed, keep_rates=keep_rates, corpus=corpus)
    text, pairs = fitted.corpus.texts["test"], fitted.corpus.pairs["test"]
    source = pairs.source.to(device_of(fitted.model))
    translated = fitted.corpus.subwords.decode(greedy_decode(fitted.model, source).cpu())
    references = [list(text.target)]
    scores = {
        "test/bleu": float(sacrebleu.corpus_bleu(translated, references).score),
        "test/chrf": float(sacrebleu.corpus_chrf(translated, references).score),
    }
    samples: Curves = {}
    rows = sample_translations(fitted.model, fitted.corpus, settings.samples)
    for number, texts in enumerate(rows):
        for name, sample in zip(("source", "reference", "found"), texts, strict=True):
            samples[f"sample/{number}/{name}"] = pack_text(sample)
    return fitted.metrics | scores, fitted.curves | samples


def run_translation(settings: Translation, seed: int) -> Result:
    """Train an arm and translate the test part."""
    return make_result(*train_translation(settings, seed))


def run_translation_with_control(settings: Translation, seed: int) -> Result:
    """Train an arm with an Assistant, then its control, which keeps equal shares at random."""
    metrics, curves = train_translation(settings, seed)
    control = train_translation(settings.control(), seed, keep_rates=curves["keep_rates"])
    metrics |= {f"random/{name}": value for name, value in control[0].items()}
    curves |= {f"random/{name}": values for name, values in control[1].items()}
    return make_result(metrics, curves)


def _auc(guess: Tensor, losses: Tensor) -> float:
    """AUC of a guess for losses above their mean; 0.5 if none or all are above."""
    hard = (losses > losses.mean()).numpy()
    return float(roc_auc_score(hard, guess.numpy())) if 0 < hard.sum() < len(hard) else 0.5


def target_token_work(model: TranslationModel, pairs: Pairs) -> float:
    """Multiply-adds of a forward pass per target token, without those of the attention weights."""
    matrices = {
        part: sum(p.numel() for p in getattr(model, part).parameters() if p.ndim > 1)
        for part in ("encoder", "decoder", "embedding")
    }
    source_tokens = float(pairs.source_lengths.sum() / pairs.lengths.sum())  # per target token
    dim, layers = model.embedding.embedding_dim, len(model.decoder.layers)
    crossing = 2 * layers * dim**2  # decoder weights that give keys and values of source tokens
    per_source = matrices["encoder"] + crossing
    per_target = matrices["decoder"] - crossing + matrices["embedding"]
    return float(source_tokens * per_source + per_target)
