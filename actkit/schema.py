"""Variables of a cube, each declared once, and the kinds of tokens."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np

FORMAT = 2
DIMS = ("layer", "sample", "token", "hidden")
K = "k"  # dimension of the largest entries of a vector, in place of `hidden`
_ENTRIES = (*DIMS[:3], K)


class TokenKind(IntEnum):
    """Kind of token at a position."""

    PAD = 0
    SPECIAL = 1
    TEMPLATE = 2
    TEXT = 3
    IMAGE = 4
    GENERATED = 5
    MEAN = 6


# values of the cube's attribute `ids`: the origin of `sample_id`
GIVEN_IDS = "data"  # from the data
ROW_IDS = "rows"  # row numbers of one table, shared by the languages of a row
ORDER_IDS = "order"  # numbers in the order of imported files, from 0 in each language

WIDTH = "hidden_size"  # attribute of an opened cube: the width of the model, before any selection

# former names of options, still found in run folders and cubes of earlier versions
FORMER_OPTIONS = MappingProxyType({"tokens": "keep_tokens"})

MOMENTS = "moments.safetensors"  # in the run folder, if the run accumulates moments

# Generated tokens are not content, so statistics of a prompt are the same with and without generation.
CONTENT_KINDS = (TokenKind.TEXT, TokenKind.IMAGE, TokenKind.MEAN)


VISION = "vision"
FEATURE_INDEX, FEATURE_VALUE = "feature_index", "feature_value"
PROMPT_END = "prompt_end"
Component = Literal["residual", "attention", "mlp"]
COMPONENTS: tuple[str, ...] = get_args(Component)


def current_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a stored run by their current names.

    Examples
    --------
    >>> current_options({"tokens": "last", "limit": 3})
    {'keep_tokens': 'last', 'limit': 3}
    """
    return {FORMER_OPTIONS.get(name, name): value for name, value in options.items()}


@dataclass(frozen=True)
class Variable:
    """One array of the cube.

    Parameters
    ----------
    name
        Path in the store: the name, preceded by its group if it belongs to one.
    dims
        Dimension names, outermost first; each group has separate ``layer``, ``token`` and ``hidden`` axes.
    dtype
        NumPy dtype name; ``str`` is variable-length UTF-8.
    meaning
        Description in one sentence, also stored as the attribute ``long_name``.
    coord
        Whether it is a coordinate rather than a data variable.
    by_window
        Whether it is written window by window, not when the cube is created.
    other_dtype
        A dtype that a cube may use instead.
    fill
        Value of positions that hold no data, if it is not that of the dtype.
    """

    name: str
    dims: tuple[str, ...]
    dtype: str
    meaning: str
    coord: bool = False
    by_window: bool = True
    other_dtype: str = ""
    fill: float | None = None

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Dtypes that a cube may use."""
        return (self.dtype, self.other_dtype) if self.other_dtype else (self.dtype,)

    @property
    def group(self) -> str:
        """Name of its group; empty for the cube itself."""
        return self.name.rpartition("/")[0]

    @property
    def is_full(self) -> bool:
        """Whether it holds a vector, or the largest entries of one, for each token."""
        return "token" in self.dims and self.dims[-1] in ("hidden", K)

    @property
    def sample_axis(self) -> int:
        """Position of ``sample`` in ``dims``."""
        return self.dims.index("sample")

    @property
    def fill_value(self) -> float | int | bool | str:
        """Value of positions that hold no data."""
        if self.fill is not None:
            return self.fill
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


def sparse_names(name: str) -> tuple[str, str]:
    """Return the names of the indices and values that hold the largest entries of a variable's vectors."""
    return f"{name}_index", f"{name}_value"


def _sparse(name: str, dims: tuple[str, ...]) -> tuple[Variable, Variable]:
    """Declare the largest entries of the vectors of a variable."""
    index, value = sparse_names(name)
    return (
        Variable(
            index,
            dims,
            "uint16",
            f"Index along hidden of the k entries of `{name}` with the largest absolute values, largest "
            "first; 0 where there is no token.",
            other_dtype="uint32",
        ),
        Variable(
            value,
            dims,
            "float32",
            f"Values of `{name}` at `{index}`; NaN where there is no token.",
        ),
    )


