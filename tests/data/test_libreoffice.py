"""LibreOffice's help: decoding of hand-made pages, a route of two packages, the real set."""

from __future__ import annotations

import hashlib
import io
import tarfile

import numpy as np
import pytest

from trainaug.data import registry
from trainaug.data.arrays import Arrays, CorruptDataError
from trainaug.data.fetch import Route, RouteError, attempts
from trainaug.data.libreoffice_decode import (
    decode,
    page_paragraphs,
    sentence_pairs,
    text_arrays,
    texts_of,
)


def page(*paragraphs: str) -> bytes:
    head = '<!DOCTYPE html><html><head><title>One two three.</title><script>"<p>"</script></head>'
    return f'{head}<body><p dir="auto">No id at all.</p>{"".join(paragraphs)}</body>'.encode()


FILES = {
    "en/b/two.html": page('<p id="x">Click the icon. Go on!</p>', '<h6 id="h">Using the grid</h6>'),
    "de/b/two.html": page(
        '<h6 id="h">Das Raster einsetzen</h6>', '<p id="x">Klicken Sie hier. Weiter!</p>'
    ),
    "en/a/one.html": page('<p id="x">Save a file.</p>', '<p id="y">Only in English here.</p>'),
    "de/a/one.html": page('<p id="x">Eine Datei sichern.</p>', '<p id="z">Nur auf Deutsch.</p>'),
    "en/a/none.html": page('<p id="x">Equal on both sides.</p>'),
    "de/a/none.html": page('<p id="x">Equal on both sides.</p>'),
    "en/a/alone.html": page('<p id="x">This page is alone.</p>'),
    "de/b/allein.html": page('<p id="x">Diese Seite ist allein.</p>'),
    "en/a/picture.svg": b"\xff",
    "de/a/picture.svg": b"\xff",
}


def contents(arrays: Arrays) -> list[tuple[str, str, str]]:
    names = texts_of(arrays, "page")
    pages = [names[number] for number in arrays["pages"]]
    return list(zip(pages, texts_of(arrays, "source"), texts_of(arrays, "target"), strict=True))


def test_tiny_pages_are_paired_by_page_and_id() -> None:
    actual = decode(FILES)
    assert contents(actual) == [
        ("a/one", "Save a file.", "Eine Datei sichern."),
        ("b/two", "Click the icon.", "Klicken Sie hier."),
        ("b/two", "Using the grid", "Das Raster einsetzen"),
    ]
    assert {name: array.dtype for name, array in actual.items()} == {
        **{f"{side}_bytes": np.uint8 for side in ("source", "target", "page")},
        **{f"{side}_offsets": np.int64 for side in ("source", "target", "page")},
        "pages": np.int64,
    }
    backwards = decode(dict(reversed(FILES.items())))
    for name, array in actual.items():
        np.testing.assert_array_equal(backwards[name], array)


def test_repeated_pair_is_kept_in_both_pages() -> None:
    again = {f"{code}/c/three.html": FILES[f"{code}/b/two.html"] for code in ("en", "de")}
    assert [name for name, *_ in contents(decode(FILES | again))].count("c/three") == 2


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (FILES | {"de/a/one.html": b"<p id='x'>\xff</p>"}, "de/a/one.html: not UTF-8"),
        ({name: data for name, data in FILES.items() if name < "en"}, "no sentence pair"),
        ({}, "no sentence pair"),
    ],
    ids=["bytes", "one language", "nothing"],
)
def test_damaged_pages_are_corrupt(files, message) -> None:
    with pytest.raises(CorruptDataError, match=message):
        decode(files)


# --- one page


@pytest.mark.parametrize("tag", ["p", "h1", "h2", "h3", "h4", "h5", "h6"])
def test_paragraphs_and_headings_with_an_id_are_read(tag) -> None:
    html = f'<{tag} id="k" class="paragraph">A &amp; B&nbsp;c\n  d </{tag}><{tag}>no</{tag}> after'
    assert page_paragraphs(html) == {"k": "A & B c d"}


