"""The ledger: what an entry must say, and what counts as its rule."""

from __future__ import annotations

import math

import pytest
import yaml

from companion.evidence import ledger as le
from companion.lab.chapters import chapter_numbers, functions_of
from companion.paths import CLAIMS

PUBLISHED = {"value": "+5 points", "where": "table 1", "work": "w", "read": "text"}
GAIN = {"name": "digits", "number": "100 * (new - old)"}


def entry(**changes):
    base = {
        "id": "toy.1",
        "tier": "headline",
        "origin": "authors",
        "scope": "scaled",
        "statement": "It helps.",
        "published": PUBLISHED,
        "kind": "effect",
        "worth": "1.0 points",
        "of": "accuracy",
        "settings": [GAIN],
        "seeds": {"from": 1000, "count": 12},
    }
    base |= changes
    return {name: value for name, value in base.items() if value is not None}


def make(**changes):
    return le.Claim.model_validate(entry(**changes))


def part(**changes):
    rule = {"kind": "effect", "worth": "1.0 points", "of": "accuracy", "settings": [GAIN]}
    return {name: value for name, value in (rule | changes).items() if value is not None}


PARTS = {"kind": None, "worth": None, "of": None, "settings": None}


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("1.0 points", 1.0, "points"),
        (".5 points of accuracy", 0.5, "points of accuracy"),
        ("20 percent", -math.log(0.8), "percent"),
        ("factor 2", math.log(2), "factor"),
        ("50 percent", math.log(2), "percent"),
    ],
)
def test_amounts(text, value, unit):
    amount = le.Worth.parse(text)
    assert amount.value == pytest.approx(value, rel=1e-15)
    assert amount.unit == unit
    assert amount.is_ratio == (unit in ("percent", "factor"))


@pytest.mark.parametrize(
    "text",
    ["0 points", "0 percent", "100 percent", "factor 1", "factor 0.5", "points", "-1 points", "1"],
)
def test_a_worth_that_is_no_amount_is_refused(text):
    with pytest.raises(ValueError, match=r"points|positive"):
        make(worth=text)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"origin": None}, "origin"),
        ({"scope": None}, "scope"),
        ({"worth": None}, "give worth"),
        ({"kind": None}, "give a kind"),
        ({"settings": None}, "give settings"),
        ({"settings": [GAIN, GAIN]}, "two settings have one name"),
        ({"settings": [{"name": "x", "number": "new.accuracy"}]}, "not arithmetic"),
        ({"of": None}, "`of` is empty"),
        ({"unit": "points"}, "worth has the unit"),
        ({"kind": "exact", "tolerance": 1e-6, "unit": "share"}, "exact has no worth"),
        ({"kind": "exact", "worth": None, "unit": "share"}, "give tolerance"),
        ({"kind": "bound", "worth": None, "unit": "share"}, "one of above and below"),
        (
            {"kind": "bound", "worth": None, "unit": "share", "above": 1, "below": 2},
            "one of above and below",
        ),
        ({"kind": "truth", "worth": None}, "give the unit"),
        ({"tolerance": 1e-6}, "effect has no tolerance"),
        ({"above": 1}, "effect has no above"),
        ({"certificate": "new"}, "effect has no certificate"),
        ({"seeds": {"from": 1000, "count": 4}}, "at least 5 seeds"),
        ({"seeds": {"from": 0, "count": 12}}, "greater than or equal to 100"),
        ({"kind": "timing"}, "at least 20 seeds"),
        ({"colour": "red"}, "colour"),
        ({"published": PUBLISHED | {"effect": "1.5 points"}}, "more than half of the published"),
        ({"published": PUBLISHED | {"effect": "20 percent"}}, "published effect in percent"),
        ({"published": PUBLISHED | {"effect": "9 nats"}}, "published effect in nats"),
        ({"all_of": [part(name="a"), part(name="b")]}, "give settings, or all_of"),
        ({**PARTS, "all_of": [part(name="a")]}, "single part"),
        ({**PARTS, "all_of": [part(), part(name="b")]}, "has a name"),
        ({**PARTS, "kind": "effect", "all_of": [part(name="a"), part(name="b")]}, "to the parts"),
        ({**PARTS}, "unanswered"),
    ],
)
def test_an_entry_that_cannot_be_judged_is_refused_by_name(tmp_path, changes, said):
    path = tmp_path / "09.yaml"
    path.write_text(yaml.safe_dump([entry(**changes)]))
    with pytest.raises(ValueError, match=said) as error:
        le.load_ledger(path)
    assert "09.yaml" in str(error.value)
    assert "toy.1" in str(error.value)


