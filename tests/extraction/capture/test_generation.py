"""Generation: tokens match transformers, and states match a teacher-forced pass."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import actkit
from actkit.errors import InputError
from actkit.schema import TokenKind
from actkit.testing import contents

NEW = 6


@pytest.fixture(scope="module")
def continued(architectures: Any, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, xr.Dataset] = {}

    def cube(name: str) -> xr.Dataset:
        if name not in made:
            made[name] = actkit.extract(
                **_options(architectures(name), table), out=str(tmp_path_factory.mktemp("run"))
            ).load()
        return made[name]

    return cube


# three windows
FEW = {"limit": 6, "window_samples": 2, "batch_size": 2}


def _options(model: Path, data: Path, **generate: Any) -> dict[str, Any]:
    return {
        "model": str(model),
        "data": str(data),
        "generate": {"max_new_tokens": NEW, **generate},
        "dtype": "float32",
        "batch_size": 5,
        "window_samples": 8,
        "listeners": [],
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo", "llama", "gpt2", pytest.param("gemma3", marks=pytest.mark.nightly)])
def test_greedy_tokens_and_states_are_those_of_transformers(
    continued: Any, architectures: Any, name: str
) -> None:
    import torch
    import transformers as tf

    cube, folder = continued(name), architectures(name)
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    model = tf.AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    model.config.tie_last_hidden_states = False
    for sample in range(0, cube.sizes["sample"], 4):
        one = cube.isel(sample=sample)
        length, prompt = int(one.n_tokens), int(one.prompt_tokens)
        ids = one.token_id.values[:length]
        encoded = tokenizer(one.text.item(), return_tensors="pt")
        with torch.inference_mode():
            theirs = model.generate(
                **encoded, max_new_tokens=NEW, do_sample=False, pad_token_id=tokenizer.pad_token_id or 0
            )[0].numpy()
            forced = model(torch.from_numpy(ids[None].astype(np.int64)), output_hidden_states=True)
        assert ids.tolist() == theirs.tolist()
        assert one.token_kind.values[prompt:length].tolist() == [TokenKind.GENERATED] * (length - prompt)
        assert one.generated.item() == tokenizer.decode(theirs[prompt:], skip_special_tokens=True)
        for ours, state in zip(one.residual.values, forced.hidden_states[1:], strict=True):
            error = np.abs(ours[:length] - state[0].numpy()).max() / np.abs(state.numpy()).max()
            assert error < 1e-5
        assert np.isnan(one.residual.values[:, length:]).all()


@pytest.mark.slow
def test_values_of_the_prompt_do_not_change(
    continued: Any, architectures: Any, table: Path, tmp_path: Path
) -> None:
    options = _options(architectures("demo"), table)
    plain = actkit.extract(**{**options, "generate": None}, out=str(tmp_path)).load()
    cube = continued("demo")
    assert cube.sizes["token"] == plain.sizes["token"] + NEW
    np.testing.assert_allclose(cube.pooled, plain.pooled, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(cube["last"], plain["last"], rtol=1e-4, atol=1e-5)
    assert np.array_equal(cube.prompt_tokens, plain.prompt_tokens)
    assert (cube.n_tokens > plain.n_tokens).all()
    ours, theirs = actkit.layer_norms(cube, resamples=10), actkit.layer_norms(plain, resamples=10)
    assert np.array_equal(ours.n_tokens, theirs.n_tokens)
    np.testing.assert_allclose(ours["mean"], theirs["mean"], rtol=1e-5)


def test_the_strings_of_tokens_end_in_the_generated_text(continued: Any, architectures: Any) -> None:
    import transformers as tf

    cube = continued("demo")
    special = set(tf.AutoTokenizer.from_pretrained(architectures("demo")).all_special_tokens)
    for sample in range(0, cube.sizes["sample"], 5):
        pieces = actkit.token_strings(cube, sample)
        assert len(pieces) == int(cube.n_tokens[sample])
        new = "".join(piece for piece in pieces[int(cube.prompt_tokens[sample]) :] if piece not in special)
        assert new.strip() == cube.generated.values[sample].strip()


@pytest.mark.slow
def test_sampling_depends_only_on_the_seed(architectures: Any, table: Path, tmp_path: Path) -> None:
    drawn = {}
    for run, seed in (("a", 1), ("b", 1), ("c", 2)):
        options = _options(architectures("demo"), table, do_sample=True, temperature=1.5, seed=seed)
        drawn[run] = actkit.extract(**{**options, **FEW}, out=str(tmp_path / run)).load()
    assert np.array_equal(drawn["a"].token_id, drawn["b"].token_id)
    assert np.array_equal(drawn["a"].residual, drawn["b"].residual, equal_nan=True)
    assert drawn["a"].generated.values.tolist() != drawn["c"].generated.values.tolist()


@pytest.mark.slow
def test_an_interrupted_run_draws_the_same_tokens(architectures: Any, table: Path, tmp_path: Path) -> None:
    options = {**_options(architectures("demo"), table, do_sample=True, seed=3), **FEW}
    actkit.extract(**options, out=str(tmp_path / "whole"))

    def stop(event: Any) -> None:
        if event.state == "running" and event.samples > 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        actkit.extract(**{**options, "listeners": [stop]}, out=str(tmp_path / "run"))
    partial = actkit.open_cube(tmp_path / "run", partial=True)
    assert 0 < partial.sizes["sample"] < 6
    assert any(partial.generated.values)
    actkit.extract(**options, out=str(tmp_path / "run"))
    assert contents(tmp_path / "run" / "cube.zarr") == contents(tmp_path / "whole" / "cube.zarr")


@pytest.mark.slow
def test_only_the_generated_end_can_be_kept(architectures: Any, table: Path, tmp_path: Path) -> None:
    options = _options(architectures("demo"), table)
    cube = actkit.extract(**{**options, **FEW}, keep_tokens="last", out=str(tmp_path)).load()
    assert cube.sizes["token"] == 1
    assert (cube.token_kind == TokenKind.GENERATED).all()
    assert (cube.position[:, 0] >= cube.prompt_tokens).all()


def test_an_encoder_is_refused(minilm: Path, prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="generate: `bert` cannot generate text"):
        actkit.extract(**_options(minilm, prompts), out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_no_room_for_new_tokens(model_copy: Path, prompts: Path, tmp_path: Path) -> None:
    import json

    config = json.loads((model_copy / "config.json").read_text())
    (model_copy / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 20}))
    with pytest.raises(
        InputError, match=r"row \d+ .*leaves no room for 6 new ones: the model takes 20 tokens"
    ):
        actkit.extract(**_options(model_copy, prompts), out=str(tmp_path / "run"))


FOREIGN = [
    {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1},
    {"num_beams": 3, "num_return_sequences": 2},
    {"do_sample": True, "temperature": 3.0, "top_k": 5},
]
MORE_FOREIGN = [
    {"return_dict_in_generate": True, "output_scores": True},
    {"suppress_tokens": list(range(2, 40)), "forced_eos_token_id": 1},
    {"max_time": 0.0001, "min_length": 50},
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [*FOREIGN, *(pytest.param(settings, marks=pytest.mark.nightly) for settings in MORE_FOREIGN)]
)
def test_the_generation_config_of_the_checkpoint_is_ignored(
    settings: dict[str, Any], architectures: Any, continued: Any, table: Path, tmp_path: Path
) -> None:
    import json
    import shutil

    folder = Path(shutil.copytree(architectures("demo"), tmp_path / "model"))
    asked = folder / "generation_config.json"
    before = json.loads(asked.read_text()) if asked.is_file() else {}
    asked.write_text(json.dumps({**before, **settings}))
    cube = actkit.extract(**{**_options(folder, table), **FEW}, out=str(tmp_path / "run"))
    wanted = continued("demo").isel(sample=slice(cube.sizes["sample"]), token=slice(cube.sizes["token"]))
    assert np.array_equal(cube.token_id, wanted.token_id)


def test_greedy_decoding_takes_the_most_likely_token(continued: Any, architectures: Any) -> None:
    import torch
    import transformers as tf

    cube = continued("llama")
    model = tf.AutoModelForCausalLM.from_pretrained(architectures("llama"), dtype="float32").eval()
    for sample in (0, 7, 16):
        length, prompt = int(cube.n_tokens[sample]), int(cube.prompt_tokens[sample])
        ids = torch.from_numpy(cube.token_id.values[None, sample, :length].astype(np.int64))
        with torch.inference_mode():
            likeliest = model(ids).logits[0].argmax(dim=-1)
        assert ids[0, prompt:].tolist() == likeliest[prompt - 1 : -1].tolist()


def test_sampling_from_nan_is_an_error(model_copy: Path, prompts: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from actkit.errors import NonfiniteError

    weights = load_file(model_copy / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][:] = float("nan")
    save_file(weights, model_copy / "model.safetensors", metadata={"format": "pt"})
    options = _options(model_copy, prompts, do_sample=True)
    with pytest.raises(
        NonfiniteError, match=r"one of samples [\d, ]+: the model gave NaN or Inf when a token"
    ):
        actkit.extract(**options, out=str(tmp_path / "run"))


def test_more_new_tokens_than_positions_is_one_fault(model_copy: Path, prompts: Path, tmp_path: Path) -> None:
    options = {**_options(model_copy, prompts), "generate": {"max_new_tokens": 90_000}}
    with pytest.raises(InputError) as caught:
        actkit.extract(**options, out=str(tmp_path / "run"))
    assert [str(fault) for fault in caught.value.faults] == [
        "generate: 90000 new tokens leave no room for a prompt: the model takes 2048 tokens "
        "(reduce max_new_tokens)"
    ]
