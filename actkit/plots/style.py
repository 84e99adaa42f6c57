"""Style of the plots: a fixed colour per language and group, and self-explanatory axes."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import holoviews as hv
import holoviews.plotting.bokeh  # registers the backend
import numpy as np
import xarray as xr

# the palette of Okabe and Ito, which colour-blind readers can distinguish
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
    """Assign a colour to each name: its reserved colour, or else the next free one, in alphabetical order.

    Examples
    --------
    >>> colours(["arabic", "klingon"])["arabic"] == colours(["arabic"])["arabic"]
    True
    """
    assigned: dict[str, str] = {}
    reserved = LANGUAGES | GROUPS
    for name in sorted(set(names), key=lambda name: (name.lower() not in reserved, name)):
        free = [colour for colour in _FREE if colour not in assigned.values()] or list(_FREE)
        assigned[name] = reserved.get(name.lower(), free[0])
    return assigned


def styled(
    element: Any, *, bokeh: dict[str, Any] | None = None, mpl: dict[str, Any] | None = None, **both: Any
) -> Any:
    """Set options of an element for each loaded backend.

    Parameters
    ----------
    element
        Any HoloViews element.
    bokeh, mpl
        Options of one backend.
    **both
        Options that both backends accept.
    """
    element = element.opts(backend="bokeh", **both, **(bokeh or {}))
    if "matplotlib" in hv.Store.registry:
        element = element.opts(backend="matplotlib", **both, **(mpl or {}))
    return element


def shaded(area: Any, colour: str, alpha: float) -> Any:
    """Fill an area with a colour and no edge."""
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
    """Set title, axes and size; for a result, add layer ticks, sample count, clusters and bands."""
    if table is not None:
        both["xticks"] = layer_ticks([(layer, str(layer)) for layer in table.layer.values.tolist()])
        facts = []
        if "cluster" in table.attrs:
            facts.append(f"clusters of dependent samples: {table.attrs['cluster'] or 'none'}")
        if table.attrs.get("residualized_on"):
            facts.append(f"removed before probing: {table.attrs['residualized_on']}")
        facts += [f"bands: {bands}"] if bands else []
        xlabel = f"{xlabel} · {table.attrs['n_samples']:,} samples" + "".join(f"\n{fact}" for fact in facts)
    # HoloViews measures logarithmic axes in powers of e, Matplotlib in powers of 10
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
            "legend_opts": {"click_policy": "hide", "label_text_font_size": "8pt"},
            "toolbar": "above",
        },
        mpl={"fig_inches": 7, "aspect": aspect, "legend_position": "right"},
        **both,
    )


def layer_ticks(ticks: list[tuple[int, str]], most: int = 12) -> list[tuple[int, str]]:
    """Return the ticks to label: all, or an evenly spaced subset."""
    return ticks[:: max(-(-len(ticks) // most), 1)]


def side_by_side(pictures: list[Any]) -> Any:
    """Arrange figures in two columns."""
    layout = hv.Layout(pictures).cols(2).opts(shared_axes=False, backend="bokeh")
    if "matplotlib" in hv.Store.registry:
        options = {"sublabel_format": "", "hspace": 0.9, "vspace": 0.4, "fig_inches": 6.5}
        layout = layout.opts(backend="matplotlib", shared_axes=False, **options)
    return layout


def figure(picture: Any, path: str | Path) -> None:
    """Render a figure with Matplotlib and write it to a file.

    Parameters
    ----------
    picture
        From any plotting function of this package, called after :func:`load_matplotlib`.
    path
        ``*.png`` or ``*.svg``.
    """
    load_matplotlib()
    hv.save(picture, Path(path), backend="matplotlib", dpi=150)


def load_matplotlib() -> None:
    """Load the Matplotlib backend, so that figures created from now on can be rendered by it."""
    import holoviews.plotting.mpl  # noqa: F401
