"""Read sparse autoencoders from a folder."""

from collections.abc import Sequence
from pathlib import Path

from ..errors import Fault, InputError
from ..schema import Component
from .sae import Sae
from .sae_files import read_manifest
from .sae_set import SaeSet
from .saelens_format import CFG
from .saelens_reader import find_saelens
from .stored_sae import StoredSae


def load_saes(
    path_or_repo: str | Path, *, layers: Sequence[int] | None = None, component: Component | None = None
) -> SaeSet:
    """Return the autoencoders of a folder."""
    folder = Path(path_or_repo)
    manifest = read_manifest(folder)
    faults: list[Fault] = []
    stored: list[StoredSae] = []
    for path in sorted(folder.glob(f"*/{CFG}")) or [folder / CFG]:
        sae, its_faults = find_saelens(path.parent, manifest)
        faults += its_faults
        stored += [sae] if sae else []
    if faults:
        raise InputError(faults)
    chosen = [
        sae
        for sae in stored
        if (layers is None or sae.site.layer in layers) and component in (None, sae.site.component)
    ]
    if len({sae.site.component for sae in chosen}) != 1:
        raise InputError([Fault("component", "ambiguous")])
    return SaeSet(
        chosen[0].site.component,
        {sae.site.layer: sae.read for sae in chosen},
        folder,
        {sae.site.layer: sae.size for sae in chosen},
    )


def read_sae(folder: Path) -> Sae:
    """Return the autoencoder of a folder."""
    sae, faults = find_saelens(folder)
    if sae is None:
        raise InputError(faults)
    return sae.read()
