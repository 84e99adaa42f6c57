"""The weights of a sparse autoencoder of one layer, and how it computes features and reconstructions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from ..schema import Component

Architecture = Literal["standard", "gated", "topk", "batchtopk", "jumprelu"]


@dataclass(frozen=True, eq=False)
class Sae:
    """Sparse autoencoder of one component of one layer, in the units of the cube (a scale is folded in).

    Attributes
    ----------
    layer, component
        Site of the activations, as in a cube.
    architecture
        ``standard`` (ReLU), ``topk``, ``batchtopk``, ``jumprelu`` or ``gated``. The last three have a
        threshold; the gate of ``gated`` is equivalent to one (see `actkit.features.saelens_format`).
    w_enc, b_enc
        Weights of the encoder, dims ``(hidden, feature)`` and ``(feature)``, float32.
    w_dec, b_dec
        Weights of the decoder, dims ``(feature, hidden)`` and ``(hidden)``, float32.
    threshold
        ``batchtopk``, ``jumprelu`` and ``gated``: a feature is active where its pre-activation exceeds it,
        dims ``(feature)``, at least 0.
    k
        ``topk``: number of active features of each token.
    subtract_b_dec
        Whether the bias of the decoder is subtracted from the input.
    metadata
        What the file says of its origin: model, digests, hook name, number of training tokens.
    """

    layer: int
    component: Component
    architecture: Architecture
    w_enc: torch.Tensor
    b_enc: torch.Tensor
    w_dec: torch.Tensor
    b_dec: torch.Tensor
    threshold: torch.Tensor | None = None
    k: int | None = None
    subtract_b_dec: bool = True
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def hidden(self) -> int:
        """Width of the activations."""
        return self.w_dec.shape[1]

    @property
    def n_features(self) -> int:
        """Number of features (latents)."""
        return self.w_dec.shape[0]

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Return the features of activations, dims ``(…, feature)``; most are 0."""
        pre = (x - self.b_dec if self.subtract_b_dec else x) @ self.w_enc + self.b_enc
        if self.architecture == "topk" and self.k is not None:
            top = pre.relu().topk(self.k, dim=-1)
            return torch.zeros_like(pre).scatter_(-1, top.indices, top.values)
        if self.threshold is not None:
            return pre * (pre > self.threshold)
        return pre.relu()

    def decode(self, features: torch.Tensor) -> torch.Tensor:
        """Return the reconstruction of activations from features, dims ``(…, hidden)``."""
        return features @ self.w_dec + self.b_dec
