"""How many features of an autoencoder another one, trained with another seed, has too."""

import torch

from .quality_baselines import random_directions
from .sae import Sae

MATCHED = 0.7  # cosine of two decoder directions (Paulo and Belrose 2025)
_ROWS = 2048


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
    ours = _unit(sae.w_dec[is_active.to(sae.w_dec.device)])
    if not len(ours):
        return {"found_again": float("nan"), "found_again_random": float("nan")}
    theirs = _unit(other.w_dec)
    random = random_directions(len(theirs), theirs.shape[1], seed=0).to(theirs)
    return {"found_again": _share(ours, theirs), "found_again_random": _share(ours, random)}


def _unit(rows: torch.Tensor) -> torch.Tensor:
    unit: torch.Tensor = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return unit


def _share(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the share of rows that are mutual nearest neighbours with a high cosine, in blocks of rows."""
    best = torch.full((len(theirs),), -2.0, device=theirs.device)
    best_row = torch.zeros(len(theirs), dtype=torch.int64, device=theirs.device)
    nearest, cosine = [], []
    for start in range(0, len(ours), _ROWS):
        block = ours[start : start + _ROWS] @ theirs.T
        values, rows = block.max(dim=0)
        is_better = values > best
        best, best_row = torch.where(is_better, values, best), torch.where(is_better, rows + start, best_row)
        row_values, columns = block.max(dim=1)
        nearest.append(columns)
        cosine.append(row_values)
    columns = torch.cat(nearest)
    mutual = best_row[columns] == torch.arange(len(ours), device=ours.device)
    return float((mutual & (torch.cat(cosine) >= MATCHED)).double().mean())
