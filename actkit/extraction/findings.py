"""What was met in a window and should not go unseen: NaN, Inf, and values that are too large to be stored."""

from collections.abc import Iterator

import numpy as np

from ..errors import NonfiniteError, StorageError
from ..schema import VISION
from .buffers import WindowBuffer
from .logs import logger
from .selection import Rules

_MOST = 5


def check_findings(buffer: WindowBuffer, rules: Rules, first: int, cause: str) -> None:
    """Refuse or report what was met in a window that has arrived.

    Parameters
    ----------
    buffer
        The window.
    rules
        Say what is refused.
    first
        Its first sample.
    cause
        What most likely makes the model give NaN and Inf, as the end of a message.

    Raises
    ------
    StorageError
        Where ``storage="float16"`` cannot hold a value; the message names layer and sample.
    NonfiniteError
        Where ``on_nonfinite="raise"`` meets one.
    """
    for where, sample, _ in _found(buffer, rules, "overflows", first):
        raise StorageError(
            f"{where}, sample {sample}: a value exceeds 65504, the largest of float16; "
            "use storage exact or bfloat16"
        )
    found = list(_found(buffer, rules, "nonfinite", first))
    if found and rules.on_nonfinite == "raise":
        where, sample, count = found[0]
        raise NonfiniteError(f"{where}, sample {sample}: {count} values are NaN or Inf{cause}")
    if found:
        shown = "; ".join(f"{where}, sample {sample}: {count}" for where, sample, count in found[:_MOST])
        more = f" and {len(found) - _MOST} more" if len(found) > _MOST else ""
        done = "set to 0" if rules.on_nonfinite == "zero" else "kept"
        logger.warning("values that are NaN or Inf, %s: %s%s%s", done, shown, more, cause)


def _found(buffer: WindowBuffer, rules: Rules, kind: str, first: int) -> Iterator[tuple[str, int, int]]:
    for group in ("", VISION) if VISION in rules.layers else ("",):
        for component, layer, counts in buffer.met(kind, group):
            part = VISION if group else component
            where = f"layer {layer}" + ("" if part == "residual" else f" ({part})")
            where = "the embedding" if part == "embedding" else where
            for row in np.flatnonzero(counts).tolist():
                yield where, first + row, int(counts[row])
