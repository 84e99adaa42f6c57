"""Parquet and JSONL files and shards are read exactly and in constant memory, or their faults reported."""

# ruff: noqa: E501 - a table of exact messages is easier to read unbroken

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actkit.samples import Samples
from tests.data_files import Json, read, rows, write


def same(one: Samples | None, other: Samples | None) -> bool:
    assert one is not None
    assert other is not None
    assert list(one.labels) == list(other.labels)
    for name, values in one.labels.items():
        assert values.dtype == other.labels[name].dtype
        np.testing.assert_array_equal(values, other.labels[name])
    for field in ("sample_id", "language", "text"):
        assert getattr(one, field).tolist() == getattr(other, field).tolist()
    return True


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_a_file_gives_the_same_samples_as_a_stream_and_whole(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"data{suffix}"
    write(path, rows(0, 25))
    whole, faults = read(path)
    assert faults == []
    assert same(read(path, streaming=True)[0], whole)
    assert whole is not None
    assert whole.text.tolist() == [row["text"] for row in rows(0, 25)]
    options: Json = {"limit": 7, "labels": "flag"}
    assert same(read(path, streaming=True, **options)[0], read(path, **options)[0])


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_faults_have_the_same_words_in_a_stream_and_whole(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"data{suffix}"
    content = [{"sample_id": "a", "text": "x", "__x": 1}, {"sample_id": "a", "text": None, "__x": 2}]
    write(path, content)
    _, faults = read(path, streaming=True, id_column="sample_id", category_column="kind")
    assert len(faults) == 4
    assert faults == read(path, id_column="sample_id", category_column="kind")[1]


@pytest.mark.parametrize("form", ["folder", "pattern", "deep pattern"])
@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize("streaming", [False, True])
def test_shards_are_read_in_order_as_datasets_does(
    form: str, suffix: str, streaming: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "shards"
    paths = [folder / "sub" / f"part-{i}{suffix}" for i in (2, 0, 1)]
    for path in paths:
        write(path, rows(10 * int(path.stem[-1]), 10 * int(path.stem[-1]) + 10))
    pattern = {
        "folder": folder,
        "pattern": folder / "sub" / f"*{suffix}",
        "deep pattern": folder / "**" / f"p*{suffix}",
    }
    samples, faults = read(pattern[form], streaming=streaming)
    assert faults == []
    assert samples is not None
    builder = {".parquet": "parquet", ".jsonl": "json"}[suffix]
    files = sorted(map(str, paths))
    expected = datasets.load_dataset(
        builder, data_files=files, split="train", streaming=True, cache_dir=str(tmp_path)
    )
    columns = {"sample_id": samples.sample_id, "text": samples.text, **samples.labels}
    for index, row in enumerate(expected):
        assert {name: row[name] for name in ("sample_id", "text", "n", "flag")} == {
            name: columns[name][index] for name in ("sample_id", "text", "n", "flag")
        }
        np.testing.assert_equal(columns["x"][index], np.nan if row["x"] is None else row["x"])
    assert len(samples) == index + 1 == 30


@pytest.mark.parametrize("streaming", [False, True])
def test_a_file_has_no_splits(streaming: bool, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    write(path, [{"text": "a"}])
    assert read(path, streaming=streaming, split="train")[1] == []
    _, faults = read(path, streaming=streaming, split="test", subset="x")
    assert faults == [
        "split: unknown split `test` (files have only the split train)",
        "subset: unknown subset `x` (files have no subsets)",
    ]


def test_only_the_columns_that_are_used_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.parquet", rows(0, 5))
    asked: list[list[str]] = []
    iter_batches = pq.ParquetFile.iter_batches

    def spy(self: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs["columns"])
        return iter_batches(self, *args, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    read(tmp_path / "*.parquet", labels="flag")
    assert asked == [["text", "sample_id", "flag"]] * 2


def test_rows_of_shards_are_named_by_shard(tmp_path: Path) -> None:
    write(tmp_path / "a" / "0.parquet", [{"text": "a"}])
    write(tmp_path / "b" / "1.parquet", [{"text": "b"}, {"text": ""}])
    write(tmp_path / "0.jsonl", [{"text": "a"}])
    (tmp_path / "1.jsonl").write_text('\n{"text": "b"}\n\n{"text": ""}\n')
    assert read(tmp_path / "*" / "*.parquet")[1] == [
        "b/1.parquet, row 2: `text` is empty (correct or remove the row)"
    ]
    assert read(tmp_path / "*.jsonl")[1] == ["1.jsonl, line 4: `text` is empty (correct or remove the row)"]


BAD_LINES = b'{"text": "a"}\nno\n[1]\n{"text": "caf\xe9"}\n\n{"text": "b", "text": "c"}\n{"text": "d"}\n'


def test_lines_that_cannot_be_read_are_rows_at_fault(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + BAD_LINES)
    _, faults = read(path, streaming=True)
    assert faults == [
        "row 2 (line 2): is not JSON at column 1: Expecting value (write one object per line)",
        "row 3 (line 3): holds a list, not an object (write one object per line)",
        "row 4 (line 4): byte 0xe9 at position 14 is not UTF-8 (in Windows-1252 it is `é`) (write one object per line)",
        "row 5 (line 6): cannot be read: `text` is given twice (write one object per line)",
    ]
    samples, faults = read(path, streaming=True, on_bad_row="skip")
    assert faults == []
    assert samples is not None
    assert samples.text.tolist() == ["a", "d"]


def test_columns_have_to_show_early_in_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    content: list[Json] = [{"text": "a"}] * 1500
    content[999] = {"text": "a", "early": 1}
    content[1000] = {"text": "a", "late": 1}
    write(path, content)
    _, faults = read(path, streaming=True)
    assert faults == [
        "row 1001 (line 1001): has a column `late`, which none of the first 1,000 rows has (choose the columns with `labels`)"
    ]
    samples, faults = read(path, streaming=True, labels="early")
    assert faults == []
    assert samples is not None
    assert np.nansum(samples.labels["early"]) == 1


def parquet(content: list[Json] | pa.Table, **options: Any) -> bytes:
    buffer = io.BytesIO()
    table = pa.Table.from_pylist(content) if isinstance(content, list) else content
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def flipped() -> bytes:
    plain: Json = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    content = [{"text": f"prompt {i}"} for i in range(1000)]
    damaged = bytearray(parquet(content, row_group_size=600, **plain))
    damaged[damaged.index(b"prompt 700")] ^= 1
    return bytes(damaged)


def bad_utf8() -> bytes:
    offsets = pa.array([0, 1, 3], pa.int32()).buffers()[1]
    return parquet(pa.table({"text": pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"a\xff\xfe"))}))


GOOD = parquet([{"text": "a", "n": 1}])

# files, the path to read, and the beginnings of the messages
UNREADABLE: dict[str, tuple[dict[str, bytes], str, list[str]]] = {
    "empty folder": ({}, "", ["cannot be read as a dataset: The directory at "]),
    "no match": ({}, "*.parquet", ["*.parquet: matches no file (check the pattern)"]),
    "other type": ({"a.csv": b"text\na\n"}, "*.csv", ["*.csv: cannot be read as a stream: .csv (give shards of one type: .parquet, .jsonl, .ndjson)"]),
    "two types": ({"a.parquet": GOOD, "b.jsonl": b"{}"}, "*", ["*: cannot be read as a stream: .jsonl, .parquet (give shards of one type"]),
    "csv": ({"a.csv": b"text\na\n"}, "a.csv", ["a.csv: cannot be read as a stream: .csv (give shards of one type"]),
    "no parquet": (
        {"a.parquet": b"PAR1", "b.parquet": GOOD, "c.parquet": b""},
        "*",
        [
            "a.parquet: cannot be read as Parquet: Parquet file size is 4 bytes",
            "c.parquet: cannot be read as Parquet: Parquet file size is 0 bytes",
        ],
    ),
    "cut short": ({"a.parquet": GOOD[:-30]}, "*", ["a.parquet: cannot be read as Parquet: "]),
    "a flipped bit": (
        {"a.parquet": parquet([{"text": "a"}]), "b.parquet": flipped()},
        "*",
        ["b.parquet: cannot be read as Parquet after row "],
    ),
    "bad UTF-8": ({"a.parquet": bad_utf8()}, "*", ["a.parquet: cannot be read as Parquet after row 0: In column 0: Invalid: Invalid UTF8 sequence"]),
    "a column twice": (
        {"a.parquet": parquet(pa.Table.from_arrays([pa.array(["a"])] * 2, names=["text", "text"]))},
        "*",
        ["a.parquet: column `text` occurs twice (rename one)"],
    ),
    "a column less": (
        {"a.parquet": GOOD, "b.parquet": parquet([{"text": "b"}]), "c.parquet": parquet([{"n": 1}])},
        "*",
        ["b.parquet: has no column `n`, which a.parquet has", "c.parquet: has no column `text`, which a.parquet has"],
    ),
    "another type": ({"a.parquet": GOOD, "b.parquet": parquet([{"text": "b", "n": "1"}])}, "*", ["column `n`: holds int, str, which a single label cannot store"]),
    "no rows": ({"a.parquet": parquet(pa.table({"text": pa.array([], pa.string())}))}, "*", ["*: holds no rows that match the options"]),
    "no lines": ({"a.jsonl": b"\n \n", "b.jsonl": b""}, "*", ["a.jsonl: holds no rows"]),
    "no objects": ({"a.jsonl": b"1\n2"}, "*", ["row 1 (line 1): holds a int, not an object", "row 2 (line 2): holds a int, not an object"]),
}  # fmt: skip


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable(name: str, tmp_path: Path) -> None:
    files, data, messages = UNREADABLE[name]
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    samples, faults = read(tmp_path / data, streaming=True)
    assert samples is None
    assert len(faults) == len(messages)
    for fault, message in zip(faults, messages, strict=True):
        assert message in fault


CHILD = """
import pathlib, re, sys
import actkit.samples, actkit.sources, actkit.config_faults, pyarrow.parquet
config, faults = actkit.config_faults.check({"model": "m", "data": sys.argv[1], "out": "o", "streaming": True})
source, faults = actkit.sources.open_source(config)
scan, faults = actkit.data_scan.scan(source, config, lambda rows: [""] * len(rows))
assert not faults, faults
blocks = actkit.samples.portions(source, scan, config, size=128)
assert sum(map(len, blocks)) == int(sys.argv[2])
print(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
"""


def peak_of(data: Path, count: int) -> float:
    """Return the megabytes that a fresh process needs to scan the rows and yield all samples."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak that getrusage knows of may be that of the parent")
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(data), str(count)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    )
    return int(child.stdout) / 1024


def write_long_shards(folder: Path, count: int, suffix: str) -> None:
    for shard in range(count // 5000):
        rows, path = long_rows(shard * 5000, 5000), folder / f"{shard:03}.{suffix}"
        if suffix == "jsonl":
            write(path, rows)
        else:
            pq.write_table(pa.Table.from_pylist(rows), path)


def long_rows(start: int, count: int) -> list[Json]:
    words = np.random.default_rng(start).integers(0, 2**63, size=(count, 11))
    return [
        {"sample_id": f"s{start + i}", "text": " ".join(map(str, row)), "n": i} for i, row in enumerate(words)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "form", ["jsonl", "one row group", pytest.param("parquet", marks=pytest.mark.nightly)]
)
def test_memory_does_not_grow_with_the_rows(form: str, tmp_path: Path) -> None:
    few, many = 10_000, 100_000
    needed = {}
    for count in (few, many):
        data: Path = tmp_path / str(count) / f"*.{form}"
        (tmp_path / str(count)).mkdir()
        if form == "one row group":
            data = tmp_path / str(count) / "data.parquet"
            pq.write_table(pa.Table.from_pylist(long_rows(0, count)), data, row_group_size=count)
        else:
            write_long_shards(tmp_path / str(count), count, form)
        needed[count] = peak_of(data, count)
    size = sum(path.stat().st_size for path in (tmp_path / str(many)).glob(data.name))
    print(
        f"{form}: {needed[few]:.0f} MB for {few} rows, {needed[many]:.0f} MB for {many}, in {size / 2**20:.0f} MB"
    )
    assert needed[many] - needed[few] < 16
