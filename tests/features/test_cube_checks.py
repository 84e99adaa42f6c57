import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import xarray as xr

import actkit
from actkit.errors import InputError
from actkit.features.sae import Sae
from actkit.features.sae_files import layer_folder, write_sae
from actkit.features.sae_origin import sae_metadata
from actkit.features.sae_set import SaeSet
from actkit.testing import flip_bit, write_cube
from tests.features.sae_samples import random_sae

HIDDEN = 16


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    cube = actkit.open_cube(write_cube(tmp_path_factory.mktemp("run") / "run"))
    return cube.assign_attrs(model="org/demo", model_revision="a" * 64, model_type="llama")


def sae_of(layer: int = 1, **changes: object) -> Sae:
    metadata = {"model_revision": "a" * 64, "actkit_version": "0"} | changes.pop("metadata", {})
    return replace(random_sae(layer, hidden=HIDDEN, **metadata), **changes)


def set_of(*saes: Sae, component: str = "residual") -> SaeSet:
    return SaeSet(component, {sae.layer: lambda sae=sae: sae for sae in saes})


def test_autoencoders_of_the_cube_pass(cube):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        actkit.check_saes(cube, set_of(sae_of(0), sae_of(2)))


def test_metadata_of_the_cube_are_accepted(cube):
    about = sae_metadata(cube, 1, "residual")
    assert about == {
        "model_name": "org/demo",
        "model_revision": "a" * 64,
        "model_type": "llama",
        "cube_sha256": cube.attrs["metadata_sha256"],
        "hook_name": "blocks.1.hook_resid_post",
        "hf_hook_name": "model.layers.1",
        "prepend_bos": True,
    }
    actkit.check_saes(cube, set_of(sae_of(metadata=about)))


WHERE = "autoencoder of residual, layer 1: "
FAULTS: dict[str, tuple[Callable[[], SaeSet], str]] = {
    "none": (
        lambda: SaeSet("residual", {}),
        "autoencoders of residual: there are none (load or",
    ),
    "component": (
        lambda: set_of(sae_of(component="mlp"), component="mlp"),
        "autoencoders of mlp: the cube has no `mlp`",
    ),
    "layers": (
        lambda: set_of(sae_of(0), sae_of(3), sae_of(7)),
        "autoencoders of residual: the cube has no residual at layers [3, 7] (the cube has it at [0, 1, 2]; ",
    ),
    "width": (
        lambda: set_of(random_sae(1)),
        WHERE + "is for activations of width 6, but those of the cube have 16 (use one that was",
    ),
    "module": (
        lambda: set_of(sae_of(metadata={"hf_hook_name": "model.layers.1.mlp.output"})),
        WHERE + "is of the output of `model.layers.1.mlp`, but the cube holds that of `model.layers.1` (use",
    ),
    "digest of the model": (
        lambda: set_of(sae_of(metadata={"model_revision": "b" * 64})),
        WHERE + "was trained on demo of digest bbbbbbbb…, but the cube is of digest aaaaaaaa… (train one on",
    ),
    "adapter": (
        lambda: set_of(sae_of(metadata={"adapter_sha256": "c" * 64})),
        WHERE + "was trained on the model with another adapter, or with none (train one on this cube, or",
    ),
    "another layer": (
        lambda: SaeSet("residual", {1: lambda: sae_of(2)}),
        WHERE + "is of residual, layer 2",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_autoencoders_that_do_not_fit_are_refused(cube, name):
    make, message = FAULTS[name]
    with pytest.raises(InputError) as caught:
        actkit.check_saes(cube, make())
    assert f"  - {message}" in str(caught.value)
    assert len(caught.value.faults) == 1


def test_all_faults_are_listed_at_once(cube, tmp_path: Path):
    for layer in (0, 1, 5):
        write_sae(tmp_path / layer_folder(layer, "residual"), random_sae(layer))
    weights = tmp_path / "residual_0/sae_weights.safetensors"
    flip_bit(weights, 8 * weights.stat().st_size - 1)
    with pytest.raises(InputError) as caught:
        actkit.check_saes(cube, actkit.load_saes(tmp_path))
    assert [fault.what.split(" (")[0] for fault in caught.value.faults] == [
        "the cube has no residual at layers [5]",
        "differs from the digest that was stored with it",
        "is for activations of width 6, but those of the cube have 16",
        "is for activations of width 6, but those of the cube have 16",
    ]
    assert str(caught.value).startswith("the autoencoders do not fit the cube: 4 faults\n")


def test_nan_is_found_in_files_without_a_digest(cube, tmp_path: Path):
    def read() -> Sae:
        from actkit.features.stored_sae import checked

        return checked(sae_of(b_enc=torch.full((20,), torch.nan)), tmp_path)

    with pytest.raises(InputError, match="b_enc has 20 values that are NaN or infinite"):
        actkit.check_saes(cube, SaeSet("residual", {1: read}))


def test_published_autoencoders_of_another_model_cause_a_warning(cube):
    saes = set_of(random_sae(1, hidden=HIDDEN, model_name="org/demo-base"))
    with pytest.warns(UserWarning, match=r"are of the model org/demo-base, but the cube is of org/demo"):
        actkit.check_saes(cube, saes)
