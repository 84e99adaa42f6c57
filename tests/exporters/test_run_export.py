"""What is exported is what the cube holds, in the words of those who read it."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from datasets import Dataset
from safetensors import safe_open

import actkit
from actkit.cli import main
from actkit.errors import ActkitError, InputError, MissingError, StorageError
from actkit.exporters import pt
from actkit.exporters.run_export import FORMATS, export
from actkit.schema import TokenKind
from actkit.testing import synthetic, write_cube

LANGUAGES = ("english", "arabic")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cube(
        tmp_path_factory.mktemp("export") / "run", n_layers=4, n_samples=70, n_tokens=6, hidden=12, window=16
    )


@pytest.fixture(scope="module")
def cube(run: Path) -> xr.Dataset:
    return actkit.open_cube(run).load()


def padless(cube: xr.Dataset, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a layer with pads 0, dims ``(sample, token, hidden)``, and which positions are tokens."""
    held = np.arange(cube.sizes["token"]) < cube.n_tokens.values[:, None]
    return np.where(held[..., None], cube.residual.sel(layer=layer).values, 0), held


@pytest.mark.slow
def test_a_loop_over_checkpoints_finds_the_norms_of_the_cube(
    run: Path, cube: xr.Dataset, tmp_path: Path
) -> None:
    export(run, tmp_path / "out", format="pt")
    for language in LANGUAGES:
        selected = cube.isel(sample=cube.language.values == language)
        for layer in range(4):
            checkpoint = torch.load(tmp_path / "out" / "layer_checkpoints" / f"layer_{layer}_{language}.pt")
            assert set(checkpoint) == {
                "layer",
                "activations",
                "genders",
                "image_ids",
                "hidden_size",
                "model",
                "timestamp",
            }
            assert (checkpoint["layer"], checkpoint["hidden_size"]) == (layer, 12)
            assert checkpoint["genders"] == selected.gender.values.tolist()
            assert checkpoint["image_ids"] == selected.image_id.values.tolist()
            norms = checkpoint["activations"].norm(dim=-1).numpy()
            wanted = np.nan_to_num(selected.norm.sel(layer=layer).values)[:, : norms.shape[1]]
            np.testing.assert_allclose(norms, wanted, rtol=1e-6)
            exact, _ = padless(selected, layer)
            np.testing.assert_array_equal(checkpoint["activations"].numpy(), exact[:, : norms.shape[1]])
        whole = torch.load(tmp_path / "out" / f"activations_{language}_all_layers.pt", weights_only=True)
        assert whole["layers"] == list(whole["activations"]) == [0, 1, 2, 3]
        assert whole["num_layers_extracted"] == 4
        assert torch.equal(whole["activations"][3], checkpoint["activations"])
    metadata = json.loads((tmp_path / "out" / "extraction_metadata.json").read_text())
    assert list(metadata) == [
        "model",
        "hidden_size",
        "num_layers",
        "layers_extracted",
        "num_samples",
        "batch_size",
        "checkpoint_interval",
        "extraction_date",
        "methodology",
    ]
    assert metadata["num_samples"] == 70
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "activations_arabic_all_layers.pt",
        "activations_english_all_layers.pt",
        "extraction_metadata.json",
        "layer_checkpoints",
    ]


def chunks(folder: Path, layer: int) -> dict[str, np.ndarray]:
    files = [np.load(path) for path in sorted((folder / f"layer_{layer}").iterdir())]
    assert [len(file["activations"]) for file in files] == [32, 32, 6]
    return {name: np.concatenate([file[name] for file in files]) for name in files[0]}


def test_chunks_are_the_layer(run: Path, cube: xr.Dataset, tmp_path: Path) -> None:
    export(run, tmp_path / "out", format="npz", layers="1-2")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["layer_1", "layer_2"]
    for layer in (1, 2):
        exported, (exact, held) = chunks(tmp_path / "out", layer), padless(cube, layer)
        np.testing.assert_array_equal(exported["activations"], exact)
        np.testing.assert_array_equal(exported["attention_mask"], held)
        np.testing.assert_array_equal(exported["token_ids"], np.where(held, cube.token_id.values, 0))


def test_chunks_are_whitened(run: Path, cube: xr.Dataset, tmp_path: Path) -> None:
    export(run, tmp_path / "out", format="npz", layers=2, whiten=True)
    exported = chunks(tmp_path / "out", 2)
    parameters = np.load(tmp_path / "out" / "layer_2_whitening.npz")
    exact, held = padless(cube, 2)
    wanted = (exact[held] - parameters["mean"]) @ parameters["transform"]
    np.testing.assert_allclose(exported["activations"][held], wanted, atol=1e-5)
    assert not exported["activations"][~held].any()
    content = held.copy()
    content[:, 0] = False  # special
    covariance = np.cov(exported["activations"][content].T, bias=True)
    np.testing.assert_allclose(covariance, np.eye(12), atol=0.02)


def test_batches_hold_the_last_content_token(run: Path, cube: xr.Dataset, tmp_path: Path) -> None:
    export(run, tmp_path / "out", format="batches", languages=["arabic"])
    metadata = json.loads((tmp_path / "out" / "metadata.json").read_text())
    selected = cube.isel(sample=cube.language.values == "arabic")
    assert (metadata["total_samples"], metadata["hidden_dim"], metadata["layers_extracted"]) == (
        35,
        12,
        [0, 1, 2, 3],
    )
    for batch in metadata["batches"]:
        file = np.load(tmp_path / "out" / batch["file"])
        assert batch["n_samples"] == 35
        np.testing.assert_array_equal(file["activations"], selected["last"].sel(layer=batch["layer"]).values)
        assert file["task_id"].tolist() == selected.sample_id.values.tolist()
        assert file["sample_idx"].tolist() == selected.sample.values.tolist()


