"""Features of sparse autoencoders that differ between groups: volcano plot, numbers by layer, AUROC."""

from typing import Any

import holoviews as hv
import numpy as np
import xarray as xr

from ..errors import Fault, InputError
from .curves import lines_of
from .style import GREY, colours, framed, side_by_side, styled

_LEAST = 1e-16  # p-values below it are drawn there


def feature_differential(differential: xr.Dataset) -> Any:
    """Plot which features differ between two groups: volcano plots, numbers by layer, and held-out AUROCs.

    Parameters
    ----------
    differential
        From :func:`actkit.feature_differential`.

    Returns
    -------
    holoviews.Layout
        A :func:`feature_volcano` of each language, :func:`feature_counts`, and :func:`feature_auroc` if the
        result has AUROCs.
    """
    names = [str(name) for name in differential.language.values]
    pictures = [feature_volcano(differential, language=name) for name in names]
    pictures.append(feature_counts(differential))
    if "auroc_feature" in differential:
        pictures.append(feature_auroc(differential))
    return side_by_side(pictures)


def feature_volcano(differential: xr.Dataset, *, language: str | None = None, labelled: int = 6) -> Any:
    """Plot the p-value of each feature against the size of its difference.

    Parameters
    ----------
    differential
        From :func:`actkit.feature_differential`.
    language
        The language; by default, the first.
    labelled
        Number of features to label as layer/feature: of those that differ, those with the largest effects.

    Returns
    -------
    holoviews.Overlay
        Features that differ are coloured by the group that has more of them; the rest are grey. Infinite
        effects, of features that separate the groups perfectly, are drawn at 1.1 times the largest finite.

    Raises
    ------
    InputError
        If the result lacks the language.
    """
    table = _of_language(differential, language).stack(place=("layer", "feature"), create_index=False)
    table = table.isel(place=np.flatnonzero(table.live.values))
    effect, height = _drawn(table.effect.values), -np.log10(np.maximum(table.p.values, _LEAST))
    is_found = table["q"].values <= table.attrs["q"]
    first, second = table.attrs["between"].split(" to ", 1)
    shades = colours([first, second])
    parts = []
    for name, chosen, colour in (
        ("not found to differ", ~is_found, GREY),
        (f"more in {first}", is_found & (effect < 0), shades[first]),
        (f"more in {second}", is_found & (effect > 0), shades[second]),
    ):
        columns = tuple(
            values[chosen] for values in (effect, height, table.layer.values, table.feature.values)
        )
        points = hv.Points(columns, ["effect", "height"], ["layer", "feature"], label=name)
        parts.append(
            styled(
                points,
                color=colour,
                alpha=0.6 if colour != GREY else 0.3,
                bokeh={"size": 5, "tools": ["hover"]},
                mpl={"s": 12},
            )
        )
    marked = [at for at in np.lexsort((table.p.values, -np.abs(effect))) if is_found[at]][:labelled]
    texts = [f"{table.layer.values[at]}/{table.feature.values[at]}" for at in marked]
    labels = hv.Labels((effect[marked], height[marked], texts), ["effect", "height"], "text")
    parts.append(
        styled(
            labels,
            bokeh={"text_font_size": "8pt", "yoffset": 0.25, "text_color": "black"},
            mpl={"size": 8, "yoffset": 0.25, "color": "black"},
        )
    )
    n_live = int(table.sizes["place"])
    return framed(
        hv.Overlay(parts),
        title=f"Features and {table.attrs['by']}, {table.language.item()}",
        xlabel=(
            f"effect: {second} minus {first}, in standard deviations · {_units(table)}\n"
            f"{int(is_found.sum()):,} of {n_live:,} features differ at a false discovery rate of "
            f"{table.attrs['q']:.0%}"
        ),
        ylabel=f"−log₁₀ p (p below {_LEAST:.0e} is drawn at {-np.log10(_LEAST):.0f})",
    )


def feature_counts(differential: xr.Dataset) -> Any:
    """Plot the number of features that differ by layer and language.

    Parameters
    ----------
    differential
        From :func:`actkit.feature_differential`.

    Returns
    -------
    holoviews.Overlay
        Features with a ``q`` of at most that of the result (solid), and with a ``p_max`` of at most 5%
        (dashed), so that probably none is false. The axis says how many a layer has tested.
    """
    result = differential[["q", "p_max", "live"]].compute()
    table = xr.Dataset(
        {
            "found": (result["q"] <= result.attrs["q"]).sum("feature"),
            "certain": (result.p_max <= 0.05).sum("feature"),
        },
        attrs=result.attrs,
    )
    parts = []
    for line in lines_of(table):
        parts += [line.curve("found"), line.curve("certain", ", max-T", dash="dashed", width=1)]
    tested = result.live.sum("feature")
    return framed(
        hv.Overlay(parts),
        title=f"Features that differ by {table.attrs['by']}",
        xlabel="layer",
        ylabel=f"features, of {int(tested.min()):,} to {int(tested.max()):,} tested in a layer",
        table=table,
    )


def feature_auroc(differential: xr.Dataset) -> Any:
    """Plot how well the best feature of each layer tells the groups apart on held-out clusters.

    Parameters
    ----------
    differential
        From :func:`actkit.feature_differential`, with AUROCs.

    Returns
    -------
    holoviews.Overlay
        AUROC of the best feature with its 95% interval; of the difference of means of the residual stream
        (dashed) if the result has it, and of the text (dotted).

    Raises
    ------
    InputError
        If the result has no AUROCs.
    """
    if "auroc_feature" not in differential:
        hint = "compute it with splits of at least 1"
        raise InputError([Fault("differential", "has no AUROCs", hint)])
    names = [name for name in differential.data_vars if str(name).startswith("auroc_")]
    table = differential[names].compute()
    table["auroc_tfidf"] = table.auroc_tfidf.expand_dims(layer=table.layer.values)
    parts: list[Any] = []
    for line in lines_of(table):
        parts += [line.band("auroc_feature_low", "auroc_feature_high", 0.2), line.curve("auroc_feature")]
        if "auroc_residual" in table:
            parts.append(line.curve("auroc_residual", ", difference of means", dash="dashed", width=1))
        parts.append(line.curve("auroc_tfidf", ", TF-IDF of the text", dash="dotted", width=1))
    return framed(
        hv.Overlay(parts),
        title=f"Best feature for {table.attrs['by']}",
        bands="95% CI",
        xlabel="layer",
        ylabel="AUROC on held-out clusters",
        table=table,
    )


def _of_language(differential: xr.Dataset, language: str | None) -> xr.Dataset:
    names = [str(name) for name in differential.language.values]
    if language is not None and language not in names:
        raise InputError([Fault("language", f"the result lacks {language!r}", f"it has {', '.join(names)}")])
    shown = ["effect", "p", "q", "live", "is_paired", "n_pairs", "n_first", "n_second"]
    return differential[shown].sel(language=names[0] if language is None else language).compute()


def _drawn(effect: np.ndarray) -> np.ndarray:
    """Return effects with infinite ones beside the largest finite one, and 0 for features without one."""
    finite = np.abs(effect[np.isfinite(effect)])
    limit = 1.1 * finite.max() if finite.any() else 1.0
    return np.asarray(np.clip(np.nan_to_num(effect, nan=0.0, posinf=limit, neginf=-limit), -limit, limit))


def _units(table: xr.Dataset) -> str:
    """Return how many pairs or clusters were compared."""
    if table.is_paired:
        return f"{int(table.n_pairs):,} pairs"
    return f"{int(table.n_first):,} and {int(table.n_second):,} clusters"
