"""How alike the representations of layers are, of languages, and of models."""

from collections.abc import Callable
from functools import partial

import numpy as np
import xarray as xr

from ..errors import Fault, InputError, MissingError
from . import parts
from .kernels.cka import align, minibatch_cka, top_share, unit_rms, without_top, z_scored
from .tokens import sampled_tokens, token_cka

_VARIANTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "cka_without_top": without_top,
    "cka_z_scored": z_scored,
    "cka_unit_rms": unit_rms,
}
_CORE = [["layer", "sample", "hidden"]]


def cka(
    a: xr.Dataset,
    b: xr.Dataset | None = None,
    *,
    values: str = "pooled",
    pairs: str | None = None,
    batch: int | None = None,
    most_tokens: int = 4096,
    seed: int = 0,
) -> xr.Dataset:
    """Compare layers with each other: debiased centred kernel alignment, linear kernel.

    Parameters
    ----------
    a
        From :func:`actkit.open_cube`.
    b
        Another cube on the same samples, matched by language and ``sample_id``: each layer of ``a`` with
        each of ``b``. By default ``a`` with itself.
    values
        ``pooled`` or ``last``, one vector a sample; or ``tokens``: content tokens.
    pairs
        A label that samples share which are not independent, such as twins: the jackknife leaves them out
        together. Tokens always go with their sample.
    batch
        Sum HSIC over random batches of so many vectors instead; then there is no ``se``.
    most_tokens
        Of ``tokens``, how many are drawn at random in each language.
    seed
        Of what is drawn.

    Returns
    -------
    xarray.Dataset
        Dims ``(language, layer, layer_2)``: ``cka`` with its standard error ``se`` (jackknife), and
        ``cka_biased``, which has a floor far above 0. ``n`` has dims ``(language,)``. Computed when asked
        for.

    Raises
    ------
    InputError, MissingError
        Where the cubes have no samples in common, or lack what is asked for.

    Notes
    -----
    The unbiased HSIC of Song et al. (JMLR 2012), normalised as by Kornblith et al. (ICML 2019) and Nguyen et
    al. (ICLR 2021). It may be negative, is never clipped, and is NaN where it is undefined.

    Examples
    --------
    >>> from actkit import open_cube
    >>> from actkit.testing import write_cube
    >>> found = cka(open_cube(write_cube(n_samples=40)))
    >>> float(found.cka.sel(language="english", layer=0, layer_2=0).round(6))
    1.0
    """
    if b is not None and values == "tokens":
        raise InputError([Fault("values", "two cubes have other tokens", "compare pooled or last vectors")])
    estimator = "debiased" if batch is None else f"minibatch of {batch}"
    arrays = [_vectors(cube, values, most_tokens, seed) for cube in (a, b) if cube is not None]
    if b is not None:
        arrays = list(_matched(*arrays))
    labels = _pairs(arrays[0], values, pairs)

    def summarize(_language: str, places: np.ndarray) -> xr.Dataset:
        own = [array.isel(sample=places) for array in arrays]
        groups = None if labels is None else parts.codes(labels[places])
        kernel = partial(_compare, groups=groups, batch=batch, seed=seed)
        if b is None:
            names, core, sizes = ["layer", "layer_2"], _CORE, {"layer_2": own[0].sizes["layer"]}
        else:
            own[1] = own[1].rename(layer="layer_2", hidden="hidden_2")
            names, sizes = ["layer", "layer_2"], {}
            core = [*_CORE, ["layer_2", "sample", "hidden_2"]]
        out = [names] * (3 if batch is None else 1)
        found = parts.apply(kernel, *own, core=core, out=out, sizes=sizes, each=False)
        result = xr.Dataset(dict(zip(("cka", "se", "cka_biased"), found, strict=False)))
        return result.assign(n=len(places))

    result = parts.by_language(arrays[0], summarize)
    result = result.assign_coords(layer=arrays[0].layer.values, layer_2=arrays[-1].layer.values)
    result.attrs = parts.settings(
        arrays[0],
        "cka",
        values=values,
        estimator=estimator,
        pairs=pairs,
        model=a.attrs.get("model", ""),
        model_2=None if b is None else b.attrs.get("model", ""),
    )
    return result


