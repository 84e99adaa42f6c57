"""A real model that leaves the range of float16: what the run, its analyses and whitening say."""

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import actkit
from actkit.errors import InputError, NonfiniteError, StorageError

OVERFLOWS_AT = 11  # where SmolLM2's massive activation of 24,528 arises


@pytest.fixture(scope="module")
def overflowing(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 with a massive activation four times as large, which float32 and bfloat16 hold."""
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(smollm2, tmp_path_factory.mktemp("overflow") / "model"))
    weights = load_file(folder / "model.safetensors")
    weights[f"model.layers.{OVERFLOWS_AT}.mlp.down_proj.weight"] *= 4
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def asked(overflowing: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    data = tmp_path_factory.mktemp("texts") / "texts.csv"
    data.write_text(
        "text\nThe capital of France is Paris.\nA man walks his dog in the park.\n", encoding="utf-8"
    )
    return {"model": str(overflowing), "data": str(data), "listeners": []}


def test_it_is_said_by_the_run_and_by_each_analysis(
    asked: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "actkit"):
        cube = actkit.extract(**asked, dtype="float16", whiten=True, out=str(tmp_path / "run"))
    assert "layer 11, sample 0: 1; layer 11, sample 1: 1; layer 12" in caplog.text
    assert (
        "most likely float16 overflows (its largest value is 65,504): load the weights as bfloat16"
        in caplog.text
    )
    message = (
        r"all 2 samples contain NaN or Inf values at layers 11-29; cube.sel\(layer=\[0, 1, .*, 10\]\) keeps"
    )
    for analysis in (actkit.layer_norms, actkit.adjacent_cka, actkit.massive_activations):
        with pytest.raises(NonfiniteError, match=message):
            analysis(cube)
    early = actkit.layer_norms(cube.sel(layer=slice(0, OVERFLOWS_AT - 1)), resamples=10)
    assert np.isfinite(early["max"]).all()
    with pytest.raises(InputError, match="gathered no vectors at layer 0"):
        actkit.Whitener.of_run(tmp_path / "run", layer=0, shrinkage="ledoit-wolf")


def test_it_is_refused_where_that_is_asked_for(asked: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(
        NonfiniteError, match=r"layer 11, sample 0: 1 values are NaN or Inf; .* float16 overflows"
    ):
        actkit.extract(**asked, dtype="float16", on_nonfinite="raise", out=str(tmp_path / "raise"))
    with pytest.raises(StorageError, match="layer 11, sample 0: a value exceeds 65504"):
        actkit.extract(**asked, dtype="float32", storage="float16", out=str(tmp_path / "stored"))
    cube = actkit.extract(**asked, dtype="float32", out=str(tmp_path / "float32")).load()
    assert not cube.nonfinite.any()
    assert float(np.abs(cube.residual).max()) > 65504
