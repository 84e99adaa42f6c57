"""Create a cube, write its windows, commit them: in this order, each safely on disk before the next."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.core.array_spec import ArrayConfig

from ..errors import StorageError
from ..planning import Plan
from ..schema import FORMAT, VARIABLES, label
from .layout import (
    CHECKSUM,
    CUBE,
    array_of,
    create_array,
    metadata_checksum,
    open_group,
    shard_of,
    shard_region,
    shards,
)

CREATING = CUBE + ".creating"


@contextmanager
def storage_errors(doing: str) -> Iterator[None]:
    """Turn what the operating system refuses into a :class:`StorageError` that says what was done."""
    try:
        yield
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        raise StorageError(
            f"{doing}{where}: {error.strerror or error}; committed windows are safe, rerun to continue"
        ) from error


def create_cube(
    run: Path,
    plan: Plan,
    *,
    variables: Sequence[str],
    coords: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    attrs: Mapping[str, str | int | float | bool],
) -> None:
    """Write an empty cube with all its coordinates, then put it in its place.

    Parameters
    ----------
    run
        The run folder, which exists.
    plan
        Its shape, window, chunk and batches are used.
    variables
        Names of the data variables to allocate.
    coords
        Values of the coordinates of ``schema.VARIABLES``, `committed` and `batch` excepted.
    labels
        Values of the label columns, dims ``(sample,)``.
    attrs
        JSON scalars that say how the cube was made.

    Raises
    ------
    StorageError
        Where the disk refuses.
    """
    building = run / CREATING
    declared = [VARIABLES[name] for name in variables]
    values = {
        **coords,
        "batch": plan.batches,
        "committed": np.zeros(plan.shape.sample, dtype=bool),
        **labels,
    }
    declared += [VARIABLES.get(name) or label(name, _dtype_name(array)) for name, array in values.items()]
    # other xarray readers go by this attribute
    coordinates = " ".join(name for name in values if name not in vars(plan.shape))
    with storage_errors("cannot create the cube in"):
        shutil.rmtree(building, ignore_errors=True)
        group = zarr.create_group(building, zarr_format=3)
        for variable in declared:
            array = create_array(
                group,
                variable,
                vars(plan.shape),
                window=plan.window,
                chunk=plan.chunk,
                attrs={"label": True} if variable.name in labels else {},
            )
            if variable.name in values and variable.name != "committed":
                array[:] = _storable(values[variable.name])
        arrays = [variable.name for variable in declared]
        described = {
            "actkit_format": FORMAT,
            **attrs,
            "arrays": json.dumps(arrays),
            "coordinates": coordinates,
        }
        group.update_attributes({**described, CHECKSUM: metadata_checksum(building, arrays, described)})
        for folder, _, files in os.walk(building, topdown=False):
            for name in [*files, ""]:
                _fsync(Path(folder) / name)
        building.rename(run / CUBE)
        _fsync(run)


class CubeWriter:
    """Writes whole windows of one cube.

    Parameters
    ----------
    path
        The ``.zarr`` folder.
    plan
        The plan that the cube was created with.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path = path
        self._plan = plan
        group = open_group(path, mode="r+")
        # this setting is not stored: without it, a shard of zeros would be no file at all
        every = ArrayConfig.from_dict({"write_empty_chunks": True})
        self._committed = array_of(group, "committed").with_config(every)
        self._arrays = {
            name: array_of(group, name).with_config(every)
            for name, variable in VARIABLES.items()
            if variable.by_window and name in group
        }

    def recover(self) -> list[int]:
        """Remove what a kill left half-written, and tell which windows are still to be computed.

        A committed window any of whose shards is missing or empty is taken back.
        """
        with storage_errors("cannot recover"):
            for partial in self.path.rglob("*.partial"):
                partial.unlink()
            flags = {shard.window: shard for shard in shards(self.path, self._committed)}
            present = {
                window for window, shard in flags.items() if shard.path.is_file() and self._flag(window)
            }
            lost = {
                shard.window
                for array in self._arrays.values()
                for shard in shards(self.path, array)
                if shard.window in present and not _holds_bytes(shard.path)
            }
            for window in lost:
                flags[window].path.unlink()
        return [window for window in range(self._plan.n_windows) if window not in present - lost]

    def write(self, window: int, values: Mapping[str, np.ndarray]) -> int:
        """Write and commit one window.

        Parameters
        ----------
        window
            Its index.
        values
            For every data variable of the cube, the window's part.

        Returns
        -------
        int
            Bytes that reached the disk.

        Raises
        ------
        StorageError
            Where the disk refuses; the window is then not committed.
        """
        samples = self._plan.samples_of(window)
        written = []
        with storage_errors(f"cannot write window {window}"):
            for name, array in self._arrays.items():
                array[shard_region(array, window)] = values[name]
                written.append(shard_of(self.path, array, window).path)
            for path in written:
                _fsync(path)
            for folder in {path.parent for path in written}:
                _fsync(folder)
            self._committed[samples.start : samples.stop] = np.ones(len(samples), dtype=bool)
            flag = shard_of(self.path, self._committed, window).path
            _fsync(flag)
            _fsync(flag.parent)
        return sum(path.stat().st_size for path in written)

    def _flag(self, window: int) -> bool:
        samples = self._plan.samples_of(window)
        try:
            return bool(np.all(self._committed[samples.start : samples.stop]))
        except ValueError:  # a damaged flag commits nothing
            return False


def _holds_bytes(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _dtype_name(array: np.ndarray) -> str:
    return "str" if array.dtype == object else array.dtype.name


def _storable(array: np.ndarray) -> Any:
    return array.astype(np.dtypes.StringDType()) if array.dtype == object else array


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
