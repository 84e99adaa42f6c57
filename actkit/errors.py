"""What can go wrong, and what the caller can do about it.

ActkitError
├── InputError          what was asked cannot be run; lists every fault, nothing was written
│   └── ChangedError    the settings are not those of the cube in the run folder, or the data changed while
│                       they were read; go back to what it was, or use another folder
├── MissingError        the cube was made without what is asked for; extract it again with that
├── ModelError          the model loads, but cannot be captured faithfully; nothing was written
├── NonfiniteError      a value is NaN or Inf, and on_nonfinite is raise; committed windows are safe
├── OutOfMemoryError    a single prompt does not fit into memory; committed windows are safe
├── LockedError         another process writes this run; wait for it, or end it
├── StorageError        the disk refused; free or mend it and rerun, committed windows are safe
└── CubeError           the path is not a cube that this version reads
    ├── IncompleteError the cube is unfinished; rerun the extraction, or open with ``partial=True``
    └── CorruptError    files are damaged; ``faults`` names each; delete them and rerun the extraction
"""

from collections.abc import Sequence
from dataclasses import dataclass

SHOWN_FAULTS = 20


@dataclass(frozen=True, order=True)
class Fault:
    """One thing that is wrong: where it is, what it is, how to mend it."""

    where: str
    what: str
    mend: str = ""

    @property
    def told(self) -> str:
        """What it is and how to mend it, for a reader who sees where."""
        return self.what + (f" ({self.mend})" if self.mend else "")

    def __str__(self) -> str:
        return f"{self.where}: {self.told}"


class ActkitError(Exception):
    """Everything actkit raises on purpose."""


class FaultsError(ActkitError):
    """An error that lists its faults.

    Parameters
    ----------
    faults
        What is wrong, in the order in which it was found.
    heading
        One line that says what the faults have in common.
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
    """What was asked cannot be run; every fault is listed, and nothing was written."""

    def __init__(self, faults: Sequence[Fault], heading: str = "") -> None:
        count = len(faults)
        noun = "fault" if count == 1 else "faults"
        super().__init__(faults, heading or f"cannot run: {count} {noun}")


class ChangedError(InputError):
    """The settings, or the data, are not what they were; committed windows are safe."""


class MissingError(ActkitError, KeyError):
    """The cube was made without what is asked for."""

    __str__ = Exception.__str__  # a KeyError would put it between quotes


class ModelError(ActkitError):
    """The model loads, but its layers cannot be captured faithfully."""


class NonfiniteError(ActkitError):
    """The model computed a NaN or Inf value, and was told to raise; what was committed is safe."""


class OutOfMemoryError(ActkitError):
    """A single prompt does not fit into the memory of the device; committed windows are safe."""


class LockedError(ActkitError):
    """Another process is writing this run."""


class StorageError(ActkitError):
    """The disk refused to read or write; what was committed is safe."""


class CubeError(ActkitError):
    """The path is not a cube that this version of actkit reads."""


class IncompleteError(CubeError):
    """The cube is unfinished."""


class CorruptError(FaultsError, CubeError):
    """Stored data are damaged; each damaged file is named."""

    def __init__(self, faults: Sequence[Fault], heading: str = "") -> None:
        super().__init__(faults, heading or f"{len(faults)} damaged or missing file(s)")
