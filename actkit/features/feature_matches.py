"""Features of one autoencoder that another one has too: between layers, seeds and models."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import xarray as xr
from scipy import sparse

from ..canonical import Cube
from ..errors import Fault, InputError, MissingError
from ..stats import selection
from ..stats.sparse_features import Features, features_of
from .nearest_rows import MATCHED, NearestRows, correlation_matches, cosine_matches
from .quality_baselines import random_directions
from .sae_loader import load_saes
from .sae_set import SaeSet

_SAMPLES = 256  # read at once
Saes = SaeSet | str | os.PathLike[str]


def match_features(
    saes: Saes,
    other: Saes | None = None,
    *,
    layers: Mapping[int, int] | Sequence[int] | None = None,
    features: Cube | None = None,
    other_features: Cube | None = None,
    tokens: selection.TokenSelection = "content",
    threshold: float = MATCHED,
    seed: int = 0,
) -> xr.Dataset:
    """Find for each feature the most similar one of another layer, seed or model.

    The similarity is the cosine of the directions in the decoders and, given the features of both on the same
    tokens, the correlation of their values. An index means nothing beyond its autoencoder, so that only
    matches show whether a feature persists.

    Parameters
    ----------
    saes
        Autoencoders, or the path of their folder.
    other
        Autoencoders to compare with; by default those of the next layer in `saes`.
    layers
        Layers to compare, or for each the layer of `other`; by default all that both have.
    features, other_features
        Sparse cubes of both from :func:`actkit.encode`, of the same tokens. The first is enough for
        neighbouring layers.
    tokens
        Tokens over which values are correlated, as for :func:`actkit.layer_norms`.
    threshold
        Cosine from which features count as the same.
    seed
        Seed of the random directions, and of the shuffled tokens.

    Returns
    -------
    xarray.Dataset
        Dims ``(layer, feature)``: ``best``, index of the most similar feature of the other, ``cosine``, and
        ``mutual``, whether each is the best match of the other. ``other_best`` and ``other_cosine`` are the
        reverse, dims ``(layer, other_feature)``. ``random_cosine`` is the best cosine with as many random
        directions. With `features`, ``correlated`` and ``correlation`` are the feature of largest correlation
        and its value, and ``random_correlation`` the largest with shuffled tokens. By layer: ``matched``, the
        share of features that are mutual best matches with a cosine of at least `threshold`,
        ``mean_cosine``, and both for random directions: ``matched_random``, ``mean_cosine_random``. -1 and
        NaN stand for no match: features without a direction or beyond the size of the autoencoder, and
        constant ones. If the widths of the activations differ, there are only correlations.

    Raises
    ------
    InputError
        If there are no layers to compare, the widths differ and no features are given, or the features are of
        other autoencoders or tokens.
    MissingError
        If a cube is not sparse, or lacks tokens.

    Notes
    -----
    The more features and the fewer dimensions, the larger the cosines of random directions: read
    ``matched`` next to ``matched_random``. Two models, even of one width, have unrelated bases unless one was
    tuned from the other; there, only correlations mean something.
    """
    ours = _opened(saes)
    theirs = ours if other is None else _opened(other)
    pairs = _pairs(ours, theirs, layers, neighbours=other is None)
    _check_options(threshold, features, other_features, neighbours=other is None)
    values = None
    if features is not None:
        values = _SharedTokens(features, features if other_features is None else other_features, tokens)
        values.check(pairs)
    results = []
    for layer, target in pairs.items():
        w_dec, other_w_dec = ours[layer].w_dec, theirs[target].w_dec
        result: dict[str, xr.Variable] = {}
        if w_dec.shape[1] == other_w_dec.shape[1]:
            result = _decoder_matches(w_dec, other_w_dec, threshold, seed)
        elif values is None:
            raise InputError([_width_fault(w_dec, other_w_dec, layer, target)])
        if values is not None:
            result |= values.matches(layer, target, (len(w_dec), len(other_w_dec)), seed)
        dims = {"feature": np.arange(len(w_dec)), "other_feature": np.arange(len(other_w_dec))}
        results.append(xr.Dataset(result, dims))
    combined = xr.concat(results, "layer", join="outer", fill_value=_fills(results[0]))
    combined = combined.assign_coords(
        layer=list(pairs), other_layer=("layer", list(pairs.values()), {"long_name": "Layer compared with."})
    )
    return combined.assign_attrs(
        statistic="match_features",
        component=ours.component,
        saes=ours.path,
        other=theirs.path,
        threshold=threshold,
        seed=seed,
    )


def _opened(saes: Saes) -> SaeSet:
    return saes if isinstance(saes, SaeSet) else load_saes(saes)


def _pairs(
    saes: SaeSet, other: SaeSet, layers: Mapping[int, int] | Sequence[int] | None, *, neighbours: bool
) -> dict[int, int]:
    """Return the layer of the other for each layer to compare."""
    following = dict(zip(saes.layers, saes.layers[1:], strict=False))
    default = following if neighbours else {layer: layer for layer in saes if layer in other}
    if layers is None:
        pairs = default
    elif isinstance(layers, Mapping):
        pairs = dict(layers)
    else:
        pairs = {layer: default.get(layer, layer) for layer in layers}
    faults = [
        Fault("layers", f"there is no autoencoder of layer {layer}", f"there are {group.layers}")
        for group, wanted in ((saes, pairs), (other, pairs.values()))
        for layer in wanted
        if layer not in group
    ]
    if not pairs:
        have = f"they have layers {saes.layers}" + ("" if neighbours else f" and {other.layers}")
        hint = "load two layers or more, or give other=" if neighbours else "give layers={layer: other layer}"
        faults.append(Fault("layers", f"there are none to compare: {have}", hint))
    if faults:
        raise InputError(list(dict.fromkeys(faults)))
    return pairs


def _check_options(
    threshold: float, features: Cube | None, other_features: Cube | None, *, neighbours: bool
) -> None:
    faults = []
    if not 0 < threshold <= 1:
        faults.append(Fault("threshold", f"is {threshold}", "give a cosine between 0 and 1"))
    if features is None and other_features is not None:
        faults.append(Fault("features", "is missing", "give the features of both autoencoders"))
    if features is not None and other_features is None and not neighbours:
        faults.append(Fault("other_features", "is missing", "give the features of both autoencoders"))
    if faults:
        raise InputError(faults)


@torch.inference_mode()
def _decoder_matches(
    ours: torch.Tensor, theirs: torch.Tensor, threshold: float, seed: int
) -> dict[str, xr.Variable]:
    found = cosine_matches(ours, theirs)
    random = cosine_matches(ours, random_directions(len(theirs), theirs.shape[1], seed).to(ours))
    result = _variables(found, "best", "cosine", "Cosine of the directions in the decoders.")
    result["random_cosine"] = _variable("feature", random.similarity, "Best cosine with random directions.")
    for name, matches in (("", found), ("_random", random)):
        is_matched = matches.mutual & (matches.similarity >= threshold)
        share, mean = float(is_matched.mean()), float(np.nanmean(matches.similarity))
        result[f"matched{name}"] = xr.Variable((), share, {"long_name": "Share of features with a match."})
        result[f"mean_cosine{name}"] = xr.Variable((), mean, {"long_name": "Mean of the best cosines."})
    return result


def _width_fault(ours: torch.Tensor, theirs: torch.Tensor, layer: int, target: int) -> Fault:
    what = f"have widths {ours.shape[1]:,} at layer {layer} and {theirs.shape[1]:,} at layer {target}"
    return Fault("autoencoders", what, "give the features of both, whose values can be correlated")


def _variables(found: NearestRows, best: str, similarity: str, meaning: str) -> dict[str, xr.Variable]:
    index = "Index of the most similar feature of the other."
    return {
        best: _variable("feature", found.best, index),
        similarity: _variable("feature", found.similarity, meaning),
        "mutual": _variable("feature", found.mutual, "Whether each is the best match of the other."),
        f"other_{best}": _variable("other_feature", found.other_best, index),
        f"other_{similarity}": _variable("other_feature", found.other_similarity, meaning),
    }


def _variable(dim: str, values: np.ndarray, meaning: str) -> xr.Variable:
    return xr.Variable((dim,), values, {"long_name": meaning})


def _fills(result: xr.Dataset) -> dict[str, object]:
    """Return the value of each variable beyond the size of an autoencoder."""
    kinds: dict[str, object] = {"i": -1, "b": False, "f": np.nan}
    return {str(name): kinds[variable.dtype.kind] for name, variable in result.data_vars.items()}


class _SharedTokens:
    """Values of the features of two cubes at the same tokens."""

    def __init__(self, features: Cube, other: Cube, tokens: selection.TokenSelection) -> None:
        self.ours = features_of(features, tokens)
        self.theirs = self.ours if other is features else features_of(other, tokens)

    def check(self, pairs: Mapping[int, int]) -> None:
        """Check that both are of the same tokens, and have the layers."""
        ours, theirs = self.ours, self.theirs
        ids = [
            list(zip(one.cube.language.values, one.cube.sample_id.values, strict=True))
            for one in (ours, theirs)
        ]
        if ids[0] != ids[1]:
            what = "are of other samples than `features`"
            raise InputError([Fault("other_features", what, "encode the same cube with both")])
        if not np.array_equal(_counts(ours), _counts(theirs)):
            what = "have other numbers of tokens in a sample than `features`"
            hint = "encode cubes of the same tokens; models with other tokenizers cannot be compared"
            raise InputError([Fault("other_features", what, hint)])
        for features, layers in ((ours, pairs), (theirs, pairs.values())):
            if missing := sorted(set(layers) - set(features.cube.layer.values.tolist())):
                raise MissingError(f"the features have no layers {missing}; encode them as well")

    def matches(self, layer: int, target: int, shape: tuple[int, int], seed: int) -> dict[str, xr.Variable]:
        """Return the matches by correlation."""
        ours = _values(self.ours, layer, shape[0])
        theirs = _values(self.theirs, target, shape[1])
        found = correlation_matches(ours, theirs)
        shuffled = np.random.default_rng(seed).permutation(theirs.shape[0])
        random = correlation_matches(ours, theirs[shuffled])
        meaning = "Largest correlation over tokens."
        result = _variables(found, "correlated", "correlation", meaning)
        del result["mutual"]
        meaning = "Largest correlation with shuffled tokens."
        return result | {"random_correlation": _variable("feature", random.similarity, meaning)}


def _counts(features: Features) -> np.ndarray:
    return np.asarray(features.mask.values.sum(axis=1))


def _values(features: Features, layer: int, n_features: int) -> sparse.csr_array:
    """Return the values of the features of a layer, dims ``(token, feature)``."""
    parts = []
    for start in range(0, features.mask.sizes["sample"], _SAMPLES):
        rows = slice(start, start + _SAMPLES)
        mask = features.mask.isel(sample=rows).values
        index, value = (
            array.sel(layer=layer).isel(sample=rows).transpose("sample", "token", "k").values[mask]
            for array in (features.index, features.value)
        )
        if index.size and int(index.max()) >= n_features:
            what = (
                f"have a feature {int(index.max())} at layer {layer}, but its autoencoder has {n_features:,}"
            )
            raise InputError([Fault("features", what, "give the features of these autoencoders")])
        ends = np.arange(len(index) + 1) * index.shape[1]
        shape = (len(index), n_features)
        part = sparse.csr_array(
            (value.astype(np.float64).ravel(), index.astype(np.int64).ravel(), ends), shape
        )
        part.sum_duplicates()  # padding is feature 0 with the value 0
        part.eliminate_zeros()
        parts.append(part)
    return sparse.csr_array(sparse.vstack(parts))
