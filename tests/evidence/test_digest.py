"""The code digest: what moves it, what does not, and which modules it covers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from companion.evidence.digest import code_digest, imported_modules

ENTRY = "companion.lab.ch99.runs"
SOURCES = {
    "trainaug/__init__.py": "",
    "companion/__init__.py": "",
    "companion/paths.py": "ROOT = 1\n",
    "trainaug/methods/__init__.py": "",
    "trainaug/methods/direct.py": '''"""Doc."""

from trainaug.methods import deep
from trainaug.methods.folder import helper


class Thing:
    """A thing."""

    RATE = 0.5  # a constant

    def run(self, x):
        """Run."""
        return deep.go(x) * self.RATE + helper(x)
''',
    "trainaug/methods/deep.py": """import trainaug.data.tables
import trainaug.roots


def go(x):
    return x + 1
""",
    "trainaug/methods/folder/__init__.py": "from trainaug.methods.folder.part import helper\n",
    "trainaug/methods/folder/part.py": "from .sibling import TWO\n\nhelper = lambda x: TWO * x\n",
    "trainaug/methods/folder/sibling.py": "TWO = 2\n",
    "trainaug/methods/unused.py": "A = 1\n",
    "trainaug/data/__init__.py": "",
    "trainaug/data/tables.py": "from . import more\n",
    "trainaug/data/more.py": "ROWS = 3\n",
    "trainaug/training/__init__.py": "",
    "trainaug/training/loop.py": "STEPS = 4\n",
    "companion/evidence/__init__.py": "",
    "companion/evidence/store.py": "B = 1\n",
    "companion/lab/__init__.py": "",
    "companion/lab/chapters.py": "C = 1\n",
    "companion/lab/kernels.py": "ROUTE = 1\n",
    "companion/lab/worker.py": """def answer():
    from companion.evidence.store import write
    from companion.lab import kernels
""",
    "trainaug/roots.py": "R = 1\n",
    "companion/lab/ch99/__init__.py": "",
    "companion/lab/ch99/config.py": "class Config:\n    steps = 10\n",
    "companion/lab/ch99/runs.py": """import os

from companion.evidence.store import B
from companion.lab.ch99.config import Config
from trainaug.methods.direct import Thing
from companion.paths import ROOT


def execute(run):
    from trainaug.training.loop import STEPS

    return Thing().run(run) + STEPS
