import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from actkit.errors import CorruptError, InputError
from actkit.features.manifest import read_manifest
from actkit.features.sae_files import layer_folder, write_manifest, write_sae
from actkit.features.sae_loader import load_saes, read_sae
from tests.features.published_samples import write_gemma_scope_1, write_gemma_scope_2, write_sparsify
from tests.features.sae_samples import HIDDEN, activations, random_sae

FIXTURES = Path(__file__).parent / "saelens_files"
SAVED = sorted(path.parent.name for path in FIXTURES.glob("*/cfg.json"))


@pytest.mark.parametrize("name", SAVED)
def test_files_of_saelens_give_what_saelens_computes(name):
    expected = np.load(FIXTURES / "expected.npz")
    sae = read_sae(FIXTURES / name)
    features = sae.encode(torch.from_numpy(expected["activations"]))
    np.testing.assert_array_equal(features.numpy() != 0, expected[f"{name}_features"] != 0)
    np.testing.assert_allclose(features.numpy(), expected[f"{name}_features"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        sae.decode(features).numpy(), expected[f"{name}_outputs"], rtol=1e-5, atol=1e-5
    )
    assert (sae.layer, sae.component) == (2, "residual")


def write_tree(folder: Path) -> Path:
    for component in ("residual", "mlp"):
        for layer in (2, 4):
            write_sae(
                folder / "saes" / layer_folder(layer, component), random_sae(layer, component=component)
            )
    write_manifest(folder / "saes")
    return folder


def test_run_folder_is_searched_at_any_depth(tmp_path):
    saes = load_saes(write_tree(tmp_path), component="mlp", layers=[4])
    assert (saes.layers, saes[4].component) == ([4], "mlp")
    entries = read_manifest(tmp_path / "saes").saes
    assert [(entry.layer, entry.component, entry.hidden) for entry in entries] == [
        (2, "mlp", HIDDEN),
        (4, "mlp", HIDDEN),
        (2, "residual", HIDDEN),
        (4, "residual", HIDDEN),
    ]


def test_pattern_selects_folders(tmp_path):
    write_tree(tmp_path)
    assert load_saes(f"{tmp_path}/*/mlp_*").component == "mlp"


def test_autoencoders_of_other_kinds_are_left_out_with_a_warning(tmp_path):
    write_gemma_scope_2(tmp_path)
    write_gemma_scope_2(tmp_path, "transcoder_all/layer_9_width_16k_l0_small")
    with pytest.warns(UserWarning, match=r"1 of 2 autoencoders are left out: the first is a transcoder"):
        assert load_saes(tmp_path).layers == [9]


def write_cfg(**changes: object) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        write_sae(folder, random_sae())
        cfg = json.loads((folder / "cfg.json").read_text())
        metadata = changes.get("metadata", {})
        cfg |= changes | {"metadata": {"hook_name": "blocks.2.hook_resid_post"} | metadata}
        (folder / "cfg.json").write_text(json.dumps(cfg))

    return write


def pickle_only(folder: Path) -> None:
    folder.mkdir()
    (folder / "ae.pt").write_bytes(b"")


UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (Path.mkdir, "autoencoders {}: has no files of autoencoders (check the path; supported are"),
    "pickle": (
        pickle_only,
        "autoencoders {}: has only pickled files (ae.pt) (a pickle can run code when it",
    ),
    "transcoder": (
        write_cfg(architecture="skip_transcoder"),
        "{}: is a transcoder (skip_transcoder) (use an autoencoder, whose input and output are the same",
    ),
    "temporal": (
        write_cfg(architecture="temporal"),
        "{}: has the architecture 'temporal' (supported are standard",
    ),
    "layer norm": (
        write_cfg(normalize_activations="layer_norm"),
        "{}: normalizes each activation before it is encoded (layer_norm) (use an autoencoder of the",
    ),
    "scale": (
        write_cfg(normalize_activations="expected_average_only_in"),
        "{}: scales the activations (expected_average_only_in) by a factor that the folder does not",
    ),
    "heads": (
        write_cfg(metadata={"hook_name": "blocks.2.attn.hook_z"}, reshape_activations="hook_z"),
        "{}: is of the heads of the attention (hook_z), which cubes do not hold (use one of",
    ),
    "other site": (
        write_cfg(metadata={"hook_name": "blocks.2.ln2.hook_normalized"}),
        "{}: is of 'blocks.2.ln2.hook_normalized' (cubes hold outputs of blocks, attention and MLP)",
    ),
    "no site": (
        write_cfg(metadata={"hook_name": None}),
        "{}: names no hook point (hook_name) (cubes hold outputs of blocks, attention and MLP)",
    ),
    "embedding": (
        lambda folder: write_gemma_scope_1(folder, "embedding/width_4k/average_l0_6"),
        "{}/embedding/width_4k/average_l0_6: is of the embedding (use an autoencoder of the residual",
    ),
    "unknown component": (
        write_gemma_scope_1,
        "{}/layer_20/width_16k/average_l0_71: does not say of which component it is (keep the name of the",
    ),
    "heads of Gemma": (
        lambda folder: write_gemma_scope_2(folder, "attn_out/layer_9_width_16k_l0_small"),
        "{}/attn_out/layer_9_width_16k_l0_small: is of the heads of the attention, before their",
    ),
    "transcoder of Gemma": (
        lambda folder: write_gemma_scope_2(folder, hf_hook_point_out="model.layers.9.mlp.output"),
        "{}/resid_post_all/layer_9_width_16k_l0_small: is a transcoder (use an autoencoder, whose",
    ),
    "cross-layer transcoder": (
        lambda folder: write_gemma_scope_2(folder, "clt/layer_9_width_16k_l0_small"),
        "{}/clt/layer_9_width_16k_l0_small: is a transcoder (use an autoencoder, whose input and output",
    ),
    "sparsify transcoder": (
        lambda folder: write_sparsify(folder, transcode=True),
        "{}/layers.5: is a transcoder (use an autoencoder, whose input and output are the same activations)",
    ),
    "groupmax": (
        lambda folder: write_sparsify(folder, activation="groupmax"),
        "{}/layers.5: has the activation function 'groupmax' (supported is topk)",
    ),
    "embedding of sparsify": (
        lambda folder: write_sparsify(folder, "embed_tokens"),
        "{}/embed_tokens: is of the module `embed_tokens` (cubes hold outputs of blocks, attention and MLP",
    ),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_folder_is_refused_by_name(tmp_path, name):
    write, message = UNUSABLE[name]
    folder = tmp_path / "x"
    write(folder)
    with pytest.raises(InputError) as caught:
        load_saes(folder)
    assert f"  - {message.format(folder)}" in str(caught.value)
    assert len(caught.value.faults) == 1


def overwrite(file: str, content: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        write_sae(folder, random_sae())
        (folder / file).write_bytes(content)

    return write


def header_of(n_bytes: int) -> bytes:
    return n_bytes.to_bytes(8, "little") + b"{}"


def linked(folder: Path) -> None:
    write_sae(folder.parent / "elsewhere", random_sae())
    folder.mkdir()
    for name in ("cfg.json", "sae_weights.safetensors"):
        (folder / name).symlink_to(folder.parent / "elsewhere" / name)


def with_fifo(folder: Path) -> None:
    write_sae(folder, random_sae())
    (folder / "cfg.json").unlink()
    os.mkfifo(folder / "cfg.json")


def pickled_array(folder: Path) -> None:
    write_gemma_scope_1(folder / "gemma-scope-2b-pt-res", b_enc=np.array([{}], dtype=object))


DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no cfg": (
        lambda folder: (write_sae(folder, random_sae()), (folder / "cfg.json").unlink()),
        "cfg.json: is missing",
    ),
    "no JSON": (overwrite("cfg.json", b"{"), "cfg.json: cannot be read: "),
    "a list": (overwrite("cfg.json", b"[]"), "cfg.json: is not a JSON object"),
    "no width": (write_cfg(d_in="6"), "cfg.json: has no valid d_in and d_sae"),
    "other width": (write_cfg(d_in=7), "sae_weights.safetensors: `W_enc` has shape [6, 20], not [7, 20]"),
    "no k": (write_cfg(architecture="topk", k=21), "cfg.json: has no valid k (21)"),
    "no threshold": (
        lambda folder: (
            write_sae(folder, random_sae(architecture="standard")),
            (folder / "cfg.json").write_text(
                (folder / "cfg.json").read_text().replace('"standard"', '"jumprelu"', 1)
            ),
        ),
        "sae_weights.safetensors: lacks threshold",
    ),
    "no tensors": (
        overwrite("sae_weights.safetensors", b"0" * 30),
        "sae_weights.safetensors: has a header of 3,472,328,296,227,680,304 bytes",
    ),
    "cut": (
        overwrite("sae_weights.safetensors", header_of(20)),
        "sae_weights.safetensors: is not a valid safetensors file: ",
    ),
    "integers": (
        lambda folder: (
            write_sae(folder, random_sae()),
            save_file({"W_enc": torch.zeros(2, 2, dtype=torch.int8)}, folder / "sae_weights.safetensors"),
        ),
        "sae_weights.safetensors: `W_enc` is not of a floating-point type",
    ),
    "link": (linked, "is a link out of the folder (replace it with the file)"),
    "pipe": (with_fifo, "cfg.json: cannot be read: is not a regular file"),
    "pickle in npz": (pickled_array, "params.npz: `b_enc` is not of a floating-point type"),
    "other shape in npz": (
        lambda folder: write_gemma_scope_1(folder / "gemma-scope-2b-pt-res", b_dec=np.zeros(3, np.float32)),
        "params.npz: `b_dec` has shape [3], not [6]",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_folder_is_refused_by_file(tmp_path, name):
    write, message = DAMAGED[name]
    write(tmp_path / "x")
    with pytest.raises(CorruptError) as caught:
        load_saes(tmp_path / "x")
    assert message in str(caught.value)


def test_nan_in_weights_is_found_when_they_are_read(tmp_path):
    write_gemma_scope_1(tmp_path / "gemma-scope-2b-pt-res", b_dec=np.full(HIDDEN, np.nan, np.float32))
    saes = load_saes(tmp_path / "gemma-scope-2b-pt-res")
    with pytest.raises(CorruptError, match="b_dec has 6 values that are NaN or infinite"):
        saes[20]


def compressed_by(method: int) -> Callable[[bytearray], None]:
    """Return a function that changes the method of compression of the first array, or its encryption."""

    def change(content: bytearray) -> None:
        content[8:10] = method.to_bytes(2, "little")
        place = content.index(b"PK\1\2")
        content[place + 10 : place + 12] = method.to_bytes(2, "little")

    return change


def encrypted(content: bytearray) -> None:
    content[6] |= 1
    content[content.index(b"PK\1\2") + 8] |= 1


def flipped(content: bytearray) -> None:
    content[300] ^= 1  # beyond the header of the first array


@pytest.mark.parametrize(
    "change", [flipped, encrypted, compressed_by(8), compressed_by(14), compressed_by(99)]
)
def test_arrays_damaged_behind_their_header_are_refused_by_file(tmp_path, change):
    folder = write_gemma_scope_1(tmp_path / "gemma-scope-2b-pt-res") / "layer_20/width_16k/average_l0_71"
    content = bytearray((folder / "params.npz").read_bytes())
    saes = load_saes(folder)
    change(content)
    (folder / "params.npz").write_bytes(content)
    with pytest.raises(CorruptError, match=r"params\.npz: cannot be read"):
        saes[20]
    if change is not flipped:
        with pytest.raises(CorruptError, match=r"params\.npz: is not a valid"):
            load_saes(folder)


def test_tensors_damaged_since_they_were_found_are_refused_by_file(tmp_path):
    folder = write_gemma_scope_2(tmp_path / "gemma-scope-2-1b-it")
    saes = load_saes(folder)
    path = next(folder.rglob("params.safetensors"))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CorruptError, match=r"params\.safetensors: cannot be read"):
        saes[9]


REQUESTS = {
    "several components": ({}, "component: there are autoencoders of mlp, residual (give one of them)"),
    "missing component": (
        {"component": "attention"},
        "has none of attention (it has mlp of layer 2, residual of layer 2, mlp of layer 4,",
    ),
    "missing layer": ({"layers": [2, 3], "component": "mlp"}, "has none of layers [3] (it has layers [2])"),
    "no layer": (
        {"layers": [7], "component": "mlp"},
        "has none of layers [7] and mlp (it has mlp of layer 2,",
    ),
    "layers": ({"layers": "all"}, "layers: is 'all' (give a list of layer numbers, from 0)"),
    "negative layer": ({"layers": [-1]}, "layers: is [-1] (give a list of layer numbers, from 0)"),
    "component": ({"component": "mlps"}, "component: is 'mlps' (choose from residual, attention, mlp)"),
    "revision": ({"revision": "main"}, "revision: cannot be used with a folder (leave it out; folders have"),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_request_that_cannot_be_met_says_what_there_is(tmp_path, name):
    options, message = REQUESTS[name]
    with pytest.raises(InputError) as caught:
        load_saes(write_tree(tmp_path), **options)
    assert message in str(caught.value)


def test_several_autoencoders_of_a_layer_are_named(tmp_path):
    for name in ("small", "big"):
        write_gemma_scope_2(tmp_path, f"resid_post/layer_9_width_16k_l0_{name}")
    names = "resid_post/layer_9_width_16k_l0_big, resid_post/layer_9_width_16k_l0_small"
    with pytest.raises(InputError) as caught:
        load_saes(tmp_path)
    assert f"has 2 of layer 9: {names} (add the folder to the path, such as {tmp_path}/" in str(caught.value)
    assert load_saes(f"{tmp_path}/*_small").layers == [9]


def test_unfinished_training_is_refused(tmp_path):
    write_tree(tmp_path)
    write_manifest(tmp_path / "saes", complete=False)
    with pytest.raises(InputError, match="has autoencoders whose training has not ended"):
        load_saes(tmp_path, component="mlp")


def test_scale_of_a_checkpoint_is_folded(tmp_path):
    write_cfg(normalize_activations="expected_average_only_in")(tmp_path / "x")
    (tmp_path / "x" / "activation_scaler.json").write_text('{"scaling_factor": 2.0}')
    folded, original = read_sae(tmp_path / "x"), random_sae()
    x = activations()
    torch.testing.assert_close(folded.encode(x), original.encode(2 * x))
    torch.testing.assert_close(folded.decode(folded.encode(x)), original.decode(original.encode(2 * x)) / 2)


def test_nothing_is_unpickled_or_run(tmp_path):
    """Files with code beside the weights are not touched."""
    write_sae(tmp_path / "x", random_sae())
    (tmp_path / "x" / "modeling.py").write_text("raise SystemExit")
    (tmp_path / "x" / "trainer_state.pt").write_bytes(b"\x80\x04cos\nsystem\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_saes(tmp_path).layers == [2]
