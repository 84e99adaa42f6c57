"""The files of a cube, in a folder or in an object store."""

import errno
import hashlib
import json
import os
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from zarr.abc.store import Store

from ..errors import CubeError, StorageError
from ..regular_files import MB, IrregularError, file_fault
from .byte_ranges import ByteRanges, LocalRanges
from .compression import Compression
from .folders import Folder
from .metadata import METADATA, METADATA_BYTES, Document, node_fault, parsed, read_document
from .object_clients import StorageOptions
from .object_folder import Entry, ObjectFolder
from .plain_store import PlainStore
from .range_cache import RangeCache
from .remote_store import RemoteStore

DOCUMENTS = "metadata.json"  # beside a cube in an object store: all its metadata, to be read at once
_DOCUMENTS_BYTES = 2**26
_CONCURRENT = 16
_BLOCK = 32 * MB


class CubeFiles(Protocol):
    """The files of a cube, by their paths in it."""

    root: Path  # the `.zarr` folder; only a name if the cube is not in a folder

    def document(self, key: str) -> tuple[bytes, Document]:
        """Return a metadata file and its content; raise OSError or ValueError if there is none."""

    def node_fault(self, name: str) -> str:
        """Return what is wrong with the folder of an array or group, or an empty string."""

    def fault(self, key: str, limit: int) -> str:
        """Return the reason why a file cannot be read; empty if it can."""

    def sizes(self, name: str) -> Mapping[str, int]:
        """Return the sizes of the files in the folder of an array; -1 for irregular files."""

    def file_entry(self, key: str) -> tuple[int, str]:
        """Return the size in bytes and the SHA-256 of a file, as stored in receipts."""

    def read(self, key: str, limit: int) -> bytes | None:
        """Return up to `limit` bytes of a file; None if there is no such file."""

    def ranges(self, limits: Mapping[str, int]) -> ByteRanges:
        """Return the files of arrays, to be read by range."""

    def zarr_store(
        self, kind: type[PlainStore], limits: Mapping[str, int], compressions: Mapping[str, Compression]
    ) -> Store:
        """Return the store through which zarr reads the files."""


class LocalCube:
    """The files of a cube in a folder.

    Parameters
    ----------
    root
        The ``.zarr`` folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def document(self, key: str) -> tuple[bytes, Document]:  # noqa: D102 - as in CubeFiles
        return read_document(self.root / key)

    def node_fault(self, name: str) -> str:  # noqa: D102
        return node_fault(self.root, name)

    def fault(self, key: str, limit: int) -> str:  # noqa: D102
        return file_fault(self.root / key, limit)

    def sizes(self, name: str) -> Mapping[str, int]:  # noqa: D102
        return folder_sizes(self.root / name)

    def file_entry(self, key: str) -> tuple[int, str]:  # noqa: D102
        return file_entry(self.root / key)

    def read(self, key: str, limit: int) -> bytes | None:  # noqa: D102
        with closing(Folder(self.root)) as folder:
            return folder.read(key, limit)

    def ranges(self, limits: Mapping[str, int]) -> ByteRanges:  # noqa: D102
        return LocalRanges(self.root, limits)

    def zarr_store(  # noqa: D102
        self, kind: type[PlainStore], limits: Mapping[str, int], compressions: Mapping[str, Compression]
    ) -> Store:
        return kind(self.root, limits=limits, compressions=compressions)


class RemoteCube:
    """The files of a cube in an object store, as they were when the cube was opened.

    Objects are listed once. Later reads refer to the listed objects: reading one that was replaced raises an
    error.

    Parameters
    ----------
    folder
        The ``.zarr`` folder.
    cache
        Folder in which ranges that were read are kept; None for no cache.
    """

    def __init__(self, folder: ObjectFolder, cache: Path | None = None) -> None:
        self.folder = folder
        self.root = Path(folder.url)
        self.cache = None if cache is None else RangeCache(cache, folder.url)
        self._opened = uuid4().hex
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] | None = None
        self._by_folder: dict[str, dict[str, int]] = {}
        self._documents: dict[str, bytes] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("folder", "root", "cache", "_opened")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteCube) and other._opened == self._opened

    def __hash__(self) -> int:
        return hash(self._opened)

    def __str__(self) -> str:
        return self.folder.url

    def __repr__(self) -> str:
        return f"RemoteCube({self.folder.url!r})"

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Size and tag of each object, by its path in the cube."""
        with self._lock:
            if self._entries is None:
                self._entries = self.folder.entries()
                by_folder: dict[str, dict[str, int]] = defaultdict(dict)
                for key, entry in self._entries.items():
                    name, _, file = key.rpartition("/")
                    by_folder[name][file] = entry.size
                self._by_folder = dict(by_folder)
            return self._entries

    def document(self, key: str) -> tuple[bytes, Document]:  # noqa: D102
        content = self._document_contents().get(key)
        if content is None:
            content = self.content(key, METADATA_BYTES)
            self._document_contents()[key] = content
        return content, parsed(content)

    def node_fault(self, name: str) -> str:  # noqa: D102 - there are no folders, and no links
        return ""

    def fault(self, key: str, limit: int) -> str:  # noqa: D102
        entry = self.entries.get(key)
        if entry is None:
            return "is missing"
        if entry.size > limit:
            return str(_too_large(key, limit))
        return "" if entry.size else "is empty"

    def sizes(self, name: str) -> Mapping[str, int]:  # noqa: D102
        assert self.entries is not None
        return self._by_folder.get(name, {})

    def file_entry(self, key: str) -> tuple[int, str]:  # noqa: D102
        digest = hashlib.sha256()
        size = self.entry(key).size
        for start in range(0, size, _BLOCK):
            digest.update(self.range(key, start, min(start + _BLOCK, size)))
        return size, digest.hexdigest()

    def read(self, key: str, limit: int) -> bytes | None:  # noqa: D102
        try:
            return self.content(key, METADATA_BYTES)[:limit]
        except FileNotFoundError:
            return None

    def ranges(self, limits: Mapping[str, int]) -> ByteRanges:  # noqa: D102
        return RemoteRanges(self, limits)

    def zarr_store(  # noqa: D102
        self, kind: type[PlainStore], limits: Mapping[str, int], compressions: Mapping[str, Compression]
    ) -> Store:
        ranges = RemoteRanges(self, limits)
        return RemoteStore(ranges, self.document, limits, compressions, strict=kind.strict)

    def entry(self, key: str) -> Entry:
        """Return the size and tag of an object; raise FileNotFoundError if it was not listed."""
        entry = self.entries.get(key)
        if entry is None:
            raise FileNotFoundError(errno.ENOENT, "is missing", f"{self}/{key}")
        return entry

    def content(self, key: str, limit: int) -> bytes:
        """Return an object; raise OSError if it is missing or too large."""
        content = self.folder.get(key)
        if len(content) > limit:
            raise _too_large(key, limit)
        return content

    def range(self, key: str, start: int, stop: int) -> bytes:
        """Return the bytes ``[start, stop)`` of a listed object, from the cache if they are there."""
        entry = self.entry(key)
        stop = min(stop, entry.size)
        if start >= stop:
            return b""
        whole = start == 0 and stop == entry.size
        if self.cache is None:
            return self.folder.get(key, start, None if whole else stop, tag=entry.tag)
        content = self.cache.get(key, entry.tag, start, stop)
        if content is None:
            content = self.folder.get(key, start, None if whole else stop, tag=entry.tag)
            self.cache.put(key, entry.tag, start, stop, content)
        return content

    def load_documents(self, names: Iterable[str]) -> None:
        """Read the metadata of arrays and groups: one request if they are collected, else one for each."""
        keys = [f"{name}/{METADATA}" for name in names]
        documents = self._document_contents()
        missing = [key for key in keys if key not in documents]
        if missing:
            with ThreadPoolExecutor(_CONCURRENT) as pool:
                contents = pool.map(lambda key: self.read(key, METADATA_BYTES), missing)
                documents |= {
                    key: content
                    for key, content in zip(missing, contents, strict=True)
                    if content is not None
                }

    def _document_contents(self) -> dict[str, bytes]:
        """Return the metadata that were read; those that lie beside the cube are compared with its seal."""
        with self._lock:
            if self._documents is None:
                content = self.folder.parent.read(DOCUMENTS, -1) or b"{}"
                try:
                    collected = json.loads(content) if len(content) <= _DOCUMENTS_BYTES else {}
                    self._documents = {str(key): str(text).encode() for key, text in collected.items()}
                except (ValueError, AttributeError, RecursionError):
                    self._documents = {}
                self._documents.pop(METADATA, None)
            return self._documents


