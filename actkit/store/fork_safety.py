"""Reading in a forked process, in which the thread pools of its parent have no threads."""

import os
from functools import cache
from threading import Lock

import dask.threaded
import zarr.core.sync


@cache
def survive_forks() -> None:
    """Make forked children of this process start new thread pools, so that they can read cubes.

    A fork copies thread pools without their threads, and locks in the state in which they were. zarr replaces
    its event loop in the child, but dask keeps its default pool, which then never runs a task.
    """
    if hasattr(os, "register_at_fork"):  # Windows has no fork
        os.register_at_fork(after_in_child=_forget_threads)


def _forget_threads() -> None:
    dask.threaded.default_pool = None
    dask.threaded.pools.clear()
    # another thread of the parent may have held these locks
    dask.threaded.pools_lock = Lock()
    zarr.core.sync._lock = None
