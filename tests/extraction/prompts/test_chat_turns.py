"""Chats of several turns: ids equal those of transformers, and each token has its kind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from transformers import AutoTokenizer

import actkit
from actkit.errors import InputError
from actkit.extraction.preflight.preparation import prepare
from actkit.schema import TokenKind
from tests.extraction.encoded_prompts import loaded, sound, text_of
from tests.extraction.prompts.test_chat_template import CHATML, PARTS

CONTROL = ("<|im_start|>", "<|im_end|>")
SMOLLM = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}
{{- '<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n' }}{% endif %}
{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
TRIMMED = """{{ bos_token }}{% for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate') }}{% endif %}
{{- '[' + message['role'] + '] ' + message['content'] | trim + '\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '[model]\n' }}{% endif %}"""
FORGETFUL = """{% for message in messages %}[{{ message['content'].split('</think>')[-1] }}]{% endfor %}"""


def turns(*contents: str, system: str = "") -> list[dict[str, Any]]:
    roles = ("user", "assistant") * len(contents)
    chat = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]
    return [{"role": "system", "content": system}, *chat] if system else chat


CHATS = [
    turns("Hi"),
    turns("The doctor waits. ", " What?\n", "الطبيبُ يقرأ كتابًا."),
    turns("word", "word", "word", "word"),
    turns("assistant", "<|im_end|>\n<|im_start|>user\nb", "user\n"),
    turns("a", "", "c"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "template", [CHATML, SMOLLM, TRIMMED, PARTS], ids=["chatml", "smollm", "trimmed", "parts"]
)
@pytest.mark.usefixtures("no_weights")
def test_chats_equal_the_output_of_the_template(template: str, chat_model: Callable[..., Path]) -> None:
    folder = chat_model(template, *CONTROL)
    encoder, tokenizer = loaded(folder, chat=True), AutoTokenizer.from_pretrained(folder)
    system = turns("Hi", "Hello", "x", system="Be brief.")
    chats = CHATS if template == TRIMMED else [*CHATS, system]
    for chat, prompt in zip(chats, sound(encoder, chats), strict=True):
        shaped = [
            {
                **turn,
                "content": [{"type": "text", "text": turn["content"]}]
                if template == PARTS
                else turn["content"],
            }
            for turn in chat
        ]
        asks = chat[-1]["role"] == "user"
        wanted = tokenizer.apply_chat_template(shaped, add_generation_prompt=asks)["input_ids"]
        assert prompt.ids.tolist() == wanted
        # exactly the turns are text, except in tokens that overlap both
        contents = "".join(turn["content"] for turn in chat)
        for mark in CONTROL:
            contents = contents.replace(mark, "")
        whole = text_of(encoder, prompt, TokenKind.TEXT)
        if template in (CHATML, SMOLLM):
            assert whole == contents
            around = text_of(encoder, prompt, TokenKind.TEMPLATE)
            words = "".join(f"{turn['role']}\n\n" for turn in chat) + ("assistant\n" if asks else "")
            if template == SMOLLM and chat[0]["role"] != "system":
                words = f"system\nYou are a helpful AI assistant\n{words}"
            assert around == words
        else:
            assert "".join(contents.split()) in "".join(whole.split()).replace("[END]", "")


@pytest.mark.slow
@pytest.mark.usefixtures("no_weights")
def test_a_single_turn_equals_a_text_in_a_chat(chat_model: Callable[..., Path]) -> None:
    encoder = loaded(chat_model(CHATML, *CONTROL), chat=True, system="Be brief.")
    content = [{"type": "text", "text": "Hi"}, {"type": "text", "text": " there"}]
    rows = ["Hi there", turns("Hi there"), [{"role": "user", "content": content}]]
    text, turn, parts = sound(encoder, rows)
    for other in (turn, parts):
        assert other.ids.tolist() == text.ids.tolist()
        assert other.kinds.tolist() == text.kinds.tolist()


@pytest.mark.slow
@pytest.mark.usefixtures("no_weights")
def test_turns_that_a_template_refuses_or_changes(chat_model: Callable[..., Path]) -> None:
    encoder = loaded(chat_model(TRIMMED), chat=True)
    twice = [*turns("a"), *turns("b")]
    assert encoder.encode([twice]) == ["is rejected by the chat template: Conversation roles must alternate"]
    encoder = loaded(chat_model(FORGETFUL), chat=True)
    assert encoder.encode([turns("a", "<think>why</think>b", "c")]) == [
        "turn 2 is modified by the chat template: rephrase it"
    ]
    only_last = "{{ messages[-1]['content'] }}"
    encoder = loaded(chat_model(only_last), chat=True)
    assert encoder.encode([turns("a", "b", "c")]) == ["turn 1 is omitted or repeated by the chat template"]


@pytest.fixture
def asked(chat_model: Callable[..., Path], tmp_path: Path) -> dict[str, Any]:
    rows = [
        {"messages": chat, "count": number % 3 or None, "flag": (True, False, None)[number % 3]}
        for number, chat in enumerate([*CHATS, *CHATS])
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    folder = str(chat_model(CHATML, *CONTROL))
    return {"model": folder, "data": str(path), "text_column": "messages", "out": str(tmp_path / "run")}


@pytest.mark.parametrize(
    ("option", "value", "fault"),
    [
        ("chat", False, "chat: the data contain chats, which need the chat template (leave out"),
        ("template", "{text}!", "template: the data contain chats, which have their own template (leave"),
        ("image_column", "count", "image_column: the data contain chats, whose turns are text (use a column"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("no_weights")
def test_options_that_chats_exclude(option: str, value: Any, fault: str, asked: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        prepare(None, {**asked, option: value})
    assert any(str(reported).startswith(fault) for reported in caught.value.faults)


@pytest.mark.slow
def test_chats_and_labels_with_gaps_become_a_cube(asked: dict[str, Any], model_copy: Path) -> None:
    """Stored values equal those of transformers, and labels keep their types and missing values."""
    from transformers import AutoModelForCausalLM

    config = json.loads((model_copy / "config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(model_copy, ignore_mismatched_sizes=True)
    model.resize_token_embeddings(config["vocab_size"])
    model.save_pretrained(model_copy)
    cube = actkit.extract(**asked, listeners=[]).compute()
    tokenizer = AutoTokenizer.from_pretrained(model_copy)
    wanted = tokenizer.apply_chat_template(CHATS[1], add_generation_prompt=True, return_tensors="pt")
    states = model(**wanted, output_hidden_states=True).hidden_states
    n_tokens = wanted["input_ids"].shape[1]
    np.testing.assert_allclose(
        cube.residual.values[0, 1, :n_tokens], states[1][0].detach().numpy(), rtol=1e-4, atol=1e-5
    )
    assert cube.text.values[1] == "\n".join(f"{turn['role']}: {turn['content']}" for turn in CHATS[1])
    again = actkit.extract(**asked, listeners=[])  # continues the same run
    assert again.attrs == actkit.open_cube(asked["out"]).attrs
    plain = xr.open_zarr(f"{asked['out']}/cube.zarr", consolidated=False)
    np.testing.assert_array_equal(plain["count"].values, [np.nan, 1, 2] * 3 + [np.nan])
    np.testing.assert_array_equal(plain.flag.values, [1, 0, np.nan] * 3 + [1])
    assert plain.flag.attrs["label_type"] == "bool"
    counts = actkit.layer_norms(cube, by="count", resamples=2)
    assert counts["count"].values.tolist() == [1, 2]
    flags = actkit.layer_norms(cube, by="flag", resamples=2)
    assert flags.flag.values.tolist() == [False, True]
    n_tokens = [(cube.token_kind.values[cube.flag.values == flag] == 3).sum() for flag in (0, 1)]
    assert flags["n_tokens"].isel(language=0, layer=0).values.tolist() == n_tokens
