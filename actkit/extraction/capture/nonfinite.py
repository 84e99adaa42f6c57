"""Reports of NaN, Inf and values that are too large for their storage."""

from collections.abc import Iterator

import numpy as np

from ...errors import NonfiniteError, StorageError
from ...schema import VISION
from ..monitoring.run_log import logger
from .spec import Rules
from .window_buffer import CountKind, WindowBuffer

_MOST = 5


def check_findings(buffer: WindowBuffer, rules: Rules, first: int, cause: str) -> None:
    """Raise or log nonfinite and overflowing values of a window, once its copies have finished.

    Parameters
    ----------
    buffer
        The arrays of the window.
    rules
        Decide what is an error.
    first
        The first sample of the window.
    cause
        Likely cause of NaN and Inf values, appended to the message.

    Raises
    ------
    StorageError
        If a value is too large for ``storage="float16"``; the message names layer and sample.
    NonfiniteError
        If a value is NaN or Inf and ``on_nonfinite="raise"``.
    """
    for where, sample, _ in _findings(buffer, rules, "overflows", first):
        raise StorageError(
            f"{where}, sample {sample}: a value exceeds 65504, the largest of float16; "
            "use storage exact or bfloat16"
        )
    nonfinite = list(_findings(buffer, rules, "nonfinite", first))
    if nonfinite and rules.on_nonfinite == "raise":
        where, sample, count = nonfinite[0]
        raise NonfiniteError(f"{where}, sample {sample}: {count} values are NaN or Inf{cause}")
    if nonfinite:
        shown = "; ".join(f"{where}, sample {sample}: {count}" for where, sample, count in nonfinite[:_MOST])
        more = f" and {len(nonfinite) - _MOST} more" if len(nonfinite) > _MOST else ""
        treatment = "set to 0" if rules.on_nonfinite == "zero" else "kept"
        logger.warning("NaN or Inf values, %s: %s%s%s", treatment, shown, more, cause)


def _findings(
    buffer: WindowBuffer, rules: Rules, kind: CountKind, first: int
) -> Iterator[tuple[str, int, int]]:
    for group in ("", VISION) if VISION in rules.layers else ("",):
        for component, layer, counts in buffer.counts(kind, group):
            part = VISION if group else component
            where = f"layer {layer}" + ("" if part == "residual" else f" ({part})")
            where = "the embedding" if part == "embedding" else where
            for row in np.flatnonzero(counts).tolist():
                yield where, first + row, int(counts[row])
