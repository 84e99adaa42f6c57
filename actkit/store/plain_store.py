"""A store of regular files that bounds their size, both on disk and decompressed."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

from ..regular_files import check_regular
from .compression import Compression
from .metadata import METADATA, METADATA_BYTES


class CheckedStore:
    """What the stores of cubes check, wherever the files are."""

    limits: Mapping[str, int]
    strict = False  # whether a missing or empty chunk raises an error instead of reading as fill values
    _compressions: Mapping[str, Compression]

    def _accepted(self, key: str, content: Buffer | None) -> Buffer | None:
        """Return the content of a key; raise an error if it is absent and must not be."""
        is_chunk = key.rsplit("/", 1)[-1].startswith("c.")
        if self.strict and is_chunk and (content is None or not len(content)):
            raise FileNotFoundError(key)
        return content

    def _size_checked(
        self, key: str, content: Buffer | None, byte_range: ByteRequest | None
    ) -> Buffer | None:
        """Return the content of a key, after checking its decompressed size."""
        compression = self._compressions.get(self._array(key))
        if content is not None and compression is not None:
            compression.check(content, byte_range)
        return content

    def _array(self, key: str) -> str:
        """Return the path of the array that a chunk belongs to; empty for metadata."""
        array, _, name = key.rpartition("/")
        while array and array not in self.limits:  # xarray names chunks ``c/0/0``
            array = array.rpartition("/")[0]
        return "" if name == METADATA else array


class PlainStore(CheckedStore, LocalStore):
    """A store that opens only regular files of bounded size.

    Parameters
    ----------
    root
        The cube.
    limits
        Maximum size in bytes of a file of each array that this version reads, by path of the array.
    compressions
        Compression of each of these arrays, by path.
    """

    def __init__(
        self,
        root: Path | str,
        *,
        read_only: bool = True,
        limits: Mapping[str, int] | None = None,
        compressions: Mapping[str, Compression] | None = None,
    ) -> None:
        super().__init__(root, read_only=read_only)
        self.limits = limits or {}
        self._compressions = compressions or {}

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Return the bytes of a key; raise OSError for files that are irregular or too large."""
        self._check(key)
        content = await super().get(key, prototype, byte_range)
        return self._accepted(key, self._size_checked(key, content, byte_range))

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Do the same as :meth:`get`; zarr 3.2 may call either."""
        self._check(key)
        content = super().get_sync(key, prototype=prototype, byte_range=byte_range)
        return self._accepted(key, self._size_checked(key, content, byte_range))

    def _check(self, key: str) -> None:
        array = self._array(key)
        limit = self.limits[array] if array else METADATA_BYTES
        with suppress(FileNotFoundError, NotADirectoryError):  # zarr reads missing chunks as fill values
            check_regular([self.root / key], limit, follow=False)
