"""The engine ``actkit`` of xarray, registered in ``pyproject.toml``."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import xarray as xr
from xarray.backends import BackendEntrypoint

LANGUAGE_MODEL = "language_model"  # name of the cube itself in a tree


class CubeBackend(BackendEntrypoint):
    """Opens what :func:`actkit.open_cube` opens, with the same checks.

    Notes
    -----
    xarray imports this module for its list of engines; the reader is imported when a cube is opened.
    """

    description = "Open cubes of actkit"
    open_dataset_parameters = (
        *("filename_or_obj", "drop_variables", "group", "partial"),
        *("storage_options", "cache_folder"),
    )
    supports_groups = True

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Return whether a path is a run folder; other engines open a ``cube.zarr`` too."""
        if not isinstance(filename_or_obj, str | os.PathLike):
            return False
        return os.path.isfile(os.path.join(filename_or_obj, "cube.zarr", "zarr.json"))

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        group: str | None = None,
        partial: bool = False,
        storage_options: Mapping[str, Any] | None = None,
        cache_folder: str | os.PathLike[str] | None = None,
    ) -> xr.Dataset:
        """Open a cube or one of its groups; parameters and errors as for :func:`actkit.open_cube`.

        `cache_folder` is its `cache`, a name that xarray uses for something else.
        """
        from .reader import read_cube

        cube = read_cube(
            filename_or_obj,
            (group or "").strip("/"),
            partial=partial,
            chunked=False,
            storage_options=storage_options,
            cache=cache_folder,  # type: ignore[arg-type]
        )
        names = [drop_variables] if isinstance(drop_variables, str) else list(drop_variables or ())
        return cube.drop_vars(names, errors="ignore")

    def open_groups_as_dict(
        self, filename_or_obj: Any, *, partial: bool = False, **options: Any
    ) -> dict[str, xr.Dataset]:
        """Open the cube and its groups next to each other, because each has its own layers and tokens."""
        from .reader import group_names

        cube = self.open_dataset(filename_or_obj, partial=partial, **options)
        groups = {"/": xr.Dataset(attrs=cube.attrs), f"/{LANGUAGE_MODEL}": cube}
        for name in group_names(filename_or_obj, options.get("storage_options")):
            groups[f"/{name}"] = self.open_dataset(filename_or_obj, group=name, partial=partial, **options)
        return groups

    def open_datatree(self, filename_or_obj: Any, **options: Any) -> xr.DataTree:
        """Return the groups as a tree with the children ``language_model`` and, if captured, ``vision``."""
        return xr.DataTree.from_dict(self.open_groups_as_dict(filename_or_obj, **options))
