"""Run the mutants: small changes of the code, each of which a canary or a claim must name.

A mutant is a patch in this folder with a header of comment lines:

``# kind:``
    What is changed, see `KINDS`.
``# expect:``
    Who names it: ``arm 05/digits_10_reversed4`` (its canary moves), ``constant 04/Training.lr``
    (a setting's default, which is not the committed one), ``claim csa.4`` (it reads *criterion
    changed*, or its entry in ``results/verdicts`` is another one), ``data digits`` (its content
    hash is another one), or ``unchanged because ...`` (a change of the text alone: the canaries of
    `WITNESSES`, an arm of every chapter, are equal). One mutant may say ``escapes claim gc.13
    because ...``: nothing names it yet.
``# cost:``
    About how many seconds it takes.

The patches are applied in turn to a scratch copy of the code and the ledgers. Before them the same
checks run on the copy as it is, since a canary that moves without a mutant says nothing of one. The
exit status is 1 if a mutant escapes or its patch no longer applies; then it must be made again, in
the commit that moved the code: edit, ``git diff``, undo, and keep the header.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from companion.evidence.canonical import canonical_environment
from companion.evidence.ledger import load_ledger
from companion.paths import CLAIMS, DATA_CACHE, ROOT

__all__ = ["FOLDER", "KINDS", "WITNESSES", "Mutant", "applies", "main", "read_mutants"]

FOLDER = Path(__file__).parent
KINDS = (
    "boundary of the cascade",
    "best against last weights",
    "attack step",
    "operands of an estimand",
    "window",
    "split",
    "rounding",
    "seed",
    "decoding",
    "margin of a claim",
    "batch sampler",
    "clipping",
    "clustering",
    "evaluation mode",
    "evaluation interval",
    "learning rate",
    "loss reduction",
    "momentum",
    "pass rate",
    "projection",
    "threshold",
    "ties",
    "weight decay",
    "refactoring",
)
# An arm of every chapter, cheap and with the common training loop.
WITNESSES = (
    "01/family_sum",
    "02/speed_0_uniform",
    "03/images_0_uniform",
    "04/digits_random",
    "05/digits_10_erm",
    "06/fashion_mlp",
)
_COPIED = (
    "trainaug",
    "companion",
    "claims",
)  # what patches may change; all else is the checkout's own
_JUDGE = (
    "import sys; from companion.pages.judge import verdicts_text;"
    "sys.stdout.write(verdicts_text(sys.argv[1]))"
)
_CONSTANTS = (
    "import json, sys; from companion.lab.canary import moved_constants;"
    "sys.stdout.write(json.dumps(moved_constants(sys.argv[1])))"
)
_VERIFY = "import sys; from trainaug.data import registry; registry.verify(sys.argv[1])"
_NAMED_BY = ("arm", "constant", "claim", "data")


class CheckFailedError(RuntimeError):
    """A child process ended without an answer; the message has its last line."""


@dataclass(frozen=True)
class Mutant:
    """A patch with its header; ``subject`` is what ``expect`` names, or the reason.

    Of a mutant that is known to escape, ``escapes`` is the reason.
    """

    name: str
    path: Path
    kind: str
    expect: str
    subject: str
    cost: str
    escapes: str = ""


def read_mutants(folder: Path = FOLDER) -> list[Mutant]:
    """Read the headers of all patches of a folder, by name.

    Raises:
        ValueError: If a header is not as above; the message names the patch.
    """
    mutants = []
    for path in sorted(folder.glob("*.patch")):
        header: dict[str, str] = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("# "):
                break
            field, _, value = line.removeprefix("# ").partition(": ")
            header[field] = value
        if set(header) != {"kind", "expect", "cost"}:
            raise ValueError(
                f"{path.name}: the header has {sorted(header)}, not kind, expect, cost"
            )
        if header["kind"] not in KINDS:
            raise ValueError(f"{path.name}: unknown kind {header['kind']!r}")
        rest, escapes = header["expect"], ""
        if rest.startswith("escapes "):
            rest, _, escapes = rest.removeprefix("escapes ").partition(" because ")
            if not escapes:
                raise ValueError(f"{path.name}: write 'escapes ... because ...', and why")
        expect, _, subject = rest.partition(" ")
        if expect not in (*_NAMED_BY, "unchanged") or not subject:
            raise ValueError(f"{path.name}: unknown expectation {header['expect']!r}")
        if (expect == "unchanged") != subject.startswith("because "):
            raise ValueError(f"{path.name}: write 'unchanged because ...', and why")
        row = (path.stem, path, header["kind"], expect, subject, header["cost"], escapes)
        mutants.append(Mutant(*row))
    return mutants


def _git_apply(patch: Path, folder: Path, *options: str) -> str:
    """Apply a patch to a folder; return what git says against it."""
    # the folder counts as it is, whatever repository it lies in
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(folder.parent)}
    command = ["git", "apply", *options, str(patch)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stderr.strip() or f"status {done.returncode}"


def applies(mutant: Mutant, folder: Path = ROOT) -> str:
    """Check that a patch applies to a checkout; return what git says against it."""
    return _git_apply(mutant.path, folder, "--check")


def copy_code(scratch: Path) -> None:
    """Copy what patches may change, and link the rest of the checkout beside it."""
    leave = shutil.ignore_patterns("__pycache__")
    for name in _COPIED:
        shutil.copytree(ROOT / name, scratch / name, ignore=leave)
    for path in ROOT.iterdir():
        if path.name not in (*_COPIED, ".git"):
            (scratch / path.name).symlink_to(path)


class Checks:
    """The questions that are asked of a copy of the code, each in child processes."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self._claims = {
            claim.id: path.stem
            for path in sorted(CLAIMS.glob("*.yaml"))
            for claim in load_ledger(path)
        }

    def _child(self, arguments: Sequence[str], given: str = "") -> subprocess.CompletedProcess[str]:
        # Bytecode is matched to its source by second and size: a mutant has both of the original.
        environment = canonical_environment() | {
            "PYTHONPATH": str(self.scratch),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TRAINAUG_DATA": str(DATA_CACHE),
            "TRAINAUG_PROGRESS": "off",
        }
        return subprocess.run(
            [sys.executable, *arguments],
            input=given,
            capture_output=True,
            text=True,
            cwd=self.scratch,
            env=environment,
        )

    def arms(self, names: Iterable[str]) -> dict[str, str]:
        """How the canary of each ``chapter/arm`` compares with the committed one."""
        actual: dict[str, str] = {}
        chapters: dict[str, list[str]] = {}
        for name in names:
            number, arm = name.split("/")
            chapters.setdefault(number, []).append(arm)
        for number, arms in chapters.items():
            path = self.scratch / "results" / "canaries" / f"{number}.json"
            committed = json.loads(path.read_text(encoding="utf-8"))["arms"]
            command = ["-m", "companion.lab.canary", "run", number]
            done = self._child(command, json.dumps(arms))
            lines = done.stdout.splitlines()
            if len(lines) != len(arms):
                raise CheckFailedError(_last_line(done.stderr))
            for answer in map(json.loads, lines):
                actual[f"{number}/{answer['arm']}"] = _compare(answer, committed[answer["arm"]])
        return actual

    def constants(self, names: Iterable[str]) -> dict[str, str]:
        """Whether each ``chapter/Class.setting`` has the committed value."""
        actual = {}
        for name in names:
            number, constant = name.split("/")
            done = self._child(["-c", _CONSTANTS, number])
            if done.returncode != 0:
                raise CheckFailedError(_last_line(done.stderr))
            actual[name] = "moved constant" if constant in json.loads(done.stdout) else "equal"
        return actual

    def claims(self, names: Iterable[str]) -> dict[str, str]:
        """How the verdict of each claim compares with the committed one."""
        actual: dict[str, str] = {}
        for number in sorted({self._claims[name] for name in names}):
            path = self.scratch / "results" / "verdicts" / f"{number}.json"
            done = self._child(["-c", _JUDGE, number])
            if done.returncode != 0:
                raise CheckFailedError(_last_line(done.stderr))
            before = {row["id"]: row for row in json.loads(path.read_text(encoding="utf-8"))}
            for row in json.loads(done.stdout):
                if row != before.get(row["id"]):
                    changed = row["reason"] == "criterion changed"
                    actual[row["id"]] = "criterion changed" if changed else "verdict moved"
        return {name: actual.get(name, "equal") for name in names}

    def data(self, names: Iterable[str]) -> dict[str, str]:
        """Whether each data set still has its content hash."""
        actual = {}
        for name in names:
            done = self._child(["-c", _VERIFY, name])
            said = _last_line(done.stderr)
            if done.returncode != 0 and f"{name}: content hash" not in said:
                raise CheckFailedError(said)
            actual[name] = "equal" if done.returncode == 0 else "another content hash"
        return actual


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "ended without a word"


