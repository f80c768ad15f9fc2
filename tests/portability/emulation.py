"""Run Python in canonical mode natively or on an emulated processor, and collect the probes."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from companion.evidence.canonical import canonical_environment

EMULATOR = "qemu-x86_64"
PROCESSORS = ("Haswell", "EPYC-Rome")  # an Intel without AVX-512 and an AMD
ROOT = Path(__file__).parents[2]
PROBES = Path(__file__).with_name("operations.py")


def why_not() -> str:
    """Why nothing can be emulated here; empty where it can."""
    if platform.machine() != "x86_64":
        return f"canonical mode is a promise between x86-64 machines; this is {platform.machine()}"
    if shutil.which(EMULATOR) is None:
        return f"{EMULATOR} is not installed (Debian and Ubuntu: apt-get install qemu-user)"
    return ""


def run_on(
    processor: str | None, arguments: Sequence[str], *, timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run this Python with arguments on a processor, ``None`` being the one of this machine."""
    # The variables are worked out here: asking NumPy in the emulator would cost another import.
    environment = canonical_environment() | {"OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    command = [sys.executable, *arguments]
    if processor is not None:
        command = [EMULATOR, "-cpu", processor, *command]
    return subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout
    )


@dataclass
class Collected:
    """Hashes of the probes on one processor, and those that ended the process, with the signal."""

    hashes: dict[str, str] = field(default_factory=dict)
    operations: dict[str, list[str]] = field(default_factory=dict)
    crashes: dict[str, str] = field(default_factory=dict)


def collect(
    processor: str | None, *, skip: Sequence[str] = (), operations: bool = False
) -> Collected:
    """Run all probes but those to skip; begin again behind one that ends the process."""
    collected, after = Collected(), ""
    while True:
        options = ["--after", after] if after else []
        options += ["--operations"] if operations else []
        options += [f"--skip={name}" for name in skip]
        done = run_on(processor, [str(PROBES), *options], timeout=1500)
        begun = ""
        for line in done.stdout.splitlines():
            row = json.loads(line)
            begun = row.get("begin", begun)
            if "sha256" in row:
                collected.hashes[row["name"]] = row["sha256"]
                collected.operations[row["name"]] = row.get("operations", [])
        if done.returncode == 0:
            return collected
        if not begun or begun in collected.hashes:
            raise RuntimeError(f"the probes failed on {processor or 'this machine'}: {done.stderr}")
        collected.crashes[begun] = ending(done)
        after = begun


def ending(done: subprocess.CompletedProcess[str]) -> str:
    """Name of the signal that ended a process, or the last line that it wrote."""
    number = -done.returncode if done.returncode < 0 else done.returncode - 128
    if number in {member.value for member in signal.Signals}:
        return signal.Signals(number).name
    return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][:100]
