"""Declarations of the variables of a cube."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from actkit.schema import (
    COMPONENTS,
    DIMS,
    OF_RESIDUAL,
    SAVABLE,
    SAVED,
    SPARSABLE,
    VARIABLES,
    VISION,
    K,
    TokenKind,
    Variable,
    label,
    markdown_table,
)
from actkit.stats.token_masks import content_mask

ALL = list(VARIABLES.values())


def test_the_contract_with_every_reader() -> None:
    """Written out again on purpose: changing a name, a dimension or a dtype breaks somebody's analysis."""
    assert {name: (*variable.dims, variable.dtype) for name, variable in VARIABLES.items()} == {
        "residual": ("layer", "sample", "token", "hidden", "float32"),
        "attention": ("layer", "sample", "token", "hidden", "float32"),
        "mlp": ("layer", "sample", "token", "hidden", "float32"),
        "embedding": ("sample", "token", "hidden", "float32"),
        "residual_index": ("layer", "sample", "token", "k", "uint16"),
        "residual_value": ("layer", "sample", "token", "k", "float32"),
        "attention_index": ("layer", "sample", "token", "k", "uint16"),
        "attention_value": ("layer", "sample", "token", "k", "float32"),
        "mlp_index": ("layer", "sample", "token", "k", "uint16"),
        "mlp_value": ("layer", "sample", "token", "k", "float32"),
        "embedding_index": ("sample", "token", "k", "uint16"),
        "embedding_value": ("sample", "token", "k", "float32"),
        "feature_index": ("layer", "sample", "token", "k", "uint16"),
        "feature_value": ("layer", "sample", "token", "k", "float32"),
        "n_active": ("layer", "sample", "token", "uint16"),
        "feature_sum": ("layer", "sample", "token", "float32"),
        "norm": ("layer", "sample", "token", "float32"),
        "pooled": ("layer", "sample", "hidden", "float32"),
        "last": ("layer", "sample", "hidden", "float32"),
        "prompt_end": ("layer", "sample", "hidden", "float32"),
        "nonfinite": ("layer", "sample", "int32"),
        "n_tokens": ("sample", "int32"),
        "token_id": ("sample", "token", "int32"),
        "token_kind": ("sample", "token", "int8"),
        "token_text": ("sample", "token", "str"),
        "position": ("sample", "token", "int32"),
        "generated": ("sample", "str"),
        "layer": ("layer", "int64"),
        "has_residual": ("layer", "bool"),
        "has_attention": ("layer", "bool"),
        "has_mlp": ("layer", "bool"),
        "sample": ("sample", "int64"),
        "token": ("token", "int64"),
        "sample_id": ("sample", "str"),
        "language": ("sample", "str"),
        "text": ("sample", "str"),
        "prompt_tokens": ("sample", "int32"),
        "truncated": ("sample", "bool"),
        "batch": ("sample", "int32"),
        "committed": ("sample", "bool"),
        "vision/residual": ("layer", "sample", "token", "hidden", "float32"),
        "vision/norm": ("layer", "sample", "token", "float32"),
        "vision/pooled": ("layer", "sample", "hidden", "float32"),
        "vision/nonfinite": ("layer", "sample", "int32"),
        "vision/n_tokens": ("sample", "int32"),
        "vision/layer": ("layer", "int64"),
        "vision/sample": ("sample", "int64"),
        "vision/token": ("token", "int64"),
    }


def test_what_is_computed_is_a_number_of_the_cube_and_the_rest_are_its_coordinates() -> None:
    assert [name for name, variable in VARIABLES.items() if not variable.coord] == [
        "residual",
        "attention",
        "mlp",
        "embedding",
        *(f"{dense}_{part}" for dense in SPARSABLE for part in ("index", "value")),
        "feature_index",
        "feature_value",
        "n_active",
        "feature_sum",
        "norm",
        "pooled",
        "last",
        "prompt_end",
        "nonfinite",
        "vision/residual",
        "vision/norm",
        "vision/pooled",
        "vision/nonfinite",
    ]


