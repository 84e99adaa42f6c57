"""Erasure of a label from activation vectors, so that no linear probe can read it."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

from ..canonical import Cube, as_cube
from ..errors import Fault, InputError
from ..layer_spec import describe
from ..regular_files import check_regular
from . import selection
from .finiteness import finite_cube
from .group_comparison import FEWEST
from .kernels.erasure import Erasure, erasure
from .kernels.norms import lengths
from .token_masks import SELECTED_TOKENS
from .token_selection import check_same_tokens, select_tokens

_MAP_DIMS = {
    "mean": ("language", "layer", "hidden"),
    "left": ("language", "layer", "hidden", "direction"),
    "right": ("language", "layer", "hidden", "direction"),
    "rank": ("language", "layer"),
    "shrunk": ("language", "layer"),
}


@dataclass(frozen=True)
class Eraser:
    """Affine maps, one per language and layer, that remove a label from vectors: LEACE.

    The map x − left rightᵀ (x − mean) gives every class the same mean, and changes the vectors as little as
    possible in the norm of the inverse covariance and in every other.

    Parameters
    ----------
    maps
        ``mean`` with dims ``(language, layer, hidden)``; ``left`` and ``right`` with dims ``(language, layer,
        hidden, direction)``, where ``direction`` has one entry fewer than there are classes; ``rank`` of the
        vectors and shrinkage intensity ``shrunk``, with dims ``(language, layer)``.
    settings
        Options of the fit: ``by``, ``labels``, ``vectors``, ``shrinkage`` and others.

    Notes
    -----
    Belrose et al., LEACE: perfect linear concept erasure in closed form, NeurIPS 2023, arXiv:2306.03819.

    The guarantee holds for the samples of the fit. On these, a cross-validated probe is *below* chance: the
    means of all samples are equal, so those of the training and the test part differ in opposite directions.
    Fit on half of the clusters and probe the other half. For these, some of the label remains, because the
    means of the classes are estimates: the squared Mahalanobis distance D² between two classes falls to about
    D² c / (D² + c) with c = d (1/n₀ + 1/n₁), for d dimensions and n₀ and n₁ independent samples.

    Examples
    --------
    >>> import numpy as np
    >>> from actkit import open_cube
    >>> from actkit.testing import write_cube
    >>> cube = open_cube(write_cube(n_samples=160, hidden=8))
    >>> is_fitted = np.isin(cube.image_id, np.unique(cube.image_id)[:40])
    >>> eraser = Eraser.fit(cube.isel(sample=is_fitted), by="gender", cluster="image_id")
    >>> held_out = eraser.transform(cube.isel(sample=~is_fitted))
    >>> eraser  # doctest: +ELLIPSIS
    Eraser(by='gender', labels=['female', 'male'], ...; languages english, arabic; layers 0-2)
    >>> seen = eraser.transform(cube.isel(sample=is_fitted)).pooled.sel(layer=1)
    >>> seen = seen.isel(sample=(seen.language == "english").values).load()
    >>> bool(abs(seen.groupby("gender").mean().diff("gender")).max() < 1e-12)
    True
    """

    maps: xr.Dataset
    settings: dict[str, Any]

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        languages = ", ".join(map(str, self.maps.language.values))
        layers = describe(self.maps.layer.values.tolist())
        return f"Eraser({options}; languages {languages}; layers {layers})"

    @classmethod
    def fit(
        cls,
        cube: Cube,
        *,
        by: str,
        vectors: selection.Pooling = "pooled",
        tokens: selection.TokenSelection = "content",
        shrinkage: Literal["ledoit-wolf"] | None = None,
        cluster: str | None = selection.AUTO,
    ) -> "Eraser":
        """Fit the maps of each language and layer of a cube; one layer is in memory at a time.

        Parameters
        ----------
        cube
            From :func:`actkit.open_cube`.
        by
            The label column to erase, with any number of values. Samples without a value are not used.
        vectors
            ``pooled``, ``last`` or ``prompt_end``.
        tokens
            Tokens that these vectors represent, as for :func:`adjacent_cka`. A cube to transform must then
            come from :func:`select_tokens` with the same tokens.
        shrinkage
            ``ledoit-wolf`` shrinks the covariance towards a multiple of the identity (Ledoit and Wolf 2004).
            Use it if there are not many times more samples than dimensions: without it, the map may amplify
            samples that were not part of the fit. It does not make up for a small number of samples; see the
            notes of the class.
        cluster
            A label column that dependent samples share, such as twins; ``auto`` detects it, and None takes
            samples to be independent. It changes the intensity of the shrinkage, which depends on the number
            of independent samples, and nothing else: samples weigh equally, as they do in a probe, so that
            the guarantee is about the data that a probe sees.

        Raises
        ------
        InputError, MissingError
            If the cube lacks requested data, or a language has fewer than two classes, or a class fewer than
            10 samples.
        """
        if shrinkage not in (None, "ledoit-wolf"):
            raise InputError([Fault("shrinkage", f"{shrinkage!r} is unknown", "ledoit-wolf")])
        array = selection.vectors(select_tokens(finite_cube(cube), tokens), vectors)
        labels = selection.column(array, by, "by")
        if not len(labels.values):
            raise InputError([Fault("by", f"no sample has a value of `{by}`", "choose another label")])
        choice = selection.cluster_choice(array, cluster, by)
        cluster_ids = None if choice.name is None else selection.clusters(array, choice.name)
        samples_of = {
            language: samples[labels.codes[samples] >= 0] for language, samples in selection.languages(array)
        }
        faults = [
            fault
            for language, samples in samples_of.items()
            for fault in _faults(language, labels.codes[samples], labels.texts)
        ]
        if faults or not samples_of:
            raise InputError(faults or [Fault("cube", "has no samples")], f"cannot erase {by}")
        rows = {
            language: [
                erasure(
                    array.isel(layer=layer, sample=samples).values,
                    labels.codes[samples],
                    None if cluster_ids is None else cluster_ids[samples],
                    shrink=shrinkage is not None,
                )
                for layer in range(array.sizes["layer"])
            ]
            for language, samples in samples_of.items()
        }
        settings = {
            "by": by,
            "labels": labels.texts,
            "vectors": vectors,
            "tokens": array.attrs.get(SELECTED_TOKENS),
            "shrinkage": shrinkage,
            **choice.attrs,
            "model": array.attrs.get("model", ""),
        }
        maps = _stacked(rows, array.layer.values, len(labels.texts) - 1)
        return cls(maps, {name: value for name, value in settings.items() if value is not None})

    def transform(self, cube: Cube, *, residual: bool = False) -> xr.Dataset:
        """Erase the label from the vectors of a cube, lazily.

        Parameters
        ----------
        cube
            A cube or run folder with the fitted languages and layers, not necessarily that of the fit.
        residual
            Whether to apply the maps to every token of `residual` as well, and to whichever of `pooled`,
            `last` and `prompt_end` exist; `norm` is then that of the result. The mean of the erased tokens
            of a sample is its erased mean, because the map is affine.

        Returns
        -------
        xarray.Dataset
            The cube, with these variables as float64. All others are unchanged, so a statistic of them still
            sees the label. The attributes ``erased`` and ``erased_variables`` record the erasure.

        Raises
        ------
        InputError, MissingError
            If the cube has a language or layer that was not fitted, another width, or lacks the vectors.
        """
        whole = as_cube(cube)
        check_same_tokens(whole, self.settings)
        names = [self.settings["vectors"]]
        if residual:
            names = ["residual", *(name for name in selection.POOLINGS if name in whole)]
        for name in names:
            if name in selection.POOLINGS:
                whole = selection.with_pooling(whole, name)
        selection.require(whole, *names)
        codes = self._check(whole)
        is_fitted = selection.captured(whole).layer.values
        maps = self.maps.sel(layer=is_fitted).reindex(layer=whole.layer.values, fill_value=0.0)
        result = whole.assign({name: _erased(whole[name], codes, maps) for name in names})
        if residual and "norm" in whole:
            (norm,) = selection.apply(lengths, result["residual"], core=[["hidden"]], out=[[]], each=False)
            result["norm"] = norm.transpose("layer", "sample", "token").assign_attrs(whole["norm"].attrs)
        result.attrs |= {"erased": self.settings["by"], "erased_variables": ", ".join(names)}
        if "metadata_sha256" in result.attrs:  # it identifies the values, which differ from now on
            seals = f"{result.attrs['metadata_sha256']} {self._digest()} {names}"
            result.attrs["metadata_sha256"] = hashlib.sha256(seals.encode()).hexdigest()
        return result

    def save(self, path: str | Path) -> None:
        """Write the eraser to a ``*.safetensors`` file, which :meth:`load` reads.

        Raises
        ------
        InputError
            If the path has another extension.
        """
        path = Path(path)
        _check_suffix(path)
        from safetensors.numpy import save_file

        arrays = {name: np.ascontiguousarray(self.maps[name].values) for name in _MAP_DIMS}
        about = {"settings": self.settings, "languages": self.maps.language.values.tolist()}
        arrays["layer"] = self.maps.layer.values
        save_file(arrays, path, {"actkit_eraser": json.dumps(about)})

    @classmethod
    def load(cls, path: str | Path) -> "Eraser":
        """Read an eraser from a ``*.safetensors`` file written by :meth:`save`.

        Raises
        ------
        InputError
            If the file is not an eraser.
        """
        path = Path(path)
        _check_suffix(path)
        from safetensors import SafetensorError, safe_open

        try:
            check_regular([path])
            with safe_open(path, "numpy") as file:
                about = json.loads((file.metadata() or {})["actkit_eraser"])
                arrays = {name: file.get_tensor(name) for name in (*_MAP_DIMS, "layer")}
            maps = xr.Dataset({name: (dims, arrays[name]) for name, dims in _MAP_DIMS.items()})
            languages = np.array(about["languages"], dtype=object)
            return cls(maps.assign_coords(language=languages, layer=arrays["layer"]), dict(about["settings"]))
        except (KeyError, OSError, TypeError, ValueError, SafetensorError) as error:
            raise InputError(
                [Fault(str(path), f"is not an eraser: {error}", "give a file written by save()")]
            ) from error

    def _check(self, cube: xr.Dataset) -> np.ndarray:
        """Return the index of each sample's language among the maps."""
        fitted = [str(language) for language in self.maps.language.values]
        languages = cube.language.values.astype(str)
        faults = []
        if unknown := sorted(set(languages) - set(fitted)):
            hint = f"the eraser has {', '.join(fitted)}; fit it to these languages, or select others"
            faults.append(Fault("language", f"no map was fitted for {', '.join(unknown)}", hint))
        layers = self.maps.layer.values.tolist()
        if missing := sorted(set(selection.captured(cube).layer.values.tolist()) - set(layers)):
            hint = f"select fitted layers, as cube.sel(layer={layers}) does"
            faults.append(Fault("layer", f"no map was fitted for {missing}", hint))
        if cube.sizes["hidden"] != self.maps.sizes["hidden"]:
            problem = f"has length {cube.sizes['hidden']}, but {self.maps.sizes['hidden']} was fitted"
            faults.append(Fault("hidden", problem, "use the cube of the same model"))
        if faults:
            raise InputError(faults, f"cannot erase {self.settings['by']}")
        return np.array([fitted.index(language) for language in languages], dtype=np.int64)

    def _digest(self) -> str:
        total = hashlib.sha256()
        for name in _MAP_DIMS:
            total.update(np.ascontiguousarray(self.maps[name].values).data)
        return total.hexdigest()


