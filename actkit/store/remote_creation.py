"""Creation of cubes in object stores, whose root is stored last, and only if there is none."""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import zarr

from ..errors import ChangedError, CorruptError, Fault
from ..schema import VARIABLES
from .cube_files import DOCUMENTS, LocalCube, RemoteCube
from .layout import CUBE, array_names, array_of, open_group, shards
from .metadata import CHECKSUM, METADATA, listed_nodes
from .object_folder import ObjectFolder
from .receipts import RECEIPTS, Receipt, read_receipt, receipt_name
from .verification import RERUN

_CONCURRENT = 16


def create_remote(source: Path, run: ObjectFolder) -> None:
    """Store the metadata and the coordinates of a cube in an object store, unless they are there.

    Parameters
    ----------
    source
        A ``.zarr`` folder with the same metadata and coordinates; its windows are not stored.
    run
        The run.

    Raises
    ------
    ChangedError
        If the run has another cube.
    CorruptError
        If a coordinate is damaged.
    OSError
        If an object cannot be stored.
    """
    cube = run / CUBE
    root = (source / METADATA).read_bytes()
    stored = cube.read(METADATA, -1)
    if stored is not None:
        check_same(run.url, stored, root)
        return
    files = LocalCube(source)
    group = open_group(files)
    keys = [f"{name}/{METADATA}" for name in listed_nodes(str(source), group.attrs)]
    documents = {key: (source / key).read_text() for key in keys}
    coordinates = dict(checked_coordinates(files, group))
    with ThreadPoolExecutor(_CONCURRENT) as pool:
        keys = [*documents, *coordinates]
        list(pool.map(lambda key: _put(cube, source, key, coordinates.get(key, "")), keys))
    run.put(DOCUMENTS, json.dumps(documents).encode())
    try:
        cube.create(METADATA, root)
    except FileExistsError:
        check_same(run.url, cube.get(METADATA), root)


def check_same(where: str, stored: bytes, root: bytes) -> None:
    """Compare the root metadata of two cubes.

    Raises
    ------
    ChangedError
        If they differ; names the attributes.
    """
    before, now = _attributes(stored), _attributes(root)
    if before.get(CHECKSUM) == now.get(CHECKSUM) and CHECKSUM in now:
        return
    faults = [
        Fault(name, "differs")
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and name != CHECKSUM
    ]
    raise ChangedError(faults, f"{where} contains another cube; choose another URL")


def checked_coordinates(files: LocalCube | RemoteCube, group: zarr.Group) -> Iterator[tuple[str, str]]:
    """Yield the path and, if it is known, the SHA-256 of each file that is complete when a cube is created.

    Raises
    ------
    CorruptError
        If the receipt of the coordinates is damaged.
    """
    receipt = read_receipt(files, None, promised=bool(group.attrs.get(RECEIPTS)))
    if isinstance(receipt, Receipt):
        receipt = receipt.fault(str(group.attrs[CHECKSUM]), None) or receipt
    if isinstance(receipt, Fault):
        raise CorruptError([receipt])
    entries = {} if receipt is None else receipt.files
    for name in array_names(group):
        if name == "committed" or (name in VARIABLES and VARIABLES[name].by_window):
            continue
        for shard in shards(files.root, array_of(group, name)):
            yield str(shard), entries.get(str(shard), (0, ""))[1]
    if receipt is not None:
        yield receipt_name(None), hashlib.sha256(receipt.content()).hexdigest()


def check_digest(key: str, content: bytes, digest: str) -> None:
    """Compare a file with the SHA-256 in a receipt; raise CorruptError if they differ."""
    if digest and hashlib.sha256(content).hexdigest() != digest:
        raise CorruptError([Fault(key, "is not the file that was committed", RERUN)])


def _put(cube: ObjectFolder, source: Path, key: str, digest: str) -> None:
    content = (source / key).read_bytes()
    check_digest(key, content, digest)
    cube.put(key, content)


def _attributes(root: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(root)["attributes"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
