"""Sections of a report: results with their figures and sentences, and notes on what was omitted."""

import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from typing import Any

import xarray as xr

from .. import plots
from ..errors import ActkitError
from ..stats import selection
from ..stats.control_types import WORD
from ..store.reader import open_cube
from . import findings
from .kmeans_section import add_kmeans
from .layer_comparison import add_measures, add_norm_correlation
from .methods import describe
from .sae_section import (
    FEATURES,
    check_same_saes,
    curves_of,
    differences,
    found_features,
    of_differences,
    of_quality,
    quality_of,
    saes_folder,
    shown_measures,
    texts_of,
)
from .section import Choice, Compute, Section, few_layers, is_numeric

_LEAST = 10  # samples in each of two groups
_ERASED = 3  # layers, each with two singular value decompositions per language

Maker = Callable[[xr.Dataset, Choice, Section], None]


def choose(cube: xr.Dataset, by: str | None, cluster: str | None, vectors: selection.Pooling) -> Choice:
    """Fill in the comparison; by default `gender`, or else another label with two values."""
    labels = selection.label_names(cube)
    if by:
        selection.column(cube, by, "by")
    if by is None:
        both = [name for name in sorted(labels, key=lambda name: name != "gender") if _has_two(cube, name)]
        by = both[0] if both else ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        clusters = selection.cluster_choice(cube, cluster, by)
    warning = " ".join(f"{entry.message}." for entry in caught)
    return Choice(by, clusters.name, vectors, clusters.is_detected, warning)


def sections(
    cube: xr.Dataset, choice: Choice, compute: Compute, known: Collection[str] = ()
) -> Iterator[tuple[Section, list[str]]]:
    """Yield each section with notes on omitted parts and with warnings.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`, without samples that are excluded.
    choice
        The comparison to make.
    compute
        Computes statistics of the cube.
    known
        Warnings that are not noted.
    """
    for name, title, makers in titles(cube, choice):
        section, noted = Section(name, title, compute), []
        for make in makers:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                try:
                    make(cube, choice, section)
                except ActkitError as error:
                    noted.append(f"{title}: omitted ({' '.join(str(error).split())})")
            texts = [str(warning.message) for warning in caught if warning.category is UserWarning]
            noted += [f"{title}: {text}" for text in texts if text not in known]
        if not findings.specifies_language(cube):
            section.sentences = findings.without_language(section.sentences)
        yield section, noted


def titles(cube: xr.Dataset, choice: Choice) -> list[tuple[str, str, Sequence[Maker]]]:
    """Return the name and the heading of each section, and the functions that make its parts."""
    about_groups: Sequence[Maker] = _makers(cube, choice) if choice.by else ()
    every: list[tuple[str, str, Sequence[Maker]]] = [
        ("norms", "Norms", (_norms, _special)),
        ("updates", "Layer updates", (_updates, _massive)),
        ("cka", "Layer alignment", (_neighbours, _all_layers, add_measures, add_norm_correlation)),
        ("geometry", "Geometry", (_dimension, _anisotropy)),
        ("languages", "Language alignment", (_languages,)),
        ("groups", f"Groups: {choice.by}", about_groups),
        ("saes", "Sparse autoencoders", (_saes, _features)),
        ("samples", "Samples", (_samples, _kmeans)),
    ]
    left_out = set() if choice.by else {"groups"}
    left_out |= set() if len(_languages_of(cube)) > 1 else {"languages"}
    left_out |= set() if saes_folder(cube) else {"saes"}
    return [section for section in every if section[0] not in left_out]


def _norms(cube: xr.Dataset, choice: Choice, section: Section) -> None:
    norms = section.add("norms", "layer_norms", cluster=choice.cluster)
    section.pictures["norms"] = plots.layer_norms(norms)
    section.sentences += findings.of_norms(norms)
    if choice.by and not is_numeric(cube, choice.by):
        options: dict[str, Any] = {"by": choice.by, "cluster": choice.cluster}
        by = section.add("norms_by_group", "layer_norms", is_described=False, **options)
        section.pictures["norms_by_group"] = plots.layer_norms(by)


def _special(_cube: xr.Dataset, choice: Choice, section: Section) -> None:
    options: dict[str, Any] = {"tokens": "first", "cluster": choice.cluster}
    first = section.add("norms_of_first", "layer_norms", is_described=False, **options)
    ratio = first["mean"] / section.results["norms"]["mean"] if "norms" in section.results else None
    if ratio is not None:
        section.sentences += [
            f"{name}: the mean norm at position 0 is {float(ratio.sel(language=name).min()):,.3g} to "
            f"{float(ratio.sel(language=name).max()):,.3g} times that of content tokens over the layers."
            for name in ratio.language.values.tolist()
        ]


