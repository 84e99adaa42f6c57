"""Match samples of two cubes, or of two languages, by id or by text."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import xarray as xr

from ..errors import Fault, InputError, MissingError
from ..schema import GIVEN_IDS, ORDER_IDS

Match = Literal["ids", "text"]
MATCHES: tuple[Match, ...] = get_args(Match)
_SHOWN = 3
_MATCH_HINT = "match samples by text: match='text'; or extract both runs with an `id_column`"


def same_samples(a: xr.DataArray, b: xr.DataArray, match: Match) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of the samples that two cubes share, in the same order.

    Parameters
    ----------
    a, b
        Arrays with the coordinates ``sample_id``, ``language`` and ``text``, and the attributes of their
        cubes.
    match
        ``ids`` matches language and ``sample_id``; ``text`` matches language and text.

    Raises
    ------
    InputError
        If no sample is shared, if ids or texts are ambiguous, or if ids are row numbers and the texts of a
        pair differ.
    """
    if match not in MATCHES:
        raise InputError([Fault("match", f"{match!r} is unknown", f"one of {', '.join(MATCHES)}")])
    name = "sample_id" if match == "ids" else "text"
    keys = [_keys(array, name) for array in (a, b)]
    if match == "text" and not any(text for _, text in (*keys[0], *keys[1])):
        raise InputError([Fault("match", "the samples have no texts", "import the runs again with `data`")])
    positions = [{key: position for position, key in enumerate(keys_of_cube)} for keys_of_cube in keys]
    shared = sorted(positions[0].keys() & positions[1].keys())
    if not shared:
        languages = " and ".join(
            ", ".join(sorted({language for language, _ in keys_of_cube})) for keys_of_cube in keys
        )
        problem = f"no sample has the same language and {name} in both cubes, in {languages}"
        raise InputError([Fault("b", problem, "compare runs of the same data")])
    faults = [
        fault
        for name_of_cube, keys_of_cube in zip("ab", keys, strict=True)
        for fault in _repeated(name_of_cube, keys_of_cube, set(shared), name)
    ]
    if faults:
        raise InputError(faults, "samples cannot be matched")
    first, second = (np.array([keys_of_cube[key] for key in shared]) for keys_of_cube in positions)
    if match == "ids" and not all(_are_given(array) for array in (a, b)):
        _check_texts(_texts(a)[first], _texts(b)[second], shared)
    return first, second


def check_languages(array: xr.DataArray, hint: str) -> None:
    """Check that a ``sample_id`` identifies the same content in every language of a cube.

    Parameters
    ----------
    array
        As for :func:`same_samples`.
    hint
        How to fix the fault.

    Raises
    ------
    InputError
        If several samples of a language have the same id, or ids are row numbers that differ in meaning
        between languages or runs.
    """
    keys = _keys(array, "sample_id")
    faults = _repeated("sample_id", keys, set(keys), "sample_id")
    languages = {language for language, _ in keys}
    if array.attrs.get("ids") == ORDER_IDS and len(languages) > 1:
        problem = "samples were numbered separately in each language, in the order of imported files"
        faults.append(Fault("sample_id", problem, f"{hint}; or, if that order is the same, {_DECLARE_IDS}"))
    elif not _are_given(array) and len(np.unique(array.sample.values)) < array.sizes["sample"]:
        problem = "samples of several runs have row numbers as ids"
        faults.append(
            Fault("sample_id", problem, f"{hint}; or, if equal numbers belong together, {_DECLARE_IDS}")
        )
    if faults:
        raise InputError(faults, "samples cannot be matched")


_DECLARE_IDS = f"cube.assign_attrs(ids={GIVEN_IDS!r})"


def _are_given(array: xr.DataArray) -> bool:
    return array.attrs.get("ids") == GIVEN_IDS


def _texts(array: xr.DataArray) -> np.ndarray:
    if "text" not in array.coords:
        return np.full(array.sizes["sample"], "", dtype=object)
    return np.array([str(value) for value in array.text.values.tolist()], dtype=object)


def _keys(array: xr.DataArray, name: str) -> list[tuple[str, str]]:
    if name not in array.coords and name != "text":
        raise MissingError(f"the cube has no `{name}`; keep it when selecting")
    values = _texts(array).tolist() if name == "text" else array[name].values.tolist()
    return [
        (str(language), str(value))
        for language, value in zip(array.language.values.tolist(), values, strict=True)
    ]


def _repeated(
    where: str, keys: Sequence[tuple[str, str]], matched: set[tuple[str, str]], name: str
) -> list[Fault]:
    """Return a fault if several of the samples to be matched share an id or text."""
    repeated = [key for key, count in Counter(keys).items() if count > 1 and key in matched]
    if not repeated:
        return []
    shown = ", ".join(f"`{_shortened(key[1])}` in {key[0]}" for key in repeated[:_SHOWN])
    more = f" and {len(repeated) - _SHOWN:,} more" if len(repeated) > _SHOWN else ""
    first = "keep the first of each: cube.isel(sample=~cube.text.to_series().duplicated().values)"
    hint = first if name == "text" else "give each sample a unique id with cube.assign_coords"
    return [Fault(where, f"several samples have the same {name}: {shown}{more}", hint)]


def _check_texts(a: np.ndarray, b: np.ndarray, shared: Sequence[tuple[str, str]]) -> None:
    """Check that samples matched by row number have the same text."""
    different = np.flatnonzero((a != b) | (a == ""))
    if not different.size:
        return
    first = different[0]
    texts = f"`{_shortened(a[first])}` and `{_shortened(b[first])}`" if a[first] or b[first] else "no texts"
    problem = (
        f"sample ids are row numbers, and the texts differ in {different.size:,} of {len(a):,} pairs: "
        f"`{shared[first][1]}` has {texts}"
    )
    hint = f"{_MATCH_HINT}; if these numbers are ids from the data, declare them: {_DECLARE_IDS}"
    raise InputError([Fault("b", problem, hint)], "samples cannot be matched")


def _shortened(text: str, max_length: int = 40) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= max_length else f"{flat[:max_length]}…"
