"""Nested fields are columns under dotted paths, in every nested format."""

# ruff: noqa: E501 - a table of exact messages is easier to read unbroken

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data_files import read_file

ROWS: list[dict[str, Any]] = [
    {"task": {"prompt": "a", "meta": {"gender": "f", "age": 3}}, "id": {"name": "x"}, "n": 1},
    {"task": {"prompt": "b", "meta": {"gender": None, "age": None}}, "id": {"name": "y"}, "n": 2},
    {"task": {"prompt": "c", "meta": None}, "id": {"name": "z"}, "n": 3},
]
NAMED = {
    "text_column": "task.prompt",
    "id_column": "id.name",
    "labels": ["task.meta.gender", "task.meta.age"],
}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_paths_name_the_cells_that_pandas_flattens(suffix: str, streaming: bool, tmp_path: Path) -> None:
    if streaming and suffix == ".json":
        pytest.skip("is no stream")
    samples, faults = read_file(write(tmp_path / f"data{suffix}", ROWS), streaming=streaming, **NAMED)
    assert faults == []
    assert samples is not None
    flat = pd.json_normalize(ROWS)
    assert samples.text.tolist() == flat["task.prompt"].tolist()
    assert samples.sample_id.tolist() == flat["id.name"].tolist()
    assert samples.labels["task.meta.gender"].tolist() == flat["task.meta.gender"].fillna("").tolist()
    assert samples.labels["task.meta.age"][0] == 3
    assert pd.isna(samples.labels["task.meta.age"]).tolist() == flat["task.meta.age"].isna().tolist()


def test_objects_that_a_path_goes_through_are_no_labels(tmp_path: Path) -> None:
    samples, faults = read_file(write(tmp_path / "data.jsonl", ROWS), text_column="task.prompt")
    assert faults == []
    assert samples is not None
    assert list(samples.labels) == ["n"]


def test_a_column_of_that_name_comes_first(tmp_path: Path) -> None:
    rows = [{"task": {"prompt": "inner"}, "task.prompt": "outer", "a.b": {"c": 1}, "a": {"b": {"c": 2}}}]
    samples, faults = read_file(
        write(tmp_path / "data.jsonl", rows), text_column="task.prompt", labels="a.b.c"
    )
    assert faults == []
    assert samples is not None
    assert samples.text.tolist() == ["outer"]
    assert samples.labels["a.b.c"].tolist() == [1]


def test_rows_are_chosen_by_nested_categories_and_languages(tmp_path: Path) -> None:
    rows = [
        {"text": str(i), "meta": {"lang": "en" if i % 2 else "ar", "topic": "ab"[i // 4]}} for i in range(8)
    ]
    samples, faults = read_file(
        write(tmp_path / "data.jsonl", rows),
        language_column="meta.lang",
        languages="en,ar",
        category_column="meta.topic",
        categories="b",
    )
    assert faults == []
    assert samples is not None
    assert samples.text.tolist() == ["4", "5", "6", "7"]
    assert samples.language.tolist() == ["ar", "en", "ar", "en"]
    assert samples.labels["meta.topic"].tolist() == ["b"] * 4


def test_a_path_to_nothing_names_the_fields_that_there_are(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", ROWS)
    _, faults = read_file(path, text_column="task.promt")
    assert faults == [
        f"{path}: has no column `task.promt` (it has task, id, n; `task` has task.prompt, task.meta; set `text_column`)"
    ]
    samples, faults = read_file(path, text_column="task.prompt", labels="task.meta.gendr,n.x")
    assert samples is None
    assert faults == [
        f"{path}: has no column `{name}` (it has task, id, n, task.prompt; `task` has task.prompt, task.meta; set `labels`)"
        for name in ("task.meta.gendr", "n.x")
    ]


def test_a_path_through_no_object_is_a_row_at_fault(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "meta": {"age": 1}},
        {"text": "b", "meta": "unknown"},
        {"text": "c", "meta": None},
        {"text": "d"},
    ]
    path = write(tmp_path / "data.jsonl", rows)
    _, faults = read_file(path, labels="meta.age")
    assert faults == [
        "row 2 (line 2): `meta` holds a str, which has no field `age` (write an object, or null)"
    ]
    samples, faults = read_file(path, labels="meta.age", on_bad_row="skip")
    assert faults == []
    assert samples is not None
    assert samples.text.tolist() == ["a", "c", "d"]
