"""Creation of cubes, and writing and committing of windows, each step flushed to disk before the next."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import MappingProxyType
from uuid import uuid4

import numpy as np
import zarr

from ..batch_plan import Plan
from ..errors import Fault, StorageError
from ..schema import DIMS, FORMAT, VARIABLES, Variable, label, label_attrs, with_dtype
from .commits import place_files, written
from .cube_files import RemoteCube, file_entry, files_of
from .folders import Folder
from .layout import CUBE, Array, array_names, array_of, create_array, open_group, seal, shards
from .metadata import CHECKSUM, METADATA
from .object_folder import Upload
from .partial_files import Partial, fsync
from .ragged import Ragged
from .receipts import RECEIPTS, Receipt, read_receipt, receipt_name
from .shard_files import PIPELINE, ShardWriter, encoded, in_memory, storable
from .verification import shard_faults

CREATING = CUBE + ".creating"
ROW_COORDS = ("sample_id", "language", "text")
_NO_DTYPES: Mapping[str, str] = MappingProxyType({})
_KEPT = "committed windows are safe, rerun to continue"


@contextmanager
def storage_errors(failed: str, kept: str = _KEPT) -> Iterator[None]:
    """Turn errors of the operating system into a :class:`StorageError`.

    Parameters
    ----------
    failed
        Start of the message, which says what failed.
    kept
        End of the message, which says what was kept and how to continue. It replaces the default in errors
        raised within, because committed windows are lost if the caller removes their folder.
    """
    try:
        yield
    except StorageError as error:
        message, default, _ = str(error).rpartition(_KEPT)
        if default and kept != _KEPT:
            raise StorageError(message + kept) from error
        raise
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        where += "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        raise StorageError(f"{failed}{where}: {error.strerror or error}; {kept}") from error


def create_cube(
    run: Path | Folder,
    plan: Plan,
    *,
    variables: Sequence[str],
    coords: Mapping[str, np.ndarray],
    labels: Mapping[str, str],
    rows: Iterable[Mapping[str, np.ndarray]],
    attrs: Mapping[str, str | int | float | bool],
    dtypes: Mapping[str, str] = _NO_DTYPES,
    shared: bool = False,
) -> None:
    """Create a cube that holds its coordinates but no windows; it appears only once it is complete.

    Parameters
    ----------
    run
        The existing run folder; a :class:`Folder` if another process could take its path.
    plan
        Plan that determines the shape, windows, chunks and batches.
    variables
        Names of the variables that are written by window.
    coords
        Values of coordinates of ``schema.VARIABLES`` for all samples.
    labels
        Label columns: name to dtype, as in :attr:`actkit.labels.LabelType.dtype`.
    rows
        Values of ``ROW_COORDS`` and of the labels, in blocks of ``COORD_CHUNK`` consecutive samples.
    attrs
        JSON scalars that describe how the cube was made.
    dtypes
        Dtypes of variables that may have several, by name.
    shared
        Whether other processes may create the cube at the same time. The first one does; the caller must
        compare the cube that is there afterwards with its own.

    Raises
    ------
    StorageError
        If the disk cannot be written, or the folder no longer exists.
    """
    # a unique name, because after an error zarr's threads may still be writing to that of the last attempt
    temporary = f"{CREATING}/{uuid4().hex}"
    declared = [with_dtype(name, dtypes) for name in (*variables, *coords, "batch", "committed", *ROW_COORDS)]
    declared += [label(name, dtype) for name, dtype in labels.items()]
    with ExitStack() as stack:
        stack.enter_context(storage_errors("cannot create the cube in"))
        stack.enter_context(zarr.config.set(PIPELINE))
        folder = run if isinstance(run, Folder) else stack.enter_context(closing(Folder(run)))
        folder.check()
        building = folder.path_to(temporary)
        if not shared:
            folder.remove_tree(CREATING)
        group = zarr.create_group(building, zarr_format=3)
        arrays = _create_arrays(group, declared, plan, labels)
        for name, values in {**coords, "batch": plan.batches}.items():
            arrays[name][:] = values
        _write_rows({name: arrays[name] for name in (*ROW_COORDS, *labels)}, rows)
        _write_attributes(building, group, declared, attrs)
        _write_coordinate_receipt(building, group, declared)
        fsync_tree(building)
        try:
            folder.rename(temporary, CUBE)  # never replaces a folder that holds files
        except OSError:
            if not shared or folder.size(f"{CUBE}/{METADATA}") < 0:
                raise
        folder.sync()
        folder.remove_tree(temporary if shared else CREATING)


def _create_arrays(
    group: zarr.Group, variables: Sequence[Variable], plan: Plan, labels: Mapping[str, str]
) -> dict[str, Array]:
    return {
        variable.name: create_array(
            group,
            variable,
            vars(plan.shape_of(variable)),
            window=plan.window,
            chunk=plan.chunk_of(variable),
            attrs=label_attrs(labels[variable.name]) if variable.name in labels else {},
        )
        for variable in variables
    }


def _write_attributes(
    path: Path,
    group: zarr.Group,
    variables: Sequence[Variable],
    attrs: Mapping[str, str | int | float | bool],
) -> None:
    """Write the attributes of a new cube and of its groups, and its seal."""
    # other readers find coordinates through the attribute `coordinates`
    coordinates: dict[str, list[str]] = {"": [], **{variable.group: [] for variable in variables}}
    for variable in variables:
        name = variable.name.rpartition("/")[2]
        if variable.coord and name not in DIMS:
            coordinates[variable.group].append(name)
    groups = [name for name in coordinates if name]
    for name in groups:
        group.require_group(name).update_attributes({"coordinates": " ".join(coordinates[name])})
    root_attrs = {"actkit_format": FORMAT, **attrs, RECEIPTS: True, "coordinates": " ".join(coordinates[""])}
    seal(path, group, [*(variable.name for variable in variables), *groups], root_attrs)


def _write_coordinate_receipt(path: Path, group: zarr.Group, variables: Sequence[Variable]) -> None:
    """Write the receipt of the arrays that are complete when a cube is created."""
    complete = [
        variable.name for variable in variables if not variable.by_window and variable.name != "committed"
    ]
    files = [shard for name in complete for shard in shards(path, array_of(group, name))]
    receipt = Receipt(str(group.attrs[CHECKSUM]), {str(shard): file_entry(shard.path) for shard in files})
    (path / receipt_name(None)).write_bytes(receipt.content())


def fsync_tree(path: Path) -> None:
    """Flush a folder and everything in it to disk."""
    for folder, _, files in os.walk(path, topdown=False):
        for name in [*files, ""]:
            fsync(Path(folder) / name)


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
        The ``.zarr`` folder, or its files in an object store.
    plan
        The plan with which the cube was created.
    threads
        Number of threads that compress.
    """

    def __init__(self, path: Path | RemoteCube, plan: Plan, *, threads: int = 1) -> None:
        self.path = path
        root = files_of(path).root
        self._plan = plan
        self._shards = ShardWriter(threads)
        with storage_errors("cannot open"):
            self._folder = path.folder if isinstance(path, RemoteCube) else Folder(path)
        self._group = open_group(path)
        self.seal = str(self._group.attrs[CHECKSUM])
        self._root = self._folder.read(METADATA, -1)
        self._check()
        present = {*array_names(self._group)}
        self._arrays = {
            name: array_of(self._group, name)
            for name, variable in VARIABLES.items()
            if variable.by_window and name in present
        }
        self._files = {
            name: [str(shard) for shard in shards(root, array)] for name, array in self._arrays.items()
        }
        flags = array_of(self._group, "committed")
        self._flag_files = [str(shard) for shard in shards(root, flags)]
        self._flags = {
            len(plan.samples_of(window)): encoded(flags, window, np.ones(len(plan.samples_of(window)), bool))
            for window in {0, plan.n_windows - 1}
        }

    def recover(self) -> list[int]:
        """Remove unfinished files of ended processes, and return the windows that remain to be computed.

        A committed window that lacks files, or whose receipt lists other files or another cube, is revoked.
        Files that other processes are writing are left alone.
        """
        with storage_errors("cannot recover"):
            self._folder.sweep()
            with self._committing():
                present = {window for window in range(self._plan.n_windows) if self._is_committed(window)}
                lost = {window for window in present if not self._is_whole(window)}
                for window in lost:
                    self._folder.remove(self._flag_files[window])
                self._folder.sync("committed")
        return [window for window in range(self._plan.n_windows) if window not in present - lost]

    def restore(
        self,
        coords: Mapping[str, np.ndarray],
        labels: Iterable[str],
        rows: Iterable[Mapping[str, np.ndarray]],
    ) -> list[str]:
        """Rewrite coordinates whose files are missing or damaged, and return their names.

        Parameters
        ----------
        coords, labels, rows
            As for :func:`create_cube`; `rows` is iterated only if one of its columns is damaged.
        """
        whole = {**coords, "batch": self._plan.batches}
        with storage_errors("cannot restore the coordinates"):
            self._check()
            arrays = {name: array_of(self._group, name) for name in (*whole, *ROW_COORDS, *labels)}
            receipt = self._receipt(None)
            entries = receipt.files if isinstance(receipt, Receipt) else {}
            damaged = [
                name
                for name, array in arrays.items()
                if self._is_damaged(array, entries if receipt else None)
            ]
            encoding = {name: in_memory(arrays[name]) for name in damaged}
            for name in damaged:
                if name in whole:
                    encoding[name][0][:] = whole[name]
            by_row = {name: encoding[name][0] for name in damaged if name not in whole}
            if by_row:
                _write_rows(by_row, rows)
            for name, (_, stored) in encoding.items():
                contents = {f"{name}/{key}": content.to_bytes() for key, content in stored.items()}
                with written(self._folder, contents) as files:
                    for file in files:
                        file.place()
                    self._folder.sync(name)
                entries = {**entries, **Receipt.of(self.seal, files).files}
            if receipt and damaged:
                with written(self._folder, {receipt_name(None): Receipt(self.seal, entries).content()}) as (
                    file,
                ):
                    file.place()
                    self._folder.sync("committed")
        return damaged

    def write(self, window: int, values: Mapping[str, np.ndarray | Ragged]) -> int:
        """Write and commit one window, unless it is already committed.

        Several processes may write the same window: the first to finish commits its files, and the others
        discard theirs.

        Parameters
        ----------
        window
            Index of the window.
        values
            The window's part of every variable that is written by window; ragged if the variable has a vector
            for each token.

        Returns
        -------
        int
            Bytes committed; 0 if the window had already been committed.

        Raises
        ------
        StorageError
            If the disk cannot be written, or the folder was moved, deleted or replaced. The window is not
            committed, unless the error occurred after its flags were in place; its files are then safe.
        """
        with storage_errors(f"cannot write window {window}"):
            self._check()
            if self._is_committed(window):
                return 0
            with ExitStack() as stack:
                files: list[Partial | Upload] = []
                for name, array in self._arrays.items():
                    file = stack.enter_context(closing(self._folder.partial(self._files[name][window])))
                    files.append(file)
                    part = values[name]
                    if isinstance(part, Ragged):
                        self._shards.write_to(file, array, part)
                    else:
                        file.write(encoded(array, window, part))
                for file in files:  # not one by one: the disk stores one while the next is compressed
                    file.sync()
                return self._commit(window, files)

    def close(self) -> None:
        """Stop the threads, and close the folder."""
        self._shards.close()
        self._folder.close()

    def _commit(self, window: int, files: "list[Partial | Upload]") -> int:
        """Rename the files of a window into place, its receipt and its flags last."""
        contents = {
            receipt_name(window): Receipt.of(self.seal, files).content(),
            self._flag_files[window]: self._flags_of(window),
        }
        with written(self._folder, contents) as (receipt_file, flags_file), self._committing():
            if self._is_committed(window):
                return 0
            place_files(self._folder, files, (receipt_file, flags_file))
        return sum(file.size for file in files)

    @contextmanager
    def _committing(self) -> Iterator[None]:
        """Hold the commit lock of the cube, after checking that it is still the one that was opened."""
        with self._folder.locked("committed"):
            self._check()
            yield

    def _is_damaged(self, array: Array, entries: Mapping[str, tuple[int, str]] | None) -> bool:
        """Return whether files of a coordinate cannot be read, or differ from those in the receipt."""
        files = files_of(self.path)
        expected = list(shards(files.root, array))
        if shard_faults(self.path, array, expected):
            return True
        return entries is not None and any(
            entries.get(str(shard)) != files.file_entry(str(shard)) for shard in expected
        )

    def _check(self) -> None:
        self._folder.check()
        if self._folder.read(METADATA, -1) != self._root:
            what = "now holds another cube; rerun into another folder"
            raise StorageError(f"{self.path}: {what}")

    def _is_committed(self, window: int) -> bool:
        return self._folder.read(self._flag_files[window], self._plan.window + 5) == self._flags_of(window)

    def _flags_of(self, window: int) -> bytes:
        return self._flags[len(self._plan.samples_of(window))]

    def _receipt(self, window: int | None) -> Receipt | Fault | None:
        """Return the receipt of a window or of the coordinates, or a fault if it is damaged or foreign."""
        receipt = read_receipt(self._folder, window, promised=bool(self._group.attrs.get(RECEIPTS)))
        return receipt.fault(self.seal, window) or receipt if isinstance(receipt, Receipt) else receipt

    def _is_whole(self, window: int) -> bool:
        """Return whether a window has all the files that its receipt lists, in the sizes listed."""
        receipt = self._receipt(window)
        if isinstance(receipt, Fault):
            return False
        sizes = {paths[window]: self._folder.size(paths[window]) for paths in self._files.values()}
        if receipt is None:
            return min(sizes.values()) > 0
        return sizes == {name: size for name, (size, _) in receipt.files.items()}