def test_a_sample_without_content_has_no_last_token(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    made = synthetic(n_samples=8, window=8)
    made.values["token_kind"][3][made.values["token_kind"][3] != TokenKind.PAD] = TokenKind.SPECIAL
    made.values["last"][:, 3] = np.nan
    made.create(tmp_path / "run").write(0, made.part(0))
    export(tmp_path / "run", tmp_path / "out", format="batches")
    for layer in range(3):
        file = np.load(tmp_path / "out" / f"layer_{layer}_batch_000000.npz")
        np.testing.assert_array_equal(file["activations"], made.values["last"][layer])


def test_safetensors_are_what_the_library_reads(run: Path, cube: xr.Dataset, tmp_path: Path) -> None:
    export(run, tmp_path / "out", format="safetensors", layers="3")
    exact, held = padless(cube, 3)
    with safe_open(tmp_path / "out" / "layer_3.safetensors", framework="pt") as file:
        assert file.metadata() == {"layer": "3"}
        np.testing.assert_array_equal(file.get_tensor("activations").numpy(), exact)
        np.testing.assert_array_equal(file.get_tensor("attention_mask").numpy(), held)
        ids = np.where(held, cube.token_id.values, 0)
        np.testing.assert_array_equal(file.get_tensor("token_ids").numpy(), ids)


def test_datasets_opens_arrow(run: Path, cube: xr.Dataset, tmp_path: Path) -> None:
    export(run, tmp_path / "out", format="arrow", layers="0")
    table = Dataset.from_file(str(tmp_path / "out" / "layer_0.arrow"))
    assert table["gender"][:] == cube.gender.values.tolist()
    assert table["text"][:] == cube.text.values.tolist()
    for sample in (0, 13, 69):
        n_tokens = int(cube.n_tokens.values[sample])
        exact = cube.residual.sel(layer=0, sample=sample).values[:n_tokens]
        np.testing.assert_array_equal(np.asarray(table[sample]["activations"], dtype=np.float32), exact)
        assert table[sample]["token_ids"] == cube.token_id.values[sample, :n_tokens].tolist()


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"format": "zip"}, InputError, "'zip' is unknown"),
        ({"format": "pt", "layers": "9"}, InputError, "9"),
        ({"format": "pt", "layers": "mlp_1"}, MissingError, "no `mlp`"),
        ({"format": "pt", "layers": "1 mlp_1"}, InputError, "one component at a time"),
        (
            {"format": "batches", "layers": "mlp_1"},
            InputError,
            "a batch holds only the residual stream: name its layers",
        ),
        ({"format": "pt", "languages": ["klingon"]}, InputError, "'klingon' is not in the cube"),
        ({"format": "pt", "whiten": True}, InputError, "export npz"),
    ],
)
def test_what_cannot_be_exported_is_said(
    run: Path, tmp_path: Path, options: dict[str, Any], kind: type[ActkitError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        export(run, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_left_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="already exists"):
        export(run, tmp_path / "out", format="pt")


def test_half_an_export_is_none(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pt, "_write_metadata", full)
    with pytest.raises(StorageError, match="No space left"):
        export(run, tmp_path / "out", format="pt")
    assert list(tmp_path.iterdir()) == []


def test_of_two_exports_of_one_name_one_is_whole_and_the_other_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first pauses halfway until the second has begun, and the second until the first is done."""
    is_half, has_begun, is_done = (threading.Event() for _ in range(3))
    save = np.savez

    def paused(path: Path, **arrays: np.ndarray) -> None:
        is_first = threading.current_thread() is first
        if is_first and "layer_2" in path.name:
            is_half.set()
            assert has_begun.wait(20)
        elif not is_first and "layer_1" in path.name:
            has_begun.set()
            assert is_done.wait(20)
        save(path, **arrays)

    def finish_first() -> None:
        export(run, tmp_path / "out", format="batches")
        is_done.set()

    monkeypatch.setattr(np, "savez", paused)
    first = threading.Thread(target=finish_first)
    first.start()
    assert is_half.wait(20)
    with pytest.raises(InputError) as caught:
        export(run, tmp_path / "out", format="batches")
    first.join()
    assert (
        str(caught.value)
        == f"cannot run: 1 fault\n  - out: {tmp_path / 'out'} already exists (name a new folder)"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *(f"layer_{layer}_batch_000000.npz" for layer in range(4)),
        "metadata.json",
    ]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("small_disk", ["64k", "400k", "600k"], indirect=True)
def test_a_full_disk_is_told_whatever_writes_to_it(run: Path, small_disk: Path, format: str) -> None:
    """The smallest takes not one file; of the larger ones, PyTorch fills the first, or the last."""
    out = small_disk / "out"
    try:
        export(run, out, format=format)
    except StorageError as error:
        message = str(error)
        assert message.startswith(f"cannot export to {out}")
        assert "No space left on device" in message
        assert message.endswith("; nothing was kept")
        assert list(small_disk.iterdir()) == []
    else:
        assert any(out.iterdir())


@pytest.mark.parametrize("format", FORMATS)
def test_the_shell_exports_each_format(
    run: Path, tmp_path: Path, format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", str(run), "--format", format, "--out", str(tmp_path / "out")]
    assert main([*arguments, "--layers", "0-1", "--languages", "english"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    assert any((tmp_path / "out").iterdir())
    assert main(arguments) == 1
    assert "already exists" in capsys.readouterr().err
