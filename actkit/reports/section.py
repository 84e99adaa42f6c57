"""One section of a report, and the comparison that the report makes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import xarray as xr

from ..stats import selection
from .methods import describe
from .summaries import Request

MOST_CLASSES = 10  # distinct numbers that are classes

Compute = Callable[[Sequence[Request]], list[xr.Dataset]]


@dataclass
class Section:
    """One part of the report.

    Parameters
    ----------
    name
        Identifies the section in the page and in links.
    title
        Heading.
    compute
        Computes statistics.
    results
        Result by name; each becomes a table.
    pictures
        HoloViews figure by name.
    sentences
        Findings.
    methods
        How the results were computed.
    lead
        Name of the result whose table is shown before the figures; empty for none.
    tables
        Tables of texts by name, with right-to-left texts among them.
    """

    name: str
    title: str
    compute: Compute
    results: dict[str, xr.Dataset] = field(default_factory=dict)
    pictures: dict[str, Any] = field(default_factory=dict)
    sentences: list[str] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    lead: str = ""
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)

    def add(self, name: str, statistic: str, *, is_described: bool = True, **options: Any) -> xr.Dataset:
        """Compute a statistic and add it with its methods."""
        (result,) = self.compute([(statistic, options)])
        self.results[name] = result
        if is_described:
            self.methods.append(describe(result.attrs))
        return result


@dataclass(frozen=True)
class Choice:
    """The comparison that a report makes.

    Parameters
    ----------
    by
        Label column that defines the two groups; empty for none.
    cluster
        The label that dependent samples share; None if all are treated as independent.
    vectors
        ``pooled``, ``last`` or ``prompt_end``.
    is_detected
        Whether the cluster label was detected.
    warning
        Why that label is uncertain; "" if it is clear.
    """

    by: str
    cluster: str | None
    vectors: selection.Pooling
    is_detected: bool = False
    warning: str = ""

    @property
    def options(self) -> dict[str, Any]:
        """Options of statistics that compare groups."""
        return {"by": self.by, "cluster": self.cluster, "vectors": self.vectors}

    @property
    def clusters(self) -> str:
        """Description of the clusters."""
        name = self.cluster or "none: samples are treated as independent"
        return f"{name} ({'detected' if self.is_detected else 'chosen'})"


def few_layers(cube: xr.Dataset, most: int) -> list[int]:
    """Return the first and the last layer that was captured, and others evenly spaced between them.

    Examples
    --------
    >>> few_layers(xr.Dataset(coords={"layer": range(12)}), 5)
    [0, 3, 6, 8, 11]
    """
    layers = selection.captured(cube).layer.values.tolist()
    count = min(most, len(layers))
    places = [round(at * (len(layers) - 1) / max(count - 1, 1)) for at in range(count)]
    return [layers[place] for place in places]


def is_numeric(cube: xr.Dataset, by: str) -> bool:
    """Return whether a label holds numbers that are not classes."""
    values = selection.column(cube, by, "by").values
    return len(values) > MOST_CLASSES and values.dtype.kind in "iuf"
