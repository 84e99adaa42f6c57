"""Sentences that summarise results, claiming no more than the numbers support."""

import numpy as np
import xarray as xr

from ..sources import NO_LANGUAGE
from ..stats.groups import label_text

_BASELINES = {"tfidf": "TF-IDF of the text", "embedding": "the embedding", "length": "length"}


def specifies_language(cube: xr.Dataset) -> bool:
    """Return whether the data of a cube specify a language for any sample."""
    return set(cube.language.values.astype(str).tolist()) != {NO_LANGUAGE}


def without_language(sentences: list[str]) -> list[str]:
    """Remove the placeholder for an unspecified language from the beginning of sentences.

    Examples
    --------
    >>> without_language(["unspecified: the mean norm changes.", "Not tested: all steps."])
    ['The mean norm changes.', 'Not tested: all steps.']
    """
    stripped = [sentence.removeprefix(f"{NO_LANGUAGE}: ") for sentence in sentences]
    return [sentence[:1].upper() + sentence[1:] for sentence in stripped]


def of_norms(norms: xr.Dataset) -> list[str]:
    """Describe how norms change from the first layer to the last, and where they change most."""
    sentences = []
    for name, norm in _each(norms):
        mean = norm["mean"].values
        if not norm["n_tokens"].any():
            sentences.append(f"{name}: no content tokens.")
        if not np.isfinite(mean).all():
            continue
        layers = norm.layer.values
        sentence = (
            f"{name}: the mean norm changes from {mean[0]:,.3g} at layer {layers[0]} to {mean[-1]:,.3g} at "
            f"layer {layers[-1]}."
        )
        if len(mean) > 1 and (mean > 0).all():
            ratios = mean[1:] / mean[:-1]
            at = int(np.abs(np.log(ratios)).argmax())
            sentence += (
                f" The largest relative change between adjacent layers is by a factor of {ratios[at]:,.3g}, "
                f"from layer {layers[at]} to layer {layers[at + 1]}."
            )
        sentences.append(sentence)
        outliers = int(norm["n_outliers"].max())
        if outliers:
            layer = norm.layer.values[int(norm["n_outliers"].values.argmax())]
            sentences.append(
                f"{name}: at layer {layer}, the norm of {outliers:,} of {int(norm['n_tokens'][0]):,} tokens "
                f"exceeds 10 times the median."
            )
    return sentences


def of_massive(massive: xr.Dataset) -> list[str]:
    """Report the largest activation, and the layer with the largest number of massive activations."""
    sentences = []
    for name, table in _each(massive):
        if not table.ratio.notnull().any():
            sentences.append(f"{name}: no tokens.")
            continue
        largest = table.isel(layer=int(np.nanargmax(table.ratio.values)))
        most = table.isel(layer=int(np.argmax(table.n_massive.values)))
        sentences.append(
            f"{name}: the largest absolute activation is {float(largest.ratio):,.3g} times the median, at "
            f"layer {largest.layer.item()}, token {int(largest.at_token)}, dimension "
            f"{int(largest.at_hidden)}. "
            + (
                f"Layer {most.layer.item()} has the largest number of massive activations: "
                f"{int(most.n_massive):,} (samples with at least one: {int(most.n_massive_samples):,})."
                if most.n_massive > 0
                else "There are no massive activations."
            )
        )
    return sentences


