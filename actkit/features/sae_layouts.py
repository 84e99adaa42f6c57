"""Names of the files of autoencoders, by layout; needs no torch."""

from typing import Literal

from .manifest import CFG, MANIFEST, WEIGHTS

Layout = Literal["SAELens", "sparsify", "Gemma Scope 1", "Gemma Scope 2"]
SPARSIFY_WEIGHTS = "sae.safetensors"
SCALER = "activation_scaler.json"  # in SAELens' checkpoints of a training run
ARRAYS = "params.npz"
TENSORS = "params.safetensors"
CONFIG = "config.json"
# file of the weights of each layout
LAYOUTS: dict[str, Layout] = {
    WEIGHTS: "SAELens",
    SPARSIFY_WEIGHTS: "sparsify",
    ARRAYS: "Gemma Scope 1",
    TENSORS: "Gemma Scope 2",
}
# further files of each layout, as far as present
OTHERS: dict[Layout, tuple[str, ...]] = {
    "SAELens": (CFG, SCALER, f"../{MANIFEST}"),
    "sparsify": (CFG, f"../{CONFIG}"),
    "Gemma Scope 1": (),
    "Gemma Scope 2": (CONFIG,),
}
