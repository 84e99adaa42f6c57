"""On a real chat model, the cube holds what transformers computes: blocks, attention, mlp, generated text."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import actkit
from actkit.extraction.capture import generation
from actkit.extraction.models.generation_config import decode
from actkit.schema import TokenKind
from tests.real.conftest import SYSTEM, Reference

COMPONENTS = ("residual", "attention", "mlp")
ANSWERED = {"dtype": "float32", "limit": 3, "layers": "0-29:14", "generate": "max_new_tokens=3"}


def extract(model: Path, data: Path, out: Path, **options: Any) -> xr.Dataset:
    asked = {"layers": "all attention_all mlp_all", "system": SYSTEM, "id_column": "id", **options}
    return actkit.extract(model=str(model), data=str(data), out=str(out), listeners=[], **asked)


def errors(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Return the length of the difference by that of the vector, for each layer and token.

    A single dimension holds values of several thousands here, so that a share of the largest value
    would say nothing of the others.
    """
    return np.linalg.norm(ours - theirs, axis=-1) / np.linalg.norm(theirs, axis=-1)


def stored(cube: xr.Dataset, sample: int) -> dict[str, np.ndarray]:
    one = cube.isel(sample=sample)
    return {name: one[name].values[:, : int(one.n_tokens)] for name in COMPONENTS}


def test_batches_in_float32_equal_transformers_one_by_one(
    smollm2: Path, requests: Callable[[int], Path], reference: Reference, tmp_path: Path
) -> None:
    cube = extract(smollm2, requests(1), tmp_path / "run", dtype="float32", limit=6, batch_size=4)
    assert cube.attrs["sum_rule_error"] < 1e-5
    worst = dict.fromkeys(COMPONENTS, 0.0)
    for sample in range(3):
        theirs, ids = reference(cube.text.values[sample], "float32")
        assert cube.token_id.values[sample, : len(ids)].tolist() == ids
        for name, ours in stored(cube, sample).items():
            worst[name] = max(worst[name], float(errors(ours, theirs[name]).max()))
    print("largest relative error of a vector, float32 in batches:", worst)
    assert max(worst.values()) < 5e-5


def test_bfloat16_one_by_one_is_transformers_to_the_bit(
    smollm2: Path, requests: Callable[[int], Path], reference: Reference, tmp_path: Path
) -> None:
    cube = extract(smollm2, requests(1), tmp_path / "run", limit=2, batch_size=1)
    assert cube.attrs["weights_dtype"] == "bfloat16"
    for sample in range(2):
        theirs, _ = reference(cube.text.values[sample], "bfloat16")
        for name, ours in stored(cube, sample).items():
            np.testing.assert_array_equal(ours, theirs[name])


def test_bfloat16_batches_are_no_further_from_float32_than_transformers(
    smollm2: Path, requests: Callable[[int], Path], reference: Reference, tmp_path: Path
) -> None:
    cube = extract(smollm2, requests(1), tmp_path / "run", limit=3, batch_size=3)
    assert cube.attrs["sum_rule"] == "holds"
    for sample in range(3):
        exact, _ = reference(cube.text.values[sample], "float32")
        alone, _ = reference(cube.text.values[sample], "bfloat16")
        for name, ours in stored(cube, sample).items():
            own, theirs = errors(ours, exact[name]), errors(alone[name], exact[name])
            print(f"{name}: median error of bfloat16 {np.median(own):.1e}, alone {np.median(theirs):.1e}")
            assert np.median(own) < 1.2 * np.median(theirs)
            assert own.max() < 2 * theirs.max()


