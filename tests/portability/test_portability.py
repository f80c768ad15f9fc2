"""The same bytes natively and on emulated processors, in canonical mode."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from emulation import PROCESSORS, Collected, collect, run_on, why_not

from companion.evidence.operations import not_shown_portable, portable_operations
from companion.lab.chapters import chapter_numbers

pytestmark = [
    pytest.mark.portability,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "runs"),
]

# One cheap arm a chapter; together they train, attack, select, measure and draw.
CANARIES = {
    "02": "digits_mlp_0",
    "04": "digits_min_loss",
    "05": "digits_10_csa4",
    "06": "digits_coordinate",
}
NOT_SHOWN = {
    "01": "the emulator ends with a segmentation fault",
    "03": "its cheapest canary without liblinear takes over three minutes there",
}
# Counted from the start of a test to the end of the emulator; a busy machine needs several times
# the half minute to two minutes that they take on an idle one.
PATIENCE = 1500


@pytest.fixture(scope="module")
def collected() -> dict[str | None, Collected]:
    """The probes on this machine and on all emulated processors, two at a time."""
    probes = portable_operations()["probes"]
    skip = list(probes["crashed"])
    processors = (None, *PROCESSORS)
    with ThreadPoolExecutor(2) as pool:
        return dict(
            zip(processors, pool.map(lambda p: collect(p, skip=skip), processors), strict=True)
        )


@pytest.mark.parametrize("processor", PROCESSORS)
def test_every_probe_on_the_list_has_the_same_bytes(
    collected: dict[str | None, Collected], processor: str
) -> None:
    native, emulated = collected[None], collected[processor]
    listed = set(portable_operations()["probes"]["equal"])
    assert listed <= set(native.hashes)
    assert not set(emulated.crashes) & listed
    assert [name for name in sorted(listed) if native.hashes[name] != emulated.hashes[name]] == []


def test_every_probe_is_judged(collected: dict[str | None, Collected]) -> None:
    probes = portable_operations()["probes"]
    judged = {*probes["equal"], *probes["differ"]}
    assert set(collected[None].hashes) == judged


def test_the_comparison_can_fail(collected: dict[str | None, Collected]) -> None:
    native = collected[None].hashes
    differ = {
        name
        for name in portable_operations()["probes"]["differ"]
        if any(native[name] != collected[p].hashes[name] for p in PROCESSORS)
    }
    assert {"sqrt float32", "sqrt float64", "pow_0.5 float64"} <= differ


def test_square_roots_of_torch_are_not_correctly_rounded_in_canonical_mode() -> None:
    program = (
        "import numpy, torch; from trainaug import roots; x = torch.linspace(0.01, 9, 4001);"
        "exact = numpy.sqrt(x.double().numpy()).astype('float32');"
        "print((x.sqrt().numpy() != exact).sum(), (roots.sqrt(x).numpy() != exact).sum())"
    )
    done = run_on(None, ["-c", program], timeout=PATIENCE)
    torchs, ours = map(int, done.stdout.split())
    assert torchs > 0
    assert ours == 0


def test_every_chapter_has_a_canary_here_or_is_not_shown() -> None:
    assert CANARIES.keys() | NOT_SHOWN.keys() == set(chapter_numbers())


def test_a_short_canary_of_each_chapter_has_the_same_bytes() -> None:
    def hashes(key: tuple[str | None, str]) -> dict[str, str]:
        processor, chapter = key
        arguments = ["-m", "companion.lab.canary", "one", chapter, CANARIES[chapter]]
        done = run_on(processor, arguments, timeout=PATIENCE)
        assert done.returncode == 0, f"chapter {chapter} on {processor}: {done.stderr[-2000:]}"
        answer = json.loads(done.stdout.splitlines()[-1])
        return {name: answer[name] for name in ("trace", "record")}

    keys = [(p, chapter) for chapter in CANARIES for p in (None, *PROCESSORS)]
    with ThreadPoolExecutor(2) as pool:
        answers = dict(zip(keys, pool.map(hashes, keys), strict=True))
    moved = {
        (p, chapter): answers[p, chapter]
        for p, chapter in keys
        if answers[p, chapter] != answers[None, chapter]
    }
    assert moved == {}


def test_known_operations_that_are_not_portable_are_not_on_the_list() -> None:
    table = portable_operations()["not_portable"]
    names = [f"{packet} {kind}" for packet, row in table.items() for kind in row["types"]]
    assert {"aten.sqrt float32", "aten.sqrt float64", "aten._foreach_sqrt float32"} <= set(names)
    assert not_shown_portable(names) == sorted(names)
    assert all(row["instead"] for row in table.values())