def of_neighbours(similarity: xr.Dataset, transitions: xr.Dataset) -> list[str]:
    """Report where adjacent layers are least similar, and which steps are change points."""
    sentences = []
    for name, adjacent in _each(similarity):
        values = adjacent.cka.values
        if not np.isfinite(values).any():
            sentences.append(f"{name}: CKA is undefined.")
            continue
        at = int(np.nanargmin(values))
        layer = adjacent.layer.values[at]
        sentence = (
            f"{name}: adjacent layers are least similar after layer {layer} (CKA {values[at]:.3f}, 95% "
            f"interval {adjacent.low.values[at]:.3f} to {adjacent.high.values[at]:.3f})"
        )
        flagged = transitions.sel(language=name)
        changes = flagged.layer.values[flagged.change_point.values].tolist()
        if changes:
            sentence += (
                f". The step after layer {_listed(changes)} is larger than a smooth trend of the other steps "
                "explains (95% confidence over all layers)."
            )
        elif flagged.ratio.notnull().any():
            most = flagged.isel(layer=int(np.nanargmax(flagged.ratio.values)))
            sentence += "" if np.isfinite(flagged.ratio.values[at]) else ", a step that cannot be tested"
            sentence += (
                "; no tested step exceeds a smooth trend of the other steps with 95% confidence over all "
                f"layers. The largest relative to its trend follows layer {most.layer.item()}: "
                f"{float(most.ratio):,.3g} times the trend (95% interval {float(most.ratio_low):,.3g} to "
                f"{float(most.ratio_high):,.3g}). Only a step of more than about "
                f"{float((flagged.ratio_high / flagged.ratio).min()):,.2g} times its trend would be detected."
            )
        else:
            sentence += "; no step can be tested, so this is descriptive."
        sentences.append(sentence)
    if transitions.attrs.get("untested"):
        sentences.append(f"Not tested against a trend: {transitions.attrs['untested']}.")
    return sentences


def of_groups(differential: xr.Dataset) -> list[str]:
    """Report where the probe separates the groups best, and the difference to the strongest baseline."""
    sentences = []
    for name, probe in _each(differential):
        auroc = probe.auroc.values
        if not np.isfinite(auroc).any():
            continue
        at = int(np.nanargmax(auroc))
        sentence = (
            f"{name}: the probe separates the groups best at layer {probe.layer.values[at]} (AUROC "
            f"{auroc[at]:.3f}, 95% interval {probe.auroc_low.values[at]:.3f} to "
            f"{probe.auroc_high.values[at]:.3f}; p {probability(float(probe.p_holm.values[at]))}, corrected "
            "over layers and languages)"
        )
        baselines = {name: float(probe[f"auroc_{name}"]) for name in _BASELINES}
        baselines = {name: value for name, value in baselines.items() if np.isfinite(value)}
        listed = ", ".join(f"{_BASELINES[name]} {value:.3f}" for name, value in baselines.items())
        sentence += f"; baselines: {listed}."
        strongest = max(baselines, key=baselines.__getitem__)
        added = probe.isel(layer=at).sel(baseline=strongest)
        sentence += (
            f" The difference to the strongest baseline, {_BASELINES[strongest]}, is "
            f"{float(added.auroc_difference):+z.3f} (95% interval {float(added.auroc_difference_low):+z.3f} "
            f"to {float(added.auroc_difference_high):+z.3f}; "
            f"p {probability(float(added.auroc_difference_p_holm))}, corrected)"
        )
        sentence += (
            "."
            if added.auroc_difference > 0 and added.auroc_difference_p_holm < 0.05
            else ", so this does not show that the layers hold more than the baseline."
        )
        sentences.append(sentence)
        if len(auroc) > 1:
            sentences.append(_of_layers(name, probe, at))
        if "selectivity" in probe and np.isfinite(probe.selectivity_low.values[at]):
            sentences.append(
                f"{name}: at layer {probe.layer.values[at]}, a probe of random labels by "
                f"{differential.attrs['control']} has an AUROC of {probe.auroc_control.values[at]:.3f}; the "
                f"selectivity is {probe.selectivity.values[at]:+z.3f} (95% interval "
                f"{probe.selectivity_low.values[at]:+z.3f} to {probe.selectivity_high.values[at]:+z.3f})."
            )
    return sentences


