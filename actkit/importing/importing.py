"""Import a folder of files, all of it or nothing."""

import shutil
from collections.abc import Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import xarray as xr
from tqdm import tqdm

from ..errors import Fault, InputError
from ..layers import Spec
from ..sources import NO_LANGUAGE
from ..store.reading import open_cube
from ..store.runs import check_folder
from ..store.writing import fsync, storage_errors
from .chunks import read_batches, read_npz
from .found import PATTERNS, Found
from .joining import Known, from_files, join
from .writing import write_found

FORMATS = tuple(PATTERNS)


def import_files(
    folder: str | Path,
    *,
    format: str,
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
    """Make a cube of files that another script wrote, or :func:`actkit.export`.

    Parameters
    ----------
    folder
        With the files.
    format
        ``pt``: PyTorch, ``layer_checkpoints/layer_{l}_{language}.pt`` or
        ``activations_{language}_all_layers.pt``. ``npz``: ``layer_{l}/chunk_{k}.npz``. ``batches``: the last
        content token of each sample, ``layer_{l}_batch_{k}.npz``.
    out
        Run folder to make; nothing is there until all of it is.
    layers, languages
        Which of those that the files have; all by default. Only ``pt`` names languages.
    model
        Name of the model, where the files tell none or a wrong one.
    language
        That of all samples, where the files name none (``npz``, ``batches``).
    data
        File with a row for each sample: its text, and labels. A row belongs to the sample of its name and
        language; in ``npz``, which names no samples, to the one at its place.
    text_column, text_columns, language_column, id_column, labels
        Columns of ``data``, as for an extraction.

    Returns
    -------
    xarray.Dataset
        The cube, as :func:`actkit.open_cube` gives it. Every token counts as text, and position 0 not as
        content: the files do not say what tokens are.

    Raises
    ------
    InputError
        With every fault of options, files and data; nothing was written.
    StorageError
        Where the disk refuses.

    Notes
    -----
    Values are kept exactly, as float32. No pickle is executed. Memory holds one window of all layers, which
    is 0.5 GB at most unless one sample is larger, what is read of one layer of it, and 5 bytes for each
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
    found, known = None, None
    if not folder.is_dir():
        faults.append(Fault(str(folder), "is no folder", "check the path"))
    elif format in FORMATS:
        found, more = _read(folder, format, layers, languages, language)
        faults += more
    if found is not None:
        known, more = from_files(found)
        faults += more
    if found is not None and known is not None and data is not None:
        known, more = join(found, known, {"data": str(data), **columns})
        faults += more
    if faults or found is None or known is None:
        raise InputError(faults, f"cannot import {folder}")
    attrs: dict[str, str | int] = {
        "model": model or str(found.said.get("model", "unknown")),
        "imported_from": folder.name,
        "imported_format": format,
        "actkit_version": version("actkit"),
    }
    with closing(found.reader):
        _write(out, found, known, attrs)
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
    if out.exists():
        faults.append(Fault("out", f"{out} is there already", "name a new folder"))
    else:
        faults += check_folder(out)
    if format == "pt" and language is not None:
        faults.append(Fault("language", "is in the names of pt files", "leave it out"))
    if format != "pt" and languages is not None:
        faults.append(Fault("languages", f"{format} files name none", "leave it out, or give `language`"))
    faults += [
        Fault(name, "is a column of `data`, which is not given", "give `data`, or leave it out")
        for name, value in columns.items()
        if value is not None and data is None
    ]
    return faults


def _read(
    folder: Path, format: str, layers: Spec, languages: Sequence[str] | None, language: str | None
) -> tuple[Found | None, list[Fault]]:
    """Look at a folder."""
    looks = [name for name, patterns in PATTERNS.items() if any(map(any, map(folder.glob, patterns)))]
    if format not in looks:
        what = f"holds no {' and no '.join(PATTERNS[format])}"
        mend = f"it looks like {' or '.join(looks)}" if looks else "check the path"
        return None, [Fault(str(folder), what, mend)]
    if format == "pt":
        from .tensors import read_pt

        return read_pt(folder, layers, languages)
    read = read_npz if format == "npz" else read_batches
    return read(folder, language or NO_LANGUAGE, layers)


def _write(out: Path, found: Found, known: Known, attrs: dict[str, str | int]) -> None:
    """Write under another name, and give the folder its own when all of it is there."""
    building = out.with_name(f".{out.name}.partial")
    with storage_errors("cannot import to", "nothing of it was kept"):
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        try:
            # shown at a terminal alone
            with tqdm(total=len(found.lengths), unit=" samples", disable=None) as bar:
                write_found(building, found, known, attrs, bar.update)
            building.rename(out)
            fsync(out.parent)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
