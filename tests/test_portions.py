"""Samples that a scan selected can be read again repeatedly, unless the data changed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actkit.data_scan import scan
from actkit.errors import ChangedError
from actkit.samples import Samples, portions
from tests.data_files import Examiner, Json, opened, texts


def test_samples_are_given_in_blocks(tmp_path: Path) -> None:
    rows = [
        {"text": f"t{i}" if i % 3 else "", "n": i, "gap": None if i % 2 else 0.5, "flag": i > 4}
        for i in range(20)
    ]
    source, config = opened(tmp_path / "data.jsonl", rows, streaming=True, on_bad_row="skip")
    selection, _ = scan(source, config, Examiner())
    assert selection is not None
    assert selection.languages == {"unspecified": 13}

    def given(**options: Any) -> list[Samples]:
        return list(portions(source, selection, config, **options))

    (whole,) = given(size=100)
    assert whole.text.tolist() == [f"t{i}" for i in range(20) if i % 3]
    assert whole.sample_id.tolist() == [str(i) for i in range(20) if i % 3]
    assert whole.images is None
    np.testing.assert_array_equal(whole.labels["gap"], [np.nan if i % 2 else 0.5 for i in range(20) if i % 3])
    assert {name: str(values.dtype) for name, values in whole.labels.items()} == {
        "n": "int64", "gap": "float64", "flag": "bool",
    }  # fmt: skip
    assert selection.label_dtypes == {"n": "int64", "gap": "float64", "flag": "bool"}
    for start, stop, size in ((0, None, 5), (4, None, 4), (4, 11, 3), (12, 99, 1), (0, 13, 13)):
        parts = given(start=start, stop=stop, size=size)
        assert [len(part) for part in parts[:-1]] == [size] * (len(parts) - 1)
        for name in ("n", "flag"):
            together = np.concatenate([part.labels[name] for part in parts])
            np.testing.assert_array_equal(together, whole.labels[name][start:stop])
    some = given(start=1, stop=12, size=3, chosen={0, 3})
    assert [part.labels["n"].tolist() for part in some] == [
        whole.labels["n"][part].tolist() for part in (slice(1, 4), slice(10, 12))
    ]
    assert given(size=3, chosen=()) == []
    assert given(start=13, size=4) == []
    assert given(start=2, stop=2, size=4) == []


def test_images_are_given_as_they_are(tmp_path: Path) -> None:
    rows: list[Json] = [{"text": "a", "picture": "a.png"}, {"text": "b", "picture": None}]
    for streaming in (False, True):
        source, config = opened(tmp_path / "data.jsonl", rows, streaming=streaming, image_column="picture")
        selection, _ = scan(source, config, Examiner())
        assert selection is not None
        (samples,) = portions(source, selection, config, size=2)
        assert samples.images == ["a.png", None]
        assert samples.labels["picture"].tolist() == ["a.png", ""]
        path = {"bytes": None, "path": "a.png"}
        source, config = opened(
            tmp_path / "data.jsonl",
            [{"text": "a", "picture": path}],
            streaming=streaming,
            image_column="picture",
        )
        selection, _ = scan(source, config, Examiner())
        assert selection is not None
        (samples,) = portions(source, selection, config, size=2)
        assert samples.images == [path]
        assert samples.labels == {}


def digest_of(path: Path, rows: list[Json], **options: Any) -> str:
    source, config = opened(path, rows, **options)
    selection, faults = scan(source, config, Examiner())
    assert faults == []
    assert selection is not None
    return selection.digest


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
    # a file is identified by all of its bytes
    assert digest_of(path, rows, limit=1) == digest_of(path, rows)
    assert digest_of(path, [*rows, rows[0]], limit=1) != digest_of(path, rows)


CHANGES: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "another text": (lambda lines: [*lines[:3], lines[3].upper(), *lines[4:]], "row 4 (line 4): has changed"),
    "another label": (lambda lines: [*lines[:5], '{"text": "t5", "n": 6}'], "row 6 (line 6): has changed"),
    "a row before": (lambda lines: [lines[0], *lines], "row 2 (line 2): has changed"),
    "a row less": (lambda lines: lines[1:], "row 1 (line 1): has changed"),
    "a shorter end": (lambda lines: lines[:5], "data.jsonl: now ends after 5 of 6 samples"),
    "a broken line": (lambda lines: [*lines[:2], "{", *lines[3:]], "row 3 (line 3): has changed"),
    "nothing": (lambda lines: [], "data.jsonl: now ends after 0 of 6 samples"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_data_that_changed_are_refused(name: str, tmp_path: Path) -> None:
    change, message = CHANGES[name]
    path = tmp_path / "data.jsonl"
    source, config = opened(path, [{"text": f"t{i}", "n": i} for i in range(6)], streaming=True)
    selection, _ = scan(source, config, Examiner())
    assert selection is not None
    path.write_text("\n".join(change(path.read_text().split("\n"))))
    with pytest.raises(ChangedError, match="the data changed while they were read") as caught:
        list(portions(source, selection, config, size=2))
    assert str(caught.value.faults[0]).startswith(message)


def test_data_that_are_gone_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    source, config = opened(path, texts("a"), streaming=True)
    selection, _ = scan(source, config, Examiner())
    assert selection is not None
    path.unlink()
    with pytest.raises(ChangedError, match="the data can no longer be read"):
        list(portions(source, selection, config, size=2))
