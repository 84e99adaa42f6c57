"""Probes of a numeric label by layer, with text-only baselines."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from ..canonical import Cube
from . import selection
from .baseline_inputs import baseline_inputs, mean_embedding
from .finiteness import finite_cube
from .group_probes import of_either_sign
from .kernels import regression_probes
from .kernels.covariates import Covariate
from .kernels.label_models import null_sources
from .kernels.probes import Fold
from .label_samples import LabelSamples, covariate_names, covariates_of, number_samples
from .multiple_results import with_holm
from .probe_measures import baselines_measured, measured, p_values, with_baselines
from .token_selection import select_tokens

_MEASURES = ("r2", "spearman")


def regression_probe(
    cube: Cube,
    *,
    by: str,
    cluster: str | None = selection.AUTO,
    vectors: selection.Pooling = "pooled",
    tokens: selection.TokenSelection = "content",
    residualized_on: Covariate | Sequence[Covariate] = (),
    folds: int = 5,
    seeds: int = 3,
    permutations: int = 200,
    seed: int = 0,
) -> xr.Dataset:
    """Measure how well a ridge regression predicts a numeric label at each layer, with baselines.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    by
        The label column that holds numbers, such as a rating.
    cluster
        The label that dependent samples share, such as a scene or a template, which are never split between
        training and test; by default detected (see "Dependent samples" in the methods). None if all samples
        are independent.
    vectors
        ``pooled``, ``last`` or ``prompt_end``.
    tokens
        Tokens that these and the embedding represent, as for :func:`adjacent_cka`. Text and length, as
        baselines and as covariates, are those of the whole text.
    residualized_on
        ``length``, ``tfidf`` or both: their predictions of the vectors and of the label are subtracted, by
        regressions fitted in each training part (see "Matching and residuals" in the methods). ``r2`` and
        ``spearman`` then describe the residual label.
    folds, seeds
        Number of cross-validation folds, and of repetitions with different seeds.
    permutations
        Number of permutations of the label, which respect ``cluster`` and, with ``residualized_on``, the
        dependence of the label on the covariates.
    seed
        Random seed of the permutations.

    Returns
    -------
    xarray.Dataset
        Dims ``(language, layer)``:

        - ``r2``, the cross-validated R²: 1 minus the sum of squared errors over that of predicting the mean
          of the training samples. It is negative where the prediction is worse than the mean;
        - ``spearman``, the rank correlation of held-out predictions with the label, the mean over folds;
        - the 95% interval of each, ``_low`` to ``_high``, from the influence of each cluster; NaN if the
          predictions are perfect, and that of ``spearman`` also if a fold tests one cluster only;
        - ``r2_p`` and ``spearman_p``, max-T permutation p-values, corrected over layers, and ``r2_bound`` and
          ``spearman_bound``, the 95% quantiles of the permuted maxima over layers.

        With dims ``(language,)``, baselines in the same folds: ``r2_embedding`` (input of the first block;
        NaN if a selection dropped tokens), ``r2_tfidf`` (characters of the text), ``r2_length`` (number of
        tokens) and the same of ``spearman``, each with ``_low`` and ``_high``; and ``n``, the number of
        samples.

        With dims ``(language, layer, baseline)``, what the layer adds: ``r2_difference`` and
        ``spearman_difference`` with ``_low``, ``_high`` and ``_p``, two-sided and with Holm's correction over
        layers.

        All p-values are corrected within a language; those with ``_p_holm`` are corrected over languages
        too, as by :func:`actkit.holm`. Lazy if the cube is.

    Raises
    ------
    InputError
        If an option or label does not exist, the label holds anything but numbers, or there are fewer than 20
        samples or too few clusters for the folds.

    Warns
    -----
    UserWarning
        If there are too few clusters for a small p-value.

    Notes
    -----
    Cross-validated R²: Hawkins, Basak, Mills, Assessing model fit by cross-validation, Journal of Chemical
    Information and Computer Sciences 2003. The penalty of the ridge regression is the mean eigenvalue of the
    Gram matrix of the standardised training samples, as in :func:`actkit.group_differential`.

    Examples
    --------
    >>> from actkit import open_cube
    >>> from actkit.testing import write_cube
    >>> cube = open_cube(write_cube(n_samples=80))
    >>> cube = cube.assign_coords(rating=("sample", cube.pooled.values[1, :, 0], {"label": True}))
    >>> probe = regression_probe(cube, by="rating", seeds=1, permutations=19)
    >>> bool((probe.r2.sel(layer=1) > 0.5).all())
    True
    """
    selection.check_counts(seeds=seeds, permutations=permutations)
    selection.check_counts(2, folds=folds)
    names = covariate_names(residualized_on)
    whole = select_tokens(finite_cube(cube), tokens)
    selection.require(whole, "text", "n_tokens")
    array = selection.vectors(whole, vectors)
    choice = selection.cluster_choice(array, cluster, by)
    samples_of = number_samples(array, by=by, cluster=choice.name, folds=folds)
    embedding = mean_embedding(whole, vectors)

    def summarize(language: str, _places: np.ndarray) -> xr.Dataset:
        samples = samples_of[language]
        inputs = None if embedding is None else embedding.isel(sample=samples.places)
        part = array.isel(sample=samples.places)
        splits = regression_probes.regression_folds(samples.groups, folds=folds, seeds=seeds)
        return _probed(part, inputs, samples, splits, names, permutations, seed)

    result = selection.by_language(array, summarize).assign_coords(layer=array.layer.values)
    result = with_holm(result)
    result.attrs = selection.settings(
        array,
        "regression_probe",
        by=by,
        vectors=vectors,
        residualized_on=" and ".join(names) or None,
        folds=folds,
        seeds=seeds,
        permutations=permutations,
        seed=seed,
        **choice.attrs,
        estimator="ridge",
    )
    return result


def _probed(
    vectors: xr.DataArray,
    embedding: xr.DataArray | None,
    samples: LabelSamples,
    splits: list[Fold],
    names: tuple[str, ...],
    permutations: int,
    seed: int,
) -> xr.Dataset:
    """Return the measures of the layers of one language, with p-values, baselines and differences."""
    labels, groups = samples.values, samples.groups
    covariates = covariates_of(vectors, names)
    permuted = labels[
        null_sources(labels, groups, permutations, seed=seed, covariates=covariates, is_numeric=True)
    ]

    def measures(held_out: regression_probes.HeldOutValues) -> tuple[np.ndarray, ...]:
        r2 = regression_probes.r_squared(held_out, groups)
        return (*r2, *regression_probes.spearman(held_out, groups))

    def of_layer(x: np.ndarray) -> tuple[np.ndarray, ...]:
        held_out, *draws = regression_probes.regression_probe(
            x, labels, splits, permuted=permuted, covariates=covariates
        )
        return (*measures(held_out), *draws)

    def of_embedding(x: np.ndarray) -> tuple[np.ndarray, ...]:
        return measures(regression_probes.regression_probe(x, labels, splits, covariates=covariates)[0])

    def of_texts(texts: np.ndarray) -> tuple[np.ndarray, ...]:
        held_out = regression_probes.regression_text_probe([str(text) for text in texts], labels, splits)
        return measures(held_out)

    def of_lengths(lengths: np.ndarray) -> tuple[np.ndarray, ...]:
        held_out, *_ = regression_probes.regression_probe(lengths[:, None], labels, splits)
        r2, spearman = (
            regression_probes.r_squared(held_out, groups),
            regression_probes.spearman(held_out, groups),
        )
        return (*r2, *of_either_sign(*spearman, chance=0.0))

    extra = [(f"{measure}_draws", ["draw"]) for measure in _MEASURES]
    n_clusters, sizes = samples.n_clusters, {"draw": permutations}
    layers = measured(of_layer, vectors, _MEASURES, n_clusters=n_clusters, extra=extra, sizes=sizes)
    for measure in _MEASURES:
        tested = p_values(layers[measure], layers[f"{measure}_draws"])
        layers[f"{measure}_p"], layers[f"{measure}_bound"] = tested
    kernels = {"embedding": of_embedding, "tfidf": of_texts, "length": of_lengths}
    inputs = baseline_inputs(vectors, embedding)
    baselines = baselines_measured(kernels, inputs, _MEASURES, n_clusters=n_clusters)
    layers = layers.drop_vars([name for name, _ in extra])
    return with_baselines(layers, baselines, _MEASURES, n_clusters).assign(n=len(labels))
