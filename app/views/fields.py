"""How one field of the form looks, and the rows of a file of prompts."""

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
        told = {choice or "by default": choice for choice in option.choices}
        return pmui.Select(label=option.label, options=told, value=option.default, **WIDE)
    return pmui.TextInput(label=option.label, value=option.default, placeholder=option.default, **WIDE)


def cell(widget: Any, width: int = 240) -> Any:
    """Let a field be as wide as a phone, or share a row."""
    return pn.Column(widget, width_policy="max", max_width=width, min_width=min(width, 240), margin=0)


def table(found: Preview) -> str:
    """Write the first rows of a file."""
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in found.columns)
    body = "".join(
        "<tr>" + "".join(f"<td dir='auto'>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in found.rows
    )
    return (
        f"<div class='preview' tabindex='0' role='region' aria-label='first rows'><table><thead><tr>{head}"
        f"</tr></thead><tbody>{body}</tbody></table></div><p>{found.n_rows:,} rows</p>"
    )
