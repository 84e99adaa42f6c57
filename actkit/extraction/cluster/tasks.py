"""Tasks that a worker of a cluster runs.

The module imports neither torch nor transformers: tasks are unpickled in the event loop of the worker, which
must not be busy for seconds.
"""

import pickle
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .worker_session import WorkerSession

_lock = threading.Lock()  # a worker with several threads computes one lease at a time
_sessions: dict[str, "WorkerSession"] = {}  # at most one
_ended: set[str] = set()


def run_lease(key: str, job: bytes, lease: bytes) -> Any:
    """Compute the windows of a lease in this worker, which keeps the model for the next one.

    Parameters
    ----------
    key
        Name of the extraction, which differs between any two.
    job
        Pickled :class:`~actkit.extraction.cluster.lease.Job`.
    lease
        Pickled :class:`~actkit.extraction.cluster.lease.Lease`.

    Returns
    -------
    LeaseResult
        The result, with the error if there is one that another attempt would not avoid.
    """
    with _lock:
        from .worker_session import WorkerSession, leased

        # what was pickled was so by the coordinator, which Dask trusts to run any code
        return leased(lambda: _session(key, job, WorkerSession), pickle.loads(lease), lambda: key in _ended)  # noqa: S301


def _session(key: str, job: bytes, create: "type[WorkerSession]") -> "WorkerSession":
    if key not in _sessions:
        _sessions.clear()
        _sessions[key] = create(pickle.loads(job))  # noqa: S301
    return _sessions[key]


def end(key: str) -> None:
    """Stop an extraction in this worker at the next batch, and release its model."""
    _ended.add(key)
    _sessions.pop(key, None)