def adjacent_cka(
    cube: xr.Dataset,
    *,
    values: str = "pooled",
    pairs: str | None = None,
    variants: bool = True,
) -> xr.Dataset:
    """Compare each layer with the next one.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    values
        ``pooled`` or ``last``; or ``tokens``: all content tokens, which are read once, a block at a time.
    pairs
        As for :func:`cka`.
    variants
        Whether to say what the value becomes without what often dominates it; three times the work.

    Returns
    -------
    xarray.Dataset
        Dims ``(language, layer)``, where ``layer`` is the lower of the two: ``cka`` with ``se`` and the 95%
        interval ``low`` to ``high``; ``cka_biased``; ``participation_ratio`` and ``top_share`` (the part of
        the variance in its 3 largest dimensions) of the lower layer; ``cka_without_top`` (those dimensions
        left out), ``cka_z_scored`` (dimensions scaled to one variance), ``cka_unit_rms`` (vectors scaled
        to one length); ``n`` with dims ``(language,)``. Of ``tokens`` ``cka``, ``se``, ``low``, ``high``,
        ``n``.

    Raises
    ------
    InputError, MissingError
        Where the cube lacks what is asked for.
    """
    result = token_cka(cube, pairs) if values == "tokens" else _adjacent(cube, values, pairs, variants)
    result["low"], result["high"] = (
        result["cka"] - parts.Z95 * result["se"],
        result["cka"] + parts.Z95 * result["se"],
    )
    result.attrs = parts.settings(
        cube,
        "adjacent_cka",
        values=values,
        estimator="debiased",
        pairs=pairs,
        interval="95%, jackknife over samples" if pairs is None else f"95%, jackknife over {pairs}",
    )
    return result


def language_cka(cube: xr.Dataset, *, values: str = "pooled", pairs: str | None = None) -> xr.Dataset:
    """Compare languages at each layer, on the samples that both have, matched by ``sample_id``.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`, of several languages.
    values, pairs
        As for :func:`cka`, without ``tokens``.

    Returns
    -------
    xarray.Dataset
        Dims ``(language, language_2, layer)``: ``cka``, ``se``, ``low``, ``high``, ``cka_biased``;
        ``n`` with dims ``(language, language_2)``.

    Raises
    ------
    InputError
        Where no two languages share samples.
    """
    own = parts.vectors(cube, values)
    labels = _pairs(own, values, pairs)
    names = own.sample_id.values.astype(str)
    places = dict(parts.languages(own))
    common = {
        (one, two): _common(names, first, second)
        for one, first in places.items()
        for two, second in places.items()
    }
    if not any(len(found[0]) for (one, two), found in common.items() if one != two):
        raise InputError([Fault("sample_id", "no sample has the same one in two languages")])

    def compare(one: str, two: str) -> xr.Dataset:
        first, second = common[one, two]
        groups = None if labels is None else parts.codes(labels[first])
        pair = own.isel(sample=first).drop_vars("sample"), own.isel(sample=second).drop_vars("sample")
        core = [["sample", "hidden"], ["sample", "hidden"]]
        found = parts.apply(partial(_of_two, groups=groups), *pair, core=core, out=[[], [], []])
        return xr.Dataset(dict(zip(("cka", "se", "cka_biased"), found, strict=True))).assign(n=len(first))

    index = [np.array(list(places), dtype=object)] * 2
    rows = [
        xr.concat([compare(one, two) for two in places], xr.Variable("language_2", index[1]))
        for one in places
    ]
    result = xr.concat(rows, xr.Variable("language", index[0])).assign_coords(layer=own.layer.values)
    result["low"], result["high"] = (
        result["cka"] - parts.Z95 * result["se"],
        result["cka"] + parts.Z95 * result["se"],
    )
    result.attrs = parts.settings(
        own, "language_cka", values=values, estimator="debiased", pairs=pairs, interval="95%, jackknife"
    )
    return result


