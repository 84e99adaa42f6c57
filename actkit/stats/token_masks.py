"""Masks of the tokens that statistics include."""

from typing import Literal, get_args

import numpy as np
import xarray as xr

from ..canonical import require
from ..errors import Fault, InputError, MissingError
from ..schema import CONTENT_KINDS, TokenKind

Tokens = Literal["content", "all", "first", "special", "template", "text", "image", "generated"]
TOKENS: tuple[str, ...] = get_args(Tokens)
SELECTED = "is_selected_token"  # coordinate of a cube from `select_tokens`
SELECTED_TOKENS = "selected_tokens"  # attribute of such a cube: the selection as text
_KINDS = {
    "special": TokenKind.SPECIAL,
    "template": TokenKind.TEMPLATE,
    "text": TokenKind.TEXT,
    "image": TokenKind.IMAGE,
    "generated": TokenKind.GENERATED,
}


def token_mask(cube: xr.Dataset, tokens: Tokens = "content") -> xr.DataArray:
    """Return the mask of included tokens, dims ``(sample, token)``.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    tokens
        ``content``, which means the selected tokens of a cube from
        :func:`~actkit.stats.token_selection.select_tokens`; ``all``; ``first`` (position 0, where attention
        sinks form); or a kind of token.

    Raises
    ------
    InputError, MissingError
        If the kind does not exist, or the cube lacks the coordinates or attributes that identify tokens.
    """
    if tokens not in TOKENS:
        raise InputError(
            [
                Fault(
                    "tokens",
                    f"{tokens!r} is not a kind of token",
                    f"a TokenFilter, or one of {', '.join(TOKENS)}",
                )
            ]
        )
    if tokens == "content" and SELECTED in cube.coords:
        # a concatenation with another cube has gaps
        selected = cube.coords[SELECTED].fillna(False).astype(bool)
        return selected.transpose("sample", "token").drop_vars(SELECTED)
    require(cube, "n_tokens", *(["token_kind"] if "token_kind" in cube.coords else []))
    if "token" not in cube.coords:
        raise MissingError("the cube has no coordinate `token`; keep it when selecting and renaming")
    real: xr.DataArray = (cube.token < cube.n_tokens).transpose("sample", "token")
    if tokens == "all" or counted(cube, tokens) != tokens:
        return real
    if tokens == "first":
        first: xr.DataArray = cube.coords.get("position", cube.token) == 0
        return real & first
    if tokens == "content":
        if "first_is_content" not in cube.attrs:
            raise MissingError(
                "the cube lacks the attribute `first_is_content`, which says whether position 0 is content; "
                "restore it with cube.assign_attrs(original.attrs)"
            )
        return content_mask(cube.token_kind, first_is_content=bool(cube.attrs["first_is_content"]))
    is_kind: xr.DataArray = cube.token_kind == _KINDS[tokens]
    return is_kind


def counted(cube: xr.Dataset, tokens: str) -> str:
    """Return which tokens are actually included: cubes of means, last tokens or patches include all."""
    if tokens != "content":
        return tokens
    if SELECTED in cube.coords:
        return str(cube.attrs.get(SELECTED_TOKENS, "selected"))
    if "token_kind" not in cube.coords:
        return "patches"
    kept = str(cube.attrs.get("tokens_kept", "all"))
    return kept if kept in ("last", "mean") else tokens


def holds_all_tokens(cube: xr.Dataset) -> np.ndarray:
    """Return which samples still have all of their tokens, dims ``(sample,)``."""
    return np.asarray((token_mask(cube, "all").sum("token") == cube.n_tokens).values)


def content_mask(token_kind: xr.DataArray, *, first_is_content: bool) -> xr.DataArray:
    """Return a mask of content tokens, as opposed to padding, special and template tokens.

    Parameters
    ----------
    token_kind
        Kind of each token, dims ``(sample, token)``.
    first_is_content
        Whether position 0 counts. It does not if the tokenizer puts no special token there, because the
        attention sink is at position 0 nevertheless.

    Returns
    -------
    xarray.DataArray
        Boolean, dims ``(sample, token)``.
    """
    mask = token_kind.isin([int(kind) for kind in CONTENT_KINDS])
    # if only some positions are kept, `position` holds their indices in the prompt
    position = token_kind.coords.get("position", token_kind.token)
    return mask if first_is_content else mask & (position != 0)
