"""One BLAS thread for kernels that run side by side: more in each would only wait for each other."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from threadpoolctl import OpenBLASController, ThreadpoolController

_LOCK = Lock()
_LIMITS: list[Any] = []  # what the first to enter found, once for each that is in here


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit BLAS to one thread as long as anybody is in here; the last to leave brings back what was.

    threadpoolctl lets one thread alone change OpenBLAS, until that leaves. Two that overlap then end
    with the limit of the first, kept for good by the second; counting them avoids it.
    """
    with _LOCK:
        _LIMITS.append(_LIMITS[0] if _LIMITS else ThreadpoolController().limit(limits=1, user_api="blas"))
    try:
        yield
    finally:
        with _LOCK:
            limit = _LIMITS.pop()
            if not _LIMITS:
                OpenBLASController.clear_controlling_thread(force=True)
                limit.restore_original_limits()
                OpenBLASController.clear_controlling_thread(force=True)
