"""Distribution of labels given covariates, in the natural parameters of an exponential family."""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from .covariates import Covariates
from .label_permutations import Exchanges, conditional_sources, permuted_sources


def null_sources(
    values: np.ndarray,
    groups: np.ndarray,
    count: int,
    *,
    seed: int,
    covariates: Covariates | None,
    is_numeric: bool,
) -> np.ndarray:
    """Draw permutations of labels under the null hypothesis that vectors tell nothing beyond the covariates.

    Parameters
    ----------
    values
        Labels, numbers or integers from 0 that are classes, dims ``(sample,)``.
    groups, count, seed
        As for :func:`~actkit.stats.kernels.label_permutations.permuted_sources`.
    covariates
        What the labels depend on under the null hypothesis; None for nothing.
    is_numeric
        Whether the labels are numbers.

    Returns
    -------
    numpy.ndarray
        The sample from which each sample takes its label, dims ``(permutation, sample)``.
    """
    everything = np.arange(len(values))
    design = np.empty((len(values), 0))
    if covariates is not None:
        design = covariates.basis(everything, everything).train[:, 1:]
    if not design.shape[1]:  # covariates that are equal for all samples predict nothing
        return permuted_sources(values, groups, count, seed=seed)
    design = (design - design.mean(axis=0)) / np.where(np.ptp(design, axis=0) > 0, design.std(axis=0), 1)
    parameters = _normal if is_numeric else _multinomial
    statistics = values[:, None] if is_numeric else values[:, None] == np.arange(values.max() + 1)
    units = Exchanges.of(values, groups)
    rows = np.unique(units.representatives)
    ordered = units.averaged(design[units.order])  # a cluster with one label is one observation
    natural = np.empty((len(values), statistics.shape[1]))
    natural[units.order] = parameters(ordered[rows], values[units.order[rows]], ordered)
    return conditional_sources(values, statistics.astype(float), natural, groups, count, seed=seed)


def _multinomial(design: np.ndarray, codes: np.ndarray, everything: np.ndarray) -> np.ndarray:
    """Return the log-odds of each class, from a logistic regression with an L2 penalty of 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        scores = LogisticRegression(max_iter=1000).fit(design, codes).decision_function(everything)
    return np.asarray(scores if scores.ndim == 2 else np.column_stack([np.zeros(len(scores)), scores]))


def _normal(design: np.ndarray, numbers: np.ndarray, everything: np.ndarray) -> np.ndarray:
    """Return the mean of a normal distribution over its variance, from a least-squares regression."""
    columns = [np.column_stack([np.ones(len(part)), part]) for part in (design, everything)]
    coefficients = np.linalg.lstsq(columns[0], numbers)[0]
    residual = numbers - columns[0] @ coefficients
    freedom = max(len(numbers) - columns[0].shape[1], 1)
    variance = max(float(residual @ residual) / freedom, 1e-12 * float(np.var(numbers)))
    return np.asarray(columns[1] @ coefficients / variance)[:, None]
