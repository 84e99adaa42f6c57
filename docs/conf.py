"""How Sphinx builds the site: `make docs`."""

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
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "generated", "mathml"]
exclude_patterns: list[str] = []

myst_enable_extensions = ["dollarmath", "tasklist"]
myst_heading_anchors = 3
html_math_renderer = "mathml"

default_role = "code"  # what docstrings put between single backticks
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autoclass_content = "class"
napoleon_google_docstring = False
napoleon_use_rtype = False
maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False

nitpicky = True
# other libraries, without whose pages a link leads nowhere; and what is ours alone
_ELSEWHERE = r"IterableDataset|(collections|np|numpy|pandas|pathlib|t|torch|xarray|xr)\..*"
_INTERNAL = (
    r"actkit\.(extraction\.preparing|planning|stats\.kernels|store\.\w+ing|store\.ragged|widgets\.\w+)\..*"
)
nitpick_ignore_regex = [("py:.*", _ELSEWHERE), ("py:.*", _INTERNAL)]

html_theme = "furo"
html_title = f"actkit {release}"
html_static_path = ["_static"]
html_css_files = ["actkit.css"]
html_copy_source = False
html_show_sphinx = False

# files beside docs/ that are pages of the site; their stubs lie in project/
PAGES = {
    "project/architecture": "ARCHITECTURE.md",
    "project/benchmarks": "benchmarks/README.md",
    "project/changelog": "CHANGELOG.md",
    "project/contributing": "CONTRIBUTING.md",
    "project/demo-model": "actkit/demo/model/README.md",
    "project/glossary": "GLOSSARY.md",
}
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s:]+)(#[^)\s]*)?\)")


def _put_in(app: Sphinx, docname: str, source: list[str]) -> None:
    """Give a stub the text of its file, and let links of all pages lead to pages."""
    own = PAGES.get(docname)
    path = ROOT / own if own else Path(app.env.doc2path(docname))
    if own:
        app.env.note_dependency(str(path))
        source[0] = path.read_text(encoding="utf-8")

    def lead(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        page = _page((path.parent / target).resolve())
        if page is None:
            return text  # a file that the site lacks
        return f"[{text}]({os.path.relpath(page, Path(docname).parent)}{anchor})"

    source[0] = _LINK.sub(lead, source[0])


def _page(path: Path) -> str | None:
    """Return the page, or image, that a path of the repository leads to."""
    if not path.exists():
        raise FileNotFoundError(path)
    for page, file in PAGES.items():
        if path == ROOT / file:
            return f"{page}.md"
    if path.is_relative_to(DOCS):
        return str((path / "index.md" if path.is_dir() else path).relative_to(DOCS))
    return None


_FROM_ELSEWHERE = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"(?:https?:)?//[^>]*>")


def _check_offline(app: Sphinx, error: Exception | None) -> None:
    """Warn of pages that would ask another server for something."""
    for path in Path(app.outdir).rglob("*.html"):
        for found in _FROM_ELSEWHERE.findall(path.read_text(encoding="utf-8")):
            logging.getLogger(__name__).warning("%s is not on this server: %s", path.name, found)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect them."""
    app.connect("source-read", _put_in)
    app.connect("build-finished", _check_offline)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
