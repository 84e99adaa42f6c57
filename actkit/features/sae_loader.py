"""Published and own sparse autoencoders: found in a folder or repository, checked, and read when used."""

import os
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import CorruptError, Fault, InputError, listed
from ..schema import COMPONENTS, Component
from .gemma_scope import find_gemma_scope_1, find_gemma_scope_2, gemma_scope_site
from .manifest import Manifest, read_manifest
from .sae import Sae
from .sae_layouts import LAYOUTS, OTHERS, Layout
from .sae_set import SaeSet
from .sae_site import Site
from .sae_sources import SaeSource, find_source
from .saelens_reader import find_saelens, saelens_folder_site
from .sparsify_files import find_sparsify, sparsify_site
from .stored_sae import Refusal, StoredSae, damaged

_PICKLES = (".pt", ".pth", ".bin", ".pkl")
_SUPPORTED = "; supported are the files of SAELens, Gemma Scope and sparsify"


@dataclass(frozen=True)
class _Candidate:
    """Folder that has the files of an autoencoder."""

    path: PurePosixPath
    layout: Layout
    files: tuple[str, ...]

    def site(self, source: SaeSource, component: Component | None) -> Site | Refusal:
        """Return the site, from the path and the small files alone."""
        folder = source.root / self.path
        if self.layout == "SAELens":
            return saelens_folder_site(folder)
        if self.layout == "sparsify":
            return sparsify_site(folder)
        return gemma_scope_site(folder, f"{source.prefix}{self.path}", component)

    def find(self, source: SaeSource, site: Site, about: Manifest | None) -> StoredSae | Refusal:
        """Check the files."""
        folder = source.root / self.path
        if outside := [name for name in self.files if source.leads_outside(source.root / name)]:
            hint = "replace it with the file"
            return damaged(
                Fault(str(source.root / name), "is a link out of the folder", hint) for name in outside
            )
        if self.layout == "SAELens":
            return find_saelens(folder, about)
        if self.layout == "sparsify":
            return find_sparsify(folder)
        if self.layout == "Gemma Scope 1":
            return find_gemma_scope_1(folder, site, f"{source.prefix}{self.path}")
        return find_gemma_scope_2(folder, site)


def load_saes(
    path_or_repo: str | os.PathLike[str],
    *,
    layers: Sequence[int] | None = None,
    component: Component | None = None,
    revision: str | None = None,
) -> SaeSet:
    """Find sparse autoencoders in a folder or on the Hugging Face Hub; weights are read when they are used.

    No code of a repository is run, and nothing is unpickled.

    Parameters
    ----------
    path_or_repo
        Folder of autoencoders at any depth, such as a run folder, or repository ``owner/name``. Either may be
        followed by a folder in it, in which ``*`` stands for any characters:
        ``google/gemma-scope-2-4b-it/resid_post_all/*_width_16k_l0_small``. Files of SAELens 6 and 5, Gemma
        Scope 1 and 2, and sparsify are read.
    layers
        Layers to use, all by default; of a repository, only their weights are downloaded.
    component
        Component to use, if there are autoencoders of several.
    revision
        Branch, tag or commit of the repository.

    Returns
    -------
    SaeSet
        Autoencoders by layer.

    Raises
    ------
    InputError
        If there are none, several of one layer, or several components to choose from; or if all are
        transcoders, or of activations that cubes do not hold.
    CorruptError
        If files are missing or damaged.

    Warns
    -----
    UserWarning
        If some autoencoders are left out because they are of another kind.
    """
    if faults := _option_faults(layers, component):
        raise InputError(faults)
    source = find_source(path_or_repo, revision)
    candidates = _candidates(source)
    if not candidates:
        raise InputError([_nothing(source)])
    source.fetch(
        name for candidate in candidates if candidate.layout == "SAELens" for name in candidate.files[1:]
    )
    sites = {candidate: candidate.site(source, component) for candidate in candidates}
    refused = [site for site in sites.values() if isinstance(site, Refusal)]
    chosen = {
        candidate: site
        for candidate, site in sites.items()
        if isinstance(site, Site)
        and (layers is None or site.layer in layers)
        and component in (None, site.component)
    }
    if any(refusal.damaged for refusal in refused) or not chosen:
        _refuse(
            source, refused, [site for site in sites.values() if isinstance(site, Site)], layers, component
        )
    if faults := _ambiguities(source, chosen, layers):
        raise InputError(faults)
    source.fetch(name for candidate in chosen for name in candidate.files)
    manifests = {
        path: _complete(source.root / path) for path in {candidate.path.parent for candidate in chosen}
    }
    found = [
        candidate.find(source, site, manifests[candidate.path.parent]) for candidate, site in chosen.items()
    ]
    refused += [result for result in found if isinstance(result, Refusal)]
    stored = [result for result in found if isinstance(result, StoredSae)]
    if any(refusal.damaged for refusal in refused) or len(stored) < len(chosen):
        _refuse(source, refused, [], None, None)
    if refused:
        fault = refused[0].faults[0]
        what = f"{len(refused)} of {len(candidates)} autoencoders are left out: the first {fault.what}"
        warnings.warn(f"{source.name}: {what} ({fault.where})", stacklevel=2)
    return SaeSet(
        stored[0].site.component,
        {sae.site.layer: sae.read for sae in stored},
        source.name,
        {sae.site.layer: sae.size for sae in stored},
    )


