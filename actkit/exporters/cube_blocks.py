"""Selection of the data to export, read one block of samples at a time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from ..canonical import Cube, as_cube
from ..errors import Fault, InputError, MissingError
from ..layer_spec import Spec, describe, parse, resolve
from ..schema import COMPONENTS
from ..stats import selection

_BLOCK_BYTES = 64 * 10**6
_OF_TOKENS = ("token_ids", "activations")


@dataclass(frozen=True)
class Block:
    """Samples of a layer that are read at once.

    Parameters
    ----------
    rows
        Their places in the cube, dims ``(sample,)``.
    values
        Dims ``(sample, token, hidden)``, float32, pads 0.
    held
        Which positions hold a token, dims ``(sample, token)``.
    token_ids
        Pads 0, dims ``(sample, token)``.
    """

    rows: np.ndarray
    values: np.ndarray
    held: np.ndarray
    token_ids: np.ndarray


@dataclass(frozen=True)
class Selected:
    """The layers of one component, and the samples of some languages.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    component
        ``residual``, ``attention`` or ``mlp``.
    layers
        Block indices.
    rows
        Language to the places of its samples.
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
    def every_row(self) -> np.ndarray:
        """The places of all samples, in their order."""
        return np.sort(np.concatenate(list(self.rows.values())))

    @property
    def row_names(self) -> list[str]:
        """Names of the columns that say what a sample is, the labels among them."""
        return ["sample_id", "language", "text", *selection.label_names(self.cube)]

    @property
    def column_names(self) -> list[str]:
        """Names of these columns, distinct from those of the tokens and activations."""
        return [selection.free_name(name, _OF_TOKENS) for name in self.row_names]

    def n_tokens(self, rows: np.ndarray) -> int:
        """Return how many tokens the cube holds of the longest of samples, at least 1."""
        longest = self.cube.n_tokens.values[rows].max(initial=1)
        return max(1, int((self.cube.token.values < longest).sum()))

    def column(self, name: str, rows: np.ndarray) -> list[str]:
        """Return a label of samples as text; empty where it is missing, or the cube has none of that name."""
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
            Places of samples; as many tokens as the longest of them has.
        size
            Samples that are read at once; what fits 64 MB by default.
        """
        n_tokens = self.n_tokens(rows)
        size = size or max(1, _BLOCK_BYTES // (4 * n_tokens * self.hidden))
        array = self.cube[self.component].sel(layer=layer).isel(token=slice(n_tokens))
        for start in range(0, len(rows), size):
            own = rows[start : start + size]
            held, ids = self.tokens(own, n_tokens)
            values = array.isel(sample=own).transpose("sample", "token", "hidden").values.astype(np.float32)
            values[~held] = 0
            yield Block(own, values, held, ids)

    def tokens(self, rows: np.ndarray, n_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Return which positions of samples hold a token, and the tokens' ids; dims ``(sample, token)``."""
        held = self.cube.token.values[:n_tokens] < self.cube.n_tokens.values[rows][:, None]
        return held, np.where(held, self.cube.token_id.values[rows][:, :n_tokens], 0)


def where_labels(cube: xr.Dataset, where: Mapping[str, Any] | None) -> np.ndarray:
    """Return the places of the samples that have the given values of labels, or of ``language``.

    Raises
    ------
    InputError
        Where there is no such label, or no such sample.
    """
    chosen = np.ones(cube.sizes["sample"], dtype=bool)
    for name, value in (where or {}).items():
        groups = selection.column(cube, name, "where")
        place = groups.find(value)
        chosen &= False if place is None else groups.codes == place
    if not chosen.any():
        raise InputError([Fault("where", f"no sample has {dict(where or {})}", "look at the cube's labels")])
    return np.flatnonzero(chosen)


def model_layers(cube: xr.Dataset) -> int:
    """Return how many blocks the model has."""
    return int(cube.attrs.get("model_layers", cube.layer.values.max() + 1))


def select(run: Cube, layers: Spec, languages: Sequence[str] | None, *, last: bool = False) -> Selected:
    """Choose what is exported.

    Parameters
    ----------
    run
        Run folder, or a cube: a part of one is all that is exported.
    layers
        As for an extraction, of one component; ``all`` is what the cube has.
    languages
        All by default.
    last
        Whether the last content token of each sample is all that is exported.

    Raises
    ------
    InputError, MissingError
        Where the cube lacks what is asked for.
    """
    cube = as_cube(run)
    selection.require(cube, "n_tokens", "token_id", "sample_id", "text", "token")
    asked, faults = parse(layers)
    chosen: dict[str, tuple[int, ...]] = {}
    if not faults:
        chosen, faults = resolve(asked, dict.fromkeys(COMPONENTS, model_layers(cube)))
    if not faults and len(chosen) != 1:
        what = f"{' and '.join(chosen)} are several components" if chosen else "names no layer"
        faults = [Fault("layers", what, "export one component at a time")]
    names = list(dict.fromkeys(cube.language.values.astype(str).tolist()))
    unknown = [name for name in languages or [] if name not in names]
    faults += [
        Fault("languages", f"{name!r} is not in the cube", f"it has {', '.join(names)}") for name in unknown
    ]
    if faults:
        raise InputError(faults)
    ((component, wanted),) = chosen.items()
    if last and component != "residual":
        raise InputError([Fault("layers", f"names {component}", "a batch holds the residual stream alone")])
    if last:
        selection.require(cube, "last")
    elif component not in cube:
        raise MissingError(
            f"the cube has no `{component}` of every token; extract it with `{component}` among `save`"
        )
    selection.require(cube, "last" if last else component)
    kept = selection.captured(cube, component).layer.values.tolist()
    if str(layers).strip() in ("all", f"{component}_all"):
        wanted = tuple(kept)
    if lacking := sorted(set(wanted) - set(kept)):
        raise MissingError(
            f"the cube has no {component} of layers {describe(lacking)}; it has {describe(kept)}"
        )
    texts = cube.language.values.astype(str)
    rows = {name: np.flatnonzero(texts == name) for name in names if name in (languages or names)}
    return Selected(cube, component, wanted, rows)
