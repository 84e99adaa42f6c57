"""Load a model as it was asked for, and say beforehand what of it can be captured."""

import copy
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from logging import getLogger
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
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING
from transformers.utils import logging

from ...config import Config
from ...errors import Fault, ModelError
from .agreement import check_blocks
from .checkpoints import Checkpoint
from .padding import check_generation, check_padding
from .sites import Sites, find_blocks, find_decoder, find_sites

# weights that no block reads, and that base checkpoints often lack
_UNUSED_WEIGHTS = ("pooler.",)
# how vision configs name their number of blocks
_DEPTHS = ("num_hidden_layers", "depth", "num_layers")
# packages that values of options need, by the names that they are imported by
_NEEDED = {
    **dict.fromkeys(("auto", "balanced", "balanced_low_0", "sequential"), ("accelerate",)),
    **dict.fromkeys(("8bit", "4bit"), ("accelerate", "bitsandbytes")),
    "flash_attention_2": ("flash_attn",),
    "flash_attention_3": ("flash_attn_interface",),
}
# and installed by, where those differ
# bitsandbytes picks outliers over a whole batch, pads included
_QUANTIZED = 0.2
_FROM_PIP = {"flash_attn": "flash-attn", "flash_attn_interface": "flash-attn-3"}


@dataclass(frozen=True)
class Architecture:
    """What a checkpoint's config says, without its weights.

    Parameters
    ----------
    config
        The config of the text decoder or encoder.
    full
        The whole config.
    n_layers, hidden
        Number of blocks, and width of the residual stream.
    positions
        Longest prompt that the model was made for, or None where its config names none.
    boundary
        The length past which the model turns the positions of a whole batch differently (longrope), or None.
    components
        Each component that can be captured, and the number of blocks that have it.
    can_generate
        Whether it can continue a prompt.
    """

    config: PreTrainedConfig
    full: PreTrainedConfig
    n_layers: int
    hidden: int
    positions: int | None
    boundary: int | None
    components: Mapping[str, int]
    can_generate: bool


@dataclass(frozen=True)
class LoadedModel:
    """A model whose blocks were found and checked.

    Parameters
    ----------
    model
        As it was loaded; with its language modelling head where it generates.
    base
        The module that is called with images, without the head.
    sites
        The module that is called with text, its blocks and their components.
    vision
        The blocks of the vision tower; empty without one.
    device
        Where inputs go.
    dtype
        As what the weights lie, or are computed with where they are quantized.
    """

    model: PreTrainedModel
    base: PreTrainedModel
    sites: Sites
    vision: tuple[nn.Module, ...]
    device: torch.device
    dtype: torch.dtype

    @property
    def overflow_cause(self) -> str:
        """What most likely makes the model give NaN and Inf, as the end of a message; or nothing."""
        if self.dtype != torch.float16:
            return ""
        return (
            "; most likely float16 overflows, which ends at 65,504: load the weights as bfloat16 or float32"
        )


def read_architecture(checkpoint: Checkpoint) -> tuple[Architecture | None, list[Fault]]:
    """Read the config of a checkpoint, and find on a skeleton without weights what can be captured."""
    where = f"model {checkpoint.name}"
    try:
        full = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # configs validate themselves, each in its own way
        what = f"its config cannot be read: {_first_line(error)}"
        return None, [Fault(where, what, f"transformers {transformers.__version__}")]
    try:
        skeleton = _skeleton(full)
    except Exception as error:  # as above
        what = f"`{full.model_type}` cannot be built: {_first_line(error)}"
        return None, [Fault(where, what, "not supported yet")]
    decoder = find_decoder(skeleton)
    config = decoder.config
    n_layers, hidden = getattr(config, "num_hidden_layers", None), getattr(config, "hidden_size", None)
    if not isinstance(n_layers, int) or not isinstance(hidden, int):
        what = f"`{full.model_type}` names no number of layers or no width"
        return None, [Fault(where, what, "not supported yet")]
    if decoder.main_input_name != "input_ids":
        return None, [Fault(where, f"`{full.model_type}` reads {decoder.main_input_name}, not text")]
    try:
        sites = find_sites(skeleton, n_layers)
    except ModelError as error:
        return None, [Fault(where, str(error), "not supported yet")]
    components = {"residual": n_layers, **{name: len(found) for name, found in sites.components.items()}}
    if vision := find_vision(skeleton):
        components["vision"] = len(vision)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None:
        positions -= _reserved_positions(decoder)
    boundary = _boundary(getattr(config, "rope_parameters", None), config)
    return Architecture(
        config, full, n_layers, hidden, positions, boundary, components, _can_generate(full)
    ), []