def of_erasure(probe: xr.Dataset) -> list[str]:
    """Report the AUROC before and after the label is erased, at the layer where most of it remains."""
    sentences = []
    for name, table in _each(probe):
        after = table.auroc_after.values
        if not np.isfinite(after).any():
            continue
        row = table.isel(layer=int(np.nanargmax(after)))
        low, high = float(row.auroc_after_low), float(row.auroc_after_high)
        listed = joined([str(layer) for layer in table.layer.values.tolist()])
        sentence = (
            f"{name}: after {probe.attrs['by']} is erased, the AUROC at layer{'s' * (table.layer.size > 1)} "
            f"{listed} is at most {float(row.auroc_after):.3f} (layer {int(row.layer)}, 95% interval "
            f"{low:.3f} to {high:.3f}; {float(row.auroc_before):.3f} before), "
        )
        if low > 0.5:
            sentence += (
                "above chance: an eraser fitted to other samples removes less of a label, the fewer they are "
                "for the width of the vectors."
            )
        else:
            sentence += "not distinguishable from chance." if high >= 0.5 else "below chance."
        sentences.append(sentence)
    return sentences


def of_measure(probe: xr.Dataset, measure: str, does: str, name: str) -> list[str]:
    """Report where a probe is best by a measure, and the difference to the strongest baseline.

    Parameters
    ----------
    probe
        From :func:`actkit.classification_probe` or :func:`actkit.regression_probe`.
    measure
        Variable of the measure.
    does
        What the probe does, as a verb phrase.
    name
        Name of the measure.
    """
    sentences = []
    for language, table in _each(probe):
        values = table[measure].values
        if not np.isfinite(values).any():
            continue
        best = table.isel(layer=int(np.nanargmax(values)))
        low, high, p = (float(best[f"{measure}_{part}"]) for part in ("low", "high", "p"))
        sentence = (
            f"{language}: the probe {does} best at layer {best.layer.item()} ({name} "
            f"{float(best[measure]):.3f}, 95% interval {low:.3f} to {high:.3f}; p {probability(p)}, "
            "corrected over layers)"
        )
        baselines = {key: float(best[f"{measure}_{key}"]) for key in _BASELINES}
        baselines = {key: value for key, value in baselines.items() if np.isfinite(value)}
        listed = ", ".join(f"{_BASELINES[key]} {value:.3f}" for key, value in baselines.items())
        strongest = max(baselines, key=baselines.__getitem__)
        against = best.sel(baseline=strongest)
        added, low, high = (float(against[f"{measure}_difference{part}"]) for part in ("", "_low", "_high"))
        sentences.append(
            f"{sentence}; baselines: {listed}. The difference to the strongest baseline, "
            f"{_BASELINES[strongest]}, is {added:+z.3f} (95% interval {low:+z.3f} to {high:+z.3f})."
        )
    return sentences


def _of_layers(name: str, probe: xr.Dataset, best: int) -> str:
    """Report which layers cannot be told apart from the best."""
    p = probe.layer_difference_p.values[best]
    similar = [layer for at, layer in enumerate(probe.layer.values.tolist()) if at != best and p[at] >= 0.05]
    if similar:
        listed = f" ({_listed(similar)})" if len(similar) <= 10 else ""
        sentence = f"{len(similar)} of {len(p) - 1} other layers cannot be told apart from the best{listed}"
    else:
        sentence = "the AUROC of every other layer is lower than that of the best"
    return f"{name}: {sentence}; differences between layers are corrected over all pairs."


def of_transfer(transferred: xr.Dataset) -> list[str]:
    """Report how well probes transfer to another language."""
    sentences = []
    sides = [label_text(side) for side in transferred.train.values]
    for row, train in enumerate(sides):
        for column, test in enumerate(sides):
            values = transferred.auroc.isel(train=row, test=column).values
            if train != test and np.isfinite(values).any():
                at = int(np.nanargmax(values))
                sentences.append(
                    f"A probe trained in {train} and tested in {test} does best at layer "
                    f"{transferred.layer.values[at]}: AUROC {values[at]:.3f} (chance is 0.5; "
                    f"the layer was selected post hoc, so this value is optimistic)."
                )
    return sentences


