"""A two-dimensional map of the features of a layer, with k-means clusters."""

import numpy as np
import xarray as xr
from scipy.sparse import csr_array
from sklearn.decomposition import PCA

from ..canonical import Cube
from ..errors import Fault, InputError
from . import selection
from .kernels import kmeans
from .kernels.feature_tests import LIVE
from .kernels.sparse_features import sample_features
from .sparse_features import check_layer, features_of

_COMPONENTS = 20  # in which k-means is computed


def feature_map(
    features: Cube,
    *,
    layer: int,
    directions: np.ndarray | xr.DataArray | None = None,
    k: int = 8,
    tokens: selection.TokenSelection = "content",
    seed: int = 0,
) -> xr.Dataset:
    """Project the features of a layer to two dimensions, and cluster them by k-means.

    Parameters
    ----------
    features
        From :func:`actkit.encode`.
    layer
        The block.
    directions
        What represents a feature, dims ``(feature, hidden)``, such as the weights of the decoder. By default,
        its activation pattern: the means over the tokens of each sample. Either is scaled to length 1.
    k
        Number of k-means clusters.
    tokens
        Tokens included, as for :func:`actkit.layer_norms`.
    seed
        Random seed.

    Returns
    -------
    xarray.Dataset
        With the features active in at least 10 samples, dims ``(feature,)``: ``sample_rate``, the share of
        samples with the feature, and ``k_means_cluster``, numbered by size; ``position``, dims
        ``(feature, component)``, on the first two principal components; ``explained``, dims ``(component,)``,
        their share of the variance; and ``silhouette`` of the clusters, near 0 if there are no clusters in
        the data. Computed at once.

    Raises
    ------
    InputError
        If the cube lacks the layer, directions have another number of features, or there are too few
        features.
    MissingError
        If the cube is not sparse.

    Notes
    -----
    k-means uses the first 20 principal components. Neither a map nor its clusters are a test: see
    :func:`actkit.feature_differential`.
    """
    selection.check_counts(2, k=k)
    sparse = features_of(features, tokens)
    layers = sparse.index.layer.values
    if layer not in layers:
        raise InputError([Fault("layer", f"the cube lacks {layer}", f"it has {layers.tolist()}")])
    index, value, mask = (
        array.sel(layer=layer).values if "layer" in array.dims else array.values
        for array in (sparse.index, sparse.value, sparse.mask)
    )
    check_layer(index, value, mask, sparse.n_features)
    patterns = sample_features(index, value, mask, sparse.n_features, "mean").T.tocsr()
    counts = np.diff(patterns.indptr)
    live = np.flatnonzero(counts >= LIVE)
    if len(live) <= max(k, 2):
        problem = f"{len(live)} features of layer {layer} are active in {LIVE} samples or more"
        raise InputError([Fault("features", problem, f"more than {k} are needed")])
    represented = patterns[live] if directions is None else _directions(directions, sparse.n_features)[live]
    scores, explained = _components(represented, seed)
    fitted = kmeans.fit(scores, k, seed)
    if fitted is None:
        problem = f"has no more than {k} distinct features"
        raise InputError([Fault("k", problem, "choose fewer")])
    assignment = kmeans.by_size(fitted.labels_)
    result = xr.Dataset(
        {
            "position": (("feature", "component"), scores[:, :2]),
            "explained": ("component", explained[:2]),
            "k_means_cluster": ("feature", assignment),
            "sample_rate": ("feature", counts[live] / patterns.shape[1]),
            "silhouette": kmeans.silhouette(scores, assignment, seed),
        },
        {"feature": live, "component": [0, 1], "layer": layer},
    )
    result.attrs = selection.settings(
        sparse.cube,
        "feature_map",
        tokens=selection.counted(sparse.cube, "content"),
        of="activations" if directions is None else "directions",
        k=k,
        seed=seed,
    )
    return result


def _directions(directions: np.ndarray | xr.DataArray, n_features: int) -> np.ndarray:
    values = np.asarray(directions, dtype=np.float64)
    if values.ndim != 2 or len(values) != n_features or not np.isfinite(values).all():
        problem = f"have shape {values.shape}, or values that are not finite"
        raise InputError([Fault("directions", problem, f"give one vector for each of {n_features} features")])
    return values


def _components(vectors: csr_array | np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return principal components of vectors of length 1, and their shares of the variance."""
    squares = vectors.power(2).sum(axis=1) if isinstance(vectors, csr_array) else (vectors**2).sum(axis=1)
    scale = 1 / np.sqrt(np.where(squares > 0, squares, 1))
    scaled = vectors.multiply(scale[:, None]).tocsr() if isinstance(vectors, csr_array) else None
    scaled = vectors * scale[:, None] if scaled is None else scaled
    count = min(_COMPONENTS, *(size - 1 for size in scaled.shape))
    fitted = PCA(count, svd_solver="arpack", random_state=seed)
    scores = fitted.fit_transform(scaled)
    # the sign of a component is arbitrary
    signs = np.sign(scores[np.abs(scores).argmax(axis=0), np.arange(count)])
    return scores * signs, fitted.explained_variance_ratio_
