"""Tables of options, commands and variables for the documentation, generated from the code."""

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from docutils import nodes
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from actkit.batch_plan import Shape, footprint, make_plan
from actkit.cli import _parser
from actkit.config import Config, Generation, Tracking
from actkit.estimates import estimate, readable_bytes, readable_seconds
from actkit.schema import TokenKind, markdown_table
from actkit.shared_estimates import SharedTime, count_files


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
    """Return the parser of each command; that of a subcommand by both names, such as ``saes train``."""
    return {name: parser for name, parser, _ in _walk(_parser())}


def commands() -> str:
    """Return a section for each command, with a table of its arguments other than config options."""
    return "\n\n".join(_command(*command) for command in _walk(_parser()))


def _walk(
    parser: argparse.ArgumentParser, prefix: str = ""
) -> Iterator[tuple[str, argparse.ArgumentParser, str | None]]:
    """Yield the name, parser and purpose of each command that does not only group others."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            purposes = {choice.dest: choice.help for choice in action._choices_actions}
            for name, choice in action.choices.items():
                nested = list(_walk(choice, f"{prefix}{name} "))
                yield from nested or [(f"{prefix}{name}", choice, purposes[name])]


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


_GPUS, _NODES, _TOKENS, _PROMPT, _BATCH = 64, 8, 10**8, 180, 2048
_GPU_RATE = 20_000  # tokens per second and GPU: assumed, not measured


def machines() -> str:
    """Return a table of what binds a run of Gemma 3 4B on 64 GPUs, by the arithmetic of `actkit plan`."""
    save = ("residual", "embedding", "norm", "pooled", "last", "nonfinite")
    variables = (*save, "n_tokens", "token_id", "token_kind", "token_text")
    layers, hidden, samples = 34, 2560, _TOKENS // _PROMPT
    token, sample = footprint(variables, {"residual": layers}, Shape(layers, 1, 1, hidden), None, 2)
    lengths = np.full(samples, _PROMPT, dtype=np.int32)
    config = Config(model="-", data="-", out="-")
    sizes: dict[str, int] = {"layers": layers, "hidden": hidden, "token_bytes": token, "sample_bytes": sample}
    plan = make_plan(config, lengths, batch_tokens=_BATCH, **sizes)
    counted: Any = {"layers": {"residual": layers}, "value_bytes": 2}
    disk = estimate(plan, variables, host_bytes=0, **counted).disk
    files = count_files(plan, variables, **counted)
    rows = ["| | |", "|---|---|"]
    rows += [f"| tokens, prompts | {plan.tokens:,} in {samples:,} prompts of {_PROMPT} |"]
    rows += [f"| cube | {readable_bytes(disk)}, {readable_bytes(disk / plan.tokens)} a token |"]
    rows += [
        f"| windows | {plan.n_windows:,} of {plan.window} prompts in batches of up to {_BATCH:,} tokens |"
    ]
    rows += [
        f"| files | {files} |",
        "",
        "| network | computing takes | network takes | bottleneck | windows/s | requests/s |",
    ]
    rows += ["|---|---|---|---|---|---|"]
    for gigabits in (25, 100, 400):
        seconds = plan.tokens / _GPU_RATE
        time = SharedTime(_GPUS, disk, files.requests, seconds, network=_NODES * gigabits)
        assert time.computing is not None
        assert time.transfer is not None
        assert time.total is not None
        durations = f"{readable_seconds(time.computing)} | {readable_seconds(time.transfer)}"
        rates = f"{plan.n_windows / time.total:,.0f} | {time.requests_per_second:,.0f}"
        rows += [f"| {_NODES} × {gigabits} Gbit/s | {durations} | {time.binds} | {rates} |"]
    return "\n".join(rows)


_TABLES: dict[str, Callable[[], str]] = {
    "commands": commands,
    "generation": lambda: options(Generation),
    "kinds": kinds,
    "machines": machines,
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
