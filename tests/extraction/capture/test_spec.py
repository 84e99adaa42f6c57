"""Positions kept of each prompt: all, the last one, content, or the mean over content."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import actkit
from actkit.extraction.capture.spec import kept_positions, most_kept
from actkit.schema import TokenKind

S, M, T, G = TokenKind.SPECIAL, TokenKind.TEMPLATE, TokenKind.TEXT, TokenKind.GENERATED


@pytest.mark.parametrize(
    ("kinds", "tokens", "first", "expected"),
    [
        ([S, T, T, S], "all", True, [0, 1, 2, 3]),
        ([S, T, T, S], "last", True, [3]),
        ([S, T, T, S], "content", True, [1, 2]),
        ([S, T, T, S], "mean", True, [-1]),
        ([S, M, M], "content", True, []),
        ([S, M, M], "mean", True, []),
        ([S, M, M], "last", True, [2]),
        ([T, T], "content", False, [1]),
        ([T], "mean", False, []),
        ([S, M, T, M, G, G], "content", True, [2, 4, 5]),
        ([S, M, T, M, G, G], "last", True, [5]),
    ],
)
def test_kept_positions(kinds: list[int], tokens: str, first: bool, expected: list[int]) -> None:
    kept = kept_positions(np.array(kinds), tokens, first_is_content=first)
    assert kept.tolist() == expected
    assert len(kept) <= most_kept(np.array(kinds), tokens, new_tokens=0)


@pytest.fixture(scope="module")
def cubes(architectures: Any, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Cubes of padded batches, by model and `keep_tokens`."""
    made: dict[tuple[str, str], xr.Dataset] = {}

    def cube(name: str, tokens: str) -> xr.Dataset:
        if (name, tokens) not in made:
            made[name, tokens] = actkit.extract(
                model=str(architectures(name)),
                data=str(table),
                out=str(tmp_path_factory.mktemp("run")),
                layers="all mlp_1-2",
                keep_tokens=tokens,
                dtype="float32",
                batch_size=5,
                window_samples=8,
                listeners=[],
            ).load()
        return made[name, tokens]

    return cube


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "minilm", pytest.param("demo", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("tokens", ["last", "content"])
def test_kept_states_are_those_of_the_whole_prompt(cubes: Any, name: str, tokens: str) -> None:
    whole, part = cubes(name, "all"), cubes(name, tokens)
    for sample in range(whole.sizes["sample"]):
        length, kept = int(whole.n_tokens[sample]), int(part.n_tokens[sample])
        kinds = whole.token_kind.values[sample, :length]
        expected = [length - 1] if tokens == "last" else np.flatnonzero(kinds == TokenKind.TEXT)
        assert part.position.values[sample, :kept].tolist() == list(expected)
        for variable in ("residual", "mlp", "embedding", "norm"):
            ours, theirs = part[variable].isel(sample=sample), whole[variable].isel(sample=sample)
            assert np.array_equal(ours.isel(token=slice(kept)), theirs.isel(token=expected), equal_nan=True)
            assert ours.isel(token=slice(kept, None)).isnull().all()
        for variable in ("token_id", "token_kind", "token_text"):
            assert np.array_equal(part[variable][sample, :kept], whole[variable][sample, expected])
    assert np.array_equal(part.prompt_tokens, whole.prompt_tokens)
    for variable in ("pooled", "last"):
        assert np.array_equal(part[variable], whole[variable])
    assert part.residual.dims == ("layer", "sample", "token", "hidden")
    assert part.sizes["token"] == int(part.n_tokens.max())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", pytest.param("minilm", marks=pytest.mark.nightly)])
def test_the_mean_is_that_of_content_tokens(cubes: Any, name: str) -> None:
    whole, part = cubes(name, "all"), cubes(name, "mean")
    assert part.sizes["token"] == 1
    assert (part.token_kind == TokenKind.MEAN).all()
    assert (part.token_id == -1).all()
    content = whole.token_kind == TokenKind.TEXT
    for variable in ("residual", "mlp", "embedding"):
        expected = whole[variable].where(content).astype("float64").mean("token")
        np.testing.assert_allclose(part[variable].isel(token=0), expected, rtol=1e-5, atol=1e-6)
    assert np.array_equal(part.residual.isel(token=0), part.pooled)
    np.testing.assert_allclose(
        part.norm.isel(token=0), np.linalg.norm(part.pooled.astype("float64"), axis=-1), rtol=1e-6
    )


@pytest.mark.parametrize("tokens", ["all", "last", "content", "mean"])
def test_norms_can_be_summarised_for_any_keep_tokens(cubes: Any, tokens: str) -> None:
    cube = cubes("llama", tokens)
    norms = actkit.layer_norms(cube, resamples=10).load()
    assert norms.attrs["tokens"] == {"all": "content", "content": "content"}.get(tokens, tokens)
    content = cube.token_kind.isin([TokenKind.TEXT, TokenKind.MEAN])
    if tokens == "last":
        content = cube.token_kind != TokenKind.PAD
    for language in ("english", "arabic"):
        is_language = cube.language == language
        assert int(norms.n_tokens.sel(language=language)[0]) == int(content[is_language].sum())


@pytest.mark.slow
def test_the_last_token_of_a_left_padding_tokenizer_is_the_true_one(
    model_copy: Path, prompts: Path, tmp_path: Path
) -> None:
    import json

    settings = json.loads((model_copy / "tokenizer_config.json").read_text())
    (model_copy / "tokenizer_config.json").write_text(json.dumps({**settings, "padding_side": "left"}))
    options: dict[str, Any] = {"model": str(model_copy), "data": str(prompts), "listeners": []}
    last = actkit.extract(**options, out=str(tmp_path / "last"), keep_tokens="last", batch_size=6).load()
    each = actkit.extract(**options, out=str(tmp_path / "each"), batch_size=1).load()
    for sample in range(6):
        end = int(each.n_tokens[sample]) - 1
        assert int(last.token_id[sample, 0]) == int(each.token_id[sample, end])
        np.testing.assert_allclose(last.residual[:, sample, 0], each.residual[:, sample, end], atol=1e-6)
