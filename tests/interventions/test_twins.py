"""Pairs of prompts: what forms one, and what gaps in labels leave out."""

from typing import Any

import numpy as np
import pytest
import xarray as xr

from actkit.errors import InputError
from actkit.interventions.twins import Twins, find_twins

# language, gender, pair, template
SAMPLES: list[tuple[str, str | None, str | None, str]] = [
    ("english", "male", "a", "t"),
    ("arabic", "female", "a", "t"),  # of another language
    ("english", "female", "a", "t"),
    ("english", "male", "b", "t"),
    ("english", None, "b", "t"),  # a gap in the label
    ("english", "female", "c", "u"),
    ("english", "male", "c", "u"),
    ("english", "male", None, "u"),  # two gaps do not form a pair
    ("english", "female", None, "u"),
]


def found(rows: list[tuple[str, str | None, str | None, str]] = SAMPLES, **options: Any) -> Twins:
    columns = [np.array(column, dtype=object) for column in zip(*rows, strict=True)]
    ids = np.array([str(number) for number in range(len(rows))], dtype=object)
    labels = {
        name: ("sample", values, {"label": True})
        for name, values in zip(("gender", "pair", "template"), columns[1:], strict=True)
    }
    cube = xr.Dataset(coords={"sample_id": ("sample", ids), "language": ("sample", columns[0]), **labels})
    return find_twins(cube, **{"paired_by": "pair", "by": "gender", "between": None, **options})


def test_gaps_and_other_languages_form_no_pair() -> None:
    twins = found()
    pairs = zip(twins.names, twins.base.tolist(), twins.twin.tolist(), strict=True)
    assert list(pairs) == [("a", 2, 0), ("c", 5, 6)]
    assert twins.groups == ("female", "male")
    assert twins.n_incomplete == 2  # in Arabic, and of `b`


def test_pairs_of_one_template_are_dependent() -> None:
    rows = [*SAMPLES, ("english", "male", "d", "t"), ("english", "female", "d", "t")]
    assert found(rows).clusters.tolist() == [0, 1, 2]
    assert found(rows, cluster="template").clusters.tolist() == [0, 1, 0]


def test_a_label_without_complete_pairs_is_refused() -> None:
    with pytest.raises(InputError, match="no value of `pair` has a sample of female and male"):
        found(where={"language": "arabic"})
