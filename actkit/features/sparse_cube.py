"""Contents of a sparse cube: the tokens of another cube with their features, window by window."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr

from ..batch_plan import Plan, Shape, footprint, make_plan
from ..config import Config
from ..layer_spec import describe_all
from ..schema import OF_FEATURES, VARIABLES, WIDTH, Component
from ..stats import selection
from ..stats.token_selection import select_tokens
from ..store.cube_copy import known_coords, label_dtypes, rows_of
from ..store.metadata import ARRAYS, CHECKSUM
from ..store.ragged import Ragged
from ..store.receipts import RECEIPTS
from .largest_features import LargestFeatures

# coordinates of tokens that are written window by window
_TOKEN_COORDS = ("n_tokens", "token_id", "token_kind", "token_text", "position", "generated")
_OF_SOURCE = ("actkit_format", ARRAYS, "coordinates", CHECKSUM, RECEIPTS, WIDTH, "copy")
_FLAGS = ("first_is_content",)  # xarray stores them as integers


@dataclass(frozen=True)
class EncodedTokens:
    """Tokens of a cube whose features are computed.

    Parameters
    ----------
    cube
        Cube in canonical form.
    component
        Component of the activations.
    layers
        Layers to encode, sorted.
    tokens
        Tokens to encode; the others have no active features.
    """

    cube: xr.Dataset
    component: Component
    layers: Sequence[int]
    tokens: selection.TokenSelection

    @cached_property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each sample, dims ``(sample,)``."""
        return np.asarray(self.cube.n_tokens.values).astype(np.int64)

    @cached_property
    def _selected(self) -> xr.Dataset:
        # without the vectors, because pooled ones of the selected tokens are not needed
        coords = self.cube.drop_vars([str(name) for name in self.cube.data_vars])
        return select_tokens(coords, self.tokens)

    @cached_property
    def is_encoded(self) -> np.ndarray:
        """Whether each token is encoded, dims ``(sample, token)``."""
        return np.asarray(selection.token_mask(self._selected).values)

    @property
    def selection(self) -> str:
        """Text of the selection."""
        return selection.counted(self._selected, "content")

    def activations(self, layer: int, samples: range) -> np.ndarray:
        """Return the activations of the encoded tokens of some samples, dims ``(token, hidden)``."""
        part = slice(samples.start, samples.stop)
        longest = max(1, int(self.lengths[part].max(initial=0)))
        values = self.cube[self.component].sel(layer=layer).isel(sample=part, token=slice(0, longest))
        chosen = values.transpose("sample", "token", "hidden").values[self.is_encoded[part, :longest]]
        return np.ascontiguousarray(chosen, dtype=np.float32)

    def positions(self, samples: range) -> np.ndarray:
        """Return the indices of the encoded tokens among all tokens of some samples, dims ``(token,)``."""
        part = slice(samples.start, samples.stop)
        is_real = np.arange(self.is_encoded.shape[1]) < self.lengths[part, None]
        return np.flatnonzero(self.is_encoded[part][is_real])


@dataclass(frozen=True)
class SparseCube:
    """Layout of a sparse cube of encoded tokens.

    Parameters
    ----------
    tokens
        The tokens.
    k
        Number of entries of each token.
    dtypes
        Dtypes of the variables that may have several.
    """

    tokens: EncodedTokens
    k: int
    dtypes: dict[str, str]

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the variables that are written by window."""
        kept = [name for name in _TOKEN_COORDS if name in self.tokens.cube.coords]
        return tuple(name for name in VARIABLES if name in (*OF_FEATURES, "nonfinite", *kept))

    @cached_property
    def plan(self) -> Plan:
        """Windows, of the length of those of the encoded cube unless memory is short."""
        cube, lengths = self.tokens.cube, self.tokens.lengths
        shape = Shape(len(self.tokens.layers), 1, 1, 1, self.k)
        token_bytes, sample_bytes = footprint(self.variables, {}, shape, None, 4)
        window = int(cube.attrs.get("window_samples", Config.model_fields["window_samples"].default))
        plan = make_plan(
            Config(model="-", data="-", out="-", window_samples=window),
            np.maximum(lengths, 1),
            layers=shape.layer,
            hidden=1,
            k=self.k,
            token_bytes=token_bytes,
            sample_bytes=sample_bytes,
            stored=lengths,
            batch_tokens=1,  # so that batches do not enlarge windows
        )
        return replace(plan, batches=cube.batch.values.astype(np.int32))

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of :func:`~actkit.store.writer.create_cube` except run, plan and attributes."""
        return {"variables": self.variables, "dtypes": self.dtypes, **self.coordinates}

    @property
    def coordinates(self) -> dict[str, Any]:
        """Arguments of :meth:`~actkit.store.writer.CubeWriter.restore`."""
        cube = self.tokens.cube.sel(layer=list(self.tokens.layers))
        known = known_coords(cube)
        return {
            "coords": {name: values for name, values in known.items() if not name.startswith("has_")},
            "labels": label_dtypes(cube),
            "rows": rows_of(cube),
        }

    def window(self, samples: range, features: Sequence[LargestFeatures]) -> dict[str, np.ndarray | Ragged]:
        """Return a window in the form that :meth:`~actkit.store.writer.CubeWriter.write` takes.

        Parameters
        ----------
        samples
            The samples.
        features
            Features of the encoded tokens of the samples, for each layer.
        """
        part = slice(samples.start, samples.stop)
        cube = self.tokens.cube.isel(sample=part)
        lengths = self.tokens.lengths[part]
        starts, n_layers = np.cumsum(lengths) - lengths, len(features)
        is_token = np.arange(self.plan.shape.token) < lengths[:, None]
        encoded = self.tokens.positions(samples)
        values: dict[str, np.ndarray | Ragged] = {"nonfinite": np.zeros((n_layers, len(samples)), np.int32)}
        for name, arrays in zip(OF_FEATURES, zip(*features, strict=True), strict=True):
            whole = np.zeros((n_layers, int(lengths.sum()), *arrays[0].shape[1:]), arrays[0].dtype)
            for layer, array in enumerate(arrays):
                whole[layer, encoded] = array
            if VARIABLES[name].is_full:
                values[name] = Ragged(whole, starts, lengths, tuple(range(n_layers)))
            else:
                padded = np.zeros((n_layers, *is_token.shape), whole.dtype)
                padded[:, is_token] = whole
                values[name] = padded
        for name in _TOKEN_COORDS:
            if name in cube.coords:
                values[name] = cube[name].values
        return values


def origin(tokens: EncodedTokens) -> dict[str, str | int | float | bool]:
    """Return the attributes that a sparse cube has from the encoded cube, and those that identify it."""
    cube = tokens.cube
    attrs = {name: value for name, value in cube.attrs.items() if name not in _OF_SOURCE}
    attrs |= {name: bool(attrs[name]) for name in _FLAGS if name in attrs}
    identity = [cube.sample.values.tolist(), *(list(cube[n].values) for n in ("sample_id", "language"))]
    return {
        **attrs,
        "layers": describe_all({tokens.component: tuple(tokens.layers)}),
        "features_of": tokens.component,
        "encoded_tokens": tokens.selection,
        "encoded_sha256": str(cube.attrs.get(CHECKSUM, "")),
        "encoded_samples_sha256": hashlib.sha256(repr(identity).encode()).hexdigest(),
    }
