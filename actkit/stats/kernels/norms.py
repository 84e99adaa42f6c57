"""Norms of token vectors by layer, and their summaries."""

import numpy as np
from scipy import stats

QUANTILES = {"median": 0.5, "p5": 0.05, "p95": 0.95, "p99": 0.99, "max": 1.0}
NORM_SUMMARIES = ("mean", "sample_mean", *QUANTILES, "low", "high", "n_tokens", "n_outliers")
OUTLIER = 10  # multiple of the median
MASSIVE, MASSIVE_RATIO = 100.0, 1000.0  # thresholds of Sun et al.: absolute, and multiple of the median
_SAMPLED = 1024  # numbers that tell where the median is
_BLOCK = 2**16  # numbers held in float64 at once, which fit in the cache of a core


def summarize_norms(
    norms: np.ndarray,
    mask: np.ndarray,
    clusters: np.ndarray | None = None,
    *,
    resamples: int,
    seed: int,
    level: float = 0.95,
) -> np.ndarray:
    """Summarise token norms by layer.

    Parameters
    ----------
    norms
        Dims ``(layer, sample, token)``.
    mask
        Boolean, dims ``(sample, token)``: the tokens included.
    clusters
        Cluster of each sample, integers, dims ``(sample,)``; by default, samples are independent.
    resamples
        Number of bootstrap resamples. Clusters are resampled, with all of their samples and tokens.
    seed
        Random seed of the bootstrap.
    level
        Nominal coverage of the interval of ``mean``, from ``low`` to ``high``.

    Returns
    -------
    numpy.ndarray
        Dims ``(layer, summary)``, in the order of ``NORM_SUMMARIES``. ``mean`` weights tokens
        equally, ``sample_mean`` weights samples equally. NaN if no token is included; the interval is NaN if
        all tokens belong to one cluster.
    """
    tokens = norms[:, mask].astype(np.float64)
    counts = mask.sum(axis=1)
    kept = counts > 0
    if not kept.any():
        return empty_summary(len(norms))
    sums = np.where(mask, norms, 0).sum(axis=2, dtype=np.float64)[:, kept]
    counts = counts[kept]
    members = np.arange(len(counts)) if clusters is None else clusters[kept]
    low, high = _cluster_bootstrap(sums, counts, members, resamples=resamples, seed=seed, level=level)
    quantiles = np.quantile(tokens, list(QUANTILES.values()), axis=1)
    medians = quantiles[list(QUANTILES).index("median"), :, None]
    return np.stack(
        [
            sums.sum(axis=1) / counts.sum(),
            (sums / counts).mean(axis=1),
            *quantiles,
            low,
            high,
            np.full(len(norms), counts.sum(), dtype=np.float64),
            (tokens > OUTLIER * medians).sum(axis=1),
        ],
        axis=1,
    )


def _cluster_bootstrap(
    sums: np.ndarray, counts: np.ndarray, clusters: np.ndarray, *, resamples: int, seed: int, level: float
) -> np.ndarray:
    """Return the interval of a mean over tokens, dims ``(2, layer)``.

    The percentiles are those of Hesterberg's expanded percentile interval (What teachers should know about
    the bootstrap, The American Statistician 2015), which makes up for few clusters.

    Parameters
    ----------
    sums
        Sums over the tokens of each sample, dims ``(layer, sample)``.
    counts
        Number of tokens of each sample, dims ``(sample,)``.
    clusters
        Cluster of each sample, dims ``(sample,)``.
    resamples, seed, level
        As for :func:`summarize_norms`.
    """
    codes = np.unique(clusters, return_inverse=True)[1]
    n_clusters = int(codes.max()) + 1
    if n_clusters < 2:
        return np.full((2, len(sums)), np.nan)
    if n_clusters < len(codes):
        order = np.argsort(codes, kind="stable")
        starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
        sums, counts = np.add.reduceat(sums[:, order], starts, axis=1), np.bincount(codes, weights=counts)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), resamples)
    means = (sums @ weights.T) / (weights @ counts)
    t = stats.t.ppf((1 + level) / 2, n_clusters - 1)
    tail = stats.norm.cdf(-np.sqrt(n_clusters / (n_clusters - 1)) * t)
    return np.asarray(np.quantile(means, [tail, 1 - tail], axis=1))


