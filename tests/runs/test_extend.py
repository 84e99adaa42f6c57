"""Extended runs: what was missing is computed, and the result is that of one run of everything."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actkit import extend, extract, join, verify
from actkit.cli import main
from actkit.errors import InputError
from actkit.yaml_files import read_yaml
from tests.runs.extractions import Options
from tests.store.test_joins import assert_same

LAYERS = "0-2 mlp_1 attention_0-1"


@pytest.fixture(scope="module")
def asked(options: Options) -> Options:
    return {**options, "limit": 12, "listeners": []}


@pytest.fixture(scope="module")
def whole(asked: Options, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return extract(**asked, layers=LAYERS, out=str(tmp_path_factory.mktemp("whole")))


@pytest.mark.slow
def test_layers_of_two_runs_are_those_of_one(asked: Options, whole: Any, tmp_path: Path) -> None:
    extract(**asked, layers="0 mlp_1", out=str(tmp_path / "a"))
    extract(**asked, layers="1-2 attention_0-1", out=str(tmp_path / "b"))
    runs = [tmp_path / "b", tmp_path / "a"]
    assert_same(join(runs, dim="layer"), whole)
    assert_same(join(runs, dim="layer", out=tmp_path / "ab"), whole)
    assert verify(tmp_path / "ab").ok


@pytest.mark.slow
def test_only_missing_layers_are_computed(asked: Options, whole: Any, tmp_path: Path) -> None:
    base = extract(**asked, layers="0 attention_0-1", out=str(tmp_path / "base"))
    (tmp_path / "wide.added").mkdir()  # an earlier attempt had begun
    assert main(["extend", str(tmp_path / "base"), "--out", str(tmp_path / "wide"), "--layers", LAYERS]) == 0
    cube = extend(tmp_path / "base", layers=LAYERS, out=tmp_path / "again", listeners=[])
    assert_same(cube, whole)
    origin = json.loads(cube.attrs["joined_from"])["runs"]
    assert [run["layers"] for run in origin] == ["0 attention_0-1", "1-2 mlp_1"]
    assert origin[0]["metadata_sha256"] == base.attrs["metadata_sha256"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "base", "wide"]
    assert read_yaml(tmp_path / "again" / "config.yaml")[0]["layers"] == "0-2 attention_0-1 mlp_1"
    with pytest.raises(InputError, match="nothing is missing"):
        extend(tmp_path / "again", layers="1", out=tmp_path / "more")


@pytest.mark.slow
def test_languages_and_rows_are_added(asked: Options, tmp_path: Path) -> None:
    extract(**{**asked, "limit": 6}, languages=["english"], out=str(tmp_path / "english"))
    both = extend(tmp_path / "english", languages="english arabic", out=tmp_path / "both", listeners=[])
    assert both.language.values.tolist() == ["english"] * 6 + ["arabic"] * 6
    whole = extract(**asked, out=str(tmp_path / "whole"))
    order = [np.lexsort((cube.sample_id.values, cube.language.values)) for cube in (both, whole)]
    values = [cube.pooled.values[:, rows] for cube, rows in zip((both, whole), order, strict=True)]
    np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-5)  # other batches
    rows = tmp_path / "rows.csv"
    rows.write_text("sample_id,language,text,gender\nnew,english,A new row.,male\n", encoding="utf-8")
    more = extend(tmp_path / "both", data=rows, out=tmp_path / "more", listeners=[], languages=None)
    assert more.sample_id.values[-1] == "new"
    assert more.sizes["sample"] == 13
    assert verify(tmp_path / "more").ok
    with pytest.raises(InputError, match="the samples of this run come from several runs"):
        extend(tmp_path / "more", layers="all", out=tmp_path / "never")
    with pytest.raises(InputError, match="give one of them"):
        extend(tmp_path / "more", layers="all", data=rows, out=tmp_path / "never")


@pytest.mark.slow
def test_rows_without_ids_cannot_be_added(asked: Options, tmp_path: Path) -> None:
    data = tmp_path / "texts.csv"
    data.write_text("text\nA row.\nAnother row.\n", encoding="utf-8")
    extract(**{**asked, "data": str(data)}, out=str(tmp_path / "base"))
    with pytest.raises(InputError, match="numbered by row"):
        extend(tmp_path / "base", data=data, out=tmp_path / "more")
