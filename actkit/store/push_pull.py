"""Copies of runs between folders and object stores: resumable, and compared with the receipts of windows."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np
import zarr

from ..errors import CorruptError, Fault, InputError
from ..object_urls import is_url
from ..regular_files import MB
from ..schema import MOMENTS, VARIABLES
from .byte_ranges import ByteRanges
from .commits import ConflictError, place_files, written
from .cube_files import LocalCube, RemoteCube
from .folders import Folder
from .layout import CUBE, array_names, array_of, find_cube, open_group, shards
from .metadata import CHECKSUM, CHUNK_LIMIT, METADATA, METADATA_BYTES, listed_nodes
from .object_clients import StorageOptions
from .object_folder import WRITE_PATIENCE, ObjectFolder, Upload
from .partial_files import Partial
from .plain_store import CheckedStore
from .receipts import RECEIPTS, Receipt, read_receipt, receipt_name
from .remote_creation import check_digest, checked_coordinates, create_remote
from .run_folder import CONFIG, LOG, SKIPPED, check_folder, locked, write_status
from .verification import RERUN, read_committed
from .writer import CREATING, fsync_tree, storage_errors

_RUN_FILES = (CONFIG, SKIPPED, MOMENTS, LOG)
_BLOCK = 32 * MB
_CONCURRENT = 8
_KEPT = "what was copied is safe, run the same command again to continue"


@dataclass(frozen=True)
class RunCopy:
    """Result of :func:`actkit.push` or :func:`actkit.pull`.

    Parameters
    ----------
    cube
        The copy: its ``.zarr`` folder or URL.
    windows
        Number of windows copied.
    present
        Number of windows that were there before.
    bytes
        Size of the windows copied.
    missing
        Number of windows that the source has not committed.
    """

    cube: str
    windows: int
    present: int
    bytes: int
    missing: int


def push(run: str | Path, url: str, *, storage_options: StorageOptions | None = None) -> RunCopy:
    """Copy a run to an object store.

    Parameters
    ----------
    run
        Run folder.
    url
        URL of the new run, such as ``s3://bucket/runs/x``. A run that is there already is continued.
    storage_options
        Options of obstore, such as ``endpoint``; credentials come from the environment.

    Raises
    ------
    InputError
        If the server ignores the condition that commits need.
    ChangedError
        If the URL holds another cube.
    CorruptError
        If a file is not the one that was committed.
    StorageError
        If a file cannot be read or stored; windows that were copied are safe.

    Notes
    -----
    Each file is compared with the receipt of its window while it is sent. The flags of a window are created
    last, and only if they do not exist.
    """
    source = find_cube(run)
    if not isinstance(source, LocalCube):
        raise InputError([Fault("run", "is a URL", "push a run folder; actkit pull copies from a URL")])
    target = ObjectFolder(url, storage_options, patience=WRITE_PATIENCE)
    with storage_errors("cannot push to", _KEPT):
        target.check_conditions()
    with storage_errors(f"cannot push {run}:", _KEPT):
        group = open_group(source)
        with closing(Folder(source.root.parent)) as folder:
            _copy_run_files(folder, target, (CONFIG, SKIPPED))
            create_remote(source.root, target)
            present = set(target.entries())
            cube = target / CUBE
            result = _copy_windows(source, group, cube, lambda flags: f"{CUBE}/{flags}" in present)
            _copy_run_files(folder, target, (MOMENTS, LOG))
    return result


def pull(url: str, run: str | Path, *, storage_options: StorageOptions | None = None) -> RunCopy:
    """Copy a run from an object store into a folder.

    Parameters
    ----------
    url
        URL of the run, such as ``s3://bucket/runs/x``.
    run
        Run folder to create, or to continue.
    storage_options
        Options of obstore, such as ``endpoint``; credentials come from the environment.

    Raises
    ------
    InputError
        If the folder holds another cube or other files.
    CubeError
        If the URL holds no cube.
    CorruptError
        If an object is not the one that was committed.
    StorageError
        If an object cannot be read or the disk cannot be written; windows that were copied are safe.
    """
    out = Path(run)
    if is_url(run):
        raise InputError([Fault("run", "is a URL", "pull into a folder")])
    source = find_cube(url, storage_options)
    assert isinstance(source, RemoteCube)
    if faults := check_folder(out):
        raise InputError(faults)
    with storage_errors(f"cannot pull {url}", _KEPT):
        group = open_group(source)
        out.mkdir(parents=True, exist_ok=True)
        with locked(out) as folder:
            if not (out / CUBE).exists():
                _create_local(source, group, folder)
            elif folder.read(f"{CUBE}/{METADATA}", -1) != source.document(METADATA)[0]:
                hint = "pull into another folder"
                raise InputError([Fault(f"run {out}", "holds another cube", hint)])
            with closing(Folder(out / CUBE)) as target:
                target.sweep()
                result = _copy_windows(source, group, target, lambda flags: target.size(flags) > 0)
            _copy_run_files(source.folder.parent, folder, _RUN_FILES)
            n_samples = array_of(group, "committed").shape[0]
            counts = dict.fromkeys(("samples", "total_samples", "committed"), n_samples)
            write_status(folder, {"state": "interrupted"} if result.missing else {"state": "done", **counts})
    return result


def _copy_windows(
    source: LocalCube | RemoteCube,
    group: zarr.Group,
    target: Folder | ObjectFolder,
    is_committed: Callable[[str], bool],
) -> RunCopy:
    """Copy and commit the windows that the source has committed and the target has not."""
    committed, faults = read_committed(source, group)
    if faults:
        raise CorruptError(faults)
    windows = np.flatnonzero(committed[:: array_of(group, "committed").chunks[0]]).tolist()
    n_windows = -(-len(committed) // array_of(group, "committed").chunks[0])
    names = [name for name in array_names(group) if name in VARIABLES and VARIABLES[name].by_window]
    keys = {name: [str(shard) for shard in shards(source.root, array_of(group, name))] for name in names}
    copied = size = 0
    for window in windows:
        if not is_committed(f"committed/c.{window}"):
            size += _copy_window(source, group, target, window, [keys[name][window] for name in names])
            copied += 1
    where = target.url if isinstance(target, ObjectFolder) else str(target.path)
    return RunCopy(where, copied, len(windows) - copied, size, n_windows - len(windows))


def _copy_window(
    source: LocalCube | RemoteCube,
    group: zarr.Group,
    target: Folder | ObjectFolder,
    window: int,
    keys: Sequence[str],
) -> int:
    """Copy a window, compare it with its receipt and commit it; return its size in bytes."""
    receipt = read_receipt(source, window, promised=bool(group.attrs.get(RECEIPTS)))
    if isinstance(receipt, Receipt):
        receipt = receipt.fault(str(group.attrs[CHECKSUM]), window) or receipt
    if isinstance(receipt, Fault):
        raise CorruptError([receipt])
    assert isinstance(group.store, CheckedStore)
    ranges = source.ranges(group.store.limits)
    flags = f"committed/c.{window}"
    last = {} if receipt is None else {receipt_name(window): receipt.content()}
    last[flags] = source.read(flags, METADATA_BYTES) or b""
    with ExitStack() as stack:
        files: list[Partial | Upload] = []
        for key in keys:
            files.append(stack.enter_context(closing(target.partial(key))))
            _copy(ranges, key, files[-1])
            if receipt is not None and receipt.files.get(key) != (files[-1].size, files[-1].digest):
                raise CorruptError([Fault(key, "is not the file that was committed", RERUN)])
        with written(target, last) as last_files, target.locked("committed"):
            if receipt is not None and isinstance(target, ObjectFolder):
                receipt_file = last_files.pop(0)  # first, or the files of another writer would be replaced
                if not receipt_file.place_new():
                    raise ConflictError(target, window, receipt_file.name)
            place_files(target, files, last_files)
    return sum(file.size for file in files)


def _copy(ranges: ByteRanges, key: str, file: "Partial | Upload") -> None:
    try:
        size = ranges.size(key)
    except FileNotFoundError:
        raise CorruptError([Fault(key, "is missing", RERUN)]) from None
    for start in range(0, size, _BLOCK):
        file.write(ranges.read(key, start, min(start + _BLOCK, size)))
    file.sync()


def _create_local(source: RemoteCube, group: zarr.Group, folder: Folder) -> None:
    """Copy the metadata and the coordinates of a cube into a run folder, where they appear all at once."""
    temporary = f"{CREATING}/{uuid4().hex}"
    folder.remove_tree(CREATING)
    building = folder.path_to(temporary)
    nodes = listed_nodes(str(source), group.attrs)
    contents = {f"{name}/{METADATA}": source.document(f"{name}/{METADATA}")[0] for name in nodes}
    contents[METADATA] = source.document(METADATA)[0]
    for key, content in contents.items():
        _write(building / key, content)

    def copy(coordinate: tuple[str, str]) -> None:
        key, digest = coordinate
        content = source.content(key, CHUNK_LIMIT)
        check_digest(key, content, digest)
        _write(building / key, content)

    with ThreadPoolExecutor(_CONCURRENT) as pool:
        list(pool.map(copy, checked_coordinates(source, group)))
    fsync_tree(building)
    folder.rename(temporary, CUBE)
    folder.sync()
    folder.remove_tree(CREATING)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _copy_run_files(
    source: Folder | ObjectFolder, target: Folder | ObjectFolder, names: Sequence[str]
) -> None:
    for name in names:
        content = source.read(name, -1)
        if content is not None:
            target.replace(name, content)
