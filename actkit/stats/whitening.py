"""Whitening of activation vectors: ZCA or PCA, with optional shrinkage."""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import xarray as xr

from ..canonical import Cube, as_cube
from ..errors import Fault, InputError
from ..object_urls import is_url
from ..schema import MOMENTS
from . import selection
from .finiteness import finite_cube
from .kernels.moments import Moments
from .layer_moments import accumulate, layer_vectors
from .moment_files import gathered_moments
from .token_masks import SELECTED_TOKENS
from .token_selection import check_same_tokens, select_tokens
from .whitener_files import read_whitener, write_whitener

_MIN_VECTORS = 5  # per dimension
Method = Literal["zca", "pca"]
METHODS: tuple[str, ...] = get_args(Method)


@dataclass(frozen=True)
class Whitener:
    """A linear map to vectors of mean 0 and covariance 1, and back.

    Parameters
    ----------
    moments
        Moments of the vectors used for the fit.
    transform_matrix
        Whitening matrix, dims ``(hidden, component)``.
    inverse_matrix
        Inverse map, dims ``(component, hidden)``.
    rank
        Numerical rank of the covariance of the vectors, before shrinkage and regularisation.
    condition
        Ratio of the largest regularised variance to the smallest.
    settings
        Options of the fit: ``layer``, ``method``, ``eps_rel``, ``shrinkage`` and others.
    samples
        Coordinate ``sample`` of the samples used for the fit, dims ``(sample,)``.

    Notes
    -----
    ZCA and PCA whitening: Kessy, Lewin, Strimmer, Optimal whitening and decorrelation, The American
    Statistician 2018. docs/methods/directions.md has the formulas.

    Examples
    --------
    >>> from actkit import open_cube
    >>> from actkit.testing import write_cube
    >>> cube = open_cube(write_cube(n_samples=60, hidden=8))
    >>> whitener = Whitener.fit(cube, layer=1)
    >>> white = whitener.transform(cube)
    >>> back = whitener.inverse(white)
    >>> bool(abs(back - cube.residual.sel(layer=1)).max() < 1e-5)
    True
    >>> whitener  # doctest: +ELLIPSIS
    Whitener(method='zca', eps_rel=1e-06, layer=1, ...; rank 8 of 8, condition ...)
    """

    moments: Moments
    transform_matrix: np.ndarray
    inverse_matrix: np.ndarray
    rank: int
    condition: float
    settings: dict[str, Any]
    samples: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        return f"Whitener({options}; rank {self.rank} of {len(self.mean)}, condition {self.condition:.3g})"

    @property
    def mean(self) -> np.ndarray:
        """Mean that is subtracted first, dims ``(hidden,)``."""
        return self.moments.mean

    @classmethod
    def fit(
        cls,
        cube: Cube,
        *,
        layer: int,
        language: str | None = None,
        vectors: selection.Vectors = "tokens",
        tokens: selection.TokenSelection = "content",
        method: Method = "zca",
        eps_rel: float = 1e-6,
        shrinkage: Literal["ledoit-wolf"] | None = None,
        n_components: int | None = None,
        resume: "Whitener | None" = None,
    ) -> "Whitener":
        """Fit a whitener to a layer of a cube, block by block.

        Parameters
        ----------
        cube
            From :func:`actkit.open_cube`; it may be incomplete.
        layer
            The block.
        language
            Language whose samples are used; all by default.
        vectors
            ``tokens`` for content tokens; or ``pooled``, ``last`` or ``prompt_end``.
        tokens
            Tokens that these vectors represent, as for :func:`adjacent_cka`.
        method
            ``zca``, which stays closest to the original vectors; or ``pca``, whose components are ordered by
            variance.
        eps_rel
            Regularisation added to each variance, relative to the mean variance.
        shrinkage
            ``ledoit-wolf`` shrinks the covariance towards a multiple of the identity (Ledoit and Wolf 2004).
        n_components
            Number of leading principal directions to keep; all by default.
        resume
            Earlier whitener of the same layer of the same cube; only samples new to it are read.

        Raises
        ------
        InputError, MissingError
            If the cube lacks requested data, a value is not finite, or there are fewer than 5 vectors per
            dimension without ``shrinkage`` or a small enough ``n_components``.
        """
        cube = select_tokens(finite_cube(cube), tokens)
        source = {
            "layer": layer,
            "vectors": vectors,
            "language": language,
            "tokens": cube.attrs.get(SELECTED_TOKENS),
            "model": cube.attrs.get("model", ""),
        }
        source = {name: value for name, value in source.items() if value is not None}
        if "metadata_sha256" in cube.attrs:  # sample numbers are only meaningful within one cube
            source["cube"] = str(cube.attrs["metadata_sha256"])[:12]
        available, mask = layer_vectors(cube, layer, language, vectors)
        moments, seen = None, np.empty(0, dtype=np.int64)
        if resume is not None:
            _check_resumed(resume, source, available.sample.values)
            moments, seen = resume.moments, resume.samples
        new = mask & ~np.isin(available.sample.values, seen).reshape(-1, *[1] * (mask.ndim - 1))
        moments = accumulate(moments, available, new)
        used = np.union1d(seen, available.sample.values[mask.reshape(len(mask), -1).any(axis=1)])
        fitted = cls.of(
            moments, method=method, eps_rel=eps_rel, shrinkage=shrinkage, n_components=n_components
        )
        return replace(fitted, settings={**fitted.settings, **source}, samples=used)

    @classmethod
    def of_run(
        cls,
        run: str | Path,
        *,
        layer: int,
        language: str | None = None,
        method: Method = "zca",
        eps_rel: float = 1e-6,
        shrinkage: Literal["ledoit-wolf"] | None = None,
        n_components: int | None = None,
    ) -> "Whitener":
        """Create a whitener from the moments gathered by a run with ``whiten: true``, not from its cube.

        Parameters
        ----------
        run
            The run folder.
        layer, language, method, eps_rel, shrinkage, n_components
            As for :meth:`fit`.

        Raises
        ------
        InputError
            If the run gathered no moments of this layer or language, or the file belongs to another cube;
            otherwise as for :meth:`fit`.
        IncompleteError
            If samples are missing.
        """
        if not isinstance(run, str | os.PathLike):
            problem = f"is of type {type(run).__name__}, but must be the path of a run folder"
            raise InputError([Fault("run", problem, "give the run folder, or pass the cube to Whitener.fit")])
        if is_url(run):
            hint = "copy the run by actkit pull, or pass the cube to Whitener.fit"
            raise InputError([Fault("run", "is a URL, and moments are read from run folders", hint)])
        has_cube = any(Path(run).glob("*.zarr"))  # absent if only the file was copied
        moments = gathered_moments(Path(run) / MOMENTS, as_cube(run) if has_cube else None, layer, language)
        if not moments.n:
            problem = (
                f"gathered no vectors at layer {layer}: every sample lacks content or has non-finite values"
            )
            remedy = "choose layers without NaN and Inf: Whitener.fit(cube.sel(layer=[...]), layer=...)"
            raise InputError([Fault("run", problem, remedy)])
        fitted = cls.of(
            moments, method=method, eps_rel=eps_rel, shrinkage=shrinkage, n_components=n_components
        )
        source = {"layer": layer, "vectors": "tokens"} | ({} if language is None else {"language": language})
        return replace(fitted, settings={**fitted.settings, **source})

    @classmethod
    def of(
        cls,
        moments: Moments,
        *,
        method: Method = "zca",
        eps_rel: float = 1e-6,
        shrinkage: Literal["ledoit-wolf"] | None = None,
        n_components: int | None = None,
    ) -> "Whitener":
        """Create a whitener from moments; parameters and errors are those of :meth:`fit`."""
        hidden = len(moments.mean)
        _check(moments.n, hidden, method, eps_rel, shrinkage, n_components)
        covariance = moments.covariance
        if not np.isfinite(covariance).all():
            raise InputError([Fault("cube", "contains non-finite values", "exclude those samples first")])
        variances, axes = np.linalg.eigh(covariance)
        variances, axes = np.maximum(variances[::-1], 0), axes[:, ::-1]
        # the sign of an axis is arbitrary; make its largest entry positive
        axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(hidden)])
        tolerance = variances[0] * max(moments.n, hidden) * np.finfo(np.float64).eps
        rank = int((variances > tolerance).sum())  # of the data: shrinkage makes every covariance regular
        shrunk = 0.0 if shrinkage is None else moments.ledoit_wolf
        variances = (1 - shrunk) * variances + shrunk * variances.mean()
        kept = slice(n_components)
        scales = np.sqrt(variances[kept] + eps_rel * variances.sum() / hidden)
        if not scales.all():
            raise InputError([Fault("eps_rel", "is 0, but some directions have no variance", "use 1e-6")])
        transform_matrix, inverse_matrix = axes[:, kept] / scales, (axes[:, kept] * scales).T
        if method == "zca":
            transform_matrix, inverse_matrix = (
                transform_matrix @ axes[:, kept].T,
                axes[:, kept] @ inverse_matrix,
            )
        options = {"method": method, "eps_rel": eps_rel, "shrinkage": shrinkage, "n_components": n_components}
        settings = {name: value for name, value in options.items() if value is not None}
        if shrinkage is not None:
            settings["shrunk"] = shrunk
        return cls(
            moments,
            transform_matrix,
            inverse_matrix,
            rank=rank,
            condition=float((scales[0] / scales[-1]) ** 2),
            settings=settings,
        )

    def transform(self, vectors: Cube | xr.DataArray) -> xr.DataArray:
        """Whiten vectors.

        Parameters
        ----------
        vectors
            A cube or run folder, whose vectors at the fitted layer are whitened; or an array with the
            dimension ``hidden``.

        Returns
        -------
        xarray.DataArray
            Float64, lazy if the vectors are; ``hidden`` becomes ``component`` if the method is ``pca``.

        Raises
        ------
        InputError, MissingError
            If the cube lacks the fitted layer or vectors, or the array lacks the dimension.
        """
        if isinstance(vectors, xr.DataArray):
            array = vectors
        else:
            cube = as_cube(vectors)
            name = "residual" if self.settings["vectors"] == "tokens" else self.settings["vectors"]
            if name != "residual":
                check_same_tokens(cube, self.settings)
                cube = selection.with_pooling(cube, name)
            selection.require(cube, name)
            if self.settings["layer"] not in cube.layer.values:
                problem, known = f"the cube lacks {self.settings['layer']}", cube.layer.values.tolist()
                raise InputError([Fault("layer", problem, f"it has {known}")])
            array = cube[name].sel(layer=self.settings["layer"])
        out = "hidden" if self.settings["method"] == "zca" else "component"
        return self._map(array, "hidden", out, lambda x: (x - self.mean) @ self.transform_matrix)

    def inverse(self, whitened: xr.DataArray) -> xr.DataArray:
        """Invert :meth:`transform`; directions dropped by ``n_components`` are set to their mean."""
        dim = "hidden" if self.settings["method"] == "zca" else "component"
        return self._map(whitened, dim, "hidden", lambda z: z @ self.inverse_matrix + self.mean)

    def _map(self, array: xr.DataArray, dim: str, out: str, function: Any) -> xr.DataArray:
        length_in = self.inverse_matrix.shape[0] if dim == "component" else len(self.mean)
        if not isinstance(array, xr.DataArray) or array.sizes.get(dim) != length_in:
            actual = dict(array.sizes) if isinstance(array, xr.DataArray) else type(array).__name__
            hint = f"give an xarray.DataArray whose dimension `{dim}` has length {length_in}"
            raise InputError([Fault("vectors", f"are {actual}", hint)])
        length_out = self.transform_matrix.shape[1] if out == "component" else len(self.mean)
        core, mapped = [[dim]], "_mapped"
        (result,) = selection.apply(
            lambda x: (function(x),), array, core=core, out=[[mapped]], sizes={mapped: length_out}, each=False
        )
        return result.rename({mapped: out})

    def save(self, path: str | Path) -> None:
        """Write the whitener to a file.

        Parameters
        ----------
        path
            ``*.safetensors``, which :meth:`load` reads and ``resume`` accepts; or ``*.npz`` for other
            scripts, with ``mean``, ``transform``, ``reverse_transform`` and ``n_samples``.

        Raises
        ------
        InputError
            If the path has another extension.
        """
        path = Path(path)
        if path.suffix == ".npz":
            np.savez(
                path,
                mean=self.mean,
                transform=self.transform_matrix,
                reverse_transform=self.inverse_matrix,
                n_samples=np.array(self.moments.n),
            )
            return
        arrays = {
            "mean": self.mean,
            "scatter": self.moments.scatter,
            "third": self.moments.third,
            "transform": self.transform_matrix,
            "reverse_transform": self.inverse_matrix,
            "samples": self.samples,
        }
        scalars = {
            "n": self.moments.n,
            "fourth": self.moments.fourth,
            "rank": self.rank,
            "condition": self.condition,
            "settings": self.settings,
        }
        write_whitener(path, arrays, scalars)

    @classmethod
    def load(cls, path: str | Path) -> "Whitener":
        """Read a whitener from a ``*.safetensors`` file written by :meth:`save`.

        Raises
        ------
        InputError
            If the file is not a whitener.
        """
        arrays, scalars = read_whitener(Path(path))
        moments = Moments(scalars["n"], arrays["mean"], arrays["scatter"], scalars["fourth"], arrays["third"])
        return cls(
            moments,
            arrays["transform"],
            arrays["reverse_transform"],
            scalars["rank"],
            scalars["condition"],
            scalars["settings"],
            arrays["samples"],
        )


