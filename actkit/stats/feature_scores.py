"""AUROC of the best feature on held-out clusters, with baselines of the residual stream and of the text."""

import numpy as np
import xarray as xr

from ..canonical import Cube
from ..errors import Fault, InputError
from . import selection
from .feature_contrasts import FeatureContrast
from .finiteness import finite_cube
from .group_comparison import cut_folds
from .kernels import auroc
from .kernels.feature_tests import best_features
from .kernels.probes import Fold, probe_texts
from .kernels.sparse_features import Summary, sample_features
from .matched_samples import same_samples
from .sparse_features import LAYER_CORE, Features
from .token_selection import select_tokens

_ENDS = ("", "_low", "_high")
_SCORES = ["split", "sample"]


def held_out_aurocs(
    language: str,
    features: Features,
    contrast: FeatureContrast,
    summary: Summary,
    splits: int,
    *,
    cube: Cube | None,
    tokens: selection.TokenSelection,
) -> xr.Dataset:
    """Return the AUROCs of one language, as :func:`actkit.feature_differential` describes them.

    Parameters
    ----------
    language
        Named in errors and warnings.
    features, contrast, summary
        What was tested.
    splits
        Number of divisions of the clusters into halves.
    cube
        The dense cube, if there is such a baseline.
    tokens
        Tokens included.
    """
    folds = cut_folds(language, contrast.labels, contrast.groups, 2, splits)
    result = _of_features(features, contrast, summary, folds)
    if cube is not None:
        result = result.merge(_of_residual(features, contrast, folds, cube, tokens))
    texts = [str(text) for text in features.cube.text.values[contrast.places]]
    held_out = probe_texts(texts, contrast.labels, folds)
    return result.assign(_named("auroc_tfidf", _summary(held_out.scores, contrast)))


def _of_features(
    features: Features, contrast: FeatureContrast, summary: Summary, folds: list[Fold]
) -> xr.Dataset:
    """Return the AUROC of the feature chosen on the training half, in each layer and over all layers."""
    averages, labels, units = contrast.label_averages()
    train = np.zeros((len(folds), len(units)), dtype=bool)
    for row, (samples, _) in zip(train, folds, strict=True):
        row[:] = np.isin(units, contrast.groups[samples])

    def kernel(index: np.ndarray, value: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, ...]:
        x = sample_features(index, value, mask, features.n_features, summary)
        chosen, statistic = best_features(averages @ x, labels, train)
        columns = x[:, np.maximum(chosen, 0)].toarray() * np.sign(statistic)
        scores = np.full((len(folds), len(contrast.places)), np.nan)
        for split, (_, test) in enumerate(folds):
            scores[split, test] = columns[test, split]
        return chosen.astype(np.float64), statistic, scores

    sizes = {"split": len(folds), "sample": len(contrast.places)}
    chosen, statistic, scores = selection.apply(
        kernel,
        *features.arrays(contrast.places),
        core=LAYER_CORE,
        out=[["split"], ["split"], _SCORES],
        sizes=sizes,
    )
    result = xr.Dataset({"chosen_feature": chosen}, {"split": np.arange(len(folds))})
    each = selection.apply(lambda s: _summary(s, contrast), scores, core=[_SCORES], out=[[]] * 3)
    result = result.assign(_named("auroc_feature", each))

    def best(statistics: np.ndarray, by_layer: np.ndarray) -> tuple[np.ndarray, ...]:
        layer = np.abs(statistics).argmax(axis=0)
        return _summary(by_layer[layer, np.arange(len(layer))], contrast)

    core = [["layer", "split"], ["layer", *_SCORES]]
    overall = selection.apply(best, statistic, scores, core=core, out=[[]] * 3)
    return result.assign(_named("auroc_best", overall))


def _of_residual(
    features: Features,
    contrast: FeatureContrast,
    folds: list[Fold],
    cube: Cube,
    tokens: selection.TokenSelection,
) -> xr.Dataset:
    """Return the AUROC of the projection on the difference of means of the training half, by layer."""
    vectors = selection.vectors(select_tokens(finite_cube(cube), tokens), "pooled")
    part = features.value.isel(sample=contrast.places, token=0, k=0, drop=True).assign_attrs(
        features.cube.attrs
    )
    ours, theirs = same_samples(part, vectors, "ids")
    layers = features.value.layer.values
    if len(ours) < len(contrast.places) or not set(layers.tolist()) <= set(vectors.layer.values.tolist()):
        problem = "lacks samples or layers of the features"
        raise InputError([Fault("cube", problem, "give the cube that was encoded")])
    places = np.empty(len(ours), dtype=np.int64)
    places[ours] = theirs
    labels = contrast.labels

    def kernel(x: np.ndarray) -> tuple[np.ndarray, ...]:
        exact = x - x.mean(axis=0, dtype=np.float64)
        scores = np.full((len(folds), len(x)), np.nan)
        for row, (train, test) in zip(scores, folds, strict=True):
            direction = exact[train][labels[train]].mean(axis=0) - exact[train][~labels[train]].mean(axis=0)
            row[test] = exact[test] @ direction
        return _summary(scores, contrast)

    chosen = vectors.sel(layer=layers).isel(sample=places)
    found = selection.apply(kernel, chosen, core=[["sample", "hidden"]], out=[[]] * 3)
    return xr.Dataset(_named("auroc_residual", found))


def _named(name: str, values: tuple[xr.DataArray | np.ndarray, ...]) -> dict[str, xr.DataArray]:
    return {name + end: xr.DataArray(value) for end, value in zip(_ENDS, values, strict=True)}


def _summary(scores: np.ndarray, contrast: FeatureContrast) -> tuple[np.ndarray, ...]:
    """Return the mean AUROC over splits and its interval, which holds what was chosen fixed."""
    labels, groups = contrast.labels, contrast.groups
    if np.isnan(scores).all():
        return (np.asarray(np.nan),) * 3
    mean = auroc.fold_aurocs(scores, labels).mean()
    influence = auroc.cluster_influence(scores, np.zeros_like(scores), labels, groups)
    low, high = auroc.auroc_interval(mean, influence, auroc.fewest_clusters(labels, groups))
    return np.asarray(mean), np.asarray(low), np.asarray(high)
