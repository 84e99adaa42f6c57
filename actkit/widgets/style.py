"""How Panel shows what notebooks and the app show alike."""

from typing import Any

import panel as pn

from .markup import STYLE

# titles are headings for those who hear the page, and no larger than its text
ACCORDION = {"& .title": {"fontSize": "1rem"}}


def heading(text: str) -> Any:
    """Return the title of a part of a page."""
    return html(f"<h2>{text}</h2>", margin=(0, 6))


def html(text: str = "", **how: Any) -> Any:
    """Return a pane of HTML; each has a shadow of its own, and takes the style along."""
    return pn.pane.HTML(text, stylesheets=[STYLE], **how)
