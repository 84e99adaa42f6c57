"""Models of several architectures, and transformers' own answers for them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actkit.demo import MODEL

TEXTS = {
    "english": ["A doctor.", "A young woman reads her book in the old library of the town.", "He waits."],
    "arabic": ["طبيبٌ.", "امرأةٌ شابّة تقرأ كتابَها في مكتبة المدينة القديمة.", "ينتظر."],
}


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A long table with prompts of very different lengths, in two languages."""
    path = tmp_path_factory.mktemp("data") / "prompts.csv"
    rows = [
        f'{number},{language},"{text} {text if number % 2 else ""}",{number % 2}'
        for language, texts in TEXTS.items()
        for number, text in enumerate(texts * 3)
    ]
    path.write_text("sample_id,language,text,parity\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def architectures(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> Callable[[str], Path]:
    """Folders of models: trained ones, and random small ones made on demand."""
    import torch
    import transformers as tf

    tokenizer = tf.AutoTokenizer.from_pretrained(MODEL)
    small: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "initializer_range": 0.3,  # large enough that a mistake shows
    }
    configs: dict[str, Callable[[], Any]] = {
        "gemma3": lambda: tf.Gemma3TextConfig(
            **small, sliding_window=8, layer_types=["sliding_attention"] * 3 + ["full_attention"]
        ),
        "qwen2": lambda: tf.Qwen2Config(**{k: v for k, v in small.items() if k != "head_dim"}),
        "llama": lambda: tf.LlamaConfig(**small),
        "gpt2": lambda: tf.GPT2Config(
            vocab_size=len(tokenizer), n_embd=32, n_layer=4, n_head=4, initializer_range=0.3
        ),
    }
    folders = {"demo": MODEL, "minilm": minilm}

    def folder(name: str) -> Path:
        if name not in folders:
            torch.manual_seed(0)
            path = tmp_path_factory.mktemp(name)
            tf.AutoModelForCausalLM.from_config(configs[name]()).save_pretrained(path)
            tokenizer.save_pretrained(path)
            folders[name] = path
        return folders[name]

    return folder


@pytest.fixture(scope="session")
def oracle() -> Callable[..., tuple[list[np.ndarray], np.ndarray]]:
    """What transformers returns for one prompt: every block before the final norm, and the embedding."""
    import torch
    import transformers as tf

    def ask(folder: Path, text: str, *, dtype: Any = "auto", max_tokens: int | None = None) -> Any:
        tokenizer = tf.AutoTokenizer.from_pretrained(folder)
        model = tf.AutoModel.from_pretrained(folder, dtype=dtype).eval()
        model.config.tie_last_hidden_states = False  # the last one before the final norm, like the others
        encoded = tokenizer(
            text, return_tensors="pt", truncation=max_tokens is not None, max_length=max_tokens
        )
        with torch.inference_mode():
            states = model(**encoded, output_hidden_states=True).hidden_states
        states = [state[0].float().numpy() for state in states]
        return states[1:], states[0], encoded["input_ids"][0].numpy()

    return ask


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Save a random model, as a class of transformers makes it."""
    import torch
    import transformers as tf

    from tests.extraction.loaded_models import CONFIGS

    folders: dict[tuple[str, Any], Path] = {}

    def folder(name: str, auto: Any = tf.AutoModel) -> Path:
        if (name, auto) not in folders:
            torch.manual_seed(0)
            folders[name, auto] = tmp_path_factory.mktemp(name)
            auto.from_config(CONFIGS[name]()).save_pretrained(folders[name, auto])
        return folders[name, auto]

    return folder


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where weights are loaded."""

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("transformers.AutoModel.from_pretrained", load)


@pytest.fixture
def chat_model(model_copy: Path) -> Callable[..., Path]:
    """A model with a chat template, and control tokens that only the template writes."""
    from transformers import AutoTokenizer

    def with_template(template: str, *control: str) -> Path:
        tokenizer = AutoTokenizer.from_pretrained(model_copy)
        tokenizer.add_special_tokens({"additional_special_tokens": list(control)})
        tokenizer.chat_template = template
        tokenizer.save_pretrained(model_copy)
        config = json.loads((model_copy / "config.json").read_text())
        (model_copy / "config.json").write_text(json.dumps({**config, "vocab_size": len(tokenizer)}))
        return model_copy

    return with_template


@pytest.fixture(scope="module")
def small_gguf(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Any
) -> tuple[Path, dict[str, np.ndarray]]:
    """A random model as Q8_0, and its weights."""
    from tests.extraction.gguf_models import write_gguf

    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    return path, write_gguf(path, tokenizer)
