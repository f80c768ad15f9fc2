"""Plain-text tables for checked cells and Markdown tables for the README.

Output is deterministic: every number is rounded before it is printed, no line ends in a space.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from companion.evidence.claims import Estimate, Judgement

__all__ = [
    "fmt_interval",
    "fmt_number",
    "markdown_table",
    "text_table",
    "verdict_blocks",
    "verdict_table",
]

Rows = Sequence[Mapping[str, Any]]
LONGEST_LINE = 110  # of a verdict block; a longer rule gets a line of its own


def fmt_number(value: float | None, digits: int) -> str:
    """Fixed number of decimals, without a negative zero; a dash for ``None``."""
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
        placed = zip(cells, widths, right, strict=True)
        return "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in placed).rstrip()

    return "\n".join(map(line, [columns, ["-" * width for width in widths], *body]))


def markdown_table(rows: Rows, columns: Sequence[str]) -> str:
    """Markdown table of the named columns; ``|`` and line breaks inside a cell are escaped."""
    rule = ["--:" if _is_numeric(rows, name) else "---" for name in columns]
    body = [[_cell(row[name]).replace("|", "\\|") for name in columns] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [columns, rule, *body])


def verdict_table(
    judgements: Sequence[Judgement], style: Literal["text", "markdown"] = "text", width: int = 48
) -> str:
    """The verdicts, one line an estimand; statement and published value are cut to ``width``."""
    rows: list[dict[str, Any]] = []
    for each in judgements:
        first = {
            "claim": each.id,
            "tier": each.tier,
            "statement": textwrap.shorten(each.statement, width, placeholder=" …"),
            "published": textwrap.shorten(each.published, width, placeholder=" …"),
            "verdict": each.verdict + _mark(each),
        }
        for number, estimate in enumerate(each.estimates or [None]):
            shown = first if number == 0 else dict.fromkeys(first, "")
            measured: dict[str, Any] = {"estimand": "–", "ours": "–", "n": None}
            if estimate is not None:
                measured = {
                    "estimand": estimate.estimand.replace("_", " "),
                    "ours": _ours(estimate),
                    "n": estimate.n,
                }
            rows.append({**shown, **measured})
    columns = ["claim", "tier", "statement", "published", "estimand", "ours", "n", "verdict"]
    if style not in ("text", "markdown"):
        raise ValueError(f"style must be 'text' or 'markdown', got {style!r}")
    return (text_table if style == "text" else markdown_table)(rows, columns)


def verdict_blocks(judgements: Sequence[Judgement], width: int = 96) -> str:
    """The verdicts as one indented block a claim, no line longer than ``width`` by much.

    A rule shown beside stands below the deciding one.
    """
    return "\n\n".join(_block(each, width) for each in judgements)


def _block(each: Judgement, width: int) -> str:
    lines = [f"{each.id}  {each.tier}  {each.verdict.upper()}{_mark(each)}"]
    lines += textwrap.wrap(each.statement, width, initial_indent="  ", subsequent_indent="  ")
    lines.append(f"  published: {each.published} (read: {each.read})")
    rows = [*_estimate_rows(each.estimates)]
    if each.beside:
        rows.append({"": f"beside, {each.beside['label']}: {each.beside['verdict'].upper()}"})
        rows += _estimate_rows(each.beside["estimates"])
    name = max((len(row["estimand"]) for row in rows if "estimand" in row), default=0)
    ours = max((len(row["ours"]) for row in rows if "estimand" in row), default=0)
    for row in rows:
        if "estimand" in row:
            shown = f"    {row['estimand']:<{name}}  {row['ours']:<{ours}}  n={row['n']}"
            if len(shown) + len(row["rule"]) + 2 > LONGEST_LINE:
                lines += [shown, f"        {row['rule']}"]
            else:
                lines.append(f"{shown}  {row['rule']}".rstrip())
        else:
            lines += textwrap.wrap(row[""], width, initial_indent="  ", subsequent_indent="    ")
    if each.verdict not in ("reproduced", "contradicted") and each.reason:
        lines.append(f"  because: {each.reason}")
    return "\n".join(lines)


def _estimate_rows(estimates: Sequence[Estimate]) -> list[dict[str, Any]]:
    return [
        {
            "estimand": estimate.estimand.replace("_", " "),
            "ours": _ours(estimate),
            "n": estimate.n,
            "rule": " | ".join(
                f"{name} {estimate.rule[name]}"
                for name in ("reproduced", "contradicted")
                if name in estimate.rule
            ),
        }
        for estimate in estimates
    ]


def _mark(judgement: Judgement) -> str:
    if judgement.reason == "criterion changed":
        return " (criterion changed)"
    if not judgement.under_powered:
        return ""
    if judgement.verdict == "inconclusive":
        return f" (under-powered: {judgement.seeds_needed} seeds would decide)"
    return f" (under-powered for a null: {judgement.seeds_needed} seeds)"


def _ours(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return "–"
    low, high, rule = estimate.low, estimate.high, estimate.rule
    if "tolerance" in rule:
        return f"{max(abs(low), abs(high)):.1e}, tolerance {rule['tolerance']:g}"
    half = (high - low) / 2
    digits = min(max(0, 1 - math.floor(math.log10(half))), 12) if half > 0 else 3
    return f"{fmt_interval(estimate.mean, low, high, digits)} {estimate.unit}"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value + 0.0:.4g}"
    return "–" if value is None else " ".join(str(value).split())


def _is_numeric(rows: Rows, name: str) -> bool:
    return bool(rows) and all(
        row[name] is None or (isinstance(row[name], int | float)) for row in rows
    )
