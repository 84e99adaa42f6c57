"""Parts of a run share one scan of the rows, which is made again whenever it could differ."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actkit import extract, open_cube, seal
from actkit.errors import ChangedError
from actkit.extraction.preflight import preparation
from actkit.store.layout import CUBE
from actkit.store.run_folder import SCAN
from actkit.testing import contents
from tests.runs.extractions import Options


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of samples of each scan of rows that is made."""
    made: list[int] = []
    scan = preparation.scan

    def counted(*arguments: Any, **options: Any) -> Any:
        result = scan(*arguments, **options)
        made.append(len(result[0] or ()))
        return result

    monkeypatch.setattr(preparation, "scan", counted)
    return made


@pytest.mark.slow
def test_a_later_part_neither_scans_nor_tokenizes_all_rows(
    begun: Path, options: Options, scans: list[int], undisturbed: dict[str, bytes]
) -> None:
    fresh = preparation.prepare(None, {**options, "out": str(begun.parent / "other")})
    assert scans == [60]
    stored = preparation.prepare(None, {**options, "out": str(begun)})
    assert scans == [60]
    assert stored.attrs == fresh.attrs
    for name in ("lengths", "stored", "batches"):
        np.testing.assert_array_equal(getattr(stored.plan, name), getattr(fresh.plan, name))
    for name, values in fresh.coords().items():
        np.testing.assert_array_equal(stored.coords()[name], values)
    for name in ("accepted", "checks"):
        np.testing.assert_array_equal(getattr(stored.scan, name), getattr(fresh.scan, name))
    assert (stored.scan.languages, stored.scan.skipped) == (fresh.scan.languages, fresh.scan.skipped)
    extract(**options, out=str(begun), part="2/2", listeners=[])
    assert scans == [60]
    seal(begun)
    assert not (begun / SCAN).exists()
    assert contents(begun / CUBE) == undisturbed


def test_skipped_rows_are_stored(tmp_path: Path, options: Options, scans: list[int]) -> None:
    data = tmp_path / "prompts.csv"
    data.write_text('text\nA book.\n""\nA long book.\n', encoding="utf-8")
    chosen = {**options, "data": str(data), "on_bad_row": "skip", "out": str(tmp_path / "run")}
    extract(**chosen, part="1/2", listeners=[])
    again = preparation.prepare(None, chosen)
    assert scans == [2]
    assert again.scan.accepted.tolist() == [0, 2]
    ((where, what),) = again.scan.skipped
    assert where == "row 2 (line 3)"
    assert "empty" in what


def _change_tokenizer(_run: Path, options: Options) -> Options:
    path = Path(options["model"], "tokenizer_config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "note": "changed"}))
    return {}


def _flip_byte(run: Path, _options: Options) -> Options:
    content = bytearray((run / SCAN).read_bytes())
    content[-1] ^= 1
    (run / SCAN).write_bytes(content)
    return {}


def _link(run: Path, _options: Options) -> Options:
    (run / SCAN).rename(run / "scan")
    (run / SCAN).symlink_to(run / "scan")
    return {}


def _truncate(run: Path, _options: Options) -> Options:
    (run / SCAN).write_bytes((run / SCAN).read_bytes()[:20])
    return {}


def _foreign(run: Path, _options: Options) -> Options:
    """Store what no version of actkit writes, with the digest that belongs to it."""
    body = (run / SCAN).read_bytes()[32:].replace(b'"samples"', b'"foreign"')
    (run / SCAN).write_bytes(hashlib.sha256(body).digest() + body)
    return {}


@pytest.mark.parametrize(
    "change", [_change_tokenizer, _foreign, _flip_byte, _link, _truncate, lambda *_: {"max_tokens": 500}]
)
def test_another_or_a_damaged_scan_is_not_used(
    begun: Path, options: Options, scans: list[int], change: Callable[[Path, Options], Options]
) -> None:
    model = shutil.copytree(options["model"], begun.parent / "model")
    chosen = {**options, "model": str(model), "out": str(begun)}
    preparation.prepare(None, chosen)
    assert scans == []  # the same files in another folder
    preparation.prepare(None, {**chosen, **change(begun, chosen)})
    assert scans == [60]


@pytest.mark.slow
def test_a_row_that_changes_after_the_first_part_is_noticed(
    begun: Path, options: Options, scans: list[int]
) -> None:
    data = begun.parent / Path(options["data"]).name
    data.write_text(Path(options["data"]).read_text().replace("s29,arabic", "s30,arabic"))
    with pytest.raises(ChangedError, match="data_sha256"):
        extract(**{**options, "data": str(data)}, out=str(begun), part="2/2", listeners=[])
    assert len(scans) == 1
    assert open_cube(begun, partial=True).sizes["sample"] == 32
