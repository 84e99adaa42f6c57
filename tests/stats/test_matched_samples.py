"""Samples are matched by ids from the data or by text, never by position alone."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import actkit
from actkit.demo import MODEL
from actkit.errors import InputError
from actkit.testing import write_cube


def english(cube: xr.Dataset) -> xr.Dataset:
    return cube.isel(sample=(cube.language == "english").values)


def numbered(cube: xr.Dataset, order: slice | None = None) -> xr.Dataset:
    """Return the cube of a table without ids, with its rows in another order."""
    moved = cube.isel(sample=order or slice(None))
    rows = np.arange(moved.sizes["sample"])
    moved = moved.assign_coords(sample=rows, sample_id=("sample", rows.astype(str).astype(object)))
    return moved.assign_attrs(ids="rows")


BACKWARDS = slice(None, None, -1)


def test_row_numbers_match_only_equal_texts(cube: xr.Dataset) -> None:
    own = numbered(english(cube))
    same = actkit.cka(own, numbered(english(cube)))
    assert int(same.n.item()) == 60
    with pytest.raises(InputError, match=r"the texts differ in 60 of 60 pairs.*match='text'"):
        actkit.cka(own, numbered(english(cube), BACKWARDS))
    requests = own.assign_coords(text=("sample", [f"request {at}" for at in range(60)]))
    with pytest.raises(InputError, match="`0` has `text 0 نص` and `request 0`"):
        actkit.cka(own, requests)
    with pytest.raises(InputError, match="no texts"):
        actkit.cka(own.drop_vars("text"), requests.drop_vars("text"))


@pytest.mark.slow
def test_texts_match_samples_in_reverse_order(cube: xr.Dataset) -> None:
    own, other = numbered(english(cube)), numbered(english(cube), BACKWARDS)
    result = actkit.cka(own, other, match="text").sel(language="english")
    wanted = actkit.cka(own).sel(language="english")
    np.testing.assert_allclose(np.diagonal(result.cka), 1, atol=1e-12)
    np.testing.assert_allclose(result.cka, wanted.cka, atol=1e-12)
    np.testing.assert_allclose(result.se, wanted.se, atol=1e-12)
    assert result.attrs["match"] == "text"


def test_ids_from_the_data_match_different_texts(cube: xr.Dataset) -> None:
    other = cube.assign_coords(text=("sample", [f"paraphrase {at}" for at in range(120)]))
    assert actkit.cka(cube, other.isel(sample=BACKWARDS)).n.values.tolist() == [60, 60]


def test_ids_of_unknown_origin_require_equal_texts(cube: xr.Dataset) -> None:
    old = cube.copy()
    del old.attrs["ids"]
    assert actkit.cka(old, old).n.values.tolist() == [60, 60]
    with pytest.raises(InputError, match="the texts differ"):
        actkit.cka(old, old.assign_coords(text=("sample", cube.text.values[::-1])))


def test_repeated_ids_or_texts_are_an_error(cube: xr.Dataset) -> None:
    twice = xr.concat([english(cube), english(cube)], "sample")
    with pytest.raises(InputError, match=r"(?s)a: several .*`image-0000` in english.* and 57 more"):
        actkit.cka(twice, cube)
    with pytest.raises(InputError, match="b: several samples have the same text") as caught:
        actkit.cka(cube, twice, match="text")
    assert "~cube.text.to_series().duplicated().values" in str(caught.value)
    once = twice.isel(sample=~twice.text.to_series().duplicated().values)
    assert int(actkit.cka(cube, once, match="text").n[0]) == 60


def test_invalid_options_are_errors(cube: xr.Dataset) -> None:
    with pytest.raises(InputError, match="match: 'row' is unknown"):
        actkit.cka(cube, cube, match="row")
    with pytest.raises(InputError, match="in english and arabic"):
        actkit.cka(english(cube), cube.isel(sample=(cube.language == "arabic").values))


@pytest.mark.slow
def test_languages_of_one_table_share_the_numbers_of_its_rows(cube: xr.Dataset) -> None:
    wide = cube.assign_coords(sample_id=("sample", np.repeat(np.arange(60), 2).astype(str).astype(object)))
    result = actkit.language_cka(wide.assign_attrs(ids="rows"))
    xr.testing.assert_allclose(result, actkit.language_cka(cube))


@pytest.mark.slow
def test_languages_of_two_tables_do_not_share_row_numbers(cube: xr.Dataset) -> None:
    parts = [numbered(cube.isel(sample=(cube.language == name).values)) for name in ("english", "arabic")]
    both = xr.concat(parts, "sample", combine_attrs="override")
    with pytest.raises(InputError, match="samples of several runs have row numbers as ids"):
        actkit.language_cka(both)
    with pytest.raises(InputError, match="name the label that dependent samples share: `cluster`"):
        actkit.transfer(both, by="gender", cluster=None)
    assert actkit.transfer(both, by="gender", cluster="image_id").sizes["train"] == 2
    result = actkit.language_cka(both.assign_attrs(ids="data"))  # declares the ids to be meaningful
    np.testing.assert_allclose(result.cka, actkit.language_cka(cube).cka, atol=1e-12)


def test_repeated_ids_within_a_language_are_an_error(cube: xr.Dataset) -> None:
    with pytest.raises(InputError, match="several samples have the same sample_id"):
        actkit.language_cka(xr.concat([cube, cube], "sample"))


@pytest.mark.slow
def test_imported_files_that_name_no_samples_have_them_in_their_order(tmp_path: Path) -> None:
    run = write_cube(tmp_path / "run", n_samples=40)
    files = actkit.export(run, tmp_path / "files", format="pt")
    assert actkit.import_files(files, format="pt", out=tmp_path / "named").attrs["ids"] == "data"
    chunks = actkit.export(run, tmp_path / "chunks", format="npz", languages=["english"])
    result = actkit.import_files(chunks, format="npz", language="english", out=tmp_path / "unnamed")
    assert result.attrs["ids"] == "order"
    cube = actkit.open_cube(run).assign_attrs(ids="order")
    with pytest.raises(
        InputError, match=r"numbered separately in each language.*cube.assign_attrs\(ids='data'\)"
    ):
        actkit.language_cka(cube)
    assert actkit.language_cka(cube.assign_attrs(ids="data")).n.values.tolist() == [[20, 20], [20, 20]]


def test_a_run_says_who_named_its_samples(tmp_path: Path) -> None:
    for ids, table in (("rows", "text\na"), ("data", "sample_id,text\na,b")):
        data = tmp_path / f"{ids}.csv"
        data.write_text(table, encoding="utf-8")
        planned = actkit.plan(model=str(MODEL), data=str(data), out=str(tmp_path / ids), trial=False)
        assert planned.attrs["ids"] == ids


@pytest.mark.slow
def test_tokens_go_with_their_sample_whatever_it_is_called(cube: xr.Dataset) -> None:
    """The standard error of two concatenated runs with repeated ids is that of distinct samples."""
    twice = xr.concat([cube, cube], "sample")
    named = twice.assign_coords(sample_id=("sample", np.arange(240).astype(str).astype(object)))
    one, two = (actkit.cka(each, vectors="tokens").compute() for each in (twice, named))
    np.testing.assert_allclose(one.se, two.se, atol=1e-12)
