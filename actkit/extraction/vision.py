"""The positions of a vision tower: how many an image has, and whose each is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers.vision_utils import get_vision_window_index

from ..errors import Fault
from .models.loading import Architecture

Features = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class _Tower:
    """How a tower lays out the patches of a batch.

    Parameters
    ----------
    packed
        All images stand in one sequence, as ``image_grid_thw`` says; else one row is one image.
    class_token
        One position stands before the patches of each image.
    windows
        The patches of each image are put into windows.
    """

    packed: bool = False
    class_token: bool = False
    windows: bool = False


# by the model_type of the model, which decides what a row of pixels is, and of its vision config
_TOWERS = {
    ("gemma3", "siglip_vision_model"): _Tower(),
    ("llava", "siglip_vision_model"): _Tower(),
    ("llava", "clip_vision_model"): _Tower(class_token=True),
    ("qwen2_5_vl", "qwen2_5_vl_vision"): _Tower(packed=True, windows=True),
}


def check_vision(architecture: Architecture) -> list[Fault]:
    """Find out whether it is known what the blocks of a model's vision tower give."""
    if _kind(architecture) in _TOWERS:
        return []
    model, tower = _kind(architecture)
    what = f"the vision tower of `{model}` cannot be captured yet" + (f" (`{tower}`)" if tower else "")
    known = ", ".join(sorted({name for name, _ in _TOWERS}))
    return [Fault("layers", what, f"leave out vision; known: {known}")]


def vision_hidden(architecture: Architecture) -> int:
    """Return the width of the vision tower."""
    return int(architecture.full.vision_config.hidden_size)


def vision_lengths(architecture: Architecture, features: Features) -> int:
    """Return how many positions a sample has in the vision tower.

    Parameters
    ----------
    architecture
        What the model's config says.
    features
        What the processor gave for the sample.
    """
    if _TOWERS[_kind(architecture)].packed:
        return int(features["image_grid_thw"].prod(dim=-1).sum())
    return len(features["pixel_values"]) * _positions(architecture, features)


@dataclass(frozen=True)
class Layout:
    """Where the patches of a batch lie in what a block of the tower gives.

    Parameters
    ----------
    lengths
        How many positions each sample has.
    groups
        Where each group of patches, in the order of the processor, stands; None where the tower keeps
        that order.
    """

    lengths: list[int]
    groups: torch.Tensor | None


def lay_out(architecture: Architecture, features: Sequence[Features]) -> Layout:
    """Find out where the patches of a batch lie, which is the same for every block.

    Parameters
    ----------
    architecture
        What the model's config says.
    features
        What the processor gave for each sample of the batch.
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
    """Part what a block of the vision tower gives for a batch.

    Parameters
    ----------
    output
        Of the block.
    layout
        Of the batch.

    Returns
    -------
    list of torch.Tensor
        One a sample, dims ``(token, hidden)``; patches are in the order of the processor.
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
    """Return how many positions each image has."""
    size = int(architecture.full.vision_config.patch_size)
    height, width = features["pixel_values"].shape[-2:]
    return (height // size) * (width // size) + int(_TOWERS[_kind(architecture)].class_token)