def _faults(language: str, codes: np.ndarray, texts: list[str]) -> list[Fault]:
    """Return a fault for each class that has too few samples to be erased."""
    counts = np.bincount(codes, minlength=len(texts))
    few = [
        Fault(language, f"`{text}` has {count} samples but needs {FEWEST}", "extract more, or select classes")
        for text, count in zip(texts, counts.tolist(), strict=True)
        if 0 < count < FEWEST
    ]
    if (counts > 0).sum() < 2:
        few.append(Fault(language, "has fewer than two classes", "choose another label or other languages"))
    return few


def _stacked(rows: dict[str, list[Erasure]], layers: np.ndarray, n_directions: int) -> xr.Dataset:
    """Return the maps of all languages and layers, with directions of zeros where there are fewer."""

    def padded(factor: np.ndarray) -> np.ndarray:
        return np.pad(factor, ((0, 0), (0, n_directions - factor.shape[1])))

    parts: dict[str, Any] = {name: [] for name in _MAP_DIMS}
    for row in rows.values():
        parts["mean"].append([part.mean for part in row])
        parts["left"].append([padded(part.left) for part in row])
        parts["right"].append([padded(part.right) for part in row])
        parts["rank"].append([part.rank for part in row])
        parts["shrunk"].append([part.shrunk for part in row])
    maps = xr.Dataset({name: (dims, np.array(parts[name])) for name, dims in _MAP_DIMS.items()})
    return maps.assign_coords(language=np.array(list(rows), dtype=object), layer=layers)