def _vectors(cube: xr.Dataset, values: str, most_tokens: int, seed: int) -> xr.DataArray:
    if values == "tokens":
        return sampled_tokens(cube, most_tokens, seed)
    return parts.vectors(cube, values)


def _pairs(array: xr.DataArray, values: str, pairs: str | None) -> np.ndarray | None:
    if pairs is not None:
        return parts.column(array, pairs, "pairs")
    return array.sample_id.values.astype(str) if values == "tokens" else None


def _common(names: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of samples of the same name, in the same order."""
    _, one, two = np.intersect1d(names[first], names[second], return_indices=True)
    return first[one], second[two]


def _matched(one: xr.DataArray, two: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Return the samples that two cubes share, in the same order."""
    keys = [
        np.char.add(np.char.add(array.language.values.astype(str), "\0"), array.sample_id.values.astype(str))
        for array in (one, two)
    ]
    _, first, second = np.intersect1d(keys[0], keys[1], return_indices=True)
    if not len(first):
        raise InputError(
            [
                Fault(
                    "b",
                    "no sample has the same language and sample_id in both cubes",
                    "compare runs of one table",
                )
            ]
        )
    second_part = two.isel(sample=second).assign_coords(sample=one.sample.values[first])
    return one.isel(sample=first), second_part


def _compare(
    x: np.ndarray, y: np.ndarray | None = None, *, groups: np.ndarray | None, batch: int | None, seed: int
) -> tuple[np.ndarray, ...]:
    """Return debiased CKA, its error and the biased one, each layer of one with each of the other."""
    both = x if y is None else _beside(x, y)
    if batch is not None:
        found: tuple[np.ndarray, ...] = (minibatch_cka(both, batch=batch, seed=seed),)
    else:
        aligned = align(both, groups)
        found = (aligned.cka, aligned.se, aligned.biased)
    return found if y is None else tuple(table[: len(x), len(x) :] for table in found)


def _beside(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Put layers of two widths into one array, filled up with zeros, which change no Gram matrix."""
    both = np.zeros((len(x) + len(y), x.shape[1], max(x.shape[2], y.shape[2])), dtype=np.result_type(x, y))
    both[: len(x), :, : x.shape[2]] = x
    both[len(x) :, :, : y.shape[2]] = y
    return both


def _of_two(x: np.ndarray, y: np.ndarray, *, groups: np.ndarray | None) -> tuple[float, float, float]:
    found = align(np.stack([x, y]), groups)
    return found.cka[0, 1], found.se[0, 1], found.biased[0, 1]


def _adjacent(cube: xr.Dataset, values: str, pairs: str | None, variants: bool) -> xr.Dataset:
    own = parts.vectors(cube, values)
    if own.sizes["layer"] < 2:
        raise MissingError("the cube has one layer; extract it again with more of them")
    labels = _pairs(own, values, pairs)
    names = ["cka", "se", "cka_biased", "participation_ratio", "top_share", *(_VARIANTS if variants else ())]

    def summarize(_language: str, places: np.ndarray) -> xr.Dataset:
        groups = None if labels is None else parts.codes(labels[places])
        kernel = partial(_neighbours, groups=groups, variants=variants)
        part = own.isel(sample=places)
        lower = {"lower": part.sizes["layer"] - 1}
        out = [["lower"]] * len(names)
        found = parts.apply(kernel, part, core=_CORE, out=out, sizes=lower, each=False)
        return xr.Dataset(dict(zip(names, found, strict=True))).assign(n=len(places))

    return parts.by_language(own, summarize).rename(lower="layer").assign_coords(layer=own.layer.values[:-1])


def _neighbours(x: np.ndarray, *, groups: np.ndarray | None, variants: bool) -> tuple[np.ndarray, ...]:
    whole = align(x, groups)
    others = [align(change(x), jackknife=False) for change in _VARIANTS.values()] if variants else []
    return (
        _next(whole.cka),
        _next(whole.se),
        _next(whole.biased),
        whole.participation[:-1],
        top_share(x)[:-1],
        *(_next(other.cka) for other in others),
    )


def _next(table: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.diagonal(table, offset=1))
