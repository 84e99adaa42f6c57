"""Load a model, find its blocks, and make sure that what they give is what transformers gives."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from ..config import Config
from ..errors import Fault, ModelError
from .checkpoints import Checkpoint

# weights that no block reads, and that base checkpoints often lack
_UNUSED_WEIGHTS = ("pooler.",)
# positions that a model reserves, out of max_position_embeddings: RoBERTa counts from its pad id on
_RESERVED_POSITIONS = {"roberta": 2, "xlm-roberta": 2, "camembert": 2, "xlm-roberta-xl": 2}


@dataclass(frozen=True)
class Architecture:
    """What a checkpoint's config says, without its weights.

    Parameters
    ----------
    config
        The config of the text decoder or encoder.
    n_layers, hidden
        Number of blocks, and width of the residual stream.
    positions
        Longest prompt that the model was made for, or None where its config names none.
    """

    config: PreTrainedConfig
    n_layers: int
    hidden: int
    positions: int | None


@dataclass(frozen=True)
class LoadedModel:
    """A model whose blocks were found and checked.

    Parameters
    ----------
    decoder
        The module that is called; the blocks are its own.
    blocks
        The blocks, in order.
    device, dtype
        Where and as what its weights lie.
    """

    decoder: PreTrainedModel
    blocks: tuple[nn.Module, ...]
    device: torch.device
    dtype: torch.dtype


def read_architecture(checkpoint: Checkpoint) -> tuple[Architecture | None, list[Fault]]:
    """Read the config of a checkpoint."""
    where = f"model {checkpoint.name}"
    try:
        config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # configs validate themselves, each in its own way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return None, [
            Fault(
                where,
                f"its config cannot be read: {reason}",
                f"transformers {transformers.__version__}",
            )
        ]
    text = config.get_text_config()
    n_layers, hidden = getattr(text, "num_hidden_layers", None), getattr(text, "hidden_size", None)
    if not isinstance(n_layers, int) or not isinstance(hidden, int):
        return None, [
            Fault(
                where,
                f"`{config.model_type}` names no number of layers or no width",
                "not supported yet",
            )
        ]
    positions = getattr(text, "max_position_embeddings", None)
    if positions is not None:
        positions -= _RESERVED_POSITIONS.get(text.model_type, 0)
    return Architecture(text, n_layers, hidden, positions), []


def load_model(checkpoint: Checkpoint, architecture: Architecture, config: Config) -> LoadedModel:
    """Load the weights and find the blocks.

    Raises
    ------
    ModelError
        Where weights are missing, or the blocks cannot be told for certain.
    """
    device = pick_device(config.device)
    try:
        with _quiet():
            model, info = AutoModel.from_pretrained(
                checkpoint.folder,
                dtype="auto" if config.dtype == "auto" else getattr(torch, config.dtype),
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"{checkpoint.name}: cannot be loaded: {error}") from error
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(_UNUSED_WEIGHTS))
    if missing or info["mismatched_keys"]:
        wrong = ", ".join([*missing, *map(str, info["mismatched_keys"])][:5])
        raise ModelError(f"{checkpoint.name}: weights are missing or of another shape: {wrong}")
    decoder: Any = find_decoder(model).to(device)  # type: ignore[arg-type]
    decoder.eval()
    blocks = find_blocks(decoder, architecture.n_layers)
    loaded = LoadedModel(decoder, blocks, device, next(decoder.parameters()).dtype)
    check_blocks(loaded, architecture)
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


def find_decoder(model: PreTrainedModel) -> PreTrainedModel:
    """Return the module that owns the block list, asking ``get_decoder()`` while there is a deeper one."""
    while hasattr(model, "get_decoder"):
        inner = model.get_decoder()  # type: ignore[no-untyped-call]
        if inner is model or not isinstance(inner, PreTrainedModel):
            break
        model = inner
    return model


def find_blocks(decoder: PreTrainedModel, n_layers: int) -> tuple[nn.Module, ...]:
    """Return the blocks: the one module list of that length, whose class transformers records itself.

    Raises
    ------
    ModelError
        Where no list, or more than one, fits.
    """
    recorded = _recorded_class(decoder)
    candidates = [
        (name, module)
        for name, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == n_layers
        and all(isinstance(block, recorded) for block in module)
    ]
    if len(candidates) != 1:
        found = ", ".join(name for name, _ in candidates) or "none"
        name = type(decoder).__name__
        raise ModelError(f"{name}: cannot tell its {n_layers} blocks for certain; these lists fit: {found}")
    return tuple(candidates[0][1])


def _recorded_class(decoder: PreTrainedModel) -> type[nn.Module]:
    record: Any = (getattr(decoder, "_can_record_outputs", None) or {}).get("hidden_states")
    record = getattr(record, "target_class", record)
    return record if isinstance(record, type) else nn.Module


def block_output(output: Any) -> torch.Tensor:
    """Return the residual stream that a block gives, alone or first in a tuple."""
    tensor = output[0] if isinstance(output, tuple) else output
    if not isinstance(tensor, torch.Tensor):
        raise ModelError(f"a block gave a {type(tensor).__name__}, not a tensor")
    return tensor


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


@contextmanager
def hooks(handles: list[torch.utils.hooks.RemovableHandle]) -> Iterator[None]:
    """Remove hooks at the end, whatever happens."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def check_blocks(loaded: LoadedModel, architecture: Architecture) -> None:
    """Compare the captured streams with transformers' own hidden states, on a few tokens.

    Raises
    ------
    ModelError
        Where shapes or numbers differ: the architecture would be captured wrongly.
    """
    captured: list[torch.Tensor] = []
    ids = torch.arange(1, 5, device=loaded.device)[None]
    handles = [
        block.register_forward_hook(lambda _m, _i, out: captured.append(block_output(out)))
        for block in loaded.blocks
    ]
    with hooks(handles):
        expected = loaded.decoder(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            use_cache=False,
            output_hidden_states=True,
        ).hidden_states
    name = type(loaded.decoder).__name__
    shape = (1, ids.shape[1], architecture.hidden)
    if len(captured) != architecture.n_layers or any(tensor.shape != shape for tensor in captured):
        shapes = sorted({tuple(tensor.shape) for tensor in captured})
        raise ModelError(
            f"{name}: its {len(captured)} blocks gave shapes {shapes}, not {architecture.n_layers} × {shape}"
        )
    if expected is None or len(expected) != architecture.n_layers + 1:
        raise ModelError(f"{name}: transformers gives no hidden states of each block to check against")
    # the last entry is after the final norm
    for layer, (ours, theirs) in enumerate(zip(captured[:-1], expected[1:-1], strict=True)):
        if not torch.equal(ours, theirs):
            raise ModelError(
                f"{name}: block {layer} does not give hidden_states[{layer + 1}] of transformers"
            )
