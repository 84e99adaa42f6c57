"""How large the residual stream is, layer by layer."""

import numpy as np
import xarray as xr

from ..schema import content_mask
from .kernels import NORM_SUMMARIES, summarize_norms


def layer_norms(cube: xr.Dataset, *, resamples: int = 1000, seed: int = 0) -> xr.Dataset:
    """Summarise the L2 norms of tokens by language and layer.

    Content tokens count; of a cube that keeps the last tokens or means alone, these do.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`, with `norm`; its group ``vision`` too, of which all patches count.
    resamples
        Bootstrap resamples behind ``low`` and ``high``; they draw samples, not tokens.
    seed
        Of the resampling.

    Returns
    -------
    xarray.Dataset
        Dims ``(language, layer)``: ``mean`` (every token weighs alike) with its 95% interval ``low`` to
        ``high``, ``sample_mean`` (every sample weighs alike), ``median``, ``p5``, ``p95``, ``p99``,
        ``max``, ``n_tokens``. Unit: that of the residual stream. Computed when asked for.

    Raises
    ------
    KeyError
        Where the cube was made without `norm`.

    Examples
    --------
    >>> from actkit import open_cube
    >>> from actkit.testing import write_cube
    >>> norms = layer_norms(open_cube(write_cube(hidden=64)))
    >>> bool(abs(norms["mean"].mean() - 8) < 0.5)  # sqrt(64), for standard normal numbers
    True
    """
    if "norm" not in cube:
        raise KeyError("the cube has no `norm`; extract it again with `norm` among `save`")
    counted = _counted(cube)
    if counted == "content":
        mask = content_mask(cube.token_kind, first_is_content=bool(cube.attrs["first_is_content"]))
    else:
        mask = (cube.token < cube.n_tokens).transpose("sample", "token")
    languages = list(dict.fromkeys(cube.language.values.tolist()))
    parts = []
    for language in languages:
        samples = np.flatnonzero(cube.language.values == language)
        parts.append(
            xr.apply_ufunc(
                summarize_norms,
                cube.norm.isel(sample=samples).chunk(sample=-1),
                mask.isel(sample=samples).chunk(sample=-1),
                input_core_dims=[["layer", "sample", "token"], ["sample", "token"]],
                output_core_dims=[["layer", "summary"]],
                kwargs={"resamples": resamples, "seed": seed},
                dask="parallelized",
                output_dtypes=[np.float64],
                dask_gufunc_kwargs={
                    "output_sizes": {"summary": len(NORM_SUMMARIES)},
                    "allow_rechunk": True,
                },
            )
        )
    table = xr.concat(parts, xr.Variable("language", np.array(languages, dtype=object)))
    result = xr.Dataset({name: table.isel(summary=i) for i, name in enumerate(NORM_SUMMARIES)})
    result = result.assign_coords(layer=cube.layer)
    result.attrs = {
        "statistic": "layer_norms",
        "tokens": counted,
        "interval": "95%, bootstrap over samples",
        "resamples": resamples,
        "seed": seed,
        "n_samples": cube.sizes["sample"],
        "model": cube.attrs.get("model", ""),
    }
    return result


def _counted(cube: xr.Dataset) -> str:
    if "token_kind" not in cube.coords:
        return "patches"
    kept = str(cube.attrs.get("tokens_kept", "all"))
    return kept if kept in ("last", "mean") else "content"
