"""Benchmark of probes: against one Gram matrix and one eigendecomposition per layer, and estimators compared.

python -m benchmarks.probes [--limit 2000] [--hidden 576] [--layers 8] [--rounds 3]
python -m benchmarks.probes --estimators RUN --by gender --cluster pair_group

The first prints CPU seconds on one thread: 5 folds, 3 seeds, 200 permutations. "0.2.0" fits scikit-learn's
logistic regression in 15 folds for the curve, and a ridge regression in 5 folds for the band. The second
prints the AUROC of ridge and logistic regression in the same folds of a cube.
"""

import gc
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import actkit
from actkit.stats.kernels.auroc import column_aurocs, fold_aurocs
from actkit.stats.kernels.blas_threads import one_thread
from actkit.stats.kernels.contrasts import permuted
from actkit.stats.kernels.probes import Fold, grouped_folds, probe

from .timing import parser, print_machine, print_table, spread

FOLDS, SEEDS, PERMUTATIONS = 5, 3, 200


@one_thread()
def limit(vectors: np.ndarray, *, of_samples: bool) -> None:
    for layer in vectors:
        exact = layer - layer.mean(axis=0, dtype=np.float64)
        np.linalg.eigh(exact @ exact.T if of_samples else exact.T @ exact)


def after(vectors: np.ndarray, labels: np.ndarray, folds: list[Fold], shuffled: np.ndarray) -> None:
    for layer in vectors:
        probe(layer, labels, folds, permuted=shuffled)


@one_thread()
def before(vectors: np.ndarray, labels: np.ndarray, folds: list[Fold], shuffled: np.ndarray) -> None:
    targets = np.where(np.vstack([labels, shuffled]), 1.0, -1.0).T
    for layer in vectors:
        exact = layer.astype(np.float64)
        for train, test in folds:
            pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
            pipeline.fit(exact[train], labels[train]).decision_function(exact[test])
        scaled = StandardScaler().fit_transform(exact)
        for train, test in folds[:FOLDS]:
            x = scaled[train]
            is_wide = x.shape[1] > len(x)
            gram = x @ x.T if is_wide else x.T @ x
            gram[np.diag_indices_from(gram)] += np.square(x).sum() / len(x)
            solved = cho_solve(cho_factor(gram), targets[train] if is_wide else x.T @ targets[train])
            column_aurocs(scaled[test] @ (x.T @ solved if is_wide else solved), targets[test] > 0)


def cpu_seconds(actions: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the CPU time of each action in each round, one action after the other."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            gc.collect()
            started = time.process_time()
            action()
            times[name].append(time.process_time() - started)
    return times


def print_probes(samples: int, hidden: int, layers: int, rounds: int) -> None:
    rng = np.random.default_rng(0)
    groups = np.arange(samples) // 2
    labels = np.arange(samples) % 2 == 0
    vectors = rng.standard_normal((layers, samples, hidden), dtype=np.float32)
    vectors[..., 0] += labels
    options = (labels, grouped_folds(labels, groups, folds=FOLDS, seeds=SEEDS))
    options += (permuted(labels, groups, PERMUTATIONS, seed=0),)
    times = cpu_seconds(
        {
            "Gram matrix of samples and eigendecomposition": partial(limit, vectors, of_samples=True),
            "Gram matrix of dimensions and eigendecomposition": partial(limit, vectors, of_samples=False),
            "probes of 0.2.0": partial(before, vectors, *options),
            "probes": partial(after, vectors, *options),
        },
        rounds,
    )
    first, second, *_ = (statistics.median(own) for own in times.values())
    print(f"\n### Probes of {layers} layers × {samples:,} samples × {hidden}")
    print_table(
        [
            {
                "": name,
                "CPU seconds: median (least to most)": spread(own),
                "to the samples' limit": f"{statistics.median(own) / first:.2f}",
                "to the dimensions' limit": f"{statistics.median(own) / second:.2f}",
            }
            for name, own in times.items()
        ]
    )


def print_estimators(run: str, by: str, cluster: str) -> None:
    cube = actkit.open_cube(run)
    rows = []
    for language in dict.fromkeys(cube.language.values.tolist()):
        part = cube.isel(sample=np.flatnonzero(cube.language.values == language))
        labels = part[by].values == np.unique(part[by].values)[-1]
        groups = np.unique(part[cluster].values, return_inverse=True)[1]
        chosen = np.random.default_rng(0).permutation(groups.max() + 1)
        for share in (1, 5):
            kept = np.isin(groups, chosen[: len(chosen) // share])
            folds = grouped_folds(labels[kept], groups[kept], folds=FOLDS, seeds=1)
            for layer in part.layer.values.tolist():
                vectors = part.pooled.sel(layer=layer).values[kept]
                ridge, logistic = (
                    fold_aurocs(
                        probe(vectors, labels[kept], folds, estimator=estimator)[0].scores, labels[kept]
                    ).mean()
                    for estimator in ("ridge", "logistic")
                )
                rows.append(
                    {
                        "language": language,
                        "samples": f"{kept.sum():,}",
                        "layer": layer,
                        "ridge": f"{ridge:.4f}",
                        "logistic": f"{logistic:.4f}",
                        "difference": f"{ridge - logistic:+.4f}",
                    }
                )
    print_table(rows)


def main() -> None:
    made = parser(__doc__, limit=2000, rounds=3)
    made.add_argument("--hidden", type=int, default=576, help="dimensions (default: 576)")
    made.add_argument("--layers", type=int, default=8, help="layers (default: 8)")
    made.add_argument("--estimators", metavar="RUN", help="compare ridge and logistic regression on a run")
    made.add_argument("--by", default="gender", help="label with two values (default: gender)")
    made.add_argument("--cluster", default="pair_group", help="label of clusters (default: pair_group)")
    chosen = made.parse_args()
    print_machine()
    if chosen.estimators:
        print_estimators(chosen.estimators, chosen.by, chosen.cluster)
    else:
        print_probes(chosen.limit, chosen.hidden, chosen.layers, chosen.rounds)


if __name__ == "__main__":
    main()
