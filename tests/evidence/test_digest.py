"""The code digest: what moves it, what does not, and which modules it covers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trainaug.evidence.digest import code_digest, imported_modules

ENTRY = "pkg.experiments.ch99.runs"
SOURCES = {
    "__init__.py": "",
    "paths.py": "ROOT = 1\n",
    "methods/__init__.py": "",
    "methods/direct.py": '''"""Doc."""

from pkg.methods import deep
from pkg.methods.folder import helper


class Thing:
    """A thing."""

    RATE = 0.5  # a constant

    def run(self, x):
        """Run."""
        return deep.go(x) * self.RATE + helper(x)
''',
    "methods/deep.py": """import pkg.data.tables
import pkg.roots


def go(x):
    return x + 1
""",
    "methods/folder/__init__.py": "from pkg.methods.folder.part import helper\n",
    "methods/folder/part.py": "from .sibling import TWO\n\n\ndef helper(x):\n    return TWO * x\n",
    "methods/folder/sibling.py": "TWO = 2\n",
    "methods/unused.py": "A = 1\n",
    "data/__init__.py": "",
    "data/tables.py": "from . import more\n",
    "data/more.py": "ROWS = 3\n",
    "training/__init__.py": "",
    "training/loop.py": "STEPS = 4\n",
    "evidence/__init__.py": "",
    "evidence/store.py": "B = 1\n",
    "experiments/__init__.py": "",
    "experiments/chapters.py": "C = 1\n",
    "experiments/kernels.py": "ROUTE = 1\n",
    "experiments/worker.py": """def answer():
    from pkg.evidence.store import write
    from pkg.experiments import kernels
""",
    "roots.py": "R = 1\n",
    "experiments/ch99/__init__.py": "",
    "experiments/ch99/config.py": "class Config:\n    steps = 10\n",
    "experiments/ch99/runs.py": """import os

from pkg.evidence.store import B
from pkg.experiments.ch99.config import Config
from pkg.methods.direct import Thing
from pkg.paths import ROOT


def execute(run):
    from pkg.training.loop import STEPS

    return Thing().run(run) + STEPS