def _known(name: str, dims: tuple[str, ...], dtype: str, meaning: str) -> Variable:
    """Declare a coordinate that is known before the model runs."""
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
            "Output of the attention of block l as added to the residual stream, after post-norms; NaN where "
            "there is no token.",
        ),
        Variable(
            "mlp",
            DIMS,
            "float32",
            "Output of the MLP of block l as added to the residual stream, after post-norms; NaN where there "
            "is no token.",
        ),
        Variable(
            "embedding",
            ("sample", "token", "hidden"),
            "float32",
            "Input of block 0; NaN where there is no token.",
        ),
        *_sparse("residual", _ENTRIES),
        *_sparse("attention", _ENTRIES),
        *_sparse("mlp", _ENTRIES),
        *_sparse("embedding", _ENTRIES[1:]),
        Variable(
            FEATURE_INDEX,
            _ENTRIES,
            "uint16",
            "Index of the k largest active features of the token, largest first; 0 where there are fewer.",
            other_dtype="uint32",
        ),
        Variable(
            FEATURE_VALUE,
            _ENTRIES,
            "float32",
            f"Values of the features at `{FEATURE_INDEX}`; 0 where there are fewer.",
            other_dtype="float16",
            fill=0.0,
        ),
        Variable(
            "n_active",
            ("layer", "sample", "token"),
            "uint16",
            "Number of active features of the token, including those beyond k.",
            other_dtype="uint32",
        ),
        Variable(
            "feature_sum",
            ("layer", "sample", "token"),
            "float32",
            "Sum of the values of all active features of the token, including those beyond k.",
            fill=0.0,
        ),
        Variable(
            "norm",
            ("layer", "sample", "token"),
            "float32",
            "L2 norm of `residual` over hidden, before any rounding by `storage`.",
        ),
        Variable(
            "pooled",
            ("layer", "sample", "hidden"),
            "float32",
            "Mean of the block's output over content tokens; NaN if a sample has none.",
        ),
        Variable(
            "last",
            ("layer", "sample", "hidden"),
            "float32",
            "Output of the block at the last content token; NaN if a sample has none.",
        ),
        Variable(
            PROMPT_END,
            ("layer", "sample", "hidden"),
            "float32",
            "Output of the block at the last token of the prompt, of any kind except generated.",
        ),
        Variable(
            "nonfinite",
            ("layer", "sample"),
            "int32",
            "Number of NaN and Inf values at real tokens in everything captured of the block, and at the "
            "first layer also in `embedding`.",
        ),
        Variable("n_tokens", ("sample",), "int32", "Number of positions that hold a token.", coord=True),
        Variable(
            "token_id",
            ("sample", "token"),
            "int32",
            "Vocabulary index; 0 for padding, -1 for a mean and for imports without token ids.",
            coord=True,
        ),
        Variable(
            "token_kind",
            ("sample", "token"),
            "int8",
            "Kind of token, as listed in flag_values and flag_meanings.",
            coord=True,
        ),
        Variable(
            "token_text",
            ("sample", "token"),
            "str",
            "Text of the token; a character that spans several tokens is assigned to the last of them.",
            coord=True,
        ),
        Variable(
            "position",
            ("sample", "token"),
            "int32",
            "Index of the token in the prompt, from 0; -1 for a mean and for padding.",
            coord=True,
        ),
        Variable("generated", ("sample",), "str", "Text generated by the model.", coord=True),
        _known("layer", ("layer",), "int64", "Index of the block, from 0."),
        *(
            _known(f"has_{name}", ("layer",), "bool", f"Whether `{name}` was captured at the layer.")
            for name in COMPONENTS
        ),
        _known("sample", ("sample",), "int64", "Position in the cube, from 0."),
        _known(
            "token",
            ("token",),
            "int64",
            "Index among the kept positions, from 0, the first that holds a token.",
        ),
        _known("sample_id", ("sample",), "str", "Name of the sample, unique within a language."),
        _known("language", ("sample",), "str", "Language of the text."),
        _known("text", ("sample",), "str", "Text of the sample, as in the data."),
        _known(
            "prompt_tokens", ("sample",), "int32", "Number of tokens of the prompt, as the model received it."
        ),
        _known("truncated", ("sample",), "bool", "Whether the text was truncated to max_tokens."),
        _known(
            "batch",
            ("sample",),
            "int32",
            "Index of the batch that computed the sample; -1 if it was imported.",
        ),
        _known(
            "committed",
            ("sample",),
            "bool",
            "Whether the sample's window is safely stored; the only record of progress.",
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
            "Number of NaN and Inf values in the block's output.",
        ),
        Variable(f"{VISION}/n_tokens", ("sample",), "int32", "Number of patches.", coord=True),
        _known(f"{VISION}/layer", ("layer",), "int64", "Index of the block of the vision tower, from 0."),
        _known(f"{VISION}/sample", ("sample",), "int64", "Position in the cube, from 0."),
        _known(f"{VISION}/token", ("token",), "int64", "Index of the patch, in the order of the processor."),
    )
}

