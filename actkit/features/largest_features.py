"""The largest active features of tokens, computed in blocks."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from .sae import Sae

_WEIGHTS = ("w_enc", "b_enc", "w_dec", "b_dec", "threshold")
_BLOCK_VALUES = 2**25  # features computed at once, 134 MB
_BLOCK_TOKENS = 4096


class LargestFeatures(NamedTuple):
    """The largest features of tokens.

    Attributes
    ----------
    indices, values
        Indices and values of active features, largest first, dims ``(token, k)``; both 0 where there are
        fewer.
    n_active, total
        Number of active features and sum of their values, including those beyond k, dims ``(token,)``.
    """

    indices: np.ndarray
    values: np.ndarray
    n_active: np.ndarray
    total: np.ndarray


def on_device(sae: Sae, device: torch.device) -> Sae:
    """Return an autoencoder whose weights are on a device."""
    weights = {name: getattr(sae, name) for name in _WEIGHTS}
    moved: dict[str, Any] = {name: None if w is None else w.to(device) for name, w in weights.items()}
    return replace(sae, **moved)


def weights_digest(sae: Sae) -> str:
    """Return the SHA-256 of what determines the features: the weights and the architecture."""
    total = hashlib.sha256(f"{sae.architecture} {sae.k} {sae.subtract_b_dec}".encode())
    for name in _WEIGHTS:
        tensor = getattr(sae, name)
        if tensor is not None:
            total.update(f" {name} {tuple(tensor.shape)} ".encode())
            total.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).data)
    return total.hexdigest()


@torch.inference_mode()
def count_active(sae: Sae, x: np.ndarray) -> np.ndarray:
    """Return the number of active features of tokens, dims ``(token,)``.

    Parameters
    ----------
    sae
        The autoencoder, on the device that computes.
    x
        Activations, dims ``(token, hidden)``, float32.
    """
    counts = [(features != 0).sum(dim=-1).cpu().numpy() for features in _blocks(sae, x)]
    return np.concatenate(counts) if counts else np.zeros(0, dtype=np.int64)


@torch.inference_mode()
def largest_features(
    sae: Sae, x: np.ndarray, k: int, dtype: str = "float32", indices: str = "uint32"
) -> LargestFeatures:
    """Return the largest active features of tokens.

    Parameters
    ----------
    sae
        The autoencoder, on the device that computes.
    x
        Activations, dims ``(token, hidden)``, float32.
    k
        Number of entries of each token.
    dtype
        Dtype of the values, ``float32`` or ``float16``.
    indices
        Dtype of the indices and counts.

    Notes
    -----
    Values are those of :meth:`~actkit.features.sae.Sae.encode` for blocks of consecutive tokens, whose length
    depends on the number of features alone.
    """
    result = LargestFeatures(
        np.zeros((len(x), k), dtype=indices),
        np.zeros((len(x), k), dtype=dtype),
        np.zeros(len(x), dtype=indices),
        np.zeros(len(x), dtype=np.float32),
    )
    start, kept = 0, min(k, sae.n_features)
    for features in _blocks(sae, x):
        rows = slice(start, start + len(features))
        value, index = features.topk(kept, dim=-1)
        with np.errstate(over="ignore"):  # the caller looks for values beyond float16
            result.values[rows, :kept] = value.cpu().numpy()
        is_entry = result.values[rows, :kept] != 0  # small values are 0 in float16
        result.indices[rows, :kept] = np.where(is_entry, index.cpu().numpy(), 0)
        result.n_active[rows] = (features != 0).sum(dim=-1).cpu().numpy()
        result.total[rows] = features.sum(dim=-1, dtype=_sum_dtype(features)).cpu().numpy()
        start = rows.stop
    return result


def _blocks(sae: Sae, x: np.ndarray) -> Iterator[torch.Tensor]:
    """Yield the features of blocks of tokens, dims ``(token, feature)``."""
    step = max(1, min(_BLOCK_TOKENS, _BLOCK_VALUES // sae.n_features))
    for start in range(0, len(x), step):
        yield sae.encode(torch.from_numpy(x[start : start + step]).to(sae.w_enc.device))


def _sum_dtype(features: torch.Tensor) -> torch.dtype:
    # MPS has no float64
    return torch.float32 if features.device.type == "mps" else torch.float64
