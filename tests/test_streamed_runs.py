"""Runs on streams are truncated, filtered, ended early and resumed like runs on files, in constant memory."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import actkit
from actkit.errors import ChangedError, InputError
from actkit.testing import contents

ROWS, SHARDS = 60, 3
SIDES = ("safe", "unsafe", "unsafe")


def rows_of(start: int, stop: int) -> list[dict[str, Any]]:
    return [
        {
            "sample_id": f"r{number:06d}",
            "text": f"request {number}" + " and so on" * (number % 4),
            "language": ("english", "arabic")[number % 2],
            "category": SIDES[number % 3],
            "unused": "x" * 100,
        }
        for number in range(start, stop)
    ]


def write_shards(folder: Path, n_rows: int = ROWS, kind: str = "parquet") -> Path:
    folder.mkdir(parents=True)
    each = n_rows // SHARDS
    for shard in range(SHARDS):
        rows = rows_of(shard * each, (shard + 1) * each)
        path = folder / f"part-{shard}.{kind}"
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        else:
            path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def asked(tiny_model: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "model": str(tiny_model),
        "data": str(write_shards(tmp_path / "shards")),
        "streaming": True,
        "labels": ["category"],
        "window_samples": 8,
        "listeners": [],
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_stream_gives_the_cube_of_a_file(asked: dict[str, Any], tmp_path: Path, kind: str) -> None:
    data = write_shards(tmp_path / kind, kind=kind)
    streamed = actkit.extract(**{**asked, "data": str(data)}, out=str(tmp_path / "stream")).load()
    whole = tmp_path / "whole.jsonl"
    whole.write_text("\n".join(json.dumps(row) for row in rows_of(0, ROWS)), encoding="utf-8")
    options = {**asked, "data": str(whole), "streaming": False}
    filed = actkit.extract(**options, out=str(tmp_path / "file")).load()
    assert streamed.drop_attrs().identical(filed.drop_attrs())
    assert streamed.sizes["sample"] == ROWS


@pytest.mark.slow
def test_a_stream_that_ends_early_makes_a_smaller_cube(asked: dict[str, Any], tmp_path: Path) -> None:
    cube = actkit.extract(**asked, limit=1000, out=str(tmp_path / "run"))
    assert cube.sizes["sample"] == ROWS
    assert cube.committed.all()
    assert actkit.verify(tmp_path / "run").ok


@pytest.mark.slow
def test_limits_and_filters(asked: dict[str, Any], tmp_path: Path) -> None:
    cube = actkit.extract(
        **asked, categories=["unsafe"], max_per_category=10, languages=["english"], out=str(tmp_path / "run")
    )
    rows = [row for row in rows_of(0, ROWS) if (row["category"], row["language"]) == ("unsafe", "english")]
    assert cube.sample_id.values.tolist() == [row["sample_id"] for row in rows[:10]]
    both = actkit.extract(**asked, max_per_category=7, limit=12, out=str(tmp_path / "both"))
    assert both.sizes["sample"] == 12
    assert (both.category == "unsafe").sum() == 7


@pytest.mark.slow
def test_a_resumed_stream_continues_at_the_same_row(asked: dict[str, Any], tmp_path: Path) -> None:
    def stop(event: Any) -> None:
        if event.state == "running" and event.samples > 20:
            raise KeyboardInterrupt

    actkit.extract(**asked, out=str(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        actkit.extract(**{**asked, "listeners": [stop]}, out=str(tmp_path / "run"))
    done = actkit.open_cube(tmp_path / "run", partial=True)
    assert 0 < done.sizes["sample"] < ROWS
    assert done.sample_id.values.tolist() == [row["sample_id"] for row in rows_of(0, done.sizes["sample"])]
    actkit.extract(**asked, out=str(tmp_path / "run"))
    assert contents(tmp_path / "run" / "cube.zarr") == contents(tmp_path / "whole" / "cube.zarr")


@pytest.mark.slow
def test_other_rows_are_another_cube(asked: dict[str, Any], tmp_path: Path) -> None:
    actkit.extract(**asked, out=str(tmp_path / "run"))
    rows = rows_of(0, ROWS // SHARDS)
    rows[3]["text"] = "something else"
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "shards" / "part-0.parquet")
    with pytest.raises(ChangedError, match="data_sha256"):
        actkit.extract(**asked, out=str(tmp_path / "run"))


@pytest.mark.slow
def test_bad_rows_are_skipped_and_listed(asked: dict[str, Any], tmp_path: Path) -> None:
    rows = rows_of(0, 20)
    rows[4]["text"], rows[7]["text"], rows[9]["sample_id"] = "", None, "r000008"
    data = tmp_path / "bad.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    options = {**asked, "data": str(data), "limit": 12}
    with pytest.raises(InputError, match=r"row 5 .*is empty"):
        actkit.extract(**options, out=str(tmp_path / "run"))
    cube = actkit.extract(**options, on_bad_row="skip", out=str(tmp_path / "run"))
    assert cube.sizes["sample"] == 12
    assert cube.attrs["skipped_rows"] == 2  # the duplicate of row 9 has another language
    assert [what for _, what in json.loads(cube.attrs["skipped"])] == ["`text` is empty"] * 2


@pytest.mark.slow
def test_many_skipped_rows_do_not_weigh_on_the_cube(asked: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"text": "" if number % 2 else f"row {number}"} for number in range(2_400)]
    data = tmp_path / "bad.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    options = {**asked, "data": str(data), "labels": None, "keep_tokens": "mean", "window_samples": 1024}
    cube = actkit.extract(**options, on_bad_row="skip", out=str(tmp_path / "run"))
    assert (cube.sizes["sample"], cube.attrs["skipped_rows"]) == (1_200, 1_200)
    assert len(json.loads(cube.attrs["skipped"])) == 1_000
    listed = (tmp_path / "run" / "skipped.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(listed) == 1_200
    assert json.loads(listed[-1]) == {"where": "row 2400 (line 2400)", "what": "`text` is empty"}
    actkit.extract(**options, on_bad_row="skip", out=str(tmp_path / "run"))  # the list is ours


MEMORY = """
import sys, actkit
from pathlib import Path

def tell(event):
    if event.state == "done":
        print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])

model, data, out = sys.argv[1:]
actkit.extract(model=model, data=data, out=out, streaming=True, keep_tokens="mean",
               save=["pooled"], layers="0",
               labels=["category"], batch_size=64, window_samples=1024, listeners=[tell])
"""


@pytest.mark.slow
def test_a_long_stream_takes_the_memory_of_a_short_one(tiny_model: Path, tmp_path: Path) -> None:
    peaks = []
    for count in (5_001, 50_001):
        data = write_shards(tmp_path / f"rows-{count}", count)
        arguments = [str(tiny_model), str(data), str(tmp_path / f"run-{count}")]
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, *arguments], capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout) / 1024)
    print(f"peak memory: {peaks[0]:.0f} MB for 5,001 rows, {peaks[1]:.0f} MB for 50,001")
    # a text, an id, a label and 20 tokens as Python objects take about a kilobyte a row
    assert peaks[1] - peaks[0] < 43
