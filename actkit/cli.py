"""The command line: the same names as in Python and YAML."""

import argparse
import os
import signal
import sys
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import Any

import xarray as xr

from .config import Config
from .errors import ActkitError, Fault, FaultsError
from .estimates import readable_bytes
from .schema import DIMS, VISION
from .stats.norms import layer_norms
from .store.checking import verify
from .store.layout import cube_path, open_group
from .store.reading import open_cube

Rows = list[tuple[str, str]]

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
        Without the program's name; those of the process by default.

    Returns
    -------
    int
        0 when all went well, 1 for an error or a damaged cube, 130 when interrupted, 143 when terminated,
        141 when nobody reads on; 2 (by argparse) for options that do not exist.
    """
    options = vars(_parser().parse_args(arguments))
    command = options.pop("command")
    try:
        code = int(command(**options))
        sys.stdout.flush()
        return code
    except ActkitError as error:
        print(f"actkit: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `actkit info … | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except _Terminated:
        print("actkit: terminated; run the same command again to continue", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        print("actkit: interrupted; run the same command again to continue", file=sys.stderr)
        return 130


class _Terminated(KeyboardInterrupt):
    """Somebody asked the process to end: a batch system, or `kill`."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end a run as Ctrl-C does: the window that is being written is finished first."""

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
        description="Keep what every layer of a language model computes, and look at it.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="run the bundled model on the bundled captions")
    demo.add_argument("--out", default="runs/demo", help="run folder (default: %(default)s)")
    demo.add_argument(
        "--images",
        metavar="FOLDER",
        help="draw the captioned scenes into a new folder instead, for a model that sees",
    )
    demo.set_defaults(command=_demo)

    for name, command, purpose in (
        ("extract", _extract, "run prompts through a model and keep what every layer computed"),
        ("plan", _plan, "say what an extraction will take, without running it"),
    ):
        joined = "A value that starts with a minus is joined to its option: --layers=-3--1"
        sub = commands.add_parser(name, help=purpose, description=purpose, epilog=joined)
        sub.add_argument("config", nargs="?", help="YAML file; the options below go over it")
        for option, field in Config.model_fields.items():
            flag = f"--{option.replace('_', '-')}"
            kind: dict[str, Any] = {"metavar": option[0].upper()}
            if field.annotation in (bool, bool | None):
                kind = {"action": argparse.BooleanOptionalAction, "default": None}
            sub.add_argument(flag, dest=option, help=_escape(field.description), **kind)
        if command is _plan:
            sub.add_argument(
                "--trial",
                action=argparse.BooleanOptionalAction,
                default=True,
                help="load the model and run a few batches, to know the time; some ten seconds",
            )
            sub.add_argument("--json", action="store_true", help="print one line of JSON, faults included")
        else:
            sub.add_argument("--queue", metavar="Q", help="folder in which runs wait for a free device")
        sub.set_defaults(command=command)

    for name, reader, purpose in (
        ("info", _info, "say what a cube holds and how it was made"),
        ("verify", _verify, "read every file of a cube and compare it with its checksums"),
    ):
        sub = commands.add_parser(name, help=purpose, description=purpose)
        sub.add_argument("path", help="run folder, or its cube.zarr")
        sub.set_defaults(command=reader)
    report = commands.add_parser("report", help="write one HTML page that says what a cube shows")
    report.add_argument("path", help="run folder, or its cube.zarr; an unfinished one too")
    report.add_argument("--out", default="report.html", help="the file (default: %(default)s)")
    report.add_argument(
        "--by", help="label column of two groups (default: gender, or the first with two values)"
    )
    report.add_argument(
        "--pairs",
        help="label column of samples that are not independent (default: what twins share, else image_id)",
    )
    report.add_argument("--values", default="pooled", choices=["pooled", "last"], help="default: %(default)s")
    report.add_argument("--figures", action="store_true", help="write each picture as PNG and SVG too")
    report.add_argument("--tables", action="store_true", help="write each table as CSV too")
    report.set_defaults(command=_report)

    purpose = "write a run as files that other scripts read"
    export = commands.add_parser("export", help=purpose, description=purpose)
    export.add_argument("run", help="run folder")
    export.add_argument("--format", required=True, help="pt, npz, batches, safetensors or arrow")
    export.add_argument("--out", required=True, help="a new folder")
    export.add_argument("--layers", default="all", help="of one component (default: %(default)s)")
    export.add_argument("--languages", help="english,arabic; all by default")
    export.add_argument("--whiten", action="store_true", help="whiten each layer (npz)")
    export.set_defaults(command=_export)

    purpose = "make a run of files that another script wrote"
    imports = commands.add_parser("import", help=purpose, description=purpose)
    imports.add_argument("folder", help="folder with the files")
    imports.add_argument("--format", required=True, help="pt, npz or batches")
    imports.add_argument("--out", required=True, help="run folder to make")
    imports.add_argument(
        "--layers", default="all", help="of those that the files have (default: %(default)s)"
    )
    imports.add_argument("--languages", help="english,arabic; all by default (pt)")
    imports.add_argument("--model", help="name of the model, where the files tell none")
    imports.add_argument("--language", help="that of all samples, where the files name none (npz, batches)")
    imports.add_argument("--data", help="file with a row for each sample: its text, and labels")
    for option in ("text_column", "text_columns", "language_column", "id_column", "labels"):
        described = _escape(Config.model_fields[option].description)
        imports.add_argument(f"--{option.replace('_', '-')}", metavar=option[0].upper(), help=described)
    imports.set_defaults(command=_import)
    return parser


