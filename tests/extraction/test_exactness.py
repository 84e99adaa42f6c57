"""The cube holds what transformers computes: every block, every token, every architecture."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import actkit
from actkit.extraction.models.devices import Share
from actkit.schema import TokenKind

ARCHITECTURES = ["demo", "minilm", "gemma3", "qwen2", "llama", "gpt2"]
# relative to the largest value of the layer; the demo model computes in bfloat16 unless told otherwise
TOLERANCE = 1e-5


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.fixture(scope="module")
def cube_of(
    architectures: Callable[[str], Path], table: Path, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    cubes: dict[str, Any] = {}

    def cube(name: str) -> Any:
        if name not in cubes:
            out = tmp_path_factory.mktemp(f"run-{name}")
            cubes[name] = actkit.extract(
                model=str(architectures(name)),
                data=str(table),
                out=str(out),
                dtype="float32",
                batch_size=5,
                window_samples=8,
                listeners=[],
            )
        return cubes[name]

    return cube


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_padded_batches_equal_transformers_one_by_one(
    name: str, cube_of: Any, architectures: Any, oracle: Any
) -> None:
    cube = cube_of(name).load()
    for sample in range(0, cube.sizes["sample"], 5):
        one = cube.isel(sample=sample)
        states, embedding, ids = oracle(architectures(name), one.text.item(), dtype="float32")
        length = int(one.n_tokens)
        assert one.token_id.values[:length].tolist() == ids.tolist()
        assert cube.sizes["layer"] == len(states)
        errors = [
            relative_error(ours[:length], theirs)
            for ours, theirs in zip(one.residual.values, states, strict=True)
        ]
        errors.append(relative_error(one.embedding.values[:length], embedding))
        print(f"{name} sample {sample}: largest relative error {max(errors):.1e}")
        assert max(errors) < TOLERANCE
        assert np.isnan(one.residual.values[:, length:]).all()
        assert np.isnan(one.embedding.values[length:]).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo", "minilm"])
def test_sentences_of_mtgeneval(
    name: str, architectures: Any, oracle: Any, mtgeneval: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"dtype": "float32", "limit": 24, "window_samples": 9, "listeners": []}
    cube = actkit.extract(
        model=str(architectures(name)), data=str(mtgeneval), out=str(tmp_path), **options
    ).load()
    with mtgeneval.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[:24]
    for column in ("text", "language", "sample_id", "gender", "pair_group", "split"):
        assert cube[column].values.tolist() == [row[column] for row in rows]
    errors = []
    for sample in range(3, 24, 5):
        states, _, ids = oracle(architectures(name), rows[sample]["text"], dtype="float32")
        assert cube.token_id.values[sample, : len(ids)].tolist() == ids.tolist()
        ours = cube.residual.values[:, sample, : len(ids)]
        errors += [relative_error(mine, theirs) for mine, theirs in zip(ours, states, strict=True)]
    print(f"{name} on MT-GenEval: largest relative error {max(errors):.1e}")
    assert max(errors) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_same_batch_and_threads_give_the_same_bits(name: str, architectures: Any, tmp_path: Path) -> None:
    import torch
    import transformers as tf

    texts = ["one two three four five", "one two", "one two three"]
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    cube = actkit.extract(
        model=str(architectures(name)), data=str(data), out=str(tmp_path / "run"), batch_size=3, listeners=[]
    )
    folder = architectures(name)
    tokenizer = tf.AutoTokenizer.from_pretrained(folder, padding_side="right")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = tf.AutoModel.from_pretrained(folder, dtype="auto").eval()
    model.config.tie_last_hidden_states = False
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    with Share(1, cube.attrs["threads"]).taken(), torch.inference_mode():
        states = model(**batch, use_cache=False, output_hidden_states=True).hidden_states[1:]
    residual = cube.residual.values
    for layer, state in enumerate(states):
        for sample, length in enumerate(cube.n_tokens.values):
            assert np.array_equal(residual[layer, sample, :length], state[sample, :length].float().numpy())


@pytest.mark.parametrize(
    "name", [*ARCHITECTURES[:2], *(pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES[2:])]
)
def test_summaries_are_those_of_the_residual(name: str, cube_of: Any) -> None:
    cube = cube_of(name).load()
    residual = cube.residual.values.astype(np.float64)
    special = cube.token_kind.values == TokenKind.SPECIAL
    content = cube.token_kind.values == TokenKind.TEXT
    if not special[:, 0].all():
        content[:, 0] = False
    assert content.any(axis=1).all()
    np.testing.assert_allclose(cube.norm, np.linalg.norm(residual, axis=-1), rtol=1e-6)
    for sample, positions in enumerate(content):
        np.testing.assert_allclose(
            cube.pooled[:, sample], residual[:, sample, positions].mean(axis=1), rtol=1e-5, atol=1e-6
        )
        assert np.array_equal(
            cube["last"][:, sample], cube.residual[:, sample, np.flatnonzero(positions)[-1]]
        )
    assert not cube.nonfinite.any()


def test_first_position_is_content_only_after_a_special_token(cube_of: Any) -> None:
    # the demo tokenizer adds <bos>, BERT's adds [CLS]
    for name in ("demo", "minilm"):
        assert (cube_of(name).token_kind[:, 0] == TokenKind.SPECIAL).all()
        assert cube_of(name).attrs["first_is_content"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo", "minilm", "gpt2"])
def test_padding_side_of_the_tokenizer_changes_nothing(
    name: str, architectures: Any, table: Path, tmp_path: Path
) -> None:
    cubes = []
    for side in ("left", "right"):
        folder = tmp_path / side
        shutil.copytree(architectures(name), folder)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "padding_side": side}))
        out = tmp_path / f"run-{side}"
        cubes.append(
            actkit.extract(model=str(folder), data=str(table), out=str(out), layers="-1", listeners=[]).load()
        )
    left, right = cubes
    assert left.drop_attrs().identical(right.drop_attrs())


@pytest.mark.parametrize("name", ["demo", "minilm"])
def test_text_ids_and_labels_come_back_byte_for_byte(
    name: str, cube_of: Any, architectures: Any, table: Path
) -> None:
    import transformers as tf

    cube = cube_of(name)
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert cube.text.values.tolist() == [row["text"] for row in rows]
    assert cube.language.values.tolist() == [row["language"] for row in rows]
    assert cube.sample_id.values.tolist() == [row["sample_id"] for row in rows]
    assert cube.parity.values.tolist() == [row["parity"] for row in rows]
    tokenizer = tf.AutoTokenizer.from_pretrained(architectures(name))
    for sample, row in enumerate(rows):
        expected = tokenizer(row["text"])["input_ids"]
        assert cube.token_id[sample, : len(expected)].values.tolist() == expected
        assert cube.n_tokens[sample] == len(expected)


@pytest.mark.slow
@pytest.mark.parametrize("layers", ["1-2", "-1", "0-3:2"])
def test_a_choice_of_layers_is_a_slice_of_all(
    layers: str, cube_of: Any, architectures: Any, table: Path, tmp_path: Path
) -> None:
    options = {"dtype": "float32", "batch_size": 5, "window_samples": 8, "listeners": []}
    part = actkit.extract(
        model=str(architectures("llama")),
        data=str(table),
        out=str(tmp_path / "run"),
        layers=layers,
        **options,
    )
    whole = cube_of("llama").sel(layer=part.layer)
    for name in part.data_vars:
        assert np.array_equal(part[name], whole[name], equal_nan=True), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo", "llama"])
def test_bfloat16_weights_are_kept_exactly(
    name: str, architectures: Any, table: Path, tmp_path: Path, oracle: Any
) -> None:
    cube = actkit.extract(
        model=str(architectures(name)),
        data=str(table),
        out=str(tmp_path),
        dtype="bfloat16",
        batch_size=1,
        listeners=[],
    )
    assert cube.attrs["weights_dtype"] == "bfloat16"
    assert not (cube.residual.values[~np.isnan(cube.residual.values)].view(np.uint32) & 0xFFFF).any()
    import torch

    states, _, _ = oracle(architectures(name), cube.text.values[1], dtype=torch.bfloat16)
    length = int(cube.n_tokens[1])
    for ours, theirs in zip(cube.residual.values[:, 1, :length], states, strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.slow
def test_max_tokens_cuts_and_counts(architectures: Any, table: Path, tmp_path: Path, oracle: Any) -> None:
    options: dict[str, Any] = {"max_tokens": 6, "dtype": "float32", "listeners": []}
    cube = actkit.extract(model=str(architectures("demo")), data=str(table), out=str(tmp_path), **options)
    assert cube.sizes["token"] == 6
    assert 0 < cube.attrs["truncated_samples"] == int(cube.truncated.sum()) < cube.sizes["sample"]
    sample = int(np.flatnonzero(cube.truncated)[0])
    states, _, ids = oracle(architectures("demo"), cube.text.values[sample], dtype="float32", max_tokens=6)
    assert cube.token_id[sample].values.tolist() == ids.tolist()
    assert relative_error(cube.residual.values[-1, sample], states[-1]) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["bfloat16", "float16"])
def test_rounded_storage_rounds_the_residual_alone(
    storage: str, cube_of: Any, architectures: Any, table: Path, tmp_path: Path
) -> None:
    import torch

    options: dict[str, Any] = {"dtype": "float32", "batch_size": 5, "window_samples": 8, "listeners": []}
    rounded = actkit.extract(
        model=str(architectures("qwen2")), data=str(table), out=str(tmp_path), storage=storage, **options
    )
    exact = cube_of("qwen2")
    expected = torch.from_numpy(exact.residual.values).to(getattr(torch, storage)).float().numpy()
    assert np.array_equal(rounded.residual, expected, equal_nan=True)
    assert np.array_equal(rounded.pooled, exact.pooled)
    assert np.array_equal(rounded.norm, exact.norm, equal_nan=True)
