"""Maps: layer × layer, and layer × token of one sample."""

from typing import Any

import holoviews as hv
import numpy as np
import xarray as xr

from ..errors import MissingError
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


def cka(found: xr.Dataset, variable: str = "cka") -> Any:
    """Show how alike all layers are, a map for each language.

    Parameters
    ----------
    found
        From :func:`actkit.cka`.
    variable
        ``cka``, ``se`` or ``cka_biased``.

    Returns
    -------
    holoviews.Layout
    """
    table = found[variable].compute()
    names = {"cka": "Debiased CKA", "se": "Standard error of CKA", "cka_biased": "Biased CKA"}
    span = (float(table.min()), float(table.max()))  # from 0 to 1, most models would be all yellow
    return side_by_side(
        [
            _square(table.sel(language=language), f"{names[variable]}, {language}", span, SEQUENTIAL)
            for language in table.language.values.tolist()
        ]
    )


def direction_cosines(found: xr.Dataset) -> Any:
    """Show how alike the directions are in which groups differ: between layers, and between languages.

    Parameters
    ----------
    found
        From :func:`actkit.direction_cosines`.

    Returns
    -------
    holoviews.Layout
    """
    table = found.compute()
    by = table.attrs["by"]
    names, cosines = [str(name) for name in table.language.values], table.layers.rename("cosine")
    pictures = [
        _square(cosines.sel(language=name), f"Cosine of {by} directions, {name}", (-1, 1), DIVERGING)
        for name in names
    ]
    pairs = [(one, two) for at, one in enumerate(names) for two in names[at + 1 :]]
    if pairs:
        pictures.append(_between(table, pairs, by))
    return side_by_side(pictures)


def language_cka(found: xr.Dataset) -> Any:
    """Show how alike languages are at each layer.

    Parameters
    ----------
    found
        From :func:`actkit.language_cka`.

    Returns
    -------
    holoviews.Overlay
    """
    table = found.compute()
    names = [str(name) for name in table.language.values]
    pairs = [(one, two) for at, one in enumerate(names) for two in names[at + 1 :]]
    shades = colours(f"{one} and {two}" for one, two in pairs)
    parts = []
    for one, two in pairs:
        own = table.sel(language=one, language_2=two)
        label = f"{one} and {two}"
        band = hv.Area((own.layer.values, own.low.values, own.high.values), "layer", ["low", "high"])
        curve = hv.Curve((own.layer.values, own.cka.values), "layer", "cka", label=label)
        parts.append(shaded(band, shades[label], 0.25))
        parts.append(styled(curve, color=shades[label], bokeh={"line_width": 2}, mpl={"linewidth": 2}))
    return framed(
        hv.Overlay(parts),
        title="CKA of the same samples in two languages",
        bands="95%",
        xlabel="layer",
        table=table,
        ylabel=f"CKA of {table.attrs['values']} vectors",
    )


def tokens(cube: xr.Dataset, sample: int, *, values: str = "norm", most: int = _MOST_TOKENS) -> Any:
    """Show one sample, layer by token, with its text.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    sample
        Its coordinate ``sample``.
    values
        A variable with dims ``(layer, sample, token)``; its logarithm is shown.
    most
        How many tokens are shown, from the first one.

    Returns
    -------
    holoviews.QuadMesh
        Tokens run from right to left where the language does.

    Raises
    ------
    MissingError, KeyError
        Where the cube has no such variable, or no such sample.
    """
    if values not in cube:
        raise MissingError(f"the cube has no `{values}`; extract it again with `{values}` among `save`")
    found = np.flatnonzero(np.atleast_1d(cube.sample.values) == sample)
    if not len(found):
        raise KeyError(f"the cube has no sample {sample}")
    own = cube.isel(sample=int(found[0]))
    count = int(min((own.token_kind.values != TokenKind.PAD).sum(), most))
    table = np.log10(own[values].transpose("layer", "token").values[:, :count].astype(np.float64))
    texts = [str(text).replace("\n", "⏎").strip() or "␣" for text in own.token_text.values[:count]]
    language = str(own.language.item())
    return _image(
        table,
        own.layer.values,
        dims=("token", "layer"),
        colour_label=f"log10 of {values}",
        title=f"Sample {sample}, {language}: {_shortened(str(own.text.item()))}",
        xlabel="token",
        ylabel="layer",
        cmap=SEQUENTIAL,
        xticks=list(enumerate(texts)),
        xrotation=60,
        invert_xaxis=language.lower() in RIGHT_TO_LEFT,
        wide=True,
    )


def _square(table: xr.DataArray, title: str, span: tuple[float, float], cmap: str) -> Any:
    """Draw a layer × layer map."""
    own = table.transpose("layer", "layer_2")
    return _image(
        own.values,
        own.layer.values,
        columns=own.layer_2.values,
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
    """Draw a map whose rows are layers, each as high as the others whichever they are."""
    labels = [(at, str(layer)) for at, layer in enumerate(rows.tolist())]
    if columns is not None:
        found = [(at, str(layer)) for at, layer in enumerate(columns.tolist())]
        both["xticks"] = layer_ticks(found)
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


def _between(table: xr.Dataset, pairs: list[tuple[str, str]], by: str) -> Any:
    shades = colours(f"{one} and {two}" for one, two in pairs)
    parts = []
    shown = (
        ("languages", "cosine", "solid"),
        ("ceiling", "ceiling", "dotted"),
        ("disattenuated", "disattenuated", "dashed"),
    )
    for one, two in pairs:
        own = table.sel(language=one, language_2=two)
        for variable, label, dash in shown:
            curve = hv.Curve(
                (own.layer.values, own[variable].values), "layer", variable, label=f"{one} and {two}: {label}"
            )
            parts.append(
                styled(
                    curve,
                    color=shades[f"{one} and {two}"],
                    bokeh={"line_dash": dash},
                    mpl={"linestyle": {"solid": "-", "dotted": ":", "dashed": "--"}[dash]},
                )
            )
    return framed(
        hv.Overlay(parts),
        title=f"Cosine of {by} directions between languages",
        xlabel="layer",
        table=table,
        ylabel="cosine",
    )


def _shortened(text: str, most: int = 60) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= most else f"{flat[:most]}…"
