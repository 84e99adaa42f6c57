"""Loading of models with the options of a run, and checks of these options before loading."""

import importlib.util
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedConfig, PreTrainedModel

from ...config import Config
from ...errors import Fault, InputError, ModelError
from .adapters import check_adapter_options, merge_adapter
from .architecture import (
    Architecture,
    auto_class,
    build_skeleton,
    can_generate,
    find_vision,
    first_line,
    quiet,
)
from .checkpoint import Checkpoint
from .devices import check_device, pick_device
from .gguf_files import isolate, read_gguf
from .hook_points import HookPoints, find_hook_points
from .load_options import cast_unquantized, is_quantized, load_options
from .quantization import FROM_PIP, check_quantization
from .validation import check_blocks, check_generation, check_padding
from .weight_keys import check_keys

# packages required by values of options, by import name
_REQUIRED_PACKAGES = {
    **dict.fromkeys(("auto", "balanced", "balanced_low_0", "sequential"), ("accelerate",)),
    **dict.fromkeys(("8bit", "4bit"), ("accelerate", "bitsandbytes")),
    "flash_attention_2": ("flash_attn",),
    "flash_attention_3": ("flash_attn_interface",),
}


@dataclass(frozen=True)
class LoadedModel:
    """A loaded model whose blocks have been located and validated.

    Parameters
    ----------
    model
        Model as loaded; includes its language modelling head if that was requested.
    base
        Module that is called with images, without the head.
    hook_points
        Module that is called with text, its blocks and their components.
    vision
        Blocks of the vision tower; empty if there is none.
    device
        Device of the inputs.
    dtype
        Dtype of the weights, or compute dtype if they are quantized.
    """

    model: PreTrainedModel
    base: PreTrainedModel
    hook_points: HookPoints
    vision: tuple[nn.Module, ...]
    device: torch.device
    dtype: torch.dtype

    @property
    def overflow_cause(self) -> str:
        """Most likely cause of NaN and Inf, as the end of a message; empty if unknown."""
        if self.dtype != torch.float16:
            return ""
        return (
            "; most likely float16 overflows (its largest value is 65,504): "
            "load the weights as bfloat16 or float32"
        )


def check_model_options(
    architecture: Architecture | None, config: Config, checkpoint: Checkpoint | None = None
) -> list[Fault]:
    """Check, before loading, that a model can be loaded with the options of a run.

    Parameters
    ----------
    architecture
        Architecture of the model; None if it cannot be read, and options are checked as far as possible.
    config
        Options of the run.
    checkpoint
        The model; None if it was not found.
    """
    faults = check_device(config.device)
    if checkpoint is not None and checkpoint.adapter is not None:
        faults += check_adapter_options(config, architecture.quantization if architecture else None)
    if config.quantization is not None and checkpoint is not None and checkpoint.gguf is not None:
        problem = f"the GGUF file is already quantized: {checkpoint.gguf.quantization}"
        faults.append(Fault("quantization", problem, "leave it out, or use the model's safetensors"))
    for option in ("device_map", "quantization", "attn_implementation"):
        value = getattr(config, option)
        missing = [
            name for name in _REQUIRED_PACKAGES.get(value, ()) if importlib.util.find_spec(name) is None
        ]
        for name in (FROM_PIP.get(name, name) for name in missing):
            faults.append(Fault(option, f"`{value}` needs {name}", f"pip install {name}"))
    if (config.attn_implementation or "").startswith("flash") and not torch.cuda.is_available():
        faults.append(
            Fault("attn_implementation", "flash attention needs a CUDA device", "try sdpa or eager")
        )
    if architecture is None:
        return faults
    if config.generate is not None and not architecture.can_generate:
        problem = f"`{architecture.full.model_type}` cannot generate text"
        faults.append(Fault("generate", problem, "leave it out"))
    if architecture.quantization is not None:
        if config.quantization is not None:
            hint = "leave it out, or use the unquantized checkpoint"
            faults.append(Fault("quantization", "the checkpoint is already quantized", hint))
        if not any(fault.where == "device" for fault in faults):
            faults += check_quantization(architecture.quantization, config.model, pick_device(config.device))
    if config.attn_implementation is not None and not any(f.where == "attn_implementation" for f in faults):
        faults += _check_attention(architecture.full, config.attn_implementation)
    return faults