def test_what_is_known_before_the_model_runs() -> None:
    """Values from the model, tokenizer or processor are written by window; values of the data are not."""
    assert {name for name, variable in VARIABLES.items() if not variable.by_window} == {
        *("layer", "sample", "token", "has_residual", "has_attention", "has_mlp"),
        *("sample_id", "language", "text", "prompt_tokens", "truncated", "batch", "committed"),
        *("vision/layer", "vision/sample", "vision/token"),
    }


def test_the_vision_tower_has_a_group_of_its_own() -> None:
    assert {variable.group for variable in ALL} == {"", VISION}
    assert {name for name, variable in VARIABLES.items() if variable.group == VISION} == {
        name for name in VARIABLES if name.startswith("vision/")
    }
    # the same name has the same meaning in both
    for name, variable in VARIABLES.items():
        if variable.group:
            namesake = VARIABLES[name.removeprefix("vision/")]
            assert (variable.dims, variable.dtype) == (namesake.dims, namesake.dtype)
            assert (variable.coord, variable.by_window) == (namesake.coord, namesake.by_window)


def test_token_kinds_keep_their_numbers() -> None:
    assert {kind.name: int(kind) for kind in TokenKind} == {
        "PAD": 0,
        "SPECIAL": 1,
        "TEMPLATE": 2,
        "TEXT": 3,
        "IMAGE": 4,
        "GENERATED": 5,
        "MEAN": 6,
    }
    assert VARIABLES["token_kind"].attrs["flag_values"] == "0 1 2 3 4 5 6"
    assert VARIABLES["token_kind"].attrs["flag_meanings"] == "pad special template text image generated mean"


@pytest.mark.parametrize("variable", ALL, ids=lambda variable: variable.name)
def test_every_variable_is_described(variable: Variable) -> None:
    assert variable.meaning.endswith(".")
    assert variable.attrs["long_name"] == variable.meaning
    assert set(variable.dims) <= {*DIMS, K}
    assert all(isinstance(value, str) for value in variable.attrs.values())


def test_what_can_be_left_out() -> None:
    assert SAVED == ("residual", "embedding", "norm", "pooled", "last")
    assert SAVABLE[:-1] == SAVED
    assert SAVABLE[-1] == "prompt_end"
    # without a residual layer there is nothing to take the norm of
    assert OF_RESIDUAL == ("residual", "norm", "pooled", "last", "prompt_end")
    assert COMPONENTS == ("residual", "attention", "mlp")


@pytest.mark.parametrize("variable", ALL, ids=lambda variable: variable.name)
def test_windows_are_cut_along_samples(variable: Variable) -> None:
    assert variable.by_window or variable.coord
    if variable.by_window:
        assert variable.dims[variable.sample_axis] == "sample"


@pytest.mark.parametrize(
    ("dtype", "fill"), [("str", ""), ("bool", False), ("int32", 0), ("int64", 0), ("int8", 0)]
)
def test_what_nothing_reads_as(dtype: str, fill: object) -> None:
    value = label("l", dtype).fill_value
    assert value == fill
    assert type(value) is type(fill)


def test_no_number_reads_as_nan() -> None:
    assert np.isnan(VARIABLES["residual"].fill_value)
    assert np.isnan(label("score", "float64").fill_value)
    for name in ("attention", "mlp", "embedding", "norm", "pooled", "last", "vision/residual", "vision/norm"):
        assert np.isnan(VARIABLES[name].fill_value), name


def test_sparse_variables_have_two_dtypes_and_values_of_features_are_0() -> None:
    others = {name: variable.other_dtype for name, variable in VARIABLES.items() if variable.other_dtype}
    indices = {f"{name}_index" for name in (*SPARSABLE, "feature")}
    assert others == {**dict.fromkeys([*indices, "n_active"], "uint32"), "feature_value": "float16"}
    assert {name for name, variable in VARIABLES.items() if variable.fill is not None} == {
        "feature_value",
        "feature_sum",
    }
    assert all(np.isnan(VARIABLES[f"{name}_value"].fill_value) for name in SPARSABLE)


