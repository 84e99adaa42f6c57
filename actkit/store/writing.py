"""Create a cube, write its windows, commit them: in this order, each safely on disk before the next."""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import zarr
from zarr.core.array_spec import ArrayConfig

from ..errors import StorageError
from ..planning import Plan
from ..schema import DIMS, FORMAT, VARIABLES, label
from .checking import read_committed, shard_faults
from .layout import CUBE, Array, array_of, create_array, open_group, seal, shard_region, shards
from .ragged import Ragged
from .shard_files import PARTIAL, ShardWriter

# a user may have set another one for reading; zarrs truncates in place, and leaves out empty chunks
_PIPELINE = {"codec_pipeline.path": "zarr.core.codec_pipeline.BatchedCodecPipeline"}
CREATING = CUBE + ".creating"
ROW_COORDS = ("sample_id", "language", "text")


@contextmanager
def storage_errors(doing: str, kept: str = "committed windows are safe, rerun to continue") -> Iterator[None]:
    """Turn what the operating system refuses into a :class:`StorageError`.

    Parameters
    ----------
    doing
        What was done.
    kept
        What of it is there, and how to go on.
    """
    try:
        yield
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        raise StorageError(f"{doing}{where}: {error.strerror or error}; {kept}") from error


def create_cube(
    run: Path,
    plan: Plan,
    *,
    variables: Sequence[str],
    coords: Mapping[str, np.ndarray],
    labels: Mapping[str, str],
    rows: Iterable[Mapping[str, np.ndarray]],
    attrs: Mapping[str, str | int | float | bool],
) -> None:
    """Write an empty cube with the coordinates that are known, then put it in its place.

    Parameters
    ----------
    run
        The run folder, which exists.
    plan
        Its shape, window, chunk and batches are used.
    variables
        Names of the variables that are written by window.
    coords
        Values of coordinates of ``schema.VARIABLES``, whole.
    labels
        The label columns: name to dtype.
    rows
        Values of ``ROW_COORDS`` and of the labels, in blocks of consecutive samples of ``COORD_CHUNK``.
    attrs
        JSON scalars that say how the cube was made.

    Raises
    ------
    StorageError
        Where the disk refuses.
    """
    # a name of its own: after an error zarr's threads may still be writing where the last attempt built
    building = run / CREATING / uuid4().hex
    names = [*coords, "batch", "committed", *ROW_COORDS]
    declared = [VARIABLES[name] for name in (*variables, *names)]
    declared += [label(name, dtype) for name, dtype in labels.items()]
    with storage_errors("cannot create the cube in"), zarr.config.set(_PIPELINE):
        shutil.rmtree(run / CREATING, ignore_errors=True)
        group = zarr.create_group(building, zarr_format=3)
        arrays = {
            variable.name: create_array(
                group,
                variable,
                vars(plan.shape_of(variable)),
                window=plan.window,
                chunk=plan.chunk_of(variable),
                attrs={"label": True} if variable.name in labels else {},
            )
            for variable in declared
        }
        for name, values in {**coords, "batch": plan.batches}.items():
            arrays[name][:] = values
        _write_rows({name: arrays[name] for name in (*ROW_COORDS, *labels)}, rows)
        # other xarray readers go by this attribute
        listed: dict[str, list[str]] = {}
        for variable in declared:
            short = variable.name.rsplit("/", 1)[-1]
            if variable.coord and short not in DIMS:
                listed.setdefault(variable.group, []).append(short)
        groups = list(dict.fromkeys(variable.group for variable in declared if variable.group))
        for name in groups:
            group.require_group(name).update_attributes({"coordinates": " ".join(listed.get(name, []))})
        described = {"actkit_format": FORMAT, **attrs, "coordinates": " ".join(listed[""])}
        seal(building, group, [*(variable.name for variable in declared), *groups], described)
        for folder, _, files in os.walk(building, topdown=False):
            for name in [*files, ""]:
                fsync(Path(folder) / name)
        building.rename(run / CUBE)
        fsync(run)
    shutil.rmtree(run / CREATING, ignore_errors=True)


def _write_rows(arrays: Mapping[str, Array], rows: Iterable[Mapping[str, np.ndarray]]) -> None:
    start = 0
    for block in rows:
        stop = start + len(block["text"])
        for name, array in arrays.items():
            array[start:stop] = storable(block[name])
        start = stop


