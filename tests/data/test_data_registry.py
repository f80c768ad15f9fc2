"""The real registry and the real cache.

Nothing here is skipped when a data set is missing, unless it is optional: see `test_tuxpaint`.
"""

from __future__ import annotations

import hashlib
import re
import time

import numpy as np
import pytest

from companion.paths import ROOT
from trainaug.data import paths, registry
from trainaug.data.arrays import CorruptDataError, DataUnavailableError, hash_arrays

NAMES = ["fashion_mnist", "digits", "breast_cancer", "iris", "gaussian", "emoji_captions"]
ALL_NAMES = [*NAMES, "tuxpaint", "libreoffice_help"]  # the last two are optional
CLASS_ARRAYS = ("train_x", "train_y", "test_x", "test_y")


def class_arrays(*arrays):
    return dict(zip(CLASS_ARRAYS, arrays, strict=True))


def test_registry_lists_every_data_set_with_a_pinned_hash() -> None:
    assert registry.names() == NAMES
    assert registry.names(optional=True) == ALL_NAMES
    for name in ALL_NAMES:
        entry = registry.info(name)
        assert re.fullmatch("[0-9a-f]{64}", registry.content_hash(name)), name
        assert entry.content_sha256.strip("0"), name
        assert all([entry.title, entry.licence, entry.source, entry.routes]), name
    assert len({registry.content_hash(name) for name in ALL_NAMES}) == len(ALL_NAMES)


def test_network_routes_pin_every_archive() -> None:
    for name in ALL_NAMES:
        for route in registry.info(name).routes:
            if route.kind == "mirror":
                assert set(route.files) == set(route.sha256) == set(CLASS_ARRAYS)
            elif route.kind == "debian":
                keys = {"tuxpaint": {"stamps"}, "libreoffice_help": {"en", "de"}}
                assert set(route.files) == keys.get(name, set(CLASS_ARRAYS))
                packages = route.package.split()
                assert set(route.sha256) == ({"archive"} if len(packages) == 1 else {*packages})
            elif route.kind == "npm":
                packages = {source.rpartition(":")[0] for source in route.files.values()}
                assert packages == set(route.sha256)
                assert all(re.search(r"[^@]@[\d.]+$", package) for package in packages)
            else:
                assert registry.info(name).is_local
            assert all(re.fullmatch("[0-9a-f]{64}", h) for h in route.sha256.values())


def test_mirror_files_are_the_ones_torchvision_lists() -> None:
    from torchvision.datasets import FashionMNIST

    [mirror] = [r for r in registry.info("fashion_mnist").routes if r.kind == "mirror"]
    assert mirror.torchvision == "FashionMNIST"
    assert not mirror.urls
    assert set(mirror.files.values()) == {name for name, _ in FashionMNIST.resources}


def test_readme_names_every_data_set() -> None:
    readme = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in readme for name in ALL_NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_content_is_the_pinned_one(name: str) -> None:
    registry.verify(name)
    assert hash_arrays(registry.load(name)) == registry.content_hash(name)


@pytest.mark.parametrize("function", ["info", "fetch", "verify", "load", "content_hash"])
def test_unknown_name_raises_with_the_known_ones(function: str) -> None:
    with pytest.raises(ValueError, match="'cifar99'; known: fashion_mnist, digits"):
        getattr(registry, function)("cifar99")


def test_missing_cache_names_the_command_where_nothing_can_be_fetched(
    monkeypatch, tmp_path
) -> None:
    monkeypatch.setattr(paths, "DATA_CACHE", tmp_path)
    monkeypatch.setattr("trainaug.data.registry.attempts", lambda route: [])
    for function in (registry.load, registry.verify):
        with pytest.raises(DataUnavailableError, match=r"trainaug\.data fetch fashion_mnist"):
            function("fashion_mnist")
    states = {row["name"]: row["state"] for row in registry.describe()}
    assert states["fashion_mnist"] == "missing"
    assert states["digits"] == "bundled"


def test_moved_bundled_set_is_reported(monkeypatch) -> None:
    x = np.zeros((2, 2))
    monkeypatch.setattr(
        "trainaug.data.registry.attempts",
        lambda route: [("stub", lambda: class_arrays(x.copy(), x[0].copy(), x[:0], x[0, :0]))],
    )
    for function in (registry.fetch, registry.verify):
        with pytest.raises(CorruptDataError, match=r"digits: content hash .* expected 9060"):
            function("digits")


def test_loaded_arrays_are_shared_and_read_only() -> None:
    data = registry.load("digits")
    assert registry.load("digits") is data
    with pytest.raises(ValueError, match="read-only"):
        data["train_x"][0, 0] = 1


def test_fashion_mnist_facts() -> None:
    registry._load.cache_clear()
    start = time.perf_counter()
    data = registry.load("fashion_mnist")
    seconds = time.perf_counter() - start
    assert seconds < 5, f"{seconds:.1f} s; 0.2 s on an idle machine, this one may be shared"
    assert data["train_x"].shape == (60000, 28, 28)
    assert data["test_x"].shape == (10000, 28, 28)
    assert data["train_x"].dtype == data["test_y"].dtype == np.uint8
    assert np.bincount(data["train_y"]).tolist() == [6000] * 10
    assert np.bincount(data["test_y"]).tolist() == [1000] * 10
    assert data["train_x"].mean() / 255 == pytest.approx(0.2860, abs=5e-5)  # the digits published


@pytest.mark.parametrize(
    ("name", "shape", "counts", "largest"),
    [
        ("digits", (1797, 64), [178, 182, 177, 183, 181, 182, 181, 179, 174, 180], 16),
        ("breast_cancer", (569, 30), [212, 357], 4254),
        ("iris", (150, 4), [50, 50, 50], 7.9),
    ],
)
def test_scikit_learn_facts(name, shape, counts, largest) -> None:
    data = registry.load(name)
    assert data["train_x"].shape == shape
    assert data["train_x"].dtype == np.float64
    assert np.bincount(data["train_y"]).tolist() == counts
    assert data["train_x"].max() == largest
    assert len(data["test_x"]) == len(data["test_y"]) == 0


def test_hash_is_the_documented_one() -> None:
    arrays = class_arrays(
        np.ones((1, 2)), np.zeros(1, np.uint8), np.ones((0, 2)), np.zeros(0, np.uint8)
    )
    expected = (
        b"test_x\0<f8\0(0, 2)\0" + b"test_y\0|u1\0(0,)\0"
        b"train_x\0<f8\0(1, 2)\0" + 2 * b"\0\0\0\0\0\0\xf0\x3f" + b"train_y\0|u1\0(1,)\0" + b"\0"
    )
    assert hash_arrays(arrays) == hashlib.sha256(expected).hexdigest()


def test_hash_depends_on_everything_but_layout() -> None:
    base = class_arrays(np.arange(6.0).reshape(2, 3), np.arange(2), np.zeros((0, 3)), np.zeros(0))
    variants = [
        base | {"train_x": base["train_x"].reshape(3, 2)},
        base | {"train_x": base["train_x"].astype(np.float32)},
        base | {"train_x": base["train_x"] + 1},
        base | {"train_y": base["test_y"], "test_y": base["train_y"]},
    ]
    hashes = {hash_arrays(arrays) for arrays in [base, *variants]}
    assert len(hashes) == 5
    fortran = base | {"train_x": np.asfortranarray(base["train_x"])}
    assert hash_arrays(fortran) == hash_arrays(base)
