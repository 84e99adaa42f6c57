"""How the samples of two labels are compared: in pairs, or as independent units."""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array, vstack

from ..errors import Fault, InputError
from .group_comparison import Contrast
from .kernels.feature_tests import LIVE
from .kernels.sparse_features import averages


@dataclass(frozen=True)
class FeatureContrast:
    """The samples of two labels that are compared in one language.

    Parameters
    ----------
    places
        Indices of the samples, dims ``(sample,)``.
    labels
        Whether each sample has the second label, dims ``(sample,)``.
    groups
        Cluster of each sample: integers from 0, dims ``(sample,)``.
    is_paired
        Whether each cluster has both labels, so that it gives one difference; otherwise each has one label
        and gives one value.
    n_left_out
        Number of labelled samples of clusters that fit the other design.
    """

    places: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    is_paired: bool
    n_left_out: int

    @property
    def n_units(self) -> int:
        """Number of clusters."""
        return int(self.groups.max()) + 1

    @property
    def unit_labels(self) -> np.ndarray:
        """Whether each cluster has the second label, if it has only one; dims ``(unit,)``."""
        labels = np.zeros(self.n_units, dtype=bool)
        labels[self.groups] = self.labels
        return labels

    def draws(self, count: int, seed: int) -> np.ndarray:
        """Return signs of pairs, or permuted labels of units, dims ``(permutation, unit)``."""
        rng = np.random.default_rng(seed)
        if self.is_paired:
            return rng.choice([-1.0, 1.0], (count, self.n_units))
        return rng.permuted(np.tile(self.unit_labels, (count, 1)), axis=1)

    def averages(self) -> tuple[csr_array, csr_array]:
        """Return the matrices that average the samples of each label by cluster."""
        first, second = (averages(self.groups, kept, self.n_units) for kept in (~self.labels, self.labels))
        return first, second

    def label_averages(self) -> tuple[csr_array, np.ndarray, np.ndarray]:
        """Return the matrix that averages by cluster and label, with the label and cluster of each row."""
        both = vstack(self.averages()).tocsr()
        rows = np.flatnonzero(np.diff(both.indptr))
        return both[rows], rows >= self.n_units, rows % self.n_units


def feature_contrast(language: str, names: tuple[str, str], contrast: Contrast) -> FeatureContrast:
    """Compare pairs if at least half of the samples are in clusters with both labels, and units otherwise.

    Parameters
    ----------
    language
        Named in errors.
    names
        The two labels.
    contrast
        From :func:`~actkit.stats.group_comparison.contrasts_of`.

    Raises
    ------
    InputError
        If there are too few pairs or clusters.
    """
    counts = [
        np.bincount(contrast.groups[kept], minlength=contrast.n_clusters)
        for kept in (~contrast.labels, contrast.labels)
    ]
    in_pair = ((counts[0] > 0) & (counts[1] > 0))[contrast.groups]
    is_paired = bool(in_pair.mean() >= 0.5)
    kept = np.flatnonzero(in_pair == is_paired)
    groups = np.unique(contrast.groups[kept], return_inverse=True)[1]
    chosen = FeatureContrast(
        contrast.places[kept], contrast.labels[kept], groups, is_paired, len(in_pair) - len(kept)
    )
    faults = []
    if is_paired and chosen.n_units < LIVE:
        problem = f"{chosen.n_units} clusters have both labels, but {LIVE} pairs are needed"
        faults.append(Fault(language, problem, "extract more"))
    for name, has_label in zip(names, (~chosen.unit_labels, chosen.unit_labels), strict=True):
        if not is_paired and (count := int(has_label.sum())) < LIVE:
            problem = f"`{name}` has {count} clusters but needs {LIVE}"
            faults.append(Fault(language, problem, "extract more, or choose another cluster label"))
    if faults:
        raise InputError(faults, "cannot compare features")
    return chosen
