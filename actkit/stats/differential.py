"""Group differentials: probe AUROC, effect sizes and directions by layer, with text-only baselines."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from ..canonical import Cube
from . import selection
from .baseline_inputs import mean_embedding
from .control_types import check_control, control_tasks_of
from .finiteness import finite_cube
from .group_comparison import Contrast, contrasts_of, cut_folds
from .group_probes import (
    BASELINES,
    SELECTIVITY,
    check_estimator,
    differences,
    layer_differences,
    probe_baselines,
    probe_layers,
)
from .kernels import contrasts, probes
from .kernels.covariates import Covariate, Covariates
from .kernels.label_models import null_sources
from .label_samples import covariate_names, covariates_of
from .length_matches import MatchedOn
from .multiple_results import over_languages
from .token_selection import select_tokens

_EFFECTS = ("squared_smd", "squared_smd_se")
_CORE = [["sample", "hidden"]]


def group_differential(
    cube: Cube,
    *,
    by: str,
    cluster: str | None = selection.AUTO,
    between: tuple[Any, Any] | None = None,
    vectors: selection.Pooling = "pooled",
    tokens: selection.TokenSelection = "content",
    folds: int = 5,
    seeds: int = 3,
    permutations: int = 200,
    seed: int = 0,
    estimator: probes.Estimator = "ridge",
    matched_on: MatchedOn | None = None,
    residualized_on: Covariate | Sequence[Covariate] = (),
    control: str | None = None,
) -> xr.Dataset:
    """Measure how separable two groups of samples are at each layer, with baselines and permutation tests.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    by
        The label column that defines the groups, such as ``gender``.
    cluster
        The label that dependent samples share, such as a scene or a template, which are never split between
        training and test; by default detected (see "Dependent samples" in the methods). None if
        all samples are independent.
    between
        Two values of ``by``, the reference first, as values or text; by default, its only two values in
        ascending order. Samples without a value are excluded.
    vectors
        ``pooled``, ``last`` or ``prompt_end``.
    tokens
        Tokens that these vectors and the embedding represent, as for :func:`adjacent_cka`. The baselines of
        the text and its length are those of the whole text.
    folds, seeds
        Number of cross-validation folds, and of repetitions with different seeds.
    permutations
        Number of label permutations, which respect ``cluster`` and, with ``residualized_on``, the dependence
        of the labels on the covariates.
    seed
        Random seed of the permutations.
    estimator
        Probe of the layers, the permutations, the embedding and the length: ``ridge``, a ridge regression
        with a closed form; or ``logistic``, an L2-penalised logistic regression iterated to convergence,
        which needs minutes per layer for 200 permutations.
    matched_on
        ``length`` keeps, within each language, the same number of samples of each group at each length (see
        "Matching and residuals" in the methods). Clusters are put in a random order that depends on
        ``seed``, and the first samples are kept.
    residualized_on
        ``length``, ``tfidf`` or both: their prediction of the vectors and of the labels is subtracted, by a
        regression fitted in each training part (see "Matching and residuals" in the methods). This affects
        the probes of the layers, the embedding and the control tasks, and p-values and bounds come from
        labels that depend on the covariates alone; effect sizes and directions are those of the vectors.
    control
        The type of a sample in control tasks, which give each type a random label: a label column, such as
        a template or a noun; or ``word`` (unless a label column has that name), the most frequent word of the
        text among those that occur in at least as many clusters as there are folds and in at most a tenth of
        all clusters (or twice the folds), so that it is a content word that recurs. None by default.

    Returns
    -------
    xarray.Dataset
        Dims ``(language, layer)``:

        - ``auroc`` of a linear probe, the mean over folds and seeds; its 95% interval ``auroc_low`` and
          ``auroc_high``, from the influence of each cluster; the standard deviation ``auroc_sd`` over folds
          and seeds; and ``balanced_accuracy``;
        - ``p``, the max-T permutation p-value of ``auroc``, corrected over layers, and ``auroc_bound``, the
          95% quantile of the permuted maximum over layers;
        - ``squared_smd``, the squared standardized mean difference over all dimensions, bias-corrected: the
          squared distance between the means, minus its expectation under no difference, over the total
          within-group variance (in one dimension, Cohen's d squared); ``squared_smd_se`` (jackknife),
          ``squared_smd_low`` and ``squared_smd_high`` (95% interval);
        - with ``hidden``: ``direction``, the difference between the means (second label minus first) scaled
          to length 1, and ``d``, Cohen's d; ``d_bound``, the 95% quantile of the permuted maximum of ``|d|``
          over dimensions and layers;
        - with ``control``: ``auroc_control``, the AUROC of the same probe for a random label of each type,
          the mean over 20 draws; ``selectivity``, ``auroc`` minus ``auroc_control``; its 95% interval
          ``selectivity_low`` and ``selectivity_high``. With dims ``(language,)``, ``control_shared`` is the
          share of samples whose type also occurs in another cluster; below one half, the others are NaN.

        With dims ``(language,)``, baselines without the model's layers: ``auroc_embedding`` (input of the
        first block; NaN if a selection dropped tokens), ``auroc_tfidf`` (characters of the text),
        ``auroc_length`` (number of tokens), each with ``_low`` and ``_high``; the group sizes ``n_<label>``;
        and, with ``matched_on``, ``n_unmatched``, the number of samples left out.

        With dims ``(language, layer, baseline)``, what the layer adds: ``auroc_difference``, the AUROC of
        the layer minus that of the baseline in the same folds; its 95% interval ``auroc_difference_low``
        and ``auroc_difference_high``; and ``auroc_difference_p``, two-sided, with Holm's correction over
        layers.

        With dims ``(language, layer, layer_2)``: ``layer_difference``, the AUROC of one layer minus that of
        another; ``layer_difference_low`` and ``layer_difference_high``, intervals that hold for all pairs of
        layers at once with 95% confidence; and ``layer_difference_p``, two-sided and corrected over all
        pairs, so that the best layer may be chosen after looking at the results.

        ``p``, ``auroc_difference_p`` and ``layer_difference_p`` are corrected within a language;
        ``p_holm``, ``auroc_difference_p_holm`` and ``layer_difference_p_holm`` are corrected over languages
        too, as by :func:`actkit.holm`. Lazy if the cube is.

    Raises
    ------
    InputError
        If a label is missing, has fewer than 10 samples, or occurs in too few clusters for the folds.

    Warns
    -----
    UserWarning
        If there are too few clusters for a small p-value, some folds lack a label, or there is no control
        task, because types do not recur in other clusters.

    Notes
    -----
    Control tasks and selectivity: Hewitt, Liang, Designing and interpreting probes with control tasks, EMNLP
    2019. Their types are word forms. A whole text hardly ever recurs, so its random label could not be
    learnt; the type is therefore a surface form that texts share. Differences between layers: Hothorn, Bretz,
    Westfall, Biometrical Journal 2008. Max-T: Westfall, Young, Resampling-based multiple testing, Wiley 1993.
    Intervals: LeDell, Petersen, van der Laan 2015 and Obuchowski 1997, with the influence of training
    samples. docs/decisions/0022 explains why ridge regression is the default.
    """
    selection.check_counts(seeds=seeds, permutations=permutations)
    selection.check_counts(2, folds=folds)
    covariates = covariate_names(residualized_on)
    check_estimator(estimator, covariates)
    whole = select_tokens(finite_cube(cube), tokens)
    selection.require(whole, "text", "n_tokens")
    array = selection.vectors(whole, vectors)
    choice = selection.cluster_choice(array, cluster, by)
    check_control(array, control, by)
    names, group_contrasts = contrasts_of(
        array,
        by=by,
        cluster=choice.name,
        between=between,
        folds=folds,
        matched_on=matched_on,
        seed=seed,
    )
    embedding = mean_embedding(whole, vectors)

    def summarize(language: str, _places: np.ndarray) -> xr.Dataset:
        contrast = group_contrasts[language]
        splits = cut_folds(language, contrast.labels, contrast.groups, folds, seeds, contrast.strata)
        part = array.isel(sample=contrast.places)
        removed = covariates_of(part, covariates)
        permuted = _permuted(contrast, permutations, seed, removed)
        share, drawn = np.nan, None
        if control is not None:
            share, drawn = control_tasks_of(language, part, contrast, control, fewest=folds, seed=seed)
        layers = probe_layers(part, contrast, splits, permuted, estimator, drawn, removed)
        inputs = None if embedding is None else embedding.isel(sample=contrast.places)
        baselines = probe_baselines(part, inputs, contrast, splits, estimator, removed)
        result = layers.drop_vars("influence").merge(differences(layers, baselines, contrast))
        result = result.merge(layer_differences(layers, contrast, seed))
        if control is not None:
            result["control_shared"] = share
            if drawn is None:
                result = result.assign(dict.fromkeys(SELECTIVITY, xr.full_like(result.auroc, np.nan)))
        for name in BASELINES:
            values = baselines.sel(baseline=name, drop=True)
            result[f"auroc_{name}"] = values.auroc
            result[f"auroc_{name}_low"], result[f"auroc_{name}_high"] = values.auroc_low, values.auroc_high
        kernel = partial(_effects, contrast=contrast, permuted=permuted, seed=seed)
        out: list[list[str]] = [[]] * len(_EFFECTS) + [["draw"]] + [["hidden"]] * 2
        *single, largest, direction, d = selection.apply(
            kernel, part, core=_CORE, out=out, sizes={"draw": permutations}
        )
        result = result.assign(dict(zip(_EFFECTS, single, strict=True)))
        (result["d_bound"],) = selection.apply(
            lambda draws: (np.quantile(draws, 0.95),), largest.max("layer"), core=[["draw"]], out=[[]]
        )
        result["squared_smd_low"] = result.squared_smd - selection.Z95 * result.squared_smd_se
        result["squared_smd_high"] = result.squared_smd + selection.Z95 * result.squared_smd_se
        result["direction"], result["d"] = direction, d
        counts = {f"n_{names[0]}": (~contrast.labels).sum(), f"n_{names[1]}": contrast.labels.sum()}
        if matched_on is not None:
            counts["n_unmatched"] = contrast.n_unmatched
        return result.assign({name: int(count) for name, count in counts.items()})

    result = selection.by_language(array, summarize)
    result = result.assign_coords(layer=array.layer.values, layer_2=array.layer.values)
    (result,) = over_languages([result])
    result.attrs = selection.settings(
        array,
        "group_differential",
        by=by,
        between=" to ".join(names),
        vectors=vectors,
        folds=folds,
        seeds=seeds,
        permutations=permutations,
        seed=seed,
        **choice.attrs,
        estimator=estimator,
        matched_on=matched_on,
        residualized_on=" and ".join(covariates) or None,
        control=control,
    )
    return result


def _permuted(contrast: Contrast, count: int, seed: int, covariates: Covariates | None) -> np.ndarray:
    """Draw labels under the null hypothesis, dims ``(permutation, sample)``."""
    labels, groups = contrast.labels, contrast.groups
    if covariates is None:
        return contrasts.permuted(labels, groups, count, seed=seed)
    codes = labels.astype(np.int64)
    sources = null_sources(codes, groups, count, seed=seed, covariates=covariates, is_numeric=False)
    return np.asarray(labels[sources])


def _effects(
    x: np.ndarray, *, contrast: Contrast, permuted: np.ndarray, seed: int
) -> tuple[float | np.ndarray, ...]:
    """Return the `_EFFECTS`, the permuted maxima of Cohen's d, the direction and Cohen's d of one layer."""
    if not np.isfinite(x).all():
        undefined = np.full(len(permuted), np.nan)
        return (*[np.nan] * len(_EFFECTS), undefined, *np.full((2, x.shape[1]), np.nan))
    is_second, groups = contrast.labels, contrast.groups if contrast.is_grouped else None
    difference = contrasts.contrast(is_second) @ x.astype(np.float64)
    norm = np.linalg.norm(difference)
    return (
        contrasts.squared_smd(x, is_second, groups),
        contrasts.squared_smd_error(x, is_second, groups, seed=seed),
        contrasts.largest_d(x, permuted),
        difference / norm if norm > 0 else np.full(len(difference), np.nan),
        contrasts.cohens_d(x, is_second),
    )
