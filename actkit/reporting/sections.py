"""What a report shows: results, the pictures and sentences about them, and what could not be computed."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from .. import plots
from ..errors import ActkitError
from ..stats import parts
from ..stats.cka import adjacent_cka, cka, language_cka
from ..stats.differential import group_differential
from ..stats.directions import direction_cosines
from ..stats.norms import layer_norms, layer_updates, massive_activations
from ..stats.transfer import transfer
from ..stats.transitions import transitions
from . import findings
from .methods import describe

_LEAST = 10  # samples of each of two labels


@dataclass
class Section:
    """One part of the report.

    Parameters
    ----------
    name
        Of its files.
    title
        Its heading.
    results
        By name; each becomes a table.
    pictures
        By name, in HoloViews.
    sentences
        What is seen.
    methods
        How it was made.
    """

    name: str
    title: str
    results: dict[str, xr.Dataset] = field(default_factory=dict)
    pictures: dict[str, Any] = field(default_factory=dict)
    sentences: list[str] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)

    def add(self, name: str, result: xr.Dataset) -> xr.Dataset:
        """Take in a result, computed."""
        computed = result.compute()
        self.results[name] = computed
        self.methods.append(describe(computed.attrs))
        return computed


@dataclass(frozen=True)
class Choice:
    """What is compared.

    Parameters
    ----------
    by
        The label column of two groups; empty for none.
    pairs
        The label column of samples that are not independent.
    values
        ``pooled`` or ``last``.
    """

    by: str
    pairs: str | None
    values: str


def choose(cube: xr.Dataset, by: str | None, pairs: str | None, values: str) -> Choice:
    """Decide what is compared where nobody said so: `gender` or another label of two values."""
    labels = parts.label_names(cube)
    for name in (by, pairs):
        if name:
            parts.column(cube, name, "by" if name == by else "pairs")
    if by is None:
        both = [name for name in sorted(labels, key=lambda name: name != "gender") if _has_two(cube, name)]
        by = both[0] if both else ""
    if pairs is None:
        pairs = parts.pairing_label(cube, by) or None
    return Choice(by, pairs, values)


def sections(cube: xr.Dataset, choice: Choice) -> Iterator[tuple[Section, list[str]]]:
    """Yield the sections, each with what of it was left out, and warnings.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    choice
        What is compared.
    """
    steps: Sequence[tuple[str, str, Sequence[Callable[[xr.Dataset, Choice, Section], None]]]] = (
        ("norms", "Norms", (_norms, _special)),
        ("updates", "What the blocks change", (_updates, _massive)),
        ("cka", "Where layers change", (_neighbours, _all_layers)),
        ("languages", "Between languages", (_languages,)),
        ("groups", f"Groups: {choice.by}", (_groups, _transfer, _directions)),
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
                    noted.append(f"{title}: left out, {' '.join(str(error).split())}")
            noted += [f"{title}: {warning.message}" for warning in caught if warning.category is UserWarning]
        yield section, noted


def _norms(cube: xr.Dataset, choice: Choice, section: Section) -> None:
    norms = section.add("norms", layer_norms(cube))
    section.pictures["norms"] = plots.layer_norms(norms)
    section.sentences += findings.of_norms(norms)
    if choice.by:
        by = layer_norms(cube, by=choice.by).compute()
        section.results["norms_by_group"] = by
        section.pictures["norms_by_group"] = plots.layer_norms(by)


def _special(cube: xr.Dataset, _choice: Choice, section: Section) -> None:
    first = layer_norms(cube, tokens="first").compute()
    section.results["norms_of_first"] = first
    ratio = (
        (first["mean"] / section.results["norms"]["mean"]).max("layer")
        if "norms" in section.results
        else None
    )
    if ratio is not None:
        section.sentences += [
            f"{name}: at most, position 0 has {float(ratio.sel(language=name)):,.3g} times the mean norm "
            f"of content tokens."
            for name in ratio.language.values.tolist()
        ]


def _updates(cube: xr.Dataset, _choice: Choice, section: Section) -> None:
    section.pictures["updates"] = plots.layer_updates(section.add("updates", layer_updates(cube)))


def _massive(cube: xr.Dataset, _choice: Choice, section: Section) -> None:
    found = section.add("massive_activations", massive_activations(cube))
    for name in found.language.values.tolist():
        own = found.sel(language=name)
        at = int(np.nanargmax(own.ratio.values))
        section.sentences.append(
            f"{name}: the largest value of content tokens is {float(own.ratio[at]):,.3g} times the "
            f"median, at layer "
            f"{own.layer.values[at]}, dimension {int(own.at_hidden[at])}."
        )


def _neighbours(cube: xr.Dataset, choice: Choice, section: Section) -> None:
    options: dict[str, Any] = {"values": choice.values, "pairs": choice.pairs}
    found = section.add("adjacent_cka", adjacent_cka(cube, **options))
    abrupt = section.add("transitions", transitions(cube, **options))
    section.pictures["adjacent_cka"] = plots.adjacent_cka(found, abrupt)
    section.sentences += findings.of_neighbours(found, abrupt)


def _all_layers(cube: xr.Dataset, choice: Choice, section: Section) -> None:
    found = section.add("cka", cka(cube, values=choice.values, pairs=choice.pairs))
    section.pictures["cka"] = plots.cka(found)


def _languages(cube: xr.Dataset, choice: Choice, section: Section) -> None:
    found = section.add("language_cka", language_cka(cube, values=choice.values, pairs=choice.pairs))
    section.pictures["language_cka"] = plots.language_cka(found)
    section.sentences += findings.of_languages(found)


def _groups(cube: xr.Dataset, choice: Choice, section: Section) -> None:
    options: dict[str, Any] = {"by": choice.by, "pairs": choice.pairs, "values": choice.values}
    found = section.add("group_differential", group_differential(cube, **options))
    section.pictures["group_differential"] = plots.group_differential(found)
    section.sentences += findings.of_groups(found)


def _transfer(cube: xr.Dataset, choice: Choice, section: Section) -> None:
    if len(_languages_of(cube)) < 2:
        return
    options: dict[str, Any] = {"by": choice.by, "pairs": choice.pairs, "values": choice.values}
    found = section.add("transfer", transfer(cube, **options))
    section.pictures["transfer"] = plots.transfer(found)
    section.sentences += findings.of_transfer(found)


def _directions(cube: xr.Dataset, choice: Choice, section: Section) -> None:
    options: dict[str, Any] = {"by": choice.by, "pairs": choice.pairs, "values": choice.values}
    found = section.add("direction_cosines", direction_cosines(cube, **options))
    section.pictures["direction_cosines"] = plots.direction_cosines(found)


def _samples(cube: xr.Dataset, choice: Choice, section: Section) -> None:
    own = parts.captured(cube)
    layers = own.layer.values
    for layer in dict.fromkeys(layers[[0, len(layers) // 2, -1]].tolist()):
        picture = plots.projection(own, layer, by=choice.by or None, values=choice.values)
        section.pictures[f"projection_layer_{layer}"] = picture
    for _, places in parts.languages(own):
        sample = int(own.sample.values[places[0]])
        section.pictures[f"tokens_of_sample_{sample}"] = plots.tokens(own, sample)


def _languages_of(cube: xr.Dataset) -> set[str]:
    return set(cube.language.values.astype(str).tolist())


def _has_two(cube: xr.Dataset, name: str) -> bool:
    values = parts.column(cube, name, "by")
    counts = [int((values == value).sum()) for value in set(values.tolist()) - {""}]
    return len(counts) == 2 and min(counts) >= _LEAST