def empty_summary(n_layers: int) -> np.ndarray:
    """Return the summary of zero tokens, dims ``(layer, summary)``: NaN, with counts of 0."""
    empty = np.full((n_layers, len(NORM_SUMMARIES)), np.nan)
    empty[:, -2:] = 0
    return empty


def lengths(vectors: np.ndarray) -> tuple[np.ndarray]:
    """Return the L2 norms of vectors, dims ``(..., hidden)``."""
    return (np.sqrt(np.einsum("...h,...h->...", vectors, vectors, dtype=np.float64)),)


def updates(
    before: np.ndarray, after: np.ndarray, mask: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the norm of the update, the relative update and the cosine similarity of two sets of vectors.

    Parameters
    ----------
    before, after
        Dims ``(..., hidden)``. A ratio whose denominator is 0 is NaN.
    mask
        Boolean: the vectors included, with the last of the other dims; all by default. The results of others
        are NaN.
    """
    shape, hidden = before.shape[:-1], before.shape[-1]
    included = np.flatnonzero(np.broadcast_to(True if mask is None else mask, shape))
    flat = np.full((3, int(np.prod(shape))), np.nan)
    rows = [array.reshape(-1, hidden) for array in (before, after)]
    n_rows = max(_BLOCK // max(hidden, 1), 1)
    for start in range(0, len(included), n_rows):
        block = included[start : start + n_rows]
        x, y = (array[block].astype(np.float64) for array in rows)
        with np.errstate(invalid="ignore", divide="ignore"):
            (update,), (size,), (length,) = lengths(y - x), lengths(x), lengths(y)
            product = np.einsum("rh,rh->r", x, y)
            relative = np.where(size > 0, update / size, np.nan)
            cosine = np.where(size * length > 0, product / (size * length), np.nan)
        flat[:, block] = update, relative, cosine
    first, second, third = flat.reshape(3, *shape)
    return first, second, third


def largest(vectors: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, ...]:
    """Find the largest absolute activation of each sample, and count the massive ones.

    Parameters
    ----------
    vectors
        Dims ``(layer, sample, token, hidden)``.
    mask
        Boolean, dims ``(sample, token)``: the tokens included.

    Returns
    -------
    tuple of numpy.ndarray
        The largest absolute value, the median absolute value, the token and hidden index of the largest, and
        the number of massive activations, each with dims ``(layer, sample)``; NaN if no token is included.

    Notes
    -----
    Sun, Chen, Kolter, Liu, Massive activations in large language models, 2024, arXiv:2402.17762.
    """
    summary = np.full((5, *vectors.shape[:2]), np.nan)
    for sample, included in enumerate(mask):
        tokens = np.flatnonzero(included)
        if not len(tokens):
            continue
        values = vectors[:, sample, tokens].reshape(len(vectors), -1)
        np.abs(values, out=values)
        positions = values.argmax(axis=1)
        maxima = values[np.arange(len(values)), positions]
        medians = _medians(values)
        thresholds = np.maximum(MASSIVE, MASSIVE_RATIO * medians)
        summary[0, :, sample] = maxima
        summary[1, :, sample] = medians
        summary[2, :, sample] = tokens[positions // vectors.shape[-1]]
        summary[3, :, sample] = positions % vectors.shape[-1]
        summary[4, :, sample] = 0
        exceeding = maxima > thresholds  # seldom any, and counting reads all values
        summary[4, exceeding, sample] = (values[exceeding] > thresholds[exceeding, None]).sum(axis=1)
    return tuple(summary)


def _medians(values: np.ndarray) -> np.ndarray:
    """Return the median of each row, finite, as float64."""
    return np.array([_median(row) for row in values])


def _median(values: np.ndarray) -> float:
    """Return the exact median of finite numbers; only those near the median of a sample are ordered."""
    n = len(values)
    lower, upper = (n - 1) // 2, n // 2
    some = np.sort(values[:: max(n // _SAMPLED, 1)])
    low, high = some[int(0.45 * len(some))], some[int(0.55 * len(some))]
    is_near = values >= low
    n_below = n - int(np.count_nonzero(is_near))
    is_near &= values <= high
    near = values[np.flatnonzero(is_near)]
    if not n_below <= lower <= upper < n_below + len(near):  # the sample was not typical
        near, n_below = values.copy(), 0
    near.partition(upper - n_below)
    last = float(near[upper - n_below])  # the sum of two values may overflow float32
    return (float(near[: upper - n_below].max()) + last) / 2 if lower < upper else last
