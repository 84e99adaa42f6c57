"""Writing of autoencoders: one folder per layer in SAELens' inference format.

SAELens, SAEBench and the tools of Neuronpedia read the folders as they are (docs/decisions/0061).
"""

import hashlib
from contextlib import closing
from pathlib import Path

from safetensors.torch import save

from ..errors import Fault, InputError
from ..store.folders import Folder
from ..store.writer import storage_errors
from .manifest import CFG, KEPT, WEIGHTS, encoded, layer_folder, replace_file, write_manifest
from .sae import Sae
from .saelens_format import saelens_cfg, saelens_tensors
from .weight_checks import weight_problems

__all__ = ["layer_folder", "write_manifest", "write_sae"]


def write_sae(folder: Path, sae: Sae) -> None:
    """Write an autoencoder in SAELens' inference format, which ``SAE.load_from_disk`` reads.

    Each file replaces an earlier one atomically; other files of the folder stay. The weights come first, and
    ``cfg.json`` holds their digest, so that a crash in between is noticed by the reader.

    Parameters
    ----------
    folder
        Folder of the layer; it is created if it is missing.
    sae
        The autoencoder, in the units of the activations.

    Raises
    ------
    InputError
        If the weights are inconsistent or not finite; nothing is written.
    StorageError
        If the disk cannot be written.
    """
    if problems := weight_problems(sae):
        where = f"autoencoder of {sae.component}, layer {sae.layer}"
        raise InputError([Fault(where, problem) for problem in problems], "the autoencoder cannot be written")
    weights = save(saelens_tensors(sae))
    cfg = encoded(saelens_cfg(sae, hashlib.sha256(weights).hexdigest()))
    with storage_errors(f"cannot write the autoencoder of layer {sae.layer}", KEPT):
        folder.mkdir(parents=True, exist_ok=True)
        with closing(Folder(folder)) as opened:
            opened.sweep(CFG, WEIGHTS)
            replace_file(opened, WEIGHTS, weights)
            replace_file(opened, CFG, cfg)
            opened.sync()
