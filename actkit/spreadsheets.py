"""Rows of .xlsx workbooks."""

import io
import re
import warnings
import zipfile
from collections.abc import Iterator
from typing import Any

from .csv_rows import Grid
from .errors import Fault
from .regular_files import MB, unpacked_bytes

MOST_BYTES = 256 * MB  # maximum uncompressed size of a workbook
_MOST_CELLS = 2 * 10**7  # maximum number of cells, each row counting as one more
_MOST_FAULTS = 1000
_MERGED = re.compile(rb'<(?:\w+:)?mergeCell\s[^>]*ref="([A-Z0-9:]+)"')
_AGAIN = "save the sheet as CSV"


def read_xlsx(where: str, content: bytes, most: int) -> tuple[Grid, list[Fault]]:
    """Read the only visible, non-empty sheet of a workbook; its first row is the header.

    Empty cells become None, whole numbers int, dates datetime. A formula has the value with which the file
    was saved.

    Parameters
    ----------
    where
        Name of the file.
    content
        Its bytes.
    most
        Maximum uncompressed size in bytes, but never more than 256 MB.

    Returns
    -------
    grid : Grid
    faults : list of Fault
        A file that is not a workbook or too large; several sheets; merged cells; and per cell: errors,
        formulas without a saved value, values outside the columns of the header.
    """
    nothing = Grid([], [], [])
    if what := _refused(content, min(most, MOST_BYTES)):
        return nothing, [Fault(where, what, _AGAIN)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # about styles and extensions, which are irrelevant here
            return _read(where, content)
    except MemoryError:  # says nothing about the file
        raise
    except Exception as error:  # openpyxl raises many types, such as XML, value and key errors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return nothing, [Fault(where, f"cannot be read as a workbook: {reason}", _AGAIN)]


def _refused(content: bytes, most: int) -> str:
    """Return the reason why a file is not opened at all; ``""`` if there is none."""
    try:
        size = unpacked_bytes(io.BytesIO(content))
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "is not an .xlsx file; is it an older .xls, or protected by a password?"
    return f"unpacks to {size / MB:,.0f} MB, more than {most / MB:,.0f}" if size > most else ""


def _read(where: str, content: bytes) -> tuple[Grid, list[Fault]]:
    book = _workbook(content, data_only=True)
    sheets = {}
    for sheet in book.worksheets:
        sheet.reset_dimensions()  # the declared size is often wrong
        if sheet.sheet_state == "visible" and any(
            cell.value is not None for row in _rows(sheet) for cell in row
        ):
            sheets[sheet.title] = sheet
    if len(sheets) > 1:
        what = f"holds {len(sheets)} sheets: {', '.join(sheets)}"
        return Grid([], [], []), [Fault(where, what, "save the intended sheet as a separate file")]
    if not sheets:
        return Grid([], [], []), []
    ((title, sheet),) = sheets.items()
    if merged := _MERGED.findall(sheet._get_source().read()):
        named = ", ".join(cells.decode() for cells in merged[:5]) + (", …" if len(merged) > 5 else "")
        what = f"merges cells {named}, of which only one holds the value"
        return Grid([], [], []), [Fault(where, what, "unmerge them and fill in each cell")]
    grid, faults, has_gaps = _cells(where, sheet)
    if has_gaps:  # a formula without a saved value looks like an empty cell
        formulas = _workbook(content, data_only=False)[title]
        formulas.reset_dimensions()
        faults += _uncomputed(where, sheet, formulas)
    return grid, faults


def _workbook(content: bytes, *, data_only: bool) -> Any:
    """Open a workbook with raw text, because openpyxl drops the escape of the underscore."""
    from openpyxl.reader.excel import ExcelReader

    reader = ExcelReader(io.BytesIO(content), read_only=True, data_only=data_only, keep_links=False)
    reader.read_strings = lambda: reader.shared_strings.extend(_shared_texts(reader))
    reader.read()
    return reader.wb


def _shared_texts(reader: Any) -> Iterator[str]:
    from openpyxl.cell.text import Text
    from openpyxl.xml.constants import SHARED_STRINGS, SHEET_MAIN_NS
    from openpyxl.xml.functions import iterparse

    part = reader.package.find(SHARED_STRINGS)
    if part is None:
        return
    with reader.archive.open(part.PartName[1:]) as source:
        for _, node in iterparse(source):
            if node.tag == f"{{{SHEET_MAIN_NS}}}si":
                yield Text.from_tree(node).content
                node.clear()


def _rows(sheet: Any) -> Iterator[Any]:
    """Yield the rows of a sheet up to a limit, because a few bytes can declare any number of wide rows."""
    count = 0
    for row in sheet.iter_rows():
        count += 1 + len(row)
        if count > _MOST_CELLS:
            raise ValueError(f"sheet {sheet.title} has more than {_MOST_CELLS:,} cells")
        yield row


def _cells(where: str, sheet: Any) -> tuple[Grid, list[Fault], bool]:
    from openpyxl.utils.escape import unescape

    names: list[str] = []
    rows: list[list[Any]] = []
    lines: list[int] = []
    faults: list[Fault] = []
    has_gaps = False
    for line, cells in enumerate(_rows(sheet), start=1):
        # `_x000D_` encodes a carriage return, and `_x005F_` the underscore of text that looks like an escape
        values = [unescape(cell.value) if isinstance(cell.value, str) else cell.value for cell in cells]
        while values and values[-1] is None:
            values.pop()
        if not values or len(faults) >= _MOST_FAULTS:
            continue
        for cell in cells[: len(values)]:
            if cell.data_type == "e":
                faults.append(
                    Fault(f"{where}, cell {cell.coordinate}", f"holds the error {cell.value}", "correct it")
                )
        if not names:
            names = ["" if value is None else str(value) for value in values]
            continue
        if len(values) > len(names):
            what = "holds a value in a column that the header does not name"
            faults.append(
                Fault(f"{where}, cell {cells[len(values) - 1].coordinate}", what, "name the column")
            )
        row = (values + [None] * len(names))[: len(names)]
        has_gaps |= None in row
        rows.append(row)
        lines.append(line)
    return Grid(names, rows, lines), faults, has_gaps


def _uncomputed(where: str, values: Any, formulas: Any) -> list[Fault]:
    what, hint = (
        "holds a formula without a saved value",
        "open the file in a spreadsheet program and save it",
    )
    return [
        Fault(f"{where}, cell {formula.coordinate}", what, hint)
        for known, written in zip(_rows(values), _rows(formulas), strict=True)
        for value, formula in zip(known, written, strict=True)
        # a formula whose value is an empty text has the text type
        if formula.data_type == "f" and value.value is None and value.data_type == "n"
    ][:_MOST_FAULTS]
