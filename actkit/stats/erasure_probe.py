"""Probe AUROC of each layer before and after the label is erased, by an eraser fitted on other clusters."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr

from ..canonical import Cube
from ..errors import Fault, InputError
from . import selection
from .finiteness import finite_cube
from .group_comparison import FEWEST, contrasts_of
from .kernels import auroc
from .kernels.erased_probe import erased_probe, halves
from .kernels.probes import HeldOutScores
from .token_selection import select_tokens

_WHEN = ("before", "after")


def erasure_probe(
    cube: Cube,
    *,
    by: str,
    cluster: str | None = selection.AUTO,
    between: tuple[Any, Any] | None = None,
    vectors: selection.Pooling = "pooled",
    tokens: selection.TokenSelection = "content",
    layers: Sequence[int] | None = None,
    folds: int = 5,
    seeds: int = 1,
    shrinkage: Literal["ledoit-wolf"] | None = "ledoit-wolf",
) -> xr.Dataset:
    """Measure how well a linear probe reads a label before and after LEACE, on clusters of no eraser.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    by, cluster, between, vectors, tokens
        As for :func:`group_differential`.
    layers
        Layers to erase and probe; all by default.
    folds
        Number of cross-validation folds in each half of the clusters.
    seeds
        Number of divisions of the clusters into halves.
    shrinkage
        As for :meth:`Eraser.fit`; None for no shrinkage.

    Returns
    -------
    xarray.Dataset
        Dims ``(language, layer)``: ``auroc_before`` and ``auroc_after`` of a ridge-regression probe, each
        with its 95% interval, such as ``auroc_after_low`` to ``auroc_after_high``. With dims
        ``(language,)``, the group sizes ``n_<label>``. Lazy if the cube is.

    Raises
    ------
    InputError
        If a label is missing, or has too few samples or clusters for two halves.

    Notes
    -----
    The clusters are divided into two halves. An :class:`Eraser` is fitted on one, and the probe is trained
    and tested on the other, in folds; then the halves change places. A probe trained on the samples of the
    eraser would have weights of 0, whatever the eraser is worth, and one that is cross-validated on them
    is below chance. The AUROC before is that of the same folds, and usually lower than that of
    :func:`group_differential`, which trains on twice as many samples. The intervals are about other samples
    with the same erasers.

    Belrose et al., LEACE: perfect linear concept erasure in closed form, NeurIPS 2023, arXiv:2306.03819.

    Examples
    --------
    >>> from actkit import open_cube
    >>> from actkit.testing import write_cube
    >>> cube = open_cube(write_cube(n_samples=160, hidden=8))
    >>> result = erasure_probe(cube, by="gender", cluster="image_id", layers=[1]).compute()
    >>> result.auroc_after.dims
    ('language', 'layer')
    """
    selection.check_counts(seeds=seeds)
    selection.check_counts(2, folds=folds)
    if shrinkage not in (None, "ledoit-wolf"):
        raise InputError([Fault("shrinkage", f"{shrinkage!r} is unknown", "ledoit-wolf, or None")])
    array = selection.vectors(selection.of_layers(select_tokens(finite_cube(cube), tokens), layers), vectors)
    choice = selection.cluster_choice(array, cluster, by)
    names, contrasts = contrasts_of(array, by=by, cluster=choice.name, between=between, folds=2 * folds)
    divided = {
        language: list(halves(contrast.labels, contrast.groups, folds=folds, seeds=seeds))
        for language, contrast in contrasts.items()
    }
    faults = [
        Fault(language, "a half of the clusters has too few of a label", "extract more, or use fewer folds")
        for language, parts in divided.items()
        if len(parts) < 2 * seeds
        or any(
            len(part.folds) < folds or _fewest(contrasts[language].labels[part.fitted]) < FEWEST // 2
            for part in parts
        )
    ]
    if faults:
        raise InputError(faults, f"cannot erase {by}")

    def summarize(language: str, _places: np.ndarray) -> xr.Dataset:
        contrast, parts = contrasts[language], divided[language]
        labels, groups = contrast.labels, contrast.groups

        def summary(scores: HeldOutScores) -> tuple[np.ndarray, ...]:
            mean = auroc.fold_aurocs(scores.scores, labels).mean()
            influence = auroc.cluster_influence(scores.scores, scores.effects, labels, groups)
            bounds = auroc.auroc_interval(mean, influence, auroc.fewest_clusters(labels, groups))
            return tuple(map(np.asarray, (mean, *bounds)))

        def kernel(x: np.ndarray) -> tuple[np.ndarray, ...]:
            both = erased_probe(x, labels, groups, parts, shrink=shrinkage is not None)
            return tuple(value for scores in both for value in summary(scores))

        part = array.isel(sample=contrast.places)
        found = selection.apply(kernel, part, core=[["sample", "hidden"]], out=[[]] * 6)
        variables = [f"auroc_{when}{end}" for when in _WHEN for end in ("", "_low", "_high")]
        result = xr.Dataset(dict(zip(variables, found, strict=True)))
        counts = {names[0]: (~labels).sum(), names[1]: labels.sum()}
        return result.assign({f"n_{name}": int(count) for name, count in counts.items()})

    result = selection.by_language(array, summarize).assign_coords(layer=array.layer.values)
    result.attrs = selection.settings(
        array,
        "erasure_probe",
        by=by,
        between=" to ".join(names),
        vectors=vectors,
        folds=folds,
        seeds=seeds,
        **choice.attrs,
        shrinkage=shrinkage,
        interval=f"95%, by {choice.name or 'sample'}",
    )
    return result


def _fewest(labels: np.ndarray) -> int:
    return int(min(labels.sum(), (~labels).sum()))
