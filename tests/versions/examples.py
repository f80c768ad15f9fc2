"""Run the examples of the cards as they stand, in whatever environment runs this file.

    python examples.py FOLDER [--extras proofs,data] [--first]

The Python blocks of a page run one after the other in one namespace, as a reader would type them. A
block whose paragraph above names `trainaug[extra]` is left out, and so are those after it that then
miss a name, unless the extra is listed. With ``--first`` only the first block of each page runs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_EXTRA = re.compile(r"`trainaug\[(\w+)\]`")


@dataclass(frozen=True)
class Block:
    """A Python block of a page.

    Args:
        source: Its code, below as many empty lines as stand above it in the page.
        extra: The extra that the paragraph above names; empty if it names none.
    """

    source: str
    extra: str


def blocks(text: str) -> list[Block]:
    """Return the Python blocks of a page of Markdown."""
    made = []
    for match in _FENCE.finditer(text):
        above = text[: match.start()].rstrip().rpartition("\n\n")[2]
        named = _EXTRA.search(above)
        line = text.count("\n", 0, match.start(1))
        made.append(Block("\n" * line + match[1], named[1] if named else ""))
    return made


def run_page(path: Path, extras: frozenset[str], *, first: bool) -> int:
    """Run the blocks of a page in one namespace; return how many ran."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    page = blocks(path.read_text(encoding="utf-8"))
    ran = 0
    for block in page[:1] if first else page:
        if block.extra and block.extra not in extras:
            break  # later blocks go on with what this one makes
        exec(compile(block.source, str(path), "exec"), namespace)
        ran += 1
    return ran


def main() -> None:
    """Run all pages of a folder; the first that fails ends the run with its traceback."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--extras", default="")
    parser.add_argument("--first", action="store_true")
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # tiny data: threads only wait
    pages = sorted(options.folder.glob("*.md"))
    if not pages:
        sys.exit(f"no pages in {options.folder}")
    for path in pages:
        with contextlib.redirect_stdout(io.StringIO()):
            ran = run_page(path, frozenset(options.extras.split(",")), first=options.first)
        print(f"{path.name}: {ran} examples")
        if not ran:
            sys.exit(f"{path.name}: its first example needs an extra, or there is none")


if __name__ == "__main__":
    main()
