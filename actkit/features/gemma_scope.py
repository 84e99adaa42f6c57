"""Files of Gemma Scope 1 (``params.npz``) and 2 (``config.json``, ``params.safetensors``).

JumpReLU autoencoders of Gemma 2 and 3 (Lieberum et al. 2024, arXiv 2408.05147). The bias of the decoder
is not subtracted from the input, and the site of version 1 is known from the path alone.
"""

import re
from functools import partial
from pathlib import Path

from ..schema import Component
from .sae import Sae
from .sae_layouts import ARRAYS, CONFIG, TENSORS
from .sae_origin import HOOK_NAMES
from .sae_set import SaeSize
from .sae_site import Site
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
from .weight_arrays import array_shapes, read_arrays, read_tensors, tensor_shapes

_LAYER = re.compile(r"layer_(\d{1,5})")
_SIZE = re.compile(r"gemma-scope-(2b|9b|27b)-(pt|it)-")
_HEADS = "is of the heads of the attention, before their output projection, which cubes do not hold"
_OTHER_SITE = "use an autoencoder of the residual stream or of the MLP"
_OTHER_KIND = "use an autoencoder, whose input and output are the same activations"
# names of the tensors in version 1, and in version 2
_NAMES = {"W_enc": "w_enc", "W_dec": "w_dec", "b_enc": "b_enc", "b_dec": "b_dec", "threshold": "threshold"}
# parts of a path: what they say of the site, or why it is refused
_REFUSED = (
    (r"transcoder|(^|[/_-])clt([/_-]|$)", "is a transcoder", _OTHER_KIND),
    (r"crosscoder", "is a crosscoder of several layers", _OTHER_KIND),
    (r"embedding", "is of the embedding", _OTHER_SITE),
    (r"(^|/)attn_out|-(pt|it)-att(/|$)", _HEADS, _OTHER_SITE),
)
_SITES: tuple[tuple[str, Component], ...] = (
    (r"(^|/)resid_post|-(pt|it)-res(/|$)", "residual"),
    (r"(^|/)mlp_out|-(pt|it)-mlp(/|$)", "mlp"),
)


def gemma_scope_site(folder: Path, name: str, component: Component | None = None) -> Site | Refusal:
    """Return the site of an autoencoder from its path.

    Parameters
    ----------
    folder
        Its folder.
    name
        Name of the repository or of the folder that was asked for, and the path in it.
    component
        Component that was asked for, used if the path names none.
    """
    if problems := [(what, hint) for part, what, hint in _REFUSED if re.search(part, name)]:
        return unsuitable(folder, problems[:1])
    found = next((value for part, value in _SITES if re.search(part, name)), component)
    layer = _LAYER.search(name)
    if layer is None:
        return unsuitable(folder, [("has no layer in its path", "keep the folders as published: layer_20/…")])
    if found is None:
        hint = "keep the name of the repository in the path, or give component="
        return unsuitable(folder, [("does not say of which component it is", hint)])
    return Site(int(layer[1]), found)


def find_gemma_scope_1(folder: Path, site: Site, name: str) -> StoredSae | Refusal:
    """Check a folder with ``params.npz``, without reading its weights."""
    size = _SIZE.search(name)
    model = f"google/gemma-2-{size[1]}" + ("-it" if size[2] == "it" else "") if size else ""
    metadata = {"model_name": model} if model else {}
    return _find(folder / ARRAYS, site, dict(zip(_NAMES, _NAMES, strict=True)), metadata)


def find_gemma_scope_2(folder: Path, site: Site) -> StoredSae | Refusal:
    """Check a folder with ``params.safetensors`` and, in most repositories, ``config.json``."""
    config, faults = read_config(folder / CONFIG) if (folder / CONFIG).exists() else ({}, [])
    if faults:
        return damaged(faults)
    architecture = config.get("architecture", "jump_relu")
    if architecture != "jump_relu":
        return unsuitable(folder, [(f"has the architecture {architecture!r}", "supported is jump_relu")])
    source, target = config.get("hf_hook_point_in"), config.get("hf_hook_point_out")
    if config.get("affine_connection") or (source and target and source != target):
        return unsuitable(folder, [("is a transcoder", _OTHER_KIND)])
    metadata = {}
    if "model_name" in config:  # written as gemma-v3 by some
        metadata["model_name"] = str(config["model_name"]).replace("gemma-v3", "gemma-3")
    if source:
        metadata["hf_hook_name"] = str(source)
    return _find(folder / TENSORS, site, _NAMES, metadata)


def _find(path: Path, site: Site, names: dict[str, str], metadata: dict[str, str]) -> StoredSae | Refusal:
    shapes, faults = (array_shapes if path.name == ARRAYS else tensor_shapes)(path)
    if faults:
        return damaged(faults)
    shape = shapes.get(names["W_enc"], ())
    if len(shape) != 2 or not all(map(is_size, shape)):
        return damaged(shape_faults(path, shapes, {names["W_enc"]: (1, 1)}))
    hidden, n_features = shape
    sizes = {"W_enc": shape, "W_dec": (n_features, hidden), "b_dec": (hidden,)}
    expected = {key: sizes.get(name, (n_features,)) for name, key in names.items()}
    if faults := shape_faults(path, shapes, expected):
        return damaged(faults)
    metadata = {**metadata, "hook_name": HOOK_NAMES[site.component].format(site.layer)}
    size = SaeSize("jumprelu", n_features, hidden)
    return StoredSae(path.parent, site, size, partial(_read, path, site, names, metadata))


def _read(path: Path, site: Site, names: dict[str, str], metadata: dict[str, str]) -> Sae:
    stored = (read_arrays if path.name == ARRAYS else read_tensors)(path, set(names.values()))
    tensors = {name: stored[key] for name, key in names.items()}
    sae = Sae(
        layer=site.layer,
        component=site.component,
        architecture="jumprelu",
        w_enc=tensors["W_enc"],
        b_enc=tensors["b_enc"],
        w_dec=tensors["W_dec"],
        b_dec=tensors["b_dec"],
        threshold=tensors["threshold"].clamp(min=0),  # ReLU is applied as well
        subtract_b_dec=False,
        metadata=metadata,
    )
    return checked(sae, path.parent)
