"""Errors that actkit raises, and what the caller can do about each.

ActkitError
├── InputError          the request cannot be run; every fault is listed, and nothing was written
│   └── ChangedError    the options differ from those of the cube in the run folder, or the data changed while
│                       they were read; restore them, or use another folder
├── MissingError        the cube lacks a requested variable or sample; extract it again with that
├── ModelError          the model loads, but cannot be captured faithfully; nothing was written
├── NonfiniteError      values are NaN or Inf: in a run with on_nonfinite=raise, whose committed windows are
│                       safe, or in an analysis that has no samples left or was given changed values
├── OutOfMemoryError    a single prompt does not fit into memory; committed windows are safe
├── LockedError         another process is writing this run; wait for it, or end it
├── ClusterError        the workers of a cluster are lost or cannot be reached; rerun to continue; committed
│                       windows are safe
├── StorageError        a disk read or write failed; free space or repair the disk and rerun; committed
│                       windows are safe
└── CubeError           the path is not a cube that this version reads
    ├── IncompleteError the cube is unfinished; rerun the extraction, or open with ``partial=True``
    └── CorruptError    files are damaged; ``faults`` names each; delete them and rerun the extraction
"""

from collections.abc import Sequence
from dataclasses import dataclass

SHOWN_FAULTS = 20


def listed(names: Sequence[str], shown: int = 3) -> str:
    """Return the first few names for a message, and the number of those left out."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


@dataclass(frozen=True, order=True)
class Fault:
    """One problem with an input: where it is, what it is, and a hint at how to fix it."""

    where: str
    what: str
    hint: str = ""

    @property
    def message(self) -> str:
        """The fault and its hint, without the location."""
        return self.what + (f" ({self.hint})" if self.hint else "")

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


class ActkitError(Exception):
    """Base class of all errors that actkit raises deliberately."""


class FaultsError(ActkitError):
    """An error that lists its faults.

    Parameters
    ----------
    faults
        The faults, in the order in which they were found.
    heading
        One line that summarises the faults.
    """

    def __init__(self, faults: Sequence[Fault], heading: str) -> None:
        self.faults = tuple(faults)
        lines = [f"  - {fault}" for fault in self.faults[:SHOWN_FAULTS]]
        if len(self.faults) > SHOWN_FAULTS:
            lines.append(f"  … and {len(self.faults) - SHOWN_FAULTS} more")
        super().__init__("\n".join([heading, *lines]))

    def __reduce__(self) -> tuple[type, tuple[tuple[Fault, ...], str]]:
        return type(self), (self.faults, str(self).split("\n", 1)[0])


class InputError(FaultsError):
    """The request cannot be run; every fault is listed, and nothing was written."""

    def __init__(self, faults: Sequence[Fault], heading: str = "") -> None:
        count = len(faults)
        noun = "fault" if count == 1 else "faults"
        super().__init__(faults, heading or f"cannot run: {count} {noun}")


class ChangedError(InputError):
    """The options or the data have changed since the run began; committed windows are safe."""


class MissingError(ActkitError, KeyError):
    """The cube lacks a requested variable or sample."""

    __str__ = Exception.__str__  # KeyError would put the message in quotes


class ModelError(ActkitError):
    """The model loads, but its layers cannot be captured faithfully."""


class NonfiniteError(ActkitError):
    """Values are NaN or Inf, in a run with ``on_nonfinite="raise"`` or in the input of an analysis."""


class OutOfMemoryError(ActkitError):
    """A single prompt does not fit into the memory of the device; committed windows are safe."""


class LockedError(ActkitError):
    """Another process is writing this run."""


class ClusterError(ActkitError):
    """The workers of a cluster are lost or cannot be reached; committed windows are safe."""


class StorageError(ActkitError):
    """Reading from or writing to the disk failed; committed windows are safe."""


class CubeError(ActkitError):
    """The path is not a cube that this version of actkit reads."""


class IncompleteError(CubeError):
    """The cube is unfinished."""


class CorruptError(FaultsError, CubeError):
    """Stored data are damaged; each damaged file is named."""

    def __init__(self, faults: Sequence[Fault], heading: str = "") -> None:
        super().__init__(faults, heading or f"{len(faults)} damaged or missing file(s)")
