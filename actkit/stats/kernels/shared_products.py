"""Products of samples that the training parts of all folds share."""

from dataclasses import dataclass

import numpy as np

_LEAST = 1e-3  # share of the variance in training below which a difference of sums would lack digits


@dataclass(frozen=True)
class Scaling:
    """The mean and the standard deviation of training samples.

    Parameters
    ----------
    mean
        Dims ``(hidden,)``.
    factor
        1 / standard deviation, 0 for dimensions that are constant in training, dims ``(hidden,)``.
    """

    mean: np.ndarray
    factor: np.ndarray

    @classmethod
    def of(cls, train: np.ndarray) -> "Scaling":
        """Return the scaling of training samples, dims ``(sample, hidden)``, float64."""
        mean = train.mean(axis=0)
        centred = train - mean
        scale = np.sqrt(np.einsum("sh,sh->h", centred, centred) / len(train))
        constant = scale <= len(train) * np.finfo(np.float64).eps * np.abs(mean)
        return cls(mean, np.where(constant, 0.0, 1 / np.where(constant, 1.0, scale)))

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Return samples with mean 0 and standard deviation 1 in training, dims ``(sample, hidden)``."""
        scaled: np.ndarray = x - self.mean
        scaled *= self.factor
        return scaled


@dataclass(frozen=True)
class SharedProducts:
    """Sums over all samples of products of dimensions, and of dimensions and targets.

    Parameters
    ----------
    x
        Samples, dims ``(sample, hidden)``, float64.
    targets
        Dims ``(sample, target)``, float64.
    gram
        Products of dimensions, dims ``(hidden, hidden)``.
    cross
        Products of dimensions and targets, dims ``(hidden, target)``.
    """

    x: np.ndarray
    targets: np.ndarray
    gram: np.ndarray
    cross: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray, targets: np.ndarray) -> "SharedProducts":
        """Return the sums; `x` has dims ``(sample, hidden)``, `targets` ``(sample, target)``."""
        return cls(x, targets, x.T @ x, x.T @ targets)

    def of_training(self, train: np.ndarray, scaling: Scaling) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the products of standardised training samples, and with centred targets.

        Products of the samples that are left out are subtracted, because they are fewer.

        Parameters
        ----------
        train
            Indices of the training samples.
        scaling
            Their scaling.

        Returns
        -------
        tuple or None
            Dims ``(hidden, hidden)`` and ``(hidden, target)``; None if most of the variance of a dimension
            is that of samples that are left out, so that the difference of the sums would lack digits.
        """
        mean, factor = scaling.mean, scaling.factor
        if (np.square(factor) * np.diag(self.gram)).max() * _LEAST > len(train):
            return None
        is_left_out = np.ones(len(self.x), dtype=bool)
        is_left_out[train] = False
        others, targets = self.x[is_left_out], self.targets[is_left_out]
        gram = self.gram - others.T @ others - np.outer(len(train) * mean, mean)
        sums = self.targets.sum(axis=0) - targets.sum(axis=0)
        cross = self.cross - others.T @ targets - np.outer(mean, sums)
        return gram * factor[:, None] * factor, cross * factor[:, None]
