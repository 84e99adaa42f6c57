"""Commands about runs that exist: what they hold, whether they are intact, and what can be made of them."""

import argparse
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from .cli_output import counts, cube_info, print_cube, print_pairs
from .config import Config
from .estimates import readable_bytes
from .store.joins import join
from .store.reader import open_cube
from .store.verification import verify
from .terminal_text import printable

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


class Terminated(KeyboardInterrupt):
    """A batch system or `kill` asked the process to end."""


@contextmanager
def terminable() -> Iterator[None]:
    """Make SIGTERM end a run as Ctrl-C does: the window being written is finished first."""

    def end(_signal: int, _frame: Any) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def add_command(
    commands: Subparsers, name: str, function: Callable[..., int], purpose: str, epilog: str | None = None
) -> argparse.ArgumentParser:
    """Add a command, and return its parser."""
    parser = commands.add_parser(name, help=purpose, description=purpose, epilog=epilog)
    parser.set_defaults(command=function)
    return parser


def flag(option: str) -> str:
    """Return the form that an option of a run has on the command line."""
    return f"--{option.replace('_', '-')}"


def escape(text: str | None) -> str:
    """Escape a description for argparse."""
    return (text or "").replace("%", "%%")


def add_seal(commands: Subparsers) -> None:
    """Add the command `seal`."""
    purpose = "finish a run that was computed in parts, after checking that it is complete and intact"
    parser = add_command(commands, "seal", _seal, purpose)
    parser.add_argument("run", help="run folder or its URL")
    parser.add_argument(
        "--quick", action="store_true", help="check only that all files exist, not what they contain"
    )


def _seal(run: str, quick: bool) -> int:
    from .extraction.seal import seal

    print_cube(seal(run, quick=quick))
    return 0


def add_info(commands: Subparsers) -> None:
    """Add the command `info`."""
    parser = add_command(commands, "info", _info, "show what a cube holds and how it was made")
    parser.add_argument("path", help="run folder, its cube.zarr, or the URL of either")


def _info(path: str) -> int:
    print_pairs(cube_info(path))
    return 0


def add_verify(commands: Subparsers) -> None:
    """Add the command `verify`."""
    purpose = "read every file of a cube and check it against its checksums"
    parser = add_command(commands, "verify", _verify, purpose)
    parser.add_argument("path", help="run folder, its cube.zarr, or the URL of either")


def _verify(path: str) -> int:
    result = verify(path)
    for fault in result.faults:
        print(printable(str(fault)))
    verdict = "sound" if result.ok else f"{len(result.faults)} damaged"
    size = f"{result.files} files, {readable_bytes(result.bytes)}"
    committed = f"{result.committed} of {result.samples} samples committed"
    print(printable(f"{result.path}: {verdict}; {size}, {committed}"))
    return 0 if result.ok else 1


def add_report(commands: Subparsers) -> None:
    """Add the command `report`."""
    parser = add_command(commands, "report", _report, "write a one-page HTML report of a cube's results")
    parser.add_argument("path", help="run folder, its cube.zarr, or the URL of either, finished or not")
    parser.add_argument("--out", default="report.html", help="output file (default: %(default)s)")
    parser.add_argument(
        "--by",
        help="label column that defines the two groups (default: gender, or the first with two values)",
    )
    parser.add_argument(
        "--cluster",
        default="auto",
        help="label that dependent samples share; none if all are independent (default: detected)",
    )
    parser.add_argument(
        "--vectors",
        default="pooled",
        choices=["pooled", "last", "prompt_end"],
        help="vector of each sample: pooled (mean over content tokens), last (last content token) or "
        "prompt_end (last token of the prompt) (default: %(default)s)",
    )
    parser.add_argument("--figures", action="store_true", help="also write each figure as PNG and SVG")
    parser.add_argument("--tables", action="store_true", help="also write each table as CSV")


