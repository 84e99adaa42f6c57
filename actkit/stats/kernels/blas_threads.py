"""Limit BLAS to one thread for kernels that run concurrently and would otherwise compete for cores."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from threadpoolctl import OpenBLASController, ThreadpoolController

_LOCK = Lock()
_LIMITS: list[Any] = []  # the limit set by the first caller, once per active caller


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit BLAS to one thread while any caller is inside; the last to exit restores the original limits.

    threadpoolctl lets only one thread control OpenBLAS at a time. If two limits overlapped, the second
    would save the limit of the first and restore it for good. Counting active callers prevents this.
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
