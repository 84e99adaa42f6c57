"""How large token vectors are, layer by layer."""

import numpy as np

QUANTILES = {"median": 0.5, "p5": 0.05, "p95": 0.95, "p99": 0.99, "max": 1.0}
NORM_SUMMARIES = ("mean", "sample_mean", *QUANTILES, "low", "high", "n_tokens", "n_outliers")
OUTLIER = 10  # times the median
_ROWS = 4096  # that are held in float64 at once


def summarize_norms(
    norms: np.ndarray, mask: np.ndarray, *, resamples: int, seed: int, level: float = 0.95
) -> np.ndarray:
    """Summarise token norms, layer by layer.

    Parameters
    ----------
    norms
        Dims ``(layer, sample, token)``.
    mask
        Boolean, dims ``(sample, token)``: the tokens that count.
    resamples
        Bootstrap resamples, of samples and not of tokens: tokens of one text are not independent.
    seed
        Of the resampling.
    level
        Coverage of the interval from ``low`` to ``high``, around ``mean``.

    Returns
    -------
    numpy.ndarray
        Dims ``(layer, summary)``, in the order of ``NORM_SUMMARIES``. ``mean`` weighs every token
        alike, ``sample_mean`` every sample. NaN where no token counts; a non-finite norm spreads.
    """
    tokens = norms[:, mask].astype(np.float64)
    counts = mask.sum(axis=1)
    kept = counts > 0
    if not kept.any():
        empty = np.full((norms.shape[0], len(NORM_SUMMARIES)), np.nan)
        empty[:, -2:] = 0
        return empty
    sums = np.where(mask, norms, 0).sum(axis=2, dtype=np.float64)[:, kept]
    counts = counts[kept]
    weights = np.random.default_rng(seed).multinomial(
        len(counts), np.full(len(counts), 1 / len(counts)), resamples
    )
    means = (sums @ weights.T) / (weights @ counts)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=1)
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


def lengths(vectors: np.ndarray) -> tuple[np.ndarray]:
    """Return the L2 norms of vectors, dims ``(..., hidden)``."""
    return (np.sqrt(np.einsum("...h,...h->...", vectors, vectors, dtype=np.float64)),)


def updates(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the norm of the difference of vectors, the same over the norm before, and their cosine.

    Parameters
    ----------
    before, after
        Dims ``(..., hidden)``. Where a vector is 0, what is divided by its length is NaN.
    """
    found = np.empty((3, *before.shape[:-1]))
    flat = found.reshape(3, -1)
    rows = [array.reshape(-1, array.shape[-1]) for array in (before, after)]
    for start in range(0, flat.shape[1], _ROWS):
        part = slice(start, start + _ROWS)
        one, two = (array[part].astype(np.float64) for array in rows)
        (update,), (size,), (length,) = lengths(two - one), lengths(one), lengths(two)
        with np.errstate(invalid="ignore", divide="ignore"):
            product = np.einsum("rh,rh->r", one, two)
            relative = np.where(size > 0, update / size, np.nan)
            cosine = np.where(size * length > 0, product / (size * length), np.nan)
        flat[:, part] = update, relative, cosine
    return found[0], found[1], found[2]


def largest(vectors: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, ...]:
    """Find the largest absolute value of each sample.

    Parameters
    ----------
    vectors
        Dims ``(layer, sample, token, hidden)``.
    mask
        Boolean, dims ``(sample, token)``: the tokens that count.

    Returns
    -------
    tuple of numpy.ndarray
        It, the median of all, and the largest one's token and hidden, each with dims ``(layer, sample)``; NaN
        where no token counts.
    """
    found = np.full((4, *vectors.shape[:2]), np.nan)
    for sample, counts in enumerate(mask):
        tokens = np.flatnonzero(counts)
        if not len(tokens):
            continue
        values = np.abs(vectors[:, sample, tokens]).reshape(len(vectors), -1)
        places = values.argmax(axis=1)
        found[0, :, sample] = values[np.arange(len(values)), places]
        found[1, :, sample] = np.median(values, axis=1)
        found[2, :, sample] = tokens[places // vectors.shape[-1]]
        found[3, :, sample] = places % vectors.shape[-1]
    return tuple(found)
