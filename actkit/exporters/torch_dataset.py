"""Content tokens of one or several layers as batches for PyTorch."""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import dask.base
import numpy as np
import torch
import xarray as xr
from torch.utils.data import IterableDataset, get_worker_info

from ..canonical import Cube, as_cube
from ..errors import Fault, InputError, MissingError
from ..regular_files import MB
from ..schema import Component
from ..stats import selection
from ..stats.token_masks import SELECTED
from ..stats.token_selection import select_tokens
from ..store.reader import read_cube
from .cube_blocks import where_labels

_BLOCK = 64  # maximum number of samples that are read together
_BLOCKS = 12  # minimum number of blocks whose tokens are shuffled together, unless a sample is longer
# coordinates that identify the tokens of a batch
_TOKEN_COORDS = ("language", "n_tokens", "position", "sample", "token", "token_kind", SELECTED)
_THREADS = min(os.cpu_count() or 1, 16)


class LayerTokens(IterableDataset[torch.Tensor]):
    """Batches of token vectors, dims ``(token, hidden)``, float32; each token is in one batch per epoch.

    Blocks of up to 64 consecutive samples are read in shuffled order into a buffer, whose tokens are shuffled
    together. What does not fill a batch stays in the buffer; only the last batch of a worker is smaller.

    Parameters
    ----------
    run
        Run folder, which is read fastest, or cube; workers that are not forked receive the values that a
        cube holds in memory.
    layer
        Layer index; or several, for batches with the dims ``(token, layer, hidden)``.
    component
        ``residual``, ``attention`` or ``mlp``.
    tokens
        Tokens yielded, as for :func:`actkit.layer_norms`.
    where
        Required value of each label given, or of ``language``.
    samples
        Indices of the samples to read, along the dimension; all by default.
    batch_size
        Number of tokens in a batch; give the ``DataLoader`` the option ``batch_size=None``.
    shuffle
        Whether to shuffle; otherwise tokens come in the order of the cube.
    seed
        Seed of the order.
    buffer_bytes
        Size of the buffer in bytes, of each worker; at least two batches and the longest sample are held.

    Raises
    ------
    InputError, MissingError
        If the cube lacks requested data, or a count is not positive.

    Examples
    --------
    >>> from torch.utils.data import DataLoader
    >>> from actkit.testing import write_cube
    >>> run = write_cube(n_samples=8, hidden=16)
    >>> tokens = LayerTokens(run, layer=1, where={"gender": "female"}, batch_size=5)
    >>> next(iter(DataLoader(tokens, batch_size=None))).shape
    torch.Size([5, 16])
    """

    def __init__(
        self,
        run: Cube,
        *,
        layer: int | Sequence[int],
        component: Component = "residual",
        tokens: selection.TokenSelection = "content",
        where: Mapping[str, Any] | None = None,
        samples: np.ndarray | None = None,
        batch_size: int = 4096,
        shuffle: bool = True,
        seed: int = 0,
        buffer_bytes: int = 256 * MB,
    ) -> None:
        selection.check_counts(batch_size=batch_size, buffer_bytes=buffer_bytes)
        self.run, self.layer, self.component, self.tokens = run, layer, component, tokens
        self.batch_size, self.buffer_bytes = batch_size, buffer_bytes
        self.shuffle, self.seed, self.epoch = shuffle, seed, 0
        cube = self._cube
        selection.require(cube, component)
        if not self._layers:
            raise InputError([Fault("layer", "names no layer", "give at least one")])
        captured = selection.captured(cube, component).layer.values.tolist()
        for index in self._layers:
            if index not in captured:
                raise MissingError(f"the cube has no {component} of layer {index}")
        rows = where_labels(cube, where)
        self._rows = rows if samples is None else np.intersect1d(rows, samples)
        if not len(self._rows):
            raise InputError([Fault("samples", "names no sample", "give at least one")])

    @cached_property
    def _cube(self) -> xr.Dataset:
        cube = _open(self.run)
        if isinstance(self.tokens, str) and self.tokens == "content":
            return cube
        # without values, because the pooled ones are of no use here
        selected = select_tokens(cube.drop_vars(cube.data_vars), self.tokens)
        return cube.assign_coords({SELECTED: selected[SELECTED]}).assign_attrs(selected.attrs)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the labels and texts of a run folder, which a worker opens again."""
        is_cube = isinstance(self.run, xr.Dataset)
        return {name: value for name, value in self.__dict__.items() if is_cube or name != "_cube"}

    @property
    def _layers(self) -> list[int]:
        return [self.layer] if isinstance(self.layer, int | np.integer) else list(self.layer)

    def set_epoch(self, epoch: int) -> None:
        """Change the order to that of an epoch; with workers, call this before iterating the loader."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[torch.Tensor]:
        return self.batches()

    def batches(self, first: int = 0) -> Iterator[torch.Tensor]:
        """Yield the batches of the epoch, on request without the first ones.

        Parameters
        ----------
        first
            Number of batches to leave out; of their tokens, only those are read that share a buffer with
            later ones.
        """
        cube = self._cube
        values = cube[self.component].transpose("layer", "sample", "token", "hidden").variable
        rows = {index: row for row, index in enumerate(cube.layer.values.tolist())}
        values = values.isel(layer=[rows[index] for index in self._layers])
        width = values.sizes["layer"] * values.sizes["hidden"]
        lengths = cube.n_tokens.values
        capacity = max(self.buffer_bytes // (4 * width), 2 * self.batch_size)
        blocks = list(_blocks(self._rows, lengths, capacity // _BLOCKS))
        order = np.arange(len(blocks))
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
        worker = get_worker_info()
        number, step = (worker.id, worker.num_workers) if worker else (0, 1)
        rng = np.random.default_rng([self.seed, self.epoch, number]) if self.shuffle else None
        groups = _groups(
            [blocks[index] for index in order[number::step]], lengths, capacity - self.batch_size
        )
        capacity = min(capacity, int(lengths[self._rows].sum()))
        buffer = np.empty((capacity, *values.isel(sample=0, token=0).shape), dtype=np.float32)
        cube = cube.drop_vars([name for name in cube.variables if name not in _TOKEN_COORDS])
        with ThreadPoolExecutor(_THREADS, "actkit-tokens") as pool:
            yield from self._batches(groups, cube, values, buffer, pool, rng, first)

    def _batches(
        self,
        groups: Iterator[list[np.ndarray]],
        cube: xr.Dataset,
        values: xr.Variable,
        buffer: np.ndarray,
        pool: ThreadPoolExecutor,
        rng: np.random.Generator | None,
        skipped: int,
    ) -> Iterator[torch.Tensor]:
        """Fill a buffer with a group of blocks at a time, and empty it in batches."""
        held = 0  # tokens at the beginning of the buffer that have not been in a batch
        unread = _Unread([], np.empty((0, 2), dtype=np.int64))  # those of them that are not in the buffer yet
        for group in groups:
            masks = _masks(cube, group)
            n_held = held or len(unread.tokens)
            ends = n_held + np.cumsum([mask.sum() for mask in masks])
            order = np.arange(ends[-1]) if rng is None else rng.permutation(ends[-1])
            n_batches = len(order) // self.batch_size
            whole = n_batches * self.batch_size
            if 0 < skipped >= n_batches:  # nothing of this group has to be read yet
                unread.add(group, masks, order[whole:])
                skipped -= n_batches
                continue
            if ends[-1] > len(buffer):  # a single long sample
                buffer = np.concatenate([buffer, np.empty_like(buffer, shape=(ends[-1], *buffer.shape[1:]))])
            unread.read(values, buffer)
            parts = np.split(buffer[n_held : ends[-1]], ends[:-1] - n_held)
            list(pool.map(lambda block: _fill(values, *block), zip(group, masks, parts, strict=True)))
            for start in range(skipped * self.batch_size, whole, self.batch_size):
                yield self._batch(buffer, order[start : start + self.batch_size], pool)
            skipped, unread = 0, _Unread([], np.empty((0, 2), dtype=np.int64))
            held = len(order) - whole
            buffer[:held] = buffer[order[whole:]]
        if len(unread.tokens) and not skipped:
            if len(unread.tokens) > len(buffer):
                buffer = np.empty_like(buffer, shape=(len(unread.tokens), *buffer.shape[1:]))
            unread.read(values, buffer)
            held = len(unread.tokens)
        if held:
            yield self._batch(buffer, np.arange(held), pool)

    def _batch(self, buffer: np.ndarray, indices: np.ndarray, pool: ThreadPoolExecutor) -> torch.Tensor:
        # NumPy asks for huge pages for the new array, which PyTorch does not
        batch = np.empty((len(indices), *buffer.shape[1:]), dtype=np.float32)
        parts = zip(np.array_split(indices, _THREADS), np.array_split(batch, _THREADS), strict=True)
        list(pool.map(lambda part: buffer.take(part[0], axis=0, out=part[1], mode="clip"), parts))
        return torch.from_numpy(batch[:, 0] if isinstance(self.layer, int | np.integer) else batch)


class _Unread:
    """Tokens of skipped groups that belong to later batches, and have not been read.

    Parameters
    ----------
    groups
        Blocks and masks of the groups.
    tokens
        Group of each token, and its index among the tokens of the group; dims ``(token, 2)``.
    """

    def __init__(self, groups: list[tuple[list[np.ndarray], list[np.ndarray]]], tokens: np.ndarray) -> None:
        self.groups, self.tokens = groups, tokens

    def add(self, blocks: list[np.ndarray], masks: list[np.ndarray], order: np.ndarray) -> None:
        """Add a group, and keep the tokens at some positions of what is unread with it."""
        size = sum(int(mask.sum()) for mask in masks)
        tokens = np.stack([np.full(size, len(self.groups)), np.arange(size)], axis=1)
        self.groups.append((blocks, masks))
        self.tokens = np.concatenate([self.tokens, tokens])[order]

    def read(self, values: xr.Variable, out: np.ndarray) -> None:
        """Read the tokens, dims ``(token, layer, hidden)``."""
        for number in np.unique(self.tokens[:, 0]).tolist():
            blocks, masks = self.groups[number]
            places = np.flatnonzero(self.tokens[:, 0] == number)
            wanted = self.tokens[places, 1]
            start = 0
            for rows, mask in zip(blocks, masks, strict=True):
                size = int(mask.sum())
                inside = (wanted >= start) & (wanted < start + size)
                if inside.any():
                    block = np.empty((size, *out.shape[1:]), dtype=np.float32)
                    _fill(values, rows, mask, block)
                    out[places[inside]] = block[wanted[inside] - start]
                start += size


def _open(run: Cube) -> xr.Dataset:
    """Return a cube; that of a run folder without dask, whose graph is larger than a batch is worth."""
    return as_cube(run if isinstance(run, xr.Dataset) else read_cube(os.fspath(run), chunked=False))


def _blocks(rows: np.ndarray, lengths: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """Divide samples into blocks of at most so many tokens, or of a single sample."""
    first = total = 0
    for number, row in enumerate(rows):
        if number > first and (total + lengths[row] > most or number - first == _BLOCK):
            yield rows[first:number]
            first, total = number, 0
        total += lengths[row]
    yield rows[first:]


def _groups(blocks: list[np.ndarray], lengths: np.ndarray, most: int) -> Iterator[list[np.ndarray]]:
    """Combine blocks to groups of at most so many tokens, or of a single block."""
    group: list[np.ndarray] = []
    total = 0
    for block in blocks:
        size = int(lengths[block].sum())
        if group and total + size > most:
            yield group
            group, total = [], 0
        group.append(block)
        total += size
    if group:
        yield group


def _masks(cube: xr.Dataset, blocks: list[np.ndarray]) -> list[np.ndarray]:
    """Return which positions of the samples of each block hold content tokens, dims ``(sample, token)``."""
    rows = np.concatenate(blocks)
    order = np.argsort(rows)  # so that files are read in order
    mask = selection.token_mask(cube.isel(sample=rows[order])).compute(scheduler="synchronous").values
    in_order = np.empty_like(mask)
    in_order[order] = mask
    return np.split(in_order, np.cumsum([len(block) for block in blocks])[:-1])


def _fill(values: xr.Variable, rows: np.ndarray, mask: np.ndarray, out: np.ndarray) -> None:
    """Read the tokens of some samples, dims ``(token, layer, hidden)``."""
    any_sample = np.flatnonzero(mask.any(axis=0))
    if not len(any_sample):
        return
    span = slice(int(any_sample[0]), int(any_sample[-1]) + 1)
    part = values.isel(sample=_as_slice(rows), token=span)
    dense = part.data.compute(scheduler="synchronous") if dask.base.is_dask_collection(part) else part.values
    at = 0
    for sample, is_token in enumerate(mask[:, span]):
        positions = np.flatnonzero(is_token)
        if len(positions):
            tokens = dense[:, sample][:, _as_slice(positions)]
            out[at : at + len(positions)] = tokens.swapaxes(0, 1)
            at += len(positions)


def _as_slice(indices: np.ndarray) -> slice | np.ndarray:
    """Return consecutive indices as a slice."""
    if indices[-1] - indices[0] == len(indices) - 1:  # they are sorted and distinct
        return slice(int(indices[0]), int(indices[-1]) + 1)
    return indices