class CubeWriter:
    """Writes whole windows of one cube.

    Parameters
    ----------
    path
        The ``.zarr`` folder.
    plan
        The plan that the cube was created with.
    threads
        How many threads compress.
    """

    def __init__(self, path: Path, plan: Plan, *, threads: int = 1) -> None:
        self.path = path
        self._plan = plan
        self._shards = ShardWriter(threads)
        self._group = open_group(path, mode="r+")
        self._committed = self._open("committed")
        self._arrays = {
            name: self._open(name)
            for name, variable in VARIABLES.items()
            if variable.by_window and name in self._group
        }
        self._files = {
            name: [shard.path for shard in shards(path, array)]
            for name, array in {**self._arrays, "committed": self._committed}.items()
        }

    def recover(self) -> list[int]:
        """Remove what a kill left half-written, and tell which windows are still to be computed.

        A committed window any of whose shards is missing or empty is taken back.
        """
        with storage_errors("cannot recover"):
            for partial in self.path.rglob(f"*{PARTIAL}"):
                if partial.is_file():
                    partial.unlink()
            committed, _ = read_committed(self.path, self._group)
            flags = self._files["committed"]
            present = {window for window in range(len(flags)) if committed[window * self._plan.window]}
            lost = {
                window
                for window in present
                if not all(_holds_bytes(self._files[name][window]) for name in self._arrays)
            }
            for window in lost:
                flags[window].unlink()
            fsync(flags[0].parent)
        return [window for window in range(len(flags)) if window not in present - lost]

    def restore(
        self,
        coords: Mapping[str, np.ndarray],
        labels: Iterable[str],
        rows: Iterable[Mapping[str, np.ndarray]],
    ) -> list[str]:
        """Write again the coordinates whose files are missing or damaged, and return their names.

        Parameters
        ----------
        coords, labels, rows
            As for :func:`create_cube`; the rows are asked for only where one of theirs is damaged.
        """
        whole = {**coords, "batch": self._plan.batches}
        restored = []
        with storage_errors("cannot restore the coordinates"):
            for name in (*whole, *ROW_COORDS, *labels):
                array = self._open(name)
                files = list(shards(self.path, array))
                if not shard_faults(array, files):
                    continue
                for file in files:
                    file.path.unlink(missing_ok=True)
                if name in whole:
                    array[:] = whole[name]
                restored.append(name)
            by_row = [name for name in restored if name not in whole]
            if by_row:
                _write_rows({name: self._open(name) for name in by_row}, rows)
            for name in restored:
                for file in shards(self.path, self._open(name)):
                    fsync(file.path)
                fsync(self.path / name)
        return restored

    def write(self, window: int, values: Mapping[str, np.ndarray | Ragged]) -> int:
        """Write and commit one window.

        Parameters
        ----------
        window
            Its index.
        values
            For every variable of the cube that is written by window, the window's part; ragged where it
            holds a vector for each token.

        Returns
        -------
        int
            Bytes that reached the disk.

        Raises
        ------
        StorageError
            Where the disk refuses. The window is then not committed, unless it refused only after the
            flags were in place: what they stand for is safe.
        """
        samples = self._plan.samples_of(window)
        files = {name: paths[window] for name, paths in self._files.items()}
        flag = files.pop("committed")
        with storage_errors(f"cannot write window {window}"):
            # zarr reads what lies there before it writes a window that is not full
            for path in [flag, *files.values()]:
                path.unlink(missing_ok=True)
            for name, array in self._arrays.items():
                part = values[name]
                if isinstance(part, Ragged):
                    self._shards.write(files[name], array, part)
                else:
                    array[shard_region(array, window)] = storable(part)
                    fsync(files[name])
            for path in files.values():
                fsync(path.parent)
            self._committed[samples.start : samples.stop] = np.ones(len(samples), dtype=bool)
            fsync(flag)
            fsync(flag.parent)
        return sum(path.stat().st_size for path in files.values())

    def close(self) -> None:
        """End its threads."""
        self._shards.close()

    def _open(self, name: str) -> Array:
        # this setting is not stored: without it, a shard of zeros would be no file at all
        with zarr.config.set(_PIPELINE):
            array = array_of(self._group, name)
            return array.with_config(ArrayConfig.from_dict({"write_empty_chunks": True}))


def _holds_bytes(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def storable(array: np.ndarray) -> Any:
    """Return an array as zarr takes it: strings of any length are no objects."""
    return array.astype(np.dtypes.StringDType()) if array.dtype == object else array


def fsync(path: Path) -> None:
    """Return once a file or folder is safely on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
