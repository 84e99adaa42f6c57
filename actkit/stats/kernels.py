"""Formulas on plain arrays, without labels; float64 throughout."""

import numpy as np

QUANTILES = {"median": 0.5, "p5": 0.05, "p95": 0.95, "p99": 0.99, "max": 1.0}
NORM_SUMMARIES = ("mean", "sample_mean", *QUANTILES, "low", "high", "n_tokens")


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
        empty[:, -1] = 0
        return empty
    sums = np.where(mask, norms, 0).sum(axis=2, dtype=np.float64)[:, kept]
    counts = counts[kept]
    weights = np.random.default_rng(seed).multinomial(
        len(counts), np.full(len(counts), 1 / len(counts)), resamples
    )
    means = (sums @ weights.T) / (weights @ counts)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=1)
    return np.stack(
        [
            sums.sum(axis=1) / counts.sum(),
            (sums / counts).mean(axis=1),
            *np.quantile(tokens, list(QUANTILES.values()), axis=1),
            low,
            high,
            np.full(len(norms), counts.sum(), dtype=np.float64),
        ],
        axis=1,
    )
