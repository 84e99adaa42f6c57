"""Folders of EleutherAI's sparsify, named after a module: ``cfg.json`` and ``sae.safetensors``."""

import re
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import Fault
from ..schema import Component
from .manifest import CFG
from .sae import Sae
from .sae_layouts import CONFIG, SPARSIFY_WEIGHTS
from .sae_origin import HOOK_NAMES
from .sae_set import SaeSize
from .sae_site import Site
from .stored_sae import (
    DOWNLOAD,
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

_MODULE = re.compile(r"(?:[a-z_]+\.)*(?:layers|layer|h|blocks)[._](\d{1,5})(?:\.([a-z_]+))?")
_COMPONENTS: dict[str, Component] = {
    "mlp": "mlp",
    "attention": "attention",
    "self_attn": "attention",
    "attn": "attention",
}


def sparsify_site(folder: Path) -> Site | Refusal:
    """Return the site of an autoencoder, which the name of its folder says.

    Parameters
    ----------
    folder
        Folder such as ``layers.5`` (output of a block) or ``layers.5.mlp``.
    """
    match = _MODULE.fullmatch(folder.name)
    component = "residual" if match and match[2] is None else _COMPONENTS.get(str(match and match[2]))
    if match is None or component is None:
        hint = "cubes hold outputs of blocks, attention and MLP, such as `layers.5`"
        return unsuitable(folder, [(f"is of the module `{folder.name}`", hint)])
    return Site(int(match[1]), component)


def find_sparsify(folder: Path) -> StoredSae | Refusal:
    """Check a folder, without reading its weights."""
    site = sparsify_site(folder)
    cfg, faults = read_config(folder / CFG)
    if isinstance(site, Refusal):
        return site
    if faults:
        return damaged(faults)
    if problems := _problems(cfg):
        return unsuitable(folder, problems)
    shapes, faults = tensor_shapes(folder / SPARSIFY_WEIGHTS)
    if faults:
        return damaged(faults)
    hidden, n_features, k = cfg.get("d_in"), cfg.get("num_latents") or None, cfg.get("k")
    if n_features is None and is_size(hidden) and is_size(cfg.get("expansion_factor")):
        n_features = hidden * cfg["expansion_factor"]
    if not (is_size(hidden) and is_size(n_features) and is_size(k) and k <= n_features):
        return damaged([Fault(str(folder / CFG), "has no valid d_in, num_latents and k", DOWNLOAD)])
    expected = {
        "encoder.weight": (n_features, hidden),
        "encoder.bias": (n_features,),
        "W_dec": (n_features, hidden),
        "b_dec": (hidden,),
    }
    if faults := shape_faults(folder / SPARSIFY_WEIGHTS, shapes, expected):
        return damaged(faults)
    run = read_config(folder.parent / CONFIG)[0]
    metadata = {
        "hook_name": HOOK_NAMES[site.component].format(site.layer),
        "hf_hook_name": folder.name,
        **({"model_name": run["model"]} if isinstance(run.get("model"), str) else {}),
    }
    return StoredSae(
        folder, site, SaeSize("topk", n_features, hidden), partial(_read, folder, site, k, metadata)
    )


def _problems(cfg: dict[str, Any]) -> list[tuple[str, str]]:
    problems = []
    hint = "use an autoencoder, whose input and output are the same activations"
    if cfg.get("transcode"):
        problems.append(("is a transcoder", hint))
    elif cfg.get("skip_connection"):
        problems.append(("has a skip connection", hint))
    activation = cfg.get("activation", "topk")
    if activation != "topk" or cfg.get("signed"):
        name = "signed topk" if cfg.get("signed") else activation
        problems.append((f"has the activation function {name!r}", "supported is topk"))
    return problems


def _read(folder: Path, site: Site, k: int, metadata: dict[str, str]) -> Sae:
    tensors = read_tensors(folder / SPARSIFY_WEIGHTS, ("encoder.weight", "encoder.bias", "W_dec", "b_dec"))
    sae = Sae(
        layer=site.layer,
        component=site.component,
        architecture="topk",
        w_enc=tensors["encoder.weight"].T.contiguous(),
        b_enc=tensors["encoder.bias"],
        w_dec=tensors["W_dec"],
        b_dec=tensors["b_dec"],
        k=k,
        metadata=metadata,
    )
    return checked(sae, folder)
