"""Small autoencoders in the layouts of Gemma Scope and sparsify."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from tests.features.sae_samples import FEATURES, HIDDEN, activations, random_sae


def jumprelu_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    sae = random_sae(seed=seed)
    tensors = {"w_enc": sae.w_enc.contiguous(), "w_dec": sae.w_dec, "b_enc": sae.b_enc, "b_dec": sae.b_dec}
    return tensors | {"threshold": torch.linspace(-0.2, 1, FEATURES)}


def jumprelu_formula(tensors: dict[str, torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Return features and outputs by the formulas of Gemma Scope's tutorial."""
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    pre = activations().numpy() @ arrays["w_enc"] + arrays["b_enc"]
    features = (pre > arrays["threshold"]) * np.maximum(pre, 0)
    return features, features @ arrays["w_dec"] + arrays["b_dec"]


def write_gemma_scope_1(
    folder: Path, name: str = "layer_20/width_16k/average_l0_71", **changes: object
) -> Path:
    (folder / name).mkdir(parents=True)
    arrays = {key.replace("w_", "W_"): tensor.numpy() for key, tensor in jumprelu_tensors().items()}
    np.savez(folder / name / "params.npz", **(arrays | changes))
    return folder


def write_gemma_scope_2(
    folder: Path, name: str = "resid_post_all/layer_9_width_16k_l0_small", **changes: object
) -> Path:
    (folder / name).mkdir(parents=True)
    save_file(jumprelu_tensors(), folder / name / "params.safetensors")
    config = {
        "architecture": "jump_relu",
        "model_name": "google/gemma-v3-1b-it",
        "hf_hook_point_in": "model.layers.9.output",
        "hf_hook_point_out": "model.layers.9.output",
        "affine_connection": False,
        "l0": 20,
    }
    (folder / name / "config.json").write_text(json.dumps(config | changes))
    return folder


def write_sparsify(folder: Path, name: str = "layers.5", **changes: object) -> Path:
    (folder / name).mkdir(parents=True)
    sae = random_sae(5, "topk")
    save_file(
        {
            "encoder.weight": sae.w_enc.T.contiguous(),
            "encoder.bias": sae.b_enc,
            "W_dec": sae.w_dec.clone(),
            "b_dec": sae.b_dec,
        },
        folder / name / "sae.safetensors",
    )
    cfg = {"d_in": HIDDEN, "num_latents": FEATURES, "k": 4, "activation": "topk", "transcode": False}
    (folder / name / "cfg.json").write_text(json.dumps(cfg | changes))
    (folder / "config.json").write_text(json.dumps({"model": "org/tiny", "sae": {}}))
    return folder
