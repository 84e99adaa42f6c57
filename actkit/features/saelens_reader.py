"""Folders that SAELens or actkit wrote: ``cfg.json`` and ``sae_weights.safetensors``."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import CorruptError, Fault
from ..regular_files import MB, read_regular
from .sae import Sae
from .sae_files import digest_faults
from .sae_set import SaeSize
from .saelens_format import (
    CFG,
    SCALER,
    WEIGHTS,
    normalized_cfg,
    sae_from_saelens,
    saelens_names,
    saelens_problems,
    saelens_site,
    trained_architecture,
)
from .stored_sae import Found, StoredSae, checked, read_config
from .weight_arrays import read_tensors, tensor_shapes


def find_saelens(folder: Path, manifest: Mapping[str, Any] | None = None) -> Found:
    """Check a folder, without reading its weights.

    Parameters
    ----------
    folder
        Folder with ``cfg.json`` and ``sae_weights.safetensors``.
    manifest
        Manifest of the folder above, if there is one.

    Returns
    -------
    StoredSae or None, list of Fault
        The autoencoder, or what prevents it from being read.
    """
    content, faults = read_config(folder / CFG)
    shapes, weight_faults = tensor_shapes(folder / WEIGHTS)
    if faults or weight_faults:
        return None, faults + weight_faults
    cfg, scale = normalized_cfg(content), _scale(folder)
    problems = saelens_problems(cfg, scale)
    if problems:
        return None, [Fault(str(folder), what, hint) for what, hint in problems]
    names = saelens_names(cfg, shapes)
    problems = _shape_problems(cfg, names, shapes)
    site = saelens_site(cfg)
    if problems or site is None:
        hint = "download or copy it again"
        return None, [Fault(str(folder / WEIGHTS), problem, hint) for problem in problems]
    n_features, hidden = shapes["W_dec"]
    size = SaeSize(trained_architecture(cfg), n_features, hidden)
    return StoredSae(folder, site, size, partial(_read, folder, cfg, names, scale, manifest)), []


def _read(
    folder: Path,
    cfg: Mapping[str, Any],
    names: Mapping[str, str],
    scale: float | None,
    manifest: Mapping[str, Any] | None,
) -> Sae:
    if faults := digest_faults(folder, cfg, manifest):
        raise CorruptError(faults)
    stored = read_tensors(folder / WEIGHTS, set(names.values()))
    tensors = {name: stored[key] for name, key in names.items()}
    if names.get("threshold") == "log_threshold":
        tensors["threshold"] = tensors["threshold"].exp()
    return checked(sae_from_saelens(cfg, tensors, scale), folder)


def _shape_problems(
    cfg: Mapping[str, Any], names: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """Return the tensors that are missing or whose shape is not the one of ``cfg.json``."""
    hidden, n_features = cfg.get("d_in"), cfg.get("d_sae")
    if not all(type(size) is int and size > 0 for size in (hidden, n_features)):
        return [f"belongs to a {CFG} without valid d_in and d_sae"]
    if missing := [name for name in names.values() if name not in shapes]:
        return [f"lacks {', '.join(missing)}"]
    problems = []
    expected = {"W_enc": (hidden, n_features), "W_dec": (n_features, hidden), "b_dec": (hidden,)}
    for name, key in names.items():
        shape = expected.get(name, () if name == "topk_threshold" else (n_features,))
        if shapes[key] != shape:
            problems.append(f"`{key}` has shape {list(shapes[key])}, but {CFG} says {list(shape)}")
    if cfg["architecture"] == "topk" and not (type(cfg.get("k")) is int and 1 <= cfg["k"] <= n_features):
        problems.append(f"belongs to a {CFG} whose k is {cfg.get('k')!r}")
    if "scaling_factor" in shapes or cfg.get("finetuning_scaling_factor"):
        problems.append("scales the features (scaling_factor)")
    return problems


def _scale(folder: Path) -> float | None:
    """Return the factor of the activations that a checkpoint of a training run has beside its weights."""
    try:
        scale = json.loads(read_regular(folder / SCALER, MB))["scaling_factor"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return float(scale) if type(scale) in (int, float) and 0 < scale < float("inf") else None
