"""How often features of sparse autoencoders are active, and how strongly."""

import numpy as np
import xarray as xr

from ..canonical import Cube
from ..errors import Fault, InputError
from . import selection
from .kernels import cluster_intervals
from .kernels.sparse_features import active_tokens, averages, sample_features
from .sparse_features import LAYER_CORE, Features, check_layer, features_of

_GROUP = "group"  # temporary name of the group dimension, until the result's variables are known
_NAMES = ("token_rate", "sample_rate", "mean")
_RATES = (*(f"{name}{end}" for name in _NAMES for end in ("", "_low", "_high")), "active_mean")
_FEWEST = 10  # clusters with the feature, below which a mean has no interval


def feature_rates(
    features: Cube,
    *,
    by: str | None = None,
    cluster: str | None = selection.AUTO,
    tokens: selection.TokenSelection = "content",
) -> xr.Dataset:
    """Measure how often each feature is active, and how strongly, by language, group and layer.

    Parameters
    ----------
    features
        From :func:`actkit.encode`.
    by
        A label column by which samples are grouped as well; samples without a value are excluded.
    cluster
        The label that dependent samples share; by default detected (see "Dependent samples" in the methods).
        None if all samples are independent.
    tokens
        Tokens included, as for :func:`actkit.layer_norms`.

    Returns
    -------
    xarray.Dataset
        Dims ``(language, layer, feature)``, or ``(language, by, layer, feature)`` (named as by
        :func:`actkit.layer_norms`): ``token_rate`` and ``sample_rate``, the share of tokens and of samples
        with the feature; ``mean``, the mean over all tokens, in the units of the activations; each with its
        95% interval, such as ``mean_low`` to ``mean_high``; and ``active_mean``, the mean over the tokens
        that have the feature. With dims ``(language,)``, or ``(language, by)``: ``n_tokens``, ``n_samples``
        and ``n_clusters``. Lazy if the cube is.

    Raises
    ------
    InputError
        If the label does not exist.
    MissingError
        If the cube is not sparse.

    Notes
    -----
    Intervals treat clusters as independent, not samples or tokens. Those of ``mean`` are NaN if fewer than
    10 clusters have the feature.
    """
    sparse = features_of(features, tokens)
    choice = selection.cluster_choice(sparse.cube, cluster, by)
    cluster_ids = None if choice.name is None else selection.clusters(sparse.cube, choice.name)
    groups = None if by is None else selection.column(sparse.cube, by, "by")
    if groups is not None and not len(groups.values):
        raise InputError([Fault("by", f"no sample has a value of `{by}`", "choose another label")])

    def of_samples(samples: np.ndarray) -> xr.Dataset:
        dependent = np.arange(len(samples)) if cluster_ids is None else selection.codes(cluster_ids[samples])
        return _rates(sparse, samples, dependent)

    def summarize(_language: str, samples: np.ndarray) -> xr.Dataset:
        if groups is None:
            return of_samples(samples)
        parts = [of_samples(samples[groups.codes[samples] == code]) for code in range(len(groups.values))]
        return xr.concat(parts, xr.Variable(_GROUP, groups.values))

    result = selection.by_language(sparse.cube, summarize)
    result = result.assign_coords(layer=sparse.index.layer.values, feature=np.arange(sparse.n_features))
    group_dim = None
    if by is not None:
        group_dim = selection.free_name(by, {*result.variables, *result.dims} - {_GROUP})
        result = result.rename({_GROUP: group_dim})
    result.attrs = selection.settings(
        sparse.cube,
        "feature_rates",
        by=by,
        group_dim=group_dim,
        tokens=selection.counted(sparse.cube, "content"),
        interval=f"95%, over {choice.name or 'samples'}",
        **choice.attrs,
    )
    return result


def _rates(features: Features, samples: np.ndarray, clusters: np.ndarray) -> xr.Dataset:
    """Return the `_RATES` of some samples, which belong to clusters numbered from 0."""
    n_clusters = int(clusters.max(initial=-1)) + 1
    n_tokens = features.mask.values[samples].sum(axis=1).astype(np.float64)

    def kernel(index: np.ndarray, value: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, ...]:
        if not len(index):
            return tuple(np.full((len(_RATES), features.n_features), np.nan))
        check_layer(index, value, mask, features.n_features)
        counts = active_tokens(index, value, mask, features.n_features)
        sums = sample_features(index, value, mask, features.n_features, "mean").multiply(n_tokens[:, None])
        members = averages(clusters, np.ones(len(clusters), dtype=bool), n_clusters).sign()
        tokens, ones = members @ n_tokens, np.asarray(members.sum(axis=1))
        table = []
        for x, size in ((counts, tokens), (counts.sign(), ones)):
            share, variance = cluster_intervals.ratio(members @ x, size)
            table += [share, *cluster_intervals.share_interval(share, variance, n_clusters)]
        by_cluster = members @ sums.tocsr()
        mean, variance = cluster_intervals.ratio(by_cluster, tokens)
        variance[by_cluster.count_nonzero(axis=0) < _FEWEST] = np.nan
        table += [mean, *cluster_intervals.mean_interval(mean, variance, n_clusters)]
        with np.errstate(invalid="ignore", divide="ignore"):
            return (*table, sums.sum(axis=0) / counts.sum(axis=0))

    rates = selection.apply(
        kernel,
        *features.arrays(samples),
        core=LAYER_CORE,
        out=[["feature"]] * len(_RATES),
        sizes={"feature": features.n_features},
    )
    result = xr.Dataset(dict(zip(_RATES, rates, strict=True)))
    return result.assign(n_tokens=int(n_tokens.sum()), n_samples=len(samples), n_clusters=n_clusters)
