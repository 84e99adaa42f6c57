"""Selection of the data to export, read one block of samples at a time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from ..canonical import Cube, as_cube
from ..errors import Fault, InputError, MissingError
from ..layer_spec import Spec, describe, parse, resolve
from ..schema import COMPONENTS, K
from ..stats import selection

_BLOCK_BYTES = 64 * 10**6
_TOKEN_COLUMNS = ("token_ids", "activations")


@dataclass(frozen=True)
class Block:
    """Samples of one layer, read at once.

    Parameters
    ----------
    rows
        Indices of the samples in the cube, dims ``(sample,)``.
    values
        Activations, dims ``(sample, token, hidden)``, float32; padding is 0.
    is_token
        Which positions hold a token, dims ``(sample, token)``.
    token_ids
        Vocabulary indices, dims ``(sample, token)``; padding is 0.
    """

    rows: np.ndarray
    values: np.ndarray
    is_token: np.ndarray
    token_ids: np.ndarray


@dataclass(frozen=True)
class Selected:
    """Layers of one component, and samples of some languages.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    component
        ``residual``, ``attention`` or ``mlp``.
    layers
        Block indices.
    rows
        Language to the indices of its samples.
    """

    cube: xr.Dataset
    component: str
    layers: tuple[int, ...]
    rows: dict[str, np.ndarray]
    _texts: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def hidden(self) -> int:
        """The width of the model."""
        return int(self.cube.sizes["hidden"])

    @property
    def all_rows(self) -> np.ndarray:
        """Indices of all samples, sorted."""
        return np.sort(np.concatenate(list(self.rows.values())))

    @property
    def row_names(self) -> list[str]:
        """Names of the columns that describe samples, including labels."""
        return ["sample_id", "language", "text", *selection.label_names(self.cube)]

    @property
    def column_names(self) -> list[str]:
        """Names of these columns in the files, distinct from those of the tokens and activations."""
        return [selection.free_name(name, _TOKEN_COLUMNS) for name in self.row_names]

    def n_tokens(self, rows: np.ndarray) -> int:
        """Return the number of tokens that the cube holds of the longest of some samples, at least 1."""
        longest = self.cube.n_tokens.values[rows].max(initial=1)
        return max(1, int((self.cube.token.values < longest).sum()))

    def column(self, name: str, rows: np.ndarray) -> list[str]:
        """Return a label of samples as text; empty if the value is missing or the cube lacks the label."""
        if name not in self.cube.coords:
            return [""] * len(rows)
        if name not in self._texts:
            self._texts[name] = selection.column(self.cube, name, "label").cell_texts()
        return [str(text) for text in self._texts[name][rows]]

    def blocks(self, layer: int, rows: np.ndarray, size: int | None = None) -> Iterator[Block]:
        """Read a layer.

        Parameters
        ----------
        layer
            Block index.
        rows
            Indices of samples; all blocks have as many positions as the longest sample has tokens.
        size
            Number of samples per block; by default, as many as fit into 64 MB.
        """
        n_tokens = self.n_tokens(rows)
        size = size or max(1, _BLOCK_BYTES // (4 * n_tokens * self.hidden))
        array = self.cube[self.component].sel(layer=layer).isel(token=slice(n_tokens))
        for start in range(0, len(rows), size):
            block_rows = rows[start : start + size]
            is_token, ids = self.tokens(block_rows, n_tokens)
            block = array.isel(sample=block_rows).transpose("sample", "token", "hidden")
            values = block.values.astype(np.float32)
            values[~is_token] = 0
            yield Block(block_rows, values, is_token, ids)

    def tokens(self, rows: np.ndarray, n_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Return which positions of samples hold a token, and the tokens' ids; dims ``(sample, token)``."""
        is_token = self.cube.token.values[:n_tokens] < self.cube.n_tokens.values[rows][:, None]
        return is_token, np.where(is_token, self.cube.token_id.values[rows][:, :n_tokens], 0)


def where_labels(cube: xr.Dataset, where: Mapping[str, Any] | None) -> np.ndarray:
    """Return the indices of the samples that have the required values of labels, or of ``language``.

    Raises
    ------
    InputError
        If there is no such label, or no such sample.
    """
    matches = np.ones(cube.sizes["sample"], dtype=bool)
    for name, value in (where or {}).items():
        groups = selection.column(cube, name, "where")
        code = groups.find(value)
        matches &= False if code is None else groups.codes == code
    if not matches.any():
        raise InputError([Fault("where", f"no sample has {dict(where or {})}", "look at the cube's labels")])
    return np.flatnonzero(matches)


def model_layers(cube: xr.Dataset) -> int:
    """Return the number of blocks of the model."""
    return int(cube.attrs.get("model_layers", cube.layer.values.max() + 1))


def select(run: Cube, layers: Spec, languages: Sequence[str] | None, *, last: bool = False) -> Selected:
    """Select the data to export.

    Parameters
    ----------
    run
        Run folder or cube; of a selection of a cube, only the selection is exported.
    layers
        Layer specification, as for an extraction, limited to one component; ``all`` means all in the cube.
    languages
        Languages to export; all by default.
    last
        Whether to export only the last content token of each sample.

    Raises
    ------
    InputError, MissingError
        If the cube lacks requested data.
    """
    cube = as_cube(run)
    selection.require(cube, "n_tokens", "token_id", "sample_id", "text", "token")
    terms, faults = parse(layers)
    resolved: dict[str, tuple[int, ...]] = {}
    if not faults:
        resolved, faults = resolve(terms, dict.fromkeys(COMPONENTS, model_layers(cube)))
    if not faults and len(resolved) != 1:
        what = f"{' and '.join(resolved)} are several components" if resolved else "names no layer"
        faults = [Fault("layers", what, "export one component at a time")]
    names = list(dict.fromkeys(cube.language.values.astype(str).tolist()))
    unknown = [name for name in languages or [] if name not in names]
    faults += [
        Fault("languages", f"{name!r} is not in the cube", f"it has {', '.join(names)}") for name in unknown
    ]
    if faults:
        raise InputError(faults)
    ((component, wanted),) = resolved.items()
    if last and component != "residual":
        raise InputError(
            [Fault("layers", f"names {component}", "a batch holds only the residual stream: name its layers")]
        )
    if last:
        selection.require(cube, "last")
    elif component not in cube and K not in cube.dims:
        raise MissingError(
            f"the cube has no `{component}` of all tokens; extract it again with `{component}` in `save`"
        )
    selection.require(cube, "last" if last else component)
    captured = selection.captured(cube, component).layer.values.tolist()
    if str(layers).strip() in ("all", f"{component}_all"):
        wanted = tuple(captured)
    if missing := sorted(set(wanted) - set(captured)):
        raise MissingError(
            f"the cube has no {component} of layers {describe(missing)}; it has {describe(captured)}"
        )
    by_sample = cube.language.values.astype(str)
    rows = {name: np.flatnonzero(by_sample == name) for name in names if name in (languages or names)}
    return Selected(cube, component, wanted, rows)
