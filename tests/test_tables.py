"""Every format of prompt files gives the same cells, byte for byte, or faults with their location."""

# ruff: noqa: E501 - a table of exact messages is easier to read unbroken

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actkit.tables import read_table

HOSTILE = {
    "diacritics": "الطَّبِيبُ يَقْرَأُ كِتَابًا",
    "combining marks": "e\u0301 is not é, ة\u0651 is not ةّ",
    "emoji": "👩🏽‍⚕️ and 🏳️‍🌈",
    "RTL marks": "\u200fعربي\u200e \u202bab\u202c \u2067x\u2069",
    "quoted newlines": 'first\nsecond\r\nthird\rfourth "quoted"',
    "Unicode line breaks": "a\u2028b\u2029c\x85d\x0be\x0cf",
    "NUL": "a\0b\0",
    "delimiters": "a,b\tc;d",
    "BOM inside": "\ufeffa\ufeffb",
    "spaces at the ends": "  a  ",
    "looks like other types": "NaN",
    "long": "word " * 40_000,
}

Columns = dict[str, list[str]]


def _delimited(columns: Columns, delimiter: str, terminator: str = "\r\n") -> bytes:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator=terminator, quoting=csv.QUOTE_ALL)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return buffer.getvalue().encode()


def _jsonl(columns: Columns, *, ascii_only: bool, terminator: str = "\n") -> bytes:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return terminator.join(json.dumps(row, ensure_ascii=ascii_only) for row in rows).encode()


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


FORMATS: dict[str, tuple[str, Callable[[Columns], bytes]]] = {
    "csv": (".csv", lambda columns: _delimited(columns, ",")),
    "csv with a BOM": (".CSV", lambda columns: b"\xef\xbb\xbf" + _delimited(columns, ",", "\n")),
    "tsv": (".tsv", lambda columns: _delimited(columns, "\t")),
    "jsonl": (".jsonl", lambda columns: _jsonl(columns, ascii_only=False)),
    "jsonl with a BOM": (".jsonl", lambda columns: b"\xef\xbb\xbf" + _jsonl(columns, ascii_only=False)),
    "jsonl in ASCII": (".ndjson", lambda columns: _jsonl(columns, ascii_only=True, terminator="\r\n")),
    "parquet": (".parquet", lambda columns: _parquet(pa.table(columns))),
    "parquet with a dictionary": (
        ".parquet",
        lambda columns: _parquet(
            pa.table({name: pa.array(cells).dictionary_encode() for name, cells in columns.items()})
        ),
    ),
}


@pytest.mark.parametrize("form", FORMATS)
def test_hostile_cells_survive(form: str, tmp_path: Path) -> None:
    suffix, write = FORMATS[form]
    columns = {"name": list(HOSTILE), "text": list(HOSTILE.values()), "عمود": ["x"] * len(HOSTILE)}
    path = tmp_path / f"data{suffix}"
    path.write_bytes(write(columns))
    table, faults = read_table(path)
    assert faults == []
    assert table is not None
    assert list(table.columns) == list(columns)
    assert dict(zip(table.columns["name"], table.columns["text"], strict=True)) == HOSTILE


cells = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@pytest.mark.slow
@given(rows=st.lists(st.tuples(cells, cells), min_size=1, max_size=5))
def test_every_format_gives_the_same_cells(
    rows: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    columns = {"a": [a for a, _ in rows], "b": [b for _, b in rows]}
    folder = tmp_path_factory.mktemp("formats")
    for suffix, write in FORMATS.values():
        path = folder / f"data{suffix}"
        path.write_bytes(write(columns))
        table, faults = read_table(path)
        assert faults == []
        assert table is not None
        assert table.columns == columns


def test_rows_are_named_by_the_lines_they_start_at(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(b'text,n\r\n"one\r\ntwo",1\r\n\r\nthree,2\r\n')
    table, _ = read_table(path)
    assert table is not None
    assert [table.where(row) for row in range(len(table))] == ["row 1 (line 2)", "row 2 (line 5)"]
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"text": "one"}\n\n  \n{"text": "two"}\n')
    table, _ = read_table(path)
    assert table is not None
    assert [table.where(row) for row in range(len(table))] == ["row 1 (line 1)", "row 2 (line 4)"]


def test_values_that_jsonl_and_parquet_lack_are_none(tmp_path: Path) -> None:
    jsonl, parquet = tmp_path / "data.jsonl", tmp_path / "data.parquet"
    jsonl.write_text('{"a": 1}\n{"b": [1.5, null]}\n')
    parquet.write_bytes(_parquet(pa.table({"a": [1, None], "b": [None, [1.5, None]]})))
    for path in (jsonl, parquet):
        table, _ = read_table(path)
        assert table is not None
        assert table.columns == {"a": [1, None], "b": [None, [1.5, None]]}


def test_digest_is_that_of_the_file(tmp_path: Path) -> None:
    digests = set()
    for number, content in enumerate([b"text\na\n", b"text\nb\n", b"text\na\n"]):
        path = tmp_path / f"{number}.csv"
        path.write_bytes(content)
        table, _ = read_table(path)
        assert table is not None
        digests.add(table.digest)
    assert len(digests) == 2


def _parquet_of_bad_utf8() -> bytes:
    offsets = pa.array([0, 1, 3], pa.int32()).buffers()[1]
    return _parquet(pa.table({"text": pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"a\xff\xfe"))}))


def _damaged_parquet() -> bytes:
    buffer = io.BytesIO()
    table = pa.table({"text": [f"prompt {i}" for i in range(1000)]})
    pq.write_table(table, buffer, compression="none", use_dictionary=False, write_page_checksum=True)
    content = bytearray(buffer.getvalue())
    content[content.index(b"prompt 500")] ^= 1
    return bytes(content)