def of_dimension(dimension: xr.Dataset) -> list[str]:
    """Report the layers of the smallest and the largest intrinsic dimension, with their intervals."""
    sentences = []
    for name, table in _each(dimension):
        values = table.dimension.values
        if not np.isfinite(values).any():
            sentences.append(f"{name}: too few distinct vectors for an intrinsic dimension.")
            continue
        least, most = int(np.nanargmin(values)), int(np.nanargmax(values))
        parts = [
            f"{values[at]:.1f} (95% interval {table.low.values[at]:.1f} to {table.high.values[at]:.1f}) at "
            f"layer {table.layer.values[at]}"
            for at in (least, most)
        ]
        sentences.append(f"{name}: the intrinsic dimension is between {' and '.join(parts)}.")
    return sentences


def of_anisotropy(cosines: xr.Dataset) -> list[str]:
    """Report where vectors of different clusters are most similar, and how much more so within clusters."""
    sentences = []
    for name, table in _each(cosines):
        values = table.between.values
        if not np.isfinite(values).any():
            continue
        at = int(np.nanargmax(values))
        sentence = (
            f"{name}: the mean cosine of vectors of different clusters is at most {values[at]:.2f}, at layer "
            f"{table.layer.values[at]}"
        )
        if np.isfinite(table.corrected.values[at]):
            sentence += f"; within clusters it is {table.corrected.values[at]:.2f} higher there"
        sentences.append(f"{sentence}.")
    return sentences


def of_directions(cosines: xr.Dataset) -> list[str]:
    """Report where directions of two languages are most similar, or that they cannot be compared."""
    sentences, names = [], cosines.language.values.tolist()
    for at, first in enumerate(names):
        for second in names[at + 1 :]:
            pair = cosines.sel(language=first, language_2=second)
            values = pair.disattenuated.values
            n_undefined = int(np.isnan(values).sum())
            sentence = f"Directions of {first} and {second}"
            if n_undefined == len(values):
                sentences.append(f"{sentence} cannot be told from sampling noise at any layer.")
                continue
            best = int(np.nanargmax(values))
            sentence += (
                f" are most similar at layer {pair.layer.values[best]}: disattenuated cosine "
                f"{values[best]:.3f} (95% interval {pair.disattenuated_low.values[best]:.3f} to "
                f"{pair.disattenuated_high.values[best]:.3f})"
            )
            if n_undefined:
                sentence += f"; {n_undefined} of {len(values)} layers are too noisy to say"
            sentences.append(f"{sentence}.")
    return sentences


def of_languages(similarity: xr.Dataset) -> list[str]:
    """Report where languages are most similar."""
    sentences, names = [], similarity.language.values.tolist()
    for at, first in enumerate(names):
        for second in names[at + 1 :]:
            pair = similarity.sel(language=first, language_2=second)
            if np.isfinite(pair.cka.values).any():
                best = int(np.nanargmax(pair.cka.values))
                sentences.append(
                    f"{first} and {second} are most similar at layer {pair.layer.values[best]}: CKA "
                    f"{pair.cka.values[best]:.3f} (95% interval {pair.low.values[best]:.3f} to "
                    f"{pair.high.values[best]:.3f}, n = {int(pair.n)})."
                )
    return sentences


def _each(table: xr.Dataset) -> list[tuple[str, xr.Dataset]]:
    return [(str(name), table.sel(language=name)) for name in table.language.values]


def joined(names: list[str]) -> str:
    """Join names by commas and "and".

    Examples
    --------
    >>> joined(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def _listed(layers: list[int]) -> str:
    return ", ".join(map(str, layers))


def probability(value: float) -> str:
    """Return a p-value with its sign of equality, as in a sentence."""
    return f"= {value:.3f}" if value >= 0.001 else "< 0.001"
