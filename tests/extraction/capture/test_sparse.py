"""The largest entries of vectors, kept in place of the vectors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import actkit
from actkit.errors import InputError, MissingError
from actkit.estimates import Estimate
from actkit.schema import SPARSABLE
from actkit.store.writer import CubeWriter
from actkit.testing import contents

LAYERS = "0,2 attention_1 mlp_2"


def _options(model: Path, table: Path, **options: Any) -> dict[str, Any]:
    return {"model": str(model), "data": str(table), "layers": LAYERS, "dtype": "float32", **options}


def test_the_largest_entries_are_those_of_transformers(
    tiny_model: Path, prompts: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    options = _options(tiny_model, prompts, layers="0", limit=2)
    cube = actkit.extract(**options, out=tmp_path / "run", sparse=5, listeners=[]).load()
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    for sample in range(2):
        ids = cube.token_id.values[sample, : int(cube.n_tokens[sample])]
        with torch.no_grad():
            outputs = model(torch.from_numpy(ids[None]).long(), output_hidden_states=True)
        for name, hidden in (("embedding", outputs.hidden_states[0]), ("residual", outputs.hidden_states[1])):
            x = hidden[0].numpy()
            order = np.argsort(-np.abs(x), axis=-1, kind="stable")[:, :5]
            part = cube.isel(sample=sample, token=slice(0, len(ids)), layer=0)
            np.testing.assert_array_equal(part[f"{name}_index"], order)
            values = np.take_along_axis(x, order, axis=-1)
            np.testing.assert_allclose(part[f"{name}_value"], values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "more",
    [
        {},
        pytest.param({"keep_tokens": "mean"}, marks=pytest.mark.slow),
        pytest.param({"keep_tokens": "content"}, marks=pytest.mark.nightly),
        pytest.param({"dtype": "bfloat16"}, marks=pytest.mark.nightly),
        pytest.param({"storage": "float16"}, marks=pytest.mark.nightly),
    ],
    ids=str,
)
def test_entries_are_those_of_the_dense_cube(
    tiny_model: Path, prompts: Path, tmp_path: Path, more: dict[str, Any]
) -> None:
    options = _options(tiny_model, prompts, **more)
    dense = actkit.extract(**options, out=tmp_path / "dense", listeners=[]).load()
    sparse = actkit.extract(**options, out=tmp_path / "sparse", sparse=6, listeners=[]).load()
    assert actkit.verify(tmp_path / "sparse").ok
    assert not {*SPARSABLE} & set(sparse)
    assert dense.attrs["actkit_format"] == sparse.attrs["actkit_format"]
    for name in ("norm", "pooled", "last", "nonfinite", "token_id", "token_text", "has_mlp"):
        xr.testing.assert_equal(sparse[name], dense[name])
    for name in SPARSABLE:
        whole, index, value = (
            dense[name].values,
            sparse[f"{name}_index"].values,
            sparse[f"{name}_value"].values,
        )
        real = np.isfinite(whole).all(axis=-1)
        assert np.isnan(value[~real]).all()
        assert (index[~real] == 0).all()
        np.testing.assert_array_equal(np.take_along_axis(whole[real], index[real], axis=-1), value[real])
        largest = -np.sort(-np.abs(whole[real]), axis=-1)[:, :6]
        # the dense cube rounds all of them, which can exchange neighbours
        rtol = 1e-3 if more.get("storage") else 0
        np.testing.assert_allclose(np.abs(value[real]), largest, rtol=rtol)
        again = actkit.dense_vectors(sparse, component=name)
        assert again.sizes == dense[name].sizes
        np.testing.assert_array_equal((again != 0).sum("hidden").values[real], np.full(real.sum(), 6))


@pytest.mark.slow
def test_interrupted_and_resumed_files_are_the_same(
    tiny_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = _options(tiny_model, prompts, sparse=4, window_samples=2, listeners=[])
    actkit.extract(**options, out=tmp_path / "whole")
    write, written = CubeWriter.write, []

    def once(self: CubeWriter, window: int, values: Any) -> int:
        if written:
            raise KeyboardInterrupt
        written.append(window)
        return write(self, window, values)

    monkeypatch.setattr(CubeWriter, "write", once)
    with pytest.raises(KeyboardInterrupt):
        actkit.extract(**options, out=tmp_path / "parts")
    monkeypatch.undo()
    actkit.extract(**options, out=tmp_path / "parts")
    assert contents(tmp_path / "parts" / "cube.zarr") == contents(tmp_path / "whole" / "cube.zarr")


def test_statistics_of_whole_vectors_name_the_option(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    options = _options(tiny_model, prompts, sparse=4, layers="all")
    cube = actkit.extract(**options, out=tmp_path, listeners=[])
    message = "no `residual`; it holds only the 4 largest entries .* without `sparse`"
    with pytest.raises(MissingError, match=message):
        actkit.layer_updates(cube)
    with pytest.raises(MissingError, match=message):
        actkit.top_activating(cube, layer=1, hidden=0)
    assert actkit.layer_norms(cube)["mean"].notnull().all()
    assert actkit.adjacent_cka(cube)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"sparse": 17},
            "sparse: the vectors of the model have 16 entries (leave it out to keep whole vectors)",
        ),
        ({"sparse": 4, "whiten": True}, "whiten: needs whole vectors (leave out sparse)"),
        ({"sparse": 0}, "sparse: 0 is not possible"),
    ],
)
def test_impossible_requests_are_refused(
    tiny_model: Path, prompts: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        actkit.plan(**_options(tiny_model, prompts), **options, out=tmp_path / "run")
    assert message in str(caught.value)


def test_a_column_named_like_the_dimension_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("text,k\na dog,1\n", encoding="utf-8")
    options = _options(tiny_model, table, out=tmp_path / "run")
    with pytest.raises(InputError, match="column `k` has the name of a variable"):
        actkit.plan(**options, sparse=4)
    assert "k" in actkit.extract(**options, listeners=[]).coords


def on_disk(run: Path) -> int:
    return sum(path.stat().st_size for path in (run / "cube.zarr").rglob("c.*"))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.nightly)])
def test_the_plan_says_the_size_against_whole_vectors(mtgeneval: Path, tmp_path: Path, dtype: str) -> None:
    from actkit.demo import MODEL

    estimates: dict[str, Estimate] = {}
    used: dict[str, int] = {}
    for name, sparse in (("dense", None), ("sparse", 16)):
        options: dict[str, Any] = {
            **_options(MODEL, mtgeneval, dtype=dtype, layers="all", limit=60, sparse=sparse),
            "out": tmp_path / name,
        }
        plan = actkit.plan(**options, trial=False)
        estimates[name] = plan.estimate
        actkit.extract(**options, listeners=[])
        used[name] = on_disk(tmp_path / name)
    text = dict(plan.lines())["sparse"]
    assert text.startswith("16 of the 160 entries of each vector: ")
    share = int(text.split(": ")[1].split("%")[0]) / 100
    assert share == pytest.approx(used["sparse"] / used["dense"], rel=0.25)
    # as for whole vectors, for which arithmetic without a trial is as inexact
    assert estimates["sparse"].disk == pytest.approx(used["sparse"], rel=0.2)
