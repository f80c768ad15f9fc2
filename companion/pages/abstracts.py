"""Tables for the pages on the sources: sentences of an abstract, their claims and verdicts.

``docs/sources/abstracts.yaml`` says, in our own words, what each sentence of an abstract states
and which claims of the ledgers test it. The verdicts are read whenever the site is built, so that a
table cannot disagree with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from companion.evidence.claims import Judgement
from companion.evidence.tables import markdown_table, phrase
from companion.lab.chapters import notebook_path
from companion.pages.verdicts import committed_judgements
from companion.paths import ROOT

__all__ = [
    "ABSTRACTS",
    "CHAPTERS",
    "PAGES",
    "Abstract",
    "Sentence",
    "abstract_table",
    "load_abstracts",
    "other_claims_table",
    "source_tables",
]

ABSTRACTS = ROOT / "docs" / "sources" / "abstracts.yaml"
#: Chapter of a claim by the first part of its id.
CHAPTERS = {"vse": "01", "gc": "02", "aa": "03", "ord": "04", "csa": "05", "lin": "06"}
#: Prefixes of the claims that each page shows completely, in its abstracts or in further tables.
PAGES = {
    "vsepp": ("vse",),
    "gradient_variance": ("gc",),
    "optimisation_bias": ("lin",),
    "autoassist": ("aa",),
    "simionescu_thesis": ("ord", "csa"),
}
_WHOSE = {"authors": "the authors", "logs": "their code or logs", "ours": "our question"}


@dataclass(frozen=True)
class Sentence:
    """A sentence of an abstract.

    Attributes:
        says: What it states, in our words.
        claims: Ids of the claims that test it.
        remark: Why no claim tests it, or what the claims leave out.
    """

    says: str
    claims: tuple[str, ...]
    remark: str


@dataclass(frozen=True)
class Abstract:
    """An abstract in one of its versions.

    Attributes:
        name: Name of its table.
        page: Page of the site that shows it, without its ending.
        sentences: All of them, in order.
    """

    name: str
    page: str
    sentences: tuple[Sentence, ...]


def load_abstracts(path: Path = ABSTRACTS) -> list[Abstract]:
    """Read the sentences of all abstracts.

    Raises:
        ValueError: If an entry has an unknown field, or a sentence neither a claim nor a remark.
    """
    abstracts = []
    for name, entry in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        _refuse_unknown(name, entry, {"page", "sentences"})
        sentences = tuple(_sentence(name, each) for each in entry["sentences"])
        abstracts.append(Abstract(name, entry["page"], sentences))
    return abstracts


def _sentence(name: str, entry: Mapping[str, Any]) -> Sentence:
    """Check and read one sentence of the abstract ``name``."""
    _refuse_unknown(name, entry, {"says", "claims", "remark"})
    sentence = Sentence(entry["says"], tuple(entry.get("claims", ())), entry.get("remark", ""))
    if not sentence.claims and not sentence.remark:
        raise ValueError(f"{name}: neither a claim nor a remark for {sentence.says!r}")
    return sentence


def _refuse_unknown(name: str, entry: Mapping[str, Any], known: set[str]) -> None:
    if unknown := sorted(set(entry) - known):
        raise ValueError(
            f"{name}: unknown {', '.join(unknown)}, expected {', '.join(sorted(known))}"
        )


def abstract_table(abstract: Abstract, judged: Mapping[str, Judgement]) -> str:
    """Markdown table of an abstract: one row for each claim and each remark of its sentences.

    Raises:
        KeyError: If a claim has no committed verdict.
    """
    rows = []
    for number, sentence in enumerate(abstract.sentences, 1):
        cells = {"sentence": str(number), "what it says": sentence.says}
        for claim in sentence.claims:
            each = judged[claim]
            whose = " (our question)" if each.origin == "ours" else ""
            rows.append(cells | {"claim": _linked(each), "word": f"{_word(each)}{whose}"})
            cells = {"sentence": "", "what it says": ""}  # shown in its first row only
        if sentence.remark:
            rows.append(cells | {"claim": sentence.remark, "word": ""})
    return markdown_table(rows, ["sentence", "what it says", "claim", "word"])


def other_claims_table(
    prefix: str, abstracts: Sequence[Abstract], judged: Mapping[str, Judgement]
) -> str:
    """Markdown table of a ledger's claims that belong to no sentence of these abstracts."""
    named = {claim for each in abstracts for s in each.sentences for claim in s.claims}
    rows = [
        {
            "claim": _linked(each),
            "whose": _WHOSE[each.origin],
            "where it stands": each.where,
            "word": _word(each),
        }
        for each in judged.values()
        if each.id.partition(".")[0] == prefix and each.id not in named
    ]
    columns = ["claim", "whose", "where it stands", "word"]
    return markdown_table(rows, columns) if rows else "Every claim stands in a sentence above."


def _linked(each: Judgement) -> str:
    notebook = notebook_path(CHAPTERS[each.id.partition(".")[0]]).name
    return f"[`{each.id}`](../chapters/{notebook}) {each.statement}"


def _word(each: Judgement) -> str:
    word = f"**{phrase(each, each.worth)}**"
    return word if each.scope != "proxy" else f"{word} (on other data, so it does not count)"


def source_tables() -> dict[str, str]:
    """All tables by name: one per abstract, and ``<page>_<prefix>`` with the other claims."""
    judged = {each.id: each for each in committed_judgements()}
    abstracts = load_abstracts()
    tables = {each.name: abstract_table(each, judged) for each in abstracts}
    for page, prefixes in PAGES.items():
        shown = [each for each in abstracts if each.page == page]
        for prefix in prefixes:
            tables[f"{page}_{prefix}"] = other_claims_table(prefix, shown, judged)
    return tables
