"""Folders that SAELens or actkit wrote: ``cfg.json`` and ``sae_weights.safetensors``."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import CorruptError, Fault
from ..regular_files import MB, read_regular
from .manifest import CFG, WEIGHTS, Manifest, digest_faults
from .sae import Sae
from .sae_layouts import SCALER
from .sae_set import SaeSize
from .sae_site import Site
from .saelens_format import (
    normalized_cfg,
    sae_from_saelens,
    saelens_names,
    saelens_problems,
    saelens_site,
    trained_architecture,
)
from .stored_sae import (
    Refusal,
    StoredSae,
    checked,
    damaged,
    is_size,
    read_config,
    shape_faults,
    unsuitable,
)
from .weight_arrays import read_tensors, tensor_shapes


def saelens_folder_site(folder: Path) -> Site | Refusal:
    """Return the site of an autoencoder from its ``cfg.json`` alone."""
    content, faults = read_config(folder / CFG)
    if faults:
        return damaged(faults)
    cfg = normalized_cfg(content)
    problems = saelens_problems(cfg, _scale(folder))
    return saelens_site(cfg) or unsuitable(folder, problems) if not problems else unsuitable(folder, problems)


def find_saelens(folder: Path, manifest: Manifest | None = None) -> StoredSae | Refusal:
    """Check a folder, without reading its weights.

    Parameters
    ----------
    folder
        Folder with ``cfg.json`` and ``sae_weights.safetensors``.
    manifest
        Manifest of the folder above, if there is one.
    """
    site = saelens_folder_site(folder)
    if isinstance(site, Refusal):
        return site
    path = folder / WEIGHTS
    shapes, faults = tensor_shapes(path)
    if faults:
        return damaged(faults)
    cfg = normalized_cfg(read_config(folder / CFG)[0])
    names = saelens_names(cfg, shapes)
    hidden, n_features = cfg.get("d_in"), cfg.get("d_sae")
    if not is_size(hidden) or not is_size(n_features):
        return damaged([Fault(str(folder / CFG), "has no valid d_in and d_sae")])
    if faults := shape_faults(path, shapes, _shapes(names, hidden, n_features)):
        return damaged(faults)
    if cfg["architecture"] == "topk" and not (is_size(cfg.get("k")) and cfg["k"] <= n_features):
        return damaged([Fault(str(folder / CFG), f"has no valid k ({cfg.get('k')!r})")])
    size = SaeSize(trained_architecture(cfg), n_features, hidden)
    return StoredSae(folder, site, size, partial(_read, folder, cfg, names, _scale(folder), manifest))


def _shapes(names: Mapping[str, str], hidden: int, n_features: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor by its name in the file."""
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (hidden, n_features),
        "W_dec": (n_features, hidden),
        "b_dec": (hidden,),
        "topk_threshold": (),
    }
    return {key: shapes.get(name, (n_features,)) for name, key in names.items()}


def _read(
    folder: Path,
    cfg: Mapping[str, Any],
    names: Mapping[str, str],
    scale: float | None,
    manifest: Manifest | None,
) -> Sae:
    if faults := digest_faults(folder, cfg["metadata"], manifest):
        raise CorruptError(faults)
    stored = read_tensors(folder / WEIGHTS, set(names.values()))
    tensors = {name: stored[key] for name, key in names.items()}
    if names.get("threshold") == "log_threshold":
        tensors["threshold"] = tensors["threshold"].exp()
    return checked(sae_from_saelens(cfg, tensors, scale), folder)


def _scale(folder: Path) -> float | None:
    """Return the factor of the activations that a checkpoint of a training run stores with its weights."""
    try:
        scale = json.loads(read_regular(folder / SCALER, MB))["scaling_factor"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return float(scale) if type(scale) in (int, float) and 0 < scale < float("inf") else None
