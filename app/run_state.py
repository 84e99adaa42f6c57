"""State of a run, as its folder and its process show it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from actkit.errors import Fault
from actkit.store.parts import Part

SUBMITTED = "submitted"  # written by the app until the run reports its own state


class State(StrEnum):
    """State of a run."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    UNREADABLE = "unreadable"

    @property
    def is_active(self) -> bool:
        """Whether the run is queued or running."""
        return self in (State.QUEUED, State.RUNNING)


@dataclass(frozen=True)
class Run:
    """Snapshot of a run folder.

    Parameters
    ----------
    name
        Name of the folder.
    path
        Path of the folder.
    state
        Current state.
    status
        Heartbeat, with the fields of :class:`actkit.store.run_folder.Status`.
    asked
        Options of its config, or settings of the training.
    has_cube
        Whether the folder contains a cube.
    faults
        Errors in files of the run.
    newest_part
        The part that sent the last heartbeat, if the run is computed in parts.
    cluster
        The cluster that computes the run; empty for this machine.
    is_training
        Whether the run trains autoencoders rather than extracting a cube.
    """

    name: str
    path: Path
    state: State
    status: Mapping[str, Any] = field(repr=False)
    asked: Mapping[str, Any] = field(repr=False)
    has_cube: bool
    faults: tuple[Fault, ...] = ()
    newest_part: Part | None = None
    cluster: str = ""
    is_training: bool = False

    @property
    def progress(self) -> float:
        """Fraction of samples processed, or of training steps made, from 0 to 1."""
        counted, planned = ("step", "total_steps") if self.is_training else ("samples", "total_samples")
        total = self.status.get(planned) or 0
        share = self.status.get(counted, 0) / total if total else 0.0
        return 1.0 if self.state is State.DONE else min(share, 1.0)


def state_of(status: Mapping[str, Any], *, is_alive: bool, is_cancelled: bool) -> State:
    """Return the state of a run.

    Parameters
    ----------
    status
        Heartbeat of the run.
    is_alive
        Whether its process exists.
    is_cancelled
        Whether a user cancelled it.
    """
    reported = status.get("state", "")
    if is_alive:
        return State.QUEUED if reported in (SUBMITTED, "queued") else State.RUNNING
    if reported == State.DONE:
        return State.DONE
    if is_cancelled:
        return State.CANCELLED
    # a run that ended before it locked its folder was refused
    return State.FAILED if reported in (State.FAILED, SUBMITTED, "") else State.INTERRUPTED
