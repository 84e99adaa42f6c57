"""Widgets of form fields, and the preview table of a prompt file."""

from collections.abc import Sequence
from html import escape
from typing import Any

import panel as pn
import panel_material_ui as pmui

from ..choices import Preview
from ..form import Option

WIDE = {"sizing_mode": "stretch_width", "margin": (6, 6)}


def widget_of(option: Option) -> Any:
    """Return the widget of an option."""
    if option.kind == "switch":
        return pmui.Switch(label=option.label, value=option.default == "true", margin=(12, 6))
    if option.kind == "choice":
        labelled = {choice or "default": choice for choice in option.choices}
        return pmui.Select(label=option.label, options=labelled, value=option.default, **WIDE)
    return pmui.TextInput(label=option.label, value=option.default, placeholder=option.default, **WIDE)


def cluster_choice(clusters: Sequence[str]) -> Any:
    """Return the choice between this machine and clusters; hidden if there are none."""
    options = {"this machine": "", **{name: name for name in clusters}}
    return pmui.Select(label="Compute on", options=options, value="", visible=bool(clusters), **WIDE)


def cell(widget: Any, width: int = 240) -> Any:
    """Wrap a widget so that it fills a phone screen or shares a row."""
    return pn.Column(widget, width_policy="max", max_width=width, min_width=min(width, 240), margin=0)


def table(preview: Preview) -> str:
    """Return the first rows of a file as an HTML table."""
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in preview.columns)
    body = "".join(
        "<tr>" + "".join(f"<td dir='auto'>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in preview.rows
    )
    return (
        f"<div class='preview' tabindex='0' role='region' aria-label='First rows'><table><thead><tr>{head}"
        f"</tr></thead><tbody>{body}</tbody></table></div><p>{preview.n_rows:,} rows</p>"
    )