def _escape(text: str | None) -> str:
    return (text or "").replace("%", "%%")


def _demo(out: str, images: str | None) -> int:
    from .demo import CAPTIONS, MODEL, draw_scenes

    if images is None:
        return _extract(None, model=str(MODEL), data=str(CAPTIONS), out=out)
    table = draw_scenes(Path(images))
    print(f"{table}: captions, with a column `image`\n")
    print("run them through a vision-language model:")
    print(f"  actkit extract --model MODEL --data {table} --image-column image --out runs/scenes")
    return 0


def _extract(config: str | None, **options: Any) -> int:
    # OpenMP threads that spin while they wait take the cores from the thread that compresses and writes:
    # on two busy cores the demo ran 11 times slower. It must be set before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from .extraction.engine import extract
    from .extraction.progress import Bar, Progress

    last: deque[Progress] = deque(maxlen=1)
    with _terminable():
        cube = extract(config, listeners=[Bar(), last.append], **options)
    path = cube_path(cube.encoding["source"])
    event = last[0]
    speed = "nothing was left to do"
    if event.tokens:
        speed = f"{event.samples_per_second:,.1f} samples/s, {event.tokens_per_second:,.0f} tokens/s"
    _print_pairs(
        [
            ("cube", str(path)),
            ("shape", _shape(cube)),
            ("on disk", readable_bytes(_bytes_on_disk(path))),
            ("speed", speed),
            *([("batches", f"up to {event.batch_tokens:,} tokens")] if event.tokens else []),
            *_losses(cube),
        ]
    )
    if "norm" in cube:
        norms = layer_norms(cube.sel(layer=cube.has_residual))
        print(f"\nmean norm of {_NORMED[norms.attrs['tokens']]}")
        _print_table(norms["mean"])
    print(f"\nopen it in Python:  actkit.open_cube({str(path.parent)!r})")
    return 0


def _plan(config: str | None, trial: bool, json: bool, **options: Any) -> int:
    if not json:
        _print_pairs(_planned(config, trial, options))
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
    said = {"rows": rows, "heading": heading, "faults": [asdict(fault) for fault in faults]}
    print(dumps(said, ensure_ascii=False))
    return int(bool(heading))


def _planned(config: str | None, trial: bool, options: Mapping[str, Any]) -> Rows:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as for an extraction
    from .extraction.engine import plan

    return plan(config, trial=trial, **options).told()


