"""Compare the results of this machine with the committed evidence.

Where the canonical fingerprints are equal, every deterministic record must have the evidence's
bytes. Elsewhere (other libraries, a GPU, a processor without canonical mode) only the verdicts and
intervals of the claims are compared. There it is an error only if a verdict turned into its
opposite and the two intervals have no number in common. Seconds are never compared.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from companion.evidence.claims import Effect, Judgement
from companion.evidence.store import Record, canonical_json, record_identity
from companion.evidence.tables import shown_effect

__all__ = [
    "Comparison",
    "compare_claims",
    "compare_records",
    "first_line",
    "is_canonical_fingerprint",
]

OPPOSITES = {"holds", "opposite"}
MOST_NAMED = 5  # records that the first line names; the report names all


def is_canonical_fingerprint(fingerprint: str) -> bool:
    """Whether equal fingerprints of this kind promise equal bytes."""
    return not fingerprint.endswith("-native")


@dataclass
class Comparison:
    """Outcome of comparing one chapter with its evidence.

    Attributes:
        chapter: Two digits.
        compared: Number of records that were compared byte for byte.
        differing: Arm and seed of the records that differ.
        elsewhere: Number of records that have another fingerprint than their evidence, or a native
            one.
        absent: Number of records that are not in the evidence, for another setting or a newer
            version.
        early: Number of records that are not compared because their evidence was made before
            canonical mode.
        claims: Number of claims whose words were compared.
        agreeing: Number of claims with the same word in every setting.
        turned: Claims that turned into the opposite, with disjoint intervals, in words; errors.
        moved: Other claims with a different word, in words; no errors.
    """

    chapter: str
    compared: int = 0
    differing: list[str] = field(default_factory=list)
    elsewhere: int = 0
    absent: int = 0
    early: int = 0
    claims: int = 0
    agreeing: int = 0
    turned: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether these results and the evidence contradict each other."""
        return bool(self.differing or self.turned)

    @property
    def state(self) -> str:
        """The outcome in a few words, for a table; the report lists ``turned`` and ``moved``."""
        parts = []
        if self.compared:
            equal = self.compared - len(self.differing)
            parts.append(f"{equal} of {self.compared} records equal")
        if self.elsewhere and self.claims:
            parts.append(f"another fingerprint, {self.agreeing} of {self.claims} claims agree")
        elif self.elsewhere:
            parts.append(f"another fingerprint, {self.elsewhere} records not compared")
        if self.absent:
            parts.append(f"{self.absent} records are not in the evidence")
        if self.early:
            parts.append("evidence made before canonical mode, not compared")
        return "; ".join(parts) or "–"


def compare_records(
    chapter: str,
    ours: Sequence[tuple[Record, Record]],
    evidence: Sequence[tuple[Record, Record]],
    early_arms: Collection[str] = (),
) -> Comparison:
    """Compare records byte for byte wherever their fingerprints promise equal bytes.

    Args:
        chapter: Two digits.
        ours: Records of this machine, each with its provenance.
        evidence: The committed records, each with its provenance.
        early_arms: Arms whose evidence was made before canonical mode.
    """
    comparison = Comparison(chapter)
    known = {record_identity(record): (record, row) for record, row in evidence}
    for record, row in ours:
        if not row["deterministic"]:
            continue
        if record["arm"] in early_arms:
            comparison.early += 1
            continue
        pair = known.get(record_identity(record))
        if pair is None:
            comparison.absent += 1
            continue
        fingerprints = {row["fingerprint"], pair[1]["fingerprint"]}
        if len(fingerprints) > 1 or not is_canonical_fingerprint(row["fingerprint"]):
            comparison.elsewhere += 1
            continue
        comparison.compared += 1
        if canonical_json(record) != canonical_json(pair[0]):
            comparison.differing.append(f"{record['arm']} seed {record['seed']}")
    return comparison


