"""A model whose files change between the check and the load is not what the cube would call it."""

import shutil
from pathlib import Path
from typing import Any

import pytest

import actkit
from actkit.errors import ChangedError
from actkit.extraction.loop import local_engine


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("how", ["replaced", "written"])
def test_weights_that_are_swapped_are_noticed(
    model_copy: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, how: str
) -> None:
    load = local_engine.load_model

    def swapped(*arguments: Any) -> Any:
        path = model_copy / file
        if how == "replaced":
            shutil.copy2(path, tmp_path / "other")
            (tmp_path / "other").replace(path)
        else:
            path.write_bytes(path.read_bytes())
        return load(*arguments)

    options: dict[str, Any] = {"data": str(prompts), "out": str(tmp_path / "run"), "listeners": []}
    monkeypatch.setattr(local_engine, "load_model", swapped)
    with pytest.raises(ChangedError, match=f"{file}: was changed after it was checked .run again"):
        actkit.extract(model=str(model_copy), **options)
    monkeypatch.setattr(local_engine, "load_model", load)
    assert actkit.extract(model=str(model_copy), **options).committed.all()
