"""Detect the label that dependent samples share, such as the two texts of a pair."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .groups import Groups

_MEAN_SIZE = 4  # largest mean cluster size, in samples per language
_FAMILY_SIZE = 16  # the same, for a label that is named as a group and contains smaller clusters
_FEWEST, _FEWEST_FAMILIES = 5, 20  # clusters
_RARE = 0.02  # share of samples in clusters of several, below which a label is taken for an identifier
_UNIFORM = 0.9  # share of clusters of the commonest size, above which numbers are taken for identifiers
_WORDS = {"cluster", "doc", "document", "family", "group", "id", "image", "item", "pair", "passage", "prompt"}
_WORDS |= {"question", "scene", "sentence", "set", "story", "twin"}


@dataclass(frozen=True)
class ClusterChoice:
    """The label that dependent samples share, and where the choice comes from.

    Parameters
    ----------
    name
        The label; None if all samples are treated as independent.
    is_detected
        Whether the label was detected from the data instead of being chosen by the caller.
    """

    name: str | None
    is_detected: bool

    @property
    def attrs(self) -> dict[str, str]:
        """Attributes for a result: ``cluster``, which is "" for independent samples, and its origin."""
        return {"cluster": self.name or "", "cluster_origin": "detected" if self.is_detected else "chosen"}


@dataclass(frozen=True, eq=False)
class _Candidate:
    name: str
    codes: np.ndarray
    n_clusters: int  # 0 for measurements
    mean_size: float  # samples per cluster and language
    share: float  # of the samples, those whose cluster has several
    is_named: bool  # whether the name says that the label groups samples
    has_gaps: bool

    @property
    def is_cluster(self) -> bool:
        return self.n_clusters >= _FEWEST and self.mean_size <= _MEAN_SIZE and self.share > _RARE

    @property
    def is_family(self) -> bool:
        return self.is_named and self.n_clusters >= _FEWEST_FAMILIES and self.mean_size <= _FAMILY_SIZE

    @property
    def rank(self) -> tuple[bool, bool]:
        return self.share >= 0.5, self.is_named

    def nests(self, other: "_Candidate") -> bool:
        """Return whether each cluster of the other label lies within one of this label."""
        pairs = other.codes * (self.codes.max() + 1) + self.codes
        return len(np.unique(pairs)) == other.n_clusters


def detect(labels: Mapping[str, Groups], languages: np.ndarray) -> tuple[ClusterChoice, str]:
    """Return the label that dependent samples share, and a warning if the choice is uncertain.

    It has many values, each shared by a few samples: the texts of a pair, translations, or variants of a
    template. Among nested labels, the coarser one is chosen, unless only the finer one is named as a group.
    A label that lacks entries is never chosen.

    Parameters
    ----------
    labels
        Labels to choose from, by name.
    languages
        Language of each sample, dims ``(sample,)``.

    Examples
    --------
    >>> pairs = Groups.of(np.arange(12) // 2)
    >>> halves = Groups.of(np.arange(12) // 6)
    >>> choice, warning = detect({"pair": pairs, "half": halves}, np.full(12, "english"))
    >>> choice.name, warning
    ('pair', '')
    """
    language = np.unique(languages.astype(str), return_inverse=True)[1]
    columns = [_candidate(name, groups, language) for name, groups in labels.items()]
    small = [column for column in columns if column.is_cluster and not column.has_gaps]
    if not small:
        return ClusterChoice(None, True), _gap_warning([column for column in columns if column.is_cluster])
    rank = max(column.rank for column in small)
    first = min((column for column in small if column.rank == rank), key=lambda column: column.n_clusters)
    families = [column for column in columns if column.is_family and not column.has_gaps]
    coarser = [column for column in families if column.nests(first)]
    chosen = min([first, *coarser], key=lambda column: column.n_clusters)
    crossing = [
        f"`{column.name}`"
        for column in dict.fromkeys([*small, *families])
        if column.share >= min(chosen.share, 0.5) and not (chosen.nests(column) or column.nests(chosen))
    ]
    if not crossing:
        return ClusterChoice(chosen.name, True), ""
    return (
        ClusterChoice(chosen.name, True),
        f"samples may depend on each other through `{chosen.name}` or {' or '.join(crossing)}, and neither "
        f"contains the other; `{chosen.name}` is used: choose with cluster={chosen.name!r} or another label, "
        "or cluster=None if samples are independent",
    )


def _candidate(name: str, groups: Groups, language: np.ndarray) -> _Candidate:
    is_present = groups.codes >= 0
    codes = groups.codes[is_present]
    sizes = np.bincount(codes, minlength=1)
    n_in_languages = len(np.unique(codes * (language.max(initial=0) + 1) + language[is_present]))
    words = {word.removesuffix("s") for word in re.split(r"[\W_\d]+", name.lower())}
    is_named = not _WORDS.isdisjoint(words)
    is_number = groups.values.dtype.kind in "if" or all(text.isdecimal() for text in groups.texts)
    is_identifier = groups.values.dtype.kind != "f" and np.bincount(sizes).max() >= _UNIFORM * len(sizes)
    return _Candidate(
        name,
        groups.codes,
        len(groups.values) if is_named or is_identifier or not is_number else 0,
        len(codes) / max(n_in_languages, 1),
        float((sizes[codes] > 1).mean()) if len(codes) else 0.0,
        is_named,
        not bool(is_present.all()),
    )


def _gap_warning(incomplete: list[_Candidate]) -> str:
    likely = [column for column in incomplete if column.rank == (True, True)]
    if not likely:
        return ""
    best = min(likely, key=lambda column: column.n_clusters)
    n_missing = int((best.codes < 0).sum())
    return (
        f"samples that share `{best.name}` may depend on each other, but {n_missing:,} of "
        f"{len(best.codes):,} lack it, so all are treated as independent: choose with "
        f"cluster={best.name!r} or cluster=None"
    )
