"""A layer's content tokens, as PyTorch trains on them."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from ..errors import MissingError
from ..stats import parts
from ..store.reading import open_cube
from .selecting import where_labels

_BLOCK = 64  # samples that are read together
_MIXED = 4  # blocks whose tokens are shuffled together


class LayerTokens(IterableDataset[torch.Tensor]):
    """One vector after the other, dims ``(hidden,)``, float32; each once in an epoch, by one worker.

    Blocks of 64 samples come in an order that is shuffled, and the tokens of 4 of them are shuffled together:
    more is never held.

    Parameters
    ----------
    run
        Run folder.
    layer
        The block.
    component
        ``residual``, ``attention`` or ``mlp``.
    where
        Label, or ``language``, to the value that samples must have.
    shuffle
        Whether to; as the cube has them otherwise.
    seed
        Of the order.

    Raises
    ------
    InputError, MissingError
        Where the cube lacks what is asked for.

    Examples
    --------
    >>> from torch.utils.data import DataLoader
    >>> from actkit.testing import write_cube
    >>> run = write_cube(n_samples=8, hidden=16)
    >>> tokens = LayerTokens(run, layer=1, where={"gender": "female"})
    >>> next(iter(DataLoader(tokens, batch_size=5))).shape
    torch.Size([5, 16])
    """

    def __init__(
        self,
        run: str | Path,
        *,
        layer: int,
        component: str = "residual",
        where: Mapping[str, str] | None = None,
        shuffle: bool = True,
        seed: int = 0,
    ) -> None:
        self.run, self.layer, self.component = Path(run), layer, component
        self.shuffle, self.seed, self.epoch = shuffle, seed, 0
        cube = open_cube(run)
        parts.require(cube, component)
        cube = parts.captured(cube, component)
        if layer not in cube.layer.values:
            raise MissingError(f"the cube has no {component} of layer {layer}")
        self._rows = where_labels(cube, where)

    def set_epoch(self, epoch: int) -> None:
        """Take another order; with workers, before the loader is iterated."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[torch.Tensor]:
        cube = open_cube(self.run)
        array = cube[self.component].sel(layer=self.layer)
        blocks = [self._rows[start : start + _BLOCK] for start in range(0, len(self._rows), _BLOCK)]
        order = np.arange(len(blocks))
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        rng = np.random.default_rng([self.seed, self.epoch, first])
        own = order[first::step]
        for start in range(0, len(own), _MIXED):
            rows = np.sort(np.concatenate([blocks[at] for at in own[start : start + _MIXED]]))
            values = array.isel(sample=rows).transpose("sample", "token", "hidden").values
            vectors = values[parts.token_mask(cube.isel(sample=rows)).transpose("sample", "token").values]
            if self.shuffle:
                vectors = rng.permutation(vectors)
            yield from torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))
