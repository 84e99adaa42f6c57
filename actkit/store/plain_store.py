"""A store that opens regular files of bounded size, and unpacks nothing that claims more than it can hold."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

from ..regular_files import check_regular
from .compression import Compression
from .metadata import METADATA, METADATA_BYTES


class PlainStore(LocalStore):
    """A store that opens regular files of bounded size and nothing else.

    Parameters
    ----------
    root
        The cube.
    limits
        Most bytes of a chunk's file of each array that a reader of this version knows, by its path.
    compressions
        How each of them is packed, by its path.
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
        """Return the bytes of a key; raise OSError for what is no regular file, or too large."""
        self._check(key)
        found = await super().get(key, prototype, byte_range)
        return self._accepted(key, self._packed(key, found, byte_range))

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Do the same as :meth:`get`; zarr 3.2 may call either."""
        self._check(key)
        found = super().get_sync(key, prototype=prototype, byte_range=byte_range)
        return self._accepted(key, self._packed(key, found, byte_range))

    def _check(self, key: str) -> None:
        array = self._array(key)
        limit = self.limits[array] if array else METADATA_BYTES
        with suppress(FileNotFoundError, NotADirectoryError):  # zarr takes what is missing for fill values
            check_regular([self.root / key], limit, follow=False)

    def _accepted(self, key: str, found: Buffer | None) -> Buffer | None:
        """Return what was read of a key, or raise an error; a stricter store asks for more."""
        return found

    def _packed(self, key: str, found: Buffer | None, byte_range: ByteRequest | None) -> Buffer | None:
        """Return what was read of a key, unless it claims to hold more than it can."""
        compression = self._compressions.get(self._array(key))
        if found is not None and compression is not None:
            compression.check(found, byte_range)
        return found

    def _array(self, key: str) -> str:
        """Return the array that a chunk belongs to; empty for metadata."""
        array, _, name = key.rpartition("/")
        while array and array not in self.limits:  # xarray names chunks ``c/0/0``
            array = array.rpartition("/")[0]
        return "" if name == METADATA else array
