"""Datasets give exactly the rows that `datasets` streams, or a fault."""

# ruff: noqa: E501 - a table of exact messages is easier to read unbroken

import gc
import io
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest

from actkit.data_scan import scan
from actkit.errors import InputError
from actkit.samples import portions
from actkit.sources import open_source
from actkit.streams import LibraryDataset, open_stream
from actkit.tables import Record
from tests.data_files import config_of, read, rows, sound, write


@pytest.mark.slow
def test_subsets_and_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / "plain" / split / "a.parquet", [{"text": split}])
        for subset in ("one", "two"):
            write(tmp_path / "many" / subset / f"{split}.jsonl", [{"text": f"{subset} {split}"}])
    configs = "".join(f"- config_name: {name}\n  data_dir: {name}\n" for name in ("one", "two"))
    (tmp_path / "many" / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    for folder, options, expected in (
        ("plain", {}, "train"),
        ("plain", {"split": "test"}, "test"),
        ("many", {"subset": "one"}, "one train"),
        ("many", {"subset": "two", "split": "test"}, "two test"),
    ):
        samples, faults = read(tmp_path / folder, **options)
        assert faults == []
        assert samples is not None
        assert samples.text.tolist() == [expected]
    for folder, options, message in (
        ("plain", {"split": "dev"}, "split: unknown split `dev` (the data has train, test)"),
        ("plain", {"split": "train[:1]"}, "split: unknown split `train[:1]` (the data has train, test)"),
        ("plain", {"subset": "one"}, "subset: unknown subset `one` (the data has default)"),
        ("many", {"subset": "three"}, "subset: unknown subset `three` (the data has one, two)"),
        ("many", {}, "subset: must be chosen (the data has one, two)"),
    ):
        assert read(tmp_path / folder, **options) == (None, [message])


def test_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    write(tmp_path / "shards" / "a.parquet", rows(0, 3))
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "a.csv").write_text("text\na\n")
    for data in ("shards", "shards/*.parquet", "csv"):
        assert read(tmp_path / data)[1] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["csv", "shards"]
    assert len(list(tmp_path.rglob("*"))) == 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*:pytest.PytestUnraisableExceptionWarning")  # its CSV files stay open
@pytest.mark.parametrize("streaming", [False, True])
def test_what_no_shards_are_is_read_by_the_library(
    streaming: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a folder stands for a Hub id, which takes the same path; the cache is that of the library
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for split in ("train", "test"):
        path = tmp_path / "me" / "data" / f"{split}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text,n,category\n" + "".join(f"{split} {i},{i},{'ab'[i % 2]}\n" for i in range(40)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("actkit.streams._is_local", lambda config: False)
    config = config_of("me/data", split="test", streaming=streaming, categories="b", limit=3)
    source, faults = open_source(config)
    assert faults == []
    assert source is not None
    scanned, faults = scan(source, config, sound)
    assert faults == []
    assert scanned is not None
    (samples,) = portions(source, scanned, config, size=5)
    assert samples.text.tolist() == ["test 1", "test 3", "test 5"]
    assert samples.labels["n"].tolist() == [1, 3, 5]
    assert (tmp_path / "cache").exists()
    assert bool(list((tmp_path / "cache").rglob("*.arrow"))) != streaming
    del source
    gc.collect()


def png() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (2, 3)).save(buffer, format="PNG")
    return buffer.getvalue()


def test_images_of_a_dataset_stay_encoded(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "image": datasets.Image()})
    cells = [{"bytes": png(), "path": "a.png"}, {"bytes": b"no image", "path": None}]
    held = datasets.Dataset.from_dict({"text": ["a", "b"], "image": cells}, features=features)
    held.to_parquet(tmp_path / "shards" / "a.parquet")
    for stream in (
        LibraryDataset(held, "x"),
        LibraryDataset(held.to_iterable_dataset(), "x"),
        open_stream(config_of(tmp_path / "shards"))[0],
    ):
        assert stream is not None
        assert stream.kind("image") != "text"
        assert stream.kind("text") == "text"
        assert [record.cells["image"] for record in stream.records(["image"])] == cells
    samples, faults = read(tmp_path / "shards", image_column="image")
    assert faults == []
    assert samples is not None
    assert samples.images == cells
    assert samples.labels == {}


def test_cells_that_the_library_would_change_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(json.dumps([{"text": "a"}, {"text": 2}]))
    assert read(tmp_path)[1] == [
        f"{tmp_path}: holds .json files, in which `datasets` quotes texts of columns that also hold numbers (give one file, or save them as JSONL)"
    ]
    held = datasets.Dataset.from_dict({"text": ["a", 2]}, on_mixed_types="use_json")
    with pytest.raises(
        InputError, match="column `text`: holds values of several types, which `datasets` does"
    ):
        next(LibraryDataset(held, "x").records(["text"]))


def test_what_is_nowhere_is_said_to_be_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("me/no-such-data", "prompts"):
        source, (fault,) = open_source(config_of(name))
        assert source is None
        assert fault.where == name
        assert fault.what.startswith(f"cannot be read as a dataset: Couldn't reach '{name}' on the Hub")
        assert fault.hint == "no such file or folder exists, so the Hub was queried"
    assert read("prompts.csv")[1] == ["prompts.csv: does not exist (check the path)"]
    assert read("../prompts")[1] == ["prompts: does not exist (check the path)"]
    assert list(tmp_path.iterdir()) == []


def test_damage_within_a_dataset_of_the_library_is_a_fault() -> None:
    class Broken:
        features = datasets.Features({"text": datasets.Value("string")})

        def select_columns(self, names: list[str]) -> "Broken":
            return self

        with_format = select_columns

        def iter(self, batch_size: int) -> Any:
            yield pa.table({"text": ["a", "b"]})
            raise RuntimeError("the line\nis cut")

    records: list[Record] = []
    with pytest.raises(Exception, match="x: cannot be read after row 2: the line") as caught:
        records.extend(LibraryDataset(Broken(), "x").records(["text"]))
    assert "is cut" not in str(caught.value)
