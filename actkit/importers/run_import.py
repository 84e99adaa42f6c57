"""Import of a folder of files, which either completes or leaves nothing behind."""

from collections.abc import Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import xarray as xr
from tqdm import tqdm

from ..errors import Fault, InputError
from ..layer_spec import Spec
from ..sources import NO_LANGUAGE
from ..store.new_folders import new_folder, path_faults
from ..store.reader import open_cube
from ..store.run_folder import check_folder
from ..store.writer import storage_errors
from .cube_output import write_contents
from .folder_contents import PATTERNS, FolderContents, digest
from .npz import read_batches, read_npz
from .sample_metadata import SampleMetadata, from_files, join

Format = Literal["pt", "npz", "batches"]
FORMATS: tuple[Format, ...] = get_args(Format)


def import_files(
    folder: str | Path,
    *,
    format: Format,
    out: str | Path,
    layers: Spec = "all",
    languages: Sequence[str] | None = None,
    model: str | None = None,
    language: str | None = None,
    data: str | Path | None = None,
    text_column: str | None = None,
    text_columns: dict[str, str] | str | None = None,
    language_column: str | None = None,
    id_column: str | None = None,
    labels: tuple[str, ...] | str | None = None,
) -> xr.Dataset:
    """Convert files written by another script, or by :func:`actkit.export`, into a cube.

    Parameters
    ----------
    folder
        Folder that holds the files.
    format
        ``pt``: PyTorch, ``layer_checkpoints/layer_{l}_{language}.pt`` or
        ``activations_{language}_all_layers.pt``. ``npz``: ``layer_{l}/chunk_{k}.npz``. ``batches``: the last
        content token of each sample, ``layer_{l}_batch_{k}.npz``.
    out
        Run folder to create; it appears only once it is complete.
    layers, languages
        Layers and languages to import; all by default. Only ``pt`` files name languages.
    model
        Name of the model, if the files give none or a wrong one.
    language
        Language of all samples, if the files name none (``npz``, ``batches``).
    data
        File with one row per sample: its text and labels. Rows are matched to samples by id and language, or
        by position for ``npz``, which names no samples.
    text_column, text_columns, language_column, id_column, labels
        Columns of ``data``, as for an extraction.

    Returns
    -------
    xarray.Dataset
        The cube, as :func:`actkit.open_cube` returns it. Every token counts as text, and position 0 does not
        count as content, because the files do not record token kinds.

    Raises
    ------
    InputError
        Every fault of options, files and data; nothing was written.
    StorageError
        If the disk cannot be written.

    Notes
    -----
    Values are kept exactly, as float32. No pickle is executed. Peak memory is one window of all layers (at
    most 0.5 GB unless a single sample is larger), the part of one layer being read, and 5 bytes for each
    position of all samples.

    Examples
    --------
    >>> import actkit
    >>> from actkit.testing import write_cube
    >>> run = write_cube(n_samples=4)
    >>> files = actkit.export(run, run / "files", format="npz")
    >>> dict(actkit.import_files(files, format="npz", out=run / "back").sizes)
    {'layer': 3, 'sample': 4, 'token': 5, 'hidden': 16}
    """
    folder, out = Path(folder), Path(out)
    columns = {
        "text_column": text_column,
        "text_columns": text_columns,
        "language_column": language_column,
        "id_column": id_column,
        "labels": labels,
    }
    faults = _option_faults(format, out, languages, language, data, columns)
    contents, metadata = None, None
    if not folder.is_dir():
        faults.append(Fault(str(folder), "is not a folder", "check the path"))
    elif format in FORMATS:
        contents, more = _read(folder, format, layers, languages, language)
        faults += more
    if contents is not None:
        metadata, more = from_files(contents)
        faults += more
    if contents is not None and metadata is not None and data is not None:
        metadata, more = join(contents, metadata, {"data": str(data), **columns})
        faults += more
    if faults or contents is None or metadata is None:
        raise InputError(faults, f"cannot import {folder}")
    attrs: dict[str, str | int] = {
        "model": model or str(contents.attrs.get("model", "unknown")),
        "imported_from": folder.name,
        "imported_format": format,
        # distinguishes cubes with different values, so that summaries of one are not used for another
        "imported_sha256": digest(folder, contents.files),
        "actkit_version": version("actkit"),
    }
    with closing(contents.reader):
        _write(out, contents, metadata, attrs)
    return open_cube(out)


def _option_faults(
    format: str,
    out: Path,
    languages: Sequence[str] | None,
    language: str | None,
    data: object,
    columns: dict[str, Any],
) -> list[Fault]:
    faults = []
    if format not in FORMATS:
        faults.append(Fault("format", f"{format!r} is unknown", f"one of {', '.join(FORMATS)}"))
    faults += path_faults(out) or check_folder(out)
    if format == "pt" and language is not None:
        faults.append(Fault("language", "is in the names of pt files", "leave it out"))
    if format != "pt" and languages is not None:
        faults.append(
            Fault("languages", f"{format} files do not name languages", "leave it out, or give `language`")
        )
    faults += [
        Fault(name, "is a column of `data`, which is not given", "give `data`, or leave it out")
        for name, value in columns.items()
        if value is not None and data is None
    ]
    return faults


def _read(
    folder: Path, format: str, layers: Spec, languages: Sequence[str] | None, language: str | None
) -> tuple[FolderContents | None, list[Fault]]:
    """Check a folder of the format that was requested."""
    formats = [name for name, patterns in PATTERNS.items() if any(map(any, map(folder.glob, patterns)))]
    if format not in formats:
        what = f"holds no {' and no '.join(PATTERNS[format])}"
        hint = f"it looks like {' or '.join(formats)}" if formats else "check the path"
        return None, [Fault(str(folder), what, hint)]
    if format == "pt":
        from .pt import read_pt

        return read_pt(folder, layers, languages)
    read = read_npz if format == "npz" else read_batches
    return read(folder, language or NO_LANGUAGE, layers)


def _write(
    out: Path, contents: FolderContents, metadata: SampleMetadata, attrs: dict[str, str | int]
) -> None:
    """Write the run under a temporary name, and rename it once it is complete."""
    with (
        storage_errors(f"cannot import to {out}", "nothing was kept"),
        new_folder(out) as building,
        # shown only in a terminal
        tqdm(total=len(contents.lengths), unit=" samples", disable=None) as bar,
    ):
        write_contents(building, contents, metadata, attrs, bar.update)