def _check_attention(full: PreTrainedConfig, implementation: str) -> list[Fault]:
    try:
        build_skeleton(full, attn_implementation=implementation)
    except (ValueError, ImportError) as error:
        reason = first_line(error).partition(". ")[0]  # the rest asks to open an issue or pull request
        problem = f"`{full.model_type}` cannot use `{implementation}`: {reason}"
        return [Fault("attn_implementation", problem, "leave it out, or try eager")]
    return []


def load_model(
    checkpoint: Checkpoint, architecture: Architecture, config: Config, *, head: bool = False
) -> LoadedModel:
    """Load the weights, then locate and validate the blocks.

    Parameters
    ----------
    checkpoint, architecture
        The model.
    config
        Options of the run.
    head
        Whether to keep the language modelling head even if the run does not generate text.

    Raises
    ------
    ModelError
        If weights are missing, the blocks cannot be identified unambiguously, or padding would change the
        activations of other prompts in a batch.
    """
    options = load_options(checkpoint, architecture.full, config, pick_device(config.device))
    quantized = is_quantized(architecture.full, config)
    if quantized:
        # it warns at every matrix product that it rounds the inputs
        getLogger("bitsandbytes").setLevel("ERROR")
    # the tensor names of an adapter may refer to the model with its head
    keeps_head = head or config.generate is not None
    with_head = keeps_head or (checkpoint.adapter is not None and can_generate(architecture.full))
    try:
        with quiet(), isolate(checkpoint.folder, checkpoint.gguf) as (folder, source):
            model, info = auto_class(architecture.full, generate=with_head).from_pretrained(
                folder, **options, **source
            )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise ModelError(f"{checkpoint.name}: cannot be loaded: {error}") from error
    if with_head and not keeps_head:  # missing weights of the unused head do not matter
        base_keys = [key for key in info["missing_keys"] if key.startswith(f"{model.base_model_prefix}.")]
        info = {**info, "missing_keys": base_keys}
    check_keys(model, info, checkpoint.tensor_names, checkpoint.name)
    if architecture.quantization is not None:
        cast_unquantized(model, options["dtype"])
    if checkpoint.adapter is not None:
        merge_adapter(checkpoint.adapter, model)
    if with_head and not keeps_head:
        model = model.base_model
    if "device_map" not in options:
        model = model.to(pick_device(config.device))
    model.eval()
    base = model.base_model if keeps_head else model
    hook_points = find_hook_points(base, architecture.n_layers)
    vision = find_vision(base)
    loaded = LoadedModel(model, base, hook_points, vision, _input_device(model), hook_points.decoder.dtype)
    if loaded.dtype != options["dtype"]:  # some quantizers choose another
        actual, requested = (str(dtype).removeprefix("torch.") for dtype in (loaded.dtype, options["dtype"]))
        raise ModelError(
            f"{checkpoint.name}: computes in {actual}, but {requested} was requested; set dtype={actual}"
        )
    check_blocks(hook_points, loaded.device, architecture.hidden)
    if config.batch_size != 1:
        check_padding(hook_points, loaded.device)
        if config.generate is not None:
            check_padding(hook_points, loaded.device, "left")
            check_generation(model, loaded.device)
    return loaded


def _input_device(model: PreTrainedModel) -> torch.device:
    """Return the device of token ids: that of the embedding, which accelerate may place anywhere."""
    embedding = model.get_input_embeddings()
    hook = getattr(embedding, "_hf_hook", None)
    placed = getattr(hook, "execution_device", None)
    return torch.device(placed if placed is not None else next(embedding.parameters()).device)


def convert_gguf(file: Path, folder: Path) -> None:
    """Convert a GGUF model to a folder of dequantized bfloat16 safetensors, which loads much faster.

    Parameters
    ----------
    file
        Path of the GGUF file.
    folder
        New folder for the weights, config, tokenizer and chat template.

    Raises
    ------
    InputError
        If the file is damaged or not a GGUF file.
    """
    header, faults = read_gguf(file)
    if faults:
        raise InputError(faults)
    with quiet(), isolate(file.parent, header) as (source, options):
        tokenizer = AutoTokenizer.from_pretrained(source, **options, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
            **options,
            local_files_only=True,
        )
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
