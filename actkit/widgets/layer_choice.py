"""Interpretation of a layer specification from a model's configuration, without loading the model."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from ..layer_spec import describe, parse, resolve
from ..regular_files import MOST_JSON, read_regular

_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "depth")


def layer_counts(model: str) -> dict[str, int]:
    """Return the number of blocks per component according to the model's configuration; {} if unknown."""
    path = _configuration(model)
    try:
        configuration = json.loads(read_regular(path, MOST_JSON)) if path else {}
    except (OSError, ValueError, RecursionError):
        return {}
    text = configuration.get("text_config") or configuration.get("llm_config") or configuration
    n_layers = next((text[name] for name in _COUNTS if isinstance(text.get(name), int)), None)
    if n_layers is None:
        return {}
    counts = dict.fromkeys(("residual", "attention", "mlp"), n_layers)
    vision = configuration.get("vision_config") or {}
    tower = next((vision[name] for name in _COUNTS if isinstance(vision.get(name), int)), None)
    return counts | ({} if tower is None else {"vision": tower})


def _configuration(model: str) -> Path | None:
    if os.path.isabs(model) or os.path.exists(model):
        return Path(model) / "config.json"
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    try:
        cached = try_to_load_from_cache(model, "config.json")
    except ValueError:  # not a valid id, such as one that is still being typed
        return None
    return Path(cached) if isinstance(cached, str) else None


def echo(spec: str, counts: Mapping[str, int]) -> tuple[str, str, tuple[int, ...]]:
    """Describe a layer specification.

    Returns
    -------
    meaning : str
        Such as "34 layers: 0-33".
    fault : str
        The error in the specification, or "".
    layers : tuple of int
        Blocks whose residual stream is kept.
    """
    parts, faults = parse(spec or "all")
    if faults or not counts:
        return "", "; ".join(fault.message for fault in faults), ()
    layers, faults = resolve(parts, counts)
    if faults:
        return "", "; ".join(fault.message for fault in faults), ()
    described = [
        ("" if name == "residual" else f"{name}: ")
        + f"{len(chosen)} layer{'' if len(chosen) == 1 else 's'}: {describe(chosen)}"
        for name, chosen in layers.items()
    ]
    return "; ".join(described), "", layers.get("residual", ())
