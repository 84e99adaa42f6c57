"""Features of sparse autoencoders that differ between two groups of samples."""

from typing import Any

import numpy as np
import xarray as xr

from ..canonical import Cube
from ..errors import Fault, InputError
from . import selection
from .feature_contrasts import FeatureContrast, feature_contrast
from .feature_scores import held_out_aurocs
from .group_comparison import contrasts_of
from .kernels import feature_tests
from .kernels.multiple_tests import false_discovery_q
from .kernels.sparse_features import SUMMARIES, Summary, sample_features
from .sparse_features import LAYER_CORE, Features, check_layer, features_of

_BY_FEATURE = ("difference", "effect", "t", "p", "extremeness", "live")


def feature_differential(
    features: Cube,
    *,
    by: str,
    cluster: str | None = selection.AUTO,
    between: tuple[Any, Any] | None = None,
    summary: Summary = "mean",
    tokens: selection.TokenSelection = "content",
    permutations: int = 999,
    q: float = 0.05,
    splits: int = 5,
    cube: Cube | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Test which features of sparse autoencoders differ between two groups of samples, at all layers.

    Parameters
    ----------
    features
        From :func:`actkit.encode`.
    by, cluster, between
        As for :func:`group_differential`. If at least half of the samples are in clusters with both labels
        (such as twins), these pairs are compared by flipping the signs of their differences; otherwise,
        clusters with one label are compared by permuting the labels between them.
    summary
        Value of a sample: the ``mean`` of the feature over its tokens, its ``max``, or ``any``, 1 if it is
        active at a token.
    tokens
        Tokens included, as for :func:`layer_norms`.
    permutations
        Number of sign flips or permutations.
    q
        Share of false discoveries that is accepted; only recorded, for plots.
    splits
        Number of divisions of the clusters into halves for the held-out AUROCs; 0 leaves these out, and saves
        most of the time.
    cube
        The cube that was encoded, whose residual stream is a baseline; no such baseline by default.
    seed
        Random seed of the permutations.

    Returns
    -------
    xarray.Dataset
        Dims ``(language, layer, feature)``:

        - ``difference``, the mean over pairs (or clusters) of the second label minus the first, in the units
          of the summary, and ``effect``, this over the pooled standard deviation within labels: infinite if
          the feature separates the labels but varies within neither;
        - ``live``: whether the feature is tested, which requires that it differs in at least 10 pairs, or
          that it is active in at least 10 clusters and not constant;
        - ``t``, the mean difference over its standard error (paired; without pairs, Welch's); ``p``, its
          two-sided permutation p-value; ``q``, corrected over all live features of all layers: of those with
          ``q`` of at most 0.05, at most 5% are expected to be false if the tests are independent or
          positively dependent (Benjamini-Hochberg); and ``p_max``, corrected so that the probability of any
          false discovery is at most 5% among those with ``p_max`` of at most 0.05 (max-T). NaN unless the
          feature is live.

        With dims ``(language,)``: ``is_paired``; the number of pairs ``n_pairs``, or clusters of each label
        ``n_first`` and ``n_second``; ``n_left_out``, the number of samples in clusters of the other kind; and
        the number of live features and discoveries, ``n_live`` and ``n_found``.

        AUROCs on the half of the clusters that was not used to choose, the mean over both halves of all
        ``splits``, each with its 95% interval ``_low`` and ``_high``: with dims ``(language, layer)``,
        ``auroc_feature`` of the feature with the largest absolute value of Welch's t, and ``auroc_residual``
        of the projection on the difference of means of `pooled`; with dims ``(language,)``, ``auroc_best`` of
        the best feature of all layers, and ``auroc_tfidf`` of the text. ``chosen_feature``, dims
        ``(language, layer, split)``, is the feature chosen on each half, -1 for none. Lazy if the cube is.

    Raises
    ------
    InputError
        If a label is missing, or there are fewer than 10 samples, pairs or clusters.
    MissingError
        If the cube is not sparse.

    Notes
    -----
    Benjamini, Hochberg, Controlling the false discovery rate, Journal of the Royal Statistical Society B
    1995. Max-T: Westfall, Young, Resampling-based multiple testing, Wiley 1993. All permutations are applied
    to all layers at once. Corrections hold within a language. docs/decisions/0064 explains the p-values.
    """
    selection.check_counts(permutations=permutations)
    selection.check_counts(0, splits=splits)
    _check(summary, q)
    sparse = features_of(features, tokens)
    choice = selection.cluster_choice(sparse.cube, cluster, by)
    if splits:
        selection.require(sparse.cube, "text")
    samples = sparse.value.isel(layer=0, token=0, k=0, drop=True)
    names, contrasts = contrasts_of(samples, by=by, cluster=choice.name, between=between, folds=2)
    chosen = {
        language: feature_contrast(language, names, contrast) for language, contrast in contrasts.items()
    }

    def summarize(language: str, _places: np.ndarray) -> xr.Dataset:
        contrast = chosen[language]
        result = _tested(sparse, contrast, summary, permutations, seed)
        result["n_found"] = (result["q"] <= q).sum(["layer", "feature"])
        if splits:
            result = result.merge(
                held_out_aurocs(language, sparse, contrast, summary, splits, cube=cube, tokens=tokens)
            )
        labels = contrast.unit_labels
        n_pairs = contrast.n_units if contrast.is_paired else 0
        sizes = (0, 0) if contrast.is_paired else ((~labels).sum(), labels.sum())
        return result.assign(
            is_paired=contrast.is_paired,
            n_pairs=n_pairs,
            n_first=int(sizes[0]),
            n_second=int(sizes[1]),
            n_left_out=contrast.n_left_out,
        )

    result = selection.by_language(sparse.cube, summarize)
    result = result.assign_coords(layer=sparse.index.layer.values, feature=np.arange(sparse.n_features))
    result.attrs = selection.settings(
        sparse.cube,
        "feature_differential",
        by=by,
        between=" to ".join(names),
        summary=summary,
        tokens=selection.counted(sparse.cube, "content"),
        permutations=permutations,
        q=q,
        splits=splits,
        seed=seed,
        **choice.attrs,
    )
    return result


def _check(summary: str, q: float) -> None:
    faults = []
    if summary not in SUMMARIES:
        faults.append(Fault("summary", f"{summary!r} is unknown", f"one of {', '.join(SUMMARIES)}"))
    if isinstance(q, bool) or not isinstance(q, int | float) or not 0 < q < 1:
        faults.append(Fault("q", f"is {q!r}", "give a share between 0 and 1, such as 0.05"))
    if faults:
        raise InputError(faults, "cannot compare features")


def _tested(
    features: Features, contrast: FeatureContrast, summary: Summary, permutations: int, seed: int
) -> xr.Dataset:
    """Return the tests of all features of one language, dims ``(layer, feature)``."""
    draws = contrast.draws(permutations, seed)
    first, second = contrast.averages()

    def kernel(index: np.ndarray, value: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, ...]:
        check_layer(index, value, mask, features.n_features)
        x = sample_features(index, value, mask, features.n_features, summary)
        if contrast.is_paired:
            tested = feature_tests.paired_test(first @ x, second @ x, draws)
        else:
            tested = feature_tests.label_test((first + second) @ x, contrast.unit_labels, draws, seed=seed)
        return (*(getattr(tested, name) for name in _BY_FEATURE), tested.largest)

    sizes = {"feature": features.n_features, "draw": permutations}
    out = [["feature"]] * len(_BY_FEATURE) + [["draw"]]
    *columns, largest = selection.apply(
        kernel, *features.arrays(contrast.places), core=LAYER_CORE, out=out, sizes=sizes
    )
    result = xr.Dataset(dict(zip(_BY_FEATURE, columns, strict=True)))
    result["live"] = result.live > 0
    (result["q"],) = selection.apply(
        lambda p: (false_discovery_q(p),), result.p, core=[["layer", "feature"]], out=[["layer", "feature"]]
    )
    (result["p_max"],) = selection.apply(
        lambda values, maxima: (feature_tests.family_p(values, maxima),),
        result.extremeness,
        largest.max("layer"),
        core=[["layer", "feature"], ["draw"]],
        out=[["layer", "feature"]],
    )
    result["n_live"] = result.live.sum(["layer", "feature"])
    return result.drop_vars("extremeness")
