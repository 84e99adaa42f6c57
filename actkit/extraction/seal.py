"""Completion of a run that was computed in parts."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ..errors import CorruptError, CubeError, Fault, IncompleteError
from ..object_urls import is_url
from ..options import Options
from ..store.cube_files import RemoteCube
from ..store.folders import Folder
from ..store.layout import CUBE, array_of, cube_path, open_group
from ..store.parts import Part, combined_status, is_ended, locked_if_possible, part_state, read_parts
from ..store.reader import open_cube
from ..store.remote_run import RemoteRun
from ..store.run_folder import CONFIG, SCAN, read_status, write_status
from ..store.shared_writer import remove_unfinished
from ..store.verification import read_committed, verify
from ..store.writer import storage_errors
from ..yaml_files import read_yaml
from .monitoring.label_counts import LabelCounts
from .monitoring.run_log import log_file, logger


def seal(run: str | Path, *, quick: bool = False) -> xr.Dataset:
    """Finish a run that was computed in parts, after checking that it is complete and intact.

    Parameters
    ----------
    run
        The run folder, or its URL in an object store.
    quick
        Whether to check only that every file of the cube exists, instead of comparing all bytes with their
        checksums.

    Returns
    -------
    xarray.Dataset
        The complete cube, as :func:`actkit.open_cube` returns it.

    Raises
    ------
    IncompleteError
        If windows are missing; names them and the parts that they belong to.
    CorruptError
        If files are damaged; names each.
    CubeError
        If there is no cube.
    LockedError
        If another process writes the whole run, or seals it.
    StorageError
        If the folder cannot be written.

    Notes
    -----
    Files that killed parts left unfinished are removed. With ``whiten``, the moments are computed from the
    cube. A run that is sealed can be sealed again.
    """
    if is_url(run):
        return _seal_remote(RemoteRun(str(run)), quick=quick)
    path = Path(run)
    cube_path(path)
    path = path.parent if not (path / CUBE).is_dir() else path
    _check_complete(path, path / CUBE, read_parts(path))
    with locked_if_possible(path) as folder, log_file(folder):
        state = "failed"
        try:
            remove_unfinished(path, folder)
            if not quick and (faults := verify(path).faults):
                raise CorruptError(faults)
            open_cube(path)
            _save_moments(path / CONFIG, folder, path / CUBE, {})
            with storage_errors("cannot remove the scan of the rows"):
                folder.remove(SCAN)
            logger.info("sealed")
            state = "done"
        finally:
            with storage_errors("cannot write"):
                write_status(folder, {**_counts(path, path / CUBE), "state": state})
    return open_cube(path)


def _seal_remote(run: RemoteRun, *, quick: bool) -> xr.Dataset:
    """Do the same in an object store, where parts leave no unfinished files."""
    url = run.place.url
    cube = run.cube()
    if cube is None:
        raise CubeError(f"{url}: holds no cube; give the URL of a run with {CUBE} in it")
    with run.settings() as settings:
        _check_complete(url, cube, read_parts(settings))
        with storage_errors("cannot make the folder for the log"):
            run.folder.mkdir(parents=True, exist_ok=True)
        with locked_if_possible(run.folder) as folder, log_file(folder):
            state = "failed"
            try:
                if not quick and (faults := verify(url).faults):
                    raise CorruptError(faults)
                open_cube(url)
                if _save_moments(settings / CONFIG, folder, cube, {"out": url}):
                    run.copy_moments()
                with storage_errors("cannot remove the scan of the rows"):
                    folder.remove(SCAN)
                logger.info("sealed")
                state = "done"
            finally:
                write_status(folder, {**_counts(settings, cube), "state": state})
                run.copy_status(folder, state)
                run.copy_log(folder)
    return open_cube(url)


def _check_complete(
    run: Path | str, cube: Path | RemoteCube, parts: Mapping[Part, Mapping[str, Any]]
) -> None:
    group = open_group(cube)
    committed, faults = read_committed(cube, group)
    if faults:
        raise CorruptError(faults)
    size = array_of(group, "committed").chunks[0]
    missing = np.flatnonzero(~committed[::size]).tolist()
    if missing:
        lines = [f"{run}: {len(missing)} of {-(-len(committed) // size)} windows are missing"]
        raise IncompleteError("\n".join([*lines, *(f"  - {fault}" for fault in _missing(parts, missing))]))


def _missing(parts: Mapping[Part, Mapping[str, Any]], windows: list[int]) -> Iterator[Fault]:
    """Yield a fault for each part that lacks windows; for a run without parts, one for all of them."""
    if not parts:
        yield Fault(_listed(windows), "are missing", "run the extraction again to complete them")
        return
    count = next(iter(parts)).count
    for number in range(1, count + 1):
        part = Part(count, number)
        lost = [window for window in windows if window % count == number - 1]
        if lost:
            state = part_state(parts[part]) if part in parts else "not started"
            where = f" on {parts[part]['host']}" if part in parts else ""
            hint = f"run it with --part {part}" if is_ended(state) else "wait for it"
            yield Fault(f"part {part}", f"{state}{where}, lacks {_listed(lost)}", hint)


def _listed(windows: list[int], most: int = 8) -> str:
    shown = ", ".join(map(str, windows[:most])) + (" …" if len(windows) > most else "")
    return f"window {shown}" if len(windows) == 1 else f"{len(windows)} windows: {shown}"


def _save_moments(config: Path, folder: Folder, cube: Path | RemoteCube, changes: Options) -> bool:
    """Compute the moments of a run that asks for them; return whether it does."""
    options, faults = read_yaml(config, follow=False)
    if faults or not options.get("whiten"):
        return False
    from .loop.moment_accumulator import MomentAccumulator  # imports torch
    from .preflight.preparation import prepare

    prepared = prepare(config, changes)
    folder.check()
    MomentAccumulator(prepared, folder, cube).complete()
    return True


def _counts(run: Path, cube: Path | RemoteCube) -> dict[str, object]:
    """Return what the status of a complete run counts, with the tokens and rates of its parts."""
    group = open_group(cube)
    total = group["committed"].shape[0]  # type: ignore[union-attr]
    counts = LabelCounts(cube, np.ones(total, dtype=bool))
    parts = read_parts(run)
    status = combined_status(parts, dict.fromkeys(parts, "done")) if parts else read_status(run)[0]
    told = {name: value for name, value in status.items() if name not in ("pid", "host", "updated")}
    done = {"samples": total, "total_samples": total, "committed": total, "eta_seconds": None}
    return {**told, **done, "languages": counts.languages, "labels": counts.labels}
