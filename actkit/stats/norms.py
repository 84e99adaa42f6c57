"""How large the residual stream is, layer by layer, and how it changes from one to the next."""

from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from ..errors import MissingError
from . import parts
from .kernels.norms import NORM_SUMMARIES, largest, lengths, summarize_norms, updates


def layer_norms(
    cube: xr.Dataset,
    *,
    by: str | None = None,
    tokens: str = "content",
    component: str = "residual",
    resamples: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """Summarise the L2 norms of tokens by language and layer.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`, with `norm`; its group ``vision`` too, of which all patches count.
    by
        A label column: its values are told apart too.
    tokens
        Which count: ``content``, or ``special``, ``template``, ``text``, ``image``, ``generated``,
        ``first`` (position 0) or ``all``. Of a cube that keeps the last tokens or means alone, these do.
    component
        ``residual``, of which the cube holds norms; or ``attention`` or ``mlp``, which are read.
    resamples
        Bootstrap resamples behind ``low`` and ``high``; they draw samples, not tokens.
    seed
        Of the resampling.

    Returns
    -------
    xarray.Dataset
        Dims ``(language, layer)``, with ``by`` between: ``mean`` (every token weighs alike) with its 95%
        interval ``low`` to ``high``, ``sample_mean`` (every sample weighs alike), ``median``, ``p5``,
        ``p95``,
        ``p99``, ``max``, ``n_tokens``, ``n_outliers`` (tokens above 10 times the median of the layer), and
        ``rms`` (the mean over the root of the width, to compare models). Unit: that of the residual
        stream. Computed when asked for.

    Raises
    ------
    InputError, MissingError
        Where there is no such label, kind of token or component.

    Examples
    --------
    >>> from actkit import open_cube
    >>> from actkit.testing import write_cube
    >>> norms = layer_norms(open_cube(write_cube(hidden=64)))
    >>> bool(abs(norms["mean"].mean() - 8) < 0.5)  # sqrt(64), for standard normal numbers
    True
    """
    own, norms = _norms(cube, component)
    mask = parts.token_mask(own, tokens)
    result = _summarize(own, norms, mask, by, resamples, seed)
    if hidden := own.sizes.get("hidden"):
        result["rms"] = result["mean"] / np.sqrt(hidden)
    result.attrs = parts.settings(
        own,
        "layer_norms",
        by=by,
        tokens=parts.counted(own, tokens),
        component=component,
        interval="95%, bootstrap over samples",
        resamples=resamples,
        seed=seed,
    )
    return result


def layer_updates(
    cube: xr.Dataset, *, by: str | None = None, resamples: int = 1000, seed: int = 0
) -> xr.Dataset:
    """Summarise what the blocks change: by how much each token's vector differs from the layer before.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`, with `residual`.
    by, resamples, seed
        As for :func:`layer_norms`.

    Returns
    -------
    xarray.Dataset
        Dims ``(language, layer)``, with ``by`` between; ``layer`` is the lower of the two. Means over
        content tokens of ``update_norm``, of the difference; ``relative``, that over the norm before;
        ``cosine``, of the two vectors. Each has its 95% interval, ``cosine_low`` to ``cosine_high``.

    Raises
    ------
    InputError, MissingError
        Where there is no such label, or no `residual`.
    """
    parts.require(cube, "residual")
    own = parts.captured(cube)
    if own.sizes["layer"] < 2:
        raise MissingError("the cube has one layer; extract it again with more of them")
    before = own.residual.isel(layer=slice(None, -1))
    after = own.residual.isel(layer=slice(1, None)).assign_coords(layer=before.layer)
    core = [["hidden"], ["hidden"]]
    found = parts.apply(updates, before, after, core=core, out=[[], [], []], each=False)
    mask, result = parts.token_mask(own), xr.Dataset()
    for name, values in zip(("update_norm", "relative", "cosine"), found, strict=True):
        summary = _summarize(own, values.transpose("layer", "sample", "token"), mask, by, resamples, seed)
        result[name] = summary["mean"]
        result[f"{name}_low"], result[f"{name}_high"] = summary["low"], summary["high"]
    result["n_tokens"] = summary["n_tokens"]
    result.attrs = parts.settings(
        own,
        "layer_updates",
        by=by,
        tokens=parts.counted(own, "content"),
        interval="95%, bootstrap over samples",
        resamples=resamples,
        seed=seed,
    )
    return result


def massive_activations(cube: xr.Dataset, *, tokens: str = "content") -> xr.Dataset:
    """Find the largest value of each layer, and how far above the others it is.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`, with `residual`.
    tokens
        Which count, as for :func:`layer_norms`; massive activations often sit in the ``first`` one.

    Returns
    -------
    xarray.Dataset
        Dims ``(language, layer)``: ``max`` of the absolute values, ``median`` (over samples, of each
        sample's median), ``ratio``, and where the largest one is: ``at_sample``, ``at_token``, ``at_hidden``.
    """
    parts.require(cube, "residual")
    own = parts.captured(cube)
    mask = parts.token_mask(own, tokens)
    residual = own.residual.transpose("layer", "sample", "token", "hidden")
    core = [["token", "hidden"], ["token"]]
    most, median, token, hidden = parts.apply(
        largest, residual, mask, core=core, out=[[], [], [], []], each=False
    )

    def summarize(_language: str, places: np.ndarray) -> xr.Dataset:
        part = [array.isel(sample=places) for array in (most, median, token, hidden)]
        core = [["sample"]] * 4
        found = parts.apply(
            partial(_where_largest, samples=own.sample.values[places]), *part, core=core, out=[[]] * 5
        )
        names = ("max", "median", "at_sample", "at_token", "at_hidden")
        return xr.Dataset(dict(zip(names, found, strict=True)))

    result = parts.by_language(own, summarize)
    result["ratio"] = result["max"] / result["median"]
    result.attrs = parts.settings(own, "massive_activations", tokens=parts.counted(own, tokens))
    return result


def _norms(cube: xr.Dataset, component: str) -> tuple[xr.Dataset, xr.DataArray]:
    if component == "residual":
        if "norm" not in cube:
            raise MissingError("the cube has no `norm`; extract it again with `norm` among `save`")
        return cube, cube.norm
    parts.require(cube, component)
    own = parts.captured(cube, component)
    (norms,) = parts.apply(lengths, own[component], core=[["hidden"]], out=[[]], each=False)
    return own, norms.transpose("layer", "sample", "token")


def _summarize(
    cube: xr.Dataset, norms: xr.DataArray, mask: xr.DataArray, by: str | None, resamples: int, seed: int
) -> xr.Dataset:
    labels = None if by is None else parts.column(cube, by, "by")
    groups = [] if labels is None else sorted(set(labels.tolist()) - {""})
    kernel = partial(summarize_norms, resamples=resamples, seed=seed)
    core, out = [["layer", "sample", "token"], ["sample", "token"]], [["layer", "summary"]]

    def table(places: np.ndarray) -> xr.DataArray:
        part = norms.isel(sample=places), mask.isel(sample=places)
        (found,) = parts.apply(
            lambda *arrays: (kernel(*arrays),),
            *part,
            core=core,
            out=out,
            sizes={"summary": len(NORM_SUMMARIES)},
            each=False,
        )
        return found

    def summarize(_language: str, places: np.ndarray) -> xr.Dataset:
        if labels is None:
            found = table(places)
        else:
            tables = [table(places[labels[places] == group]) for group in groups]
            found = xr.concat(tables, xr.Variable(str(by), np.array(groups, dtype=object)))
        return xr.Dataset({name: found.isel(summary=i) for i, name in enumerate(NORM_SUMMARIES)})

    return parts.by_language(cube, summarize).assign_coords(layer=norms.layer.values)


def _where_largest(
    most: np.ndarray, median: np.ndarray, token: np.ndarray, hidden: np.ndarray, *, samples: np.ndarray
) -> tuple[Any, ...]:
    if np.isnan(most).all():
        return (np.nan,) * 5
    place = int(np.nanargmax(most))
    return most[place], np.nanmedian(median), samples[place], token[place], hidden[place]