@pytest.mark.parametrize("tag", ["div", "td", "li", "span", "a", "header"])
def test_other_elements_are_not_read(tag) -> None:
    assert page_paragraphs(f'<{tag} id="k">text</{tag}>') == {}


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ('<p id="k" class="code">Dim x</p>', {}),
        ('<p id="k" class="wide code">Dim x</p>', {}),
        ('<p id="k" class="codeintable">x</p>', {"k": "x"}),
        ('<p id="k" class>x</p>', {"k": "x"}),
        ('<p id="k"> \n<img src="x.png"></p>', {}),
        ('<p id="k">first</p><p id="k">second</p>', {"k": "first"}),
        ('<p id="k">open <p id="l">next', {"k": "open", "l": "next"}),
        ('<p id="k" class="code">open <p id="l">next</p>', {"l": "next"}),
    ],
)
def test_code_empty_repeated_and_unclosed_paragraphs(html, expected) -> None:
    assert page_paragraphs(html) == expected


@pytest.mark.parametrize(
    ("inside", "expected"),
    [
        ("<span>Press <b>Command</b></span><span><b>Ctrl</b></span>+B", "Press Command Ctrl+B"),
        ("Extras – Optionen…<span>Ansicht</span>", "Extras – Optionen… Ansicht"),
        ("Open<a href='x'>this</a>", "Open this"),
        ("<i>Sub</i>routine", "Subroutine"),
        ("a <b>bold</b>, (<i>slanted</i>) <u>word</u>.", "a bold, (slanted) word."),
        ("end.<br>Next<br/>line", "end. Next line"),
        ("file.<b>txt</b>", "file.txt"),
        ("Ctrl+<b>F5</b>", "Ctrl+F5"),
    ],
)
def test_words_do_not_run_together_at_inline_elements(inside, expected) -> None:
    assert page_paragraphs(f'<p id="k">{inside}</p>') == {"k": expected}


# --- sentences


def words(count: int, word: str = "a") -> str:
    return " ".join([word] * count)


@pytest.mark.parametrize(
    ("source", "target", "kept"),
    [
        (words(3), words(3, "b"), 1),
        (words(2), words(3, "b"), 0),
        (words(3), words(2, "b"), 0),
        (words(40), words(40, "b"), 1),
        (words(41), words(40, "b"), 0),
        (words(40), words(41, "b"), 0),
        (words(10), words(4, "b"), 1),  # ratio 0.4
        (words(11), words(4, "b"), 0),
        (words(10), words(20, "b"), 1),  # ratio 2
        (words(10), words(21, "b"), 0),
        (words(4), words(4), 0),  # equal
        ("a b c. d e f.", "g h i.", 0),  # 2 sentences and 1
        ("a b c. d e f.", "a b c. g h i.", 1),  # one of two is equal
        ("a b c? d e f! g h i", "j k l. m n o. p q r.", 3),
        ("a b 1.5 c", "d e 1,5 f", 1),  # no white space, no end
    ],
)
def test_each_filter_at_its_bounds(source, target, kept) -> None:
    assert len(list(sentence_pairs(source, target))) == kept


def test_sentences_keep_order_and_marks() -> None:
    actual = list(sentence_pairs("One two three? Four. Five six seven.", "A b c! D. E f g."))
    assert actual == [("One two three?", "A b c!"), ("Five six seven.", "E f g.")]


@pytest.mark.parametrize("texts", [(), ("",), ("ä", "", "車 x", "b")])
def test_texts_survive_arrays(texts) -> None:
    arrays = text_arrays("t", texts)
    assert texts_of(arrays, "t") == texts
    assert arrays["t_offsets"].shape == (len(texts) + 1,)


# --- a route of two packages


