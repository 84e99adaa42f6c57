"""What becomes of the positions of a prompt; sums are made in float64."""

import torch


def mean_of(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean over the masked positions, dims ``(sample, hidden)``; NaN where there is none."""
    counts = mask.sum(dim=1)[:, None]
    # where, not multiplication: what lies at a pad may be NaN
    total = torch.where(mask[..., None], values, 0).sum(dim=1, dtype=_wide(values))
    return (total / counts).masked_fill(counts == 0, torch.nan)


def last_of(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the values at the last masked position, dims ``(sample, hidden)``; NaN where there is none."""
    last = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(dim=1)
    chosen = values[torch.arange(len(values), device=values.device), last]
    return chosen.masked_fill(~mask.any(dim=1)[:, None], torch.nan)


def norm_of(values: torch.Tensor) -> torch.Tensor:
    """Return the L2 norm over hidden, dims ``(sample, token)``."""
    norms: torch.Tensor = torch.linalg.vector_norm(values, dim=-1, dtype=_wide(values))
    return norms


def _wide(values: torch.Tensor) -> torch.dtype:
    # MPS has no float64
    return torch.float32 if values.device.type == "mps" else torch.float64
