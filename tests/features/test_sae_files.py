import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from actkit.errors import CorruptError, InputError
from actkit.features.sae_files import layer_folder, write_manifest, write_sae
from actkit.features.sae_loader import load_saes, read_sae
from tests.features.sae_samples import FEATURES, activations, random_sae


@pytest.mark.parametrize("architecture", ["standard", "topk", "batchtopk", "jumprelu"])
@pytest.mark.parametrize("component", ["residual", "attention", "mlp"])
def test_written_autoencoder_is_read_unchanged(tmp_path, architecture, component):
    sae = random_sae(3, architecture, component)
    write_sae(tmp_path, sae)
    again = read_sae(tmp_path)
    assert (again.layer, again.component, again.architecture, again.k) == (3, component, architecture, sae.k)
    assert torch.equal(again.encode(activations()), sae.encode(activations()))
    assert torch.equal(again.decode(sae.encode(activations())), sae.decode(sae.encode(activations())))
    assert again.metadata["model_name"] == "demo"


def test_file_holds_what_the_formula_of_saelens_needs(tmp_path):
    sae = random_sae()
    write_sae(tmp_path, sae)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    assert (cfg["architecture"], cfg["normalize_activations"], cfg["apply_b_dec_to_input"]) == (
        "jumprelu",
        "none",
        True,
    )
    weights, x = load_file(tmp_path / "sae_weights.safetensors"), activations().numpy()
    pre = (x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    features = np.maximum(pre, 0) * (pre > weights["threshold"])
    np.testing.assert_allclose(sae.encode(activations()), features, atol=1e-6)


def test_folder_of_layers_is_read_one_layer_at_a_time(tmp_path):
    for layer in (4, 2):
        write_sae(tmp_path / layer_folder(layer, "residual"), random_sae(layer))
    write_manifest(tmp_path)
    saes = load_saes(tmp_path)
    assert (saes.layers, saes.component, saes.path) == ([2, 4], "residual", str(tmp_path))
    assert saes[4].layer == 4
    assert repr(saes) == f"<SaeSet of residual, layers 2, 4, in {tmp_path}>"
    assert "<td>4</td><td>batchtopk</td><td>20</td><td>6</td>" in saes._repr_html_()


BAD_WEIGHTS = {
    "NaN": ({"b_enc": torch.full((FEATURES,), torch.nan)}, "b_enc has 20 values that are NaN or infinite"),
    "shape": ({"b_dec": torch.zeros(3)}, "b_dec has shape 3, not 6"),
    "threshold": ({"threshold": None}, "the architecture `batchtopk` needs a threshold"),
    "negative": ({"threshold": torch.full((FEATURES,), -1.0)}, "threshold has negative values"),
    "k": ({"architecture": "topk", "k": 21}, "k is 21, not between 1 and the 20 features"),
}


@pytest.mark.parametrize("name", BAD_WEIGHTS)
def test_invalid_weights_are_not_written(tmp_path, name):
    changes, message = BAD_WEIGHTS[name]
    with pytest.raises(InputError) as caught:
        write_sae(tmp_path / "x", replace(random_sae(), **changes))
    expected = f"the autoencoder cannot be written\n  - autoencoder of residual, layer 2: {message}"
    assert str(caught.value) == expected
    assert not (tmp_path / "x").exists()


def test_rewriting_leaves_no_other_files(tmp_path):
    write_sae(tmp_path, random_sae())
    write_sae(tmp_path, random_sae(5))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    assert read_sae(tmp_path).layer == 5


@pytest.mark.parametrize("file", ["cfg.json", "sae_weights.safetensors"])
def test_damaged_file_is_named(tmp_path, file):
    folder = tmp_path / layer_folder(2, "residual")
    write_sae(folder, random_sae())
    write_manifest(tmp_path)
    path = folder / file
    content = bytearray(path.read_bytes())
    position = content.index(b'"demo"') + 1 if file == "cfg.json" else len(content) - 1
    content[position] ^= 1
    Path(path).write_bytes(content)
    with pytest.raises(CorruptError, match=f"{file}: differs from the digest that was stored with it"):
        load_saes(tmp_path)[2]