def compare_claims(
    comparison: Comparison, ours: Sequence[Judgement], evidence: Sequence[Judgement]
) -> None:
    """Compare the words of settings, and the intervals of those that turned into the opposite.

    Timings are left out, because seconds are never compared.

    Args:
        comparison: Receives the outcome.
        ours: Judgements of the records of this machine.
        evidence: Judgements of the committed records, at the same seeds.
    """
    theirs = {judgement.id: judgement for judgement in evidence}
    for judgement in ours:
        other = theirs.get(judgement.id)
        pairs = _common_effects(judgement, other) if other else []
        if not pairs:
            continue
        comparison.claims += 1
        moved = [pair for pair in pairs if pair[0].word != pair[1].word]
        if not moved:
            comparison.agreeing += 1
            continue
        changes = [
            f"{mine.name}: {known.word} in the evidence, {mine.word} here" for mine, known in moved
        ]
        turned = [
            f"{mine.name} {shown_effect(mine)} against {shown_effect(known)}"
            for mine, known in moved
            if {mine.word, known.word} == OPPOSITES and _are_disjoint(mine, known)
        ]
        line = f"{judgement.id}, {'; '.join(changes)}"
        if turned:
            comparison.turned.append(f"{line}: {'; '.join(turned)}")
        else:
            comparison.moved.append(line)


def _common_effects(judgement: Judgement, other: Judgement) -> list[tuple[Effect, Effect]]:
    """Pair the settings that both judgements have values for, timings left out."""
    known = {(effect.part, effect.name): effect for effect in other.effects}
    pairs = [(effect, known.get((effect.part, effect.name))) for effect in judgement.effects]
    return [
        (mine, theirs)
        for mine, theirs in pairs
        if theirs is not None and mine.kind != "timing" and mine.n and theirs.n
    ]


def _are_disjoint(mine: Effect, theirs: Effect) -> bool:
    """Whether the 95 % intervals are disjoint; for *exact* claims or without intervals, yes."""
    if mine.kind == "exact" or mine.size is None or theirs.size is None:
        return True
    return max(mine.size[0], theirs.size[0]) > min(mine.size[1], theirs.size[1])


def first_line(
    comparisons: Sequence[Comparison],
    unavailable: Mapping[str, str],
    failed: Collection[str] = (),
) -> str:
    """Say in words what a reproduction has shown, for the first line of its report.

    Args:
        comparisons: One for each chapter that was compared.
        unavailable: Name of the data that this machine cannot get, by chapter.
        failed: Notebooks that failed for another reason.
    """
    parts = []
    compared = sum(each.compared for each in comparisons)
    differing = [name for each in comparisons for name in each.differing]
    if differing:
        named = ", ".join(differing[:MOST_NAMED])
        more = ", …" if len(differing) > MOST_NAMED else ""
        equal = compared - len(differing)
        parts.append(
            f"{equal} of {compared} records equal the evidence; {len(differing)} differ: "
            f"{named}{more}"
        )
    elif compared:
        parts.append(f"{compared} of {compared} records equal the evidence, byte for byte")
    elsewhere = sum(each.elsewhere for each in comparisons)
    if claims := sum(each.claims for each in comparisons):
        agreeing = sum(each.agreeing for each in comparisons)
        parts.append(
            f"another fingerprint: intervals were compared, {agreeing} of {claims} claims agree"
        )
    elif elsewhere:
        parts.append(
            f"another fingerprint: {elsewhere} records were computed and not compared, "
            "`make reproduce SEED=all` compares the intervals of the claims"
        )
    if turned := [line.partition(":")[0] for each in comparisons for line in each.turned]:
        parts.append(f"turned into the opposite: {', '.join(turned)}")
    if absent := sum(each.absent for each in comparisons):
        parts.append(f"{absent} records are not in the evidence")
    if early := [str(int(each.chapter)) for each in comparisons if each.early]:
        parts.append(f"evidence made before canonical mode, not compared: {_chapters(early)}")
    if unavailable:
        named = ", ".join(f"chapter {int(n)} ({name})" for n, name in unavailable.items())
        parts.append(f"data not available here: {named}")
    if failed:
        parts.append(f"failed: {_chapters([str(int(number)) for number in failed])}")
    return "; ".join(parts) or "nothing was compared with the evidence"


def _chapters(names: Sequence[str]) -> str:
    return f"{'chapter' if len(names) == 1 else 'chapters'} {', '.join(names)}"
