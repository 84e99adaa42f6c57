"""Heat maps (layer × layer, and layer × token of a sample) and curves for pairs of languages."""

from typing import Any, Literal

import holoviews as hv
import numpy as np
import xarray as xr

from ..canonical import Cube, as_cube, sample_of
from ..schema import TokenKind
from .style import (
    DIVERGING,
    HEIGHT,
    RIGHT_TO_LEFT,
    SEQUENTIAL,
    colours,
    framed,
    layer_ticks,
    shaded,
    side_by_side,
    styled,
)

_MOST_TOKENS = 60
MEASURES = {
    "cka": "Debiased CKA",
    "mutual_knn": "Mutual nearest neighbours",
    "rsa": "RSA",
    "procrustes": "Procrustes similarity",
}


def cka(similarity: xr.Dataset, variable: Literal["cka", "se", "cka_biased"] = "cka") -> Any:
    """Plot the CKA between all pairs of layers, one map per language.

    Parameters
    ----------
    similarity
        From :func:`actkit.cka`.
    variable
        ``cka``, ``se`` or ``cka_biased``.

    Returns
    -------
    holoviews.Layout
    """
    table = similarity[variable].compute()
    names = {"cka": "Debiased CKA", "se": "Standard error of CKA", "cka_biased": "Biased CKA"}
    # a scale from 0 to 1 would show most models as uniformly yellow
    span = (float(table.min()), float(table.max()))
    return side_by_side(
        [
            _square(table.sel(language=language), f"{names[variable]}, {language}", span, SEQUENTIAL)
            for language in table.language.values.tolist()
        ]
    )


def direction_cosines(cosines: xr.Dataset) -> Any:
    """Plot cosines between the directions that separate the groups: across layers, and across languages.

    Parameters
    ----------
    cosines
        From :func:`actkit.direction_cosines`.

    Returns
    -------
    holoviews.Layout
        Disattenuated cosines across layers; and across languages the cosine, its ceiling and the
        disattenuated cosine with its 95% interval. Undefined values are left out.
    """
    table = cosines.compute()
    by = table.attrs["by"]
    names = [str(name) for name in table.language.values]
    layer_cosines = table.layers_disattenuated.rename("cosine")
    pictures = []
    for name in names:
        title, values = f"Cosine of {by} directions, {name}", layer_cosines.sel(language=name)
        is_known = bool(values.notnull().any())
        pictures.append(_square(values, title, (-1, 1), DIVERGING) if is_known else _undefined(title))
    pairs = _pairs(table)
    if pairs:
        pictures.append(_between(table, pairs, by))
    return side_by_side(pictures)


def layer_difference(differential: xr.Dataset) -> Any:
    """Plot the difference between the probe AUROCs of all pairs of layers, one map per language.

    Parameters
    ----------
    differential
        From :func:`actkit.group_differential`.

    Returns
    -------
    holoviews.Layout
        The AUROC of the layer on the vertical axis minus that of the layer on the horizontal axis. Pairs that
        cannot be told apart (p of at least 0.05, corrected over all pairs) are left out.
    """
    table = differential[["layer_difference", "layer_difference_p"]].compute()
    shown = table.layer_difference.where(table.layer_difference_p < 0.05).rename("difference")
    span = max(float(np.abs(table.layer_difference).max()), 0.01)
    pictures = []
    for name in table.language.values.tolist():
        title, values = f"Difference in AUROC between layers, {name}", shown.sel(language=name)
        is_known = bool(values.notnull().any())
        square = _square(values, title, (-span, span), DIVERGING)
        pictures.append(square if is_known else _undefined(title, "no two layers can be told apart"))
    return side_by_side(pictures)


