"""The logit lens as a table: the most probable next token by layer and token."""

from typing import Any

import holoviews as hv
import numpy as np
import xarray as xr

from ..errors import Fault, InputError
from .style import RIGHT_TO_LEFT, SEQUENTIAL, styled

_MOST_TOKENS = 20
_LONGEST = 9  # characters of a cell
_CELL = (66, 20)  # pixels


def logit_lens(lens: xr.Dataset, *, start: int = 0) -> Any:
    """Plot the most probable next token after each token of a sample, at each layer.

    Parameters
    ----------
    lens
        From :func:`actkit.logit_lens` with ``vectors="tokens"``, of one sample: ``lens.isel(sample=0)``.
    start
        Index of the first decoded token that is shown; at most 20 are.

    Returns
    -------
    holoviews.Overlay
        A column for each token of the text, a row for each layer; colour is the probability of the token in
        the cell. Columns run from right to left for languages written that way.

    Raises
    ------
    InputError
        If the result has no tokens, or several samples.
    """
    if "token" not in lens.dims:
        hint = 'decode the tokens: actkit.logit_lens(cube, vectors="tokens")'
        raise InputError([Fault("lens", "has one vector of each sample", hint)])
    if "sample" in lens.dims:
        what = f"has {lens.sizes['sample']} samples"
        raise InputError([Fault("lens", what, "select one, such as lens.isel(sample=0)")])
    table = lens.compute()
    decoded = np.flatnonzero(table.entropy.notnull().any("layer").values)[start : start + _MOST_TOKENS]
    if not len(decoded):
        raise InputError([Fault("start", f"is {start}, after the last decoded token")])
    best = table.isel(token=decoded, rank=0).transpose("layer", "token")
    rows, columns = np.arange(best.sizes["layer"]), np.arange(len(decoded))
    image = hv.QuadMesh((columns, rows, best.top_probability.values), ["token", "layer"], ["probability"])
    grid = np.meshgrid(columns, rows)
    texts = [_shown(text) for text in best.top_text.values.ravel()]
    is_dark = best.top_probability.values.ravel() < 0.6
    parts = [image]
    for colour, mask in (("white", is_dark), ("black", ~is_dark)):
        if mask.any():
            cells = (
                grid[0].ravel()[mask],
                grid[1].ravel()[mask],
                [text for text, m in zip(texts, mask, strict=True) if m],
            )
            labels = hv.Labels(cells, ["token", "layer"], "text")
            parts.append(
                styled(
                    labels,
                    bokeh={"text_font_size": "8pt", "text_color": colour},
                    mpl={"size": 7, "color": colour},
                )
            )
    names = table.token_text.values[decoded] if "token_text" in table.coords else decoded.astype(str)
    language = str(table.language.item()) if "language" in table.coords else ""
    width, height = _CELL[0] * max(len(columns), 4), _CELL[1] * max(len(rows), 6)
    parts[0] = styled(
        image,
        cmap=SEQUENTIAL,
        clim=(0, 1),
        # Matplotlib would draw it over a wide table
        bokeh={"tools": ["hover"], "colorbar": True, "clabel": "probability"},
    )
    return styled(
        hv.Overlay(parts),
        title="Most probable next token by layer",
        xlabel="after the token · brightness: probability of the token in the cell, 0 to 1",
        ylabel="layer",
        xticks=[(at, _shown(text)) for at, text in enumerate(names)],
        yticks=[(at, str(layer)) for at, layer in enumerate(best.layer.values.tolist())],
        xrotation=60,
        invert_xaxis=language.lower() in RIGHT_TO_LEFT,
        bokeh={"frame_width": width, "frame_height": height, "toolbar": "above"},
        mpl={"fig_inches": (3 + width / 90, 2 + height / 50), "aspect": "auto"},
    )


def _shown(text: object) -> str:
    """Return a token as the text of a cell."""
    shown = str(text).replace("\n", "⏎").strip() or "␣"
    return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…"
