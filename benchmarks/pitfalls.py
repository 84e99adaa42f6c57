"""What the estimates of hand-written scripts give where actkit's differ: the figures of docs/methods.

python -m benchmarks.pitfalls [--trials 200]

Each row simulates data of known truth, and gives the naive estimate beside that of actkit. All is seeded.
"""

import argparse

import numpy as np

from actkit.stats.kernels.auroc import column_aurocs
from actkit.stats.kernels.cka import align, minibatch_cka
from actkit.stats.kernels.contrasts import squared_smd
from actkit.stats.kernels.geometry import two_nn
from actkit.stats.kernels.norms import NORM_SUMMARIES, summarize_norms
from actkit.stats.kernels.probes import fit, grouped_folds, standardized
from actkit.stats.kernels.similarity import principal_components, procrustes_similarities, sample_orders
from actkit.stats.kernels.split_halves import Cells, cluster_halves, half_cosines

from .label_pitfalls import label_pitfalls
from .pitfall import Pitfall
from .timing import print_machine, print_table


def offset_in_float32() -> Pitfall:
    """CKA of vectors with a large common offset, whose products are summed in float32 before centring."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((2000, 8))
    x, y = (shared @ rng.standard_normal((8, 64)) + 4 * rng.standard_normal((2000, 64)) for _ in range(2))
    truth = align(np.stack([x, y])).cka[0, 1]
    a, b = (values.astype(np.float32) + np.float32(1e4) for values in (x, y))

    def hsic(first: np.ndarray, second: np.ndarray) -> float:
        n = np.float32(len(first))
        centring = [values.sum(axis=0)[:, None] / n for values in (first, second)]
        cross = first.T @ second - n * centring[0] @ centring[1].T
        return float((cross**2).sum())

    naive = hsic(a, b) / np.sqrt(hsic(a, a) * hsic(b, b))
    return Pitfall("CKA, offset of 1e4, products in float32", truth, naive, align(np.stack([a, b])).cka[0, 1])


def floor_of_cka() -> Pitfall:
    x = np.random.default_rng(0).standard_normal((2, 2000, 2560))
    result = align(x, jackknife=False)
    return Pitfall(
        "CKA of unrelated vectors, 2,000 samples × 2,560: biased, debiased",
        0,
        result.biased[0, 1],
        result.cka[0, 1],
    )


def twins_in_cka(trials: int) -> Pitfall:
    rng, clusters = np.random.default_rng(0), np.repeat(np.arange(30), 2)
    naive, ours = [], []
    for _ in range(trials):
        vectors = rng.standard_normal((2, 30, 40))[:, clusters] + 0.3 * rng.standard_normal((2, 60, 40))
        naive.append(align(vectors, jackknife=False).cka[0, 1])
        ours.append(align(vectors, clusters, jackknife=False).cka[0, 1])
    return Pitfall(
        "debiased CKA of unrelated vectors of 30 pairs of twins: without cluster, with it",
        0,
        float(np.mean(naive)),
        float(np.mean(ours)),
    )


def sorted_minibatches() -> Pitfall:
    rng, groups = np.random.default_rng(0), np.repeat(np.arange(8), 256)
    centres = 3 * rng.standard_normal((8, 32))[groups]
    vectors = centres + rng.standard_normal((2, 2048, 32))
    truth = align(vectors, jackknife=False).cka[0, 1]
    hsic = np.zeros(3)
    for start in range(0, 2048, 256):
        part = vectors[:, start : start + 256]
        kernels = [rows @ rows.T for rows in part - part.mean(axis=1, keepdims=True)]
        pairs = [(0, 1), (0, 0), (1, 1)]
        hsic += [_unbiased_hsic(kernels[i], kernels[j]) for i, j in pairs]
    shuffled = minibatch_cka(vectors, None, batch=256, seed=0)
    return Pitfall(
        "minibatch CKA, rows sorted by group: in that order, shuffled",
        truth,
        float(hsic[0] / np.sqrt(hsic[1] * hsic[2])),
        float(shuffled[0, 1]),
    )


def _unbiased_hsic(first: np.ndarray, second: np.ndarray) -> float:
    n = len(first)
    a, b = (matrix - np.diag(np.diag(matrix)) for matrix in (first, second))
    sums = a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 * (a.sum(axis=0) @ b.sum(axis=1)) / (n - 2)
    return float(((a * b).sum() + sums) / (n * (n - 3)))


def bootstrap_of_cka(trials: int) -> Pitfall:
    """Coverage of 95% intervals of CKA: of the percentile bootstrap, and of the jackknife."""
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((2, 4, 256))

    def draw(n: int) -> np.ndarray:
        shared = rng.standard_normal((n, 4))
        return np.stack([shared @ matrix + 4 * rng.standard_normal((n, 256)) for matrix in mixing])

    truth = align(draw(4000), jackknife=False).cka[0, 1]
    covered = np.zeros(2)
    for _ in range(trials):
        vectors = draw(100)
        result = align(vectors)
        resampled = [
            align(vectors[:, rng.integers(0, 100, 100)], jackknife=False).cka[0, 1] for _ in range(100)
        ]
        low, high = np.quantile(resampled, [0.025, 0.975])
        error = 1.96 * result.se[0, 1]
        covered += [low <= truth <= high, abs(result.cka[0, 1] - truth) <= error]
    naive, ours = covered / trials
    return Pitfall("coverage of 95% intervals of CKA: bootstrap, jackknife", 0.95, naive, ours)


def coverage_of_norms(trials: int) -> Pitfall:
    """Coverage of 95% intervals of a mean norm, 100 clusters of 4 samples correlated by 0.7."""
    rng, clusters = np.random.default_rng(0), np.repeat(np.arange(100), 4)
    between = rng.standard_normal((trials, 100))[:, clusters]
    norms = 20 + np.sqrt(0.7) * between + np.sqrt(0.3) * rng.standard_normal((trials, 400))
    mask = np.ones((400, 1), dtype=bool)
    coverages = []
    for members in (None, clusters):
        table = summarize_norms(norms[..., None], mask, clusters=members, resamples=1000, seed=0)
        low, high = (table[:, NORM_SUMMARIES.index(end)] for end in ("low", "high"))
        coverages.append(((low <= 20) & (high >= 20)).mean())
    return Pitfall(
        "coverage of 95% intervals of a mean norm, clusters of 4: over samples, over clusters",
        0.95,
        *coverages,
    )


def shared_noise_of_directions(trials: int) -> Pitfall:
    """Cosine between the directions of two languages of 60 translated pairs, where no group differs."""
    rng, clusters, labels = np.random.default_rng(0), np.repeat(np.arange(60), 2), np.tile([False, True], 60)
    cells = [Cells.of(np.arange(120) + start, labels, clusters, 60) for start in (0, 120)]
    naive, ours = [], []
    for _ in range(trials):
        meaning = rng.standard_normal((120, 32))
        languages = [meaning + 0.6 * rng.standard_normal((120, 32)) for _ in range(2)]
        first, second = (part[labels].mean(axis=0) - part[~labels].mean(axis=0) for part in languages)
        naive.append(first @ second / np.linalg.norm(first) / np.linalg.norm(second))
        halves = cluster_halves(cells, 10, seed=0)
        ours.append(half_cosines(np.concatenate(languages), cells, halves)[0][0, 0, 1])
    return Pitfall(
        "cosine of directions between languages, no difference: plain, cross-fitted",
        0,
        float(np.mean(naive)),
        float(np.mean(ours)),
    )


def twins_in_folds(trials: int) -> Pitfall:
    """AUROC of vectors that carry a scene and no label; each scene has one sample of each label."""
    rng, scenes, labels = np.random.default_rng(0), np.repeat(np.arange(60), 2), np.tile([False, True], 60)
    aurocs = np.zeros(2)
    for _ in range(trials):
        vectors = rng.standard_normal((60, 64))[scenes] + 0.2 * rng.standard_normal((120, 64))
        for at, groups in enumerate((np.arange(120), scenes)):
            values = []
            for train, test in grouped_folds(labels, groups, folds=5, seeds=1):
                x, tested = standardized(vectors[train], vectors[test])
                scores = tested @ fit(x, labels[None, train], "ridge").weights
                values.append(column_aurocs(scores, labels[test, None])[0])
            aurocs[at] += np.mean(values) / trials
    return Pitfall("AUROC without a signal: twins in other folds, in the same fold", 0.5, *aurocs.tolist())


def one_factor_for_both_classes(trials: int) -> Pitfall:
    """Squared SMD where groups do not differ; clusters of one label, 1 to 8 samples each."""
    rng = np.random.default_rng(0)
    sizes = np.concatenate([np.full(6, 8), np.full(30, 1)])
    clusters, labels = np.repeat(np.arange(36), sizes), np.repeat(np.arange(36) < 6, sizes)
    naive, ours = [], []
    for _ in range(trials):
        vectors = rng.standard_normal((36, 32))[clusters]
        sides = [vectors[labels == side] for side in (False, True)]
        residuals = [side - side.mean(axis=0) for side in sides]
        within = sum(np.square(side).sum() for side in residuals) / (len(vectors) - 2)
        weighted = [
            np.array([part[clusters[labels == side] == number].sum(axis=0) / len(part) for number in members])
            for side, part, members in zip((False, True), residuals, (range(6, 36), range(6)), strict=True)
        ]
        chance = 36 / 35 * sum(np.square(part).sum() for part in weighted)
        difference = sides[1].mean(axis=0) - sides[0].mean(axis=0)
        naive.append((difference @ difference - chance) / within)
        ours.append(squared_smd(vectors, labels, clusters))
    return Pitfall(
        "squared SMD without a difference: one G/(G-1), one for each class",
        0,
        float(np.mean(naive)),
        float(np.mean(ours)),
    )


def twins_in_dimension() -> Pitfall:
    rng = np.random.default_rng(0)
    sphere = rng.standard_normal((500, 3))
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    twins = np.concatenate([sphere, sphere + 1e-3 * rng.standard_normal((500, 3))])
    return Pitfall(
        "TwoNN dimension of a sphere of pairs of near copies: all, one of each",
        2,
        two_nn(twins).dimension,
        two_nn(sphere).dimension,
    )


def unrelated_procrustes(trials: int) -> Pitfall:
    rng = np.random.default_rng(0)
    naive, ours = [], []
    for seed in range(max(1, trials // 10)):
        a, b = (
            principal_components(rng.standard_normal((40, hidden)), n_components=40)[None]
            for hidden in (80, 5)
        )
        observed, *null = procrustes_similarities(a, b, sample_orders(40, 100, seed)).ravel().tolist()
        mean = np.mean(null)
        naive.append(observed)
        ours.append((observed - mean) / (1 - mean))
    return Pitfall(
        "Procrustes similarity of unrelated vectors, 40 samples × 80 and 5: raw, calibrated",
        0,
        float(np.mean(naive)),
        float(np.mean(ours)),
    )


def pitfalls(trials: int) -> list[Pitfall]:
    """Simulate all pitfalls; long simulations take a share of the trials."""
    return [
        offset_in_float32(),
        floor_of_cka(),
        twins_in_cka(trials),
        sorted_minibatches(),
        bootstrap_of_cka(trials),
        coverage_of_norms(10 * trials),
        shared_noise_of_directions(trials),
        twins_in_folds(max(1, trials // 10)),
        one_factor_for_both_classes(trials),
        twins_in_dimension(),
        unrelated_procrustes(trials),
        *label_pitfalls(trials),
    ]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--trials", type=int, default=200)
    trials = options.parse_args().trials
    print_machine()
    rows = [
        {
            "quantity": row.quantity,
            "truth": f"{row.truth:.2f}",
            "naive": f"{row.naive:.3f}",
            "actkit": f"{row.actkit:.3f}",
        }
        for row in pitfalls(trials)
    ]
    print_table(rows)


if __name__ == "__main__":
    main()
