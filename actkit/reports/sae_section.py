"""Section of a report about sparse autoencoders: features are shown only with the quality of the SAEs."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from .. import plots
from ..errors import CubeError, InputError, MissingError
from ..features.quality_result import COLUMNS, read_quality
from ..features.training_log import training_log
from ..object_urls import is_url
from ..stats.top_activations import top_activating
from .summaries import Summaries

SAES, FEATURES = "saes", "features"
_FEW_TOKENS = 100  # per feature
_SHOWN = 6  # features of each language
_TEXTS = 4  # of each feature


def saes_folder(cube: xr.Dataset) -> Path | None:
    """Return the folder of the autoencoders in the run folder of a cube; None if there is none."""
    source = str(cube.encoding.get("source", ""))
    folder = Path(source).parent / SAES
    return folder if source and not is_url(source) and folder.is_dir() else None


def quality_of(folder: Path) -> xr.Dataset:
    """Return the quality of the autoencoders in a folder.

    Raises
    ------
    MissingError
        If it was not measured, or the autoencoders have changed since.
    """
    quality = read_quality(folder)
    if quality is None:
        raise MissingError(
            "the quality of the autoencoders was not measured, and features mean nothing without it; run "
            f"actkit saes quality {folder.parent} {folder}, and write the report again"
        )
    return quality


def curves_of(folder: Path) -> Any:
    """Return the training curves of the autoencoders in a folder; None if they were not trained there."""
    try:
        return plots.training_curves(training_log(folder))
    except (CubeError, MissingError):
        return None


def shown_measures(quality: xr.Dataset) -> xr.Dataset:
    """Return the most important measures that are known, in their order."""
    return quality[[name for name in COLUMNS if bool(quality[name].notnull().any())]]


def of_quality(quality: xr.Dataset) -> Iterator[str]:
    """Yield sentences about the quality of autoencoders, and about what was not measured."""
    for layer in quality.layer.values.tolist():
        here = quality.sel(layer=layer)
        is_better = here.fvu < min(here.fvu_pca, here.fvu_pca_top)
        verdict = "better than any PCA" if is_better else "no better than the better PCA"
        yield (
            f"Layer {layer}: with {float(here.l0):.1f} active features per held-out token, "
            f"{float(here.fvu):.1%} of the variance is unexplained: {verdict} with as many coefficients "
            f"({float(here.fvu_pca):.1%} with the first components, {float(here.fvu_pca_top):.1%} with the "
            f"largest coefficients). Random features leave {float(here.fvu_random):.1%} unexplained."
        )
    if quality.found_again.notnull().any():
        low, high = float(quality.found_again.min()), float(quality.found_again.max())
        random = float(quality.found_again_random.max())
        yield (
            f"Of the features that are active on held-out tokens, {_span(low, high)} have a counterpart in "
            f"the autoencoder of another seed (random directions: at most {random:.0%}); do not expect to "
            "find the others again."
        )
    else:
        yield (
            "Not measured: how many features another seed finds again. Train with another --seed, and give "
            "that folder as --other."
        )
    if quality.ce_recovered.notnull().any():
        zero, mean = (
            _span(float(quality[name].min()), float(quality[name].max()))
            for name in ("ce_recovered", "ce_recovered_from_mean")
        )
        yield (
            f"With the reconstruction in place of the output, the model recovers {zero} of the loss added by "
            f"zero ablation and {mean} of that added by mean ablation "
            f"({quality.attrs['n_predictions']:,} predicted tokens)."
        )
    tokens = quality.tokens_per_feature
    if bool((tokens < _FEW_TOKENS).any()):
        yield (
            f"The autoencoders were trained on {float(tokens.min()):,.0f} tokens per feature; below "
            f"{_FEW_TOKENS}, expect features that depend on the seed."
        )


def differences(features: xr.Dataset, cube: xr.Dataset, **options: Any) -> xr.Dataset:
    """Return which features differ, cached, with the baseline of the cube that was encoded if it has one.

    Warns
    -----
    UserWarning
        If the cube has no such baseline, such as one without vectors of all samples.
    """
    summaries, name = Summaries(), "feature_differential"
    try:
        return summaries.get_several(features, [(name, options | {"cube": cube})])[0]
    except (InputError, MissingError) as error:
        result = summaries.get(features, name, **options)
        warnings.warn(f"features are not compared with the difference of means: {error}", stacklevel=2)
        return result


def of_differences(differential: xr.Dataset) -> Iterator[str]:
    """Yield a sentence per language about the features that differ between the groups."""
    for name in differential.language.values.tolist():
        here = differential.sel(language=name)
        found, live = int(here.n_found), int(here.n_live)
        certain = int((here.p_max <= 0.05).sum())
        sentence = (
            f"{name}: {found:,} of {live:,} live features differ ({differential.attrs['between']}) at a "
            f"false discovery rate of {differential.attrs['q']:.0%}; {certain:,} by max-T."
        )
        if "auroc_best" in here and np.isfinite(here.auroc_best):
            sentence += f" Held-out AUROC of the best feature: {float(here.auroc_best):.2f}"
            if "auroc_residual" in here and bool(here.auroc_residual.notnull().any()):
                low, high = float(here.auroc_residual.min()), float(here.auroc_residual.max())
                span = f"{low:.2f}" if len(here.layer) == 1 else f"{low:.2f} to {high:.2f} over layers"
                sentence += f", difference of means: {span}"
            sentence += f", TF-IDF: {float(here.auroc_tfidf):.2f}."
        yield sentence


def check_same_saes(features: xr.Dataset, quality: xr.Dataset) -> None:
    """Check that features were computed by the autoencoders whose quality was measured.

    Raises
    ------
    MissingError
        If they were trained anew since.
    """
    used = {layer: entry["sha256"] for layer, entry in json.loads(str(features.attrs["saes"])).items()}
    measured = json.loads(str(quality.attrs["weights"]))
    if not used.items() <= measured.items():
        raise MissingError(
            "the features were computed by other autoencoders than those whose quality was measured; encode "
            "them again"
        )


def found_features(differential: xr.Dataset) -> pd.DataFrame:
    """Return the features with the largest effects of those that differ, a few per language."""
    rows = []
    for name in differential.language.values.tolist():
        here = differential.sel(language=name).stack(place=("layer", "feature"), create_index=False)
        is_found = (here["q"] <= differential.attrs["q"]).values
        order = np.argsort(-np.where(is_found, np.abs(here.effect.values), -np.inf), kind="stable")
        for place in order[: min(_SHOWN, int(is_found.sum()))]:
            row = here.isel(place=place)
            numbers = {key: float(row[key]) for key in ("difference", "effect", "t", "q", "p_max")}
            rows.append({"language": name, "layer": int(row.layer), "feature": int(row.feature), **numbers})
    columns = ["language", "layer", "feature", "difference", "effect", "t", "q", "p_max"]
    return pd.DataFrame(rows, columns=columns)


def texts_of(features: xr.Dataset, found: pd.DataFrame) -> pd.DataFrame:
    """Return the tokens at which each of some features is largest, in their context."""
    tables = []
    for layer, feature in dict.fromkeys(zip(found.layer, found.feature, strict=True)):
        top = top_activating(features, layer=int(layer), feature=int(feature), count=_TEXTS)
        top = top[["language", "value", "context"]]
        tables.append(top.assign(layer=layer, feature=feature)[["layer", "feature", *top.columns]])
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _span(low: float, high: float) -> str:
    return f"{low:.0%}" if f"{low:.0%}" == f"{high:.0%}" else f"{low:.0%} to {high:.0%}"