def read_sae(folder: Path) -> Sae:
    """Return the only autoencoder in a folder; errors as for :func:`load_saes`."""
    saes = load_saes(folder)
    return saes[saes.layers[0]]


def _option_faults(layers: Sequence[int] | None, component: str | None) -> list[Fault]:
    faults = []
    if layers is not None and (isinstance(layers, str) or not all(_is_layer(layer) for layer in layers)):
        faults.append(Fault("layers", f"is {layers!r}", "give a list of layer numbers, from 0"))
    if component is not None and component not in COMPONENTS:
        faults.append(Fault("component", f"is {component!r}", f"choose from {', '.join(COMPONENTS)}"))
    return faults


def _is_layer(layer: object) -> bool:
    return hasattr(layer, "__index__") and not isinstance(layer, bool) and layer.__index__() >= 0


def _candidates(source: SaeSource) -> list[_Candidate]:
    present = set(source.files)
    candidates = []
    for name in source.files:
        path = PurePosixPath(name)
        if (layout := LAYOUTS.get(path.name)) is not None:
            others = [os.path.normpath(path.parent / other) for other in OTHERS[layout]]
            files = (name, *(other for other in others if other in present))
            candidates.append(_Candidate(path.parent, layout, files))
    return candidates


def _nothing(source: SaeSource) -> Fault:
    where = f"autoencoders {source.name}"
    pickles = [name for name in source.files if name.endswith(_PICKLES)]
    if pickles:
        what = f"has only pickled files ({pickles[0]})"
        return Fault(where, what, f"a pickle can run code when it is read{_SUPPORTED}")
    return Fault(where, "has no files of autoencoders", "check the path" + _SUPPORTED)


def _refuse(
    source: SaeSource,
    refused: Iterable[Refusal],
    sites: Iterable[Site],
    layers: Sequence[int] | None,
    component: str | None,
) -> None:
    """Raise an error that says why no autoencoder can be used."""
    refused = list(refused)
    if broken := [fault for refusal in refused if refusal.damaged for fault in refusal.faults]:
        raise CorruptError(broken)
    faults = [fault for refusal in refused for fault in refusal.faults]
    present = sorted(set(sites))
    if present:
        asked = " of " + " and ".join(
            [*([f"layers {list(layers)}"] if layers is not None else []), *([component] if component else [])]
        )
        shown = listed([f"{site.component} of layer {site.layer}" for site in present], 6)
        faults.insert(0, Fault(f"autoencoders {source.name}", f"has none{asked}", f"it has {shown}"))
    raise InputError(faults, f"no autoencoder of {source.name} can be used")


def _ambiguities(
    source: SaeSource, chosen: dict[_Candidate, Site], layers: Sequence[int] | None
) -> list[Fault]:
    where = f"autoencoders {source.name}"
    components = sorted({site.component for site in chosen.values()})
    if len(components) > 1:
        return [Fault("component", f"there are autoencoders of {', '.join(components)}", "give one of them")]
    folders = defaultdict(list)
    for candidate, site in chosen.items():
        folders[site.layer].append(str(candidate.path))
    several = {layer: paths for layer, paths in sorted(folders.items()) if len(paths) > 1}
    faults = [
        Fault(
            where,
            f"has {len(paths)} of layer {layer}: {listed(sorted(paths), 6)}",
            _name_one(source, paths[0]),
        )
        for layer, paths in several.items()
    ]
    missing = sorted(set(layers or ()) - folders.keys())
    if missing:
        faults.append(Fault(where, f"has none of layers {missing}", f"it has layers {sorted(folders)}"))
    return faults


def _name_one(source: SaeSource, path: str) -> str:
    return f"add the folder to the path, such as {PurePosixPath(source.name) / path}, or a pattern with *"


def _complete(folder: Path) -> Manifest | None:
    """Return the manifest of a folder, if there is one; raise InputError if training has not ended."""
    about = read_manifest(folder)
    if about is not None and not about.complete:
        hint = "train them to the end, or copy the folders of the finished layers elsewhere"
        raise InputError([Fault(str(folder), "has autoencoders whose training has not ended", hint)])
    return about
