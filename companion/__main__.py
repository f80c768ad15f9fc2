"""The command of the book: ``python -m companion``."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Annotated

import typer
import yaml

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


# These callbacks check arguments before a command starts, because its imports take seconds.
def _chapters(words: list[str] | None) -> list[str]:
    """Two-digit numbers of the chapters that are named, or of all if none is."""
    from companion.lab.chapters import chapter_number, chapter_numbers

    numbers = [chapter_number(word) for entry in words or [] for word in entry.split()]
    return numbers or list(chapter_numbers())


def _notebooks(words: list[str] | None) -> list[str]:
    """Two-digit numbers of the notebooks that are named; empty, which means all, if none is."""
    wanted = [word for entry in words or [] for word in entry.split()]
    # the first and the last notebook are no chapters, as they have no experiments of their own
    return [n.zfill(2) if n.zfill(2) in ("00", "08") else _chapters([n])[0] for n in wanted]


def _profile(name: str) -> str:
    from companion.lab.chapters import check_profile

    check_profile(name)
    return name


def _seed(word: str) -> str:
    if word not in ("", "all") and not word.isdecimal():
        raise ValueError(f"expected a seed, such as 1000, or all, got {word!r}")
    return word


def _positive(value: float) -> float:
    if not value > 0:
        raise ValueError(f"expected a number above 0, got {value}")
    return value


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"trainaug {version('trainaug')}")
        raise typer.Exit


Chapters = Annotated[
    list[str] | None,
    typer.Argument(help="Chapters, as 6 or 06; all by default.", callback=_chapters),
]
Notebooks = Annotated[
    list[str] | None,
    typer.Argument(help="Notebooks, as 6 or 06; all by default.", callback=_notebooks),
]
Profile = Annotated[str, typer.Option(help="quick, standard, full or paper.", callback=_profile)]


@app.callback()
def _command(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Recompute, judge and publish the book."""


@app.command()
def reproduce(
    chapters: Notebooks = None,
    profile: Profile = "standard",
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", help="NAME=VALUE, a notebook's knob.")
    ] = None,
    seed: Annotated[
        str,
        typer.Option(
            help="A seed of the evidence, or all.",
            show_default="1000 for standard without changed knobs, else all",
            callback=_seed,
        ),
    ] = "",
) -> None:
    """Recompute chapters, execute their notebooks, compare with the evidence.

    By default one seed of every arm of the standard profile is computed and compared, with the
    canaries of all arms, byte for byte.
    """
    from companion.pages.runner import reproduce as run

    # `kill`, schedulers and time limits send SIGTERM: it must end kernel and workers like Ctrl-C
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parameters = {}
    for entry in parameter or []:
        name, equals, value = entry.partition("=")
        if not equals:
            raise ValueError(f"expected NAME=VALUE, got {entry!r}")
        parameters[name] = yaml.safe_load(value)
    chosen = seed or ("all" if parameters or profile != "standard" else "1000")
    number = None if chosen == "all" else int(chosen)
    raise typer.Exit(run(profile, chapters or (), parameters, seed=number))


@app.command()
def run(
    arm: Annotated[str, typer.Argument(help="Such as digits_random; see the chapter's arms.py.")],
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", help="SETTING=VALUE of the arm.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of seeds, from 1000 on.")] = 3,
    only: Annotated[str, typer.Option(help="Show only metrics whose names contain this.")] = "",
) -> None:
    """Run one arm with settings changed, and compare its numbers with the evidence."""
    from companion.lab.run import main as run_main

    given = [word for entry in parameter or [] for word in ("-p", entry)]
    raise typer.Exit(run_main([arm, *given, "--seeds", str(seeds), "--only", only]))


@app.command()
def tune(chapters: Chapters = None) -> None:
    """Tune the settings of chapters on pilot seeds; write tuning.csv and tuned.toml."""
    from companion.lab.chapters import load_chapter
    from companion.lab.sweep import worker_count
    from companion.lab.tune import tune as run_searches

    for number in chapters or ():
        chapter = load_chapter(number)
        if not chapter.searches:
            _say(f"chapter {number}: nothing to tune")
            continue
        run_searches(
            number,
            chapter.searches,
            chapter.tuned_path,
            workers=worker_count(),
            say=_say,
            choice=chapter.choice,
        )


