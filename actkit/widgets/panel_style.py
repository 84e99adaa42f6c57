"""Panel styling shared by notebooks and the app."""

from typing import Any

import panel as pn

from .markup import STYLE

# titles are headings for screen readers, but have the size of body text
ACCORDION = {"& .title": {"fontSize": "1rem"}}


def heading(text: str) -> Any:
    """Return the heading of a section of a page."""
    return html(f"<h2>{text}</h2>", margin=(0, 6))


def html(text: str = "", **how: Any) -> Any:
    """Return an HTML pane with its own style sheet, because each pane has a separate shadow root."""
    return pn.pane.HTML(text, stylesheets=[STYLE], **how)
