"""The mutants still apply and lose neither number nor kinds; `make mutants` runs them."""

from __future__ import annotations

import sys
from collections import Counter
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from companion.evidence.ledger import load_ledger
from companion.lab.canary import read_canaries
from companion.paths import CLAIMS, ROOT

FOLDER = Path(__file__).parent
FEWEST = 43  # more may come, none may go


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    spec = spec_from_file_location("mutants_runner", FOLDER / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture
def patch_file(tmp_path):
    """Write a patch of one line of a file, with a header."""

    def write(name: str, header: str, before: str = "one", after: str = "two") -> Path:
        path = tmp_path / f"{name}.patch"
        diff = f"--- a/code.py\n+++ b/code.py\n@@ -1 +1 @@\n-{before}\n+{after}\n"
        path.write_text(f"{header}diff --git a/code.py b/code.py\n{diff}", encoding="utf-8")
        return path

    return write


HEADER = "# kind: seed\n# expect: arm 04/digits_random\n# cost: about 5 s\n"


def test_every_patch_applies(runner):
    faults = {mutant.path.name: runner.applies(mutant) for mutant in runner.read_mutants()}
    assert {name: fault for name, fault in faults.items() if fault} == {}


def test_number_and_kinds_do_not_fall(runner):
    kinds = Counter(mutant.kind for mutant in runner.read_mutants())
    assert kinds.total() >= FEWEST
    assert set(kinds) == set(runner.KINDS)
    assert kinds["refactoring"] >= 3


def test_at_most_one_mutant_escapes(runner):
    assert sum(bool(mutant.escapes) for mutant in runner.read_mutants()) <= 1


def test_headers_name_arms_and_claims_that_exist(runner):
    claims = {c.id for path in CLAIMS.glob("*.yaml") for c in load_ledger(path)}
    mutants = runner.read_mutants()
    arms = [m.subject for m in mutants if m.expect == "arm"] + list(runner.WITNESSES)
    for number, arm in (name.split("/") for name in arms):
        assert arm in read_canaries(number).rows
    assert {m.subject for m in mutants if m.expect == "claim"} <= claims


def test_patches_change_code_and_ledgers_only(runner):
    for mutant in runner.read_mutants():
        lines = mutant.path.read_text(encoding="utf-8").splitlines()
        files = [line.split()[1] for line in lines if line.startswith(("--- ", "+++ "))]
        assert files
        for name in files:
            assert name[2:].startswith(("trainaug/", "companion/", "claims/"))
            assert (ROOT / name[2:]).is_file()


def test_patch_that_no_longer_applies_is_named_with_gits_reason(runner, patch_file, tmp_path):
    patch_file("moved_on", HEADER, before="what stood here before")
    (tmp_path / "code.py").write_text("one\n", encoding="utf-8")
    (mutant,) = runner.read_mutants(tmp_path)
    assert "patch failed: code.py:1" in runner.applies(mutant, tmp_path)


def test_patch_is_applied_and_taken_back(runner, patch_file, tmp_path, monkeypatch):
    patch_file("mutant", HEADER)
    code = tmp_path / "code.py"
    code.write_text("one\n", encoding="utf-8")
    (mutant,) = runner.read_mutants(tmp_path)
    seen = []

    class Checks(runner.Checks):
        def arms(self, names):
            seen.append(code.read_text(encoding="utf-8"))
            return dict.fromkeys(names, "moved trace")

    assert runner._run_one(Checks(tmp_path), mutant) == (True, "moved trace")
    assert seen == ["two\n"]
    assert code.read_text(encoding="utf-8") == "one\n"


@pytest.mark.parametrize("state", ["equal", "stopped: TypeError: no such thing"])
def test_mutant_that_moves_nothing_or_only_breaks_the_run_escapes(
    runner, patch_file, tmp_path, monkeypatch, state
):
    patch_file("mutant", HEADER)
    (tmp_path / "code.py").write_text("one\n", encoding="utf-8")
    (mutant,) = runner.read_mutants(tmp_path)
    checks = runner.Checks(tmp_path)
    monkeypatch.setattr(checks, "arms", lambda names: dict.fromkeys(names, state))
    assert runner._run_one(checks, mutant) == (False, f"ESCAPED: {state}")


@pytest.mark.parametrize(
    ("state", "outcome"),
    [
        ("equal", (True, "escapes, as known: equal")),
        ("moved trace", (False, "NAMED NOW: moved trace")),
    ],
)
def test_known_escape_must_still_escape(runner, patch_file, tmp_path, monkeypatch, state, outcome):
    header = HEADER.replace("arm 04/digits_random", "escapes arm 04/digits_random because of luck")
    patch_file("mutant", header)
    (tmp_path / "code.py").write_text("one\n", encoding="utf-8")
    (mutant,) = runner.read_mutants(tmp_path)
    assert (mutant.subject, mutant.escapes) == ("04/digits_random", "of luck")
    checks = runner.Checks(tmp_path)
    monkeypatch.setattr(checks, "arms", lambda names: dict.fromkeys(names, state))
    assert runner._run_one(checks, mutant) == outcome


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("# kind: seed\n# expect: arm 04/digits_random\n", "the header has"),
        (HEADER.replace("kind: seed", "kind: luck"), "unknown kind 'luck'"),
        (HEADER.replace("arm 04", "somebody 04"), "unknown expectation"),
        (HEADER.replace("arm 04/digits_random", "unchanged"), "unknown expectation"),
        (HEADER.replace("arm 04/digits_random", "unchanged I hope"), "unchanged because"),
        (HEADER.replace("arm 04", "escapes arm 04"), "and why"),
    ],
)
def test_bad_header_names_the_patch(runner, patch_file, tmp_path, header, said):
    patch_file("badly_headed", header)
    with pytest.raises(ValueError, match=f"badly_headed.patch.*{said}"):
        runner.read_mutants(tmp_path)


def test_unknown_name_is_refused(runner, capsys):
    with pytest.raises(SystemExit):
        runner.main(["no_such_mutant"])
    assert "no such patch: no_such_mutant" in capsys.readouterr().err
