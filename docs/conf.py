"""Sphinx configuration: `sphinx-build -W -b html docs docs/_build/html`.

The committed notebooks are shown as they are, never executed. They are copied into `docs/chapters/`
(ignored by git) with their links turned to the site's pages. The tables of the pages on the
sources are made from the committed verdicts and written to `docs/sources/tables/`, which git
ignores too. The API reference imports `trainaug`, so building needs torch and NumPy, and no extra
but `site`.
"""

import json
import os
import re
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
NOTEBOOKS = ROOT / "notebooks"
CHAPTERS = DOCS / "chapters"
TABLES = DOCS / "sources" / "tables"
# for `docstrings.py`, the hooks of the API reference, and for the book's tables
sys.path[:0] = [str(DOCS), str(ROOT)]

project = "trainaug"
author = "The trainaug maintainers"
project_copyright = author
release = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

extensions = [
    "myst_nb",
    "sphinxcontrib.bibtex",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "docstrings",
]
exclude_patterns = ["_build", "sources/tables"]
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_merge_streams = True
bibtex_bibfiles = ["../references.bib"]
bibtex_default_style = "unsrt"

autodoc_default_options = {
    "members": True,
    "imported-members": True,
    "special-members": "__call__",
    # Members of our own base classes are shown, those of these are not.
    "inherited-members": "Module, Sequential, Optimizer, Sampler, Exception, tuple, object, ABC",
}
add_module_names = False
toc_object_entries_show_parents = "hide"
autodoc_mock_imports = [] if find_spec("tokenizers") else ["tokenizers"]  # of the extra `data`
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True  # as they are written: a path of this machine tells nothing
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autosummary_generate = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]
autodoc_type_aliases = {
    name: name for name in ("Arrays", "AttackNorm", "FilePath", "Norm", "PlainNorm")
}
napoleon_use_rtype = False
python_maximum_signature_line_length = 100
default_role = "py:obj"

html_static_path = ["_static"]
html_css_files = ["trainaug.css"]
html_theme = "sphinx_book_theme"
html_title = "trainaug"
html_theme_options = {"use_download_button": True, "show_navbar_depth": 1}

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")
_IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")


def _reimage(match: re.Match[str]) -> str:
    """Point a notebook's image at the same file as seen from the copy."""
    path = os.path.relpath(os.path.normpath(NOTEBOOKS / match[2]), CHAPTERS)
    return f"![{match[1]}]({path})"


def _relink(match: re.Match[str]) -> str:
    """Point a notebook's relative link at the page or file of the site, or drop it."""
    text, (target, anchor) = match[1], urldefrag(match[2])
    if re.match(r"[a-z][a-z+.-]*:", target):
        return match[0]
    # Jupyter writes #6.1-The-problem where the site has #61-the-problem
    anchor = "#" + re.sub(r"[^\w-]", "", anchor.lower()) if anchor else ""
    if not target:
        return f"[{text}]({anchor})"
    path = Path(os.path.normpath(NOTEBOOKS / target))
    if path.parent == NOTEBOOKS and path.suffix == ".ipynb" and path.is_file():
        return f"[{text}]({path.name}{anchor})"
    if path.is_relative_to(DOCS) and path.is_file():
        return f"[{text}]({os.path.relpath(path, CHAPTERS)}{anchor})"
    if path.is_relative_to(ROOT) and path.is_file():
        return f"[{text}](path:{os.path.relpath(path, CHAPTERS)})"  # offered as a download
    return text


def copy_notebooks(app: Any) -> None:
    """Mirror `notebooks/NN_*.ipynb` into `docs/chapters/`; unchanged files keep their time."""
    CHAPTERS.mkdir(exist_ok=True)
    sources = {path.name: path for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))}
    for old in CHAPTERS.glob("*.ipynb"):
        if old.name not in sources:
            old.unlink()
    for name, path in sources.items():
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                text = _IMAGE.sub(_reimage, "".join(cell["source"]))
                cell["source"] = _LINK.sub(_relink, text)
        _write(CHAPTERS / name, json.dumps(notebook, ensure_ascii=False, indent=1))
    pages = "\n".join(["```{toctree}", ":maxdepth: 1", "", *sources, "```"])
    _write(CHAPTERS / "index.md", f"# Chapters\n\n{pages if sources else 'None yet.'}\n")


def write_source_tables(app: Any) -> None:
    """Write what the abstracts say beside the words of the claims, for the pages to include."""
    from companion.pages.abstracts import source_tables

    TABLES.mkdir(exist_ok=True)
    for name, table in source_tables().items():
        _write(TABLES / f"{name}.md", f"{table}\n")


def _write(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def setup(app: Any) -> None:
    """Register the copy and the tables, which must precede the search for pages."""
    app.connect("builder-inited", copy_notebooks)
    app.connect("builder-inited", write_source_tables)
