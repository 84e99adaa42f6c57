"""The probe before and after erasure: reference implementations, chance, and disjoint clusters."""

import numpy as np
import pytest
import torch
import xarray as xr
from concept_erasure import LeaceFitter
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

import actkit
from actkit.errors import InputError, MissingError
from actkit.stats.kernels.erased_probe import halves
from actkit.testing import write_cube


def simulated(n_clusters: int, hidden: int, distance: float, seed: int = 0) -> xr.Dataset:
    """Return pooled vectors of twins, one of each label, at one layer."""
    rng = np.random.default_rng(seed)
    n = 2 * n_clusters
    pair, label = np.arange(n) // 2, np.arange(n) % 2
    vectors = rng.standard_normal((1, n, hidden)) @ rng.standard_normal((hidden, hidden))
    vectors[..., 0] += distance * label
    return xr.Dataset(
        {"pooled": (("layer", "sample", "hidden"), vectors)},
        {
            "layer": [3],
            "sample": np.arange(n),
            "language": ("sample", np.full(n, "english", dtype=object)),
            "tense": ("sample", np.array(["past", "present"])[label], {"label": True}),
            "pair": ("sample", pair, {"label": True}),
        },
    )


def test_aurocs_equal_those_of_concept_erasure_and_scikit_learn() -> None:
    cube = simulated(150, 12, 4)
    found = actkit.erasure_probe(cube, by="tense", cluster="pair", seeds=2, shrinkage=None).isel(language=0)
    x, labels, pairs = cube.pooled.values[0], cube.tense.values == "present", cube.pair.values
    aurocs: dict[str, list[float]] = {"before": [], "after": []}
    options = {"shrinkage": False, "constrain_cov_trace": False, "svd_tol": 1e-8}
    for half in halves(labels, pairs, folds=5, seeds=2):
        fitted = torch.from_numpy(x[half.fitted])
        z = torch.nn.functional.one_hot(torch.from_numpy(labels[half.fitted]).long(), 2).double()
        eraser = LeaceFitter.fit(fitted, z, **options).eraser
        for when, vectors in (("before", x), ("after", eraser(torch.from_numpy(x)).numpy())):
            for train, test in half.folds:
                scaler = StandardScaler().fit(vectors[train])
                trained = scaler.transform(vectors[train])
                ridge = Ridge(alpha=np.square(trained).sum() / len(trained))
                ridge.fit(trained, labels[train])
                scores = ridge.predict(scaler.transform(vectors[test]))
                aurocs[when].append(roc_auc_score(labels[test], scores))
    assert float(found.auroc_before.item()) == pytest.approx(np.mean(aurocs["before"]), abs=1e-9)
    assert float(found.auroc_after.item()) == pytest.approx(np.mean(aurocs["after"]), abs=1e-9)
    assert found.auroc_before_low < found.auroc_before < found.auroc_before_high


def test_no_cluster_of_an_eraser_is_probed() -> None:
    rng = np.random.default_rng(0)
    groups, labels = np.repeat(np.arange(60), 3), rng.random(180) < 0.5
    divided = list(halves(labels, groups, folds=4, seeds=3))
    assert len(divided) == 6
    tested = np.zeros(180, dtype=int)
    for half in divided:
        for train, test in half.folds:
            sides = [set(groups[side]) for side in (half.fitted, train, test)]
            assert not sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2]
            tested[test] += 1
    assert (tested == 3).all()


def test_a_label_is_at_chance_after_erasure() -> None:
    results = [
        actkit.erasure_probe(simulated(300, 4, 6, seed), by="tense", cluster="pair") for seed in range(12)
    ]
    after = np.array([float(result.auroc_after.item()) for result in results])
    assert min(float(result.auroc_before.item()) for result in results) > 0.9
    assert abs(after - 0.5).max() < 0.1
    # an AUROC above chance by at most what errors of the class means leave: D² of about 4 / 150
    assert -0.02 < after.mean() - 0.5 < 0.06


@pytest.mark.parametrize("n", [60, pytest.param(600, marks=pytest.mark.nightly)])
def test_intervals_cover_chance_where_there_is_no_label(n: int) -> None:
    covered = []
    for seed in range(n):
        result = actkit.erasure_probe(simulated(100, 4, 0, seed), by="tense", cluster="pair")
        covered.append(bool(result.auroc_after_low <= 0.5) and bool(result.auroc_after_high >= 0.5))
    assert np.mean(covered) >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / n)


def test_lazy_results_and_faults() -> None:
    cube = actkit.open_cube(write_cube(n_samples=160, n_layers=3, hidden=6))
    lazy = actkit.erasure_probe(cube, by="gender", cluster="image_id", layers=[0, 2])
    assert lazy.auroc_after.chunks is not None
    assert lazy.layer.values.tolist() == [0, 2]
    assert lazy.attrs["statistic"] == "erasure_probe"
    xr.testing.assert_allclose(
        lazy.compute(), actkit.erasure_probe(cube.load(), by="gender", cluster="image_id", layers=[0, 2])
    )
    with pytest.raises(InputError, match="shrinkage"):
        actkit.erasure_probe(cube, by="gender", shrinkage="oas")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the cube lacks"):
        actkit.erasure_probe(cube, by="gender", layers=[9])
    with pytest.raises(InputError, match="cannot"):
        actkit.erasure_probe(cube.isel(sample=slice(0, 24)), by="gender", cluster="image_id")
    with pytest.raises(MissingError):
        actkit.erasure_probe(cube.drop_vars("pooled"), by="gender")
