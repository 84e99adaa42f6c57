"""Cosines between the directions of one language at two layers, with jackknife intervals over clusters."""

from collections.abc import Sequence

import numpy as np

from .split_halves import Z95, Cells, HalfMeans, deletion_weights

LAYER_SUMMARIES = (
    *("layers", "layers_low", "layers_high"),
    *("layers_disattenuated", "layers_disattenuated_low", "layers_disattenuated_high"),
)


def deletion_changes(
    vectors: np.ndarray, directions: np.ndarray, cells: Sequence[Cells], halves: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return how the products of one layer's directions with those of all layers change without a cluster.

    Parameters
    ----------
    vectors
        Vectors of one layer, dims ``(sample, hidden)``.
    directions
        Directions of all layers, dims ``(layer_2, half, split, language, hidden)``.
    cells
        Samples of each language.
    halves
        From :func:`~actkit.stats.kernels.split_halves.cluster_halves`.

    Returns
    -------
    tuple of numpy.ndarray
        The changes of the products, averaged over splits, dims ``(language, layer_2, cluster)``, and the mean
        squared lengths without each cluster, dims ``(language, cluster)``. NaN for clusters that no half can
        spare.
    """
    n_layers, n_clusters = len(directions), halves.shape[1]
    changes = np.full((len(cells), n_layers, n_clusters), np.nan)
    lengths = np.full((len(cells), n_clusters), np.nan)
    if not np.isfinite(vectors).all():
        return changes, lengths
    for language, part in enumerate(cells):
        means = HalfMeans(vectors, part, halves)
        weights = deletion_weights(part, halves)
        total = np.zeros((n_clusters, n_layers))
        for split, half_of in enumerate(halves):
            for half in (0, 1):
                others = directions[:, 1 - half, split, language].T  # of the half that keeps its clusters
                change = means.changes_in(split, half, others)
                total[half_of == half] += weights[half_of == half, split, None] * change
        changes[language] = total.T
        lengths[language] = means.lengths_without
    return changes, lengths


def layer_cosines(
    directions: np.ndarray,
    changes: np.ndarray,
    lengths: np.ndarray,
    is_reliable: np.ndarray,
    weights: np.ndarray,
) -> np.ndarray:
    """Return cosines between layers, raw and disattenuated, with 95% intervals.

    Parameters
    ----------
    directions
        Directions of the halves in one language, dims ``(layer, half, split, hidden)``.
    changes, lengths
        From :func:`deletion_changes`, dims ``(layer, layer_2, cluster)`` and ``(layer, cluster)``.
    is_reliable
        Whether the direction of each layer differs from noise, dims ``(layer,)``.
    weights
        Weight of each split without a cluster, dims ``(cluster, split)``.

    Returns
    -------
    numpy.ndarray
        ``LAYER_SUMMARIES``, dims ``(summary, layer, layer_2)``. Disattenuated cosines are NaN where a
        direction cannot be told from noise, or where the interval contains every value from -1 to 1.
    """
    first, second = directions[:, 0], directions[:, 1]
    n_layers = len(directions)
    products = np.empty((n_layers, n_layers, directions.shape[2]))
    for split in range(directions.shape[2]):
        crossed = first[:, split] @ second[:, split].T
        products[..., split] = (crossed + crossed.T) / 2
    n_valid = (directions != 0).any(axis=(0, 1, 3)).sum()  # others leave a half without a label
    whole_length = np.square(directions).sum(axis=(1, 2, 3)) / 2 / max(n_valid, 1)
    whole = products.sum(axis=-1) / max(n_valid, 1)
    without = products @ weights.T + (changes + changes.transpose(1, 0, 2)) / 2
    layer = np.arange(n_layers)
    with np.errstate(invalid="ignore", divide="ignore"):
        raw = _intervals(whole / _scale(whole_length), without / _scale(lengths))
        known = is_reliable[:, None] & is_reliable
        true, true_without = whole[layer, layer], without[layer, layer]
        disattenuated = _intervals(whole / _scale(true), without / _scale(true_without))
    undefined = ~known | ((disattenuated[1] == -1) & (disattenuated[2] == 1))
    undefined[layer, layer] = ~is_reliable
    disattenuated[:, undefined] = np.nan
    result = np.concatenate([raw, disattenuated])
    diagonal = result[:, layer, layer]
    result[:, layer, layer] = np.where(np.isnan(diagonal), np.nan, 1)
    return result


def _scale(squares: np.ndarray) -> np.ndarray:
    """Return the geometric means of all pairs along the first dimension."""
    return np.asarray(np.sqrt(squares[:, None] * squares))


def _intervals(values: np.ndarray, without: np.ndarray) -> np.ndarray:
    """Return cosines and their 95% jackknife intervals, restricted to the values that a cosine can have."""
    kept = np.isfinite(without)
    count = kept.sum(axis=-1)
    mean = np.where(kept, without, 0).sum(axis=-1) / count
    squares = np.square(np.where(kept, without - mean[..., None], 0)).sum(axis=-1)
    error = np.where(count > 1, np.sqrt((count - 1) / count * squares), np.nan)
    return np.asarray(np.clip(np.stack([values, values - Z95 * error, values + Z95 * error]), -1, 1))