def check_model_options(architecture: Architecture | None, config: Config) -> list[Fault]:
    """Find out, before anything is loaded, whether a model can be loaded as it was asked for.

    Parameters
    ----------
    architecture
        None where it could not be read; the options are checked as far as they can be.
    config
        The options.
    """
    faults = check_device(config.device)
    for option in ("device_map", "quantization", "attn_implementation"):
        value = getattr(config, option)
        missing = [name for name in _NEEDED.get(value, ()) if importlib.util.find_spec(name) is None]
        for name in (_FROM_PIP.get(name, name) for name in missing):
            faults.append(Fault(option, f"`{value}` needs {name}", f"pip install {name}"))
    if (config.attn_implementation or "").startswith("flash") and not torch.cuda.is_available():
        faults.append(
            Fault("attn_implementation", "flash attention needs a CUDA device", "try sdpa or eager")
        )
    if architecture is None:
        return faults
    if config.generate is not None and not architecture.can_generate:
        what = f"`{architecture.full.model_type}` reads text, and cannot continue it"
        faults.append(Fault("generate", what, "leave it out"))
    if config.quantization is not None and getattr(architecture.full, "quantization_config", None):
        mend = "leave it out, or use the unquantized checkpoint"
        faults.append(Fault("quantization", "the checkpoint is quantized already", mend))
    if config.attn_implementation is not None and not any(f.where == "attn_implementation" for f in faults):
        faults += _check_attention(architecture.full, config.attn_implementation)
    return faults


def _check_attention(full: PreTrainedConfig, implementation: str) -> list[Fault]:
    try:
        _skeleton(full, attn_implementation=implementation)
    except (ValueError, ImportError) as error:
        reason = _first_line(error).partition(". ")[0]  # then it asks for issues and pull requests
        what = f"`{full.model_type}` cannot use `{implementation}`: {reason}"
        return [Fault("attn_implementation", what, "leave it out, or try eager")]
    return []


def load_model(checkpoint: Checkpoint, architecture: Architecture, config: Config) -> LoadedModel:
    """Load the weights, and find and check the blocks.

    Raises
    ------
    ModelError
        Where weights are missing, the blocks cannot be told for certain, or prompts of a batch cannot be
        kept apart.
    """
    if config.quantization is not None:
        # at every product of matrices it says that it rounds what goes in
        getLogger("bitsandbytes").setLevel("ERROR")
    device = pick_device(config.device)
    placed = config.device_map is not None or config.quantization is not None
    try:
        with _quiet():
            model, info = _auto_class(
                architecture.full, generate=config.generate is not None
            ).from_pretrained(
                checkpoint.folder,
                dtype="auto" if config.dtype == "auto" else getattr(torch, config.dtype),
                device_map=config.device_map or ({"": device} if placed else None),
                quantization_config=_quantization(config, architecture),
                attn_implementation=config.attn_implementation,
                ignore_mismatched_sizes=True,  # the error would not name them
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise ModelError(f"{checkpoint.name}: cannot be loaded: {error}") from error
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(_UNUSED_WEIGHTS))
    missing += [f"{key} {tuple(is_)} not {tuple(should)}" for key, is_, should in info["mismatched_keys"]]
    if missing:
        wrong = ", ".join(missing[:5])
        raise ModelError(f"{checkpoint.name}: weights are missing or of another shape: {wrong}")
    if not placed:
        model = model.to(device)
    model.eval()
    base = model.base_model if config.generate is not None else model
    sites = find_sites(base, architecture.n_layers)
    vision = find_vision(base)
    loaded = LoadedModel(model, base, sites, vision, _input_device(model), sites.decoder.dtype)
    check_blocks(sites, loaded.device, architecture.hidden)
    if config.batch_size != 1:
        tolerance = _QUANTIZED if config.quantization else None
        check_padding(sites, loaded.device, tolerance=tolerance)
        if config.generate is not None:
            check_padding(sites, loaded.device, "left", tolerance=tolerance)
            check_generation(model, loaded.device, tolerance=tolerance)
    return loaded


