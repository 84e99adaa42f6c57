"""From the device to host memory: beside the computing where the device can do that, else at once."""

import weakref
from collections.abc import Sequence

import numpy as np
import torch

from .logs import logger

_NUMPY = {
    torch.bfloat16: np.uint16,
    torch.float16: np.float16,
    torch.float32: np.float32,
    torch.int32: np.int32,
}


def allocate(shape: Sequence[int], dtype: torch.dtype, *, pinned: bool) -> torch.Tensor:
    """Return host memory that holds nothing yet.

    Parameters
    ----------
    shape, dtype
        Of the tensor.
    pinned
        Whether a CUDA device is to write to it on its own.
    """
    # NumPy asks for large pages, which take a tenth of the time to be touched first; PyTorch does not,
    # and rounds what it pins up to a power of two
    memory = np.empty(tuple(shape), dtype=_NUMPY[dtype])
    if pinned and memory.nbytes:
        _pin(memory)
    return torch.from_numpy(memory).view(dtype)


def _pin(memory: np.ndarray) -> None:
    cuda = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    address = memory.ctypes.data
    if int(cuda.cudaHostRegister(address, memory.nbytes, 0)):
        logger.warning("%d bytes of host memory cannot be pinned: copies wait for each other", memory.nbytes)
        return
    weakref.finalize(memory, cuda.cudaHostUnregister, address)


class Mark:
    """Everything that was copied up to a moment."""

    def __init__(self, events: Sequence[torch.cuda.Event]) -> None:
        self._events = events

    def wait(self) -> None:
        """Return once all of it has arrived."""
        for event in self._events:
            event.synchronize()


class Transfer:
    """Copies what devices hold into host memory.

    Notes
    -----
    From CUDA devices on a stream of its own: the next block is computed while the last one crosses.
    The memory on the device is kept until its copy is done.
    """

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def copy(self, target: torch.Tensor, values: torch.Tensor) -> None:
        """Begin to copy values into host memory, converting them to its dtype.

        Parameters
        ----------
        target
            Pinned where values come from CUDA; not to be read before a later mark has been waited for.
        values
            Of the same shape.
        """
        if values.device.type != "cuda":
            target.copy_(values)
            return
        values = values.to(target.dtype)  # on the device: fewer bytes cross
        stream = self._streams.get(values.device)
        if stream is None:
            stream = self._streams[values.device] = torch.cuda.Stream(values.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(values.device))
        with torch.cuda.stream(stream):
            target.copy_(values, non_blocking=True)
        values.record_stream(stream)

    def mark(self) -> Mark:
        """Return what can be waited for: all copies that were begun."""
        events = []
        for stream in self._streams.values():
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(stream)
            events.append(event)
        return Mark(events)
