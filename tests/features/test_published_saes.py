from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from actkit.errors import CorruptError, InputError
from actkit.features.sae_loader import load_saes
from tests.features.published_samples import (
    jumprelu_formula,
    jumprelu_tensors,
    write_gemma_scope_1,
    write_gemma_scope_2,
    write_sparsify,
)
from tests.features.sae_samples import FEATURES, activations, random_sae


def test_gemma_scope_1_has_its_site_in_the_path(tmp_path):
    saes = load_saes(write_gemma_scope_1(tmp_path / "gemma-scope-2b-pt-res"))
    assert (saes.layers, saes.component) == ([20], "residual")
    features, outputs = jumprelu_formula(jumprelu_tensors())
    np.testing.assert_allclose(saes[20].encode(activations()), features, atol=1e-6)
    np.testing.assert_allclose(saes[20].decode(saes[20].encode(activations())), outputs, atol=1e-6)
    assert saes[20].metadata == {"model_name": "google/gemma-2-2b", "hook_name": "blocks.20.hook_resid_post"}


def test_component_that_the_path_lacks_can_be_given(tmp_path):
    write_gemma_scope_1(tmp_path)
    assert load_saes(tmp_path, component="mlp").component == "mlp"


@pytest.mark.parametrize(("name", "component"), [("resid_post", "residual"), ("mlp_out_all", "mlp")])
def test_gemma_scope_2_has_its_component_in_the_path(tmp_path, name, component):
    saes = load_saes(write_gemma_scope_2(tmp_path, f"{name}/layer_9_width_16k_l0_small"))
    assert (saes.layers, saes.component) == ([9], component)
    np.testing.assert_allclose(
        saes[9].encode(activations()), jumprelu_formula(jumprelu_tensors())[0], atol=1e-6
    )
    assert saes[9].metadata["model_name"] == "google/gemma-3-1b-it"


@pytest.mark.parametrize(
    ("name", "component"),
    [("layers.5", "residual"), ("model.layers.5.mlp", "mlp"), ("h.5.attn", "attention")],
)
def test_sparsify_has_its_site_in_the_folder(tmp_path, name, component):
    saes = load_saes(write_sparsify(tmp_path, name))
    assert (saes.layers, saes.component) == ([5], component)
    sae = random_sae(5, "topk")
    pre = (activations() - sae.b_dec).numpy() @ sae.w_enc.numpy() + sae.b_enc.numpy()
    pre = np.maximum(pre, 0)
    pre[pre < np.sort(pre, axis=1)[:, [-4]]] = 0
    np.testing.assert_allclose(saes[5].encode(activations()), pre, atol=1e-6)
    assert saes[5].metadata["model_name"] == "org/tiny"


def cached_repository(monkeypatch: pytest.MonkeyPatch, cache: Path, repo: str) -> Path:
    """Return the snapshot of a repository in an empty cache of the Hub."""
    folder = cache / ("models--" + repo.replace("/", "--"))
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return snapshot


def as_blobs(snapshot: Path) -> None:
    """Replace files by links to blobs, as the cache of the Hub has them."""
    blobs = snapshot.parent.parent / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(path for path in snapshot.rglob("*") if path.is_file())):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))


def test_repository_is_read_from_the_cache_without_a_network(tmp_path, monkeypatch):
    snapshot = cached_repository(monkeypatch, tmp_path, "google/gemma-scope-2-1b-it")
    for layer in (9, 10):
        write_gemma_scope_2(
            snapshot, f"resid_post_all/layer_{layer}_width_16k_l0_small", hf_hook_point_in=None
        )
    as_blobs(snapshot)
    saes = load_saes("google/gemma-scope-2-1b-it/resid_post_all/*_small", layers=[10])
    assert (saes.layers, saes.path) == ([10], "google/gemma-scope-2-1b-it/resid_post_all/*_small")
    assert saes[10].n_features == FEATURES


def test_folder_in_a_snapshot_is_read_by_its_path(tmp_path, monkeypatch):
    snapshot = cached_repository(monkeypatch, tmp_path, "google/gemma-scope-2b-pt-res")
    write_gemma_scope_1(snapshot)
    as_blobs(snapshot)
    assert load_saes(snapshot / "layer_20").layers == [20]
    path = next(snapshot.rglob("params.npz"))
    path.resolve().rename(tmp_path / "outside")
    path.unlink()
    path.symlink_to(tmp_path / "outside")
    with pytest.raises(CorruptError, match="is a link out of the folder"):
        load_saes(snapshot / "layer_20")


def test_cache_decides_if_the_hub_cannot_be_reached(tmp_path, monkeypatch):
    import huggingface_hub

    snapshot = cached_repository(monkeypatch, tmp_path, "google/gemma-scope-2b-pt-res")
    write_gemma_scope_1(snapshot)
    http = import_module(huggingface_hub.errors.HfHubHTTPError.__bases__[0].__module__.partition(".")[0])

    def unreachable(*_, **__):
        raise http.ConnectError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    assert load_saes("google/gemma-scope-2b-pt-res").layers == [20]
    with pytest.raises(InputError, match="cannot be downloaded"):
        load_saes("google/gemma-scope-9b-pt-res")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(InputError, match="cannot be downloaded: Name or service not known"):
        load_saes("google/gemma-scope-2b-pt-res")


def test_only_files_of_the_chosen_layers_are_downloaded(tmp_path, monkeypatch):
    import huggingface_hub

    published = write_gemma_scope_2(tmp_path / "hub")
    write_gemma_scope_2(published, "resid_post_all/layer_10_width_16k_l0_small")
    (published / ".gitattributes").touch()
    cache, requests = tmp_path / "cache", []

    class Info:
        sha = "1" * 40

        @property
        def siblings(self):
            names = [
                path.relative_to(published).as_posix() for path in published.rglob("*") if path.is_file()
            ]
            return [type("File", (), {"rfilename": name}) for name in sorted(names)]

    def download(repo, *, revision, allow_patterns):
        requests.extend(allow_patterns)
        for name in allow_patterns:
            (cache / name).parent.mkdir(parents=True, exist_ok=True)
            (cache / name).write_bytes((published / name).read_bytes())
        return str(cache)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: Info())
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_saes("google/gemma-scope-2-1b-it", layers=[10])[10].layer == 10
    folder = "resid_post_all/layer_10_width_16k_l0_small"
    assert requests == [".gitattributes", f"{folder}/params.safetensors", f"{folder}/config.json"]


def test_unknown_repository_is_named(tmp_path, monkeypatch):
    cached_repository(monkeypatch, tmp_path, "some/other")
    with pytest.raises(InputError, match="nobody/nothing: is not a folder here and cannot be downloaded"):
        load_saes("nobody/nothing")
    with pytest.raises(InputError, match="is neither a folder nor a repository on the Hugging Face Hub"):
        load_saes("/no/such/folder")
