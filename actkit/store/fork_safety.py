"""Reading in a forked process: threads do not survive a fork, and what waits for them waits for ever."""

import os
from functools import cache
from threading import Lock

import dask.threaded
import zarr.core.sync


@cache
def survive_forks() -> None:
    """Let forked children of this process read: they start with thread pools of their own.

    A fork copies thread pools without their threads, and locks as they were held. zarr replaces its event
    loop in the child; dask keeps its default pool, which then never runs anything.
    """
    if hasattr(os, "register_at_fork"):  # Windows has no fork
        os.register_at_fork(after_in_child=_forget_threads)


def _forget_threads() -> None:
    dask.threaded.default_pool = None
    dask.threaded.pools.clear()
    # another thread of the parent may have held these
    dask.threaded.pools_lock = Lock()
    zarr.core.sync._lock = None
