"""Data sets on the command line: ``python -m trainaug.data list | fetch | verify [NAME ...]``."""

from __future__ import annotations

import argparse
import sys

from trainaug.data import registry
from trainaug.data.arrays import CorruptDataError, DataUnavailableError

__all__ = ["main"]


def _list() -> None:
    rows = registry.describe()
    widths = {column: max(len(row[column]) for row in rows) for column in ("name", "state")}
    for row in rows:
        name, state = (row[column].ljust(width) for column, width in widths.items())
        sys.stdout.write(f"{name}  {state}  {row['title']} ({row['licence']})\n")


def _fetch(names: list[str]) -> None:
    for name in names:
        sys.stdout.write(f"{name}: fetching\n")
        sys.stdout.flush()
        registry.fetch(name)
        sys.stdout.write(f"{name}: ready\n")


def _verify(names: list[str]) -> None:
    for name in names:
        registry.verify(name)
        sys.stdout.write(f"{name}: content hash agrees\n")


def main(arguments: list[str] | None = None) -> int:
    """List data sets, bring them into the cache, or compare the cache with the content hashes.

    Args:
        arguments: Words of the command line; by default those of this process.

    Returns:
        Exit status: 0, or 2 if a data set is unknown, damaged or unavailable, or the cache cannot
        be used.
    """
    parser = argparse.ArgumentParser(prog="python -m trainaug.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list the data sets and whether they are in the cache")
    every = "data sets; by default all that are not optional"
    fetch = commands.add_parser("fetch", help="bring data sets into the cache")
    fetch.add_argument("names", nargs="*", help=every)
    verify = commands.add_parser("verify", help="compare the cache with the content hashes")
    verify.add_argument("names", nargs="*", help=every)
    asked = parser.parse_args(arguments)
    try:
        if asked.command == "list":
            _list()
        else:
            action = _fetch if asked.command == "fetch" else _verify
            action(asked.names or registry.names())
    except (ValueError, OSError, DataUnavailableError, CorruptDataError) as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
