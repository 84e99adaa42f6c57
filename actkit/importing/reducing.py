"""What becomes of tokens that lie one after the other, in NumPy; sums are made in float64."""

import numpy as np

from ..stats.kernels.norms import lengths as norms_of


def reduce(values: np.ndarray, lengths: np.ndarray, *, first_is_content: bool) -> dict[str, np.ndarray]:
    """Compute what an extraction computes of the tokens of samples.

    Parameters
    ----------
    values
        Float32, dims ``(layer, position, hidden)``.
    lengths
        Number of tokens of each sample, dims ``(sample,)``.
    first_is_content
        Whether the first token of a sample counts in ``pooled`` and ``last``.

    Returns
    -------
    dict
        ``norm``, dims ``(layer, position)``; ``pooled`` and ``last``, dims ``(layer, sample, hidden)``, NaN
        where a sample has no content; ``nonfinite``, dims ``(layer, sample)``.

    Examples
    --------
    >>> found = reduce(np.ones((1, 3, 4), dtype="float32"), np.array([1, 2]), first_is_content=True)
    >>> found["norm"].tolist(), found["pooled"][0, 1].tolist()
    ([[2.0, 2.0, 2.0]], [1.0, 1.0, 1.0, 1.0])
    """
    n_layers, n_positions, hidden = values.shape
    stops = np.cumsum(lengths)
    starts = stops - lengths + (not first_is_content)
    owners = np.repeat(np.arange(len(lengths)), lengths)
    norm = np.empty((n_layers, n_positions), dtype=np.float32)
    pooled, last = np.full((2, n_layers, len(lengths), hidden), np.nan, dtype=np.float32)
    nonfinite = np.zeros((n_layers, len(lengths)), dtype=np.int32)
    for layer, rows in enumerate(values):
        (wide,) = norms_of(rows)
        norm[layer] = wide
        # no float32 is so large that its square is not finite in float64
        for position in np.flatnonzero(~np.isfinite(wide)):
            nonfinite[layer, owners[position]] += np.count_nonzero(~np.isfinite(rows[position]))
        for sample, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
            if start < stop:
                with np.errstate(invalid="ignore"):  # Inf and -Inf
                    summed = np.add.reduce(rows[start:stop], axis=0, dtype=np.float64)
                pooled[layer, sample] = summed / (stop - start)
                last[layer, sample] = rows[stop - 1]
    return {"norm": norm, "pooled": pooled, "last": last, "nonfinite": nonfinite}
