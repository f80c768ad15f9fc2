"""Parallel text: the split of LibreOffice's help, and tiny files in the official layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trainaug.data import parallel_text, registry
from trainaug.data.libreoffice_decode import text_arrays
from trainaug.data.parallel_text import (
    PARTS,
    ParallelText,
    _page_part,
    iwslt_pairs,
    libreoffice_help,
    plain_pairs,
)


def test_sides_must_be_equally_long() -> None:
    assert len(ParallelText(("a", "b"), ("c", "d"))) == 2
    with pytest.raises(ValueError, match="2 sources for 1 targets"):
        ParallelText(("a", "b"), ("c",))


# --- LibreOffice


def test_pages_are_shared_out_by_their_names_alone() -> None:
    parts = [_page_part(f"page/{i}") for i in range(4000)]
    shares = [parts.count(part) / 4000 for part in PARTS]
    assert shares == pytest.approx([0.9, 0.05, 0.05], abs=0.014)  # four standard errors of 5 %
    assert _page_part("page/7") == parts[7]


ROWS = [  # page, English, German
    ("t1", "Press F5 to start.", "Drücken Sie F5."),
    ("t1", "Press F5 to start.", "Drücken Sie F5."),  # twice in a part
    ("t2", "Press F5 to start.", "F5 drücken Sie."),  # another German sentence
    ("v1", "press f12 TO start.", "Levelled away aus v1."),
    ("v1", "Press Esc to start.", "Bleibt in v1 stehen."),
    ("v1", "a b c d e", "f g h"),
    ("e1", "Press F5 to start.", "Weg aus e1."),
    ("e1", "Press Esc to start.", "Bleibt in e1 stehen."),  # also in validation: stays
    ("t2", "one two three four five", "eins zwei drei vier fünf"),
    ("e1", "ONE two three four five", "kurz und weg"),
    ("e1", "short one here", "ein langer Satz auf Deutsch"),
]


@pytest.fixture
def tiny(monkeypatch):
    names = sorted({page for page, *_ in ROWS})
    data = {
        **text_arrays("page", names),
        **text_arrays("source", [source for _, source, _ in ROWS]),
        **text_arrays("target", [target for *_, target in ROWS]),
        "pages": np.array([names.index(page) for page, *_ in ROWS]),
    }
    monkeypatch.setattr(registry, "load", {"libreoffice_help": data}.__getitem__)
    parts = {"t": "train", "v": "val", "e": "test"}
    monkeypatch.setattr(parallel_text, "_page_part", lambda name: parts[name[0]])


def pairs(text: ParallelText) -> list[tuple[str, str]]:
    return list(zip(text.source, text.target, strict=True))


def test_tiny_set_is_split_by_page_without_what_training_knows(tiny) -> None:
    actual = libreoffice_help()
    assert list(actual) == list(PARTS)
    rows = {
        name: [ROWS[i][1:] for i in kept]
        for name, kept in {"train": (0, 2, 8), "val": (4, 5), "test": (7, 10)}.items()
    }
    assert {name: pairs(text) for name, text in actual.items()} == rows


def test_short_sentences_are_short_on_both_sides(tiny) -> None:
    actual = libreoffice_help(max_words=4)
    rows = {"train": [0, 2], "val": [4], "test": [7]}  # row 9 is known though training lost row 8
    assert {name: pairs(text) for name, text in actual.items()} == {
        name: [ROWS[i][1:] for i in kept] for name, kept in rows.items()
    }


@pytest.mark.parametrize("words", [2, 0, -1])
def test_fewer_words_than_any_sentence_has_are_refused(words) -> None:
    with pytest.raises(ValueError, match=f"at least 3, got {words}"):
        libreoffice_help(words)


@pytest.mark.parametrize(
    ("words", "counts"), [(None, (32750, 1438, 1615)), (12, (18173, 774, 753))]
)
def test_real_set_is_split_as_the_docstring_says(words, counts) -> None:
    if not registry.cache_path("libreoffice_help").exists():
        pytest.skip("libreoffice_help is optional and not in the cache")
    actual = libreoffice_help(words)
    assert tuple(len(text) for text in actual.values()) == counts
    train = {source.lower() for source in actual["train"].source}
    for name in ("val", "test"):
        assert not train.intersection(source.lower() for source in actual[name].source)
    for text in actual.values():
        assert len(set(pairs(text))) == len(text)
        lengths = [len(side.split()) for pair in pairs(text) for side in pair]
        assert min(lengths) >= 3
        assert max(lengths) == (words or 40)


# --- WMT14


def write(folder: Path, **contents: str | bytes) -> Path:
    for name, content in contents.items():
        data = content if isinstance(content, bytes) else content.encode()
        (folder / name.replace("__", "-").replace("_", ".")).write_bytes(data)
    return folder


def test_plain_files_are_read_line_by_line(tmp_path) -> None:
    write(tmp_path, train_en="A\u2028b c. \r\n\n d\nlast\n", train_de=" Ä b.\nleer\nD\n\n")
    actual = plain_pairs(tmp_path / "train.en", tmp_path / "train.de")
    assert pairs(actual) == [("A\u2028b c.", "Ä b."), ("d", "D")]


def test_last_line_needs_no_end(tmp_path) -> None:
    write(tmp_path, train_en="a\nb", train_de="c\nd\n")
    assert len(plain_pairs(tmp_path / "train.en", tmp_path / "train.de")) == 2


@pytest.mark.parametrize(
    ("english", "german", "message"),
    [
        ("a\nb\n", "c\n", r"train.en has 2 sentences, train.de has 1"),
        ("a\n", b"\xff\n", r"train.de: not UTF-8"),
        (b"\xe4\n", "a\n", r"train.en: not UTF-8"),
        ("", "", r"train.en: no pair of sentences"),
        ("a\n\n", "\nb\n", r"train.en: no pair of sentences"),
    ],
)
def test_files_that_do_not_fit_are_named(english, german, message, tmp_path) -> None:
    write(tmp_path, train_en=english, train_de=german)
    with pytest.raises(ValueError, match=message):
        plain_pairs(tmp_path / "train.en", tmp_path / "train.de")


def test_missing_file_is_named(tmp_path) -> None:
    write(tmp_path, train_en="a")
    with pytest.raises(ValueError, match=r"train.de: no such file"):
        plain_pairs(tmp_path / "train.en", tmp_path / "train.de")


# --- IWSLT14


def tags(title: str, *sentences: str) -> str:
    lines = [
        "<url>http://www.ted.com/talks/x.html</url>",
        "<keywords>talks, science</keywords>",
        "<speaker>A. Speaker</speaker>",
        "<talkid>1</talkid>",
        f"<title>{title}</title>",
        f"<description>TED Talk: {title}.</description>",
        *sentences,
        "<reviewer></reviewer>",
        "<translator href='http://www.ted.com/profiles/1'>T. R.</translator>",
    ]
    return "\n".join(lines) + "\n"


def xml(language: str, *segments: str) -> str:
    lines = [f'<seg id="{i}"> {text} </seg>' for i, text in enumerate(segments, start=1)]
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<mteval>\n'
        f'<refset setid="iwslt2014-dev2010" srclang="de" trglang="{language}">\n'
        '<doc docid="535" genre="lectures">\n<url>http://www.ted.com</url>\n'
        "<title>A <b>title</b></title>\n" + "\n".join(lines) + "\n</doc>\n</refset>\n</mteval>\n"
    )


@pytest.fixture
def folder(tmp_path):
    names = {
        "train.tags.de-en.de": tags("Titel", "Danke sehr.", " <i>Eins</i> zwei.", ""),
        "train.tags.de-en.en": tags("Title", "Thank you.", "<i>One</i> two.", "left over"),
        "IWSLT14.TED.dev2010.de-en.de.xml": xml("de", "Käse &amp; Brot", "zwei\nZeilen"),
        "IWSLT14.TED.dev2010.de-en.en.xml": xml("en", "Cheese &amp; bread", "two lines"),
        "IWSLT14.TEDX.dev2012.de-en.de.xml": xml("de", "X eins"),
        "IWSLT14.TEDX.dev2012.de-en.en.xml": xml("en", "X one"),
    }
    for name, content in names.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    return tmp_path


def test_training_tags_are_dropped(folder) -> None:
    expected = [("Danke sehr.", "Thank you."), ("<i>Eins</i> zwei.", "<i>One</i> two.")]
    assert pairs(iwslt_pairs(folder, "train")) == expected
    other = iwslt_pairs(folder, "train", source="en", target="de")
    assert pairs(other) == [(b, a) for a, b in expected]


def test_segments_are_read_and_entities_replaced(folder) -> None:
    expected = [("Käse & Brot", "Cheese & bread"), ("zwei\nZeilen", "two lines")]
    assert pairs(iwslt_pairs(folder, "dev2010")) == expected
    assert pairs(iwslt_pairs(folder, "dev2012", "en", "de")) == [("X one", "X eins")]


DEV = "IWSLT14.TED.dev2010.de-en.en.xml"


@pytest.mark.parametrize(
    ("name", "content", "split", "message"),
    [
        (DEV, xml("en", "only one"), "dev2010", r"de.xml has 2 sentences, .*en.xml has 1"),
        (DEV, xml("en"), "dev2010", r"dev2010.de-en.en.xml: no <seg> element"),
        (DEV, b"<seg>\xff</seg>", "dev2010", r"dev2010.de-en.en.xml: not UTF-8"),
        (DEV, None, "dev2010", r"dev2010.de-en.en.xml: no such file"),
        ("train.tags.de-en.de", tags("x", "a"), "train", r"de-en.de has 1 sentences, .*en has 3"),
        ("train.tags.de-en.de", None, "train", r"train.tags.de-en.de: no such file"),
        ("x", b"", "tst2099", r"no split 'tst2099' of de-en; it has \['IWSLT14.TED.dev2010"),
    ],
)
def test_faults_of_the_official_layout_are_named(name, content, split, message, folder) -> None:
    file = folder / name
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        iwslt_pairs(folder, split)


def test_training_file_of_tags_alone_has_no_pair(folder) -> None:
    for code in ("de", "en"):
        (folder / f"train.tags.de-en.{code}").write_text(tags("x"), encoding="utf-8")
    with pytest.raises(ValueError, match="no pair of sentences"):
        iwslt_pairs(folder, "train")
