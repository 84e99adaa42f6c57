"""PyTorch files, a tensor for each language and layer, as scripts with forward hooks save them."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .selecting import Selected, model_layers

_CHECKPOINTS = "layer_checkpoints"


def write_pt(chosen: Selected, out: Path) -> None:
    """Write a file for each layer and language, one with all layers for each language, and the metadata."""
    import torch

    (out / _CHECKPOINTS).mkdir()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S")
    model = str(chosen.cube.attrs["model"])
    for language, rows in chosen.rows.items():
        both = {
            "genders": chosen.column("gender", rows),
            "image_ids": chosen.column("image_id" if "image_id" in chosen.cube.coords else "sample_id", rows),
            "hidden_size": chosen.hidden,
            "model": model,
            "timestamp": stamp,
        }
        tensors = {}
        with _staged(out, chosen, rows) as arrays:
            for layer, array in arrays.items():
                tensors[layer] = torch.from_numpy(array)
                told = {"layer": layer, "activations": tensors[layer], **both}
                torch.save(told, out / _CHECKPOINTS / f"layer_{layer}_{language}.pt")
            whole = {
                "activations": tensors,
                "layers": list(tensors),
                **both,
                "num_layers_extracted": len(tensors),
            }
            torch.save(whole, out / f"activations_{language}_all_layers.pt")
    _write_metadata(chosen, out, stamp)


@contextmanager
def _staged(out: Path, chosen: Selected, rows: np.ndarray) -> Iterator[dict[int, np.ndarray]]:
    """Lend layers as arrays that lie in a file: torch wants each whole, and memory may not hold one."""
    path = out / ".staged"
    shape = (len(chosen.layers), len(rows), chosen.n_tokens(rows), chosen.hidden)
    array = np.memmap(path, dtype=np.float32, mode="w+", shape=shape)
    try:
        for place, layer in enumerate(chosen.layers):
            start = 0
            for block in chosen.blocks(layer, rows):
                array[place, start : start + len(block.rows)] = block.values
                start += len(block.rows)
        yield {layer: array[place] for place, layer in enumerate(chosen.layers)}
    finally:
        del array
        os.unlink(path)


def _write_metadata(chosen: Selected, out: Path, stamp: str) -> None:
    attrs = chosen.cube.attrs
    asked = json.loads(str(attrs.get("options", "{}")))
    told: dict[str, Any] = {
        "model": str(attrs["model"]),
        "hidden_size": chosen.hidden,
        "num_layers": model_layers(chosen.cube),
        "layers_extracted": list(chosen.layers),
        "num_samples": len(chosen.every_row),
        "batch_size": asked.get("batch_size", "auto"),
        "checkpoint_interval": 1,
        "extraction_date": stamp,
        "methodology": f"{chosen.component} of each block, exported by actkit",
    }
    (out / "extraction_metadata.json").write_text(json.dumps(told, indent=2), encoding="utf-8")
