"""One evidence seed of every arm, computed here and compared with the committed records.

This is what `make reproduce` does by default: it shows in minutes that the evidence is what the
code computes. A notebook does it with ``evidence = "seed 1000"``: it shows the committed records,
and beside them those that are computed here and differ.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from companion.evidence.store import Record, Reference, Run, Store, record_identity
from companion.lab.conditions import conditions_of
from companion.pages.compare import Comparison, compare_records

__all__ = [
    "compare_with_evidence",
    "differing_metrics",
    "finished_runs",
    "runs_of_seed",
    "seed_of",
]

Pair = tuple[Record, Record]  # a record and its provenance

MOST_METRICS = 3  # differing metrics of a record that a table shows


def seed_of(evidence: str) -> int | None:
    """Seed that a notebook's ``evidence`` names, as in ``"seed 1000"``; nothing if it names none.

    Examples:
        >>> seed_of("seed 1003")
        1003
        >>> seed_of("reference") is None
        True
    """
    named = re.fullmatch(r"seed (\d+)", evidence)
    return int(named[1]) if named else None


def runs_of_seed(plan: Sequence[Run], seed: int) -> list[Run]:
    """Runs of a plan that have this seed; timings are left out, as seconds are never compared.

    Arms that the plan gives fewer seeds may not have it.

    Raises:
        ValueError: If no arm has it.
    """
    if seed not in (seeds := {run.seed for run in plan}):
        raise ValueError(f"no arm has seed {seed}, expected {min(seeds)} to {max(seeds)}")
    return [run for run in plan if run.seed == seed and run.deterministic]


def finished_runs(store: Store, runs: Sequence[Run], digest: str) -> list[Pair]:
    """Records of runs that the store must have, each with its provenance.

    Raises:
        RuntimeError: If a record is not there.
    """
    pairs = []
    for run in runs:
        conditions = conditions_of(run, digest)
        record = store.read(run, conditions)
        if record is None:
            raise RuntimeError(f"{run.arm}, seed {run.seed}: the record was lost meanwhile")
        pairs.append((record, store.provenance(run, conditions)))
    return pairs


def compare_with_evidence(number: str, ours: Sequence[Pair], reference: Reference) -> Comparison:
    """Compare records of a chapter with the committed ones.

    Args:
        number: Two-digit chapter.
        ours: Records of this machine, each with its provenance.
        reference: The committed records.
    """
    about = reference.record_set
    evidence = list(zip(reference.records, reference.provenance, strict=True))
    arms = {record["arm"] for record in reference.records}
    return compare_records(number, ours, evidence, set(about.waiting) if about.canonical else arms)


def differing_metrics(
    comparison: Comparison, ours: Sequence[Pair], reference: Reference
) -> list[dict[str, object]]:
    """Rows of a table: the first metrics of each record that has other bytes than the evidence.

    Args:
        comparison: Outcome of `compare_with_evidence`.
        ours: The records that were compared.
        reference: The committed records.
    """
    known = {record_identity(record): record["metrics"] for record in reference.records}
    rows: list[dict[str, object]] = []
    for record, _ in ours:
        if f"{record['arm']} seed {record['seed']}" not in comparison.differing:
            continue
        theirs = known[record_identity(record)]
        changed = [name for name, value in record["metrics"].items() if theirs.get(name) != value]
        changed.sort(key=lambda name: name.count("/"))  # totals before their parts
        rows += [
            {
                "arm": record["arm"],
                "seed": str(record["seed"]),
                "metric": name,
                # all digits, as the last ones may be what differs
                "here": repr(record["metrics"][name]),
                "evidence": repr(theirs.get(name)),
            }
            for name in changed[:MOST_METRICS]
        ]
    return rows
