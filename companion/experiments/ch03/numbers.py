"""Numbers of chapter 3's claims that are more than arithmetic: functions of records of one seed."""

from __future__ import annotations

import math

from companion.experiments.records import Record

__all__ = ["mean_auc"]


def mean_auc(arm: Record, curve: str) -> float:
    """Mean of a curve of AUCs over the probes; a half where a short run has judged no guess."""
    values = arm["curves"][curve]
    return math.fsum(values) / len(values) if values else 0.5
