"""Measure all probes on all processors and write `companion/evidence/portable_operations.toml`.

``python tests/portability/record.py``, after a new version of torch or a new probe: a quarter of an
hour. What stands here in capitals is judged, everything else is measured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from emulation import PROCESSORS, ROOT, Collected, collect, why_not

TABLE = ROOT / "companion/evidence/portable_operations.toml"

HEADER = """\
# Operations whose bytes do not depend on the processor in canonical mode: natively and emulated as
# Haswell and EPYC-Rome they are the same. Written by tests/portability/record.py, never by hand;
# docs/portability.md explains it.
#
# exact: they make, move, compare or select numbers and round nothing. Integers and truth values are
#   exact in all operations but those under "draws".
# portable: operations that a probe calls whose result was the same everywhere.
# not_shown: the emulator ends there, so nothing is known. An arm may call them.
# not_portable: known to differ, with what to use instead.
# probes: what was measured (tests/portability/operations.py).
"""

# Operations that round nothing: they make, move, compare or select numbers.
EXACT = """
abs alias all amax amin any arange argmax argmin argsort as_strided bucketize bitwise_and
bitwise_not bitwise_or bitwise_xor cat ceil clamp clamp_max clamp_min clone complex
constant_pad_nd copy copysign detach diag_embed diagonal empty empty_like empty_strided eq equal
expand eye fill flip floor full full_like gather ge gt im2col imag index index_select is_same_size
isfinite isinf isnan isin kthvalue le lift lift_fresh logical_and logical_not logical_or
logical_xor lt masked_fill masked_scatter masked_select max maximum median min minimum mode narrow
ne neg new_empty new_empty_strided new_full new_ones new_zeros nonzero ones ones_like permute
pixel_shuffle real reflection_pad2d relu repeat resize roll round scalar_tensor scatter
searchsorted select select_backward select_scatter set sgn sign slice slice_backward slice_scatter
sort split split_with_sizes squeeze stack t take threshold threshold_backward tile topk transpose
tril triu trunc unbind unfold unsqueeze view view_as_complex view_as_real where zero zeros
zeros_like _conj _efficientzerotensor _has_same_storage_numel _local_scalar_dense _reshape_alias
_reshape_copy _resize_output _to_copy _unique2 _unsafe_view
""".split()  # noqa: SIM905  one name a line would fill three pages

# Their results are integers or 0 and 1, but rounding decides which: they need a probe.
DRAWS = ["bernoulli", "binomial", "multinomial", "poisson"]

FUSED = "the same optimiser with fused=True"
NUMPYS = "the function of NumPy"
# Operations that are not portable -> their types, and what to use instead. Each row differed in
# some measurement; a row stays when a probe cannot show the difference with its numbers.
NOT_PORTABLE: Mapping[str, tuple[list[str], str]] = {
    "sqrt": (["float32", "float64"], "trainaug.roots.sqrt"),
    "_foreach_sqrt": (["float32", "float64"], FUSED),
    "log": (["float64"], "trainaug.roots.log"),
    "log2": (["float32", "float64"], "trainaug.roots.log2"),
    "log10": (["float32", "float64"], "trainaug.roots.log10"),
    "acos": (["float32", "float64"], NUMPYS),
    "asin": (["float32", "float64"], NUMPYS),
    "atan": (["float32", "float64"], NUMPYS),
    "tan": (["float32", "float64"], NUMPYS),
    "linalg_cholesky_ex": (["float32"], "the same in float64"),
    "_cdist_backward": (["float32", "float64"], "differences, squared and summed"),
}


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


def refused_types(packet: str) -> list[str]:
    """Types in which an operation is known not to be portable."""
    return NOT_PORTABLE.get(packet.removeprefix("aten."), ([], ""))[0]


def table(native: Collected, emulated: Sequence[Collected]) -> str:
    """Return the text of the table."""
    crashed = {name: signal for actual in emulated for name, signal in actual.crashes.items()}
    measured = [name for name in native.hashes if name not in crashed]
    differ = [
        name
        for name in measured
        if any(actual.hashes[name] != native.hashes[name] for actual in emulated)
    ]
    equal = [name for name in measured if name not in differ]
    parts = [
        HEADER,
        "[exact]",
        f"operations = {quoted(f'aten.{name}' for name in EXACT)}",
        f"draws = {quoted(f'aten.{name}' for name in DRAWS)}",
        "",
        "[portable]  # type of the result = the probe that shows it",
    ]
    for packet, kinds in sorted(shown_by(native, equal).items()):
        refused = refused_types(packet)
        rows = {kind: probe for kind, probe in sorted(kinds.items()) if kind not in refused}
        if rows and packet.removeprefix("aten.") not in EXACT:
            inside = ", ".join(f"{kind} = {json.dumps(probe)}" for kind, probe in rows.items())
            parts.append(f"{json.dumps(packet)} = {{ {inside} }}")
    parts += ["", "[not_shown]  # only probes call them at which the emulator ends"]
    shown, unknown = shown_by(native, equal), shown_by(native, crashed)
    for packet, kinds in sorted(unknown.items()):
        left = sorted(set(kinds) - set(shown.get(packet, {})) - set(refused_types(packet)))
        if left and packet.removeprefix("aten.") not in EXACT:
            parts.append(f"{json.dumps(packet)} = {json.dumps(left)}")
    parts += ["", "[not_portable]"]
    for name, (kinds, instead) in NOT_PORTABLE.items():
        packet = json.dumps(f"aten.{name}")
        row = f"types = {json.dumps(kinds)}, instead = {json.dumps(instead)}"
        parts.append(f"{packet} = {{ {row} }}")
    parts += [
        "",
        "[probes]",
        f"equal = {quoted(equal)}",
        f"differ = {quoted(differ)}",
        "",
        "[probes.crashed]  # not shown: the emulator ends there, with this signal",
        *[f"{json.dumps(name)} = {json.dumps(signal)}" for name, signal in sorted(crashed.items())],
    ]
    return "\n".join(parts) + "\n"


def main() -> int:
    """Measure and write."""
    if why_not():
        print(why_not(), file=sys.stderr)
        return 1
    with ThreadPoolExecutor(len(PROCESSORS)) as pool:
        emulated = list(pool.map(collect, PROCESSORS))
    TABLE.write_text(table(collect(None, operations=True), emulated), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
