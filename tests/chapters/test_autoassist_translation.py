"""Chapter 3: translation with an Assistant, on toy sentences and a little of the real ones."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from companion.chapters.autoassist import corpora, translation
from companion.chapters.autoassist.corpora import (
    Corpus,
    Pairs,
    load_corpus,
    make_corpus,
    pack_text,
    sample_translations,
    unpack_text,
)
from companion.chapters.autoassist.stations import TokenBatches, Translation, cut_by_length
from companion.chapters.autoassist.translation import (
    Curves,
    Metrics,
    fit_translation,
    run_translation_with_control,
    train_translation,
)
from trainaug.data import subwords
from trainaug.data.arrays import DataUnavailableError
from trainaug.data.parallel_text import ParallelText, libreoffice_help
from trainaug.methods.autoassist import AssistedSampler
from trainaug.training.randomness import RandomBatchSampler, stream
from trainaug.training.translation import END, PAD, START, TranslationModel, translation_losses

pytestmark = pytest.mark.usefixtures("untouched_randomness")

WORDS = {"red": "rot", "blue": "blau", "tree": "Baum", "house": "Haus", "and": "und", "big": "groß"}
SMALL = Translation(
    data="libreoffice",  # in name only: a toy corpus is given
    assistant_lr=0.5,
    assistant_decay=0.1,
    tokens=3000,
    batch_tokens=100,
    pool=24,
    warm_up=5,
    lr=3e-3,
)
ASSISTED = replace(SMALL, sampler="assist")
Trained = tuple[Metrics, Curves]


def toy_text(count: int, seed: int) -> ParallelText:
    g = stream(seed, "candidates")
    source, target = [], []
    for _ in range(count):
        length = int(torch.randint(1, 6, (), generator=g))
        words = [list(WORDS)[i] for i in torch.randint(len(WORDS), (length,), generator=g).tolist()]
        source.append(" ".join(words))
        target.append(" ".join(WORDS[word] for word in words))
    return ParallelText(tuple(source), tuple(target))


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    sizes = {"train": 120, "val": 30, "test": 20}
    return make_corpus({part: toy_text(n, i) for i, (part, n) in enumerate(sizes.items())}, 60)


@pytest.fixture(scope="module")
def uniform(corpus) -> Trained:
    return train_translation(SMALL, 5, corpus=corpus)


@pytest.fixture(scope="module")
def assisted(corpus) -> Trained:
    return train_translation(ASSISTED, 5, corpus=corpus)


def test_data_and_model_agree_on_the_special_tokens():
    assert (PAD, START, END) == (subwords.PAD, subwords.START, subwords.END)


def test_pairs_are_shifted_and_cut_to_the_longest(corpus):
    pairs = corpus.pairs["train"]
    (source, before), target, index = pairs[[3, 8, 4]]
    assert index.tolist() == [3, 8, 4]
    assert target.shape[1] == int(pairs.lengths[[3, 8, 4]].max())
    assert source.shape[1] == int((pairs.source[[3, 8, 4]] != PAD).sum(1).max())
    assert bool((before[:, 0] == START).all())
    assert torch.equal(before[:, 1:], target[:, :-1])
    assert corpus.subwords.decode(target)[0] == corpus.texts["train"].target[3]


def test_batches_hold_their_pool_once_and_no_more_than_allowed(corpus):
    lengths = corpus.pairs["train"].lengths
    batches = cut_by_length(range(100), lengths, 100)
    assert sorted(row for batch in batches for row in batch) == list(range(100))
    assert all(len(batch) * int(lengths[batch].max()) <= 100 for batch in batches)
    for shorter, longer in pairwise(batches):  # as full as they can be
        assert (len(shorter) + 1) * int(lengths[longer[0]]) > 100


def test_a_sentence_longer_than_allowed_is_a_batch(corpus):
    assert sorted(cut_by_length([5, 2], corpus.pairs["train"].lengths, 1)) == [[2], [5]]


@pytest.mark.parametrize("budget", [1, 700, 3000])
def test_the_budget_is_kept_within_one_batch(corpus, budget):
    lengths = corpus.pairs["train"].lengths
    sampler = RandomBatchSampler(len(lengths), 24, stream(0, "order"))
    batches = TokenBatches(sampler, lengths, 100, budget, stream(0, "batches"))
    spent = [int(lengths[batch].sum()) for batch in batches]
    assert sum(spent[:-1]) < budget <= sum(spent) == batches.tokens


@pytest.mark.parametrize("evaluations", [1, 7])
def test_evaluations_are_equally_many_tokens_apart(corpus, evaluations):
    settings = replace(SMALL, tokens=600, evaluations=evaluations)
    for sampler in ("uniform", "assist"):
        curves = fit_translation(replace(settings, sampler=sampler), 1, corpus=corpus).curves
        assert len(curves["tokens"]) == len(curves["val_loss"]) == evaluations
        for number, tokens in enumerate(curves["tokens"], 1):
            assert 0 <= tokens - number * 600 / evaluations < 100  # within one batch


def test_plain_training_learns_and_costs_three_passes(uniform):
    metrics, curves = uniform
    assert curves["val_loss"][-1] < curves["val_loss"][0] - 0.5
    assert metrics["val/perplexity"] == pytest.approx(math.exp(curves["val_loss"][-1]))
    assert curves["work"] == [3 * tokens for tokens in curves["tokens"]]
    assert metrics["scanned"] == metrics["sentences"]


def test_validation_loss_is_the_mean_over_tokens(corpus):
    fitted = fit_translation(replace(SMALL, tokens=200, evaluations=1), 5, corpus=corpus)
    pairs, total = corpus.pairs["val"], 0.0
    for row in range(len(pairs)):
        x, y, _ = pairs[[row]]
        with torch.no_grad():
            total += float(translation_losses(fitted.model(x), y)) * y.shape[1]
    expected = total / int(pairs.lengths.sum())
    assert fitted.metrics["val/loss"] == pytest.approx(expected, rel=1e-5)  # float32 sums


def test_equal_seeds_give_equal_results(corpus, uniform, assisted):
    for settings, first in ((SMALL, uniform), (ASSISTED, assisted)):
        assert train_translation(settings, 5, corpus=corpus) == first
    other = fit_translation(SMALL, 6, corpus=corpus)
    assert other.curves["val_loss"] != uniform[1]["val_loss"]


def test_an_assistant_that_lets_all_through_changes_nothing(corpus, uniform):
    metrics, curves = train_translation(replace(ASSISTED, base=1.0), 5, corpus=corpus)
    for name in ("tokens", "val_loss"):
        assert curves[name] == uniform[1][name]
    for name in ("test/bleu", "test/chrf", "val/loss", "sentences", "steps"):
        assert metrics[name] == uniform[0][name]
    assert metrics["kept"] == 1.0
    assert set(curves["keep_rates"]) == {1.0}


def test_the_assistant_skips_and_costs_little(assisted):
    metrics, curves = assisted
    assert 0.3 < metrics["kept"] < 1
    assert metrics["scanned"] > metrics["sentences"]
    assert 0 < metrics["assistant_share"] < 0.1
    assert all(work > 3 * t for work, t in zip(curves["work"], curves["tokens"], strict=True))
    assert len(curves["auc"]) == len(curves["auc_loss"]) == 3
    assert all(0 <= auc <= 1 for auc in curves["auc"])


def test_with_epoch_means_the_first_pass_is_whole(corpus):
    fitted = fit_translation(replace(ASSISTED, mean="epoch"), 5, corpus=corpus)
    rates = fitted.curves["keep_rates"]
    assert rates[0] == 1.0
    assert min(rates) < 1.0


def test_random_skips_at_the_rates_of_the_assistant(corpus, assisted):
    rates = assisted[1]["keep_rates"]
    random = replace(SMALL, sampler="random")
    metrics = fit_translation(random, 5, corpus=corpus, keep_rates=rates).metrics
    slack = 4 * math.sqrt(0.25 / metrics["scanned"]) + 0.05  # passes end
    assert abs(metrics["kept"] - assisted[0]["kept"]) < slack
    assert metrics["work"] == 3 * metrics["tokens"]


def test_a_control_has_the_rates_of_its_assistant_and_its_own_learning_rate(monkeypatch):
    def train(
        settings: Translation, seed: int, *, keep_rates: list[float] | None = None
    ) -> Trained:
        return {"lr": settings.lr}, {"keep_rates": keep_rates or [settings.lr, 0.5]}

    monkeypatch.setattr(translation, "train_translation", train)
    record = run_translation_with_control(replace(ASSISTED, control_lr=0.25), 5)
    assert record.metrics == {"lr": 0.003, "random/lr": 0.25}
    assert record.curves["random/keep_rates"] == record.curves["keep_rates"] == [0.003, 0.5]


def test_self_paced_scans_as_uniform_and_weighs(corpus, uniform):
    fitted = fit_translation(replace(SMALL, sampler="selfpaced"), 5, corpus=corpus)
    assert fitted.metrics["sentences"] == uniform[0]["sentences"]
    assert fitted.curves["val_loss"] != uniform[1]["val_loss"]


def test_keep_rates_include_the_unfinished_pass():
    sampler = AssistedSampler(
        10,
        2,
        lambda index: torch.zeros(len(index)),
        stream(0, "order"),
        stream(0, "keep"),
        base=0.5,
    )
    list(sampler)
    whole = list(sampler.keep_rates)
    assert sampler.rates_so_far() == whole
    next(iter(sampler))
    scanned = sampler.scanned - 10
    assert sampler.rates_so_far() == [*whole, 2 / scanned]


def test_samples_are_of_the_test_part(corpus):
    fitted = fit_translation(replace(SMALL, tokens=100, evaluations=1), 5, corpus=corpus)
    samples = sample_translations(fitted.model, corpus, 4)
    assert [source for source, _, _ in samples] == list(corpus.texts["test"].source[::5])
    assert [target for _, target, _ in samples] == list(corpus.texts["test"].target[::5])
    with pytest.raises(ValueError, match="21"):
        sample_translations(fitted.model, corpus, 21)


def write_folder(folder: Path, data: str) -> dict[str, ParallelText]:
    """Write toy sentences in the official layouts; the target is German in WMT14."""
    folder = folder / data
    folder.mkdir()
    texts = {part: toy_text(n, i) for i, (part, n) in enumerate([("a", 40), ("b", 9), ("c", 8)])}
    names = {"iwslt14": ("train", "dev2010", "tst2012"), "wmt14": ("train", "valid", "test")}[data]
    for name, text in zip(names, texts.values(), strict=True):
        codes = ("en", "de") if data == "wmt14" else ("de", "en")
        for code, side in zip(codes, (text.source, text.target), strict=True):
            lines, file = list(side), f"{name}.{code}"
            if data == "iwslt14" and name == "train":
                lines, file = ["<url>http://x</url>", *side], f"train.tags.de-en.{code}"
            elif data == "iwslt14":
                segments = [f'<seg id="{i}">{line}</seg>' for i, line in enumerate(side, 1)]
                lines = ["<mteval>", *segments, "</mteval>"]
                file = f"IWSLT14.TED.{name}.de-en.{code}.xml"
            (folder / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return dict(zip(("train", "val", "test"), texts.values(), strict=True))


@pytest.mark.parametrize("data", corpora.FOLDERS)
def test_folders_of_the_cache_are_read_in_their_official_layouts(tmp_path, monkeypatch, data):
    monkeypatch.setattr(corpora, "DATA_CACHE", tmp_path)
    expected = write_folder(tmp_path, data)
    try:
        corpus = load_corpus(data, 3, 60)  # the most words are those of LibreOffice's help
    finally:
        load_corpus.cache_clear()
    assert dict(corpus.texts) == expected
    assert len(corpus.subwords) <= 60
    assert [len(pairs) for pairs in corpus.pairs.values()] == [40, 9, 8]
    with pytest.raises(ValueError, match="'wmt15'"):
        load_corpus("wmt15", 12, 60)


def test_only_training_sentences_are_kept_beyond_the_first():
    text = toy_text(51, 0)
    corpus = make_corpus({"train": text, "val": text, "test": text}, 60, held_out=50)
    assert [len(corpus.pairs[part]) for part in ("train", "val", "test")] == [51, 50, 50]
    assert corpus.texts["val"].source == text.source[:50]


@pytest.mark.parametrize("text", ["", "a", "ab", "Größe ändern", "ß", "€ und ü", "日本"])
def test_packed_texts_come_back(text):
    numbers = pack_text(text)
    assert all(type(number) is float and 0 <= number < 2**16 for number in numbers)
    assert unpack_text(numbers) == text


@pytest.mark.parametrize("text", ["x" * 200, "ü" * 100, "a" + "ü" * 100])
def test_long_texts_are_cut_at_a_whole_character(text):
    numbers = pack_text(text)
    assert len(numbers) == 59
    kept = unpack_text(numbers)
    assert text.startswith(kept)
    assert 117 <= len(kept.encode()) <= 118


def test_work_of_a_target_token_counts_every_matrix_once(corpus):
    model = TranslationModel(len(corpus.subwords), stream(5, "init"))
    pairs = corpus.pairs["train"]
    even = Pairs(pairs.source, pairs.source)  # as many source as target tokens
    matrices = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    assert translation.target_token_work(model, even) == matrices


def test_wrong_settings_are_refused(corpus):
    for name in ("tokens", "batch_tokens", "warm_up"):
        with pytest.raises(ValueError, match=f"{name} .* 0"):
            replace(SMALL, **{name: 0})
    with pytest.raises(ValueError, match="keep rates"):
        fit_translation(replace(SMALL, sampler="random"), 5, corpus=corpus)
    unknown = Translation.from_config({**vars(SMALL), "sampler": "clever"})
    with pytest.raises(ValueError, match="'clever'"):
        fit_translation(unknown, 5, corpus=corpus)


def test_a_little_of_the_real_sentences():
    try:
        libreoffice_help(12)
    except DataUnavailableError as error:
        pytest.skip(f"no LibreOffice help in the cache: {error}")
    real = Translation(
        data="libreoffice", sampler="assist", tokens=600, assistant_lr=0.5, assistant_decay=0.1
    )
    metrics, _ = train_translation(real, 5)
    assert 600 <= metrics["tokens"] < 1400
    assert metrics["val/loss"] < 1.3 * math.log(2000)  # of 2000 sub-words