SAVED = ("residual", "embedding", "norm", "pooled", "last")  # by default
SAVABLE = (*SAVED, PROMPT_END)
# variables computed from `residual`, absent if no layer of it is captured
OF_RESIDUAL = ("residual", "norm", "pooled", "last", PROMPT_END)
OF_FEATURES = (FEATURE_INDEX, FEATURE_VALUE, "n_active", "feature_sum")
# variables with a vector for each token, of which the largest entries can be kept instead
SPARSABLE = ("residual", "attention", "mlp", "embedding")
# variables that only a cube of an extraction has
OF_CAPTURE = (*SPARSABLE, "norm", "pooled", "last", PROMPT_END)


def component_of(name: str) -> str:
    """Return the component whose layers a variable has.

    Examples
    --------
    >>> component_of("pooled"), component_of("mlp_index"), component_of("embedding")
    ('residual', 'mlp', 'embedding')
    """
    dense = next((dense for dense in SPARSABLE if name in sparse_names(dense)), name)
    return "residual" if dense in OF_RESIDUAL else dense


def with_dtype(name: str, dtypes: Mapping[str, str]) -> Variable:
    """Return a variable with the dtype that a cube uses, by default the first of those it may use."""
    variable = VARIABLES[name]
    return replace(variable, dtype=dtypes[name]) if name in dtypes else variable


def index_dtype(length: int) -> str:
    """Return the dtype of indices into a dimension, and of counts of them."""
    return "uint16" if length < 2**16 else "uint32"


def label(name: str, dtype: str) -> Variable:
    """Return the variable of a label; numbers with gaps (``int64?``) become float64, dates (``day``) text."""
    stored = "float64" if dtype.endswith("?") else "str" if dtype == "day" else dtype
    return _known(name, ("sample",), stored, f"Label column `{name}` of the data.")


def label_attrs(dtype: str) -> dict[str, str | bool]:
    """Return the attributes that mark a label column, with its original type if gaps changed that."""
    return {"label": True, **({"label_type": dtype.removesuffix("?")} if dtype.endswith("?") else {})}


def markdown_table(variables: Iterable[Variable] = VARIABLES.values()) -> str:
    """Return the variables as a Markdown table, for the documentation.

    Examples
    --------
    >>> print(markdown_table([VARIABLES["batch"]]))
    | variable | dims | dtype | meaning |
    |---|---|---|---|
    | `batch` | sample | int32 | Index of the batch that computed the sample; -1 if it was imported. |
    """
    rows = ["| variable | dims | dtype | meaning |", "|---|---|---|---|"]
    for v in variables:
        rows.append(f"| `{v.name}` | {', '.join(v.dims)} | {' or '.join(v.dtypes)} | {v.meaning} |")
    return "\n".join(rows)
