"""PyTorch files with one tensor per language and layer, as scripts with forward hooks save them."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .cube_blocks import Selected, model_layers

_CHECKPOINTS = "layer_checkpoints"


def write_pt(chosen: Selected, out: Path) -> None:
    """Write one file per layer and language, one with all layers per language, and the metadata."""
    from torch import from_numpy

    (out / _CHECKPOINTS).mkdir()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S")
    model = str(chosen.cube.attrs["model"])
    for language, rows in chosen.rows.items():
        shared_fields = {
            "genders": chosen.column("gender", rows),
            "image_ids": chosen.column("image_id" if "image_id" in chosen.cube.coords else "sample_id", rows),
            "hidden_size": chosen.hidden,
            "model": model,
            "timestamp": stamp,
        }
        tensors = {}
        with _staged(out, chosen, rows) as arrays:
            for layer, array in arrays.items():
                tensors[layer] = from_numpy(array)
                checkpoint = {"layer": layer, "activations": tensors[layer], **shared_fields}
                _save(checkpoint, out / _CHECKPOINTS / f"layer_{layer}_{language}.pt")
            all_layers = {
                "activations": tensors,
                "layers": list(tensors),
                **shared_fields,
                "num_layers_extracted": len(tensors),
            }
            _save(all_layers, out / f"activations_{language}_all_layers.pt")
    _write_metadata(chosen, out, stamp)


def _save(content: dict[str, Any], path: Path) -> None:
    """Save with torch, but raise errors of the disk as OSError instead of torch's RuntimeError."""
    import torch

    try:
        with path.open("wb") as file:  # given a path, torch would not report why it cannot write
            torch.save(content, file)
    except RuntimeError as error:
        disk_error = error.__context__
        if not isinstance(disk_error, OSError):
            raise
        disk_error.filename = str(path)
        raise disk_error from error


@contextmanager
def _staged(out: Path, chosen: Selected, rows: np.ndarray) -> Iterator[dict[int, np.ndarray]]:
    """Yield layers as memory-mapped arrays, since torch needs each at once and it may not fit into RAM."""
    path = out / ".staged"
    shape = (len(chosen.layers), len(rows), chosen.n_tokens(rows), chosen.hidden)
    # not written through the memory map, because there a full disk would kill the process
    with path.open("xb") as file:
        for layer in chosen.layers:
            for block in chosen.blocks(layer, rows):
                file.write(np.ascontiguousarray(block.values, dtype=np.float32).data)
    array = np.memmap(path, dtype=np.float32, mode="c", shape=shape)  # torch requires writable arrays
    try:
        yield {layer: array[index] for index, layer in enumerate(chosen.layers)}
    finally:
        del array
        os.unlink(path)


def _write_metadata(chosen: Selected, out: Path, stamp: str) -> None:
    attrs = chosen.cube.attrs
    options = json.loads(str(attrs.get("options", "{}")))
    summary: dict[str, Any] = {
        "model": str(attrs["model"]),
        "hidden_size": chosen.hidden,
        "num_layers": model_layers(chosen.cube),
        "layers_extracted": list(chosen.layers),
        "num_samples": len(chosen.all_rows),
        "batch_size": options.get("batch_size", "auto"),
        "checkpoint_interval": 1,
        "extraction_date": stamp,
        "methodology": f"{chosen.component} of each block, exported by actkit",
    }
    (out / "extraction_metadata.json").write_text(json.dumps(summary, indent=2), encoding="utf-8")