def _updates(_cube: xr.Dataset, choice: Choice, section: Section) -> None:
    with suppress(ActkitError):  # raised again where one of them is added
        section.compute(
            [("layer_updates", {"cluster": choice.cluster}), ("massive_activations", {"tokens": "all"})]
        )
    updates = section.add("updates", "layer_updates", cluster=choice.cluster)
    section.pictures["updates"] = plots.layer_updates(updates)


def _massive(_cube: xr.Dataset, _choice: Choice, section: Section) -> None:
    massive = section.add("massive_activations", "massive_activations", tokens="all")
    section.sentences += findings.of_massive(massive)


def _neighbours(_cube: xr.Dataset, choice: Choice, section: Section) -> None:
    options: dict[str, Any] = {"vectors": choice.vectors, "cluster": choice.cluster}
    with suppress(ActkitError):
        section.compute([(name, options) for name in ("adjacent_cka", "transitions", "cka")])
    adjacent = section.add("adjacent_cka", "adjacent_cka", **options)
    abrupt = section.add("transitions", "transitions", **options)
    section.pictures["adjacent_cka"] = plots.adjacent_cka(adjacent, abrupt)
    section.sentences += findings.of_neighbours(adjacent, abrupt)


def _all_layers(_cube: xr.Dataset, choice: Choice, section: Section) -> None:
    similarity = section.add("cka", "cka", vectors=choice.vectors, cluster=choice.cluster)
    section.pictures["cka"] = plots.cka(similarity)


def _dimension(_cube: xr.Dataset, choice: Choice, section: Section) -> None:
    options: dict[str, Any] = {"vectors": choice.vectors, "cluster": choice.cluster}
    dimension = section.add("intrinsic_dimension", "intrinsic_dimension", **options)
    section.pictures["intrinsic_dimension"] = plots.intrinsic_dimension(dimension)
    section.sentences += findings.of_dimension(dimension)


def _anisotropy(_cube: xr.Dataset, choice: Choice, section: Section) -> None:
    cosines = section.add("anisotropy", "anisotropy", vectors=choice.vectors, cluster=choice.cluster)
    section.pictures["anisotropy"] = plots.anisotropy(cosines)
    section.sentences += findings.of_anisotropy(cosines)


def _languages(_cube: xr.Dataset, choice: Choice, section: Section) -> None:
    options: dict[str, Any] = {"vectors": choice.vectors, "cluster": choice.cluster}
    similarity = section.add("language_cka", "language_cka", **options)
    section.pictures["language_cka"] = plots.language_cka(similarity)
    section.sentences += findings.of_languages(similarity)


def _groups(cube: xr.Dataset, choice: Choice, section: Section) -> None:
    # p corrected over many languages can still be small
    permutations = max(200, 40 * len(_languages_of(cube)))
    differential = section.add(
        "group_differential", "group_differential", **choice.options, permutations=permutations, control=WORD
    )
    for table, dim in (("auroc_difference", "baseline"), ("layer_difference", "layer_2")):
        compared = [name for name, values in differential.data_vars.items() if dim in values.dims]
        section.results[table] = differential[compared]
        section.results["group_differential"] = section.results["group_differential"].drop_vars(compared)
    section.pictures["group_differential"] = plots.group_differential(differential)
    section.pictures["auroc_difference"] = plots.auroc_difference(differential)
    section.pictures["layer_difference"] = plots.layer_difference(differential)
    if differential.selectivity.notnull().any():
        section.pictures["selectivity"] = plots.selectivity(differential)
    section.sentences += findings.of_groups(differential)


def _erasure(cube: xr.Dataset, choice: Choice, section: Section) -> None:
    layers = few_layers(cube, _ERASED)
    probe = section.add("erasure_probe", "erasure_probe", **choice.options, layers=layers)
    section.pictures["erasure_probe"] = plots.erasure_probe(probe)
    section.sentences += findings.of_erasure(probe)


def _classes(_cube: xr.Dataset, choice: Choice, section: Section) -> None:
    probe = section.add("classification_probe", "classification_probe", **choice.options)
    section.pictures["classification_probe"] = plots.classification_probe(probe)
    section.sentences += findings.of_measure(probe, "macro_auroc", "tells the classes apart", "macro AUROC")
    section.results |= _tables("classification_probe", probe)


def _numbers(_cube: xr.Dataset, choice: Choice, section: Section) -> None:
    probe = section.add("regression_probe", "regression_probe", **choice.options)
    section.pictures["regression_probe"] = plots.regression_probe(probe)
    section.sentences += findings.of_measure(probe, "r2", f"predicts {choice.by}", "R²")
    section.results |= _tables("regression_probe", probe)


