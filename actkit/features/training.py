"""Training of sparse autoencoders on the layers of a run."""

import os
from collections.abc import Mapping
from typing import Any, Literal

from ..canonical import Cube
from ..errors import Fault, InputError
from ..layer_spec import Spec
from ..schema import Component
from ..stats.selection import TokenSelection
from .sae_set import SaeSet


def train_saes(
    run: Cube,
    *,
    out: str | os.PathLike[str],
    layers: Spec = "all",
    component: Component = "residual",
    width: int | None = None,
    k: int = 32,
    architecture: Literal["batchtopk", "topk"] = "batchtopk",
    tokens: TokenSelection = "content",
    where: Mapping[str, Any] | None = None,
    holdout: str | None = "auto",
    steps: int | None = None,
    epochs: int | None = None,
    batch: int = 4096,
    lr: float | None = None,
    seed: int = 0,
    device: str = "auto",
    memory: int | str = "auto",
    resume: bool = True,
) -> SaeSet:
    """Train a sparse autoencoder on each of the layers of a run."""
    raise InputError([Fault("train_saes", "is not part of this version yet", "wait for the next commit")])
