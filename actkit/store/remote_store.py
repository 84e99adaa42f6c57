"""A read-only zarr store over the objects of a cube."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.core.buffer.core import default_buffer_prototype

from .byte_ranges import ByteRanges
from .compression import Compression
from .metadata import METADATA
from .plain_store import CheckedStore


class RemoteStore(CheckedStore, Store):
    """A store that reads objects of bounded size, and nothing else.

    Parameters
    ----------
    ranges
        The objects.
    document
        Returns a metadata file and its content.
    limits, compressions
        As for :class:`~actkit.store.plain_store.PlainStore`.
    strict
        Whether a missing or empty chunk raises an error instead of reading as fill values.
    """

    supports_writes = False
    supports_deletes = False
    supports_listing = False

    def __init__(
        self,
        ranges: ByteRanges,
        document: Callable[[str], tuple[bytes, Any]],
        limits: Mapping[str, int],
        compressions: Mapping[str, Compression],
        *,
        strict: bool,
    ) -> None:
        super().__init__(read_only=True)
        self.limits, self._compressions, self.strict = limits, compressions, strict
        self._ranges, self._document = ranges, document

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = Store.__hash__

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Return the bytes of a key, or None if it does not exist."""
        buffer = (prototype or default_buffer_prototype()).buffer
        try:
            content = await asyncio.to_thread(self._read, key, byte_range)
        except FileNotFoundError:
            return self._accepted(key, None)
        return self._accepted(key, self._size_checked(key, buffer.from_bytes(content), byte_range))

    def _read(self, key: str, byte_range: ByteRequest | None) -> bytes:
        if key.rpartition("/")[2] == METADATA:
            return self._document(key)[0]
        size = self._ranges.size(key)
        match byte_range:
            case RangeByteRequest(start, stop):
                return self._ranges.read(key, start, stop)
            case OffsetByteRequest(offset):
                return self._ranges.read(key, offset, size)
            case SuffixByteRequest(suffix):
                return self._ranges.read(key, max(size - suffix, 0), size)
            case _:
                return self._ranges.read(key, 0, size)

    async def exists(self, key: str) -> bool:
        """Return whether a key exists."""
        try:
            await asyncio.to_thread(self._read, key, RangeByteRequest(0, 1))
        except FileNotFoundError:
            return False
        return True

    async def get_partial_values(  # noqa: D102
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def set(self, key: str, value: Buffer) -> None:  # noqa: D102
        raise NotImplementedError

    async def delete(self, key: str) -> None:  # noqa: D102
        raise NotImplementedError

    def list(self) -> AsyncIterator[str]:  # noqa: D102
        raise NotImplementedError

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:  # noqa: D102
        raise NotImplementedError

    def list_dir(self, prefix: str) -> AsyncIterator[str]:  # noqa: D102
        raise NotImplementedError
