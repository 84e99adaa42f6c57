"""Labels in exported files: gaps are empty, integers stay integers, names collide with nothing."""

import json
from pathlib import Path

import datasets
import pytest

import actkit
from actkit.cli import main
from actkit.demo import MODEL
from actkit.errors import InputError
from actkit.exporters.huggingface_dataset import layer_dataset


@pytest.mark.slow
def test_exports_write_gaps_as_nothing_and_integers_as_such(tmp_path: Path) -> None:
    cells = {
        "count": [1, None, 10, None, 2, 1, None, 3],
        "token_ids": ["a", "b"] * 4,
        "activations": ["", "c"] * 4,
    }
    rows = [
        {"text": f"Text {number}.", **{name: values[number] for name, values in cells.items()}}
        for number in range(8)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    run = tmp_path / "run"
    actkit.extract(model=str(MODEL), data=str(data), out=str(run), layers="0", listeners=[])
    dataset = layer_dataset(run, layer=0)
    assert [row["count"] for row in dataset] == ["1", "", "10", "", "2", "1", "", "3"]
    assert [row["token_ids_label"] for row in dataset] == cells["token_ids"]
    assert [row["activations_label"] for row in dataset] == cells["activations"]
    for named in (1, "1", 1.0):
        assert [row["sample_id"] for row in layer_dataset(run, layer=0, where={"count": named})] == ["0", "5"]
    with pytest.raises(InputError, match="no sample has"):
        layer_dataset(run, layer=0, where={"count": ""})
    folder = actkit.export(run, tmp_path / "arrow", format="arrow", layers="0")
    table = datasets.Dataset.from_file(str(next(folder.rglob("*.arrow"))))
    assert table["count"] == ["1", "", "10", "", "2", "1", "", "3"]
    assert main(["info", str(run)]) == 0