def _tables(name: str, probe: xr.Dataset) -> dict[str, xr.Dataset]:
    """Return a table of the probe for each set of dimensions."""
    dims = {frozenset(map(str, values.dims)) for values in probe.data_vars.values()}
    extra = sorted({dim for names in dims for dim in names} - {"language", "layer"})
    tables = {name: probe.drop_dims(extra)}
    for dim in extra:
        others = [other for other in extra if other != dim]
        kept = [str(key) for key, values in probe.data_vars.items() if {dim, "layer"} <= set(values.dims)]
        tables[f"{name}_by_{dim}"] = probe[kept].drop_vars(others, errors="ignore")
    return tables


def _transfer(cube: xr.Dataset, choice: Choice, section: Section) -> None:
    if len(_languages_of(cube)) < 2:
        return
    transferred = section.add("transfer", "transfer", **choice.options)
    section.pictures["transfer"] = plots.transfer(transferred)
    section.sentences += findings.of_transfer(transferred)


def _directions(_cube: xr.Dataset, choice: Choice, section: Section) -> None:
    cosines = section.add("direction_cosines", "direction_cosines", **choice.options)
    section.pictures["direction_cosines"] = plots.direction_cosines(cosines)
    section.sentences += findings.of_directions(cosines)


def _saes(cube: xr.Dataset, _choice: Choice, section: Section) -> None:
    folder = saes_folder(cube)
    assert folder is not None
    quality = quality_of(folder)
    section.lead = "sae_quality"
    section.results["sae_quality"] = shown_measures(quality)
    section.methods.append(describe(quality.attrs))
    section.sentences += of_quality(quality)
    section.pictures["sae_quality"] = plots.sae_quality(quality)
    section.pictures["sae_frequencies"] = plots.sae_frequencies(quality)
    if curves := curves_of(folder):
        section.pictures["training_curves"] = curves


def _features(cube: xr.Dataset, choice: Choice, section: Section) -> None:
    folder = saes_folder(cube)
    assert folder is not None
    path = folder.parent / FEATURES
    if "sae_quality" not in section.results or not path.is_dir():
        return
    if not _is_binary(cube, choice.by):
        label = f"`{choice.by}` does not have exactly two values" if choice.by else "no label was chosen"
        section.sentences.append(f"Features were not compared between groups: {label}.")
        return
    features = open_cube(path)
    check_same_saes(features, quality_of(folder))
    whole = open_cube(folder.parent, partial=True)
    differential = differences(features, whole, by=choice.by, cluster=choice.cluster)
    section.methods.append(describe(differential.attrs))
    section.sentences += of_differences(differential)
    section.pictures["feature_differential"] = plots.feature_differential(differential)
    found = found_features(differential)
    section.tables["feature_differential"] = found
    section.tables["texts_of_features"] = texts_of(features, found)


def _samples(cube: xr.Dataset, choice: Choice, section: Section) -> None:
    captured = selection.captured(cube)
    by = choice.by if choice.by and not is_numeric(cube, choice.by) else None
    for layer in few_layers(cube, 3):
        picture = plots.projection(captured, layer, by=by, vectors=choice.vectors)
        section.pictures[f"projection_layer_{layer}"] = picture
    for _, places in selection.languages(captured):
        sample = int(captured.sample.values[places[0]])
        section.pictures[f"tokens_of_sample_{sample}"] = plots.tokens(captured, sample)


def _kmeans(cube: xr.Dataset, choice: Choice, section: Section) -> None:
    add_kmeans(cube, choice, section, by=[] if not choice.by or is_numeric(cube, choice.by) else [choice.by])


def _makers(cube: xr.Dataset, choice: Choice) -> Sequence[Maker]:
    """Return what is computed of the label: of two groups, of several classes, or of numbers."""
    if is_numeric(cube, choice.by):
        return (_numbers,)
    n_classes = len(selection.column(cube, choice.by, "by").values)
    return (_classes,) if n_classes > 2 else (_groups, _erasure, _transfer, _directions)


def _is_binary(cube: xr.Dataset, by: str) -> bool:
    return bool(by) and len(selection.column(cube, by, "by").values) == 2


def _languages_of(cube: xr.Dataset) -> set[str]:
    return set(cube.language.values.astype(str).tolist())


def _has_two(cube: xr.Dataset, name: str) -> bool:
    counts = selection.column(cube, name, "by").counts
    return len(counts) == 2 and int(counts.min()) >= _LEAST
