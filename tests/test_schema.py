"""The one place that declares the variables of a cube."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from actkit.schema import DIMS, SAVABLE, VARIABLES, TokenKind, Variable, content_mask, label, markdown_table

ALL = list(VARIABLES.values())


def test_the_contract_with_every_reader() -> None:
    """Written out again on purpose: changing a name, a dimension or a dtype breaks somebody's analysis."""
    assert {name: (*variable.dims, variable.dtype) for name, variable in VARIABLES.items()} == {
        "residual": ("layer", "sample", "token", "hidden", "float32"),
        "embedding": ("sample", "token", "hidden", "float32"),
        "norm": ("layer", "sample", "token", "float32"),
        "pooled": ("layer", "sample", "hidden", "float32"),
        "last": ("layer", "sample", "hidden", "float32"),
        "nonfinite": ("layer", "sample", "int32"),
        "layer": ("layer", "int64"),
        "sample": ("sample", "int64"),
        "token": ("token", "int64"),
        "sample_id": ("sample", "str"),
        "language": ("sample", "str"),
        "text": ("sample", "str"),
        "n_tokens": ("sample", "int32"),
        "truncated": ("sample", "bool"),
        "batch": ("sample", "int32"),
        "token_id": ("sample", "token", "int32"),
        "token_kind": ("sample", "token", "int8"),
        "committed": ("sample", "bool"),
    }


def test_token_kinds_keep_their_numbers() -> None:
    assert {kind.name: int(kind) for kind in TokenKind} == {
        "PAD": 0,
        "SPECIAL": 1,
        "TEMPLATE": 2,
        "TEXT": 3,
        "IMAGE": 4,
    }
    assert VARIABLES["token_kind"].attrs["flag_values"] == "0 1 2 3 4"
    assert VARIABLES["token_kind"].attrs["flag_meanings"] == "pad special template text image"


@pytest.mark.parametrize("variable", ALL, ids=lambda variable: variable.name)
def test_every_variable_is_described(variable: Variable) -> None:
    assert variable.meaning.endswith(".")
    assert variable.attrs["long_name"] == variable.meaning
    assert set(variable.dims) <= set(DIMS)
    assert all(isinstance(value, str) for value in variable.attrs.values())


def test_what_can_be_left_out() -> None:
    assert SAVABLE == ("residual", "embedding", "norm", "pooled", "last")


@pytest.mark.parametrize("variable", ALL, ids=lambda variable: variable.name)
def test_windows_are_cut_along_samples(variable: Variable) -> None:
    assert variable.by_window == (not variable.coord)
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


def test_the_table_of_the_documentation_names_every_variable() -> None:
    heading, rule, *rows = markdown_table().splitlines()
    assert heading == "| variable | dims | dtype | meaning |"
    assert len({line.count("|") for line in (heading, rule, *rows)}) == 1
    assert [row.split("`")[1] for row in rows] == list(VARIABLES)


def test_the_documentation_holds_this_very_table() -> None:
    page = Path(__file__).parent.parent / "docs" / "cube.md"
    assert page.read_text(encoding="utf-8").endswith(f"\n\n{markdown_table()}\n")
