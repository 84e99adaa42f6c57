"""Probe AUROC of layers and baselines on the same folds, with intervals and paired differences by cluster."""

from functools import partial

import dask.base
import numpy as np
import xarray as xr

from ..errors import Fault, InputError
from . import selection
from .group_comparison import Contrast
from .kernels import auroc, control_tasks, multiple_tests, probes
from .kernels.covariates import Covariates
from .kernels.residual_probe import residual_probe

BASELINES = ("embedding", "tfidf", "length")
SELECTIVITY = ("auroc_control", "selectivity", "selectivity_low", "selectivity_high")
_VECTORS = [["sample", "hidden"]]
_INFLUENCE = ["role", "cluster"]


def check_estimator(estimator: str, covariates: tuple[str, ...] = ()) -> None:
    """Raise InputError if the estimator is unknown, or cannot be used with covariates."""
    if covariates and estimator == "logistic":
        problem = "residuals are probed by ridge regression only"
        raise InputError([Fault("estimator", problem, "leave out `estimator`, or `residualized_on`")])
    if estimator not in probes.ESTIMATORS:
        raise InputError(
            [Fault("estimator", f"{estimator!r} is unknown", f"one of {', '.join(probes.ESTIMATORS)}")]
        )


def probe_layers(
    vectors: xr.DataArray,
    contrast: Contrast,
    folds: list[probes.Fold],
    permuted: np.ndarray,
    estimator: probes.Estimator,
    control: np.ndarray | None = None,
    covariates: Covariates | None = None,
) -> xr.Dataset:
    """Return the AUROC of each layer, with its interval and its null distribution.

    Parameters
    ----------
    vectors
        Vectors of the samples of the contrast, dims ``(layer, sample, hidden)``.
    contrast
        Labels and clusters of the samples.
    folds
        From :func:`~actkit.stats.group_comparison.cut_folds`.
    permuted
        Permuted labels, dims ``(permutation, sample)``.
    estimator
        ``ridge`` or ``logistic``.
    control
        Labels of control tasks, dims ``(draw, sample)``; none by default.
    covariates
        What to remove from the vectors; nothing by default.

    Returns
    -------
    xarray.Dataset
        Dims ``(layer,)``: ``auroc``, ``auroc_low``, ``auroc_high``, ``auroc_sd``, ``balanced_accuracy``,
        ``p`` and ``auroc_bound``; with control tasks, ``auroc_control``, ``selectivity``, ``selectivity_low``
        and ``selectivity_high``; and ``influence``, dims ``(layer, role, cluster)``.
    """

    def kernel(x: np.ndarray) -> tuple[np.ndarray, ...]:
        options = {"permuted": permuted, "control": control}
        if covariates is None:
            held_out, draws = probes.probe(x, contrast.labels, folds, estimator=estimator, **options)
        else:
            held_out, draws = residual_probe(x, contrast.labels, folds, covariates=covariates, **options)
        aurocs = auroc.fold_aurocs(held_out.scores, contrast.labels)
        sd, accuracy = aurocs.std(ddof=1), probes.balanced_accuracy(held_out.scores, contrast.labels)
        found = (*_summary(held_out, contrast), np.asarray(sd), np.asarray(accuracy), draws)
        if control is None:
            return found
        selectivity = control_tasks.selectivity(held_out, found[3], contrast.labels, control, contrast.groups)
        return (*found, *map(np.asarray, selectivity))

    names: tuple[str, ...] = ("auroc", "auroc_low", "auroc_high", "influence")
    names += ("auroc_sd", "balanced_accuracy", "draws")
    out: list[list[str]] = [[], [], [], _INFLUENCE, [], [], ["draw"]]
    if control is not None:
        names += SELECTIVITY
        out += [[]] * len(SELECTIVITY)
    sizes = {"role": 2, "cluster": contrast.n_clusters, "draw": len(permuted)}
    found = selection.apply(kernel, vectors, core=_VECTORS, out=out, sizes=sizes)
    result = xr.Dataset(dict(zip(names, found, strict=True)))
    largest = result.draws.max("layer")
    n_exceeding = (largest >= result.auroc).sum("draw")
    result["p"] = ((1 + n_exceeding) / (1 + len(permuted))).where(result.auroc.notnull())
    (result["auroc_bound"],) = selection.apply(
        lambda draws: (np.quantile(draws, 0.95),), largest, core=[["draw"]], out=[[]]
    )
    return result.drop_vars("draws")


