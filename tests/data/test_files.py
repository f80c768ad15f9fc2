"""Files that people bring, through every loader: what stands in their place, encodings, paths."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainaug.data.arrays import (
    CorruptDataError,
    DataUnavailableError,
    read_arrays,
    write_arrays,
)
from trainaug.data.caption_files import coco_captions, karpathy_captions, precomputed_features
from trainaug.data.cifar import load_cifar
from trainaug.data.fetch import read_members
from trainaug.data.files import MissingFileError, as_path, has_text, has_words, read_json, stripped
from trainaug.data.idx import parse_idx_gz
from trainaug.data.parallel_text import iwslt_pairs, plain_pairs
from trainaug.data.placeholders import what_it_is

COCO = {
    "images": [{"id": 1, "file_name": "a.jpg"}],
    "annotations": [{"image_id": 1, "caption": "Ein Käse"}],
}
SPLIT = {
    "images": [{"filename": "a.jpg", "split": "train", "sentences": [{"raw": "Ein Käse"}]}],
}
XML = '<?xml version="1.0" encoding="UTF-8"?>\n<mteval><seg id="1"> Käse </seg></mteval>\n'
BINS = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]


def write_all(folder: Path) -> Path:
    """Write a small whole file of every format."""
    texts = {
        "coco.json": json.dumps(COCO, ensure_ascii=False),
        "split.json": json.dumps(SPLIT, ensure_ascii=False),
        "dev_caps.txt": "Käse\nb\nc\nd\ne\n",
        "train.en": "A cheese\nand bread\n",
        "train.de": "Ein Käse\nund Brot\n",
    }
    for code in ("de", "en"):
        texts[f"train.tags.de-en.{code}"] = "<url>x</url>\nEin Käse\n"
        texts[f"IWSLT14.TED.tst2012.de-en.{code}.xml"] = XML
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    np.save(folder / "dev_ims.npy", np.ones((1, 2), np.float32))
    write_arrays(folder / "set.npz", {"x": np.arange(3)})
    (folder / "x.gz").write_bytes(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 1, 7])))
    for name in BINS:
        (folder / name).write_bytes(bytes(3073))
    with tarfile.open(folder / "cifar.tar.gz", "w:gz") as archive:
        for name in BINS:
            archive.add(folder / name, arcname=name)
    return folder


Load = Callable[[Path], Any]
XML_FILE = "IWSLT14.TED.tst2012.de-en.de.xml"
# the file that a loader is given, and the call
TEXTS: dict[str, tuple[str, Load]] = {
    "coco": ("coco.json", lambda f: coco_captions(f / "coco.json")),
    "karpathy": ("split.json", lambda f: karpathy_captions(f / "split.json", "train")),
    "captions": ("dev_caps.txt", lambda f: precomputed_features(f, "dev")),
    "source": ("train.en", lambda f: plain_pairs(f / "train.en", f / "train.de")),
    "target": ("train.de", lambda f: plain_pairs(f / "train.en", f / "train.de")),
    "tags": ("train.tags.de-en.de", lambda f: iwslt_pairs(f, "train")),
    "xml": (XML_FILE, lambda f: iwslt_pairs(f, "tst2012")),
}
BYTES: dict[str, tuple[str, Load]] = {
    "features": ("dev_ims.npy", lambda f: precomputed_features(f, "dev")),
    "cache": ("set.npz", lambda f: read_arrays(f / "set.npz")),
    "cifar": ("cifar.tar.gz", lambda f: load_cifar(f / "cifar.tar.gz", 10, complete=False)),
    "bin": ("test_batch.bin", lambda f: load_cifar(f, 10, complete=False)),
    "members": ("cifar.tar.gz", lambda f: read_members(f / "cifar.tar.gz", {"x": BINS[0]})),
}
IDX: dict[str, tuple[str, Load]] = {
    "idx": ("x.gz", lambda f: parse_idx_gz((f / "x.gz").read_bytes(), what="x.gz"))
}
LOADERS = TEXTS | BYTES
REFUSALS = (ValueError, CorruptDataError)


@pytest.mark.parametrize("name", LOADERS | IDX)
def test_whole_files_load(name, tmp_path) -> None:
    _, load = (LOADERS | IDX)[name]
    assert load(write_all(tmp_path))


# --- what stands in a file's place


def packed() -> dict[str, bytes]:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("train.en", "a sentence")
    text = b"a sentence\nand another\n"
    return {
        "zip": archive.getvalue(),
        "gzip": gzip.compress(text),
        "bzip2": bz2.compress(text),
        "xz": lzma.compress(text),
        "zstd": b"\x28\xb5\x2f\xfd\x04\x58" + text,
    }


STAND_INS = {
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 52413\n",
    "git-annex": b"/annex/objects/SHA256E-s52413--00.en\n",
    "DVC": b"outs:\n- md5: 00\n  size: 52413\n  path: train.en\n",
    "HTML": b"<!DOCTYPE html>\n<html><head><title>403 Forbidden</title></head></html>\n",
    "HTML page": b"\xef\xbb\xbf \n<!-- cached -->\n<HTML lang=en>\n<body>Sign in</body></HTML>\n",
    "XML message": b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>',
    "'404: Not Found'": b"404: Not Found",
    "JSON": b'{"message": "Not Found",\n "status": 404}',
} | packed()


@pytest.mark.parametrize("what", STAND_INS)
@pytest.mark.parametrize("name", LOADERS | IDX)
def test_what_stands_in_a_files_place_is_told(name, what, tmp_path) -> None:
    file, load = (LOADERS | IDX)[name]
    write_all(tmp_path)
    (tmp_path / file).write_bytes(STAND_INS[what])
    with pytest.raises(REFUSALS) as caught:
        load(tmp_path)
    assert file in str(caught.value)
    read_itself = {
        "cifar": ("gzip", "bzip2", "xz"), "members": ("gzip", "bzip2", "xz"), "cache": ("zip",),
        "idx": ("gzip",), "coco": ("JSON",), "karpathy": ("JSON",),
    }  # fmt: skip
    if what not in read_itself.get(name, ()):
        assert what in str(caught.value)


@pytest.mark.parametrize(
    "line", ["<unk> a", "<i>One</i> two", "Version 2", "{x} is", "[applause]", "Not found here"]
)
def test_sentences_are_not_taken_for_something_else(line, tmp_path) -> None:
    assert what_it_is(line.encode()) is None
    for name in ("train.en", "train.de"):
        (tmp_path / name).write_text(f"{line}\nsecond\n")
    assert plain_pairs(tmp_path / "train.en", tmp_path / "train.de").source[0] == line


MARKUP = {
    "sgml": '<srcset setid="newstest2014" srclang="any">\n<doc docid="a">\n',
    "upper case": '<REFSET SETID="x">\n',
    "tmx": '<?xml version="1.0"?>\n<!DOCTYPE tmx SYSTEM "tmx14.dtd">\n<tmx version="1.4">\n',
    "segments": '<seg id="1">A heron</seg>\n<seg id="2">It flew</seg>\n',
    "comment": "<!-- newstest -->\nA heron\n",
    "europarl": "\n<CHAPTER ID=1>\nResumption\n",
    "talk": "<url>http://www.ted.com</url>\nA heron\n",
}


@pytest.mark.parametrize("side", ["en", "de"])
@pytest.mark.parametrize("what", MARKUP)
def test_markup_is_no_sentence(what, side, tmp_path) -> None:
    write_all(tmp_path)
    file = tmp_path / f"train.{side}"
    file.write_text(MARKUP[what])
    with pytest.raises(ValueError, match=rf"train\.{side}: not plain text: it begins with"):
        plain_pairs(tmp_path / "train.en", tmp_path / "train.de")


# --- encodings and line ends


@pytest.mark.parametrize("name", TEXTS)
def test_byte_order_mark_is_no_text(name, tmp_path) -> None:
    file, load = TEXTS[name]
    expected = load(write_all(tmp_path))
    path = tmp_path / file
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    actual = load(tmp_path)
    for field in ("source", "target", "captions"):
        assert getattr(actual, field, None) == getattr(expected, field, None)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-le", "utf-16-be", "latin-1"])
@pytest.mark.parametrize("name", TEXTS)
def test_other_encodings_are_refused(name, encoding, tmp_path) -> None:
    file, load = TEXTS[name]
    write_all(tmp_path)
    text = (tmp_path / file).read_text("utf-8").replace("A cheese", "A Käse")
    (tmp_path / file).write_bytes(text.encode(encoding))
    with pytest.raises(ValueError, match=f"{file}: .*(not UTF-8|UTF-16|JSON)"):
        load(tmp_path)


def test_the_byte_that_is_not_utf_8_has_a_line(tmp_path) -> None:
    write_all(tmp_path)
    (tmp_path / "train.en").write_bytes(b"one\ntwo\nK\xe4se\n")
    with pytest.raises(ValueError, match=r"train\.en: not UTF-8.*byte 0xe4 in line 3"):
        plain_pairs(tmp_path / "train.en", tmp_path / "train.de")


@pytest.mark.parametrize("name", ["source", "target", "captions", "tags"])
def test_carriage_returns_alone_and_nul_are_refused(name, tmp_path) -> None:
    file, load = TEXTS[name]
    write_all(tmp_path)
    for content, message in ((b"a\rb\rc\r", "carriage returns"), (b"a\nb\0\n", "NUL .*line 2")):
        (tmp_path / file).write_bytes(content)
        with pytest.raises(ValueError, match=f"{file}: .*{message}"):
            load(tmp_path)


@pytest.mark.parametrize("mark", ["\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"])
def test_only_line_feeds_end_a_line(mark, tmp_path) -> None:
    english = f"\ufeffA{mark}cheese{mark}\r\nand bread\ufeff\n"
    (tmp_path / "train.en").write_bytes(english.encode())
    (tmp_path / "train.de").write_bytes("\ufeffEin Käse\nund Brot".encode())
    actual = plain_pairs(tmp_path / "train.en", tmp_path / "train.de")
    assert actual.source == (f"A{mark}cheese", "and bread")
    assert actual.target == ("Ein Käse", "und Brot")


BLANKS = ["", " ", "\t\r", "\u200b", "\xa0", "\ufeff", "\u2060\u200d", "\u3000", "\u2800", "\x1a"]


@pytest.mark.parametrize("blank", BLANKS)
def test_line_that_shows_nothing_is_an_empty_side(blank, tmp_path) -> None:
    assert not has_text(blank)
    (tmp_path / "train.en").write_bytes(f"{blank}\nand bread\n".encode())
    (tmp_path / "train.de").write_bytes("Ein Käse\nund Brot\n".encode())
    assert plain_pairs(tmp_path / "train.en", tmp_path / "train.de").target == ("und Brot",)


def test_words_text_and_ends() -> None:
    assert [has_words(t) for t in (" .", "…!", "7", "+", "ß", "\u200bа", "\u3164")] == [
        *(False, False, True, True, True, True, False)
    ]
    assert stripped("\ufeff \ufeffa\u200d b \ufeff\n") == "a\u200d b"


# --- JSON

BAD_JSON = {
    "nested lists": "[" * 100_000,
    "nested objects": '{"images":' * 100_000,
    "nested in time": '{"images": [' + "[" * 500 + "]" * 500 + '], "annotations": []}',
    "key twice": '{"images": [], "annotations": [], "images": []}',
    "NaN": '{"images": [], "annotations": [NaN]}',
    "infinity": '{"images": [], "annotations": [-Infinity]}',
    "digits": '{"images": [{"id": ' + "9" * 5000 + "}]}",
    "trailing": json.dumps(COCO) + "x",
    "cut": json.dumps(COCO)[:-3],
    "two": json.dumps(COCO) + "\n" + json.dumps(COCO),
    "no object": "[1, 2]",
    "text": '"images"',
    "null": "null",
    "empty": "",
    "NUL": json.dumps(COCO).replace("Ein", "Ein\0"),
    "escaped NUL": json.dumps(COCO | SPLIT).replace("Ein", "\\u0000"),
    "half a character": json.dumps(COCO).replace("Ein", "\\ud800"),
    "true as a number": json.dumps(COCO).replace('"id": 1', '"id": true'),
    "text as a number": json.dumps(COCO).replace('"id": 1', '"id": "1"'),
    "a fraction": json.dumps(COCO).replace('"id": 1', '"id": 1e999'),
}


@pytest.mark.parametrize("name", ["coco", "karpathy"])
@pytest.mark.parametrize("what", BAD_JSON)
def test_json_that_is_no_annotation_is_named(what, name, tmp_path) -> None:
    file, load = TEXTS[name]
    (tmp_path / file).write_text(BAD_JSON[what])
    with pytest.raises(ValueError, match=rf"{file}: ") as caught:
        load(tmp_path)
    assert type(caught.value) is ValueError


def test_json_numbers_and_characters_stay(tmp_path) -> None:
    (tmp_path / "x.json").write_text('\ufeff{"a": [1, 2.5, "\\ud83d\\ude00", true, null]}', "utf-8")
    assert read_json(tmp_path / "x.json") == {"a": [1, 2.5, "😀", True, None]}


# --- paths


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("kind", ["folder", "pipe", "missing", "link", "annexed", "below a file"])
def test_no_file_in_a_files_place_is_named(kind, name, tmp_path) -> None:
    file, load = LOADERS[name]
    path = write_all(tmp_path) / file
    if kind == "below a file":
        (tmp_path / "plain").write_text("x")
        with pytest.raises((*REFUSALS, DataUnavailableError), match="plain"):
            load(tmp_path / "plain")
        return
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind != "missing":
        path.symlink_to("nowhere" if kind == "link" else ".git/annex/objects/aa/SHA256E-s1")
    with pytest.raises((*REFUSALS, DataUnavailableError)) as caught:
        load(tmp_path)
    cause = str(caught.value)
    assert file in cause or (name == "features" and "no split 'dev'" in cause)
    if kind == "annexed" and name not in ("cifar", "bin"):
        assert "git annex get" in cause


def test_missing_file_is_both_errors() -> None:
    assert issubclass(MissingFileError, FileNotFoundError)
    assert issubclass(MissingFileError, ValueError)


@pytest.mark.parametrize("as_given", [str, lambda p: p, lambda p: f"~/{p.name}"])
def test_paths_are_text_or_path_and_may_begin_at_home(as_given, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    folder = tmp_path / "given"
    folder.mkdir()
    write_all(folder)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    path = as_given(folder)
    inside = (lambda name: f"{path}/{name}") if isinstance(path, str) else path.joinpath
    assert coco_captions(inside("coco.json")).captions == ("Ein Käse",)
    assert karpathy_captions(inside("split.json"), "train").captions == ("Ein Käse",)
    assert len(precomputed_features(path, "dev").captions) == 5
    assert len(plain_pairs(inside("train.en"), inside("train.de"))) == 2
    assert len(iwslt_pairs(path, "train")) == len(iwslt_pairs(path, "tst2012")) == 1
    assert load_cifar(path, 10, complete=False)["test_y"].tolist() == [0]
    assert load_cifar(inside("cifar.tar.gz"), 10, complete=False)["test_y"].tolist() == [0]
    assert read_arrays(inside("set.npz"))["x"].tolist() == [0, 1, 2]
    write_arrays(inside("new/set.npz"), {"x": np.arange(2)})
    assert (folder / "new" / "set.npz").is_file()


@pytest.mark.parametrize(("path", "error"), [(3, TypeError), (b"x", TypeError), (None, TypeError)])
def test_what_is_no_path_is_refused(path, error) -> None:
    with pytest.raises(error, match=r"text or a pathlib\.Path"):
        as_path(path)


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_path_that_names_nothing_is_refused(path) -> None:
    with pytest.raises(ValueError, match="path must not be empty or hold a NUL"):
        as_path(path)


def test_tilde_of_nobody_is_a_name(tmp_path) -> None:
    assert as_path("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")
