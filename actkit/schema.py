"""Every variable of a cube, declared once; and the token rules that its readers share."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import xarray as xr

FORMAT = 1
DIMS = ("layer", "sample", "token", "hidden")


class TokenKind(IntEnum):
    """What a position of the token axis holds."""

    PAD = 0
    SPECIAL = 1
    TEMPLATE = 2
    TEXT = 3
    IMAGE = 4


CONTENT_KINDS = (TokenKind.TEXT, TokenKind.IMAGE)


@dataclass(frozen=True)
class Variable:
    """One array of the cube.

    Parameters
    ----------
    name
        Its name in the store and in the Dataset.
    dims
        Dimension names, outermost first.
    dtype
        NumPy dtype name; ``str`` is variable-length UTF-8.
    meaning
        One sentence, also stored as the attribute ``long_name``.
    coord
        Whether it is a coordinate rather than a data variable.
    optional
        Whether a cube may lack it.
    """

    name: str
    dims: tuple[str, ...]
    dtype: str
    meaning: str
    coord: bool = False
    optional: bool = False

    @property
    def by_window(self) -> bool:
        """Whether the variable is written window by window, as shards."""
        return not self.coord

    @property
    def sample_axis(self) -> int:
        """Position of ``sample`` in ``dims``."""
        return self.dims.index("sample")

    @property
    def fill_value(self) -> float | int | bool | str:
        """What positions that hold nothing read as."""
        if self.dtype == "str":
            return ""
        return float("nan") if np.dtype(self.dtype).kind == "f" else np.dtype(self.dtype).type(0).item()

    @property
    def attrs(self) -> dict[str, str]:
        """Attributes stored with the array."""
        attrs = {"long_name": self.meaning}
        if self.name == "token_kind":
            attrs["flag_values"] = " ".join(str(int(kind)) for kind in TokenKind)
            attrs["flag_meanings"] = " ".join(kind.name.lower() for kind in TokenKind)
        return attrs


VARIABLES: dict[str, Variable] = {
    variable.name: variable
    for variable in (
        Variable(
            "residual",
            DIMS,
            "float32",
            "Output of decoder block l, before the model's final norm; NaN where there is no token.",
            optional=True,
        ),
        Variable(
            "embedding",
            ("sample", "token", "hidden"),
            "float32",
            "What enters block 0; NaN where there is no token.",
            optional=True,
        ),
        Variable(
            "norm",
            ("layer", "sample", "token"),
            "float32",
            "L2 norm of the block's output over hidden, before any rounding by `storage`.",
            optional=True,
        ),
        Variable(
            "pooled",
            ("layer", "sample", "hidden"),
            "float32",
            "Mean of the block's output over content tokens; NaN where a sample has none.",
            optional=True,
        ),
        Variable(
            "last",
            ("layer", "sample", "hidden"),
            "float32",
            "The block's output at the last content token; NaN where a sample has none.",
            optional=True,
        ),
        Variable(
            "nonfinite",
            ("layer", "sample"),
            "int32",
            "Number of NaN and Inf values met in the block's output.",
        ),
        Variable("layer", ("layer",), "int64", "Index of the block, from 0.", coord=True),
        Variable("sample", ("sample",), "int64", "Position in the cube, from 0.", coord=True),
        Variable(
            "token",
            ("token",),
            "int64",
            "Position in the prompt; 0 = first real token.",
            coord=True,
        ),
        Variable(
            "sample_id",
            ("sample",),
            "str",
            "Name of the sample, unique within a language.",
            coord=True,
        ),
        Variable("language", ("sample",), "str", "Language of the text.", coord=True),
        Variable("text", ("sample",), "str", "The text, as it was given.", coord=True),
        Variable("n_tokens", ("sample",), "int32", "Number of real tokens.", coord=True),
        Variable("truncated", ("sample",), "bool", "Whether max_tokens cut the text.", coord=True),
        Variable("batch", ("sample",), "int32", "The batch that computed the sample.", coord=True),
        Variable("token_id", ("sample", "token"), "int32", "Vocabulary index; 0 at pads.", coord=True),
        Variable(
            "token_kind",
            ("sample", "token"),
            "int8",
            "What the position holds: see flag_values and flag_meanings.",
            coord=True,
        ),
        Variable(
            "committed",
            ("sample",),
            "bool",
            "Whether the sample's window is safely stored: the only ledger.",
            coord=True,
        ),
    )
}

SAVABLE = tuple(v.name for v in VARIABLES.values() if v.optional)


def label(name: str, dtype: str) -> Variable:
    """Return the variable of a label column of the data."""
    return Variable(name, ("sample",), dtype, f"Label column `{name}` of the data.", coord=True)


def content_mask(token_kind: xr.DataArray, *, first_is_content: bool) -> xr.DataArray:
    """Tell content tokens from pads, special and template tokens.

    Parameters
    ----------
    token_kind
        Dims ``(sample, token)``.
    first_is_content
        Whether position 0 counts. It does not where the tokenizer puts no special token there:
        attention sinks sit at position 0 all the same.

    Returns
    -------
    xarray.DataArray
        Boolean, dims ``(sample, token)``.
    """
    mask = token_kind.isin([int(kind) for kind in CONTENT_KINDS])
    return mask if first_is_content else mask & (token_kind.token > 0)


def markdown_table(variables: Iterable[Variable] = VARIABLES.values()) -> str:
    """Return the variables as a Markdown table, for the documentation.

    Examples
    --------
    >>> print(markdown_table([VARIABLES["batch"]]))
    | variable | dims | dtype | meaning |
    |---|---|---|---|
    | `batch` | sample | int32 | The batch that computed the sample. |
    """
    rows = ["| variable | dims | dtype | meaning |", "|---|---|---|---|"]
    rows += [f"| `{v.name}` | {', '.join(v.dims)} | {v.dtype} | {v.meaning} |" for v in variables]
    return "\n".join(rows)
