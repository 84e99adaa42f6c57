"""The last token of the prompt: transformers' hidden states where a chat model is about to answer."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import actkit
from actkit.errors import InputError, MissingError
from actkit.extraction.capture.packing import pack
from actkit.extraction.capture.spec import Rules
from actkit.extraction.prompts.encoder import Prompt
from actkit.schema import TokenKind

TEMPLATE = """{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }} .
{% endfor %}{% if add_generation_prompt %}[assistant] a{% endif %}"""
TEXTS = [f"a {what} is {where}" for what in ("man", "woman", "red cat") for where in ("here", "on the road")]


def test_generated_positions_follow_the_end_of_the_prompt() -> None:
    text, template, new = TokenKind.TEXT, TokenKind.TEMPLATE, TokenKind.GENERATED
    kinds = [[text, template, template, new, new], [text], [template, text, new]]
    prompts = [Prompt(np.arange(len(row), dtype=np.int32), np.array(row, dtype=np.int8)) for row in kinds]
    packing = pack(prompts, Rules({"residual": (0,)}, (0,), "all", "exact", "keep", first_is_content=True))
    assert packing.prompt_ends.tolist() == [2, 5, 7]


@pytest.fixture(scope="module")
def chat(architectures: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model with a chat template."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(architectures("llama"), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "group"])
        writer.writerows((text, "ab"[number % 2]) for number, text in enumerate(TEXTS))
    return path


def extract(model: Path, data: Path, out: Path, **options: Any) -> xr.Dataset:
    more = {"dtype": "float32", "batch_size": 3, "window_samples": 4, "listeners": [], **options}
    return actkit.extract(model=str(model), data=str(data), out=str(out), **more).load()


@pytest.fixture(scope="module")
def stored(chat: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    """A run that generates, and keeps no token of the template."""
    return extract(
        chat,
        texts,
        tmp_path_factory.mktemp("stored") / "run",
        chat=True,
        keep_tokens="content",
        save=["last", "prompt_end"],
        generate={"max_new_tokens": 3},
    )


@pytest.fixture(scope="module")
def whole(chat: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    """A run with all tokens, which does not store the vectors."""
    return extract(
        chat, texts, tmp_path_factory.mktemp("whole") / "run", chat=True, generate={"max_new_tokens": 3}
    )


def hidden_states(model: Path, text: str) -> np.ndarray:
    """Return transformers' hidden states of the last token of a chat, dims ``(layer, hidden)``."""
    import torch
    import transformers as tf

    tokenizer = tf.AutoTokenizer.from_pretrained(model)
    network = tf.AutoModel.from_pretrained(model, dtype="float32").eval()
    network.config.tie_last_hidden_states = False  # the last one before the final norm, like the others
    turns = [{"role": "user", "content": text}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    with torch.inference_mode():
        states = network(torch.tensor([ids]), output_hidden_states=True).hidden_states
    return np.stack([state[0, -1].numpy() for state in states[1:]])


def test_stored_vectors_are_hidden_states_of_the_generation_prompt(stored: xr.Dataset, chat: Path) -> None:
    for sample, text in enumerate(stored.text.values):
        theirs = hidden_states(chat, str(text))
        np.testing.assert_allclose(stored.prompt_end.values[:, sample], theirs, rtol=0, atol=2e-5)
        assert np.abs(stored["last"].values[:, sample] - theirs).max() > 0.01  # the last content token


def test_stored_and_derived_vectors_give_the_same_results(stored: xr.Dataset, whole: xr.Dataset) -> None:
    assert "prompt_end" not in whole
    assert (whole.n_tokens > whole.prompt_tokens).all()  # generated tokens come after
    options = {"by": "group", "cluster": None, "vectors": "prompt_end", "fit": "all"}
    ours, theirs = (actkit.group_directions(cube, **options) for cube in (whole, stored))
    xr.testing.assert_allclose(ours.direction, theirs.direction, atol=1e-5)
    lazy = actkit.group_directions(whole.chunk(sample=2, layer=1), **options)
    xr.testing.assert_allclose(lazy.direction.compute(), ours.direction, atol=1e-6)
    shuffled = actkit.group_directions(whole.isel(sample=[5, 3, 1, 0, 2, 4]), **options)
    xr.testing.assert_allclose(shuffled.direction, ours.direction, atol=1e-6)
    last = actkit.group_directions(whole, **{**options, "vectors": "last"})
    assert float(abs(last.direction - ours.direction).max()) > 1e-3
    for cube in (whole, stored):
        cka = actkit.cka(cube, vectors="prompt_end", cluster=None)
        assert cka.attrs["vectors"] == "prompt_end"


def test_without_a_template_the_end_is_the_last_token(
    architectures: Callable[[str], Path], texts: Path, tmp_path: Path
) -> None:
    cube = extract(architectures("llama"), texts, tmp_path / "run", save=["last", "prompt_end"], layers="all")
    ends_with_content = cube.token_kind.values[np.arange(len(TEXTS)), cube.n_tokens.values - 1]
    assert (ends_with_content == TokenKind.TEXT).all()
    np.testing.assert_array_equal(cube.prompt_end, cube["last"])


def test_cubes_without_the_end_are_refused(stored: xr.Dataset, whole: xr.Dataset) -> None:
    with pytest.raises(
        MissingError, match="has no `prompt_end`; extract it again with `prompt_end` among `save`"
    ):
        actkit.cka(stored.drop_vars("prompt_end"), vectors="prompt_end")
    with pytest.raises(MissingError, match=r"lacks the last token of 6 of 6 prompts"):
        actkit.cka(whole.isel(token=slice(4)), vectors="prompt_end")
    for tokens in ("all", actkit.TokenFilter(positions=[-1])):
        with pytest.raises(InputError, match="`prompt_end` is the last token of the prompt, not one of"):
            actkit.cka(whole, vectors="prompt_end", tokens=tokens)
