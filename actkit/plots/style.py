"""How pictures look: one colour for each language and group, axes that say what they show."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import holoviews as hv
import holoviews.plotting.bokeh  # registers itself
import numpy as np
import xarray as xr

# Okabe and Ito's colours, which colour-blind readers tell apart
_BLUE, _ORANGE, _GREEN, _PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
_SKY, _AMBER, _BLACK, _YELLOW = "#56B4E9", "#E69F00", "#000000", "#B8A800"
LANGUAGES = {"english": _BLUE, "arabic": _ORANGE}
GROUPS = {"female": _PINK, "male": _GREEN, "safe": _SKY, "unsafe": _AMBER}
_FREE = (_BLUE, _ORANGE, _GREEN, _PINK, _SKY, _AMBER, _BLACK, _YELLOW)
GREY = "#7A7A7A"
SEQUENTIAL, DIVERGING = "Viridis", "RdBu_r"
WIDTH, HEIGHT = 430, 270
RIGHT_TO_LEFT = ("arabic", "hebrew", "persian", "farsi", "urdu", "ar", "he", "fa", "ur")


def colours(names: Iterable[str]) -> dict[str, str]:
    """Give each name a colour: its own where it has one, or else the next free one in order of the alphabet.

    Examples
    --------
    >>> colours(["arabic", "klingon"])["arabic"] == colours(["arabic"])["arabic"]
    True
    """
    found: dict[str, str] = {}
    own = LANGUAGES | GROUPS
    for name in sorted(set(names), key=lambda name: (name.lower() not in own, name)):
        free = [colour for colour in _FREE if colour not in found.values()] or list(_FREE)
        found[name] = own.get(name.lower(), free[0])
    return found


def styled(
    element: Any, *, bokeh: dict[str, Any] | None = None, mpl: dict[str, Any] | None = None, **both: Any
) -> Any:
    """Set options of an element, for each backend that is loaded.

    Parameters
    ----------
    element
        Any of HoloViews.
    bokeh, mpl
        Options of one backend.
    **both
        Options that both know.
    """
    element = element.opts(backend="bokeh", **both, **(bokeh or {}))
    if "matplotlib" in hv.Store.registry:
        element = element.opts(backend="matplotlib", **both, **(mpl or {}))
    return element


def shaded(area: Any, colour: str, alpha: float) -> Any:
    """Fill an area with a colour, without an edge."""
    mpl = {"facecolor": colour, "edgecolor": colour, "linewidth": 0}
    return styled(area, color=colour, alpha=alpha, bokeh={"line_alpha": 0}, mpl=mpl)


def framed(
    overlay: Any,
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    table: xr.Dataset | None = None,
    bands: str = "",
    **both: Any,
) -> Any:
    """Give a picture title, axes and size; of a result, its layers, its samples and what its bands are."""
    if table is not None:
        both["xticks"] = layer_ticks([(layer, str(layer)) for layer in table.layer.values.tolist()])
        xlabel = f"{xlabel} · {table.attrs['n_samples']:,} samples" + (f" · bands: {bands}" if bands else "")
    # of a logarithmic axis HoloViews counts powers of e, and Matplotlib powers of 10
    aspect = 1.6 / (np.log(10) if both.get("logy") else 1)
    return styled(
        overlay,
        title=title,
        xlabel=xlabel,
        ylabel=ylabel,
        show_grid=True,
        bokeh={
            "frame_width": WIDTH,
            "frame_height": HEIGHT,
            "legend_position": "bottom",
            "legend_cols": 2,
            "legend_opts": {"click_policy": "hide", "label_text_font_size": "9pt"},
            "toolbar": "above",
        },
        mpl={"fig_inches": 7, "aspect": aspect, "legend_position": "right"},
        **both,
    )


def layer_ticks(ticks: list[tuple[int, str]], most: int = 12) -> list[tuple[int, str]]:
    """Return the layers that an axis names: all, or some evenly spaced ones."""
    return ticks[:: max(-(-len(ticks) // most), 1)]


def side_by_side(pictures: list[Any]) -> Any:
    """Put pictures into two columns."""
    layout = hv.Layout(pictures).cols(2).opts(shared_axes=False, backend="bokeh")
    if "matplotlib" in hv.Store.registry:
        options = {"sublabel_format": "", "hspace": 0.9, "vspace": 0.4, "fig_inches": 6.5}
        layout = layout.opts(backend="matplotlib", shared_axes=False, **options)
    return layout


def figure(picture: Any, path: str | Path) -> None:
    """Write a picture to a file, drawn by Matplotlib.

    Parameters
    ----------
    picture
        From any function of this module, made after :func:`load_matplotlib` was called.
    path
        ``*.png`` or ``*.svg``.
    """
    load_matplotlib()
    hv.save(picture, Path(path), backend="matplotlib", dpi=150)


def load_matplotlib() -> None:
    """Let pictures that are made from now on be drawn by Matplotlib too."""
    import holoviews.plotting.mpl  # noqa: F401
