"""A scan selects the rows that become samples."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actkit import data_scan
from actkit.config_faults import check
from actkit.data_scan import Scan, scan
from actkit.samples import portions
from actkit.sources import Row, open_source
from tests.data_files import Examiner, Json, opened, texts

Run = Callable[..., tuple[Scan | None, list[str], Examiner]]


@pytest.fixture(params=[False, True], ids=["file", "stream"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """Scan rows of a JSONL file, read as a whole or as a stream."""

    def write_and_scan(
        rows: list[Json], block: int = 1024, **options: Any
    ) -> tuple[Scan | None, list[str], Examiner]:
        source, config = opened(tmp_path / "data.jsonl", rows, streaming=request.param, **options)
        examine = Examiner()
        scanned, faults = scan(source, config, examine, at_once=block)
        return scanned, [str(fault) for fault in faults], examine

    return write_and_scan


def test_bad_rows_are_all_named(run: Run) -> None:
    scanned, faults, _ = run(texts("a", "", "broken 1", "b", None, "broken 2"))
    assert scanned is None
    assert faults == [
        "row 2 (line 2): `text` is empty (correct or remove the row)",
        "row 3 (line 3): cannot be read (correct or remove the row)",
        "row 5 (line 5): `text` is empty (correct or remove the row)",
        "row 6 (line 6): cannot be read (correct or remove the row)",
    ]


def test_bad_rows_can_be_skipped(run: Run) -> None:
    scanned, faults, examine = run(texts("a", "", "broken", "b", None, "c"), on_bad_row="skip")
    assert faults == []
    assert scanned is not None
    assert scanned.accepted.tolist() == [0, 3, 5]
    assert scanned.skipped == (
        ("row 2 (line 2)", "`text` is empty"),
        ("row 3 (line 3)", "cannot be read"),
        ("row 5 (line 5)", "`text` is empty"),
    )
    assert examine.sound == ["a", "b", "c"]


def test_all_that_is_wrong_with_a_skipped_row_is_said_at_once(run: Run) -> None:
    rows: list[Json] = [
        {"sample_id": None, "language": "", "text": 3},
        {"sample_id": 0, "language": "x", "text": "a"},
    ]
    scanned, _, _ = run(rows, on_bad_row="skip")
    assert scanned is not None
    assert scanned.skipped == (
        ("row 1 (line 1)", "`text` holds a int, not text; `language` is empty; `sample_id` is empty"),
    )


def test_labels_of_skipped_rows_do_not_count(run: Run) -> None:
    rows = [{"text": "a", "n": 1}, {"text": "", "n": "x"}, {"text": "broken", "n": None}]
    scanned, faults, _ = run(rows, on_bad_row="skip")
    assert faults == []
    assert scanned is not None
    assert scanned.label_dtypes == {"n": "int64"}


def test_no_row_left_is_a_fault(run: Run, tmp_path: Path) -> None:
    scanned, faults, _ = run(texts("", "broken"), on_bad_row="skip")
    assert scanned is None
    assert faults == [
        "data.jsonl: none of its 2 rows can be used (the first: row 1 (line 1): `text` is empty (correct or remove the row))"  # noqa: E501
    ]
    rows = [{"text": "a", "language": "x", "category": "c"}, {"text": "b", "language": "y", "category": "d"}]
    scanned, faults, _ = run(rows, languages="x,y", categories="c,d", on_bad_row="skip")
    assert faults == []
    rows[1]["language"] = "x"
    scanned, faults, _ = run(
        [*rows, {"text": "e", "language": "y", "category": "e"}], languages="y", categories="c"
    )
    assert scanned is None
    assert faults == ["data.jsonl: holds no rows that match the options (change the options)"]


@pytest.mark.parametrize("bad", ["", "broken"])
def test_skipped_rows_do_not_count_for_the_limit(bad: str, run: Run) -> None:
    scanned, faults, examine = run(texts("a", bad, "b", bad, bad, "c", "d"), on_bad_row="skip", limit=3)
    assert faults == []
    assert scanned is not None
    assert scanned.accepted.tolist() == [0, 2, 5]
    assert examine.sound == ["a", "b", "c"]


@pytest.mark.parametrize("bad", ["", "broken"])
def test_faulty_rows_count_for_the_limit_where_they_end_the_run(bad: str, run: Run) -> None:
    _, faults, examine = run(texts("a", bad, bad, "b"), limit=2)
    assert [fault.split(":")[0] for fault in faults] == ["row 2 (line 2)"]
    assert examine.sound == ["a"]


CATEGORIES = [{"text": f"{c}{i}", "category": c} for i in range(4) for c in "abc"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_per_category": 1}, ["a0", "b0", "c0"]),
        ({"max_per_category": 2, "limit": 5}, ["a0", "b0", "c0", "a1", "b1"]),
        ({"categories": "b"}, ["b0", "b1", "b2", "b3"]),
        ({"categories": "c,a", "max_per_category": 2}, ["a0", "c0", "a1", "c1"]),
        ({"categories": "c,a", "limit": 3}, ["a0", "c0", "a1"]),
        ({"max_per_category": 9}, [row["text"] for row in CATEGORIES]),
    ],
    ids=str,
)
def test_categories(options: Json, expected: list[str], run: Run) -> None:
    scanned, faults, examine = run(CATEGORIES, **options)
    assert faults == []
    assert scanned is not None
    assert examine.sound == expected
    assert scanned.label_dtypes == {"category": "str"}


def test_unknown_names_are_named_with_those_that_there_are(run: Run) -> None:
    _, faults, _ = run(CATEGORIES, categories="a,x,B")
    assert faults == [
        "categories: unknown category `x` (the data has a, b, c)",
        "categories: unknown category `B` (the data has a, b, c)",
    ]
    many = [{"text": "a", "language": f"l{i}", "category": i} for i in range(30)]
    _, faults, _ = run(many, languages="x,l0", categories="7")
    shown = ", ".join(f"l{i}" for i in range(20))
    assert faults == [f"languages: unknown language `x` (the data has {shown}, …)"]
    _, faults, _ = run([{"text": "a", "category": None}], categories="None")
    assert faults == ["categories: unknown category `None` (the data has none)"]


def test_a_category_column_that_is_needed_has_to_be_there(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("text,kind\na,b\n")
    for options in ({"categories": "b"}, {"max_per_category": 1}, {"category_column": "kin"}):
        config, _ = check({"model": "m", "data": path, "out": "o", **options})
        assert config is not None
        source, faults = open_source(config)
        name = options.get("category_column", "category")
        faults = faults or list(source.faults if source else ())
        assert [str(fault) for fault in faults] == [
            f"{path}: has no column `{name}` (it has text, kind; set `category_column`)"
        ]


def test_a_stream_is_left_as_soon_as_nothing_more_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    good = [{"text": f"{c}{i}", "category": c} for i in range(600) for c in "ab"]
    for options in ({"limit": 3}, {"categories": "a,b", "max_per_category": 2}):
        source, config = opened(path, [*good, {"text": None, "category": "a"}], streaming=True, **options)
        path.write_text(path.read_text() + "\nno JSON")
        read: list[Row] = []
        rows = source.rows
        source.rows = lambda rows=rows, read=read: (read.append(row) or row for row in rows())  # type: ignore
        _, faults = scan(source, config, Examiner())
        assert faults == []
        assert len(read) == len(set(read)) <= 4


def test_languages_that_a_stream_was_not_read_for_are_no_fault(tmp_path: Path) -> None:
    rows = [{"text": "a", "language": language} for language in ("x", "x", "y")]
    for streaming, options, unknown in (
        (True, {"limit": 2, "languages": "x,z"}, 0),
        (True, {"limit": 3, "languages": "x,z"}, 1),
        (False, {"limit": 2, "languages": "x,z"}, 1),
    ):
        source, config = opened(tmp_path / "data.jsonl", rows, streaming=streaming, **options)
        assert len(scan(source, config, Examiner())[1]) == unknown


def test_twins_are_left_out_and_named(run: Run) -> None:
    rows: list[Json] = [
        {"sample_id": name, "language": language, "text": text}
        for name, language, text in (
            ("0", "x", "broken"), ("0", "x", "a"), (0, "x", "b"),
            ("0", "y", "c"), ("0", "y", ""), ("0", "y", "d"),
        )
    ]  # fmt: skip
    scanned, faults, examine = run(rows, on_bad_row="skip")
    assert faults == []
    assert scanned is not None
    assert examine.sound == ["a", "c"]
    assert dict(scanned.skipped) == {
        "row 1 (line 1)": "cannot be read",
        "row 3 (line 3)": "sample_id `0` in x is also that of row 2 (line 2)",
        "row 5 (line 5)": "`text` is empty; sample_id `0` in y is also that of row 4 (line 4)",
        "row 6 (line 6)": "sample_id `0` in y is also that of row 4 (line 4)",
    }


def test_faults_without_end_are_not_all_looked_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_scan, "MOST_FAULTS", 3)
    _, faults, _ = run(texts(*[""] * 9))
    assert faults[2:] == [
        "row 3 (line 3): `text` is empty (correct or remove the row)",
        "data.jsonl: has at least 3 faults; the check stopped there",
    ]
    scanned, faults, _ = run(texts(*[""] * 9, "a"), on_bad_row="skip")
    assert faults == []
    assert scanned is not None
    assert len(scanned.skipped) == 9


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "sample_id": st.sampled_from(["0", "1", "2", 3, None]),
            "language": st.sampled_from(["x", "y"]),
            "category": st.sampled_from(["a", "b", "c"]),
            "text": st.sampled_from(["t", "broken", ""]),
        }
    ),
    min_size=1,
    max_size=14,
)


@pytest.mark.slow
@given(
    rows=ROWS,
    block=st.integers(1, 5),
    limit=st.none() | st.integers(1, 5),
    most=st.none() | st.integers(1, 2),
    categories=st.none() | st.just(["a", "b"]),
)
def test_blocks_of_any_size_choose_what_one_by_one_would(
    rows: list[Json],
    block: int,
    limit: int | None,
    most: int | None,
    categories: list[str] | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.getbasetemp() / "chosen.jsonl"
    rows = [{**row, "text": row["text"] and f"{row['text']} {i}"} for i, row in enumerate(rows)]
    rows += [{"sample_id": f"last {c}", "language": "x", "category": c, "text": c} for c in "abc"]
    expected: list[str] = []
    full: Counter[str] = Counter()
    ids = set()
    for row in rows:
        key = (str(row["sample_id"]), row["language"])
        if len(expected) == limit or full[row["category"]] == most:
            continue
        if row["category"] in (categories or "abc") and row["text"] and "broken" not in row["text"]:
            if row["sample_id"] is None or key in ids:
                continue
            expected.append(row["text"])
            full[row["category"]] += 1
            ids.add(key)
    options = {"limit": limit, "max_per_category": most, "categories": categories, "on_bad_row": "skip"}
    source, config = opened(path, rows, **options)
    examine = Examiner()
    scanned, faults = scan(source, config, examine, at_once=block)
    assert faults == []
    assert scanned is not None
    assert examine.sound == expected
    assert max(examine.sizes) <= block
    given_again = [text for part in portions(source, scanned, config, size=3) for text in part.text]
    assert given_again == expected


def test_an_image_column_has_to_be_there(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("text\na\n")
    config, _ = check({"model": "m", "data": path, "out": "o", "image_column": "picture"})
    assert config is not None
    source, faults = open_source(config)
    assert source is None
    assert [str(fault) for fault in faults] == [
        f"{path}: has no column `picture` (it has text; set `image_column`)"
    ]
