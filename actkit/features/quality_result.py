"""The result of `sae_quality`: its variables, and its file in the folder of the autoencoders."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ..errors import CorruptError
from ..regular_files import read_regular
from ..stats.selection import check_counts
from ..store.result_files import read_result, write_result
from ..store.writer import storage_errors

QUALITY = "quality.safetensors"
_CFG = "cfg.json"
_MOST_CFG = 10**6
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


def write_quality(folder: Path, quality: xr.Dataset) -> None:
    """Write a result into the folder of its autoencoders; it is valid as long as they stay the same.

    Raises
    ------
    StorageError
        If the disk cannot be written.
    """
    with storage_errors("cannot write the quality of the autoencoders", "choose another folder"):
        write_result(folder / QUALITY, quality, key=weights_key(folder))


def read_quality(folder: Path) -> xr.Dataset | None:
    """Return the result for the autoencoders in a folder; None if there is none, or they have changed since.

    Examples
    --------
    >>> read_quality(Path("no such folder")) is None
    True
    """
    try:
        return read_result(folder / QUALITY, key=weights_key(folder))
    except (OSError, ValueError, KeyError, CorruptError):
        return None


def weights_key(folder: Path) -> str:
    """Return a digest of the descriptions of the autoencoders, which contain that of their weights."""
    hashed = hashlib.sha256()
    for name, cfg in _cfgs(folder).items():
        hashed.update(json.dumps([name, cfg], sort_keys=True).encode())
    return hashed.hexdigest()


def _cfgs(folder: Path) -> dict[str, dict[str, Any]]:
    paths = sorted(folder.glob(f"*/{_CFG}"))
    return {path.parent.name: json.loads(read_regular(path, _MOST_CFG)) for path in paths}
