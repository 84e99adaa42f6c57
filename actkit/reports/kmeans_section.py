"""Part of a report about k-means clusters of samples."""

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from ..stats.groups import label_text
from .findings import probability
from .section import Choice, Section, few_layers

_CANDIDATES = [2, 4, 8]
_RESAMPLES = 2
_PERMUTATIONS = 100
_AGREEMENT = ("adjusted_rand", "adjusted_rand_null_mean", "adjusted_rand_p")
_SHOWN = 80  # characters of a text
_NO_STRUCTURE = 0.25  # Kaufman and Rousseeuw, Finding groups in data, 1990, table 4
_WEAK = " (at most 0.25: no substantial structure)"
_NEGLIGIBLE = 0.01  # difference between adjusted Rand indices


def add_kmeans(cube: xr.Dataset, choice: Choice, section: Section, *, by: list[str]) -> None:
    """Add the k-means clusters of the middle layer, and their agreement with labels."""
    options: dict[str, Any] = {
        "k": _CANDIDATES,
        "layers": few_layers(cube, 3)[1:2] or few_layers(cube, 1),
        "by": by,
        "vectors": choice.vectors,
        "cluster": choice.cluster,
        "resamples": _RESAMPLES,
        "permutations": _PERMUTATIONS,
    }
    result = section.add("k_means", "cluster_samples", **options)
    section.results["k_means"] = result.drop_dims(["sample", "label"], errors="ignore")
    if by:
        section.results["k_means_and_labels"] = result.drop_dims(["sample", "candidate"])[list(_AGREEMENT)]
    section.sentences += of_kmeans(result)
    section.tables["k_means_clusters"] = clusters_of(result, {name: cube[name].values for name in by})


def of_kmeans(result: xr.Dataset) -> list[str]:
    """Report the number of k-means clusters, how clear they are, and whether they agree with labels."""
    sentences = []
    candidates = " or ".join(", ".join(map(str, result.candidate.values.tolist())).rsplit(", ", 1))
    layer = result.layer.values.item()
    for language in result.language.values.tolist():
        table = result.sel(language=language, layer=layer)
        if not np.isfinite(table.k):
            sentences.append(f"{language}: too few distinct vectors for k-means.")
            continue
        chosen = table.sel(candidate=int(table.k))
        weak = _WEAK if chosen.silhouette <= _NO_STRUCTURE else ""
        sentence = (
            f"{language}: of {candidates} k-means clusters at layer {layer}, {int(table.k)} have the largest "
            f"silhouette, {float(chosen.silhouette):z.2f}{weak}; "
            f"stability (agreement between halves of the data) {float(chosen.stability):z.2f}"
        )
        for label in table.label.values.tolist() if "label" in table.dims else ():
            row = table.sel(label=label)
            if np.isfinite(row.adjusted_rand):
                index, by_chance = float(row.adjusted_rand), float(row.adjusted_rand_null_mean)
                # twins leave so little to permute that a negligible agreement can have a small p
                negligible = "negligible, " if abs(index - by_chance) < _NEGLIGIBLE else ""
                sentence += (
                    f"; agreement with {label}: {negligible}adjusted Rand index {index:z.2f} "
                    f"({by_chance:z.2f} by chance, p {probability(float(row.adjusted_rand_p))})"
                )
        sentences.append(f"{sentence}.")
    return sentences


def clusters_of(result: xr.Dataset, labels: dict[str, np.ndarray]) -> pd.DataFrame:
    """Return the size of each k-means cluster, how many samples of each label it has, and a text."""
    rows = []
    assignment = result.assignment.isel(layer=0)
    for language in result.language.values.tolist():
        of_language = (result.sample_language == language).values
        for number in sorted(set(assignment.values[of_language].tolist()) - {-1}):
            places = np.flatnonzero(of_language & (assignment.values == number))
            row: dict[str, Any] = {"language": language, "k-means cluster": number, "samples": len(places)}
            for name, values in labels.items():
                counts = Counter(label_text(value) for value in values[places])
                row |= {f"{name}: {value}": count for value, count in sorted(counts.items())}
            text = str(result.text.values[places[0]])
            rows.append(row | {"first text": text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"})
    table = pd.DataFrame(rows)
    columns = [name for name in table.columns if name != "first text"]
    table = table[[*columns, "first text"]] if len(table) else table
    counted = [name for name in columns if ":" in name]
    return table.fillna(dict.fromkeys(counted, 0)).astype(dict.fromkeys(counted, int))