def _check_resumed(before: Whitener, source: dict[str, Any], samples: np.ndarray) -> None:
    """Check that a whitener belongs to the same cube and options, and that sample numbers are unique."""
    unrecorded = {"cube"} - before.settings.keys()  # earlier versions did not record it
    wanted = {name: value for name, value in source.items() if name not in unrecorded}
    fitted = {name: before.settings.get(name) for name in wanted}
    if fitted != wanted:
        raise InputError([Fault("resume", f"was fitted with {fitted}, but this fit has {wanted}")])
    if len(np.unique(samples)) < len(samples):
        problem = (
            "several samples of the cube have the same number, so those already used cannot be identified"
        )
        raise InputError([Fault("resume", problem, "fit without `resume`")])


def _check(
    n: int, hidden: int, method: str, eps_rel: float, shrinkage: str | None, n_components: int | None
) -> None:
    faults = []
    if method not in METHODS:
        faults.append(Fault("method", f"{method!r} is unknown", f"one of {', '.join(METHODS)}"))
    if shrinkage not in (None, "ledoit-wolf"):
        faults.append(Fault("shrinkage", f"{shrinkage!r} is unknown", "ledoit-wolf"))
    if not eps_rel >= 0:
        faults.append(Fault("eps_rel", f"{eps_rel} is negative"))
    if n_components is not None and not 0 < n_components <= hidden:
        faults.append(Fault("n_components", f"{n_components} is not between 1 and {hidden}"))
    needed = _MIN_VECTORS * (n_components or hidden)
    if (n < needed and shrinkage is None) or n < 2:
        problem = f"{n} vectors are too few for {n_components or hidden} dimensions, which need {needed}"
        faults.append(Fault("cube", problem, "use shrinkage='ledoit-wolf' or a smaller n_components"))
    if faults:
        raise InputError(faults, "cannot whiten")
