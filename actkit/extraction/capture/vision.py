"""Layout of patches in the outputs of a vision tower."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers.vision_utils import get_vision_window_index

from ...errors import Fault
from ..models.architecture import Architecture

Features = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class _Tower:
    """Layout of the patches of a batch in the outputs of a tower.

    Parameters
    ----------
    packed
        Whether all images form one sequence, described by ``image_grid_thw``; otherwise a row is an image.
    class_token
        Whether one position precedes the patches of each image.
    windows
        Whether the patches of each image are grouped into windows.
    """

    packed: bool = False
    class_token: bool = False
    windows: bool = False


# by model_type of the model, which determines what a row of pixels is, and model_type of its vision config
_TOWERS = {
    ("gemma3", "siglip_vision_model"): _Tower(),
    ("llava", "siglip_vision_model"): _Tower(),
    ("llava", "clip_vision_model"): _Tower(class_token=True),
    ("qwen2_5_vl", "qwen2_5_vl_vision"): _Tower(packed=True, windows=True),
}


def check_vision(architecture: Architecture) -> list[Fault]:
    """Return a fault if the layout of the outputs of a vision tower is unknown."""
    if _kind(architecture) in _TOWERS:
        return []
    model, tower = _kind(architecture)
    message = f"the vision tower of `{model}` cannot be captured yet" + (f" (`{tower}`)" if tower else "")
    known = ", ".join(sorted({name for name, _ in _TOWERS}))
    return [Fault("layers", message, f"leave out vision; known: {known}")]


def vision_hidden(architecture: Architecture) -> int:
    """Return the width of the vision tower."""
    return int(architecture.full.vision_config.hidden_size)


def vision_lengths(architecture: Architecture, features: Features) -> int:
    """Return the number of positions of a sample in the vision tower.

    Parameters
    ----------
    architecture
        Architecture of the model.
    features
        Features of the sample, from the processor.
    """
    if _TOWERS[_kind(architecture)].packed:
        return int(features["image_grid_thw"].prod(dim=-1).sum())
    return len(features["pixel_values"]) * _positions(architecture, features)


@dataclass(frozen=True)
class Layout:
    """Layout of the patches of a batch in the outputs of the tower.

    Parameters
    ----------
    lengths
        Number of positions of each sample.
    groups
        Index of each group of patches of the processor in the output; None if the tower keeps the
        order of the processor.
    """

    lengths: list[int]
    groups: torch.Tensor | None


def lay_out(architecture: Architecture, features: Sequence[Features]) -> Layout:
    """Return the layout of a batch, which is the same for all blocks.

    Parameters
    ----------
    architecture
        Architecture of the model.
    features
        Features of each sample, from the processor.
    """
    lengths = [vision_lengths(architecture, sample) for sample in features]
    if not _TOWERS[_kind(architecture)].windows:
        return Layout(lengths, None)
    config = architecture.full.vision_config
    index, _ = get_vision_window_index(
        torch.cat([sample["image_grid_thw"] for sample in features]).cpu(),
        spatial_merge_size=config.spatial_merge_size,
        window_size=config.window_size,
        patch_size=config.patch_size,
    )
    return Layout(lengths, index.argsort())


def split(output: torch.Tensor, layout: Layout) -> list[torch.Tensor]:
    """Split the output of a block of the vision tower by sample.

    Parameters
    ----------
    output
        Output of the block.
    layout
        Layout of the batch.

    Returns
    -------
    list of torch.Tensor
        One tensor per sample, dims ``(token, hidden)``, with patches in the order of the processor.
    """
    sequence = output.reshape(-1, output.shape[-1])
    if layout.groups is not None:
        # patches that are merged into one token stay together
        grouped = sequence.reshape(len(layout.groups), -1, sequence.shape[-1])
        sequence = grouped[layout.groups.to(grouped.device)].reshape(sequence.shape)
    return list(torch.split(sequence, layout.lengths))


def _kind(architecture: Architecture) -> tuple[str, str]:
    config = getattr(architecture.full, "vision_config", None)
    return architecture.full.model_type, getattr(config, "model_type", "")


def _positions(architecture: Architecture, features: Features) -> int:
    """Return the number of positions of each image."""
    size = int(architecture.full.vision_config.patch_size)
    height, width = features["pixel_values"].shape[-2:]
    return (height // size) * (width // size) + int(_TOWERS[_kind(architecture)].class_token)
