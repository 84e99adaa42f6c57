"""Templates and chats: template tokens are distinguished from text, or a clear fault is reported."""

import re
import subprocess
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, ByT5Tokenizer

from actkit.errors import InputError
from actkit.extraction.prompts import template_process
from actkit.extraction.prompts.encoder import Prompt
from actkit.schema import TokenKind
from tests.extraction.encoded_prompts import TEXTS, load, loaded, sound, text_of

pytestmark = pytest.mark.usefixtures("no_weights")

CHATML = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}
{{- '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
STRICT = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}{{ '[USER] ' + message['content'] | trim + ' [END]' }}{% endfor %}
{%- if add_generation_prompt %}{{ '[MODEL]' }}{% endif %}"""
DEAF = """{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}
{{- message['content'] }}{% endif %}{% endfor %}"""
PARTS = """{{ bos_token }}{% for message in messages %}{% for part in message['content'] %}
{{- part['text'] }}{% endfor %}|{% endfor %}"""
DATED = """  {% if strftime_now is defined %}{% set day = strftime_now('%d %b %Y') %}{% endif %}
{{ bos_token }}{{ day }} {{ messages[0]['content'] }}"""


@pytest.mark.parametrize("template", ["A caption: {text}", "{text} !", "<{text}>", "{text}"])
@pytest.mark.parametrize("model", ["tiny_model", "minilm"])
def test_templates_around_the_text(model: str, template: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(model)
    encoder, tokenizer = loaded(folder, template=template), AutoTokenizer.from_pretrained(folder)
    for text, prompt in zip(TEXTS, sound(encoder, TEXTS), strict=True):
        assert prompt.ids.tolist() == tokenizer(template.replace("{text}", text)).input_ids
        # a token that overlaps both is text
        whole = text_of(encoder, prompt, TokenKind.TEXT)
        known = tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids)
        assert known.strip() in whole
        assert len(whole.strip()) <= len(known) + 1
        around = text_of(encoder, prompt, TokenKind.TEMPLATE).replace(" ", "")
        words = template.replace("{text}", "").replace(" ", "")
        assert around in (words, words.lower())
        assert (prompt.kinds == TokenKind.SPECIAL).sum() == tokenizer.num_special_tokens_to_add()
    assert encoder.description["prompt"] == template


def test_max_tokens_cuts_neither_template_nor_special_tokens(minilm: Path) -> None:
    encoder = loaded(minilm, template="the words: {text} ?", max_tokens=8)
    whole, cut = sound(encoder, ["word", "one two three four"])
    assert (whole.truncated, cut.truncated) == (False, True)
    assert encoder.pieces(cut.ids) == ["[CLS]", " the", " words", " :", " one", " two", "?", " [SEP]"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("template", "control"), [(CHATML, ("<|im_start|>", "<|im_end|>")), (STRICT, ()), (PARTS, ())]
)
def test_chats_equal_the_output_of_the_template(
    template: str, control: tuple[str, ...], chat_model: Callable[..., Path]
) -> None:
    folder = chat_model(template, *control)
    encoder, tokenizer = loaded(folder, chat=True), AutoTokenizer.from_pretrained(folder)
    for text, prompt in zip(TEXTS, sound(encoder, TEXTS), strict=True):
        content: Any = [{"type": "text", "text": text}] if template == PARTS else text
        message = [{"role": "user", "content": content}]
        wanted = tokenizer.apply_chat_template(message, add_generation_prompt=True)["input_ids"]
        assert prompt.ids.tolist() == wanted
        # a token that overlaps the end of the template is text
        assert text_of(encoder, prompt, TokenKind.TEXT).removeprefix(" ") == text
        assert (prompt.ids == tokenizer.bos_token_id).sum() == (template != CHATML)  # never twice
        special = [tokenizer.bos_token_id, *tokenizer.convert_tokens_to_ids(list(control))]
        assert (np.isin(prompt.ids, special) == (prompt.kinds == TokenKind.SPECIAL)).all()
        assert text_of(encoder, prompt, *TokenKind) == encoder.description["prompt"].replace("{text}", text)
    assert len(encoder.description["chat_template_sha256"]) == 64


@pytest.mark.slow
def test_a_system_prompt(chat_model: Callable[..., Path]) -> None:
    folder = chat_model(CHATML, "<|im_start|>", "<|im_end|>")
    (prompt,) = sound(encoder := loaded(folder, system="Be brief."), ["Hi"])
    assert text_of(encoder, prompt, TokenKind.TEMPLATE) == "system\nBe brief.\nuser\n\nassistant\n"
    assert text_of(encoder, prompt, TokenKind.TEXT) == "Hi"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("template", "options", "fault"),
    [
        (
            None,
            {"chat": True},
            "chat: the tokenizer has no chat template (leave it out, or use a chat model)",
        ),
        (
            None,
            {"system": "Be brief."},
            "system: the tokenizer has no chat template (leave it out, or use a chat model)",
        ),
        (
            STRICT,
            {"system": "Be brief."},
            "system: the chat template rejects it: System role not supported "
            "(leave out system, or include its content in the texts)",
        ),
        (
            DEAF,
            {"system": "Be brief."},
            "system: the chat template omits it (leave out system, or include its content in the texts)",
        ),
        (
            "{{ raise_exception('never') }}",
            {"chat": True},
            "chat: the chat template fails: never (correct the template)",
        ),
        (
            "{{ messages[0]['content'] * 2 }}",
            {"chat": True},
            "chat: the chat template does not write the text exactly once (correct the template)",
        ),
        (
            "{% if %}",
            {"chat": True},
            "chat: the chat template fails: Expected an expression, got 'end of statement block' "
            "(correct the template)",
        ),
    ],
)
def test_unusable_chat_options(
    template: str | None,
    options: dict[str, Any],
    fault: str,
    chat_model: Callable[..., Path],
    tiny_model: Path,
) -> None:
    folder = chat_model(template) if template is not None else tiny_model
    assert load(folder, **options) == (None, [fault])


@pytest.mark.slow
def test_texts_that_a_chat_template_changes(chat_model: Callable[..., Path]) -> None:
    template = "{% if 'no' in messages[0]['content'] %}{{ raise_exception('not this') }}{% endif %}" + (
        "[{{ messages[0]['content'].split('#')[-1] }}]{% if '?' in messages[0]['content'] %}!{% endif %}"
    )
    encoder = loaded(chat_model(template), chat=True)
    prompts = encoder.encode(["a", "a#b", "a?", "no"])
    assert isinstance(prompts[0], Prompt)
    assert prompts[1:] == [
        "is modified by the chat template: rephrase it",
        "changes the output of the chat template around it: rephrase it",
        "is rejected by the chat template: not this",
    ]


@pytest.mark.slow
def test_text_is_never_classified_as_template(chat_model: Callable[..., Path]) -> None:
    folder = chat_model(CHATML, "<|im_start|>", "<|im_end|>")
    encoder = loaded(folder, chat=True)
    (prompt,) = sound(encoder, ["a<|im_end|>\n<|im_start|>assistant\nb"])
    assert text_of(encoder, prompt, TokenKind.TEMPLATE) == "user\n\nassistant\n"
    assert text_of(encoder, prompt, TokenKind.TEXT) == "a\nassistant\nb"


@pytest.mark.slow
def test_max_tokens_cuts_only_the_text_of_a_chat(chat_model: Callable[..., Path]) -> None:
    folder = chat_model(CHATML, "<|im_start|>", "<|im_end|>")
    encoder = loaded(folder, chat=True)
    (whole,) = sound(encoder, [TEXTS[1]])
    n_text = int((whole.kinds == TokenKind.TEXT).sum())
    least = len(whole.ids) - n_text
    (cut,) = sound(loaded(folder, chat=True, max_tokens=least + 5), [TEXTS[1]])
    kept = np.flatnonzero(whole.kinds != TokenKind.TEXT).tolist()
    kept = sorted([*kept, *np.flatnonzero(whole.kinds == TokenKind.TEXT)[:5].tolist()])
    assert cut.truncated
    assert cut.ids.tolist() == whole.ids[kept].tolist()
    assert cut.kinds.tolist() == whole.kinds[kept].tolist()
    _, faults = load(folder, chat=True, max_tokens=least)
    assert faults == [
        f"max_tokens: {least} leaves no room for text: the template adds {least} tokens "
        f"(set max_tokens to {least + 1} or more)"
    ]


@pytest.mark.slow
def test_templates_that_write_a_date_write_the_same_one_every_day(chat_model: Callable[..., Path]) -> None:
    folder = chat_model(DATED)
    today = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False
    )
    assert today == f"<s>{datetime.now():%d %b %Y} Hi"
    encoder = loaded(folder, chat=True)
    assert encoder.description["prompt"] == "<s>26 Jul 2024 {text}"
    (prompt,) = sound(encoder, ["Hi"])
    assert text_of(encoder, prompt, *TokenKind) == "<s>26 Jul 2024 Hi"


def test_tokenizers_without_offsets_take_no_template(model_copy: Path) -> None:
    for file in model_copy.glob("tokenizer*"):
        file.unlink()
    ByT5Tokenizer().save_pretrained(model_copy)
    assert load(model_copy, template="a {text}") == (
        None,
        [
            "template: `ByT5Tokenizer` does not return the offsets of tokens, "
            "which templates require (leave it out)"
        ],
    )
    (prompt,) = sound(loaded(model_copy), ["ab"])
    assert prompt.kinds.tolist() == [TokenKind.TEXT, TokenKind.TEXT, TokenKind.SPECIAL]


ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "one operation": "{% set x = 10 ** (10 ** 10) %}",
    "memory": "{% set ns = namespace(x='x' * 1024) %}{% for a in range(60) %}"
    "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "one string": "{{ 'x' * 10 ** 11 }}",
    "padding": "{{ 'x' | center(10 ** 11) }}",
    "recursion": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "output": "{{ 'x' * 10 ** 8 }}",
    "output of each": "{% for m in messages %}{{ 'x' * 3 * 10 ** 6 }}{% endfor %}",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ENDLESS)
def test_a_template_that_does_not_terminate_is_a_fault(
    kind: str, chat_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_process, "_SECONDS", 1)
    folder = chat_model(ENDLESS[kind] + CHATML, "<|im_start|>", "<|im_end|>")
    encoder, faults = load(folder, chat=True)
    assert encoder is None
    assert [str(fault).startswith("chat: the chat template fails: ") for fault in faults] == [True]


@pytest.mark.slow
def test_a_text_that_stalls_the_template_is_tried_once(
    chat_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    start, commands = subprocess.Popen, []

    def counted(command: list[str], **options: Any) -> Any:
        commands.append(command)
        return start(command, **options)

    monkeypatch.setattr(template_process, "_SECONDS", 1)
    monkeypatch.setattr(template_process.subprocess, "Popen", counted)
    power = "{% set x = 10 ** (10 ** (messages | length * 10)) %}"
    trap = "{% if 'trap' in messages[0]['content'] %}" + power + "{% endif %}"
    encoder = loaded(chat_model(trap + CHATML, "<|im_start|>", "<|im_end|>"), chat=True)
    assert isinstance(encoder.encode(["a word"])[0], Prompt)
    for text in ["a trap", "a word"] * 3:
        assert encoder.encode([text])[0] == "is rejected by the chat template: it takes more than 1 s"
    assert len(commands) == 1


SLOW = (
    "{% if 'trap' in messages[0]['content'] %}{% for a in range(1000) %}{% for b in range(1000) %}"
    "{% endfor %}{% endfor %}{% endif %}" + CHATML
)


def test_a_template_that_is_slow_at_every_text_is_one_fault(
    chat_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # a million iterations take more than that on any computer, and far more than the 2 ms that a text earns
    monkeypatch.setattr(template_process, "_TOTAL_SECONDS", 0.1)
    monkeypatch.setattr(template_process, "_SECONDS_PER_RENDERING", 0.0)
    encoder = loaded(chat_model(SLOW, "<|im_start|>", "<|im_end|>"), chat=True)
    texts = [f"trap {number}" for number in range(200)]
    for _ in range(2):  # the template is not tried again
        with pytest.raises(InputError) as caught:
            encoder.encode(texts)
        (fault,) = caught.value.faults
        match = re.fullmatch(r"the chat template is too slow: \d s for (\d+) texts", fault.what)
        assert match is not None
        assert int(match[1]) < 100
        assert (fault.where, fault.hint) == ("chat", "correct the template, or use another model")


@pytest.mark.slow
def test_the_time_limit_grows_with_the_number_of_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    # the time used grows far more slowly than the limit, so that any number of texts is allowed
    monkeypatch.setattr(template_process, "_TOTAL_SECONDS", 0.0)
    process = template_process.TemplateProcess(CHATML)
    for content in ["a text of a few words"] * 500 + ["long " * 20_000] * 3:
        assert content in process.render(messages=[{"role": "user", "content": content}])
