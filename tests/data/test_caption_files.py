"""Loaders of the published formats on tiny files that keep to them, and on files that do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainaug.data.caption_files import coco_captions, karpathy_captions, precomputed_features

COCO = {
    "info": {"year": 2014},
    "licenses": [{"id": 1}],
    "images": [
        {"id": 57870, "file_name": "COCO_train2014_000000057870.jpg", "height": 480, "width": 640},
        {"id": 384029, "file_name": "COCO_train2014_000000384029.jpg"},
        {"id": 7, "file_name": "COCO_train2014_000000000007.jpg"},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "caption": "A cat  on a sofa.\n"},
        {"id": 2, "image_id": 57870, "caption": " Ein schöner Tisch "},
        {"id": 3, "image_id": 384029, "caption": "a third"},
        {"id": 4, "image_id": 7, "caption": "a fourth"},
    ],
}


def karpathy_image(name: str, split: str, *captions: str, folder: str = "") -> dict[str, Any]:
    """State one picture as the official files do, with keys that nothing reads."""
    sentences = [{"raw": c, "tokens": c.lower().split(), "imgid": 0, "sentid": 1} for c in captions]
    image = {"filename": name, "imgid": 0, "sentids": [1], "split": split, "sentences": sentences}
    return image | ({"filepath": folder} if folder else {})


FLICKR = {
    "images": [
        karpathy_image("1000092795.jpg", "train", "Two young guys.", "Two men ."),
        karpathy_image("10002456.jpg", "test", "Several men in hard hats."),
        karpathy_image("1000268201.jpg", "train", "A child in a pink dress. "),
    ],
    "dataset": "flickr30k",
}
KARPATHY_COCO = {
    "images": [
        karpathy_image("COCO_val2014_3.jpg", "restval", "one", "two", folder="val2014"),
        karpathy_image("COCO_train2014_9.jpg", "train", "three", folder="train2014"),
        karpathy_image("COCO_val2014_4.jpg", "val", "four", folder="val2014"),
    ],
    "dataset": "coco",
}


@pytest.fixture
def write(tmp_path):
    def write(content: object) -> Path:
        file = tmp_path / "dataset_tiny.json"
        file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        return file

    return write


# --- COCO


def test_coco_captions_point_at_their_pictures(write) -> None:
    actual = coco_captions(write(COCO))
    assert actual.pictures == tuple(image["file_name"] for image in COCO["images"])
    assert actual.captions == ("A cat  on a sofa.", "Ein schöner Tisch", "a third", "a fourth")
    assert actual.image_ids.tolist() == [2, 0, 1, 2]
    assert actual.image_ids.dtype == np.int64
    assert actual.features is None


def without(content: dict[str, Any], part: str, row: int, key: str) -> dict[str, Any]:
    rows = [dict(entry) for entry in content[part]]
    del rows[row][key]
    return content | {part: rows}


BAD_COCO = [
    ({"annotations": []}, "no key 'images'"),
    ({"images": []}, "no key 'annotations'"),
    ({"images": {}, "annotations": []}, r"'images' is \{\}, expected list"),
    ({"images": [], "annotations": []}, "no captions"),
    ([1, 2], r"no key 'images' in \[1, 2\]"),
    (without(COCO, "images", 1, "id"), "no key 'id' in .*384029.jpg"),
    (without(COCO, "images", 0, "file_name"), "no key 'file_name' in .*57870"),
    (without(COCO, "annotations", 2, "image_id"), "no key 'image_id' in .*a third"),
    (without(COCO, "annotations", 2, "caption"), "no key 'caption' in .*384029"),
    (COCO | {"images": [*COCO["images"], COCO["images"][2]]}, "picture 7 occurs twice"),
    (COCO | {"images": COCO["images"][:2]}, "caption of unknown picture 7"),
    (COCO | {"annotations": COCO["annotations"][1:3]}, "'COCO_train2014_0*7.jpg' has no caption"),
    (COCO | {"annotations": []}, "no captions"),
    (COCO | {"annotations": [{"image_id": "7", "caption": "x"}]}, "'image_id' is 7, expected int"),
    (COCO | {"annotations": [{"image_id": 7, "caption": None}]}, "is None, expected str"),
    (COCO | {"annotations": ["text"]}, "no key 'image_id' in text"),
]


@pytest.mark.parametrize(("content", "message"), BAD_COCO, ids=[m for _, m in BAD_COCO])
def test_bad_coco_file_raises(content, message, write) -> None:
    with pytest.raises(ValueError, match=rf"dataset_tiny\.json: .*{message}"):
        coco_captions(write(content))


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"<html>"])
def test_file_that_is_not_json_raises(data, tmp_path) -> None:
    file = tmp_path / "captions.json"
    file.write_bytes(data)
    for load in (coco_captions, lambda file: karpathy_captions(file, "train")):
        with pytest.raises(ValueError, match=r"captions\.json: not JSON"):
            load(file)


def test_missing_file_raises(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        coco_captions(tmp_path / "nowhere.json")


# --- Karpathy's splits


def test_karpathy_flickr_part(write) -> None:
    actual = karpathy_captions(write(FLICKR), "train")
    assert actual.pictures == ("1000092795.jpg", "1000268201.jpg")
    assert actual.captions == ("Two young guys.", "Two men .", "A child in a pink dress.")
    assert actual.image_ids.tolist() == [0, 0, 1]
    assert actual.image_ids.dtype == np.int64
    assert karpathy_captions(write(FLICKR), "test").captions == ("Several men in hard hats.",)


def test_karpathy_restval_joins_the_training_part_on_request(write) -> None:
    file = write(KARPATHY_COCO)
    plain = karpathy_captions(file, "train")
    assert plain.pictures == ("train2014/COCO_train2014_9.jpg",)
    joined = karpathy_captions(file, "train", restval=True)
    assert joined.pictures == ("val2014/COCO_val2014_3.jpg", "train2014/COCO_train2014_9.jpg")
    assert joined.captions == ("one", "two", "three")
    assert joined.image_ids.tolist() == [0, 0, 1]
    assert karpathy_captions(file, "restval").captions == ("one", "two")


def test_karpathy_unknown_split_names_the_known_ones(write) -> None:
    file = write(FLICKR)
    with pytest.raises(ValueError, match=r"tiny\.json: no split 'dev'; it has \['test', 'train'\]"):
        karpathy_captions(file, "dev")
    with pytest.raises(ValueError, match=r"tiny\.json: no split 'restval'"):
        karpathy_captions(file, "train", restval=True)
    with pytest.raises(ValueError, match="restval belongs to the split 'train', got 'test'"):
        karpathy_captions(file, "test", restval=True)
    with pytest.raises(ValueError, match=r"no split 'train'; it has \[\]"):
        karpathy_captions(write({"images": []}), "train")


BAD_KARPATHY = [
    ({}, "no key 'images'"),
    (without(FLICKR, "images", 1, "split"), "no key 'split'"),
    (without(FLICKR, "images", 2, "filename"), "no key 'filename'"),
    (without(FLICKR, "images", 0, "sentences"), "no key 'sentences'"),
    ({"images": [karpathy_image("a.jpg", "train")]}, "no captions"),
    (
        {"images": [karpathy_image("a.jpg", "train"), karpathy_image("b.jpg", "train", "x")]},
        "picture 'a.jpg' has no caption",
    ),
    ({"images": [FLICKR["images"][0] | {"sentences": [{"tokens": []}]}]}, "no key 'raw'"),
    ({"images": [FLICKR["images"][0] | {"filepath": 3}]}, "'filepath' is 3, expected str"),
]


@pytest.mark.parametrize(("content", "message"), BAD_KARPATHY, ids=[m for _, m in BAD_KARPATHY])
def test_bad_karpathy_file_raises(content, message, write) -> None:
    with pytest.raises(ValueError, match=rf"dataset_tiny\.json: {message}"):
        karpathy_captions(write(content), "train")


# --- captions without a word, pictures that occur twice


def as_coco(*captions: list[str]) -> dict[str, Any]:
    notes = [(i, caption) for i, texts in enumerate(captions) for caption in texts]
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(len(captions))],
        "annotations": [{"image_id": i, "caption": caption} for i, caption in notes],
    }


def as_karpathy(*captions: list[str]) -> dict[str, Any]:
    pictures = [{"filename": f"{i}.jpg", "split": "train"} for i in range(len(captions))]
    sentences = [[{"raw": caption} for caption in texts] for texts in captions]
    return {"images": [p | {"sentences": s} for p, s in zip(pictures, sentences, strict=True)]}


FORMATS = pytest.mark.parametrize(
    ("make", "load"),
    [(as_coco, coco_captions), (as_karpathy, lambda file: karpathy_captions(file, "train"))],
    ids=["coco", "karpathy"],
)
WORDLESS = ["", "  ", "\n", "\u200b", "\xa0", "\ufeff", " .", "…"]


@FORMATS
@pytest.mark.parametrize("empty", WORDLESS)
def test_caption_without_a_word_is_left_out(empty, make, load, write) -> None:
    actual = load(write(make(["a teal mug", empty], [empty, "two oars\ufeff", empty], ["😀"])))
    assert actual.captions == ("a teal mug", "two oars", "😀")
    assert actual.image_ids.tolist() == [0, 1, 2]


@FORMATS
@pytest.mark.parametrize("empty", WORDLESS)
def test_picture_whose_captions_are_all_empty_is_named(empty, make, load, write) -> None:
    for captions in ([["a teal mug"], [empty, empty]], [[empty], [empty]]):
        name = f"{len(captions[0][0]) > 3:d}.jpg"
        with pytest.raises(ValueError, match=rf"tiny\.json: picture '{name}' has no caption"):
            load(write(make(*captions)))


@FORMATS
def test_picture_that_occurs_twice_is_named(make, load, write) -> None:
    content = make(["a"], ["b"], ["c"])
    for key in ("file_name", "filename"):
        content["images"][2][key] = "1.jpg"
    with pytest.raises(ValueError, match=r"tiny\.json: picture '1.jpg' occurs twice"):
        load(write(content))


@pytest.mark.parametrize("value", [None, 3, ["a"], {"raw": "a"}, True])
@FORMATS
def test_caption_that_is_no_text_is_named(value, make, load, write) -> None:
    with pytest.raises(ValueError, match=r"tiny\.json: '(caption|raw)' is .*, expected str"):
        load(write(make(["a mug"], ["two oars", value])))


# --- features in the VSE++ authors' layout

ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)
LINES = [f"caption {i}" for i in range(15)]


def layout(folder: Path, rows: np.ndarray, lines: list[str], split: str = "dev") -> Path:
    np.save(folder / f"{split}_ims.npy", rows)
    (folder / f"{split}_caps.txt").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return folder


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("repeats", [1, 5])
def test_precomputed_rows_stand_for_pictures(repeats, dtype, tmp_path) -> None:
    rows = ROWS.astype(dtype)
    actual = precomputed_features(layout(tmp_path, rows.repeat(repeats, axis=0), LINES), "dev")
    assert actual.pictures is None
    assert actual.features is not None
    np.testing.assert_array_equal(actual.features, rows)
    assert actual.features.dtype == dtype
    assert type(actual.features) is np.ndarray  # in memory, not the file mapped
    assert actual.captions == tuple(LINES)
    assert actual.image_ids.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert actual.image_ids.dtype == np.int64


@pytest.mark.parametrize("repeats", [1, 5])
def test_precomputed_single_picture(repeats, tmp_path) -> None:
    folder = layout(tmp_path, ROWS[:1].repeat(repeats, axis=0), LINES[:5])
    assert precomputed_features(folder, "dev").image_ids.tolist() == [0] * 5


def test_precomputed_lines_end_as_anywhere(tmp_path) -> None:
    folder = layout(tmp_path, ROWS[:1], [])
    text = "a\r\n é\u2028\re \n\nd\ne"  # a blank line counts, other separators do not
    (folder / "dev_caps.txt").write_bytes(text.encode())
    actual = precomputed_features(folder, "dev")
    assert actual.captions == ("a", "é\u2028\re", "d", "e")
    assert actual.image_ids.tolist() == [0] * 4


def test_precomputed_unknown_split_names_the_known_ones(tmp_path) -> None:
    folder = layout(layout(tmp_path, ROWS, LINES), ROWS, LINES, "testall")
    with pytest.raises(ValueError, match=r"no split 'val'; it has \['dev', 'testall'\]"):
        precomputed_features(folder, "val")
    (folder / "dev_caps.txt").unlink()
    with pytest.raises(ValueError, match=r"dev_caps\.txt: no such file"):
        precomputed_features(folder, "dev")


@pytest.mark.parametrize(
    ("rows", "lines", "message"),
    [
        (ROWS, LINES[:-1], "3 rows do not fit 14 captions"),
        (ROWS, LINES[:10], "3 rows do not fit 10 captions"),
        (ROWS.repeat(2, 0), LINES, "6 rows do not fit 15 captions"),
        (ROWS[:0], LINES, "0 rows do not fit 15 captions"),
        (ROWS, [], "3 rows do not fit 0 captions"),
        (np.arange(60.0).reshape(15, 4), LINES, "not repeated 5 times"),
        (np.tile(ROWS, (5, 1)), LINES, "not repeated 5 times"),
        (ROWS.astype(int), LINES, "not a floating point matrix"),
        (ROWS.ravel(), LINES, "not a floating point matrix"),
        (ROWS[None], LINES, "not a floating point matrix"),
        (np.array([[{"a": 1}]], dtype=object), LINES, "not a plain array"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_precomputed_bad_counts_and_arrays_raise(rows, lines, message, tmp_path) -> None:
    with pytest.raises(ValueError, match=rf"dev_ims\.npy: .*{message}"):
        precomputed_features(layout(tmp_path, rows, lines), "dev")


def test_precomputed_empty_and_damaged_files_raise(tmp_path) -> None:
    folder = layout(tmp_path, ROWS[:0], [])
    with pytest.raises(ValueError, match=r"dev_caps\.txt: no captions"):
        precomputed_features(folder, "dev")
    (folder / "dev_caps.txt").write_bytes(b"\xff\n" * 5)
    with pytest.raises(ValueError, match=r"dev_caps\.txt: not UTF-8"):
        precomputed_features(folder, "dev")
    whole = layout(tmp_path, ROWS, LINES) / "dev_ims.npy"
    for damaged in (b"", b"rubbish", whole.read_bytes()[:-9]):
        whole.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"dev_ims\.npy: not a plain array"):
            precomputed_features(folder, "dev")
    with whole.open("wb") as stream:
        np.savez(stream, x=ROWS)
    with pytest.raises(ValueError, match=r"dev_ims\.npy: not a plain array: it is a zip archive"):
        precomputed_features(folder, "dev")


@pytest.mark.parametrize("repeats", [1, 5])
@pytest.mark.parametrize("kind", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8"])
def test_precomputed_features_go_into_torch(kind, repeats, tmp_path) -> None:
    rows = np.asfortranarray(ROWS.repeat(repeats, axis=0).astype(kind))
    actual = precomputed_features(layout(tmp_path, rows, LINES), "dev").features
    assert actual is not None
    assert actual.dtype == (np.float64 if kind.endswith("8") else np.float32)
    assert actual.dtype.isnative
    assert actual.flags.c_contiguous
    assert actual.flags.writeable
    assert torch.equal(torch.from_numpy(actual).float(), torch.from_numpy(ROWS))


@pytest.mark.parametrize("kind", ["i4", "u1", "?", "c8", "U5", "longdouble", "f4,f4"])
def test_precomputed_other_types_are_named(kind, tmp_path) -> None:
    rows = np.zeros((3, 4), kind)
    if rows.dtype == np.float64:
        pytest.skip("longdouble is float64 here")
    with pytest.raises(ValueError, match=r"dev_ims\.npy: (not a floating|float128|longdouble)"):
        precomputed_features(layout(tmp_path, rows, LINES), "dev")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("repeats", "row"), [(1, 2), (5, 7), (5, 10)])
def test_precomputed_row_that_is_not_finite_is_named(repeats, row, value, tmp_path) -> None:
    rows = ROWS.repeat(repeats, axis=0)
    rows[row, 3] = value
    with pytest.raises(ValueError, match=rf"dev_ims\.npy: row {row} holds {value}"):
        precomputed_features(layout(tmp_path, rows, LINES), "dev")


def npy(header: str, version: int = 1, length: int | None = None) -> bytes:
    size = (length or len(header)).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + header.encode() + ROWS.tobytes()


def claim(shape: str, version: int = 1) -> bytes:
    return npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}\n", version)


DAMAGED = {
    "more rows": claim("(4, 4)"),
    "fewer rows": claim("(2, 4)"),
    "petabytes": claim("(4611686018427387904, 4)"),
    "negative": claim("(-3, -4)"),
    "no rows, huge ones": claim("(0, 9223372036854775807)"),
    "shape of text": claim("'34'"),
    "code": claim("(__import__('os').getpid(), 4)"),
    "parentheses": npy("(" * 9000),
    "signs": npy("-" * 9000 + "1"),
    "long header": npy("{}", 2, length=1 << 30),
    "future": claim("(3, 4)", 9),
    "magic": b"\x93NUMPY",
    "two arrays": claim("(3, 4)") + claim("(3, 4)"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_precomputed_header_is_not_trusted(what, tmp_path) -> None:
    folder = layout(tmp_path, ROWS, LINES)
    (folder / "dev_ims.npy").write_bytes(DAMAGED[what])
    with pytest.raises(ValueError, match=r"dev_ims\.npy: not a plain array"):
        precomputed_features(folder, "dev")


@pytest.mark.parametrize("version", [1, 2, 3])
def test_precomputed_header_of_every_version_is_read(version, tmp_path) -> None:
    folder = layout(tmp_path, ROWS, LINES)
    (folder / "dev_ims.npy").write_bytes(claim("(3, 4)", version))
    np.testing.assert_array_equal(precomputed_features(folder, "dev").features, ROWS)


def test_precomputed_blank_lines_keep_their_place(tmp_path) -> None:
    lines = [*LINES[:4], " ", *LINES[5:9], "\u200b", *LINES[10:]]
    actual = precomputed_features(layout(tmp_path, ROWS, lines), "dev")
    assert actual.captions == (*LINES[:4], *LINES[5:9], *LINES[10:])
    assert actual.image_ids.tolist() == [0] * 4 + [1] * 4 + [2] * 5
    lines[5:10] = [""] * 5
    with pytest.raises(ValueError, match=r"dev_caps\.txt: picture in row 1 has no caption"):
        precomputed_features(layout(tmp_path, ROWS, lines), "dev")
    with pytest.raises(ValueError, match="3 rows do not fit 16 captions"):
        precomputed_features(layout(tmp_path, ROWS, [*LINES, ""]), "dev")


def test_precomputed_folder_must_be_one(tmp_path) -> None:
    layout(tmp_path, ROWS, LINES)
    for path in (tmp_path / "nowhere", tmp_path / "dev_ims.npy"):
        with pytest.raises(ValueError, match=rf"{path.name}: is not a folder"):
            precomputed_features(path, "dev")
