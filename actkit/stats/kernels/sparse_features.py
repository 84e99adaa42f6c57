"""Values of sparse features by sample, from the indices and values of the active features of each token."""

from typing import Literal, get_args

import numpy as np
from scipy.sparse import coo_array, csr_array

Summary = Literal["mean", "any", "max"]
SUMMARIES: tuple[str, ...] = get_args(Summary)


def sample_features(
    index: np.ndarray, value: np.ndarray, mask: np.ndarray, n_features: int, summary: Summary
) -> csr_array:
    """Return one value per sample and feature.

    Parameters
    ----------
    index, value
        Active features of each token and their values, dims ``(sample, token, k)``; a value of 0 stands for
        no feature.
    mask
        Tokens included, dims ``(sample, token)``.
    n_features
        Number of features.
    summary
        ``mean`` over the tokens included, ``max`` of them, or ``any``: 1 if the feature is active at one of
        them.

    Returns
    -------
    scipy.sparse.csr_array
        Dims ``(sample, feature)``, float64.
    """
    sample, feature, active = _active(index, value, mask)
    shape = (len(index), n_features)
    if summary == "mean":
        active /= np.maximum(mask.sum(axis=1), 1)[sample]
        return coo_array((active, (sample, feature)), shape).tocsr()
    cells, first = np.unique(sample * n_features + feature, return_inverse=True)
    largest = np.full(len(cells), -np.inf)
    np.maximum.at(largest, first, active)
    if summary == "any":
        largest[:] = 1
    return coo_array((largest, np.divmod(cells, n_features)), shape).tocsr()


def active_tokens(index: np.ndarray, value: np.ndarray, mask: np.ndarray, n_features: int) -> csr_array:
    """Return the number of tokens at which a feature is active, by sample; arguments as above.

    Returns
    -------
    scipy.sparse.csr_array
        Dims ``(sample, feature)``, float64.
    """
    sample, feature, _ = _active(index, value, mask)
    ones = np.ones(len(sample))
    return coo_array((ones, (sample, feature)), (len(index), n_features)).tocsr()


def averages(groups: np.ndarray, kept: np.ndarray, n_groups: int) -> csr_array:
    """Return the matrix that averages some samples by group.

    Parameters
    ----------
    groups
        Group of each sample: integers from 0, dims ``(sample,)``.
    kept
        Which samples are averaged, dims ``(sample,)``.
    n_groups
        Number of groups.

    Returns
    -------
    scipy.sparse.csr_array
        Dims ``(group, sample)``; rows sum to 1, or to 0 for groups without a sample.
    """
    samples = np.flatnonzero(kept)
    members = groups[samples]
    weights = 1 / np.bincount(members, minlength=n_groups)[members] if len(members) else np.zeros(0)
    return coo_array((weights, (members, samples)), (n_groups, len(groups))).tocsr()


def _active(
    index: np.ndarray, value: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the sample, feature and value of all that is active at the tokens included."""
    sample, token, place = np.nonzero((value != 0) & mask[..., None])
    feature = index[sample, token, place].astype(np.int64)
    return sample, feature, value[sample, token, place].astype(np.float64)