def test_worth_may_be_half_of_the_published_effect_and_more_where_data_are_others():
    make(published=PUBLISHED | {"effect": "2 points"})
    make(published=PUBLISHED | {"effect": "1 points"}, scope="proxy")
    make(published=PUBLISHED | {"effect": "factor 4"}, worth="factor 2")
    with pytest.raises(ValueError, match="more than half"):
        make(published=PUBLISHED | {"effect": "factor 3"}, worth="factor 2")


def test_parts_are_the_whole_or_its_parts():
    assert [p.worth for p in make().parts] == ["1.0 points"]
    several = make(**PARTS, all_of=[part(name="a"), part(name="b")])
    assert [p.name for p in several.parts] == ["a", "b"]
    assert make(**PARTS, unanswered="No arm asks it.").parts == ()


def test_only_what_the_authors_said_of_such_data_counts():
    assert make().counts
    assert make(origin="logs").counts
    assert not make(origin="ours").counts
    assert not make(scope="proxy").counts
    assert not make(control="positive").counts


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "09.yaml"
    for text, said in (("a: [", "not readable"), ("a: 1", "expected a list"), ("- 3", "number 1")):
        path.write_text(text)
        with pytest.raises(ValueError, match=said):
            le.load_ledger(path)
    path.write_text(yaml.safe_dump([entry(), entry()]))
    with pytest.raises(ValueError, match="occurs twice"):
        le.load_ledger(path)


# --- the hash of the rule ---------------------------------------------------------------------


def digest(**changes):
    return le.criterion_hash(make(**changes), {})


@pytest.mark.parametrize(
    "changes",
    [
        {"statement": "In other words."},
        {"note": "A note."},
        {"tier": "extended"},
        {"front": "In short."},
        {"posed": "after the data"},
        {"published": PUBLISHED | {"value": "+6"}},
        {"settings": [GAIN | {"name": "pictures of digits"}]},
    ],
)
def test_wording_is_no_criterion(changes):
    assert digest(**changes) == digest()


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": [GAIN | {"number": "100 * (old - new)"}]},
        {"settings": [GAIN | {"of": "other"}]},
        {"of": "other"},
        {"worth": "2.0 points"},
        {"kind": "not_less"},
        {"seeds": {"from": 2000, "count": 12}},
        {"seeds": {"from": 1000, "count": 13}},
        {"beside": [part(label="other")]},
        {"settings": [GAIN, GAIN | {"name": "more", "number": "new"}]},
    ],
)
def test_what_decides_is_the_criterion(changes):
    assert digest(**changes) != digest()


def test_all_is_not_any():
    parts = [part(name="a"), part(name="b", worth="2.0 points")]
    assert digest(**PARTS, all_of=parts) != digest(**PARTS, any_of=parts)


def test_the_version_of_the_judge_is_part_of_the_criterion(monkeypatch):
    before = digest()
    monkeypatch.setattr(le, "JUDGE_VERSION", le.JUDGE_VERSION + 1)
    assert digest() != before


def test_a_function_counts_with_its_source():
    claim = make(settings=[{"name": "digits", "number": "share(new)"}], of=None)
    chapter = functions_of("04")
    with pytest.raises(ValueError, match="unknown function 'share'"):
        le.criterion_hash(claim, {})
    one = le.criterion_hash(claim, {"share": chapter["last_lead"]})
    other = le.criterion_hash(claim, {"share": chapter["slope_of_candidates"]})
    assert one != other


# --- the committed ledgers --------------------------------------------------------------------


@pytest.mark.parametrize("number", chapter_numbers())
def test_committed_ledgers_are_whole(number):
    ledger = le.load_ledger(CLAIMS / f"{number}.yaml")
    assert ledger
    for claim in ledger:
        assert len(le.criterion_hash(claim, functions_of(number))) == 64
        assert "note" not in claim.published.where.split(), "a reader cannot open our notes"
    assert any(claim.front and claim.counts for claim in ledger)
