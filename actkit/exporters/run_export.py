"""Export of a run, which either completes or leaves nothing behind."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from ..canonical import Cube
from ..errors import Fault, InputError
from ..layer_spec import Spec
from ..store.new_folders import new_folder, path_faults
from ..store.writer import storage_errors
from .cube_blocks import Selected, select
from .npz import write_batches, write_npz
from .pt import write_pt
from .safetensors_arrow import write_arrow, write_safetensors

Format = Literal["pt", "npz", "batches", "safetensors", "arrow"]
FORMATS: tuple[Format, ...] = get_args(Format)
_WRITERS: dict[Format, Callable[[Selected, Path], None]] = {
    "pt": write_pt,
    "npz": write_npz,
    "batches": write_batches,
    "safetensors": write_safetensors,
    "arrow": write_arrow,
}


def export(
    run: Cube,
    out: str | Path,
    *,
    format: Format,
    layers: Spec = "all",
    languages: Sequence[str] | None = None,
    whiten: bool = False,
) -> Path:
    """Write a run as files that other scripts can read: exact values in float32, padding filled with 0.

    Parameters
    ----------
    run
        Run folder or cube; of a selection of a cube, only the selection is exported.
    out
        Folder to create; it appears only once it is complete.
    format
        ``pt``: PyTorch, ``layer_checkpoints/layer_{l}_{language}.pt`` and, with the same values,
        ``activations_{language}_all_layers.pt``. ``npz``: ``layer_{l}/chunk_{k}.npz``. ``batches``: the last
        content token of each sample, ``layer_{l}_batch_{k}.npz``. ``safetensors``, ``arrow``: one file
        per layer.
    layers
        Layer specification, as for an extraction, limited to one component.
    languages
        Languages to export; all by default.
    whiten
        Whether to whiten each layer; ``npz`` only, with ``layer_{l}_whitening.npz`` next to the chunks.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    InputError, MissingError
        If the cube lacks requested data, or the folder exists, even if it appears during the export.
    StorageError
        If the disk cannot be written.
    """
    out = Path(out)
    faults = []
    if format not in FORMATS:
        faults.append(Fault("format", f"{format!r} is unknown", f"one of {', '.join(FORMATS)}"))
    if whiten and format != "npz":
        faults.append(
            Fault("whiten", f"{format} files hold unwhitened values", "export npz, or leave it out")
        )
    faults += path_faults(out)
    if faults:
        raise InputError(faults)
    chosen = select(run, layers, languages, last=format == "batches")
    write = partial(write_npz, whiten=True) if whiten else _WRITERS[format]
    with storage_errors(f"cannot export to {out}", "nothing was kept"), new_folder(out) as building:
        write(chosen, building)
    return out
