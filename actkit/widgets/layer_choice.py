"""What a layer specification means for a model that is not loaded, nor even fetched."""

import json
from collections.abc import Mapping
from pathlib import Path

from ..layers import describe, parse, resolve

_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "depth")


def layer_counts(model: str) -> dict[str, int]:
    """Return how many blocks a model has, by component, as its configuration says; {} if unknown."""
    path = _configuration(model)
    try:
        told = json.loads(path.read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError):
        return {}
    text = told.get("text_config") or told.get("llm_config") or told
    n_layers = next((text[name] for name in _COUNTS if isinstance(text.get(name), int)), None)
    if n_layers is None:
        return {}
    counts = dict.fromkeys(("residual", "attention", "mlp"), n_layers)
    vision = told.get("vision_config") or {}
    tower = next((vision[name] for name in _COUNTS if isinstance(vision.get(name), int)), None)
    return counts | ({} if tower is None else {"vision": tower})


def _configuration(model: str) -> Path | None:
    if Path(model).is_absolute() or Path(model).is_dir():
        return Path(model) / "config.json"
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    found = try_to_load_from_cache(model, "config.json")
    return Path(found) if isinstance(found, str) else None


def echo(spec: str, counts: Mapping[str, int]) -> tuple[str, str, tuple[int, ...]]:
    """Say what a layer specification means.

    Returns
    -------
    meaning : str
        Such as "34 layers: 0-33".
    fault : str
        What is wrong with it, or "".
    layers : tuple of int
        The blocks whose residual is kept.
    """
    parts, faults = parse(spec or "all")
    if faults or not counts:
        return "", "; ".join(fault.told for fault in faults), ()
    layers, faults = resolve(parts, counts)
    if faults:
        return "", "; ".join(fault.told for fault in faults), ()
    told = [
        ("" if name == "residual" else f"{name}: ")
        + f"{len(own)} layer{'' if len(own) == 1 else 's'}: {describe(own)}"
        for name, own in layers.items()
    ]
    return "; ".join(told), "", layers.get("residual", ())
