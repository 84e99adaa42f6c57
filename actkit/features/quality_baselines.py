"""Baselines for autoencoders with as many active coefficients: PCA, and features that were not trained."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from .quality_sums import sums_device
from .sae import Sae

_GAIN_TOKENS = 4096


class Baselines:
    """Reconstructions of a layer's tokens without a trained dictionary.

    Parameters
    ----------
    batches
        Activations to fit to, dims ``(token, hidden)``; none of them may be evaluated.
    sae
        The autoencoder; baselines use as many active coefficients, and as many features.
    seed
        Seed of the random features.

    Notes
    -----
    The random dictionary has decoder rows of length 1 in uniformly distributed directions, the encoder is
    its transpose, and the bias is the mean of the tokens, as before the first step of training. One factor,
    fitted by least squares, scales all of its reconstructions; without it, they are too large.
    """

    def __init__(self, batches: Iterable[torch.Tensor], sae: Sae, seed: int = 0) -> None:
        device = sae.w_dec.device
        self._sums_device = sums_device(device)
        wide: dict[str, Any] = {"dtype": torch.float64, "device": self._sums_device}
        count, total = 0, torch.zeros(sae.hidden, **wide)
        products = torch.zeros(sae.hidden, sae.hidden, **wide)
        kept: list[torch.Tensor] = []
        shift: torch.Tensor | None = None
        for batch in batches:
            x = batch.to(device)
            shift = x.mean(0) if shift is None else shift
            kept += [x] if count < _GAIN_TOKENS else []
            centred = x - shift
            count, total = count + len(x), total + self._wide(centred).sum(0)
            products += self._wide(centred.T @ centred)
        assert shift is not None
        offset = total / count
        self.mean = (self._wide(shift) + offset).float().to(device)
        _, vectors = torch.linalg.eigh(products / count - torch.outer(offset, offset))
        self.components = (
            vectors.flip(1).float().to(device)
        )  # largest variance first, dims (hidden, component)
        self.dictionary = random_directions(sae.n_features, sae.hidden, seed).to(device)
        self.gain = 1.0
        self._fit_gain(torch.cat(kept)[:_GAIN_TOKENS], sae)
        self.n_tokens = 0
        self._energy = torch.zeros(sae.hidden, **wide)
        self._errors = {"pca_top": 0.0, "random": 0.0}

    def _wide(self, values: torch.Tensor) -> torch.Tensor:
        """Return values in float64, on a device that has it."""
        return values.to(self._sums_device).double()

    def _fit_gain(self, x: torch.Tensor, sae: Sae) -> None:
        centred = x - self.mean
        random = self._random(centred, int((sae.encode(x) != 0).sum()))
        power = float(random.square().sum())
        self.gain = float((centred * random).sum()) / power if power else 1.0

    def _random(self, centred: torch.Tensor, n_active: int) -> torch.Tensor:
        features = _largest((centred @ self.dictionary.T).relu(), n_active)
        return self.gain * (features @ self.dictionary)

    def add(self, x: torch.Tensor, n_active: int) -> None:
        """Add a batch of activations, dims ``(token, hidden)``, in which so many features were active."""
        centred = x - self.mean
        coefficients = centred @ self.components
        self.n_tokens += len(x)
        self._energy += self._wide(coefficients).square().sum(0)
        dropped = coefficients - _largest(coefficients, n_active)
        self._errors["pca_top"] += float(self._wide(dropped).square().sum())
        error = centred - self._random(centred, n_active)
        self._errors["random"] += float(self._wide(error).square().sum())

    def fvu(self, variance: float, l0: float) -> dict[str, float]:
        """Return the fraction of variance unexplained of each baseline.

        Parameters
        ----------
        variance
            Mean squared distance of the evaluated tokens from their mean; if it is 0, the result is NaN.
        l0
            Mean number of active features of a token. PCA keeps as many components, interpolated linearly
            between whole numbers.
        """
        total = self.n_tokens * variance if variance > 0 else float("nan")
        # what remains with 0, 1, … components
        left = torch.cat([self._energy.sum()[None], self._energy.sum() - self._energy.cumsum(0)]).clamp(min=0)
        l0 = min(max(l0, 0.0), len(left) - 1.0)
        below = int(l0)
        above = min(below + 1, len(left) - 1)
        pca = float(left[below] + (l0 - below) * (left[above] - left[below]))
        return {
            "fvu_pca": pca / total,
            "fvu_pca_top": self._errors["pca_top"] / total,
            "fvu_random": self._errors["random"] / total,
        }


def random_directions(count: int, hidden: int, seed: int) -> torch.Tensor:
    """Return vectors of length 1 in uniformly distributed directions, dims ``(feature, hidden)``."""
    # not the generator of PyTorch, whose numbers for the same seed may be the initial weights of training
    rows = np.random.default_rng([seed, hidden]).standard_normal((count, hidden), dtype=np.float32)
    return torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def _largest(values: torch.Tensor, count: int) -> torch.Tensor:
    """Set all but the entries of largest magnitude in a batch to 0, as BatchTopK does."""
    if count >= values.numel():
        return values
    kept = torch.zeros_like(values)
    if count > 0:
        places = values.abs().flatten().topk(count).indices
        kept.view(-1)[places] = values.flatten()[places]
    return kept
