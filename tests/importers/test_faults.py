"""Everything that is wrong with a folder is said at once, and nothing is written."""

import json
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import actkit
from actkit.cli import main
from actkit.errors import InputError, StorageError
from actkit.importers import cube_output, run_import
from actkit.testing import flip_bit, write_cube
from tests.importers import scripts
from tests.importers.scripts import LAYERS, checkpoint_path, save_checkpoint

Spoil = Callable[[Path], object]


def told(folder: Path, format: str, **options: Any) -> str:
    """Return what the error says; nothing may be left."""
    before = sorted(folder.parent.iterdir())
    with pytest.raises(InputError) as error:
        actkit.import_files(folder, format=format, out=folder.parent / "run", **options)
    assert sorted(folder.parent.iterdir()) == before
    return str(error.value)


def with_checkpoint(**other: Any) -> Spoil:
    return lambda folder: save_checkpoint(folder, "english", 1, **other)


def with_metadata(**other: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        path = next(folder.glob("*metadata.json"))
        path.write_text(json.dumps({**json.loads(path.read_text()), **other}))

    return spoil


def without(pattern: str) -> Spoil:
    return lambda folder: [path.unlink() for path in folder.glob(pattern)]


def renamed(pattern: str, name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        path = next(folder.glob(pattern))
        path.rename(path.with_name(name))

    return spoil


def with_bytes(pattern: str, content: bytes) -> Spoil:
    return lambda folder: next(folder.glob(pattern)).write_bytes(content)


def flipped(pattern: str) -> Spoil:
    def spoil(folder: Path) -> None:
        path = next(folder.glob(pattern))
        flip_bit(path, path.stat().st_size * 4)

    return spoil


def old_style(folder: Path) -> None:
    path = checkpoint_path(folder, "english", 1)
    torch.save(scripts.checkpoint("english", 1), path, _use_new_zipfile_serialization=False)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path("/tmp/actkit-was-fooled").touch, ()


ENGLISH = "layer_checkpoints/layer_1_english.pt"
WRONG_TENSORS: list[tuple[Spoil, str]] = [
    (without(ENGLISH), "english: lacks layers 1 (write them, or remove them everywhere)"),
    (with_metadata(layers_extracted=[0, 1, 2, 3]), "arabic: lacks layers 3"),
    (with_checkpoint(activations=torch.ones(4, 5, 6)), "has shape (4, 5, 6), but layer_checkpoints/layer_0_"),
    (with_checkpoint(activations=torch.ones(4, 6)), "has shape (4, 6), not (sample, token, hidden)"),
    (with_checkpoint(activations=torch.ones(0, 6, 6)), "`activations` has shape (0, 6, 6) (remove the file)"),
    (with_checkpoint(activations=torch.ones(4, 6, 6).double()), "float64, which float32 cannot represent"),
    (with_checkpoint(activations=[1.0]), "`activations` is a list, not a dense tensor"),
    (with_checkpoint(activations=torch.eye(6).to_sparse()), "holds objects that are not loaded"),
    (with_checkpoint(activations={}), "`activations` is a NoneType, not a dense tensor"),
    (with_checkpoint(genders=["male"]), "`genders` is 1 entries, where `activations` has 4 samples"),
    (with_checkpoint(genders="male"), "`genders` is not a list, where"),
    (with_checkpoint(genders=None), "layer_1_english.pt: differs in labels from layer_check"),
    (with_checkpoint(image_ids=["x", "b.jpg", "c.jpg", "d.jpg"]), "differs in labels from layer_check"),
    (with_checkpoint(layer=2), "layer_1_english.pt: states that it is layer 2"),
    (with_checkpoint(hidden_size=7), "has hidden size 7, but layer_checkpoints/layer_0_arabic.pt has 6"),
    (with_checkpoint(model="other"), "has model other, but layer_checkpoints/layer_0_arabic.pt has old"),
    (with_checkpoint(genders=np.array(["male"] * 4)), "holds objects that are not loaded"),
    (with_checkpoint(timestamp=Evil()), "holds objects that are not loaded"),
    (lambda folder: torch.save([1], folder / ENGLISH), "holds a list, not a dict"),
    (lambda folder: torch.save({"layer": 1}, folder / ENGLISH), "holds no `activations`"),
    (old_style, "is not a torch.save file, or has the old format"),
    (with_bytes(ENGLISH, b"nothing"), "is not a torch.save file, or has the old format"),
    (flipped(ENGLISH), "is damaged: layer_1_english/data/0 does not match its checksum"),
    (renamed(ENGLISH, "layer_1.pt"), "layer_1.pt: its name does not give a layer and a language"),
    (renamed(ENGLISH, "layer_00_english.pt"), "layer_0_english.pt: is a second file of layer 0"),
    (with_bytes("*.json", b"{"), "extraction_metadata.json: cannot be read"),
    (with_bytes("*.json", b"[]"), "extraction_metadata.json: holds a list, not an object"),
    (with_metadata(methodology="mlp of each block, exported by actkit"), "import an export of"),
    (without("layer_checkpoints/*"), "holds no layer_checkpoints/*.pt and no activations_*_all_layers.pt"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), WRONG_TENSORS)
def test_tensors(tmp_path: Path, spoil: Spoil, message: str) -> None:
    folder = scripts.save_checkpoints(tmp_path / "old")
    spoil(folder)
    assert message in told(folder, "pt")
    assert not Path("/tmp/actkit-was-fooled").exists()


def test_a_language_without_the_labels_of_others(tmp_path: Path) -> None:
    folder = scripts.save_checkpoints(tmp_path / "old")
    for layer in LAYERS:
        save_checkpoint(folder, "english", layer, genders=None)
    assert "english: has labels named ['image_id'], but arabic has ['gender', 'image_id']" in told(
        folder, "pt"
    )


def test_a_whole_file_of_other_layers(tmp_path: Path) -> None:
    path = scripts.save_whole(tmp_path / "old", "english")
    torch.save({"activations": {"layer_0": torch.ones(1, 1, 1)}}, path)
    assert "`activations` is not a dict of layer to tensor" in told(tmp_path / "old", "pt")


def with_chunk(**other: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        held = {**scripts.chunk(1, 2), **other}
        held = {name: values for name, values in held.items() if values is not None}
        np.savez_compressed(folder / "layer_2" / "chunk_000001.npz", **held)

    return spoil


CHUNK = "layer_2/chunk_000001.npz"
MASK = scripts.chunk(1, 2)["attention_mask"]
WRONG_CHUNKS: list[tuple[Spoil, str]] = [
    (without(CHUNK), "layer 2: lacks files 1 (write them, or number the others from 0)"),
    (without("*/chunk_000000.npz"), "layer 0: lacks files 0"),
    (with_chunk(attention_mask=None), "layer_2/chunk_000001.npz: holds no `attention_mask`"),
    (with_chunk(token_ids=None), "has arrays ['attention_mask'], but layer_0/chunk_000000.npz has"),
    (with_chunk(attention_mask=MASK[:2]), "has shape (2, 6), where `activations` requires (4, 6)"),
    (with_chunk(attention_mask=1 - MASK), "differs in `attention_mask` from layer_0/chunk_000001.npz"),
    (with_chunk(activations=np.ones((4, 6, 5), np.float32)), "has shape (4, 6, 5), but layer_0/chunk_00"),
    (with_chunk(activations=np.ones((4, 6, 6))), "float64, which float32 cannot represent"),
    (with_chunk(activations=np.ones((4, 6, 6), np.float32, order="F")), "stored column by column"),
    (with_chunk(activations=np.array([Evil()])), "`activations` holds Python objects, which are not loaded"),
    (with_chunk(token_ids=MASK * 0.5), "`token_ids` holds float64, not whole numbers or text"),
    (with_bytes(CHUNK, b"nothing"), "layer_2/chunk_000001.npz: cannot be read: File is not a zip file"),
    (with_bytes(CHUNK, pickle.dumps(Evil())), "cannot be read: File is not a zip file"),
    (flipped(CHUNK), "layer_2/chunk_000001.npz: cannot be read: "),
    (renamed(CHUNK, "chunk_00.npz"), "layer_2/chunk_000000.npz: is a second file with number 0"),
    (renamed(CHUNK, "chunk_last.npz"), "layer_2/chunk_last.npz: its name does not give a layer and a number"),
    (lambda folder: np.savez(folder / "layer_1_whitening.npz", mean=1), "shows that these files are"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), WRONG_CHUNKS)
def test_chunks(tmp_path: Path, spoil: Spoil, message: str) -> None:
    folder = scripts.save_chunks(tmp_path / "old")
    spoil(folder)
    assert message in told(folder, "npz")


def test_a_mask_of_weights(tmp_path: Path) -> None:
    folder = scripts.save_chunks(tmp_path / "old")
    for layer in LAYERS:
        held = {**scripts.chunk(0, layer), "attention_mask": 2 * scripts.chunk(0, layer)["attention_mask"]}
        np.savez_compressed(folder / f"layer_{layer}" / "chunk_000000.npz", **held)
    assert "chunk 0: `attention_mask` has values other than 0 and 1" in told(folder, "npz")


def with_batch(**other: Any) -> Spoil:
    return lambda folder: np.savez(folder / "layer_2_batch_000001.npz", **{**scripts.batch(1, 2), **other})


WRONG_BATCHES: list[tuple[Spoil, str]] = [
    (without("layer_2_batch_000001.npz"), "layer 2: lacks files 1"),
    (without("layer_2_*"), "the folder: lacks layers 2"),
    (with_batch(task_id=np.array(["a", "b", "c"])), "differs in `task_id` from layer_0_batch_000001.npz"),
    (with_batch(task_id=np.array(["a", None, 3])), "`task_id` holds Python objects"),
    (with_batch(sample_idx=np.array([1])), "`sample_idx` has shape (1,), where `activations` requires (3,)"),
    (with_metadata(total_samples=7), "metadata.json: states total_samples 7, but the files have 6"),
    (with_metadata(hidden_dim=7), "metadata.json: states hidden_dim 7, but the files have 6"),
    (with_bytes("*.json", b"["), "metadata.json: cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), WRONG_BATCHES)
def test_batches(tmp_path: Path, spoil: Spoil, message: str) -> None:
    folder = scripts.save_batches(tmp_path / "old")
    spoil(folder)
    assert message in told(folder, "batches")


def test_all_faults_are_in_one_error(tmp_path: Path) -> None:
    folder = scripts.save_checkpoints(tmp_path / "old")
    without(ENGLISH)(folder)
    save_checkpoint(folder, "arabic", 0, layer=5)
    message = told(folder, "pt", language="english", id_column="name")
    assert message.splitlines() == [
        f"cannot import {folder}",
        "  - language: is in the names of pt files (leave it out)",
        "  - id_column: is a column of `data`, which is not given (give `data`, or leave it out)",
        "  - layer_checkpoints/layer_0_arabic.pt: states that it is layer 5 (rename it after its layer)",
        "  - english: lacks layers 1 (write them, or remove them everywhere)",
    ]


def test_the_wrong_format(tmp_path: Path) -> None:
    folder = scripts.save_chunks(tmp_path / "old")
    assert "holds no layer_*_batch_*.npz (it looks like npz)" in told(folder, "batches")
    assert "format: 'zip' is unknown (one of pt, npz, batches)" in told(folder, "zip")
    (tmp_path / "empty").mkdir()
    assert "holds no layer_*/chunk_*.npz (check the path)" in told(tmp_path / "empty", "npz")
    assert "is not a folder (check the path)" in told(tmp_path / "nowhere", "npz")


def test_a_run_that_is_there_is_left_alone(tmp_path: Path) -> None:
    folder = scripts.save_chunks(tmp_path / "old")
    actkit.import_files(folder, format="npz", out=tmp_path / "run")
    assert f"out: {tmp_path / 'run'} already exists (name a new folder)" in told(folder, "npz")


def test_half_an_import_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    folder = scripts.save_chunks(tmp_path / "old")
    monkeypatch.setattr(cube_output.CubeWriter, "write", full)
    with pytest.raises(StorageError, match="No space left"):
        actkit.import_files(folder, format="npz", out=tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.slow
@pytest.mark.parametrize("small_disk", ["64k", "256k"], indirect=True)
def test_a_full_disk_keeps_nothing_and_says_so(tmp_path: Path, small_disk: Path) -> None:
    cube = write_cube(tmp_path / "cube", n_samples=70, hidden=64)
    files = actkit.export(cube, tmp_path / "files", format="npz")
    with pytest.raises(StorageError) as caught:
        actkit.import_files(files, format="npz", out=small_disk / "run")
    assert str(caught.value).endswith("No space left on device; nothing was kept")
    assert list(small_disk.iterdir()) == []


def test_of_two_imports_of_one_name_one_is_whole_and_the_other_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first pauses at its end until the second has begun, and the second until the first is done."""
    folder = scripts.save_chunks(tmp_path / "old")
    is_written, has_begun, is_done = (threading.Event() for _ in range(3))
    write = run_import.write_contents

    def paused(*arguments: Any) -> None:
        if threading.current_thread() is first:
            write(*arguments)
            is_written.set()
            assert has_begun.wait(20)
        else:
            has_begun.set()
            assert is_done.wait(20)
            write(*arguments)

    def finish_first() -> None:
        actkit.import_files(folder, format="npz", out=tmp_path / "run")
        is_done.set()

    monkeypatch.setattr(run_import, "write_contents", paused)
    first = threading.Thread(target=finish_first)
    first.start()
    assert is_written.wait(20)
    with pytest.raises(InputError) as caught:
        actkit.import_files(folder, format="npz", out=tmp_path / "run")
    first.join()
    assert (
        str(caught.value)
        == f"cannot run: 1 fault\n  - out: {tmp_path / 'run'} already exists (name a new folder)"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "run"]
    assert actkit.verify(tmp_path / "run").ok


def test_damage_that_is_met_while_it_is_read(tmp_path: Path) -> None:
    folder = scripts.save_batches(tmp_path / "old")
    path = folder / "layer_2_batch_000001.npz"
    at = path.read_bytes().index(scripts.batch(1, 2)["activations"].tobytes())
    flip_bit(path, 8 * at)
    assert "layer_2_batch_000001.npz: cannot be read: Bad CRC-32" in told(folder, "batches")


def test_what_was_interrupted_is_begun_again(tmp_path: Path) -> None:
    folder = scripts.save_chunks(tmp_path / "old")
    (tmp_path / ".run.partial" / "cube.zarr").mkdir(parents=True)
    (tmp_path / ".run.partial" / "cube.zarr" / "zarr.json").write_text("half")
    assert main(["import", str(folder), "--format", "npz", "--out", str(tmp_path / "run")]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "run"]
    assert actkit.verify(tmp_path / "run").ok


@pytest.mark.parametrize(
    ("format", "asked", "message"),
    [
        ("pt", {"layers": "0-5"}, "layers: `0-5`: the model has no layer 5 (it has 3 layers, 0–2)"),
        ("pt", {"layers": "few"}, "layers: cannot read `few`"),
        (
            "pt",
            {"languages": ["french"]},
            "languages: no file has the language 'french' (the files have arabic, english)",
        ),
        (
            "npz",
            {"languages": ["english"]},
            "languages: npz files do not name languages",
        ),
        ("npz", {"layers": "7"}, "layers: `7`: the model has no layer 7"),
        ("batches", {"layers": "mlp_1"}, "layers: `mlp_1`: the model has no `mlp` that can be captured"),
    ],
)
def test_what_is_not_there_is_not_imported(
    tmp_path: Path, format: str, asked: dict[str, Any], message: str
) -> None:
    save = {"pt": scripts.save_checkpoints, "npz": scripts.save_chunks, "batches": scripts.save_batches}
    folder = save[format](tmp_path / "old")
    assert message in told(folder, format, **asked)


def test_a_gap_between_layers(tmp_path: Path) -> None:
    folder = scripts.save_chunks(tmp_path / "old")
    for path in folder.glob("layer_1/*"):
        path.unlink()
    assert "the files have no layers 1 (they have 0 2)" in told(folder, "npz", layers="0-1")
    cube = actkit.import_files(folder, format="npz", out=tmp_path / "run", layers="0 2")
    assert cube.layer.values.tolist() == [0, 2]
