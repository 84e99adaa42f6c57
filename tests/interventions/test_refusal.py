"""Metrics of refusal and of the prompts' own text, against transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
import xarray as xr

import actkit
from actkit.errors import InputError

TEXTS = [f"{word} waits{'.' * (at % 3)}" for word in ("He", "She") for at in range(4)]


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight prompts of several lengths, in pairs."""
    folder = tmp_path_factory.mktemp("refusal")
    lines = [f"{at},{text},{('male', 'female')[at // 4]},p{at % 4}" for at, text in enumerate(TEXTS)]
    (folder / "data.csv").write_text("sample_id,text,gender,pair\n" + "\n".join(lines) + "\n")
    options: Any = {"layers": "all", "listeners": [], "dtype": "float32"}
    actkit.extract(model=str(tiny_model), data=str(folder / "data.csv"), out=str(folder / "run"), **options)
    return folder / "run"


def steered(run: Path, metric: Any) -> xr.Dataset:
    options: Any = {"by": "gender", "cluster": "pair", "vectors": "last"}
    directions = actkit.group_directions(run, **options).isel(language=0).sel(layer=[1])
    return actkit.steer(run, directions, metric=metric, controls=0, progress=False)


def test_log_odds_of_refusal_are_those_of_the_probability(tokenizer: Any) -> None:
    logits = torch.randn(4, len(tokenizer), generator=torch.Generator().manual_seed(0))
    first, second, third = tokenizer.convert_tokens_to_ids(["I", "A", "S"])
    p = logits.double().softmax(-1)
    refusal = p[:, first] + p[:, second]
    torch.testing.assert_close(
        actkit.Refusal(["I", "A"]).score(tokenizer)(logits), torch.logit(refusal), atol=1e-9, rtol=0
    )
    against = actkit.Refusal(["I", "A"], others="S").score(tokenizer)(logits)
    torch.testing.assert_close(against, (refusal / p[:, third]).log(), atol=1e-9, rtol=0)


def test_answers_under_an_ablation_are_those_of_weights_that_cannot_write_the_direction(
    run: Path, tiny_model: Path, tokenizer: Any
) -> None:
    result = steered(run, actkit.RefusalRate(["e"], new_tokens=5))
    directions = actkit.group_directions(run, by="gender", cluster="pair", vectors="last").isel(language=0)
    unit = torch.from_numpy(directions.direction.sel(layer=1).values.astype(np.float32))
    unit = unit / unit.norm()
    away = torch.eye(len(unit)) - torch.outer(unit, unit)
    model: Any = tf.AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    cube = actkit.open_cube(run)

    def answers() -> list[str]:
        """Return the greedy answers of transformers without a cache, one prompt at a time."""
        texts = []
        for ids, length in zip(cube.token_id.values, cube.n_tokens.values, strict=True):
            prompt = torch.from_numpy(ids[None, :length].astype(np.int64))
            for _ in range(5):
                with torch.no_grad():
                    new = model(prompt).logits[:, -1:].argmax(-1)
                prompt = torch.cat([prompt, new], dim=1)
                if int(new) == 2:
                    break
            texts.append(tokenizer.decode(prompt[0, length:], skip_special_tokens=True))
        return texts

    intact = answers()
    assert result.intact_answer.values.tolist() == intact
    with torch.no_grad():
        if model.lm_head.weight is model.model.embed_tokens.weight:
            model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
        model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight @ away)
        for block in model.model.layers:
            for linear in (block.self_attn.o_proj, block.mlp.down_proj):
                linear.weight.copy_(away @ linear.weight)
    edited = answers()
    assert edited != intact
    assert result.answer.values.ravel().tolist() == edited
    np.testing.assert_array_equal(result.value.values.ravel(), ["e" in text.casefold() for text in edited])
    assert result.attrs["phrases"] == ["e"]
    assert result.attrs["new_tokens"] == 5


def test_cross_entropy_is_that_of_transformers(run: Path, tiny_model: Path) -> None:
    result = steered(run, actkit.CrossEntropy())
    model: Any = tf.AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    cube = actkit.open_cube(run)
    for at, length in enumerate(cube.n_tokens.values):
        ids = torch.from_numpy(cube.token_id.values[at : at + 1, :length].astype(np.int64))
        labels = ids.clone()
        labels[0, 1] = -100  # follows the special token, which is no content
        with torch.no_grad():
            expected = float(model(ids, labels=labels).loss)
        assert float(result.intact[at]) == pytest.approx(expected, abs=1e-5)
    assert float(np.abs(result.value.values.ravel() - result.intact).max()) > 1e-4


def test_refusals_are_recognised_in_any_case_and_at_the_start() -> None:
    answers = ["i’m sorry, no.", "Sure. I'M SORRY to hear that.", "Sure."]
    assert actkit.RefusalRate().refused(answers).tolist() == [1, 1, 0]
    assert actkit.RefusalRate(where="start").refused(answers).tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"phrases": "I cannot"}, "phrases: is the string 'I cannot' (give a list of strings)"),
        ({"phrases": []}, "phrases: lacks a text to look for"),
        ({"where": "end"}, "where: 'end' is not an option (use 'anywhere' or 'start')"),
        ({"new_tokens": 0}, "new_tokens: is 0 (give a whole number of at least 1)"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        actkit.RefusalRate(**options)
    assert message in str(caught.value)


def test_tokens_and_metrics_that_do_not_fit_are_named(run: Path, tokenizer: Any) -> None:
    with pytest.raises(InputError, match='tokens: "waits for" is'):
        actkit.Refusal("waits for").score(tokenizer)
    with pytest.raises(InputError, match="tokens, others: both contain"):
        actkit.Refusal("I", others=["I"]).score(tokenizer)
    with pytest.raises(InputError, match="metric: is a RefusalRate"):
        actkit.logit_lens(run, metric=actkit.RefusalRate())  # type: ignore[arg-type]
