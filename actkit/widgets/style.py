"""How pieces of HTML look: each pane has a shadow of its own, and takes it along."""

from typing import Any

import panel as pn

STYLE = """
h2 { font-size: 1.4em; font-weight: normal; margin: 8px 0 0; }
.preview { overflow-x: auto; max-width: 100%; }
.preview table { min-width: 900px; }
table { border-collapse: collapse; font-size: 0.9em; }
th, td { text-align: start; padding: 2px 10px 2px 0; vertical-align: top; }
.bar { height: 8px; border-radius: 4px; background: rgba(128,128,128,0.25); overflow: hidden; margin: 4px 0; }
.bar > div { height: 100%; background: #0072b2; }
.gauge { display: grid; grid-template-columns: 1fr auto; font-size: 0.9em; margin: 4px 0; }
.gauge .bar { grid-column: 1 / -1; }
.log, .code { max-height: 240px; overflow: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
.log, .code { font-size: 0.8em; }
.figures { font-size: 0.85em; }
h2 .figures { font-size: 0.6em; }
h3 { font-size: 1.05em; margin: 4px 0; overflow-wrap: anywhere; }
.state { font-size: 0.8em; font-weight: normal; padding: 2px 8px; border-radius: 10px; }
.state { color: #fff; background: #595959; }
.state.running { background: #005b96; }
.state.done { background: #00674b; }
.state.failed { background: #a3290b; }
.state.cancelled, .state.interrupted { background: #7a5200; }
"""

# titles are headings for those who hear the page, and no larger than its text
ACCORDION = {"& .title": {"fontSize": "1rem"}}


def heading(text: str) -> Any:
    """Return the title of a part of a page."""
    return pn.pane.HTML(f"<h2>{text}</h2>", stylesheets=[STYLE], margin=(0, 6))


def short_model(name: object) -> str:
    """Return the end of a model's id or path, which tells it from others."""
    return "/".join(str(name).split("/")[-2:])