def probe_baselines(
    vectors: xr.DataArray,
    embedding: xr.DataArray | None,
    contrast: Contrast,
    folds: list[probes.Fold],
    estimator: probes.Estimator,
    covariates: Covariates | None = None,
) -> xr.Dataset:
    """Return the AUROC of baselines that do not use the layers: embedding, text and length.

    Parameters
    ----------
    vectors
        Vectors of the samples of the contrast, with the coordinates ``text`` and ``n_tokens``.
    embedding
        Embeddings of the samples of the contrast, dims ``(sample, hidden)``, if all tokens are known.
    contrast, folds, estimator
        As for :func:`probe_layers`. The text is classified by logistic regression.
    covariates
        What to remove from the embedding; nothing by default.

    Returns
    -------
    xarray.Dataset
        Dims ``(baseline,)``: ``auroc``, ``auroc_low`` and ``auroc_high``; and ``influence``, dims
        ``(baseline, role, cluster)``.
    """

    def of_vectors(x: np.ndarray) -> tuple[np.ndarray, ...]:
        matrix = x.reshape(len(contrast.labels), -1)
        found = _summary(probes.probe(matrix, contrast.labels, folds, estimator=estimator)[0], contrast)
        return found if matrix.shape[1] > 1 else of_either_sign(*found)

    def of_embedding(x: np.ndarray) -> tuple[np.ndarray, ...]:
        if covariates is None:
            return of_vectors(x)
        return _summary(residual_probe(x, contrast.labels, folds, covariates=covariates)[0], contrast)

    def of_texts(texts: np.ndarray) -> tuple[np.ndarray, ...]:
        return _summary(probes.probe_texts([str(text) for text in texts], contrast.labels, folds), contrast)

    inputs = {
        "tfidf": xr.DataArray(vectors.text.variable),
        "length": xr.DataArray(vectors.n_tokens.variable.astype(np.float64)),
    }
    if dask.base.is_dask_collection(vectors):
        inputs = {name: array.chunk() for name, array in inputs.items()}
    if embedding is not None:
        inputs["embedding"] = embedding
    names = ("auroc", "auroc_low", "auroc_high", "influence")
    out: list[list[str]] = [[], [], [], _INFLUENCE]
    parts, kernels = [], {"embedding": of_embedding, "tfidf": of_texts, "length": of_vectors}
    for baseline in BASELINES:
        if baseline in inputs:
            array = inputs[baseline]
            found = selection.apply(
                kernels[baseline],
                array,
                core=[list(array.dims)],
                out=out,
                sizes={"role": 2, "cluster": contrast.n_clusters},
            )
        else:
            found = tuple(
                xr.DataArray(np.full([2, contrast.n_clusters][: len(dims)], np.nan), dims=dims)
                for dims in out
            )
        parts.append(xr.Dataset(dict(zip(names, found, strict=True))))
    return xr.concat(parts, xr.Variable("baseline", np.array(BASELINES, dtype=object)))


def differences(layers: xr.Dataset, baselines: xr.Dataset, contrast: Contrast) -> xr.Dataset:
    """Return the AUROC of layers minus that of baselines.

    Parameters
    ----------
    layers, baselines
        From :func:`probe_layers` and :func:`probe_baselines`.
    contrast
        Labels and clusters of the samples.

    Returns
    -------
    xarray.Dataset
        Dims ``(layer, baseline)``: ``auroc_difference``, ``auroc_difference_low``, ``auroc_difference_high``
        and ``auroc_difference_p``, with Holm's correction over layers.
    """
    fewest = auroc.fewest_clusters(contrast.labels, contrast.groups)

    def kernel(*values: np.ndarray) -> tuple[float, ...]:
        first, second, *influences = values
        return auroc.paired_difference((first.item(), second.item()), (influences[0], influences[1]), fewest)

    pairs = (layers.auroc, baselines.auroc, layers.influence, baselines.influence)
    found = selection.apply(kernel, *pairs, core=[[], [], _INFLUENCE, _INFLUENCE], out=[[]] * 4)
    names = ("auroc_difference", "auroc_difference_low", "auroc_difference_high", "auroc_difference_p")
    result = xr.Dataset(dict(zip(names, found, strict=True)))
    (result["auroc_difference_p"],) = selection.apply(
        lambda p: (auroc.holm(p),), result.auroc_difference_p, core=[["layer"]], out=[["layer"]]
    )
    return result.transpose("layer", "baseline")


def layer_differences(layers: xr.Dataset, contrast: Contrast, seed: int) -> xr.Dataset:
    """Return the differences between the AUROCs of all pairs of layers.

    Parameters
    ----------
    layers
        From :func:`probe_layers`.
    contrast
        Labels and clusters of the samples.
    seed
        Random seed.

    Returns
    -------
    xarray.Dataset
        Dims ``(layer, layer_2)``: ``layer_difference``, ``layer_difference_low``, ``layer_difference_high``
        and ``layer_difference_p``, corrected over all pairs.
    """
    fewest = auroc.fewest_clusters(contrast.labels, contrast.groups)
    found = selection.apply(
        partial(multiple_tests.pairwise_differences, fewest=fewest, seed=seed),
        layers.auroc,
        layers.influence,
        core=[["layer"], ["layer", *_INFLUENCE]],
        out=[["layer", "layer_2"]] * 4,
        sizes={"layer_2": layers.sizes["layer"]},
    )
    names = ("layer_difference", "layer_difference_low", "layer_difference_high", "layer_difference_p")
    return xr.Dataset(dict(zip(names, found, strict=True)))


def _summary(held_out: probes.HeldOutScores, contrast: Contrast) -> tuple[np.ndarray, ...]:
    """Return the mean AUROC over folds, the ends of its interval, and the influence of each cluster."""
    mean = auroc.fold_aurocs(held_out.scores, contrast.labels).mean()
    influence = auroc.cluster_influence(held_out.scores, held_out.effects, contrast.labels, contrast.groups)
    fewest = auroc.fewest_clusters(contrast.labels, contrast.groups)
    low, high = auroc.auroc_interval(mean, influence, fewest)
    return np.asarray(mean), np.asarray(low), np.asarray(high), influence


def of_either_sign(
    mean: np.ndarray, low: np.ndarray, high: np.ndarray, influence: np.ndarray, *, chance: float = 0.5
) -> tuple[np.ndarray, ...]:
    """Widen the interval of a single feature, whose weight has no direction but its sign.

    Other training samples may turn an AUROC of a into 1 - a, which no derivative tells. If the interval
    contains chance, the sign is uncertain, and the interval takes in its mirror image.

    Parameters
    ----------
    mean, low, high, influence
        The measure, the ends of its interval, and the influence of each cluster.
    chance
        The value by chance: 0.5 for an AUROC, 0 for a correlation.
    """
    if low <= chance <= high:
        low, high = np.minimum(low, 2 * chance - high), np.maximum(high, 2 * chance - low)
    return mean, low, high, influence
