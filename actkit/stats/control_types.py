"""Types of the samples in control tasks, which share a surface form and therefore a random label."""

import warnings

import numpy as np
import xarray as xr

from ..errors import Fault, InputError
from . import selection
from .group_comparison import Contrast
from .kernels import control_tasks

WORD = "word"  # the type is a word of the text
_DRAWS = 20
_SMALLEST_SHARE = 0.5


def check_control(array: xr.DataArray, control: str | None, by: str) -> None:
    """Raise InputError if types cannot come from a column."""
    if control == by:
        problem = f"types of `{by}` have the labels of `{by}` itself"
        raise InputError([Fault("control", problem, f"choose another label, or {WORD!r}")])
    if control is not None and (control != WORD or WORD in selection.label_names(array)):
        selection.column(array, control, "control")


def control_tasks_of(
    language: str, part: xr.DataArray, contrast: Contrast, control: str, *, fewest: int, seed: int
) -> tuple[float, np.ndarray | None]:
    """Draw the labels of control tasks.

    Parameters
    ----------
    language
        Named in warnings.
    part
        Vectors of the samples of the contrast, with the coordinate ``text`` and the label columns.
    contrast
        Labels and clusters of the samples.
    control
        The label column of the types; or ``word``, unless a label column has that name.
    fewest
        Number of clusters in which a word occurs at least.
    seed
        Random seed of the draws.

    Returns
    -------
    tuple
        The share of samples whose type also occurs in another cluster; and the labels, dims
        ``(draw, sample)``, or None if the share is below one half or all samples have one type.

    Warns
    -----
    UserWarning
        If there are no labels.
    """
    if control == WORD and WORD not in selection.label_names(part):
        texts = [str(text) for text in part.text.values]
        words = control_tasks.content_words(texts, contrast.groups, fewest)
        codes, has_type = np.unique(words, return_inverse=True)[1], words != ""
    else:
        codes = selection.column(part, control, "control").codes
        has_type = codes >= 0
    # samples without a type share their label with no other
    types = np.where(has_type, codes, codes.max() + 1 + np.arange(len(codes)))
    types = selection.codes(types)
    is_shared = control_tasks.is_shared(types, contrast.groups)
    share = float(is_shared.mean())
    if share < _SMALLEST_SHARE or types.max() == 0:
        warnings.warn(
            f"{language}: there is no control task, because "
            + (
                f"all samples have the same `{control}`"
                if types.max() == 0
                else f"only {share:.0%} of the samples share their `{control}` with another cluster"
            )
            + "; name a label whose values recur in many clusters: `control`",
            stacklevel=5,
        )
        return share, None
    n_second = int(contrast.labels.sum())
    return share, control_tasks.control_labels(types, n_second, _DRAWS, seed=seed)
