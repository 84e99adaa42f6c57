"""Small random vision-language models, saved like those on the Hub, and reference values of transformers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from actkit.demo import MODEL

PATCH = 14
LAYERS, VISION_LAYERS = 4, 3
_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
_VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": VISION_LAYERS,
    "num_attention_heads": 2,
    "patch_size": PATCH,
}
# chat templates from the Hub, shortened to a single turn
_GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' -%}
{% set first = messages[0]['content'][0]['text'] + '\n\n' %}{% set messages = messages[1:] %}
{%- else %}{% set first = '' %}{% endif %}
{%- for message in messages %}{{ '<start_of_turn>' + message['role'] + '\n' + first }}
{%- for item in message['content'] %}
{%- if item['type'] == 'image' %}{{ '<start_of_image>' }}
{%- else %}{{ item['text'] | trim }}{% endif %}{% endfor %}{{ '<end_of_turn>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
_QWEN = """{% if messages[0]['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for item in message['content'] %}
{%- if item['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>
{%- else %}{{ item['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
_LLAVA = """{% for message in messages %}{{ message['role'].upper() + ': ' }}
{%- for item in message['content'] %}{% if item['type'] == 'image' %}{{ '<image>\n' }}{% endif %}{% endfor %}
{%- for item in message['content'] %}{% if item['type'] == 'text' %}{{ item['text'] + ' ' }}{% endif %}
{%- endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""


class Qwen2_5_VLProcessor(tf.Qwen2_5_VLProcessor):  # noqa: N801 - the name that is saved
    """The processor without its video part, which needs torchvision."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]


@dataclass(frozen=True)
class Vlm:
    """Recipe of a model.

    Parameters
    ----------
    model
        Name of the transformers class.
    control
        Tokens written by the template and the processor.
    named
        Control tokens that the processor looks up in the tokenizer by name.
    template
        Chat template.
    configure
        Function that returns the config, given the ids of the control tokens and the size of the vocabulary.
    image_processor
        Function that returns the image processor.
    processor
        Class of the processor.
    saved
        Arguments of the processor that are saved.
    image_token
        Token at the positions of the image.
    """

    model: str
    control: tuple[str, ...]
    template: str
    configure: Callable[[dict[str, int], int], Any]
    image_processor: Callable[[], Any]
    processor: Callable[..., Any]
    image_token: str
    named: Mapping[str, str] = field(default_factory=dict)
    saved: Mapping[str, Any] = field(default_factory=dict)


def _gemma(ids: dict[str, int], vocabulary: int) -> Any:
    # sliding windows shorter than the prompts; images attend to all of their own positions
    text = {**_TEXT, "vocab_size": vocabulary, "sliding_window": 8, "query_pre_attn_scalar": 8}
    layers = ["sliding_attention"] * (LAYERS - 1) + ["full_attention"]
    return tf.Gemma3Config(
        text_config={**text, "layer_types": layers},
        vision_config={"model_type": "siglip_vision_model", **_VISION, "image_size": 56},
        mm_tokens_per_image=4,
        image_token_index=ids["<image_soft_token>"],
        boi_token_index=ids["<start_of_image>"],
        eoi_token_index=ids["<end_of_image>"],
    )


def _qwen(ids: dict[str, int], vocabulary: int) -> Any:
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]}
    vision = {
        "hidden_size": 24,
        "out_hidden_size": 32,
        "intermediate_size": 40,
        "depth": VISION_LAYERS,
        "num_heads": 2,
        "patch_size": PATCH,
        "window_size": 4 * PATCH,
        "fullatt_block_indexes": [1],
    }
    return tf.Qwen2_5_VLConfig(
        text_config={**_TEXT, "vocab_size": vocabulary, "rope_parameters": rope},
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )


def _llava(ids: dict[str, int], vocabulary: int) -> Any:
    return tf.LlavaConfig(
        text_config={"model_type": "llama", **_TEXT, "vocab_size": vocabulary},
        vision_config={"model_type": "clip_vision_model", **_VISION, "image_size": 42},
        image_token_index=ids["<image>"],
        image_seq_length=9,
    )


VLMS = {
    "gemma3": Vlm(
        "Gemma3ForConditionalGeneration",
        ("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"),
        _GEMMA,
        _gemma,
        lambda: Gemma3ImageProcessorPil(size={"height": 56, "width": 56}, image_seq_length=4),
        tf.Gemma3Processor,
        "<image_soft_token>",
        {
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
        {"image_seq_length": 4},
    ),
    "qwen2_5_vl": Vlm(
        "Qwen2_5_VLForConditionalGeneration",
        (
            "<|im_start|>",
            "<|im_end|>",
            "<|vision_start|>",
            "<|vision_end|>",
            "<|image_pad|>",
            "<|video_pad|>",
        ),
        _QWEN,
        _qwen,
        lambda: Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 24}),
        Qwen2_5_VLProcessor,
        "<|image_pad|>",
    ),
    "llava": Vlm(
        "LlavaForConditionalGeneration",
        ("<image>",),
        _LLAVA,
        _llava,
        lambda: CLIPImageProcessorPil(
            size={"shortest_edge": 42}, crop_size={"height": 42, "width": 42}, do_center_crop=True
        ),
        tf.LlavaProcessor,
        "<image>",
        {},
        {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    ),
}


def build_vlm(name: str, folder: Path) -> Path:
    """Save a small random model, its tokenizer and its processor; return the folder."""
    vlm = VLMS[name]
    tokenizer = tf.AutoTokenizer.from_pretrained(MODEL, extra_special_tokens=dict(vlm.named))
    # as on the Hub, control tokens that are not named special tokens
    tokenizer.add_tokens([tf.AddedToken(token, special=True, normalized=False) for token in vlm.control])
    tokenizer.chat_template = vlm.template
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in vlm.control}
    torch.manual_seed(0)
    config = vlm.configure(ids, len(tokenizer))
    model = getattr(tf, vlm.model)(config)
    with torch.no_grad():
        for parameter in model.parameters():  # errors would be too small to notice with small weights
            if parameter.ndim > 1:
                parameter.normal_(std=0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor = vlm.processor(vlm.image_processor(), tokenizer, chat_template=vlm.template, **vlm.saved)
    processor.save_pretrained(folder)
    return folder


@torch.inference_mode()
def ask(name: str, folder: Path, text: str, image: Image.Image, system: str | None = None) -> dict[str, Any]:
    """Return reference values for an image and a text, computed as the transformers documentation describes.

    Returns
    -------
    dict
        ``ids``; ``image``, the mask of image tokens; ``embedding`` and ``residual`` of the decoder;
        ``vision``, the output of the blocks of the vision tower, dims ``(layer, patch, hidden)``.
    """
    vlm = VLMS[name]
    if name == "qwen2_5_vl":
        parts = Qwen2VLImageProcessorPil.from_pretrained(folder), tf.AutoTokenizer.from_pretrained(folder)
        processor: Any = Qwen2_5_VLProcessor(*parts, chat_template=vlm.template)
    else:
        processor = tf.AutoProcessor.from_pretrained(folder)
    content = [{"type": "image", "image": image}, {"type": "text", "text": text}]
    messages = [{"role": "user", "content": content}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    model: Any = getattr(tf, vlm.model).from_pretrained(folder).eval()
    for module in model.modules():
        if isinstance(module, tf.PreTrainedModel):
            module.config.tie_last_hidden_states = False  # before the final norm
    states = model(**inputs, output_hidden_states=True, use_cache=False).hidden_states
    ids = inputs["input_ids"][0].numpy()
    return {
        "ids": ids,
        "image": ids == processor.tokenizer.convert_tokens_to_ids(vlm.image_token),
        "embedding": states[0][0].numpy(),
        "residual": torch.cat(states[1:]).numpy(),
        "vision": _vision(model.model, inputs),
    }


def _vision(model: Any, inputs: Mapping[str, torch.Tensor]) -> np.ndarray:
    if "image_grid_thw" not in inputs:
        seen = model.vision_tower(inputs["pixel_values"], output_hidden_states=True)
        return torch.cat(seen.hidden_states[1:]).numpy()
    tower = model.visual
    states = tower(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"], output_hidden_states=True)
    # the tower orders patches by windows of 2 × 2 groups of 2 × 2 patches, the processor by rows of groups
    (_, height, width) = inputs["image_grid_thw"][0].tolist()
    rows, columns = height // 2, width // 2
    order = sorted(range(rows * columns), key=lambda g: (g // columns // 2, g % columns // 2, g))
    groups = [order.index(group) for group in range(rows * columns)]
    stacked = torch.stack(tuple(states.hidden_states[1:]))
    return stacked.reshape(len(stacked), rows * columns, 4, -1)[:, groups].reshape(stacked.shape).numpy()
