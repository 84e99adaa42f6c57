"""Part of a report about a few layers: four measures of their similarity, and the norms of their tokens."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from .. import plots
from ..errors import InputError
from ..plots.measures import adjacent
from ..stats.similarity import MEASURES
from .findings import joined
from .methods import describe
from .section import Choice, Section, few_layers

_LAYERS = 5
_SAMPLES = 300  # of each language; the cost of CKA and RSA grows with the square of their number
_PERMUTATIONS = 20
_NAMES = {
    "cka": "CKA",
    "mutual_knn": "mutual nearest neighbours",
    "rsa": "RSA",
    "procrustes": "Procrustes",
}


def add_measures(cube: xr.Dataset, choice: Choice, section: Section) -> None:
    """Add the calibrated similarity of a few layers by each measure."""
    options: dict[str, Any] = {
        "layers": few_layers(cube, _LAYERS),
        "vectors": choice.vectors,
        "cluster": choice.cluster,
        "max_samples": _SAMPLES,
        "permutations": _PERMUTATIONS,
    }
    if len(options["layers"]) < 2:
        return
    try:
        made = _computed(section, MEASURES, options)
    except InputError:  # too few samples for the neighbours
        made = _computed(section, [name for name in MEASURES if name != "mutual_knn"], options)
    if not any(bool(table.calibrated.notnull().any()) for table in made):
        return
    index = xr.Variable("measure", np.array([table.attrs["measure"] for table in made], dtype=object))
    every = xr.concat(made, index, combine_attrs="drop_conflicts")
    section.results["similarity"] = every
    section.methods.append(describe(every.attrs))
    section.pictures["similarity"] = plots.similarity_measures(made)
    section.sentences += of_measures(every)


def _computed(section: Section, measures: Sequence[str], options: dict[str, Any]) -> list[xr.Dataset]:
    """Compute all measures together, so that vectors are read once."""
    return section.compute([("similarity", {"measure": measure, **options}) for measure in measures])


def of_measures(similarity: xr.Dataset) -> list[str]:
    """Report between which consecutive layers of those compared each measure finds the least similarity."""
    sentences, layers = [], similarity.layer.values.tolist()
    listed = joined([str(layer) for layer in layers])
    for language in similarity.language.values.tolist():
        n = int(similarity.n.sel(language=language).max())  # the same for each measure
        found = defaultdict(list)
        for measure in similarity.measure.values.tolist():
            values = adjacent(similarity.calibrated.sel(language=language, measure=measure))
            if np.isfinite(values).any():
                at = int(np.nanargmin(values))
                found[at].append(f"{_NAMES[measure]} ({values[at]:.2f})")
        if found:
            parts = [
                f"from layer {layers[at]} to layer {layers[at + 1]} by {joined(names)}"
                for at, names in sorted(found.items())
            ]
            sentences.append(
                f"{language}: of the layers {listed}, consecutive ones are "
                f"least similar {'; '.join(parts)}, calibrated in {n:,} "
                "independent samples (1: equal; 0: no more similar than permuted samples)."
            )
    return sentences


def add_norm_correlation(cube: xr.Dataset, choice: Choice, section: Section) -> None:
    """Add the correlation of the norms of tokens between a few layers."""
    layers = few_layers(cube, _LAYERS)
    if len(layers) < 2 or "norm" not in cube:
        return
    options: dict[str, Any] = {"of": "norm", "layers": layers, "cluster": choice.cluster}
    correlation = section.add("token_correlation", "token_correlation", **options)
    section.pictures["token_correlation"] = plots.token_correlation(correlation, "spearman")
    section.sentences += of_norm_correlation(correlation)


def of_norm_correlation(correlation: xr.Dataset) -> list[str]:
    """Report between which consecutive layers of those compared the order of the norms changes most."""
    sentences, layers = [], correlation.layer.values.tolist()
    listed = joined([str(layer) for layer in layers])
    for language in correlation.language.values.tolist():
        table = correlation.sel(language=language)
        values, low, high = (adjacent(table[f"spearman{end}"]) for end in ("", "_low", "_high"))
        if np.isfinite(values).any():
            at = int(np.nanargmin(values))
            sentences.append(
                f"{language}: of the layers {listed}, the order of tokens by "
                f"norm changes most from layer {layers[at]} to layer {layers[at + 1]}: Spearman correlation "
                f"{values[at]:z.2f} (95% interval {low[at]:z.2f} to {high[at]:z.2f})."
            )
    return sentences