@app.command()
def canaries(
    chapters: Chapters = None,
    changed: Annotated[
        bool, typer.Option("--changed/--all", help="Skip chapters whose code has passed before.")
    ] = False,
) -> None:
    """Compare the canaries of all arms with the committed ones."""
    from companion.pages.canaries import Skipped, check

    skipped: Skipped = "recorded code" if changed else "none"
    outcome = check(chapters or (), skipped=skipped, say=_say)
    for line in outcome.faults:
        print(f"MOVED {line}")
    raise typer.Exit(int(bool(outcome.faults)))


@app.command()
def verify(
    chapters: Chapters = None,
    sample: Annotated[
        int, typer.Option(help="Records per chapter, at most.", callback=_positive)
    ] = 6,
    seconds: Annotated[
        float, typer.Option(help="Core-seconds per chapter, at most.", callback=_positive)
    ] = 90.0,
) -> None:
    """Compute a few records of the standard evidence anew and compare their bytes."""
    from companion.pages.canaries import verify_sample

    outcome = verify_sample(sample, seconds, chapters or (), _say)
    equal = len(outcome.checked) - len(outcome.moved)
    print(f"{equal} of {len(outcome.checked)} records equal the evidence, byte for byte")
    raise typer.Exit(int(bool(outcome.moved)))


@app.command()
def judge(
    chapters: Chapters = None,
    render: Annotated[bool, typer.Option(help="Execute the notebooks that changed, too.")] = False,
) -> None:
    """Apply the ledgers to the committed records: verdicts and README, in seconds."""
    from companion.pages.judge import judge as run

    run(chapters or (), render=render, say=_say)


@app.command()
def pose(chapters: Chapters = None) -> None:
    """Accept the committed ledger for existing records; new rules must say `after the data`."""
    from companion.pages.judge import pose as run

    for number in chapters or ():
        changed = run(number)
        print(f"chapter {number}: {', '.join(changed) or 'no rule is new to its records'}")


@app.command()
def publish(
    chapters: Chapters = None,
    profile: Profile = "standard",
    arms: Annotated[
        list[str] | None,
        typer.Option(help="Replace only the records of arms that begin so; may be repeated."),
    ] = None,
) -> None:
    """Promote finished runs to evidence and judge them."""
    from companion.pages import publish as publishing

    for number in chapters or ():
        publishing.publish(number, profile, arms or (), say=_say)
        print(f"chapter {number}: published")
    print("run `make judge-render` for the notebooks")


def _say(line: str) -> None:
    print(line, flush=True)


@app.command()
def claims(
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Show every claim with its committed verdict."""
    from companion.evidence.tables import verdict_json_row, verdict_table
    from companion.pages.verdicts import committed_judgements

    judged = committed_judgements()
    if as_json:
        rows = [verdict_json_row(each) for each in judged]
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        print(verdict_table(judged))
        late = [each.id for each in judged if each.posed == "after the data"]
        shown = "all" if len(late) == len(judged) else ", ".join(late) or "none"
        print(f"\nrules posed after the data: {shown}")


@app.command()
def bench(
    check: Annotated[bool, typer.Option(help="Fail if a stored figure misses its target.")] = False,
) -> None:
    """Run the benchmarks and store their figures."""
    from companion.evidence.canonical import native_environment
    from companion.paths import BENCHMARKS

    command = [sys.executable, str(BENCHMARKS / "run.py"), *(["--check"] if check else [])]
    # not in canonical mode, because users run the library without it
    done = subprocess.run(command, check=False, env=native_environment())
    raise typer.Exit(done.returncode)


def main() -> None:
    """Run the command in canonical mode, in which all processors compute the same bytes.

    Wrong input, absent data and failed runs raise the exceptions that are caught here; they end in
    one line on standard error and code 2. Any other exception is a bug and keeps its traceback.
    """
    from companion.evidence import canonical

    # first, because NumPy and torch choose their kernels when they are loaded; the remark says
    # that one of them is loaded already
    if remark := canonical.enter():
        print(remark, file=sys.stderr)
    from companion.paths import check_checkout

    try:
        check_checkout()
        app(prog_name="python -m companion")
    except SystemExit as stop:
        # Typer turns Ctrl-C into 130; every other code passes through
        if stop.code == 130:
            message = "interrupted: finished runs are kept, the same command continues from here"
            print(message, file=sys.stderr)
        raise
    except OSError as error:
        # such as a full disk or a folder that cannot be written
        where = f": {error.filename}" if error.filename else ""
        print(f"companion: {error.strerror or error}{where}", file=sys.stderr)
        sys.exit(2)
    except (ValueError, LookupError, RuntimeError) as error:
        print(f"companion: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
