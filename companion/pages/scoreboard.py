"""Pictures and tables of all verdicts: the front page and the scoreboard."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from companion.evidence.claims import Effect, Judgement
from companion.evidence.plots import PALETTE, set_style
from companion.evidence.tables import (
    markdown_table,
    phrase,
    shown_effect,
    verdict_blocks,
    verdict_table,
)
from companion.lab.about import About
from companion.lab.chapters import about, chapter_numbers

__all__ = [
    "by_chapter",
    "chapter_html",
    "chapter_text",
    "counted_words",
    "forest_figure",
    "found_in_short",
    "front_figure",
    "front_table",
    "groups",
    "methods",
    "whole_text",
]


def methods() -> list[About]:
    """The chapters whose methods stand on the front page."""
    stated = [about(number) for number in chapter_numbers()]
    return [each for each in stated if each.front_claim]


# word: colour, marker, filling; markers differ as well, for readers who cannot tell the colours
MARKS: dict[str, tuple[str, str, Literal["full", "none"]]] = {
    "holds": (PALETTE[2], "o", "full"),
    "opposite": (PALETTE[1], "v", "full"),
    "no gain": (PALETTE[4], "s", "full"),
    "no effect": (PALETTE[4], "s", "none"),
    "mixed": (PALETTE[3], "D", "full"),
    "open": ("#777777", "x", "full"),
}
AS_MUCH = " times as much"
LONGEST_PART = 26  # characters of a part's name at an axis
FARTHEST = 4.0  # in smallest effects worth having; values beyond it are drawn at the edge


def by_chapter(judgements: Sequence[Judgement]) -> dict[str, list[Judgement]]:
    """Divide judgements by the chapters whose claims they are."""
    prefixes = {about(number).prefix: number for number in chapter_numbers()}
    chapters: dict[str, list[Judgement]] = {number: [] for number in chapter_numbers()}
    for each in judgements:
        chapters[prefixes[each.id.partition(".")[0]]].append(each)
    return {number: claims for number, claims in chapters.items() if claims}


def groups(judgements: Sequence[Judgement]) -> dict[str, list[Judgement]]:
    """Divide claims into those of the authors, in and out of scope, our questions, and controls."""
    groups_of_claims: dict[str, list[Judgement]] = {
        "What the authors say": [],
        "Out of scope here": [],
        "Our questions": [],
        "Controls": [],
    }
    for each in judgements:
        if each.control:
            groups_of_claims["Controls"].append(each)
        elif each.origin == "ours":
            groups_of_claims["Our questions"].append(each)
        else:
            name = "What the authors say" if each.counts else "Out of scope here"
            groups_of_claims[name].append(each)
    return {name: claims for name, claims in groups_of_claims.items() if claims}


def counted_words(judgements: Sequence[Judgement]) -> str:
    """How often each word was given to claims that count, in a sentence."""
    counted = [each for each in judgements if each.counts]
    counts = {word: sum(each.word == word for each in counted) for word in MARKS}
    listed = ", ".join(f"{word} {count}" for word, count in counts.items() if count)
    return f"{len(counted)} claims of the authors: {listed}"


def front_figure(judgements: Sequence[Judgement]) -> Figure:
    """Draw two panels with a row for each method: a mark for each claim, and one effect.

    Args:
        judgements: Judgements of all chapters.
    """
    set_style()
    figure = Figure(figsize=(10.0, 2.6))
    dots, effects = figure.subplots(1, 2, width_ratios=(1.5, 1))
    divided = by_chapter(judgements)
    known = {each.id: each for each in judgements}
    shown_methods = methods()
    for row, method in enumerate(shown_methods):
        claims = [c for group in groups(divided.get(method.number, [])).values() for c in group]
        for column, each in enumerate(claims):
            colour, marker, filled = MARKS[each.word]
            size = 9 if each.counts else 5
            dots.plot(
                column,
                row,
                marker,
                color=colour,
                fillstyle=filled,
                markersize=size,
                markeredgewidth=1.8,
            )
        if method.front_claim in known:
            _draw_effect(effects, row, known[method.front_claim])
    names = [f"{method.method}\n{method.authors}" for method in shown_methods]
    dots.set_yticks(range(len(shown_methods)), names, fontsize=8, linespacing=1.0)
    dots.set_xticks([])
    dots.set_title("every claim (large: of the authors)")
    for axis in (dots, effects):
        axis.set_ylim(len(shown_methods) - 0.5, -0.5)
        axis.grid(False)
    effects.set_yticks(range(len(shown_methods)), [method.front_claim for method in shown_methods])
    effects.axvline(0, color="k", linewidth=1)
    effects.axvspan(-1, 1, color="#000000", alpha=0.06, linewidth=0)
    effects.set_xlim(-FARTHEST - 0.3, FARTHEST + 0.3)
    effects.set_xlabel("effect / smallest worth having")
    effects.set_title("one claim of each")
    handles = [
        Line2D(
            [],
            [],
            color=colour,
            marker=marker,
            fillstyle=filled,
            linestyle="",
            markersize=8,
            markeredgewidth=1.8,
            label=word,
        )
        for word, (colour, marker, filled) in MARKS.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _draw_effect(axis: Axes, row: float, judgement: Judgement) -> None:
    """Draw the settings of a claim, one below the other, within the row."""
    shown = [effect for effect in judgement.effects if effect.worth and effect.size]
    for number, effect in enumerate(shown):
        _draw_interval(axis, row + 0.5 * (number - (len(shown) - 1) / 2) / len(shown), effect)


def _draw_interval(axis: Axes, y: float, effect: Effect) -> None:
    """Draw an effect in units of the smallest worth having; an arrow is a mean beyond the scale."""
    assert effect.worth
    assert effect.size is not None
    assert effect.mean is not None
    colour, marker, filled = MARKS[effect.word]
    low, middle, high = (
        max(-FARTHEST, min(FARTHEST, v / effect.worth))
        for v in (effect.size[0], effect.mean, effect.size[1])
    )
    axis.plot([low, high], [y, y], color=colour, linewidth=2)
    beyond = abs(effect.mean / effect.worth) >= FARTHEST
    arrow = ">" if effect.mean > 0 else "<"
    axis.plot(middle, y, arrow if beyond else marker, color=colour, fillstyle=filled, markersize=6)


def forest_figure(judgements: Sequence[Judgement]) -> Figure | None:
    """Draw every setting that has an interval and a smallest effect; ``None`` if there is none.

    Args:
        judgements: Claims of a chapter.
    """
    rows = [
        (each, effect)
        for each in judgements
        for effect in each.effects
        if effect.worth and effect.size is not None and effect.mean is not None
    ]
    if not rows:
        return None
    set_style()
    figure = Figure(figsize=(9.0, 0.8 + 0.21 * len(rows)))
    axis = figure.subplots()
    for y, (_, effect) in enumerate(rows):
        _draw_interval(axis, y, effect)
    names = [f"{each.id}  {_label(effect, LONGEST_PART)}" for each, effect in rows]
    axis.set_yticks(range(len(rows)), names, fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.axvline(0, color="k", linewidth=1)
    axis.axvspan(-1, 1, color="#000000", alpha=0.06, linewidth=0)
    axis.set_xlim(-FARTHEST - 0.3, FARTHEST + 0.3)
    axis.set_xlabel("effect / effect worth having (grey: less)")
    return figure


def _label(effect: Effect, longest: int = 1000) -> str:
    """Names of part and setting; that of the part is cut to ``longest`` characters."""
    part = textwrap.shorten(effect.part, longest, placeholder=" …")
    return f"{part}: {effect.name}" if part else effect.name


def front_table(judgements: Sequence[Judgement]) -> str:
    """Markdown table of the front page: statement, our numbers, verdict and scale of each claim."""
    divided = by_chapter(judgements)
    rows = []
    for method in methods():
        shown = [each for each in divided.get(method.number, []) if each.front]
        for each in shown:
            name = f"**{method.method}**, " if each is shown[0] else ""
            rows.append(
                {
                    "what the authors say": f"{name}{each.id}: {_front_statement(each)}",
                    "what we found": found_in_short(each),
                    "does it hold?": f"**{phrase(each, each.worth)}**",
                    "at what scale": _scale(each),
                }
            )
    return markdown_table(rows, list(rows[0])) if rows else "No claim stands here yet."


def _front_statement(each: Judgement) -> str:
    """The claim in a few words, with the published size if there is one."""
    size = each.published_effect
    return f"{each.front} (published: {size})" if size else each.front


def found_in_short(judgement: Judgement) -> str:
    """The effects of a claim in one line; of a part with many settings only the extremes."""
    parts: dict[str, list[Effect]] = {}
    for effect in judgement.effects:
        parts.setdefault(effect.part.partition(",")[0], []).append(effect)
    several = len(parts) > 1
    counts = {len(effects) for effects in parts.values()}
    # number of settings, if all parts have the same: it is then stated once, at the end
    common = counts.pop() if several and len(counts) == 1 else 1
    texts = []
    for part, effects in parts.items():
        many = len(effects) > (1 if several else 2)
        if many and all(effect.mean is not None for effect in effects):
            least, greatest = (pick(effects, key=lambda e: e.mean or 0.0) for pick in (min, max))
            low, high = (shown_effect(each).split(" [")[0] for each in (least, greatest))
            if low.endswith(AS_MUCH) and high.endswith(AS_MUCH):  # the least saving costs most
                low, high = high, low
            number, _, unit = low.partition(" ")  # the unit is stated once if both share it
            low = number if high.endswith(f" {unit}") else low
            head = f"{part}: " if several else ""
            settings = "" if len(effects) == common else f" in {len(effects)} settings"
            texts.append(f"{head}{low} to {high}{settings}")
        else:
            alone = several and len(effects) == 1
            texts += [f"{shown_effect(e)} ({part if alone else e.name})" for e in effects]
    return "; ".join(texts) + (f" ({common} settings each)" if common > 1 else "") or "–"


def _scale(each: Judgement) -> str:
    """Scale of our data beside the authors', and the largest number of seeds of a setting."""
    words = {"same": "as theirs", "scaled": "scaled", "proxy": "other data"}
    return f"{words[each.scope]}, {max((effect.n for effect in each.effects), default=0)} seeds"