def _info(path: str) -> int:
    cube = open_cube(path, partial=True)
    folder = cube_path(path)
    root = open_group(folder)
    total = root["committed"].shape[0]  # type: ignore[union-attr]
    rows = [
        ("cube", str(folder)),
        ("shape", _shape(cube)),
        *([("vision", _shape(open_cube(path, group=VISION, partial=True)))] if VISION in root else []),
        ("committed", f"{cube.sizes['sample']:,} of {total:,} samples"),
        ("tokens", f"{int(cube.n_tokens.sum()):,}"),
        *_losses(cube),
        ("on disk", readable_bytes(_bytes_on_disk(folder))),
        ("variables", " ".join(str(name) for name in cube.data_vars)),
    ]
    labels = [str(name) for name, coord in cube.coords.items() if coord.attrs.get("label")]
    rows += [(name, _counts(cube[name].values.tolist())) for name in ["language", *labels]]
    said = {name: str(value) for name, value in cube.attrs.items() if name != "skipped"}
    rows += [(name, value.replace("\n", "\\n")) for name, value in said.items()]
    _print_pairs(rows)
    return 0


def _verify(path: str) -> int:
    found = verify(path)
    for fault in found.faults:
        print(fault)
    verdict = "sound" if found.ok else f"{len(found.faults)} damaged"
    print(
        f"{found.path}: {verdict}; {found.files} files, {readable_bytes(found.bytes)}, "
        f"{found.committed} of {found.samples} samples committed"
    )
    return 0 if found.ok else 1


def _report(path: str, **options: Any) -> int:
    from .reporting import report

    print(report(open_cube(path, partial=True), **options))
    return 0


def _export(run: str, languages: str | None, **options: Any) -> int:
    from .exporting.export import export

    print(export(run, languages=languages.split(",") if languages else None, **options))
    return 0


def _import(folder: str, languages: str | None, **options: Any) -> int:
    from .importing.importing import import_files

    with _terminable():
        cube = import_files(folder, languages=languages.split(",") if languages else None, **options)
    path, empty = cube_path(cube.encoding["source"]), int((cube.n_tokens == 0).sum())
    _print_pairs(
        [
            ("cube", str(path)),
            ("shape", _shape(cube)),
            ("languages", _counts(cube.language.values.tolist())),
            *([("empty", f"{empty:,} samples without tokens")] if empty else []),
            ("on disk", readable_bytes(_bytes_on_disk(path))),
        ]
    )
    print(f"\nopen it in Python:  actkit.open_cube({str(path.parent)!r})")
    return 0


def _shape(cube: xr.Dataset) -> str:
    return " × ".join(f"{cube.sizes[dim]:,} {dim}" for dim in DIMS if dim in cube.sizes)


def _losses(cube: xr.Dataset) -> Rows:
    """Say what the cube has not of what was asked for."""
    truncated, skipped = int(cube.truncated.sum()), int(cube.attrs.get("skipped_rows", 0))
    rows = []
    if truncated:
        rows.append(("truncated", f"{truncated:,} samples, by max_tokens"))
    if skipped:
        rows.append(("skipped", f"{skipped:,} rows; skipped.jsonl in the run folder lists them"))
    return rows


def _counts(values: list[Any], most: int = 6) -> str:
    counts = Counter(values)
    shown = ", ".join(f"{value} {count:,}" for value, count in counts.most_common(most))
    return shown if len(counts) <= most else f"{len(counts):,} different values"


def _bytes_on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _print_pairs(rows: Rows) -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


def _print_table(values: xr.DataArray) -> None:
    """Print a layer × language table."""
    languages = [str(name) for name in values.language.values]
    print("  ".join(["layer", *(f"{name:>12}" for name in languages)]))
    for layer, row in zip(values.layer.values, values.transpose("layer", "language").values, strict=True):
        print("  ".join([f"{layer:>5}", *(f"{value:>12,.2f}" for value in row)]))


if __name__ == "__main__":
    sys.exit(main())
