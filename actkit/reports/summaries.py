"""Cache of statistics computed from cubes, in memory and in the run folder."""

import hashlib
import inspect
import json
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any, TypeAlias

import dask.base
import xarray as xr

from .. import canonical, schema, stats
from ..object_urls import is_url
from ..stats.cka import adjacent_cka, cka, language_cka
from ..stats.classification_probe import classification_probe
from ..stats.cross_language import transfer
from ..stats.differential import group_differential
from ..stats.directions import direction_cosines
from ..stats.erasure_probe import erasure_probe
from ..stats.feature_differential import feature_differential
from ..stats.geometry import anisotropy, intrinsic_dimension
from ..stats.kmeans import cluster_samples
from ..stats.norms import layer_norms, layer_updates, massive_activations
from ..stats.regression_probe import regression_probe
from ..stats.similarity import similarity
from ..stats.token_correlation import token_correlation
from ..stats.transitions import transitions
from ..store.metadata import CHECKSUM
from ..store.object_clients import work_folder
from ..store.reader import open_cube
from ..store.result_files import read_result, write_result
from ..store.stored_array import cube_version
from ..store.xarray_copies import COPY

FOLDER = "summaries"
_IN_MEMORY = 64
_LIBRARIES = ("numpy", "scipy", "scikit-learn")
_Key = tuple[str, tuple[int, ...], str]  # path, version and digest
Request: TypeAlias = tuple[str, Mapping[str, Any]]  # name of a statistic, and its options
_STATISTICS: dict[str, Callable[..., xr.Dataset]] = {
    function.__name__: function
    for function in (
        adjacent_cka,
        anisotropy,
        cka,
        classification_probe,
        cluster_samples,
        direction_cosines,
        erasure_probe,
        feature_differential,
        group_differential,
        intrinsic_dimension,
        language_cka,
        layer_norms,
        layer_updates,
        massive_activations,
        regression_probe,
        similarity,
        token_correlation,
        transfer,
        transitions,
    )
}
_DEFAULTS = {
    name: {
        option: parameter.default
        for option, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    for name, function in _STATISTICS.items()
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
        return self.get_several(cube, [(statistic, options)])[0]

    def get_several(self, cube: xr.Dataset, requests: Sequence[Request]) -> list[xr.Dataset]:
        """Return several statistics, which read what they share once.

        Parameters
        ----------
        cube
            As for :meth:`get`.
        requests
            Names of statistics, each with its options.

        Raises
        ------
        ActkitError
            As for :meth:`get`.

        Warns
        -----
        UserWarning
            With the warnings of the statistics, also if their results are cached.
        """
        # the values of a copy cannot be identified without reading them
        cubes = [cube, *(value for _, options in requests for value in options.values() if _is_cube(value))]
        is_copy = any(COPY in each.attrs for each in cubes)
        results = compute(cube, requests) if is_copy else self._cached(cube, requests)
        for text in dict.fromkeys(text for result in results for text in result.encoding[_WARNINGS]):
            warnings.warn(text, stacklevel=3)
        return results

    def _cached(self, cube: xr.Dataset, requests: Sequence[Request]) -> list[xr.Dataset]:
        source, version_on_disk = _version_of(cube)
        digests = [_digest(cube, statistic, options) for statistic, options in requests]
        keys = [(source, version_on_disk, digest) for digest in digests]
        with ExitStack() as held:  # concurrent requests share one computation
            for key in sorted(set(keys)):
                with self._lock:
                    busy = self._busy.setdefault(key, Lock())
                held.enter_context(busy)
            results: dict[_Key, xr.Dataset] = {}
            missing: dict[_Key, Request] = {}
            for key, request in zip(keys, requests, strict=True):
                known = self._recall(key)
                known = _read(_file(key, request[0]), key[-1]) if known is None else known
                if known is not None:
                    results[key] = known
                else:
                    missing[key] = request
            computed = compute(cube, list(missing.values()))
            for (key, request), result in zip(missing.items(), computed, strict=True):
                results[key] = result
                _write(result, _file(key, request[0]), key[-1])
            for key, result in results.items():
                self._remember(key, result)
        return [results[key] for key in keys]

    def _recall(self, key: _Key) -> xr.Dataset | None:
        with self._lock:
            return self._known.get(key)

    def _remember(self, key: _Key, result: xr.Dataset) -> None:
        with self._lock:
            self._known[key] = result
            self._known.move_to_end(key)
            while len(self._known) > _IN_MEMORY:
                self._busy.pop(self._known.popitem(last=False)[0], None)


_WARNINGS = "actkit_warnings"  # in the encoding of a result, which xarray does not compare


def compute(cube: xr.Dataset, requests: Sequence[Request]) -> list[xr.Dataset]:
    """Compute statistics together, and keep the warnings of each in its encoding."""
    lazy, texts = [], []
    for statistic, options in requests:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            lazy.append(_STATISTICS[statistic](cube, **options))
        texts.append([str(entry.message) for entry in caught if entry.category is UserWarning])
    results = list(dask.base.compute(*lazy)) if lazy else []  # type: ignore[no-untyped-call]
    for result, of_result in zip(results, texts, strict=True):
        result.encoding[_WARNINGS] = of_result
    return results


def is_unmodified(cube: xr.Dataset) -> bool:
    """Return whether a Dataset holds all samples, layers and variables of its cube, as they are on disk."""
    source = cube.encoding.get("source")
    if source is None or is_url(source) or COPY in cube.attrs or CHECKSUM not in cube.attrs:
        return False
    opened = open_cube(source, partial=True)
    return bool(dask.base.tokenize(cube) == dask.base.tokenize(opened))


@cache
def _version() -> str:
    """Return a hash of the code of the statistics, so that results of other code are recomputed."""
    folder = Path(str(stats.__file__)).parent
    files = [Path(str(module.__file__)) for module in (canonical, schema)]
    hashed = hashlib.sha256()
    for path in sorted([*folder.rglob("*.py"), *files]):
        hashed.update(path.name.encode() + path.read_bytes())
    hashed.update(" ".join(version(library) for library in _LIBRARIES).encode())
    return hashed.hexdigest()


def _is_cube(option: Any) -> bool:
    return isinstance(option, xr.Dataset)


def _version_of(cube: xr.Dataset) -> tuple[str, tuple[int, ...]]:
    """Return where a cube is, and which version of it; empty for a remote one."""
    source = str(cube.encoding["source"])
    return source, () if is_url(source) else cube_version(Path(source))


def _samples_of(cube: xr.Dataset) -> tuple[str, list[int]]:
    """Return the checksum of a cube and its committed samples."""
    return str(cube.attrs[CHECKSUM]), cube.sample.values.tolist()


def _digest(cube: xr.Dataset, statistic: str, options: Mapping[str, Any]) -> str:
    """Return a hash of everything the result depends on: the cube, its committed samples, options, code."""
    every = _DEFAULTS[statistic] | dict(options)
    named = {
        name: [*_version_of(value), *_samples_of(value)] if _is_cube(value) else value
        for name, value in every.items()
    }
    asked = [_version(), statistic, sorted(named.items()), *_samples_of(cube)]
    return hashlib.sha256(json.dumps(asked, default=str).encode()).hexdigest()


def _file(key: _Key, statistic: str) -> Path:
    run, _, _ = key[0].rpartition("/")
    return (
        (work_folder(run) if is_url(run) else Path(run)) / FOLDER / f"{statistic}-{key[-1][:24]}.safetensors"
    )


def _read(path: Path, key: str) -> xr.Dataset | None:
    """Return the result cached under a key if its file is intact; None otherwise."""
    try:
        result = read_result(path, key=key)
        result.encoding[_WARNINGS] = json.loads(result.attrs.pop(_WARNINGS))
        return result
    except Exception:  # untrusted files may raise anything; the result is recomputed
        return None


def _write(result: xr.Dataset, path: Path, key: str) -> None:
    kept = result.assign_attrs({_WARNINGS: json.dumps(result.encoding[_WARNINGS])})
    with suppress(OSError):  # read-only folders cache nothing
        path.parent.mkdir(exist_ok=True)
        write_result(path, kept, key=key)
