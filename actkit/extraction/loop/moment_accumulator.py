"""Accumulator of moments during a run, so that whitening does not have to read the cube."""

import os
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ...schema import MOMENTS, VARIABLES
from ...stats import selection
from ...stats.finiteness import finite_samples
from ...stats.kernels.moments import Moments
from ...stats.moment_files import Key, about_moments, load_moments, moment_blocks
from ...store.cube_files import RemoteCube
from ...store.folders import Folder
from ...store.layout import array_of, open_group
from ...store.metadata import CHECKSUM
from ...store.ragged import Ragged
from ...store.reader import open_cube
from ...store.writer import storage_errors
from ..monitoring.run_log import logger
from ..preflight.preparation import RunPlan


class MomentAccumulator:
    """Moments of content tokens by language and layer, over the windows added so far.

    Parameters
    ----------
    prepared
        The run. Moments that an earlier session of it saved are loaded.
    folder
        The run folder, held open, which receives the file of the moments.
    cube
        The ``.zarr`` folder of the cube, or its files in an object store.
    """

    def __init__(self, prepared: RunPlan, folder: Folder, cube: Path | RemoteCube) -> None:
        self._prepared, self._folder = prepared, folder
        self._path = prepared.run / MOMENTS
        self._cube = cube
        group = open_group(cube)
        self._seal = str(group.attrs[CHECKSUM])
        self._languages = np.asarray(array_of(group, "language")[...]).astype(object).astype(str)
        self._moments: dict[Key, Moments] = {}
        self._windows: set[int] = set()
        self._load()

    def _load(self) -> None:
        if not os.path.lexists(self._path):
            return
        try:
            about = about_moments(self._path)
            if about.get("cube") == self._seal:
                self._moments, self._windows = load_moments(self._path), set(about["windows"])
        except ValueError as error:
            logger.warning("%s; the moments are computed again", error)

    def add(self, window: int, arrays: Mapping[str, np.ndarray | Ragged]) -> None:
        """Add a window, given the arrays that the writer receives."""
        residual = arrays["residual"]
        assert isinstance(residual, Ragged)
        names = [name for name in ("token_kind", "position", "n_tokens") if name in arrays]
        coords = {name: (VARIABLES[name].dims, arrays[name]) for name in names}
        attrs = {name: self._prepared.attrs[name] for name in ("first_is_content", "tokens_kept")}
        samples = self._prepared.plan.samples_of(window)
        coords["language"] = ("sample",), self._languages[samples.start : samples.stop]
        axes = {"sample": np.array(samples), "token": np.arange(self._prepared.plan.shape.token)}
        part = xr.Dataset(coords={**coords, **axes}, attrs=attrs)
        hidden = residual.values.shape[-1]

        def vectors(row: int, mask: np.ndarray) -> np.ndarray:
            sample, token = np.nonzero(mask)
            chosen = np.empty((len(sample), hidden), dtype=np.float32)
            residual.take(row, residual.starts[sample] + token, chosen)
            return chosen

        mask = selection.token_mask(part).values & self._is_finite(arrays["nonfinite"])[:, None]
        self._add(window, mask, vectors)

    def _is_finite(self, nonfinite: Any) -> np.ndarray:
        """Return a mask of the samples that whitening of the cube would use, from `nonfinite`."""
        return finite_samples(np.asarray(nonfinite), self._prepared.config.on_nonfinite)

    def _add(self, window: int, mask: np.ndarray, vectors: Callable[[int, np.ndarray], np.ndarray]) -> None:
        if window in self._windows:
            return
        samples = self._prepared.plan.samples_of(window)
        languages = self._languages[samples.start : samples.stop]
        for language in dict.fromkeys(languages.tolist()):
            chosen = mask & (languages == language)[:, None]
            for row, layer in enumerate(self._prepared.rules.layers["residual"]):
                moments, key = Moments.of(vectors(row, chosen)), (language, layer)
                self._moments[key] = self._moments[key].merge(moments) if key in self._moments else moments
        self._windows.add(window)

    def complete(self) -> None:
        """Add committed windows whose moments are missing, read from the cube, and save all moments."""
        plan = self._prepared.plan
        cube = open_cube(str(self._cube), partial=True)
        committed = {int(sample) // plan.window for sample in cube.sample.values}
        missing = sorted(committed - self._windows)
        if missing:
            logger.info("computing the moments of %d windows from the cube", len(missing))
        layers = list(self._prepared.rules.layers["residual"])
        for window in missing:
            samples = plan.samples_of(window)
            part = cube.sel(sample=slice(samples.start, samples.stop - 1))
            residual = part.residual.transpose("layer", "sample", "token", "hidden")

            def vectors(row: int, mask: np.ndarray, residual: xr.DataArray = residual) -> np.ndarray:
                return np.asarray(residual.sel(layer=layers[row]).values[mask])

            counts = part.nonfinite.transpose("layer", "sample").values
            mask = selection.token_mask(part).values & self._is_finite(counts)[:, None]
            self._add(window, mask, vectors)
        self.save()

    def save(self) -> None:
        """Write the moments to the run folder.

        Raises
        ------
        StorageError
            If writing fails, or the folder was moved, deleted or replaced.
        """
        self._folder.check()
        samples = sum(len(self._prepared.plan.samples_of(window)) for window in self._windows)
        about = {"cube": self._seal, "windows": sorted(self._windows), "samples": samples}
        with storage_errors("cannot write the moments"), closing(self._folder.partial(MOMENTS)) as file:
            for block in moment_blocks(self._moments, about):
                file.write(block)
            file.place()
