"""The command ``trainaug``."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
import yaml

__all__ = ["app", "main"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
data_app = typer.Typer(no_args_is_help=True, help="Data sets: list, fetch, verify.")
app.add_typer(data_app, name="data")

Chapters = Annotated[list[str] | None, typer.Argument(help="Chapters, as 6 or 06; all by default.")]
Profile = Annotated[str, typer.Option(help="quick, standard, full or paper.")]


def _numbers(chapters: list[str] | None) -> list[str]:
    from trainaug.experiments.chapters import chapter_number

    # the first and the last notebook have no experiments but can be run by name
    wanted = [word for entry in chapters or [] for word in entry.split()]
    return [w.zfill(2) if w.zfill(2) in ("00", "08") else chapter_number(w) for w in wanted]


@data_app.command("list")
def data_list() -> None:
    """List the data sets and whether they are in the cache."""
    from trainaug.data import registry
    from trainaug.evidence.tables import text_table

    print(text_table(registry.describe(), ["name", "state", "licence", "title"]))


@data_app.command("fetch")
def data_fetch(names: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    """Fetch data sets into the cache; by default all that are not optional."""
    from trainaug.data import registry

    for name in names or registry.names():
        print(f"{name}: fetching", flush=True)
        registry.fetch(name)
        print(f"{name}: ready")


@data_app.command("verify")
def data_verify(names: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    """Compare the cache with the content hashes; by default of all sets that are not optional."""
    from trainaug.data import registry

    for name in names or registry.names():
        registry.verify(name)
        print(f"{name}: content hash agrees")


@app.command()
def reproduce(
    chapters: Chapters = None,
    profile: Profile = "standard",
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", help="NAME=VALUE, a notebook's knob.")
    ] = None,
) -> None:
    """Recompute chapters, execute their notebooks, compare with the reference."""
    from trainaug.reproduce import reproduce as run

    # what `kill`, a scheduler or a time limit sends: ends the kernel and its workers like Ctrl-C
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parameters = {}
    for entry in parameter or []:
        name, equals, value = entry.partition("=")
        if not equals:
            raise ValueError(f"expected NAME=VALUE, got {entry!r}")
        parameters[name] = yaml.safe_load(value)
    raise typer.Exit(run(profile, _numbers(chapters), parameters))


@app.command()
def tune(chapters: Chapters = None) -> None:
    """Tune the settings of chapters on pilot seeds; write tuning.csv and tuned.yaml."""
    from importlib import import_module
    from importlib.util import find_spec

    from trainaug.experiments.chapters import TITLES
    from trainaug.experiments.sweep import worker_count

    for number in _numbers(chapters) or TITLES:
        name = f"trainaug.experiments.ch{number}.tuning"
        if find_spec(name.rpartition(".")[0]) is None or find_spec(name) is None:
            print(f"chapter {number}: nothing to tune")
            continue
        import_module(name).tune(worker_count(), lambda line: print(line, flush=True))


@app.command()
def verify(
    chapters: Chapters = None,
    profile: Profile = "standard",
    sample: Annotated[int, typer.Option(help="Recompute so many records a chapter.")] = 0,
    seconds: Annotated[float, typer.Option(help="Core-seconds for the sample.")] = 90.0,
) -> None:
    """Recompute one seed of every arm and re-stamp, or a sample of all references."""
    from trainaug import publish
    from trainaug.experiments.chapters import TITLES

    if sample:
        outcomes = [publish.verify_sample(sample, seconds, lambda line: print(line, flush=True))]
    else:
        outcomes = [publish.verify(n, profile) for n in _numbers(chapters) or TITLES]
    checked = sum(len(outcome.checked) for outcome in outcomes)
    moved = [line for outcome in outcomes for line in outcome.moved]
    for line in moved:
        print(f"MOVED {line}")
    print(f"{checked} runs recomputed, {len(moved)} moved")
    if moved:
        print("the chapter must be published again: make reproduce, make publish")
    raise typer.Exit(int(bool(moved) or any(outcome.stale for outcome in outcomes)))


@app.command()
def publish(chapters: Chapters = None, profile: Profile = "standard") -> None:
    """Promote finished runs to reference; refresh notebooks and README."""
    from trainaug import publish as publishing
    from trainaug.experiments.chapters import TITLES, load_chapter

    for number in _numbers(chapters) or [n for n in TITLES if load_chapter(n)]:
        publishing.publish(number, profile)
        print(f"chapter {number}: published")


@app.command()
def claims(
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    profile: Profile = "standard",
) -> None:
    """Show every claim with its verdict."""
    from trainaug.evidence.tables import verdict_table
    from trainaug.views import reference_judgements

    judged = reference_judgements(profile)
    if not as_json:
        print(verdict_table([judgement for judgement, _ in judged]))
        return
    fields = ("id", "tier", "verdict", "reason", "estimates", "beside")
    rows = []
    for judgement, stale in judged:
        plain = judgement.to_json()
        n = max((estimate["n"] for estimate in plain["estimates"]), default=0)
        rows.append(
            {name: plain[name] for name in fields} | {"n": n, "profile": profile, "stale": stale}
        )
    print(json.dumps(rows, indent=1, ensure_ascii=False))


@app.command()
def bench(
    check: Annotated[bool, typer.Option(help="Fail if a stored figure misses its target.")] = False,
) -> None:
    """Run the benchmarks and store their figures."""
    from trainaug.paths import BENCHMARKS

    command = [sys.executable, str(BENCHMARKS / "run.py"), *(["--check"] if check else [])]
    raise typer.Exit(subprocess.run(command, check=False).returncode)


def main() -> None:
    """Run the command; expected faults end in one line on standard error."""
    from trainaug.data.arrays import CorruptDataError, DataUnavailableError

    try:
        app()
    except SystemExit as stop:
        # Typer turns Ctrl-C into 130; every other code passes through
        if stop.code == 130:
            message = "interrupted: finished runs are kept, the same command continues from here"
            print(message, file=sys.stderr)
        raise
    except (ValueError, LookupError, RuntimeError, DataUnavailableError, CorruptDataError) as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
