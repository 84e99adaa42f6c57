"""Sphinx configuration of the documentation, built with `make docs`."""

import os
import re
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging

import actkit

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(DOCS / "_extensions"))

project = "actkit"
author = copyright = "The actkit developers"
release = version = actkit.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "generated", "mathml", "mermaid"]
exclude_patterns: list[str] = []

myst_fence_as_directive = ["mermaid"]
myst_enable_extensions = ["dollarmath", "tasklist"]
myst_heading_anchors = 3
html_math_renderer = "mathml"

default_role = "code"  # for single backticks in docstrings
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autoclass_content = "class"
napoleon_google_docstring = False
napoleon_use_rtype = False
maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False

nitpicky = True
# references to other libraries, whose documentation is not linked, and to internal modules
_ELSEWHERE = r"IterableDataset|(collections|np|numpy|os|pandas|pathlib|t|torch|transformers|xarray|xr)\..*"
_INTERNAL = (
    r"actkit\.(batch_plan|data_scan|estimates|interventions\.text_metrics|options|sources|stats\.kernels|"
    r"extraction\.(models|preflight|prompts)|reports\.\w+|store\.(ragged|reader|verification|writer)|widgets\.\w+)\..*"
)
nitpick_ignore_regex = [("py:.*", _ELSEWHERE), ("py:.*", _INTERNAL)]

html_theme = "furo"
html_title = f"actkit {release}"
html_static_path = ["_static"]
html_css_files = ["actkit.css"]
html_copy_source = False
html_show_sphinx = False

# files outside docs/ that become pages of the site; their stubs are in docs/project/
PAGES = {
    "project/architecture": "ARCHITECTURE.md",
    "project/benchmarks": "benchmarks/README.md",
    "project/changelog": "CHANGELOG.md",
    "project/contributing": "CONTRIBUTING.md",
    "project/demo-model": "actkit/demo/model/README.md",
    "project/glossary": "GLOSSARY.md",
}
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s:]+)(#[^)\s]*)?\)")


def _read_source(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace a stub by the text of its file, and make links in all pages point to pages."""
    file = PAGES.get(docname)
    path = ROOT / file if file else Path(app.env.doc2path(docname))
    if file:
        app.env.note_dependency(str(path))
        source[0] = path.read_text(encoding="utf-8")

    def link(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        page = _page((path.parent / target).resolve())
        if page is None:
            return text  # the file is not part of the site
        return f"[{text}]({os.path.relpath(page, Path(docname).parent)}{anchor})"

    source[0] = _LINK.sub(link, source[0])


def _page(path: Path) -> str | None:
    """Return the page or image that a path in the repository refers to."""
    if not path.exists():
        raise FileNotFoundError(path)
    for page, file in PAGES.items():
        if path == ROOT / file:
            return f"{page}.md"
    if path.is_relative_to(DOCS):
        return str((path / "index.md" if path.is_dir() else path).relative_to(DOCS))
    return None


_EXTERNAL = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"(?:https?:)?//[^>]*>")


def _check_offline(app: Sphinx, error: Exception | None) -> None:
    """Warn about pages that load resources from another server."""
    for path in Path(app.outdir).rglob("*.html"):
        for tag in _EXTERNAL.findall(path.read_text(encoding="utf-8")):
            logging.getLogger(__name__).warning("%s loads an external resource: %s", path.name, tag)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the event handlers."""
    app.connect("source-read", _read_source)
    app.connect("build-finished", _check_offline)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
