"""CSV with other delimiters, pandas indices and spreadsheet leftovers is recognised or reported."""

# ruff: noqa: E501 - a table of exact messages is easier to read unbroken

import io
from pathlib import Path

import pandas as pd
import pytest

from actkit.tables import read_table
from tests.data_files import read_file

TABLE = pd.DataFrame(
    {"text": ["a, b", "c;d", "e|f", 'g "h"', "i\tj\r\nk"], "label": ["x", "", "NA", "null", "None"]}
)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_each_delimiter_gives_the_cells_that_pandas_wrote(
    delimiter: str, bom: str, end: str, tmp_path: Path
) -> None:
    path = tmp_path / "data.csv"
    text = bom + TABLE.to_csv(index=False, sep=delimiter, lineterminator=end)
    path.write_bytes(text.encode())
    samples, faults = read_file(path)
    assert faults == []
    assert samples is not None
    assert samples.text.tolist() == TABLE["text"].tolist()
    # only an empty cell is a gap; words such as NA are text
    assert samples.labels["label"].tolist() == TABLE["label"].tolist()


RECOGNISED = {
    "other delimiters in cells": ("text,a\nx;y,1|2\n", {"text": ["x;y"], "a": ["1|2"]}),
    "another delimiter in a quoted name": ('text,"a;b"\nx,1;2\n', {"text": ["x"], "a;b": ["1;2"]}),
    "two delimiters, one declared": ("sep=,\ntext,a;b\nx,1;2\n", {"text": ["x"], "a;b": ["1;2"]}),
    "a comma in a quoted last name": ('n;"text, in full"\n1;a, b\n', {"n": ["1"], "text, in full": ["a, b"]}),
    "one column": ("text\na;b\nc\n", {"text": ["a;b", "c"]}),
    "a quoted name": ('"text;label"\nx\n', {"text;label": ["x"]}),
    "a comma in a quoted name": ('"text, in full";n\nx;1\n', {"text, in full": ["x"], "n": ["1"]}),
    "declared by Excel": ("sep=;\r\ntext;n\r\na,b;1\r\n", {"text": ["a,b"], "n": ["1"]}),
    "declared, an odd one": ("sep=^\ntext^n\na,b^1\n", {"text": ["a,b"], "n": ["1"]}),
    "an empty column at the edge": ("text,n,,\nx,1,,\ny,2,,\n", {"text": ["x", "y"], "n": ["1", "2"]}),
    "right to left": ("text;عمود\nx;ذكر\n", {"text": ["x"], "عمود": ["ذكر"]}),
}


@pytest.mark.parametrize("name", RECOGNISED)
def test_recognised(name: str, tmp_path: Path) -> None:
    content, columns = RECOGNISED[name]
    path = tmp_path / "data.csv"
    path.write_text(content, newline="")
    table, faults = read_table(path)
    assert faults == []
    assert table is not None
    assert table.columns == columns


QUOTE_NAMES = "(quote the names that hold one of them)"
REFUSED = {
    "two delimiters": ("text;a|b\nx;1|2\n", f", line 1: can be divided by `;` and by `|` {QUOTE_NAMES}"),
    "a comma in the names and in the cells": ("text, lang;label\nHallo, du;a\nTag, Sie;b\n", f", line 1: can be divided by `,` and by `;` {QUOTE_NAMES}"),
    "a comma in the names alone": ("Text, deutsch;label\nHallo;a\n", f", line 1: can be divided by `,` and by `;` {QUOTE_NAMES}"),
    "a comma and a tab": ("text, lang\tlabel\nHallo, du\ta\n", f", line 1: can be divided by `,` and by a tab {QUOTE_NAMES}"),
    "three": ("text, a;b\tc\n", f", line 1: can be divided by `,` and by `;` and by a tab {QUOTE_NAMES}"),
    "a delimiter in a cell": ("text;n\na;b;1\n", ", line 2: has 3 cells where the header has 2, divided by `;` (quote cells that hold the delimiter)"),
    "rows with another delimiter": ("text,n\nHallo;1\n", ", line 2: has 1 cells where the header has 2, divided by `,` (quote cells that hold the delimiter)"),
    "a declared one": ("sep=^\ntext^n\nHallo\n", ", line 3: has 1 cells where the header has 2, divided by `^` (quote cells that hold the delimiter)"),
    "UTF-16": ("text\tn\nx\t1\n".encode("utf-16"), ": is UTF-16 (save the file as UTF-8)"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    content, message = REFUSED[name]
    path = tmp_path / "data.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    table, faults = read_table(path)
    assert table is None
    assert [str(fault) for fault in faults] == [f"{path}{message}"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_an_index_that_pandas_wrote_is_no_label(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"data{suffix}"
    table = pd.DataFrame({"text": ["a", "b", "c"], "label": ["x", "y", "x"]})
    kept = table[table["label"] == "x"]
    kept.to_csv(path) if suffix == ".csv" else kept.to_parquet(path)
    samples, faults = read_file(path)
    assert faults == []
    assert samples is not None
    assert list(samples.labels) == ["label"]
    assert samples.sample_id.tolist() == ["0", "1"]


def test_an_index_that_went_through_pandas_twice_is_no_label_unless_it_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    once = pd.read_csv(io.StringIO(pd.DataFrame({"text": ["a"], "label": ["x"]}).to_csv()))
    pd.read_csv(io.StringIO(once.to_csv())).to_csv(path, index=False)
    assert path.read_text().startswith("Unnamed: 0.1,Unnamed: 0,text")
    samples, faults = read_file(path)
    assert faults == []
    assert samples is not None
    assert list(samples.labels) == ["label"]
    samples, faults = read_file(path, labels="Unnamed: 0")
    assert faults == []
    assert samples is not None
    assert samples.labels["Unnamed: 0"].tolist() == ["0"]


def test_another_column_without_a_name_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("text,,label\na,1,x\n")
    assert read_file(path)[1] == [
        f"{path}: column '' cannot be the name of an array (rename it, or choose the columns with `labels`)"
    ]
