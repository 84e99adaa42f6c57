"""Small autoencoders with weights that a seed determines."""

import torch

from actkit.features.sae import Sae

HIDDEN, FEATURES = 6, 20
HOOKS = {"residual": "hook_resid_post", "attention": "hook_attn_out", "mlp": "hook_mlp_out"}


def random_sae(
    layer: int = 2,
    architecture: str = "batchtopk",
    component: str = "residual",
    *,
    hidden: int = HIDDEN,
    features: int = FEATURES,
    seed: int | None = None,
    **metadata: object,
) -> Sae:
    rng = torch.Generator().manual_seed(layer if seed is None else seed)
    w_dec = torch.randn(features, hidden, generator=rng)
    w_dec /= w_dec.norm(dim=1, keepdim=True)
    thresholds = {"batchtopk": torch.full((features,), 0.4), "jumprelu": torch.linspace(0, 1, features)}
    return Sae(
        layer,
        component,
        architecture,
        w_enc=w_dec.T,
        b_enc=torch.randn(features, generator=rng) / 10,
        w_dec=w_dec,
        b_dec=torch.randn(hidden, generator=rng) / 10,
        threshold=thresholds.get(architecture),
        k=4 if architecture == "topk" else None,
        metadata={"model_name": "demo", "hook_name": f"blocks.{layer}.{HOOKS[component]}", **metadata},
    )


def activations(n: int = 50, hidden: int = HIDDEN) -> torch.Tensor:
    return torch.randn(n, hidden, generator=torch.Generator().manual_seed(9))
