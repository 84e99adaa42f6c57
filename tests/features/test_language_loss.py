"""Next-token loss with reconstructions in place of outputs, against transformers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
import xarray as xr

import actkit
from actkit.errors import InputError, ModelError
from actkit.features.language_loss import load_language_loss
from actkit.stats.token_selection import select_tokens
from tests.features.autoencoders import constant, identity, random, set_of

LAYERS = (0, 2)


@pytest.fixture(scope="module")
def cube(tiny_model: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    """Prompts of different lengths, all components."""
    out = tmp_path_factory.mktemp("loss") / "run"
    options: Any = {"layers": "all attention_all mlp_all", "listeners": []}
    return actkit.extract(model=str(tiny_model), data=str(prompts), out=str(out), **options)


def their_loss(model: Path, cube: xr.Dataset, sample: int, *, content: bool) -> tuple[float, int]:
    """Return transformers' own loss of a prompt, and the number of predicted tokens."""
    length = int(cube.n_tokens[sample])
    ids = torch.from_numpy(cube.token_id.values[sample, :length].astype(np.int64))[None]
    labels = ids.clone()
    if content:  # the label of a token counts if the token before it is content
        is_content = torch.from_numpy(cube.token_kind.values[sample, :length] == 3)
        labels[0, 1:][~is_content[:-1]] = -100
    labels[0, 0] = -100
    with torch.no_grad():
        loss = tf.AutoModelForCausalLM.from_pretrained(model).eval()(input_ids=ids, labels=labels).loss
    return float(loss), int((labels != -100).sum())


@pytest.mark.parametrize("tokens", ["all", "content"])
def test_the_loss_is_that_of_transformers(tokens: Any, tiny_model: Path, cube: xr.Dataset) -> None:
    selected = select_tokens(cube, tokens)
    every = [their_loss(tiny_model, cube, row, content=tokens == "content") for row in range(6)]
    losses, counts = np.array([loss for loss, _ in every]), np.array([count for _, count in every])
    alone = load_language_loss(selected, tiny_model, rows=np.array([1]))
    assert alone.mean() == pytest.approx(losses[1], abs=1e-5)
    together = load_language_loss(selected, tiny_model, rows=np.arange(6))
    together.check(cube, "residual", [0, 1, 2])
    assert together.n_predictions == counts.sum()
    assert together.mean() == pytest.approx((losses * counts).sum() / counts.sum(), abs=1e-5)


def test_a_batch_without_selected_tokens_is_not_compared(tiny_model: Path, cube: xr.Dataset) -> None:
    loss = load_language_loss(cube, tiny_model, rows=np.arange(6))
    (batch,) = loss.batches
    empty = replace(batch, mask=torch.zeros_like(batch.mask))
    replace(loss, batches=[empty, batch]).check(cube, "residual", [0])


def test_the_selection_is_named_if_nothing_follows_it(tiny_model: Path, cube: xr.Dataset) -> None:
    last = actkit.TokenFilter(positions=[-1])  # of the content, which ends the prompts
    if (cube.token_kind.values[np.arange(cube.sizes["sample"]), cube.n_tokens.values - 1] != 3).any():
        pytest.skip("something follows the content")
    with pytest.raises(InputError, match="no token follows a token of TokenFilter"):
        actkit.sae_quality(cube, set_of({0: random(16)}), model=tiny_model, cluster=None, tokens=last)


@pytest.mark.parametrize("component", ["residual", "attention", "mlp"])
def test_exact_reconstructions_recover_everything_and_absent_ones_nothing(
    component: Any, tiny_model: Path, cube: xr.Dataset
) -> None:
    options: Any = {"model": tiny_model, "cluster": None, "tokens": "all"}
    exact = set_of({layer: identity(16, layer, component) for layer in LAYERS})
    quality = actkit.sae_quality(cube, exact, **options)
    np.testing.assert_allclose(quality.ce_sae, quality.ce, atol=1e-6)
    np.testing.assert_allclose(quality.ce_recovered.dropna("layer"), 1, atol=1e-6)
    assert (quality.ce_zero != quality.ce).all()
    none = actkit.sae_quality(
        cube, set_of({layer: constant(16, 0, layer, component) for layer in LAYERS}), **options
    )
    np.testing.assert_allclose(none.ce_sae, none.ce_zero, atol=1e-6)
    np.testing.assert_allclose(none.ce_zero, quality.ce_zero, atol=1e-6)
    is_defined = none.ce_recovered.notnull()
    np.testing.assert_allclose(none.ce_recovered[is_defined], 0, atol=1e-6)


def test_zero_in_the_last_residual_predicts_all_tokens_alike(tiny_model: Path, cube: xr.Dataset) -> None:
    quality = actkit.sae_quality(
        cube, set_of({2: identity(16, 2)}), model=tiny_model, cluster=None, tokens="all"
    )
    vocabulary = tf.AutoConfig.from_pretrained(tiny_model).vocab_size
    assert quality.ce_zero.item() == pytest.approx(np.log(vocabulary), abs=1e-5)
    assert quality.attrs["n_predictions"] > 0


def test_an_encoder_is_refused_by_name(minilm: Path, prompts: Path, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    cube = actkit.extract(model=str(minilm), data=str(prompts), out=run, layers="0", listeners=[])
    with pytest.raises(InputError, match="`bert` is an encoder, which predicts no next token"):
        actkit.sae_quality(cube, set_of({0: random(384)}), model=minilm, cluster=None)


def test_another_model_is_refused(tiny_model: Path, cube: xr.Dataset, tmp_path: Path) -> None:
    model = tf.AutoModelForCausalLM.from_pretrained(tiny_model)
    torch.manual_seed(1)
    torch.nn.init.normal_(model.model.embed_tokens.weight)
    model.save_pretrained(tmp_path)
    tf.AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="its residual of layer 0 is not that of the cube"):
        actkit.sae_quality(cube, set_of({0: random(16)}), model=tmp_path, cluster=None)


def test_cubes_without_whole_prompts_are_refused(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    common: Any = {"model": str(tiny_model), "data": str(prompts), "listeners": []}
    content = actkit.extract(**common, out=str(tmp_path / "content"), keep_tokens="content")
    with pytest.raises(InputError, match="holds only some tokens of its prompts"):
        actkit.sae_quality(content, set_of({0: random(16)}), model=tiny_model, cluster=None)
