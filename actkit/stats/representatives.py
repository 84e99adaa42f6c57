"""One representative of each cluster, so that the samples of a statistic are independent."""

import numpy as np


def representatives(groups: np.ndarray, seed: int) -> np.ndarray:
    """Draw one sample of each cluster, and return their positions in ascending order.

    Parameters
    ----------
    groups
        Cluster of each sample as an integer, dims ``(sample,)``.
    seed
        Random seed.

    Examples
    --------
    >>> representatives(np.array([0, 1, 1, 2, 0]), seed=0).tolist()
    [2, 3, 4]
    """
    order = np.random.default_rng(seed).permutation(len(groups))
    _, first = np.unique(groups[order], return_index=True)
    return np.sort(order[first])


def independence(cluster: str | None, seed: int) -> str:
    """Return a description of the samples that enter a statistic, for its attributes."""
    if cluster is None:
        return "samples are taken to be independent"
    return f"one sample of each {cluster}, drawn with seed {seed}"
