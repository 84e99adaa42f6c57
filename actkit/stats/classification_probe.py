"""Probes of a label with two or more classes by layer, with text-only baselines."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from ..canonical import Cube
from . import selection
from .baseline_inputs import baseline_inputs, mean_embedding
from .finiteness import finite_cube
from .group_probes import of_either_sign
from .kernels import class_probes
from .kernels.auroc import fewest_clusters
from .kernels.covariates import Covariate
from .kernels.label_models import null_sources
from .kernels.probes import Fold
from .label_samples import LabelSamples, class_samples, class_splits, covariate_names, covariates_of
from .length_matches import MatchedOn
from .multiple_results import with_holm
from .probe_measures import baselines_measured, measured, p_values, with_baselines
from .token_selection import select_tokens

_MEASURES = ("macro_auroc",)
_CLASS = "class"  # temporary name of the dimension, until the result's variables are known
_EACH = ("auroc", "auroc_low", "auroc_high")


def classification_probe(
    cube: Cube,
    *,
    by: str,
    cluster: str | None = selection.AUTO,
    classes: Sequence[Any] | None = None,
    vectors: selection.Pooling = "pooled",
    tokens: selection.TokenSelection = "content",
    matched_on: MatchedOn | None = None,
    residualized_on: Covariate | Sequence[Covariate] = (),
    folds: int = 5,
    seeds: int = 3,
    permutations: int = 200,
    seed: int = 0,
) -> xr.Dataset:
    """Measure how well a linear probe tells each class from the rest at each layer, with baselines.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    by
        The label column whose values are the classes, two or more.
    cluster
        The label that dependent samples share, such as a scene or a template, which are never split between
        training and test; by default detected (see "Dependent samples" in the methods). None if all samples
        are independent.
    classes
        Values of ``by``, as values or text; by default, all of them in ascending order. Samples of other
        classes are excluded.
    vectors
        ``pooled``, ``last`` or ``prompt_end``.
    tokens
        Tokens that these and the embedding represent, as for :func:`adjacent_cka`. Text and length, as
        baselines and as covariates, are those of the whole text.
    matched_on
        ``length`` keeps, within each language, the same number of samples of each class at each length.
    residualized_on
        ``length``, ``tfidf`` or both: their prediction of the vectors is subtracted, by a regression fitted
        in each training part (see "Matching and residuals" in the methods).
    folds, seeds
        Number of cross-validation folds, and of repetitions with different seeds.
    permutations
        Number of permutations of the classes, which respect ``cluster`` and, with ``residualized_on``, the
        dependence of the classes on the covariates.
    seed
        Random seed of the permutations and of the matching.

    Returns
    -------
    xarray.Dataset
        Dims ``(language, layer)``:

        - ``macro_auroc``, the mean over classes of the AUROC of each class against the rest, itself the mean
          over folds and seeds, of ridge-regression probes; its 95% interval ``macro_auroc_low`` to
          ``macro_auroc_high``, from the influence of each cluster;
        - ``macro_auroc_p``, the max-T permutation p-value, corrected over layers, and ``macro_auroc_bound``,
          the 95% quantile of the permuted maximum over layers;
        - with a dimension that is named like ``by`` (``<by>_label`` if the result already has that name; the
          attribute ``group_dim`` holds it): ``auroc`` of each class against the rest with ``auroc_low``,
          ``auroc_high`` and ``auroc_p``, corrected over layers and classes; and, without layers, ``n``, the
          number of samples.

        With dims ``(language,)``, baselines in the same folds: ``macro_auroc_embedding`` (input of the first
        block; NaN if a selection dropped tokens), ``macro_auroc_tfidf`` (characters of the text) and
        ``macro_auroc_length`` (number of tokens), each with ``_low`` and ``_high``; and, with ``matched_on``,
        ``n_unmatched``, the number of samples left out.

        With dims ``(language, layer, baseline)``, what the layer adds: ``macro_auroc_difference`` with
        ``_low``, ``_high`` and ``_p``, two-sided and with Holm's correction over layers.

        All p-values are corrected within a language; those with ``_p_holm`` are corrected over languages
        too, as by :func:`actkit.holm`. Lazy if the cube is.

    Raises
    ------
    InputError
        If an option or label does not exist, or a class has fewer than 10 samples or occurs in too few
        clusters for the folds.

    Warns
    -----
    UserWarning
        If there are too few clusters for a small p-value, or some folds lack a class.

    Notes
    -----
    One-vs-rest AUROC and its unweighted mean: Hand, Till, A simple generalisation of the area under the ROC
    curve for multiple class classification problems, Machine Learning 2001; Fawcett, An introduction to ROC
    analysis, Pattern Recognition Letters 2006. With two classes, both equal the AUROC of
    :func:`actkit.group_differential`.

    Examples
    --------
    >>> from actkit import open_cube
    >>> from actkit.testing import write_cube
    >>> cube = open_cube(write_cube(n_samples=80))
    >>> probe = classification_probe(cube, by="gender", seeds=1, permutations=19)
    >>> probe.auroc.dims
    ('language', 'layer', 'gender')
    """
    selection.check_counts(seeds=seeds, permutations=permutations)
    selection.check_counts(2, folds=folds)
    names = covariate_names(residualized_on)
    whole = select_tokens(finite_cube(cube), tokens)
    selection.require(whole, "text", "n_tokens")
    array = selection.vectors(whole, vectors)
    choice = selection.cluster_choice(array, cluster, by)
    values, samples_of = class_samples(
        array, by=by, cluster=choice.name, classes=classes, folds=folds, matched_on=matched_on, seed=seed
    )
    embedding = mean_embedding(whole, vectors)

    def summarize(language: str, _places: np.ndarray) -> xr.Dataset:
        samples = samples_of[language]
        inputs = None if embedding is None else embedding.isel(sample=samples.places)
        part = array.isel(sample=samples.places)
        splits = class_splits(language, samples, folds, seeds)
        result = _probed(part, inputs, samples, splits, names, permutations, seed)
        result["n"] = xr.DataArray(np.bincount(samples.values, minlength=len(values)), dims=_CLASS)
        return result if matched_on is None else result.assign(n_unmatched=samples.n_unmatched)

    result = selection.by_language(array, summarize).assign_coords(layer=array.layer.values)
    taken = [*result.data_vars, *(dim for dim in result.dims if dim != _CLASS)]
    group_dim = selection.free_name(by, taken)
    result = with_holm(result.rename({_CLASS: group_dim}).assign_coords({group_dim: values}))
    result.attrs = selection.settings(
        array,
        "classification_probe",
        by=by,
        group_dim=group_dim,
        vectors=vectors,
        matched_on=matched_on,
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
    codes, groups = samples.values, samples.groups
    covariates = covariates_of(vectors, names)
    permuted = codes[
        null_sources(codes, groups, permutations, seed=seed, covariates=covariates, is_numeric=False)
    ]

    def of_layer(x: np.ndarray) -> tuple[np.ndarray, ...]:
        held_out, draws = class_probes.class_probe(x, codes, splits, permuted=permuted, covariates=covariates)
        aurocs = class_probes.ClassAurocs.of(held_out, codes, groups)
        return (*aurocs.macro, *aurocs.each, draws.mean(axis=1), draws.max(axis=1))

    def of_embedding(x: np.ndarray) -> tuple[np.ndarray, ...]:
        held_out, _ = class_probes.class_probe(x, codes, splits, covariates=covariates)
        return class_probes.ClassAurocs.of(held_out, codes, groups).macro

    def of_texts(texts: np.ndarray) -> tuple[np.ndarray, ...]:
        held_out = class_probes.class_text_probe([str(text) for text in texts], codes, splits)
        return class_probes.ClassAurocs.of(held_out, codes, groups).macro

    def of_lengths(lengths: np.ndarray) -> tuple[np.ndarray, ...]:
        held_out, _ = class_probes.class_probe(lengths[:, None], codes, splits)
        return of_either_sign(*class_probes.ClassAurocs.of(held_out, codes, groups).macro)

    n_clusters, n_classes = samples.n_clusters, int(codes.max()) + 1
    extra = [*((name, [_CLASS]) for name in _EACH), ("draws", ["draw"]), ("largest", ["draw"])]
    sizes = {_CLASS: n_classes, "draw": permutations}
    layers = measured(of_layer, vectors, _MEASURES, n_clusters=n_clusters, extra=extra, sizes=sizes)
    layers["macro_auroc_p"], layers["macro_auroc_bound"] = p_values(layers.macro_auroc, layers.draws)
    layers["auroc_p"], _ = p_values(layers.auroc, layers.largest)
    kernels = {"embedding": of_embedding, "tfidf": of_texts, "length": of_lengths}
    inputs = baseline_inputs(vectors, embedding)
    baselines = baselines_measured(kernels, inputs, _MEASURES, n_clusters=n_clusters)
    fewest = min(fewest_clusters(codes == place, groups) for place in range(n_classes))
    layers = layers.drop_vars(["draws", "largest"])
    return with_baselines(layers, baselines, _MEASURES, fewest, limits=(0, 1))
