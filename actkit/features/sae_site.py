"""Sites of published autoencoders: which component of which layer a hook point is."""

import re
from dataclasses import dataclass

from ..schema import Component

_HOOK_POINT = re.compile(r"blocks\.(\d{1,5})\.(hook_resid_pre|hook_resid_post|hook_attn_out|hook_mlp_out)")
# the output of a whole block in transformers, such as `model.layers.4` or `transformer.h.4.output`
_BLOCK = re.compile(r"(?:[a-z_]+\.)*(?:layers|layer|h|blocks)\.(\d{1,5})(?:\.output)?")
_COMPONENTS: dict[str, Component] = {
    "hook_resid_pre": "residual",
    "hook_resid_post": "residual",
    "hook_attn_out": "attention",
    "hook_mlp_out": "mlp",
}


@dataclass(frozen=True, order=True)
class Site:
    """Component of a layer."""

    layer: int
    component: Component


def site_of(hook_name: str) -> Site | None:
    """Return the site of a hook point, or None if cubes do not hold its activations.

    Parameters
    ----------
    hook_name
        Name in TransformerLens, or of a block in transformers.

    Examples
    --------
    >>> site_of("blocks.4.hook_mlp_out")
    Site(layer=4, component='mlp')

    The input of a block is the output of the block before it.

    >>> site_of("blocks.4.hook_resid_pre")
    Site(layer=3, component='residual')
    >>> site_of("model.layers.4")
    Site(layer=4, component='residual')
    >>> site_of("blocks.4.attn.hook_z") is None
    True
    """
    if match := _HOOK_POINT.fullmatch(hook_name):
        layer = int(match[1]) - (match[2] == "hook_resid_pre")
        return Site(layer, _COMPONENTS[match[2]]) if layer >= 0 else None
    if match := _BLOCK.fullmatch(hook_name):
        return Site(int(match[1]), "residual")
    return None
