"""Features of the tokens of a cube, as a sparse cube."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
import xarray as xr

from actkit import cut_share, dense_vectors, encode, open_cube, verify
from actkit.cli import main
from actkit.errors import ChangedError, InputError, MissingError, NonfiniteError
from actkit.features.sae import Sae
from actkit.features.sae_files import layer_folder, write_manifest, write_sae
from actkit.features.sae_set import SaeSet
from actkit.stats.token_masks import content_mask
from actkit.store.writer import CubeWriter
from actkit.testing import contents, write_cube

HIDDEN = 16


def random_sae(
    layer: int, *, architecture: str = "jumprelu", n_features: int = 40, hidden: int = HIDDEN
) -> Sae:
    rng = torch.Generator().manual_seed(layer)
    w_dec = torch.nn.functional.normalize(torch.randn(n_features, hidden, generator=rng), dim=1)
    return Sae(
        layer,
        "residual",
        architecture,
        w_enc=w_dec.T.contiguous(),
        b_enc=torch.randn(n_features, generator=rng) / 10,
        w_dec=w_dec,
        b_dec=torch.randn(hidden, generator=rng) / 10,
        threshold=torch.linspace(0.2, 1, n_features) if architecture in ("jumprelu", "batchtopk") else None,
        k=4 if architecture == "topk" else None,
        metadata={"model_name": "synthetic", "hook_name": f"blocks.{layer}.hook_resid_post"},
    )


def set_of(*saes: Sae) -> SaeSet:
    return SaeSet("residual", {sae.layer: lambda sae=sae: sae for sae in saes})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_cube(tmp_path / "run", n_samples=10, n_tokens=7, window=4)


def expected(cube: xr.Dataset, sae: Sae, is_encoded: np.ndarray) -> np.ndarray:
    """Dense features, dims ``(sample, token, feature)``, of all encoded tokens at once."""
    dense = np.zeros((*is_encoded.shape, sae.n_features), np.float32)
    x = cube.residual.sel(layer=sae.layer).values[is_encoded]
    dense[is_encoded] = sae.encode(torch.from_numpy(x)).numpy()
    return dense


def in_windows(run: Path) -> xr.Dataset:
    """A cube that says that its windows have 4 samples, as those of extractions do."""
    return open_cube(run).assign_attrs(window_samples=4)


def content(cube: xr.Dataset) -> np.ndarray:
    return content_mask(cube.token_kind, first_is_content=bool(cube.first_is_content)).values


@pytest.mark.parametrize("architecture", ["standard", "topk", "batchtopk", "jumprelu"])
def test_features_equal_those_of_the_autoencoder_exactly(
    run: Path, tmp_path: Path, architecture: str
) -> None:
    saes = [random_sae(layer, architecture=architecture) for layer in (0, 2)]
    features = encode(run, set_of(*saes), out=tmp_path / "f")
    cube = open_cube(run)
    for sae in saes:
        dense = expected(cube, sae, content(cube))
        got = dense_vectors(features.sel(layer=[sae.layer])).isel(layer=0)
        np.testing.assert_array_equal(got, dense)
        part = features.sel(layer=sae.layer)
        np.testing.assert_array_equal(part.n_active, (dense != 0).sum(-1))
        np.testing.assert_array_equal(part.feature_sum, dense.sum(-1, dtype=np.float64).astype(np.float32))
    assert features.sizes["k"] == (4 if architecture == "topk" else features.n_active.max())
    assert (features.feature_value.diff("k") <= 0).all()
    assert (cut_share(features) == 0).all()


def test_top_keeps_the_largest_and_says_what_was_cut(run: Path, tmp_path: Path) -> None:
    sae = random_sae(1, architecture="standard")
    features = encode(run, set_of(sae), out=tmp_path / "f", top=3)
    cube = open_cube(run)
    dense = expected(cube, sae, content(cube))
    largest = -np.sort(-dense, axis=-1)[..., :3]
    np.testing.assert_array_equal(features.feature_value.sel(layer=1), largest)
    share = 1 - largest.sum(dtype=np.float64) / dense.sum(dtype=np.float64)
    assert 0.1 < share < 1
    np.testing.assert_allclose(cut_share(features), [share], rtol=1e-5)
    assert features.n_active.max() > 3


def test_only_the_chosen_tokens_have_features(run: Path, tmp_path: Path) -> None:
    sae, cube = random_sae(0), open_cube(run)
    every = encode(run, set_of(sae), out=tmp_path / "all", tokens="all", top=40)
    special = (cube.token_kind == 1).values
    assert every.n_active.values[0][special].sum() > 0
    assert every.attrs["encoded_tokens"] == "all"
    real = (cube.token < cube.n_tokens).transpose("sample", "token").values
    np.testing.assert_array_equal(dense_vectors(every).isel(layer=0), expected(cube, sae, real))
    some = encode(run, set_of(sae), out=tmp_path / "some")
    assert some.n_active.values[0][special].sum() == 0
    assert some.attrs["encoded_tokens"] == "content"


def test_it_has_the_samples_labels_and_tokens_of_the_cube(run: Path, tmp_path: Path) -> None:
    features, cube = encode(run, set_of(random_sae(1)), out=tmp_path / "f"), open_cube(run)
    for name in (
        "language",
        "sample_id",
        "text",
        "gender",
        "image_id",
        "token_kind",
        "token_text",
        "n_tokens",
    ):
        xr.testing.assert_equal(features[name].drop_vars("layer", errors="ignore"), cube[name])
    assert features.gender.attrs["label"]
    assert features.attrs["actkit_format"] == cube.attrs["actkit_format"]
    assert features.attrs["encoded_sha256"] == cube.attrs["metadata_sha256"]
    assert {"model", "n_features", "saes", "features_of", "layers"} <= features.attrs.keys()
    assert features.attrs["layers"] == "1"


def test_part_of_a_cube_keeps_its_numbers(run: Path, tmp_path: Path) -> None:
    sae, cube = random_sae(2), open_cube(run)
    whole = encode(run, set_of(sae), out=tmp_path / "whole", top=9)
    arabic = cube.isel(sample=np.flatnonzero(cube.language == "arabic"), layer=[0, 2])
    part = encode(arabic, set_of(sae), out=tmp_path / "part", top=9)
    assert part.sample.values.tolist() == arabic.sample.values.tolist()
    same = whole.sel(sample=part.sample, token=part.token)
    np.testing.assert_array_equal(part.feature_value, same.feature_value)


def test_it_verifies_and_other_readers_read_the_same(run: Path, tmp_path: Path, capsys: Any) -> None:
    features = encode(run, set_of(random_sae(0), random_sae(1)), out=tmp_path / "f")
    assert verify(tmp_path / "f").ok
    assert main(["verify", str(tmp_path / "f")]) == main(["info", str(tmp_path / "f")]) == 0
    assert "feature_index feature_value" in capsys.readouterr().out
    other = xr.open_zarr(tmp_path / "f" / "cube.zarr", consolidated=False, mask_and_scale=False)
    for name in ("feature_index", "feature_value", "n_active", "feature_sum"):
        np.testing.assert_array_equal(other[name], features[name])
    layer = features.sel(layer=1)
    rows = np.repeat(np.arange(layer.n_active.size), layer.sizes["k"])
    entries = (layer.feature_value.values.ravel(), (rows, layer.feature_index.values.ravel()))
    matrix = scipy.sparse.coo_array(entries, shape=(layer.n_active.size, 40)).toarray()
    np.testing.assert_array_equal(matrix, dense_vectors(layer).values.reshape(-1, 40))


def test_float16_rounds_values_and_nothing_else(run: Path, tmp_path: Path) -> None:
    saes = set_of(random_sae(1))
    exact = encode(run, saes, out=tmp_path / "f32").load()
    rounded = encode(run, saes, out=tmp_path / "f16", dtype="float16").load()
    assert rounded.feature_value.dtype == "float16"
    np.testing.assert_array_equal(rounded.feature_value, exact.feature_value.astype(np.float16))
    xr.testing.assert_equal(rounded.n_active, exact.n_active)
    sae = random_sae(1)
    large = set_of(replace(sae, w_enc=sae.w_enc * 1e5))
    with pytest.raises(InputError, match="float16"):
        encode(run, large, out=tmp_path / "large", dtype="float16")


def test_interrupted_and_resumed_files_are_the_same(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saes, cube = set_of(random_sae(0), random_sae(2)), in_windows(run)
    encode(cube, saes, out=tmp_path / "whole")
    write = CubeWriter.write
    written: list[int] = []

    def once(self: CubeWriter, window: int, values: Any) -> int:
        if written:
            raise KeyboardInterrupt
        written.append(window)
        return write(self, window, values)

    monkeypatch.setattr(CubeWriter, "write", once)
    with pytest.raises(KeyboardInterrupt):
        encode(cube, saes, out=tmp_path / "parts")
    monkeypatch.undo()
    assert open_cube(tmp_path / "parts", partial=True).sizes["sample"] == 4
    encode(cube, saes, out=tmp_path / "parts")
    assert contents(tmp_path / "parts" / "cube.zarr") == contents(tmp_path / "whole" / "cube.zarr")


KILLED = """
import os, signal, sys
from actkit import encode, open_cube
from actkit.store.writer import CubeWriter
write = CubeWriter.write
def once(self, window, values):
    write(self, window, values)
    os.kill(os.getpid(), signal.SIGKILL)
