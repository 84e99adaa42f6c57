"""Autoencoders whose reconstructions are known."""

from collections.abc import Mapping
from typing import Any

import torch

from actkit.features.sae import Sae
from actkit.features.sae_set import SaeSet


def identity(hidden: int, layer: int = 0, component: Any = "residual", **metadata: Any) -> Sae:
    """Return an autoencoder that reconstructs exactly: a feature for each sign of each coordinate."""
    eye = torch.eye(hidden)
    both = torch.cat([eye, -eye])
    zeros = torch.zeros(hidden)
    return Sae(layer, component, "standard", both.T, torch.zeros(2 * hidden), both, zeros, metadata=metadata)


def constant(
    hidden: int, value: torch.Tensor | float = 0.0, layer: int = 0, component: Any = "residual"
) -> Sae:
    """Return an autoencoder without active features, whose reconstruction is its bias."""
    zeros = torch.zeros(hidden, 2 * hidden)
    bias = torch.as_tensor(value).expand(hidden).clone()
    return Sae(layer, component, "standard", zeros, torch.zeros(2 * hidden), zeros.T, bias)


def random(hidden: int, n_features: int = 24, layer: int = 0, seed: int = 0, **metadata: Any) -> Sae:
    """Return an autoencoder with random weights and a threshold."""
    torch.manual_seed(seed)
    w_dec = torch.randn(n_features, hidden)
    w_dec /= w_dec.norm(dim=1, keepdim=True)
    bias = 0.1 * torch.randn(hidden)
    threshold = 0.2 + torch.rand(n_features)
    return Sae(
        layer, "residual", "jumprelu", w_dec.T.contiguous(), 0.1 * torch.randn(n_features), w_dec, bias,
        threshold, metadata=metadata,
    )  # fmt: skip


def set_of(saes: Mapping[int, Sae]) -> SaeSet:
    """Return autoencoders in memory as a set."""
    component = next(iter(saes.values())).component
    return SaeSet(component, {layer: lambda sae=sae: sae for layer, sae in saes.items()})
