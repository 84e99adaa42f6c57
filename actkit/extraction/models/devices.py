"""Devices and resources of a run: device choice, CPU threads per concurrent batch, and the heap."""

import ctypes
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ...config import Config
from ...errors import Fault

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:(0|[1-9][0-9]{0,2}))?")
_MAX_BATCHES = 4  # each one needs the memory of a forward pass


def pick_device(name: str) -> torch.device:
    """Return the device with a given name; `auto` is the first accelerator if there is one, else the CPU."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def device_description(config: Config) -> str:
    """Return the name of the accelerator, or the CPU's vector instructions, which affect the last bits."""
    device = pick_device(config.device)
    if device.type == "cuda":
        every = range(torch.cuda.device_count()) if config.device_map else [device.index or 0]
        return ", ".join(dict.fromkeys(torch.cuda.get_device_name(index) for index in every))
    return f"CPU, {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else device.type


def check_device(name: str) -> list[Fault]:
    """Check that a device exists, without using it."""
    if not _DEVICE.fullmatch(name):
        return [Fault("device", f"{name!r} is unknown", "auto, cpu, mps, cuda or cuda:N")]
    kind, _, index = name.partition(":")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        return [
            Fault(
                "device",
                f"there is no `{name}` here",
                f"{torch.cuda.device_count()} CUDA devices; try auto",
            )
        ]
    if kind == "mps" and not torch.backends.mps.is_available():
        return [Fault("device", "there is no `mps` here", "try auto")]
    return []


@dataclass(frozen=True)
class Share:
    """Threads allotted to each concurrent batch.

    Parameters
    ----------
    batches
        Number of concurrent batches.
    threads
        Number of threads per batch.
    """

    batches: int
    threads: int

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Limit PyTorch to the threads of one batch within the context, in the current thread."""
        before = torch.get_num_threads()
        self.take()
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def take(self) -> None:
        """Limit PyTorch to the threads of one batch from now on, in the current thread."""
        torch.set_num_threads(self.threads)


def share_cores(config: Config, *, quantized: bool = False) -> Share:
    """Divide the cores that PyTorch may use among concurrent batches.

    Parameters
    ----------
    config
        Options of the run. Runs on other devices, and runs that generate (which draw from the global random
        generator), compute one batch at a time.
    quantized
        Whether the model computes with quantized weights. Such runs also compute one batch at a time:
        weights of bitsandbytes cannot be shared between copies of a model.

    Notes
    -----
    Threads of the same batch wait for each other at the end of every operation, and for Python between
    operations; threads of different batches do not (docs/decisions/0020).
    """
    cores = torch.get_num_threads()
    elsewhere = pick_device(config.device).type != "cpu" or config.device_map or quantized
    batches = 1 if elsewhere or config.generate else min(_MAX_BATCHES, cores)
    return Share(batches, cores // batches)


_M_ARENA_MAX = -8  # from malloc.h of glibc


def share_heap() -> None:
    """Make threads that start from now on allocate from one heap; by default each thread has its own."""
    if _is_glibc():
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def trim_heap() -> None:
    """Return free heap memory to the system: passes of many sizes fragment the heap more and more."""
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