CubeWriter.write = once
encode(open_cube(sys.argv[1]).assign_attrs(window_samples=4), sys.argv[2], out=sys.argv[3], top=5)
"""


@pytest.mark.slow
def test_killed_and_resumed_files_are_the_same(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "saes"
    for layer in (0, 1):
        write_sae(folder / layer_folder(layer, "residual"), random_sae(layer))
    write_manifest(folder)
    arguments = [sys.executable, "-c", KILLED, str(run), str(folder), str(tmp_path / "f")]
    ended = subprocess.run(arguments, env=os.environ, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert open_cube(tmp_path / "f", partial=True).sizes["sample"] == 4
    encode(in_windows(run), folder, out=tmp_path / "f", top=5)
    encode(in_windows(run), folder, out=tmp_path / "whole", top=5)
    assert contents(tmp_path / "f" / "cube.zarr") == contents(tmp_path / "whole" / "cube.zarr")


def test_other_settings_are_refused_by_name(run: Path, tmp_path: Path) -> None:
    encode(run, set_of(random_sae(0)), out=tmp_path / "f", top=5)
    for changed in ({"top": 6}, {"tokens": "all"}, {"dtype": "float16"}):
        with pytest.raises(ChangedError):
            encode(run, set_of(random_sae(0)), out=tmp_path / "f", **{"top": 5, **changed})
    with pytest.raises(ChangedError, match="saes"):
        encode(run, set_of(replace(random_sae(0), b_enc=torch.zeros(40))), out=tmp_path / "f", top=5)
    with pytest.raises(InputError, match="holds a cube"):
        encode(run, set_of(random_sae(0)), out=tmp_path / "f", top=5, resume=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0}, "top: is 0 (give an integer of at least 1)"),
        ({"dtype": "int8"}, "dtype: 'int8' is unknown"),
        ({"device": "gpu"}, "device: 'gpu' is unknown"),
        ({"saes": set_of(random_sae(9))}, "the cube has no residual at layers [9]"),
        (
            {"saes": set_of(random_sae(1, hidden=8))},
            "is for activations of width 8, but those of the cube have 16",
        ),
        ({"saes": SaeSet("mlp", {1: lambda: random_sae(1)})}, "the cube has no `mlp`"),
        ({"out": "s3://bucket/run"}, "out: is a URL"),
    ],
)
def test_faults_are_found_before_anything_is_written(
    run: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    arguments: dict[str, Any] = {"saes": set_of(random_sae(0)), "out": tmp_path / "f", **options}
    with pytest.raises(InputError) as caught:
        encode(run, **arguments)
    assert message in str(caught.value)
    assert not (tmp_path / "f").exists()


def test_the_number_of_features_may_be_of_numpy(run: Path, tmp_path: Path) -> None:
    features = encode(run, set_of(random_sae(1)), out=tmp_path / "f", top=np.int64(3))  # type: ignore[arg-type]
    assert features.sizes["k"] == 3


def test_the_folder_of_the_cube_itself_is_refused(run: Path) -> None:
    with pytest.raises(InputError, match="is the folder of the encoded cube"):
        encode(run, set_of(random_sae(0)), out=run)


def test_nan_is_refused(run: Path, tmp_path: Path) -> None:
    cube = open_cube(run).load()
    cube.residual[1, 2, 1, 3] = np.nan
    with pytest.raises(NonfiniteError, match="residual_1 has NaN or Inf values in samples 0 to 9"):
        encode(cube, set_of(random_sae(1)), out=tmp_path / "f", top=3)


def test_a_statistic_of_dense_vectors_names_what_is_missing(run: Path, tmp_path: Path) -> None:
    from actkit import layer_norms, top_activating

    features = encode(run, set_of(random_sae(1)), out=tmp_path / "f")
    with pytest.raises(MissingError, match="no `norm`; it holds features of autoencoders"):
        layer_norms(features)
    with pytest.raises(MissingError, match="no `residual`; it holds features of autoencoders"):
        top_activating(features, layer=1, hidden=0)


def test_dense_vectors_need_entries(run: Path) -> None:
    with pytest.raises(MissingError, match="has no entries"):
        dense_vectors(open_cube(run))
    with pytest.raises(InputError, match="no entries of 'mlp'"):
        dense_vectors(open_cube(run), component="mlp")


def test_the_command_line_encodes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "saes"
    write_sae(folder / layer_folder(1, "residual"), random_sae(1))
    write_manifest(folder)
    arguments = ["saes", "encode", str(run), str(folder), "--out", str(tmp_path / "f"), "--top", "3"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "1 layer × 10 sample × 7 token × 3 k" in printed
    assert "cut off" in printed
    assert open_cube(tmp_path / "f").sizes["k"] == 3
    assert main([*arguments[:4], "--out", str(tmp_path / "all")]) == 0
    assert "cut off" not in capsys.readouterr().out