def _report(path: str, cluster: str, **options: Any) -> int:
    from .reports import report

    cube = open_cube(path, partial=True)
    print(report(cube, cluster=None if cluster == "none" else cluster, progress=True, **options))
    return 0


def add_export(commands: Subparsers) -> None:
    """Add the command `export`."""
    parser = add_command(commands, "export", _export, "write a run as files that other scripts read")
    parser.add_argument("run", help="run folder, or its URL")
    parser.add_argument("--format", required=True, help="pt, npz, batches, safetensors or arrow")
    parser.add_argument("--out", required=True, help="new folder to create")
    parser.add_argument("--layers", default="all", help="layers of one component (default: %(default)s)")
    parser.add_argument("--languages", help="comma-separated languages, such as english,arabic; default: all")
    parser.add_argument("--whiten", action="store_true", help="whiten each layer (npz only)")


def _export(run: str, languages: str | None, **options: Any) -> int:
    from .exporters.run_export import export

    print(export(run, languages=languages.split(",") if languages else None, **options))
    return 0


def add_import(commands: Subparsers) -> None:
    """Add the command `import`."""
    parser = add_command(commands, "import", _import, "make a run from files that another script wrote")
    parser.add_argument("folder", help="folder of the files")
    parser.add_argument("--format", required=True, help="pt, npz or batches")
    parser.add_argument("--out", required=True, help="run folder or URL to create")
    parser.add_argument(
        "--layers", default="all", help="layers to import of those in the files (default: %(default)s)"
    )
    parser.add_argument(
        "--languages", help="comma-separated languages, such as english,arabic (pt only); default: all"
    )
    parser.add_argument("--model", help="name of the model, if the files do not name it")
    parser.add_argument(
        "--language", help="language of all samples, if the files name none (npz and batches only)"
    )
    parser.add_argument("--data", help="file with one row per sample: its text and labels")
    for option in ("text_column", "text_columns", "language_column", "id_column", "labels"):
        described = escape(Config.model_fields[option].description)
        parser.add_argument(flag(option), metavar=option[0].upper(), help=described)


def _import(folder: str, languages: str | None, **options: Any) -> int:
    from .importers.run_import import import_files

    with terminable():
        cube = import_files(folder, languages=languages.split(",") if languages else None, **options)
    empty = int((cube.n_tokens == 0).sum())
    rows = [("languages", counts(cube.language.values.tolist()))]
    print_cube(cube, rows + [("empty", f"{empty:,} samples without tokens")] * bool(empty))
    print(f"\nopen it in Python:  actkit.open_cube({options['out']!r})")
    return 0


def add_extend(commands: Subparsers) -> None:
    """Add the command `extend`."""
    purpose = "compute more layers, languages or rows of a run, and write a new run with all of them"
    parser = add_command(commands, "extend", _extend, purpose)
    parser.add_argument("run", help="run folder of a complete run, or its URL; it stays as it is")
    parser.add_argument("--out", required=True, help="run folder or URL to create")
    for option in ("layers", "languages", "data", "device"):
        parser.add_argument(flag(option), metavar=option[0].upper(), help=_MORE[option])


_MORE = {
    "layers": "layers to have; those that the run lacks are computed",
    "languages": "languages to have; those that the run lacks are computed",
    "data": "file with more rows",
    "device": "device to compute on",
}


def _extend(run: str, out: str, **options: Any) -> int:
    from .extraction.extend import extend

    with terminable():
        print_cube(extend(run, out=out, **options))
    return 0


def add_join(commands: Subparsers) -> None:
    """Add the command `join`."""
    purpose = "write the cubes of several runs of one model as one"
    parser = add_command(commands, "join", _join, purpose)
    parser.add_argument("runs", nargs="+", help="run folders or URLs of complete runs")
    parser.add_argument("--dim", required=True, choices=["layer", "sample"], help="what they have different")
    parser.add_argument("--out", required=True, help="run folder to create")


def _join(runs: list[str], **options: Any) -> int:
    with terminable():
        print_cube(join(runs, **options))
    return 0
