"""The front page and the scoreboard: what they show of the committed verdicts, and how."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from companion.pages import scoreboard as sb
from companion.pages.verdicts import committed_judgements


@pytest.fixture(scope="module")
def judged():
    return committed_judgements()


def test_every_claim_stands_in_one_group_of_its_chapter(judged):
    divided = sb.by_chapter(judged)
    shown = [each for claims in divided.values() for g in sb.groups(claims).values() for each in g]
    assert sorted(each.id for each in shown) == sorted(each.id for each in judged)
    assert list(divided) == sorted(divided)


def test_our_questions_and_other_data_never_count_for_the_authors(judged):
    for claims in sb.by_chapter(judged).values():
        for name, group in sb.groups(claims).items():
            assert all(each.counts == (name == "What the authors say") for each in group)
    some = judged[0]
    other = [replace(some, origin="ours"), replace(some, scope="proxy", origin="authors")]
    assert sb.counted_words(other).startswith("0 claims")
    controls = sb.groups([replace(some, control="negative")])
    assert list(controls) == ["Controls"]


def test_methods_name_a_claim_that_has_an_effect(judged):
    known = {each.id: each for each in judged}
    for method in sb.methods():
        assert any(effect.worth and effect.size for effect in known[method.front_claim].effects)


def test_the_front_table_has_every_front_claim_and_no_logarithm(judged):
    table = sb.front_table(judged)
    rows = table.splitlines()[2:]
    front = [each for each in judged if each.front]
    assert len(rows) == len(front)
    assert {each.id.partition(".")[0] for each in front} == {"vse", "gc", "aa", "ord", "csa", "lin"}
    assert not re.search(r"log ratio|log\(", table)
    for each in front:
        assert any(f"**{each.word}" in row and each.front in row for row in rows)


def test_many_settings_are_shown_by_the_least_and_the_greatest(judged):
    most = max(judged, key=lambda each: len(each.effects))
    said = sb.found_in_short(most)
    assert " settings" in said
    assert len(said) < 200
    single = next(each for each in judged if len(each.effects) == 1 and each.effects[0].size)
    assert sb.found_in_short(single).endswith(f"({single.effects[0].name})")


def test_the_folded_list_holds_formula_and_reason(judged):
    claims = sb.by_chapter(judged)["05"]
    shown = sb.chapter_html(claims)
    assert shown.count("<details>") == len(claims)
    assert "digits_10_csa4" in shown
    assert not re.search(r"<(script|style|a )", shown)


def test_a_statement_cannot_bring_markup_of_its_own(judged):
    wicked = replace(judged[0], statement="<script>alert(1)</script>", effects=(), beside=())
    assert "<script>" not in sb.chapter_html([wicked])


def test_pictures_have_a_row_for_each_method_and_setting(judged):
    dots, effects = sb.front_figure(judged).axes
    assert len(dots.get_yticks()) == len(effects.get_yticks()) == len(sb.methods())
    claims = sb.by_chapter(judged)["04"]
    [axis] = sb.forest_figure(claims).axes
    with_worth = [e for each in claims for e in each.effects if e.worth and e.size]
    assert len(axis.get_yticks()) == len(with_worth)
    assert sb.forest_figure([replace(judged[0], effects=())]) is None
