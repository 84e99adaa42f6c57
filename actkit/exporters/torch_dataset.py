"""Content tokens of a layer as a PyTorch dataset."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from ..canonical import Cube, as_cube
from ..errors import MissingError
from ..schema import Component
from ..stats import selection
from ..stats.token_selection import select_tokens
from .cube_blocks import where_labels

_BLOCK = 64  # samples that are read together
_MIXED = 4  # blocks whose tokens are shuffled together


class LayerTokens(IterableDataset[torch.Tensor]):
    """Token vectors, dims ``(hidden,)``, float32; each is yielded once per epoch, by one worker.

    Blocks of 64 samples are read in shuffled order, and the tokens of 4 blocks are shuffled together; more is
    never held in memory.

    Parameters
    ----------
    run
        Run folder or cube; workers that are not forked receive the values that a cube holds in memory.
    layer
        Layer index.
    component
        ``residual``, ``attention`` or ``mlp``.
    tokens
        Tokens yielded, as for :func:`actkit.layer_norms`.
    where
        Required value of each label given, or of ``language``.
    shuffle
        Whether to shuffle; otherwise tokens come in the order of the cube.
    seed
        Seed of the order.

    Raises
    ------
    InputError, MissingError
        If the cube lacks requested data.

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
        run: Cube,
        *,
        layer: int,
        component: Component = "residual",
        tokens: selection.TokenSelection = "content",
        where: Mapping[str, Any] | None = None,
        shuffle: bool = True,
        seed: int = 0,
    ) -> None:
        # a path is opened in each worker
        self.run = run if tokens == "content" else select_tokens(run, tokens)
        self.layer, self.component = layer, component
        self.shuffle, self.seed, self.epoch = shuffle, seed, 0
        cube = as_cube(self.run)
        selection.require(cube, component)
        cube = selection.captured(cube, component)
        if layer not in cube.layer.values:
            raise MissingError(f"the cube has no {component} of layer {layer}")
        self._rows = where_labels(cube, where)

    def set_epoch(self, epoch: int) -> None:
        """Change the order to that of an epoch; with workers, call this before iterating the loader."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[torch.Tensor]:
        cube = as_cube(self.run)
        array = cube[self.component].sel(layer=self.layer)
        blocks = [self._rows[start : start + _BLOCK] for start in range(0, len(self._rows), _BLOCK)]
        order = np.arange(len(blocks))
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        rng = np.random.default_rng([self.seed, self.epoch, first])
        worker_blocks = order[first::step]
        # a worker cannot reach a dask client of its parent, and runs next to other workers
        scheduler = {"scheduler": "synchronous"} if worker else {}
        for start in range(0, len(worker_blocks), _MIXED):
            rows = np.sort(np.concatenate([blocks[index] for index in worker_blocks[start : start + _MIXED]]))
            values = array.isel(sample=rows).transpose("sample", "token", "hidden")
            mask = selection.token_mask(cube.isel(sample=rows)).transpose("sample", "token")
            vectors = values.compute(**scheduler).values[mask.compute(**scheduler).values]
            if self.shuffle:
                vectors = rng.permutation(vectors)
            yield from torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))
