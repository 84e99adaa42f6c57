"""The claimed sizes of Parquet pages are known before the pages are uncompressed."""

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actkit.data_shards import ParquetShards
from actkit.errors import InputError
from actkit.parquet_pages import largest_cell
from actkit.tables import read_table, rows_at_once

TABLE = pa.table(
    {
        "text": [f"text {number}" for number in range(20_000)],
        "turns": [[{"role": "user", "content": str(number)}] for number in range(20_000)],
        "score": [None, 1.5] * 10_000,
    }
)


def written(table: pa.Table, **options: Any) -> tuple[io.BytesIO, Any]:
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file, pq.read_metadata(file)


@pytest.mark.parametrize(
    ("options", "largest"),
    [
        ({"use_dictionary": False}, 0),
        ({"use_dictionary": False, "data_page_version": "2.0", "data_page_size": 1000}, 0),
        ({}, 268_890),  # the dictionary of `text`: each with four bytes for its length
        ({"data_page_version": "2.0", "compression": "none"}, 268_890),
        ({"write_page_checksum": True, "write_page_index": True, "write_statistics": False}, 268_890),
        ({"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}}, 35_815),
    ],
)
def test_the_largest_cell_that_rows_can_share(options: dict[str, Any], largest: int) -> None:
    assert largest_cell(*written(TABLE, **options)) == largest


def test_ordinary_files_are_read_in_large_batches() -> None:
    assert rows_at_once(*written(pa.table({"text": ["x" * 400] * 50_000}), use_dictionary=False)) == 4096
    # the writer ends a dictionary at 1 MB
    texts = pa.table({"text": [f"{number:0400}" for number in range(50_000)]})
    assert 32 <= rows_at_once(*written(texts)) <= 128


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}}]
)
def test_a_large_cell_that_rows_repeat_is_read_a_few_rows_at_a_time(options: dict[str, Any]) -> None:
    texts = pa.table({"text": ["x" * 10**6] * 400})
    assert rows_at_once(*written(texts, **options)) == 67


def claiming(size: int, path: Path) -> None:
    """Write a file whose only page claims a size that its metadata do not."""
    file, _ = written(pa.table({"text": ["a", "b"]}), use_dictionary=False, compression="snappy")
    content = file.getvalue()
    assert content[4:7] == b"\x15\x00\x15"  # a data page, and the field of its size
    number, varint = 2 * size, b""
    while number > 127:
        number, varint = number >> 7, varint + bytes([number & 127 | 128])
    path.write_bytes(content[:7] + varint + bytes([number]) + content[8:])


@pytest.mark.parametrize("size", [2**31 - 1, 10**8])
def test_a_page_that_claims_more_than_its_metadata_is_not_unpacked(tmp_path: Path, size: int) -> None:
    path = tmp_path / "table.parquet"
    claiming(size, path)
    total = pq.read_metadata(path).row_group(0).column(0).total_uncompressed_size
    what = f"pages of column `text` claim {size:,} bytes, and the metadata {total:,}"
    table, faults = read_table(path)
    assert table is None
    assert list(map(str, faults)) == [f"{path}: cannot be read as Parquet: {what} (write it again)"]
    with pytest.raises(InputError) as caught:
        list(ParquetShards([path], [""]).records(["text"]))
    assert caught.value.faults[0].what == f"cannot be read as Parquet after row 0: {what}"


@pytest.mark.parametrize("at", [4, 5, 6, 7, 8])
def test_a_header_that_is_no_header_is_a_fault(tmp_path: Path, at: int) -> None:
    path = tmp_path / "table.parquet"
    file, _ = written(pa.table({"text": ["a", "b"]}), use_dictionary=False)
    content = bytearray(file.getvalue())
    content[at] = 0xFF
    path.write_bytes(content)
    _, faults = read_table(path)
    assert [str(fault).startswith(f"{path}: cannot be read as Parquet: ") for fault in faults] == [True]
