"""NumPy files of a few samples each, in the layouts that training scripts read."""

import json
from pathlib import Path

import numpy as np
import xarray as xr

from ..stats.whitening import Whitener
from .cube_blocks import Selected

_CHUNK = 32  # samples
_BATCH = 256


def write_npz(chosen: Selected, out: Path, *, whiten: bool = False) -> None:
    """Write chunks with all tokens of a few samples for each layer, whitened on request."""
    rows = chosen.all_rows
    for layer in chosen.layers:
        folder = out / f"layer_{layer}"
        folder.mkdir()
        whitener = None
        if whiten:
            whitener = Whitener.fit(chosen.cube.isel(sample=rows), layer=layer)
            whitener.save(out / f"layer_{layer}_whitening.npz")
        for number, block in enumerate(chosen.blocks(layer, rows, _CHUNK)):
            values = block.values
            if whitener is not None:
                dims = ("sample", "token", "hidden")
                values = whitener.transform(xr.DataArray(values, dims=dims)).values.astype(np.float32)
                values[~block.is_token] = 0
            np.savez_compressed(
                folder / f"chunk_{number:06d}.npz",
                activations=values,
                attention_mask=block.is_token.astype(np.int64),
                token_ids=block.token_ids.astype(np.int64),
            )


def write_batches(chosen: Selected, out: Path) -> None:
    """Write the last content token of each sample in batches, and the metadata."""
    rows = chosen.all_rows
    cube = chosen.cube
    vectors = cube["last"].transpose("layer", "sample", "hidden")
    # an import keeps the names and numbers of samples as labels
    id_column = "task_id" if "task_id" in cube.coords else "sample_id"
    numbers = (cube.sample_idx if "sample_idx" in cube.coords else cube.sample).values
    batches = []
    for layer in chosen.layers:
        for number, start in enumerate(range(0, len(rows), _BATCH)):
            batch_rows = rows[start : start + _BATCH]
            file = f"layer_{layer}_batch_{number:06d}.npz"
            np.savez(
                out / file,
                activations=vectors.sel(layer=layer).isel(sample=batch_rows).values,
                task_id=np.asarray(chosen.column(id_column, batch_rows)),
                sample_idx=numbers[batch_rows],
            )
            batches.append({"batch_id": number, "layer": layer, "file": file, "n_samples": len(batch_rows)})
    summary = {
        "model_name": str(cube.attrs["model"]),
        "layers_extracted": list(chosen.layers),
        "hidden_dim": chosen.hidden,
        "num_layers_extracted": len(chosen.layers),
        "total_samples": len(rows),
        "batches": batches,
    }
    (out / "metadata.json").write_text(json.dumps(summary, indent=2), encoding="utf-8")
