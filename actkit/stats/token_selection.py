"""A cube of which statistics use only some tokens."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from ..canonical import Cube, as_cube
from ..errors import Fault, InputError
from ..schema import CONTENT_KINDS, VARIABLES
from . import selection
from .token_filter import FROM_END, TokenCondition
from .token_masks import SELECTED, SELECTED_TOKENS

_LOOKED_AT = 64  # samples searched for a text or id, which imports may lack


def select_tokens(cube: Cube, tokens: selection.TokenSelection) -> xr.Dataset:
    """Return a cube in which statistics use only the selected tokens.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    tokens
        A :class:`TokenFilter` or a combination of several; or a kind of token, as for :func:`layer_norms`.

    Returns
    -------
    xarray.Dataset
        The cube, lazy as before, with the boolean coordinate ``is_selected_token``, dims ``(sample, token)``,
        which replaces the mask of content tokens. `pooled` and `last` are those of the selected tokens,
        computed from `residual`; they are absent if the cube does not hold all content tokens. `prompt_end`,
        the same token whichever are selected, is absent. The attribute ``selected_tokens`` is the selection
        as text. A second selection keeps only the tokens that both contain.

    Raises
    ------
    InputError
        If the filter needs something that the cube lacks, or no token satisfies it.

    Examples
    --------
    >>> from actkit import TokenFilter, adjacent_cka, open_cube
    >>> from actkit.testing import write_cube
    >>> cube = select_tokens(open_cube(write_cube(n_samples=40)), TokenFilter(positions=[1, -1]))
    >>> cube.selected_tokens
    'TokenFilter(positions=(1, -1))'
    >>> adjacent_cka(cube).tokens
    'TokenFilter(positions=(1, -1))'
    """
    whole = as_cube(cube)
    if isinstance(tokens, str) and tokens == "content":
        return whole
    if isinstance(tokens, TokenCondition):
        mask, text = _satisfying(whole, tokens), repr(tokens)
    else:
        mask, text = selection.token_mask(whole, tokens), selection.counted(whole, tokens)
    if SELECTED in whole.coords:
        before = selection.counted(whole, "content")
        mask, text = mask & selection.token_mask(whole), f"({before}) & ({text})"
    chosen = np.asarray(mask.transpose("sample", "token").values)
    if isinstance(tokens, TokenCondition) and not chosen.any():
        hint = "only content tokens are selected, unless `kinds` names other kinds; see actkit.token_strings"
        raise InputError([Fault("tokens", f"no token satisfies {text}", hint)])
    selected = whole.assign_coords({SELECTED: (("sample", "token"), chosen)})
    selected = selected.drop_vars(selection.POOLINGS, errors="ignore").assign_attrs({SELECTED_TOKENS: text})
    if (
        "residual" in whole
        and set(whole.residual.dims) == set(VARIABLES["residual"].dims)
        and _holds_content(whole)
    ):
        selected = selected.assign(_pooled(selected))
    if "metadata_sha256" in whole.attrs:  # it identifies the values, which differ from now on
        seals = f"{whole.attrs['metadata_sha256']} {text} ".encode() + np.packbits(chosen).tobytes()
        selected.attrs["metadata_sha256"] = hashlib.sha256(seals).hexdigest()
    return selected


def check_same_tokens(cube: xr.Dataset, settings: Mapping[str, Any]) -> None:
    """Check that `pooled` and `last` of a cube are of the tokens that a map was fitted to.

    Raises
    ------
    InputError
        If they are not.
    """
    fitted, given = settings.get("tokens", "content"), cube.attrs.get(SELECTED_TOKENS, "content")
    if fitted != given:
        problem = (
            f"{settings['vectors']} vectors of {fitted} were fitted, but those of the cube are of {given}"
        )
        hint = "select the same tokens: actkit.select_tokens(cube, ...)"
        raise InputError([Fault("tokens", problem, hint)])


def _satisfying(cube: xr.Dataset, condition: TokenCondition) -> xr.DataArray:
    """Return the mask of content tokens, and of tokens of kinds that are asked for, that satisfy a filter."""
    content, columns = selection.token_mask(cube), sorted(condition.columns)
    faults = [fault for name in columns for fault in _lacking(cube, name)]
    if selection.counted(cube, "content") == "mean":
        faults = [Fault("tokens", "the cube keeps means, not tokens", "extract again with keep_tokens=all")]
    if faults:
        raise InputError(faults, f"cannot select {condition!r}")
    if others := condition.kinds_named() - set(CONTENT_KINDS):
        content = content | cube.token_kind.isin([int(kind) for kind in others])
    arrays = [_column(cube, name) for name in columns]
    matches: xr.DataArray = xr.apply_ufunc(
        lambda *values: condition.matches(dict(zip(columns, values, strict=True))),
        *(array.chunk({"token": -1}) if array.chunks else array for array in arrays),
        input_core_dims=[["token"]] * len(arrays),
        output_core_dims=[["token"]],
        dask="parallelized",
        output_dtypes=[bool],
    )
    return content & matches


def _lacking(cube: xr.Dataset, name: str) -> list[Fault]:
    """Return a fault if the cube lacks a coordinate of tokens."""
    hint = ""
    if name == FROM_END:
        problem = "the cube does not hold all content tokens, so their end is unknown"
        is_known = _holds_content(cube)
    elif name == "position":
        problem, is_known = "the cube has no coordinate `token`", "token" in cube.coords
    else:
        problem = f"the cube has no coordinate `{name}` with the dims (sample, token)"
        is_known = name in cube.coords and set(cube[name].dims) == {"sample", "token"}
        absent = {"token_text": "", "token_id": -1}
        if is_known and name in absent:
            some = cube[name].isel(sample=slice(_LOOKED_AT)).values
            real = selection.token_mask(cube, "all").isel(sample=slice(_LOOKED_AT)).values
            is_known = bool((some[real] != absent[name]).any())
            problem = f"the cube does not know the {'texts' if name == 'token_text' else 'ids'} of its tokens"
        if name not in absent and name != "token_kind":
            hint = "assign it: cube.assign_coords({name}=(('sample', 'token'), values))".replace(
                "{name}", name
            )
    return [] if is_known else [Fault("tokens", problem, hint)]


def _column(cube: xr.Dataset, name: str) -> xr.DataArray:
    if name == FROM_END:
        content = selection.token_mask(cube.drop_vars(SELECTED, errors="ignore"))
        from_end = np.cumsum(content.values[:, ::-1], axis=1)[:, ::-1]
        return xr.DataArray(-np.where(content.values, from_end, 0), dims=["sample", "token"])
    if name == "position" and name not in cube.coords:
        column = cube.token.expand_dims(sample=cube.sizes["sample"])
    else:
        column = cube.coords[name]
    return xr.DataArray(column.transpose("sample", "token").variable)


def _holds_content(cube: xr.Dataset) -> bool:
    """Return whether the cube holds all content tokens of every sample."""
    kept = cube.attrs.get("tokens_kept", "all") if "token_kind" in cube.coords else "all"
    return kept in ("all", "content") and bool(selection.holds_all_tokens(cube).all())


def _pooled(cube: xr.Dataset) -> dict[str, xr.DataArray]:
    """Return `pooled` and `last` of the selected tokens, as float32 like those of an extraction."""
    mask, core = selection.token_mask(cube), [["token", "hidden"], ["token"]]
    arrays = selection.apply(_mean_and_last, cube.residual, mask, core=core, out=[["hidden"]] * 2)
    return {
        name: array.transpose("layer", "sample", "hidden").astype(np.float32).assign_attrs(long_name=meaning)
        for name, array, meaning in zip(
            ("pooled", "last"),
            arrays,
            (
                "Mean of the block's output over the selected tokens; NaN if a sample has none.",
                "Output of the block at the last selected token; NaN if a sample has none.",
            ),
            strict=True,
        )
    }


def _mean_and_last(x: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    chosen = x[mask]
    if not len(chosen):
        return (np.full(x.shape[1], np.nan),) * 2
    return chosen.mean(axis=0, dtype=np.float64), chosen[-1].astype(np.float64)
