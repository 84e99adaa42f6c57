"""Cross-language transfer of a probe: trained in one language, tested in another."""

from typing import Any

import numpy as np
import xarray as xr

from ..canonical import Cube
from ..errors import Fault, InputError
from . import selection
from .finiteness import finite_cube
from .group_comparison import cut_folds, faults_of, two_labels
from .groups import label_text
from .kernels import probes
from .matched_samples import check_languages


def transfer(
    cube: Cube,
    *,
    by: str,
    across: str = "language",
    cluster: str | None = selection.AUTO,
    between: tuple[Any, Any] | None = None,
    vectors: selection.Pooling = "pooled",
    folds: int = 5,
    seeds: int = 1,
) -> xr.Dataset:
    """Train a probe in one language and test it in each, on held-out clusters.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    across
        Domains to train and test on: ``language``, or a label column.
    by, cluster, between, vectors, folds, seeds
        As for :func:`group_differential`. Without a cluster label, samples with the same
        ``sample_id`` form a cluster.

    Returns
    -------
    xarray.Dataset
        Dims ``(train, test, layer)``: ``auroc``, and ``auroc_sd``, its standard deviation over folds and
        seeds. An AUROC below 0.5 means that the direction is reversed. Lazy if the cube is.

    Raises
    ------
    InputError
        As for :func:`group_differential`.
    """
    selection.check_counts(seeds=seeds)
    selection.check_counts(2, folds=folds)
    array = selection.vectors(finite_cube(cube), vectors)
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

    def kernel(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        aurocs = probes.transfer_probe(x, is_second, domain, splits)
        return np.nanmean(aurocs, axis=2), np.nanstd(aurocs, axis=2, ddof=1)

    sizes = {"train": len(domain_codes), "test": len(domain_codes)}
    mean, sd = selection.apply(
        kernel,
        array.isel(sample=order),
        core=[["sample", "hidden"]],
        out=[["train", "test"]] * 2,
        sizes=sizes,
    )
    result = xr.Dataset({"auroc": mean, "auroc_sd": sd}).transpose("train", "test", "layer")
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
    )
    return result
