"""Whitening: directions of the residual stream, scaled so that each varies as much as the others."""

import json
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ..errors import Fault, InputError
from ..schema import MOMENTS
from . import parts
from .accumulating import accumulate, layer_vectors
from .kernels.moments import Moments
from .moment_files import about_moments, load_moments

_ENOUGH = 5  # vectors for each dimension
METHODS = ("zca", "pca")


@dataclass(frozen=True)
class Whitener:
    """A linear map to vectors of mean 0 and covariance 1, and back.

    Parameters
    ----------
    moments
        Of the vectors that it was fitted to.
    transform_matrix
        Dims ``(hidden, component)``.
    inverse_matrix
        Dims ``(component, hidden)``.
    rank
        How many dimensions vary at all.
    condition
        Ratio of the largest variance to the smallest, with what is added to each.
    settings
        How it was fitted: ``layer``, ``method``, ``eps_rel``, ``shrinkage`` and so on.
    samples
        The coordinate ``sample`` of all that it was fitted to, dims ``(sample,)``.

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
        told = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        return f"Whitener({told}; rank {self.rank} of {len(self.mean)}, condition {self.condition:.3g})"

    @property
    def mean(self) -> np.ndarray:
        """What is taken off first, dims ``(hidden,)``."""
        return self.moments.mean

    @classmethod
    def fit(
        cls,
        cube: xr.Dataset,
        *,
        layer: int,
        language: str | None = None,
        values: str = "tokens",
        method: str = "zca",
        eps_rel: float = 1e-6,
        shrinkage: str | None = None,
        components: int | None = None,
        resume: "Whitener | None" = None,
    ) -> "Whitener":
        """Fit it to a layer of a cube, block after block.

        Parameters
        ----------
        cube
            From :func:`actkit.open_cube`; a partial one too.
        layer
            The block.
        language
            Its samples alone; all by default.
        values
            ``tokens``: content tokens; or ``pooled`` or ``last``.
        method
            ``zca``, the whitened vectors that lie closest to the given ones; or ``pca``, in the order of the
            variance.
        eps_rel
            What is added to each variance, as a part of their mean.
        shrinkage
            ``ledoit-wolf`` moves all variances towards their mean, as far as so few vectors ask for.
        components
            How many directions of most variance are kept; all by default.
        resume
            An earlier one of the same layer: only samples that it has not seen are read.

        Raises
        ------
        InputError, MissingError
            Where the cube lacks what is asked for; where there are fewer than 5 vectors for each dimension,
            and neither ``shrinkage`` nor few enough ``components`` are asked for; where a value is not
            finite.
        """
        own = {"layer": layer, "values": values, "language": language, "model": cube.attrs.get("model", "")}
        own = {name: value for name, value in own.items() if value is not None}
        vectors, mask = layer_vectors(cube, layer, language, values)
        moments, seen = None, np.empty(0, dtype=np.int64)
        if resume is not None:
            before = {name: resume.settings.get(name) for name in own}
            if before != own:
                raise InputError([Fault("resume", f"was fitted to {before}, and now it is {own}")])
            moments, seen = resume.moments, resume.samples
        counts = mask & ~np.isin(vectors.sample.values, seen).reshape(-1, *[1] * (mask.ndim - 1))
        moments = accumulate(moments, vectors, counts)
        known = np.union1d(seen, vectors.sample.values[mask.reshape(len(mask), -1).any(axis=1)])
        fitted = cls.of(moments, method=method, eps_rel=eps_rel, shrinkage=shrinkage, components=components)
        return replace(fitted, settings={**fitted.settings, **own}, samples=known)

    @classmethod
    def of_run(
        cls,
        run: str | Path,
        *,
        layer: int,
        language: str | None = None,
        method: str = "zca",
        eps_rel: float = 1e-6,
        shrinkage: str | None = None,
        components: int | None = None,
    ) -> "Whitener":
        """Make it from what a run with ``whiten: true`` gathered: nothing of the cube is read.

        Parameters
        ----------
        run
            The run folder.
        layer, language, method, eps_rel, shrinkage, components
            As for :meth:`fit`.

        Raises
        ------
        InputError
            Where the run gathered nothing, or not of this layer or language; otherwise as :meth:`fit`.
        """
        path = Path(run) / MOMENTS
        try:
            about = about_moments(path)
        except ValueError as error:
            fault = Fault("run", str(error), "extract it with whiten=True; running it again is enough")
            raise InputError([fault]) from error
        known = {(entry["language"], entry["layer"]) for entry in about["entries"]}
        wanted = {key for key in known if key[1] == layer and language in (None, key[0])}
        if not wanted:
            layers, names = sorted({key[1] for key in known}), sorted({key[0] for key in known})
            what = f"gathered nothing of layer {layer}" + (f" in {language}" if language else "")
            raise InputError([Fault("run", what, f"it has layers {layers} in {', '.join(names)}")])
        moments = reduce(Moments.merge, load_moments(path, wanted).values())
        fitted = cls.of(moments, method=method, eps_rel=eps_rel, shrinkage=shrinkage, components=components)
        own = {"layer": layer, "values": "tokens"} | ({} if language is None else {"language": language})
        return replace(fitted, settings={**fitted.settings, **own})

    @classmethod
    def of(
        cls,
        moments: Moments,
        *,
        method: str = "zca",
        eps_rel: float = 1e-6,
        shrinkage: str | None = None,
        components: int | None = None,
    ) -> "Whitener":
        """Make it from moments alone; parameters and errors as for :meth:`fit`."""
        hidden = len(moments.mean)
        _check(moments.n, hidden, method, eps_rel, shrinkage, components)
        covariance, shrunk = moments.covariance, 0.0
        if shrinkage is not None:
            shrunk = moments.ledoit_wolf
            covariance = (1 - shrunk) * covariance
            covariance[np.diag_indices(hidden)] += shrunk * np.trace(moments.covariance) / hidden
        if not np.isfinite(covariance).all():
            raise InputError([Fault("cube", "has values that are not finite", "leave them out first")])
        variances, axes = np.linalg.eigh(covariance)
        variances, axes = np.maximum(variances[::-1], 0), axes[:, ::-1]
        # the sign of an axis is arbitrary: let its largest entry be positive
        axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(hidden)])
        tolerance = variances[0] * max(moments.n, hidden) * np.finfo(np.float64).eps
        kept = slice(components)
        scales = np.sqrt(variances[kept] + eps_rel * variances.sum() / hidden)
        if not scales.all():
            raise InputError([Fault("eps_rel", "is 0, and some directions do not vary", "give 1e-6")])
        forward, back = axes[:, kept] / scales, (axes[:, kept] * scales).T
        if method == "zca":
            forward, back = forward @ axes[:, kept].T, axes[:, kept] @ back
        known = {"method": method, "eps_rel": eps_rel, "shrinkage": shrinkage, "components": components}
        settings = {name: value for name, value in known.items() if value is not None}
        if shrinkage is not None:
            settings["shrunk"] = shrunk
        return cls(
            moments,
            forward,
            back,
            rank=int((variances > tolerance).sum()),
            condition=float((scales[0] / scales[-1]) ** 2),
            settings=settings,
        )

    def transform(self, values: xr.Dataset | xr.DataArray) -> xr.DataArray:
        """Whiten vectors.

        Parameters
        ----------
        values
            A cube, of which the layer and the values that it was fitted to are taken; or an array with
            ``hidden``.

        Returns
        -------
        xarray.DataArray
            Float64, lazy where the values are; ``hidden`` becomes ``component`` where it is ``pca``.
        """
        array = values
        if isinstance(values, xr.Dataset):
            name = "residual" if self.settings["values"] == "tokens" else self.settings["values"]
            array = values[name].sel(layer=self.settings["layer"])
        out = "hidden" if self.settings["method"] == "zca" else "component"
        return self._map(array, "hidden", out, lambda x: (x - self.mean) @ self.transform_matrix)

    def inverse(self, whitened: xr.DataArray) -> xr.DataArray:
        """Undo :meth:`transform`; with fewer ``components``, the other directions stay at their mean."""
        own = "hidden" if self.settings["method"] == "zca" else "component"
        return self._map(whitened, own, "hidden", lambda z: z @ self.inverse_matrix + self.mean)

    def _map(self, array: Any, own: str, out: str, function: Any) -> xr.DataArray:
        length = self.transform_matrix.shape[1] if out == "component" else len(self.mean)
        core, place = [[own]], "_mapped"
        (found,) = parts.apply(
            lambda x: (function(x),), array, core=core, out=[[place]], sizes={place: length}, each=False
        )
        return found.rename({place: out})

    def save(self, path: str | Path) -> None:
        """Write it to a file.

        Parameters
        ----------
        path
            ``*.safetensors``, from which :meth:`load` gives it back, to be resumed too; or ``*.npz``, with
            ``mean``, ``transform``, ``reverse_transform`` and ``n_samples``, for scripts that read these.

        Raises
        ------
        InputError
            Where it ends in something else.
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
        _check_suffix(path)
        from safetensors.numpy import save_file

        moments = self.moments
        tensors = {
            "mean": moments.mean,
            "scatter": moments.scatter,
            "third": moments.third,
            "transform": self.transform_matrix,
            "reverse_transform": self.inverse_matrix,
            "samples": self.samples,
        }
        about = {
            "n": moments.n,
            "fourth": moments.fourth,
            "rank": self.rank,
            "condition": self.condition,
            "settings": self.settings,
        }
        arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
        save_file(arrays, path, {"actkit_whitener": json.dumps(about)})

    @classmethod
    def load(cls, path: str | Path) -> "Whitener":
        """Read it from a ``*.safetensors`` file that :meth:`save` wrote.

        Raises
        ------
        InputError
            Where the file is something else.
        """
        path = Path(path)
        _check_suffix(path)
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "numpy") as file:
                about = json.loads((file.metadata() or {})["actkit_whitener"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (KeyError, OSError, SafetensorError) as error:
            raise InputError(
                [Fault(str(path), f"is no whitener: {error}", "give what save() wrote")]
            ) from error
        moments = Moments(about["n"], arrays["mean"], arrays["scatter"], about["fourth"], arrays["third"])
        return cls(
            moments,
            arrays["transform"],
            arrays["reverse_transform"],
            about["rank"],
            about["condition"],
            about["settings"],
            arrays["samples"],
        )


def _check_suffix(path: Path) -> None:
    if path.suffix != ".safetensors":
        raise InputError([Fault(str(path), f"ends in {path.suffix!r}", "give .safetensors")])


def _check(
    n: int, hidden: int, method: str, eps_rel: float, shrinkage: str | None, components: int | None
) -> None:
    faults = []
    if method not in METHODS:
        faults.append(Fault("method", f"{method!r} is unknown", f"one of {', '.join(METHODS)}"))
    if shrinkage not in (None, "ledoit-wolf"):
        faults.append(Fault("shrinkage", f"{shrinkage!r} is unknown", "ledoit-wolf"))
    if not eps_rel >= 0:
        faults.append(Fault("eps_rel", f"{eps_rel} is negative"))
    if components is not None and not 0 < components <= hidden:
        faults.append(Fault("components", f"{components} is not between 1 and {hidden}"))
    needed = _ENOUGH * (components or hidden)
    if (n < needed and shrinkage is None) or n < 2:
        what = f"{n} vectors are too few for {components or hidden} dimensions; {needed} would do"
        faults.append(Fault("cube", what, "ask for shrinkage='ledoit-wolf', or for fewer components"))
    if faults:
        raise InputError(faults, "cannot whiten")
