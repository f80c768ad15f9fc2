"""Views of the committed results: outputs of notebooks, verdicts, README blocks, figures.

Each of them can be made again from ``records.jsonl``, and a test does that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from companion.evidence.canonical import canonical_environment
from companion.evidence.ledger import AFTER
from companion.evidence.store import read_reference, write_atomic
from companion.lab.chapters import about, chapter_numbers, package_of
from companion.pages.pictures import png_bytes
from companion.pages.scoreboard import (
    by_chapter,
    chapter_html,
    counted_words,
    front_figure,
    front_table,
    whole_text,
)
from companion.pages.verdicts import committed_judgements
from companion.paths import RESULTS

__all__ = [
    "FRONT_ALT",
    "execute_notebook",
    "front_figure_path",
    "front_figure_png",
    "key_figure_path",
    "key_figure_png",
    "render_readme",
    "scoreboard",
    "write_key_figure",
]

FRONT_ALT = (
    "A row of marks for each of the six methods, one mark a claim, and beside it the effect of one "
    "claim of each method with its interval, in units of the smallest effect worth having"
)
_BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def scoreboard(chapters: Sequence[str] = chapter_numbers()) -> None:
    """Show the committed verdicts of chapters, grouped, with rules and numbers folded."""
    from IPython.display import display

    for number, claims in by_chapter(committed_judgements()).items():
        if number in chapters:
            shown = {
                "text/html": f"<h3>Chapter {number}</h3>\n{chapter_html(claims)}",
                "text/plain": whole_text(number, claims),
            }
            display(shown, raw=True)


def front_figure_png() -> bytes:
    """PNG of the front page's picture, from the committed verdicts."""
    return png_bytes(front_figure(committed_judgements()), FRONT_ALT)


def front_figure_path() -> Path:
    """Path of the front page's picture."""
    return RESULTS / "figures" / "claims.png"


def key_figure_path(number: str) -> Path:
    """Path of a chapter's key figure, which its notebook and the README show."""
    return RESULTS / "figures" / f"{number}_{about(number).key_figure}.png"


def key_figure_png(number: str) -> bytes:
    """PNG of a chapter's key figure, made from its committed records.

    Raises:
        LookupError: If the chapter has no reference.
    """
    reference = read_reference("standard", number)
    if reference is None:
        raise LookupError(f"chapter {number} has no standard reference")
    figures = import_module(f"{package_of(number)}.figures")
    return png_bytes(figures.key_figure(reference.records), about(number).alt)


def write_key_figure(number: str) -> None:
    """Draw the key figure of a chapter from its committed records."""
    write_atomic(key_figure_path(number), key_figure_png(number))


def execute_notebook(path: Path) -> None:
    """Execute a notebook in its committed settings and write it back normalised.

    The kernel is canonical, whatever this process is, and shows no progress. Outputs and execution
    counts are kept; timings and the runner's metadata are removed.

    Raises:
        RuntimeError: If a cell warned.
    """
    import nbformat
    from nbclient import NotebookClient
    from traitlets.config import Config

    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=600,
        resources=resources,
        record_timing=False,
        coalesce_streams=True,
        # a kernel without encryption warns of it on the terminal
        config=Config({"KernelManager": {"transport_encryption": "auto"}}),
    )
    client.execute(env=canonical_environment() | {"TRAINAUG_PROGRESS": "off"})
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata = {"tags": cell.metadata["tags"]} if "tags" in cell.metadata else {}
        if cell.cell_type == "code":
            for out in cell.outputs:
                if out.get("name") == "stderr":
                    raise RuntimeError(f"{path.name} warns in cell {cell.id}: {out.text.strip()}")
    nbformat.validate(notebook)
    write_atomic(path, nbformat.writes(notebook) + "\n")


def _verdicts_block() -> str:
    """The README's summary and table of the verdicts."""
    judged = committed_judgements()
    others = len(judged) - sum(each.counts for each in judged)
    early = sum(each.early for each in judged)
    after = sum(each.posed == AFTER for each in judged)
    summary = (
        f"{counted_words(judged)}; beside them {others} questions of ours and about other data."
    )
    if early or after:
        summary += (
            f" **They are provisional**: the rules of {after} are newer than their data, the"
            f" records of {early} older than byte-equal runs."
        )
    units = (
        "Percentages: how much less is needed or left; brackets: 95 % intervals; arrow: beyond the"
        " scale; grey: too small to matter."
    )
    return f"{summary}\n\n{front_table(judged)}\n\n{units}"


def _times_block() -> str:
    """The README's line of times, as measured by ``benchmarks/fresh_clone.py``."""
    path = RESULTS / "bench" / "fresh_clone.json"
    times = json.loads(path.read_text(encoding="utf-8"))
    listed = ", ".join(f"{row['step']} {row['measured']}" for row in times["rows"])
    return f"On {times['machine']}: {listed}."


def render_readme(text: str) -> str:
    """Rewrite the blocks of the README that stand between the marks of generated text.

    Raises:
        ValueError: If a mark names an unknown block.
    """
    blocks = {"verdicts": _verdicts_block, "times": _times_block}

    def fill(match: re.Match[str]) -> str:
        if match[2] not in blocks:
            raise ValueError(f"unknown block {match[2]!r}, expected one of {', '.join(blocks)}")
        return f"{match[1]}{blocks[match[2]]()}\n{match[3]}"

    return _BLOCK.sub(fill, text)
