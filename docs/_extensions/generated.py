"""Tables of options, commands and variables for the documentation, generated from the code."""

import argparse
from collections.abc import Callable, Iterator
from typing import Any

from docutils import nodes
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from actkit.cli import _parser
from actkit.config import Config, Generation, Tracking
from actkit.schema import TokenKind, markdown_table


def options(model: type[BaseModel] = Config) -> str:
    """Return a table of the options of a pydantic model."""
    rows = ["| option | default | description |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        default = "required" if field.default is PydanticUndefined else f"`{_as_yaml(field.default)}`"
        rows.append(f"| `{name}` | {default} | {_cell(field.description)} |")
    return "\n".join(rows)


def _as_yaml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(value)}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|").replace("{text}", "`{text}`").replace("<", "&lt;")


def subcommands() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command."""
    (action,) = (a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


def commands() -> str:
    """Return a section for each command, with a table of its arguments other than config options."""
    (action,) = (a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    purposes = {choice.dest: choice.help for choice in action._choices_actions}
    return "\n\n".join(_command(name, parser, purposes[name]) for name, parser in action.choices.items())


def _command(name: str, parser: argparse.ArgumentParser, purpose: str | None) -> str:
    shown, takes_config = [], False
    for action in parser._actions:
        takes_config |= action.dest in Config.model_fields and name in ("extract", "plan")
        if not isinstance(action, argparse._HelpAction) and not (takes_config and _is_of_config(action)):
            shown.append(action)
    text = (purpose or "").strip()
    lines = [f"## actkit {name}", "", f"{text[:1].upper()}{text[1:]}.", "", *_arguments(shown)]
    if takes_config:
        lines += [
            "",
            "The command also accepts every config option; for example, `max_tokens` is `--max-tokens`.",
        ]
    return "\n".join(lines)


def _is_of_config(action: argparse.Action) -> bool:
    return action.dest in Config.model_fields and bool(action.option_strings)


def _arguments(actions: list[argparse.Action]) -> Iterator[str]:
    yield "| argument | description |"
    yield "|---|---|"
    for action in actions:
        shown = ", ".join(f"`{text}`" for text in action.option_strings) or f"`{action.dest}`"
        text = (action.help or "") % {"default": action.default, "prog": "actkit"}
        yield f"| {shown} | {_cell(text)}{' (required)' if _is_required(action) else ''} |"


def _is_required(action: argparse.Action) -> bool:
    return action.required and bool(action.option_strings)


def kinds() -> str:
    """Return a table of the kinds of tokens."""
    rows = [f"| {int(kind)} | {kind.name.lower()} |" for kind in TokenKind]
    return "\n".join(["| value | kind |", "|---|---|", *rows])


_TABLES: dict[str, Callable[[], str]] = {
    "commands": commands,
    "generation": lambda: options(Generation),
    "kinds": kinds,
    "options": options,
    "tracking": lambda: options(Tracking),
    "variables": markdown_table,
}


class _Generated(SphinxDirective):
    """Directive that inserts a generated table."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        text = _TABLES[self.arguments[0]]()
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("generated", _Generated)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