""",
    "experiments/ch99/figures.py": "from pkg.experiments.ch99.runs import execute\n",
    "experiments/ch99/estimands.py": "from pkg.methods.unused import A\n",
    "experiments/ch98/__init__.py": "",
    "experiments/ch98/runs.py": "D = 1\n",
}
COUNTED = [
    "pkg.data",
    "pkg.data.more",
    "pkg.data.tables",
    "pkg.evidence.store",
    "pkg.experiments",
    "pkg.experiments.ch99",
    "pkg.experiments.ch99.config",
    "pkg.experiments.ch99.runs",
    "pkg.methods",
    "pkg.methods.deep",
    "pkg.methods.direct",
    "pkg.methods.folder",
    "pkg.methods.folder.part",
    "pkg.methods.folder.sibling",
    "pkg.roots",
    "pkg.training",
    "pkg.training.loop",
]
OF_THE_WORKER = ["pkg.experiments.kernels", "pkg.experiments.worker"]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name, source in SOURCES.items():
        path = tmp_path / "pkg" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return tmp_path / "pkg"


def digest(package: Path) -> str:
    code_digest.cache_clear()
    return code_digest(ENTRY, package)


def edit(package: Path, name: str, old: str, new: str) -> None:
    path = package / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def file_of(module: str) -> str:
    stem = "/".join(module.split(".")[1:])
    return f"{stem}.py" if f"{stem}.py" in SOURCES else f"{stem}/__init__.py"


def test_counted_modules_are_those_imported_directly_or_not(package):
    found = imported_modules(ENTRY, package)
    assert list(found) == COUNTED
    assert all(path == package / file_of(module) for module, path in found.items())


def test_digest_is_stable_and_cached(package):
    first = digest(package)
    assert digest(package) == first
    assert len(first) == 64
    edit(package, "methods/deep.py", "x + 1", "x + 2")
    assert code_digest(ENTRY, package) == first  # one process sees one code
    assert digest(package) != first


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("methods/deep.py", "x + 1", "(x\n            + 1)  # one more"),
        ("methods/deep.py", "def go(x):", "# a comment\n\n\n\ndef go(x):"),
        ("methods/deep.py", "import pkg.data.tables", '"""New."""\nimport pkg.data.tables'),
        ("methods/direct.py", '"""Doc."""', "'''Another\n\ndocstring.'''"),
        ("methods/direct.py", '"""A thing."""', ""),
        ("methods/direct.py", '"""Run."""', '"""Run it: 0.5."""'),
        ("methods/direct.py", "0.5  # a constant", "0.50"),
        ("methods/folder/sibling.py", "TWO = 2", "TWO = 2\n\n"),
        ("experiments/ch99/runs.py", "import os\n", "import os\n\n"),
    ],
)
def test_layout_comments_and_docstrings_do_not_count(package, name, old, new):
    before = digest(package)
    edit(package, name, old, new)
    assert digest(package) == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("methods/direct.py", "0.5", "0.25"),
        ("methods/direct.py", "deep.go(x) *", "deep.go(x) +"),
        ("experiments/ch99/config.py", "10", "11"),
        ("experiments/ch99/runs.py", "run(run)", "run(run + 1)"),
        ("methods/deep.py", "x + 1", "x + 2"),
        ("methods/folder/part.py", "TWO * x", "x * TWO"),
        ("methods/folder/sibling.py", "2", "3"),
        ("data/more.py", "3", "4"),
        ("training/loop.py", "4", "5"),
        ("methods/__init__.py", "", "X = 1\n"),
        ("methods/folder/__init__.py", "import helper", "import helper, TWO"),
    ],
)
def test_changed_code_counts_however_it_is_imported(package, name, old, new):
    before = digest(package)
    edit(package, name, old, new) if old else (package / name).write_text(new)
    assert digest(package) != before


@pytest.mark.parametrize(
    "name",
    [
        "methods/unused.py",
        "experiments/chapters.py",
        "experiments/ch99/figures.py",
        "experiments/ch99/estimands.py",
        "experiments/ch98/runs.py",
        "paths.py",
    ],
)
def test_modules_that_no_number_depends_on_do_not_count(package, name):
    before = digest(package)
    (package / name).write_text("COMPLETELY = 'different'\n")
    assert digest(package) == before


def test_a_renamed_module_counts(package):
    before = digest(package)
    (package / "data/more.py").rename(package / "data/fewer.py")
    edit(package, "data/tables.py", "more", "fewer")
    assert digest(package) != before


def test_every_counted_module_moves_the_digest(package):
    before = digest(package)
    for module in COUNTED + OF_THE_WORKER:
        path = package / file_of(module)
        source = path.read_text()
        path.write_text(source + "\nADDED = 1\n")
        assert digest(package) != before, module
        path.write_text(source)
    assert digest(package) == before


@pytest.mark.parametrize("entry", ["pkg.experiments.ch97.runs", "pkg.nothing"])
def test_missing_entry_raises(package, entry):
    with pytest.raises(ModuleNotFoundError, match=entry):
        imported_modules(entry, package)
    with pytest.raises(ModuleNotFoundError, match=entry):
        code_digest(entry, package)


def test_chapter_6_counts_its_methods_and_data_only():
    found = set(imported_modules("trainaug.experiments.ch06.runs"))
    assert {
        "trainaug.experiments.ch06.config",
        "trainaug.experiments.ch06.runs",
        "trainaug.methods.linear_robustness.max_margin",
        "trainaug.methods.linear_robustness.norms",
        "trainaug.methods.linear_robustness.robustness",
        "trainaug.methods.linear_robustness.steepest_descent",
        "trainaug.data.binary",
        "trainaug.data.gaussian",
        "trainaug.data.registry",
        "trainaug.data.sklearn_sets",
    } <= found
    for part in ("figures", "estimands", "sweep", "chapters", "notebook", "paths"):
        assert not [module for module in found if part in module.split(".")]


def test_chapter_6_counts_every_module_that_its_runs_load():
    code = (
        "import sys, trainaug.experiments.ch06.runs as runs\n"
        "from trainaug.evidence.store import Run\n"
        "for name in ('digits', 'fashion_mnist'): runs.load_problems({'data': name}, 0)\n"
        "print(*(m for m in sys.modules if m.startswith('trainaug.')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120
    )
    kinds = ("methods", "data", "training", "roots")
    loaded = {m for m in done.stdout.split() if m.split(".")[1] in kinds or ".ch06" in m}
    assert loaded <= set(imported_modules("trainaug.experiments.ch06.runs"))