def pick_device(name: str) -> torch.device:
    """Return the device that a name stands for; `auto` is the first accelerator, else the CPU."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def check_device(name: str) -> list[Fault]:
    """Find out, without using it, whether a device is there."""
    kind, _, index = name.partition(":")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        return [
            Fault(
                "device",
                f"there is no `{name}` here",
                f"{torch.cuda.device_count()} CUDA devices; try auto",
            )
        ]
    if kind == "mps" and not torch.backends.mps.is_available():
        return [Fault("device", "there is no `mps` here", "try auto")]
    return []


def find_vision(base: PreTrainedModel) -> tuple[nn.Module, ...]:
    """Return the blocks of the vision tower; empty without one, or where they cannot be told for certain."""
    tower = base.get_encoder(modality="image")
    config = getattr(base.config, "vision_config", None)
    count = next((getattr(config, name) for name in _DEPTHS if hasattr(config, name)), None)
    if tower is base or not isinstance(tower, PreTrainedModel) or not isinstance(count, int):
        return ()
    try:
        return find_blocks(tower, count)
    except ModelError:
        return ()


def _auto_class(full: PreTrainedConfig, *, generate: bool = False) -> Any:
    """Return transformers' own class for loading a config."""
    if _has_decoder_beside(full) and type(full) in AutoModelForTextEncoding._model_mapping:
        return AutoModelForTextEncoding  # without the decoder
    if not generate:
        return AutoModel
    images = type(full) in AutoModelForImageTextToText._model_mapping
    return AutoModelForImageTextToText if images else AutoModelForCausalLM


def _skeleton(full: PreTrainedConfig, **options: Any) -> PreTrainedModel:
    """Build the model on the meta device: all modules, no memory."""
    with _quiet(), torch.device("meta"):
        model: PreTrainedModel = _auto_class(full).from_config(copy.deepcopy(full), **options)
    return model


def _has_decoder_beside(full: PreTrainedConfig) -> bool:
    # the config of a checkpoint that holds a T5 encoder alone denies it
    return bool(full.is_encoder_decoder or type(full).is_encoder_decoder)


def _can_generate(full: PreTrainedConfig) -> bool:
    if _has_decoder_beside(full):
        return False  # its encoder is what is captured
    # encoders have a language modelling head too, which is of use only where they are made decoders
    if type(full) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(full, "is_decoder", False):
        return False
    return any(
        type(full) in auto._model_mapping for auto in (AutoModelForCausalLM, AutoModelForImageTextToText)
    )


def _boundary(rope: Any, config: PreTrainedConfig) -> int | None:
    """Return the length at which longrope takes other factors, for the longest prompt and all beside it."""
    if not isinstance(rope, Mapping):
        return None
    if rope.get("rope_type") != "longrope":  # some architectures have one for each type of layer
        return next((found for part in rope.values() if (found := _boundary(part, config))), None)
    own = rope.get("original_max_position_embeddings")
    found = own or getattr(config, "original_max_position_embeddings", None)
    return int(found) if found else None


def _reserved_positions(decoder: PreTrainedModel) -> int:
    """Return how many positions are no prompt's: RoBERTa and its kin count from their pad id on."""
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


def _quantization(config: Config, architecture: Architecture) -> BitsAndBytesConfig | None:
    if config.quantization is None:
        return None
    dtype = config.dtype if config.dtype != "auto" else (architecture.full.dtype or "float32")
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_8bit=config.quantization == "8bit",
        load_in_4bit=config.quantization == "4bit",
        bnb_4bit_compute_dtype=str(dtype).removeprefix("torch."),
    )


def _input_device(model: PreTrainedModel) -> torch.device:
    """Return where token ids go: to the embedding, which accelerate may have put anywhere."""
    embedding = model.get_input_embeddings()
    hook = getattr(embedding, "_hf_hook", None)
    placed = getattr(hook, "execution_device", None)
    return torch.device(placed if placed is not None else next(embedding.parameters()).device)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' own bar and load report out of ours: what matters raises an error."""
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
