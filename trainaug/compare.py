"""Compare own results with the committed reference."""

from __future__ import annotations

from collections.abc import Sequence

from trainaug.evidence.claims import Judgement
from trainaug.evidence.statistics import bonferroni, prediction_interval
from trainaug.evidence.store import Record, Reference, canonical_json, record_identity

__all__ = ["compare"]

CONFIDENCE = 0.99


def compare(
    ours: Sequence[Record],
    reference: Reference,
    judged: Sequence[Judgement],
    reference_judged: Sequence[Judgement],
    *,
    same_machine: bool,
) -> list[str]:
    """Compare own results with the reference.

    On the same processor and library versions every record must be equal. Elsewhere exact claims
    must agree, each statistical mean must lie in the reference's 99 % prediction interval
    (Bonferroni over the estimands), and no verdict may have turned from *reproduced* to
    *contradicted* or back. Timing is never compared.

    Args:
        ours: Own records.
        reference: The committed results.
        judged: Judgements of ``ours``.
        reference_judged: Judgements of the reference.
        same_machine: Whether the fingerprints are equal.

    Returns:
        The differences in words; none if the two agree.
    """
    differences = []
    if same_machine:
        rows = zip(reference.records, reference.provenance, strict=True)
        wanted = {record_identity(r): canonical_json(r) for r, p in rows if p["deterministic"]}
        for record in ours:
            text = canonical_json(record)
            if wanted.get(record_identity(record), text) != text:
                differences.append(f"{record['arm']}, seed {record['seed']}: other bytes")
        return differences
    theirs = {judgement.id: judgement for judgement in reference_judged}
    statistical = [(j, e) for j in judged if j.kind == "statistical" for e in j.estimates]
    confidence = bonferroni(CONFIDENCE, max(1, len(statistical)))
    for judgement in judged:
        other = theirs.get(judgement.id)
        if other is None or judgement.kind == "timing":
            continue
        pair = {judgement.verdict, other.verdict}
        if pair == {"reproduced", "contradicted"} or (judgement.kind == "exact" and len(pair) > 1):
            differences.append(f"{judgement.id}: {other.verdict} became {judgement.verdict}")
        known = {estimate.estimand: estimate for estimate in other.estimates}
        for estimate in judgement.estimates if judgement.kind == "statistical" else ():
            values = list(known[estimate.estimand].values.values())
            if estimate.mean is None or len(values) < 2:
                continue
            interval = prediction_interval(values, confidence, m=len(estimate.values))
            slack = 1e-6 * max(1.0, abs(interval.mean))
            if not interval.low - slack <= estimate.mean <= interval.high + slack:
                differences.append(
                    f"{judgement.id}, {estimate.estimand}: mean {estimate.mean:.6g} outside "
                    f"[{interval.low:.6g}, {interval.high:.6g}]"
                )
    return differences