def _compare(answer: dict[str, Any], committed: dict[str, Any]) -> str:
    if "error" in answer:
        return f"stopped: {answer['error']}"
    moved = [name for name in ("trace", "record") if answer[name] != committed[name]]
    return f"moved {' and '.join(moved)}" if moved else "equal"


def _ask(checks: Checks, expect: str, subjects: Iterable[str]) -> dict[str, str]:
    ask: dict[str, Callable[[Iterable[str]], dict[str, str]]] = {
        "arm": checks.arms,
        "constant": checks.constants,
        "claim": checks.claims,
        "data": checks.data,
    }
    return ask[expect](subjects)


def _asked(mutant: Mutant) -> tuple[str, Sequence[str]]:
    """What a mutant is looked for in."""
    return ("arm", WITNESSES) if mutant.expect == "unchanged" else (mutant.expect, [mutant.subject])


def _stale(checks: Checks, mutants: Sequence[Mutant]) -> list[str]:
    """What differs from the committed state without any mutant."""
    subjects: dict[str, dict[str, None]] = {expect: {} for expect in _NAMED_BY}
    for mutant in mutants:
        expect, names = _asked(mutant)
        subjects[expect] |= dict.fromkeys(names)
    actual = [_ask(checks, expect, names) for expect, names in subjects.items()]
    return [
        f"{name}: {state}" for each in actual for name, state in each.items() if state != "equal"
    ]


