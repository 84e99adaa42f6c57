"""Sentences that summarise results, claiming no more than the numbers support."""

import numpy as np
import xarray as xr

from ..stats.groups import label_text

_BASELINES = {"tfidf": "TF-IDF of the text", "embedding": "the embedding", "length": "length"}


def of_norms(norms: xr.Dataset) -> list[str]:
    """Describe how norms change from the first layer to the last, and where they change most."""
    sentences = []
    for name, norm in _each(norms):
        mean = norm["mean"].values
        if not np.isfinite(mean).all():
            continue
        at = int(np.abs(np.diff(np.log(mean))).argmax()) if len(mean) > 1 and (mean > 0).all() else 0
        sentences.append(
            f"{name}: the mean norm changes from {mean[0]:,.3g} at layer {norm.layer.values[0]} to "
            f"{mean[-1]:,.3g} at layer {norm.layer.values[-1]}"
            + (
                f"; its largest relative step follows layer {norm.layer.values[at]}."
                if len(mean) > 1
                else "."
            )
        )
        outliers = int(norm["n_outliers"].max())
        if outliers:
            layer = norm.layer.values[int(norm["n_outliers"].values.argmax())]
            sentences.append(
                f"{name}: at layer {layer}, the norm of {outliers:,} of {int(norm['n_tokens'][0]):,} tokens "
                f"exceeds 10 times the median."
            )
    return sentences


def of_neighbours(similarity: xr.Dataset, transitions: xr.Dataset) -> list[str]:
    """Report where adjacent layers are least similar, and whether that is a transition."""
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
        abrupt = flagged.layer.values[flagged.change_point.values].tolist()
        confirmed = flagged.layer.values[flagged.confirmed.values].tolist()
        if abrupt:
            sentence += f". Transitions are flagged after layer {_listed(abrupt)}; " + (
                f"random half-samples confirm {_listed(confirmed)}."
                if confirmed
                else "random half-samples confirm none."
            )
        else:
            sentence += "; no transition is flagged."
        sentences.append(sentence)
    return sentences


def of_groups(differential: xr.Dataset) -> list[str]:
    """Report where the probe separates the groups best, and what the layer adds to the strongest baseline."""
    sentences = []
    for name, probe in _each(differential):
        auroc = probe.auroc.values
        if not np.isfinite(auroc).any():
            continue
        at = int(np.nanargmax(auroc))
        sentence = (
            f"{name}: the probe separates the groups best at layer {probe.layer.values[at]} (AUROC "
            f"{auroc[at]:.3f}, 95% interval {probe.auroc_low.values[at]:.3f} to "
            f"{probe.auroc_high.values[at]:.3f}; p {_p(float(probe.p.values[at]))}, corrected over layers)"
        )
        baselines = {name: float(probe[f"auroc_{name}"]) for name in _BASELINES}
        baselines = {name: value for name, value in baselines.items() if np.isfinite(value)}
        listed = ", ".join(f"{_BASELINES[name]} {value:.3f}" for name, value in baselines.items())
        sentence += f"; baselines: {listed}."
        strongest = max(baselines, key=baselines.__getitem__)
        added = probe.isel(layer=at).sel(baseline=strongest)
        sentence += (
            f" The layer adds {float(added.auroc_difference):+.3f} (95% interval "
            f"{float(added.auroc_difference_low):+.3f} to {float(added.auroc_difference_high):+.3f}, "
            f"p {_p(float(added.auroc_difference_p))}) to the strongest baseline, {_BASELINES[strongest]}"
        )
        sentence += (
            "."
            if added.auroc_difference > 0 and added.auroc_difference_p < 0.05
            else ", which does not show that the layers add information."
        )
        sentences.append(sentence)
    return sentences


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


def _listed(layers: list[int]) -> str:
    return ", ".join(map(str, layers))


def _p(value: float) -> str:
    return f"= {value:.3f}" if value >= 0.001 else "< 0.001"