def tar_of(language: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in FILES.items():
            if name.startswith(language):
                member = tarfile.TarInfo(f"./help/{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


PACKAGES = {"tiny-en": tar_of("en"), "tiny-de": tar_of("de")}
SUMS = {name: hashlib.sha256(data).hexdigest() for name, data in PACKAGES.items()}


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the route with stubs on PATH; the download copies the packages that it names."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name, data in PACKAGES.items():
        (tmp_path / f"{name}_1.deb").write_bytes(data)
    monkeypatch.setenv("PATH", str(bin_folder))

    def get(after: str = "", **sums: str) -> Arrays:
        copies = "".join(
            f'case "$*" in *download*{name}*) /bin/cp {tmp_path}/{name}_1.deb .;; esac\n'
            for name in PACKAGES
        )
        log = f'echo "$*" >> {tmp_path}/apt.log\n'
        stubs = {"apt-get": f"{log}{copies}{after}", "dpkg-deb": '/bin/cat "$2"'}
        for name, body in stubs.items():
            (bin_folder / name).write_text(f"#!/bin/sh\n{body}\n")
            (bin_folder / name).chmod(0o755)
        stated = Route(
            kind="debian",
            package="tiny-en tiny-de",
            decoder="libreoffice",
            files={"en": "tiny-en:help/en/", "de": "tiny-de:help/de/"},
            sha256=SUMS | {f"tiny-{code}": value for code, value in sums.items()},
        )
        [(label, fetch)] = attempts(stated)
        assert label == "apt-get download tiny-en tiny-de"
        return fetch()

    return get


def test_two_packages_come_in_one_download(run, tmp_path) -> None:
    assert contents(run()) == contents(decode(FILES))
    [line] = (tmp_path / "apt.log").read_text().splitlines()
    assert line.endswith("download tiny-en tiny-de")


@pytest.mark.parametrize("code", ["en", "de"])
def test_each_package_has_its_own_checksum(run, code) -> None:
    message = rf"tiny-{code}_1.deb: sha256 {SUMS[f'tiny-{code}']}, expected 0000"
    with pytest.raises(CorruptDataError, match=message):
        run(**{code: "0" * 64})


@pytest.mark.parametrize(
    ("after", "count"),
    [("/bin/rm -f tiny-de*", 1), ("/bin/cp tiny-de_1.deb b_1.deb", 3)],
)
def test_missing_or_foreign_packages_are_named_by_number(run, after, count) -> None:
    with pytest.raises(RouteError, match=f"left {count} packages, expected 2"):
        run(after)


def test_package_of_another_name_is_refused(run) -> None:
    with pytest.raises(RouteError, match="apt-get left other, tiny-en"):
        run("/bin/mv tiny-de_1.deb other_1.deb")


# --- the real set


def test_entry_is_optional_and_pins_both_packages() -> None:
    entry = registry.info("libreoffice_help")
    assert entry.optional
    [route] = entry.routes
    assert set(route.package.split()) == set(route.sha256)
    assert {source.partition(":")[0] for source in route.files.values()} == set(route.sha256)


def test_real_set_has_the_counts_of_its_description() -> None:
    if not registry.cache_path("libreoffice_help").exists():
        pytest.skip("libreoffice_help is optional and not in the cache")
    data = registry.load("libreoffice_help")
    actual = contents(data)
    title = registry.info("libreoffice_help").title.replace(" ", "")
    distinct = {(source, target) for _, source, target in actual}
    assert (len(actual), len(distinct), len(texts_of(data, "page"))) == (45652, 35866, 2531)
    assert all(str(number) in title for number in (45652, 35866, 2531))
    assert len({name for name, *_ in actual}) == 2531
    assert not any("\0" in text or "  " in text for _, *pair in actual for text in pair)
    source = "The dialog will dim until the connection is established with the server."
    target = "Der Dialog wird abgedunkelt, bis die Verbindung mit dem Server aufgebaut wurde."
    assert (source, target) in distinct
