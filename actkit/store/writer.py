"""Create a cube, write its windows, commit them: in this order, each safely on disk before the next."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from uuid import uuid4

import numpy as np
import zarr

from ..batch_plan import Plan
from ..errors import Fault, StorageError
from ..schema import DIMS, FORMAT, VARIABLES, label, label_attrs
from .folders import Folder, Partial
from .layout import CUBE, Array, array_of, create_array, open_group, seal, shards
from .metadata import CHECKSUM, METADATA
from .ragged import Ragged
from .receipts import RECEIPTS, Receipt, file_entry, read_receipt, receipt_name
from .shard_files import PIPELINE, ShardWriter, encoded, in_memory, storable
from .verification import shard_faults

CREATING = CUBE + ".creating"
ROW_COORDS = ("sample_id", "language", "text")
_KEPT = "committed windows are safe, rerun to continue"


@contextmanager
def storage_errors(doing: str, kept: str = _KEPT) -> Iterator[None]:
    """Turn what the operating system refuses into a :class:`StorageError`.

    Parameters
    ----------
    doing
        What was done.
    kept
        What of it is there, and how to go on. It also replaces what errors from within say by default: what
        was committed to a folder that the caller removes is not safe.
    """
    try:
        yield
    except StorageError as error:
        before, found, _ = str(error).rpartition(_KEPT)
        if found and kept != _KEPT:
            raise StorageError(before + kept) from error
        raise
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        where += "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        raise StorageError(f"{doing}{where}: {error.strerror or error}; {kept}") from error


def create_cube(
    run: Path | Folder,
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
        The run folder, which exists; held, where another process could take its path.
    plan
        Its shape, window, chunk and batches are used.
    variables
        Names of the variables that are written by window.
    coords
        Values of coordinates of ``schema.VARIABLES``, whole.
    labels
        The label columns: name to dtype, as :attr:`actkit.labels.LabelType.dtype` names it.
    rows
        Values of ``ROW_COORDS`` and of the labels, in blocks of consecutive samples of ``COORD_CHUNK``.
    attrs
        JSON scalars that say how the cube was made.

    Raises
    ------
    StorageError
        Where the disk refuses, or the folder is not there any more.
    """
    # a name of its own: after an error zarr's threads may still be writing where the last attempt built
    place = f"{CREATING}/{uuid4().hex}"
    names = [*coords, "batch", "committed", *ROW_COORDS]
    declared = [VARIABLES[name] for name in (*variables, *names)]
    declared += [label(name, dtype) for name, dtype in labels.items()]
    with ExitStack() as stack:
        stack.enter_context(storage_errors("cannot create the cube in"))
        stack.enter_context(zarr.config.set(PIPELINE))
        folder = run if isinstance(run, Folder) else stack.enter_context(closing(Folder(run)))
        folder.check()
        building = folder.held(place)
        folder.remove_tree(CREATING)
        group = zarr.create_group(building, zarr_format=3)
        arrays = {
            variable.name: create_array(
                group,
                variable,
                vars(plan.shape_of(variable)),
                window=plan.window,
                chunk=plan.chunk_of(variable),
                attrs=label_attrs(labels[variable.name]) if variable.name in labels else {},
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
        described = {"actkit_format": FORMAT, **attrs, RECEIPTS: True, "coordinates": " ".join(listed[""])}
        seal(building, group, [*(variable.name for variable in declared), *groups], described)
        once = [
            variable.name for variable in declared if not variable.by_window and variable.name != "committed"
        ]
        written = [shard for name in once for shard in shards(building, arrays[name])]
        entries = {str(shard): file_entry(shard.path) for shard in written}
        receipt = Receipt(str(group.attrs[CHECKSUM]), entries)
        (building / receipt_name(None)).write_bytes(receipt.content())
        for built, _, files in os.walk(building, topdown=False):
            for name in [*files, ""]:
                fsync(Path(built) / name)
        folder.rename(place, CUBE)
        folder.sync()
        folder.remove_tree(CREATING)


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
        with storage_errors("cannot open"):
            self._folder = Folder(path)
        self._group = open_group(path)
        self._seal = str(self._group.attrs[CHECKSUM])
        self._root = self._folder.read(METADATA, -1)
        self._check()
        self._arrays = {
            name: array_of(self._group, name)
            for name, variable in VARIABLES.items()
            if variable.by_window and name in self._group
        }
        self._files = {
            name: [str(shard) for shard in shards(path, array)] for name, array in self._arrays.items()
        }
        flags = array_of(self._group, "committed")
        self._flag_files = [str(shard) for shard in shards(path, flags)]
        self._flags = {
            len(plan.samples_of(window)): encoded(flags, window, np.ones(len(plan.samples_of(window)), bool))
            for window in {0, plan.n_windows - 1}
        }

    def recover(self) -> list[int]:
        """Remove what a kill left half-written, and tell which windows are still to be computed.

        A committed window that lacks a file, or whose receipt says that its files are not its own, is taken
        back. What other processes are writing is left alone.
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
        """Write again the coordinates whose files are missing or damaged, and return their names.

        Parameters
        ----------
        coords, labels, rows
            As for :func:`create_cube`; the rows are asked for only where one of theirs is damaged.
        """
        whole = {**coords, "batch": self._plan.batches}
        with storage_errors("cannot restore the coordinates"):
            self._check()
            arrays = {name: array_of(self._group, name) for name in (*whole, *ROW_COORDS, *labels)}
            receipt = self._receipt(None)
            known = receipt.files if isinstance(receipt, Receipt) else {}
            damaged = [
                name
                for name, array in arrays.items()
                if shard_faults(array, shards(self.path, array))
                or (
                    receipt and any(known.get(str(s)) != file_entry(s.path) for s in shards(self.path, array))
                )
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
                with self._written(contents) as files:
                    for file in files:
                        file.place()
                    self._folder.sync(name)
                known = {**known, **Receipt.of(self._seal, files).files}
            if receipt and damaged:
                with self._written({receipt_name(None): Receipt(self._seal, known).content()}) as (file,):
                    file.place()
                    self._folder.sync("committed")
        return damaged

    def write(self, window: int, values: Mapping[str, np.ndarray | Ragged]) -> int:
        """Write and commit one window, unless it is committed.

        Any number of processes may write the same windows: the first to be done commits its files, and the
        others drop theirs.

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
            Bytes that reached the disk and count.

        Raises
        ------
        StorageError
            Where the disk refuses, or the folder was moved, deleted or replaced. The window is then not
            committed, unless that was only after the flags were in place: what they stand for is safe.
        """
        with storage_errors(f"cannot write window {window}"):
            self._check()
            if self._is_committed(window):
                return 0
            with ExitStack() as stack:
                files = []
                for name, array in self._arrays.items():
                    file = stack.enter_context(closing(self._folder.partial(self._files[name][window])))
                    files.append(file)
                    part = values[name]
                    if isinstance(part, Ragged):
                        self._shards.write_to(file, array, part)
                    else:
                        file.write(encoded(array, window, part))
                    file.sync()
                return self._commit(window, files)

    def close(self) -> None:
        """End its threads, and let go of the folder."""
        self._shards.close()
        self._folder.close()

    def _commit(self, window: int, files: list[Partial]) -> int:
        """Put the files of a window in their places, and its flags last."""
        receipt = Receipt.of(self._seal, files).content()
        last = {receipt_name(window): receipt, self._flag_files[window]: self._flags_of(window)}
        with self._written(last) as (receipt_file, flags_file), self._committing():
            if self._is_committed(window):
                return 0
            for file in files:
                file.place()
            for folder in dict.fromkeys(file.name.rpartition("/")[0] for file in files):
                self._folder.sync(folder)
            for file in (receipt_file, flags_file):
                file.place()
                self._folder.sync("committed")
        return sum(file.size for file in files)

    @contextmanager
    def _written(self, contents: Mapping[str, bytes]) -> Iterator[list[Partial]]:
        """Write files under names that do not count; those that are not placed are removed."""
        with ExitStack() as stack:
            files = []
            for name, content in contents.items():
                files.append(stack.enter_context(closing(self._folder.partial(name))))
                files[-1].write(content)
                files[-1].sync()
            yield files

    @contextmanager
    def _committing(self) -> Iterator[None]:
        """Keep others from committing to the same cube, which still is the one that was opened."""
        with self._folder.locked("committed"):
            self._check()
            yield

    def _check(self) -> None:
        self._folder.check()
        if self._folder.read(METADATA, -1) != self._root:
            what = "holds another cube now; rerun into another folder"
            raise StorageError(f"{self.path}: {what}")

    def _is_committed(self, window: int) -> bool:
        return self._folder.read(self._flag_files[window], self._plan.window + 5) == self._flags_of(window)

    def _flags_of(self, window: int) -> bytes:
        return self._flags[len(self._plan.samples_of(window))]

    def _receipt(self, window: int | None) -> Receipt | Fault | None:
        """Return the receipt of a window or of the coordinates, or a fault where it is damaged or foreign."""
        receipt = read_receipt(self._folder, window, promised=bool(self._group.attrs.get(RECEIPTS)))
        return receipt.fault(self._seal, window) or receipt if isinstance(receipt, Receipt) else receipt

    def _is_whole(self, window: int) -> bool:
        """Return whether a window has all the files that its receipt names."""
        receipt = self._receipt(window)
        if isinstance(receipt, Fault):
            return False
        sizes = {paths[window]: self._folder.size(paths[window]) for paths in self._files.values()}
        if receipt is None:
            return min(sizes.values()) > 0
        return sizes == {name: size for name, (size, _) in receipt.files.items()}


def fsync(path: Path) -> None:
    """Return once a file or folder is safely on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
