"""Architecture of a checkpoint, read from its config and a skeleton of the model without weights."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForTextEncoding,
    PreTrainedConfig,
    PreTrainedModel,
    modeling_gguf_pytorch_utils,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING
from transformers.utils import logging

from ...errors import Fault, ModelError
from .adapters import check_adapter
from .checkpoint import Checkpoint
from .gguf_files import check_contents, isolate
from .hook_points import find_blocks, find_decoder, find_hook_points
from .quantization import Quantization, read_quantization

# attributes of vision configs with the number of blocks
_DEPTHS = ("num_hidden_layers", "depth", "num_layers")


@dataclass(frozen=True)
class Architecture:
    """Properties of a model that are known without its weights.

    Parameters
    ----------
    config
        Config of the text decoder or encoder.
    full
        Full config.
    n_layers, hidden
        Number of blocks and width of the residual stream.
    positions
        Longest prompt that the model was made for; None if its config gives no limit.
    boundary
        Longrope boundary: the prompt length beyond which the model applies different rotary frequencies to a
        whole batch; None if it does not use longrope.
    components
        Number of blocks of each component that can be captured.
    can_generate
        Whether the model can continue a prompt.
    quantization
        Quantization of the checkpoint; None if its weights are not quantized.
    """

    config: PreTrainedConfig
    full: PreTrainedConfig
    n_layers: int
    hidden: int
    positions: int | None
    boundary: int | None
    components: Mapping[str, int]
    can_generate: bool
    quantization: Quantization | None = None


def read_architecture(checkpoint: Checkpoint) -> tuple[Architecture | None, list[Fault]]:
    """Read the config of a checkpoint and locate its hook points on a skeleton without weights."""
    where = f"model {checkpoint.name}"
    try:
        with isolate(checkpoint.folder, checkpoint.gguf) as (folder, source), quiet():
            full = AutoConfig.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True, **source
            )
    except Exception as error:  # configs validate themselves and raise any exception
        problem = f"its config cannot be read: {first_line(error)}"
        return None, [Fault(where, problem, f"transformers {transformers.__version__}")]
    if checkpoint.gguf is not None:
        full.dtype = getattr(torch, checkpoint.gguf.dtype)
    try:
        skeleton = build_skeleton(full)
    except Exception as error:  # as above
        problem = f"`{full.model_type}` cannot be built: {first_line(error)}"
        return None, [Fault(where, problem, "not supported yet")]
    decoder = find_decoder(skeleton)
    config = decoder.config
    n_layers, hidden = getattr(config, "num_hidden_layers", None), getattr(config, "hidden_size", None)
    if not isinstance(n_layers, int) or not isinstance(hidden, int):
        problem = f"the config of `{full.model_type}` lacks the number of layers or the hidden size"
        return None, [Fault(where, problem, "not supported yet")]
    if decoder.main_input_name != "input_ids":
        return None, [Fault(where, f"`{full.model_type}` takes {decoder.main_input_name}, not text")]
    try:
        hook_points = find_hook_points(skeleton, n_layers)
    except ModelError as error:
        return None, [Fault(where, str(error), "not supported yet")]
    components = {
        "residual": n_layers,
        **{name: len(modules) for name, modules in hook_points.components.items()},
    }
    if vision := find_vision(skeleton):
        components["vision"] = len(vision)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None:
        positions -= _count_reserved(decoder)
    boundary = _find_boundary(getattr(config, "rope_parameters", None), config)
    faults = _check_extras(checkpoint, full)
    return Architecture(
        config,
        full,
        n_layers,
        hidden,
        positions,
        boundary,
        components,
        can_generate(full),
        read_quantization(full),
    ), faults


def _check_extras(checkpoint: Checkpoint, full: PreTrainedConfig) -> list[Fault]:
    """Find tensors of a GGUF file or an adapter that match no module of the model."""
    if checkpoint.gguf is None and checkpoint.adapter is None:
        return []
    skeleton = build_skeleton(full, generate=can_generate(full))
    faults = check_contents(checkpoint.gguf, skeleton) if checkpoint.gguf is not None else []
    return faults + (check_adapter(checkpoint.adapter, skeleton) if checkpoint.adapter is not None else [])


def find_vision(base: PreTrainedModel) -> tuple[nn.Module, ...]:
    """Return the blocks of the vision tower; empty if there is none or its blocks are ambiguous."""
    tower = base.get_encoder(modality="image")
    config = getattr(base.config, "vision_config", None)
    count = next((getattr(config, name) for name in _DEPTHS if hasattr(config, name)), None)
    if tower is base or not isinstance(tower, PreTrainedModel) or not isinstance(count, int):
        return ()
    try:
        return find_blocks(tower, count)
    except ModelError:
        return ()


def auto_class(full: PreTrainedConfig, *, generate: bool = False) -> Any:
    """Return the auto class of transformers that loads a config."""
    if _is_encoder_decoder(full) and type(full) in AutoModelForTextEncoding._model_mapping:
        return AutoModelForTextEncoding  # loads the encoder only
    if not generate:
        return AutoModel
    images = type(full) in AutoModelForImageTextToText._model_mapping
    return AutoModelForImageTextToText if images else AutoModelForCausalLM


def build_skeleton(full: PreTrainedConfig, *, generate: bool = False, **options: Any) -> PreTrainedModel:
    """Build the model on the meta device, with all modules but no memory."""
    with quiet(), torch.device("meta"):
        model: PreTrainedModel = auto_class(full, generate=generate).from_config(
            copy.deepcopy(full), **options
        )
    return model


def _is_encoder_decoder(full: PreTrainedConfig) -> bool:
    # the config of a checkpoint that holds only a T5 encoder says False, its class True
    return bool(full.is_encoder_decoder or type(full).is_encoder_decoder)


def can_generate(full: PreTrainedConfig) -> bool:
    """Return whether the captured part of a model can continue a prompt."""
    if _is_encoder_decoder(full):
        return False  # only the encoder is captured
    # encoders also have a language modelling head, which generates only if they are configured as decoders
    if type(full) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(full, "is_decoder", False):
        return False
    return any(
        type(full) in auto._model_mapping for auto in (AutoModelForCausalLM, AutoModelForImageTextToText)
    )


def _find_boundary(rope: Any, config: PreTrainedConfig) -> int | None:
    """Return the longrope boundary: the length beyond which all prompts of a batch use other factors."""
    if not isinstance(rope, Mapping):
        return None
    if rope.get("rope_type") != "longrope":  # some architectures have one entry per layer type
        return next((boundary for part in rope.values() if (boundary := _find_boundary(part, config))), None)
    length = rope.get("original_max_position_embeddings")
    length = length or getattr(config, "original_max_position_embeddings", None)
    return int(length) if length else None


def _count_reserved(decoder: PreTrainedModel) -> int:
    """Return the number of reserved positions: the RoBERTa family numbers positions from the pad id."""
    return next(
        (
            module.padding_idx + 1
            for name, module in decoder.named_modules()
            if name.endswith("position_embeddings")
            and isinstance(module, nn.Embedding)
            and module.padding_idx is not None
        ),
        0,
    )


def first_line(error: Exception) -> str:
    """Return the first line of an error message."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars and reports of transformers; all relevant problems raise errors."""
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    gguf: Any = modeling_gguf_pytorch_utils
    bar, gguf.tqdm = gguf.tqdm, logging.tqdm  # the module's own tqdm ignores the setting
    try:
        yield
    finally:
        gguf.tqdm = bar
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
