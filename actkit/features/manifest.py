"""Manifest of a folder of autoencoders: which there are, and the digests of their files; needs no torch."""

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..errors import CorruptError, Fault
from ..fingerprints import file_digest
from ..regular_files import MB, read_regular
from ..schema import Component
from ..store.folders import Folder
from ..store.writer import storage_errors

CFG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
DIGEST = "weights_sha256"  # entry of the metadata in `cfg.json`
MANIFEST = "manifest.json"
KEPT = "files of other layers are unchanged; make room or name another folder, and rerun"
_MOST_MANIFEST = 16 * MB
_HINT = "copy it again, or train again"


@dataclass(frozen=True)
class ManifestEntry:
    """One autoencoder of a manifest, in the subfolder `folder`."""

    folder: str
    layer: int
    component: Component
    architecture: str
    n_features: int
    hidden: int


@dataclass(frozen=True)
class Manifest:
    """Autoencoders of a folder.

    Attributes
    ----------
    complete
        Whether all of them are there; False while they are trained.
    files
        SHA-256 of each file, by its path in the folder.
    saes
        The autoencoders.
    about
        Further entries of the program that wrote it.
    """

    complete: bool
    files: dict[str, str]
    saes: list[ManifestEntry] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    actkit_version: str = ""


def layer_folder(layer: int, component: Component) -> str:
    """Return the name of a layer's folder.

    Examples
    --------
    >>> layer_folder(4, "residual")
    'residual_4'
    """
    return f"{component}_{layer}"


def write_manifest(folder: Path, *, complete: bool = True, **about: Any) -> None:
    """Write the manifest of a folder of autoencoders that :func:`actkit.features.sae_files.write_sae` wrote.

    Call it last: a training run whose manifest is missing or not complete has not ended.

    Parameters
    ----------
    folder
        Folder that contains the folders of the layers.
    complete
        Whether all autoencoders are there.
    **about
        Further entries, serialisable as JSON.

    Raises
    ------
    StorageError
        If the disk cannot be read or written.
    """
    with storage_errors("cannot write the manifest of the autoencoders", KEPT):
        paths = sorted(path.parent for path in folder.glob(f"*/{CFG}"))
        files = {f"{path.name}/{name}": file_digest(path / name) for path in paths for name in (CFG, WEIGHTS)}
        content = Manifest(complete, files, [_entry(path) for path in paths], about, version("actkit"))
        with closing(Folder(folder)) as opened:
            opened.sweep(MANIFEST)
            replace_file(opened, MANIFEST, encoded(asdict(content)))
            opened.sync()


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a folder of autoencoders, or None if there is none.

    Raises
    ------
    CorruptError
        If it cannot be read.
    """
    path = folder / MANIFEST
    try:
        return TypeAdapter(Manifest).validate_json(read_regular(path, _MOST_MANIFEST))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CorruptError([Fault(str(path), f"cannot be read: {error}", _HINT)]) from error
    except ValidationError as error:
        raise CorruptError([Fault(str(path), "is not a manifest of autoencoders", _HINT)]) from error


def digest_faults(folder: Path, metadata: Mapping[str, Any], manifest: Manifest | None) -> list[Fault]:
    """Return the files of an autoencoder that differ from their digests.

    Parameters
    ----------
    folder
        Folder of the autoencoder.
    metadata
        Metadata in its ``cfg.json``, which may hold the digest of the weights.
    manifest
        Manifest of the folder above, if there is one.
    """
    digests = {WEIGHTS: metadata[DIGEST]} if DIGEST in metadata else {}
    if manifest is not None:
        listed = {name: manifest.files.get(f"{folder.name}/{name}") for name in (CFG, WEIGHTS)}
        digests |= {name: digest for name, digest in listed.items() if digest is not None}
    return [
        Fault(str(folder / name), "differs from the digest that was stored with it", _HINT)
        for name, digest in digests.items()
        if file_digest(folder / name) != digest
    ]


def replace_file(folder: Folder, name: str, content: bytes) -> None:
    """Replace a file once its new content is on the disk."""
    with closing(folder.partial(name)) as file:
        file.write(content)
        file.sync()
        file.place()


def encoded(content: Mapping[str, Any]) -> bytes:
    """Return the bytes of a JSON file that people may read."""
    return json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n"


def _entry(folder: Path) -> ManifestEntry:
    cfg = json.loads(read_regular(folder / CFG, MB))
    metadata = cfg["metadata"]
    architecture = metadata["actkit_architecture"]
    return ManifestEntry(
        folder.name, metadata["layer"], metadata["component"], architecture, cfg["d_sae"], cfg["d_in"]
    )
