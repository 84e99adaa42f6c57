"""Origin of the activations of an autoencoder: the cube, the model and the names of hook points."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ..canonical import Cube, as_cube
from ..schema import Component, TokenKind

ADAPTER = "adapter_sha256"
# names in TransformerLens, which SAELens uses for every model
HOOK_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "residual": "blocks.{}.hook_resid_post",
        "attention": "blocks.{}.hook_attn_out",
        "mlp": "blocks.{}.hook_mlp_out",
    }
)
_LLAMA = {
    "residual": "model.layers.{}",
    "attention": "model.layers.{}.self_attn",
    "mlp": "model.layers.{}.mlp",
}
_GEMMA = {
    "residual": "model.layers.{}",
    "attention": "model.layers.{}.post_attention_layernorm",
    "mlp": "model.layers.{}.post_feedforward_layernorm",
}
_GPT2 = {"residual": "transformer.h.{}", "attention": "transformer.h.{}.attn", "mlp": "transformer.h.{}.mlp"}
_NEOX = {
    "residual": "gpt_neox.layers.{}",
    "attention": "gpt_neox.layers.{}.attention",
    "mlp": "gpt_neox.layers.{}.mlp",
}
# modules of the causal model in transformers whose output is the component, by `model_type`, where known
_MODULES = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3", "phi3", "gemma", "stablelm"), _LLAMA),
    **dict.fromkeys(("gemma2", "gemma3_text"), _GEMMA),
    "gpt2": _GPT2,
    "gpt_neox": _NEOX,
}


def module_name(model_type: str, layer: int, component: Component) -> str | None:
    """Return the module of a causal model in transformers whose output is a component, or None if unknown.

    Examples
    --------
    >>> module_name("gemma2", 3, "mlp")
    'model.layers.3.post_feedforward_layernorm'
    """
    modules = _MODULES.get(model_type)
    return None if modules is None else modules[component].format(layer)


def sae_metadata(cube: Cube, layer: int, component: Component) -> dict[str, Any]:
    """Return what the file of an autoencoder says of its origin.

    Parameters
    ----------
    cube
        Cube of the activations.
    layer, component
        Site of the activations.

    Returns
    -------
    dict
        ``model_name``, ``model_revision`` (digest of a model in a folder), ``model_type`` and
        ``adapter_sha256`` of the model; ``cube_sha256`` of the cube's metadata; ``hook_name`` in
        TransformerLens and, for architectures whose modules are known, ``hf_hook_name`` in transformers;
        ``prepend_bos``, whether the first token is a special one. What is unknown is left out.
    """
    cube = as_cube(cube)
    attrs = {
        "model_name": cube.attrs.get("model"),
        "model_revision": cube.attrs.get("model_revision"),
        "model_type": cube.attrs.get("model_type"),
        "cube_sha256": cube.attrs.get("metadata_sha256"),
        ADAPTER: cube.attrs.get(ADAPTER),
        "hook_name": HOOK_NAMES[component].format(layer),
        "hf_hook_name": module_name(str(cube.attrs.get("model_type")), layer, component),
        "prepend_bos": _starts_special(cube),
    }
    return {name: value for name, value in attrs.items() if value is not None}


def _starts_special(cube: Any) -> bool | None:
    if "token_kind" not in cube.coords or not cube.sizes["sample"]:
        return None
    first = cube.token_kind.isel(sample=0, token=0)
    if int(first.coords.get("position", 0)) != 0:  # only some positions are kept
        return None
    # a chat template may begin with a special token, which its kind does not tell
    return None if int(first) == TokenKind.TEMPLATE else int(first) == TokenKind.SPECIAL
