"""Files of autoencoders in a folder, by layout; needs no torch."""

import os
from pathlib import Path
from typing import Literal

from ..errors import Fault, InputError
from .manifest import CFG, MANIFEST, WEIGHTS

_MOST_FILES = 100_000
Layout = Literal["SAELens", "sparsify", "Gemma Scope 1", "Gemma Scope 2"]
SPARSIFY_WEIGHTS = "sae.safetensors"
SCALER = "activation_scaler.json"  # in SAELens' checkpoints of a training run
ARRAYS = "params.npz"
TENSORS = "params.safetensors"
CONFIG = "config.json"
# file of the weights of each layout
LAYOUTS: dict[str, Layout] = {
    WEIGHTS: "SAELens",
    SPARSIFY_WEIGHTS: "sparsify",
    ARRAYS: "Gemma Scope 1",
    TENSORS: "Gemma Scope 2",
}
# further files of each layout, as far as present
OTHERS: dict[Layout, tuple[str, ...]] = {
    "SAELens": (CFG, SCALER, f"../{MANIFEST}"),
    "sparsify": (CFG, f"../{CONFIG}"),
    "Gemma Scope 1": (),
    "Gemma Scope 2": (CONFIG,),
}


def walk(root: Path) -> list[str]:
    """Return the paths of the files in a folder, without hidden folders and cubes.

    Raises
    ------
    InputError
        If there are too many.
    """
    files: list[str] = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if name[0] != "." and not name.endswith(".zarr"))
        files += [(Path(folder) / name).relative_to(root).as_posix() for name in sorted(names)]
        if len(files) > _MOST_FILES:
            what = f"holds more than {_MOST_FILES:,} files"
            raise InputError([Fault(str(root), what, "name the folder of the autoencoders")])
    return files
