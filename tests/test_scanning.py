"""A scan decides which rows become samples, and the samples are given again as often as asked."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actkit import scanning
from actkit.config import Config, check
from actkit.errors import ChangedError
from actkit.samples import Samples, portions
from actkit.scanning import Scan, scan
from actkit.sources import Row, Source, open_source

Json = dict[str, Any]


class Examiner:
    """Refuses the rows whose text says so; remembers the others, as a caller does."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.sound: list[str] = []

    def __call__(self, rows: list[Row]) -> list[str]:
        self.sizes.append(len(rows))
        self.sound += [row.text for row in rows if "broken" not in row.text]
        return ["cannot be read" if "broken" in row.text else "" for row in rows]


def opened(path: Path, rows: list[Json], **options: Any) -> tuple[Source, Config]:
    path.write_text("\n".join(map(json.dumps, rows)))
    config, faults = check({"model": "m", "data": path, "out": "o", **options})
    assert config is not None
    assert faults == []
    source, faults = open_source(config)
    assert faults == []
    assert source is not None
    return source, config


Run = Callable[..., tuple[Scan | None, list[str], Examiner]]


@pytest.fixture(params=[False, True], ids=["file", "stream"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """Scan rows of a JSONL file, read whole or as a stream."""

    def write_and_scan(
        rows: list[Json], block: int = 1024, **options: Any
    ) -> tuple[Scan | None, list[str], Examiner]:
        source, config = opened(tmp_path / "data.jsonl", rows, streaming=request.param, **options)
        examine = Examiner()
        found, faults = scan(source, config, examine, at_once=block)
        return found, [str(fault) for fault in faults], examine

    return write_and_scan


def texts(*values: Any, **more: Any) -> list[Json]:
    return [{"text": value, **more} for value in values]


def test_bad_rows_are_all_named(run: Run) -> None:
    found, faults, _ = run(texts("a", "", "broken 1", "b", None, "broken 2"))
    assert found is None
    assert faults == [
        "row 2 (line 2): `text` is empty (mend or remove the row)",
        "row 3 (line 3): cannot be read (mend or remove the row)",
        "row 5 (line 5): `text` is empty (mend or remove the row)",
        "row 6 (line 6): cannot be read (mend or remove the row)",
    ]


def test_bad_rows_can_be_skipped(run: Run) -> None:
    found, faults, examine = run(texts("a", "", "broken", "b", None, "c"), on_bad_row="skip")
    assert faults == []
    assert found is not None
    assert found.accepted.tolist() == [0, 3, 5]
    assert found.skipped == (
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
    found, _, _ = run(rows, on_bad_row="skip")
    assert found is not None
    assert found.skipped == (
        ("row 1 (line 1)", "`text` holds a int, not text; `language` is empty; `sample_id` is empty"),
    )


def test_labels_of_skipped_rows_do_not_count(run: Run) -> None:
    rows = [{"text": "a", "n": 1}, {"text": "", "n": "x"}, {"text": "broken", "n": None}]
    found, faults, _ = run(rows, on_bad_row="skip")
    assert faults == []
    assert found is not None
    assert found.label_dtypes == {"n": "int64"}


def test_no_row_left_is_a_fault(run: Run, tmp_path: Path) -> None:
    found, faults, _ = run(texts("", "broken"), on_bad_row="skip")
    assert found is None
    assert faults == [
        "data.jsonl: none of its 2 rows can be used (the first: row 1 (line 1): `text` is empty (mend or remove the row))"  # noqa: E501
    ]
    rows = [{"text": "a", "language": "x", "category": "c"}, {"text": "b", "language": "y", "category": "d"}]
    found, faults, _ = run(rows, languages="x,y", categories="c,d", on_bad_row="skip")
    assert faults == []
    rows[1]["language"] = "x"
    found, faults, _ = run(
        [*rows, {"text": "e", "language": "y", "category": "e"}], languages="y", categories="c"
    )
    assert found is None
    assert faults == ["data.jsonl: holds no rows that are asked for (ask for others)"]


@pytest.mark.parametrize("bad", ["", "broken"])
def test_skipped_rows_do_not_count_for_the_limit(bad: str, run: Run) -> None:
    found, faults, examine = run(texts("a", bad, "b", bad, bad, "c", "d"), on_bad_row="skip", limit=3)
    assert faults == []
    assert found is not None
    assert found.accepted.tolist() == [0, 2, 5]
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
    found, faults, examine = run(CATEGORIES, **options)
    assert faults == []
    assert found is not None
    assert examine.sound == expected
    assert found.label_dtypes == {"category": "str"}


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
    found, faults, examine = run(rows, on_bad_row="skip")
    assert faults == []
    assert found is not None
    assert examine.sound == ["a", "c"]
    assert dict(found.skipped) == {
        "row 1 (line 1)": "cannot be read",
        "row 3 (line 3)": "sample_id `0` in x is also that of row 2 (line 2)",
        "row 5 (line 5)": "`text` is empty; sample_id `0` in y is also that of row 4 (line 4)",
        "row 6 (line 6)": "sample_id `0` in y is also that of row 4 (line 4)",
    }


def test_faults_without_end_are_not_all_looked_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "MOST_FAULTS", 3)
    _, faults, _ = run(texts(*[""] * 9))
    assert faults[2:] == [
        "row 3 (line 3): `text` is empty (mend or remove the row)",
        "data.jsonl: has 3 faults or more; no more were looked for",
    ]
    found, faults, _ = run(texts(*[""] * 9, "a"), on_bad_row="skip")
    assert faults == []
    assert found is not None
    assert len(found.skipped) == 9


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
    found, faults = scan(source, config, examine, at_once=block)
    assert faults == []
    assert found is not None
    assert examine.sound == expected
    assert max(examine.sizes) <= block
    given_again = [text for part in portions(source, found, config, size=3) for text in part.text]
    assert given_again == expected


def test_samples_are_given_in_blocks(tmp_path: Path) -> None:
    rows = [
        {"text": f"t{i}" if i % 3 else "", "n": i, "gap": None if i % 2 else 0.5, "flag": i > 4}
        for i in range(20)
    ]
    source, config = opened(tmp_path / "data.jsonl", rows, streaming=True, on_bad_row="skip")
    found, _ = scan(source, config, Examiner())
    assert found is not None
    assert found.languages == {"unspecified": 13}

    def given(**options: Any) -> list[Samples]:
        return list(portions(source, found, config, **options))

    (whole,) = given(size=100)
    assert whole.text.tolist() == [f"t{i}" for i in range(20) if i % 3]
    assert whole.sample_id.tolist() == [str(i) for i in range(20) if i % 3]
    assert whole.images is None
    np.testing.assert_array_equal(whole.labels["gap"], [np.nan if i % 2 else 0.5 for i in range(20) if i % 3])
    assert {name: str(values.dtype) for name, values in whole.labels.items()} == {
        "n": "int64", "gap": "float64", "flag": "bool",
    }  # fmt: skip
    assert found.label_dtypes == {"n": "int64", "gap": "float64", "flag": "bool"}
    for start, stop, size in ((0, None, 5), (4, None, 4), (4, 11, 3), (12, 99, 1), (0, 13, 13)):
        parts = given(start=start, stop=stop, size=size)
        assert [len(part) for part in parts[:-1]] == [size] * (len(parts) - 1)
        for name in ("n", "flag"):
            together = np.concatenate([part.labels[name] for part in parts])
            np.testing.assert_array_equal(together, whole.labels[name][start:stop])
    assert given(start=13, size=4) == []
    assert given(start=2, stop=2, size=4) == []


def test_images_are_given_as_they_are(tmp_path: Path) -> None:
    rows: list[Json] = [{"text": "a", "picture": "a.png"}, {"text": "b", "picture": None}]
    for streaming in (False, True):
        source, config = opened(tmp_path / "data.jsonl", rows, streaming=streaming, image_column="picture")
        found, _ = scan(source, config, Examiner())
        assert found is not None
        (samples,) = portions(source, found, config, size=2)
        assert samples.images == ["a.png", None]
        assert samples.labels["picture"].tolist() == ["a.png", ""]
        path = {"bytes": None, "path": "a.png"}
        source, config = opened(
            tmp_path / "data.jsonl",
            [{"text": "a", "picture": path}],
            streaming=streaming,
            image_column="picture",
        )
        found, _ = scan(source, config, Examiner())
        assert found is not None
        (samples,) = portions(source, found, config, size=2)
        assert samples.images == [path]
        assert samples.labels == {}


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


def digest_of(path: Path, rows: list[Json], **options: Any) -> str:
    source, config = opened(path, rows, **options)
    found, faults = scan(source, config, Examiner())
    assert faults == []
    assert found is not None
    return found.digest


def test_the_digest_of_a_stream_is_that_of_what_is_used(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    rows = [{"text": "a", "n": 1}, {"text": "b", "n": 2}]
    first = digest_of(path, rows, streaming=True)
    assert digest_of(path, rows, streaming=True) == first
    assert digest_of(tmp_path / "other.jsonl", rows, streaming=True) == first
    assert digest_of(path, [*rows, {"text": "c", "n": 3}], streaming=True, limit=2) == first
    others = [
        rows[::-1], rows[:1], [rows[0], {"text": "b", "n": 3}], [rows[0], {"text": "c", "n": 2}],
        [{"text": "a", "n": 1.0}, {"text": "b", "n": 2.0}],
        [{**row, "sample_id": str(i)} for i, row in enumerate(rows)],
        [{**row, "language": "x"} for row in rows],
    ]  # fmt: skip
    digests = {first, *(digest_of(path, other, streaming=True) for other in others)}
    assert len(digests) == len(others) + 1
    # a file is known by all of its bytes
    assert digest_of(path, rows, limit=1) == digest_of(path, rows)
    assert digest_of(path, [*rows, rows[0]], limit=1) != digest_of(path, rows)


CHANGES: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "another text": (lambda lines: [*lines[:3], lines[3].upper(), *lines[4:]], "row 4 (line 4): is not"),
    "another label": (lambda lines: [*lines[:5], '{"text": "t5", "n": 6}'], "row 6 (line 6): is not"),
    "a row before": (lambda lines: [lines[0], *lines], "row 2 (line 2): is not"),
    "a row less": (lambda lines: lines[1:], "row 1 (line 1): is not"),
    "a shorter end": (lambda lines: lines[:5], "data.jsonl: ended after 5 of 6 samples"),
    "a broken line": (lambda lines: [*lines[:2], "{", *lines[3:]], "row 3 (line 3): is not"),
    "nothing": (lambda lines: [], "data.jsonl: ended after 0 of 6 samples"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_data_that_changed_are_refused(name: str, tmp_path: Path) -> None:
    change, message = CHANGES[name]
    path = tmp_path / "data.jsonl"
    source, config = opened(path, [{"text": f"t{i}", "n": i} for i in range(6)], streaming=True)
    found, _ = scan(source, config, Examiner())
    assert found is not None
    path.write_text("\n".join(change(path.read_text().split("\n"))))
    with pytest.raises(ChangedError, match="the data changed while they were read") as caught:
        list(portions(source, found, config, size=2))
    assert str(caught.value.faults[0]).startswith(message)


def test_data_that_are_gone_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    source, config = opened(path, texts("a"), streaming=True)
    found, _ = scan(source, config, Examiner())
    assert found is not None
    path.unlink()
    with pytest.raises(ChangedError, match="the data can no longer be read"):
        list(portions(source, found, config, size=2))
