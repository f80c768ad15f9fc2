"""Views made from the committed results: notebooks' outputs, verdicts, README blocks, figure.

Every one of them can be made again from ``records.jsonl``, and a test does.
"""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path

from companion.evidence.canonical import canonical_environment
from companion.evidence.claims import expected_false_reproduced
from companion.evidence.store import read_reference, write_atomic
from companion.evidence.tables import markdown_table, verdict_blocks, verdict_table
from companion.experiments.chapters import TITLES, load_chapter, notebook_path
from companion.pages.notebook import (
    NoReferenceError,
    chapter_judgements,
    collect_records,
    describe_evidence,
    png_bytes,
)
from companion.pages.verdicts import committed_judgements, mark_changed_criteria
from companion.paths import RESULTS

__all__ = [
    "KEY_FIGURES",
    "execute_notebook",
    "key_figure_path",
    "key_figure_png",
    "render_readme",
    "scoreboard",
    "write_key_figure",
]

KEY_FIGURES = {  # chapter: name of the file, text alternative
    "01": (
        "gains",
        "New concepts: near zero at R@1, negative at R@5 and R@10; "
        "new drawing style: positive throughout",
    ),
    "02": (
        "variance",
        "Gradient clustering lies below batches of twice the size on both data sets; SVRG is lower "
        "still on digits",
    ),
    "03": (
        "accuracy",
        "Against examples trained on, AutoAssist, uniform draws and skipping at random rise "
        "together; against examples scanned uniform draws are ahead",
    ),
    "04": (
        "recency",
        "The last position explains most of the variance for the conv net and long steps, "
        "the first for short steps",
    ),
    "05": (
        "cascade",
        "The cascade 4-2-1 is level with or below each of its controls, and loses accuracy under "
        "both attacks, more under PGD than under FGSM",
    ),
    "06": ("certificate", "Bounds of the largest robust radius closing on the exact value"),
}
_BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def scoreboard(profile: str, evidence: str) -> str:
    """Text of the scoreboard: every claim with a ledger entry, one row for a missing chapter."""
    parts, judged = [], []
    for number, title in TITLES.items():
        chapter = load_chapter(number)
        if chapter is None:
            parts.append(f"CHAPTER {number} {title}: not built")
            continue
        try:
            records = collect_records(chapter, profile, evidence)
        except NoReferenceError as error:
            parts.append(str(error))
            continue
        if profile == "quick":
            parts.append(f"CHAPTER {number} {title}: not judged (quick)")
            continue
        judgements = chapter_judgements(chapter, records, profile)
        source = f"runs/{profile}/{number}"
        reference = read_reference(profile, number) if evidence == "reference" else None
        if reference is not None:
            judgements = mark_changed_criteria(judgements, reference.record_set.criteria)
            source = describe_evidence(profile, number, reference)
        judged += judgements
        parts.append(f"CHAPTER {number} {title} ({source})\n\n{verdict_blocks(judgements)}")
    expected = expected_false_reproduced(judged)
    parts.append(f"false 'reproduced' to expect from chance, at most: {expected:.3f}")
    return "\n\n".join(parts)


def key_figure_path(number: str) -> Path:
    """Where the key figure of a chapter stands, for its notebook and the README."""
    return RESULTS / "figures" / f"{number}_{KEY_FIGURES[number][0]}.png"


def key_figure_png(number: str) -> bytes:
    """PNG of a chapter's key figure, made from its committed records.

    Raises:
        LookupError: If the chapter has no reference.
    """
    reference = read_reference("standard", number)
    if reference is None:
        raise LookupError(f"chapter {number} has no standard reference")
    figures = import_module(f"companion.experiments.ch{number}.figures")
    return png_bytes(figures.key_figure(reference.records), KEY_FIGURES[number][1])


def write_key_figure(number: str) -> None:
    """Draw the key figure of a chapter from its committed records."""
    write_atomic(key_figure_path(number), key_figure_png(number))


def execute_notebook(path: Path) -> None:
    """Execute a notebook in its committed settings and write it back normalised.

    The kernel is canonical, whatever this process is, and shows no progress. Outputs and execution
    counts stay; timings and the runner's metadata go.

    Raises:
        RuntimeError: If a cell warned.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=600,
        resources=resources,
        record_timing=False,
        coalesce_streams=True,
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


def _scoreboard_block() -> str:
    judged = committed_judgements()
    beside = [
        f"\n{each.id}, shown beside and not deciding: {each.beside['label']}: "
        f"**{each.beside['verdict']}**"
        + (f" ({each.beside['reason']})." if each.beside["reason"] else ".")
        for each in judged
        if each.beside
    ]
    notes: dict[str, list[str]] = {}
    for number in TITLES:
        reference = read_reference("standard", number)
        if reference is not None and reference.record_set.note:
            notes.setdefault(reference.record_set.note, []).append(number)
    said = [f"\n{note.capitalize()}: chapters {', '.join(which)}." for note, which in notes.items()]
    return "\n".join([verdict_table(judged, "markdown", width=100), *beside, *said])


def _chapters_block() -> str:
    rows = []
    for number, title in TITLES.items():
        chapter = load_chapter(number)
        if chapter is None:
            rows.append({"chapter": f"{number} {title}", "state": "not built", "standard run": "–"})
            continue
        name = notebook_path(number).name
        minutes = sum(run.predicted_seconds for run in chapter.plan("standard")) / 120
        state = {"chapter": f"[{number} {title}](notebooks/{name})", "state": "built"}
        rows.append(state | {"standard run": f"about {minutes:.0f} min on two cores"})
    return markdown_table(rows, ["chapter", "state", "standard run"])


def _times_block() -> str:
    path = RESULTS / "bench" / "fresh_clone.json"
    if not path.is_file():
        return "Not measured yet: `python benchmarks/fresh_clone.py`."
    rows = json.loads(path.read_text(encoding="utf-8"))
    return (
        markdown_table(rows["rows"], ["step", "measured"]) + f"\n\nMeasured on {rows['machine']}."
    )


def render_readme(text: str) -> str:
    """Rewrite the blocks between the generated marks of the README.

    Raises:
        ValueError: If a mark names no block.
    """
    blocks = {"scoreboard": _scoreboard_block, "chapters": _chapters_block, "times": _times_block}

    def fill(found: re.Match[str]) -> str:
        if found[2] not in blocks:
            raise ValueError(f"unknown block {found[2]!r}, expected one of {', '.join(blocks)}")
        return f"{found[1]}{blocks[found[2]]()}\n{found[3]}"

    return _BLOCK.sub(fill, text)
