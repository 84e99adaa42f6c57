"""Batches of the training tokens of several layers, in an order from which any position can be continued."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from math import prod

import numpy as np
import torch
import xarray as xr

from ..errors import NonfiniteError
from ..exporters.torch_dataset import LayerTokens
from ..stats.token_masks import token_mask
from .quality_sums import EXTREME
from .training_settings import TrainingSettings

_SCALE_TOKENS = 2**15
_HELD_OUT_TOKENS = 4096


@dataclass(frozen=True, eq=False)
class TrainingTokens:
    """Training and held-out tokens of a cube.

    Parameters
    ----------
    cube
        The cube, with the coordinate of its selected tokens if only some are used.
    settings
        Settings of the run.
    training, held_out
        Indices of samples.
    """

    cube: xr.Dataset
    settings: TrainingSettings
    training: np.ndarray
    held_out: np.ndarray

    def batches(self, first: int = 0) -> Iterator[Iterable[torch.Tensor]]:
        """Yield batches without end, each as activations of one layer after the other.

        Parameters
        ----------
        first
            Number of batches to leave out at the beginning, without reading them.

        Raises
        ------
        NonfiniteError
            If a value is NaN or Inf.
        """
        per_epoch = self.settings.steps_per_epoch
        epoch, start = divmod(first, per_epoch)
        while True:
            whole = self._held_batches(epoch, start) if self.settings.is_held else self._read(epoch, start)
            yield from islice(whole, per_epoch - start)
            epoch, start = epoch + 1, 0

    @cached_property
    def held_out_tokens(self) -> list[torch.Tensor]:
        """Some held-out tokens of each layer, dims ``(token, hidden)``."""
        tokens = self._tokens(self.held_out, _HELD_OUT_TOKENS, shuffle=True)
        batch = next(iter(tokens))
        self._check(batch)
        return [layer.contiguous() for layer in batch.unbind(1)]

    def scales(self) -> tuple[list[float], list[float]]:
        """Return the factor of each layer that makes the mean norm √hidden, and the share of extreme norms.

        Both are of the first 32,768 tokens of the first epoch. A norm is extreme above 10 times the median.
        """
        n_batches = min(max(1, _SCALE_TOKENS // self.settings.batch), self.settings.steps_per_epoch)
        norms: list[list[torch.Tensor]] = [[] for _ in self.settings.layers]
        for batch in islice(self.batches(), n_batches):
            for found, layer in zip(norms, batch, strict=True):
                found.append(layer.norm(dim=1))
        scales, extremes = [], []
        for found, layer_index in zip(norms, self.settings.layers, strict=True):
            of_layer = torch.cat(found)
            mean = float(of_layer.double().mean())
            if not mean > 0:
                raise NonfiniteError(f"all activations of layer {layer_index} are 0")
            scales.append(self.settings.hidden**0.5 / mean)
            extremes.append(float((of_layer > EXTREME * of_layer.median()).float().mean()))
        return scales, extremes

    def _held_batches(self, epoch: int, start: int) -> Iterator[Iterable[torch.Tensor]]:
        order = np.random.default_rng([self.settings.seed, epoch]).permutation(self.settings.n_tokens)
        for step in range(start, self.settings.steps_per_epoch):
            rows = torch.from_numpy(order[step * self.settings.batch : (step + 1) * self.settings.batch])
            yield (layer.index_select(0, rows) for layer in self._held)

    def _read(self, epoch: int, start: int) -> Iterator[Iterable[torch.Tensor]]:
        tokens = self._tokens(self.training, self.settings.batch, shuffle=True)
        tokens.set_epoch(epoch)
        for batch in tokens.batches(start):
            self._check(batch)
            yield batch.unbind(1)

    @cached_property
    def _held(self) -> list[torch.Tensor]:
        """All training tokens of each layer, dims ``(token, hidden)``."""
        shape = (self.settings.n_tokens, self.settings.hidden)
        held = [torch.empty(shape) for _ in self.settings.layers]
        start = 0
        for batch in self._tokens(self.training, self.settings.batch, shuffle=False):
            self._check(batch)
            for whole, layer in zip(held, batch.unbind(1), strict=True):
                whole[start : start + len(batch)] = layer
            start += len(batch)
        return held

    def _tokens(self, samples: np.ndarray, batch_size: int, *, shuffle: bool) -> LayerTokens:
        settings = self.settings
        # reading in order needs a buffer for one group of blocks only
        most = settings.buffer_bytes if shuffle and not settings.is_held else 2**25
        return LayerTokens(
            self.cube,
            layer=list(settings.layers),
            component=settings.component,
            samples=samples,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=settings.seed,
            buffer_bytes=most,
        )

    def _check(self, batch: torch.Tensor) -> None:
        """Raise an error if a value is NaN or Inf."""
        if bool(torch.isfinite(batch.sum())):  # a sum is NaN or Inf if a value is
            return
        bad = ~torch.isfinite(batch).all(dim=2)
        if bool(bad.any()):
            layers = [
                layer for layer, any_bad in zip(self.settings.layers, bad.any(0), strict=True) if any_bad
            ]
            raise NonfiniteError(
                f"`{self.settings.component}` contains NaN or Inf values at layers {layers}; exclude these "
                "samples with cube.isel(sample=...), or extract them again in bfloat16 or float32"
            )


def count_tokens(cube: xr.Dataset, samples: np.ndarray) -> int:
    """Return the number of selected tokens of some samples."""
    if not len(samples):
        return 0
    return int(token_mask(cube.isel(sample=samples)).sum())


def token_bytes(cube: xr.Dataset, n_layers: int) -> int:
    """Return the bytes of a token at several layers, in float32."""
    return 4 * prod((n_layers, cube.sizes["hidden"]))
