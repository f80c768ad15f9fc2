"""Plain-text tables for checked cells and Markdown tables for the README.

Output is deterministic: every number is rounded before it is printed, and no line ends in a space.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from companion.evidence.claims import Aside, Effect, Judgement
from companion.evidence.rule import Pooled

__all__ = [
    "fmt_interval",
    "fmt_number",
    "judged_numbers",
    "markdown_table",
    "own_numbers",
    "phrase",
    "shown_effect",
    "shown_number",
    "text_table",
    "verdict_blocks",
    "verdict_json_row",
    "verdict_rows",
    "verdict_table",
]

Rows = Sequence[Mapping[str, Any]]


def fmt_number(value: float | None, digits: int) -> str:
    """The number with a fixed number of decimals, never a negative zero; a dash for ``None``."""
    if value is None:
        return "–"
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if not text.strip("-0.") else text


def fmt_interval(mean: float | None, low: float | None, high: float | None, digits: int) -> str:
    """``mean [low, high]`` with ``digits`` decimals."""
    if mean is None:
        return "–"
    return f"{fmt_number(mean, digits)} [{fmt_number(low, digits)}, {fmt_number(high, digits)}]"


def text_table(rows: Rows, columns: Sequence[str]) -> str:
    """Fixed-width table of the named columns; columns of numbers are aligned to the right."""
    body = [[_cell(row[name]) for name in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *body, strict=True)]
    right = [_is_numeric(rows, name) for name in columns]

    def line(cells: Sequence[str]) -> str:
        columns_of_line = zip(cells, widths, right, strict=True)
        return "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in columns_of_line).rstrip()

    return "\n".join(map(line, [columns, ["-" * width for width in widths], *body]))


def markdown_table(rows: Rows, columns: Sequence[str]) -> str:
    """Markdown table of the named columns; ``|`` and line breaks inside a cell are escaped."""
    rule = ["--:" if _is_numeric(rows, name) else "---" for name in columns]
    body = [[_cell(row[name]).replace("|", "\\|") for name in columns] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [columns, rule, *body])


def phrase(each: Judgement | Aside | Effect, worth: str = "") -> str:
    """A verdict in words with the smallest effect worth having: ``holds, at least 1.0 points``.

    Args:
        each: What was judged. Its word is one of `rule.Word`; its addition, which narrows the word,
            is ``small``, ``at least worth`` or empty.
        worth: Smallest effect worth having, such as ``1.0 points``; without it the phrase is word
            and addition alone.
    """
    if not worth:
        return each.words
    if each.word in ("no effect", "no gain"):
        return f"{each.word} of {worth} or more"
    if each.addition == "small":
        return f"{each.word}, small: less than {worth}"
    return f"{each.word}, at least {worth}" if each.addition else each.word


def shown_number(effect: Effect, value: float, digits: int) -> str:
    """A value of a claim as readers see it: percent saved, a factor, or a number, no logarithm."""
    if effect.unit == "percent":
        return fmt_number(100 * (1 - math.exp(-value)), max(0, digits - 2))
    if effect.unit == "factor":
        return fmt_number(math.exp(value), digits)
    return fmt_number(effect.shift + effect.side * value, digits)


def shown_effect(effect: Effect, *, both: bool = False) -> str:
    """Mean with its 95 % interval, and the 99 % one if ``both``, in the unit of readers.

    For ratios in percent it is what is saved, as ``20 % [12, 27]``; a negative number costs more.
    """
    if effect.mean is None:
        return "–"
    if effect.kind == "exact":
        low, high = effect.size or (effect.mean, effect.mean)
        return f"at most {max(abs(low), abs(high)):.1e} {effect.unit}"
    if effect.kind == "truth":
        return f"{effect.mean * effect.n:.0f} of {effect.n}"
    if effect.size is None:
        return f"{shown_number(effect, effect.mean, 2)} {_unit(effect)}"
    if effect.unit == "percent" and effect.mean < -math.log(2):
        return _times_as_much(effect, both=both)
    digits = _digits(effect)

    def interval(pair: tuple[float, float]) -> str:
        ends = [shown_number(effect, end, digits) for end in pair]
        return f"[{', '.join(ends if effect.side > 0 else reversed(ends))}]"

    text = f"{shown_number(effect, effect.mean, digits)} {_unit(effect)} {interval(effect.size)}"
    if both and effect.sign is not None:
        text += f", 99 % {interval(effect.sign)}"
    return text


def _times_as_much(effect: Effect, *, both: bool) -> str:
    """A cost that more than doubles as a factor, because ``-150 %`` saved reads badly."""
    assert effect.mean is not None
    assert effect.size is not None

    def interval(pair: tuple[float, float]) -> str:
        return f"[{math.exp(-pair[1]):.3g}, {math.exp(-pair[0]):.3g}]"

    text = f"{math.exp(-effect.mean):.3g} times as much {interval(effect.size)}"
    return f"{text}, 99 % {interval(effect.sign)}" if both and effect.sign is not None else text


def _unit(effect: Effect) -> str:
    return {"percent": "%", "factor": "times"}.get(effect.unit, effect.unit)


def _digits(effect: Effect) -> int:
    """Decimals that show two figures of the half-width, in the unit of the values themselves."""
    low, high = effect.size or (0.0, 0.0)
    half = (high - low) / 2
    return min(max(0, 1 - math.floor(math.log10(half))), 12) if half > 0 else 3


def verdict_blocks(judgements: Sequence[Judgement], width: int = 96) -> str:
    """The verdicts as one indented block per claim, with no line much longer than ``width``."""
    return "\n\n".join(_block(each, width) for each in judgements)


def _block(each: Judgement, width: int) -> str:
    """Word, statement, published value, numbers of the settings, and remarks on one claim."""
    who = {"authors": "the authors", "logs": "their code or logs", "ours": "our question"}
    marks = [each.tier, who[each.origin], each.scope]
    marks += [f"{each.control} control"] if each.control else []
    lines = [f"{each.id}  {phrase(each, each.worth).upper()}", f"  {', '.join(marks)}"]
    lines += textwrap.wrap(each.statement, width, initial_indent="  ", subsequent_indent="  ")
    published = f"published: {each.published} (read: {each.read})"
    lines += textwrap.wrap(published, width, initial_indent="  ", subsequent_indent="    ")
    lines += _effect_lines(each.effects, width)
    for pooled in each.pooled:
        text = f"over these settings: {_shown_pooled(pooled, each)}"
        lines += textwrap.wrap(text, width, initial_indent="    ", subsequent_indent="      ")
    for aside in each.beside:
        text = f"beside, {aside.label}: {aside.words}"
        lines += textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="    ")
        lines += _effect_lines(aside.effects, width)
    remarks = [f"because: {each.reason}"] if each.reason else []
    if not each.counts and not each.control and each.scope == "proxy":
        remarks.append("out of scope here: other data than the claim is about")
    if each.records:
        remarks.append(_record_source(each))
    remarks += [each.note] if each.note else []
    for line in remarks:
        lines += textwrap.wrap(line, width, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines)


def _shown_pooled(pooled: Pooled, judgement: Judgement) -> str:
    """Mean over settings; from five settings on, its interval and that of another such setting."""
    # numbers are formatted as those of a setting of the same part, whose unit they share
    example = next(effect for effect in judgement.effects if effect.part == pooled.part)
    size = pooled.interval or example.size
    shown = shown_effect(replace(example, mean=pooled.mean, size=size))
    if pooled.interval is None:
        shown = shown.split(" [")[0]
    head = f"{pooled.part}: " if pooled.part else ""
    if pooled.prediction is None:
        return f"{head}mean {shown}"
    another = shown_effect(replace(example, mean=pooled.mean, size=pooled.prediction))
    return f"{head}mean {shown}; another such setting [{another.split(' [')[1]}"


def _record_source(each: Judgement) -> str:
    """Where the records come from, and whether the canonical ones say the same."""
    text = f"records: {each.records}"
    if each.early:
        text += ", made before canonical mode"
    if each.standard_word:
        same = "the same word" if each.standard_word == each.word else f"“{each.standard_word}”"
        text += f"; canonical standard records, {each.standard_seeds} seeds"
        if each.standard_settings < len(each.effects):
            text += f", {each.standard_settings} of {len(each.effects)} settings"
        text += f": {same}"
    if each.posed == "after the data":
        text += "; rule posed after the data"
    return text


def _effect_lines(effects: Sequence[Effect], width: int) -> list[str]:
    """Two entries per setting: its name, and below it its numbers with what qualifies them."""
    lines = []
    for effect in effects:
        name = f"{effect.part}: {effect.name}" if effect.part else effect.name
        lines += textwrap.wrap(name, width, initial_indent="    ", subsequent_indent="    ")
        facts = [shown_effect(effect, both=True), f"n = {effect.n}", effect.words]
        if effect.is_narrow and effect.stability is not None:
            facts.append(f"narrow: {100 * effect.stability:.0f} % of resamples say so")
        if effect.seeds_needed is not None:
            facts.append(f"{effect.seeds_needed} seeds would find the smallest effect")
        if effect.other_items is not None:
            interval = shown_effect(replace(effect, size=effect.other_items)).split(" [")[1]
            facts.append(f"with other test items like these [{interval}")
        if effect.skew is not None:
            facts.append(f"skewed ({effect.skew:.1f})")
        lines += textwrap.wrap(
            "; ".join(facts), width, initial_indent="      ", subsequent_indent="      "
        )
    return lines


def judged_numbers(judgement: Judgement) -> str:
    """Numbers that decide a claim, one line per setting under the name of its part, no word."""
    lines, part = [], None
    for effect in judgement.effects:
        if effect.part != part:
            part = effect.part
            lines.append(f"{judgement.id}, {part}" if part else judgement.id)
        lines.append(f"  {effect.name}: {shown_effect(effect)}")
    return "\n".join(lines)


def own_numbers(judgements: Sequence[Judgement]) -> str:
    """Table of the numbers of claims, without words, for runs that are not the evidence."""
    rows = [
        {
            "claim": each.id,
            "setting": f"{effect.part}: {effect.name}" if effect.part else effect.name,
            "found": shown_effect(effect),
            "n": effect.n,
        }
        for each in judgements
        for effect in each.effects
        if effect.n
    ]
    return text_table(rows, ["claim", "setting", "found", "n"]) if rows else "no claim's runs"


def verdict_json_row(each: Judgement) -> dict[str, object]:
    """What a script needs to know about a claim, as plain data.

    ``worth`` is a number in the unit of ``mean`` and ``sd``, so a logarithm for ratios; ``shown``
    is what readers see. Where the parts of a claim differ, only its settings state them.
    """
    worths = {effect.worth for effect in each.effects}
    units = {effect.unit for effect in each.effects}
    return {
        "id": each.id,
        "tier": each.tier,
        "origin": each.origin,
        "scope": each.scope,
        "control": each.control,
        "kind": each.kind,
        "worth": worths.pop() if len(worths) == 1 else None,
        "unit": _value_unit(units.pop()) if len(units) == 1 else None,
        "shown": each.worth or None,
        "word": each.word,
        "addition": each.addition,
        "reason": each.reason,
        "records": each.records,
        "early": each.early,
        "posed": each.posed,
        "settings": [
            {
                "part": effect.part,
                "name": effect.name,
                "kind": effect.kind,
                "worth": effect.worth,
                "unit": _value_unit(effect.unit),
                "shown": shown_effect(effect),
                "n": effect.n,
                "mean": effect.mean,
                "sd": effect.sd,
                "sign": list(effect.sign) if effect.sign else None,
                "size": list(effect.size) if effect.size else None,
                "other_items": list(effect.other_items) if effect.other_items else None,
                "word": effect.word,
                "addition": effect.addition,
            }
            for effect in each.effects
        ],
    }


def _value_unit(unit: str) -> str:
    """Unit of the values themselves, which are logarithms for ratios."""
    return "log ratio" if unit in ("percent", "factor") else unit


def verdict_rows(judgements: Sequence[Judgement]) -> list[dict[str, str]]:
    """Rows for tables, one per claim: who states it, at what scale, its numbers and its word."""
    return [
        {
            "claim": each.id,
            "who": each.origin,
            "scale": each.scope,
            "statement": each.statement,
            "found": "; ".join(_labelled(effect, each) for effect in each.effects) or "–",
            "word": phrase(each, each.worth) + (" (narrow)" if each.is_narrow else ""),
        }
        for each in judgements
    ]


def _labelled(effect: Effect, judgement: Judgement) -> str:
    """A shown effect; if the claim has several, with the name of its part or setting."""
    alone = sum(other.part == effect.part for other in judgement.effects) == 1
    label = effect.part if effect.part and alone else effect.name
    return (
        f"{label}: {shown_effect(effect)}" if len(judgement.effects) > 1 else shown_effect(effect)
    )


def verdict_table(judgements: Sequence[Judgement], width: int = 60) -> str:
    """The verdicts as plain text, one line per claim; statements are cut to ``width``."""
    rows = [
        {
            **row,
            "statement": textwrap.shorten(row["statement"], width, placeholder=" …"),
            "found": textwrap.shorten(row["found"], width, placeholder=" …"),
        }
        for row in verdict_rows(judgements)
    ]
    return text_table(rows, ["claim", "who", "scale", "statement", "found", "word"])


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value + 0.0:.4g}"
    return "–" if value is None else " ".join(str(value).split())


def _is_numeric(rows: Rows, name: str) -> bool:
    return bool(rows) and all(
        row[name] is None or (isinstance(row[name], int | float)) for row in rows
    )
