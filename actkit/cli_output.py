"""Text that the command line prints about cubes: names with values, and tables."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

from .estimates import readable_bytes
from .schema import DIMS, VISION, K
from .stats.norms import layer_norms
from .stats.selection import column, label_names
from .store.cube_files import LocalCube, RemoteCube
from .store.layout import CUBE, find_cube, open_group
from .store.parts import describe_parts
from .store.reader import open_cube
from .store.remote_run import RemoteRun
from .store.xarray_copies import COPY
from .terminal_text import printable

_NORMED = {
    "content": "content tokens",
    "last": "the last tokens",
    "mean": "the means over content tokens",
}

Rows = list[tuple[str, str]]


def _parts(files: LocalCube | RemoteCube) -> str:
    if isinstance(files, LocalCube):
        return describe_parts(files.root.parent)
    if not files.folder.url.endswith(f"/{CUBE}"):
        return ""
    with RemoteRun(files.folder.parent.url).settings() as run:
        return describe_parts(run)


def cube_info(path: str) -> Rows:
    """Return what a cube holds and how it was made."""
    cube = open_cube(path, partial=True)
    files = find_cube(path)
    parts = _parts(files)
    if COPY in cube.attrs:
        total, has_vision = cube.sizes["sample"], False
    else:
        root = open_group(files)
        total, has_vision = root["committed"].shape[0], VISION in root  # type: ignore[union-attr]
    rows = [
        ("cube", str(files)),
        ("shape", shape(cube)),
        *([("vision", shape(open_cube(path, group=VISION, partial=True)))] if has_vision else []),
        ("committed", f"{cube.sizes['sample']:,} of {total:,} samples"),
        ("tokens", f"{int(cube.n_tokens.sum()):,}"),
        *([("parts", parts)] if parts else []),
        *losses(cube),
        ("on disk", readable_bytes(stored_bytes(files))),
        ("variables", " ".join(str(name) for name in cube.data_vars)),
    ]
    labels = label_names(cube)
    for name in ["language", *labels]:
        texts = column(cube, name, "label").cell_texts().tolist()
        rows.append((name, counts([text or "(none)" for text in texts])))
    attrs = {name: str(value) for name, value in cube.attrs.items() if name != "skipped"}
    rows += [(name, value.replace("\n", "\\n")) for name, value in attrs.items()]
    return rows


def shape(cube: xr.Dataset) -> str:
    """Return the sizes of the dimensions of a cube, as text."""
    return " × ".join(f"{cube.sizes[dim]:,} {dim}" for dim in (*DIMS, K) if dim in cube.sizes)


def losses(cube: xr.Dataset) -> Rows:
    """List samples that were truncated and rows that were skipped."""
    truncated, skipped = int(cube.truncated.sum()), int(cube.attrs.get("skipped_rows", 0))
    rows = []
    if truncated:
        rows.append(("truncated", f"{truncated:,} samples, to max_tokens"))
    if skipped:
        rows.append(("skipped", f"{skipped:,} rows, listed in skipped.jsonl in the run folder"))
    return rows


def counts(values: list[Any], most: int = 6) -> str:
    """Return the number of times that each value occurs, or of values where there are many."""
    counter = Counter(values)
    shown = ", ".join(f"{value} {count:,}" for value, count in counter.most_common(most))
    return shown if len(counter) <= most else f"{len(counter):,} different values"


def stored_bytes(cube: LocalCube | RemoteCube) -> int:
    """Return the total size of the files of a cube."""
    if isinstance(cube, RemoteCube):
        return sum(entry.size for entry in cube.entries.values())
    return sum(path.stat().st_size for path in cube.root.rglob("*") if path.is_file())


def print_extraction(cube: xr.Dataset, event: Any, part: str | None) -> None:
    """Print the result of an extraction.

    Parameters
    ----------
    cube
        The cube, or the samples of a part.
    event
        The last event of the extraction, :class:`~actkit.extraction.monitoring.progress.Progress`.
    part
        The part of a run, such as ``3/16``; None for a whole run.
    """
    path = str(find_cube(cube.encoding["source"]))
    run = path.rpartition("/")[0]
    speed = "nothing was left to do"
    if event.tokens:
        speed = f"{event.samples_per_second:,.1f} samples/s, {event.tokens_per_second:,.0f} tokens/s"
    batches = [("batches", f"up to {event.batch_tokens:,} tokens")] if event.tokens else []
    if part is not None:
        print_pairs([("part", part), ("cube", path), ("shape", shape(cube)), ("speed", speed), *batches])
        print(f"\nonce all parts are done:  actkit seal {run}")
        return
    print_cube(cube, [("speed", speed), *batches])
    if "norm" in cube:
        norms = layer_norms(cube.sel(layer=cube.has_residual))
        print(f"\nmean norm of {_NORMED[norms.attrs['tokens']]}")
        print_table(norms["mean"])
    print(f"\nopen it in Python:  actkit.open_cube({run!r})")


def print_cube(cube: xr.Dataset, more: Sequence[tuple[str, str]] = ()) -> None:
    """Print where a complete cube is and what it holds, with more names and values."""
    files = find_cube(cube.encoding["source"])
    size = readable_bytes(stored_bytes(files))
    print_pairs([("cube", str(files)), ("shape", shape(cube)), ("on disk", size), *more, *losses(cube)])


def print_pairs(rows: Rows) -> None:
    """Print names and values in two aligned columns."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(printable(f"{name:<{width}}  {value}"))


def print_table(values: xr.DataArray) -> None:
    """Print a layer × language table."""
    languages = [str(name) for name in values.language.values]
    print(printable("  ".join(["layer", *(f"{name:>12}" for name in languages)])))
    for layer, row in zip(values.layer.values, values.transpose("layer", "language").values, strict=True):
        print("  ".join([f"{layer:>5}", *(f"{value:>12,.2f}" for value in row)]))


def print_measures(result: xr.Dataset, columns: Mapping[str, str]) -> None:
    """Print measures by layer as a table; columns without any value are left out.

    Parameters
    ----------
    result
        Variables with dims ``(layer,)``.
    columns
        Variables to print, with their headings.
    """
    shown = {name: heading for name, heading in columns.items() if bool(result[name].notnull().any())}
    print(printable("  ".join(["layer", *(f"{heading:>10}" for heading in shown.values())])))
    for row, layer in enumerate(result.layer.values.tolist()):
        cells = [f"{float(result[name][row]):>10.4g}" for name in shown]
        print(printable("  ".join([f"{layer:>5}", *cells])))
