"""Other columns become labels of the right dtype under valid array names, or are rejected."""

# ruff: noqa: E501 - a table of exact messages is easier to read unbroken

from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actkit.schema import VARIABLES
from tests.data_files import Read, read_file


def test_labels_can_be_left_out(read: Read) -> None:
    samples, faults = read("text,a,language_\nx,1,2\n", labels=[])
    assert faults == []
    assert samples is not None
    assert samples.labels == {}


LABELS: list[tuple[list[Any], str, list[Any]]] = [
    (["a", "ب"], "object", ["a", "ب"]),
    (["a", None], "object", ["a", ""]),
    ([None, None], "object", ["", ""]),
    ([1, -2], "int64", [1, -2]),
    ([2**53 + 1, 2**63 - 1], "int64", [2**53 + 1, 2**63 - 1]),
    ([1, None], "float64", [1.0, np.nan]),
    ([2**53, None], "float64", [2.0**53, np.nan]),
    ([1, 0.5], "float64", [1.0, 0.5]),
    ([0.1, float("nan")], "float64", [0.1, np.nan]),
    ([True, False], "bool", [True, False]),
    ([True, None, False], "float64", [1.0, np.nan, 0.0]),
    ([True, float("nan")], "float64", [1.0, np.nan]),
    (["a", float("nan")], "object", ["a", ""]),
    ([1, "", 2], "float64", [1.0, np.nan, 2.0]),
    ([0.5, ""], "float64", [0.5, np.nan]),
    (["", True, False], "float64", [np.nan, 1.0, 0.0]),
    (["", ""], "object", ["", ""]),
]

NO_LABELS: list[tuple[list[Any], str]] = [
    ([1, "a"], "holds int, str, which a single label cannot store"),
    ([True, 1], "holds bool, int, which a single label cannot store"),
    ([2**63, 1], "holds whole numbers too large to store exactly"),
    ([2**53 + 1, None], "holds whole numbers too large to store exactly"),
    ([2**53 + 1, 0.5], "holds whole numbers too large to store exactly"),
    ([[1, 2], [3, 4]], "holds list, which a single label cannot store"),
    ([[1, 2], [3]], "holds list, which a single label cannot store"),
    ([{"a": 1}, "b"], "holds dict, str, which a single label cannot store"),
    (["a", "\ud800"], "holds text that UTF-8 cannot store"),
]


@pytest.mark.parametrize(("values", "dtype", "expected"), LABELS, ids=[str(case[0]) for case in LABELS])
def test_labels_keep_their_values(values: list[Any], dtype: str, expected: list[Any], read: Read) -> None:
    samples, faults = read([{"text": "x", "label": value} for value in values])
    assert faults == []
    assert samples is not None
    assert samples.labels["label"].dtype == dtype
    np.testing.assert_array_equal(samples.labels["label"], np.array(expected, dtype=dtype))


@pytest.mark.parametrize(("values", "what"), NO_LABELS, ids=[ascii(case[0]) for case in NO_LABELS])
def test_labels_that_would_lose_values_are_refused(values: list[Any], what: str, read: Read) -> None:
    rows = [{"text": "x", "label": value} for value in values]
    samples, faults = read(rows, labels="label")
    assert samples is None
    assert faults == [f"column `label`: {what} (convert it to text, or leave it out with `labels`)"]
    samples, faults = read(rows, labels=[])
    assert faults == []
    assert samples is not None


def test_objects_and_lists_are_no_labels_unless_they_are_named(read: Read) -> None:
    samples, faults = read([{"text": "x", "tags": ["a"], "meta": {"age": 3}, "n": 1}])
    assert faults == []
    assert samples is not None
    assert list(samples.labels) == ["n"]


HOSTILE_NAMES = [
    "../../etc/x", "/etc/x", "a/b", "a\\b", "a\0b", "", " ", ".", "..", "...", "__x", "zarr.json", "x.partial",
    "x" * 201, "ع" * 101, "half \ud800 pair",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=ascii)
def test_columns_that_cannot_be_arrays_are_refused(name: str, read: Read) -> None:
    rows = [{"text": "x", name: "y"}]
    samples, faults = read(rows)
    assert samples is None
    assert faults == [
        f": column {name!r} cannot be the name of an array (rename it, or choose the columns with `labels`)"
    ]
    samples, faults = read(rows, labels=[])
    assert faults == []
    assert samples is not None


@pytest.mark.parametrize(
    "name", [name for name in (*VARIABLES, "hidden") if name not in ("text", "sample_id")]
)
def test_columns_with_names_of_the_cube_are_refused(name: str, read: Read) -> None:
    samples, faults = read(
        [{"sentence": "x", "lang": "y", name: "z"}], text_column="sentence", language_column="lang"
    )
    assert samples is None
    assert faults == [
        f": column `{name}` has the name of a variable of the cube (rename it, or choose the columns with `labels`)"
    ]