def test_a_label_is_a_coordinate_of_samples() -> None:
    gender = label("gender", "str")
    assert (gender.dims, gender.coord, gender.by_window) == (("sample",), True, False)
    assert gender.meaning == "Label column `gender` of the data."


@pytest.mark.parametrize(
    ("first_is_content", "expected"),
    [
        (True, [[True, True, True, False], [False, False, True, True]]),
        # an attention sink sits at position 0, whatever token it is
        (False, [[False, True, True, False], [False, False, True, True]]),
    ],
)
def test_content_is_text_and_images(first_is_content: bool, expected: list[list[bool]]) -> None:
    kinds = [
        [TokenKind.TEXT, TokenKind.IMAGE, TokenKind.TEXT, TokenKind.PAD],
        [TokenKind.SPECIAL, TokenKind.TEMPLATE, TokenKind.TEXT, TokenKind.TEXT],
    ]
    array = xr.DataArray(np.array(kinds, np.int8), dims=("sample", "token"), coords={"token": np.arange(4)})
    mask = content_mask(array, first_is_content=first_is_content)
    assert mask.dims == ("sample", "token")
    assert mask.values.tolist() == expected


@pytest.mark.parametrize(
    ("kind", "is_content"),
    [
        (TokenKind.PAD, False),
        (TokenKind.SPECIAL, False),
        (TokenKind.TEMPLATE, False),
        (TokenKind.TEXT, True),
        (TokenKind.IMAGE, True),
        # generated text is not content
        (TokenKind.GENERATED, False),
        (TokenKind.MEAN, True),
    ],
)
def test_each_kind_is_content_or_is_not(kind: TokenKind, is_content: bool) -> None:
    array = xr.DataArray(np.full((1, 3), kind, np.int8), dims=("sample", "token"))
    array = array.assign_coords(token=np.arange(3))
    assert content_mask(array, first_is_content=True).values.tolist() == [[is_content] * 3]


def kept(positions: list[list[int]], kinds: list[list[int]]) -> xr.DataArray:
    """Kinds of tokens when only some positions were kept."""
    return xr.DataArray(
        np.array(kinds, np.int8),
        dims=("sample", "token"),
        coords={
            "token": np.arange(len(kinds[0])),
            "position": (("sample", "token"), np.array(positions, np.int32)),
        },
    )


def test_where_a_kept_token_stood_is_what_counts_and_not_its_index() -> None:
    text, pad = TokenKind.TEXT, TokenKind.PAD
    array = kept(
        [[4, 5, 6], [0, 2, -1], [1, 0, 3]], [[text, text, text], [text, text, pad], [text, text, text]]
    )
    assert content_mask(array, first_is_content=False).values.tolist() == [
        [True, True, True],
        [False, True, False],
        [True, False, True],
    ]
    assert content_mask(array, first_is_content=True).values.tolist() == [
        [True, True, True],
        [True, True, False],
        [True, True, True],
    ]


@pytest.mark.parametrize("first_is_content", [True, False])
def test_a_mean_stood_nowhere_and_counts(first_is_content: bool) -> None:
    # its position is -1; a sample without content holds no mean, and that is a pad
    array = kept([[-1], [-1]], [[TokenKind.MEAN], [TokenKind.PAD]])
    assert content_mask(array, first_is_content=first_is_content).values.tolist() == [[True], [False]]


def test_the_table_of_the_documentation_names_every_variable() -> None:
    heading, rule, *rows = markdown_table().splitlines()
    assert heading == "| variable | dims | dtype | meaning |"
    assert len({line.count("|") for line in (heading, rule, *rows)}) == 1
    assert [row.split("`")[1] for row in rows] == list(VARIABLES)


def test_the_documentation_holds_this_very_table() -> None:
    page = Path(__file__).parent.parent / "docs" / "cube.md"
    assert page.read_text(encoding="utf-8").endswith(f"\n\n{markdown_table()}\n")
