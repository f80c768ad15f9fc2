"""Measure all probes on all processors and write `trainaug/evidence/portable_operations.toml`.

``python tests/portability/record.py``, after a new version of torch or a new probe: a quarter of an
hour. What stands here in capitals is judged, everything else is measured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from emulation import PROCESSORS, ROOT, Collected, collect, why_not

TABLE = ROOT / "trainaug/evidence/portable_operations.toml"

# Operations that round nothing: they make, move, compare or select numbers.
EXACT = (
    "" abs alias all amax amin any arange argmax argmin argsort as_strided bucketize "
    "bitwise_and bitwise_not bitwise_or bitwise_xor cat ceil clamp clamp_max clamp_min clone "
    "complex constant_pad_nd copy copysign detach diag_embed diagonal empty empty_like "
    "empty_strided eq equal expand eye fill flip floor full full_like gather ge gt im2col imag "
    "index index_select is_same_size isfinite isinf isnan isin kthvalue le lift lift_fresh "
    "logical_and logical_not logical_or logical_xor lt masked_fill masked_scatter masked_select "
    "max maximum median min minimum mode narrow ne neg new_empty new_empty_strided new_full "
    "new_ones new_zeros nonzero ones ones_like permute pixel_shuffle real reflection_pad2d relu "
    "repeat resize roll round scalar_tensor scatter searchsorted select select_backward "
    "select_scatter set sgn sign slice slice_backward slice_scatter sort split split_with_sizes "
    "squeeze stack t take threshold threshold_backward tile topk transpose tril triu trunc "
    "unbind unfold unsqueeze view view_as_complex view_as_real where zero zeros zeros_like "
    "_conj _local_scalar_dense _reshape_alias _reshape_copy _resize_output _to_copy _unique2 "
    "_unsafe_view "
)

# Their results are integers or 0 and 1, but rounding decides which: they need a probe.
DRAWS = ["bernoulli", "binomial", "multinomial", "poisson"]

ROOTS = "trainaug.roots.sqrt"
FUSED = "the same optimiser with fused=True"
NUMPYS = "the function of NumPy"
# Probe -> the operation that it is about, and what to use instead. A row stands here when its
# probe differed on any processor, or in an earlier measurement with other numbers.
INSTEAD: Mapping[str, tuple[str, str]] = {}


def quoted(values: Iterable[str]) -> str:
    """Return a TOML list of strings, one a line."""
    return "[\n" + "".join(f"    {json.dumps(value)},\n" for value in values) + "]"


def shown_by(native: Collected, equal: Iterable[str]) -> dict[str, dict[str, str]]:
    """For every operation and type the equal probe that calls it among the fewest others."""
    shown: dict[str, dict[str, str]] = {}
    for name in sorted(equal, key=lambda n: (len(native.operations[n]), n)):
        for operation in native.operations[name]:
            packet, kind = operation.rsplit(" ", 1)
            shown.setdefault(packet, {}).setdefault(kind, name)
    return shown


def main() -> int:
    """Measure and write."""
    if why_not():
        print(why_not(), file=sys.stderr)
        return 1
    with ThreadPoolExecutor(len(PROCESSORS)) as pool:
        emulated = list(pool.map(collect, PROCESSORS))
    Path(TABLE).write_text(table(collect(None, operations=True), emulated), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
