"""The loader of CIFAR on tiny files of the official binary format, and on files that are not."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from trainaug.data.arrays import Arrays, CorruptDataError, DataUnavailableError
from trainaug.data.cifar import load_cifar

TRAIN = {10: [f"data_batch_{i}.bin" for i in range(1, 6)], 100: ["train.bin"]}
TEST = {10: "test_batch.bin", 100: "test.bin"}
FOLDER = {10: "cifar-10-batches-bin", 100: "cifar-100-binary"}
BOTH = pytest.mark.parametrize("classes", [10, 100])
Files = dict[str, bytes]


def records(classes: int, count: int, seed: int) -> tuple[bytes, np.ndarray, np.ndarray]:
    """Write records byte by byte as the page says; also the pictures and classes they hold."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    y = rng.integers(0, classes, count, dtype=np.uint8)
    data = bytearray()
    for picture, label in zip(x, y, strict=True):
        data += bytes([label // 5, label] if classes == 100 else [label])
        for channel in picture:  # red, green, blue, row by row
            for row in channel:
                data += bytes(row.tolist())
    return bytes(data), x, y


def official(classes: int) -> tuple[Files, Arrays]:
    """Files of two to six records each, and what they hold."""
    names = [*TRAIN[classes], TEST[classes]]
    parts = [records(classes, 2 + i, seed=i) for i in range(len(names))]
    files = {name: data for name, (data, _, _) in zip(names, parts, strict=True)}
    held = {
        "train_x": np.concatenate([x for _, x, _ in parts[:-1]]),
        "train_y": np.concatenate([y for _, _, y in parts[:-1]]),
        "test_x": parts[-1][1],
        "test_y": parts[-1][2],
    }
    return files, held


def in_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def in_archive(folder: Path, files: Mapping[str, bytes], *, mode: str = "w:gz") -> Path:
    path = folder / "cifar.tar.gz"
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def load(path: Path, classes: int) -> Arrays:
    return load_cifar(path, classes, complete=False)  # type: ignore[arg-type]


def check(actual: Arrays, held: Arrays) -> None:
    assert set(actual) == {"train_x", "train_y", "test_x", "test_y"}
    for name, array in held.items():
        assert actual[name].dtype == np.uint8
        assert actual[name].flags.c_contiguous
        np.testing.assert_array_equal(actual[name], array)


# --- what is read


@BOTH
def test_folder_gives_pictures_and_classes_in_order(classes, tmp_path):
    files, held = official(classes)
    check(load(in_folder(tmp_path, files), classes), held)


@BOTH
@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
@pytest.mark.parametrize("prefix", ["official", "", "./", "deep/er/"])
def test_archive_gives_the_same_wherever_its_files_are(classes, mode, prefix, tmp_path):
    files, held = official(classes)
    prefix = f"{FOLDER[classes]}/" if prefix == "official" else prefix
    members = {f"{prefix}{name}": files[name] for name in reversed(files)}  # in any order
    members = {f"{prefix}readme.html": b"<html>", **members, f"{prefix}batches.meta.txt": b"cat"}
    check(load(in_archive(tmp_path, members, mode=mode), classes), held)
    assert [path.name for path in tmp_path.iterdir()] == ["cifar.tar.gz"]  # nothing is unpacked


@BOTH
def test_official_number_of_pictures_is_demanded_unless_told(classes, tmp_path):
    size = 3072 + (2 if classes == 100 else 1)
    for name in TRAIN[classes]:
        with (tmp_path / name).open("wb") as stream:  # zeros that take no space
            stream.truncate(50_000 // len(TRAIN[classes]) * size)
    with (tmp_path / TEST[classes]).open("wb") as stream:
        stream.truncate(10_000 * size)
    actual = load_cifar(tmp_path, classes)
    assert actual["train_x"].shape == (50_000, 3, 32, 32)
    assert actual["test_x"].shape == (10_000, 3, 32, 32)
    assert (len(actual["train_y"]), len(actual["test_y"])) == (50_000, 10_000)
    with (tmp_path / TEST[classes]).open("wb") as stream:
        stream.truncate(9_999 * size)
    with pytest.raises(CorruptDataError, match=f"{TEST[classes]}: 9999 pictures, expected 10000"):
        load_cifar(tmp_path, classes)
    assert len(load(tmp_path, classes)["test_y"]) == 9_999
    with (tmp_path / TEST[classes]).open("wb") as stream:
        stream.truncate(10_001 * size)
    with pytest.raises(CorruptDataError, match=f"{TEST[classes]}: 10001 pictures, expected 10000"):
        load(tmp_path, classes)


# --- refusals: the request, missing files


@pytest.mark.parametrize("classes", [0, 20, "10"])
def test_unknown_number_of_classes_raises(classes, tmp_path):
    with pytest.raises(ValueError, match=rf"one of \(10, 100\), got {classes!r}"):
        load(tmp_path, classes)


@BOTH
@pytest.mark.parametrize("pack", [in_folder, in_archive])
def test_missing_file_is_named_with_where_to_get_it(pack, classes, tmp_path):
    files, _ = official(classes)
    for name in files:
        less = {other: data for other, data in files.items() if other != name}
        path = tmp_path / name.replace(".", "-")
        path.mkdir()
        with pytest.raises(DataUnavailableError, match=rf"no {name} there") as caught:
            load(pack(path, less), classes)
        assert f"cifar-{classes}-binary.tar.gz" in str(caught.value)
        assert "https://www.cs.toronto.edu/~kriz/cifar.html" in str(caught.value)


@BOTH
def test_other_versions_and_places_name_what_was_expected(classes, tmp_path):
    pickled = in_archive(tmp_path, {"cifar-10-batches-py/data_batch_1": b"\x80\x02}"})
    for path in (pickled, tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataUnavailableError, match=", ".join([*TRAIN[classes], TEST[classes]])):
            load(path, classes)


def test_one_set_is_not_taken_for_the_other(tmp_path):
    files, _ = official(10)
    with pytest.raises(DataUnavailableError, match=r"no train\.bin, test\.bin"):
        load(in_folder(tmp_path, files), 100)


# --- refusals: contents


@BOTH
@pytest.mark.parametrize("pack", [in_folder, in_archive])
@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d + b"\0", lambda d: b""])
def test_wrong_length_raises_with_the_length(change, pack, classes, tmp_path):
    files, _ = official(classes)
    for name in (TRAIN[classes][-1], TEST[classes]):
        wrong = files | {name: change(files[name])}
        message = rf"{name}: {len(wrong[name])} bytes are not records of {1 + (classes == 100)} \+"
        with pytest.raises(CorruptDataError, match=message):
            load(pack(tmp_path, wrong), classes)


@pytest.mark.parametrize(
    ("classes", "position", "label", "limit"),
    [(10, 0, 10, 9), (10, 0, 255, 9), (100, 0, 20, 19), (100, 1, 100, 99)],
)
def test_label_out_of_range_raises_with_its_place(classes, position, label, limit, tmp_path):
    files, _ = official(classes)
    data = bytearray(files[TEST[classes]])
    data[(3072 + 1 + (classes == 100)) + position] = label
    files[TEST[classes]] = bytes(data)
    message = rf"{TEST[classes]}: label {label} of picture 1, expected 0 to {limit}"
    with pytest.raises(CorruptDataError, match=message):
        load(in_folder(tmp_path, files), classes)


# --- refusals: archives


@pytest.mark.parametrize("name", ["/etc/passwd", "../data_batch_1.bin", "a/../../b.txt"])
def test_unsafe_path_anywhere_raises(name, tmp_path):
    files, _ = official(10)
    with pytest.raises(CorruptDataError, match="unsafe path"):
        load(in_archive(tmp_path, {**files, name: b"x"}), 10)


def test_file_that_occurs_twice_raises(tmp_path):
    files, _ = official(100)
    with pytest.raises(CorruptDataError, match=r"no usable file 'other/train\.bin'"):
        load(in_archive(tmp_path, {**files, "other/train.bin": files["train.bin"]}), 100)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_link_in_a_files_place_raises(kind, tmp_path):
    path = tmp_path / "cifar.tar"
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("cifar-100-binary/train.bin")
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(CorruptDataError, match=r"no usable file 'cifar-100-binary/train\.bin'"):
        load(path, 100)


def test_file_that_claims_too_much_is_not_read(tmp_path):
    path = tmp_path / "cifar.tar"
    member = tarfile.TarInfo("train.bin")
    member.size = 1 << 40
    path.write_bytes(member.tobuf() + b"\0" * 1024)
    with pytest.raises(CorruptDataError, match=r"no usable file 'train\.bin'"):
        load(path, 100)


def test_damaged_archive_raises(tmp_path):
    files, _ = official(100)
    whole = in_archive(tmp_path, files).read_bytes()
    path = tmp_path / "damaged.tar.gz"
    flipped = []
    for position in range(20, len(whole), len(whole) // 20):  # pixels too: gzip has a checksum
        data = bytearray(whole)
        data[position] ^= 4
        flipped.append(bytes(data))
    for damaged in (b"", b"rubbish", whole[:-1], whole[: len(whole) // 2], *flipped):
        path.write_bytes(damaged)
        with pytest.raises(CorruptDataError, match=r"damaged\.tar\.gz: not a whole tar archive"):
            load(path, 100)


# --- refusals: files


@BOTH
def test_file_of_any_size_is_read_up_to_what_it_may_have(classes, tmp_path):
    files, _ = official(classes)
    folder = in_folder(tmp_path, files)
    with (folder / TEST[classes]).open("r+b") as stream:
        stream.truncate(1 << 40)  # takes no space
    with pytest.raises(CorruptDataError, match=f"{TEST[classes]}: 10001 pictures, expected 10000"):
        load(folder, classes)


@BOTH
def test_labels_are_bytes_and_pictures_may_be_written(classes, tmp_path):
    files, _ = official(classes)
    for array in load(in_folder(tmp_path, files), classes).values():
        assert array.dtype == np.uint8
        assert array.flags.writeable
