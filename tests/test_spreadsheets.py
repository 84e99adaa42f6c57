"""Sheets of .xlsx files: cells keep their types, and faults name the cell."""

# ruff: noqa: E501 - a table of exact messages is easier to read unbroken

import io
import re
import zipfile
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Any

import openpyxl
import pandas as pd
import pytest

from actkit import spreadsheets
from actkit.tables import Table, read_table
from tests.data_files import read_file


def read_book(path: Path, change: Callable[[Any], None]) -> tuple[Table | None, list[str]]:
    book = openpyxl.Workbook()
    sheet = book.active
    for row in (["text", "n"], ["a", 1], ["b", 2]):
        sheet.append(row)
    change(book)
    book.save(path)
    table, faults = read_table(path)
    return table, [str(fault).removeprefix(str(path)) for fault in faults]


def test_cells_keep_their_types(tmp_path: Path) -> None:
    path = tmp_path / "data.XLSX"
    columns = {
        "text": ["الطَّبِيبُ يَقْرَأُ", "two\nlines", "007", "NA"],
        "whole": [1, None, -3, 2**40],
        "fraction": [0.5, 1.0, None, 2.0],
        "flag": [True, None, False, True],
        "day": [date(2024, 7, 26), None, date(1999, 12, 31), date(2024, 2, 29)],
        "moment": [datetime(2024, 7, 26, 9, 30), datetime(2024, 7, 27), None, None],
    }
    book = openpyxl.Workbook()
    book.active.append(list(columns))
    for row in zip(*columns.values(), strict=True):
        book.active.append(row)
    book.save(path)
    table, faults = read_table(path)
    assert faults == []
    assert table is not None
    # workbooks store dates as datetimes
    midnights = [cell and datetime(cell.year, cell.month, cell.day) for cell in columns["day"]]
    assert table.columns == columns | {"day": midnights}
    assert [type(cell) for cell in table.columns["whole"]] == [int, type(None), int, int]
    samples, faults = read_file(path)
    assert faults == []
    assert samples is not None
    assert samples.labels["day"].tolist() == ["2024-07-26", "", "1999-12-31", "2024-02-29"]
    assert samples.labels["whole"][[0, 2]].tolist() == [1, -3]


ESCAPED = {  # text as Excel writes it, and the content of the cell
    "Two_x000D_\nmen.": "Two\r\nmen.",
    "a_x0009_b_x000a_": "a\tb\n",
    "_x005F_x000D_": "_x000D_",
    "x005F_ and _x00_ and _x000D": "x005F_ and _x00_ and _x000D",
}


def share_strings(path: Path) -> None:
    """Move the texts of a sheet into a separate part, as Excel does."""
    changed, texts = io.BytesIO(), list[str]()

    def shared(match: re.Match[str]) -> str:
        texts.append(match[1])
        return f't="s"><v>{len(texts) - 1}</v>'

    with zipfile.ZipFile(path) as old, zipfile.ZipFile(changed, "w") as new:
        parts = {item.filename: old.read(item).decode() for item in old.infolist()}
        sheet = "xl/worksheets/sheet1.xml"
        parts[sheet] = re.sub(r't="inlineStr"><is>(.*?)</is>', shared, parts[sheet], flags=re.DOTALL)
        items = "".join(f"<si>{text}</si>" for text in texts)
        space = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
        parts["xl/sharedStrings.xml"] = f'<sst xmlns="{space}">{items}</sst>'
        kind = "application/vnd.openxmlformats-officedocument.spreadsheetml.sharedStrings+xml"
        override = f'<Override PartName="/xl/sharedStrings.xml" ContentType="{kind}"/></Types>'
        parts["[Content_Types].xml"] = parts["[Content_Types].xml"].replace("</Types>", override)
        for name, content in parts.items():
            new.writestr(name, content)
    path.write_bytes(changed.getvalue())


@pytest.mark.parametrize("inline", [False, True])
def test_escaped_characters_are_read_as_such(inline: bool, tmp_path: Path) -> None:
    path = tmp_path / "data.xlsx"
    book = openpyxl.Workbook()
    for row in (["_x0074_ext", "n"], *([text, 1] for text in ESCAPED)):
        book.active.append(row)
    book.save(path)
    if not inline:
        share_strings(path)
    with zipfile.ZipFile(path) as archive:
        assert (b"inlineStr" in archive.read("xl/worksheets/sheet1.xml")) == inline
    table, faults = read_table(path)
    assert faults == []
    assert table is not None
    assert table.columns["text"] == list(ESCAPED.values())


def test_what_pandas_writes_is_read_with_its_index_left_out(tmp_path: Path) -> None:
    path = tmp_path / "data.xlsx"
    table = pd.DataFrame({"text": ["a", "b"], "n": [1, 2]})
    table.to_excel(path)
    samples, faults = read_file(path)
    assert faults == []
    assert samples is not None
    assert samples.text.tolist() == table["text"].tolist()
    assert {name: values.tolist() for name, values in samples.labels.items()} == {"n": [1, 2]}


