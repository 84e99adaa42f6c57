"""Cache of statistics computed from cubes, in memory and in the run folder."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import xarray as xr
from safetensors.numpy import load, save

from ..object_urls import is_url
from ..regular_files import MB
from ..stats.cka import adjacent_cka, cka, language_cka
from ..stats.cross_language import transfer
from ..stats.differential import group_differential
from ..stats.directions import direction_cosines
from ..stats.norms import layer_norms, layer_updates
from ..stats.transitions import transitions
from ..store.folders import Folder
from ..store.object_clients import work_folder
from ..store.metadata import CHECKSUM
from ..store.stored_array import cube_version
from ..store.xarray_copies import COPY

FOLDER = "summaries"
_IN_MEMORY = 64
_MOST_BYTES = 256 * MB  # per file; larger results are not cached on disk
_VERSION = 5  # of the results; results of other versions are recomputed
_ABOUT = "actkit_summary"
_Key = tuple[str, tuple[int, ...], str]  # path, version and digest
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
    """Thread-safe cache of statistics, each computed once per cube."""

    def __init__(self) -> None:
        self._known: OrderedDict[_Key, xr.Dataset] = OrderedDict()
        self._lock = Lock()
        self._busy: dict[_Key, Lock] = {}

    def get(self, cube: xr.Dataset, statistic: str, **options: Any) -> xr.Dataset:
        """Return the computed statistic of a cube; results for copies are not cached.

        Parameters
        ----------
        cube
            From :func:`actkit.open_cube`, without selections.
        statistic
            Name of its function: ``layer_norms``, ``cka`` and so on.
        **options
            Options of that function.

        Raises
        ------
        ActkitError
            If the cube is damaged or gone, or lacks the data that the statistic needs.
        """
        if COPY in cube.attrs:  # its values cannot be identified without reading them
            return _STATISTICS[statistic](cube, **options).compute()
        source = str(cube.encoding["source"])
        digest = _digest(cube, statistic, options)
        key = source, () if is_url(source) else cube_version(Path(source)), digest
        with self._lock:
            busy = self._busy.setdefault(key, Lock())
        with busy:  # concurrent requests share one computation
            with self._lock:
                if key in self._known:
                    self._known.move_to_end(key)
                    return self._known[key]
            run = work_folder(source.rpartition("/")[0]) if is_url(source) else Path(source).parent
            kept = run / FOLDER / f"{statistic}-{digest[:24]}.safetensors"
            result = _read(kept, digest)
            if result is None:
                result = _STATISTICS[statistic](cube, **options).compute()
                _write(result, kept, digest)
            with self._lock:
                self._known[key] = result
                while len(self._known) > _IN_MEMORY:
                    self._busy.pop(self._known.popitem(last=False)[0], None)
        return result


def _digest(cube: xr.Dataset, statistic: str, options: Mapping[str, Any]) -> str:
    """Return a hash of everything the result depends on: the cube, its committed samples, the options."""
    samples = cube.sample.values
    asked = [_VERSION, statistic, sorted(options.items()), str(cube.attrs[CHECKSUM]), samples.tolist()]
    return hashlib.sha256(json.dumps(asked, default=str).encode()).hexdigest()


def _read(path: Path, key: str) -> xr.Dataset | None:
    """Return the result cached under a key if its file is intact; None otherwise."""
    try:
        with closing(Folder(path.parent, follow=False)) as folder:
            content = folder.read(path.name, _MOST_BYTES) or b""
        seal, body = content[: hashlib.sha256().digest_size], content[hashlib.sha256().digest_size :]
        return _decode(body) if seal == _seal(key, body) else None
    except Exception:  # untrusted files may raise anything; the result is recomputed
        return None


def _write(result: xr.Dataset, path: Path, key: str) -> None:
    body = _encode(result)
    with suppress(OSError):  # read-only folders cache nothing
        path.parent.mkdir(exist_ok=True)
        sealed = _seal(key, body) + body
        if len(sealed) <= _MOST_BYTES:
            with closing(Folder(path.parent, follow=False)) as folder:
                folder.replace(path.name, sealed)


def _seal(key: str, body: bytes) -> bytes:
    """Return a checksum of the result and its key, so that a file is valid only for its own key."""
    return hashlib.sha256(key.encode() + body).digest()


def _encode(result: xr.Dataset) -> bytes:
    """Serialise a result to safetensors: numbers as tensors, everything else as JSON."""
    tensors: dict[str, np.ndarray] = {}
    about: list[dict[str, Any]] = []
    for name, array in result.variables.items():
        kept: dict[str, Any] = {"name": name, "dims": array.dims, "attrs": array.attrs}
        kept["coord"] = name in result.coords
        if array.dtype.kind in "biuf":
            tensors[str(len(about))] = np.ascontiguousarray(array.values)
        else:
            kept |= {"texts": array.values.tolist(), "dtype": array.dtype.str}
        about.append(kept)
    return save(tensors, {_ABOUT: json.dumps({"variables": about, "attrs": result.attrs})})


def _decode(body: bytes) -> xr.Dataset:
    header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
    about, tensors = json.loads(header["__metadata__"][_ABOUT]), load(body)
    coords: dict[str, xr.Variable] = {}
    variables: dict[str, xr.Variable] = {}
    for number, kept in enumerate(about["variables"]):
        values = np.array(kept["texts"], kept["dtype"]) if "texts" in kept else tensors[str(number)]
        place = coords if kept["coord"] else variables
        place[kept["name"]] = xr.Variable(kept["dims"], values, kept["attrs"])
    return xr.Dataset(variables, coords, about["attrs"])
