"""Folders as scripts wrote them that know nothing of actkit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

LANGUAGES = ("arabic", "english")
LENGTHS = {"arabic": [3, 5, 1, 4], "english": [2, 2, 6, 3]}
GENDERS = ["male", "female", "male", "female"]
IMAGES = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
HIDDEN = 6
LAYERS = (0, 1, 2)


def padded(language: str, layer: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return activations with pads 0, dims ``(sample, token, hidden)``."""
    lengths = torch.tensor(LENGTHS[language])
    seed = 10 * layer + LANGUAGES.index(language)
    values = torch.randn(
        len(lengths), int(lengths.max()), HIDDEN, generator=torch.Generator().manual_seed(seed)
    )
    values[torch.arange(values.shape[1]) >= lengths[:, None]] = 0
    return values.to(dtype)


def checkpoint(language: str, layer: int) -> dict[str, Any]:
    return {
        "layer": layer,
        "activations": padded(language, layer),
        "genders": GENDERS,
        "image_ids": IMAGES,
        "hidden_size": HIDDEN,
        "model": "old/model",
        "timestamp": "2024-01-01",
    }


def checkpoint_path(folder: Path, language: str, layer: int) -> Path:
    return folder / "layer_checkpoints" / f"layer_{layer}_{language}.pt"


def save_checkpoint(folder: Path, language: str, number: int, **other: Any) -> Path:
    path = checkpoint_path(folder, language, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({**checkpoint(language, number), **other}, path)
    return path


def save_checkpoints(folder: Path) -> Path:
    """Write a file for each layer and language, and the metadata."""
    for language in LANGUAGES:
        for layer in LAYERS:
            save_checkpoint(folder, language, layer)
    metadata = {
        "model": "old/model",
        "hidden_size": HIDDEN,
        "num_layers": 12,
        "layers_extracted": list(LAYERS),
        "num_samples": 8,
        "batch_size": 4,
        "checkpoint_interval": 10,
        "extraction_date": "2024-01-01",
        "methodology": "forward hooks",
    }
    (folder / "extraction_metadata.json").write_text(json.dumps(metadata))
    return folder


def save_whole(folder: Path, language: str, dtype: torch.dtype = torch.float32) -> Path:
    """Write one file with all layers of a language."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "activations": {layer: padded(language, layer, dtype) for layer in LAYERS},
        "genders": GENDERS,
        "image_ids": IMAGES,
        "layers": list(LAYERS),
        "hidden_size": HIDDEN,
        "timestamp": "2024-01-01",
        "model": "old/model",
        "num_layers_extracted": len(LAYERS),
    }
    path = folder / f"activations_{language}_all_layers.pt"
    torch.save(content, path)
    return path


def chunk(number: int, layer: int, *, left: bool = False) -> dict[str, np.ndarray]:
    """Return four samples; what stands at pads is not 0, as models leave it."""
    rng = np.random.default_rng(100 * number + layer)
    lengths = np.array(list(LENGTHS.values())[number])
    mask = np.arange(lengths.max()) < lengths[:, None]
    mask = (mask[:, ::-1] if left else mask).astype(np.int64)
    return {
        "activations": rng.standard_normal((*mask.shape, HIDDEN)).astype(np.float32),
        "attention_mask": mask,
        "token_ids": np.random.default_rng(number).integers(5, 90, mask.shape),
    }


def save_chunks(folder: Path, *, left: bool = False) -> Path:
    for layer in LAYERS:
        layer_folder = folder / f"layer_{layer}"
        layer_folder.mkdir(parents=True)
        for number in (0, 1):
            np.savez_compressed(layer_folder / f"chunk_{number:06d}.npz", **chunk(number, layer, left=left))
    return folder


def batch(number: int, layer: int) -> dict[str, np.ndarray]:
    """Return three samples, in an order of their own."""
    rng = np.random.default_rng(1000 * number + layer)
    return {
        "activations": rng.standard_normal((3, HIDDEN)).astype(np.float32),
        "task_id": np.array([f"task-{number}-{row}" for row in range(3)]),
        "sample_idx": np.array([2, 0, 1]) + 3 * number,
    }


def save_batches(folder: Path) -> Path:
    folder.mkdir(parents=True)
    batches = []
    for layer in LAYERS:
        for number in (0, 1):
            file = f"layer_{layer}_batch_{number:06d}.npz"
            np.savez(folder / file, **batch(number, layer))
            batches.append({"batch_id": number, "layer": layer, "file": file, "n_samples": 3})
    metadata = {
        "model_name": "old/model",
        "layers_extracted": list(LAYERS),
        "hidden_dim": HIDDEN,
        "num_layers_extracted": len(LAYERS),
        "total_samples": 6,
        "batches": batches,
    }
    (folder / "metadata.json").write_text(json.dumps(metadata))
    return folder
