"""The right rows become samples, in order, with labels of the right dtype; or every fault is reported."""

# ruff: noqa: E501 - a table of exact messages is easier to read unbroken

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actkit.samples import Samples
from tests.data_files import Read, read_file

LONG = """\
sample_id,language,text,gender
s0,english,He reads.,male
s0,arabic,يقرأ.,male
s1,english,She reads.,female
s1,arabic,تقرأ.,female
"""
WIDE = """\
sample_id,en,ar,gender
s0,He reads.,يقرأ.,male
s1,She reads.,تقرأ.,female
"""


def rows_of(samples: Samples | None) -> list[tuple[str, str, str]]:
    assert samples is not None
    return list(zip(samples.sample_id, samples.language, samples.text, strict=True))


def test_long_form_keeps_the_order_of_the_file(read: Read) -> None:
    samples, faults = read(LONG)
    assert faults == []
    assert rows_of(samples) == [
        ("s0", "english", "He reads."),
        ("s0", "arabic", "يقرأ."),
        ("s1", "english", "She reads."),
        ("s1", "arabic", "تقرأ."),
    ]
    assert samples is not None
    assert {name: values.tolist() for name, values in samples.labels.items()} == {
        "gender": ["male", "male", "female", "female"]
    }


def test_wide_form_gives_the_same_samples(read: Read) -> None:
    long, _ = read(LONG)
    wide, faults = read(WIDE, text_columns={"english": "en", "arabic": "ar"})
    assert faults == []
    assert rows_of(wide) == rows_of(long)
    assert wide is not None
    assert long is not None
    assert {name: values.tolist() for name, values in wide.labels.items()} == {
        name: values.tolist() for name, values in long.labels.items()
    }


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"limit": 3}, ["s0 english", "s0 arabic", "s1 english"]),
        ({"limit": 99}, ["s0 english", "s0 arabic", "s1 english", "s1 arabic"]),
        ({"languages": "arabic"}, ["s0 arabic", "s1 arabic"]),
        ({"languages": "arabic,english"}, ["s0 english", "s0 arabic", "s1 english", "s1 arabic"]),
        ({"languages": "arabic", "limit": 1}, ["s0 arabic"]),
        ({"languages": "arabic", "limit": 2}, ["s0 arabic", "s1 arabic"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("form", ["long", "wide"])
def test_languages_are_chosen_before_the_limit_counts(
    form: str, options: dict[str, Any], expected: list[str], read: Read
) -> None:
    if form == "wide":
        options = {**options, "text_columns": "english=en,arabic=ar"}
    samples, faults = read(LONG if form == "long" else WIDE, **options)
    assert faults == []
    assert [f"{name} {language}" for name, language, _ in rows_of(samples)] == expected


def test_only_the_rows_asked_for_are_checked(read: Read) -> None:
    content = "language,text\nenglish,a\narabic,\nenglish,b\nenglish,\n"
    samples, faults = read(content, languages="english", limit=2)
    assert faults == []
    assert [text for _, _, text in rows_of(samples)] == ["a", "b"]


def test_other_columns_can_be_named(read: Read) -> None:
    samples, faults = read(
        "name,lang,sentence,n\n7,en,a,1\n",
        id_column="name",
        language_column="lang",
        text_column="sentence",
        labels="n",
    )
    assert faults == []
    assert rows_of(samples) == [("7", "en", "a")]
    assert samples is not None
    assert list(samples.labels) == ["n"]


def test_without_ids_and_languages_rows_are_counted(read: Read) -> None:
    samples, faults = read("text\na\na\n")
    assert faults == []
    assert rows_of(samples) == [("0", "unspecified", "a"), ("1", "unspecified", "a")]
    samples, faults = read("text\na\n", languages="english")
    assert faults == []
    assert rows_of(samples) == [("0", "english", "a")]


def test_whole_numbers_are_ids(read: Read) -> None:
    samples, faults = read([{"sample_id": 7, "text": "a"}, {"sample_id": "8", "text": "b"}])
    assert faults == []
    assert [name for name, _, _ in rows_of(samples)] == ["7", "8"]


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".xlsx"])
def test_whole_ids_that_a_gap_has_made_floats_are_whole(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"data{suffix}"
    table = pd.DataFrame({"sample_id": [1, None, 3], "text": ["a", "b", "c"]})
    if suffix == ".parquet":
        table.to_parquet(path)
    elif suffix == ".jsonl":
        path.write_text(
            '{"sample_id": 1.0, "text": "a"}\n{"sample_id": NaN, "text": "b"}\n{"sample_id": 3.0, "text": "c"}'
        )
    else:
        table.to_excel(path, index=False)
    line = "" if suffix == ".parquet" else " (line 3)" if suffix == ".xlsx" else " (line 2)"
    assert read_file(path)[1] == [f"row 2{line}: `sample_id` is empty (name the sample)"]
    samples, faults = read_file(path, on_bad_row="skip")
    assert faults == []
    assert rows_of(samples) == [("1", "unspecified", "a"), ("3", "unspecified", "c")]


def test_ids_that_floats_cannot_tell_apart_are_refused(read: Read) -> None:
    largest = 2.0**53
    samples, faults = read(
        [
            {"sample_id": largest - 1, "text": "a"},
            {"sample_id": 1.0, "text": "b"},
            {"sample_id": 1, "text": "c"},
            {"sample_id": largest, "text": "d"},
        ]
    )
    assert samples is None
    assert faults == [
        f"row 3 (line 3): sample_id `1` in unspecified is also that of row 2 (line 2) {UNIQUE}",
        "row 4 (line 4): `sample_id` holds a float, not text (name the sample)",
    ]


def test_categories_are_named_as_the_other_formats_write_them(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    table = pd.DataFrame(
        {
            "text": ["a", "b", "c"],
            "year": [2023, None, 2024],
            "day": pd.to_datetime(["2023-01-01", None, "2024-01-01"]),
        }
    )
    table.to_parquet(path)
    for column, name in (("year", "2024"), ("day", "2024-01-01")):
        samples, faults = read_file(path, category_column=column, categories=name)
        assert faults == []
        assert samples is not None
        assert samples.text.tolist() == ["c"]


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)


@pytest.mark.slow
@given(rows=st.lists(st.tuples(TEXTS, TEXTS, TEXTS), min_size=1, max_size=4, unique_by=lambda row: row[0]))
def test_the_four_formats_give_the_same_samples(
    rows: list[tuple[str, str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    columns = dict(zip(("sample_id", "text", "label"), map(list, zip(*rows, strict=True)), strict=True))
    folder = tmp_path_factory.mktemp("formats")
    quoted = [['"' + cell.replace('"', '""') + '"' for cell in row] for row in rows]
    for delimiter, name in ((",", "data.csv"), ("\t", "data.tsv")):
        lines = [delimiter.join(row) for row in [list(columns), *quoted]]
        (folder / name).write_bytes("\n".join(lines).encode())
    objects = [dict(zip(columns, row, strict=True)) for row in rows]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, objects)))
    pq.write_table(pa.table(columns), folder / "data.parquet")
    for path in folder.iterdir():
        samples, faults = read_file(path)
        assert faults == []
        assert samples is not None
        got = zip(samples.sample_id, samples.text, samples.labels["label"], strict=True)
        assert list(got) == rows


ROW = "(correct or remove the row)"
UNIQUE = "(make (sample_id, language) unique, or set `id_column`)"
SURROGATE = "holds half a surrogate pair, which UTF-8 cannot store"

FAULTY: dict[str, tuple[str | list[dict[str, Any]], dict[str, Any], list[str]]] = {
    "empty texts": (
        'text,n\n"two\nlines",1\n,2\n" \t",3\n"\u2028",4\n',
        {},
        [f"row 2 (line 4): `text` is empty {ROW}", f"row 3 (line 5): `text` is empty {ROW}", f"row 4 (line 6): `text` is empty {ROW}"],
    ),
    "no texts": (
        [{"text": float("nan")}, {"other": "x"}, {"text": 3}, {"text": ["a"]}, {"text": "\udc00"}],
        {},
        [
            f"row 1 (line 1): `text` is empty {ROW}",
            f"row 2 (line 2): `text` is empty {ROW}",
            f"row 3 (line 3): `text` holds a int, not text {ROW}",
            f"row 4 (line 4): `text` holds a list, not text {ROW}",
            f"row 5 (line 5): `text` {SURROGATE} {ROW}",
        ],
    ),
    "empty text of the wide form": (
        "sample_id,en,ar\ns0,a,b\ns1,c,\n",
        {"text_columns": "english=en,arabic=ar"},
        [f"row 2 (line 3): `ar` is empty {ROW}"],
    ),
    "no languages": (
        [{"text": "a", "language": value} for value in ("", None, 3, ["x"], "\udc00")],
        {},
        [
            f"row 1 (line 1): `language` is empty {ROW}",
            f"row 2 (line 2): `language` is empty {ROW}",
            f"row 3 (line 3): `language` holds a int, not text {ROW}",
            f"row 4 (line 4): `language` holds a list, not text {ROW}",
            f"row 5 (line 5): `language` {SURROGATE} {ROW}",
        ],
    ),
    "no ids": (
        [{"text": "a", "sample_id": value} for value in ("", None, " ", 1.5, True, ["x"], "\udc00")],
        {},
        [
            "row 1 (line 1): `sample_id` is empty (name the sample)",
            "row 2 (line 2): `sample_id` is empty (name the sample)",
            "row 3 (line 3): `sample_id` is empty (name the sample)",
            "row 4 (line 4): `sample_id` holds a float, not text (name the sample)",
            "row 5 (line 5): `sample_id` holds a bool, not text (name the sample)",
            "row 6 (line 6): `sample_id` holds a list, not text (name the sample)",
            f"row 7 (line 7): `sample_id` {SURROGATE} (name the sample)",
        ],
    ),
    "duplicates": (
        "sample_id,language,text\ns0,english,a\ns1,english,b\ns0,arabic,c\ns0,english,d\ns0,english,e\n",
        {},
        [
            f"row 4 (line 5): sample_id `s0` in english is also that of row 1 (line 2) {UNIQUE}",
            f"row 5 (line 6): sample_id `s0` in english is also that of row 1 (line 2) {UNIQUE}",
        ],
    ),
    "duplicates of a number and its text": (
        [{"sample_id": 1, "text": "a"}, {"sample_id": "1", "text": "b"}],
        {},
        [f"row 2 (line 2): sample_id `1` in unspecified is also that of row 1 (line 1) {UNIQUE}"],
    ),
    "unknown languages": (
        LONG,
        {"languages": "english,french,German"},
        [
            "languages: unknown language `french` (the data has english, arabic)",
            "languages: unknown language `German` (the data has english, arabic)",
        ],
    ),
    "unknown language of the wide form": (
        WIDE,
        {"text_columns": "english=en", "languages": "arabic"},
        ["languages: unknown language `arabic` (the data has english)"],
    ),
    "languages without a language column": (
        "text,lang\na,english\n",
        {"languages": "english,arabic"},
        [": has no column `language` (it has text, lang; set `language_column`)"],
    ),
    "missing text column": ("prompt,n\na,1\n", {}, [": has no column `text` (it has prompt, n; set `text_column`)"]),
    "missing text columns": (
        WIDE,
        {"text_columns": "english=en,french=fr,german=de"},
        [
            ": has no column `fr` (it has sample_id, en, ar, gender; set `text_columns`)",
            ": has no column `de` (it has sample_id, en, ar, gender; set `text_columns`)",
        ],
    ),
    "missing columns that were named": (
        "text,n\na,1\n,2\n",
        {"id_column": "id", "language_column": "lang", "labels": "n,gender"},
        [
            ": has no column `gender` (it has text, n; set `labels`)",
            ": has no column `id` (it has text, n; set `id_column`)",
            ": has no column `lang` (it has text, n; set `language_column`)",
            f"row 2 (line 3): `text` is empty {ROW}",
        ],
    ),
    "everything at once": (
        [{"sample_id": 1, "text": "a", "__x": 1, "n": 1}, {"sample_id": 1, "text": "", "n": "x"}],
        {"languages": "unspecified"},
        [
            ": column '__x' cannot be the name of an array (rename it, or choose the columns with `labels`)",
            f"row 2 (line 2): `text` is empty {ROW}",
            f"row 2 (line 2): sample_id `1` in unspecified is also that of row 1 (line 1) {UNIQUE}",
            "column `n`: holds int, str, which a single label cannot store (convert it to text, or leave it out with `labels`)",
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTY)
def test_faults(name: str, read: Read) -> None:
    content, options, messages = FAULTY[name]
    samples, faults = read(content, **options)
    assert samples is None
    assert faults == messages


def test_parquet_names_rows_without_lines(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table({"text": ["a", None]}), path)
    assert read_file(path)[1] == [f"row 2: `text` is empty {ROW}"]


def test_mtgeneval_is_what_pandas_reads(mtgeneval: Path) -> None:
    samples, faults = read_file(mtgeneval)
    expected = pd.read_csv(mtgeneval, keep_default_na=False, dtype=str)
    assert faults == []
    assert samples is not None
    assert len(samples) == 6000
    columns = {
        "sample_id": samples.sample_id,
        "language": samples.language,
        "text": samples.text,
        **samples.labels,
    }
    assert list(columns) == list(expected.columns)
    for name, values in columns.items():
        assert values.tolist() == expected[name].tolist()
