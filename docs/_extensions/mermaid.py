"""Mermaid flowcharts as inline SVG: no script, no network, no program besides Sphinx.

Only what the pages use is understood: `flowchart TD`, and lines `a["label"] --> b["label"]`, where a label is
given once and may contain `<br/>`. Anything else fails the build.
"""

import re
from collections.abc import Iterator
from html import escape
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

_EDGE = re.compile(r'(\w+)(?:\["([^"]+)"\])? --> (\w+)(?:\["([^"]+)"\])?')
_WIDTH, _HEIGHT, _GAP_X, _GAP_Y = 240, 44, 24, 26


def parse(text: str) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Return the labels of a flowchart by node, and its edges."""
    header, *lines = [line.strip() for line in text.splitlines() if line.strip()]
    if header != "flowchart TD":
        raise ValueError(f"cannot draw {header!r}: only flowchart TD")
    labels: dict[str, str] = {}
    edges = []
    for line in lines:
        match = _EDGE.fullmatch(line)
        if match is None:
            raise ValueError(f"cannot draw {line!r}")
        start, start_label, end, end_label = match.groups()
        labels.update({name: label for name, label in ((start, start_label), (end, end_label)) if label})
        edges.append((start, end))
    return labels, edges


def rows(edges: list[tuple[str, str]]) -> list[list[str]]:
    """Return the nodes row by row: each directly above the highest node that it leads to."""
    names = list(dict.fromkeys(name for edge in edges for name in edge))
    height = dict.fromkeys(names, 0)  # above the last row
    for _ in names:
        for start, end in edges:
            height[start] = max(height[start], height[end] + 1)
    for end in {end for _, end in edges} - {start for start, _ in edges}:
        height[end] = min(height[start] for start, other in edges if other == end) - 1
    return [[name for name in names if height[name] == row] for row in range(max(height.values()), -1, -1)]


def svg(text: str) -> str:
    """Return a flowchart as an SVG element."""
    return "\n".join(_elements(*parse(text)))


def _elements(labels: dict[str, str], edges: list[tuple[str, str]]) -> Iterator[str]:
    grid = rows(edges)
    step_x, step_y = _WIDTH + _GAP_X, _HEIGHT + _GAP_Y
    width, height = step_x * max(map(len, grid)), step_y * len(grid)
    place = {
        name: (width / 2 + (column - (len(row) - 1) / 2) * step_x, (index + 0.5) * step_y)
        for index, row in enumerate(grid)
        for column, name in enumerate(row)
    }
    yield f'<svg class="flowchart" viewBox="0 0 {width} {height}" role="img" aria-label="Flowchart">'
    yield '<defs><marker id="arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" '
    yield 'orient="auto"><path d="M0 0L8 4L0 8z" fill="currentColor"/></marker></defs>'
    for start, end in edges:
        (x1, y1), (x2, y2) = place[start], place[end]
        line = f'x1="{x1}" y1="{y1 + _HEIGHT / 2}" x2="{x2}" y2="{y2 - _HEIGHT / 2}"'
        yield f'<line {line} stroke="currentColor" marker-end="url(#arrow)"/>'
    for name, (x, y) in place.items():
        corner = f'x="{x - _WIDTH / 2}" y="{y - _HEIGHT / 2}" width="{_WIDTH}" height="{_HEIGHT}"'
        yield f'<rect {corner} rx="5" fill="none" stroke="currentColor"/>'
        lines = labels[name].split("<br/>")
        for number, line in enumerate(lines):
            baseline = y + 5 + (number - (len(lines) - 1) / 2) * 16
            weight = ' font-weight="bold"' if len(lines) > 1 and number == 0 else ""
            anchor = f'x="{x}" y="{baseline}" text-anchor="middle" font-size="13"{weight}'
            yield f'<text {anchor} fill="currentColor">{escape(line)}</text>'
    yield "</svg>"


class Mermaid(SphinxDirective):
    """A fenced block of the language `mermaid`."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return the picture."""
        try:
            return [nodes.raw("", svg("\n".join(self.content)), format="html")]
        except ValueError as error:
            raise self.error(str(error)) from error


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("mermaid", Mermaid)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
