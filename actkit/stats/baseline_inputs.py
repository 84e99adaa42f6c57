"""Inputs of the probes that do not use the layers: embedding, text, and length."""

from collections.abc import Iterator

import dask.base
import numpy as np
import xarray as xr

from . import selection
from .lazy_blocks import apply_to_samples

BASELINES = ("embedding", "tfidf", "length")


def baseline_inputs(vectors: xr.DataArray, embedding: xr.DataArray | None) -> dict[str, xr.DataArray]:
    """Return the input of each baseline by name, lazy if the vectors are.

    Parameters
    ----------
    vectors
        Vectors of samples, with the coordinates ``text`` and ``n_tokens``.
    embedding
        From :func:`mean_embedding`, of the same samples; without it, there is no such baseline.
    """
    inputs = {
        "tfidf": xr.DataArray(vectors.text.variable),
        "length": xr.DataArray(vectors.n_tokens.variable.astype(np.float64)),
    }
    if dask.base.is_dask_collection(vectors):
        inputs = {name: array.chunk() for name, array in inputs.items()}
    return inputs if embedding is None else {"embedding": embedding, **inputs}


def mean_embedding(cube: xr.Dataset, vectors: selection.Pooling) -> xr.DataArray | None:
    """Return the mean input of the first block over content tokens, dims ``(sample, hidden)``.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    vectors
        ``pooled``, ``last`` or ``prompt_end``, which selects the samples.

    Returns
    -------
    xarray.DataArray or None
        None if the cube lacks embeddings or some tokens.
    """
    part = cube.isel(sample=np.flatnonzero(selection.with_vectors(cube, vectors)))
    if "embedding" not in cube or not selection.holds_all_tokens(part).all():
        return None
    mask = selection.token_mask(part)
    array = part.embedding.transpose("sample", "token", "hidden").expand_dims("layer")
    return apply_to_samples(_means, array, mask, {"hidden": array.sizes["hidden"]})


def _means(layers: Iterator[np.ndarray], mask: np.ndarray) -> np.ndarray:
    (x,) = layers
    return np.stack(
        [rows[included].mean(axis=0, dtype=np.float64) for rows, included in zip(x, mask, strict=True)]
    )
