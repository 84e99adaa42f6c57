"""Sparse cubes of known feature values, as `actkit.encode` makes them."""

from typing import Any

import numpy as np
import xarray as xr

from actkit.schema import TokenKind


def sparse_cube(
    dense: np.ndarray,
    *,
    language: str | np.ndarray = "english",
    n_tokens: np.ndarray | None = None,
    **labels: Any,
) -> xr.Dataset:
    """Return the sparse cube of features, dims ``(layer, sample, token, feature)``.

    The first token is special. Values there and at padding are kept as well, so that masks matter.
    """
    n_layers, n_samples, n_positions, n_features = dense.shape
    lengths = np.full(n_samples, n_positions) if n_tokens is None else n_tokens
    n_active = (dense != 0).sum(axis=-1)
    k = max(int(n_active.max()), 1)
    # active features first, in ascending order; the rest stands for nothing
    order = np.argsort(dense == 0, axis=-1, kind="stable")[..., :k]
    value = np.take_along_axis(dense, order, axis=-1).astype(np.float32)
    index = np.where(value != 0, order, 0).astype(np.uint16)
    real = np.arange(n_positions) < lengths[:, None]
    kinds = np.where(real, TokenKind.TEXT, TokenKind.PAD).astype(np.int8)
    kinds[:, 0] = TokenKind.SPECIAL
    names = np.array([f"t{at}" for at in range(n_positions)], dtype=object)
    dims = ("layer", "sample", "token")
    cube = xr.Dataset(
        {
            "feature_index": ((*dims, "k"), index),
            "feature_value": ((*dims, "k"), value),
            "n_active": (dims, n_active.astype(np.uint16)),
        },
        coords={
            "layer": np.arange(n_layers),
            "sample": np.arange(n_samples),
            "token": np.arange(n_positions),
            "n_tokens": ("sample", lengths.astype(np.int32)),
            "token_kind": (("sample", "token"), kinds),
            "token_text": (("sample", "token"), np.where(real, names, "")),
            "sample_id": ("sample", np.array([f"id-{at:04d}" for at in range(n_samples)], dtype=object)),
            "language": ("sample", np.broadcast_to(np.array(language, dtype=object), n_samples).copy()),
            "text": ("sample", np.array([f"text {at}" for at in range(n_samples)], dtype=object)),
        },
        attrs={"n_features": n_features, "first_is_content": True, "model": "synthetic"},
    )
    for name, values in labels.items():
        cube.coords[name] = ("sample", np.asarray(values), {"label": True})
    return cube


def twins(
    n_pairs: int = 40,
    *,
    n_layers: int = 2,
    n_features: int = 30,
    n_tokens: int = 4,
    density: float = 0.3,
    shift: np.ndarray | None = None,
    seed: int = 0,
) -> tuple[xr.Dataset, np.ndarray]:
    """Return a sparse cube of twins that share most of their features, and its dense values.

    The second twin of a pair, which is female, has a feature more often by ``shift``, dims ``(feature,)``.
    """
    rng = np.random.default_rng(seed)
    shape = (n_layers, n_pairs, n_tokens, n_features)
    shared = rng.exponential(size=shape) * (rng.random(shape) < density)
    dense = np.repeat(shared, 2, axis=1)
    own = rng.random(dense.shape) < 0.15
    dense = np.where(own, rng.exponential(size=dense.shape) * (rng.random(dense.shape) < density), dense)
    if shift is not None:
        dense[:, 1::2] += (rng.random((n_layers, n_pairs, n_tokens, n_features)) < shift) * 1.0
    dense = dense.astype(np.float32)
    gender = np.array(["male", "female"] * n_pairs, dtype=object)
    lengths = rng.integers(3, n_tokens + 1, 2 * n_pairs)
    pair = np.repeat([f"pair {at}" for at in range(n_pairs)], 2).astype(object)
    cube = sparse_cube(dense, n_tokens=lengths, gender=gender, pair=pair)
    mask = (np.arange(n_tokens) > 0) & (np.arange(n_tokens) < lengths[:, None])
    return cube, dense.astype(np.float64) * mask[..., None]


def means(dense: np.ndarray, cube: xr.Dataset) -> np.ndarray:
    """Return the means over content tokens, dims ``(layer, sample, feature)``."""
    count = cube.n_tokens.values - 1
    return np.asarray(dense.sum(axis=2) / count[:, None])
