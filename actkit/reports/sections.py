"""Sections of a report: results with their figures and sentences, and notes on what was omitted."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import xarray as xr

from .. import plots
from ..errors import ActkitError
from ..stats import selection
from ..stats.cka import adjacent_cka, cka, language_cka
from ..stats.classification_probe import classification_probe
from ..stats.control_types import WORD
from ..stats.cross_language import transfer
from ..stats.differential import group_differential
from ..stats.directions import direction_cosines
from ..stats.geometry import anisotropy, intrinsic_dimension
from ..stats.norms import layer_norms, layer_updates, massive_activations
from ..stats.regression_probe import regression_probe
from ..stats.transitions import transitions
from . import findings
from .methods import describe

_LEAST = 10  # samples in each of two groups
_MOST_CLASSES = 10  # distinct numbers that are classes


@dataclass
class Section:
    """One part of the report.

    Parameters
    ----------
    name
        Identifies the section in the page and in links.
    title
        Heading.
    results
        Result by name; each becomes a table.
    pictures
        HoloViews figure by name.
    sentences
        Findings.
    methods
        How the results were computed.
    """

    name: str
    title: str
    results: dict[str, xr.Dataset] = field(default_factory=dict)
    pictures: dict[str, Any] = field(default_factory=dict)
    sentences: list[str] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)

    def add(self, name: str, result: xr.Dataset) -> xr.Dataset:
        """Compute a result and add it with its methods."""
        computed = result.compute()
        self.results[name] = computed
        self.methods.append(describe(computed.attrs))
        return computed


@dataclass(frozen=True)
class Choice:
    """The comparison that a report makes.

    Parameters
    ----------
    by
        Label column that defines the groups, or holds numbers; empty for none.
    cluster
        The label that dependent samples share; None if all are treated as independent.
    vectors
        ``pooled`` or ``last``.
    is_detected
        Whether the cluster label was detected.
    warning
        Why that label is uncertain; "" if it is clear.
    """

    by: str
    cluster: str | None
    vectors: selection.Pooling
    is_detected: bool = False
    warning: str = ""

    @property
    def clusters(self) -> str:
        """Description of the clusters."""
        name = self.cluster or "none: samples are treated as independent"
        return f"{name} ({'detected' if self.is_detected else 'chosen'})"


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


Maker = Callable[[xr.Dataset, Choice, Section], None]


def sections(cube: xr.Dataset, choice: Choice) -> Iterator[tuple[Section, list[str]]]:
    """Yield each section with notes on omitted parts and with warnings.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    choice
        The comparison to make.
    """
    about_groups: Sequence[Maker] = _makers(cube, choice) if choice.by else ()
    steps: Sequence[tuple[str, str, Sequence[Maker]]] = (
        ("norms", "Norms", (_norms, _special)),
        ("updates", "Layer updates", (_updates, _massive)),
        ("cka", "Layer alignment", (_neighbours, _all_layers)),
        ("geometry", "Geometry", (_dimension, _anisotropy)),
        ("languages", "Language alignment", (_languages,)),
        ("groups", f"Groups: {choice.by}", about_groups),
        ("samples", "Samples", (_samples,)),
    )
    for name, title, makers in steps:
        if (name == "groups" and not choice.by) or (name == "languages" and len(_languages_of(cube)) < 2):
            continue
        section, noted = Section(name, title), []
        for make in makers:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                try:
                    make(cube, choice, section)
                except ActkitError as error:
                    noted.append(f"{title}: omitted ({' '.join(str(error).split())})")
            noted += [f"{title}: {warning.message}" for warning in caught if warning.category is UserWarning]
        if not findings.specifies_language(cube):
            section.sentences = findings.without_language(section.sentences)
        yield section, noted


def _norms(cube: xr.Dataset, choice: Choice, section: Section) -> None:
    norms = section.add("norms", layer_norms(cube, cluster=choice.cluster))
    section.pictures["norms"] = plots.layer_norms(norms)
    section.sentences += findings.of_norms(norms)
    if choice.by and not _is_numeric(cube, choice.by):
        by = layer_norms(cube, by=choice.by, cluster=choice.cluster).compute()
        section.results["norms_by_group"] = by
        section.pictures["norms_by_group"] = plots.layer_norms(by)


def _special(cube: xr.Dataset, choice: Choice, section: Section) -> None:
    first = layer_norms(cube, tokens="first", cluster=choice.cluster).compute()
    section.results["norms_of_first"] = first
    ratio = (
        (first["mean"] / section.results["norms"]["mean"]).max("layer")
        if "norms" in section.results
        else None
    )
    if ratio is not None:
        section.sentences += [
            f"{name}: at any layer, the mean norm at position 0 is at most "
            f"{float(ratio.sel(language=name)):,.3g} times that of content tokens."
            for name in ratio.language.values.tolist()
        ]


def _updates(cube: xr.Dataset, choice: Choice, section: Section) -> None:
    updates = section.add("updates", layer_updates(cube, cluster=choice.cluster))
    section.pictures["updates"] = plots.layer_updates(updates)


def _massive(cube: xr.Dataset, _choice: Choice, section: Section) -> None:
    massive = section.add("massive_activations", massive_activations(cube, tokens="all"))
    section.sentences += findings.of_massive(massive)


def _neighbours(cube: xr.Dataset, choice: Choice, section: Section) -> None:
    options: dict[str, Any] = {"vectors": choice.vectors, "cluster": choice.cluster}
    adjacent = section.add("adjacent_cka", adjacent_cka(cube, **options))
    abrupt = section.add("transitions", transitions(cube, **options))
    section.pictures["adjacent_cka"] = plots.adjacent_cka(adjacent, abrupt)
    section.sentences += findings.of_neighbours(adjacent, abrupt)


def _all_layers(cube: xr.Dataset, choice: Choice, section: Section) -> None:
    similarity = section.add("cka", cka(cube, vectors=choice.vectors, cluster=choice.cluster))
    section.pictures["cka"] = plots.cka(similarity)


def _dimension(cube: xr.Dataset, choice: Choice, section: Section) -> None:
    dimension = section.add(
        "intrinsic_dimension", intrinsic_dimension(cube, vectors=choice.vectors, cluster=choice.cluster)
    )
    section.pictures["intrinsic_dimension"] = plots.intrinsic_dimension(dimension)
    section.sentences += findings.of_dimension(dimension)


def _anisotropy(cube: xr.Dataset, choice: Choice, section: Section) -> None:
    cosines = section.add("anisotropy", anisotropy(cube, vectors=choice.vectors, cluster=choice.cluster))
    section.pictures["anisotropy"] = plots.anisotropy(cosines)
    section.sentences += findings.of_anisotropy(cosines)


def _languages(cube: xr.Dataset, choice: Choice, section: Section) -> None:
    similarity = section.add(
        "language_cka", language_cka(cube, vectors=choice.vectors, cluster=choice.cluster)
    )
    section.pictures["language_cka"] = plots.language_cka(similarity)
    section.sentences += findings.of_languages(similarity)


def _groups(cube: xr.Dataset, choice: Choice, section: Section) -> None:
    options: dict[str, Any] = {"by": choice.by, "cluster": choice.cluster, "vectors": choice.vectors}
    # p corrected over many languages can still be small
    options["permutations"] = max(200, 40 * len(_languages_of(cube)))
    differential = group_differential(cube, **options, control=WORD)
    differential = section.add("group_differential", differential)
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


def _classes(cube: xr.Dataset, choice: Choice, section: Section) -> None:
    options: dict[str, Any] = {"by": choice.by, "cluster": choice.cluster, "vectors": choice.vectors}
    probe = section.add("classification_probe", classification_probe(cube, **options))
    section.pictures["classification_probe"] = plots.classification_probe(probe)
    section.sentences += findings.of_measure(probe, "macro_auroc", "tells the classes apart", "macro AUROC")
    section.results |= _tables("classification_probe", probe)


def _numbers(cube: xr.Dataset, choice: Choice, section: Section) -> None:
    options: dict[str, Any] = {"by": choice.by, "cluster": choice.cluster, "vectors": choice.vectors}
    probe = section.add("regression_probe", regression_probe(cube, **options))
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
    options: dict[str, Any] = {"by": choice.by, "cluster": choice.cluster, "vectors": choice.vectors}
    transferred = section.add("transfer", transfer(cube, **options))
    section.pictures["transfer"] = plots.transfer(transferred)
    section.sentences += findings.of_transfer(transferred)


def _directions(cube: xr.Dataset, choice: Choice, section: Section) -> None:
    options: dict[str, Any] = {"by": choice.by, "cluster": choice.cluster, "vectors": choice.vectors}
    cosines = section.add("direction_cosines", direction_cosines(cube, **options))
    section.pictures["direction_cosines"] = plots.direction_cosines(cosines)
    section.sentences += findings.of_directions(cosines)


def _samples(cube: xr.Dataset, choice: Choice, section: Section) -> None:
    captured = selection.captured(cube)
    by = choice.by if choice.by and not _is_numeric(cube, choice.by) else None
    layers = captured.layer.values
    for layer in dict.fromkeys(layers[[0, len(layers) // 2, -1]].tolist()):
        picture = plots.projection(captured, layer, by=by, vectors=choice.vectors)
        section.pictures[f"projection_layer_{layer}"] = picture
    for _, places in selection.languages(captured):
        sample = int(captured.sample.values[places[0]])
        section.pictures[f"tokens_of_sample_{sample}"] = plots.tokens(captured, sample)


def _makers(cube: xr.Dataset, choice: Choice) -> Sequence[Maker]:
    """Return what is computed of the label: of two groups, of several classes, or of numbers."""
    if _is_numeric(cube, choice.by):
        return (_numbers,)
    n_classes = len(selection.column(cube, choice.by, "by").values)
    return (_classes,) if n_classes > 2 else (_groups, _transfer, _directions)


def _is_numeric(cube: xr.Dataset, by: str) -> bool:
    """Return whether a label holds numbers that are not classes."""
    values = selection.column(cube, by, "by").values
    return len(values) > _MOST_CLASSES and values.dtype.kind in "iuf"


def _languages_of(cube: xr.Dataset) -> set[str]:
    return set(cube.language.values.astype(str).tolist())


def _has_two(cube: xr.Dataset, name: str) -> bool:
    counts = selection.column(cube, name, "by").counts
    return len(counts) == 2 and int(counts.min()) >= _LEAST
