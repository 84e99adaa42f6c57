"""Files of autoencoders: one folder per layer in SAELens' inference format, and a manifest of all folders.

SAELens, SAEBench and the tools of Neuronpedia read the folders as they are (docs/decisions/0061).
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import save

from ..errors import CorruptError, Fault, InputError
from ..fingerprints import file_digest
from ..regular_files import MB, read_regular
from ..schema import Component
from ..store.folders import Folder
from ..store.writer import storage_errors
from .sae import Sae
from .sae_checks import weight_problems
from .saelens_format import CFG, DIGEST, WEIGHTS, saelens_cfg, saelens_tensors

MANIFEST = "manifest.json"
_MOST_MANIFEST = 16 * MB
_KEPT = "files of other layers are unchanged; make room or name another folder, and rerun"


def layer_folder(layer: int, component: Component) -> str:
    """Return the name of a layer's folder.

    Examples
    --------
    >>> layer_folder(4, "residual")
    'residual_4'
    """
    return f"{component}_{layer}"


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
    cfg = _json(saelens_cfg(sae, hashlib.sha256(weights).hexdigest()))
    with storage_errors(f"cannot write the autoencoder of layer {sae.layer}", _KEPT):
        folder.mkdir(parents=True, exist_ok=True)
        with closing(Folder(folder)) as opened:
            opened.sweep(CFG, WEIGHTS)
            _replace(opened, WEIGHTS, weights)
            _replace(opened, CFG, cfg)
            opened.sync()


def write_manifest(folder: Path, *, complete: bool = True, **entries: Any) -> None:
    """Write the manifest of a folder of autoencoders: the SHA-256 of each of their files.

    Call it last: a training run without a manifest, or with one that is not complete, has not ended.

    Parameters
    ----------
    folder
        Folder that contains the folders of the layers.
    complete
        Whether all autoencoders are there.
    **entries
        Further entries, serialisable as JSON.

    Raises
    ------
    StorageError
        If the disk cannot be written.
    """
    with storage_errors("cannot write the manifest of the autoencoders", _KEPT):
        digests = {
            f"{path.parent.name}/{name}": file_digest(path.parent / name)
            for path in sorted(folder.glob(f"*/{CFG}"))
            for name in (CFG, WEIGHTS)
        }
        content = {**entries, "actkit_version": version("actkit"), "complete": complete, "files": digests}
        with closing(Folder(folder)) as opened:
            opened.sweep(MANIFEST)
            _replace(opened, MANIFEST, _json(content))
            opened.sync()


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a folder of autoencoders, or None if there is none.

    Raises
    ------
    CorruptError
        If it cannot be read.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        content = json.loads(read_regular(path, _MOST_MANIFEST))
        files = content["files"]
        is_valid = isinstance(content["complete"], bool) and isinstance(files, dict)
        is_valid = is_valid and all(isinstance(digest, str) for digest in files.values())
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise CorruptError([Fault(str(path), f"cannot be read: {error}", "train again")]) from error
    if not is_valid:
        raise CorruptError([Fault(str(path), "is not a manifest of autoencoders", "train again")])
    return dict(content)


def digest_faults(folder: Path, cfg: Mapping[str, Any], manifest: Mapping[str, Any] | None) -> list[Fault]:
    """Return the files of an autoencoder that differ from their digest.

    Parameters
    ----------
    folder
        Folder of the layer.
    cfg
        Content of its ``cfg.json``, which may hold the digest of the weights.
    manifest
        Manifest of the folder above, if there is one.
    """
    metadata = cfg.get("metadata")
    digests: dict[str, Any] = {}
    if isinstance(metadata, Mapping) and DIGEST in metadata:
        digests[WEIGHTS] = metadata[DIGEST]
    if manifest is not None:
        listed = {name: manifest["files"].get(f"{folder.name}/{name}") for name in (CFG, WEIGHTS)}
        digests |= {name: digest for name, digest in listed.items() if digest is not None}
    hint = "copy it again, or train again"
    return [
        Fault(str(folder / name), "differs from the digest that was stored with it", hint)
        for name, digest in digests.items()
        if file_digest(folder / name) != digest
    ]


def _replace(folder: Folder, name: str, content: bytes) -> None:
    """Replace a file once its content is on the disk."""
    with closing(folder.partial(name)) as file:
        file.write(content)
        file.sync()
        file.place()


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n"
