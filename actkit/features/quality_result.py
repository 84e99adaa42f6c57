"""The result of `sae_quality`: its variables, and its file in the folder of the autoencoders."""

import hashlib
import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import xarray as xr
from safetensors import SafetensorError

from ..errors import ActkitError
from ..regular_files import open_regular
from ..stats.selection import check_counts
from ..store.result_files import read_result, write_result
from ..store.writer import storage_errors
from .sae_layouts import LAYOUTS, OTHERS, walk

QUALITY = "quality.safetensors"
# raised by files that others may have written
_UNREADABLE = (
    ActkitError,
    AttributeError,
    IndexError,
    KeyError,
    MemoryError,
    OSError,
    RecursionError,
    SafetensorError,
    TypeError,
    ValueError,
)
# variable, and what it is
MEASURES: Mapping[str, str] = {
    "fvu": "Fraction of variance unexplained on held-out tokens.",
    "fvu_pca": "FVU of as many first principal components as features are active.",
    "fvu_pca_top": "FVU of as many largest coefficients of the PCA as features are active.",
    "fvu_random": "FVU of as many active features that were not trained.",
    "explained_variance": "Explained variance, weighted by the variance of each dimension.",
    "l0": "Mean number of active features of a token.",
    "n_features": "Number of features.",
    "n_never_active": "Number of features that are active in no held-out token.",
    "n_dead": "Number of features that were dead at the end of training.",
    "tokens_per_feature": "Training tokens per feature.",
    "share_of_extreme_norms": "Share of tokens whose norm exceeds 10 times the median.",
    "found_again": "Share of active features with a counterpart in the autoencoder of another seed.",
    "found_again_random": "The same share for a random dictionary.",
    "ce": "Next-token cross-entropy of the intact model, in nats.",
    "ce_sae": "Cross-entropy with the reconstruction in place of the output.",
    "ce_zero": "Cross-entropy with zero in place of the output.",
    "ce_mean": "Cross-entropy with the mean in place of the output.",
    "ce_recovered": "Share of the loss added by zero ablation that the reconstruction avoids.",
    "ce_recovered_from_mean": "Share of the loss added by mean ablation that the reconstruction avoids.",
}
# headings of tables that show the most important measures
COLUMNS: Mapping[str, str] = {
    "fvu": "FVU",
    "fvu_pca": "PCA",
    "fvu_pca_top": "PCA top",
    "fvu_random": "random",
    "l0": "L0",
    "n_features": "features",
    "n_dead": "dead",
    "n_never_active": "never",
    "tokens_per_feature": "tokens/f",
    "found_again": "again",
    "ce_recovered": "CE zero",
    "ce_recovered_from_mean": "CE mean",
}
OF_FEATURES: Mapping[str, str] = {
    "frequency": "Share of held-out tokens in which the feature is active.",
    "mean": "Mean value where the feature is active.",
    "max": "Largest value on held-out tokens.",
}


def quality_dataset(measured: Mapping[int, Mapping[str, Any]], settings: Mapping[str, Any]) -> xr.Dataset:
    """Return the measures of all layers as a Dataset; what was not measured is NaN.

    Parameters
    ----------
    measured
        Measures by layer: numbers, and arrays with dims ``(feature,)``.
    settings
        Attributes of the result.
    """
    layers = list(measured)
    n_features = max(int(values["n_features"]) for values in measured.values())
    result = xr.Dataset(coords={"layer": layers, "feature": np.arange(n_features)}, attrs=dict(settings))
    for name, meaning in MEASURES.items():
        values = [float(measured[layer].get(name, np.nan)) for layer in layers]
        result[name] = ("layer", np.array(values), {"long_name": meaning})
    for name, meaning in OF_FEATURES.items():
        table = np.full((len(layers), n_features), np.nan)
        for row, layer in enumerate(layers):
            table[row, : len(measured[layer][name])] = measured[layer][name]
        result[name] = (("layer", "feature"), table, {"long_name": meaning})
    return result


def best_layers(quality: xr.Dataset, count: int = 3) -> list[int]:
    """Return the layers with the lowest FVU, in ascending order, for the option `layers` of the next run.

    Parameters
    ----------
    quality
        From :func:`actkit.sae_quality`.
    count
        Number of layers, if there are as many.
    """
    check_counts(count=count)
    return sorted(quality.layer.values[np.argsort(quality.fvu.values, kind="stable")[:count]].tolist())


def write_quality(folder: Path, quality: xr.Dataset) -> bool:
    """Write a result into the folder of its autoencoders; it is valid as long as they stay the same.

    Returns
    -------
    bool
        False if the result is too large, and was not written.

    Raises
    ------
    StorageError
        If the disk cannot be written.
    """
    with storage_errors("cannot write the quality of the autoencoders", "choose another folder"):
        return write_result(folder / QUALITY, quality, key=weights_key(folder))


def read_quality(folder: Path) -> xr.Dataset | None:
    """Return the result for the autoencoders in a folder; None if there is none, or they have changed since.

    Examples
    --------
    >>> read_quality(Path("no such folder")) is None
    True
    """
    if not (folder / QUALITY).is_file():
        return None
    try:
        quality = read_result(folder / QUALITY, key=weights_key(folder))
        return quality if _is_quality(quality) else None
    except _UNREADABLE:
        return None


def _is_quality(result: xr.Dataset) -> bool:
    """Return whether a Dataset, which others may have written, has the form of a result."""
    weights = json.loads(str(result.attrs["weights"]))
    dims = dict.fromkeys(MEASURES, ("layer",)) | dict.fromkeys(OF_FEATURES, ("layer", "feature"))
    return (
        isinstance(weights, dict)
        and type(result.attrs["n_predictions"]) is int
        and all(result.indexes[name].dtype.kind in "iu" for name in ("layer", "feature"))
        and result.indexes["layer"].is_unique
        and all(result[name].dims == of and result[name].dtype.kind == "f" for name, of in dims.items())
    )


def weights_key(folder: Path) -> str:
    """Return a digest of the files of the autoencoders in a folder, those that `load_saes` finds.

    Raises
    ------
    InputError
        If the folder holds too many files.
    OSError
        If a file cannot be read.
    """
    files = walk(folder)
    present, names = set(files), set[str]()
    for name in files:
        path = PurePosixPath(name)
        if (layout := LAYOUTS.get(path.name)) is not None:
            others = {os.path.normpath(path.parent / other) for other in OTHERS[layout]}
            names |= {name, *(others & present)}
    hashed = hashlib.sha256()
    for name in sorted(names):
        status = (folder / name).stat()
        digest = _digest(folder / name, status.st_size, status.st_mtime_ns)
        hashed.update(json.dumps([name, status.st_size, digest]).encode())
    return hashed.hexdigest()


@lru_cache(maxsize=4096)
def _digest(path: Path, _size: int, _mtime: int) -> str:
    """Return the SHA-256 of a file, which is read again only if its size or time has changed."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