@pytest.mark.parametrize("name", ["Image ID", "عمود", "a.b", "c", "...x", "a:b", "100%", "x" * 200])
def test_other_names_are_taken(name: str, read: Read) -> None:
    samples, faults = read([{"text": "x", name: "y"}])
    assert faults == []
    assert samples is not None
    assert list(samples.labels) == [name]


def test_types_of_parquet_that_no_label_keeps(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    columns = {
        "text": ["a"],
        "bytes": pa.array([b"x"]),
        "how long": pa.array([0], pa.duration("us")),
        "category": pa.array(["x"]).dictionary_encode(),
        "small": pa.array([3], pa.uint8()),
        "large": pa.array([2**64 - 1], pa.uint64()),
    }
    pq.write_table(pa.table(columns), path)
    samples, faults = read_file(path)
    assert samples is None
    hint = "(convert it to text, or leave it out with `labels`)"
    assert faults == [
        f"column `bytes`: holds bytes, which a single label cannot store {hint}",
        f"column `how long`: holds timedelta, which a single label cannot store {hint}",
        f"column `large`: holds whole numbers too large to store exactly {hint}",
    ]
    samples, faults = read_file(path, labels="category,small")
    assert faults == []
    assert samples is not None
    assert {name: values.tolist() for name, values in samples.labels.items()} == {
        "category": ["x"],
        "small": [3],
    }


DAY = {
    "days": [datetime(2024, 7, 26), None, datetime(999, 1, 1)],
    "times": [datetime(2024, 7, 26), None, datetime(2024, 7, 26, 9, 30)],
}
DAY_TEXTS = {
    "days": ["2024-07-26", "", "0999-01-01"],
    "times": ["2024-07-26T00:00:00", "", "2024-07-26T09:30:00"],
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("unit", ["s", "ms", "us", "date32", "date64"])
@pytest.mark.parametrize("name", DAY)
def test_midnights_of_parquet_are_dates_where_no_cell_has_a_time(
    name: str, unit: str, streaming: bool, tmp_path: Path
) -> None:
    path = tmp_path / "data.parquet"
    dtype = {"date32": pa.date32(), "date64": pa.date64()}.get(unit) or pa.timestamp(unit)
    cells = pa.array(DAY[name], pa.timestamp("us")).cast(dtype, safe=False)
    pq.write_table(pa.table({"text": ["a", "b", "c"], "when": cells}), path)
    samples, faults = read_file(path, streaming=streaming)
    assert faults == []
    assert samples is not None
    texts = DAY_TEXTS[name] if unit[0] != "d" else [text[:10] for text in DAY_TEXTS[name]]
    assert samples.labels["when"].tolist() == texts


@pytest.mark.parametrize("kind", ["days", "nanoseconds", "in a zone"])
def test_dates_of_pandas_are_the_same_in_each_format(kind: str, tmp_path: Path) -> None:
    when = {
        "days": pd.to_datetime(["2024-07-26", None, "2024-07-27"]),
        "nanoseconds": pd.to_datetime(
            ["2024-07-26", None, "2024-07-26T00:00:00.000000001"], format="ISO8601"
        ),
        "in a zone": pd.to_datetime(["2024-07-26", None, "2024-07-27"]).tz_localize("Europe/Berlin"),
    }[kind]
    wanted = {
        "days": ["2024-07-26", "", "2024-07-27"],
        "nanoseconds": ["2024-07-26T00:00:00", "", "2024-07-26T00:00:00.000000001"],
        "in a zone": ["2024-07-26T00:00:00+02:00", "", "2024-07-27T00:00:00+02:00"],  # a moment, not a day
    }[kind]
    table = pd.DataFrame({"text": ["a", "b", "c"], "when": when})
    table.to_parquet(tmp_path / "data.parquet")
    if kind == "days":
        table.to_excel(tmp_path / "data.xlsx", index=False)
        table.to_csv(tmp_path / "data.csv", index=False)
    for path in tmp_path.iterdir():
        samples, faults = read_file(path)
        assert faults == []
        assert samples is not None
        assert samples.labels["when"].tolist() == wanted, path


def test_dates_become_text_that_sorts_as_they_do(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    columns = {
        "text": ["a", "b", "c"],
        "day": [date(2024, 7, 26), None, date(999, 1, 1)],
        "moment": [datetime(2024, 7, 26, 12), None, datetime(2024, 7, 26, 9, 30)],
    }
    pq.write_table(pa.table(columns), path)
    samples, faults = read_file(path)
    assert faults == []
    assert samples is not None
    assert {name: values.tolist() for name, values in samples.labels.items()} == {
        "day": ["2024-07-26", "", "0999-01-01"],
        "moment": ["2024-07-26T12:00:00", "", "2024-07-26T09:30:00"],
    }
