"""Counts by language and label of cubes on disk, compared with pandas."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from actkit.extraction.monitoring import label_counts
from actkit.extraction.monitoring.label_counts import LabelCounts
from actkit.store.layout import CUBE
from actkit.store.writer import create_cube
from actkit.testing import synthetic

N = 90
LABELS = {
    "gender": ["male", "female", ""] * 30,  # "" is a missing value
    "age": [20, 30, 40] * 30,
    "sure": [True, False] * 45,
    "score": [0.5, float("nan"), 1.0] * 30,
    "twenty": [f"v{i % 20}" for i in range(N)],
    "empty": [""] * N,
    "twenty_one": [f"v{i % 21}" for i in range(N)],
    "long": ["x" * 50, "y" * 51] * 45,
    "image_id": [f"i{i}" for i in range(N)],
}
COUNTED = ["gender", "age", "sure", "score", "twenty", "empty"]
DTYPES = {"age": "int64", "sure": "bool", "score": "float64"}


@pytest.fixture
def cube(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cube with only its coordinates written, which are read in several blocks."""
    monkeypatch.setattr(label_counts, "_BLOCK", 16)
    made = synthetic(n_samples=N, n_layers=1, n_tokens=2, hidden=2, languages=("english", "arabic"))
    labels = {name: np.array(values, dtype=DTYPES.get(name, object)) for name, values in LABELS.items()}
    known = {name: values for name, values in made.rows.items() if name not in made.labels}
    made = replace(made, labels=labels, rows={**known, **labels})
    create_cube(
        tmp_path,
        made.plan,
        variables=tuple(made.values),
        coords=made.coords,
        labels={name: DTYPES.get(name, "str") for name in labels},
        rows=[made.rows],
        attrs={"model": "synthetic", "first_is_content": True},
    )
    return tmp_path / CUBE


def counts(values: list[object], samples: np.ndarray) -> dict[str, int]:
    """Count all values with pandas."""
    column = pd.Series(values, dtype=object).replace("", None).dropna()
    value_counts = column[column.index.isin(samples)].value_counts()
    return {str(value): int(value_counts.get(value, 0)) for value in column.unique()}


@pytest.mark.parametrize("seed", range(5))
def test_counts_are_those_of_pandas(cube: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    order = rng.permutation(N)
    first, *batches = np.split(order, np.sort(rng.choice(N, 6)))
    done = np.isin(np.arange(N), first)
    counted = LabelCounts(cube, done)
    for batch in batches:
        before = counted.languages, counted.labels
        assert sum(before[0].values()) == done.sum()
        counted.add(batch)
        done[batch] = True
        # earlier results do not change
        assert sum(before[0].values()) == done.sum() - len(batch)
    assert done.all()
    assert counted.languages == {"english": 45, "arabic": 45}
    assert counted.labels == {name: counts(LABELS[name], order) for name in COUNTED}


def test_samples_of_earlier_sessions_are_counted(cube: Path) -> None:
    done = np.arange(N) < 7
    counted = LabelCounts(cube, done)
    assert counted.languages == {"english": 4, "arabic": 3}
    assert counted.labels == {name: counts(LABELS[name], np.arange(7)) for name in COUNTED}
    assert counted.labels["gender"] == {"male": 3, "female": 2}
    assert counted.labels["sure"] == {"True": 4, "False": 3}
    assert counted.labels["score"] == {"0.5": 3, "1.0": 2}
    counted.add(np.array([7, 8]))
    assert counted.labels["gender"] == {"male": 3, "female": 3}


def test_a_value_that_no_sample_has_yet_is_there_with_zero(cube: Path) -> None:
    counted = LabelCounts(cube, np.zeros(N, dtype=bool))
    assert counted.languages == {"english": 0, "arabic": 0}
    assert counted.labels["gender"] == {"male": 0, "female": 0}
    assert counted.labels["empty"] == {}


def test_too_many_languages_are_not_counted(tmp_path: Path) -> None:
    for count, kept in ((1000, 1000), (1001, 0)):
        run = tmp_path / str(count)
        run.mkdir()
        languages = [f"l{i}" for i in range(count)]
        synthetic(n_samples=1001, n_layers=1, n_tokens=2, hidden=2, languages=languages).create(run)
        assert len(LabelCounts(run / CUBE, np.zeros(1001, dtype=bool)).languages) == kept
