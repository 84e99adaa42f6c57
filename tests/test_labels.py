"""The other columns become labels: of the right dtype, with names that arrays can have; or are refused."""

# ruff: noqa: E501 - a table of exact messages is easier to read unbroken

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actkit.schema import VARIABLES
from tests.reading import Read, read_file


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
]

NO_LABELS: list[tuple[list[Any], str]] = [
    ([1, "a"], "holds int, str, which no single label can keep"),
    ([True, None], "holds bool and gaps, which no single label can keep"),
    ([True, 1], "holds bool, int, which no single label can keep"),
    ([2**63, 1], "holds whole numbers too large to keep exactly"),
    ([2**53 + 1, None], "holds whole numbers too large to keep exactly"),
    ([2**53 + 1, 0.5], "holds whole numbers too large to keep exactly"),
    ([[1, 2], [3, 4]], "holds list, which no single label can keep"),
    ([[1, 2], [3]], "holds list, which no single label can keep"),
    ([{"a": 1}, "b"], "holds dict, str, which no single label can keep"),
    (["a", "\ud800"], "holds text that no UTF-8 can store"),
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
    samples, faults = read(rows)
    assert samples is None
    assert faults == [f"column `label`: {what} (convert it to text, or leave it out with `labels`)"]
    samples, faults = read(rows, labels=[])
    assert faults == []
    assert samples is not None


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
        "when": pa.array([0], pa.timestamp("us")),
        "category": pa.array(["x"]).dictionary_encode(),
        "small": pa.array([3], pa.uint8()),
        "large": pa.array([2**64 - 1], pa.uint64()),
    }
    pq.write_table(pa.table(columns), path)
    samples, faults = read_file(path)
    assert samples is None
    mend = "(convert it to text, or leave it out with `labels`)"
    assert faults == [
        f"column `bytes`: holds bytes, which no single label can keep {mend}",
        f"column `when`: holds datetime, which no single label can keep {mend}",
        f"column `large`: holds whole numbers too large to keep exactly {mend}",
    ]
    samples, faults = read_file(path, labels="category,small")
    assert faults == []
    assert samples is not None
    assert {name: values.tolist() for name, values in samples.labels.items()} == {
        "category": ["x"],
        "small": [3],
    }
