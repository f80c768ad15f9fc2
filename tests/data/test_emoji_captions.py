"""Emoji: decoding of a hand-made set in the packages' formats, and facts of the real one."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from trainaug.data.arrays import Arrays, CorruptDataError
from trainaug.data.emoji_captions import (
    VENDORS,
    EmojiCaptions,
    emoji_captions,
    family,
    family_split,
)
from trainaug.data.emoji_decode import LANGUAGES, decode, render

COLOURS = ("red", "lime", "blue", "black")  # one a vendor
RGB = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0))
WHITE = (255, 255, 255)

# icon name, code points as a package writes them, English name and keywords; the last is toned
CONCEPTS = (
    ("keycap-hash", "0023-fe0f-20e3", "#\ufe0f\u20e3", "keycap: #", ["keycap"]),
    ("grinning", "1F600", "\U0001f600", "grinning face", ["face", "grin"]),
    ("heart", "2764-fe0f", "\u2764", "red heart", []),
    ("hand", "1f44b-1f3fb", "\U0001f44b\U0001f3fb", "waving hand: light skin tone", ["hand"]),
)


def tiny_set() -> dict[str, Any]:
    """Make the parsed files: four vendors, four languages, four concepts, one with a skin tone."""
    files: dict[str, Any] = {}
    for vendor, colour in zip(VENDORS, COLOURS, strict=True):
        body = f'<rect width="100" height="100" fill="{colour}"/>'
        icons = {name: {"body": body} for name, *_ in CONCEPTS}
        files[f"{vendor}/icons"] = {"icons": icons, "width": 32, "height": 32}
        files[f"{vendor}/chars"] = {code: name for name, code, *_ in CONCEPTS}
    groups = {"Symbols": ["keycap-hash", "heart"], "Smileys": ["grinning", "unused"], "P": ["hand"]}
    files["noto/categories"] = {"categories": groups}
    for language in ("en", *LANGUAGES):
        entries = {}
        for _, _, text, name, keywords in CONCEPTS:
            alone = name if language == "en" else f"{language} {name}"
            entries[text] = {"tts": [alone], **({"default": keywords} if keywords else {})}
        first = dict([entries.popitem()])
        files[f"annotations/{language}"] = {"annotations": {"annotations": entries}}
        files[f"derived/{language}"] = {"annotationsDerived": {"annotations": first}}
    return files


def decoded(files: dict[str, Any]) -> Arrays:
    return decode({name: json.dumps(content).encode() for name, content in files.items()})


# --- decoding


def test_tiny_set_is_matched_by_code_points_and_sorted() -> None:
    actual = decoded(tiny_set())
    assert actual["keys"].tolist() == ["0023-20e3", "1f600", "2764"]
    assert actual["names"].tolist() == ["keycap: #", "grinning face", "red heart"]
    assert actual["keywords"].tolist() == ["keycap", "face|grin", ""]
    assert actual["categories"].tolist() == ["Symbols", "Smileys", "Symbols"]
    assert actual["names_fr"].tolist() == ["fr keycap: #", "fr grinning face", "fr red heart"]
    assert set(actual) == {
        *("pictures", "keys", "categories", "names", "keywords"),
        *(f"names_{language}" for language in LANGUAGES),
    }
    pictures = actual["pictures"]
    assert pictures.shape == (3, 4, 64, 64, 3)
    assert pictures.dtype == np.uint8
    expected = np.broadcast_to(np.array(RGB, np.uint8)[:, None, None], (3, 4, 64, 64, 3))
    np.testing.assert_array_equal(pictures, expected)


@pytest.mark.parametrize("tone", ["1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"])
def test_every_skin_tone_is_dropped(tone) -> None:
    files = tiny_set()
    for vendor in VENDORS:
        files[f"{vendor}/chars"][f"1f44b-{tone}-200d"] = "hand"
    entry = {"\U0001f44b" + chr(int(tone, 16)) + "\u200d": {"tts": ["toned"]}}
    for language in ("en", *LANGUAGES):
        files[f"annotations/{language}"]["annotations"]["annotations"] |= entry
    assert "toned" not in decoded(files)["names"]


@pytest.mark.parametrize("vendor", VENDORS)
def test_concept_that_a_vendor_lacks_is_left_out(vendor) -> None:
    files = tiny_set()
    del files[f"{vendor}/chars"]["1F600"]
    assert decoded(files)["keys"].tolist() == ["0023-20e3", "2764"]


@pytest.mark.parametrize("language", ["en", *LANGUAGES])
def test_concept_that_a_language_lacks_is_left_out(language) -> None:
    files = tiny_set()
    del files[f"annotations/{language}"]["annotations"]["annotations"]["\u2764"]
    assert decoded(files)["keys"].tolist() == ["0023-20e3", "1f600"]


RED = '<rect x="-99" y="-99" width="999" height="999" fill="red"/>'


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [
        ({"width": 20, "height": 10}, (16, 48), (0, 64)),
        ({"width": 16}, (0, 64), (16, 48)),  # the set's height of 32
        ({"height": 8}, (24, 40), (0, 64)),
        ({}, (0, 64), (0, 64)),
    ],
    ids=["wide", "tall", "flat", "square"],
)
def test_icon_that_is_not_square_is_padded_with_white(size, rows, columns) -> None:
    picture = render({"icons": {"a": {"body": RED, **size}}, "width": 32, "height": 32}, "a")
    assert picture.shape == (64, 64, 3)
    expected = np.full((64, 64, 3), 255, np.uint8)
    expected[slice(*rows), slice(*columns)] = RGB[0]
    np.testing.assert_array_equal(picture, expected)


def test_icon_has_its_own_corner_and_the_formats_default_size() -> None:
    dot = '<rect x="-4" y="8" width="4" height="4" fill="red"/>'
    picture = render({"icons": {"a": {"body": dot, "left": -4, "top": 8}}}, "a")  # 16 by 16
    np.testing.assert_array_equal(picture[:16, :16], np.full((16, 16, 3), RGB[0]))
    assert (picture[16:] == 255).all()
    assert (picture[:, 16:] == 255).all()


@pytest.mark.parametrize("icon", [{"body": "<rect"}, {"body": 3 * "<g>"}, {"width": 9}, {}, None])
def test_icon_that_does_not_render_is_corrupt(icon) -> None:
    files = tiny_set()
    files["twemoji/icons"]["icons"]["heart"] = icon
    with pytest.raises(CorruptDataError, match="icon 'heart' does not render"):
        decoded(files)
    del files["twemoji/icons"]["icons"]["heart"]
    with pytest.raises(CorruptDataError, match=r"icon 'heart' does not render: KeyError"):
        decoded(files)


NESTED = b"[" * 100_000


@pytest.mark.parametrize(
    "data", [b"", b"{", b"<html>", b"\xff\xfe\x00", b"3", b"[]", b"null", NESTED]
)
@pytest.mark.parametrize("name", ["openmoji/chars", "noto/categories", "derived/es"])
def test_file_that_is_not_the_expected_json_is_corrupt(name, data) -> None:
    files = {key: json.dumps(content).encode() for key, content in tiny_set().items()}
    with pytest.raises(CorruptDataError, match="not the expected JSON"):
        decode(files | {name: data})
    del files[name]
    with pytest.raises(CorruptDataError, match=f"not the expected JSON: KeyError.*{name}"):
        decode(files)


def test_missing_category_empty_name_and_empty_set_are_corrupt() -> None:
    files = tiny_set()
    files["noto/categories"]["categories"].pop("Smileys")
    with pytest.raises(CorruptDataError, match=r"KeyError\('grinning'\)"):
        decoded(files)
    files = tiny_set()
    files["annotations/de"]["annotations"]["annotations"]["\u2764"]["tts"] = []
    with pytest.raises(CorruptDataError, match="not the expected JSON: IndexError"):
        decoded(files)
    files = tiny_set()
    files["openmoji/chars"] = {}
    with pytest.raises(CorruptDataError, match="no emoji is in all icon sets"):
        decoded(files)


# --- the real set


@pytest.fixture(scope="module")
def real() -> EmojiCaptions:
    return emoji_captions()


def test_real_set_has_the_counts_of_its_description(real) -> None:
    assert real.pictures.shape == (1594, 4, 64, 64, 3)
    assert real.pictures.dtype == np.uint8
    assert real.families.shape == (1594,)
    assert real.families.dtype == np.int64
    rows = (real.keys, real.categories, real.names, real.keywords, *real.translations.values())
    assert {len(texts) for texts in rows} == {1594}
    assert set(real.translations) == set(LANGUAGES)
    assert len(set(real.keys)) == len(set(real.names)) == 1594
    assert list(real.keys) == sorted(real.keys)
    points = {point for key in real.keys for point in key.split("-")}
    assert not points & {"fe0f", "1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
    counts = {group: real.categories.count(group) for group in set(real.categories)}
    assert sorted(counts.values()) == [8, 85, 130, 158, 168, 218, 223, 262, 342]
    words = [len(name.split()) for name in real.names]
    assert 2 < np.mean(words) < 3
    assert all(all(group) for group in real.keywords)  # no empty keyword


@pytest.mark.parametrize(
    ("key", "name", "category", "german", "keyword"),
    [
        ("1f486", "person getting massage", "People & Body", "Kopfmassage", "headache"),
        ("1f33e", "sheaf of rice", "Animals & Nature", "Reisähre", "grain"),
        ("0023-20e3", "keycap: #", "Symbols", "#", "keycap"),
        ("1f550", "one o’clock", "Travel & Places", "Uhr", "clock"),
    ],
)
def test_real_set_has_known_examples(key, name, category, german, keyword, real) -> None:
    i = real.keys.index(key)
    assert real.names[i] == name
    assert real.categories[i] == category
    assert german in real.translations["de"][i]
    assert keyword in real.keywords[i]


def test_real_pictures_are_drawings_on_white(real) -> None:
    corners = real.pictures[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].reshape(1594, -1, 3)
    assert (corners == 255).all(2).mean() > 0.9
    flat = real.pictures.reshape(1594, 4, -1)
    assert (flat.min(2) < flat.max(2)).all()  # none is blank
    strawberry = real.pictures[real.names.index("strawberry")].reshape(4, -1, 3).astype(int)
    red, green, blue = np.moveaxis(strawberry, 2, 0)
    assert ((red > green + 50) & (red > blue + 50)).mean(1).min() > 0.1


def test_distinct_matches_a_naive_loop(real) -> None:
    counts = []
    for v in range(len(VENDORS)):
        kept = 0
        sums = real.pictures[:, v].sum((1, 2, 3), dtype=np.int64)  # unequal sums: unequal pictures
        for i in range(1594):
            alike = np.flatnonzero(sums[:i] == sums[i])
            copy = any(np.array_equal(real.pictures[i, v], real.pictures[j, v]) for j in alike)
            assert real.distinct[i, v] == (not copy)
            kept += not copy
        counts.append(kept)
    assert counts == [1592, 1592, 1594, 1570]


# --- families


@pytest.mark.parametrize(
    "names",
    [
        ("man cook", "woman cook", "cook"),
        ("person running", "woman running: facing right", "man running"),
        ("one o’clock", "two-thirty", "twelve o’clock"),
        ("man", "woman", "child", "boy", "girl", "baby", "older person"),
        ("kiss: man, man", "kiss"),
        ("couple with heart: man, man", "women holding hands", "people holding hands"),
        ("family: adult, child", "family: man, woman, boy"),
        ("pregnant man", "pregnant woman", "pregnant person"),
        ("men with bunny ears", "people with bunny ears"),
    ],
    ids=lambda names: names[0],
)
def test_near_copies_share_a_family(names) -> None:
    assert len({family(name) for name in names}) == 1


def test_others_keep_their_own_family(real) -> None:
    names = ("kiss mark", "kissing cat", "human", "mantelpiece clock", "womanizer", "red heart")
    assert [family(name) for name in names] == list(names)
    kinds = [family(name) for name in real.names]
    assert len(set(kinds)) == real.families.max() + 1 == 1393
    assert kinds.count("clock face") == 24
    pairs = {(number, kind) for number, kind in zip(real.families.tolist(), kinds, strict=True)}
    assert len(pairs) == 1393  # the numbers say the same as the names


@pytest.mark.parametrize("seed", [0, 1, 1000])
def test_split_is_disjoint_by_family_and_has_the_shares(seed, real) -> None:
    split = family_split(real.families, seed)
    parts = (split.train, split.val, split.test)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(1594))
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)
    kinds = [set(real.families[part].tolist()) for part in parts]
    assert sum(len(kind) for kind in kinds) == 1393  # no family is in two parts
    shares = [len(kind) / 1393 for kind in kinds]
    assert shares == pytest.approx([0.75, 0.125, 0.125], abs=1 / 1393)


def test_split_is_deterministic_and_depends_on_the_seed(real, untouched_randomness) -> None:
    first, again, other = (family_split(real.families, seed) for seed in (5, 5, 6))
    for part in ("train", "val", "test"):
        assert np.array_equal(getattr(first, part), getattr(again, part))
        assert not np.array_equal(getattr(first, part), getattr(other, part))
    shared = np.intersect1d(first.test, other.test)
    assert len(shared) < len(first.test) / 2  # about an eighth by chance
    with pytest.raises(ValueError, match="non-negative"):
        family_split(real.families, -1)
