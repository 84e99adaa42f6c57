"""Cross-language transfer of a probe: trained in one language, tested in another."""

from typing import Any

import numpy as np
import xarray as xr

from ..canonical import Cube
from ..errors import Fault, InputError
from . import selection
from .finiteness import finite_cube
from .group_comparison import cut_folds, faults_of, two_labels
from .group_probes import check_estimator
from .groups import label_text
from .kernels import auroc, probes
from .matched_samples import check_languages
from .token_selection import select_tokens

_VARIABLES = ("auroc", "auroc_low", "auroc_high", "auroc_sd")


def transfer(
    cube: Cube,
    *,
    by: str,
    across: str = "language",
    cluster: str | None = selection.AUTO,
    between: tuple[Any, Any] | None = None,
    vectors: selection.Pooling = "pooled",
    tokens: selection.TokenSelection = "content",
    folds: int = 5,
    seeds: int = 1,
    estimator: probes.Estimator = "ridge",
) -> xr.Dataset:
    """Train a probe in one language and test it in each, on held-out clusters.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    across
        Domains to train and test on: ``language``, or a label column.
    by, cluster, between, vectors, tokens, folds, seeds, estimator
        As for :func:`group_differential`. Without a cluster label, samples with the same ``sample_id`` form
        a cluster.

    Returns
    -------
    xarray.Dataset
        Dims ``(train, test, layer)``: ``auroc``, its 95% interval ``auroc_low`` and ``auroc_high`` by
        cluster, and ``auroc_sd``, its standard deviation over folds and seeds. An AUROC below 0.5 means
        that the direction is reversed. Lazy if the cube is.

    Raises
    ------
    InputError
        As for :func:`group_differential`.
    """
    selection.check_counts(seeds=seeds)
    selection.check_counts(2, folds=folds)
    check_estimator(estimator)
    array = selection.vectors(select_tokens(finite_cube(cube), tokens), vectors)
    domains = selection.column(array, across, "across")
    if not len(domains.values):
        raise InputError([Fault("across", f"no sample has a value of `{across}`", "choose another label")])
    names, kept, is_second_of_all = two_labels(array, by, between)
    choice = selection.cluster_choice(array, cluster, by)
    if choice.name is None:
        check_languages(array, "name the label that dependent samples share: `cluster`")
    order = np.concatenate([samples for _, samples in selection.languages(array)])
    order = order[kept[order] & (domains.codes[order] >= 0)]
    is_second = is_second_of_all[order]
    groups = selection.codes(selection.clusters(array, choice.name or "sample_id")[order])
    domain_codes = list(dict.fromkeys(domains.codes[order].tolist()))
    domain = np.array([domain_codes.index(code) for code in domains.codes[order].tolist()])
    index = domains.values[domain_codes]
    faults = [
        fault
        for number, name in enumerate(map(label_text, index))
        for fault in faults_of(
            f"{across} {name}", is_second[domain == number], groups[domain == number], names, folds
        )
    ]
    if faults:
        raise InputError(faults, f"cannot compare {by}")
    splits = cut_folds(across, is_second, groups, folds, seeds)

    def kernel(x: np.ndarray) -> tuple[np.ndarray, ...]:
        results = probes.transfer_probe(x, is_second, domain, splits, estimator=estimator)
        table = [[_summary(held_out, is_second, groups) for held_out in row] for row in results]
        return tuple(np.moveaxis(np.array(table), -1, 0))

    sizes = {"train": len(domain_codes), "test": len(domain_codes)}
    found = selection.apply(
        kernel,
        array.isel(sample=order),
        core=[["sample", "hidden"]],
        out=[["train", "test"]] * len(_VARIABLES),
        sizes=sizes,
    )
    result = xr.Dataset(dict(zip(_VARIABLES, found, strict=True))).transpose("train", "test", "layer")
    result = result.assign_coords(train=index, test=index, layer=array.layer.values)
    result.attrs = selection.settings(
        array,
        "transfer",
        by=by,
        across=across,
        between=" to ".join(names),
        vectors=vectors,
        folds=folds,
        seeds=seeds,
        **choice.attrs,
        estimator=estimator,
    )
    return result


def _summary(
    held_out: probes.HeldOutScores, labels: np.ndarray, groups: np.ndarray
) -> tuple[float, float, float, float]:
    """Return the `_VARIABLES` of the held-out scores of one domain."""
    aurocs = auroc.fold_aurocs(held_out.scores, labels)
    aurocs = aurocs[~np.isnan(aurocs)]
    if not len(aurocs):
        return (np.nan,) * 4
    tested = ~np.isnan(held_out.scores).all(axis=0)
    influence = auroc.cluster_influence(held_out.scores, held_out.effects, labels, groups)
    fewest = auroc.fewest_clusters(labels[tested], groups[tested])
    low, high = auroc.auroc_interval(aurocs.mean(), influence, fewest)
    return aurocs.mean(), low, high, aurocs.std(ddof=1) if len(aurocs) > 1 else np.nan
