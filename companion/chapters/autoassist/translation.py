"""As good a translation from fewer sentences? A small Transformer, with an Assistant or its rivals.

Batches hold equally many padded tokens in every arm (the authors' 2500 and 3000 are a confound),
and runs end after equally many target tokens, those of sentences that were left out not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import sacrebleu
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR

from companion.chapters.autoassist.corpora import (
    HELD_OUT,
    Corpus,
    Pairs,
    load_corpus,
    pack_text,
    sample_translations,
)
from companion.chapters.autoassist.stations import TokenBatches, station
from trainaug.methods.autoassist import AssistedSampler
from trainaug.training.loop import train
from trainaug.training.models import undisturbed
from trainaug.training.randomness import stream
from trainaug.training.translation import (
    TranslationModel,
    greedy_decode,
    translation_losses,
)

__all__ = ["TRANSLATION", "Fitted", "fit_translation", "train_translation"]

LOOKS = 20  # at the validation part, after equally many target tokens each
PROBE_LOOKS = 5  # looks, about a pass, between two judgements of the Assistant's guesses

TRANSLATION: dict[str, Any] = {
    "data": "libreoffice",
    "sampler": "uniform",  # assist, random (at the rates of assist), selfpaced
    "max_words": 12,
    "vocabulary": 2000,
    "lr": 2e-3,
    "tokens": 600_000,  # target tokens that the Boss is trained on
    "batch_tokens": 800,  # padded target tokens
    "pool": 512,  # sentences decided on at once, then cut into batches of about equal length
    "warm_up": 200,  # steps
    "base": 0.3,
    "mean": "running",
    "assistant_lr": 0.5,
    "assistant_decay": 0.1,
    "pace_epochs": 2,  # passes until self-paced learning has all; the authors take 10 of 100
}


@dataclass
class Fitted:
    """A trained model with what was measured on the way; curves share the looks as their axis."""

    model: TranslationModel
    corpus: Corpus
    metrics: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)


def fit_translation(
    settings: Mapping[str, Any],
    seed: int,
    *,
    keep_rates: Sequence[float] | None = None,
    corpus: Corpus | None = None,
    looks: int = LOOKS,
    watch: Callable[[], object] = lambda: None,
) -> Fitted:
    """Train one arm.

    Args:
        settings: As `TRANSLATION`.
        seed: Seed of weights, order, decisions; the parts are fixed.
        keep_rates: Share kept in each pass, for ``sampler="random"``.
        corpus: Other data than LibreOffice's help; ``max_words`` and ``vocabulary`` then are idle.
        looks: Looks at the validation part.
        watch: Called after every update.

    Returns:
        Curves over the looks: ``tokens`` trained on, ``work`` (the forward and backward passes of
        Boss and Assistant, as forward passes of a target token), ``scanned`` sentences and
        ``val_loss`` a token. Over passes: ``keep_rates``, the unfinished last one included. Over
        judgements: ``auc``, how well guesses tell the training sentences of above mean loss about
        a pass later, with ``auc_loss`` and ``auc_length`` of the present loss and the length.

    Raises:
        ValueError: If a setting is wrong.
    """
    if min(settings["tokens"], settings["batch_tokens"], settings["warm_up"]) < 1:
        raise ValueError(f"tokens, batch_tokens and warm_up must be >= 1, got {dict(settings)}")
    if corpus is None:
        corpus = load_corpus(settings["data"], settings["max_words"], settings["vocabulary"])
    pairs, budget = corpus.pairs["train"], settings["tokens"]
    model = TranslationModel(len(corpus.subwords), stream(seed, "init"))
    batches = TokenBatches(
        None, pairs.lengths, settings["batch_tokens"], budget, stream(seed, "batches")
    )
    arm = station(
        settings, corpus, seed, keep_rates, lambda: len(batches.cut(list(range(len(pairs)))))
    )
    batches.sampler = arm.sampler
    optimizer = Adam(model.parameters(), settings["lr"], betas=(0.9, 0.98), fused=True)

    def clip(*_: Any) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)

    optimizer.register_step_pre_hook(clip)

    def rate(step: int) -> float:  # by tokens, so that it is the same in every arm
        late = min(1.0, batches.tokens / budget)
        return float(min(1.0, (step + 1) / settings["warm_up"]) * (1 - 0.95 * late))

    names = ("tokens", "work", "scanned", "val_loss", "auc", "auc_loss", "auc_length")
    fitted = Fitted(model, corpus, curves={name: [] for name in names})
    curves, boss = fitted.curves, _target_token_work(model, pairs)
    probe = torch.randperm(len(pairs), generator=stream(seed, "measure"))[:HELD_OUT]
    guesses: list[dict[str, Tensor]] = []

    def look() -> None:
        curves["tokens"].append(float(batches.tokens))
        curves["work"].append(3 * batches.tokens + arm.work() / boss)
        curves["scanned"].append(float(getattr(arm.sampler, "scanned", batches.sentences)))
        losses = _losses(model, corpus.pairs["val"])
        lengths = corpus.pairs["val"].lengths
        curves["val_loss"].append(float((losses * lengths).sum() / lengths.sum()))
        if arm.trainer is not None and len(curves["tokens"]) % PROBE_LOOKS == 0:
            now = {"_loss": _losses(model, pairs, probe), "_length": pairs.lengths[probe].float()}
            guesses.append({"": arm.trainer.predict(probe)} | now)

    def after(index: Tensor, losses: Tensor) -> None:
        if arm.feedback is not None:
            arm.feedback(index, losses)
        watch()
        while batches.tokens * looks >= budget * (len(curves["tokens"]) + 1):
            look()

    history = train(
        model,
        pairs,
        batches,
        translation_losses,
        optimizer,
        num_epochs=1,
        scheduler=LambdaLR(optimizer, rate),
        weights=arm.weights,
        feedback=after,
    )
    for before, later in pairwise(guesses):
        for name, guess in before.items():
            curves[f"auc{name}"].append(_auc(guess, later["_loss"]))
    final = curves["val_loss"][-1]
    fitted.metrics |= {
        "val/loss": final,
        "val/perplexity": float(torch.tensor(final, dtype=torch.float64).exp()),
        "tokens": float(batches.tokens),
        "sentences": float(batches.sentences),
        "steps": float(history.steps),
        "scanned": curves["scanned"][-1],
        "work": curves["work"][-1],
    }
    if isinstance(arm.sampler, AssistedSampler):
        curves["keep_rates"] = arm.sampler.rates_so_far()
        fitted.metrics["kept"] = arm.sampler.kept / arm.sampler.scanned
    if arm.trainer is not None:
        fitted.metrics |= {
            "positives": arm.trainer.positives,
            "confidence": arm.trainer.confidence,
            "assistant_share": arm.work() / (3 * batches.tokens * boss),
        }
    if guesses:  # with a few looks there are none
        last = guesses[-1][""]
        fitted.metrics |= {"guess/mean": float(last.mean()), "guess/sd": float(last.std())}
    return fitted


def train_translation(
    settings: Mapping[str, Any],
    seed: int,
    *,
    keep_rates: Sequence[float] | None = None,
    corpus: Corpus | None = None,
) -> dict[str, Any]:
    """Train one arm and translate the test part.

    Args and the curves as in `fit_translation`; equal for equal seeds on one thread.

    Returns:
        ``metrics``, with ``test/bleu`` and ``test/chrf`` of greedy translations, and ``curves``.
    """
    fitted = fit_translation(settings, seed, keep_rates=keep_rates, corpus=corpus)
    text, pairs = fitted.corpus.texts["test"], fitted.corpus.pairs["test"]
    found = fitted.corpus.subwords.decode(greedy_decode(fitted.model, pairs.source))
    references = [list(text.target)]
    scores = {
        "test/bleu": float(sacrebleu.corpus_bleu(found, references).score),
        "test/chrf": float(sacrebleu.corpus_chrf(found, references).score),
    }
    samples: dict[str, list[float]] = {}
    for number, texts in enumerate(sample_translations(fitted.model, fitted.corpus)):
        named = zip(("source", "reference", "found"), texts, strict=True)
        samples |= {f"sample/{number}/{name}": pack_text(text) for name, text in named}
    return {"metrics": fitted.metrics | scores, "curves": fitted.curves | samples}


def _losses(model: TranslationModel, pairs: Pairs, rows: Tensor | None = None) -> Tensor:
    """Losses of a token of sentences, ``(N,)``, in eval mode; the model is left undisturbed."""
    rows = torch.arange(len(pairs), device="cpu") if rows is None else rows
    losses = torch.empty(len(rows), device="cpu")
    with undisturbed(model), torch.no_grad():
        model.eval()
        for part in torch.split(pairs.lengths[rows].argsort(stable=True), 100):
            x, y, _ = pairs[rows[part].tolist()]
            losses[part] = translation_losses(model(x), y)
    return losses


def _auc(guess: Tensor, losses: Tensor) -> float:
    hard = (losses > losses.mean()).numpy()
    return float(roc_auc_score(hard, guess.numpy())) if 0 < hard.sum() < len(hard) else 0.5


def _target_token_work(model: TranslationModel, pairs: Pairs) -> float:
    """Multiply-adds of a forward pass, a target token, without those of the attention weights."""
    matrices = {
        part: sum(p.numel() for p in getattr(model, part).parameters() if p.ndim > 1)
        for part in ("encoder", "decoder", "embedding")
    }
    a_source_token = float(pairs.source_lengths.sum() / pairs.lengths.sum())
    dim, layers = model.embedding.embedding_dim, len(model.decoder.layers)
    looked_at = 2 * layers * dim**2  # of the decoder, for keys and values of the source
    of_source = matrices["encoder"] + looked_at
    of_target = matrices["decoder"] - looked_at + matrices["embedding"]
    return float(a_source_token * of_source + of_target)