def _is_as_expected(mutant: Mutant, actual: dict[str, str]) -> bool:
    if mutant.expect == "unchanged":
        return all(state == "equal" for state in actual.values())
    return all(not state.startswith(("equal", "stopped")) for state in actual.values())


def _described(actual: dict[str, str]) -> str:
    if len(set(actual.values())) == 1:
        (state,) = set(actual.values())
        return state if len(actual) == 1 else f"{len(actual)} canaries {state}"
    return ", ".join(f"{name} {state}" for name, state in actual.items() if state != "equal")


def _run_one(checks: Checks, mutant: Mutant) -> tuple[bool, str]:
    """Whether a mutant is named, or proved to change nothing, and what was found."""
    if fault := _git_apply(mutant.path, checks.scratch):
        return False, f"DOES NOT APPLY: {fault}"
    try:
        actual = _ask(checks, *_asked(mutant))
    except CheckFailedError as error:
        return False, f"STOPPED: {error}"
    finally:
        if fault := _git_apply(mutant.path, checks.scratch, "-R"):
            raise RuntimeError(f"{mutant.path.name} cannot be taken back: {fault}")
    is_good = _is_as_expected(mutant, actual)
    if mutant.escapes:
        return (
            not is_good,
            f"{'NAMED NOW' if is_good else 'escapes, as known'}: {_described(actual)}",
        )
    return is_good, _described(actual) if is_good else f"ESCAPED: {_described(actual)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the mutants that are named, by default all, and print a row for each."""
    parser = argparse.ArgumentParser(description="Run the mutants.")
    parser.add_argument("names", nargs="*", help="names of patches; all by default")
    wanted = parser.parse_args(arguments).names
    mutants = read_mutants()
    if unknown := sorted(set(wanted) - {mutant.name for mutant in mutants}):
        parser.error(f"no such patch: {', '.join(unknown)}")
    mutants = [mutant for mutant in mutants if not wanted or mutant.name in wanted]
    say = sys.stdout.write
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        copy_code(scratch)
        checks = Checks(scratch)
        if stale := _stale(checks, mutants):
            say("moved without any mutant, so no mutant can be told:\n  " + "\n  ".join(stale))
            say("\n")
            return 1
        width = max(len(mutant.name) for mutant in mutants)
        failed = []
        for mutant in mutants:
            started = time.perf_counter()
            is_good, actual = _run_one(checks, mutant)
            seconds = time.perf_counter() - started
            if not is_good:
                failed.append(mutant.name)
            expected = "unchanged" if mutant.expect == "unchanged" else mutant.subject
            row = f"{mutant.name:{width}}  {mutant.kind:26}  {expected:30}  {actual}"
            say(f"{row}  {seconds:.0f} s\n")
            sys.stdout.flush()
    known = [mutant for mutant in mutants if mutant.escapes and mutant.name not in failed]
    count = len(mutants) - len(failed) - len(known)
    say(f"{count} of {len(mutants)} mutants are named or proved to change nothing\n")
    for mutant in known:
        say(f"{mutant.name} escapes: {mutant.escapes}\n")
    if failed:
        say(f"not as their headers say: {', '.join(failed)}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
