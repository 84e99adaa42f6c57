"""Copies from a device to host memory, concurrent with computation where the device supports that."""

import weakref
from collections.abc import Sequence

import numpy as np
import torch

from ..monitoring.run_log import logger

_NUMPY = {
    torch.bfloat16: np.uint16,
    torch.float16: np.float16,
    torch.float32: np.float32,
    torch.int32: np.int32,
    torch.int16: np.int16,
    torch.uint8: np.uint8,
}


def allocate(shape: Sequence[int], dtype: torch.dtype, *, pinned: bool) -> torch.Tensor:
    """Return uninitialised host memory.

    Parameters
    ----------
    shape, dtype
        Shape and dtype of the tensor.
    pinned
        Whether the memory is pinned, so that a CUDA device can write to it asynchronously.
    """
    # NumPy asks for large pages, whose first touch takes a tenth of the time; PyTorch does not, and
    # rounds pinned memory up to a power of two
    memory = np.empty(tuple(shape), dtype=_NUMPY[dtype])
    if pinned and memory.nbytes:
        _pin(memory)
    return torch.from_numpy(memory).view(dtype)


def _pin(memory: np.ndarray) -> None:
    cuda = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    address = memory.ctypes.data
    if int(cuda.cudaHostRegister(address, memory.nbytes, 0)):
        logger.warning(
            "%d bytes of host memory cannot be pinned: copies run one after the other", memory.nbytes
        )
        return
    weakref.finalize(memory, cuda.cudaHostUnregister, address)


class Mark:
    """A point in time, for which all copies begun before it can be waited."""

    def __init__(self, events: Sequence[torch.cuda.Event]) -> None:
        self._events = events

    def wait(self) -> None:
        """Return once all copies before the mark have finished."""
        for event in self._events:
            event.synchronize()


class Transfer:
    """Copies values from devices into host memory.

    Notes
    -----
    Copies from CUDA devices run on a separate stream, so that the next block is computed while the last
    one is copied. The memory on the device is kept until its copy is done.
    """

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def copy(self, target: torch.Tensor, values: torch.Tensor) -> None:
        """Begin to copy values into host memory, and convert them to its dtype.

        Parameters
        ----------
        target
            Host memory, pinned if the values come from CUDA; must not be read before waiting for a later
            mark.
        values
            Values of the same shape.
        """
        if values.device.type != "cuda":
            target.copy_(values)
            return
        values = values.to(target.dtype)  # on the device, so that fewer bytes are copied
        stream = self._streams.get(values.device)
        if stream is None:
            stream = self._streams[values.device] = torch.cuda.Stream(values.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(values.device))
        with torch.cuda.stream(stream):
            target.copy_(values, non_blocking=True)
        values.record_stream(stream)

    def mark(self) -> Mark:
        """Return a mark that waits for all copies begun so far."""
        events = []
        for stream in self._streams.values():
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(stream)
            events.append(event)
        return Mark(events)
