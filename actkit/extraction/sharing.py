"""How the cores are shared: by batches that are computed at once, each by some of the cores."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ..config import Config
from .models.loading import pick_device

_MOST = 4  # each takes the memory of a pass


@dataclass(frozen=True)
class Share:
    """What each of the batches has that are computed at once.

    Parameters
    ----------
    batches
        How many there are.
    threads
        How many threads compute one of them.
    """

    batches: int
    threads: int

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Let PyTorch use no more threads than one batch may, from this thread."""
        before = torch.get_num_threads()
        self.take()
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def take(self) -> None:
        """Do so from now on."""
        torch.set_num_threads(self.threads)


def share_cores(config: Config) -> Share:
    """Return how a run shares the cores that PyTorch may use.

    Parameters
    ----------
    config
        Of the run. What computes elsewhere, or draws from the one random generator, takes all cores.

    Notes
    -----
    Threads that compute one batch wait for each other at the end of every step, and for Python between steps;
    those of different batches do not (docs/decisions/0020).
    """
    cores = torch.get_num_threads()
    elsewhere = pick_device(config.device).type != "cpu" or config.device_map or config.quantization
    batches = 1 if elsewhere or config.generate else min(_MOST, cores)
    return Share(batches, cores // batches)