""",
    "companion/lab/ch99/figures.py": "from .runs import execute\n",
    "companion/lab/ch99/estimands.py": "from trainaug.methods.unused import A\n",
    "companion/lab/ch98/__init__.py": "",
    "companion/lab/ch98/runs.py": "D = 1\n",
}
COUNTED = [
    "companion.evidence.store",
    "companion.lab",
    "companion.lab.ch99",
    "companion.lab.ch99.config",
    "companion.lab.ch99.runs",
    "trainaug.data",
    "trainaug.data.more",
    "trainaug.data.tables",
    "trainaug.methods",
    "trainaug.methods.deep",
    "trainaug.methods.direct",
    "trainaug.methods.folder",
    "trainaug.methods.folder.part",
    "trainaug.methods.folder.sibling",
    "trainaug.roots",
    "trainaug.training",
    "trainaug.training.loop",
]
OF_THE_WORKER = ["companion.lab.kernels", "companion.lab.worker"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, source in SOURCES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return tmp_path


def digest(root: Path) -> str:
    code_digest.cache_clear()
    return code_digest(ENTRY, root)


def edit(root: Path, name: str, old: str, new: str) -> None:
    path = root / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def file_of(module: str) -> str:
    stem = "/".join(module.split("."))
    return f"{stem}.py" if f"{stem}.py" in SOURCES else f"{stem}/__init__.py"


def test_counted_modules_are_those_imported_directly_or_not(root):
    actual = imported_modules(ENTRY, root)
    assert list(actual) == COUNTED
    assert all(path == root / file_of(module) for module, path in actual.items())


def test_digest_is_stable_and_cached(root):
    first = digest(root)
    assert digest(root) == first
    assert len(first) == 64
    edit(root, "trainaug/methods/deep.py", "x + 1", "x + 2")
    assert code_digest(ENTRY, root) == first  # one process sees one code
    assert digest(root) != first


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("trainaug/methods/deep.py", "x + 1", "(x\n            + 1)  # one more"),
        ("trainaug/methods/deep.py", "def go(x):", "# a comment\n\n\n\ndef go(x):"),
        (
            "trainaug/methods/deep.py",
            "import trainaug.data.tables",
            '"""New."""\nimport trainaug.data.tables',
        ),
        ("trainaug/methods/direct.py", '"""Doc."""', "'''Another\n\ndocstring.'''"),
        ("trainaug/methods/direct.py", '"""A thing."""', ""),
        ("trainaug/methods/direct.py", '"""Run."""', '"""Run it: 0.5."""'),
        ("trainaug/methods/direct.py", "0.5  # a constant", "0.50"),
        ("trainaug/methods/folder/sibling.py", "TWO = 2", "TWO = 2\n\n"),
        ("companion/lab/ch99/runs.py", "import os\n", "import os\n\n"),
    ],
)
def test_layout_comments_and_docstrings_do_not_count(root, name, old, new):
    before = digest(root)
    edit(root, name, old, new)
    assert digest(root) == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("trainaug/methods/direct.py", "0.5", "0.25"),
        ("trainaug/methods/direct.py", "deep.go(x) *", "deep.go(x) +"),
        ("companion/lab/ch99/config.py", "10", "11"),
        ("companion/lab/ch99/runs.py", "run(run)", "run(run + 1)"),
        ("trainaug/methods/deep.py", "x + 1", "x + 2"),
        ("trainaug/methods/folder/part.py", "TWO * x", "x * TWO"),
        ("trainaug/methods/folder/sibling.py", "2", "3"),
        ("trainaug/data/more.py", "3", "4"),
        ("trainaug/training/loop.py", "4", "5"),
        ("trainaug/methods/__init__.py", "", "X = 1\n"),
        ("trainaug/methods/folder/__init__.py", "import helper", "import helper, TWO"),
    ],
)
def test_changed_code_counts_however_it_is_imported(root, name, old, new):
    before = digest(root)
    edit(root, name, old, new) if old else (root / name).write_text(new)
    assert digest(root) != before


@pytest.mark.parametrize(
    "name",
    [
        "trainaug/methods/unused.py",
        "companion/lab/chapters.py",
        "companion/lab/ch99/figures.py",
        "companion/lab/ch99/estimands.py",
        "companion/lab/ch98/runs.py",
        "companion/paths.py",
    ],
)
def test_modules_that_no_number_depends_on_do_not_count(root, name):
    before = digest(root)
    (root / name).write_text("COMPLETELY = 'different'\n")
    assert digest(root) == before


def test_a_renamed_module_counts(root):
    before = digest(root)
    (root / "trainaug/data/more.py").rename(root / "trainaug/data/fewer.py")
    edit(root, "trainaug/data/tables.py", "more", "fewer")
    assert digest(root) != before


def test_every_counted_module_moves_the_digest(root):
    before = digest(root)
    for module in COUNTED + OF_THE_WORKER:
        path = root / file_of(module)
        source = path.read_text()
        path.write_text(source + "\nADDED = 1\n")
        assert digest(root) != before, module
        path.write_text(source)
    assert digest(root) == before


@pytest.mark.parametrize("entry", ["companion.lab.ch97.runs", "companion.nothing"])
def test_missing_entry_raises(root, entry):
    with pytest.raises(ModuleNotFoundError, match=entry):
        imported_modules(entry, root)
    with pytest.raises(ModuleNotFoundError, match=entry):
        code_digest(entry, root)


def test_chapter_6_counts_its_methods_and_data_only():
    actual = set(imported_modules("companion.chapters.linear_robustness.arms"))
    assert {
        "companion.chapters.linear_robustness.exact",
        "companion.chapters.linear_robustness.problems",
        "trainaug.methods.linear_robustness.max_margin",
        "trainaug.methods.linear_robustness.robustness",
        "trainaug.methods.linear_robustness.steepest_descent",
        "trainaug.data.binary",
        "trainaug.data.gaussian",
        "trainaug.data.registry",
        "trainaug.data.sklearn_sets",
        "trainaug.norms",
    } <= actual
    assert "companion.lab.chapters" not in actual
    for part in ("figures", "estimands", "sweep", "notebook", "pages"):
        assert not [module for module in actual if part in module.split(".")]


def test_chapter_6_counts_every_module_that_its_runs_load():
    code = (
        "import sys, companion.chapters.linear_robustness.arms\n"
        "from companion.chapters.linear_robustness.exact import Exact\n"
        "from companion.chapters.linear_robustness.problems import load_problems\n"
        "for name in ('digits', 'fashion_mnist'): load_problems(Exact(data=name), 0)\n"
        "print(*(m for m in sys.modules if m.startswith('trainaug.')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120
    )
    kinds = ("methods", "data", "training", "roots")
    loaded = {m for m in done.stdout.split() if m.split(".")[1] in kinds}
    assert loaded <= set(imported_modules("companion.chapters.linear_robustness.arms"))