def language_cka(similarity: xr.Dataset) -> Any:
    """Plot the CKA between each pair of languages over layers.

    Parameters
    ----------
    similarity
        From :func:`actkit.language_cka`.

    Returns
    -------
    holoviews.Overlay
    """
    table = similarity.compute()
    pairs = _pairs(table)
    shades = colours(f"{first} and {second}" for first, second in pairs)
    parts = []
    for first, second in pairs:
        pair = table.sel(language=first, language_2=second)
        label = f"{first} and {second}"
        band = hv.Area((pair.layer.values, pair.low.values, pair.high.values), "layer", ["low", "high"])
        curve = hv.Curve((pair.layer.values, pair.cka.values), "layer", "cka", label=label)
        parts.append(shaded(band, shades[label], 0.25))
        parts.append(styled(curve, color=shades[label], bokeh={"line_width": 2}, mpl={"linewidth": 2}))
    return framed(
        hv.Overlay(parts),
        title="CKA of the same samples between languages",
        bands="95% CI",
        xlabel="layer",
        table=table,
        ylabel=f"CKA of {table.attrs['vectors']} vectors",
    )


def similarity(
    similarity: xr.Dataset,
    variable: Literal["calibrated", "similarity", "null_mean", "null_sd", "p"] = "calibrated",
) -> Any:
    """Plot a similarity: one map of all pairs of layers per language, or curves of pairs of languages.

    Parameters
    ----------
    similarity
        From :func:`actkit.similarity`.
    variable
        A variable of the result.

    Returns
    -------
    holoviews.Layout or holoviews.Overlay
        An overlay of curves over layers if languages were compared.
    """
    table = similarity.compute()
    measure = MEASURES[table.attrs["measure"]]
    label = f"{measure} ({variable.replace('_', ' ')})"
    if table.attrs["across"] == "layer":
        span = (float(table[variable].min()), float(table[variable].max()))
        return side_by_side(
            [
                _square(table[variable].sel(language=language), f"{label}, {language}", span, SEQUENTIAL)
                for language in table.language.values.tolist()
            ]
        )
    pairs = _pairs(table)
    shades = colours(f"{first} and {second}" for first, second in pairs)
    parts = []
    for first, second in pairs:
        values = table[variable].sel(language=first, language_2=second).values
        name = f"{first} and {second}"
        curve = hv.Curve((table.layer.values, values), "layer", variable, label=name)
        parts.append(styled(curve, color=shades[name], bokeh={"line_width": 2}, mpl={"linewidth": 2}))
    return framed(
        hv.Overlay(parts),
        title=f"{measure} of the same samples between languages",
        xlabel="layer",
        table=table,
        ylabel=label,
    )


def token_correlation(
    correlation: xr.Dataset, variable: Literal["pearson", "spearman", "cosine"] = "pearson"
) -> Any:
    """Plot the correlation of tokens between all pairs of layers, one map per language.

    Parameters
    ----------
    correlation
        From :func:`actkit.token_correlation`.
    variable
        A variable of the result: ``pearson``; ``cosine`` of vectors; or ``spearman`` of norms.

    Returns
    -------
    holoviews.Layout
    """
    table = correlation[variable].compute()
    name = {"pearson": "Pearson correlation", "spearman": "Spearman correlation", "cosine": "Cosine"}[
        variable
    ]
    label = f"{name} of token {correlation.attrs['of']}s"
    span = (float(table.min()), float(table.max()))
    return side_by_side(
        [
            _square(table.sel(language=language), f"{label}, {language}", span, SEQUENTIAL)
            for language in table.language.values.tolist()
        ]
    )


def tokens(cube: Cube, sample: int, *, variable: str = "norm", most: int = _MOST_TOKENS) -> Any:
    """Plot a sample as a layer × token map, with its text.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    sample
        Value of the coordinate ``sample``.
    variable
        Variable with dims ``(layer, sample, token)``; its logarithm is shown.
    most
        Maximum number of tokens shown, starting at the first.

    Returns
    -------
    holoviews.QuadMesh
        Tokens run from right to left for languages written that way.

    Raises
    ------
    MissingError, KeyError
        If the cube lacks the variable or the sample.
    """
    captured = sample_of(as_cube(cube), sample, variable, "text", "token_kind", "token_text")
    count = int(min((captured.token_kind.values != TokenKind.PAD).sum(), most))
    table = np.log10(captured[variable].transpose("layer", "token").values[:, :count].astype(np.float64))
    texts = [str(text).replace("\n", "⏎").strip() or "␣" for text in captured.token_text.values[:count]]
    language = str(captured.language.item())
    return _image(
        table,
        captured.layer.values,
        dims=("token", "layer"),
        colour_label=f"log10 of {variable}",
        title=f"Sample {sample}, {language}: {_shortened(str(captured.text.item()))}",
        xlabel="token",
        ylabel="layer",
        cmap=SEQUENTIAL,
        xticks=list(enumerate(texts)),
        xrotation=60,
        invert_xaxis=language.lower() in RIGHT_TO_LEFT,
        wide=True,
    )