OBJECT, QUOTE = "(write one object per line)", "(correct the quoting)"

# messages that start with a colon are preceded by the file
UNREADABLE: dict[str, tuple[str, bytes, list[str]]] = {
    "unknown type": ("data.xls", b"", [": is of unknown type `.xls` (known: .csv, .tsv, .jsonl, .ndjson, .json, .parquet, .xlsx)"]),
    "compressed": ("data.csv.gz", b"", [": is of unknown type `.gz` (known: .csv, .tsv, .jsonl, .ndjson, .json, .parquet, .xlsx)"]),
    "empty": ("data.csv", b"", [": holds no rows"]),
    "header only": ("data.csv", b"text,n\n", [": holds no rows"]),
    "empty jsonl": ("data.jsonl", b"\n\n", [": holds no rows"]),
    "parquet without rows": ("data.parquet", _parquet(pa.table({"text": pa.array([], pa.string())})), [": holds no rows"]),
    "ragged": (
        "data.csv",
        b'text,n\na,1\nb\n"c\nd",1,2\n',
        [
            ", line 3: has 1 cells where the header has 2, divided by `,` (quote cells that hold the delimiter)",
            ", line 4: has 3 cells where the header has 2, divided by `,` (quote cells that hold the delimiter)",
        ],
    ),
    "open quote": ("data.csv", b'text\na\n"b\nc\nd\n', [f", line 3: unexpected end of data {QUOTE}"]),
    "open quote in the header": ("data.csv", b'"text\na\n', [f", line 1: unexpected end of data {QUOTE}"]),
    "text after a quote": ("data.csv", b'text\n"a" b\n', [f", line 2: ',' expected after '\"' {QUOTE}"]),
    "text after a quote in tsv": ("data.tsv", b'text\n"a" b\n', [f", line 2: '\t' expected after '\"' {QUOTE}"]),
    "repeated column": ("data.csv", b"text,n,text,n\na,1,b,2\n", [": column `n` occurs twice (rename one)", ": column `text` occurs twice (rename one)"]),
    "repeated column in parquet": (
        "data.parquet",
        _parquet(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])),
        [": column `text` occurs twice (rename one)"],
    ),
    "repeated key in jsonl": ("data.jsonl", b'{"text": "a", "text": "b"}\n', [f", line 1: cannot be read: `text` is given twice {OBJECT}"]),
    "no JSON": (
        "data.jsonl",
        b'{"text": "a"}\n{"text": \n{text: 1}\n',
        [
            f", line 2: is not JSON at column 10: Expecting value {OBJECT}",
            f", line 3: is not JSON at column 2: Expecting property name enclosed in double quotes {OBJECT}",
        ],
    ),
    "no objects": ("data.jsonl", b'["a"]\n3\n', [f", line 1: holds a list, not an object {OBJECT}", f", line 2: holds a int, not an object {OBJECT}"]),
    "endless brackets": (
        "data.jsonl",
        b'{"text": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        [f", line 1: cannot be read: maximum recursion depth exceeded while decoding a JSON array from a unicode string {OBJECT}"],
    ),
    "Latin-1 in csv": (
        "data.csv",
        b"text\nok\ncaf\xe9\nok\n\xff\n",
        [
            ", line 3: byte 0xe9 at position 4 is not UTF-8 (in Windows-1252 it is `é`) (save the file as UTF-8)",
            ", line 5: byte 0xff at position 1 is not UTF-8 (in Windows-1252 it is `ÿ`) (save the file as UTF-8)",
        ],
    ),
    "cut character in jsonl": ("data.jsonl", b'{"text": "\xd8"}\n', [", line 1: byte 0xd8 at position 11 is not UTF-8 (in Windows-1252 it is `Ø`) (save the file as UTF-8)"]),
    "bad UTF-8 in parquet": (
        "data.parquet",
        _parquet_of_bad_utf8(),
        [": cannot be read as Parquet: In column 0: Invalid: Invalid UTF8 sequence at string index 1 (write it again)"],
    ),
    "no parquet": (
        "data.parquet",
        b"PAR1",
        [": cannot be read as Parquet: Parquet file size is 4 bytes, smaller than the minimum file footer (8 bytes) (write it again)"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable(name: str, tmp_path: Path) -> None:
    file, content, messages = UNREADABLE[name]
    path = tmp_path / file
    path.write_bytes(content)
    table, faults = read_table(path)
    assert table is None
    assert [str(fault) for fault in faults] == [f"{path}{message}" for message in messages]


def test_a_flipped_bit_in_parquet_is_found(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    path.write_bytes(_damaged_parquet())
    table, (fault,) = read_table(path)
    assert table is None
    assert "CRC checksum verification failed" in fault.what


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "folder.csv"
    folder.mkdir()
    for path, message in {
        tmp_path / "none.csv": f"{tmp_path}/none.csv: does not exist (check the path)",
        folder: f"{folder}: cannot be read: is a folder (check the path)",
        Path("a\0.csv"): "a\0.csv: cannot be read: embedded null byte (check the path)",
    }.items():
        table, faults = read_table(path)
        assert table is None
        assert [str(fault) for fault in faults] == [message]
    _, (fault,) = read_table(Path("x" * 300 + ".csv"))
    assert "File name too long" in fault.what


def test_reading_leaves_the_csv_module_as_it_was(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    for content in (f"text\n{HOSTILE['long']}\n", 'text\n"open'):
        path = tmp_path / "data.csv"
        path.write_text(content)
        read_table(path)
    assert csv.field_size_limit() == before
