"""Reductions over the positions or the hidden dimension of a packed batch, summed in float64."""

import numpy as np
import torch

from .packing import Packing


def wide(values: torch.Tensor) -> torch.Tensor:
    """Return values in the dtype in which they are summed."""
    # MPS has no float64
    return values.to(torch.float32 if values.device.type == "mps" else torch.float64)


def norms_of(values: torch.Tensor) -> torch.Tensor:
    """Return the L2 norm over hidden of values from :func:`wide`, dims ``(position,)``."""
    norms: torch.Tensor = torch.linalg.vector_norm(values, dim=-1)
    return norms


def means_of(values: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Return the mean over content tokens, dims ``(sample, hidden)``; NaN for samples without any."""
    return means_of_slices(values, packing) if values.device.type == "cpu" else means_of_runs(values, packing)


def means_of_slices(values: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Return the means on the CPU, where sums of slices are fastest and NumPy waits for no other thread."""
    rows = values.numpy()
    means = np.full((len(packing.lengths), rows.shape[1]), np.nan, dtype=rows.dtype)
    for mean, runs, count in zip(means, packing.runs, packing.content_lengths.tolist(), strict=True):
        if count:
            np.add.reduce(rows[runs[0]], axis=0, out=mean)
            for run in runs[1:]:
                mean += rows[run].sum(axis=0)
            mean /= count
    return torch.from_numpy(means)


def means_of_runs(values: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Return the means in few steps and a fixed order, unlike addition by index."""
    # `unsafe` skips checks of the lengths, each of which would wait for the device
    cuts, runs = (packing.on(name, values.device) for name in ("cuts", "run_counts"))
    parts = torch.segment_reduce(values, "sum", lengths=cuts, initial=0, unsafe=True)
    sums = torch.segment_reduce(parts[1::2].contiguous(), "sum", lengths=runs, initial=0, unsafe=True)
    return sums / packing.on("content_lengths", values.device)[:, None]  # 0 / 0 is NaN


def last_of(values: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Return the values at the last content token, dims ``(sample, hidden)``; NaN for samples without any."""
    chosen = values.index_select(0, packing.on("last", values.device))
    if len(packing.with_content) == len(packing.lengths):
        return chosen
    last = values.new_full((len(packing.lengths), values.shape[-1]), torch.nan)
    last[packing.on("with_content", values.device)] = chosen
    return last
