"""What is computed of cubes, kept in memory and beside the cube: it is there at once the next time."""

import hashlib
import json
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

import xarray as xr

from ..stats.cka import adjacent_cka, cka, language_cka
from ..stats.differential import group_differential
from ..stats.directions import direction_cosines
from ..stats.norms import layer_norms, layer_updates
from ..stats.transfer import transfer
from ..stats.transitions import transitions
from ..store.layout import CHECKSUM

FOLDER = "summaries"
_IN_MEMORY = 64
_ORDER = "order_of_variables"  # which zarr does not keep
_STATISTICS: dict[str, Callable[..., xr.Dataset]] = {
    function.__name__: function
    for function in (
        adjacent_cka,
        cka,
        direction_cosines,
        group_differential,
        language_cka,
        layer_norms,
        layer_updates,
        transfer,
        transitions,
    )
}


class Summaries:
    """Statistics of cubes, each computed once; safe for several threads."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], xr.Dataset] = OrderedDict()
        self._lock = Lock()
        self._busy: dict[tuple[str, str], Lock] = {}

    def get(self, cube: xr.Dataset, statistic: str, **options: Any) -> xr.Dataset:
        """Return a statistic of a cube, computed.

        Parameters
        ----------
        cube
            From :func:`actkit.open_cube`, all of it.
        statistic
            The name of its function: ``layer_norms``, ``cka`` and so on.
        **options
            What that takes.

        Raises
        ------
        ActkitError
            Where the cube is damaged, or lacks what is asked for.
        """
        source = Path(cube.encoding["source"])
        key = str(source), _digest(cube, statistic, options)
        with self._lock:
            busy = self._busy.setdefault(key, Lock())
        with busy:  # two who ask at once wait for one answer
            with self._lock:
                if key in self._known:
                    self._known.move_to_end(key)
                    return self._known[key]
            kept = source.parent / FOLDER / f"{statistic}-{key[1]}.zarr"
            found = _read(kept)
            if found is None:
                found = _STATISTICS[statistic](cube, **options).compute()
                _write(found, kept)
            with self._lock:
                self._known[key] = found
                while len(self._known) > _IN_MEMORY:
                    self._busy.pop(self._known.popitem(last=False)[0], None)
        return found


def _digest(cube: xr.Dataset, statistic: str, options: Mapping[str, Any]) -> str:
    """Name a result by all that it depends on: the cube, how much of it there is, and the options."""
    samples = cube.sample.values
    asked = [statistic, sorted(options.items()), str(cube.attrs[CHECKSUM]), samples.tolist()]
    return hashlib.sha256(json.dumps(asked, default=str).encode()).hexdigest()[:24]


def _read(path: Path) -> xr.Dataset | None:
    if not path.is_dir():
        return None
    try:
        found = xr.open_zarr(path, consolidated=False, chunks=None).load()
        order = json.loads(found.attrs.pop(_ORDER))
        texts = {
            name: array.astype(object) for name, array in found.coords.items() if array.dtype.kind == "T"
        }
        ordered: xr.Dataset = found.assign_coords(texts)[order]
        return ordered
    except Exception:  # damaged, or written by another version: it is computed again
        return None


def _write(found: xr.Dataset, path: Path) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    kept = found.drop_encoding().assign_attrs({_ORDER: json.dumps(list(found.data_vars))})
    with suppress(OSError):  # a folder that may only be read keeps nothing
        path.parent.mkdir(exist_ok=True)
        kept.to_zarr(partial, mode="w", zarr_format=3, consolidated=False)
        shutil.rmtree(path, ignore_errors=True)
        partial.rename(path)
