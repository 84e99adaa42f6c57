"""Headers of Parquet pages, checked in advance because pyarrow allocates whatever size they claim."""

from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from .regular_files import MB, MOST_TABLE

_SLACK = 64 * MB  # for writers that undercount
_HEADER = 2**16  # maximum bytes of a header, whose statistics are short
_DICTIONARY, _DATA_V2 = 2, 3  # page types
_DELTA_BYTE_ARRAY = 7  # an encoding
_INTEGERS, _STRUCT, _BINARY, _LISTS = (4, 5, 6), 12, 8, (9, 10)
_FIXED = {1: 0, 2: 0, 3: 1, 7: 8}  # type to size; the type of a Boolean is its value


class Page(NamedTuple):
    """Header of a page: its uncompressed bytes, and whether one value in it may be referenced repeatedly."""

    unpacked: int
    repeats: bool


def largest_cell(file: BinaryIO, metadata: Any) -> int:
    """Return the maximum size in bytes of a cell that rows can repeat without taking space in the file.

    Parameters
    ----------
    file
        The Parquet file.
    metadata
        Metadata of the file.

    Returns
    -------
    int
        Size of the largest dictionary page, or page of values that share prefixes.

    Raises
    ------
    ValueError
        If pages claim far more bytes than the metadata, one claims more than 1,000 MB, or a header cannot be
        read.
    """
    largest = 0
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(column)
            claimed = 0
            for page in _pages(file, chunk):
                claimed += page.unpacked
                if claimed > chunk.total_uncompressed_size + _SLACK or page.unpacked > MOST_TABLE:
                    what = f"pages of column `{chunk.path_in_schema}` claim {claimed:,} bytes"
                    raise ValueError(f"{what}, and the metadata {chunk.total_uncompressed_size:,}")
                largest = max(largest, page.unpacked if page.repeats else 0)
    return largest


def _pages(file: BinaryIO, chunk: Any) -> Iterator[Page]:
    at = chunk.data_page_offset
    if chunk.dictionary_page_offset:
        at = min(at, chunk.dictionary_page_offset)
    stop = at + chunk.total_compressed_size
    values = 0
    while at < stop and values < chunk.num_values:  # pyarrow stops there too
        file.seek(at)
        reader = _Compact(file.read(min(_HEADER, stop - at)))
        try:
            header = reader.struct()
        except IndexError:
            raise ValueError(f"the header of the page at byte {at:,} cannot be read") from None
        kind, unpacked, packed = (header.get(field) for field in (1, 2, 3))
        if not (isinstance(unpacked, int) and isinstance(packed, int) and unpacked >= 0 and packed >= 0):
            raise ValueError(f"the header of the page at byte {at:,} cannot be read")
        is_second = kind == _DATA_V2
        data = header.get(8 if is_second else 5)
        data = data if isinstance(data, dict) else {}
        encoding = data.get(4 if is_second else 2)
        yield Page(unpacked, kind == _DICTIONARY or encoding == _DELTA_BYTE_ARRAY)
        values += int(data.get(1) or 0)
        at += reader.at + packed


class _Compact:
    """Reader of Thrift's compact protocol that keeps only integers and structs."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.at = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        if depth > 8:
            raise IndexError
        fields: dict[int, Any] = {}
        number = 0
        while (start := self._byte()) != 0:
            number = number + (start >> 4) if start >> 4 else self._zigzag()
            fields[number] = self._value(start & 15, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in _INTEGERS:
            return self._zigzag()
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind == _BINARY:
            self._skip(self._varint())
        elif kind in _FIXED:
            self._skip(_FIXED[kind])
        elif kind in _LISTS:
            start = self._byte()
            for _ in range(self._varint() if start >> 4 == 15 else start >> 4):
                self._value(start & 15, depth + 1)
        else:
            raise IndexError
        return None

    def _byte(self) -> int:
        self.at += 1
        return self._content[self.at - 1]

    def _skip(self, count: int) -> None:
        self.at += count

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
