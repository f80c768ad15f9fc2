"""Canonical mode: the environment in which every x86-64 machine with AVX2 computes the same bytes.

The numeric libraries choose their kernels by processor when they are loaded. The variables below
pin that choice, so they must be set before NumPy and torch are imported. Runs get them as the
environment of a child process; notebook kernels and the command set them with `enter`. Nothing else
in trainaug touches the environment.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version

__all__ = [
    "LATE",
    "canonical_environment",
    "canonical_variables",
    "conflicts",
    "enter",
    "fingerprint",
    "fingerprint_parts",
    "is_canonical",
    "native_environment",
    "shell_text",
    "versions",
]

VARIABLES = {
    "ATEN_CPU_CAPABILITY": "avx2",  # torch's own kernels
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # convolutions and recurrent layers
    "OPENBLAS_CORETYPE": "Haswell",  # matrix products of NumPy, SciPy, runs (`lab.kernels`)
    # MKL, torch's BLAS, ignores AVX2 on AMD and falls back to this path there
    "MKL_CBWR": "COMPATIBLE",
}
UNSET = ("OPENBLAS_L2_SIZE",)  # it changes OpenBLAS's blocking, and with it the order of sums
NUMPY_VARIABLE = "NPY_DISABLE_CPU_FEATURES"
LIBRARIES = (  # whose code a record's numbers pass through
    "torch",
    "numpy",
    "scipy",
    "scikit-learn",
    "cvxpy",
    "clarabel",
    "highspy",
    "scs",
    "python-flint",
    "pillow",
)
LATE = (
    "numbers computed in this kernel may differ in their last digits; runs are canonical in "
    "processes of their own"
)
# NumPy's names of CPU features change between its versions, so NumPy is asked for them.
_ASK_NUMPY = (
    "import json, numpy; s = numpy.show_config(mode='dicts')['SIMD Extensions'];"
    "print(json.dumps(s.get('found', []) + s.get('not found', [])))"
)


@cache
def _numpy_features() -> str:
    """Names of the CPU features above AVX2 for which this NumPy has kernels, with spaces between.

    A child process asks NumPy, which must not be loaded in this process yet.
    """
    environment = {k: v for k, v in os.environ.items() if k != NUMPY_VARIABLE}
    answer = subprocess.run(
        [sys.executable, "-c", _ASK_NUMPY], capture_output=True, text=True, env=environment
    )
    if answer.returncode != 0:
        raise RuntimeError(f"NumPy cannot be asked for its CPU features: {answer.stderr.strip()}")
    names = json.loads(answer.stdout)
    return " ".join(sorted(n for n in names if n == "X86_V4" or n.startswith("AVX512")))


def canonical_variables() -> dict[str, str]:
    """The variables of canonical mode and their values, NumPy's included."""
    return VARIABLES | {NUMPY_VARIABLE: _numpy_features()}


def _touched_names() -> tuple[str, ...]:
    """Names of all variables that canonical mode sets or removes."""
    return (*VARIABLES, NUMPY_VARIABLE, *UNSET)


def native_environment(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment of a child that measures time or uses a GPU: no variable of canonical mode."""
    base = os.environ if base is None else base
    return {name: value for name, value in base.items() if name not in _touched_names()}


def canonical_environment(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment of a child whose numbers are the same on every machine."""
    return native_environment(base) | canonical_variables()


def conflicts(base: Mapping[str, str] | None = None) -> list[str]:
    """List, as ``NAME=value``, the variables that are set otherwise; children do not get these."""
    base = os.environ if base is None else base
    wanted = canonical_variables()
    return [
        f"{name}={base[name]}"
        for name in _touched_names()
        if name in base and base[name] != wanted.get(name)
    ]


def is_canonical() -> bool:
    """Whether this process was started with the variables of canonical mode."""
    return not conflicts() and all(name in os.environ for name in canonical_variables())


def enter() -> str:
    """Make this process canonical if NumPy and torch are not loaded yet.

    Returns:
        An empty text if this process is canonical now, else the line `LATE`, which warns of it.
    """
    if is_canonical():
        return ""
    if "numpy" in sys.modules or "torch" in sys.modules:
        return LATE
    for name in _touched_names():
        os.environ.pop(name, None)
    os.environ.update(canonical_variables())
    return ""


@cache
def versions() -> dict[str, str]:
    """Versions of Python (minor), the C library and the libraries that can move a number."""
    python = ".".join(platform.python_version_tuple()[:2])
    c_library = " ".join(platform.libc_ver()).strip() or platform.system()
    return {"python": python, "libc": c_library} | {name: _version(name) for name in LIBRARIES}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # a machine with a GPU may lack libraries that its runs do not use
        return "absent"


def fingerprint_parts(*, canonical: bool) -> dict[str, object]:
    """What decides the last bits of a number; in a native process the processor does so, too."""
    return {
        "machine": platform.machine(),
        "variables": canonical_variables() if canonical else {},
        "versions": versions(),
    }


def fingerprint(*, canonical: bool) -> str:
    """Hash of `fingerprint_parts`; outside canonical mode it ends in ``-native``.

    Equal canonical fingerprints promise equal bytes; any others only comparable statistics.
    """
    parts = json.dumps(fingerprint_parts(canonical=canonical), sort_keys=True)
    text = hashlib.sha256(parts.encode()).hexdigest()[:16]
    return text if canonical else f"{text}-native"


def shell_text() -> str:
    """Commands that set the variables: ``eval "$(python -m companion.evidence.canonical)"``."""
    variables = canonical_variables()
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    return "\n".join([*exports, *(f"unset {name}" for name in UNSET)])


if __name__ == "__main__":
    sys.stdout.write(f"{shell_text()}\n")