def _pairs(table: xr.Dataset) -> list[tuple[str, str]]:
    """Return every pair of languages once."""
    names = [str(name) for name in table.language.values]
    return [(first, second) for at, first in enumerate(names) for second in names[at + 1 :]]


def _square(table: xr.DataArray, title: str, span: tuple[float, float], cmap: str) -> Any:
    """Draw a layer × layer map."""
    square = table.transpose("layer", "layer_2")
    return _image(
        square.values,
        square.layer.values,
        columns=square.layer_2.values,
        dims=("layer_2", "layer"),
        colour_label=str(table.name),
        title=title,
        xlabel="layer",
        ylabel="layer",
        cmap=cmap,
        clim=span,
    )


def _image(
    table: np.ndarray,
    rows: np.ndarray,
    *,
    dims: tuple[str, str],
    colour_label: str,
    columns: np.ndarray | None = None,
    wide: bool = False,
    **both: Any,
) -> Any:
    """Draw a map with one row of equal height per captured layer."""
    labels = [(at, str(layer)) for at, layer in enumerate(rows.tolist())]
    if columns is not None:
        column_labels = [(at, str(layer)) for at, layer in enumerate(columns.tolist())]
        both["xticks"] = layer_ticks(column_labels)
    image = hv.QuadMesh(
        (np.arange(table.shape[1]), np.arange(table.shape[0]), table), list(dims), [colour_label]
    )
    width = max(300, min(14 * table.shape[1], 1000)) if wide else HEIGHT
    return styled(
        image,
        yticks=layer_ticks(labels),
        colorbar=True,
        bokeh={
            "frame_width": width,
            "frame_height": HEIGHT,
            "tools": ["hover"],
            "toolbar": "above",
            "clabel": colour_label,
        },
        mpl={"fig_inches": 3 + width / 90, "aspect": width / HEIGHT, "clabel": colour_label},
        **both,
    )


def _undefined(title: str, statement: str = "cannot be told from sampling noise") -> Any:
    """Draw a statement in place of a map without values."""
    text = hv.Text(0.5, 0.5, statement)
    size = {"frame_width": HEIGHT, "frame_height": HEIGHT}
    return styled(text, title=title, xaxis=None, yaxis=None, bokeh=size, mpl={"fig_inches": 4})


def _between(table: xr.Dataset, pairs: list[tuple[str, str]], by: str) -> Any:
    shades = colours(f"{first} and {second}" for first, second in pairs)
    parts = []
    shown = (
        ("languages", "cosine", "solid"),
        ("ceiling", "ceiling", "dotted"),
        ("disattenuated", "disattenuated", "dashed"),
    )
    for first, second in pairs:
        pair = table.sel(language=first, language_2=second)
        limits = [pair.disattenuated_low.values, pair.disattenuated_high.values]
        if np.isfinite(limits).any():
            band = hv.Area((pair.layer.values, *limits), "layer", ["low", "high"])
            parts.append(shaded(band, shades[f"{first} and {second}"], 0.2))
        for variable, label, dash in shown:
            if not pair[variable].notnull().any():
                continue
            curve = hv.Curve(
                (pair.layer.values, pair[variable].values),
                "layer",
                variable,
                label=f"{first} and {second}: {label}",
            )
            parts.append(
                styled(
                    curve,
                    color=shades[f"{first} and {second}"],
                    bokeh={"line_dash": dash},
                    mpl={"linestyle": {"solid": "-", "dotted": ":", "dashed": "--"}[dash]},
                )
            )
    return framed(
        hv.Overlay(parts),
        title=f"Cosine of {by} directions between languages",
        bands="95% CI",
        xlabel="layer",
        table=table,
        ylabel="cosine",
    )


def _shortened(text: str, most: int = 60) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= most else f"{flat[:most]}…"
