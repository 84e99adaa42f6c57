"""Moments of every layer, gathered while a run writes its windows: no further reading to whiten."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import xarray as xr

from ..schema import MOMENTS, VARIABLES
from ..stats import parts
from ..stats.kernels.moments import Moments
from ..stats.moment_files import Key, about_moments, load_moments, save_moments
from ..store.layout import CHECKSUM, CUBE, array_of, open_group
from ..store.ragged import Ragged
from ..store.reading import open_cube
from ..store.writing import storage_errors
from .logs import logger
from .preparing import Prepared


class Gathering:
    """The moments of content tokens, by language and layer, of the windows that were seen.

    Parameters
    ----------
    prepared
        The run; what an earlier session of it gathered is taken up.
    """

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared
        self._path = prepared.run / MOMENTS
        group = open_group(prepared.run / CUBE)
        self._seal = str(group.attrs[CHECKSUM])
        self._languages = np.asarray(array_of(group, "language")[...]).astype(object).astype(str)
        self._moments: dict[Key, Moments] = {}
        self._seen: set[int] = set()
        self._take_up()

    def _take_up(self) -> None:
        if not self._path.exists():
            return
        try:
            about = about_moments(self._path)
            if about.get("cube") == self._seal:
                self._moments, self._seen = load_moments(self._path), set(about["windows"])
        except ValueError as error:
            logger.warning("%s; they are gathered anew", error)

    def add(self, window: int, arrays: Mapping[str, np.ndarray | Ragged]) -> None:
        """Take in a window as it is written: what the writer takes, from :mod:`.pipeline`."""
        residual = arrays["residual"]
        assert isinstance(residual, Ragged)
        names = [name for name in ("token_kind", "position", "n_tokens") if name in arrays]
        coords = {name: (VARIABLES[name].dims, arrays[name]) for name in names}
        attrs = {name: self._prepared.attrs[name] for name in ("first_is_content", "tokens_kept")}
        tokens = np.arange(self._prepared.plan.shape.token)
        part = xr.Dataset(coords={**coords, "token": tokens}, attrs=attrs)
        hidden = residual.values.shape[-1]

        def vectors(row: int, mask: np.ndarray) -> np.ndarray:
            sample, token = np.nonzero(mask)
            found = np.empty((len(sample), hidden), dtype=np.float32)
            residual.take(row, residual.starts[sample] + token, found)
            return found

        self._add(window, parts.token_mask(part).values, vectors)

    def _add(self, window: int, mask: np.ndarray, vectors: Callable[[int, np.ndarray], np.ndarray]) -> None:
        if window in self._seen:
            return
        samples = self._prepared.plan.samples_of(window)
        own = self._languages[samples.start : samples.stop]
        for language in dict.fromkeys(own.tolist()):
            chosen = mask & (own == language)[:, None]
            for row, layer in enumerate(self._prepared.rules.layers["residual"]):
                found, key = Moments.of(vectors(row, chosen)), (language, layer)
                self._moments[key] = self._moments[key].merge(found) if key in self._moments else found
        self._seen.add(window)

    def complete(self) -> None:
        """Read what earlier sessions committed without gathering it, and keep all of it."""
        plan = self._prepared.plan
        cube = open_cube(self._prepared.run, partial=True)
        committed = {int(sample) // plan.window for sample in cube.sample.values}
        late = sorted(committed - self._seen)
        if late:
            logger.info("moments of %d windows are read from the cube", len(late))
        layers = list(self._prepared.rules.layers["residual"])
        for window in late:
            samples = plan.samples_of(window)
            part = cube.sel(sample=slice(samples.start, samples.stop - 1))
            residual = part.residual.transpose("layer", "sample", "token", "hidden")

            def vectors(row: int, mask: np.ndarray, residual: xr.DataArray = residual) -> np.ndarray:
                return np.asarray(residual.sel(layer=layers[row]).values[mask])

            self._add(window, parts.token_mask(part).values, vectors)
        self.keep()

    def keep(self) -> None:
        """Write what was gathered to the run folder."""
        partial = Path(f"{self._path}.partial")
        with storage_errors("cannot write the moments"):
            save_moments(partial, self._moments, {"cube": self._seal, "windows": sorted(self._seen)})
            partial.replace(self._path)
