"""The characters of the tokens of a sample."""

from pathlib import Path

import pytest
import xarray as xr

from actkit import open_cube, token_strings
from actkit.testing import Synthetic, synthetic


def test_the_tokens_of_a_sample(cube: xr.Dataset, numbers: Synthetic) -> None:
    for sample, length in enumerate(numbers.plan.lengths):
        texts = token_strings(cube, sample)
        assert texts == numbers.values["token_text"][sample, :length].tolist()
        assert len(texts) == length
        assert all(type(text) is str for text in texts)


def test_the_tokens_of_a_part_go_by_the_name_of_the_sample_and_not_by_its_place(
    cube: xr.Dataset, numbers: Synthetic
) -> None:
    expected = token_strings(cube, 9)
    for part in (
        cube.isel(sample=[9, 2]),
        cube.where(cube.sample == 9, drop=True),
        cube.isel(sample=slice(8, 10)),
    ):
        assert token_strings(part, 9) == expected
        with pytest.raises(KeyError):
            token_strings(part, 3)
    with pytest.raises(KeyError):
        token_strings(cube, 10)
    with pytest.raises(KeyError):
        token_strings(cube, -1)


def test_a_token_without_characters_of_its_own_keeps_its_place(tmp_path: Path) -> None:
    # three tokens of one character: it stands at the last of them
    numbers = synthetic(n_samples=4, n_tokens=5)
    numbers.values["token_text"][3] = ["<s>", "", "", "𒀀", " ء"]
    numbers.create(tmp_path).write(0, numbers.part(0))
    assert token_strings(open_cube(tmp_path), 3) == ["<s>", "", "", "𒀀", " ء"]


def test_one_sample_a_cut_and_another_order(cube: xr.Dataset) -> None:
    whole = token_strings(cube, 9)
    assert token_strings(cube.isel(sample=9), 9) == whole
    assert token_strings(cube.isel(token=slice(2, None)), 9) == whole[2:]
    assert token_strings(cube.isel(token=slice(None, None, -1)), 9) == whole  # a text is read in its order
    with pytest.raises(KeyError, match="the cube has no sample 8"):
        token_strings(cube.isel(sample=9), 8)


def test_the_vision_group_has_none(intact: Path) -> None:
    with pytest.raises(KeyError, match="pass the cube itself"):
        token_strings(open_cube(intact, group="vision"), 0)
