"""Export a run, all of it or nothing."""

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ..errors import Fault, InputError
from ..layers import Spec
from ..store.writing import storage_errors
from .chunks import write_batches, write_npz
from .selecting import Selected, select
from .streams import write_arrow, write_safetensors
from .tensors import write_pt

_WRITERS: dict[str, Callable[[Selected, Path], None]] = {
    "pt": write_pt,
    "npz": write_npz,
    "batches": write_batches,
    "safetensors": write_safetensors,
    "arrow": write_arrow,
}
FORMATS = tuple(_WRITERS)


def export(
    run: str | Path,
    out: str | Path,
    *,
    format: str,
    layers: Spec = "all",
    languages: Sequence[str] | None = None,
    whiten: bool = False,
) -> Path:
    """Write a run as files that other scripts read: exact values, float32, pads 0.

    Parameters
    ----------
    run
        Run folder.
    out
        Folder to make; nothing is there until all of it is.
    format
        ``pt``: PyTorch, ``layer_checkpoints/layer_{l}_{language}.pt`` and, with the same values,
        ``activations_{language}_all_layers.pt``. ``npz``: ``layer_{l}/chunk_{k}.npz``. ``batches``: the last
        content token of each sample, ``layer_{l}_batch_{k}.npz``. ``safetensors``, ``arrow``: a file a layer.
    layers
        As for an extraction, of one component.
    languages
        All by default.
    whiten
        Whether to whiten each layer; of ``npz``, with ``layer_{l}_whitening.npz`` beside.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    InputError, MissingError
        Where the cube lacks what is asked for, or the folder is there.
    StorageError
        Where the disk refuses.
    """
    out = Path(out)
    faults = []
    if format not in FORMATS:
        faults.append(Fault("format", f"{format!r} is unknown", f"one of {', '.join(FORMATS)}"))
    if whiten and format != "npz":
        faults.append(
            Fault("whiten", f"{format} holds what the model computed", "export npz, or leave it out")
        )
    if out.exists():
        faults.append(Fault("out", f"{out} is there already", "name a new folder"))
    if faults:
        raise InputError(faults)
    chosen = select(run, layers, languages, last=format == "batches")
    write = partial(write_npz, whiten=True) if whiten else _WRITERS[format]
    building = out.with_name(f".{out.name}.partial")
    with storage_errors("cannot export to", "nothing of it was kept"):
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        try:
            write(chosen, building)
            building.rename(out)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
    return out
