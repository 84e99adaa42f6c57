"""What numbers say, in a sentence; no more than they prove."""

import numpy as np
import xarray as xr


def of_norms(norms: xr.Dataset) -> list[str]:
    """Say how norms change from the first layer to the last, and where most."""
    said = []
    for name, own in _each(norms):
        mean = own["mean"].values
        if not np.isfinite(mean).all():
            continue
        at = int(np.abs(np.diff(np.log(mean))).argmax()) if len(mean) > 1 and (mean > 0).all() else 0
        said.append(
            f"{name}: the mean norm goes from {mean[0]:,.3g} at layer {own.layer.values[0]} to "
            f"{mean[-1]:,.3g} "
            f"at layer {own.layer.values[-1]}"
            + (f"; its largest step is after layer {own.layer.values[at]}." if len(mean) > 1 else ".")
        )
        outliers = int(own["n_outliers"].max())
        if outliers:
            layer = own.layer.values[int(own["n_outliers"].values.argmax())]
            said.append(
                f"{name}: {outliers:,} of {int(own['n_tokens'][0]):,} tokens have more than 10 times the "
                f"median "
                f"norm of layer {layer}."
            )
    return said


def of_neighbours(found: xr.Dataset, transitions: xr.Dataset) -> list[str]:
    """Say where neighbouring layers are least alike, and whether that is a transition."""
    said = []
    for name, own in _each(found):
        values = own.cka.values
        if not np.isfinite(values).any():
            said.append(f"{name}: CKA is undefined.")
            continue
        at = int(np.nanargmin(values))
        layer = own.layer.values[at]
        sentence = (
            f"{name}: neighbouring layers are least alike after layer {layer} (CKA {values[at]:.3f}, 95% "
            f"interval "
            f"{own.low.values[at]:.3f} to {own.high.values[at]:.3f})"
        )
        flagged = transitions.sel(language=name)
        abrupt = flagged.layer.values[flagged.transition.values].tolist()
        confirmed = flagged.layer.values[flagged.confirmed.values].tolist()
        if abrupt:
            sentence += f". Transitions stand out after layer {_listed(abrupt)}; " + (
                f"confirmed in half-samples: {_listed(confirmed)}."
                if confirmed
                else "none is confirmed in half-samples."
            )
        else:
            sentence += "; no transition stands out from the other layers."
        said.append(sentence)
    return said


def of_groups(found: xr.Dataset) -> list[str]:
    """Say where groups are told apart best, and whether the text alone does as well."""
    said = []
    for name, own in _each(found):
        auroc = own.auroc.values
        if not np.isfinite(auroc).any():
            continue
        at = int(np.nanargmax(auroc))
        sentence = (
            f"{name}: told apart best at layer {own.layer.values[at]} (AUROC {auroc[at]:.3f} ± "
            f"{own.auroc_sd.values[at]:.3f}, "
            f"p {_p(float(own.p.values[at]))} over all layers)"
        )
        simple = {
            "TF-IDF of the text": float(own.auroc_tfidf),
            "the embedding": float(own.auroc_embedding),
            "length": float(own.auroc_length),
        }
        simple = {what: value for what, value in simple.items() if np.isfinite(value)}
        told = ", ".join(f"{what} {value:.3f}" for what, value in simple.items())
        sentence += f"; without the model: {told}."
        if max(simple.values()) >= auroc[at] - own.auroc_sd.values[at]:
            sentence += (
                " The text alone does about as well or better, so that this proves nothing of the layers."
            )
        said.append(sentence)
    return said


def of_transfer(found: xr.Dataset) -> list[str]:
    """Say how well probes do in another language."""
    said = []
    for one in found.train.values.tolist():
        for two in found.test.values.tolist():
            values = found.auroc.sel(train=one, test=two).values
            if one != two and np.isfinite(values).any():
                at = int(np.nanargmax(values))
                said.append(
                    f"Trained in {one} and tested in {two}, a probe does best at layer "
                    f"{found.layer.values[at]}: "
                    f"AUROC {values[at]:.3f} (chance is 0.5; the best of all layers is chosen after the "
                    f"fact)."
                )
    return said


def of_languages(found: xr.Dataset) -> list[str]:
    """Say where languages are most alike."""
    said, names = [], found.language.values.tolist()
    for at, one in enumerate(names):
        for two in names[at + 1 :]:
            own = found.sel(language=one, language_2=two)
            if np.isfinite(own.cka.values).any():
                best = int(np.nanargmax(own.cka.values))
                said.append(
                    f"{one} and {two} are most alike at layer {own.layer.values[best]}: CKA "
                    f"{own.cka.values[best]:.3f} "
                    f"({own.low.values[best]:.3f} to {own.high.values[best]:.3f}, n = {int(own.n)})."
                )
    return said


def _each(table: xr.Dataset) -> list[tuple[str, xr.Dataset]]:
    return [(str(name), table.sel(language=name)) for name in table.language.values]


def _listed(layers: list[int]) -> str:
    return ", ".join(map(str, layers))


def _p(value: float) -> str:
    return f"= {value:.3f}" if value >= 0.001 else "< 0.001"
