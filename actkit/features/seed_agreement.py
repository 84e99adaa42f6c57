"""How many features of an autoencoder another one, trained with another seed, has too."""

import torch

from .nearest_rows import MATCHED, cosine_matches
from .quality_baselines import random_directions
from .sae import Sae


@torch.inference_mode()
def seed_agreement(sae: Sae, other: Sae, is_active: torch.Tensor) -> dict[str, float]:
    """Return the share of active features with a counterpart, and that of random directions.

    Parameters
    ----------
    sae, other
        Autoencoders of the same activations.
    is_active
        Which features of the first are ever active, dims ``(feature,)``.

    Returns
    -------
    dict
        ``found_again``: share of active features whose decoder direction and that of some feature of the
        other are the most similar to each other, with a cosine of at least 0.7. ``found_again_random``: the
        same for random directions in place of the other's.
    """
    ours = sae.w_dec[is_active.to(sae.w_dec.device)]
    if not len(ours):
        return {"found_again": float("nan"), "found_again_random": float("nan")}
    theirs = other.w_dec
    random = random_directions(len(theirs), theirs.shape[1], seed=0).to(theirs)
    return {"found_again": _share(ours, theirs), "found_again_random": _share(ours, random)}


def _share(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the share of rows that are mutual nearest neighbours with a high cosine."""
    found = cosine_matches(ours, theirs)
    return float((found.mutual & (found.similarity >= MATCHED)).mean())
