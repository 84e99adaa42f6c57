"""Small random models of many architectures, read and loaded as a run does."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import transformers as tf

from actkit.config import Config
from actkit.extraction.models.architecture import Architecture, read_architecture
from actkit.extraction.models.checkpoint import Checkpoint
from actkit.extraction.models.loader import LoadedModel, check_model_options, load_model

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 3}
PIXELS = {"image_size": 32, "patch_size": 8}
T5 = {"vocab_size": 97, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 4, "num_heads": 4}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaConfig(**SMALL, num_key_value_heads=2, max_position_embeddings=64),
    "tied": lambda: tf.LlamaConfig(**SMALL, num_key_value_heads=2, tie_word_embeddings=True),
    "bert": lambda: tf.BertConfig(**SMALL),
    "roberta": lambda: tf.RobertaConfig(**{**SMALL, "pad_token_id": 3}, max_position_embeddings=44),
    "mamba": lambda: tf.MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=4, state_size=4),
    "t5": lambda: tf.T5Config(**T5, num_decoder_layers=2),
    "mpt": lambda: tf.MptConfig(vocab_size=97, d_model=32, n_layers=4, n_heads=4),
    "albert": lambda: tf.AlbertConfig(**SMALL, embedding_size=16),
    "vit": lambda: tf.ViTConfig(**TOWER, **PIXELS),
    "gemma3": lambda: tf.Gemma3Config(
        text_config={**SMALL, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4},
        vision_config={**TOWER, **PIXELS},
        mm_tokens_per_image=4,
        image_token_index=90,
        boi_token_index=91,
        eoi_token_index=92,
    ),
    "llava": lambda: tf.LlavaConfig(
        text_config=tf.LlamaConfig(**SMALL),
        vision_config=tf.CLIPVisionConfig(**TOWER, **PIXELS),
        image_token_index=90,
    ),
    "qwen2.5-vl": lambda: tf.Qwen2_5_VLConfig(
        text_config={
            **SMALL,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "depth": 3,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 4,
            "window_size": 16,
            "fullatt_block_indexes": [2],
        },
        image_token_id=90,
        video_token_id=93,
        vision_start_token_id=91,
        vision_end_token_id=92,
    ),
}


def options(folder: Path, **changes: Any) -> Config:
    return Config(model=str(folder), data="data.csv", out="run", **changes)


def read(folder: Path) -> Architecture:
    architecture, faults = read_architecture(Checkpoint("tiny", folder, ""))
    assert faults == []
    assert architecture is not None
    return architecture


def load(folder: Path, **changes: Any) -> LoadedModel:
    config, architecture = options(folder, **changes), read(folder)
    assert check_model_options(architecture, config) == []
    return load_model(Checkpoint("tiny", folder, ""), architecture, config)


@contextmanager
def held_privately() -> Iterator[Callable[[], int]]:
    """Watch by how much the memory of this process grows, without pages of mapped files; yield the most."""
    process, over = psutil.Process(), threading.Event()

    def held() -> int:
        memory = process.memory_info()
        return int(memory.rss - memory.shared)

    before = most = held()

    def watch() -> None:
        nonlocal most
        while not over.wait(0.005):
            most = max(most, held())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: most - before
    finally:
        over.set()
        thread.join()