class RemoteRanges:
    """Objects of a cube, read by range; those that are too large are refused.

    Parameters
    ----------
    cube
        The cube.
    limits
        Maximum size in bytes of a file of each array, by path of the array.
    """

    request_bytes = 32 * MB
    inline_bytes = 0  # a request takes longer than another thread
    threads = _CONCURRENT

    def __init__(self, cube: RemoteCube, limits: Mapping[str, int]) -> None:
        self._cube, self._limits = cube, limits

    def size(self, key: str) -> int:
        """Return the size of an object in bytes."""
        size = self._cube.entry(key).size
        if size > (limit := self._limits.get(key.rpartition("/")[0], METADATA_BYTES)):
            raise _too_large(key, limit)
        return size

    def read(self, key: str, start: int, stop: int) -> bytes:
        """Return the bytes ``[start, stop)`` of an object; fewer if it is shorter."""
        return self._cube.range(key, start, stop)


def files_of(path: "Path | LocalCube | RemoteCube") -> LocalCube | RemoteCube:
    """Return the files of a cube, given its folder or the files themselves."""
    return LocalCube(path) if isinstance(path, Path) else path


def open_remote(url: str, options: StorageOptions | None, cache: str | Path | None, cube: str) -> RemoteCube:
    """Find the cube of a run in an object store.

    Parameters
    ----------
    url
        URL of the run, or of its ``.zarr`` folder.
    options
        Options of obstore.
    cache
        Folder for ranges that were read.
    cube
        Name of the ``.zarr`` folder in a run.

    Raises
    ------
    CubeError
        If there is no cube.
    StorageError
        If the store cannot be read.
    """
    folder = ObjectFolder(url, options)
    where = None if cache is None else Path(cache).expanduser()
    candidates = [folder] if folder.url.endswith(".zarr") else [folder / cube, folder]
    for candidate in candidates:
        found = RemoteCube(candidate, where)
        try:
            found.document(METADATA)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StorageError(f"cannot read {error.filename or url}: {error.strerror or error}") from None
        except ValueError:
            pass  # reported when it is opened
        return found
    raise CubeError(f"{url}: holds no cube; give the URL of a run with {cube} in it, or of the .zarr folder")


def file_entry(path: Path) -> tuple[int, str]:
    """Return the size in bytes and the SHA-256 of a file, as stored in receipts."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest


def folder_sizes(folder: Path) -> dict[str, int]:
    """Return the sizes of the files of a folder, without those that a writer renames meanwhile."""
    sizes: dict[str, int] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                regular = entry.is_file(follow_symlinks=False)
                sizes[entry.name] = entry.stat(follow_symlinks=False).st_size if regular else -1
    return sizes


def _too_large(key: str, limit: int) -> IrregularError:
    return IrregularError(errno.EFBIG, f"is larger than {limit:,} bytes", key)