def _erased(array: xr.DataArray, codes: np.ndarray, maps: xr.Dataset) -> xr.DataArray:
    """Apply the map of each sample's language and layer, lazily if the array is."""
    lazy = array.chunk(hidden=-1) if array.chunks is not None else array
    result: xr.DataArray = xr.apply_ufunc(
        _apply_maps,
        lazy,
        xr.Variable("sample", codes),
        *(maps[name].variable for name in ("mean", "left", "right")),
        input_core_dims=[
            ["hidden"],
            [],
            ["language", "hidden"],
            *[["language", "hidden", "direction"]] * 2,
        ],
        output_core_dims=[["hidden"]],
        dask="parallelized",
        output_dtypes=[np.float64],
        keep_attrs="override",
    )
    return result.transpose(*array.dims)


def _apply_maps(
    values: np.ndarray, codes: np.ndarray, mean: np.ndarray, left: np.ndarray, right: np.ndarray
) -> np.ndarray:
    """Map vectors, dims ``(layer, sample, [token,] hidden)``; ``codes`` index the maps' ``language``."""
    exact = values.astype(np.float64)
    languages = codes.reshape(-1)
    n_directions = left.shape[-1]
    hidden = exact.shape[-1]
    of_layer = [
        array.reshape(-1, *shape)
        for array, shape in (
            (mean, (mean.shape[-2], hidden)),
            (left, (left.shape[-3], hidden, n_directions)),
            (right, (right.shape[-3], hidden, n_directions)),
        )
    ]
    for layer, (means, lefts, rights) in enumerate(zip(*of_layer, strict=True)):
        for language in np.unique(languages):
            rows = languages == language
            part = exact[layer, rows]
            exact[layer, rows] = part - (part - means[language]) @ rights[language] @ lefts[language].T
    return exact


def _check_suffix(path: Path) -> None:
    if path.suffix != ".safetensors":
        raise InputError([Fault(str(path), f"ends in {path.suffix!r}", "give .safetensors")])
