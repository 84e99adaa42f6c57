"""Every variable of a cube, declared once; and the token rules that its readers share."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import xarray as xr

FORMAT = 2
DIMS = ("layer", "sample", "token", "hidden")


class TokenKind(IntEnum):
    """What a position of the token axis holds."""

    PAD = 0
    SPECIAL = 1
    TEMPLATE = 2
    TEXT = 3
    IMAGE = 4
    GENERATED = 5
    MEAN = 6


MOMENTS = "moments.safetensors"  # of a run that gathers them, beside its cube

# what was generated is no content: what a cube says of a prompt is the same with and without a generation
CONTENT_KINDS = (TokenKind.TEXT, TokenKind.IMAGE, TokenKind.MEAN)


VISION = "vision"
COMPONENTS = ("residual", "attention", "mlp")


@dataclass(frozen=True)
class Variable:
    """One array of the cube.

    Parameters
    ----------
    name
        Its path in the store: a name, after that of its group where it is in one.
    dims
        Dimension names, outermost first; each group has its own ``layer``, ``token`` and ``hidden``.
    dtype
        NumPy dtype name; ``str`` is variable-length UTF-8.
    meaning
        One sentence, also stored as the attribute ``long_name``.
    coord
        Whether it is a coordinate rather than a data variable.
    by_window
        Whether it is written window by window, not when the cube is created.
    """

    name: str
    dims: tuple[str, ...]
    dtype: str
    meaning: str
    coord: bool = False
    by_window: bool = True

    @property
    def group(self) -> str:
        """The group that it is in; empty for the cube itself."""
        return self.name.rpartition("/")[0]

    @property
    def is_full(self) -> bool:
        """Whether it holds a vector for each token."""
        return {"token", "hidden"} <= set(self.dims)

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


def _known(name: str, dims: tuple[str, ...], dtype: str, meaning: str) -> Variable:
    """Return a coordinate that is known before the model runs."""
    return Variable(name, dims, dtype, meaning, coord=True, by_window=False)


VARIABLES: dict[str, Variable] = {
    variable.name: variable
    for variable in (
        Variable(
            "residual",
            DIMS,
            "float32",
            "Output of decoder block l, before the model's final norm; NaN where there is no token.",
        ),
        Variable(
            "attention",
            DIMS,
            "float32",
            "What the attention of block l adds to the stream, after post-norms; NaN where no token is.",
        ),
        Variable(
            "mlp",
            DIMS,
            "float32",
            "What the MLP of block l adds to the stream, after post-norms; NaN where no token is.",
        ),
        Variable(
            "embedding",
            ("sample", "token", "hidden"),
            "float32",
            "What enters block 0; NaN where there is no token.",
        ),
        Variable(
            "norm",
            ("layer", "sample", "token"),
            "float32",
            "L2 norm over hidden of what `residual` keeps, before any rounding by `storage`.",
        ),
        Variable(
            "pooled",
            ("layer", "sample", "hidden"),
            "float32",
            "Mean of the block's output over content tokens; NaN where a sample has none.",
        ),
        Variable(
            "last",
            ("layer", "sample", "hidden"),
            "float32",
            "The block's output at the last content token; NaN where a sample has none.",
        ),
        Variable(
            "nonfinite",
            ("layer", "sample"),
            "int32",
            "Number of NaN and Inf values met at real tokens in what was captured of the block; at the first "
            "layer, in `embedding` too.",
        ),
        Variable("n_tokens", ("sample",), "int32", "Number of positions that hold a token.", coord=True),
        Variable(
            "token_id",
            ("sample", "token"),
            "int32",
            "Vocabulary index; 0 at pads, -1 for a mean, and where an import does not tell.",
            coord=True,
        ),
        Variable(
            "token_kind",
            ("sample", "token"),
            "int8",
            "What the position holds: see flag_values and flag_meanings.",
            coord=True,
        ),
        Variable(
            "token_text",
            ("sample", "token"),
            "str",
            "The token's characters; one that is spread over several tokens stands at the last of them.",
            coord=True,
        ),
        Variable(
            "position",
            ("sample", "token"),
            "int32",
            "Where the token stood in the prompt, from 0; -1 for a mean and at pads.",
            coord=True,
        ),
        Variable("generated", ("sample",), "str", "The text that the model generated.", coord=True),
        _known("layer", ("layer",), "int64", "Index of the block, from 0."),
        *(
            _known(f"has_{name}", ("layer",), "bool", f"Whether `{name}` was captured at the layer.")
            for name in COMPONENTS
        ),
        _known("sample", ("sample",), "int64", "Position in the cube, from 0."),
        _known(
            "token", ("token",), "int64", "Index among the kept positions; 0 = first one that holds a token."
        ),
        _known("sample_id", ("sample",), "str", "Name of the sample, unique within a language."),
        _known("language", ("sample",), "str", "Language of the text."),
        _known("text", ("sample",), "str", "The text, as it was given."),
        _known("prompt_tokens", ("sample",), "int32", "Number of tokens of the prompt, as the model saw it."),
        _known("truncated", ("sample",), "bool", "Whether max_tokens cut the text."),
        _known(
            "batch", ("sample",), "int32", "The batch that computed the sample; -1 where it was imported."
        ),
        _known(
            "committed", ("sample",), "bool", "Whether the sample's window is safely stored: the only ledger."
        ),
        Variable(
            f"{VISION}/residual",
            DIMS,
            "float32",
            "Output of block l of the vision tower, patch by patch; NaN where there is no patch.",
        ),
        Variable(f"{VISION}/norm", ("layer", "sample", "token"), "float32", "L2 norm of the patch's vector."),
        Variable(f"{VISION}/pooled", ("layer", "sample", "hidden"), "float32", "Mean over the patches."),
        Variable(
            f"{VISION}/nonfinite",
            ("layer", "sample"),
            "int32",
            "Number of NaN and Inf values met in the block's output.",
        ),
        Variable(f"{VISION}/n_tokens", ("sample",), "int32", "Number of patches.", coord=True),
        _known(f"{VISION}/layer", ("layer",), "int64", "Index of the vision tower's block, from 0."),
        _known(f"{VISION}/sample", ("sample",), "int64", "Position in the cube, from 0."),
        _known(f"{VISION}/token", ("token",), "int64", "Index of the patch, as the processor orders them."),
    )
}

SAVABLE = ("residual", "embedding", "norm", "pooled", "last")
# what is computed from `residual`, and absent where no layer of it is asked for
OF_RESIDUAL = ("residual", "norm", "pooled", "last")


def label(name: str, dtype: str) -> Variable:
    """Return the variable of a label column of the data."""
    return _known(name, ("sample",), dtype, f"Label column `{name}` of the data.")


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
    # where only some positions are kept, `position` says where they stood
    stood = token_kind.coords.get("position", token_kind.token)
    return mask if first_is_content else mask & (stood != 0)


def markdown_table(variables: Iterable[Variable] = VARIABLES.values()) -> str:
    """Return the variables as a Markdown table, for the documentation.

    Examples
    --------
    >>> print(markdown_table([VARIABLES["batch"]]))
    | variable | dims | dtype | meaning |
    |---|---|---|---|
    | `batch` | sample | int32 | The batch that computed the sample; -1 where it was imported. |
    """
    rows = ["| variable | dims | dtype | meaning |", "|---|---|---|---|"]
    rows += [f"| `{v.name}` | {', '.join(v.dims)} | {v.dtype} | {v.meaning} |" for v in variables]
    return "\n".join(rows)
