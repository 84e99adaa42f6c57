"""Vectors at the last token of each prompt, where a chat model is about to answer."""

import numpy as np
import xarray as xr

from ..canonical import require
from ..errors import Fault, InputError, MissingError
from ..schema import PROMPT_END, VARIABLES
from .token_masks import SELECTED, counted, token_mask


def with_prompt_end(cube: xr.Dataset) -> xr.Dataset:
    """Return a cube with ``prompt_end``, taken lazily from ``residual`` unless it is stored.

    The last token of a prompt is the last one that the model received before it generated any, whatever its
    kind: the end of the template in a chat, otherwise the last token of the text, or a special token that
    the tokenizer appends.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.

    Returns
    -------
    xarray.Dataset
        The cube, with ``prompt_end`` as float32, dims ``(layer, sample, hidden)``.

    Raises
    ------
    InputError
        If only some tokens are selected, which cannot change the end of a prompt.
    MissingError
        If the cube holds neither the vectors nor the last token of every prompt.
    """
    if SELECTED in cube.coords:
        problem = f"`{PROMPT_END}` is the last token of the prompt, not one of {counted(cube, 'content')}"
        hint = "leave out the selection of tokens, or use vectors='last'"
        raise InputError([Fault("tokens", problem, hint)])
    if PROMPT_END in cube or "residual" not in cube or "prompt_tokens" not in cube.coords:
        require(cube, PROMPT_END)
        return cube
    require(cube, "residual", "prompt_tokens")
    position = cube.coords.get("position", cube.token)
    is_end = (token_mask(cube, "all") & (position == cube.prompt_tokens - 1)).transpose("sample", "token")
    lacking = int((~is_end.any("token")).sum())
    if lacking:
        total = cube.sizes["sample"]
        hint = "extract it again with `prompt_end` among `save`, or with keep_tokens=all"
        raise MissingError(f"the cube lacks the last token of {lacking:,} of {total:,} prompts; {hint}")
    ends = xr.Variable("sample", is_end.values.argmax(axis=1))
    samples = xr.Variable("sample", np.arange(cube.sizes["sample"]))
    declared = VARIABLES[PROMPT_END]
    vectors = cube.residual.variable.isel(sample=samples, token=ends).transpose(*declared.dims)
    return cube.assign({PROMPT_END: (declared.dims, vectors.data.astype(np.float32), declared.attrs)})
