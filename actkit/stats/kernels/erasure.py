"""Least-squares concept erasure (LEACE), in low-rank form."""

from dataclasses import dataclass

import numpy as np

from .magnitude import unit_scale


@dataclass(frozen=True)
class Erasure:
    """An affine map x - left @ right.T @ (x - mean), after which no linear probe beats chance.

    Parameters
    ----------
    mean
        Mean of the vectors, dims ``(hidden,)``.
    left, right
        Factors of the oblique projection that is subtracted, dims ``(hidden, direction)``.
    rank
        Rank of the vectors about their mean.
    shrunk
        Shrinkage intensity of the covariance, between 0 and 1.
    """

    mean: np.ndarray
    left: np.ndarray
    right: np.ndarray
    rank: int
    shrunk: float


def erasure(
    vectors: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None, *, shrink: bool = False
) -> Erasure:
    """Fit the map that removes labels from vectors and changes the vectors as little as possible.

    Parameters
    ----------
    vectors
        Dims ``(sample, hidden)``, with fewer or more samples than dimensions.
    labels
        Label of each sample as an integer, dims ``(sample,)``.
    groups
        Cluster of each sample, dims ``(sample,)``; by default, samples are independent. Only the intensity of
        the shrinkage depends on it.
    shrink
        Whether to shrink the covariance towards a multiple of the identity.

    Notes
    -----
    LEACE [1]_ subtracts the projection W⁺ P W, where W is the inverse root of the covariance Σ and P projects
    onto the columns of W Σ_xz. With the singular value decomposition X = U S Vᵀ of the centred vectors, this
    is V R Q Qᵀ R⁻¹ Vᵀ, where R is the root of the (shrunk) eigenvalues and Q is an orthonormal basis of the
    columns of R⁻¹ S Uᵀ Z. The covariance itself is never formed.

    References
    ----------
    .. [1] Belrose, Schneider-Joseph, Ravfogel, Cotterell, Raff, Biderman, LEACE: perfect linear concept
       erasure in closed form, NeurIPS 2023, arXiv:2306.03819.
    """
    exact = vectors.astype(np.float64)
    mean = exact.mean(axis=0)
    scale = unit_scale(exact)
    centred = exact * scale - mean * scale
    left_vectors, values, axes = np.linalg.svd(centred, full_matrices=False)
    # the largest magnitude before centring was 1, so this also covers the rounding of equal vectors
    tolerance = max(values[0], 1.0) * max(centred.shape) * np.finfo(np.float64).eps
    kept = values > tolerance
    if not kept.any():  # all vectors are equal, so there is nothing to erase
        nothing = np.zeros((len(mean), 0))
        return Erasure(mean, nothing, nothing, 0, 0.0)
    left_vectors, values, axes = left_vectors[:, kept], values[kept], axes[kept]
    eigenvalues = np.square(values) / len(exact)
    shrunk = 0.0
    if shrink:
        scores = left_vectors * values
        shrunk = shrinkage(scores, exact.shape[1], groups)
        eigenvalues = (1 - shrunk) * eigenvalues + shrunk * eigenvalues.sum() / exact.shape[1]
    roots = np.sqrt(eigenvalues)
    indicators = (labels[:, None] == np.unique(labels)).astype(np.float64)
    indicators -= indicators.mean(axis=0)
    crossed = (values / roots)[:, None] * (left_vectors.T @ indicators)
    basis, sizes, combinations = np.linalg.svd(crossed, full_matrices=False)
    n_directions = min(indicators.shape[1] - 1, len(sizes))
    n_directions = int(
        (sizes[:n_directions] > sizes[0] * max(crossed.shape) * np.finfo(np.float64).eps).sum()
    )
    basis, combinations = basis[:, :n_directions], combinations[:n_directions].T / sizes[:n_directions]
    # V R Q, from the means of the classes: rounding errors of V would copy the label to dimensions whose
    # variance is tiny, where a probe that standardises them would read it
    left = centred.T @ (indicators @ combinations)
    return Erasure(mean, left, axes.T @ (basis / roots[:, None]), int(kept.sum()), shrunk)


def shrinkage(scores: np.ndarray, hidden: int, groups: np.ndarray | None = None) -> float:
    """Return the optimal shrinkage of a covariance towards a multiple of the identity, between 0 and 1.

    Parameters
    ----------
    scores
        Centred vectors in the basis of their principal axes, dims ``(sample, axis)``.
    hidden
        Number of dimensions of the vectors.
    groups
        Cluster of each sample, dims ``(sample,)``. The sampling error of the covariance is that of a sum over
        independent clusters, which exceeds that of as many independent samples.

    Notes
    -----
    Ledoit, Wolf, A well-conditioned estimator for large-dimensional covariance matrices, Journal of
    Multivariate Analysis 2004; its sum over samples of the squared deviations of x xᵀ from the covariance is
    here a sum over clusters.
    """
    n = len(scores)
    variances = np.square(scores).mean(axis=0)
    size = float(variances @ variances)
    members = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    counts = np.bincount(members)
    inner = np.bincount(members, np.square(scores) @ variances)
    if len(counts) == n:
        squares = float(np.square(np.square(scores).sum(axis=1)).sum())
    else:
        parts = np.split(scores[np.argsort(members, kind="stable")], np.cumsum(counts)[:-1])
        squares = float(sum(np.square(part @ part.T).sum() for part in parts))
    spread = (squares - 2 * float(counts @ inner) + float(counts @ counts) * size) / n**2
    distance = size - float(variances.sum()) ** 2 / hidden
    return min(max(spread / distance, 0.0), 1.0) if distance > 0 else 1.0
