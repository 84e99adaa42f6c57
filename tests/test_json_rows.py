"""Arrays of objects in .json files give the same rows as JSONL, or faults with their location."""

# ruff: noqa: E501 - a table of exact messages is easier to read unbroken

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actkit.tables import read_table
from tests.data_files import read_file

ARRAY = "(write an array of objects: [{…}, {…}])"
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip


@pytest.mark.slow
@given(
    rows=st.lists(st.fixed_dictionaries({"a": json_values}, optional={"b": json_values}), min_size=1, max_size=4),
    indent=st.sampled_from([None, 2]),
)  # fmt: skip
def test_an_array_has_the_rows_of_jsonl(
    rows: list[dict[str, Any]], indent: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("json")
    (folder / "a.json").write_text(json.dumps(rows, indent=indent))
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (array, faults), (lines, more) = (read_table(folder / name) for name in ("a.json", "a.jsonl"))
    assert faults == more == []
    assert array is not None
    assert lines is not None
    assert array.columns == lines.columns


def test_what_pandas_writes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    table = pd.DataFrame({"text": ["a", "ب"], "n": [1, 2], "flag": [True, None]})
    table.to_json(path, orient="records")
    samples, faults = read_file(path)
    assert faults == []
    assert samples is not None
    assert samples.text.tolist() == ["a", "ب"]
    assert samples.labels["n"].tolist() == [1, 2]
    table.to_json(path, orient="columns")
    assert read_file(path)[1] == [
        f"{path}: holds one object with `text`, `n`, `flag`, not an array of rows {ARRAY}"
    ]


def test_lines_of_objects_in_a_json_file_are_rows(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text('\ufeff{"text": "a"}\r\n{"text": "b"}\r\n')
    table, faults = read_table(path)
    assert faults == []
    assert table is not None
    assert table.columns == {"text": ["a", "b"]}


def test_rows_are_named_by_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text('[\n  {\n    "text": "a"\n  },\n\n  {"text": "b\\nc"}, {"text": "d"}]\n')
    table, _ = read_table(path)
    assert table is not None
    assert [table.where(row) for row in range(3)] == ["row 1 (line 2)", "row 2 (line 6)", "row 3 (line 6)"]


REFUSED = {
    "nothing": ("", [f": is not JSON at line 1, column 1: Expecting value {ARRAY}"]),
    "no rows": (" [ ] ", [": holds no rows"]),
    "a number": ("3", [f": holds a int, not an array of rows {ARRAY}"]),
    "rows in an object": ('{"data": [{"text": "a"}]}', [f": holds one object with `data`, not an array of rows {ARRAY}"]),
    "cut off": ('[{"text": "a"},\n {"text": ', [f": is not JSON at line 2, column 11: Expecting value {ARRAY}"]),
    "not closed": ('[{"text": "a"}', [f": is not JSON at line 1, column 15: Expecting ',' delimiter {ARRAY}"]),
    "a comma too many": ('[{"text": "a"},]', [f": is not JSON at line 1, column 16: Expecting value {ARRAY}"]),
    "more after it": ('[{"text": "a"}]\n[]', [f": is not JSON at line 1, column 16: Extra data {ARRAY}"]),
    "each row at fault": (
        '[{"a": 1, "a": 2},\n3,\n{"b": {"c": 1, "c": 1}}]',
        [
            f", line 1: cannot be read: `a` is given twice {ARRAY}",
            f", line 2: holds a int, not an object {ARRAY}",
            f", line 3: cannot be read: `c` is given twice {ARRAY}",
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    content, messages = REFUSED[name]
    path = tmp_path / "data.json"
    path.write_text(content)
    table, faults = read_table(path)
    assert table is None
    assert [str(fault) for fault in faults] == [f"{path}{message}" for message in messages]


def test_brackets_without_end_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text("[" * 100_000)
    table, (fault,) = read_table(path)
    assert table is None
    assert "recursion" in fault.what