def hidden_and_empty_sheets(book: Any) -> None:
    book.create_sheet("empty")
    hidden = book.create_sheet("lists")
    hidden.append(["choices"])
    hidden.sheet_state = "hidden"


def blank_rows_and_columns(book: Any) -> None:
    sheet = book.active
    sheet.insert_rows(1, 2)
    sheet.append([])
    sheet.append([None, None])
    sheet["A10"].font = openpyxl.styles.Font(bold=True)
    sheet["F4"].fill = openpyxl.styles.PatternFill("solid", "FF0000")


def widths_of_cells(book: Any) -> None:
    book.active.append([None, None, None])
    book.active["B3"] = "=1+1"
    book.active["B3"] = 2


@pytest.mark.parametrize("change", [hidden_and_empty_sheets, blank_rows_and_columns, widths_of_cells])
def test_what_does_not_matter_is_left_out(change: Callable[[Any], None], tmp_path: Path) -> None:
    table, faults = read_book(tmp_path / "data.xlsx", change)
    assert faults == []
    assert table is not None
    assert table.columns == {"text": ["a", "b"], "n": [1, 2]}


def test_rows_are_named_by_those_of_the_sheet(tmp_path: Path) -> None:
    table, _ = read_book(tmp_path / "data.xlsx", lambda book: book.active.insert_rows(3))
    assert table is not None
    assert [table.where(row) for row in range(2)] == ["row 1 (line 2)", "row 2 (line 4)"]


def two_sheets(book: Any) -> None:
    book.active.title = "2023"
    book.create_sheet("2024").append(["text"])


def formula(book: Any) -> None:
    book.active["B3"] = "=SUM(B2)"


def merged(book: Any) -> None:
    book.active["A4"] = "c"
    book.active.merge_cells("A3:A4")


def beyond(book: Any) -> None:
    book.active["D3"] = "note"


def error_cell(book: Any) -> None:
    book.active["B2"] = "#DIV/0!"
    book.active["B2"].data_type = "e"


REFUSED: dict[str, tuple[Callable[[Any], None], list[str]]] = {
    "several sheets": (two_sheets, [": holds 2 sheets: 2023, 2024 (save the intended sheet as a separate file)"]),
    "a formula never computed": (formula, [", cell B3: holds a formula without a saved value (open the file in a spreadsheet program and save it)"]),
    "merged cells": (merged, [": merges cells A3:A4, of which only one holds the value (unmerge them and fill in each cell)"]),
    "a cell beyond the header": (beyond, [", cell D3: holds a value in a column that the header does not name (name the column)"]),
    "an error": (error_cell, [", cell B2: holds the error #DIV/0! (correct it)"]),
    "a name twice": (lambda book: book.active.__setitem__("B1", "text"), [": column `text` occurs twice (rename one)"]),
    "no rows": (lambda book: book.active.delete_rows(2, 2), [": holds no rows"]),
    "nothing": (lambda book: book.active.delete_rows(1, 3), [": holds no rows"]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    change, messages = REFUSED[name]
    table, faults = read_book(tmp_path / "data.xlsx", change)
    assert table is None
    assert faults == messages


def test_a_formula_is_the_value_that_was_saved_with_it(tmp_path: Path) -> None:
    path = tmp_path / "data.xlsx"
    read_book(path, formula)
    for known, value in (("<v>7</v>", 7), ('" t="str"><f>SUM(B2)</f><v></v>', None)):
        changed = io.BytesIO()
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(changed, "w") as new:
            for item in old.infolist():
                text = old.read(item)
                if item.filename.endswith("sheet1.xml"):
                    before = b'"><f>SUM(B2)</f><v />' if b"<v />" in text else b'"><f>SUM(B2)</f><v></v>'
                    after = known if value is None else f'"><f>SUM(B2)</f>{known}'
                    assert before in text
                    text = text.replace(before, after.encode())
                new.writestr(item.filename, text)
        other = tmp_path / "computed.xlsx"
        other.write_bytes(changed.getvalue())
        table, faults = read_table(other)
        assert faults == []
        assert table is not None
        assert table.columns["n"] == [1, value]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\xd0\xcf\x11\xe0" * 200, b"text,n\n"])
def test_what_is_no_workbook_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "data.xlsx"
    path.write_bytes(content)
    table, (fault,) = read_table(path)
    assert table is None
    assert fault.what == "is not an .xlsx file; is it an older .xls, or protected by a password?"


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.xlsx"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a")
    table, (fault,) = read_table(path)
    assert table is None
    assert fault.what.startswith("cannot be read as a workbook: ")


def test_what_unpacks_to_too_much_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data.xlsx"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/worksheets/sheet1.xml", b" " * (3 << 20))
    monkeypatch.setattr(spreadsheets, "MOST_BYTES", 2 << 20)
    monkeypatch.delattr("openpyxl.reader.excel.ExcelReader")
    table, (fault,) = read_table(path)
    assert table is None
    assert fault.what == "unpacks to 3 MB, more than 2"