def test_prompt_ends_are_the_hidden_states_of_the_generation_prompt(
    smollm2: Path, requests: Callable[[int], Path], tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {"dtype": "float32", "limit": 4, "batch_size": 4, "layers": "all", "system": SYSTEM}
    stored = actkit.extract(
        model=str(smollm2),
        data=str(requests(1)),
        out=str(tmp_path / "run"),
        save=["last", "prompt_end"],
        listeners=[],
        **options,
    )
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    model.config.tie_last_hidden_states = False  # the last one before the final norm, like the others
    for sample, text in enumerate(stored.text.values):
        turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": str(text)}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        with torch.inference_mode():
            states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        theirs = np.stack([state[0, -1].numpy() for state in states[1:]])
        worst = float(errors(stored.prompt_end.values[:, sample], theirs).max())
        print("largest relative error of a vector at the end of a prompt:", worst)
        assert worst < 5e-5
        assert errors(stored["last"].values[:, sample], theirs).min() > 0.01


@pytest.fixture(scope="module")
def alone(
    smollm2: Path, requests: Callable[[int], Path], tmp_path_factory: pytest.TempPathFactory
) -> xr.Dataset:
    """Requests with their answers, one after the other: nothing is padded."""
    return extract(smollm2, requests(1), tmp_path_factory.mktemp("alone") / "run", **ANSWERED, batch_size=1)


@pytest.mark.parametrize("side", ["left", "right"])
def test_answers_of_a_padded_batch_are_those_of_prompts_alone(
    side: str,
    alone: xr.Dataset,
    smollm2: Path,
    requests: Callable[[int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for path in smollm2.iterdir():
        os.link(path, model / path.name)
    settings = json.loads((smollm2 / "tokenizer_config.json").read_text(encoding="utf-8"))
    (model / "tokenizer_config.json").unlink()
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, "padding_side": side}))
    masks = []

    def watched(model: Any, inputs: dict[str, Any], **more: Any) -> Any:
        masks.append(inputs["attention_mask"].numpy())
        return decode(model, inputs, **more)

    monkeypatch.setattr(generation, "decode", watched)
    batch = extract(model, requests(1), tmp_path / "run", **ANSWERED, batch_size=3)
    (mask,) = masks
    # on the left while answers are generated, whatever the tokenizer would do
    assert (mask[:, 0] == 0).any()
    assert (mask[:, -1] == 1).all()
    np.testing.assert_array_equal(batch.token_id.values, alone.token_id.values)
    np.testing.assert_array_equal(batch.token_kind.values, alone.token_kind.values)
    assert len(np.unique(batch.n_tokens)) > 1
    for sample in range(3):
        count = int(batch.n_tokens[sample])
        ours, theirs = (cube.residual.values[:, sample, :count] for cube in (batch, alone))
        assert errors(ours, theirs).max() < 5e-5


# Logits that lie this close are put into another order by another rounding. A bfloat16 logit of about 20 is
# rounded to a multiple of 0.125, and what it is made of was rounded in 30 blocks.
NEAR_TIE = {"float32": 1e-3, "bfloat16": 0.5}


@pytest.mark.parametrize(("dtype", "count", "new"), [("float32", 4, 8), ("bfloat16", 2, 4)])
def test_greedy_answers_are_those_of_transformers_up_to_a_near_tie(
    dtype: str, count: int, new: int, smollm2: Path, requests: Callable[[int], Path], tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    cube = extract(
        smollm2, requests(1), tmp_path / "run", dtype=dtype, limit=count, layers="0",
        generate=f"max_new_tokens={new}",
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=getattr(torch, dtype)).eval()
    compared, gaps = 0, []
    for sample in range(count):
        one = cube.isel(sample=sample)
        turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": str(one.text.values)}]
        inputs = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            answer = model.generate(
                **inputs,
                max_new_tokens=new,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        theirs = answer.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        ours = one.token_id.values[one.token_kind.values == TokenKind.GENERATED].tolist()
        for place, (mine, other) in enumerate(zip(ours, theirs, strict=False)):
            compared += 1
            if mine != other:  # all that follows is another text
                logits = answer.logits[place][0].float()
                gaps.append(float(logits[other] - logits[mine]))
                break
        else:
            assert len(ours) == len(theirs)
            assert one.generated.item() == tokenizer.decode(theirs, skip_special_tokens=True)
    print(f"greedy tokens in {dtype}: {compared} compared, near-ties decided otherwise: {gaps}")
    assert all(gap < NEAR_TIE[dtype] for gap in gaps)
    assert compared > 2 * count
    assert dtype != "float32" or not gaps