def chapter_text(judgements: Sequence[Judgement]) -> str:
    """Plain text of a chapter's part of the scoreboard, a table for each group of claims."""
    parts = [
        f"{name}\n{'-' * len(name)}\n{verdict_table(claims)}"
        for name, claims in groups(judgements).items()
    ]
    return "\n\n".join(parts)


def whole_text(number: str, judgements: Sequence[Judgement]) -> str:
    """Plain text of a chapter's part of the scoreboard under its title, as notebooks show it."""
    return f"Chapter {number}, {about(number).title}\n\n{chapter_text(judgements)}"


def chapter_html(judgements: Sequence[Judgement]) -> str:
    """A chapter's part of the scoreboard as HTML, with rule and numbers folded below each claim."""
    parts = []
    for name, claims in groups(judgements).items():
        parts.append(f"<h4>{html.escape(name)}</h4>")
        for each in claims:
            word = html.escape(phrase(each, each.worth))
            narrow = " (narrow)" if each.is_narrow else ""
            head = f"<b>{each.id}</b> {html.escape(each.statement)} <b>{word}</b>{narrow}"
            formulas = "\n".join(f"{_label(effect)} = {effect.formula}" for effect in each.effects)
            body = html.escape(f"{verdict_blocks([each])}\n\n{formulas}")
            parts.append(f"<details><summary>{head}</summary><pre>{body}</pre></details>")
    return "\n".join(parts)
