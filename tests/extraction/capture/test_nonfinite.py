"""NaN and Inf values: kept, zeroed or refused, and in every case counted and reported."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import actkit
from actkit.errors import NonfiniteError


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A Llama whose second block exceeds the range of float16, but not of float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
        )
    )
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight *= 1e9
    folder = tmp_path_factory.mktemp("overflowing")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _options(model: Path, data: Path, **more: Any) -> dict[str, Any]:
    return {"model": str(model), "data": str(data), "window_samples": 4, "listeners": [], **more}


@pytest.mark.slow
def test_kept_counted_and_named(
    overflowing: Path, prompts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "actkit"):
        cube = actkit.extract(**_options(overflowing, prompts, dtype="float16"), out=str(tmp_path)).load()
    real = (cube.token_kind > 0).expand_dims(layer=cube.layer)
    bad = ~np.isfinite(cube.residual.values) & real.values[..., None]
    assert np.array_equal(cube.nonfinite, bad.sum(axis=(2, 3)))
    assert not cube.nonfinite[0].any()
    assert cube.nonfinite[1].any()
    messages = [record.getMessage() for record in caplog.records]
    assert any("layer 1, sample 0:" in message for message in messages)
    assert any("layer 1, sample 4:" in message for message in messages)  # of the second window
    assert all("float16 overflows" in message for message in messages)


@pytest.mark.slow
def test_zeroed(overflowing: Path, prompts: Path, tmp_path: Path) -> None:
    options = _options(overflowing, prompts, dtype="float16", layers="all mlp_1")
    kept = actkit.extract(**options, out=str(tmp_path / "keep")).load()
    cube = actkit.extract(**options, on_nonfinite="zero", out=str(tmp_path / "zero")).load()
    assert np.array_equal(cube.nonfinite, kept.nonfinite)
    real = (cube.token_kind > 0).values
    for name in ("residual", "mlp"):
        layers = cube[f"has_{name}"].values
        ours, theirs = cube[name].values[layers][:, real], kept[name].values[layers][:, real]
        assert np.array_equal(ours, np.where(np.isfinite(theirs), theirs, 0))
    for name in ("norm", "pooled", "last"):
        assert np.isfinite(cube[name].values[..., :1]).all()


def test_raised(overflowing: Path, prompts: Path, tmp_path: Path) -> None:
    options = _options(overflowing, prompts, dtype="float16", on_nonfinite="raise")
    message = r"layer 1, sample \d: \d+ values .* float16 overflows"
    with pytest.raises(NonfiniteError, match=message) as caught:
        actkit.extract(**options, out=str(tmp_path))
    assert "bfloat16 or float32" in str(caught.value)


def test_finite_in_float32(overflowing: Path, prompts: Path, tmp_path: Path) -> None:
    options = _options(overflowing, prompts, dtype="float32", on_nonfinite="raise")
    cube = actkit.extract(**options, out=str(tmp_path)).load()
    assert not cube.nonfinite.any()
    assert float(np.abs(cube.residual).max()) > 65504


@pytest.fixture
def poisoned(model_copy: Path, tokenizer: Any) -> Path:
    """The tiny Llama, with NaN in the embedding of one token of the prompts."""
    from safetensors.torch import load_file, save_file

    weights = load_file(model_copy / "model.safetensors")
    token = tokenizer("He waits.").input_ids[-1]
    weights["model.embed_tokens.weight"][token] = float("nan")
    save_file(weights, model_copy / "model.safetensors", metadata={"format": "pt"})
    return model_copy


@pytest.mark.slow
def test_the_embedding_is_no_exception(poisoned: Path, prompts: Path, tmp_path: Path) -> None:
    options = _options(poisoned, prompts, layers="2")
    kept = actkit.extract(**options, out=str(tmp_path / "keep")).load()
    real = (kept.token_kind > 0).values
    bad = [
        ~np.isfinite(array) & real[..., None] for array in (kept.embedding.values, kept.residual.values[0])
    ]
    assert bad[0].any()
    assert np.array_equal(kept.nonfinite[0], sum(part.sum(axis=(1, 2)) for part in bad))
    zeroed = actkit.extract(**options, on_nonfinite="zero", out=str(tmp_path / "zero")).load()
    assert np.isfinite(zeroed.embedding.values[real]).all()
    with pytest.raises(NonfiniteError, match=r"the embedding, sample \d: 16 values are NaN or Inf$"):
        actkit.extract(**options, on_nonfinite="raise", out=str(tmp_path / "raise"))


def test_a_sum_rule_without_numbers_was_not_checked(model_copy: Path, prompts: Path, tmp_path: Path) -> None:
    import json

    from safetensors.torch import load_file, save_file

    weights = load_file(model_copy / "model.safetensors")
    weights["model.embed_tokens.weight"][:] = float("nan")
    save_file(weights, model_copy / "model.safetensors", metadata={"format": "pt"})
    cube = actkit.extract(**_options(model_copy, prompts, layers="all mlp_0"), out=str(tmp_path / "run"))
    assert (
        cube.attrs["sum_rule"] == "checked in 0 of 3 blocks; the first outputs of the others are not finite"
    )
    assert "sum_rule_error" not in cube.attrs

    def refuse(name: str) -> None:
        raise AssertionError(name)

    json.loads((tmp_path / "run" / "cube.zarr" / "zarr.json").read_text(), parse_constant=refuse)
